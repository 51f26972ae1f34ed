"""Comparing a disk that is there with a disk at a point: by the names of its blocks, so without the repository's data.

Each block that is there is read and named, and the name compared with the tree's; what the tree has no name for reads as zeros.
It is how a restore finds what it has to write, and the proof that what was written is what was sealed
(`agents.repository.proof`). Knows no packs.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from agents.repository import tree
from agents.repository.content import DATA, NAME_SIZE, ChunkSource
from agents.repository.extents import CHUNK, LOST, ZERO
from agents.repository.keys import Naming
from agents.repository.points import Disk
from agents.repository.reader import Fitting

_PIECE_BYTES: Final = 4 << 20  # what a thread reads at once
_PENDING: Final = 2  # pieces a thread has waiting

Same = Callable[[bytes, bytes | bytearray], bool]
Chosen = bytearray  # a byte a block of a disk: 1, it is chosen; 0, it is not
_Entry = tuple[int, bytes]  # tag, name of a chunk


class Readable(Protocol):
    """A disk that is there. Several threads read at once."""

    @property
    def size(self) -> int: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; it is within the disk."""
        ...


@runtime_checkable
class Mapped(Protocol):
    """A disk that knows where it is empty."""

    def holes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Ranges (offset, length) that read as zeros, ascending, none touching another; maybe not all of them."""
        ...


def same_by(*namings: Naming) -> Same:
    """Whether data has a name, in any of these scopes: which one a chunk was stored under, a tree does not say."""

    def same(name: bytes, data: bytes | bytearray) -> bool:
        return any(naming.name_of(DATA, data) == name for naming in namings)

    return same


def differences(
    target: Readable,
    source: ChunkSource,
    disk: Disk,
    same: Same,
    *,
    blocks: tuple[int, int] | None = None,
    chosen: Chosen | None = None,
    threads: int = 2,
    progress: Callable[[int], None] = lambda size: None,
) -> Iterator[tuple[int, int, int]]:
    """Where `target` is not what `disk` was at its point: offset, length, tag of what should be there; block by block, ascending.

    `blocks`: only those from the first up to, not including, the second; `chosen`: of them, only those. `progress(bytes)`, of
    those at which is looked, is called in the caller's thread; what it raises ends the comparison. Lost blocks always differ,
    and so does what is behind the target's end. Raises what reading raises.
    """
    fitting = Fitting(disk.size, disk.block_size)
    first, stop = blocks or (0, fitting.blocks)
    stop = min(stop, fitting.blocks)
    if first >= stop:
        return
    offset, end = first * disk.block_size, min(stop * disk.block_size, disk.size, target.size)
    mapped = target.holes(offset, max(0, end - offset)) if isinstance(target, Mapped) else iter(())
    holes = _Holes(mapped)
    pending: deque[tuple[int, Future[list[tuple[int, int]]]]] = deque()
    with ThreadPoolExecutor(threads, "compare") as pool:
        try:
            for at, entries in _pieces(source, disk.root, first, stop, max(1, _PIECE_BYTES // disk.block_size)):
                begin, until = at * disk.block_size, min((at + len(entries)) * disk.block_size, disk.size)
                size = until - begin if chosen is None else covered(disk, chosen, at, at + len(entries))
                if not size:
                    continue
                if holes.cover(begin, until) and all(tag not in (CHUNK, LOST) for tag, _ in entries):
                    progress(size)
                    continue
                pending.append((size, pool.submit(_compared, target, fitting, at, entries, same, chosen)))
                if len(pending) >= threads * _PENDING:
                    yield from _results(pending, fitting, progress)
            while pending:
                yield from _results(pending, fitting, progress)
        finally:
            for _, future in pending:
                future.cancel()


def _results(
    pending: deque[tuple[int, Future[list[tuple[int, int]]]]], fitting: Fitting, progress: Callable[[int], None]
) -> Iterator[tuple[int, int, int]]:
    size, future = pending.popleft()
    for block, tag in future.result():
        yield block * fitting.block_size, fitting.length(block), tag
    progress(size)


def covered(disk: Disk, chosen: Chosen, first: int, stop: int) -> int:
    """Bytes of the chosen blocks of a disk from `first` up to `stop`."""
    count = chosen.count(1, first, stop)
    last = -(-disk.size // disk.block_size) - 1
    short = (last + 1) * disk.block_size - disk.size if first <= last < stop and chosen[last] else 0
    return count * disk.block_size - short


def _compared(
    target: Readable, fitting: Fitting, first: int, entries: list[_Entry], same: Same, chosen: Chosen | None
) -> list[tuple[int, int]]:
    """(block, tag) of those from `first` on that are not what `entries` say."""
    if chosen is None:
        return _stretch(target, fitting, first, entries, same)
    out = []
    at, stop = chosen.find(1, first, first + len(entries)), first + len(entries)
    while at >= 0:
        end = chosen.find(0, at, stop)
        end = stop if end < 0 else end
        out += _stretch(target, fitting, at, entries[at - first : end - first], same)
        at = chosen.find(1, end, stop)
    return out


def _stretch(
    target: Readable, fitting: Fitting, first: int, entries: list[_Entry], same: Same
) -> list[tuple[int, int]]:
    size = fitting.block_size
    start = first * size
    there = min((first + len(entries)) * size, fitting.size, target.size) - start
    data = bytearray(max(0, there))
    if data:
        target.read_into(start, memoryview(data))
    zero = bytes(size)
    out = []
    for number, (tag, name) in enumerate(entries):
        length = fitting.length(first + number)
        found = data[number * size : number * size + length]
        if tag == LOST or len(found) != length or not (same(name, found) if tag == CHUNK else found == zero[:length]):
            out.append((first + number, tag))
    return out


def _pieces(source: ChunkSource, root: bytes, first: int, stop: int, width: int) -> Iterator[tuple[int, list[_Entry]]]:
    """Every block from `first` up to `stop`, in pieces of `width`: the first one's number, then what the tree says of each."""
    piece: list[_Entry] = []
    at = first  # of the piece

    def zeros(count: int) -> Iterator[tuple[int, list[_Entry]]]:
        nonlocal piece, at
        while count:
            some = min(count, width - len(piece))
            piece += [(ZERO, b"")] * some
            count -= some
            if len(piece) == width:
                yield at, piece
                at, piece = at + width, []

    for run in tree.iterate(source, root, first, stop):
        for block, tag, name in _entries(run.extents(), run.names, first, stop):
            yield from zeros(block - at - len(piece))
            piece.append((tag, name))
            if len(piece) == width:
                yield at, piece
                at, piece = at + width, []
    yield from zeros(stop - at - len(piece))
    if piece:
        yield at, piece


def _entries(
    extents: Iterator[tuple[int, int, int, int]], names: bytes, first: int, stop: int
) -> Iterator[tuple[int, int, bytes]]:
    """Block by block; an extent may span far more than the disk has."""
    for begin, count, tag, at in extents:
        for block in range(max(begin, first), min(begin + count, stop)):
            start = at + (block - begin) * NAME_SIZE
            yield block, tag, names[start : start + NAME_SIZE] if tag == CHUNK else b""


class _Holes:
    """Asked for ascending ranges."""

    def __init__(self, holes: Iterator[tuple[int, int]]) -> None:
        self._holes = holes
        self._now: tuple[int, int] | None = next(holes, None)

    def cover(self, start: int, end: int) -> bool:
        while self._now is not None and sum(self._now) < end:
            if self._now[0] <= start < sum(self._now):
                return False  # it begins in this hole and ends behind it
            self._now = next(self._holes, None)
        return self._now is not None and self._now[0] <= start


class FileDisk:
    """A raw file or a block device, read only. Close it."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        while buffer:
            got = os.preadv(self._fd, [buffer], offset)
            if not got:
                raise OSError(5, "it ended while it was read")
            buffer, offset = buffer[got:], offset + got

    def holes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        while offset < end:
            try:
                data = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole is left; or a device that knows none, whose data is read
                data = end if self._is_file() else offset
            data = min(data, end)
            if data > offset:
                yield offset, data - offset
            if data >= end:
                return
            try:
                offset = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError:
                return

    def _is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self._fd).st_mode)

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
