"""Applying on a real server: conflicts, locks, lost connections, missing rights. Whatever stops it leaves the source as
it was, `read_only` included, and nothing of ours behind."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest

from agents.errors import AgentError, SourceUnavailable
from agents.mysql import dialects
from agents.mysql.apply import NativeTarget
from agents.rollback import apply as applying
from agents.rollback.plan import Plan
from agents.rollback.stages import STAGES
from agents.rollback.target import Stopped
from deploy.demo.accounts import create_account, grants_for
from deploy.demo.server import DatabaseServer
from streams.events import RollbackChanged
from tests.stand_ins.mariadb_proxy import MariaDBProxy
from tests.stand_ins.rollback_bench import BOUND_USER, PASSWORD, USER, RollbackBench

TABLES = (
    "drop database if exists app",
    "create database app",
    "use app",
    "create table t (id int primary key, v varchar(20) character set utf8mb4, f float, e varchar(20) unique)",
    "create table other (id int primary key, v int)",
    "create table bare (v int)",
    "create table parent (id int primary key, v int)",
    "create table child (id int primary key, pid int, foreign key (pid) references parent (id))",
)
NAMES = ("t", "other", "bare", "parent", "child")


SERVERS = ("mariadb-10.11", "mysql-9", "mysql-5.5")
# As all others on each server, and on MariaDB by bound statements, too.
both_methods = pytest.mark.parametrize("bench", [*SERVERS, "bound"], indirect=True)
# And by them on MySQL, where the server has a say.
everywhere = pytest.mark.parametrize("bench", [*SERVERS, "bound", "bound-mysql", "bound-5.5"], indirect=True)


@pytest.fixture(params=SERVERS)
def bench(request: pytest.FixtureRequest, databases: Callable[[str], DatabaseServer]) -> Iterator[RollbackBench]:
    """On each server; a test of what one of them alone does is marked with `only`."""
    bound = request.param.startswith("bound")
    server = databases(
        {"bound": "mariadb-10.11", "bound-mysql": "mysql-9", "bound-5.5": "mysql-5.5"}.get(request.param, request.param)
    )
    with contextlib.closing(server.connect()) as admin:
        create_account(admin, "app", "app-pw", ("grant all on app.* to {account}",))
    with closing(RollbackBench(server, TABLES, "bound" if bound else "native")) as made:
        made.sql("insert into t values (1, 'a', 0.1, 'e1'), (2, 'b', 0.2, 'e2'), (3, 'c', 0.3, 'e3')")
        made.sql("update t set v = concat(v, '!')")
        made.sql("delete from t where id = 2")
        made.sql("insert into t values (4, 'd', 0.4, 'e4')")
        yield made
        made.sql("set global read_only = 0")
        if server.kind == "mariadb":
            made.sql("set global slave_exec_mode = 'STRICT'")
            made.sql("set global slave_run_triggers_for_rbr = 'NO'")


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", names, indirect=True)


def content(bench: RollbackBench) -> dict[str, Any]:
    return {name: sorted(bench.sql(f"select * from app.{name}"), key=repr) for name in NAMES}


def insert(bench: RollbackBench, table: str, rows: Iterable[tuple[int, int]]) -> None:
    """In one statement, so that it is one step."""
    with bench.admin.cursor() as cursor:
        cursor.execute(f"insert into {table} values " + ", ".join(map(str, rows)))


def unlogged(bench: RollbackBench, *statements: str) -> None:
    """What the log does not hold."""
    for statement in ("set sql_log_bin = 0", *statements, "set sql_log_bin = 1"):
        bench.sql(statement)


def stopped(bench: RollbackBench, plan: Plan, run: Callable[[], object] | None = None) -> list[tuple[str, str]]:
    """Run it, and see that it stops and leaves everything as it is; (code, message) of what it says."""
    before, read_only = content(bench), bench.read_only()
    with pytest.raises(AgentError):
        (run or (lambda: bench.run(plan)))()
    assert content(bench) == before
    assert bench.read_only() == read_only
    assert bench.leftovers() == []
    assert bench.states(plan)[-1] == "failed"
    said = [(p.code, p.message) for p in bench.said[-1].problems]
    assert all(p.hint or "more rows" in p.message for p in bench.said[-1].problems), bench.said[-1].problems
    assert bench.sql("select count(*) from information_schema.innodb_trx") == ((0,),)
    return said


# -- conflicts ------------------------------------------------------------------------------------------------------


@everywhere
def test_a_row_that_changed_behind_us_is_shown_with_both_images(bench: RollbackBench) -> None:
    plan = bench.back(3)
    unlogged(bench, "update t set v = 'other' where id = 1")
    ((code, message),) = stopped(bench, plan)
    assert code == "conflict"
    assert message == "app.t (id=1) is not as the plan expects it: expected v='a!', found v='other'"


@both_methods
@pytest.mark.parametrize("change", ["v = 'A!'", "v = 'a! '", "f = 0.10000001", "f = null", "e = 'E1'"])
def test_what_collations_and_rounding_call_equal_is_a_conflict_all_the_same(bench: RollbackBench, change: str) -> None:
    plan = bench.back(3)
    unlogged(bench, f"update t set {change} where id = 1")
    assert [code for code, _ in stopped(bench, plan)] == ["conflict"]


@both_methods
def test_a_row_that_is_gone_is_a_conflict(bench: RollbackBench) -> None:
    plan = bench.back(1)
    unlogged(bench, "delete from t where id = 4")
    ((code, message),) = stopped(bench, plan)
    assert code == "conflict"
    assert message.startswith("app.t (id=4) is not there; the plan expects id=4, v='d'")


@both_methods
def test_a_row_where_one_is_to_come_back_is_a_conflict(bench: RollbackBench) -> None:
    plan = bench.back(2)
    unlogged(bench, "insert into t values (2, 'x', 0, 'e9')")
    ((code, message),) = stopped(bench, plan)
    assert code == "conflict"
    assert "app.t (id=2) is there" in message
    assert "v='x'" in message


@everywhere
def test_a_unique_value_that_was_taken_is_a_conflict(bench: RollbackBench) -> None:
    plan = bench.back(2)
    unlogged(bench, "insert into t values (77, 'x', 0, 'e2')")
    ((code, message),) = stopped(bench, plan)
    assert code == "conflict"
    assert "e2" in message


@both_methods
def test_only_some_of_many_conflicts_are_shown_and_the_rest_counted(bench: RollbackBench) -> None:
    insert(bench, "other", ((n, 1) for n in range(1, 101)))
    plan = bench.back(1)
    unlogged(bench, "update other set v = 2")
    said = stopped(bench, plan)
    assert len(said) == 6
    assert said[-1] == ("conflict", "and 95 more rows of app.other")


@everywhere
def test_a_missing_row_of_a_table_without_a_key_is_a_conflict(bench: RollbackBench) -> None:
    bench.sql("insert into bare values (1), (1), (2)")
    plan = bench.back(1)
    unlogged(bench, "delete from bare where v = 1 limit 1")
    assert [code for code, _ in stopped(bench, plan)] == ["conflict"]


@everywhere
def test_a_child_that_came_by_behind_us_is_found(bench: RollbackBench) -> None:
    bench.sql("insert into parent values (1, 1)")
    plan = bench.back(1)
    unlogged(bench, "insert into child values (10, 1)")
    ((code, message),) = stopped(bench, plan)
    assert code == "child-outside-plan"
    assert "app.child (id=10)" in message


@both_methods
def test_a_parent_that_went_behind_us_is_found(bench: RollbackBench) -> None:
    bench.sql("insert into parent values (1, 1)")
    bench.sql("insert into child values (10, 1)")
    bench.sql("delete from child")
    plan = bench.back(1)
    unlogged(bench, "delete from parent")
    ((code, message),) = stopped(bench, plan)
    assert code == "orphan"
    assert "app.child (id=10)" in message


@both_methods
def test_a_definition_that_changed_behind_us_stops_it(bench: RollbackBench) -> None:
    plan = bench.back(1)
    unlogged(bench, "alter table t modify v varchar(30) character set utf8mb4")
    assert [code for code, _ in stopped(bench, plan)] == ["schema-changed"]


# -- what comes after the plan --------------------------------------------------------------------------------------


def test_a_whole_source_does_not_go_back_past_a_later_step(bench: RollbackBench) -> None:
    plan = bench.back(1)
    bench.sql("insert into other values (1, 1)")
    ((code, message),) = stopped(bench, plan)
    assert code == "source-moved-on"
    assert "app.other" in message
    assert bench.states(plan) == ["confirmed", "fenced", "failed"]


def test_less_than_the_whole_source_leaves_later_steps_alone(bench: RollbackBench) -> None:
    plan = bench.back(3, whole_source=False)
    bench.sql("insert into other values (1, 1)")
    bench.sql("insert into t values (9, 'z', 0, 'e9')")
    later = bench.head()
    bench.run(plan)
    assert bench.states(plan) == ["confirmed", "applying", "applied"]
    assert {row[0] for row in bench.sql("select id from t")} == {1, 2, 3, 9}
    assert bench.sql("select v from t where id = 1") == (("a",),)
    # And they stand: undoing them is possible, and what was undone can be done again.
    assert bench.path()[-1].last == later
    bench.run(bench.back(2))
    assert {row[0] for row in bench.sql("select id from t")} == {1, 2, 3}
    assert bench.sql("select count(*) from other") == ((0,),)


@pytest.mark.parametrize(
    "statement",
    ["update t set v = 'later' where id = 1", "delete from t where id = 4", "alter table t add column w int",
     "grant insert on app.* to app@'127.0.0.1'"],
)  # fmt: skip
def test_less_than_the_whole_source_stops_at_what_touches_the_plan(bench: RollbackBench, statement: str) -> None:
    plan = bench.back(3, whole_source=False)
    bench.sql(statement)
    if statement.startswith("grant"):
        bench.run(plan)  # accounts are not the plan's business
        return
    assert set(dict(stopped(bench, plan))) <= {"conflict", "later-write", "schema-changed"}


def test_another_rollback_in_between_stops_it(bench: RollbackBench) -> None:
    for whole_source in (True, False):
        plan = bench.back(3, whole_source=whole_source)
        bench.run(bench.back(1))
        assert set(dict(stopped(bench, plan))) <= {"source-moved-on", "later-write", "conflict"}
        bench.run(bench.plan("forward", 4))


def test_while_the_whole_source_is_rolled_back_applications_cannot_write(bench: RollbackBench) -> None:
    plan = bench.back(2)
    refused: list[int] = []

    def say(event: RollbackChanged) -> None:
        bench.say(event)
        if event.state == "applying":
            with closing(bench.server.connect("app", "app-pw", "app")) as user, user.cursor() as cursor:
                try:
                    cursor.execute("insert into other values (5, 5)")
                except pymysql.err.MySQLError as error:
                    refused.append(error.args[0])

    application = bench.application(plan)
    application.say = say
    application.run()
    assert refused == [1290]
    assert bench.read_only() == 0


def test_who_may_write_all_the_same_is_caught_before_commit(bench: RollbackBench) -> None:
    plan = bench.back(2)

    def say(event: RollbackChanged) -> None:
        bench.say(event)
        if event.state == "applying":
            bench.sql("insert into other values (6, 6)")

    application = bench.application(plan)
    application.say = say
    with pytest.raises(Stopped):
        application.run()
    assert application.now == "settle"
    assert [p.code for p in bench.said[-1].problems] == ["source-moved-on"]
    assert bench.sql("select v from t where id = 4") == (("d",),)
    assert bench.read_only() == 0
    bench.sql("delete from other")


def test_read_only_is_left_as_it_was(bench: RollbackBench) -> None:
    bench.sql("set global read_only = 1")
    bench.run(bench.back(1))
    assert bench.read_only() == 1
    assert [c.read_only_before for c in bench.said if c.state == "fenced"] == ["1"]


def test_what_read_only_was_is_said_before_it_is_set(bench: RollbackBench) -> None:
    seen: list[tuple[str, int]] = []
    application = bench.application(plan := bench.back(1))

    def say(event: RollbackChanged) -> None:
        bench.say(event)
        seen.append((event.state, bench.read_only()))

    application.say = say
    application.run()
    assert seen == [("confirmed", 0), ("fenced", 0), ("applying", 1), ("applied", 0)]
    assert plan.event.digest == bench.said[-1].digest


# -- locks ----------------------------------------------------------------------------------------------------------


@both_methods
def test_a_row_that_somebody_holds_is_waited_for_and_then_given_up(
    bench: RollbackBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialects, "DIALECTS", _impatient())
    plan = bench.back(3)
    with closing(bench.server.connect(database="app")) as user, user.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("select * from t where id = 1 for update")
        before = content(bench)
        with pytest.raises(AgentError) as caught:
            bench.run(plan)
        assert caught.value.code == "locked"
        assert content(bench) == before
        assert bench.read_only() == 0


def _impatient() -> tuple[dialects.Dialect, ...]:
    def shorter(session: str) -> str:
        return session.replace("innodb_lock_wait_timeout = 10", "innodb_lock_wait_timeout = 1")

    return tuple(dataclasses.replace(d, rollback_session=shorter(d.rollback_session)) for d in dialects.DIALECTS)


@everywhere
def test_a_deadlock_leaves_nothing_half_done(bench: RollbackBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends it by rolling our transaction back as a whole: what comes next must not commit by itself."""
    bench.sql("insert into bare values (1), (2), (3)")
    bench.sql("create table ballast (id int primary key)")
    bench.head()
    plan = bench.plan("rollback", bench.head())  # from here
    bench.sql("update t set v = 'later'")
    bench.sql("delete from bare where v = 2")
    bench.sql("insert into bare values (9)")
    plan = bench.back(3)
    heavy = bench.server.connect(database="app", autocommit=False)
    waiting = threading.Event()
    with closing(heavy), heavy.cursor() as cursor:
        # Heavier than ours, so that ours is the victim; not logged, and rolled back in the end.
        cursor.execute("set innodb_lock_wait_timeout = 20")
        cursor.executemany("insert into ballast values (%s)", [(n,) for n in range(1, 20001)])
        cursor.execute("select * from bare where v = 9 for update")

        got: list[Any] = []

        def cross() -> None:
            waiting.set()
            cursor.execute("select * from t where id = 3 for update")  # ours since stage 3, until we are the victim
            got.append(cursor.fetchall())

        thread = threading.Thread(target=cross)

        target = bench.target()
        apply = target.apply

        def crossing(progress: Any) -> int:
            thread.start()
            waiting.wait(10)
            deadline = time.monotonic() + 15
            # Asked more often than every 100 ms, InnoDB goes on answering from its cache.
            waits = "select count(*) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'"
            while bench.sql(waits) == ((0,),):
                assert time.monotonic() < deadline, "the other transaction does not wait for ours"
                time.sleep(0.15)
            return apply(progress)

        monkeypatch.setattr(target, "apply", crossing)
        before = content(bench)
        with pytest.raises(AgentError) as caught:
            bench.application(plan, target).run()
        thread.join()
        assert len(got) == 1
        assert caught.value.code == "locked"
        assert "deadlock" in caught.value.message
        heavy.rollback()
    assert content(bench) == before
    assert bench.states(plan)[-1] == "failed"
    assert bench.read_only() == 0
    assert bench.leftovers() == []
    bench.run(bench.back(3))


def test_definitions_cannot_change_while_a_plan_is_applied(bench: RollbackBench) -> None:
    refused: list[int] = []

    class Target(NativeTarget):
        def compare(self) -> list[Any]:
            with closing(bench.server.connect(database="app")) as user, user.cursor() as cursor:
                cursor.execute("set lock_wait_timeout = 1")
                try:
                    cursor.execute("alter table t add column w int")
                except pymysql.err.MySQLError as error:
                    refused.append(error.args[0])
            return super().compare()

    bench.application(bench.back(1), Target(bench.settings())).run()
    assert refused == [1205]


@only("mariadb-10.11", "mysql-9")  # 5.5 logs nothing of one before its outcome
def test_a_transaction_that_stays_prepared_holds_nobody_up(bench: RollbackBench) -> None:
    """The source has logged something that is no step: capture does not get there until there is another one."""
    plan = bench.back(3)
    with closing(bench.server.connect(database="app")) as user, user.cursor() as cursor:
        for statement in ("xa start 'x'", "insert into other values (77, 7)", "xa end 'x'", "xa prepare 'x'"):
            cursor.execute(statement)
    bench.log.parks = True
    try:
        assert bench.run(plan).rows == plan.event.rows
    finally:
        bench.sql("xa rollback 'x'")


# -- connections ----------------------------------------------------------------------------------------------------


@both_methods
@pytest.mark.parametrize("stage", [s.name for s in STAGES if s.name not in ("prepare", "fence")])
def test_a_connection_cut_before_a_stage_changes_nothing(bench: RollbackBench, stage: str) -> None:
    plan = bench.back(3)

    class Cut(applying.Application):
        def _do(self, name: Any) -> None:
            if name == stage:
                for (thread,) in bench.sql(
                    f"select id from information_schema.processlist where user in ('{USER}', '{BOUND_USER}')"
                ):
                    bench.sql(f"kill {thread}")
            super()._do(name)

    application = Cut(plan, bench.target(), bench.log, "agent-1", say=bench.say)
    before = content(bench)
    with pytest.raises(AgentError):
        application.run()
    assert content(bench) == before
    if bench.states(plan)[-1] != "failed":  # it could not put things back: the agent's next start does
        settle(bench, plan)
    assert bench.read_only() == 0
    assert bench.leftovers() == []
    bench.run(bench.back(3))


def settle(bench: RollbackBench, plan: Plan) -> str:
    from agents.rollback.recover import settle_all

    (said,) = settle_all(bench.history, plan.event.source, "agent-2", bench.log, bench.target, bench.say)
    return said.state


@everywhere
def test_a_commit_whose_answer_is_lost_is_decided_by_the_marker(bench: RollbackBench) -> None:
    plan = bench.back(3)
    with MariaDBProxy(bench.server.port) as proxy:
        target = bench.target(port=proxy.port)

        class Armed(applying.Application):
            def _do(self, name: Any) -> None:
                if name == "commit":
                    proxy.cut_at("COMMIT", "after")
                super()._do(name)

        outcome = Armed(plan, target, bench.log, "agent-1", say=bench.say).run()
        assert proxy.cuts == 1
    # 5.5 logs that a session's temporary tables go with it, whatever the format.
    later = [s.payload or b"" for s in bench.log.recorded[: bench.head()] if s.ordinal > outcome.ordinal]
    assert all(b"DROP /*!40005 TEMPORARY */ TABLE" in payload for payload in later)
    assert bench.states(plan)[-1] == "applied"
    assert {row[0] for row in bench.sql("select id from t")} == {1, 2, 3}
    assert bench.read_only() == 0
    assert bench.leftovers() == []


@both_methods
def test_a_commit_that_never_arrived_is_decided_by_the_marker(bench: RollbackBench) -> None:
    plan = bench.back(3)
    with MariaDBProxy(bench.server.port) as proxy:
        target = bench.target(port=proxy.port)

        class Armed(applying.Application):
            def _do(self, name: Any) -> None:
                if name == "commit":
                    proxy.cut_at("COMMIT", "before")
                super()._do(name)

        said = stopped(bench, plan, Armed(plan, target, bench.log, "agent-1", say=bench.say).run)
        assert proxy.cuts == 1
    assert [code for code, _ in said] == ["commit-unknown"]


def test_a_plan_that_failed_can_be_confirmed_again(bench: RollbackBench) -> None:
    plan = bench.back(1)
    unlogged(bench, "update t set v = 'other' where id = 4")
    stopped(bench, plan)
    unlogged(bench, "update t set v = 'd' where id = 4")
    bench.run(plan)
    tried = ["confirmed", "fenced", "applying"]
    assert bench.states(plan) == [*tried, "failed", *tried, "applied"]
    assert bench.history.state(plan.event.plan) == "applied"


@both_methods
def test_a_plan_runs_once(bench: RollbackBench) -> None:
    plan = bench.back(1)
    bench.run(plan)
    bench.history.changes.clear()
    with pytest.raises(AgentError) as caught:
        bench.application(plan).target.begin(plan)
    assert caught.value.code == "plan-already-run"


def test_two_rollbacks_do_not_run_beside_each_other(bench: RollbackBench) -> None:
    with closing(bench.target()) as first:
        first.enable()
        with closing(bench.target()) as second, pytest.raises(AgentError) as caught:
            second.enable()
    assert caught.value.code == "rollback-busy"


@both_methods
def test_a_session_left_behind_is_ended_and_its_plan_can_never_commit(bench: RollbackBench) -> None:
    """An agent that was paused and wakes up after another one has settled its plan."""
    plan = bench.back(3)
    zombie = bench.target()
    zombie.enable()
    zombie.load(plan, lambda done, total: None)
    assert zombie.begin(plan) == []
    assert zombie.compare() == []
    zombie.apply(lambda done, total: None)
    before = content(bench)
    bench.say(_confirmed(plan))
    assert settle(bench, plan) == "failed"
    with pytest.raises(SourceUnavailable):
        zombie.marked()
    late = bench.target()
    with pytest.raises(AgentError) as caught:
        late.begin(plan)
    assert caught.value.code == "plan-already-run"
    late.close()
    assert content(bench) == before
    assert bench.leftovers() == []


def _confirmed(plan: Plan) -> RollbackChanged:
    e = plan.event
    return RollbackChanged(plan=e.plan, source=e.source, state="confirmed", digest=e.digest, at_us=0, by="agent-1")


def test_capture_that_lags_stops_it(bench: RollbackBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "LAG_WAIT_S", 0.3)
    plan = bench.back(1)
    bench.log.hold = bench.head() - 1
    with pytest.raises(AgentError) as caught:
        bench.run(plan)
    assert caught.value.code == "capture-behind"
    assert bench.states(plan) == ["confirmed", "failed"]


def test_an_agent_that_is_to_end_puts_everything_back(bench: RollbackBench) -> None:
    class EndNow(Exception):
        pass

    plan = bench.back(3)
    application = bench.application(plan)

    def say(event: RollbackChanged) -> None:
        bench.say(event)
        if event.state == "applying":
            bench.log.hold = bench.head() - 1  # so that it waits, and looks

    def check() -> None:
        if bench.log.hold is not None:
            raise EndNow

    application.say, application.check = say, check
    before = content(bench)
    with pytest.raises(EndNow):
        application.run()
    assert application.now == "settle"
    bench.log.hold = None
    assert content(bench) == before
    assert bench.states(plan)[-1] == "failed"
    assert (bench.read_only(), bench.leftovers()) == (0, [])


# -- rights and settings --------------------------------------------------------------------------------------------


def bare_account(bench: RollbackBench) -> None:
    """The rollback account without any right."""
    bench.sql(f"drop user {USER}@'127.0.0.1'")
    create_account(bench.admin, USER, PASSWORD, ())


@pytest.mark.parametrize("grant", range(3))
def test_each_missing_right_is_named_by_the_statement_that_gives_it(bench: RollbackBench, grant: int) -> None:
    plan = bench.back(1)
    bench.sql("create database if not exists holdfast")
    grants = grants_for(bench.admin).rollback
    if grant >= len(grants):
        pytest.skip("this server's rights come in fewer pieces")
    bare_account(bench)
    create_account(bench.admin, USER, PASSWORD, tuple(g for g in grants if g != grants[grant]))
    bench.head()
    plan = bench.plan("rollback", 3)
    target = bench.target()
    problems = target.check(plan)
    target.close()
    assert problems, f"{grants[grant]} is not needed"
    assert {p.code for p in problems} == {"privilege-missing"}
    for problem in problems:
        bench.sql(problem.hint)
    with closing(bench.target()) as again:
        assert again.check(plan) == []


def test_an_account_without_any_right_ends_the_rollback_and_leaves_nothing_undecided(bench: RollbackBench) -> None:
    bare_account(bench)
    bench.head()
    plan = bench.plan("rollback", 3)
    said = stopped(bench, plan)
    assert {code for code, _ in said} == {"privilege-missing"}
    assert bench.states(plan) == ["confirmed", "failed"]
    for problem in bench.said[-1].problems:
        bench.sql(problem.hint)
    bench.head()
    again = bench.plan("rollback", 3, whole_source=False)
    bench.run(again)
    assert bench.states(again)[-1] == "applied"


def test_without_the_trigger_privilege_the_account_would_not_see_what_it_compares(bench: RollbackBench) -> None:
    bench.sql("create database if not exists holdfast")
    bench.sql(f"revoke trigger on *.* from {USER}@'127.0.0.1'")
    with closing(bench.target()) as target:
        (problem,) = target.check(bench.plan("rollback", 3))
        assert problem.hint.startswith("GRANT SELECT, TRIGGER")
        assert problem.hint.endswith(f" ON `app`.* TO '{USER}'@'127.0.0.1'")
    bench.sql(problem.hint)
    with closing(bench.target()) as target:
        assert target.check(bench.plan("rollback", 3)) == []


@only("mariadb-10.11")
@pytest.mark.parametrize(
    ("setting", "bad"), [("slave_exec_mode", "IDEMPOTENT"), ("slave_run_triggers_for_rbr", "ENFORCE")]
)
def test_settings_under_which_native_events_lie_are_refused(bench: RollbackBench, setting: str, bad: str) -> None:
    bench.sql("create trigger watch after insert on other for each row insert into t values (new.id, 'x', 1, null)")
    bench.schema = bench._read_schema()
    bench.sql("insert into other values (100, 1)")
    plan = bench.back(1)
    bench.sql(f"set global {setting} = '{bad}'")
    ((code, message),) = stopped(bench, plan)
    assert code == "setting"
    assert setting in message
    bench.sql(bench.said[-1].problems[0].hint)
    bench.run(bench.back(1))


# -- sizes ----------------------------------------------------------------------------------------------------------


@only("mysql-9", "mysql-5.5")
def test_a_row_larger_than_a_packet_is_refused_before_anything(bench: RollbackBench) -> None:
    ((packet,),) = bench.sql("select @@max_allowed_packet")
    bench.sql("create table big (id int primary key, a longblob)")
    bench.schema = bench._read_schema()
    size = packet * 7 // 8
    bench.sql(f"insert into big values (1, repeat('x', {size}))")
    before = bench.sql("checksum table big")
    bench.sql("delete from big")
    ((code, message),) = stopped(bench, bench.back(1))
    assert code == "row-too-large"
    assert "app.big" in message
    bench.sql(bench.said[-1].problems[0].hint)
    bench.run(bench.back(1))
    assert bench.sql("checksum table big") == before
    bench.sql(f"set global max_allowed_packet = {packet}")


@only("mysql-9")
def test_a_server_that_nobody_may_write_to_is_refused(bench: RollbackBench) -> None:
    plan = bench.back(1)
    bench.sql("set global super_read_only = 1")
    with pytest.raises(AgentError):
        bench.run(plan)
    assert [p.code for p in bench.said[-1].problems] == ["setting"]
    bench.sql("set global read_only = 0")
    bench.run(bench.back(1))


@only("mariadb-10.11")
def test_a_row_larger_than_a_packet_goes_in_two_halves_or_is_refused_before_anything(bench: RollbackBench) -> None:
    ((packet,),) = bench.sql("select @@max_allowed_packet")
    bench.sql("create table big (id int primary key, a longblob, b longblob)")
    bench.schema = bench._read_schema()
    half = packet * 9 // 16
    bench.sql(f"insert into big values (1, repeat('x', {half}), repeat('y', {half}))")
    before = bench.sql("checksum table big")
    bench.sql("delete from big")
    bench.run(bench.back(1))
    assert bench.sql("checksum table big") == before
    bench.sql("update big set id = 2")  # deleted and inserted, image by image
    bench.run(bench.back(1))
    assert bench.sql("checksum table big") == before
    bench.sql("update big set a = concat(a, 'x')")  # both images in one event
    ((code, message),) = stopped(bench, bench.back(1))
    assert code == "row-too-large"
    assert "app.big" in message
    ((hint),) = (p.hint for p in bench.said[-1].problems)
    bench.sql(hint)
    bench.run(bench.back(1))
    assert bench.sql("checksum table big") == before
    bench.sql(f"set global max_allowed_packet = {packet}")
    # BINLOG_GTID_POS, which baselines ask, cannot read past an event larger than a packet: leave that file behind.
    bench.sql("flush binary logs")


@both_methods
def test_a_plan_of_many_rows_in_many_steps(bench: RollbackBench) -> None:
    """Large enough for light guards and events of more than one statement."""
    insert(bench, "other", ((n, n) for n in range(1, 30_001)))
    before = content(bench)
    bench.sql("update other set v = v + 1")
    bench.sql("delete from other where id % 3 = 0")
    insert(bench, "other", ((n + 100_000, 1) for n in range(1, 20_001)))
    bench.sql("update other set id = -id where id % 5 = 0")
    after, head = content(bench), bench.head()
    progress: list[tuple[str, int, int]] = []
    application = bench.application(bench.back(4))
    application.progress = lambda *said: progress.append(said)
    application.run()
    assert content(bench) == before
    assert {what for what, _, _ in progress} == {"loading the guard", "applying"}
    assert all(done <= total for _, done, total in progress)
    bench.run(bench.plan("forward", head))
    assert content(bench) == after


def test_a_conflict_among_many_rows_is_found(bench: RollbackBench) -> None:
    insert(bench, "other", ((n, n) for n in range(1, 30_001)))
    plan = bench.back(1)
    unlogged(bench, "update other set v = 0 where id = 29999")
    assert stopped(bench, plan) == [
        ("conflict", "app.other (id=29999) is not as the plan expects it: expected v=29999, found v=0")
    ]


@only("mysql-9")
def test_what_a_cascade_did_is_undone_where_the_log_holds_it(bench: RollbackBench) -> None:
    bench.sql(
        "create table kin (id int primary key, up int, foreign key (up) references parent (id) on delete cascade)"
    )
    bench.schema = bench._read_schema()
    bench.sql("insert into parent values (1, 1), (2, 2)")
    bench.sql("insert into kin values (10, 1), (11, 1), (12, 2)")
    before = (content(bench), bench.sql("select * from kin"))
    bench.sql("delete from parent where id = 1")
    assert bench.sql("select id from kin") == ((12,),)
    bench.run(bench.back(1))
    assert (content(bench), bench.sql("select * from kin")) == before
