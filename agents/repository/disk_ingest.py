"""One disk on its way into a repository: blocks in ascending order become a delta run, and the run a new tree.

Threads of `ingest` read, digest and store; here what they found is put back in the order of the disk. What is not known to have
changed is compared with the point before (`previous`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from agents.repository import delta, points, tree
from agents.repository.chunks import is_zero
from agents.repository.content import DATA, NAME_SIZE
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST, ZERO, RunBuilder
from agents.repository.previous import TOGETHER, Nodes, Previous
from streams.events import ReferencesRecorded
from streams.ids import now_us

if TYPE_CHECKING:
    from agents.repository.ingest import Ingest

BATCH_BYTES: Final = (
    2 << 20
)  # read, and worked on, at once: small enough to stay in a processor's cache from step to step
_REFERENCES: Final = 16 << 10  # names, or extents, in an event: together below 900 KB
_COLLECTED: Final = 4096  # extents or names handed to a delta run at once
_SPOOLED: Final = 4 << 20  # of a delta run in memory, until its tree is made
_KINDS: Final = {CHUNK: "data", ZERO: "zero", LOST: "lost"}


class Source(Protocol):
    """A disk as it was at one moment. Several threads read at once."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what stands from `offset` on. Raises whatever the disk raises, also where it ends too early."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A source that can use to be told what will be read."""

    def soon(self, offset: int, size: int) -> None:
        """`size` bytes from `offset` on will be read in a moment. Must not wait, nor raise."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or block device opened for reading as a `Source`. The file stays the caller's."""

    fd: int

    def soon(self, offset: int, size: int) -> None:
        with contextlib.suppress(OSError):  # a pipe, a file system that takes no advice
            os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_WILLNEED)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        while len(buffer):
            got = os.preadv(self.fd, [buffer], offset)
            if not got:
                raise RepositoryError("source-short", f"the source ends at {offset}, before what it should hold")
            buffer, offset = buffer[got:], offset + got


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A stretch of a disk in memory as a `Source`."""

    start: int
    data: memoryview

    def read_into(self, offset: int, buffer: memoryview) -> None:
        at = offset - self.start
        buffer[:] = self.data[at : at + len(buffer)]


@dataclass(slots=True)
class Seen:
    """What a batch came to: extents in order, (first, count, tag, names)."""

    extents: list[tuple[int, int, int, bytes]]


class DiskIngest:
    """One disk on its way in. Blocks come in ascending order, each once; `finish` when all have come. One thread calls it."""

    def __init__(self, ingest: Ingest, blank: points.Disk, continues: points.Disk | None) -> None:
        self._ingest = ingest
        self._blank = blank
        self._continues = continues
        self.block_size = blank.block_size
        self.blocks = -(-blank.size // blank.block_size)
        self._under_way: deque[Future[Seen] | Seen] = deque()
        self._uncompared: list[tuple[int, int, int, bytes]] = []
        self._nodes = Nodes(ingest.repository)
        self._spool = _Spool(ingest)
        self._delta = delta.DeltaWriter(self._spool)
        self._collected = RunBuilder()
        self._blocks = 0  # collected and not handed on yet, about
        self._references = _References(ingest, blank.disk)
        self._counts = {"data": 0, "zero": 0, "omitted": 0, "lost": 0}
        self._end = 0
        # The block in which the disk ends, or ended: its chunk has another length now, whatever was written.
        self._edge: int | None = None
        if continues is not None and continues.size != blank.size:
            block, inside = divmod(min(continues.size, blank.size), blank.block_size)
            self._edge = block if inside else None

    def feed(self, source: Source, extents: Iterable[tuple[int, int, int]], *, compare: bool = False) -> None:
        """Blocks as (first, count, tag): CHUNK is read from `source`, ZERO and the tags of omitted blocks are taken as said.

        `compare`: these are not known to have changed; of what is as it was before nothing is recorded.
        """
        step = max(1, BATCH_BYTES // self.block_size)
        old = Previous(self._nodes, self._continues) if compare and self._continues else None
        foreseeing = source if isinstance(source, Foreseeing) else None
        for first, count, tag in extents:
            if first < self._end or not 0 < count <= self.blocks - first:
                raise ValueError(f"blocks {first} to {first + count} of {self.blocks} do not come after {self._end}")
            self._end = first + count
            if self._edge is not None and self._end > self._edge:
                if first > self._edge:
                    self._settle(old)
                    self._fit_edge()
                self._edge = None
            if tag != CHUNK:
                self._make_room(old)
                self._under_way.append(Seen([(first, count, tag, b"")]))
                continue
            for at in range(first, first + count, step):
                self._make_room(old)
                self._submit(source, foreseeing, at, min(step, first + count - at))
        self._settle(old)

    def write(self, block: int, data: bytes | memoryview) -> None:
        """Blocks from memory: `data` begins with block `block`, and ends with one or with the disk."""
        count = -(-len(data) // self.block_size)
        end = min((block + count) * self.block_size, self._blank.size)
        if end - block * self.block_size != len(data):
            raise ValueError(f"{len(data)} bytes are no whole blocks")
        self.feed(_Bytes(block * self.block_size, memoryview(data)), [(block, count, CHUNK)])

    def _submit(self, source: Source, foreseeing: Foreseeing | None, first: int, count: int) -> None:
        ingest = self._ingest
        ingest.raise_if_broken()
        if foreseeing is not None:
            # Batches wait for a thread; the disk need not.
            foreseeing.soon(first * self.block_size, count * self.block_size)
        self._under_way.append(ingest.read(source, self.block_size, self._blank.size, first, count))

    def _make_room(self, old: Previous | None) -> None:
        while len(self._under_way) > 2 * self._ingest.threads:
            self._take(self._result(), old)

    def _settle(self, old: Previous | None) -> None:
        while self._under_way:
            self._take(self._result(), old)
        if old is not None:
            self._compare(old)

    def _result(self) -> list[tuple[int, int, int, bytes]]:
        one = self._under_way.popleft()
        if isinstance(one, Seen):
            return one.extents
        try:
            return one.result().extents
        except BaseException as error:
            self._ingest.fail(error)
            raise

    def _take(self, extents: list[tuple[int, int, int, bytes]], old: Previous | None) -> None:
        if old is None:
            self._collect(extents)
            return
        # Many at once: what is scattered over a disk is scattered over its tree.
        self._uncompared += extents
        if len(self._uncompared) >= TOGETHER:
            self._compare(old)

    def _compare(self, old: Previous) -> None:
        extents, self._uncompared = self._uncompared, []
        self._collect(old.different(extents))

    def _collect(self, extents: list[tuple[int, int, int, bytes]]) -> None:
        for first, count, tag, names in extents:
            self._collected.add(first, count, tag, names)
            self._references.add(first, count, tag, names)
            self._counts[_KINDS.get(tag, "omitted")] += count
            self._blocks += count if tag == CHUNK else 1
        if self._blocks >= _COLLECTED:
            self._delta.add(self._collected.take())
            self._blocks = 0

    def _fit_edge(self) -> None:
        """Of a disk that changed its size, in whose last block nothing was written: what stands there, cut off or with zeros."""
        assert self._edge is not None
        assert self._continues is not None
        repository, edge = self._ingest.repository, self._edge
        length = min(self.block_size, self._blank.size - edge * self.block_size)
        for run in tree.iterate(repository, self._continues.root, edge, edge + 1):
            for first, _, tag, at in run.extents():
                if tag == CHUNK:
                    data = repository.get(bytes(run.names[at : at + NAME_SIZE]), DATA)[:length].ljust(length, b"\0")
                    fits = (ZERO, b"") if is_zero(data) else (CHUNK, self._ingest.put(DATA, data))
                    self._take([(first, 1, *fits)], None)

    def finish(self) -> points.Disk:
        """The disk as it goes into a point: delta run and tree are put; `seal` makes them durable."""
        self._settle(None)
        if self._edge is not None:
            self._fit_edge()
        if self._collected:
            self._delta.add(self._collected.take())
        self._references.flush()
        if self._continues is not None and (left := -(-self._continues.size // self.block_size)) > self.blocks:
            # A disk that has become smaller leaves nothing behind its end.
            self._collected.add(self.blocks, left - self.blocks, ZERO)
            self._delta.add(self._collected.take())
        segments = self._delta.finish()
        before = self._continues.root if self._continues else tree.EMPTY
        changes = delta.read(self._spool, segments)
        root = tree.update(self._ingest, self._nodes, before, changes)
        self._spool.close()
        changed = sum(self._counts.values())
        counts = {**self._counts, "changed": changed} if self._continues is None else {"changed": changed}
        return replace(self._blank, root=root, delta=segments, counts=counts)


class _Spool:
    """Segments of a delta run between being put and being read for the tree: in memory, or an unnamed file when they are many."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._file = tempfile.SpooledTemporaryFile(_SPOOLED)  # noqa: SIM115 - closed by `close`, at the latest when it is let go of
        self._kept: dict[bytes, tuple[int, int]] = {}

    def put(self, kind: int, data: bytes) -> bytes:
        name = self._ingest.put(kind, data)
        self._kept[name] = (self._file.seek(0, os.SEEK_END), len(data))
        self._file.write(data)
        return name

    def get(self, name: bytes, kind: int) -> bytes:
        at, size = self._kept[name]
        self._file.seek(at)
        return self._file.read(size)

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        for name in names:
            yield name, self.get(name, kind)

    def close(self) -> None:
        self._file.close()


class _References:
    """Cuts a disk's references into events."""

    def __init__(self, ingest: Ingest, disk: str) -> None:
        self._ingest = ingest
        self._disk = disk
        self._builder = RunBuilder()
        self._names = 0
        self._number = 0

    def add(self, first: int, count: int, tag: int, names: bytes) -> None:
        if self._ingest.say is None:
            return
        self._builder.add(first, count, tag, names)
        self._names += count if tag == CHUNK else 0
        if self._names >= _REFERENCES or len(self._builder) >= _REFERENCES:
            self.flush()

    def flush(self) -> None:
        say = self._ingest.say
        if say is None or not len(self._builder):
            return
        run = self._builder.take()
        self._names = 0
        say(
            ReferencesRecorded(
                repository=self._ingest.slug,
                asset=self._ingest.asset,
                session=self._ingest.session.id,
                point=self._ingest.point,
                disk=self._disk,
                number=self._number,
                count=run.blocks,
                references=delta.encode(run),
                recorded_us=now_us(),
            )
        )
        self._number += 1
