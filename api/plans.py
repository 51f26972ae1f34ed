"""Rollback plans as they are now: from the read model, and from what the log says beyond it."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from api import shapes
from api.errors import not_found
from api.live import Live
from projections.errors import ProjectionError
from projections.views import timeline as view
from projections.views.base import Connection
from projections.views.timeline import Plan
from streams.events import RollbackChanged


def with_live(live: Live, plan: str, row: Plan | None) -> Plan | None:
    """`row` after the changes that came by in the log; a plan that the read model does not know yet, from its event."""
    found = live.plan(plan)
    if found is None:
        return row
    if row is None or row.planned_us is None:
        if found.planned is None:
            return row
        row = shapes.planned(found.planned)
    changes: Sequence[RollbackChanged] = found.changes
    # The read model has applied a prefix of them: what is not later than its state is in it already.
    for change in changes:
        if change.at_us > row.state_us or (change.at_us == row.state_us and change.state != row.state):
            row = shapes.changed(row, change)
    return row


def plan(live: Live, conn: Connection, plan_id: str) -> Plan:
    """Raises `ApiError` 404 (`plan-unknown`)."""
    stored: Plan | None = None
    try:
        stored = view.plan(conn, plan_id)
    except (psycopg.Error, ProjectionError):
        if live.plan(plan_id) is None:
            raise
    found = with_live(live, plan_id, stored)
    if found is None or found.planned_us is None:
        raise not_found("plan", plan_id, "`holdfast rollback list SOURCE` shows them")
    return found
