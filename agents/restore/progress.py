"""How far a restore is: rate and time left for people, a look at whether to go on, and a limit on bytes a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from agents.backup.limits import Bucket
from agents.backup.progress import duration
from agents.commands import Context

_LOOKED_BACK_S: Final = 20.0  # what the rate is of
_SHOWN: Final = 4  # stretches that are named


class Stopped(Exception):
    """Another disk of the same restore has failed: this one is to end, too."""


class Meter:
    """Progress that several threads make, of one stretch of work or of several at once (`part`), as the job tells it."""

    def __init__(self, ctx: Context, what: str, total: int) -> None:
        self._ctx = ctx
        self._what = what
        self._total = total
        self._parts: list[str] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._past: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._worked = 0
        self.done = 0

    def add(self, size: int, *, known: bool = False) -> None:
        """`known`: it was there already, or cannot be another, which says nothing of how fast the rest goes. Raises what
        `Context.check` does, `Stopped`."""
        if self._stopped.is_set():
            raise Stopped
        self._ctx.check()
        now = time.monotonic()
        with self._lock:
            self.done += size
            if not known:
                self._worked += size
            if now - self._past[-1][0] >= 0.5:
                self._past.append((now, self._worked))
                while len(self._past) > 2 and now - self._past[0][0] > _LOOKED_BACK_S:
                    self._past.popleft()
            self._ctx.progress(f"{self._said()}{self._pace(now)}", self.done, self._total, "bytes")

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """`what` goes on meanwhile."""
        with self._lock:
            self._parts.append(what)
        try:
            yield
        finally:
            with self._lock:
                self._parts.remove(what)

    def stop(self) -> None:
        """Whoever adds something next is to end."""
        self._stopped.set()

    def _said(self) -> str:
        more = f" and {len(self._parts) - _SHOWN} more" if len(self._parts) > _SHOWN else ""
        return ", ".join(self._parts[:_SHOWN]) + more or self._what

    def _pace(self, now: float) -> str:
        since, worked = self._past[0]
        if now - since < 1.0 or self._worked <= worked:
            return ""
        rate = (self._worked - worked) / (now - since)
        left = max(0, self._total - self.done)
        return f", {rate / 1e6:,.0f} MB/s, {duration(left / rate)} left"


class Limit:
    """At most so many bytes a second, by all threads together; 0: as many as go. `wait(seconds)` returns early when it is time to
    end, which the next look at that finds."""

    def __init__(self, bytes_per_s: int, wait: Callable[[float], object]) -> None:
        self._bucket = Bucket(bytes_per_s) if bytes_per_s else None
        self._wait = wait

    def take(self, size: int) -> None:
        """Returns when `size` bytes may go."""
        if self._bucket is not None and (seconds := self._bucket.take(size)):
            self._wait(seconds)
