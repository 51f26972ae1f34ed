"""The Faust shell of a view's processor: records in, batches of events out to the function it was given.

Knows nothing of rows, offsets or time. A batch that fails ends the process (through `failed`): Faust would restart the processor
after the batch, and what comes after a lost batch must not be applied.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import faust

from streams.codec import decode
from streams.consume import Message
from streams.errors import StreamError

Apply = Callable[[str, Sequence[Message]], Awaitable[None]]

# A batch is what has come within this time, or this many records.
BATCH_RECORDS = 1000
BATCH_S = 0.05


def attach(
    app: faust.App, view: str, topics: Sequence[str], apply: Apply, failed: Callable[[str, BaseException], None]
) -> None:
    """Have `app` feed the records of `topics` (full names) to `apply(view, batch)`, one batch at a time, in order within a
    partition. `apply` returns when the batch is durable; when it raises, `failed(view, error)` must end the process."""
    channel = app.topic(
        *topics,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        # Without acknowledgements Faust keeps no list of offsets to commit, which nothing here would ever empty.
        acks=False,
    )

    async def process(stream: Any) -> None:
        async for events in stream.take_events(BATCH_RECORDS, within=BATCH_S):
            try:
                await apply(view, [message_of(event.message) for event in events])
            except Exception as error:  # noqa: BLE001 - whatever it is, going on would lose the batch
                failed(view, error)
                return

    app.agent(channel, name=f"processor-{view}", concurrency=1)(process)


def message_of(record: Any) -> Message:
    """A Faust message as ours. Raises `StreamError` (`record-unreadable`), naming its place."""
    try:
        event, stamp = decode(record.value or b"")
    except StreamError as error:
        place = f"{record.topic}[{record.partition}]@{record.offset}"
        raise StreamError(error.code, f"{place}: {error.message}", error.hint) from error
    return Message(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"").decode("utf-8", "replace"),
        event=event,
        stamp=stamp,
        headers={name: value for name, value in record.headers or () if value is not None},
        timestamp_us=round((record.timestamp or 0) * 1000) * 1000,
    )
