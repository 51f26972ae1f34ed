"""Random reads of a disk at a point: through its tree, every chunk verified, with a bounded cache and reading ahead.

One reader serves an export, a browser of file systems, a conversion; a whole restore goes by
`agents.repository.restoring`, which reads in the order of packs instead. Zero and omitted blocks read as zeros; a lost
block raises and never reads as anything. Knows no packs: whoever gives it the source has opened the repository, and
pins the point.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from agents.repository import tree
from agents.repository.content import DATA, NODE, ChunkSource
from agents.repository.errors import CHUNK_MISSING, DAMAGED, PACK_DAMAGED, RepositoryError
from agents.repository.extents import CHUNK, LOST, ZERO
from agents.repository.nodes import checked, entry_of
from agents.repository.points import Disk, Point

LOST_BLOCK: Final = "block-lost"
UNREADABLE: Final = frozenset({DAMAGED, CHUNK_MISSING, PACK_DAMAGED})  # what a restore may leave out, if told so
WRONG_SIZE: Final = "block-damaged"

_NODES: Final = 4096  # nodes kept: 8 MiB, what 64 GiB of a disk are found with
_AHEAD_FIRST: Final = 4  # blocks read ahead when reading has gone on once where it ended before; doubled each time


def lost(first: int, block_size: int) -> RepositoryError:
    return RepositoryError(
        LOST_BLOCK,
        f"the {block_size} bytes from {first * block_size} on are lost: no copy of them could be read when they were verified",
        "restore the rest with `--skip-lost`, or take these bytes from another point",
    )


def readable(
    source: ChunkSource, names: list[bytes], unreadable: Callable[[bytes], None] | None
) -> Iterator[tuple[bytes, bytes]]:
    """Each of `names` with its data, as `get_many`; what no copy of can be read is told to `unreadable` instead of raised, if
    there is one."""
    if unreadable is None:
        yield from source.get_many(names, DATA)
        return
    left = dict.fromkeys(names)
    try:
        for name, data in source.get_many(names, DATA):
            left.pop(name, None)
            yield name, data
        return
    except RepositoryError as error:
        if error.code not in UNREADABLE:
            raise
    for name in left:  # one by one: it says nothing of the others that this one cannot be read
        try:
            data = source.get(name, DATA)
        except RepositoryError as error:
            if error.code not in UNREADABLE:
                raise
            unreadable(name)
        else:
            yield name, data


def disk_of(point: Point, disk: str) -> Disk:
    """A disk of a point by its id or, if only one has it, its name. Raises `RepositoryError` (`disk-unknown`)."""
    found = [d for d in point.disks if d.disk == disk] or [d for d in point.disks if d.name == disk]
    if len(found) != 1:
        there = ", ".join(f"{d.disk} ({d.name})" for d in point.disks) or "none"
        raise RepositoryError("disk-unknown", f"point {point.point} has no disk {disk!r}", f"its disks: {there}")
    return found[0]


class Fitting:
    """How long each block of a disk is."""

    __slots__ = ("block_size", "blocks", "size")

    def __init__(self, size: int, block_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self.blocks = -(-size // block_size)

    def length(self, block: int) -> int:
        return min(self.block_size, self.size - block * self.block_size)

    def fitted(self, block: int, data: bytes) -> bytes:
        """`data`, if it has the length of this block. A chunk is what its name says; that it is the block's, the tree
        said."""
        if len(data) != self.length(block):
            raise RepositoryError(
                WRONG_SIZE,
                f"block {block} should have {self.length(block)} bytes and has {len(data)}",
                "run `holdfast repository verify`: the point's record and its tree do not fit each other",
            )
        return data


class DiskReader:
    """One disk at one point, open for reading by any number of threads. `cache_bytes` bounds decoded blocks kept, read
    ahead or not.

    Close it, or use it with `with`: reading ahead ends, memory is let go; the source stays its owner's.
    """

    def __init__(
        self,
        source: ChunkSource,
        disk: Disk,
        *,
        cache_bytes: int = 64 << 20,
        ahead_bytes: int = 8 << 20,
        threads: int = 2,
    ) -> None:
        self.disk = disk
        self._source = source
        self._fitting = Fitting(disk.size, disk.block_size)
        self._cache_bytes = cache_bytes
        self._ahead_most = min(ahead_bytes, cache_bytes // 2) // disk.block_size
        self._lock = threading.Lock()
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self._held = 0
        self._pending: dict[bytes, Future[bytes]] = {}
        self._nodes: OrderedDict[bytes, bytes] = OrderedDict()
        self._next = -1  # where reading would go on
        self._ahead = 0  # blocks to read ahead
        self._ahead_to = 0  # what is being read ahead ends before this block
        self._threads = ThreadPoolExecutor(threads, "read-ahead") if self._ahead_most and threads else None
        self._level = checked(source.get(disk.root, NODE)) if disk.root != tree.EMPTY else 0

    def __enter__(self) -> DiskReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice. Reads under way in other threads end as they would have."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        with self._lock:
            self._threads = None
            self._blocks.clear()
            self._nodes.clear()
            self._held = 0

    @property
    def size(self) -> int:
        return self.disk.size

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on, fewer at the end of the disk. Raises `RepositoryError`: `block-lost`,
        `chunk-damaged`, `chunk-missing`, `tree-damaged`; `StoreError`. What raised may be asked for again."""
        end = min(offset + length, self.disk.size)
        if offset < 0 or length < 0:
            raise ValueError("a range of a disk begins at 0 or later, and has no less than no bytes")
        if offset >= end:
            return b""
        size = self.disk.block_size
        first, stop = offset // size, -(-end // size)
        names = self._names(first, stop)
        got = self._got(list(dict.fromkeys(n for n in names if n)))
        parts = []
        for block, name in enumerate(names, first):
            start = max(offset - block * size, 0)
            until = min(end - block * size, size)
            if name:
                data = self._fitting.fitted(block, got[name])
                parts.append(data if until - start == len(data) else memoryview(data)[start:until])
            else:
                parts.append(bytes(until - start))
        self._look_ahead(offset, end, stop)
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int, int]]:
        """Ranges of bytes that are not zero, ascending: offset, length, tag (`agents.repository.extents`). Reads no
        data."""
        size = self.disk.block_size
        end = self.disk.size if length is None else min(offset + length, self.disk.size)
        for run in tree.iterate(self._source, self.disk.root, offset // size, -(-end // size)):
            for first, count, tag, _ in run.extents():
                start, stop = max(first * size, offset), min((first + count) * size, end)
                if start < stop:
                    yield start, stop - start, tag

    # -- the tree

    def _names(self, first: int, stop: int) -> list[bytes]:
        """Names of blocks, empty for what reads as zeros."""
        out = []
        for block in range(first, stop):
            tag, name = self._entry(block)
            if tag == LOST:
                raise lost(block, self.disk.block_size)
            out.append(name if tag == CHUNK else b"")
        return out

    def _entry(self, block: int) -> tuple[int, bytes]:
        root = self.disk.root
        if root == tree.EMPTY or block >> 6 * (self._level + 1):
            return ZERO, b""
        name = root
        for level in range(self._level, -1, -1):
            tag, name = entry_of(self._node(name, level), block >> 6 * level & 63)
            if tag != CHUNK:
                return tag, b""
        return CHUNK, name

    def _node(self, name: bytes, level: int) -> bytes:
        with self._lock:
            data = self._nodes.get(name)
            if data is not None:
                self._nodes.move_to_end(name)
                return data
        data = self._source.get(name, NODE)
        checked(data, level)
        with self._lock:
            self._nodes[name] = data
            while len(self._nodes) > _NODES:
                self._nodes.popitem(last=False)
        return data

    # -- blocks

    def _got(self, names: list[bytes]) -> dict[bytes, bytes]:
        """Chunks by name: from the cache, from whoever is reading them, or read now."""
        out: dict[bytes, bytes] = {}
        theirs: dict[bytes, Future[bytes]] = {}
        mine: dict[bytes, Future[bytes]] = {}
        with self._lock:
            for name in names:
                data = self._blocks.get(name)
                if data is not None:
                    self._blocks.move_to_end(name)
                    out[name] = data
                elif name in self._pending:
                    theirs[name] = self._pending[name]
                else:
                    mine[name] = self._pending[name] = Future()
        self._fetch(mine)
        for name, future in mine.items():
            out[name] = future.result()
        for name, future in theirs.items():
            if future.exception() is None:
                out[name] = future.result()
            else:
                # Read ahead, in vain: what came in its way may be over, and if not, this is where it is raised.
                out[name] = self._source.get(name, DATA)
        return out

    def _fetch(self, wanted: dict[bytes, Future[bytes]]) -> None:
        """Read what nobody else is reading; each future is done at the end, with a result or with what went wrong."""
        if not wanted:
            return
        try:
            for name, data in self._source.get_many(list(wanted), DATA):
                self._keep(name, data)
                wanted[name].set_result(data)
            for name, future in wanted.items():
                if not future.done():
                    raise RepositoryError("chunk-missing", f"chunk {name.hex()} was asked for and not read")
        except BaseException as error:
            for future in wanted.values():
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                for name in wanted:
                    self._pending.pop(name, None)

    def _keep(self, name: bytes, data: bytes) -> None:
        with self._lock:
            if name in self._blocks or len(data) > self._cache_bytes:
                return
            self._blocks[name] = data
            self._held += len(data)
            while self._held > self._cache_bytes:
                self._held -= len(self._blocks.popitem(last=False)[1])

    # -- reading ahead

    def _look_ahead(self, offset: int, end: int, stop: int) -> None:
        """Once reading goes on where it ended: have the next blocks read, more each time."""
        with self._lock:
            goes_on = offset == self._next
            self._next = end
            if not goes_on:
                self._ahead = self._ahead_to = 0
                return
            if self._threads is None:
                return
            self._ahead = min(max(self._ahead * 2, _AHEAD_FIRST), self._ahead_most)
            first = max(stop, self._ahead_to)
            until = min(stop + self._ahead, self._fitting.blocks)
            # Half of it has been read by now, or it is the first time: the next half in one go.
            if until - first < max(1, self._ahead // 2):
                return
            self._ahead_to = until
            try:
                self._threads.submit(self._read_ahead, first, until)
            except RuntimeError:  # closed meanwhile
                return

    def _read_ahead(self, first: int, until: int) -> None:
        try:
            names = [name for tag, name in map(self._entry, range(first, until)) if tag == CHUNK]
        except Exception:  # noqa: BLE001 - whoever comes to these blocks meets it and raises it
            return
        with self._lock:
            mine: dict[bytes, Future[bytes]] = {}
            for name in names:
                if name not in self._blocks and name not in self._pending and name not in mine:
                    mine[name] = self._pending[name] = Future()
        self._fetch(mine)
