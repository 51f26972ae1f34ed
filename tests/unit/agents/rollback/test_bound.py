"""Bound statements: what an account without BINLOG rights is told, and what it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from agents.rollback import rights
from agents.rollback.plan import Request, request_of
from agents.rollback.target import FENCE, NATIVE_APPLY
from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from tests.stand_ins.rollback_bench import BOUND_GRANTS, BOUND_USER, RollbackBench

TABLES = (
    "drop database if exists app",
    "create database app",
    "use app",
    "create table t (id int primary key, v varchar(20) character set utf8mb4, g int as (length(v)) stored)",
    "create table audit (id int auto_increment primary key, what varchar(20))",
    "create table watched (id int primary key, v int)",
    "create trigger watched_d after delete on watched for each row insert into audit (what) values ('gone')",
)


@pytest.fixture
def bench(mariadb: MariaDB) -> Iterator[RollbackBench]:
    with closing(RollbackBench(mariadb, TABLES, "bound")) as made:
        made.sql("insert into t (id, v) values (1, 'a'), (2, 'b')")
        made.sql("update t set v = 'long' where id = 1")
        made.sql("delete from t where id = 2")
        made.sql("insert into t (id, v) values (3, 'c')")
        yield made
        made.sql("set global read_only = 0")


def request(bench: RollbackBench, *, whole_source: bool = False) -> Request:
    return replace(request_of(bench.back(1).event), whole_source=whole_source, method="native")


def test_the_method_is_what_the_account_can_do(bench: RollbackBench) -> None:
    native, bound = bench.settings(method="native"), bench.settings(method="bound")
    with closing(bench.target("native")) as target:
        assert target.capability() == {NATIVE_APPLY, FENCE}
    with closing(bench.target("bound")) as target:
        assert target.capability() == frozenset()
    chosen, notes = rights.with_method(native, request(bench), "")
    assert (chosen.method, notes) == ("native", rights.Notes())
    chosen, notes = rights.with_method(bound, request(bench), "")
    assert (chosen.method, notes) == ("bound", rights.Notes())
    assert chosen.options == '{"method":"bound","whole_source":false}'


def test_what_was_asked_for_goes_before_the_source_s_option_and_that_before_what_can_be(bench: RollbackBench) -> None:
    forced = replace(bench.settings(method="native"), options={"rollback_method": "bound"})
    assert rights.with_method(forced, request(bench), "")[0].method == "bound"
    assert rights.with_method(forced, request(bench), "native")[0].method == "native"
    chosen, notes = rights.with_method(bench.settings(method="bound"), request(bench), "native")
    assert chosen.method == "native"
    assert [p.code for p in notes.obstacles] == ["no-native-apply"]


def test_the_whole_source_is_refused_where_nobody_can_fence_it(bench: RollbackBench) -> None:
    _, notes = rights.with_method(bench.settings(method="bound"), request(bench, whole_source=True), "")
    assert [p.code for p in notes.obstacles] == ["no-fence"]
    with closing(bench.target("bound")) as target:
        assert [p.code for p in target.check(bench.back(1, whole_source=True))] == ["no-fence"]
    bench.sql(f"grant read_only admin on *.* to {BOUND_USER}@'127.0.0.1'")
    assert rights.with_method(bench.settings(method="bound"), request(bench, whole_source=True), "")[1].obstacles == ()
    bench.run(bench.back(1, whole_source=True))
    assert bench.said[1].state == "fenced"
    assert bench.read_only() == 0


def test_an_account_that_is_locked_is_taken_to_have_its_rights(bench: RollbackBench) -> None:
    bench.sql(f"alter user {BOUND_USER}@'127.0.0.1' account lock")
    chosen, notes = rights.with_method(bench.settings(method="bound"), request(bench), "")
    assert chosen.method == "native"
    assert [p.code for p in notes.warnings] == ["rollback-account"]


def test_a_source_is_told_what_its_rollback_account_lacks(bench: RollbackBench) -> None:
    found = rights.preflight(bench.settings(method="bound"))
    assert ([p.code for p in found.warnings], found.capability) == (["no-native-apply", "no-fence"], ())
    assert rights.preflight(bench.settings(method="native")).capability == (FENCE, NATIVE_APPLY)
    bad = replace(bench.settings(method="native"), options={"rollback_method": "magic"})
    assert [p.code for p in rights.preflight(bad).problems] == ["option-invalid"]


def test_triggers_that_the_plan_would_set_off_refuse_it_and_others_do_not(bench: RollbackBench) -> None:
    bench.sql("insert into watched values (1, 1)")
    bench.head()
    deletes = bench.back(1)
    assert [p.code for p in deletes.event.obstacles] == ["triggers"]
    assert "watched_d" in deletes.event.obstacles[0].message
    bench.sql("update watched set v = 2")
    updates = bench.back(1)
    assert updates.event.obstacles == ()
    bench.run(updates)
    assert bench.sql("select v from watched") == ((1,),)
    assert bench.plan("rollback", 4, method="native").event.obstacles == ()


def test_json_as_mysql_logs_it_is_refused_when_it_is_planned(databases: Callable[[str], DatabaseServer]) -> None:
    tables = (
        "drop database if exists app",
        "create database app",
        "use app",
        "create table plain (id int primary key)",
        "create table doc (id int primary key, `of mine` json)",
    )
    with closing(RollbackBench(databases("mysql-9"), tables, "bound")) as bench:
        bench.sql("insert into doc values (1, '[1]')")
        bench.sql("insert into plain values (1)")
        assert bench.back(1).event.obstacles == ()
        (obstacle,) = bench.back(2).event.obstacles
        assert obstacle.code == "unknown-type"
        assert "app.doc, of mine" in obstacle.message
        assert bench.plan("rollback", 0, method="native").event.obstacles == ()


@pytest.mark.parametrize("grant", range(2, len(BOUND_GRANTS)))
def test_each_missing_right_is_named_by_the_statement_that_gives_it(bench: RollbackBench, grant: int) -> None:
    bench.sql("create database if not exists holdfast")
    plan = bench.back(4)
    for i, statement in enumerate(BOUND_GRANTS):
        if i != grant:
            bench.sql(statement)
    with closing(bench.target()) as target:
        problems = target.check(plan)
    assert {p.code for p in problems} == {"privilege-missing"}, problems
    for problem in problems:
        bench.sql(problem.hint)
    with closing(bench.target()) as again:
        assert again.check(plan) == []
    bench.run(plan)


def test_a_server_that_does_not_log_rows_whole_is_refused(bench: RollbackBench) -> None:
    plan = bench.back(1)
    bench.sql("set global binlog_row_image = 'MINIMAL'")
    try:
        with closing(bench.target()) as target:
            (problem,) = target.check(plan)
    finally:
        bench.sql("set global binlog_row_image = 'FULL'")
    assert problem.hint == "SET GLOBAL binlog_row_image = 'FULL'"


def test_a_value_that_the_server_would_not_store_stops_it_before_anything(bench: RollbackBench) -> None:
    """Bytes that are none of the column's character set: only the log, and old servers, have such."""
    bench.sql("create table raw (id int primary key, v varchar(10) character set utf8mb4)")
    bench.schema = bench._read_schema()
    bench.sql("insert into raw values (1, 'zzz')")
    bench.sql("delete from raw")
    plan = bench.back(1)
    (table,) = plan.tables
    images = tuple(image.replace(b"zzz", b"z\xffz") for image in table.changes.inserts)
    broken = replace(plan, tables=(replace(table, changes=replace(table.changes, inserts=images)),))
    with pytest.raises(Exception, match="value-not-bound"):
        bench.run(broken)
    assert bench.sql("select * from raw") == ()


def test_a_row_that_the_server_writes_otherwise_stops_it(bench: RollbackBench) -> None:
    plan = bench.back(2)
    (table,) = plan.tables
    images = tuple(
        image[:-4] + b"\x63\0\0\0" for image in table.changes.inserts
    )  # as if length() had counted otherwise
    broken = replace(plan, tables=(replace(table, changes=replace(table.changes, inserts=images)),))
    with pytest.raises(Exception, match="written-otherwise"):
        bench.run(broken)
    assert bench.sql("select id from t order by id") == ((1,), (3,))
