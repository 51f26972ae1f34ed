"""A stand-in for the store of a repository that misbehaves on demand: wraps any store and does what it is told to.

    store = FaultyStore(MemoryStore(), Fault("write", "full", nth=3))

What it can do at a call (`Fault.what`):

    full, io, read-only   refuse
    torn                  a write or create does the first half, then refuses; half a created file is then there, as with a
                          store that breaks its promise
    lost-answer           do it, then refuse
    short, flip           a read finds the file cut off; one bit of what is read is another
    vanish                the file is gone before the call
    wait, die             until `gate` is set; SIGKILL

`power_loss` gives what is left when the machine loses power: of appended files what was synced, of created ones all.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from agents.repository.stores import (
    FULL,
    IO,
    READ_ONLY,
    Appender,
    Buffer,
    Listed,
    Store,
    StoreError,
    Traits,
    missing,
    short,
)
from agents.repository.stores.memory import MemoryStore

Call = Literal["create", "append", "write", "sync", "close", "read", "size", "list", "delete"]
What = Literal["full", "io", "read-only", "torn", "lost-answer", "short", "flip", "vanish", "wait", "die"]
_REFUSALS = {"full": FULL, "io": IO, "read-only": READ_ONLY, "torn": IO, "lost-answer": IO}


@dataclass(frozen=True, slots=True)
class Fault:
    """At the `nth` call of a kind on a file whose name begins with `name`, and at `times` - 1 more (0: at all later ones)."""

    call: Call
    what: What
    nth: int = 1
    times: int = 1
    name: str = ""


class FaultyStore:
    """Implements `Store`. Faults may be added while it is used; `calls` counts every call by kind."""

    def __init__(self, inner: Store, *faults: Fault) -> None:
        self.inner = inner
        self.faults = list(faults)
        self.gate = threading.Event()
        self.calls: dict[str, int] = {}
        self._seen: dict[int, int] = {}
        self._synced: dict[str, int] = {}
        self._lock = threading.Lock()

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        what = self._due("create", name)
        if what == "torn":
            whole = b"".join(parts)
            self.inner.create(name, [whole[: len(whole) // 2]])
        elif what in (None, "lost-answer"):
            self.inner.create(name, parts)
        self._refuse(what, name)

    def append(self, name: str) -> _FaultyAppender:
        what = self._due("append", name)
        if what != "lost-answer":
            self._refuse(what, name)
        inner = self.inner.append(name)
        self._refuse(what, name)
        with self._lock:
            self._synced[name] = 0
        return _FaultyAppender(self, name, inner)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        what = self._due("read", name)
        self._refuse(what, name)
        data = self.inner.read(name, offset, size)
        if what == "short":
            raise short(name, offset, len(data), len(data) // 2)
        if what == "flip" and data:
            changed = bytearray(data)
            changed[len(data) // 2] ^= 0x10
            return bytes(changed)
        return data

    def size(self, name: str) -> int:
        self._refuse(self._due("size", name), name)
        return self.inner.size(name)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        self._refuse(self._due("list", prefix), prefix)
        yield from self.inner.list(prefix)

    def delete(self, name: str) -> None:
        what = self._due("delete", name)
        if what != "lost-answer":
            self._refuse(what, name)
        self.inner.delete(name)
        self._refuse(what, name)

    def check(self) -> Traits:
        return self.inner.check()

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def sweep(self, older_than_s: float) -> int:
        return self.inner.sweep(older_than_s)

    def close(self) -> None:
        self.inner.close()

    def power_loss(self) -> MemoryStore:
        """What another machine finds after this one lost power."""
        left = MemoryStore()
        for listed in self.inner.list():
            data = self.inner.read(listed.name)
            if listed.name in self._synced:
                data = data[: self._synced[listed.name]]
            left.create(listed.name, [data])
        return left

    def _due(self, call: Call, name: str) -> What | None:
        with self._lock:
            self.calls[call] = self.calls.get(call, 0) + 1
            found: What | None = None
            for number, fault in enumerate(self.faults):
                if fault.call == call and name.startswith(fault.name):
                    seen = self._seen[number] = self._seen.get(number, 0) + 1
                    if fault.nth <= seen and (not fault.times or seen < fault.nth + fault.times):
                        found = fault.what
        if found == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if found == "wait":
            self.gate.wait()
        if found == "vanish":
            self.inner.delete(name)
            raise missing(name)
        return found

    def _refuse(self, what: What | None, name: str) -> None:
        if what in _REFUSALS:
            raise StoreError(_REFUSALS[what], f"{name}: a fault that a test asked for ({what})")


class _FaultyAppender:
    def __init__(self, store: FaultyStore, name: str, inner: Appender) -> None:
        self._store, self._name, self._inner = store, name, inner
        self._size = 0

    def write(self, *parts: Buffer) -> int:
        what = self._store._due("write", self._name)
        if what == "torn":
            whole = b"".join(parts)
            self._inner.write(whole[: len(whole) // 2])
        elif what != "lost-answer":
            self._store._refuse(what, self._name)
        if what != "torn":
            at = self._inner.write(*parts)
            self._size = at + sum(map(len, parts))
        self._store._refuse(what, self._name)
        return at

    def sync(self) -> None:
        what = self._store._due("sync", self._name)
        if what != "lost-answer":
            self._store._refuse(what, self._name)
        self._inner.sync()
        self._keep()
        self._store._refuse(what, self._name)

    def close(self) -> None:
        what = self._store._due("close", self._name)
        if what != "lost-answer":
            self._store._refuse(what, self._name)
        self._inner.close()
        self._keep()
        self._store._refuse(what, self._name)

    def abandon(self) -> None:
        self._inner.abandon()

    def _keep(self) -> None:
        with self._store._lock:
            self._store._synced[self._name] = self._size
