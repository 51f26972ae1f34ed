"""Jobs: requested work and what became of it, as it is and as it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from api import shapes
from api.calls import Call, Events, Reply, ServerEvent
from api.errors import not_found
from api.live import Seen
from projections.errors import ProjectionError
from projections.views import jobs
from streams.events import JobChanged


@dataclass(frozen=True, slots=True)
class Past:
    """A job so far: what it was before its changes, and those, in order, each with its `ce_id`."""

    start: dict[str, Any]
    changes: Sequence[tuple[str, shapes.Change]]


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
    changes: list[tuple[str, shapes.Change]] = [(e.event, e) for e in stored]
    if live is not None:
        changes += [(s.id, s.event) for s in live.events if s.id not in ids and isinstance(s.event, JobChanged)]
    command = live.command if live is not None else None
    if row is not None:
        start = shapes.requested_job(row.job, row.kind, row.asset, row.requester, row.requested_us)
    elif command is not None:
        start = shapes.requested_job(job, command.kind, command.asset, command.requester, command.requested_us)
    else:
        assert live is not None
        first = live.events[0].event
        assert isinstance(first, JobChanged)
        start = shapes.requested_job(job, first.kind, first.asset)
    return Past(start, changes)


def show(call: Call) -> Reply:
    found = past(call, call.text("job"))
    state = found.start
    for _, change in found.changes:
        state = shapes.job_after(state, change)
    return Reply(state)


def list_all(call: Call) -> Reply:
    p = call.parameters
    with call.site.views() as conn:
        call.site.catch_up(conn, "jobs", "commands", "")
        call.site.catch_up(conn, "jobs", "jobs", "")
        found = jobs.jobs(conn, asset=p["asset"], active=bool(p["open"]), before=p["before"], limit=p["limit"])
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
                yield ServerEvent("job", state)
            for at, (number, change) in enumerate(found.changes):
                state = shapes.job_after(state, change)
                # Of what is past only the newest is of use, but for warnings and whoever asks to go on.
                if at >= skip and (at == len(ids) - 1 or seen_before is not None or change.state == "warned"):
                    yield ServerEvent("job", state, number)
            known = set(ids)
            while not state["final"]:
                seen = await queue.get()
                if seen.id in known or not isinstance(seen.event, JobChanged):
                    continue
                state = shapes.job_after(state, seen.event)
                yield ServerEvent("job", state, seen.id)
        finally:
            leave()

    return Events(stream)
