"""Errors of this room: a stable code, what happened, and the user's next step."""

from __future__ import annotations


class StreamError(Exception):
    """Base of what `streams` raises. `code` is stable and documented, `hint` may be empty."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" + (f"; {self.hint}" if self.hint else "")


class BrokenChain(StreamError):
    """A record does not follow the one before: something was lost, reordered or changed. Never read past it."""


class DeliveryFailed(StreamError):
    """Kafka did not take a record. The session that published it ends and starts again from the log."""
