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
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Protocol
from uuid import UUID

from agents.failpoints import failpoint
from agents.repository import points, runs, tree
from agents.repository.chunks import is_zero, pack_body
from agents.repository.content import DATA
from agents.repository.disk_ingest import DiskIngest, Seen, Source
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, ZERO
from agents.repository.format import DATA_PACK, META_PACK
from agents.repository.index import SEALED, Pack
from agents.repository.packs import SealedPack
from agents.repository.repository import Repository, run_entries
from agents.repository.stores import Buffer, StoreError
from streams.events import DiskSealed, PointSealed, ReferencesRecorded
from streams.ids import now_us, uuid7

_PUT_BYTES: Final = 32 << 20  # of single chunks under way
_PUT_MANY: Final = 32  # of them that one thread stores one after the other
_RUN_ENTRIES: Final = 1 << 18  # of an index run: 15 MB of them, and a few times that while it is written


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
        self.raise_if_broken()
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
            self.fail(error)
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

    def read(self, source: Source, block_size: int, size: int, first: int, count: int) -> Future[Seen]:
        """Have a thread read these blocks of a disk of `size` bytes, and store what is new of them."""
        return self._pool.submit(self._read, source, block_size, size, first, count)

    def _read(self, source: Source, block_size: int, size: int, first: int, count: int) -> Seen:
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

    def _seen(self, view: memoryview, block_size: int, first: int, count: int) -> Seen:
        """What blocks that were read come to, stored where they are new."""
        length = len(view)
        if is_zero(view):
            with self._lock:
                self.figures.read_bytes += length
                self.figures.zero_bytes += length
            return Seen([(first, count, ZERO, b"")])
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
        return Seen(seen)

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
        self.raise_if_broken()

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
        self.fail(ValueError("this session's ingest is closed"))
        self._pool.shutdown(wait=True, cancel_futures=True)
        for writer in (self._data, *self._meta):
            writer.close()

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fail(self, error: BaseException) -> None:
        """Nothing of this session counts from here on, because of `error`."""
        with self._lock:
            self._error = self._error or error
        self._room.open_up()

    def raise_if_broken(self) -> None:
        """The first error of any thread."""
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
