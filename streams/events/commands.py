"""Requested work. A command's id is the id of the job that carries it out (`streams.events.jobs`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streams.events.base import Event, event

CommandKind = Literal[
    "source.add",
    "source.pause",
    "source.resume",
    "source.remove",
    "source.set-accounts",
    "rollback.plan",
    "rollback.run",
    "rollback.approve",
    "rollback.abandon",
]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequested(Event):
    """Somebody asks for work. `parameters` is a JSON object; its shape per kind stands in docs/design.md.

    `priority`: the higher the sooner, 0 where nobody said. `node`: who alone is to do it; empty: whoever may.
    """

    TYPE: ClassVar[str] = "command.requested"
    VERSION: ClassVar[int] = 2
    TOPIC: ClassVar[str] = "commands"

    command: str
    kind: str
    asset: str
    parameters: str
    requester: str
    requested_us: int
    deadline_us: int | None = None
    priority: int = 0
    node: str = ""

    @property
    def key(self) -> str:
        return self.asset
