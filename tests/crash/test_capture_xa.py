"""XA transactions: parked from PREPARE to their outcome, over deaths of capture, of the source, and both. Committed, they are
one step where they were committed; rolled back, none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from deploy.demo.server import DatabaseServer
from streams.formats.binlog.step import summarise
from streams.settings import Settings
from tests.stack.capturing import CapturedStep, Load, Protected, new_lineage, protect

pytestmark = pytest.mark.crash


NO_GTIDS = {"gtid_mode": "OFF", "enforce_gtid_consistency": "OFF"}


@pytest.fixture(params=["mariadb-10.11"])
def protected(
    request: pytest.FixtureRequest, fresh_site: Settings, make_database: Callable[..., DatabaseServer]
) -> Iterator[Protected]:
    name, _, without = str(request.param).partition(" without ")
    server = make_database(name, options=NO_GTIDS if without else {})
    server.execute("create database xa", "create table xa.t (id int auto_increment primary key, v varchar(200), n int)")
    made = protect(fresh_site, server)
    yield made
    made.stop()


def steps(made: Protected, count: int = 30) -> None:
    with Load(made.server) as load:
        load.await_more(count)


def prepare(made: Protected, name: str, rows: int = 1) -> None:
    insert = f"insert into xa.t (v, n) values (repeat('{name}', 150), 1)"
    if rows > 1:
        insert = f"insert into xa.t (v, n) select repeat('{name}', 150), seq from xa.seq_1_to_{rows}"
    made.server.execute(f"xa start '{name}'", insert, f"xa end '{name}'", f"xa prepare '{name}'")


def kill(made: Protected) -> None:
    made.processes[-1].kill()
    made.processes[-1].wait()


def xa_steps(found: list[CapturedStep]) -> list[tuple[str, str, int]]:
    """(kind, XA transaction, rows) of the steps that belong to one."""
    told = [summarise(s.preamble, s.payload) for s in found if s.payload is not None]
    return [(t.kind, t.xid, t.rows) for t in told if t.xid]


@pytest.mark.parametrize("protected", ["mariadb-10.11", "mysql-9", "mysql-9 without GTIDs"], indirect=True)
def test_killed_between_prepare_and_outcome(protected: Protected) -> None:
    made = protected
    made.capture()
    steps(made)
    prepare(made, "a")
    prepare(made, "b")
    steps(made)
    made.caught_up()
    kill(made)
    # Outcomes while nobody captures, after a restart of the source: their first groups stand in an older file.
    made.server.kill()
    made.server.start()
    made.server.execute("xa commit 'a'")
    steps(made)
    made.capture(failpoint="capture-record-sent:1")
    assert made.processes[-1].wait(60) != 0
    made.capture()
    steps(made)
    made.caught_up()
    kill(made)
    made.capture()
    made.server.execute("xa rollback 'b'")
    steps(made)
    made.caught_up()
    assert xa_steps(made.same()) == [("rows", "X'61',X'',1", 1)]


def test_killed_within_the_parts_of_one_that_is_larger_than_a_record(protected: Protected) -> None:
    made = protected
    made.capture()
    steps(made)
    prepare(made, "x", rows=20_000)
    steps(made)
    made.caught_up()
    kill(made)
    made.server.execute("xa commit 'x'")
    made.capture(failpoint="capture-part-sent:2")
    assert made.processes[-1].wait(60) != 0
    made.capture()
    steps(made)
    made.caught_up()
    kill(made)
    made.capture()
    steps(made)
    made.caught_up()
    assert xa_steps(made.same()) == [("rows", "X'78',X'',1", 20_000)]


def test_the_last_step_before_a_death_is_one(protected: Protected) -> None:
    """To compare it again, its first group is read again, which stands before all that came in between."""
    made = protected
    made.capture()
    steps(made)
    prepare(made, "a")
    prepare(made, "b")
    steps(made)
    made.server.execute("xa commit 'b'")
    made.caught_up()
    kill(made)
    made.capture()
    made.server.execute("xa commit 'a'")
    made.caught_up()
    kill(made)
    made.capture()
    steps(made)
    made.caught_up()
    assert xa_steps(made.same()) == [("rows", "X'62',X'',1", 1), ("rows", "X'61',X'',1", 1)]


def test_prepared_before_the_lineage_began(protected: Protected) -> None:
    """Its rows are in no baseline: they are looked for where they were logged, in earlier files."""
    made = protected
    prepare(made, "a")
    made.server.execute("flush binary logs")
    prepare(made, "b", rows=20_000)
    steps(made)
    new_lineage(made, "protected")
    made.capture()
    steps(made)
    made.server.execute("flush binary logs", "xa commit 'a'")
    steps(made)
    made.server.execute("xa commit 'b'")
    made.caught_up()
    kill(made)
    made.capture()
    steps(made)
    made.caught_up()
    assert xa_steps(made.same()) == [("rows", "X'61',X'',1", 1), ("rows", "X'62',X'',1", 20_000)]


def test_an_alter_in_two_phases_is_one_step(protected: Protected) -> None:
    made = protected
    made.capture()
    steps(made)
    with made.server.connect(database="xa") as c, c.cursor() as cursor:
        cursor.execute("set session binlog_alter_two_phase = 1")
        cursor.execute("alter table t add column w int")
        cursor.execute("alter table t drop column w")
    made.caught_up()
    kill(made)
    made.capture()
    steps(made)
    made.caught_up()
    told = [summarise(s.preamble, s.payload) for s in made.same() if s.payload is not None]
    assert [t.statements for t in told if t.kind == "ddl" and "alter" in t.statements[0]] == [
        ("alter table t add column w int",),
        ("alter table t drop column w",),
    ]
