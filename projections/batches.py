"""One batch of records into one generation of one view, in one transaction with its offsets.

    records  …97 98 99 | 100 101 102 103 | 104…        the view stands at 102
                         a batch that begins at 100     100 and 101 are applied already: left out
                         applied: 102, 103              102 → 104 by compare-and-set
    a batch that begins at 103 would lose 102: refused (`offset-gap`), nothing is written

The same for the live generation (whichever driver feeds it, however often it was killed) and for one being built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from projections import generations, offsets
from projections.database import Connection, live_schema
from projections.errors import OffsetMismatch, ProjectionError
from projections.offsets import Partition
from projections.views.base import View
from streams.consume import Message
from streams.errors import StreamError

# Sent with the view's name when a batch commits; the API listens to wake those who follow a view.
CHANNEL = "holdfast_view"


@dataclass(frozen=True, slots=True)
class Applied:
    """How many records a batch wrote, and how many it left out because they were applied before."""

    records: int
    known: int


def ranges(messages: Sequence[Message]) -> dict[Partition, tuple[int, int]]:
    """What a batch covers, by partition: first offset, and the offset after its last record."""
    out: dict[Partition, tuple[int, int]] = {}
    for m in messages:
        first, _ = out.get((m.topic, m.partition), (m.offset, 0))
        out[m.topic, m.partition] = (first, m.offset + 1)
    return out


def apply_live(
    conn: Connection,
    view: View,
    messages: Sequence[Message],
    read: Mapping[Partition, tuple[int, int]] | None = None,
) -> Applied:
    """Apply a batch to the live generation; `read` as in `apply_to`.

    Raises `ViewAbsent` (it was dropped), `OffsetMismatch`, `ProjectionError` (`view-outdated`, `apply-failed`), and
    `psycopg.OperationalError`, upon which nobody knows whether it committed: apply it again.
    """
    with conn.transaction():
        generation = offsets.live_generation(conn, view.NAME, share=True)
        found = generations.status(conn, view.NAME)
        if found is None or found.version != view.VERSION:
            raise ProjectionError(
                "view-outdated",
                f"the tables of view {view.NAME} are of another version than this process",
                "restart the processors; they rebuild it",
            )
        return _apply(conn, view, generation, live_schema(view.NAME), messages, read or ranges(messages))


def apply_to(
    conn: Connection,
    view: View,
    generation: int,
    messages: Sequence[Message],
    read: Mapping[Partition, tuple[int, int]] | None = None,
) -> Applied:
    """Apply a batch to a generation that is being built. `read` says what the reader went through, where that is more
    than the records (a partition may have holes)."""
    with conn.transaction():
        schema = generations.build_schema(view.NAME, generation)
        return _apply(conn, view, generation, schema, messages, read or ranges(messages))


def _apply(
    conn: Connection,
    view: View,
    generation: int,
    schema: str,
    messages: Sequence[Message],
    read: Mapping[Partition, tuple[int, int]],
) -> Applied:
    stand = offsets.read(conn, view.NAME, generation, lock=True)
    moves = []
    for partition, (first, after) in read.items():
        at = stand.get(partition)
        if at is None or first > at:
            raise OffsetMismatch(
                "offset-gap",
                f"view {view.NAME} stands at {partition[0]}[{partition[1]}]@{at}, the batch begins at {first}",
                "records between would be lost; the processors start again from where the view stands",
            )
        if after > at:
            moves.append((partition, at, after))
    new = [m for m in messages if m.offset >= stand[m.topic, m.partition]]
    with conn.cursor() as cursor:
        if new:
            cursor.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
            try:
                view.apply(cursor, new)
            except psycopg.OperationalError:
                raise
            except (psycopg.Error, StreamError, ValueError, TypeError, KeyError) as error:
                # A record that cannot be applied stops its view, loudly: skipping it would be a lie.
                raise ProjectionError(
                    "apply-failed",
                    f"view {view.NAME} cannot apply records of {_where(moves)}: {type(error).__name__}: {error}",
                    "this is a defect of the view or a damaged log; report it with this message",
                ) from error
        offsets.advance(cursor, view.NAME, generation, moves)
        if moves:
            cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, view.NAME))
    return Applied(len(new), len(messages) - len(new))


def _where(moves: Sequence[tuple[Partition, int, int]]) -> str:
    return ", ".join(f"{topic}[{partition}]@{first}..{after - 1}" for (topic, partition), first, after in moves)
