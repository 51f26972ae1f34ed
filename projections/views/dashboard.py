"""Figures for people: what each source wrote, by minute and by table, and which agents are alive, by their last words.

What granules say is digested; what only `health` says is not, since `health` is kept for days. A granule's steps count
in the minute of its last step, so a source that writes little shows a granule's worth at once. Minutes are µs since
1970, divisible by 60,000,000.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import class_row, kwargs_row

from projections.views.base import Connection, Cursor, canonical, clock, event_id, text, where
from streams.events import GranuleClosed, HealthReported

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "dashboard"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {
    "dashboard_granule": ("source", "lineage", "first_ordinal"),
    "source_minute": ("source", "minute_us"),
    "dashboard_table": ("source", "schema_name", "table_name"),
}
UNDIGESTED: tuple[str, ...] = ("health_minute", "agent_health")
TOPICS = ("commits", "health")

MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Minute:
    """One source in one minute. `lag_ms` is the greatest lag reported in it, `ordinal` the newest step reported
    captured."""

    minute_us: int
    granules: int
    steps: int
    rows: int
    payload_bytes: int
    lag_ms: float | None
    ordinal: int | None


@dataclass(frozen=True, slots=True)
class TableFigures:
    """All that a source wrote into one table, over all its lineages; `last_time_us` at most a granule late."""

    schema: str
    table: str
    steps: int
    inserts: int
    updates: int
    deletes: int
    last_time_us: int


@dataclass(frozen=True, slots=True)
class AgentHealth:
    """The last heartbeat of an agent about one source."""

    agent: str
    source: str
    state: str
    at_us: int
    hlc: int
    event: str
    ordinal: int
    position: str
    figures: Mapping[str, float]


# --- apply ----------------------------------------------------------------------------------------------------------


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Sums over granules seen for the first time; for health the greatest of a minute and the last by (time, clock,
    id)."""
    _apply_granules(cursor, [m.event for m in messages if isinstance(m.event, GranuleClosed)])
    _apply_health(cursor, [m for m in messages if isinstance(m.event, HealthReported)])


def _apply_granules(cursor: Cursor, granules: Sequence[GranuleClosed]) -> None:
    minutes: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    tables: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for granule in new_granules(cursor, granules):
        rows = sum(t.inserts + t.updates + t.deletes for t in granule.tables)
        steps = granule.last_ordinal - granule.first_ordinal + 1
        minute = minutes[granule.source, granule.last_time_us - granule.last_time_us % MINUTE_US]
        for i, figure in enumerate((1, steps, rows, granule.payload_bytes)):
            minute[i] += figure
        for t in granule.tables:
            table = tables[granule.source, text(t.schema), text(t.table)]
            for i, figure in enumerate((t.steps, t.inserts, t.updates, t.deletes)):
                table[i] += figure
            table[4] = max(table[4], granule.last_time_us)
    if minutes:
        cursor.executemany(
            """
            INSERT INTO source_minute AS m (source, minute_us, granules, steps, row_count, payload_bytes)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (source, minute_us) DO UPDATE SET
                granules = m.granules + excluded.granules, steps = m.steps + excluded.steps,
                row_count = m.row_count + excluded.row_count, payload_bytes = m.payload_bytes + excluded.payload_bytes
            """,
            [(*key, *sums) for key, sums in sorted(minutes.items())],
        )
    if tables:
        cursor.executemany(
            """
            INSERT INTO dashboard_table AS t (source, schema_name, table_name, steps, inserts, updates, deletes,
                                              last_time_us)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (source, schema_name, table_name) DO UPDATE SET
                steps = t.steps + excluded.steps, inserts = t.inserts + excluded.inserts,
                updates = t.updates + excluded.updates, deletes = t.deletes + excluded.deletes,
                last_time_us = greatest(t.last_time_us, excluded.last_time_us)
            """,
            [(*key, *sums) for key, sums in sorted(tables.items())],
        )


def new_granules(cursor: Cursor, granules: Sequence[GranuleClosed]) -> list[GranuleClosed]:
    """Those of `granules` that no earlier event indexed, now noted as seen: sums must not count a granule twice."""
    if not granules:
        return []
    cursor.executemany(
        """
        INSERT INTO dashboard_granule (source, lineage, first_ordinal) VALUES (%s, %s, %s)
        ON CONFLICT DO NOTHING RETURNING first_ordinal
        """,
        [(g.source, g.lineage or "", g.first_ordinal) for g in granules],
        returning=True,
    )
    out = []
    for granule in granules:
        if cursor.fetchone() is not None:
            out.append(granule)
        cursor.nextset()
    return out


def _apply_health(cursor: Cursor, messages: Sequence[Message]) -> None:
    minutes, agents = [], []
    for message in messages:
        event = message.event
        assert isinstance(event, HealthReported)
        minutes.append(
            (event.source, event.at_us - event.at_us % MINUTE_US, event.figures.get("lag_ms"), event.ordinal),
        )
        agents.append(
            (
                text(event.agent),
                text(event.source),
                text(event.state),
                event.at_us,
                clock(message),
                event_id(message),
                event.ordinal,
                text(event.position),
                canonical(dict(event.figures)),
            )
        )
    if minutes:
        cursor.executemany(
            """
            INSERT INTO health_minute AS m (source, minute_us, lag_ms, ordinal) VALUES (%s, %s, %s, %s)
            ON CONFLICT (source, minute_us) DO UPDATE SET
                lag_ms = greatest(m.lag_ms, excluded.lag_ms), ordinal = greatest(m.ordinal, excluded.ordinal)
            """,
            minutes,
        )
        cursor.executemany(
            """
            INSERT INTO agent_health AS a (agent, source, state, at_us, hlc, event, ordinal, position, figures)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (agent, source) DO UPDATE SET
                state = excluded.state, at_us = excluded.at_us, hlc = excluded.hlc, event = excluded.event,
                ordinal = excluded.ordinal, position = excluded.position, figures = excluded.figures
            WHERE (a.at_us, a.hlc, a.event) < (excluded.at_us, excluded.hlc, excluded.event)
            """,
            agents,
        )


# --- queries --------------------------------------------------------------------------------------------------------


def _agent_health(**row: Any) -> AgentHealth:
    return AgentHealth(**row | {"figures": json.loads(row["figures"])})


def minutes(conn: Connection, source: str, since_us: int, until_us: int) -> list[Minute]:
    """The minutes that begin in `since_us <= minute_us < until_us` and of which anything is known, ascending."""
    with conn.cursor(row_factory=class_row(Minute)) as cur:
        return cur.execute(
            """
            SELECT minute_us, coalesce(m.granules, 0) AS granules, coalesce(m.steps, 0) AS steps,
                   coalesce(m.row_count, 0) AS rows, coalesce(m.payload_bytes, 0) AS payload_bytes, h.lag_ms, h.ordinal
            FROM (SELECT * FROM source_minute
                  WHERE source = %(source)s AND minute_us >= %(since)s AND minute_us < %(until)s) m
            FULL JOIN (SELECT * FROM health_minute
                       WHERE source = %(source)s AND minute_us >= %(since)s AND minute_us < %(until)s) h
                USING (minute_us)
            ORDER BY minute_us
            """,
            {"source": source, "since": since_us, "until": until_us},
        ).fetchall()


def tables(conn: Connection, source: str) -> list[TableFigures]:
    """All tables that a source ever wrote, by name."""
    with conn.cursor(row_factory=class_row(TableFigures)) as cur:
        return cur.execute(
            """
            SELECT schema_name AS schema, table_name AS table, steps, inserts, updates, deletes, last_time_us
            FROM dashboard_table WHERE source = %s ORDER BY schema_name, table_name
            """,
            (source,),
        ).fetchall()


def agents(conn: Connection, source: str | None = None) -> list[AgentHealth]:
    """The last heartbeat of every agent about every source, or about one, newest first."""
    condition, values = where(("source = %s", source))
    query = sql.SQL("SELECT * FROM agent_health {} ORDER BY at_us DESC, agent, source").format(condition)
    with conn.cursor(row_factory=kwargs_row(_agent_health)) as cur:
        return cur.execute(query, values).fetchall()
