"""Errors of this room: a stable code, what happened, and the user's next step; and what `holdfast` exits with.

Exit codes of `holdfast up | down | status | doctor`, documented in docs/ and stable:

    0  done, or everything is well
    1  it failed; the message says what and what to do next
    2  wrong usage (an unknown option, a missing argument)
    3  not running (`status`, `down`), or there is no site at all
    4  running, but something is not well (`status`, `doctor`)
    130 interrupted
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_UNWELL = 4
EXIT_INTERRUPTED = 130


class DeployError(Exception):
    """Base of what `deploy` raises. `code` is stable, `hint` may be empty."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" + (f"; {self.hint}" if self.hint else "")


class PackageError(DeployError):
    """Something from a package registry is missing, broken, or not what the lock says."""


class SiteError(DeployError):
    """The data directory cannot be used as it is."""


class ServerError(DeployError):
    """A server did not start, or is not well."""
