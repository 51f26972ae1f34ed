"""The way in: blocks of disks, and chunks of anything else, into packs; then the point that says what they are.

    caller ──> batches ──> threads: read, zero test, digest, look up, compress ──> packs ──> durable ──> index
                 │                                                                   (a thread seals full ones)
                 └──< results, in the order of the disk ──> delta run ──> tree ──> point

Memory is bounded whatever the disk: a few batches under way, one open pack of each sort, one segment of each delta run; the
run itself waits in a file until its tree is made. What is not in a sealed pack yet is known by name here alone: no other
session builds on it, and a death makes garbage of it.

The order of writes is the law (docs/design.md, "Repository"): chunks durable → nodes and delta runs durable → index run →
point record → event. Everything but data is stored twice, in packs of two writers.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Protocol, runtime_checkable
from uuid import UUID

from agents.failpoints import failpoint
from agents.repository import delta, nodes, points, runs, tree
from agents.repository.chunks import is_zero, pack_body
from agents.repository.content import DATA, NAME_SIZE, ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST, ZERO, RunBuilder
from agents.repository.format import DATA_PACK, META_PACK
from agents.repository.index import SEALED, Pack
from agents.repository.packs import SealedPack
from agents.repository.repository import Repository, run_entries
from agents.repository.stores import Buffer, StoreError
from streams.events import DiskSealed, PointSealed, ReferencesRecorded
from streams.ids import now_us, uuid7

BATCH_BYTES: Final = (
    2 << 20
)  # read, and worked on, at once: small enough to stay in a processor's cache from step to step
_PUT_BYTES: Final = 32 << 20  # of single chunks under way
_PUT_MANY: Final = 32  # of them that one thread stores one after the other
_REFERENCES: Final = 16 << 10  # names, or extents, in an event: together below 900 KB
_RUN_ENTRIES: Final = 1 << 18  # of an index run: 15 MB of them, and a few times that while it is written
_COLLECTED: Final = 4096  # extents or names handed to a delta run at once
_SPOOLED: Final = 4 << 20  # of a delta run in memory, until its tree is made
_TOGETHER: Final = 512  # extents, or leaves, that are compared with the previous point at once
_NODES: Final = 2048  # of its tree in memory: 4 MiB
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


class Writing(Protocol):
    """The session that this is done in (`agents.repository.sessions.Session`)."""

    @property
    def id(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    @property
    def entry(self) -> str:
        """The id of its `session.opened`."""
        ...

    @property
    def by(self) -> str: ...

    def check(self) -> None:
        """Raises when it is over."""
        ...

    def seal(self, event: PointSealed) -> object:
        """Say that the point exists. Raises when the session was over: then it does not."""
        ...


@dataclass(slots=True)
class Figures:
    """What was done, in chunks and bytes. `stored_bytes` are bodies as they stand in packs, second copies among them."""

    read_bytes: int = 0
    zero_bytes: int = 0
    chunks: int = 0
    new_chunks: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0

    def as_counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Spent:
    """Seconds that threads spent, all together: waiting for the source, on the bytes themselves, putting them into packs."""

    reading: float = 0.0
    processing: float = 0.0
    storing: float = 0.0


@dataclass(frozen=True, slots=True)
class Sealed:
    """A point that exists. `record`: the digest of its record's file."""

    point: points.Point
    record: bytes


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


@dataclass(slots=True)
class _Seen:
    """What a batch came to: extents in order, (first, count, tag, names)."""

    extents: list[tuple[int, int, int, bytes]]


class Ingest:
    """Takes in what one session backs up, and seals one point. A `ChunkSink`. Close it, sealed or not.

    The first error of any thread is raised by the next call, and by all after it: nothing of this session counts then.
    """

    def __init__(
        self,
        repository: Repository,
        session: Writing,
        *,
        scope: str = "",
        absent: Container[bytes] = (),
        threads: int | None = None,
        slug: str = "",
        asset: str = "",
        say: Callable[[ReferencesRecorded], object] | None = None,
    ) -> None:
        """`scope`: chunks are shared within it alone. `absent`: packs that a collection may delete: what is in them alone is
        stored again. `threads`: how many work (default: one a processor, at least two). `slug`: what the log calls the
        repository. `say`: is given batches of references of `asset` as they come."""
        repository.in_place()
        # The session is open by now, so no collection deletes anything more that this listing has; what was deleted before,
        # by whichever node, must not be built on.
        repository.refresh()
        self.repository = repository
        self.session = session
        self.point = uuid7()
        self.figures = Figures()
        self.spent = Spent()
        self._absent = absent
        self.slug = slug
        self.asset = asset
        self.say = say
        self._scope = scope
        self._naming = repository.naming(scope)
        self._level = repository.definition.level
        self._lock = threading.Lock()
        self._pending: set[bytes] = set()  # names that are being stored, or are in packs that are not sealed yet
        self._packs: list[runs.Covered] = []
        self._entries: list[bytes] = []  # of each of these packs, for the next index run
        self._error: BaseException | None = None
        self._local = threading.local()
        self.threads = threads or max(2, os.cpu_count() or 2)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="ingest")
        self._room = _Room(_PUT_BYTES)
        self._puts: deque[Future[None]] = deque()
        self._puts_lock = threading.Lock()
        make = repository.pack_writer
        scope_id = self._naming.scope
        self._data = make(session.epoch, DATA_PACK, scope_id)
        self._meta = (make(session.epoch, META_PACK, scope_id), make(session.epoch, META_PACK, scope_id))

    # Chunks

    def put(self, kind: int, data: bytes) -> bytes:
        """Store `data` unless it is known; its name. It may be on its way still when this returns: `seal` waits for it."""
        return self.put_many(kind, [data])[0]

    def put_many(self, kind: int, many: Sequence[bytes]) -> list[bytes]:
        """The same of many small ones, which cost less together."""
        self._raise_if_broken()
        names = [self._naming.name_of(kind, data) for data in many]
        by_name = dict(zip(names, many, strict=True))
        mine = self._claim(list(by_name))
        for at in range(0, len(mine), _PUT_MANY):
            some = [(name, by_name[name]) for name in mine[at : at + _PUT_MANY]]
            size = sum(len(data) for _, data in some)
            self._room.take(size)
            over = []
            with self._puts_lock:  # disks come side by side
                self._puts.append(self._pool.submit(self._stored, kind, some, size))
                while self._puts and self._puts[0].done():
                    over.append(self._puts.popleft())
            for one in over:
                one.result()
        return names

    def _stored(self, kind: int, some: Sequence[tuple[bytes, bytes]], size: int) -> None:
        try:
            for name, data in some:
                self._store(kind, name, data)
        except BaseException as error:
            self._break(error)
            raise
        finally:
            self._room.give(size)

    def _claim(self, names: Sequence[bytes]) -> list[bytes]:
        """Those of `names` that this thread has to store: nobody has, and nobody else is about to."""
        with self._lock:
            unknown = [name for name in names if name not in self._pending]
        if not unknown:
            return []
        known = self.repository.index.find(unknown, self._absent)
        mine: list[bytes] = []
        with self._lock:
            self.figures.chunks += len(names)
            for name in unknown:
                if name not in self._pending and name not in known:
                    self._pending.add(name)
                    mine.append(name)
        return mine

    def _store(self, kind: int, name: bytes, data: Buffer) -> None:
        codec, body = pack_body(data, self._level)
        writers = (self._data,) if kind == DATA else self._meta
        stored = 0
        begun = time.perf_counter()
        for writer in writers:
            stored += writer.add(kind, name, codec, len(data), body).stored
        with self._lock:
            self.spent.storing += time.perf_counter() - begun
            self.figures.new_chunks += 1
            self.figures.new_bytes += len(data)
            self.figures.stored_bytes += stored
        for writer in writers:
            if sealed := writer.take_sealed():
                self._durable(sealed)

    def _durable(self, sealed: Sequence[SealedPack]) -> None:
        """What is in these packs can be built on from now on, by others too."""
        if not sealed:
            return
        entries = [run_entries(pack.entries, number) for number, pack in enumerate(sealed)]
        self.repository.index.add([Pack(pack.pack, pack.name, SEALED) for pack in sealed], b"".join(entries))
        with self._lock:
            for pack in sealed:
                self._packs.append(runs.Covered(pack.pack, pack.name))
                self._entries.append(run_entries(pack.entries))
                self._pending.difference_update([one.name for one in pack.entries])
            enough = sum(map(len, self._entries)) >= _RUN_ENTRIES * runs.ENTRY_SIZE
        if enough:
            self._write_run()

    # Disks

    def disk(
        self,
        disk: str,
        *,
        size: int,
        name: str = "",
        block_size: int = 0,
        continues: points.Disk | None = None,
        geometry: Mapping[str, str] | None = None,
    ) -> DiskIngest:
        """Begin a disk of `size` bytes. `continues`: what it was at the point before, of which only the difference is given."""
        if continues is not None and block_size not in (0, continues.block_size):
            raise ValueError("an asset keeps its block size")
        base = continues.block_size if continues else block_size or self.repository.definition.block_size
        blank = points.Disk(disk, name or disk, size, base, tree.EMPTY, geometry=dict(geometry or {}))
        return DiskIngest(self, blank, continues)

    def _work(self, source: Source, block_size: int, size: int, first: int, count: int) -> _Seen:
        """Read blocks, store what is new of them. On a thread of the pool."""
        if self._error is not None:
            raise self._error
        length = min(count * block_size, size - first * block_size)
        buffer = self._buffer(count * block_size)
        view = memoryview(buffer)[:length]
        begun = time.perf_counter()
        source.read_into(first * block_size, view)
        read = time.perf_counter()
        try:
            return self._seen(view, block_size, first, count)
        finally:
            with self._lock:
                self.spent.reading += read - begun
                self.spent.processing += time.perf_counter() - read

    def _seen(self, view: memoryview, block_size: int, first: int, count: int) -> _Seen:
        """What blocks that were read come to, stored where they are new."""
        length = len(view)
        if is_zero(view):
            with self._lock:
                self.figures.read_bytes += length
                self.figures.zero_bytes += length
            return _Seen([(first, count, ZERO, b"")])
        pieces = [view[at : at + block_size] for at in range(0, length, block_size)]
        seen, names = self._named(first, pieces)
        if names:
            by_name = dict(names)
            for mine in self._claim(list(by_name)):
                self._store(DATA, mine, by_name[mine])
        zeros = sum(run for _, run, tag, _ in seen if tag == ZERO) * block_size
        with self._lock:
            self.figures.read_bytes += length
            self.figures.zero_bytes += min(zeros, length)
        return _Seen(seen)

    def _named(
        self, first: int, pieces: list[memoryview]
    ) -> tuple[list[tuple[int, int, int, bytes]], list[tuple[bytes, memoryview]]]:
        """Extents of these blocks, and each that is not zero with its name."""
        extents: list[tuple[int, int, int, bytes]] = []
        named: list[tuple[bytes, memoryview]] = []
        name_of = self._naming.name_of
        for block, piece in enumerate(pieces, first):
            if is_zero(piece):
                extents.append((block, 1, ZERO, b""))
            else:
                name = name_of(DATA, piece)
                named.append((name, piece))
                extents.append((block, 1, CHUNK, name))
        return extents, named

    def _buffer(self, size: int) -> bytearray:
        """A buffer of this thread's own, used again and again: fresh memory would cost as much as reading does."""
        kept: bytearray | None = getattr(self._local, "buffer", None)
        if kept is None or len(kept) < size:
            kept = self._local.buffer = bytearray(size)
        return kept

    # The end

    def seal(self, draft: points.Point) -> Sealed:
        """Make the point exist. `draft` is complete but for `point`, `session`, `epoch`, `node` and `journal`, which are set
        here; its disks are those that `DiskIngest.finish` returned.

        When this returns the point is durable and said in the log. When it raises, it does not exist, or (the log did not
        take it, or nobody knows) its record is one that does not count. Raises `StoreError`, `RepositoryError`, and what the
        session raises.
        """
        self._drain_puts()
        self._durable(self._data.flush())
        failpoint("ingest-data-durable")
        second = self._pool.submit(self._meta[1].flush)
        first = self._meta[0].flush()
        self._durable([*first, *second.result()])
        failpoint("ingest-meta-durable")
        self._write_run()
        failpoint("ingest-run-durable")
        self.session.check()
        self.repository.in_place()  # writing may have made folders anew in an empty one
        point = replace(
            draft,
            point=self.point,
            session=self.session.id,
            epoch=self.session.epoch,
            node=self.repository.node,
            journal=points.JournalPlace(self.session.epoch, self.session.entry),
            figures=self.figures.as_counts(),
            scopes=self._scopes(draft.continues),
        )
        record = points.seal(self.repository.store, point, self.repository.record_key)
        failpoint("ingest-record-durable")
        self.session.seal(sealed_event(self.slug, point, record, self.session, self.figures))
        failpoint("ingest-sealed")
        with contextlib.suppress(StoreError):  # the point stands; the next one tries again
            self.repository.merge_runs()
        return Sealed(point, record)

    def _scopes(self, continues: str) -> tuple[str, ...]:
        """Those of the point that is continued, and this session's: what has not changed keeps its names."""
        found: tuple[str, ...] = ()
        if continues:
            with contextlib.suppress(RepositoryError):  # nothing is taken from what cannot be read
                point = self.repository.point(continues)
                found = point.scopes
                if not found and self._scope:  # where it says nothing, it can have been either
                    found = ("", point.asset)
        if not found and not self._scope:
            return ()
        return (*(s for s in found if s != self._scope), self._scope)

    def _drain_puts(self) -> None:
        while self._puts:
            self._puts.popleft().result()
        self._raise_if_broken()

    def _write_run(self) -> None:
        with self._lock:
            packs, self._packs = self._packs, []
            entries, self._entries = self._entries, []
        if not packs:
            return
        numbered = [
            name + place for number, part in enumerate(entries) for name, place in runs.renumbered(part, [number])
        ]
        run = runs.Run(UUID(uuid7()), tuple(packs), b"".join(numbered))
        made = runs.write(self.repository.store, self.repository.identity, run)
        self.repository.index.note_run(made)

    def close(self) -> None:
        """Let go; what was not sealed is garbage. May be called twice."""
        self._break(ValueError("this session's ingest is closed"))
        self._pool.shutdown(wait=True, cancel_futures=True)
        for writer in (self._data, *self._meta):
            writer.close()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _break(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self._room.open_up()

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error


class _Room:
    """Bytes that may be under way at once. One chunk larger than all of it goes alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()
        self._open = False

    def take(self, size: int) -> None:
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._free >= size)
            self._free -= size

    def give(self, size: int) -> None:
        with self._changed:
            self._free += min(size, self._size)
            self._changed.notify_all()

    def open_up(self) -> None:
        """Nobody waits any more: it is over."""
        with self._changed:
            self._open = True
            self._changed.notify_all()


class DiskIngest:
    """One disk on its way in. Blocks come in ascending order, each once; `finish` when all have come. One thread calls it."""

    def __init__(self, ingest: Ingest, blank: points.Disk, continues: points.Disk | None) -> None:
        self._ingest = ingest
        self._blank = blank
        self._continues = continues
        self.block_size = blank.block_size
        self.blocks = -(-blank.size // blank.block_size)
        self._under_way: deque[Future[_Seen] | _Seen] = deque()
        self._uncompared: list[tuple[int, int, int, bytes]] = []
        self._nodes = _Nodes(ingest.repository)
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
        old = _Previous(self._nodes, self._continues) if compare and self._continues else None
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
                self._under_way.append(_Seen([(first, count, tag, b"")]))
                continue
            for at in range(first, first + count, step):
                self._make_room(old)
                self._submit(source, at, min(step, first + count - at))
        self._settle(old)

    def write(self, block: int, data: bytes | memoryview) -> None:
        """Blocks from memory: `data` begins with block `block`, and ends with one or with the disk."""
        count = -(-len(data) // self.block_size)
        end = min((block + count) * self.block_size, self._blank.size)
        if end - block * self.block_size != len(data):
            raise ValueError(f"{len(data)} bytes are no whole blocks")
        self.feed(_Bytes(block * self.block_size, memoryview(data)), [(block, count, CHUNK)])

    def _submit(self, source: Source, first: int, count: int) -> None:
        ingest = self._ingest
        ingest._raise_if_broken()
        if isinstance(source, Foreseeing):
            # Batches wait for a thread; the disk need not.
            source.soon(first * self.block_size, count * self.block_size)
        self._under_way.append(
            ingest._pool.submit(ingest._work, source, self.block_size, self._blank.size, first, count)
        )

    def _make_room(self, old: _Previous | None) -> None:
        while len(self._under_way) > 2 * self._ingest.threads:
            self._take(self._result(), old)

    def _settle(self, old: _Previous | None) -> None:
        while self._under_way:
            self._take(self._result(), old)
        if old is not None:
            self._compare(old)

    def _result(self) -> list[tuple[int, int, int, bytes]]:
        one = self._under_way.popleft()
        if isinstance(one, _Seen):
            return one.extents
        try:
            return one.result().extents
        except BaseException as error:
            self._ingest._break(error)
            raise

    def _take(self, extents: list[tuple[int, int, int, bytes]], old: _Previous | None) -> None:
        if old is None:
            self._collect(extents)
            return
        # Many at once: what is scattered over a disk is scattered over its tree.
        self._uncompared += extents
        if len(self._uncompared) >= _TOGETHER:
            self._compare(old)

    def _compare(self, old: _Previous) -> None:
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


class _Nodes:
    """A source that keeps the chunks that were asked for last: windows that are far apart share the nodes above them."""

    def __init__(self, source: ChunkSource) -> None:
        self._source = source
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, name: bytes, kind: int) -> bytes:
        ((_, data),) = self.get_many([name], kind)
        return data

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        unknown = []
        for name in names:
            data = self._kept.get(name)
            if data is None:
                unknown.append(name)
            else:
                self._kept.move_to_end(name)
                yield name, data
        for name, data in self._source.get_many(unknown, kind) if unknown else ():
            self._kept[name] = data
            if len(self._kept) > _NODES:
                self._kept.popitem(last=False)
            yield name, data


class _Previous:
    """What a disk was at the point before, for backups that read what may not have changed."""

    def __init__(self, source: ChunkSource, disk: points.Disk) -> None:
        self._source = source
        self._root = disk.root

    def different(self, extents: Iterable[tuple[int, int, int, bytes]]) -> list[tuple[int, int, int, bytes]]:
        """Of `extents` what was not so before. Extents other than of chunks are left alone, leaf by leaf, if all that they say
        was so."""
        out: list[tuple[int, int, int, bytes]] = []
        pieces: list[tuple[int, int, int, bytes]] = []
        wanted: set[int] = set()
        for first, count, tag, names in extents:
            at = 0
            while at < count:
                leaf, slot = divmod(first + at, nodes.FAN_OUT)
                took = min(count - at, nodes.FAN_OUT - slot)
                pieces.append((first + at, took, tag, names[at * NAME_SIZE : (at + took) * NAME_SIZE]))
                wanted.add(leaf)
                at += took
                if len(wanted) == _TOGETHER:
                    out += self._differing(pieces, wanted)
                    pieces, wanted = [], set()
        out += self._differing(pieces, wanted)
        return out

    def _differing(
        self, pieces: Sequence[tuple[int, int, int, bytes]], wanted: Iterable[int]
    ) -> Iterator[tuple[int, int, int, bytes]]:
        leaves = tree.leaves(self._source, self._root, wanted)
        for first, count, tag, names in pieces:
            leaf, slot = divmod(first, nodes.FAN_OUT)
            before = leaves[leaf]
            if isinstance(before, int):
                if tag != before:
                    yield first, count, tag, names
                continue
            start = nodes.HEADER_SIZE + slot * NAME_SIZE
            if nodes.is_full(before) and tag == CHUNK and before[start : start + len(names)] == names:
                continue
            same = [nodes.entry_of(before, at) == (tag, name) for at, name in _named(slot, count, names)]
            if tag != CHUNK:
                if not all(same):
                    yield first, count, tag, names
                continue
            for number, equal in enumerate(same):
                if not equal:
                    yield first + number, 1, tag, names[number * NAME_SIZE : (number + 1) * NAME_SIZE]


def _named(slot: int, count: int, names: bytes) -> Iterator[tuple[int, bytes]]:
    """Places in a leaf, each with its name; an empty one where there are no names."""
    for number in range(count):
        yield slot + number, names[number * NAME_SIZE : (number + 1) * NAME_SIZE]


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A stretch of a disk in memory as a `Source`."""

    start: int
    data: memoryview

    def read_into(self, offset: int, buffer: memoryview) -> None:
        at = offset - self.start
        buffer[:] = self.data[at : at + len(buffer)]


def sealed_event(
    slug: str, point: points.Point, record: bytes, session: Writing, figures: Figures, *, adopted: bool = False
) -> PointSealed:
    """What the log is told of a point whose record is durable. `adopted`: it was not made under this log."""
    disks = tuple(
        DiskSealed(
            disk=disk.disk,
            name=disk.name,
            size=disk.size,
            block_size=disk.block_size,
            root=disk.root,
            changed=disk.counts.get("changed", 0),
            omitted=disk.counts.get("omitted", 0),
            lost=disk.counts.get("lost", 0),
        )
        for disk in point.disks
    )
    return PointSealed(
        repository=slug,
        session=session.id,
        point=point.point,
        asset=point.asset,
        asset_name=point.asset_name,
        kind=point.kind,
        continues=point.continues,
        created_us=point.created_us,
        sealed_us=now_us(),
        disks=disks,
        files_root=point.trees[0].root if point.trees else b"",
        record=record,
        figures=figures.as_counts()
        | {"size_bytes": sum(d.size for d in point.disks) + sum(t.size for t in point.trees)},
        facts=dict(point.facts),
        adopted=adopted,
        by=session.by,
    )
