"""What a plan cannot undo is recognised, named with its step, and explained; what it can, is not refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from agents.errors import AgentError
from agents.rollback.fold import Folder
from agents.rollback.history import check_paths
from agents.rollback.plan import KEYLESS_MOST_ROWS, KEYLESS_ROW_MS, KEYLESS_WARN_ROWS, Plan, request_of
from deploy.demo.mariadb import MariaDB
from streams.errors import StreamError
from streams.formats.binlog import events as ev
from streams.formats.binlog.inverse import encode_event
from tests.stand_ins.rollback_bench import RollbackBench

TABLES = (
    "drop database if exists obst",
    "create database obst",
    "use obst",
    "create table t (id int primary key, v varchar(20))",
    "create table bare (v int)",
    "create table parent (id int primary key, code int, unique key (code), v int)",
    "create table kept (id int primary key, pid int, foreign key (pid) references parent (id))",
    """create table gone (id int primary key, pid int, foreign key (pid) references parent (id) on delete cascade)""",
    """create table moved (id int primary key, c int, foreign key (c) references parent (code) on update set null)""",
    "create table flat (id int primary key) engine=aria",
    "create table versioned (id int primary key, v int) with system versioning",
    "create table watched (id int primary key)",
    "create trigger watch after insert on watched for each row insert into t values (new.id + 1000, 'seen')",
    "create sequence numbers",
)


@pytest.fixture
def bench(mariadb: MariaDB) -> Iterator[RollbackBench]:
    with closing(RollbackBench(mariadb, TABLES)) as made:
        yield made


def codes(plan: Plan) -> list[str]:
    return [p.code for p in plan.event.obstacles]


@pytest.mark.parametrize(
    ("code", "statements"),
    [
        ("ddl", ["alter table t add column w int"]),
        ("ddl", ["create table more (id int primary key)"]),
        ("ddl", ["create table more as select * from t"]),
        ("ddl", ["rename table t to t2"]),
        ("truncate", ["truncate table t"]),
        ("drop", ["drop table t"]),
        ("statement-event", ["set session binlog_format = 'STATEMENT'", "insert into t values (7, rand())"]),
        ("partial-image", ["set session binlog_row_image = 'MINIMAL'", "delete from t where id = 1"]),
        ("partial-image", ["set session binlog_row_image = 'NOBLOB'", "alter table t modify v text",
                           "update t set id = 9 where id = 1"]),
        ("xa", ["xa start 'x'", "insert into t values (8, 'x')", "xa end 'x'", "xa prepare 'x'", "xa commit 'x'"]),
        ("ddl", ["create or replace procedure p() create user kim@localhost identified by 'secret'"]),
        ("not-transactional", ["insert into flat values (1)"]),
        ("system-schema", ["replace into mysql.time_zone_name values ('Nowhere', 1)"]),
        ("system-versioned", ["insert into versioned values (1, 1)", "update versioned set v = 2"]),
        ("cascade", ["delete from parent where id = 1"]),
        ("cascade", ["update parent set code = 99 where id = 2"]),
        ("chain-broken", ["update t set v = 'b' where id = 1", "set sql_log_bin = 0",
                          "update t set v = 'c' where id = 1", "set sql_log_bin = 1",
                          "update t set v = 'd' where id = 1"]),
        ("schema-differs", ["set sql_log_bin = 0", "alter table t add column w int", "set sql_log_bin = 1",
                            "insert into t values (9, 'x', 1)"]),
        ("schema-unknown", ["set sql_log_bin = 0", "create table unseen (id int primary key)", "set sql_log_bin = 1",
                            "insert into unseen values (1)"]),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_named_with_its_step(bench: RollbackBench, code: str, statements: list[str]) -> None:
    bench.sql("insert into t values (1, 'a'), (2, 'b')")
    bench.sql("insert into parent values (1, 10, 0), (2, 20, 0)")
    before = bench.head()
    with closing(bench.server.connect(database="obst")) as user, user.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    last = bench.head()
    assert last > before
    plan = bench.plan("rollback", before)
    assert code in codes(plan), plan.event.obstacles
    problem = next(p for p in plan.event.obstacles if p.code == code)
    assert any(f"step {n}" in problem.message for n in range(before + 1, last + 1)), problem
    assert problem.hint
    # The way out that it names is one: the steps after the last of these can be undone.
    bench.sql("insert into obst.kept values (50, null)")
    if code not in ("schema-unknown", "schema-differs"):
        assert codes(bench.plan("rollback", last)) == []


def test_account_statements_are_not_in_the_way_but_said(bench: RollbackBench) -> None:
    """Rights that a rollback needs may have to be granted on the day of the disaster: they bar no way back."""
    bench.sql("insert into t values (1, 'a')")
    before = bench.head()
    bench.sql("insert into t values (2, 'b')")
    bench.sql("create or replace user nobody_here@localhost identified by 'secret'")
    bench.sql("grant select on obst.* to nobody_here@localhost")
    plan = bench.plan("rollback", before)
    assert codes(plan) == []
    (warning,) = plan.event.warnings
    assert (warning.code, "and so do 1 more" in warning.message) == ("account-statement", True)
    bench.run(plan)
    assert bench.sql("select id from obst.t") == ((1,),)
    assert bench.sql("select count(*) from mysql.global_priv where user = 'nobody_here'") == ((1,),)


def test_a_sealed_step_without_its_key_is_in_the_way() -> None:
    folder = Folder(lambda name: None, most_bytes=1)
    folder.step(7, b"", None)
    assert [p.code for p in folder.problems()] == ["account-statement"]


def test_an_account_statement_is_never_shown(bench: RollbackBench) -> None:
    bench.sql("create or replace user nobody_here@localhost identified by 'hunter2-secret'")
    assert "hunter2" not in repr(bench.back(1).event)


def test_what_does_not_change_rows_is_not_in_the_way(bench: RollbackBench) -> None:
    bench.sql("insert into t values (1, 'a')")
    for statement in ("analyze table t", "optimize table t", "flush tables", "create temporary table tmp (id int)",
                      "insert into tmp values (1)", "drop temporary table tmp"):  # fmt: skip
        bench.sql(statement)
    assert codes(bench.plan("rollback", 0)) == []


def test_a_parent_deleted_with_foreign_keys_off_did_not_cascade(bench: RollbackBench) -> None:
    bench.sql("insert into parent values (1, 10, 0)")
    before = bench.head()
    bench.sql("set foreign_key_checks = 0")
    bench.sql("delete from parent where id = 1")
    bench.sql("set foreign_key_checks = 1")
    assert codes(bench.plan("rollback", before)) == []


def test_an_update_beside_the_referenced_columns_does_not_cascade(bench: RollbackBench) -> None:
    bench.sql("insert into parent values (1, 10, 0)")
    before = bench.head()
    bench.sql("update parent set v = 5")
    assert codes(bench.plan("rollback", before)) == []


def test_definitions_of_the_own_schema_are_no_barrier(bench: RollbackBench) -> None:
    bench.sql("insert into t values (1, 'a')")
    bench.sql("drop database if exists holdfast")
    assert bench.run(bench.back(1)).rows == 1  # this made the schema, in two steps of its own
    bench.sql("insert into t values (2, 'b')")
    plan = bench.plan("rollback", 0)
    assert codes(plan) == []
    assert [(e.table, e.deletes) for e in plan.event.tables] == [("t", 1)]
    assert bench.run(plan).rows == 1
    assert bench.sql("select count(*) from t") == ((0,),)


def test_triggers_and_sequences_are_warned_of(bench: RollbackBench) -> None:
    bench.sql("insert into watched values (1)")
    bench.sql("select nextval(numbers)")
    plan = bench.plan("rollback", 0)
    assert codes(plan) == []
    assert {w.code for w in plan.event.warnings} == {"triggers", "sequence"}
    assert {(e.table, e.deletes) for e in plan.event.tables} == {("watched", 1), ("t", 1)}


def test_rows_of_a_table_without_a_key_are_estimated_warned_of_refused(bench: RollbackBench) -> None:
    bench.sql(f"insert into bare select seq from seq_1_to_{KEYLESS_WARN_ROWS + 1}")
    plan = bench.back(1)
    assert ([w.code for w in plan.event.warnings], codes(plan)) == (["no-key"], [])
    assert plan.event.estimate_ms > KEYLESS_ROW_MS * KEYLESS_WARN_ROWS
    bench.sql(f"insert into bare select seq from seq_1_to_{KEYLESS_MOST_ROWS + 1}")
    assert codes(bench.back(1)) == ["no-key"]


def test_a_plan_has_a_memory_limit(bench: RollbackBench) -> None:
    bench.sql("insert into t select seq, repeat('x', 20) from seq_1_to_2000")
    assert codes(bench.plan("rollback", 0, memory_bytes=50_000)) == ["plan-too-large"]
    assert codes(bench.plan("rollback", 0, memory_bytes=5_000_000)) == []


def test_an_incident_is_in_the_way() -> None:
    head = encode_event(
        ev.FORMAT_DESCRIPTION, b"\4\0" + b"10.11.0-MariaDB".ljust(50, b"\0") + bytes(4) + b"\x13" + bytes(200)
    )
    folder = Folder(lambda name: None, most_bytes=1)
    folder.step(5, head, encode_event(ev.INCIDENT, b"\1\0\4lost"))
    assert [p.code for p in folder.problems()] == ["incident"]


def test_more_steps_than_there_are(bench: RollbackBench) -> None:
    bench.sql("insert into t values (1, 'a')")
    with pytest.raises(StreamError) as caught:
        bench.back(2)
    assert caught.value.code == "too-few-steps"


def test_nothing_to_do(bench: RollbackBench) -> None:
    bench.sql("insert into t values (1, 'a')")
    assert codes(bench.plan("rollback", bench.head())) == ["nothing-to-do"]


def test_a_request_that_the_log_does_not_bear_out_is_refused(bench: RollbackBench) -> None:
    bench.sql("insert into t values (1, 'a')")
    plan = bench.back(1)
    request = request_of(plan.event)
    for wrong in (
        replace(request, head_ordinal=5),
        replace(request, path_before=()),
        replace(request, path_after=request.path_before),
    ):
        with pytest.raises(AgentError) as caught:
            check_paths(wrong, [], bench.head())
        assert caught.value.code in ("path-stale", "target-unknown")


def test_the_digest_is_a_function_of_the_inputs(bench: RollbackBench) -> None:
    bench.sql("insert into t values (1, 'a')")
    bench.sql("update t set v = 'b'")
    one, two, less = bench.plan("rollback", 0), bench.plan("rollback", 0), bench.plan("rollback", 1)
    assert one.event.plan != two.event.plan
    assert one.event.digest == two.event.digest
    other: list[Callable[[], Plan]] = [
        lambda: less,
        lambda: bench.plan("forward", 0),
        lambda: bench.plan("rollback", 0, whole_source=False),
    ]
    assert len({one.event.digest, *(make().event.digest for make in other)}) == 4


def test_several_changes_of_a_row_come_to_one(bench: RollbackBench) -> None:
    for statement in (
        "insert into t values (1, 'a')",
        "update t set v = 'b'",
        "delete from t",
        "insert into t values (1, 'c')",
    ):
        bench.sql(statement)
    plan = bench.plan("rollback", 0)
    (effect,) = plan.event.tables
    assert (effect.inserts, effect.updates, effect.deletes, plan.event.rows, plan.event.steps) == (0, 0, 1, 1, 4)
    (effect,) = bench.plan("rollback", 2).event.tables
    assert (effect.inserts, effect.updates, effect.deletes) == (0, 1, 0)
