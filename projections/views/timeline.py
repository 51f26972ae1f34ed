"""Timelines: granules with their tables and keys, steps worth knowing of, totals, and the rollback plans that bend the path.

One row a granule (at most 4,096 steps), so ten million steps are some 2,500 rows and every question here is an index
scan. What is not in a closed granule yet is in the tail of `capture.<source>`; this view knows nothing of it, nor of
what a step holds.

A source's granules come in order, and so do its plans, but the two are on different topics: a rollback's marker may be
known before its plan (`turns` then says so rather than give a wrong path).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from psycopg import sql
from psycopg.rows import class_row, kwargs_row

from projections.errors import ProjectionError
from projections.views.base import Connection, Cursor, canonical, load_ranges, text, where
from projections.views.key_runs import Covered, apply_keys, covered, dense_ranges, key_shapes, key_steps
from projections.views.plans import Plan, PlanEvent, apply_plans, plan, plan_events, plans
from streams.events import GranuleClosed, GranuleKeys, RollbackChanged, RollbackPlanned, TableCount
from streams.paths import Path, Turn, turn

if TYPE_CHECKING:
    from streams.consume import Message

__all__ = [
    "Covered",
    "Granule",
    "Landmark",
    "Plan",
    "PlanEvent",
    "TableTotal",
    "Totals",
    "apply",
    "apply_keys",
    "conflicts",
    "covered",
    "dense_ranges",
    "granule_at_time",
    "granule_of",
    "granules",
    "granules_before",
    "granules_between",
    "granules_touching",
    "granules_with_gtid",
    "head",
    "key_shapes",
    "key_steps",
    "landmarks",
    "lineages",
    "own_ordinals",
    "plan",
    "plan_events",
    "plans",
    "tables_of",
    "totals",
    "turns",
]

NAME = "timeline"
VERSION = 2
_GRANULE_KEY = ("source", "lineage", "first_ordinal")
TABLES: Mapping[str, tuple[str, ...]] = {
    "granule": _GRANULE_KEY,
    "granule_conflict": (*_GRANULE_KEY, "digest"),
    "granule_table": ("source", "lineage", "schema_name", "table_name", "first_ordinal"),
    "table_total": ("source", "lineage", "schema_name", "table_name"),
    "lineage_total": ("source", "lineage"),
    "landmark": ("source", "lineage", "ordinal", "number"),
    "key_run": _GRANULE_KEY,
    "key_shape": ("source", "lineage", "schema_name", "table_name", "key_columns"),
    "key_dense": ("source", "lineage", "schema_name", "table_name", "first_ordinal"),
    "plan": ("plan",),
    "plan_event": ("plan", "event"),
}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("commits", "rollbacks")


@dataclass(frozen=True, slots=True)
class Granule:
    """Steps `first_ordinal..last_ordinal`. Times in µs; `rows` inserted, updated and deleted; `tables` by name. Offsets are
    of the capture topic whose id is `topic_id`, and hold only while it has that id."""

    source: str
    lineage: str
    first_ordinal: int
    last_ordinal: int
    epoch: int
    first_time_us: int
    last_time_us: int
    captured_us: int
    first_position: str
    last_position: str
    payload_bytes: int
    events: int
    rows: int
    tables: tuple[TableCount, ...]
    topic_id: str
    first_offset: int
    last_offset: int
    digest: bytes

    @property
    def steps(self) -> int:
        return self.last_ordinal - self.first_ordinal + 1


@dataclass(frozen=True, slots=True)
class Landmark:
    """A step worth knowing of; `kind` as in `streams.events.Landmark`, `text` is DDL, `plan` the id of the rollback's
    plan."""

    ordinal: int
    kind: str
    text: str
    plan: str


@dataclass(frozen=True, slots=True)
class TableTotal:
    """What a lineage's granules hold of one table: in how many granules and steps, and rows."""

    schema: str
    table: str
    granules: int
    steps: int
    inserts: int
    updates: int
    deletes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What a lineage's granules hold; `last_ordinal` is the newest step indexed, times are of the first and last
    step."""

    granules: int
    steps: int
    rows: int
    payload_bytes: int
    events: int
    first_ordinal: int
    last_ordinal: int
    first_time_us: int
    last_time_us: int
    tables: tuple[TableTotal, ...]


# --- apply ----------------------------------------------------------------------------------------------------------


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Granules seen for the first time, their keys, then plans. A granule seen again is left; one that differs is noted as a
    conflict."""
    _apply_granules(cursor, [m.event for m in messages if isinstance(m.event, GranuleClosed)])
    apply_keys(cursor, [m.event for m in messages if isinstance(m.event, GranuleKeys)])
    apply_plans(cursor, [m for m in messages if isinstance(m.event, RollbackPlanned | RollbackChanged)])


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


def _apply_granules(cursor: Cursor, closed: Sequence[GranuleClosed]) -> None:
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
        *_gtid(g.first_position),
        *_gtid(g.last_position),
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


def _gtid(position: str) -> tuple[int | None, int | None]:
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


# --- queries --------------------------------------------------------------------------------------------------------

_COLUMNS = sql.SQL(
    "g.source, g.lineage, g.first_ordinal, g.last_ordinal, g.epoch, g.first_time_us, g.last_time_us, g.captured_us, "
    "g.first_position, g.last_position, g.payload_bytes, g.events, g.row_count AS rows, g.tables, g.topic_id, "
    "g.first_offset, g.last_offset, g.digest"
)


def _granule(**row: Any) -> Granule:
    return Granule(**row | {"tables": tuple(TableCount(*t) for t in json.loads(row["tables"]))})


def granules(
    conn: Connection,
    source: str,
    lineage: str,
    *,
    before: int | None = None,
    table: tuple[str, str] | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
    limit: int = 100,
) -> list[Granule]:
    """Granules, newest first, that hold a step with ordinal < `before`, touch `table` (schema, name), and whose steps'
    times overlap `since_us..until_us` (both included). All filters together."""
    condition, values = where(
        ("source = %s", source),
        ("lineage = %s", lineage),
        ("(schema_name, table_name) = (%s, %s)", table),
        ("first_ordinal < %s", before),
        ("last_time_us >= %s", since_us),
        ("first_time_us <= %s", until_us),
    )
    # Both are backward scans of a primary key that end at the limit, whatever the planner knows of the tables.
    if table is None:
        query = sql.SQL("SELECT {} FROM granule g {} ORDER BY first_ordinal DESC LIMIT %s").format(_COLUMNS, condition)
    else:
        query = sql.SQL(
            """
            WITH found AS MATERIALIZED (
                SELECT source, lineage, first_ordinal FROM granule_table {} ORDER BY first_ordinal DESC LIMIT %s
            )
            SELECT {} FROM found f CROSS JOIN LATERAL (
                SELECT * FROM granule WHERE (source, lineage, first_ordinal) = (f.source, f.lineage, f.first_ordinal) LIMIT 1
            ) g
            ORDER BY g.first_ordinal DESC
            """
        ).format(condition, _COLUMNS)
    with conn.cursor(row_factory=kwargs_row(_granule)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()


def granules_before(conn: Connection, source: str, lineage: str, ordinal: int, limit: int = 100) -> list[Granule]:
    """Newest first, those that hold a step before `ordinal`."""
    return granules(conn, source, lineage, before=ordinal, limit=limit)


def granules_touching(
    conn: Connection, source: str, lineage: str, schema: str, table: str, before: int | None = None, limit: int = 100
) -> list[Granule]:
    """Newest first, those in which `schema.table` was written."""
    return granules(conn, source, lineage, table=(schema, table), before=before, limit=limit)


def granules_between(
    conn: Connection,
    source: str,
    lineage: str,
    since_us: int,
    until_us: int,
    before: int | None = None,
    limit: int = 100,
) -> list[Granule]:
    """Newest first, those whose steps' times overlap `since_us..until_us`."""
    return granules(conn, source, lineage, since_us=since_us, until_us=until_us, before=before, limit=limit)


def granule_of(conn: Connection, source: str, lineage: str, ordinal: int) -> Granule | None:
    """The granule that holds step `ordinal`; None when it is not indexed (yet)."""
    found = granules(conn, source, lineage, before=ordinal + 1, limit=1)
    return found[0] if found and found[0].last_ordinal >= ordinal else None


def head(conn: Connection, source: str, lineage: str) -> Granule | None:
    """The newest granule: what comes after its `last_ordinal` is in the capture topic only."""
    found = granules(conn, source, lineage, limit=1)
    return found[0] if found else None


def granule_at_time(conn: Connection, source: str, lineage: str, at_us: int) -> Granule | None:
    """The newest granule, in log order, that begins at or before `at_us`: the last step committed at or before that
    moment is in it, or, when it is the head, in the tail after it. None: the moment is before the first step
    indexed."""
    found = granules(conn, source, lineage, until_us=at_us, limit=1)
    return found[0] if found else None


def granules_with_gtid(conn: Connection, source: str, lineage: str, gtid: str) -> list[Granule]:
    """Granules, ascending, that may hold the step with this GTID or place in the log (`_gtid`): one, unless steps of
    several domains alternate. Empty when its domain's sequence is known to be beyond what is indexed, or `gtid` is
    none. Within a domain sequences ascend."""
    domain, sequence = _gtid(gtid)
    if domain is None:
        return []
    key = {"source": source, "lineage": lineage, "domain": domain, "sequence": sequence}
    query = sql.SQL(
        """
        SELECT {} FROM granule g
        WHERE source = %(source)s AND lineage = %(lineage)s
          -- not before the last granule that is known to begin at or before it, …
          AND first_ordinal >= coalesce((
              SELECT max(first_ordinal) FROM granule
              WHERE source = %(source)s AND lineage = %(lineage)s
                AND first_domain = %(domain)s AND first_sequence <= %(sequence)s), 0)
          -- … nor after the first that is known to end at or after it, …
          AND first_ordinal <= coalesce((
              SELECT min(first_ordinal) FROM granule
              WHERE source = %(source)s AND lineage = %(lineage)s
                AND last_domain = %(domain)s AND last_sequence >= %(sequence)s), 9223372036854775807)
          -- … nor in one whose own ends say that it is not there.
          AND (first_domain IS DISTINCT FROM %(domain)s OR first_sequence <= %(sequence)s)
          AND (last_domain IS DISTINCT FROM %(domain)s OR last_sequence >= %(sequence)s)
        ORDER BY first_ordinal
        """
    ).format(_COLUMNS)
    with conn.cursor(row_factory=kwargs_row(_granule)) as cur:
        return cur.execute(query, key).fetchall()


def tables_of(conn: Connection, granule: Granule) -> tuple[TableCount, ...]:
    """What the granule's steps did to each table, by name (it has them with it)."""
    return granule.tables


def landmarks(
    conn: Connection, source: str, lineage: str, first: int, last: int, kinds: Sequence[str] = ()
) -> list[Landmark]:
    """Steps `first..last` worth knowing of, ascending; of `kinds` only, if any are given."""
    with conn.cursor(row_factory=class_row(Landmark)) as cur:
        return cur.execute(
            """
            SELECT ordinal, kind, label AS text, plan FROM landmark
            WHERE source = %(source)s AND lineage = %(lineage)s AND ordinal BETWEEN %(first)s AND %(last)s
              AND (cardinality(%(kinds)s::text[]) = 0 OR kind = ANY(%(kinds)s))
            ORDER BY ordinal, number
            """,
            {"source": source, "lineage": lineage, "first": first, "last": last, "kinds": list(kinds)},
        ).fetchall()


def own_ordinals(conn: Connection, source: str, lineage: str, first: int, last: int) -> list[int]:
    """Steps `first..last` that are Holdfast's own (they touch schema `holdfast` alone, or are a rollback),
    ascending."""
    rows = conn.execute(
        """
        SELECT DISTINCT ordinal FROM landmark
        WHERE source = %s AND lineage = %s AND ordinal BETWEEN %s AND %s AND kind IN ('marker', 'own') ORDER BY ordinal
        """,
        (source, lineage, first, last),
    ).fetchall()
    return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class _Planned:
    """As much of a plan as `streams.paths.turn` needs."""

    plan: str
    head_ordinal: int
    path_after: Path
    options: str


def turns(conn: Connection, source: str, lineage: str) -> list[Turn]:
    """The rollbacks that happened, ascending, from markers in granules and from what the agent said it applied (sooner
    known).

    Raises `ProjectionError` (`turn-unknown`) when a step is marked with a plan that has not come (yet): without its
    path nobody can say which steps stand.
    """
    rows = conn.execute(
        """
        SELECT t.ordinal, t.plan, p.path_after, p.head_ordinal, p.options FROM (
            SELECT ordinal, plan FROM landmark
            WHERE source = %(source)s AND lineage = %(lineage)s AND kind = 'marker'
            UNION
            SELECT ordinal, plan FROM plan
            WHERE source = %(source)s AND lineage = %(lineage)s AND ordinal > 0 AND state = 'applied' AND kind <> 'undo'
        ) t LEFT JOIN plan p ON p.plan = t.plan AND p.planned_us IS NOT NULL
        ORDER BY t.ordinal
        """,
        {"source": source, "lineage": lineage},
    ).fetchall()
    out = []
    for ordinal, plan_id, path_after, head_ordinal, options in rows:
        if path_after is None:
            raise ProjectionError(
                "turn-unknown",
                f"step {ordinal} of {source} is a rollback whose plan {plan_id} is not known here",
                "try again in a moment; if it stays, `holdfast projections rebuild timeline`",
            )
        out.append(turn(_Planned(plan_id, head_ordinal, load_ranges(path_after), options), ordinal))
    return out


def totals(conn: Connection, source: str, lineage: str) -> Totals | None:
    """Sums over a lineage's granules and by table; None when nothing is indexed."""
    with conn.cursor(row_factory=class_row(TableTotal)) as cur:
        tables = cur.execute(
            """
            SELECT schema_name AS schema, table_name AS table, granules, steps, inserts, updates, deletes
            FROM table_total WHERE source = %s AND lineage = %s ORDER BY schema_name, table_name
            """,
            (source, lineage),
        ).fetchall()

    def build(**row: Any) -> Totals:
        return Totals(**row, tables=tuple(tables))

    with conn.cursor(row_factory=kwargs_row(build)) as whole:
        return whole.execute(
            """
            SELECT t.granules, t.steps, t.row_count AS rows, t.payload_bytes, t.events,
                   a.first_ordinal, b.last_ordinal, a.first_time_us, b.last_time_us
            FROM lineage_total t,
                 LATERAL (SELECT * FROM granule g WHERE g.source = t.source AND g.lineage = t.lineage
                          ORDER BY first_ordinal LIMIT 1) a,
                 LATERAL (SELECT * FROM granule g WHERE g.source = t.source AND g.lineage = t.lineage
                          ORDER BY first_ordinal DESC LIMIT 1) b
            WHERE t.source = %s AND t.lineage = %s
            """,
            (source, lineage),
        ).fetchone()


def lineages(conn: Connection, source: str) -> list[str]:
    """Lineages of which something is indexed, the one with the newest step first."""
    rows = conn.execute(
        "SELECT lineage FROM granule WHERE source = %s GROUP BY lineage ORDER BY max(captured_us) DESC, lineage DESC",
        (source,),
    ).fetchall()
    return [row[0] for row in rows]


def conflicts(conn: Connection, source: str) -> list[tuple[str, int]]:
    """`(lineage, first_ordinal)` where two different granules claim to start: the index is not to be trusted there."""
    rows = conn.execute(
        "SELECT DISTINCT lineage, first_ordinal FROM granule_conflict WHERE source = %s ORDER BY 1, 2", (source,)
    ).fetchall()
    return [(row[0], row[1]) for row in rows]
