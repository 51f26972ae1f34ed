"""Rollback plans and their states: the part of the timeline view that `rollbacks` feeds.

A source's plans and their changes share a key, so they come in order. `applied` stays: the marker makes a second run
of a plan fail, and that failure changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import kwargs_row

from projections.views.base import (
    Connection,
    Cursor,
    canonical,
    clock,
    dump_problems,
    dump_ranges,
    event_id,
    load_problems,
    load_ranges,
    text,
    where,
)
from streams.events import Dependant, Problem, RollbackChanged, RollbackPlanned, TableEffect
from streams.paths import Path

if TYPE_CHECKING:
    from streams.consume import Message


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, as planned, and where it stands. `state` is `planned` until a change; `ordinal`, `position` and
    `applied_rows` are those of the rollback's own step once `applied`."""

    plan: str
    source: str
    lineage: str | None
    kind: str
    target: str
    target_ordinal: int
    target_time_us: int
    head_ordinal: int
    path_before: Path
    path_after: Path
    undo: Path
    redo: Path
    steps: int
    rows: int
    payload_bytes: int
    tables: tuple[TableEffect, ...]
    obstacles: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    dependants: tuple[Dependant, ...]
    dependant_steps: int
    schema_version: bytes
    options: str
    estimate_ms: int
    digest: bytes
    planned_us: int | None
    planned_by: str
    state: str
    state_us: int
    state_by: str
    read_only_before: str
    position: str
    ordinal: int
    applied_rows: int
    problems: tuple[Problem, ...]

    @property
    def runnable(self) -> bool:
        return self.planned_us is not None and not self.obstacles and self.state in ("planned", "approved", "failed")


@dataclass(frozen=True, slots=True)
class PlanEvent:
    """One change of a plan; `state` is `planned` for the plan itself."""

    plan: str
    event: str
    hlc: int
    at_us: int
    state: str
    by: str
    position: str
    ordinal: int
    rows: int
    problems: tuple[Problem, ...]


_EVENT = """
    INSERT INTO plan_event (plan, event, hlc, at_us, state, by, position, ordinal, row_count, problems)
    VALUES (%(plan)s, %(event)s, %(hlc)s, %(at_us)s, %(state)s, %(by)s, %(position)s, %(ordinal)s, %(rows)s,
            %(problems)s)
    ON CONFLICT DO NOTHING RETURNING *
"""
_PLANNED_COLUMNS = (
    "kind", "target", "target_ordinal", "target_time_us", "head_ordinal", "path_before", "path_after", "undo", "redo",
    "steps", "row_count", "payload_bytes", "tables", "obstacles", "warnings", "dependants",
    "dependant_steps", "schema_version", "options",
    "estimate_ms", "digest", "planned_us", "planned_by",
)  # fmt: skip
_PLANNED = sql.SQL(
    """
    INSERT INTO plan AS p (plan, source, lineage, {columns}) VALUES (%(plan)s, %(source)s, %(lineage)s, {values})
    ON CONFLICT (plan) DO UPDATE SET lineage = excluded.lineage, {updates} WHERE p.planned_us IS NULL
    """
).format(
    columns=sql.SQL(", ").join(map(sql.Identifier, _PLANNED_COLUMNS)),
    values=sql.SQL(", ").join(map(sql.Placeholder, _PLANNED_COLUMNS)),
    updates=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in _PLANNED_COLUMNS),
)
_CHANGED = f"""
WITH new AS ({_EVENT})
INSERT INTO plan AS p (plan, source, lineage, state, state_us, state_by, read_only_before, position, ordinal,
                       applied_rows, problems)
SELECT plan, %(source)s::text, %(lineage)s::text, state, at_us, by, %(read_only_before)s::text, position, ordinal,
       row_count, problems
FROM new
ON CONFLICT (plan) DO UPDATE SET
    state = excluded.state, state_us = excluded.state_us, state_by = excluded.state_by,
    read_only_before = coalesce(nullif(excluded.read_only_before, ''), p.read_only_before),
    position = CASE excluded.position WHEN '' THEN p.position ELSE excluded.position END,
    ordinal = CASE excluded.ordinal WHEN 0 THEN p.ordinal ELSE excluded.ordinal END,
    applied_rows = CASE excluded.applied_rows WHEN 0 THEN p.applied_rows ELSE excluded.applied_rows END,
    problems = excluded.problems
WHERE p.state <> 'applied'
"""


def apply_plans(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Plans and their changes, in order."""
    for message in messages:
        match message.event:
            case RollbackPlanned() as event:
                cursor.execute(_EVENT, _planned_event(event, message))
                cursor.execute(_PLANNED, _planned(event))
            case RollbackChanged() as event:
                cursor.execute(_CHANGED, _changed(event, message))


def _planned_event(event: RollbackPlanned, message: Message) -> dict[str, Any]:
    return {
        "plan": event.plan,
        "event": event_id(message),
        "hlc": clock(message),
        "at_us": event.planned_us,
        "state": "planned",
        "by": text(event.by),
        "position": "",
        "ordinal": 0,
        "rows": event.rows,
        "problems": dump_problems(event.obstacles),
    }


def _planned(event: RollbackPlanned) -> dict[str, Any]:
    effects = [[t.schema, t.table, t.inserts, t.updates, t.deletes, t.keyed] for t in event.tables]
    return {
        "plan": event.plan,
        "source": event.source,
        "lineage": event.lineage,
        "kind": text(event.kind),
        "target": text(event.target),
        "target_ordinal": event.target_ordinal,
        "target_time_us": event.target_time_us,
        "head_ordinal": event.head_ordinal,
        "path_before": dump_ranges(event.path_before),
        "path_after": dump_ranges(event.path_after),
        "undo": dump_ranges(event.undo),
        "redo": dump_ranges(event.redo),
        "steps": event.steps,
        "row_count": event.rows,
        "payload_bytes": event.payload_bytes,
        "tables": canonical(effects),
        "obstacles": dump_problems(event.obstacles),
        "warnings": dump_problems(event.warnings),
        "dependants": canonical([[d.ordinal, [text(t) for t in d.tables], d.taken] for d in event.dependants]),
        "dependant_steps": event.dependant_steps,
        "schema_version": event.schema_version,
        "options": text(event.options),
        "estimate_ms": event.estimate_ms,
        "digest": event.digest,
        "planned_us": event.planned_us,
        "planned_by": text(event.by),
    }


def _changed(event: RollbackChanged, message: Message) -> dict[str, Any]:
    return {
        "plan": event.plan,
        "source": event.source,
        "lineage": event.lineage,
        "event": event_id(message),
        "hlc": clock(message),
        "at_us": event.at_us,
        "state": text(event.state),
        "by": text(event.by),
        "read_only_before": text(event.read_only_before),
        "position": text(event.position),
        "ordinal": event.ordinal,
        "rows": event.rows,
        "problems": dump_problems(event.problems),
    }


# --- queries --------------------------------------------------------------------------------------------------------


def _plan(*, row_count: int, **row: Any) -> Plan:
    for name in ("path_before", "path_after", "undo", "redo"):
        row[name] = load_ranges(row[name])
    for name in ("obstacles", "warnings", "problems"):
        row[name] = load_problems(row[name])
    tables = tuple(TableEffect(*t) for t in json.loads(row["tables"]))
    dependants = tuple(Dependant(o, tuple(names), taken) for o, names, taken in json.loads(row["dependants"]))
    return Plan(**row | {"tables": tables, "dependants": dependants, "rows": row_count})


def _plan_event(*, row_count: int, **row: Any) -> PlanEvent:
    return PlanEvent(**row | {"problems": load_problems(row["problems"]), "rows": row_count})


def plan(conn: Connection, plan_id: str) -> Plan | None:
    with conn.cursor(row_factory=kwargs_row(_plan)) as cur:
        return cur.execute("SELECT * FROM plan WHERE plan = %s", (plan_id,)).fetchone()


def plans(
    conn: Connection,
    *,
    source: str | None = None,
    state: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[Plan]:
    """Newest first (ids are UUIDv7, so by id); `before` is the id that the page before ended with."""
    condition, values = where(("source = %s", source), ("state = %s", state), ("plan < %s", before))
    query = sql.SQL("SELECT * FROM plan {} ORDER BY plan DESC LIMIT %s").format(condition)
    with conn.cursor(row_factory=kwargs_row(_plan)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()


def plan_events(conn: Connection, plan_id: str) -> list[PlanEvent]:
    """A plan's changes, in order."""
    with conn.cursor(row_factory=kwargs_row(_plan_event)) as cur:
        return cur.execute("SELECT * FROM plan_event WHERE plan = %s ORDER BY hlc, event", (plan_id,)).fetchall()
