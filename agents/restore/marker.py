"""The file by which a folder says what is restored in it, and whether it is whole: `holdfast-restore.json`. How a folder is one
process's alone, and what is put in it durable. Knows not what is restored."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from agents.errors import AgentError

MARKER: Final = "holdfast-restore.json"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises `AgentError` (`path-busy`)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentError("path-busy", f"another process restores to {folder}", "wait for it, or stop it") from None
        yield
    finally:
        os.close(descriptor)


def read(folder: Path) -> dict[str, Any] | None:
    """What an earlier run said of the folder; None when none did."""
    try:
        found = json.loads((folder / MARKER).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write(folder: Path, value: Mapping[str, Any]) -> None:
    replace(folder, MARKER, json.dumps(value, sort_keys=True, indent=1).encode() + b"\n")


def replace(folder: Path, name: str, data: bytes) -> None:
    """A file that is there whole or not at all; durable on return."""
    new = folder / f"{name}.new"
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(folder / name)
    flush(folder)


def flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
