"""Rolling back across definition changes: over those that leave rows where they are, under whatever name; else refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from agents.errors import AgentError
from agents.mysql.definitions import read_definitions, schema_version
from agents.rollback.plan import Plan
from agents.rollback.redefined import Redefinition, Redefinitions, redefinition
from agents.rollback.schema import Schema
from agents.schema.replay import definitions_in
from deploy.demo.mariadb import MariaDB
from streams.formats.binlog.events import parse_format_description
from tests.stand_ins.rollback_bench import RollbackBench

TABLES = (
    "drop database if exists redef",
    "drop database if exists redef2",
    "create database redef",
    "create database redef2",
    "use redef",
    "create table t (id int primary key, v varchar(20), n int)",
    "create table o (id int primary key, v int)",
    "create table p (id int primary key, v int)",
    "create table c (id int primary key, pid int)",
)


class Recorded(RollbackBench):
    """With a version of the schema for each statement that defines something, as the keeper records them."""

    def __init__(self, server: MariaDB) -> None:
        super().__init__(server, TABLES)
        self._found: list[Redefinition] = []

    def define(self, statement: str) -> int:
        """Its step."""
        before = self.schema
        self.sql(statement)
        ordinal = self.head()
        step = self.log.recorded[ordinal - 1]
        assert step.payload is not None
        queries = definitions_in(parse_format_description(step.preamble), step.payload)
        now = read_definitions(self.admin)
        tables = {(d.schema, d.table): d for d in now}
        self._found.append(redefinition(ordinal, queries, before.tables, tables))
        self.schema = Schema(tables, schema_version(now), Redefinitions(self._found))
        return ordinal

    def rows(self, table: str) -> list[tuple[object, ...]]:
        return sorted(self.sql(f"select * from {table}"), key=repr)


@pytest.fixture
def bench(mariadb: MariaDB) -> Iterator[Recorded]:
    with closing(Recorded(mariadb)) as made:
        made.schema = Schema(made.schema.tables, made.schema.version, Redefinitions())
        yield made


def codes(plan: Plan) -> set[str]:
    return {p.code for p in plan.event.obstacles}


def there_and_back(bench: Recorded, target: int, **options: Any) -> Plan:
    """Roll back to `target` and forward again; the plan back."""
    head = bench.head()
    plan = bench.plan("rollback", target, **options)
    assert codes(plan) == set(), plan.event.obstacles
    bench.run(plan)
    forward = bench.plan("forward", head, **options)
    assert codes(forward) == set(), forward.event.obstacles
    bench.run(forward)
    return plan


@pytest.mark.parametrize(
    "statement",
    [
        "alter table t add index (v), comment 'x'",
        "alter table t alter n set default 7",
        "alter table t modify v varchar(20) default 'd'",
        "create index i on t (n)",
        "create view w as select * from t",
        "create procedure pr() truncate t",
        "create trigger g after insert on o for each row delete from p where id = -1",
        "create database if not exists redef",
        "alter table t add constraint positive check (n > -100)",
        "alter table t force",
    ],
)
def test_what_leaves_rows_alone_is_crossed(bench: Recorded, statement: str) -> None:
    bench.sql("insert into t values (1, 'a', 1), (2, 'b', 2)")
    before, rows = bench.head(), bench.rows("t")
    bench.sql("update t set v = 'c', n = 3 where id = 1")
    step = bench.define(statement)
    bench.sql("insert into t values (3, 'd', 4)")
    bench.sql("delete from t where id = 2")
    after = bench.rows("t")
    plan = there_and_back(bench, before)
    assert bench.rows("t") == after
    assert [w.code for w in plan.event.warnings if w.code == "definition-stays"] == ["definition-stays"]
    assert any(f"step {step}" in w.message for w in plan.event.warnings)
    bench.run(bench.plan("rollback", before))
    assert bench.rows("t") == rows
    bench.sql("drop view if exists w")
    bench.sql("drop procedure if exists pr")


@pytest.mark.parametrize(
    "statement",
    [
        "alter table t add column w int",
        "alter table t drop column v, add column v varchar(20)",
        "alter table t modify n bigint",
        "alter table t modify n int first",
        "alter table t change n m int",
        "alter table t engine = aria",
        "alter table t add unique key (n)",
        "alter table t drop primary key, add primary key (id, n)",
        "create or replace table t (id int primary key, v varchar(20), n int)",
    ],
)
@pytest.mark.parametrize("whole_source", [True, False])
def test_what_rows_have_no_place_after_is_in_the_way(bench: Recorded, statement: str, whole_source: bool) -> None:
    bench.sql("insert into t values (1, 'a', 1)")
    before = bench.head()
    bench.sql("update t set v = 'c' where id = 1")
    step = bench.define(statement)
    bench.sql("insert into o values (1, 1)")
    plan = bench.plan("rollback", before, whole_source=whole_source)
    assert codes(plan) == {"ddl"}
    assert f"step {step} " in plan.event.obstacles[0].message
    assert codes(bench.plan("rollback", step, whole_source=whole_source)) == set()


def test_a_key_that_spreads_changes_is_in_the_way_of_its_parent(bench: Recorded) -> None:
    bench.sql("insert into p values (1, 1)")
    before = bench.head()
    bench.sql("update p set v = 2")
    bench.define("alter table c add constraint cp foreign key (pid) references p (id) on delete cascade")
    assert codes(bench.plan("rollback", before, whole_source=False)) == {"ddl"}


def test_a_renamed_table_is_followed(bench: Recorded) -> None:
    bench.sql("insert into t values (1, 'a', 1)")
    before, rows = bench.head(), bench.rows("t")
    bench.sql("update t set v = 'b'")
    bench.define("rename table t to t2")
    bench.sql("insert into t2 values (2, 'c', 2)")
    bench.define("alter table t2 rename to redef2.t3, add index (n)")
    bench.sql("update redef2.t3 set n = 9")
    after = bench.rows("redef2.t3")
    plan = there_and_back(bench, before)
    assert [(e.schema, e.table, e.updates, e.deletes) for e in plan.event.tables] == [("redef2", "t3", 1, 1)]
    assert bench.rows("redef2.t3") == after
    bench.run(bench.plan("rollback", before))
    assert bench.rows("redef2.t3") == rows


def test_tables_that_swap_their_names(bench: Recorded) -> None:
    bench.sql("insert into o values (1, 10)")
    bench.sql("insert into p values (1, 20)")
    before, o, p = bench.head(), bench.rows("o"), bench.rows("p")
    bench.sql("update o set v = 11")
    bench.sql("insert into p values (2, 21)")
    bench.define("rename table o to tmp, p to o, tmp to p")
    bench.sql("update p set v = 12")
    bench.sql("update o set v = 22 where id = 2")
    now = bench.rows("o"), bench.rows("p")
    there_and_back(bench, before)
    assert (bench.rows("o"), bench.rows("p")) == now
    bench.run(bench.plan("rollback", before))
    assert (bench.rows("p"), bench.rows("o")) == (o, p)


@pytest.mark.parametrize(
    ("code", "statement"),
    [
        ("truncate", "truncate o"),
        ("drop", "drop table o"),
        ("ddl", "alter table o drop column v"),
        ("ddl", "create table more (id int primary key)"),
        ("ddl", "create table more as select * from t"),
    ],
)
def test_other_tables_are_in_the_way_of_the_whole_source_only(bench: Recorded, code: str, statement: str) -> None:
    bench.sql("insert into o values (1, 1)")
    bench.sql("insert into t values (1, 'a', 1)")
    before, rows = bench.head(), bench.rows("t")
    bench.sql("update t set v = 'b'")
    bench.define(statement)
    bench.sql("insert into t values (2, 'c', 2)")
    assert codes(bench.plan("rollback", before)) == {code}
    after = bench.rows("t")
    there_and_back(bench, before, whole_source=False)
    assert bench.rows("t") == after
    bench.run(bench.plan("rollback", before, whole_source=False))
    assert bench.rows("t") == rows


def test_rows_thrown_away_are_not_there_for_a_way_that_comes_by_later(bench: Recorded) -> None:
    """A TRUNCATE that one rollback left alone stands in the way of another one, though it is in neither path."""
    start = bench.head()
    bench.sql("insert into o values (1, 1)")
    bench.sql("update o set v = 2")
    branch = bench.head()
    bench.run(bench.plan("rollback", start))
    fork = bench.head()
    bench.sql("insert into t values (1, 'a', 1)")
    step = bench.define("truncate o")
    bench.sql("insert into t values (2, 'b', 1)")
    bench.run(bench.plan("rollback", fork, whole_source=False))
    plan = bench.plan("forward", branch, whole_source=False)
    assert codes(plan) == {"truncate"}
    assert f"step {step} " in plan.event.obstacles[0].message


def test_a_version_that_may_be_a_later_one_tells_nothing(bench: Recorded) -> None:
    bench.sql("insert into t values (1, 'a', 1)")
    bench.sql("create index i on t (n)")
    step = bench.log.recorded[bench.head() - 1]
    assert step.payload is not None
    queries = definitions_in(parse_format_description(step.preamble), step.payload)
    assert redefinition(1, queries, bench.schema.tables, None).tables is None
    assert redefinition(1, queries, bench.schema.tables, bench.schema.tables).keeps_rows


def test_what_is_defined_after_a_plan_was_made_concerns_it_when_it_is_of_its_tables(bench: Recorded) -> None:
    bench.sql("insert into t values (1, 'a', 1)")
    before = bench.head()
    bench.sql("update t set v = 'b'")
    plan = bench.plan("rollback", before, whole_source=False)
    bench.sql("create table more (id int primary key)")
    bench.sql("truncate o")
    bench.sql("create view w as select * from t")
    bench.run(plan)
    assert bench.rows("t") == [(1, "a", 1)]
    bench.sql("drop view w")
    bench.sql("update t set n = 5")
    plan = bench.plan("rollback", bench.head() - 1, whole_source=False)
    assert codes(plan) == set()
    bench.sql("truncate t")
    with pytest.raises(AgentError):
        bench.run(plan)
    assert bench.rows("t") == []
