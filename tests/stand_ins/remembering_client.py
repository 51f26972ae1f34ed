"""A stand-in for a client of a file server that believes its memory: another machine's changes are not seen until the server was
asked (`agents.repository.stores.fresh`). Listings, lengths, and names that were not there are remembered, as NFS does for up to
a minute; what this client does itself it sees. Put over the functions by which a `LocalStore` of one folder looks.

What real clients do is tried in `tests/contract/test_file_servers.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.repository.stores import fresh


class RememberingClient:
    """`known`: of each folder that was looked at, the names in it with their lengths."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.known: dict[Path, dict[str, int]] = {}
        self._open, self._scan, self._status, self._unlink = os.open, os.scandir, fresh.status, Path.unlink
        patch.setattr(os, "open", self._opened)
        patch.setattr(os, "scandir", self._scanned)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: self._unlinked(path, missing_ok))
        patch.setattr(fresh, "status", self._asked)

    def _looked(self, folder: Path) -> dict[str, int]:
        if folder not in self.known:
            with self._scan(folder) as entries:
                self.known[folder] = {entry.name: entry.stat().st_size for entry in entries}
        return self.known[folder]

    def _is_unknown(self, path: Path) -> bool:
        """Whether one of the names on the way to it was not there when this client looked."""
        if self.root not in path.parents:
            return False
        at = self.root
        for part in path.relative_to(self.root).parts:
            if part not in self._looked(at):
                return True
            at = at / part
        return False

    def _opened(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        where = Path(path)
        if not flags & os.O_CREAT and self._is_unknown(where):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        made = self._open(path, flags, mode, **more)
        if flags & os.O_CREAT:
            self._looked(where.parent).setdefault(where.name, 0)
        return made

    def _unlinked(self, path: Path, missing_ok: bool) -> None:
        if self._is_unknown(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self._unlink(path, missing_ok)
        self._looked(path.parent).pop(path.name, None)

    @contextmanager
    def _scanned(self, folder: Any) -> Iterator[Any]:
        known = dict(self._looked(Path(folder)))
        with self._scan(folder) as entries:
            yield [_remembered(entry, known[entry.name]) for entry in entries if entry.name in known]

    def _asked(self, path: Path | str) -> fresh.Status:
        where = Path(path)
        if where != self.root and self._is_unknown(where):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        found = self._status(path)
        if found.is_folder:
            self.known.pop(where, None)
        return found


def _remembered(entry: os.DirEntry[str], size: int) -> Any:
    real = entry.stat()
    return SimpleNamespace(
        name=entry.name,
        path=entry.path,
        is_dir=entry.is_dir,
        is_file=entry.is_file,
        stat=lambda follow_symlinks=True: SimpleNamespace(st_size=size, st_mtime_ns=real.st_mtime_ns),
    )
