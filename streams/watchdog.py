"""A watchdog on progress: a process that has work and does none is worth more dead, since its supervisor restarts it.

Knows nothing of what the work is: it is told how much was done, and asks how much is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `stuck(message)` when for `patience_s` seconds nothing was done although something was left to do.

    `done()`: a number that grows with every piece of work. `left()`: pieces not done; None when that cannot be told just now
    (a server is away: nobody's fault), which starts the patience anew. Both are called from a thread of the watchdog's own.
    """

    def __init__(
        self,
        done: Callable[[], int],
        left: Callable[[], int | None],
        stuck: Callable[[str], None],
        patience_s: float = 120.0,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._done, self._left, self._stuck = done, left, stuck
        self._patience_s, self._every_s, self._clock = patience_s, every_s, clock
        self._last = -1
        self._since = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._since = self._clock()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def look(self) -> None:
        """One look; `start` has a thread do it every so often."""
        done, left, now = self._done(), self._left(), self._clock()
        if done != self._last or not left:
            self._last, self._since = done, now
        elif now - self._since >= self._patience_s:
            self._stuck(f"nothing was done for {now - self._since:.0f} s although {left} records wait")

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self.look()
