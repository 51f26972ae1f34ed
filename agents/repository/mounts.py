"""What is mounted on this machine, and what should be: `/proc/self/mountinfo` and `/etc/fstab`."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTED: Final = Path("/proc/self/mountinfo")
SHOULD: Final = Path("/etc/fstab")

PRETENDED: Final = frozenset(
    {"proc", "sysfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "pstore"}
    | {"binfmt_misc", "mqueue", "efivarfs", "fusectl", "nsfs", "selinuxfs"}
)
"""File systems whose files the kernel makes up while they are read: nothing of them can be kept or given back."""

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Mount:
    point: str
    kind: str
    options: frozenset[str]


def type_of(path: Path) -> str:
    """The type of the file system that holds `path`, which need not be there; `unknown` where the kernel does not say."""
    return _holding(path).kind


def options_of(path: Path) -> frozenset[str]:
    """How that file system is mounted (`ro`, `soft`, `vers=4.2`): of the mount and of the file system together; none where the
    kernel does not say."""
    return _holding(path).options


def _holding(path: Path) -> _Mount:
    best = _Mount("", "unknown", frozenset())
    real = str(path.resolve())
    with contextlib.suppress(OSError, ValueError, IndexError):
        for found in _mounted():
            point = found.point
            if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best.point):
                best = found
    return best


def unmounted(path: Path) -> str:
    """The folder at or above `path` on which `/etc/fstab` mounts a file system and nothing is mounted now; empty when all is as
    it should be, or nobody knows."""
    try:
        lines = SHOULD.read_text(errors="surrogateescape").splitlines()
        there = {found.point for found in _mounted()}
    except (OSError, ValueError, IndexError):
        return ""
    real = path.resolve()
    for line in lines:
        fields = line.partition("#")[0].split()
        if len(fields) < 2 or not fields[1].startswith("/"):
            continue
        point = Path(_plain(fields[1])).resolve()
        if point != Path("/") and real.is_relative_to(point) and str(point) not in there:
            return str(point)
    return ""


def _mounted() -> list[_Mount]:
    """Everything that is mounted (proc(5), "mountinfo")."""
    out = []
    for line in MOUNTED.read_text(errors="surrogateescape").splitlines():
        own, _, rest = line.partition(" - ")
        fields, (kind, *more) = own.split(), rest.split()
        options = ",".join([fields[5], *more[-1:]])
        out.append(_Mount(_plain(fields[4]), kind, frozenset(options.split(","))))
    return out


def _plain(field: str) -> str:
    """Blanks and such stand in both files as octal numbers."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)
