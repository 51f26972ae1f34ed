"""How far each view has read the log. An offset moves in the transaction that writes the rows it stands for, or not at
all.

Knows PostgreSQL only; how far the log goes is `projections.log`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from projections.database import Connection
from projections.errors import OffsetMismatch, ViewAbsent

# (full topic name, partition)
Partition = tuple[str, int]
Cut = Mapping[Partition, int]


def read(conn: Connection, view: str, generation: int, *, lock: bool = False) -> dict[Partition, int]:
    """Partition → offset of the first record not applied. `lock`: nobody else moves them until the transaction ends."""
    rows = conn.execute(
        """
        SELECT topic, partition, next_offset FROM holdfast.view_offset WHERE view = %s AND generation = %s
        ORDER BY topic, partition
        """
        + (" FOR UPDATE" if lock else ""),
        (view, generation),
    ).fetchall()
    return {(row[0], row[1]): row[2] for row in rows}


def topic_ids(conn: Connection, view: str, generation: int) -> dict[str, str]:
    """Full topic name → the id that the topic had when the view began to read it."""
    rows = conn.execute(
        "SELECT DISTINCT topic, topic_id FROM holdfast.view_offset WHERE view = %s AND generation = %s",
        (view, generation),
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def live(conn: Connection, view: str) -> dict[Partition, int]:
    """How far the live generation has read. Raises `ViewAbsent`."""
    return read(conn, view, live_generation(conn, view))


def live_generation(conn: Connection, view: str, *, share: bool = False) -> int:
    """The live generation's number; `share`: it stays the live one until the transaction ends. Raises `ViewAbsent`."""
    row = conn.execute(
        "SELECT generation, state FROM holdfast.view WHERE view = %s" + (" FOR SHARE" if share else ""), (view,)
    ).fetchone()
    if row is None:
        raise ViewAbsent("view-absent", f"view {view} has never been built", "`holdfast projections rebuild`")
    if row[1] != "live":
        raise ViewAbsent("view-dropped", f"view {view} was dropped", f"`holdfast projections rebuild {view}`")
    return int(row[0])


def register(conn: Connection, view: str, generation: int, starts: Mapping[Partition, tuple[str, int]]) -> None:
    """Begin to read partitions: (topic, partition) → (topic id, first offset). Those known already stay as they are."""
    with conn.cursor() as cur:
        cur.executemany(
            """
            INSERT INTO holdfast.view_offset (view, generation, topic, partition, topic_id, next_offset)
            VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
            """,
            [(view, generation, topic, partition, tid, at) for (topic, partition), (tid, at) in starts.items()],
        )


def advance(
    cursor: psycopg.Cursor[Any], view: str, generation: int, moves: Iterable[tuple[Partition, int, int]]
) -> None:
    """Compare and set: each of `moves` is (partition, expected, new). Raises `OffsetMismatch` (`offset-moved`), upon
    which the caller's transaction must end: somebody else applied these records."""
    for (topic, partition), expected, new in moves:
        cursor.execute(
            """
            UPDATE holdfast.view_offset SET next_offset = %s
            WHERE view = %s AND generation = %s AND topic = %s AND partition = %s AND next_offset = %s
            """,
            (new, view, generation, topic, partition, expected),
        )
        if cursor.rowcount != 1:
            raise OffsetMismatch(
                "offset-moved",
                f"view {view} does not stand at {topic}[{partition}]@{expected} any more",
                "another processor applies the same view; this batch was not applied",
            )
