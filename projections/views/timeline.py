"""Timelines: granules with their tables and keys, steps worth knowing of, totals, and the rollback plans that bend the path.

One row a granule (at most 4,096 steps), so ten million steps are some 2,500 rows and every question here is an index
scan. What is not in a closed granule yet is in the tail of `capture.<source>`; this view knows nothing of it, nor of
what a step holds.

A source's granules come in order, and so do its plans, but the two are on different topics: a rollback's marker may be
known before its plan (`turns` then says so rather than give a wrong path).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from projections.errors import ProjectionError
from projections.views.base import Connection, Cursor, load_ranges
from projections.views.granule_rows import apply_granules
from projections.views.granules import (
    Granule,
    Landmark,
    TableTotal,
    Totals,
    conflicts,
    granule_at_time,
    granule_of,
    granules,
    granules_before,
    granules_between,
    granules_touching,
    granules_with_gtid,
    head,
    landmarks,
    lineages,
    own_ordinals,
    tables_of,
    totals,
)
from projections.views.key_runs import Covered, apply_keys, covered, dense_ranges, key_shapes, key_steps
from projections.views.plans import Plan, PlanEvent, apply_plans, plan, plan_events, plans
from streams.events import GranuleClosed, GranuleKeys, RollbackChanged, RollbackPlanned
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


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Granules seen for the first time, their keys, then plans. A granule seen again is left; one that differs is noted as a
    conflict."""
    apply_granules(cursor, [m.event for m in messages if isinstance(m.event, GranuleClosed)])
    apply_keys(cursor, [m.event for m in messages if isinstance(m.event, GranuleKeys)])
    apply_plans(cursor, [m for m in messages if isinstance(m.event, RollbackPlanned | RollbackChanged)])


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
