"""The key index, part of the timeline view: which steps wrote a key, as merged runs (`streams.key_runs`).

Runs of a lineage come in order, since its granules do, and one that overlaps what is there was said twice. Sixteen of a level
become one of the next in the transaction that adds the sixteenth: which runs there are depends on how many granules came and
on nothing else, so a rebuild has the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from projections.views.base import Connection, Cursor, canonical, text
from streams.events import GranuleKeys
from streams.key_runs import ENTRY, FAN_IN, LEVELS, Run, due, fan_of, merge, steps_in


@dataclass(frozen=True, slots=True)
class Covered:
    """Steps `first..last` of which the keys are indexed."""

    first: int
    last: int


def apply_keys(cursor: Cursor, events: Sequence[GranuleKeys]) -> None:
    waiting: dict[tuple[str, str], tuple[int, list[int]]] = {}
    for event in events:
        name = (event.source, event.lineage or "")
        known = waiting.get(name)
        if known is None:
            known = _standing(cursor, name)
        upto, levels = known
        if event.first_ordinal > upto:
            _shapes(cursor, event)
            _insert(cursor, name, 0, Run(event.first_ordinal, event.last_ordinal, 1, event.entries))
            levels[0] += 1
            while (level := due(levels)) is not None:
                _merge(cursor, name, level)
                levels[level] = 0
                levels[level + 1] += 1
            known = (event.last_ordinal, levels)
        waiting[name] = known


def _standing(cursor: Cursor, name: tuple[str, str]) -> tuple[int, list[int]]:
    """The last step covered, and how many runs of each level there are."""
    levels, upto = [0] * (LEVELS + 1), 0
    rows = cursor.execute(
        "SELECT level, count(*), max(last_ordinal) FROM key_run WHERE source = %s AND lineage = %s GROUP BY level", name
    ).fetchall()
    for level, count, last in rows:
        levels[level] = count
        upto = max(upto, last)
    return upto, levels


def _insert(cursor: Cursor, name: tuple[str, str], level: int, run: Run) -> None:
    cursor.execute(
        """
        INSERT INTO key_run (source, lineage, first_ordinal, last_ordinal, level, granules, fan, entries)
        VALUES (%s, %s, %s, %s, %s, %s, %b, %b)
        """,
        (*name, run.first, run.last, level, run.granules, fan_of(run.entries), run.entries),
    )


def _merge(cursor: Cursor, name: tuple[str, str], level: int) -> None:
    rows = cursor.execute(
        """
        DELETE FROM key_run WHERE source = %s AND lineage = %s AND level = %s
        RETURNING first_ordinal, last_ordinal, granules, entries
        """,
        (*name, level),
        binary=True,
    ).fetchall()
    if len(rows) != FAN_IN:
        raise AssertionError(f"{len(rows)} runs of level {level} wait to be merged")
    _insert(cursor, name, level + 1, merge(sorted((Run(*row) for row in rows), key=lambda run: run.first)))


def _shapes(cursor: Cursor, event: GranuleKeys) -> None:
    for table in event.tables:
        key = (event.source, event.lineage or "", text(table.schema), text(table.table))
        span = (event.first_ordinal, event.last_ordinal)
        cursor.execute(
            """
            INSERT INTO key_shape AS s (source, lineage, schema_name, table_name, key_columns, first_ordinal, last_ordinal)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (source, lineage, schema_name, table_name, key_columns)
            DO UPDATE SET last_ordinal = greatest(s.last_ordinal, excluded.last_ordinal)
            """,
            (*key, canonical([text(c) for c in table.columns]), *span),
        )
        if table.dense:
            cursor.execute(
                """
                INSERT INTO key_dense (source, lineage, schema_name, table_name, first_ordinal, last_ordinal)
                VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
                """,
                (*key, *span),
            )


# --- queries --------------------------------------------------------------------------------------------------------


def covered(conn: Connection, source: str, lineage: str) -> Covered | None:
    """Which steps' keys are indexed; None when none are (a log from before there was an index, or nothing closed yet)."""
    row = conn.execute(
        "SELECT min(first_ordinal), max(last_ordinal) FROM key_run WHERE source = %s AND lineage = %s",
        (source, lineage),
    ).fetchone()
    return None if row is None or row[0] is None else Covered(*row)


_SLICES = """
SELECT first_ordinal, substring(entries FROM low * %(entry)s + 1 FOR (high - low) * %(entry)s)
FROM (
    SELECT first_ordinal, entries,
           ('x' || encode(substring(fan FROM %(at)s FOR 4), 'hex'))::bit(32)::int AS low,
           ('x' || encode(substring(fan FROM %(at)s + 4 FOR 4), 'hex'))::bit(32)::int AS high
    FROM key_run
    WHERE source = %(source)s AND lineage = %(lineage)s AND first_ordinal < %(before)s
    ORDER BY first_ordinal DESC LIMIT %(runs)s
) r
ORDER BY first_ordinal DESC
"""
_RUNS = 64


def key_steps(
    conn: Connection, source: str, lineage: str, hashes: Sequence[bytes], before: int, most: int | None = None
) -> list[int]:
    """Ordinals below `before` of steps that wrote a key with one of these hashes, newest first: one slice of each run.
    About `most` of them at least, if there are so many."""
    found: set[int] = set()
    below = before
    while True:
        rows = 0
        lowest = below
        for wanted in hashes:
            values = {
                "source": source, "lineage": lineage, "before": below, "entry": ENTRY, "at": wanted[0] * 4 + 1,
                "runs": _RUNS,
            }  # fmt: skip
            with conn.cursor(binary=True) as cursor:
                slices = cursor.execute(_SLICES, values).fetchall()
            rows = max(rows, len(slices))
            for first, piece in slices:
                lowest = min(lowest, first)
                found.update(o for step in steps_in(piece, wanted) if (o := first + step) < before)
        if rows < _RUNS or (most is not None and len(found) >= most):
            return sorted(found, reverse=True)
        below = lowest


def key_shapes(
    conn: Connection, source: str, lineage: str, schema: str, table: str
) -> list[tuple[tuple[str, ...], int, int]]:
    """`(key columns, first, last)`: by what the table's rows were known, and in which steps at most; oldest first."""
    rows = conn.execute(
        """
        SELECT key_columns, first_ordinal, last_ordinal FROM key_shape
        WHERE source = %s AND lineage = %s AND schema_name = %s AND table_name = %s ORDER BY first_ordinal, key_columns
        """,
        (source, lineage, text(schema), text(table)),
    ).fetchall()
    return [(tuple(json.loads(columns)), first, last) for columns, first, last in rows]


def dense_ranges(
    conn: Connection, source: str, lineage: str, schema: str, table: str, before: int
) -> list[tuple[int, int]]:
    """`(first, last)` of granules, newest first, in which any key of the table may have been written."""
    return [(row[0], row[1]) for row in conn.execute(
        """
        SELECT first_ordinal, last_ordinal FROM key_dense
        WHERE source = %s AND lineage = %s AND schema_name = %s AND table_name = %s AND first_ordinal < %s
        ORDER BY first_ordinal DESC
        """,
        (source, lineage, text(schema), text(table), before),
    ).fetchall()]  # fmt: skip
