"""Jobs: requested work and what became of it, as it is and as it goes on; and what may be asked of one: to end, to come sooner.

Asking is an event of the job itself (`streams.job_states`), so its order among the job's other events decides what comes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import psycopg

from api import rebuilds, shapes
from api.calls import Call, Events, Reply, ServerEvent
from api.errors import ApiError, not_found
from api.live import Seen
from projections.errors import ProjectionError
from projections.views import jobs
from streams.events import JobChanged
from streams.ids import now_us


@dataclass(frozen=True, slots=True)
class Past:
    """A job so far: what it was before its changes, and those, in order, each with its `ce_id`."""

    start: jobs.Job
    changes: Sequence[tuple[str, jobs.Change]]

    def now(self) -> jobs.Job:
        state = self.start
        for _, change in self.changes:
            state = jobs.changed(state, change)
        return state


def past(call: Call, job: str) -> Past:
    """From the read model and from what the log says beyond it. Raises `ApiError` 404 (`job-unknown`)."""
    live = call.site.live.job(job)
    row: jobs.Job | None = None
    stored: list[jobs.JobEvent] = []
    try:
        with call.site.views() as conn:
            row = jobs.job(conn, job)
            stored = jobs.events(conn, job)
    except (psycopg.Error, ProjectionError):
        if live is None:
            raise
    if row is None and live is None:
        raise not_found("job", job, "`holdfast job list` shows them")
    ids = {e.event for e in stored}
    changes: list[tuple[str, jobs.Change]] = [(e.event, e) for e in stored]
    if live is not None:
        changes += [(s.id, s.event) for s in live.events if s.id not in ids and isinstance(s.event, JobChanged)]
    command = live.command if live is not None else None
    if row is not None:
        start = jobs.Job(
            row.job,
            row.kind,
            row.asset,
            row.requester,
            row.requested_us,
            row.deadline_us,
            row.parameters,
            row.node,
            row.asked_priority,
        )
    elif command is not None:
        start = jobs.Job(
            job,
            command.kind,
            command.asset,
            command.requester,
            command.requested_us,
            command.deadline_us,
            command.parameters,
            command.node,
            command.priority,
        )
    else:
        assert live is not None
        first = live.events[0].event
        assert isinstance(first, JobChanged)
        start = jobs.Job(job, first.kind, first.asset)
    return Past(start, changes)


def show(call: Call) -> Reply:
    found = past(call, call.text("job")).now()
    out = shapes.job(found)
    if call.who is not None and call.who.role != "viewer":  # they may hold values of rows, such as keys to be undone
        out["parameters"] = shapes.json_object(found.parameters)
    return Reply(out)


def cancel(call: Call) -> Reply:
    """Ask that a job ends. What waits and was never begun has ended by that; else its holder ends it."""
    found = _open(call)
    _say(call, found, "cancel_asked")
    return Reply({"job": found.job}, status=202, about=found.asset, note={"job": found.job})


def prioritise(call: Call) -> Reply:
    found, priority = _open(call), int(call.body["priority"])
    _say(call, found, "prioritised", priority=priority)
    note = {"job": found.job, "priority": priority}
    return Reply({"job": found.job}, status=202, about=found.asset, note=note)


def _open(call: Call) -> jobs.Job:
    """A job that has not ended, as far as is known. Raises `ApiError` 409 (`job-ended`, `job-unattended`)."""
    found = past(call, call.text("job")).now()
    if found.final:
        raise ApiError(
            409,
            "job-ended",
            f"job {found.job} has {found.state if found.state != 'cancelled' else 'been cancelled'} already",
            f"`holdfast job show {found.job}`",
        )
    if found.kind == rebuilds.KIND:
        raise ApiError(
            409,
            "job-unattended",
            f"a {found.kind} is the API's own work, which nobody stops",
            "it changes no live view",
        )
    return found


def _say(call: Call, found: jobs.Job, state: str, priority: int = 0) -> None:
    event = JobChanged(
        job=found.job,
        kind=found.kind,
        asset=found.asset,
        state=state,
        at_us=now_us(),
        by=call.actor,
        priority=priority,
    )
    call.site.live.note(call.site.log.publish(event, correlation=found.job), event)


def list_all(call: Call) -> Reply:
    p = call.parameters
    with call.site.views() as conn:
        call.site.catch_up(conn, "jobs", "commands", "")
        call.site.catch_up(conn, "jobs", "jobs", "")
        found = jobs.jobs(
            conn,
            asset=p["asset"],
            kind=p["kind"],
            state=p["state"],
            by=p["by"],
            active=bool(p["open"]),
            before=p["before"],
            limit=p["limit"],
        )
    last = found[-1].job if len(found) == p["limit"] else None
    return Reply({"items": [shapes.job(j) for j in found], "next": last})


def events(call: Call) -> Events:
    """The whole state with every change. Whoever comes back after event X gets what came since; one that nobody knows
    any more counts as none: the present state comes first then."""
    job = call.text("job")
    past(call, job)
    seen_before = call.parameters["Last-Event-ID"]

    async def stream() -> AsyncIterator[ServerEvent]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Seen] = asyncio.Queue()
        leave = call.site.live.listen("jobs", job, lambda seen: loop.call_soon_threadsafe(queue.put_nowait, seen))
        try:
            found = await loop.run_in_executor(None, past, call, job)
            state = found.start
            ids = [number for number, _ in found.changes]
            skip = ids.index(seen_before) + 1 if seen_before in ids else 0
            if not ids and not skip:
                yield ServerEvent("job", shapes.job(state))
            for at, (number, change) in enumerate(found.changes):
                state = jobs.changed(state, change)
                # Of what is past only the newest is of use, but for warnings and whoever asks to go on.
                if at >= skip and (at == len(ids) - 1 or seen_before is not None or change.state == "warned"):
                    yield ServerEvent("job", shapes.job(state), number)
            known = set(ids)
            while not state.final:
                seen = await queue.get()
                if seen.id in known or not isinstance(seen.event, JobChanged):
                    continue
                state = jobs.changed(state, seen.event)
                yield ServerEvent("job", shapes.job(state), seen.id)
        finally:
            leave()

    return Events(stream)
