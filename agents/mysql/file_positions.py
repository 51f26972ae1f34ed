"""Positions of servers that do not number their transactions: a log file and an offset in it.

    8f2c…-02fc00000001/1795630605/binlog.000003:1567      server / when the file was begun / file:offset

A file's name says little: another server, or the same one after a reset, writes a `binlog.000003` as well. So the position
names the server (its UUID, where it has one, else its id) and when the file was begun (the time of its format description,
seconds). It never survives a failover.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agents.errors import AgentError

_TEXT = re.compile(r"([^/]+)/(\d+)/([^/:]+):(\d+)")


@dataclass(frozen=True, slots=True)
class FilePosition:
    """After the last event that ends at `offset` in `file` of `server`, which was begun at `created` (0: not known, for the
    server tells it to readers of the file only)."""

    server: str
    created: int
    file: str
    offset: int

    def __str__(self) -> str:
        return f"{self.server}/{self.created}/{self.file}:{self.offset}"

    @property
    def order(self) -> tuple[int, int]:
        """What positions of one server's log are ordered by."""
        return file_number(self.file), self.offset


def is_file_position(text: str) -> bool:
    return _TEXT.fullmatch(text) is not None


def parse(text: str) -> FilePosition:
    """Raises `AgentError` (`position-invalid`)."""
    m = _TEXT.fullmatch(text)
    if m is None:
        raise AgentError(
            "position-invalid", f"{text!r} is no position", "one looks like 55/1795630605/binlog.000003:1567"
        )
    return FilePosition(m[1], int(m[2]), m[3], int(m[4]))


def reaches(position: FilePosition, other: FilePosition) -> bool:
    """Whether a server at `position` has `other` behind it."""
    if position.server != other.server:
        return False
    if position.file == other.file and position.created and other.created and position.created != other.created:
        return False
    return position.order >= other.order


def file_number(file: str) -> int:
    """Of `binlog.000003`: 3."""
    digits = file.rpartition(".")[2]
    return int(digits) if digits.isdigit() else 0
