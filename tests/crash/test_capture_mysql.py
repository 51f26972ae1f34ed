"""Capture of MySQL, with GTIDs and without: killed, its source killed, its log rotated, reset and replaced. Every committed step
is in the log once, in order, or capture is visibly stopped."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest

from deploy.demo.server import DatabaseServer
from streams.settings import Settings
from tests.stack.capturing import Load, Protected, captured_to, eventually, position, protect

pytestmark = pytest.mark.crash

NO_GTIDS: dict[str, str | None] = {"gtid_mode": "OFF", "enforce_gtid_consistency": "OFF"}
SERVERS: dict[str, tuple[str, dict[str, str | None]]] = {
    "9": ("mysql-9", {}),
    "9 without GTIDs": ("mysql-9", NO_GTIDS),
    "5.5": ("mysql-5.5", {}),
}


@pytest.fixture(params=SERVERS)
def each(
    request: pytest.FixtureRequest, fresh_site: Settings, make_database: Callable[..., DatabaseServer]
) -> Iterator[Protected]:
    """A server of its own, protected."""
    name, options = SERVERS[request.param]
    made = protect(fresh_site, make_database(name, options=options))
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
