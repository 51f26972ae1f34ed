"""A store in this process's memory: for tests, and for what need not outlive it. Whatever is written is as durable as it gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from agents.repository.stores import (
    Appender,
    Buffer,
    Listed,
    Traits,
    checked_name,
    checked_prefix,
    exists,
    missing,
    short,
)


class MemoryStore:
    """Implements `Store`."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytearray, int]] = {}
        self._lock = threading.Lock()

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        whole = bytearray().join(parts)
        with self._lock:
            self._add(name, whole)

    def append(self, name: str) -> Appender:
        growing = bytearray()
        with self._lock:
            self._add(name, growing)
        return _Growing(growing, self._lock)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        with self._lock:
            data = self._find(name)
            wanted = max(0, len(data) - offset) if size is None else size
            found = bytes(memoryview(data)[offset : offset + wanted])
        if len(found) < wanted:
            raise short(name, offset, wanted, len(found))
        return found

    def size(self, name: str) -> int:
        with self._lock:
            return len(self._find(name))

    def list(self, prefix: str = "") -> Iterator[Listed]:
        checked_prefix(prefix)
        with self._lock:
            found = [Listed(n, len(d), t) for n, (d, t) in sorted(self._files.items()) if n.startswith(prefix)]
        yield from found

    def delete(self, name: str) -> None:
        with self._lock:
            self._files.pop(checked_name(name), None)

    def check(self) -> Traits:
        return Traits("memory", "memory", "memory", notes=("everything is gone when the process ends",))

    def free_bytes(self) -> int | None:
        return None

    def sweep(self, older_than_s: float) -> int:
        return 0  # a crash leaves nothing

    def close(self) -> None:
        """Nothing to let go of: the files stay until the store itself is forgotten."""

    def put(self, name: str, data: bytes) -> None:
        """What somebody else does to a file, for tests: replaces it whole."""
        with self._lock:
            self._files[name] = bytearray(data), time.time_ns() // 1000

    def _add(self, name: str, data: bytearray) -> None:
        if checked_name(name) in self._files:
            raise exists(name)
        self._files[name] = data, time.time_ns() // 1000

    def _find(self, name: str) -> bytearray:
        try:
            return self._files[checked_name(name)][0]
        except KeyError:
            raise missing(name) from None


class _Growing:
    def __init__(self, data: bytearray, lock: threading.Lock) -> None:
        self._data, self._lock = data, lock
        self._closed = False

    def write(self, *parts: Buffer) -> int:
        if self._closed:
            raise ValueError("written to after close")
        with self._lock:
            at = len(self._data)
            for part in parts:
                self._data += part
        return at

    def sync(self) -> None:
        """Memory is memory."""

    def close(self) -> None:
        self._closed = True

    def abandon(self) -> None:
        self._closed = True
