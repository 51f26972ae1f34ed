"""Rollbacks: what a user asks for becomes a target, an agent makes the plan, the plan that was shown is the one that
runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api import plans, shapes
from api.calls import Call, Download, Reply
from api.commands import ask
from api.errors import ApiError
from api.routes.sources import known
from api.routes.timeline import table_of
from api.timeline import resolve, rows, targets
from api.timeline.picked import picker_of
from api.timeline.selecting import Goal, selected
from api.timeline.source import Now, Timeline, covering
from projections.views import timeline as view
from projections.views.base import Connection
from projections.views.timeline import Plan
from streams.formats.binlog.step import UNDO
from streams.formats.errors import FormatError
from streams.ids import uuid7
from streams.selection import Selection, within

_TARGETS = ("steps", "to_time", "to_position", "to_step", "plan")
_FINAL = ("applied", "chunked", "abandoned")


def plan(call: Call) -> Reply:
    body = call.body
    with call.site.views() as conn:
        source = known(call, conn)
        if source.state == "removed":
            raise ApiError(409, "source-removed", f"source {source.source!r} was removed", "its timeline can be read")
        timeline = call.site.timelines.of(source.source)
        now = timeline.now(conn)
        _check_lineage(source.source, now, body.get("lineage"))
        selection: Selection | None = None
        if body["kind"] == UNDO:
            goal, selection = selected(timeline, conn, now, body)
            found = targets.unmoved(now.history, within(selection.steps, now.history.path))
        else:
            _no_selection(body)
            goal = _goal(timeline, conn, now, body)
            found = targets.judge(now.history, goal.after, body["kind"], body["switch_branch"])
        target = timeline.one(conn, now, found.target) if found.target else None
    plan_id = uuid7()
    time_us = target.time_us if target else 0
    parameters = {
        "plan": plan_id,
        "kind": body["kind"],
        "target": goal.text,
        "target_ordinal": found.target,
        "target_time_us": time_us,
        "lineage": now.lineage,
        "head_ordinal": now.head,
        "path_before": targets.ranges(found.before),
        "path_after": targets.ranges(found.after),
        "options": {"whole_source": True, **body["options"]},
    }
    if selection is not None:
        parameters["options"] |= {"whole_source": False, "select": selection.options()}
    job = ask(call, "rollback.plan", source.source, parameters)
    shown = {
        "text": goal.text,
        "ordinal": found.target,
        "time": shapes.time(time_us),
        "position": target.position if target else "",
        "lineage": now.lineage,
        "head": now.head,
        "path_before": targets.ranges(found.before),
        "path_after": targets.ranges(found.after),
        "undo": targets.ranges(found.undo),
        "redo": targets.ranges(found.redo),
        "undone_steps": found.undone_steps,
        "redone_steps": found.redone_steps,
    }
    return Reply({"job": job, "plan": plan_id, "target": shown}, status=202, note={"job": job, "planned": plan_id})


def _check_lineage(source: str, now: Now, wanted: str | None) -> None:
    if now.lineage is None or now.head == 0:
        raise ApiError(
            409, "nothing-captured", f"nothing of {source} was captured yet", f"`holdfast source show {source}`"
        )
    if wanted is not None and wanted != now.lineage:
        raise ApiError(
            409,
            "other-lineage",
            f"{source} is in lineage {now.lineage} now: a rollback cannot go back beyond its beginning",
            "name a step of the newest lineage",
        )


def _no_selection(body: Mapping[str, Any]) -> None:
    if "select" in body or body["later"] != "refuse":
        raise ApiError(422, "selection-unexpected", "only an undo selects what to take back", "say `kind: undo`")


def _goal(timeline: Timeline, conn: Connection, now: Now, body: Mapping[str, Any]) -> Goal:
    """The one target that the body names. Raises `ApiError` 422."""
    given = [name for name in _TARGETS if body.get(name) is not None]
    if len(given) > 1:
        raise ApiError(422, "targets-clash", f"{' and '.join(given)} are different targets", "give one")
    forward = body["kind"] == "forward"
    history = now.history
    match given[0] if given else "":
        case "" if not forward:
            raise ApiError(422, "target-missing", "a rollback needs a target", "steps, to_time, to_position or to_step")
        case "":
            return Goal(targets.forward(history), "forward to before the last rollback")
        case "steps":
            steps = body["steps"]
            plural = "step" if steps == 1 else "steps"
            if forward:
                return Goal(targets.forward(history, steps), f"{steps} {plural} forward")
            return Goal(targets.back(history, steps), f"{steps} {plural} back")
        case "plan" if not forward:
            raise ApiError(422, "target-invalid", "only a way forward takes a rollback back", "say `kind: forward`")
        case "plan":
            return Goal(targets.before_plan(history, body["plan"]), f"to before rollback {body['plan']}")
        case "to_step":
            ordinal = body["to_step"]
            text = f"to step {ordinal}" if ordinal else "to the baseline"
            return Goal(targets.state_after(history, ordinal), text)
        case "to_time":
            at_us = shapes.microseconds(body["to_time"])
            ordinal = resolve.at_time(timeline, conn, now, at_us)
            return Goal(targets.state_after(history, ordinal), f"to {shapes.time(at_us)}")
        case _:
            position = body["to_position"]
            ordinal = resolve.at_position(timeline, conn, now, position)
            return Goal(targets.state_after(history, ordinal), f"to {position}")


def list_all(call: Call) -> Reply:
    p = call.parameters
    with call.site.views() as conn:
        source = known(call, conn).source
        call.site.catch_up(conn, "timeline", "rollbacks", source)
        found = view.plans(conn, source=source, before=p["before"], limit=p["limit"])
    items = [shapes.plan(plans.with_live(call.site.live, row.plan, row) or row) for row in found]
    return Reply({"items": items, "next": found[-1].plan if len(found) == p["limit"] else None})


def show(call: Call) -> Reply:
    return Reply(shapes.plan(_plan(call)))


def _plan(call: Call) -> Plan:
    with call.site.views() as conn:
        return plans.plan(call.site.live, conn, call.text("plan"))


def preview(call: Call) -> Reply:
    p = call.parameters
    found = _plan(call)
    timeline, definitions = call.site.timelines.of(found.source), call.site.definitions(found.source)
    picker = picker_of(found, definitions)
    try:
        shown = rows.preview(
            timeline,
            definitions,
            found.lineage or "",
            found.undo,
            found.redo,
            limit=p["limit"],
            table=table_of(p["table"]),
            picker=picker,
        )
    except FormatError as error:
        raise ApiError(422, error.code, f"the plan's rows cannot be shown: {error.message}", error.hint) from error
    body = {"plan": found.plan, "tables": shown.tables, "looked_at": shown.looked_at, "steps": shown.steps}
    return Reply(body)


def sql(call: Call) -> Download:
    found = _plan(call)
    touched = [*found.undo, *found.redo]
    picker = picker_of(found, call.site.definitions(found.source))
    if picker is not None and not picker.exact:
        raise ApiError(
            422,
            "too-many-dependants",
            f"{found.dependant_steps} steps depend on this undo, too many to be written as SQL",
            "select less",
        )
    granules: list[view.Granule] = []
    with call.site.views() as conn:
        for r in touched:
            granules += covering(conn, found.source, found.lineage or "", r.first, r.last)
    granules = sorted(set(granules), key=lambda g: g.first_ordinal)
    head = [
        f"Plan {found.plan} of source {found.source}: {found.target}",
        f"digest {found.digest.hex()}",
        "",
        "For review. What `holdfast rollback run` does is the plan itself, behind a guard that compares every row first;",
        "these statements find rows by their values and pass over what has changed since.",
    ]
    if picker is not None and found.dependants:
        head.append(f"{found.dependant_steps} later steps depend on what is undone: {picker.selection.later}.")
    timeline, definitions = call.site.timelines.of(found.source), call.site.definitions(found.source)
    chunks = rows.sql(timeline, definitions, found.lineage or "", found.undo, found.redo, granules, head, picker)
    return Download(chunks, "application/sql", f"{found.source}-{found.plan}.sql")


def run(call: Call) -> Reply:
    """The digest must be that of the plan as it was shown; obstacles and a plan that was run already are refused here,
    what only the source shows is found by the agent."""
    found = _plan(call)
    _same_digest(call, found)
    _runnable(found)
    _approved(call, found)
    if call.body["dry_run"]:
        with call.site.views() as conn:
            now = call.site.timelines.of(found.source).now(conn)
        _still_now(found, now)
        return Reply(shapes.plan(found), note={"source": found.source})
    parameters = {"plan": found.plan, "digest": found.digest.hex()}
    if call.body["without_replicas"]:
        parameters["without_replicas"] = call.body["without_replicas"]
    job = ask(call, "rollback.run", found.source, parameters)
    return Reply({"job": job}, status=202, note={"job": job, "source": found.source})


def _runnable(found: Plan) -> None:
    if found.state in _FINAL:
        raise ApiError(
            409, f"plan-{found.state}", f"this plan was {found.state} already", f"make another: {_again(found)}"
        )
    if found.state not in ("planned", "approved", "failed"):
        raise ApiError(409, "plan-running", f"this plan is {found.state} just now", "`holdfast job list` shows it")
    if found.obstacles:
        raise ApiError(
            409,
            "plan-not-runnable",
            f"{len(found.obstacles)} obstacles stand in the way of this plan: {found.obstacles[0].message}",
            found.obstacles[0].hint,
            problems=found.obstacles,
        )


def _same_digest(call: Call, found: Plan) -> None:
    if call.body["digest"] != found.digest.hex():
        raise ApiError(
            409,
            "digest-differs",
            "that is not the digest of this plan: what would run is not what was shown",
            f"look at it again: `holdfast rollback show {found.plan}`",
        )


def _approved(call: Call, found: Plan) -> None:
    """Whether somebody else approved a plan that needs it. The agent looks for that itself; this is to say so at once."""
    if not shapes.json_object(found.options).get("approval"):
        return
    live = call.site.live.plan(found.plan)
    by = {change.by for change in live.changes if change.state == "approved"} if live is not None else set()
    with call.site.views() as conn:
        by |= {event.by for event in view.plan_events(conn, found.plan) if event.state == "approved"}
    if not any(_other(name, found.planned_by) and _other(name, call.actor) for name in by):
        raise ApiError(
            409,
            "approval-missing",
            f"this plan needs the approval of somebody else than {found.planned_by} and {call.actor}",
            f"have them look at it and say `holdfast rollback approve {found.plan}`",
        )


def _other(one: str, other: str) -> bool:
    return one.strip().casefold() != other.strip().casefold()


def approve(call: Call) -> Reply:
    """The digest is that of the plan as it was shown to who approves; whoever planned it cannot."""
    found = _plan(call)
    _same_digest(call, found)
    _runnable(found)
    if not _other(call.actor, found.planned_by):
        raise ApiError(
            409,
            "approval-own",
            f"{found.planned_by} planned this and cannot approve it",
            "somebody else must look at it",
        )
    job = ask(call, "rollback.approve", found.source, {"plan": found.plan, "digest": found.digest.hex()})
    return Reply({"job": job}, status=202, note={"job": job, "source": found.source})


def _still_now(found: Plan, now: Now) -> None:
    """A plan leads from one state: from another it does not. Where others may go on writing, what came since is no other
    state; whether it touched the same rows is found by the agent."""
    back = targets.leads(now.history, found.path_before)
    newer = back.undone_steps if shapes.json_object(found.options).get("whole_source", True) else 0
    if now.lineage != found.lineage or newer or back.redone_steps:
        raise ApiError(
            409,
            "plan-outdated",
            f"{found.source} has moved on since this plan was made",
            f"make another: {_again(found)}",
        )


def _again(found: Plan) -> str:
    command = {"forward": "forward", UNDO: "undo"}.get(found.kind, "plan")
    return f"`holdfast rollback {command} {found.source} …`"


def abandon(call: Call) -> Reply:
    found = _plan(call)
    if found.state in _FINAL:
        raise ApiError(409, f"plan-{found.state}", f"this plan was {found.state} already")
    job = ask(call, "rollback.abandon", found.source, {"plan": found.plan})
    return Reply({"job": job}, status=202, note={"job": job, "source": found.source})
