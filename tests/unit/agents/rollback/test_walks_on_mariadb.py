"""Random walks through a timeline, on one real server and its own binlog: back, forward, writes in between."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from tests.stand_ins import walk_load
from tests.stand_ins.rollback_bench import RollbackBench

SEEDS = [int(s) for s in os.environ.get("HOLDFAST_WALK_SEEDS", "1,2,3").split(",")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", ["native", "bound"])
def test_every_state_that_was_is_reached_again(mariadb: MariaDB, method: str, seed: int) -> None:
    _walk(mariadb, walk_load.STATEMENTS, method, seed)


def test_by_bound_statements_on_mysql(databases: Callable[[str], DatabaseServer]) -> None:
    """Without JSON, which MySQL logs in a form of its own, and a plan for bound statements refuses."""
    statements = tuple(s.replace(" j json", " j text") for s in walk_load.statements("mysql-9"))
    _walk(databases("mysql-9"), statements, "bound", SEEDS[0])


def _walk(server: DatabaseServer, statements: Sequence[str], method: str, seed: int) -> None:
    """N back, M forward, writes in between: after each, every table is as it was recorded at that step.

    By bound statements no session may keep triggers from running, so the walk has none; nor is there a fence.
    """
    rng = random.Random(seed)
    native = method == "native"
    options: dict[str, Any] = {"whole_source": native, "method": method}
    bench = RollbackBench(server, [s for s in statements if native or s not in walk_load.TRIGGERS], method)
    load = walk_load.Load(server.connect(), rng)
    recorded = {0: walk_load.digests(bench.admin)}

    def write(transactions: int) -> None:
        for _ in range(transactions):
            load.transaction()
            recorded[bench.head()] = walk_load.digests(bench.admin)

    write(25)
    for turn in range(14):
        users = [o for r in bench.path() for o in range(r.first, r.last + 1) if o not in bench.own()]
        if users and rng.random() < 0.6:
            plan = bench.back(rng.randint(1, min(len(users), 20)), **options)
        else:
            plan = bench.plan("forward", rng.choice(sorted(recorded)), **options)
        if [o.code for o in plan.event.obstacles] == ["nothing-to-do"]:
            continue
        assert plan.event.obstacles == (), plan.event.obstacles
        outcome = bench.run(plan)
        found = walk_load.digests(bench.admin)
        assert found == recorded[plan.event.target_ordinal], f"turn {turn}: {plan.event.undo} {plan.event.redo}"
        recorded[outcome.ordinal] = found
        assert bench.states(plan) == ["confirmed", *(["fenced"] if native else []), "applying", "applied"]
        assert outcome.ordinal == bench.head(), "the rollback is one step, and nothing else is logged"
        assert bench.read_only() == 0
        assert bench.leftovers() == []
        if rng.random() < 0.6:
            write(rng.randint(1, 8))
    bench.close()
