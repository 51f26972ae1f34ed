"""How far a backup is, how fast, how long yet, and what it waits for most: as its job tells it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from agents.backup.limits import Bucket
from agents.machines import DiskSnapshot
from agents.repository.ingest import Spent

_WINDOW_S: Final = 15.0
_SLICE_S: Final = 0.2


class Stopped(Exception):
    """The job ends: whoever reads for it is to end too."""


class Pace:
    """What all readers of a job come by. Safe to call from several threads."""

    def __init__(self, buckets: Sequence[Bucket] = (), monotonic: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self.done = 0
        self.disks = 0  # that have said how much there is to read of them
        self._buckets = buckets
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._held_s = 0.0
        self._seen: deque[tuple[float, int]] = deque([(monotonic(), 0)])

    def stop(self) -> None:
        self._stop.set()

    def go_on(self) -> None:
        """Raises `Stopped`."""
        if self._stop.is_set():
            raise Stopped

    def expect(self, size: int) -> None:
        """`size` bytes more are to be read, of a disk."""
        with self._lock:
            self.total += size
            self.disks += 1

    def take(self, size: int) -> None:
        """Before `size` bytes are read: waits as long as the limits say. Raises `Stopped`."""
        self.go_on()
        wait = max((bucket.take(size) for bucket in self._buckets), default=0.0)
        with self._lock:
            self._held_s += wait
        while wait > 0:
            if self._stop.wait(min(wait, _SLICE_S)):
                raise Stopped
            wait -= _SLICE_S

    def read(self, size: int, *, extra: bool = False) -> None:
        """`extra`: nobody had expected them."""
        with self._lock:
            self.done += size
            self.total += size if extra else 0

    def rate(self) -> float:
        """Bytes a second of late."""
        now = self._monotonic()
        with self._lock:
            self._seen.append((now, self.done))
            while len(self._seen) > 2 and self._seen[1][0] < now - _WINDOW_S:
                self._seen.popleft()
            first, done = self._seen[0]
            return (self.done - done) / (now - first) if now > first else 0.0

    def told(self, spent: Iterable[Spent], known: bool = True) -> str:
        """`118.2 MB/s, 3 min left, most of the time goes into reading`. `known`: the total is."""
        rate = self.rate()
        parts = [f"{rate / 1e6:.1f} MB/s"]
        left = max(0, self.total - self.done)
        if known and rate > 0 and left:
            parts.append(f"{duration(left / rate)} left")
        parts.append(f"most of the time goes into {self.bottleneck(spent)}")
        return ", ".join(parts)

    def bottleneck(self, spent: Iterable[Spent]) -> str:
        """reading, processing, storing, or keeping to the bandwidth limit."""
        sums = list(spent)
        reading, storing = sum(s.reading for s in sums), sum(s.storing for s in sums)
        found = {
            "reading": reading - self._held_s,
            "processing": sum(s.processing for s in sums) - storing,
            "storing": storing,
            "keeping to the bandwidth limit": self._held_s,
        }
        return max(found, key=lambda what: found[what])


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Reading:
    """A disk at a snapshot as a source of bytes that keeps to the pace (`agents.repository.disk_ingest.Source`)."""

    def __init__(self, disk: DiskSnapshot, pace: Pace, *, extra: bool = False) -> None:
        self._disk = disk
        self._pace = pace
        self._extra = extra

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._pace.take(len(buffer))
        self._disk.read_into(offset, buffer)
        self._pace.read(len(buffer), extra=self._extra)
