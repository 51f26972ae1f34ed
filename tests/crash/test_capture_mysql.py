"""Capture of MySQL, with GTIDs and without: killed, its source killed, its log rotated, reset and replaced. Every committed step
is in the log once, in order, or capture is visibly stopped."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from agents.rollback.history import find_marker
from agents.schema.replay import definitions_in
from api.timeline.source import Filter, Timeline
from deploy.demo.server import DatabaseServer
from projections.database import connect
from streams.capture_log import CaptureLog
from streams.formats.binlog.events import TRANSACTION_PAYLOAD, iter_events, parse_format_description
from streams.formats.binlog.step import StepSummary, summarise
from streams.ids import uuid7
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.capturing import Load, Protected, captured_to, eventually, position, protect
from tests.stack.running_api import prepare
from tests.stack.servers import Scratch, start_database

pytestmark = pytest.mark.crash

NO_GTIDS: dict[str, str | None] = {"gtid_mode": "OFF", "enforce_gtid_consistency": "OFF"}
SERVERS: dict[str, tuple[str, dict[str, str | None]]] = {
    "9": ("mysql-9", {}),
    "9 without GTIDs": ("mysql-9", NO_GTIDS),
    "5.5": ("mysql-5.5", {}),
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """Nobody else's: it is killed, and its log reset."""
    name, options = SERVERS[request.param]
    scratch = Scratch("capture-mysql")
    started = None
    try:
        started = start_database(scratch.path / "server", name, options=options)
        yield started
    finally:
        if started is not None:
            started.stop()
        scratch.remove()


@pytest.fixture
def each(fresh_site: Settings, server: DatabaseServer) -> Iterator[Protected]:
    """The server, protected from now on."""
    made = protect(fresh_site, server)
    yield made
    made.stop()


@pytest.fixture
def compressing(fresh_site: Settings, make_database: Callable[..., DatabaseServer]) -> Iterator[Protected]:
    """A server that compresses its transactions, captured."""
    prepare(fresh_site)
    made = protect(fresh_site, make_database("mysql-9", options={"binlog_transaction_compression": "ON"}))
    made.capture()
    yield made
    made.stop()


def numbered(server: DatabaseServer) -> bool:
    return server.version.startswith("9.") and server.execute("select @@gtid_mode") == [("ON",)]


def awkward(server: DatabaseServer) -> None:
    """A step of each shape."""
    server.execute(
        "create database if not exists shapes",
        "create table shapes.t (id int primary key, v varchar(2000), k int, key (k)) engine=InnoDB",
        "create table shapes.plain (id int primary key) engine=MyISAM",
        "insert into shapes.plain values (1), (2)",
        "insert into shapes.t values (1, 'a', 1), (2, 'b', 2)",
        "create table shapes.copy as select * from shapes.t",
        "create user 'somebody'@'localhost' identified by 'a secret'",
    )
    with contextlib.closing(server.connect(autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("insert into shapes.t values (3, 'c', 3)")
        cursor.execute("savepoint here")
        if not numbered(server):  # with GTIDs the server does not let a transaction mix engines
            cursor.execute("insert into shapes.plain values (3)")
        cursor.execute("insert into shapes.t values (4, 'd', 4)")
        cursor.execute("rollback to here")
        connection.commit()
        for n in range(700):  # more than a record holds
            cursor.execute("insert into shapes.t values (%s, repeat('x', 1900), 0)", (100 + n,))
        connection.commit()
    with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
        for statement in ("start", "end", "prepare", "commit"):
            cursor.execute(f"xa {statement} 'x'")
            if statement == "start":
                cursor.execute("insert into shapes.t values (60, 'x', 6)")
    if numbered(server):
        with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("set session binlog_transaction_compression = 1")
            cursor.execute("insert into shapes.t values (50, repeat('z', 900), 5)")


def test_killed_resumed_and_its_log_rotated(each: Protected) -> None:
    first = each.capture()
    with Load(each.server, pause_s=0.002) as load:
        load.await_more(60)
        awkward(each.server)
        each.server.execute("flush logs")
        load.await_more(40)
        first.kill()
        load.await_more(40)
        second = each.capture(failpoint="capture-record-sent:2")
        assert second.wait(120) == -signal.SIGKILL
        each.server.execute("flush logs", "flush logs")
        each.capture()
        load.await_more(40)
    # Nothing but the heads of files after the last step.
    each.server.execute("flush logs", "flush logs")
    each.caught_up()
    has = each.same()
    assert [s.accounts for s in has].count(True) == 1


def test_the_source_is_killed_and_comes_back(each: Protected) -> None:
    each.capture()
    with Load(each.server, pause_s=0.002) as load:
        load.await_more(100)
        each.server.kill()
        each.server.start()
        load.await_more(100)
    each.caught_up()
    each.same()


def test_a_log_that_was_reset_stops_capture(each: Protected) -> None:
    process = each.capture()
    with Load(each.server) as load:
        load.await_more(20)
    each.caught_up()
    before = captured_to(each.site, each.source)
    each.server.execute("reset master" if each.server.version.startswith("5.") else "reset binary logs and gtids")
    each.server.execute("insert into load_db.load_t (name, n) values ('after the reset', 1)")
    assert process.wait(180) == 3
    (stopped,) = [c for c in each.changes() if c.state == "stopped"]
    assert {p.code for p in stopped.problems} <= {"capture-position-lost", "capture-purged", "capture-history-changed"}
    assert captured_to(each.site, each.source) == before


def test_two_agents_at_once_write_no_step_twice(each: Protected) -> None:
    first = each.capture()
    with Load(each.server, pause_s=0.002) as load:
        load.await_more(40)
        eventually(lambda: "epoch" in each.words(0), what="capture by the first")
        each.capture()
        load.await_more(40)
        eventually(lambda: first.poll() is not None, what="the first capture's end")
        load.await_more(40)
    each.caught_up()
    each.same()


def test_positions_say_where_the_source_is(each: Protected) -> None:
    """What capture reaches is what the server says of itself, also when its newest file holds no step yet."""
    each.capture()
    with Load(each.server) as load:
        load.await_more(10)
    each.server.execute("flush logs")
    each.caught_up()
    assert captured_to(each.site, each.source).rpartition("/")[2] == position(each.server).rpartition("/")[2]


def test_what_a_compressed_log_hides_is_found(compressing: Protected) -> None:
    """The names in a transaction payload do not stand there in clear. Found all the same are the steps of one table, Holdfast's
    own and that of a rollback, and what a CREATE … SELECT defines."""
    made, site = compressing, compressing.site
    plan = uuid7()
    # So much of it are letters, some more frequent than others, that all there is gets coded.
    text = "".join(random.Random(1).choices("abcdefgh", (9, 4, 2, 1, 1, 1, 1, 1), k=3000))
    made.server.execute(
        "create database hidden",
        "create table hidden.often (id int primary key, v text)",
        "create table hidden.rarely (id int primary key, v text)",
        "create database holdfast",
        "create table holdfast.marker (plan varchar(36) primary key, digest varbinary(32), kind varchar(16), at_us bigint)",
        "create table holdfast.work (id int primary key, v text)",
    )
    for n in range(12):
        made.server.execute(
            "begin",
            *[f"insert into holdfast.marker values ('{plan}', '', 'rollback', 0)"] * (n == 6),
            f"insert into hidden.often values ({n}, '{text}')",
            *[f"insert into hidden.rarely values ({n}, '{text}')"] * (n % 4 == 0),
            "commit",
        )
        made.server.execute(f"insert into holdfast.work values ({n}, '{text}')")
    made.server.execute("create table hidden.copy as select * from hidden.often")
    made.caught_up()
    told: dict[int, StepSummary] = {}
    defined = []
    for step in made.same():
        assert step.payload is not None
        described = parse_format_description(step.preamble)
        told[step.ordinal] = summarise(described, step.payload)
        defined += [q.sql for q in definitions_in(described, step.payload)]
        if any(e.type == TRANSACTION_PAYLOAD for e in iter_events(step.payload, described.has_checksum)):
            assert not any(name in step.payload for name in (b"hidden", b"rarely", b"holdfast", b"marker"))
    rarely = [o for o, s in told.items() if ("hidden", "rarely") in s.changes]
    assert len(rarely) == 3
    assert any(b"copy" in sql for sql in defined)
    (marked,) = [o for o, s in told.items() if s.markers]
    secrets = SecretStore(site)
    with CaptureLog(site.kafka, made.source, secrets) as log:
        assert find_marker(log, made.lineage, plan, 0) == marked
        assert find_marker(log, made.lineage, plan, marked) is None
    timeline = Timeline(site.kafka, made.source, secrets, lambda _: None)
    with contextlib.closing(timeline), connect(site.postgres) as conn:
        now = timeline.now(conn)
        page = timeline.page(conn, now, None, 2, Filter(table=("hidden", "rarely")))
        assert [s.ordinal for s in page.steps] == rarely[:0:-1]
        page = timeline.page(conn, now, page.next, 2, Filter(table=("hidden", "rarely")))
        assert [s.ordinal for s in page.steps] == rarely[:1]
        assert page.next is None
        assert list(now.history.own) == [o for o, s in told.items() if s.own or s.markers]
