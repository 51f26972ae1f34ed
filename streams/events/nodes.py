"""Agents (nodes) of a site: which of them has a name, since when, until when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streams.events.base import Event, event

NodeState = Literal["started", "stopped"]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChanged(Event):
    """A run of an agent takes a name (`started`), or has ended in order (`stopped`). What counts: `streams.node_log`.

    `node` is the agent's name in events (`by`), `names` are all that it is and ever was called. `run` is the writer of its
    events, `replaces` the run that has had the name until now. `home` names its data directory, `boot` where that is on which
    machine since that was started last; empty where that is not known. `lease_s`: after how long a silence others may take it for
    dead.
    """

    TYPE: ClassVar[str] = "node.changed"
    TOPIC: ClassVar[str] = "inventory"

    node: str
    state: str
    run: str
    replaces: str = ""
    home: str = ""
    boot: str = ""
    machine: str = ""
    version: str = ""
    names: tuple[str, ...] = ()
    lease_s: int = 0
    at_us: int
    by: str

    @property
    def key(self) -> str:
        return f"node/{self.node}"
