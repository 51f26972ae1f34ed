"""Server-sent events (WHATWG HTML, "Server-sent events"): framing, heartbeats, and the end when the API stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from api.calls import ServerEvent

HEARTBEAT_S = 15.0
RETRY_MS = 1000
_END = object()


def frame(event: ServerEvent) -> bytes:
    """One event as it goes over the wire. JSON has no raw line ends, so one `data` line always does."""
    head = f"id: {event.id}\n" if event.id else ""
    return f"{head}event: {event.event}\ndata: {json.dumps(event.data, ensure_ascii=False)}\n\n".encode()


async def body(
    events: AsyncIterator[ServerEvent], stopping: asyncio.Event, heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """The response body: `events` framed, a comment when nothing came for a while, until they end or the API stops."""
    yield f"retry: {RETRY_MS}\n\n".encode()
    # One event at most is taken ahead: a reader that does not read holds its own events up, not memory.
    queue: asyncio.Queue[object] = asyncio.Queue(1)

    async def pump() -> None:
        try:
            async for event in events:
                await queue.put(event)
        finally:
            await queue.put(_END)

    async def stop() -> None:
        await stopping.wait()
        pumping.cancel()

    pumping = asyncio.create_task(pump())
    watching = asyncio.create_task(stop())
    try:
        while True:
            try:
                item = await asyncio.wait_for(queue.get(), heartbeat_s)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if item is _END:
                break
            assert isinstance(item, ServerEvent)
            yield frame(item)
    finally:
        watching.cancel()
        pumping.cancel()
        with contextlib.suppress(asyncio.QueueEmpty):
            queue.get_nowait()  # a pump that waits to say that it has ended can do so
        with contextlib.suppress(asyncio.CancelledError):
            await pumping
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
