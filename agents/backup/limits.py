"""How much is done at once: disks by node, host and storage; bytes a second; machines, each by one job.

Everything here is of one process. Who waits calls `check` now and then, which raises when it is to end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Final

NODE_DISKS: Final = 8
HOST_DISKS: Final = 4
STORAGE_DISKS: Final = 4
_LOOK_S: Final = 0.2
_BURST_S: Final = 0.25

Check = Callable[[], None]


class Limits:
    """Places of this process. Safe to call from several threads."""

    def __init__(self, node_disks: int = NODE_DISKS) -> None:
        self._most_of_node = node_disks
        self._changed = threading.Condition()
        self._taken: Counter[Hashable] = Counter()
        self._buckets: dict[str, Bucket] = {}

    @contextlib.contextmanager
    def disk(self, host: str, storage: str, options: Mapping[str, str], check: Check) -> Iterator[None]:
        """A place to read one disk in. `options` of the host: `disks`, `storage_disks`, how many at most at once."""
        most: dict[Hashable, int] = {
            "node": self._most_of_node,
            ("host", host): number(options, "disks", HOST_DISKS),
            ("storage", host, storage): number(options, "storage_disks", STORAGE_DISKS),
        }
        with self._all_of(most, check):
            yield

    @contextlib.contextmanager
    def machines(self, host: str, natives: Sequence[str], check: Check) -> Iterator[None]:
        """These machines alone: nobody else of this process takes a snapshot of them meanwhile."""
        with self._all_of({("machine", host, native): 1 for native in natives}, check):
            yield

    @contextlib.contextmanager
    def _all_of(self, most: Mapping[Hashable, int], check: Check) -> Iterator[None]:
        """All at once or none, so that nobody waits for somebody who waits."""
        with self._changed:
            while any(self._taken[what] >= limit for what, limit in most.items()):
                self._changed.wait(_LOOK_S)
                check()
            self._taken.update(most.keys())
        try:
            yield
        finally:
            with self._changed:
                self._taken.subtract(most.keys())
                self._changed.notify_all()

    def bucket(self, what: str, rate: int) -> Bucket:
        """The one bucket of `what`, at this rate from now on."""
        with self._changed:
            found = self._buckets.get(what)
            if found is None or found.rate != rate:
                found = self._buckets[what] = Bucket(rate)
            return found


class Bucket:
    """So many bytes a second. Who takes more than there are goes into debt and waits until that is paid."""

    def __init__(self, rate: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._there = 0.0
        self._at = monotonic()

    def take(self, size: int) -> float:
        """How many seconds the taker has to wait before it goes on."""
        with self._lock:
            now = self._monotonic()
            self._there = min(self._there + (now - self._at) * self.rate, self.rate * _BURST_S)
            self._at = now
            self._there -= size
            return max(0.0, -self._there / self.rate)


def number(options: Mapping[str, str], name: str, default: int) -> int:
    """An option that is a number above 0, or else `default`."""
    text = options.get(name, "")
    return int(text) if text.isdigit() and int(text) > 0 else default
