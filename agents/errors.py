"""Errors of this room: a stable code, what happened, and the user's next step (often the statement that mends it)."""

from __future__ import annotations

from streams.events import Problem

DAMAGED = "source-damaged"  # what a source sent is not what it can have sent: fetched again, a few times


class AgentError(Exception):
    """Base of what `agents` raises. `code` is stable and documented, `hint` may be empty."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" + (f"; {self.hint}" if self.hint else "")

    def problem(self) -> Problem:
        """The same as it stands in events."""
        return Problem(self.code, self.message, self.hint)


class SourceUnavailable(AgentError):
    """The source cannot be reached just now: trying again later is right, and nothing is lost by it."""


class CaptureStopped(AgentError):
    """Capture must not go on: going on would skip or falsify steps. Only a user's decision mends it."""


class Fenced(AgentError):
    """Another agent has taken over capture of this source. This one must write no more."""
