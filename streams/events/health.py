"""Heartbeats with figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from streams.events.base import Event, event


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReported(Event):
    """An agent is alive. `figures` by name, the unit in the name (`lag_ms`, `steps`, `bytes`, `purge_in_s`)."""

    TYPE: ClassVar[str] = "health.reported"
    TOPIC: ClassVar[str] = "health"

    agent: str
    source: str
    state: str
    at_us: int
    ordinal: int = 0
    position: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.agent
