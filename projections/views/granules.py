"""Granules, landmarks and totals as the timeline view has them: what can be asked of them. Each question is an index scan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.rows import class_row, kwargs_row

from projections.views.base import Connection, where
from projections.views.granule_rows import searched_by
from streams.events import TableCount


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
    """Granules, ascending, that may hold the step with this GTID or place in the log (`searched_by`): one, unless steps of
    several domains alternate. Empty when its domain's sequence is known to be beyond what is indexed, or `gtid` is
    none. Within a domain sequences ascend."""
    domain, sequence = searched_by(gtid)
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
