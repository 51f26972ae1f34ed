"""Steps and branches of a source: pages, one step with its rows, steps as they come."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

from api import shapes
from api.calls import Call, Events, Reply, ServerEvent
from api.errors import ApiError
from api.routes.sources import known
from api.timeline import history, rows
from api.timeline.source import Filter, Now, Timeline
from api.timeline.steps import look, step_json
from api.timeline.targets import stands
from projections.views import catalogue
from projections.views import timeline as view
from streams.errors import StreamError
from streams.formats.errors import FormatError


def table_of(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    schema, _, name = text.partition(".")
    return schema, name


def page(call: Call) -> Reply:
    p = call.parameters
    wanted = Filter(
        table_of(p["table"]),
        shapes.microseconds(p["since"]) if p["since"] else None,
        shapes.microseconds(p["until"]) if p["until"] else None,
    )
    with call.site.views() as conn:
        source = known(call, conn).source
        timeline = call.site.timelines.of(source)
        now = timeline.now(conn, p["lineage"])
        found = timeline.page(conn, now, p["before"], p["limit"], wanted)
    path = now.history.path
    lineage = now.lineage or ""
    items = [step_json(source, lineage, f, stands(path, f.ordinal)) for f in found.steps]
    return Reply(
        {
            "source": source,
            "lineage": now.lineage,
            "head": now.head,
            "path": shapes.path(path),
            "items": items,
            "next": found.next,
        }
    )


def show(call: Call) -> Reply:
    p = call.parameters
    ordinal = p["ordinal"]
    with call.site.views() as conn:
        source = known(call, conn).source
        timeline = call.site.timelines.of(source)
        now = timeline.now(conn, p["lineage"])
        step = timeline.one(conn, now, ordinal)
        granule = view.granule_of(conn, source, now.lineage or "", ordinal)
    lineage = now.lineage or ""
    try:
        definitions = call.site.definitions(source)
        fragments = timeline.fragments(lineage, ordinal, ordinal, [granule] if granule else [])
        shown = rows.of_step(timeline, definitions, lineage, fragments, p["offset"], p["limit"])
    except FormatError as error:
        raise ApiError(422, error.code, f"step {ordinal} cannot be read: {error.message}", error.hint) from error
    return Reply(
        {
            **step_json(source, lineage, step, stands(now.history.path, ordinal)),
            "columns": shown.tables,
            "changes": shown.changes,
            "offset": p["offset"],
            "next": shown.next,
        }
    )


def row_history(call: Call) -> Reply:
    p = call.parameters
    table = (call.text("schema"), call.text("table"))
    with call.site.views() as conn:
        source = known(call, conn).source
        timeline = call.site.timelines.of(source)
        now = timeline.now(conn, p["lineage"])
        try:
            row = history.row_of(call.site.definitions(source), source, now, table, p["key"], call.site.secrets)
            found = history.versions(timeline, call.site.definitions(source), conn, now, row, p["before"], p["limit"])
        except FormatError as error:
            raise ApiError(422, error.code, error.message, error.hint) from error
    return Reply(
        {
            "source": source,
            "lineage": now.lineage,
            "head": now.head,
            "schema": table[0],
            "table": table[1],
            "key_columns": list(row.names),
            "key": list(row.texts),
            "columns": found.columns,
            "items": found.items,
            "notes": shapes.problems(found.notes),
            "next": found.next,
        }
    )


def branches(call: Call) -> Reply:
    with call.site.views() as conn:
        source = known(call, conn).source
        now = call.site.timelines.of(source).now(conn, call.parameters["lineage"])
        lineages = catalogue.lineages(conn, source)
        kinds = {p.plan: p.kind for p in view.plans(conn, source=source, state="applied", limit=1000)}
    return Reply(
        {
            "source": source,
            "lineage": now.lineage,
            "lineages": [
                {"lineage": x.lineage, "since": shapes.time(x.first_us), "baseline": x.baseline} for x in lineages
            ],
            "head": now.head,
            "path": shapes.path(now.history.path),
            "turns": [
                {
                    "ordinal": t.ordinal,
                    "plan": t.plan,
                    "kind": kinds.get(t.plan, ""),
                    "path_after": shapes.path(t.path_after),
                }
                for t in now.history.turns
            ],
        }
    )


def stream(call: Call) -> Events:
    """One thread for each follower reads the log; it ends with the stream. `lineage` events say that another began."""
    p = call.parameters
    table = table_of(p["table"])
    with call.site.views() as conn:
        source = known(call, conn).source
        timeline = call.site.timelines.of(source)
        now = timeline.now(conn)
    after = now.head if p["after"] is None else min(p["after"], now.head)
    lineage, _, ordinal = (p["Last-Event-ID"] or "").partition(":")
    if ordinal.isdigit() and len(ordinal) < 19 and lineage == now.lineage:
        after = min(int(ordinal), now.head)

    async def events() -> AsyncIterator[ServerEvent]:
        if not call.site.followers.acquire(blocking=False):
            yield error_event(ApiError(503, "too-many-streams", "too many streams are open", "ask for pages instead"))
            return
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[ServerEvent | Exception | None] = asyncio.Queue()
        room = threading.Semaphore(1000)
        stop = threading.Event()

        def put(item: ServerEvent | Exception | None) -> None:
            while not room.acquire(timeout=0.5):
                if stop.is_set():
                    return
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so is whoever listened
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def follow() -> None:
            try:
                _follow(call, timeline, now, after, table, stop, put)
            except (StreamError, ApiError) as error:
                put(error)
            finally:
                put(None)

        thread = threading.Thread(target=follow, name=f"steps of {source}", daemon=True)
        thread.start()
        try:
            while True:
                item = await queue.get()
                room.release()
                if item is None:
                    return
                if isinstance(item, StreamError | ApiError):
                    yield error_event(item)
                    return
                assert isinstance(item, ServerEvent)
                yield item
        finally:
            stop.set()
            room.release()
            call.site.followers.release()

    return Events(events)


def error_event(error: StreamError | ApiError) -> ServerEvent:
    return ServerEvent("error", {"code": error.code, "message": error.message, "hint": error.hint})


def _follow(
    call: Call, timeline: Timeline, now: Now, after: int, table: tuple[str, str] | None, stop: threading.Event, put: Any
) -> None:
    """Steps after `after` as events, until `stop`. A source of which nothing was captured yet is waited for."""
    lineage = now.lineage
    while not stop.is_set():
        if lineage is not None:
            pieces = (f for fragments in timeline.log.follow(lineage, after, stop) for f in fragments)
            for step in look(pieces, timeline.preambles):
                after = step.ordinal
                if table is not None and not step.touches(table):
                    continue
                data = step_json(timeline.source, lineage, step, step.kind != "rollback")
                put(ServerEvent("step", data, f"{lineage}:{step.ordinal}"))
        if stop.wait(0.5):
            return
        with call.site.views() as conn:
            newest = timeline.now(conn).lineage
        if newest != lineage:
            lineage, after = newest, 0
            put(ServerEvent("lineage", {"lineage": lineage}))
