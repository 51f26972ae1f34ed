"""The life of a job as a table: which change may follow which, and whose word counts. Pure.

    requested ─> accepted ─> claimed ─> started ─> progressed, warned ─> finished | failed | cancelled
                    ^           │          │
                    └───────────┴──────────┴── released, claim_expired

`jobs` is keyed by job, so one partition has all changes of a job in one order, and a `Life` is a fold over them: agents, read
models and the API apply the same function to the same order, so all of them know the same of every job.

    node a    claimed(x) ──────────────────────── started(x) … silence …           finished(x): void
    node b       claimed(y): void                            claim_expired(x)  claimed(z)  started(z) …  finished(z)

- A claim counts only while nobody holds the job: after the request, `released`, or `claim_expired` of the claim before. Whoever
  claims reads its claim back, and works only if it counted.
- What a holder says names its claim. Once the claim is over, what is said under it is void, whenever it comes.
- `claim_expired` names the claim it ends: said twice, or late, it ends no other. Who says it decides by a clock, and a clock that
  is wrong costs time only.
- `cancel_asked` ends a job that waits and was never begun. One that was begun ends when its holder, or the next one should this
  one die, has cleaned up and says so. Asked again while nobody holds it, it ends as it is.
- After `finished`, `failed` or `cancelled` nothing counts.

Logs from before there were claims have changes that name none: there was one agent, whose next run claimed again what the one
before had held. Jobs that nobody claims (the API's own) are like that as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

Phase = Literal["waiting", "claimed", "working", "over"]

_WHILE_HELD: Final[Mapping[str, Phase | None]] = {
    "progressed": None,
    "warned": None,
    "prioritised": None,
    "cancel_asked": None,
    "released": "waiting",
    "claim_expired": "waiting",
    "finished": "over",
    "failed": "over",
    "cancelled": "over",
}
# Phase → change → the phase after it (None: the same). What is not here does not count.
TABLE: Final[Mapping[Phase, Mapping[str, Phase | None]]] = {
    "waiting": {
        "accepted": None,
        "warned": None,
        "prioritised": None,
        "claimed": "claimed",
        "cancel_asked": "over",
        # Without ever having been claimed: the API's own jobs, and commands that say nothing anybody could do.
        "started": "working",
        "progressed": None,
        "finished": "over",
        "failed": "over",
        "cancelled": "over",
    },
    "claimed": {**_WHILE_HELD, "started": "working"},
    "working": {**_WHILE_HELD, "started": None},
    "over": {},
}
# Anybody's to say; everything else is the holder's, or names the claim it is about.
_ANYBODY: Final = frozenset({"cancel_asked", "prioritised"})
# What is said of a job beside its state.
BESIDE: Final = frozenset({"warned", "prioritised", "cancel_asked"})


class Change(Protocol):
    """What the fold looks at in a `JobChanged`, and in whatever a read model keeps of one."""

    @property
    def state(self) -> str: ...
    @property
    def by(self) -> str: ...
    @property
    def claim(self) -> str: ...
    @property
    def priority(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Life:
    """A job so far. `state` is that of the last change that counted and is none of `BESIDE`.

    `claim` is that of who holds the job; empty for a holder that named none, or nobody; None once it waits again after it was
    claimed. `holder` is who holds it (`by`) and `writer` which run of it (the stamp's), empty while it waits; `last` who held it
    last. `claims`: how many counted. `cancel`: who asked to cancel it. `priority`: as it was last said, None while it never was.
    """

    phase: Phase = "waiting"
    state: str = "requested"
    claim: str | None = ""
    holder: str = ""
    writer: str = ""
    last: str = ""
    claims: int = 0
    cancel: str = ""
    priority: int | None = None

    @property
    def held(self) -> bool:
        return self.phase in ("claimed", "working")

    @property
    def over(self) -> bool:
        return self.phase == "over"


def counts(life: Life, change: Change) -> bool:
    """Whether a change that comes next says anything. Follows from what came before it, never from a clock."""
    state = change.state
    if state == "claimed" and life.held:
        # Of the time without claims: the next run of the only agent there was.
        return life.claim == change.claim == ""
    if state not in TABLE[life.phase]:
        return False
    if life.phase == "waiting":
        if state == "claimed":
            return bool(change.claim) or life.claim == ""
        if state == "accepted":
            return life.state == "requested"
        return state in _ANYBODY or change.claim == life.claim or (state == "warned" and not change.claim)
    return state in _ANYBODY or change.claim == life.claim


def after(life: Life, change: Change, writer: str = "") -> Life:
    """The life after one more change; the very same object when that does not count. `writer`: who wrote it (`Stamp.writer`)."""
    if not counts(life, change):
        return life
    state = change.state
    phase = "claimed" if state == "claimed" else TABLE[life.phase][state] or life.phase
    if state == "cancel_asked" and life.claims and not life.cancel:
        phase = life.phase
    out = replace(life, phase=phase)
    if state == "prioritised":
        return replace(out, priority=change.priority)
    if state == "cancel_asked":
        return replace(out, cancel=change.by, state="cancelled" if phase == "over" else life.state)
    if state == "warned" and life.state != "requested":
        return out
    out = replace(out, state=state)
    if state == "claimed":
        out = replace(out, claim=change.claim, claims=life.claims + 1)
        return replace(out, holder=change.by, last=change.by, writer=writer)
    if phase == "working" and not life.held:
        return replace(out, holder=change.by, last=change.by, writer=writer)
    if phase == "waiting" and life.held:
        return replace(out, claim=None, holder="", writer="")
    return out
