"""What every event has in common: the registry of types and the stamp a publisher puts on each record.

An event is a frozen dataclass of plain values. Its Avro schema stands in `schemas/events/<name>.v<version>.avsc`; this
package knows field names and types only, never how bytes look (`streams.codec`) or where they go (`streams.publish`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base of every event. `TYPE` is the CloudEvents type without prefix, `TOPIC` a name of `streams.topics`.

    `lineage` and `epoch` are in every event: events that concern no lineage leave them empty.
    """

    TYPE: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1
    TOPIC: ClassVar[str] = ""

    lineage: str | None = None
    epoch: int = 0

    @property
    def key(self) -> str:
        """Kafka key: what keeps the order of this event's neighbours."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the publisher adds: who wrote it, its place in that writer's chain, and a signature when the writer signs.

    `writer` is unique to one run of one process; `sequence` counts from 0 within it, over all topics. `previous` is the
    chain digest (32 bytes) of the writer's record before, zeroes for the first: BLAKE3-256 of that record's value as it
    is encoded without a signature (`streams.codec.chain_digest`).
    """

    writer: str
    sequence: int
    previous: bytes
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, for a user: a stable code, one sentence, and the next step (often the very statement that mends it)."""

    code: str
    message: str
    hint: str = ""


E = TypeVar("E", bound=type[Event])
REGISTRY: dict[tuple[str, int], type[Event]] = {}


def event(cls: E) -> E:
    """Class decorator: register an event type under (TYPE, VERSION)."""
    REGISTRY[(cls.TYPE, cls.VERSION)] = cls
    return cls
