"""What became of requested work: one event for every change of a job's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streams.events.base import Event, Problem, event

JobState = Literal[
    "accepted",
    "claimed",
    "started",
    "progressed",
    "warned",
    "released",
    "claim_expired",
    "cancel_asked",
    "prioritised",
    "finished",
    "failed",
    "cancelled",
]
FINAL_STATES: frozenset[str] = frozenset({"finished", "failed", "cancelled"})


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class JobChanged(Event):
    """A job is in a new state. `done` of `total` in `unit`s (total 0: not known); `result` is a JSON object or empty.

    Which changes count, and what `claim` has to do with it, stands in `streams.job_states`. `claim`: under which this is said; of
    `claim_expired` the one that is over. `priority`: of `prioritised`, the higher the sooner.
    """

    TYPE: ClassVar[str] = "job.changed"
    VERSION: ClassVar[int] = 2
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
    claim: str = ""
    priority: int = 0

    @property
    def key(self) -> str:
        return self.job
