"""Four eyes, with the log in Kafka: what an agent is told by commands alone gets past no approval that is not on the log.

And plans that wait for one outlive restarts of the agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from agents.errors import AgentError
from agents.rollback import approval
from agents.rollback.history import History
from deploy.demo.mariadb import MariaDB
from streams.events import JobChanged, RollbackChanged, RollbackPlanned
from streams.settings import Settings
from tests.stack.agent import AgentProcess, await_job
from tests.stack.rolling import Rolling
from tests.stand_ins.rollback_bench import BOUND_USER

pytestmark = pytest.mark.crash


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
    made = Rolling.protect(agent.settings, mariadb, account=BOUND_USER, options={"approval": "required"})
    mariadb.execute("insert into app.t values (1, 'a'), (2, 'b')", "update app.t set v = 'c'")
    return made


def content(rolling: Rolling) -> list[tuple[object, ...]]:
    return rolling.server.execute("select * from app.t order by id")


def asked(rolling: Rolling, planned: RollbackPlanned, what: str, by: str) -> JobChanged:
    return await_job(rolling.settings, rolling.about(planned, what, by))


def refused(rolling: Rolling, planned: RollbackPlanned, what: str, by: str) -> str:
    before = content(rolling)
    done = asked(rolling, planned, what, by)
    assert done.state == "failed"
    assert content(rolling) == before
    (problem,) = done.problems
    assert problem.hint
    return problem.code


def test_nothing_but_the_approval_of_another_person_lets_a_plan_run(agent: AgentProcess, rolling: Rolling) -> None:
    """Planned by `tester`, on a managed service: bound statements, whole source off."""
    planned = rolling.back(1, whole_source=False)
    assert planned.obstacles == ()
    assert planned.options == '{"approval":true,"method":"bound","whole_source":false}'
    assert refused(rolling, planned, "rollback.run", "tester") == "approval-missing"
    assert refused(rolling, planned, "rollback.run", "somebody") == "approval-missing"
    assert refused(rolling, planned, "rollback.approve", "tester") == "approval-own"
    assert refused(rolling, planned, "rollback.approve", " Tester") == "approval-own"
    other = replace(planned, digest=bytes(32))
    assert refused(rolling, other, "rollback.approve", "ann") == "digest-mismatch"
    assert refused(rolling, planned, "rollback.run", "tester") == "approval-missing"
    assert rolling.states(planned) == []

    assert asked(rolling, planned, "rollback.approve", "ann").state == "finished"
    assert refused(rolling, planned, "rollback.run", "ann") == "approval-missing"  # two persons, whoever does what
    # An approval is of one plan: the same steps planned again need their own.
    again = rolling.back(1, whole_source=False)
    assert refused(rolling, again, "rollback.run", "tester") == "approval-missing"

    agent.stop()
    agent.start()
    assert asked(rolling, planned, "rollback.run", "tester").state == "finished"
    assert content(rolling) == [(1, "a"), (2, "b")]
    assert rolling.states(planned) == ["approved", "confirmed", "applying", "applied"]
    assert rolling.history().changes[planned.plan][0].by == "ann"
    assert refused(rolling, planned, "rollback.approve", "bob") == "plan-applied"


def test_a_plan_outlives_restarts_and_is_then_the_same(agent: AgentProcess, rolling: Rolling) -> None:
    """The next agent makes it again from the log, with the digest that was approved, or it would not run."""
    planned = rolling.back(2, whole_source=False)
    agent.kill()
    agent.start()
    assert asked(rolling, planned, "rollback.approve", "ann").state == "finished"
    agent.kill()
    agent.start()
    assert asked(rolling, planned, "rollback.run", "bob").state == "finished"
    assert content(rolling) == []


def test_an_approval_of_another_digest_is_none() -> None:
    planned = RollbackPlanned(
        plan="p", source="shop", kind="rollback", target="", target_ordinal=0, target_time_us=0, head_ordinal=1,
        path_before=(), path_after=(), undo=(), redo=(), steps=1, rows=1, payload_bytes=1, tables=(), schema_version=b"",
        digest=b"\1" * 32, planned_us=0, by="tester",
    )  # fmt: skip
    said = RollbackChanged(plan="p", source="shop", state="approved", digest=b"\2" * 32, at_us=0, by="ann")
    known = History({"p": planned}, {"p": [said]})
    with pytest.raises(AgentError, match="approval-missing"):
        approval.check(known, planned, "bob", "required")
    known.changes["p"].append(replace(said, digest=planned.digest))
    approval.check(known, planned, "bob", "required")
    with pytest.raises(AgentError, match="approval-missing"):
        approval.check(known, planned, "ANN", "required")
    # Made without the policy and run without it: nobody is asked.
    approval.check(History({"p": planned}), planned, "tester", "off")
    # Made under the policy, which was taken back since.
    with pytest.raises(AgentError, match="approval-missing"):
        approval.check(History(), replace(planned, options='{"approval":true}'), "bob", "off")
