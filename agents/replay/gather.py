"""Neighbouring plain transactions served as one: a commit costs a replica more than the row that it commits.

    GTID 7 · table map · rows · XID        GTID 9 · table map · rows · table map · rows · table map · rows · XID
    GTID 8 · table map · rows · XID   →
    GTID 9 · table map · rows · XID

Events go as they were logged, in the order in which they were; only GTIDs and ends in between are left out, so a replica
that has applied it stands after the last step, and in between it stands nowhere. That is no loss to a copy that nobody sees
before it has all. Plain is what can roll back as a whole and holds nothing but rows: no statement, no XA, no table of an
engine without transactions. Left alone, too, is what was loaded with all checks off, since InnoDB then loads an empty
table in bulk and takes nothing else before the end of the transaction.

Pure: steps in, steps out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from struct import Struct
from typing import Final, NamedTuple

from streams.capture_log import StepFragment
from streams.formats.binlog import events as ev
from streams.formats.binlog.rows import KINDS, NO_FOREIGN_KEY_CHECKS, RELAXED_UNIQUE_CHECKS

# More would save little, and would have to be done again when two of them, applied side by side, meet.
MOST_STEPS: Final = 100
MOST_BYTES: Final = 1 << 18

_gtid = Struct("<4xBII4x2xQIB").unpack_from  # kind, server id, length, sequence, domain, flags of a GTID event
_header = Struct("<4xB4xI").unpack_from
_KINDS_OF_GROUP: Final = (
    ev.GTID_STANDALONE | ev.GTID_TRANSACTIONAL | ev.GTID_DDL | ev.GTID_PREPARED_XA | ev.GTID_COMPLETED_XA
)
_UNCHECKED: Final = NO_FOREIGN_KEY_CHECKS | RELAXED_UNIQUE_CHECKS
_ROWS_FLAGS: Final = ev.HEADER_SIZE + 6


class _Plain(NamedTuple):
    """A plain transaction: who committed it (server id, domain), and where its rows begin and end in `payload`."""

    origin: tuple[int, int]
    payload: bytes
    begin: int
    end: int


def gathered(steps: Iterable[StepFragment]) -> Iterator[StepFragment]:
    """The same with plain transactions put together, up to `MOST_STEPS` and about `MOST_BYTES` each. Such a step has the
    ordinal of the last that is in it."""
    held: list[_Plain] = []
    last: StepFragment | None = None
    size = 0
    for step in steps:
        plain = _plain(step)
        if last is not None and (
            plain is None
            or plain.origin != held[0].origin
            or step.preamble != last.preamble
            or len(held) >= MOST_STEPS
            or size + len(plain.payload) > MOST_BYTES
        ):
            yield _joined(held, last)
            held, last, size = [], None, 0
        if plain is None:
            yield step
            continue
        held.append(plain)
        last = step
        size += len(plain.payload)
    if last is not None:
        yield _joined(held, last)


def _joined(held: list[_Plain], last: StepFragment) -> StepFragment:
    if len(held) == 1:
        return last
    newest = held[-1]
    rows = [plain.payload[plain.begin : plain.end] for plain in held]
    return replace(last, payload=b"".join((newest.payload[: newest.begin], *rows, newest.payload[newest.end :])))


def _plain(step: StepFragment) -> _Plain | None:
    """None for what is not plain, and for what is damaged: whoever sends it says so."""
    payload = step.payload
    if payload is None or step.accounts or step.number or not step.last or len(payload) < ev.HEADER_SIZE + 13:
        return None
    kind, server_id, begin, _, domain, flags = _gtid(payload)
    if kind != ev.GTID or flags & _KINDS_OF_GROUP != ev.GTID_TRANSACTIONAL:
        return None
    at, end = begin, len(payload) - ev.HEADER_SIZE
    while ev.HEADER_SIZE < at <= end:
        kind, length = _header(payload, at)
        if kind == ev.XID:
            return _Plain((server_id, domain), payload, begin, at) if at + length == len(payload) else None
        if kind in KINDS:
            if at + _ROWS_FLAGS >= len(payload) or payload[at + _ROWS_FLAGS] & _UNCHECKED == _UNCHECKED:
                return None
        elif kind not in (ev.TABLE_MAP, ev.ANNOTATE_ROWS):
            return None
        if length < ev.HEADER_SIZE:
            return None
        at += length
    return None
