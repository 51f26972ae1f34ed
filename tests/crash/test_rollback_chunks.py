"""A rollback in chunks, with the log in Kafka: killed at chunk boundaries it goes on, others' writes in between stay, and it
waits for a replica of the source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from agents.rollback.plan import request_of
from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from streams.events import RollbackPlanned
from streams.settings import Settings
from tests.stack import agent as asking
from tests.stack.agent import AgentProcess, await_it, await_job, send
from tests.stack.rolling import SOURCE, Rolling
from tests.stand_ins.rollback_bench import BOUND_GRANTS, BOUND_USER

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
def replica(mariadb: MariaDB, make_mariadb: Callable[..., MariaDB]) -> Iterator[MariaDB]:
    """A replica of the source from now on, with accounts of its own."""
    there = make_mariadb(
        options={"server_id": "77", "replicate_wild_ignore_table": "mysql.%", "gtid_strict_mode": "OFF"}
    )
    mariadb.execute(
        "drop database if exists holdfast",
        "grant replication slave on *.* to copier@'127.0.0.1' identified by 'copier secret'",
    )
    (at,) = mariadb.execute("select @@global.gtid_binlog_pos")[0]
    there.execute("reset master", f"set global gtid_slave_pos = '{at}'")
    there.execute(
        f"change master to master_host = '127.0.0.1', master_port = {mariadb.port}, master_user = 'copier',"
        " master_password = 'copier secret', master_use_gtid = slave_pos, master_connect_retry = 1",
        "start slave",
        *BOUND_GRANTS,
        f"grant replica monitor on *.* to {BOUND_USER}@'127.0.0.1'",
    )
    yield there
    there.execute("stop slave")
    mariadb.execute("drop user copier@'127.0.0.1'")


@pytest.fixture
def waited_for(request: pytest.FixtureRequest, mariadb: MariaDB) -> DatabaseServer:
    """Of which server it is waited for that it has a chunk: the source itself, which has it at once, unless a test has a
    replica."""
    there = request.getfixturevalue("replica") if "replica" in request.fixturenames else mariadb
    assert isinstance(there, DatabaseServer)
    return there


@pytest.fixture
def rolling(agent: AgentProcess, mariadb: MariaDB, waited_for: DatabaseServer) -> Rolling:
    """Twelve steps of ten rows each, by parents and children, updates and deletes; the last six are to be undone."""
    mariadb.execute(
        "set global read_only = 0",
        "drop database if exists app",
        "create database app",
        "create table app.parent (id int primary key, v int)",
        "create table app.child (id int primary key, pid int, u varchar(20) unique, foreign key (pid) references parent (id))",
        "create table app.other (id int primary key)",
    )
    made = Rolling.protect(
        agent.settings, mariadb, account=BOUND_USER, options={"replicas": f"127.0.0.1:{waited_for.port}"}
    )
    mariadb.execute(
        "insert into app.parent select seq, 0 from app.seq_1_to_10",
        "insert into app.child select seq, seq, seq from app.seq_1_to_10",
        "insert into app.parent select seq, 0 from app.seq_11_to_20",
        "update app.child set pid = pid + 10",
        "delete from app.parent where id <= 10",
        "update app.child set u = concat('x', u)",
        "insert into app.child select seq + 10, seq + 10, seq from app.seq_1_to_10",
        "delete from app.child where id <= 10",
    )
    return made


def content(rolling: Rolling) -> list[list[tuple[object, ...]]]:
    return [rolling.server.execute(f"select * from app.{t} order by id") for t in ("parent", "child")]


def chunks_of(rolling: Rolling, planned: RollbackPlanned) -> list[RollbackPlanned]:
    return [p for p in rolling.history().plans.values() if request_of(p).part_of == planned.plan]


def test_a_plan_in_chunks_goes_on_after_each_death(agent: AgentProcess, rolling: Rolling) -> None:
    before = content(rolling)
    planned = rolling.back(6, whole_source=False, chunk_rows=10)
    assert planned.obstacles == ()
    assert "chunks" in [w.code for w in planned.warnings]
    agent.stop()
    agent.start("rollback-commit:2")  # in the second chunk, before it is in
    job = rolling.confirm(planned)
    assert agent.wait() == -9
    assert rolling.history().state(planned.plan) == "chunking"
    rolling.server.execute("insert into app.other values (1)")  # the source is nobody's but its users'
    agent.start("rollback-committed")  # in, and not said
    assert agent.wait() == -9, [
        s for p in chunks_of(rolling, planned) for s in rolling.history().changes.get(p.plan, [])
    ]
    rolling.server.execute("insert into app.other values (2)")
    agent.start("rollback-chunk")  # between two
    assert agent.wait() == -9
    agent.start()
    done = await_job(rolling.settings, job, 180)
    assert done.state == "finished", done.problems
    result = json.loads(done.result)
    parts = chunks_of(rolling, planned)
    states = [rolling.history().state(p.plan) for p in parts]
    assert states.count("failed") == 1  # the one that was killed before COMMIT
    assert states.count("applied") >= 4
    assert result["rows"] == sum(p.rows for p, s in zip(parts, states, strict=True) if s == "applied")
    assert rolling.states(planned)[-1] == "chunked"
    # As it was after the second step, and what others wrote stays.
    assert content(rolling)[1] == [(i, i, str(i)) for i in range(1, 11)]
    assert content(rolling)[0] == [(i, 0) for i in range(1, 11)]
    assert rolling.server.execute("select count(*) from app.other") == [(2,)]
    again = await_job(rolling.settings, rolling.confirm(planned))
    assert [p.code for p in again.problems] == ["plan-chunked"]

    # The last chunk taken back: what it undid stands again, and nothing else changed.
    applied = [c for p in parts for c in rolling.history().changes.get(p.plan, []) if c.state == "applied"]
    rolling.run(rolling.plan("forward", max(c.ordinal for c in applied) - 1, whole_source=False))
    assert content(rolling) not in (before, [[(i, 0) for i in range(1, 11)], [(i, i, str(i)) for i in range(1, 11)]])
    assert rolling.server.execute("select count(*) from app.other") == [(2,)]


def said(rolling: Rolling, job: str, words: str) -> bool:
    return any(words in event.message for event in asking.job(rolling.settings, job))


def test_chunks_wait_for_a_replica_that_is_behind_and_stop_at_one_that_is_broken(
    rolling: Rolling, replica: MariaDB
) -> None:
    replica.execute("stop slave sql_thread")
    planned = rolling.back(6, whole_source=False, chunk_rows=10)
    job = rolling.confirm(planned)
    waiting = f"waiting for replica 127.0.0.1:{replica.port}: applying is stopped (SQL thread)"
    await_it(lambda: said(rolling, job, waiting) or None, "a rollback that waits for the replica")
    assert [rolling.history().state(p.plan) for p in chunks_of(rolling, planned)] == ["applied"]
    # Somebody wrote a row there that the source is to have, too.
    replica.execute("insert into app.other values (5)")
    rolling.server.execute("insert into app.other values (5)")
    replica.execute("start slave sql_thread")
    broken = await_job(rolling.settings, job, 180)
    assert broken.state == "failed"
    (problem,) = broken.problems
    assert problem.code == "replica-broken"
    assert "Duplicate entry" in problem.message
    assert "--without-replica" in problem.hint
    assert rolling.history().state(planned.plan) == "failed"
    unknown = await_job(rolling.settings, run_without(rolling, planned, "127.0.0.1:1"))
    assert [p.code for p in unknown.problems] == ["replica-unknown"]
    done = await_job(rolling.settings, run_without(rolling, planned, f"127.0.0.1:{replica.port}"), 180)
    assert done.state == "finished", done.problems
    assert content(rolling)[1] == [(i, i, str(i)) for i in range(1, 11)]
    # Mended, the replica has all of it.
    replica.execute("delete from app.other", "start slave sql_thread")
    await_it(
        lambda: replica.execute("select * from app.child order by id") == content(rolling)[1] or None, "the replica"
    )


def run_without(rolling: Rolling, planned: RollbackPlanned, replica: str) -> str:
    return send(
        rolling.settings, "rollback.run", SOURCE, plan=planned.plan, digest=planned.digest.hex(), without_replicas=[replica]
    )  # fmt: skip


def test_chunks_are_refused_for_the_whole_source_and_stop_at_a_later_write(
    agent: AgentProcess, rolling: Rolling
) -> None:
    whole = rolling.back(2, whole_source=True, chunk_rows=10)
    assert [o.code for o in whole.obstacles] == ["chunks-whole-source", "no-fence"]
    planned = rolling.back(6, whole_source=False, chunk_rows=10, pause_ms=50)
    rolling.server.execute("update app.parent set v = 7 where id = 15")
    stopped = await_job(rolling.settings, rolling.confirm(planned), 180)
    assert stopped.state == "failed"
    assert [p.code for p in stopped.problems] == ["conflict"]
    # Stopped half way, at a state that was; the write stands. Once it is gone, the plan goes on.
    assert rolling.history().state(planned.plan) == "failed"
    assert rolling.server.execute("select v from app.parent where id = 15") == [(7,)]
    in_before = [p for p in chunks_of(rolling, planned) if rolling.history().state(p.plan) == "applied"]
    assert in_before
    rolling.server.execute("update app.parent set v = 0 where id = 15")
    done = await_job(rolling.settings, rolling.confirm(planned), 180)
    assert done.state == "finished", done.problems
    assert content(rolling)[1] == [(i, i, str(i)) for i in range(1, 11)]
    assert await_it(lambda: rolling.states(planned)[-1] == "chunked" or None, "the end")
