"""Random walks through a timeline with everything real: agent, capture, Kafka, the server. N back, M forward, writes in
between; after each, every table's checksum is the one recorded at that step."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator

import pytest

from deploy.demo.server import DatabaseServer
from streams.settings import Settings
from tests.stack.agent import AgentProcess
from tests.stack.rolling import Rolling
from tests.stack.servers import DATABASES
from tests.stand_ins import walk_load

pytestmark = pytest.mark.e2e

SEEDS = [int(s) for s in os.environ.get("HOLDFAST_WALK_SEEDS", "101,102").split(",")]


@pytest.fixture
def agent(fresh_site: Settings) -> Iterator[AgentProcess]:
    process = AgentProcess(fresh_site)
    process.start()
    try:
        yield process
    finally:
        process.end()
        print(process.tail())


# Another way on the newest of each family only: the matrix walks on all of them as well.
WALKS = [(name, seed) for name in DATABASES for seed in SEEDS[: None if name in ("mariadb-11.4", "mysql-9") else 1]]


@pytest.mark.parametrize(("name", "seed"), WALKS)
def test_every_state_that_was_is_reached_again(
    agent: AgentProcess, databases: Callable[[str], DatabaseServer], name: str, seed: int
) -> None:
    server = databases(name)
    rng = random.Random(seed)
    admin = server.connect()
    with admin.cursor() as cursor:
        for statement in walk_load.statements(name):
            cursor.execute(statement)
    rolling = Rolling.protect(agent.settings, server)
    load = walk_load.Load(server.connect(), rng)
    recorded = {0: walk_load.digests(admin)}

    def write(transactions: int) -> None:
        for _ in range(transactions):
            load.transaction()
            recorded[rolling.head()] = walk_load.digests(admin)

    write(20)
    for turn in range(8):
        users = rolling.users()
        if users and rng.random() < 0.6:
            planned = rolling.back(rng.randint(1, min(len(users), 15)))
        else:
            planned = rolling.plan("forward", rng.choice(sorted(recorded)))
        if [o.code for o in planned.obstacles] == ["nothing-to-do"]:
            continue
        assert planned.obstacles == ()
        result = json.loads(rolling.run(planned).result)
        found = walk_load.digests(admin)
        assert found == recorded[planned.target_ordinal], f"turn {turn}: {planned.undo} {planned.redo}"
        assert result["rows"] == planned.rows
        assert result["ordinal"] == rolling.head()
        recorded[result["ordinal"]] = found
        assert rolling.states(planned) == ["confirmed", "fenced", "applying", "applied"]
        assert rolling.read_only() == 0
        assert rolling.leftovers() == []
        if rng.random() < 0.6:
            write(rng.randint(1, 6))
    admin.close()
