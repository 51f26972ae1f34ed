"""The type zoo on MariaDB, byte for byte: decoded, rolled back, redone, walked through at random.

The log is the server's own binlog (`tests.stand_ins.rollback_bench`); the matrix does the same through Kafka.
"""

from __future__ import annotations

import contextlib
import random

import pytest

from deploy.demo.mariadb import MariaDB
from tests.matrix import types as zoo
from tests.stand_ins.rollback_bench import RollbackBench


@pytest.mark.parametrize("mariadb", ["10.11", "11.4"], indirect=True)
def test_every_value_goes_back_and_forth(mariadb: MariaDB) -> None:
    """All values in, all out again, all in again; then a random walk with writes in between."""
    tables = zoo.zoo(zoo.Server.of(mariadb.execute("SELECT VERSION()")[0][0]))
    rng = random.Random(7)
    with contextlib.closing(RollbackBench(mariadb, zoo.statements(tables))) as bench:
        load = zoo.Load(mariadb.connect(), rng, tables)
        states = {0: _contents(bench, tables)}
        for _ in load.fill():
            states[bench.head()] = _contents(bench, tables)
        full = bench.head()
        assert all(states[full].values())

        def go(target: int) -> None:
            plan = bench.plan("rollback" if target < bench.head() else "forward", target)
            assert plan.event.obstacles == (), plan.event.obstacles
            outcome = bench.run(plan)
            found = _contents(bench, tables)
            different = [name for name in found if found[name] != states[target][name]]
            assert not different, {name: (found[name], states[target][name]) for name in different[:1]}
            states[outcome.ordinal] = found

        go(0)
        go(full)
        for _ in range(6):
            for _ in range(10):
                load.transaction()
                states[bench.head()] = _contents(bench, tables)
            standing = [o for r in bench.path() for o in range(r.first, r.last + 1) if o in states]
            go(rng.choice(standing[-25:]))


def _contents(bench: RollbackBench, tables: tuple[zoo.Table, ...]) -> dict[str, list[tuple[object, ...]]]:
    return {table.name: zoo.contents(bench.admin, table) for table in tables}
