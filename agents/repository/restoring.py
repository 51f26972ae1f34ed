"""Restoring a disk: everything it holds at a point, in the order in which packs have it, in parallel, verified, and
resumable.

A disk is restored window by window (4 GiB at 256 KiB a block). In a window chunks are read in the order of packs, a
few MiB at a time on several threads, and written where they belong: a chunk that stands in many places is read once.
Zero and omitted blocks become holes. Where to, and what is noted of it on the way, is the caller's to say (`file_targets`,
`agents.restore.writing`). Knows no packs.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from agents.failpoints import failpoint
from agents.repository import tree
from agents.repository.content import DATA, NAME_SIZE, ChunkSource, Ordering
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST
from agents.repository.points import Disk
from agents.repository.reader import UNREADABLE, Fitting, lost, readable
from agents.repository.stores import Buffer

WINDOW: Final = 1 << 14  # blocks
_SLICE_BYTES: Final = 4 << 20  # what a thread reads at once
_GATHERED: Final = 4 << 20  # what a thread writes at once, at most
_PENDING: Final = 2  # slices a thread has waiting
_RESERVED: Final = 1 << 20  # stretches shorter than this are not worth a call of their own
THREADS: Final = (os.cpu_count() or 2) + 2  # two wait for the disk while the processors are busy


class Target(Protocol):
    """Where a disk is restored to. `write` may be called by several threads, for ranges that do not overlap."""

    def write(self, offset: int, data: Buffer) -> None:
        """`data` is the caller's again on return."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...

    def flush(self) -> None:
        """What was written is durable on return."""
        ...


@runtime_checkable
class Reserving(Protocol):
    """A target that gains by being told what will be written."""

    def reserve(self, offset: int, length: int) -> None:
        """All of this range will be written. It reads as before until then. Raises `OSError` when there is no room."""
        ...


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. Bytes: of the disk's ranges asked for, written as data, found restored already; `lost`:
    ranges of bytes that were left as zeros since they are lost, or no copy of them can be read; ascending."""

    wanted: int
    written: int
    kept: int
    lost: tuple[tuple[int, int], ...]


class Stopped(Exception):
    """The caller asked to stop; what was restored is on record, and a restore to the same target goes on from there."""


def restore_disk(
    source: ChunkSource,
    disk: Disk,
    target: Target,
    *,
    ranges: Sequence[tuple[int, int]] | None = None,
    zeros: bool = True,
    skip_lost: bool = False,
    threads: int = THREADS,
    done: Callable[[int], bool] = lambda window: False,
    finished: Callable[[int], None] = lambda window: None,
    progress: Callable[[int], None] = lambda size: None,
    stop: Callable[[], bool] = lambda: False,
) -> Restored:
    """Write what `disk` holds to `target`: all of it, or the `ranges` (offset and length in bytes, ascending).

    `zeros`: the target is not known to be zero, so zeros are written too. `done(window)` says that a window is
    restored already; `finished(window)` is called when one is, and durable; `progress(bytes)` as it goes on, from
    several threads. Raises `RepositoryError`: `block-lost` (before anything of its window is written, unless
    `skip_lost`), `chunk-damaged`, `chunk-missing`, `tree-damaged` (likewise: all that a node stands for is lost); `StoreError`,
    `OSError`, `Stopped`. A window that lacks something is not `finished`: whoever goes on finds again what it lacks.
    """
    fitting = Fitting(disk.size, disk.block_size)
    wanted = [(0, disk.size)] if ranges is None else [(o, min(n, disk.size - o)) for o, n in ranges if o < disk.size]
    work = _Work(source, fitting, target, zeros, skip_lost, threads, progress, stop)
    kept = 0
    with ThreadPoolExecutor(threads, "restore") as pool, ThreadPoolExecutor(1, "flush") as flusher:
        flushed: Future[None] | None = None
        try:
            for number, parts in _windows(wanted, disk.block_size):
                if done(number):
                    kept += sum(length for _, length in parts)
                    continue
                lost_before = len(work.lost)
                for offset, length in parts:
                    work.restore(pool, disk.root, offset, length)
                noted = finished if len(work.lost) == lost_before else _unnoted
                failpoint("restore-window-written")
                # The disk writes while the next window is read.
                if flushed:
                    flushed.result()
                flushed = flusher.submit(_flushed, target, noted, number)
            if flushed:
                flushed.result()
                flushed = None
        finally:
            if flushed:
                wait([flushed])
    target.flush()
    return Restored(sum(length for _, length in wanted), work.written, kept, _joined(work.lost))


def _unnoted(window: int) -> None:
    """Of a window that is not whole."""


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges (offset, length), none touching another, ascending."""
    out: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if out and sum(out[-1]) == offset:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((offset, length))
    return tuple(out)


def _flushed(target: Target, finished: Callable[[int], None], number: int) -> None:
    target.flush()
    failpoint("restore-window-flushed")
    finished(number)


def _windows(ranges: Sequence[tuple[int, int]], block_size: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """`ranges` by window: its number, and the parts of ranges (offset, length) in it."""
    width = WINDOW * block_size
    parts: list[tuple[int, int]] = []
    current = end = 0
    for offset, length in ranges:
        if offset < end or length < 0:
            raise ValueError("ranges to restore do not ascend")
        end = offset + length
        while offset < end:
            if offset // width != current and parts:
                yield current, parts
                parts = []
            current = offset // width
            took = min(end, (current + 1) * width) - offset
            parts.append((offset, took))
            offset += took
    if parts:
        yield current, parts


class _Work:
    """What the threads of one restore share."""

    def __init__(
        self,
        source: ChunkSource,
        fitting: Fitting,
        target: Target,
        zeros: bool,
        skip_lost: bool,
        threads: int,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        self._source = source
        self._fitting = fitting
        self._target = target
        self._zeros = zeros
        self._skip_lost = skip_lost
        self._threads = threads
        self._progress = progress
        self._stop = stop
        self._lock = threading.Lock()
        self._own = threading.local()
        self._failed = False
        self.written = 0
        self.lost: list[tuple[int, int]] = []

    def restore(self, pool: ThreadPoolExecutor, root: bytes, offset: int, length: int) -> None:
        """Restore one range, which is not larger than a window."""
        end = offset + length
        size = self._fitting.block_size
        first, stop = offset // size, -(-end // size)
        places: dict[bytes, list[int]] = {}
        holes: list[tuple[int, int]] = []
        lost_here: list[tuple[int, int]] = []
        at = first
        for run in tree.iterate(self._source, root, first, stop, skip_lost=self._skip_lost):
            names = run.names
            for begin, count, tag, start in run.extents():
                if begin > at:
                    holes.append((at, begin))
                at = begin + count
                if tag == CHUNK:
                    for i in range(count):
                        name = names[start + i * NAME_SIZE : start + (i + 1) * NAME_SIZE]
                        if name in places:
                            places[name].append(begin + i)
                        else:
                            places[name] = [begin + i]
                else:
                    holes.append((begin, at))
                    if tag == LOST:
                        lost_here.append((begin, at))
        if at < stop:
            holes.append((at, stop))
        if lost_here and not self._skip_lost:
            raise lost(lost_here[0][0], size)
        bounds = (offset, end)
        for begin, until in lost_here:
            start = max(begin * size, offset)
            self.lost.append((start, min(until * size, end) - start))
        for begin, until in holes:
            start, length = max(begin * size, offset), min(until * size, end) - max(begin * size, offset)
            if self._zeros:
                self._target.zero(start, length)
            self._progress(length)
        self._reserve(holes, bounds)
        ordered = list(places)
        if isinstance(self._source, Ordering):
            try:
                ordered = self._source.read_order(ordered, DATA)
            except RepositoryError as error:
                if not self._skip_lost or error.code not in UNREADABLE:
                    raise  # otherwise in the disk's order: slower, and whole but for what is not there
        step = max(1, _SLICE_BYTES // size)
        slices = iter([ordered[i : i + step] for i in range(0, len(ordered), step)])
        running: set[Future[None]] = set()
        try:
            for names_of in itertools.islice(slices, self._threads * _PENDING):
                running.add(pool.submit(self._slice, names_of, places, bounds))
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                    following = next(slices, None)
                    if following is not None:
                        running.add(pool.submit(self._slice, following, places, bounds))
        except BaseException:
            self._failed = True
            for future in running:
                future.cancel()
            wait(running)
            raise

    def _reserve(self, holes: list[tuple[int, int]], bounds: tuple[int, int]) -> None:
        """Tell the target of what is between `holes`, ranges of blocks that ascend."""
        if not isinstance(self._target, Reserving):
            return
        size = self._fitting.block_size
        at, end = bounds
        for begin, until in (*holes, (-(-end // size), -(-end // size))):
            data_ends = min(begin * size, end)
            if data_ends - at >= _RESERVED:
                self._target.reserve(at, data_ends - at)
            at = max(at, until * size)

    def _slice(self, names: list[bytes], places: dict[bytes, list[int]], bounds: tuple[int, int]) -> None:
        if self._failed:
            return
        if self._stop():
            raise Stopped
        offset, end = bounds
        size = self._fitting.block_size
        gathering: _Gathering | None = getattr(self._own, "gathering", None)
        if gathering is None:
            gathering = self._own.gathering = _Gathering(self._target, size)
        written = 0

        def unreadable(name: bytes) -> None:
            for block in places[name]:
                start, stop = max(block * size, offset), min((block + 1) * size, end)
                self._target.zero(start, stop - start)  # an earlier run may have read it, or it is another's target
                with self._lock:
                    self.lost.append((start, stop - start))

        gathering.expect(block for name in names for block in places[name])
        for name, data in readable(self._source, names, unreadable if self._skip_lost else None):
            for block in places[name]:
                start = block * size
                part: Buffer = self._fitting.fitted(block, data)
                if start < offset or start + len(part) > end:
                    part = memoryview(part)[max(0, offset - start) : end - start]
                    start = max(start, offset)
                gathering.put(block, start, part)
                written += len(part)
        gathering.flush()
        self._progress(written)
        with self._lock:
            self.written += written


class _Gathering:
    """Blocks that are neighbours on the disk become one write, in whatever order they come: packs have that of the threads
    which stored them. From memory that begins where a page does: a thread's own."""

    def __init__(self, target: Target, block_size: int) -> None:
        self._target = target
        self._size = block_size
        self._memory = memoryview(mmap.mmap(-1, max(_GATHERED, block_size)))
        self._slots: dict[int, int] = {}  # by block, ascending: where in the memory it goes
        self._held: dict[int, tuple[int, int]] = {}  # by block: the bytes of the disk that are in its slot, from and to

    def expect(self, blocks: Iterable[int]) -> None:
        """The blocks that `put` will be given until `flush`. What went before and was not flushed is let go of."""
        room = len(self._memory) // self._size
        self._slots = {block: slot * self._size for slot, block in enumerate(sorted(blocks)[:room])}
        self._held = {}

    def put(self, block: int, offset: int, data: Buffer) -> None:
        """`data` goes to `offset` bytes on the disk, which is in `block`."""
        slot = self._slots.get(block)
        if slot is None:  # a chunk that stands in many places
            self._target.write(offset, data)
            return
        at = slot + offset - block * self._size
        self._memory[at : at + len(data)] = data
        self._held[block] = offset, offset + len(data)

    def flush(self) -> None:
        first = end = memory = 0
        for block, slot in self._slots.items():
            if block not in self._held:
                continue  # unreadable: there is nothing to write
            begin, stop = self._held[block]
            at = slot + begin - block * self._size
            if begin == end and at == memory + end - first:
                end = stop
                continue
            if end > first:
                self._target.write(first, self._memory[memory : memory + end - first])
            first, end, memory = begin, stop, at
        if end > first:
            self._target.write(first, self._memory[memory : memory + end - first])
        self._held = {}
