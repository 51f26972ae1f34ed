"""What became of requested work: one event for every change of a job's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streams.events.base import Event, Problem, event

JobState = Literal["accepted", "claimed", "started", "progressed", "warned", "finished", "failed", "cancelled"]
FINAL_STATES: frozenset[str] = frozenset({"finished", "failed", "cancelled"})


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class JobChanged(Event):
    """A job is in a new state. `done` of `total` in `unit`s (total 0: not known); `result` is a JSON object or empty."""

    TYPE: ClassVar[str] = "job.changed"
    TOPIC: ClassVar[str] = "jobs"

    job: str
    kind: str
    asset: str
    state: str
    at_us: int
    by: str
    message: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    problems: tuple[Problem, ...] = ()
    result: str = ""

    @property
    def key(self) -> str:
        return self.job
