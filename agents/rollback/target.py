"""The seam between a rollback and the database it is applied to: one method for each thing a stage needs.

A platform's `apply` module implements `Target` (`agents.registry.target`); stages (`agents.rollback.apply`) know nothing
else of it. One object serves one rollback, in one thread, in the order of the stages. What a user must know comes back as
problems; what went wrong is raised. After anything raised, only `abandon`, `unfence`, `clean_up` and `close` may be called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agents.errors import AgentError
from agents.rollback.plan import Plan
from streams.events import Problem

Progress = Callable[[int, int], None]

# What an account may be able to do on its server.
NATIVE_APPLY: Final = "native-apply"
"""Changes can be made by native events, whatever triggers there are; else by bound statements."""
FENCE: Final = "fence"
"""The whole source can be made read-only for as long as a rollback takes."""


@dataclass(frozen=True, slots=True)
class Replication:
    """How a replica gets on: `text` for people, `broken` when it will not go on by itself."""

    text: str
    broken: bool


class Stopped(AgentError):
    """The rollback is called off for one or several reasons; nothing was changed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0].code, problems[0].message, problems[0].hint)
        self.problems = tuple(problems)


class CommitUnknown(AgentError):
    """The connection broke at COMMIT: only the marker can tell what became of it (`Target.settle`)."""


class Target(Protocol):
    """A database that a plan is applied to. Everything may raise `SourceUnavailable` and `AgentError`."""

    def check(self, plan: Plan) -> list[Problem]:
        """What the account lacks and which settings stand in the way, each with the statement that mends it."""
        ...

    def capability(self) -> frozenset[str]:
        """What the account can do here: NATIVE_APPLY, FENCE."""
        ...

    def enable(self) -> None:
        """Create what rollback needs on the target (schema `holdfast`), if it is not there. Takes the target's lock,
        so that no other rollback runs beside this one; `rollback-busy` when one does."""
        ...

    def position(self) -> str:
        """The native position after everything committed so far."""
        ...

    def covers(self, position: str, other: str) -> bool:
        """Whether native `position` has all of `other` behind it."""
        ...

    def nudge(self) -> None:
        """Commit a step of our own that changes nothing, so that capture comes to say where it is."""
        ...

    def read_only(self) -> str:
        """What the server's read-only switch stands at."""
        ...

    def fence(self) -> None:
        """Set it, so that ordinary accounts write no more; what they have open cannot commit. Bounded wait."""
        ...

    def unfence(self, before: str) -> None:
        """Set it to `before`. May be called twice."""
        ...

    def load(self, plan: Plan, progress: Progress) -> None:
        """Load the guard: nobody else sees it, the log does not hold it."""
        ...

    def begin(self, plan: Plan) -> list[Problem]:
        """Open the transaction, insert the marker (which fails when the plan has been run), hold all tables against
        definition changes, and compare their definitions with the plan's."""
        ...

    def compare(self) -> list[Problem]:
        """Compare with the guard, locking row by row in key order. Problems are conflicts, with both images."""
        ...

    def children(self) -> list[Problem]:
        """Rows outside the plan that point at what goes away. Locks the ranges they stand in."""
        ...

    def apply(self, progress: Progress) -> int:
        """Make the changes, stopping at the first error. Returns how many rows."""
        ...

    def orphans(self) -> list[Problem]:
        """After the changes: foreign keys that point nowhere."""
        ...

    def marked(self) -> bool:
        """Whether the open transaction still holds the marker: it does not after a deadlock rolled it back."""
        ...

    def commit(self) -> str:
        """Commit; the native position of the step that this made. Raises `CommitUnknown`."""
        ...

    def abandon(self) -> None:
        """Roll the transaction back. May be called at any time, and raises nothing."""
        ...

    def clean_up(self) -> None:
        """Drop the guard tables of this and of any earlier rollback; let go of the lock."""
        ...

    def settle(self, plan: str, digest: bytes) -> bool:
        """After a crash: end what a session of ours may still be doing, then say whether the plan's marker is there, and
        see to it that the plan can never be committed any more when it is not."""
        ...

    def has_marker(self, plan: str) -> bool:
        """Whether the plan's step has been applied here: on the source, or on a replica of it."""
        ...

    def replication(self) -> Replication | None:
        """How this server gets on as a replica; None: it is none, or the account may not know."""
        ...

    def undo_length(self) -> int | None:
        """How many transactions' undo the server still has to purge; None: the account may not know."""
        ...

    def close(self) -> None:
        """May be called at any time, twice, and raises nothing."""
        ...
