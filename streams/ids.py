"""Names and numbers: UUIDv7 (RFC 9562) for things, slugs for what people name, a hybrid logical clock for order."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable

from streams.errors import StreamError

SLUG = re.compile(r"[a-z][a-z0-9-]{0,47}")


def uuid7(now_ms: int | None = None) -> str:
    """A new UUIDv7 in text: 48 bits of Unix milliseconds, then random."""
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    value = (ms & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))


def slug(text: str) -> str:
    """`text` when it can name a source, asset or site; raises `StreamError` (`name-invalid`) when not."""
    if not SLUG.fullmatch(text):
        raise StreamError(
            "name-invalid",
            f"{text!r} cannot be a name",
            "use small letters, digits and hyphens, a letter first, at most 48 characters",
        )
    return text


def now_us() -> int:
    """Wall clock in µs since 1970."""
    return time.time_ns() // 1000


class HybridClock:
    """A hybrid logical clock: 48 bits of milliseconds, 16 of count. An effect's stamp is greater than its cause's.

    Kulkarni et al., "Logical Physical Clocks", 2014. `observe` takes a stamp that came in, `tick` gives the next.
    """

    def __init__(self, wall_ms: Callable[[], int] | None = None) -> None:
        self._wall = wall_ms or (lambda: time.time_ns() // 1_000_000)
        self._last = 0
        self._lock = threading.Lock()

    def tick(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, self._wall() << 16)
            return self._last

    def observe(self, stamp: int) -> None:
        with self._lock:
            self._last = max(self._last, stamp)
