"""The agent is killed while it plans and carries out a rollback, with the log in Kafka, and started again.

What each boundary leaves on the source is `test_rollback_kills`'; this is about what the log and the jobs say in the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from deploy.demo.mariadb import MariaDB
from streams.settings import Settings
from tests.stack.agent import AgentProcess, await_job, send
from tests.stack.rolling import Rolling

pytestmark = pytest.mark.crash
SIGKILLED = -9


@pytest.fixture
def agent(fresh_site: Settings) -> Iterator[AgentProcess]:
    process = AgentProcess(fresh_site)
    process.start()
    try:
        yield process
    finally:
        process.end()
        print(process.tail())


@pytest.fixture
def rolling(agent: AgentProcess, mariadb: MariaDB) -> Rolling:
    mariadb.execute(
        "set global read_only = 0",
        "drop database if exists app",
        "create database app",
        "create table app.t (id int primary key, v varchar(20))",
    )
    made = Rolling.protect(agent.settings, mariadb)
    mariadb.execute(
        "insert into app.t values (1, 'a'), (2, 'b')", "update app.t set v = 'c'", "delete from app.t where id = 1"
    )
    return made


def content(rolling: Rolling) -> list[tuple[object, ...]]:
    return rolling.server.execute("select * from app.t order by id")


@pytest.mark.parametrize(
    "failpoint",
    ["command.claimed", "rollback-confirmed", "rollback-fenced", "rollback-apply", "rollback-commit", "rollback-committed",
     "rollback-unfenced", "rollback-applied", "command.done", "command.finished"],
)  # fmt: skip
def test_the_agent_is_killed_and_the_next_one_says_how_it_ended(
    agent: AgentProcess, rolling: Rolling, failpoint: str
) -> None:
    planned = rolling.back(2)
    assert content(rolling) == [(2, "c")]
    assert agent.stop() == 0
    agent.start(failpoint)
    job = rolling.confirm(planned)
    assert agent.wait() == SIGKILLED
    agent.start()
    done = await_job(rolling.settings, job)
    states = rolling.states(planned)
    if failpoint in ("rollback-confirmed", "rollback-fenced", "rollback-apply", "rollback-commit"):
        assert done.state == "failed"
        assert [p.code for p in done.problems] == ["agent-died"]
        assert states[-1] == "failed"
        assert content(rolling) == [(2, "c")]
        rolling.run(rolling.back(2))
    else:
        assert done.state == "finished", done.problems
        assert states[-1] == "applied"
        result = json.loads(done.result)
        assert result["ordinal"] == rolling.head()
        assert result["rows"] == 2
    assert content(rolling) == [(1, "a"), (2, "b")]
    assert sum(s in ("applied", "failed") for s in states) == 1
    assert rolling.read_only() == 0
    assert rolling.leftovers() == []
    rolling.run(rolling.plan("forward", planned.head_ordinal))
    assert content(rolling) == [(2, "c")]


def test_a_plan_asked_for_twice_is_made_once(agent: AgentProcess, rolling: Rolling) -> None:
    agent.stop()
    agent.start("command.done")
    name, job = rolling.ask("rollback", 2)
    assert agent.wait() == SIGKILLED  # the plan is in the log, the job has not ended
    assert list(rolling.history().plans) == [name]
    agent.start()
    assert await_job(rolling.settings, job).state == "finished"
    assert list(rolling.history().plans) == [name]
    rolling.run(rolling.history().plans[name])
    assert content(rolling) == [(1, "c"), (2, "c")]


def test_an_abandoned_plan_does_not_run(agent: AgentProcess, rolling: Rolling) -> None:
    planned = rolling.back(1)
    assert (
        await_job(rolling.settings, send(rolling.settings, "rollback.abandon", plan=planned.plan)).state == "finished"
    )
    done = await_job(rolling.settings, rolling.confirm(planned))
    assert (done.state, [p.code for p in done.problems]) == ("failed", ["plan-abandoned"])
    wrong = rolling.back(1)
    done = await_job(rolling.settings, send(rolling.settings, "rollback.run", plan=wrong.plan, digest="00" * 32))
    assert (done.state, [p.code for p in done.problems]) == ("failed", ["digest-mismatch"])
    rolling.run(wrong)
    done = await_job(rolling.settings, rolling.confirm(wrong))
    assert (done.state, [p.code for p in done.problems]) == ("failed", ["plan-applied"])


def test_definitions_that_changed_since_the_baseline_are_known(agent: AgentProcess, rolling: Rolling) -> None:
    """Not past a definition change, but after it: plans use what the schema topic says of the table since."""
    server = rolling.server
    server.execute("alter table app.t add column w int default 5, add unique key (w)")
    after = rolling.head()
    server.execute("insert into app.t values (7, 'x', 70), (8, 'y', 80)", "update app.t set w = w + 1 where id = 8")
    server.execute("create table app.later (id int primary key)", "insert into app.later values (1)")
    rolling.run(rolling.back(1))
    assert server.execute("select count(*) from app.later") == [(0,)]
    planned = rolling.plan("rollback", after)
    assert [o.code for o in planned.obstacles] == ["ddl"]
    assert "create table app.later" in planned.obstacles[0].message


def test_a_transaction_of_many_records_is_undone(agent: AgentProcess, rolling: Rolling) -> None:
    server = rolling.server
    server.execute("create table app.big (id int primary key, v longblob)")
    head = rolling.head()
    with server.connect(database="app") as connection, connection.cursor() as cursor:
        cursor.execute("begin")
        for i in range(12):
            cursor.execute("insert into big values (%s, repeat('x', 700000)), (%s, 'small')", (2 * i, 2 * i + 1))
        cursor.execute("update big set v = concat(v, 'y')")
        cursor.execute("commit")
    sums = server.execute("checksum table app.big")
    assert sum(1 for _ in rolling.log.steps(rolling.lineage, head + 1, rolling.head())) > 1, "it was not split"
    rolling.run(rolling.back(1))
    assert server.execute("select count(*) from app.big") == [(0,)]
    rolling.run(rolling.plan("forward", head + 1))
    assert server.execute("checksum table app.big") == sums
