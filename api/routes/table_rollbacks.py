"""One table brought back to what it was after a step: planned on a scratch copy, looked at, then exactly that runs."""

from __future__ import annotations

from api import shapes
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError, not_found
from api.routes.sources import known
from api.timeline.moments import moment
from projections.views import copies as view
from projections.views.copies import TablePlan
from streams.ids import uuid7


def plan(call: Call) -> Reply:
    body = call.body
    with call.site.views() as conn:
        at = moment(call, conn, call.text("source"), body)
    if at.source.state == "removed":
        raise ApiError(409, "source-removed", f"source {at.source.source!r} was removed", "its timeline can be read")
    plan_id = uuid7()
    parameters = {
        "plan": plan_id,
        "schema": body["schema"],
        "table": body["table"],
        "lineage": at.lineage,
        "target": f"to {at.text}",
        "target_ordinal": at.ordinal,
        "target_time_us": at.time_us,
        "head_ordinal": at.head,
    }
    job = ask(call, "rollback.table-plan", at.source.source, parameters)
    return Reply({"job": job, "plan": plan_id}, status=202, note={"job": job, "planned": plan_id})


def list_all(call: Call) -> Reply:
    with call.site.views() as conn:
        source = known(call, conn).source
        call.site.catch_up(conn, "copies", "rollbacks", source)
        found = view.table_plans(conn, source, call.parameters["limit"])
    return Reply({"items": [shapes.table_plan(p) for p in found]})


def _plan(call: Call) -> TablePlan:
    wanted = call.text("plan")
    with call.site.views() as conn:
        call.site.catch_up(conn, "copies", "rollbacks", "")
        found = view.table_plan(conn, wanted)
    if found is None:
        raise not_found("plan", wanted, "`holdfast rollback table SOURCE SCHEMA.TABLE --to …` makes one")
    return found


def show(call: Call) -> Reply:
    return Reply(shapes.table_plan(_plan(call)))


def run(call: Call) -> Reply:
    found = _plan(call)
    _as_shown(call, found)
    return _ask(call, "rollback.table-run", found)


def approve(call: Call) -> Reply:
    """The digest is that of the plan as it was shown to who approves; whoever planned it cannot. Whether a plan that runs
    has the approval that it needs, the agent looks for itself."""
    found = _plan(call)
    _as_shown(call, found)
    planner = found.facts["by"]
    if call.actor.strip().casefold() == planner.strip().casefold():
        raise ApiError(
            409, "approval-own", f"{planner} planned this and cannot approve it", "somebody else must look at it"
        )
    return _ask(call, "rollback.table-approve", found)


def _as_shown(call: Call, found: TablePlan) -> None:
    if call.body["digest"] != found.facts["digest"]:
        raise ApiError(
            409,
            "digest-differs",
            "that is not the digest of this plan: what would run is not what was shown",
            "look again",
        )
    if found.state not in ("planned", "approved", "failed"):
        raise ApiError(409, f"plan-{found.state}", f"this plan is {found.state}", "make another")
    obstacles = found.facts["obstacles"]
    if obstacles:
        raise ApiError(
            409, "plan-not-runnable", f"something stands in the way of this plan: {obstacles[0].message}",
            obstacles[0].hint, problems=obstacles,
        )  # fmt: skip


def _ask(call: Call, kind: str, found: TablePlan) -> Reply:
    job = ask(call, kind, found.source, {"plan": found.plan, "digest": found.facts["digest"]})
    return Reply({"job": job}, status=202, note={"job": job, "source": found.source})


def abandon(call: Call) -> Reply:
    found = _plan(call)
    if found.state in view.FINAL:
        raise ApiError(409, f"plan-{found.state}", f"this plan was {found.state} already")
    job = ask(call, "rollback.table-abandon", found.source, {"plan": found.plan})
    return Reply({"job": job}, status=202, note={"job": job, "source": found.source})
