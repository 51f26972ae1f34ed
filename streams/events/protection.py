"""How well something is protected, when that changes: what whoever watches the log can be told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.events.base import Event, event


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionChanged(Event):
    """An asset is in another state of protection (`projections.protection`) than was said last.

    `kind`: machine, data or database. `before` is the state that was said last, empty for a first word. `late_s`: how long ago
    the run was due that is missing. What counts: `streams.protection_log`.
    """

    TYPE: ClassVar[str] = "protection.changed"
    TOPIC: ClassVar[str] = "inventory"

    asset: str
    kind: str
    state: str
    before: str = ""
    policy: str = ""
    late_s: int = 0
    proof: str = ""
    at_us: int
    by: str

    @property
    def key(self) -> str:
        return f"protection/{self.kind}/{self.asset}"
