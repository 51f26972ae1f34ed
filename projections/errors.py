"""Errors of this room: a stable code, what happened, and the user's next step."""

from __future__ import annotations


class ProjectionError(Exception):
    """Base of what `projections` raises. `code` is stable and documented, `hint` may be empty."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" + (f"; {self.hint}" if self.hint else "")


class OffsetMismatch(ProjectionError):
    """A batch does not start where the view stands: records between would be lost. The batch is not applied."""


class ViewAbsent(ProjectionError):
    """The view was dropped or has never been built."""
