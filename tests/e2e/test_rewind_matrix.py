"""The rewind matrix: every server, every type and every trap. A random walk ends at the recorded checksums, or the plan is
refused beforehand and says why, or capture stops and says why.

One server of each kind, one source and one agent for all of its cases. docs/rewind-matrix.md is made from the same data.
"""

from __future__ import annotations

import os
import random
import secrets
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from streams.settings import PostgresSettings
from tests.matrix import types as zoo
from tests.matrix import walking
from tests.matrix.cases import Case
from tests.matrix.elsewhere import ELSEWHERE
from tests.matrix.servers import SERVERS, ServerKind
from tests.matrix.table import PAGE, page
from tests.matrix.traps import STOPS, TRAPS
from tests.stack.agent import AgentProcess, await_job, await_state, send
from tests.stack.rolling import SOURCE, Rolling
from tests.stack.servers import KafkaServer, Scratch, make_site

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("HOLDFAST_WALK_SEEDS", "1").split(",")[0])


class Column:
    """One kind of server with its source, protected; `rolling` again once capture has stopped for good, or a case failed."""

    def __init__(self, kind: ServerKind, rolling: Rolling) -> None:
        self.kind = kind
        self.rolling = rolling
        self.lost = False

    def again(self) -> None:
        """A new baseline, a new lineage."""
        self.rolling.log.close()
        self.rolling = Rolling.protect(self.rolling.settings, self.rolling.server)

    @contextmanager
    def case(self) -> Iterator[Rolling]:
        """The source for one case. One that fails is not in the way of the next: what it left undecided or not to be found stays
        behind in a lineage that is over."""
        assert not self.lost, "an earlier case failed, and its source could not be protected anew"
        try:
            yield self.rolling
        except Exception:
            self.lost = True
            settings = self.rolling.settings
            self.rolling.server.execute("set global read_only = 0")
            await_job(settings, send(settings, "source.remove", SOURCE))
            self.again()
            self.lost = False
            raise


@pytest.fixture(scope="module", params=SERVERS, ids=lambda kind: kind.name.replace(" ", "-"))
def column(request: pytest.FixtureRequest, kafka: KafkaServer) -> Iterator[Column]:
    kind: ServerKind = request.param
    scratch = Scratch("matrix")
    nowhere = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")  # nothing here reads a projection
    site = make_site(scratch.path / "site", kafka.settings(f"m{secrets.token_hex(4)}."), nowhere)
    agent = AgentProcess(site)
    server = kind.start(scratch.path / "server")
    try:
        # As `holdfast up` does: what replays definitions of this series.
        os.environ["HOLDFAST_MARIADBD"] = server.installation.server[0]
        agent.start()
        del os.environ["HOLDFAST_MARIADBD"]
        yield Column(kind, Rolling.protect(site, server))
    finally:
        agent.end()
        print(agent.tail())
        server.stop()
        scratch.remove()


def rng_of(case: Case) -> random.Random:
    return random.Random(SEED * 1_000_003 + zlib.crc32(case.name.encode()))


@pytest.mark.parametrize("case", [*TRAPS, *STOPS], ids=lambda case: case.name)
def test_trap(column: Column, case: Case) -> None:
    there = case.on(column.kind.name)
    if there is None:
        pytest.skip(f"{column.kind.name} has nothing of the kind")
    if there.stops:
        _stops(column, there)
        return
    with column.case() as rolling:
        refused = walking.Walk(there, rolling, rng_of(case)).run()
    assert there.sometimes or bool(refused) == bool(there.refused)


def _stops(column: Column, case: Case) -> None:
    with column.case() as rolling:
        walking.stop(case, rolling, rng_of(case))
        changed = await_state(rolling.settings, "stopped")
        (problem,) = changed.problems
        assert problem.code in case.stops
        assert problem.hint
    column.again()


def test_types(column: Column) -> None:
    """Every value of every type in, all out again, in again; then a walk with writes in between."""
    with column.case() as rolling:
        _walk_types(rolling, random.Random(SEED))


def _walk_types(rolling: Rolling, rng: random.Random) -> None:
    server = rolling.server
    tables = zoo.zoo(zoo.Server.of(server.execute("select version()")[0][0]))
    with closing(server.connect()) as admin, closing(server.connect()) as user:
        for statement in zoo.statements(tables):
            zoo.run(admin, statement)
        states = {rolling.head(): zoo.digests(admin, tables)}
        load = zoo.Load(user, rng, tables)
        for _ in load.fill():
            pass
        states[rolling.head()] = zoo.digests(admin, tables)
        empty, full = states
        for target in (empty, full, None, None):
            planned = walking.plan(rolling, "rollback", rng.choice(list(states)) if target is None else target)
            if {o.code for o in planned.obstacles} != {"nothing-to-do"}:
                assert planned.obstacles == ()
                rolling.run(planned)
                assert zoo.digests(admin, tables) == states[planned.target_ordinal]
                states[rolling.head()] = states[planned.target_ordinal]
            for _ in range(8):
                load.transaction()
            states[rolling.head()] = zoo.digests(admin, tables)


def test_a_rollback_while_a_transaction_stays_prepared(column: Column) -> None:
    """It is no step, though the source counts it: capture has it behind it once there is another step, and not before."""
    rolling = column.rolling
    server = rolling.server
    server.execute(
        "create database m_prepared",
        "create table m_prepared.t (id int primary key, v int)",
        "create table m_prepared.other (id int primary key)",
        "insert into m_prepared.t values (1, 1)",
    )
    start = rolling.head()
    server.execute("update m_prepared.t set v = 2", "insert into m_prepared.t values (2, 2)")
    after = rolling.head()
    with closing(server.connect(database="m_prepared")) as user, user.cursor() as cursor:
        cursor.execute("xa start 'stays'")
        cursor.execute("insert into other values (1)")
        cursor.execute("xa end 'stays'")
        planned = walking.plan(rolling, "rollback", start)
        cursor.execute("xa prepare 'stays'")  # the newest thing in the source's log
        rolling.run(planned)
        assert server.execute("select * from m_prepared.t") == [(1, 1)]
        rolling.run(walking.plan(rolling, "forward", after))
        assert server.execute("select id, v from m_prepared.t order by id") == [(1, 2), (2, 2)]
        cursor.execute("xa commit 'stays'")
    rolling.run(walking.plan(rolling, "rollback", after))
    assert server.execute("select count(*) from m_prepared.other") == [(0,)]


def test_the_page_says_what_is_run_here() -> None:
    assert PAGE.read_text() == page(), "python -P -m tests.matrix.table"


@pytest.mark.parametrize("test", [t for _, _, tests in ELSEWHERE for t in tests])
def test_tests_that_the_page_names_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"\ndef {name}(" in (Path(__file__).parents[2] / path).read_text()
