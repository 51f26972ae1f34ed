"""From what a host says of a disk to the blocks that are read of it. Pure.

    since a mark:   ....dd......d.....z zzzzzz..    what may have changed: data, or zero now
    blocks:         |DDD|   |DDD|   |D Z Z|         whole blocks; a block of which a part is zero is read
    grown:                              |DDDDDD|    behind the old end nobody keeps track of everything

Everything comes in ascending order and nothing is held but the block that was last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agents.machines import ExtentKind
from agents.repository.extents import CHUNK, ZERO

Extents = Iterable[tuple[int, int, ExtentKind]]
Blocks = Iterator[tuple[int, int, int]]


def blocks(extents: Extents, block_size: int, size: int) -> Blocks:
    """`extents` of a disk of `size` bytes as blocks (first, count, tag), each once; CHUNK is to be read, ZERO reads as zeros."""
    total = -(-size // block_size)
    at = 0  # the first block that nothing was said of
    held: tuple[int, int, int] | None = None
    for offset, length, kind in extents:
        end = min(offset + length, size)
        if end <= offset:
            continue
        for first, stop, tag in _pieces(offset, end, kind, block_size, total, size):
            first = max(first, at)
            if first >= stop:
                continue
            at = stop
            if held is not None and held[0] + held[1] == first and held[2] == tag:
                held = (held[0], held[1] + stop - first, tag)
                continue
            if held is not None:
                yield held
            held = (first, stop - first, tag)
    if held is not None:
        yield held


def _pieces(
    offset: int, end: int, kind: ExtentKind, block_size: int, total: int, size: int
) -> Iterator[tuple[int, int, int]]:
    """An extent as runs of blocks. Of one that is zero the blocks that it does not fill are read."""
    first, stop = offset // block_size, min(-(-end // block_size), total)
    if kind == "data":
        yield first, stop, CHUNK
        return
    full, last = -(-offset // block_size), total if end == size else end // block_size
    if full >= last:
        yield first, stop, CHUNK
        return
    if first < full:
        yield first, full, CHUNK
    yield full, last, ZERO
    if last < stop:
        yield last, stop, CHUNK


def resized(extents: Extents, before: int, size: int, block_size: int) -> Iterator[tuple[int, int, ExtentKind]]:
    """The same of a disk that had `before` bytes when it was read last: from the block of the smaller end on all is read."""
    if before == size:
        yield from extents
        return
    edge = min(before, size) // block_size * block_size
    for offset, length, kind in extents:
        if offset < edge:
            yield offset, min(length, edge - offset), kind
    if edge < size:
        yield edge, size - edge, "data"


def bytes_to_read(found: Iterable[tuple[int, int, int]], block_size: int) -> int:
    return sum(count for _, count, tag in found if tag == CHUNK) * block_size
