"""The key index in PostgreSQL: keys are found in whatever run they are by now, and the same runs come of any batches."""

from __future__ import annotations

import random

from projections.database import Connection
from projections.digest import digest
from projections.views import VIEWS, timeline
from streams.events import GranuleKeys, KeyedTable
from streams.key_runs import FAN_IN, run_of
from tests.unit.projections.conftest import Feed

LINEAGE = "11111111-0000-7000-8000-000000000000"
GRANULES = FAN_IN * FAN_IN + FAN_IN + 3
STEPS = 10


def history(seed: int, count: int = GRANULES) -> tuple[list[GranuleKeys], dict[bytes, list[int]]]:
    """Neighbouring key runs over a few keys, and the steps of each."""
    rng = random.Random(seed)
    pool = [rng.randbytes(8) for _ in range(40)]
    where: dict[bytes, list[int]] = {h: [] for h in pool}
    events = []
    for number in range(count):
        first = 1 + number * STEPS
        held = {(rng.choice(pool[:-1]), rng.randrange(STEPS)) for _ in range(6)}
        for h, step in held:
            where[h].append(first + step)
        entries = run_of(h + step.to_bytes(4, "big") for h, step in held)
        tables = (KeyedTable("shop", "orders", ("id",), number % 50 == 7), KeyedTable("shop", "log", (), False))
        event = GranuleKeys(
            lineage=LINEAGE, source="shop", first_ordinal=first, last_ordinal=first + STEPS - 1, key_id="k",
            tables=tables, entries=entries,
        )  # fmt: skip
        events.append(event)
    return events, where


def levels(conn: Connection) -> list[tuple[int, int, int]]:
    return conn.execute(
        "SELECT level, count(*), sum(granules)::bigint FROM key_run GROUP BY level ORDER BY level"
    ).fetchall()


def test_a_keys_steps_are_found_whatever_was_merged(conn: Connection, feed: Feed) -> None:
    events, where = history(1)
    feed(*events[:100])
    feed(*events[100:])
    feed(events[5], events[-1])  # said twice

    assert levels(conn) == [(0, 3, 3), (1, 1, FAN_IN), (2, 1, FAN_IN * FAN_IN)]
    covered = timeline.covered(conn, "shop", LINEAGE)
    assert covered == timeline.Covered(1, GRANULES * STEPS)
    for wanted, steps in where.items():
        assert timeline.key_steps(conn, "shop", LINEAGE, [wanted], 10**9) == sorted(steps, reverse=True)
        assert timeline.key_steps(conn, "shop", LINEAGE, [wanted], 1500) == sorted(
            (s for s in steps if s < 1500), reverse=True
        )
    assert timeline.key_steps(conn, "shop", "another", [next(iter(where))], 10**9) == []
    assert timeline.key_shapes(conn, "shop", LINEAGE, "shop", "orders") == [(("id",), 1, GRANULES * STEPS)]
    assert timeline.key_shapes(conn, "shop", LINEAGE, "shop", "log") == [((), 1, GRANULES * STEPS)]
    dense = timeline.dense_ranges(conn, "shop", LINEAGE, "shop", "orders", 600)
    assert dense == [(571, 580), (71, 80)]


def test_batches_do_not_show_in_the_runs(conn: Connection, feed: Feed) -> None:
    events, _ = history(2)
    rng = random.Random(3)
    at = 0
    while at < len(events):
        size = rng.randrange(1, 60)
        feed(*events[at : at + size])
        at += size
    in_pieces = digest(conn, VIEWS["timeline"])
    conn.execute("TRUNCATE key_run, key_shape, key_dense")
    timeline.apply_keys(conn.cursor(), events)
    at_once = digest(conn, VIEWS["timeline"])
    assert in_pieces.digest == at_once.digest


def test_an_index_that_began_late_says_so(conn: Connection, feed: Feed) -> None:
    events, _ = history(4, 20)
    assert timeline.covered(conn, "shop", LINEAGE) is None
    feed(*events[7:])
    assert timeline.covered(conn, "shop", LINEAGE) == timeline.Covered(71, 200)
