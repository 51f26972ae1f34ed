"""Sorted ranges of blocks and what stands in them: what backups record, trees take in and readers are told. No input
or output.

An entry says what a block is: a chunk (with its name), zero, left out (with a reason), or lost. A `Run` holds many,
sorted, as columns: a stretch of blocks of one kind is one extent, so that a terabyte of free space costs a few bytes
and a disk read from end to end little more than its names.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from agents.repository.content import NAME_SIZE

ZERO: Final = 0  # reads as zeros; in a tree simply absent
CHUNK: Final = 1
LOST: Final = 2  # was a chunk, and no copy of it could be read: never reads as anything
OMITTED: Final = 0x80  # with a reason in the lower seven bits: left out on purpose, reads as zeros, is listed

BLOCKS: Final = 1 << 63  # a block's number is below

FREE, SWAP, HIBERNATION, RECYCLED, EXCLUDED = 1, 2, 3, 4, 5
REASONS: Final = {
    FREE: "not in use by the file system",
    SWAP: "swap",
    HIBERNATION: "a hibernation image",
    RECYCLED: "in a recycle bin",
    EXCLUDED: "excluded by the policy",
}


def omitted(reason: int) -> int:
    """The entry of a block that was left out because of `reason` (1 to 127, see `REASONS`)."""
    return OMITTED | reason


def is_entry(tag: int) -> bool:
    """Something that can stand in a run."""
    return tag <= LOST or tag > OMITTED


class Extent(NamedTuple):
    """`blocks` of them from `first` on are `tag`; the name of the first one begins at `at` in its run's names."""

    first: int
    blocks: int
    tag: int
    at: int

    @property
    def end(self) -> int:
        return self.first + self.blocks


class Run:
    """Extents in ascending order, none empty, none overlapping another. `names`: those of all chunks, 32 bytes each.

    Columns are not to be changed once a run has been handed on.
    """

    __slots__ = ("counts", "firsts", "names", "tags")

    def __init__(
        self, firsts: array[int] | None = None, counts: array[int] | None = None, tags: bytes = b"", names: bytes = b""
    ) -> None:
        self.firsts = array("Q") if firsts is None else firsts
        self.counts = array("Q") if counts is None else counts
        self.tags = tags
        self.names = names

    def __bool__(self) -> bool:
        return bool(self.firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Run):
            return NotImplemented
        return (self.firsts, self.counts, self.tags, self.names) == (
            other.firsts,
            other.counts,
            other.tags,
            other.names,
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Run({len(self.firsts)} extents, {self.blocks} blocks, {len(self.names) // NAME_SIZE} chunks)"

    @property
    def blocks(self) -> int:
        """How many blocks it speaks of."""
        return sum(self.counts)

    @property
    def end(self) -> int:
        """The block after its last one; 0 of an empty run."""
        return self.firsts[-1] + self.counts[-1] if self.firsts else 0

    def extents(self) -> Iterator[Extent]:
        at = 0
        for first, count, tag in zip(self.firsts, self.counts, self.tags, strict=True):
            yield Extent(first, count, tag, at)
            if tag == CHUNK:
                at += count * NAME_SIZE

    def entries(self) -> Iterator[tuple[int, int, bytes]]:
        """Block by block: number, tag, name (empty unless a chunk). Slow; mind that an extent of zeros may be vast."""
        for first, count, tag, at in self.extents():
            for i in range(count):
                start = at + i * NAME_SIZE
                yield first + i, tag, self.names[start : start + NAME_SIZE] if tag == CHUNK else b""


class RunBuilder:
    """Collects extents in ascending order into a run; joins those that meet."""

    __slots__ = ("_counts", "_end", "_firsts", "_names", "_tag", "_tags")

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._firsts: array[int] = array("Q")
        self._counts: array[int] = array("Q")
        self._tags = bytearray()
        self._names: list[bytes] = []
        self._end = 0
        self._tag = -1

    def add(self, first: int, count: int, tag: int, names: bytes = b"") -> None:
        """`count` blocks from `first`, which is not before the end of what there is. `names` of chunks, joined."""
        if self.joins(first, tag):
            self._counts[-1] += count
        else:
            if first < self._end:
                raise ValueError(f"block {first} does not come after block {self._end - 1}")
            self._firsts.append(first)
            self._counts.append(count)
            self._tags.append(tag)
            self._tag = tag
        self._end = first + count
        if tag == CHUNK:
            self._names.append(names)

    def joins(self, first: int, tag: int) -> bool:
        """An extent of this kind from `first` on goes on with the last one, and makes none of its own."""
        return first == self._end and tag == self._tag

    def __len__(self) -> int:
        """How many extents there are."""
        return len(self._firsts)

    def take(self) -> Run:
        """What was collected; the builder is empty then, and goes on from any block."""
        run = Run(self._firsts, self._counts, bytes(self._tags), b"".join(self._names))
        self._clear()
        return run


def run_of(entries: Iterable[tuple[int, int, bytes]]) -> Run:
    """A run of (block, tag, name) in ascending order of blocks."""
    builder = RunBuilder()
    for block, tag, name in entries:
        builder.add(block, 1, tag, name)
    return builder.take()


def clipped(run: Run, first: int, end: int) -> Run:
    """What `run` says of the blocks `first` up to, not including, `end`."""
    if not run or (run.firsts[0] >= first and run.end <= end):
        return run
    builder = RunBuilder()
    for extent in run.extents():
        start, stop = max(extent.first, first), min(extent.end, end)
        if start < stop:
            at = extent.at + (start - extent.first) * NAME_SIZE
            names = run.names[at : at + (stop - start) * NAME_SIZE] if extent.tag == CHUNK else b""
            builder.add(start, stop - start, extent.tag, names)
    return builder.take()


def overlaid(older: Run, newer: Run) -> Run:
    """What `older` and then `newer` say: where both speak, `newer` is right."""
    builder = RunBuilder()
    upper = list(newer.extents())
    at = 0
    for low in older.extents():
        first = low.first
        while at < len(upper) and upper[at].end <= first:
            _copy(builder, newer, upper[at], upper[at].first, upper[at].end)
            at += 1
        while first < low.end:
            over = upper[at] if at < len(upper) else None
            stop = low.end if over is None else min(low.end, over.first)
            if first < stop:
                _copy(builder, older, low, first, stop)
                first = stop
            if over is None or first >= low.end:
                break
            # What is under `over` is never looked at again.
            first = max(first, over.end)
            if over.end <= low.end:
                _copy(builder, newer, over, over.first, over.end)
                at += 1
    for over in upper[at:]:
        _copy(builder, newer, over, over.first, over.end)
    return builder.take()


def _copy(builder: RunBuilder, run: Run, extent: Extent, first: int, stop: int) -> None:
    at = extent.at + (first - extent.first) * NAME_SIZE
    names = run.names[at : at + (stop - first) * NAME_SIZE] if extent.tag == CHUNK else b""
    builder.add(first, stop - first, extent.tag, names)
