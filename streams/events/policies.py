"""Policies (what is done to what, when) and what their schedules came to. One topic, one order.

What counts follows from the order of these events (`streams.policy_log`): a definition counts when its version follows the
one that stands, a run when its version is the one that stands and its instant is later than what was decided. So two that
define, or two schedulers, say what they like; everybody who reads agrees on which of it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from streams.events.base import Event, event

RunState = Literal["asked", "fired", "skipped", "ended", "rewound"]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDefined(Event):
    """A policy is so from now on. `version` is one more than of the definition before, also of one that was removed.

    `document` is a JSON object (`streams.policies`), `note` what somebody wrote about the change.
    """

    TYPE: ClassVar[str] = "policy.defined"
    TOPIC: ClassVar[str] = "inventory"

    policy: str
    version: int
    document: str
    note: str = ""
    defined_us: int
    by: str

    @property
    def key(self) -> str:
        return f"policy/{self.policy}"


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRemoved(Event):
    """A policy, which was at `version`, is no more."""

    TYPE: ClassVar[str] = "policy.removed"
    TOPIC: ClassVar[str] = "inventory"

    policy: str
    version: int
    removed_us: int
    by: str

    @property
    def key(self) -> str:
        return f"policy/{self.policy}"


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRun(Event):
    """What a policy's schedule came to. `instant_us`: the moment that its rules name; `run`: its id, which follows from that.

    `asked`: somebody wants a run now (its `run` follows from policy and instant alone). `fired`: this run is made, of
    `assets` (what was selected at that moment, less `left_out`, which says why by asset), until `closes_us` if windows
    close. `skipped`: nothing is made of the instants from `instant_us` to `until_us`. `ended`: no task of the run goes on;
    `figures` count them by outcome. `rewound`: the clock was put back, so what is later than `instant_us` is to be decided
    again. `reason` is a code (`asked`: this answers to that), `message` a sentence.
    """

    TYPE: ClassVar[str] = "policy.run"
    TOPIC: ClassVar[str] = "inventory"

    policy: str
    version: int
    run: str
    state: str
    instant_us: int
    until_us: int = 0
    closes_us: int | None = None
    reason: str = ""
    message: str = ""
    assets: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, int] = field(default_factory=dict)
    at_us: int
    by: str

    @property
    def key(self) -> str:
        return f"policy/{self.policy}"
