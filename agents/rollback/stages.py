"""The life of a rollback as data: which states a plan goes through, and which stages an application has.

States are what the log says (`rollback.changed`); the source is in one of two conditions, before and after, and the
marker row alone decides which:

    planned ──> confirmed ──> fenced ──> applying ──> applied
       │          ^ │  └─(not the whole source)─^ │
       v          │ v            v                v
    abandoned     failed <───────┴────────────────┘

A plan in chunks goes `chunking` → `chunked` instead (or `failed`, and on from there): each chunk is a plan of its own, which
goes through the states above, and the only thing that is ever undecided (`agents.rollback.chunks`).

`approved` may be said of a plan that is planned or failed, and again: it is confirmed or abandoned next (`approval`).
`fenced` is said before the source is made read-only and carries what it was before. A failed plan may be confirmed again:
nothing was changed. From `confirmed` on until it has ended a plan is *undecided*: the source's next command or the
agent's next start settles it (`agents.rollback.recover`), after which it can never run.

A stage ends where a death leaves something else behind than in the stage before; its name is a failpoint's, too:
`rollback-<stage>` before it, and `rollback-committed` right after COMMIT returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from streams.events.rollbacks import RollbackState

StageName = Literal["prepare", "fence", "begin", "compare", "children", "apply", "settle", "commit"]

NEXT: Final[Mapping[str, frozenset[RollbackState]]] = {
    "planned": frozenset({"approved", "confirmed", "chunking", "abandoned"}),
    "approved": frozenset({"approved", "confirmed", "chunking", "abandoned"}),
    "chunking": frozenset({"chunking", "chunked", "failed"}),
    "chunked": frozenset(),
    "confirmed": frozenset({"fenced", "applying", "failed", "applied"}),
    "fenced": frozenset({"applying", "failed", "applied"}),
    "applying": frozenset({"applied", "failed"}),
    "applied": frozenset(),
    "failed": frozenset({"approved", "confirmed", "chunking", "abandoned"}),
    "abandoned": frozenset(),
}
FINAL: Final = frozenset(state for state, following in NEXT.items() if not following)
UNDECIDED: Final = frozenset({"confirmed", "fenced", "applying"})


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `leaves`: what a death within it leaves on the source, for whoever reads this table."""

    number: int
    name: StageName
    does: str
    leaves: str


STAGES: Final[tuple[Stage, ...]] = (
    Stage(0, "prepare", "check privileges and settings, wait for capture, load the guard", "guard tables, unlogged"),
    Stage(1, "fence", "make the whole source read-only, when the plan is for the whole source", "read_only set"),
    Stage(2, "begin", "open the transaction, insert the marker, hold the tables, compare definitions", "nothing more"),
    Stage(3, "compare", "compare every row with the guard and lock it", "nothing more"),
    Stage(4, "children", "look for rows outside the plan that point at what goes away", "nothing more"),
    Stage(5, "apply", "make the changes, then look for foreign keys that point nowhere", "nothing more"),
    Stage(6, "settle", "wait until capture has passed this moment; look through what came since", "nothing more"),
    Stage(7, "commit", "see the marker once more, commit", "all of it, or nothing: the marker tells"),
)
