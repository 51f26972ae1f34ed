"""How far a restore is: rate and time left for people, a look at whether to go on, and a limit on bytes a second."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from agents.backup.limits import Bucket
from agents.backup.progress import duration
from agents.commands import Context

_LOOKED_BACK_S: Final = 20.0  # what the rate is of


class Meter:
    """Progress that several threads make on one stretch of work, as the job tells it."""

    def __init__(self, ctx: Context, what: str, total: int) -> None:
        self._ctx = ctx
        self._what = what
        self._total = total
        self._lock = threading.Lock()
        self._past: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self.done = 0

    def add(self, size: int) -> None:
        """Raises what `Context.check` does."""
        self._ctx.check()
        now = time.monotonic()
        with self._lock:
            self.done += size
            if now - self._past[-1][0] >= 0.5:
                self._past.append((now, self.done))
                while len(self._past) > 2 and now - self._past[0][0] > _LOOKED_BACK_S:
                    self._past.popleft()
            self._ctx.progress(f"{self._what}{self._pace(now)}", self.done, self._total, "bytes")

    def _pace(self, now: float) -> str:
        since, done = self._past[0]
        if now - since < 1.0 or self.done <= done:
            return ""
        rate = (self.done - done) / (now - since)
        return f", {rate / 1e6:,.0f} MB/s, {duration((self._total - self.done) / rate)} left"


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
