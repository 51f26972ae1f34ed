"""Capture of a real MariaDB into a real Kafka: what is in the log is what the source logged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.event import MariadbGtidEvent, XidEvent
from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

from deploy.demo.mariadb import MariaDB
from streams.formats.binlog.step import decode_step
from streams.settings import Settings
from tests.stack.capturing import Load, Protected, eventually, protect

pytestmark = pytest.mark.crash


@pytest.fixture
def protected(fresh_site: Settings, mariadb: MariaDB) -> Iterator[Protected]:
    made = protect(fresh_site, mariadb)
    yield made
    made.stop()


def test_steps_of_every_kind_are_captured_as_they_were_logged(protected: Protected) -> None:
    protected.capture()
    server = protected.server
    server.execute(
        "create or replace database kinds",
        "create table kinds.t (id int primary key auto_increment, a varchar(100), b longblob) engine=innodb",
        "create table kinds.m (id int primary key, a int) engine=myisam",
        "create table kinds.s (id int primary key) engine=aria transactional=1",
        "insert into kinds.t(a) values ('one'), ('two')",
        "insert into kinds.m values (1, 1), (2, 2)",
        "insert into kinds.s values (1)",
        "create table kinds.c select * from kinds.t",
        "create or replace table kinds.c select * from kinds.t",
        "alter table kinds.t add column c int default 7, add index (a)",
        "truncate table kinds.m",
        "create view kinds.v as select * from kinds.t",
        "create trigger kinds.tr before insert on kinds.t for each row set new.c = 1",
        "create procedure kinds.p() insert into kinds.t(a) values ('from p')",
        "call kinds.p()",
        "create sequence kinds.q",
        "select nextval(kinds.q)",
        "begin",
        "insert into kinds.t(a) values ('rolled back')",
        "rollback",
        "set statement max_statement_time = 5 for insert into kinds.t(a) values ('x')",
        "insert into kinds.t(a, b) values ('big', repeat('z', 3000000))",
        "optimize table kinds.t",
        "flush binary logs",
        "insert into kinds.t(a) values ('after rotation')",
    )
    with server.connect() as c, c.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("insert into kinds.t(a) values ('kept')")
        cursor.execute("savepoint s")
        cursor.execute("insert into kinds.t(a) values ('not kept')")
        cursor.execute("insert into kinds.m values (9, 9)")
        cursor.execute("rollback to s")
        cursor.execute("commit")
        cursor.execute("begin")
        cursor.execute("insert into kinds.m values (10, 10)")
        cursor.execute("insert into kinds.t(a) values ('gone')")
        cursor.execute("rollback")
        cursor.execute("set session gtid_domain_id = 7")
        cursor.execute("insert into kinds.t(a) values ('another domain')")
        cursor.execute("set session binlog_format = statement")
        cursor.execute("insert into kinds.t(a) values ('a statement')")
        cursor.execute("set session binlog_format = mixed")
        cursor.execute("insert into kinds.t(a) values (concat('x', @v := 5))")
        cursor.execute("insert into kinds.t(a) values (@v)")
        cursor.execute("create temporary table kinds.tmp (a int)")
        cursor.execute("insert into kinds.tmp values (1)")
        cursor.execute("insert into kinds.t(a) select a from kinds.tmp")
        cursor.execute("drop temporary table kinds.tmp")
    protected.caught_up()
    steps = protected.same()
    assert len(steps) > 30
    assert {s.gtid.split("-")[0] for s in steps} == {"0", "7"}


def test_figures_come_every_second_and_a_stop_is_clean(protected: Protected) -> None:
    process = protected.capture()
    with Load(protected.server) as load:
        load.await_more(500)
    protected.caught_up()
    steps = len(protected.same())
    eventually(lambda: any(h.ordinal == steps for h in protected.health()), what="a report of the last step")
    report = protected.health()[-1]
    assert report.state == "capturing"
    assert report.figures["steps"] == steps
    assert report.figures["lag_ms"] < 2000
    assert [c.state for c in protected.changes()] == ["capturing"]
    process.terminate()
    assert process.wait(120) == 0
    assert "error" not in protected.words().lower()


def test_nothing_is_lost_between_two_runs(protected: Protected) -> None:
    first = protected.capture()
    with Load(protected.server) as load:
        load.await_more(200)
        eventually(lambda: "after step" in protected.words(), what="an epoch of the first run")
        first.terminate()
        assert first.wait(120) == 0
        load.await_more(200)
        protected.capture()
        load.await_more(200)
    protected.caught_up()
    protected.same()


def test_another_reader_of_the_binlog_sees_the_same_rows(protected: Protected) -> None:
    """python-mysql-replication reads the source's log beside us; both are decoded and compared row by row."""
    protected.capture()
    with Load(protected.server) as load:
        load.await_more(400)
    protected.caught_up()
    ours = [
        (step.gtid, change.kind, change.before and change.before[0::2], change.after and change.after[0::2])
        for step in protected.same()
        for change in decode_step(step.preamble, step.payload or b"")
    ]
    server = protected.server
    reader = BinLogStreamReader(
        connection_settings={
            "host": server.host,
            "port": server.port,
            "user": "hf_capture",
            "password": protected.passwords["capture"],
        },
        server_id=4711,
        is_mariadb=True,
        auto_position=protected.start,
        only_events=[MariadbGtidEvent, WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent, XidEvent],
        blocking=True,  # else the server resets the connection at the end, what was not read yet included
    )
    theirs = []
    gtid = ""
    with contextlib.closing(reader):
        for event in reader:
            if isinstance(event, MariadbGtidEvent):
                gtid = event.gtid
                continue
            if isinstance(event, XidEvent):
                if gtid == ours[-1][0]:
                    break
                continue
            kind = {WriteRowsEvent: "insert", UpdateRowsEvent: "update", DeleteRowsEvent: "delete"}[type(event)]
            for row in event.rows:
                before = row.get("before_values") or (row["values"] if kind == "delete" else None)
                after = row.get("after_values") or (row["values"] if kind == "insert" else None)
                pair = [None if image is None else (image["id"], image["n"]) for image in (before, after)]
                theirs.append((gtid, kind, *pair))
    assert len(ours) >= 400
    assert ours == theirs


@pytest.mark.parametrize("version", ["11.4"])
def test_a_newer_server_over_tls(fresh_site: Settings, make_mariadb: Callable[..., MariaDB], version: str) -> None:
    server = make_mariadb(version=version, tls=True, options={"require_secure_transport": "ON"})
    made = protect(fresh_site, server, tls="verify", tls_ca=str(server.tls_ca))
    try:
        made.capture()
        with Load(server) as load:
            load.await_more(500)
        made.caught_up()
        made.same()
    finally:
        made.stop()
