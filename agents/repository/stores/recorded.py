"""A store that remembers what this node did to it: names that were appended to or deleted since the last look at the repository.

Only so can a look (`agents.repository.watch`) tell our own doing from others'. Names are written down, a line each, before the
deed. And if we die here? A name too many makes the next look blind for that one file, a cut-off line is none. The list is not
flushed: a power cut may cost names, and so an alarm that is none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from agents.repository.stores import Appender, Buffer, Listed, Store, Traits, checked_name


class RecordedStore:
    """Implements `Store` over `inner`, which it closes. `path`: the list, on the node's own disk."""

    def __init__(self, inner: Store, path: Path) -> None:
        self.inner = inner
        self._path = path
        self._lock = threading.Lock()
        self._growing: set[str] = set()
        try:
            self._names = set(path.read_text("utf-8", "replace").split("\n")[:-1])
        except FileNotFoundError:
            self._names = set()
        else:
            self._rewrite()  # without a line that was cut off, or the next one would be added to it

    def ours(self, name: str) -> bool:
        """This node deleted it, began it, or writes it now."""
        with self._lock:
            return name in self._names

    def settled(self) -> frozenset[str]:
        """What was done with until now: given to `forget` once a look that began after this call is kept."""
        with self._lock:
            return frozenset(self._names - self._growing)

    def forget(self, names: Iterable[str]) -> None:
        """What a look has seen."""
        with self._lock:
            before = len(self._names)
            self._names.difference_update(names)
            if len(self._names) < before:
                self._rewrite()

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        self.inner.create(name, parts)

    def append(self, name: str) -> Appender:
        self._note(name)
        with self._lock:
            self._growing.add(name)
        try:
            return _Noted(self, name, self.inner.append(name))
        except BaseException:
            self._grown(name)
            raise

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        return self.inner.read(name, offset, size)

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self._note(name)
        self.inner.delete(name)

    def check(self) -> Traits:
        return self.inner.check()

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def sweep(self, older_than_s: float) -> int:
        return self.inner.sweep(older_than_s)

    def close(self) -> None:
        self.inner.close()

    def _note(self, name: str) -> None:
        checked_name(name)
        with self._lock:
            if name not in self._names:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with self._path.open("a", encoding="utf-8") as out:
                    out.write(f"{name}\n")
                self._names.add(name)

    def _grown(self, name: str) -> None:
        with self._lock:
            self._growing.discard(name)

    def _rewrite(self) -> None:
        scratch = self._path.with_suffix(".new")
        scratch.write_text("".join(f"{name}\n" for name in sorted(self._names)), "utf-8")
        scratch.replace(self._path)


class _Noted:
    def __init__(self, store: RecordedStore, name: str, inner: Appender) -> None:
        self._store, self._name, self._inner = store, name, inner

    def write(self, *parts: Buffer) -> int:
        return self._inner.write(*parts)

    def sync(self) -> None:
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()
        self._store._grown(self._name)

    def abandon(self) -> None:
        self._inner.abandon()
        self._store._grown(self._name)
