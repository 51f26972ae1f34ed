"""What a closed granule becomes in the tables of the timeline view: itself, its tables and landmarks, and sums over all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from projections.views.base import Cursor, canonical, text
from streams.events import GranuleClosed

_GRANULE = """
INSERT INTO granule (source, lineage, first_ordinal, last_ordinal, epoch, first_time_us, last_time_us, captured_us,
                     first_position, last_position, first_domain, first_sequence, last_domain, last_sequence,
                     payload_bytes, events, row_count, tables, topic_id, first_offset, last_offset, digest)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING RETURNING first_ordinal
"""
_CONFLICT = """
INSERT INTO granule_conflict (source, lineage, first_ordinal, digest)
SELECT source, lineage, first_ordinal, %(digest)s::bytea FROM granule
WHERE source = %(source)s AND lineage = %(lineage)s AND first_ordinal = %(first)s AND digest <> %(digest)s
ON CONFLICT DO NOTHING
"""


def apply_granules(cursor: Cursor, closed: Sequence[GranuleClosed]) -> None:
    """Granules seen for the first time. One seen again is left; one that differs is noted as a conflict."""
    if not closed:
        return
    cursor.executemany(_GRANULE, [_granule_row(g) for g in closed], returning=True)
    new: list[GranuleClosed] = []
    again: list[GranuleClosed] = []
    for granule in closed:
        (again if cursor.fetchone() is None else new).append(granule)
        cursor.nextset()
    for g in again:
        cursor.execute(
            _CONFLICT, {"digest": g.digest, "source": g.source, "lineage": g.lineage or "", "first": g.first_ordinal}
        )
    _apply_details(cursor, new)
    _apply_totals(cursor, new)


def _apply_details(cursor: Cursor, new: Sequence[GranuleClosed]) -> None:
    tables, marks = [], []
    for g in new:
        lineage = g.lineage or ""
        for (schema, table), t in _by_table(g).items():
            tables.append((g.source, lineage, schema, table, g.first_ordinal, g.first_time_us, g.last_time_us, *t))
        numbers: dict[int, int] = defaultdict(int)
        for m in g.landmarks:
            marks.append((g.source, lineage, m.ordinal, numbers[m.ordinal], text(m.kind), text(m.text), text(m.plan)))
            numbers[m.ordinal] += 1
    if tables:
        cursor.executemany(
            """
            INSERT INTO granule_table (source, lineage, schema_name, table_name, first_ordinal, first_time_us, last_time_us,
                                       steps, inserts, updates, deletes)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            tables,
        )
    if marks:
        cursor.executemany(
            """
            INSERT INTO landmark (source, lineage, ordinal, number, kind, label, plan)
            VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
            """,
            marks,
        )


def _apply_totals(cursor: Cursor, new: Sequence[GranuleClosed]) -> None:
    tables: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0] * 5)
    whole: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 5)
    for g in new:
        lineage = g.lineage or ""
        steps = g.last_ordinal - g.first_ordinal + 1
        for i, figure in enumerate((1, steps, _rows(g), g.payload_bytes, g.events)):
            whole[g.source, lineage][i] += figure
        for (schema, table), counts in _by_table(g).items():
            for i, figure in enumerate((1, *counts)):
                tables[g.source, lineage, schema, table][i] += figure
    if whole:
        cursor.executemany(
            """
            INSERT INTO lineage_total AS t (source, lineage, granules, steps, row_count, payload_bytes, events)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (source, lineage) DO UPDATE SET
                granules = t.granules + excluded.granules, steps = t.steps + excluded.steps,
                row_count = t.row_count + excluded.row_count, payload_bytes = t.payload_bytes + excluded.payload_bytes,
                events = t.events + excluded.events
            """,
            [(*key, *sums) for key, sums in sorted(whole.items())],
        )
    if tables:
        cursor.executemany(
            """
            INSERT INTO table_total AS t (source, lineage, schema_name, table_name, granules, steps, inserts, updates,
                                          deletes)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (source, lineage, schema_name, table_name) DO UPDATE SET
                granules = t.granules + excluded.granules, steps = t.steps + excluded.steps,
                inserts = t.inserts + excluded.inserts, updates = t.updates + excluded.updates,
                deletes = t.deletes + excluded.deletes
            """,
            [(*key, *sums) for key, sums in sorted(tables.items())],
        )


def _by_table(g: GranuleClosed) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """Counts by table; should an event name a table twice, its counts add up rather than clash."""
    out: dict[tuple[str, str], tuple[int, int, int, int]] = {}
    for t in g.tables:
        key = (text(t.schema), text(t.table))
        a = out.get(key, (0, 0, 0, 0))
        out[key] = (a[0] + t.steps, a[1] + t.inserts, a[2] + t.updates, a[3] + t.deletes)
    return out


def _rows(g: GranuleClosed) -> int:
    return sum(t.inserts + t.updates + t.deletes for t in g.tables)


def _granule_row(g: GranuleClosed) -> tuple[Any, ...]:
    return (
        g.source,
        g.lineage or "",
        g.first_ordinal,
        g.last_ordinal,
        g.epoch,
        g.first_time_us,
        g.last_time_us,
        g.captured_us,
        text(g.first_position),
        text(g.last_position),
        *searched_by(g.first_position),
        *searched_by(g.last_position),
        g.payload_bytes,
        g.events,
        _rows(g),
        canonical([[schema, table, *counts] for (schema, table), counts in sorted(_by_table(g).items())]),
        text(g.topic_id),
        g.first_offset,
        g.last_offset,
        g.digest,
    )


_FILE = re.compile(r"(?:[^/]+/\d+/)?[^/:]+\.(\d{1,9}):(\d{1,12})")
_BIGINT = (1 << 63) - 1


def _digested(text: str) -> int:
    return int.from_bytes(blake3(text.encode()).digest()[:8], "big", signed=True)


def searched_by(position: str) -> tuple[int | None, int | None]:
    """What a position is searched by: a domain, and a number that ascends in it.

    MariaDB's `domain-server-sequence` says both. MySQL's `uuid[:tag]:number` numbers by server and tag; a log's
    `file.number:offset` is all one domain. What stands for these are eight bytes of a digest. Anything else is not searchable.
    """
    m = _FILE.fullmatch(position)
    if m is not None:
        return _digested("file"), min(int(m[1]) << 40 | int(m[2]), _BIGINT)
    server, _, number = position.rpartition(":")
    if server and number.isascii() and number.isdigit() and len(number) < 19:
        return _digested(server), int(number)
    parts = position.split("-")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() for p in parts):
        return None, None
    domain, sequence = int(parts[0]), int(parts[2])
    # Sequences are unsigned 64-bit; those that PostgreSQL's bigint cannot hold are never reached in practice.
    return (domain, sequence) if max(domain, sequence) < 1 << 63 else (None, None)
