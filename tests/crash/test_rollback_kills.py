"""The agent, or the server, is killed at every place where it leaves something else behind.

After each: the source is in the state before the rollback or in the one after it, decided by where the death was; once
the next agent has settled it, `read_only` is as it was, no guard is left, the log says how it ended, and the next
rollback works.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agents.errors import AgentError
from agents.rollback import apply
from agents.rollback.apply import Application
from agents.rollback.plan import Plan
from agents.rollback.recover import settle_all
from agents.rollback.stages import STAGES
from deploy.demo.server import DatabaseServer
from streams.events import OrdinalRange
from streams.selection import KeyRange, Selection
from tests.stand_ins.rollback_bench import RollbackBench
from tests.stand_ins.rollback_driver import history, write_job

pytestmark = pytest.mark.crash

ROWS = 5_000
TABLES = (
    "drop database if exists crash",
    "create database crash",
    "use crash",
    "create table t (id int primary key, v varchar(40), key (v))",
    "create table bare (v int)",
    "create table parent (id int primary key)",
    "create table child (id int primary key, pid int, foreign key (pid) references parent (id))",
)
BEFORE_COMMIT = ["rollback-confirmed", *(f"rollback-{s.name}" for s in STAGES), "rollback-fenced"]
AFTER_COMMIT = ["rollback-committed", "rollback-applied"]


# Whose sessions, guards and marks differ: MySQL's, and those of bound statements (on MariaDB).
MARIADB, MYSQL, BOUND = "mariadb", "mysql-9", "bound"


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", names, indirect=True)


def _server(request: pytest.FixtureRequest, name: str) -> DatabaseServer:
    found: DatabaseServer = request.getfixturevalue("databases")(MYSQL if name == MYSQL else "mariadb-10.11")
    return found


@pytest.fixture(params=[MARIADB])
def bench(request: pytest.FixtureRequest) -> Iterator[RollbackBench]:
    method = "bound" if request.param == BOUND else "native"
    with closing(_bench(_server(request, request.param), method)) as made:
        yield made
        made.sql("set global read_only = 0")


def _bench(server: DatabaseServer, method: str = "native") -> RollbackBench:
    made = RollbackBench(server, ("set global read_only = 0", *TABLES), method)
    made.sql("insert into t values " + ", ".join(f"({i}, '{'a' * 30}')" for i in range(1, ROWS + 1)))
    made.sql("insert into parent values (1), (2)")
    made.sql("begin")
    made.sql("insert into child values (1, 1), (2, 2)")
    made.sql("insert into bare values (1), (1)")
    made.sql("commit")
    made.sql("update t set v = concat('b', v) where id % 2")
    made.sql("delete from t where id % 3 = 0")
    return made


def content(bench: RollbackBench) -> Any:
    return bench.sql("checksum table crash.t, crash.bare, crash.parent, crash.child")


def drive(job: Path, what: str, failpoint: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.stand_ins.rollback_driver", str(job), what],
        env={**os.environ, "HOLDFAST_FAILPOINT": failpoint},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> int:
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode


def settled(bench: RollbackBench, job: Path, plan: Plan) -> str:
    """Let the next agent settle it; the state it says."""
    assert finish(drive(job, "recover")) == 0
    bench.history = history(job.with_suffix(".events"))
    assert bench.leftovers() == []
    states = bench.states(plan)
    if not states:
        return "failed"  # not even begun
    assert bench.history.state(plan.event.plan) in ("applied", "failed")
    assert sum(s in ("applied", "failed") for s in states) == 1
    return states[-1]


def _agent_deaths() -> list[Any]:
    """(bench, failpoint, what `read_only` was): MariaDB at every place, MySQL where its own statements are, bound statements
    wherever they come by (they cannot fence)."""
    places = [*BEFORE_COMMIT, *AFTER_COMMIT, "rollback-unfenced"]
    fences = ["rollback-fence", "rollback-fenced", "rollback-commit", "rollback-committed", "rollback-unfenced"]
    mysql = [
        "rollback-fenced",
        "rollback-begin",
        "rollback-apply",
        "rollback-commit",
        "rollback-committed",
        "rollback-unfenced",
    ]
    return [
        *((MARIADB, place, 0) for place in places),
        *((MARIADB, place, 1) for place in fences),
        *((MYSQL, place, i % 2) for i, place in enumerate(mysql)),
        *((BOUND, place, 0) for place in places if place != "rollback-fenced"),
    ]


@pytest.mark.parametrize(("bench", "failpoint", "read_only"), _agent_deaths(), indirect=["bench"])
def test_the_agent_is_killed(bench: RollbackBench, tmp_path: Path, failpoint: str, read_only: int) -> None:
    steps = 2 if failpoint not in BEFORE_COMMIT else 4
    before = content(bench)
    plan = bench.back(steps)
    job = write_job(tmp_path, bench, plan)
    bench.sql(f"set global read_only = {read_only}")
    assert finish(drive(job, "run", failpoint)) == -signal.SIGKILL
    said = history(job.with_suffix(".events"))
    assert said.state(plan.event.plan) in ("confirmed", "fenced", "applying", "applied")
    state = settled(bench, job, plan)
    assert state == ("failed" if failpoint in BEFORE_COMMIT else "applied")
    assert (content(bench) == before) is (state == "failed")
    assert bench.read_only() == read_only
    bench.sql("set global read_only = 0")
    if state == "applied":
        assert bench.said == []
        applied = bench.history.changes[plan.event.plan][-1]
        assert applied.ordinal == bench.head()
        bench.run(bench.plan("forward", plan.event.head_ordinal))
    else:
        bench.run(bench.back(steps))
        bench.run(bench.plan("forward", plan.event.head_ordinal))
    assert content(bench) == before


@pytest.mark.parametrize("failpoint", ["rollback-begin", "rollback-apply", "rollback-commit", *AFTER_COMMIT])
def test_the_agent_is_killed_in_a_selective_undo(bench: RollbackBench, tmp_path: Path, failpoint: str) -> None:
    """One transaction in the middle is taken back while others stand: all of it, or nothing, and it can be taken back."""
    before, step = content(bench), bench.head() - 1
    bench.sql("insert into bare values (9)")
    later = content(bench)
    selection = Selection((OrdinalRange(step, step),), ("crash", "t"), (KeyRange(("1",), ("1000",)),), "force")
    plan = bench.undo(selection)
    assert plan.event.obstacles == ()
    assert plan.event.dependant_steps == 1
    job = write_job(tmp_path, bench, plan)
    assert finish(drive(job, "run", failpoint)) == -signal.SIGKILL
    state = settled(bench, job, plan)
    assert state == ("applied" if failpoint in AFTER_COMMIT else "failed")
    assert bench.read_only() == 0
    if state == "failed":
        assert content(bench) == later
        bench.history.plans.clear()
        bench.run(bench.undo(selection))
    assert bench.sql("select count(*) from t where id <= 1000 and v like 'b%'") == ((0,),)
    # Rows that were deleted later and had not been selected (the even ones) are not there.
    assert bench.sql("select count(*) from t where id <= 1000") == ((1000 - 1000 // 6,),)
    done = bench.head()
    bench.run(bench.undo(Selection((OrdinalRange(done, done),), None, (), "refuse")))
    assert content(bench) == later != before


@on(MARIADB, BOUND)
def test_the_next_agent_is_killed_while_it_settles(bench: RollbackBench, tmp_path: Path) -> None:
    for failpoint, state in (("rollback-settle", "failed"), ("rollback-committed", "applied")):
        plan = bench.back(1)
        job = write_job(tmp_path, bench, plan)
        finish(drive(job, "run", failpoint))
        assert finish(drive(job, "recover", "rollback-settled")) == -signal.SIGKILL
        assert settled(bench, job, plan) == state
        assert bench.read_only() == 0


@on(MARIADB, MYSQL, BOUND)
def test_the_agent_is_killed_at_any_moment(bench: RollbackBench, tmp_path: Path) -> None:
    """Not at a named place: within statements, between packets, during COMMIT."""
    rng = random.Random(20)
    before = content(bench)
    plan = bench.back(4)
    after = None
    began = time.monotonic()
    job = write_job(tmp_path, bench, plan)
    assert finish(drive(job, "run")) == 0
    took = time.monotonic() - began
    bench.history = history(job.with_suffix(".events"))
    after = content(bench)
    seen: set[str] = set()
    whole = plan.event.head_ordinal  # where everything stood, last
    rounds, least = 0, 8 if bench.server.kind == "mariadb" and bench.method == "native" else 6
    while rounds < least or seen != {"applied", "failed"}:
        rounds += 1
        assert rounds <= 60, f"the moments were not spread over the run: always {seen}"
        forward = content(bench) == after
        if not forward:
            whole = bench.head()
        plan = bench.plan("forward", whole) if forward else bench.back(4)
        job = write_job(tmp_path, bench, plan)
        for earlier in bench.history.plans.values():
            if earlier.plan != plan.event.plan:
                _say(job, bench, earlier.plan)
        process = drive(job, "run")
        began = time.monotonic()
        try:
            process.wait(took * rng.uniform(0.3, 1.05))
            took = time.monotonic() - began  # a machine is not as fast at all times
        except subprocess.TimeoutExpired:
            process.kill()
            took *= 1.0 if "applied" in seen else 1.2
        finish(process)
        state = settled(bench, job, plan)
        seen.add(state)
        wanted = {True: {"applied": before, "failed": after}, False: {"applied": after, "failed": before}}
        assert content(bench) == wanted[forward][state]
        assert bench.read_only() == 0


def _say(job: Path, bench: RollbackBench, plan: str) -> None:
    """Carry what was said of an earlier plan over into this job's events."""
    from tests.stand_ins.rollback_driver import append

    events = job.with_suffix(".events")
    append(events, bench.history.plans[plan])
    for change in bench.history.changes.get(plan, []):
        append(events, change)


def _server_deaths() -> list[Any]:
    stages = ["fence", "begin", "compare", "apply", "settle", "commit", "committed"]
    return [
        *((MARIADB, "native", stage, comes_back) for stage in stages for comes_back in (True, False)),
        *((MARIADB, "bound", stage, True) for stage in ("begin", "apply", "committed")),
        *((MYSQL, "native", stage, stage != "apply") for stage in ("begin", "apply", "committed")),
    ]


@pytest.fixture
def mortal(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """A shared server, which may be killed."""
    server: DatabaseServer = _server(request, request.param)
    try:
        yield server
    finally:
        if not server.alive:
            server.start()


@pytest.mark.parametrize(("mortal", "method", "stage", "comes_back"), _server_deaths(), indirect=["mortal"])
def test_the_server_is_killed(
    mortal: DatabaseServer, monkeypatch: pytest.MonkeyPatch, method: str, stage: str, comes_back: bool
) -> None:
    bench = _bench(mortal, method)
    before = content(bench)
    plan = bench.back(4)
    gone = threading.Event()

    class Dying(Application):
        def _do(self, name: Any) -> None:
            if name == stage:
                mortal.kill()
                gone.set()
            super()._do(name)
            if name == "commit" and stage == "committed":
                mortal.kill()
                gone.set()

    # The agent lives on and waits for the server, if it comes back in time.
    monkeypatch.setattr(apply, "RECONNECT_WAIT_S", 60.0 if comes_back else 0.0)
    monkeypatch.setattr(apply, "CAPTURED_WAIT_S", 0.0)
    application = Dying(plan, bench.target(), bench.log, "agent-1", say=bench.say)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(application.run)
        if comes_back:
            assert gone.wait(120)
            mortal.start()
        if comes_back and stage == "committed":
            running.result(60)
        else:
            with pytest.raises(AgentError):
                running.result(60)
    if not comes_back:
        assert bench.states(plan)[-1] not in ("applied", "failed"), "nobody could tell while the server was away"
        mortal.start()
    bench.admin = mortal.connect(database="crash")
    bench.log._connection = bench.admin
    if not comes_back:
        settle_all(bench.history, plan.event.source, "agent-2", bench.log, bench.target, bench.say)
    assert bench.states(plan)[-1] == ("applied" if stage == "committed" else "failed")
    assert (content(bench) == before) is (stage != "committed")
    assert bench.read_only() == 0
    assert bench.leftovers() == []
    bench.close()
