"""Who asked for what, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.events.base import Event, event


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class CallAudited(Event):
    """One call of the API. `action` is the operation id, `outcome` the HTTP status, `detail` a JSON object without secrets."""

    TYPE: ClassVar[str] = "call.audited"
    TOPIC: ClassVar[str] = "audit"

    request: str
    actor: str
    role: str
    token: str
    action: str
    object: str
    outcome: int
    detail: str
    remote: str
    at_us: int

    @property
    def key(self) -> str:
        return self.actor
