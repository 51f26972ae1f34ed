"""The delta run of a backup: every block it changed and what that is now, sorted, in segments that are chunks (kind
DELTA).

What marks, replicates or replays a backup reads its run and not its tree, whose unchanged nodes would be read again
and again. A segment (integers little-endian):

    u8 version (1) · u8[3] 0 · u32 extents · u32 names · first block of each extent u64 · blocks of each u64 · tag of
    each u8 · 32 bytes for each name

Tags are those of `agents.repository.extents`, zero among them: a block that became zero has changed. Names stand at
the end and together, so that marking takes them in one slice. Each segment but the last holds `EXTENTS` extents or
`NAMES` names, so what the segments are follows from the run alone. Knows no packs.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agents.repository.content import DELTA, NAME_SIZE, ChunkSink, ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import BLOCKS, CHUNK, Run, RunBuilder, is_entry

EXTENTS: Final = 1 << 16
NAMES: Final = 1 << 16
DAMAGED: Final = "delta-damaged"

_VERSION: Final = 1
_header = struct.Struct("<B3xII")
_EXTENT_SIZE: Final = 17


def encode(run: Run) -> bytes:
    """The segment that says what `run` says."""
    return b"".join(
        (
            _header.pack(_VERSION, len(run.firsts), len(run.names) // NAME_SIZE),
            _little(run.firsts),
            _little(run.counts),
            run.tags,
            run.names,
        )
    )


def decode(data: bytes) -> Run:
    """What a segment says. Raises `RepositoryError` (`delta-damaged`) unless it is one that `encode` made."""
    extents = _checked(data)
    at = _header.size
    firsts, counts = (_column(data[at + i * 8 * extents : at + (i + 1) * 8 * extents]) for i in range(2))
    at += 16 * extents
    tags = data[at : at + extents]
    end = chunks = 0
    for first, count, tag in zip(firsts, counts, tags, strict=True):
        if first < end or not count or first + count > BLOCKS or not is_entry(tag):
            raise _damaged(f"extents do not ascend, or make no sense, at block {first}")
        end = first + count
        if tag == CHUNK:
            chunks += count
    if chunks * NAME_SIZE != len(data) - at - extents:
        raise _damaged("there are not as many names as chunks")
    return Run(firsts, counts, tags, data[at + extents :])


def references(data: bytes) -> bytes:
    """The names in a segment, joined: what it takes for marking. Raises as `decode`, but looks at the frame only."""
    return data[_header.size + _checked(data) * _EXTENT_SIZE :]


def _checked(data: bytes) -> int:
    if len(data) < _header.size:
        raise _damaged("it is cut off")
    version, extents, names = _header.unpack_from(data)
    if version != _VERSION:
        raise RepositoryError(
            DAMAGED,
            f"a segment of a delta run has version {version}",
            "a newer release of Holdfast wrote it: read it with that",
        )
    if any(data[1:4]) or len(data) != _header.size + extents * _EXTENT_SIZE + names * NAME_SIZE:
        raise _damaged("its length is not what it says")
    return int(extents)


def _damaged(why: str) -> RepositoryError:
    return RepositoryError(
        DAMAGED,
        f"what should be a segment of a delta run is none: {why}",
        "run `holdfast repository verify`: what a point holds can be told from its tree as well",
    )


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":  # pragma: no cover - no platform of ours
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _column(data: bytes) -> array[int]:
    out = array("Q", data)
    if sys.byteorder == "big":  # pragma: no cover - no platform of ours
        out.byteswap()
    return out


class DeltaWriter:
    """Cuts a run that comes in ascending parts into segments, and puts them. Holds one segment at most."""

    def __init__(self, sink: ChunkSink) -> None:
        self._sink = sink
        self._builder = RunBuilder()
        self._names = 0
        self._segments: list[bytes] = []

    def add(self, run: Run) -> None:
        """More of the run, behind what there is. Raises what the sink raises, and ValueError if it does not ascend."""
        for first, count, tag, at in run.extents():
            while count:
                # Full is what the next extent does not fit in: one that goes on with the last does.
                if (tag == CHUNK and self._names == NAMES) or (
                    len(self._builder) == EXTENTS and not self._builder.joins(first, tag)
                ):
                    self._put()
                took = count
                if tag == CHUNK:
                    took = min(count, NAMES - self._names)
                    self._names += took
                self._builder.add(first, took, tag, run.names[at : at + took * NAME_SIZE] if tag == CHUNK else b"")
                first, count = first + took, count - took
                if tag == CHUNK:
                    at += took * NAME_SIZE

    def _put(self) -> None:
        self._segments.append(self._sink.put(DELTA, encode(self._builder.take())))
        self._names = 0

    def finish(self) -> tuple[bytes, ...]:
        """Names of all segments, in order. They are put, and as durable as the sink makes them."""
        if self._builder:
            self._put()
        return tuple(self._segments)


def write(sink: ChunkSink, runs: Iterable[Run]) -> tuple[bytes, ...]:
    """Put `runs`, which ascend, as one delta run: the names of its segments."""
    writer = DeltaWriter(sink)
    for run in runs:
        writer.add(run)
    return writer.finish()


def read(source: ChunkSource, segments: Sequence[bytes]) -> Iterator[Run]:
    """A delta run, segment by segment. Raises `RepositoryError`: `delta-damaged`, and what `source` raises."""
    end = 0
    for name in segments:
        run = decode(source.get(name, DELTA))
        if run and run.firsts[0] < end:
            raise _damaged("it begins before the one before it ends")
        end = run.end
        yield run


def walk(source: ChunkSource, segments: Sequence[bytes]) -> Iterator[bytes]:
    """The names of data in a delta run, joined, segment by segment in no order: for marking. Raises as `read`."""
    for _, data in source.get_many(list(dict.fromkeys(segments)), DELTA):
        yield references(data)
