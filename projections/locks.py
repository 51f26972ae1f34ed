"""Who may change the database's structure: advisory locks, held by one connection, gone when it is."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

from projections.database import Connection
from projections.errors import ProjectionError

# The first of the two numbers of an advisory lock: "HOLD".
_CLASS = 0x484F4C44
_MIGRATE = 1


def _key(view: str) -> int:
    """A signed 32-bit number for a view's name; all are above the fixed ones in practice, and a collision only
    waits."""
    return zlib.crc32(view.encode()) - (1 << 31)


@contextlib.contextmanager
def migrating(conn: Connection) -> Iterator[None]:
    """Only one process migrates; the others wait for it."""
    conn.execute("SELECT pg_advisory_lock(%s, %s)", (_CLASS, _MIGRATE))
    try:
        yield
    finally:
        _unlock(conn, _MIGRATE)


@contextlib.contextmanager
def building(conn: Connection, view: str) -> Iterator[None]:
    """Only one process builds, drops or cleans up generations of a view. Raises `ProjectionError`
    (`rebuild-running`)."""
    row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", (_CLASS, _key(view))).fetchone()
    if row is None or not row[0]:
        raise ProjectionError("rebuild-running", f"view {view} is being rebuilt or dropped already", "wait for it")
    try:
        yield
    finally:
        _unlock(conn, _key(view))


def _unlock(conn: Connection, key: int) -> None:
    # A connection that broke has given its locks back already.
    if not conn.closed and not conn.broken:
        conn.execute("SELECT pg_advisory_unlock(%s, %s)", (_CLASS, key))
