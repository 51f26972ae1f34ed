"""Room that is kept for the day when there is none: deleting has to write first (lists, a tombstone, a witness).

`reserve/room` is a file of 8 MiB that nothing reads, in stores that know how much room they have. Whoever has to delete in a
place that is full removes it, and the end of a collection makes it again. And if we die here? It is there or not: the next
collection sees to it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from agents.repository.stores import Store, StoreError

NAME: Final = "reserve/room"
BYTES: Final = 8 << 20
_PIECE: Final = 1 << 20


def keep(store: Store) -> None:
    """Make it, where there is room for it four times. What stands in the way is no error: it is for another day."""
    with contextlib.suppress(StoreError):
        free = store.free_bytes()
        if free is not None and free >= 4 * BYTES and not _there(store):
            # Noise: a file system that compresses, or shares blocks, would reserve nothing.
            store.create(NAME, (os.urandom(_PIECE) for _ in range(BYTES // _PIECE)))


def scarce(store: Store) -> bool:
    """Whether so little room is left that nothing should be moved."""
    free = store.free_bytes()
    return free is not None and free < BYTES


def give_up(store: Store) -> bool:
    """Remove it if room is scarce; whether it is. Raises `StoreError`."""
    if not scarce(store):
        return False
    store.delete(NAME)
    return True


def _there(store: Store) -> bool:
    return next(iter(store.list(NAME)), None) is not None
