"""What collecting and verifying need of a real repository: its packs and frames, what points need, moving chunks.

**Marking** does not read every tree. A point whose delta run continues a point that is marked already needs what that one needs,
the names in its run, and the nodes that differ: those of level 0 are named by the nodes above and not read. Only a point
that continues nothing that is marked (its predecessor was dropped) has its tree read through, as far as no other was.
So 365 daily points of a large disk cost their changes, and not 365 times the disk. Directories of files are read, each once.

Implements `agents.repository.collection.Contents`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Protocol
from uuid import UUID

from agents.failpoints import failpoint
from agents.repository import delta, directories, marks, pack_format, packs, points, runs, tree
from agents.repository.collection_files import PackFile, damaged_packs
from agents.repository.content import DATA, DELTA, DIRECTORY, NAME_SIZE, NODE
from agents.repository.errors import RepositoryError
from agents.repository.format import DATA_PACK, META_PACK, SCOPE_BYTES, Place
from agents.repository.index import SEALED, Pack
from agents.repository.marking import Names
from agents.repository.pack_format import FRAME_BYTES
from agents.repository.packs import Frame, PackWriter, SealedPack
from agents.repository.points import Point
from agents.repository.repository import Repository, run_entries
from agents.repository.sessions import PointHead, Session
from agents.repository.stores import MISSING, SHORT, Store, StoreError
from streams.ids import uuid7

_ROW = struct.Struct("<32s8xI24x")  # name and stored bytes of a footer's row (agents.repository.pack_format)
assert _ROW.size == pack_format.ROW_BYTES
_REMEMBERED: Final = 1 << 18  # nodes that need not be walked again; then the walk begins to repeat itself


class Holder(Protocol):
    """Whoever has a repository open."""

    @property
    def repository(self) -> Repository: ...


@dataclass(frozen=True, slots=True)
class RepositoryRecords:
    """Point records by their clear heads. Implements `agents.repository.sessions.Records`."""

    store: Store

    def listed(self) -> Iterator[str]:
        found = points.copies_of(self.store, points.FIRST).keys() | points.copies_of(self.store, points.SECOND).keys()
        yield from sorted(found)

    def head(self, point: str) -> PointHead | None:
        for folder in (points.FIRST, points.SECOND):
            for name in points.copies_of(self.store, f"{folder}{point}").get(point, []):
                try:
                    clear = points.read_clear(self.store.read(name))
                except RepositoryError:
                    continue
                except StoreError as error:
                    if error.code not in (MISSING, SHORT):
                        raise
                    continue
                return PointHead(point, clear.session, clear.journal.ordinal, clear.journal.event)
        return None


@dataclass
class _Moving:
    """Packs that a session copies into. Metadata stands twice, in packs of two writers, and goes on doing so."""

    writers: dict[int, tuple[PackWriter, ...]] = field(default_factory=dict)
    moved: set[bytes] = field(default_factory=set)
    packs: list[runs.Covered] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)


class RepositoryContents:
    """Of one repository. For one thread."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.records = RepositoryRecords(repository.store)
        self._moving: dict[str, _Moving] = {}

    @property
    def store(self) -> Store:
        return self.repository.store

    # Packs

    def packs(self) -> list[PackFile]:
        out = []
        for listed in self.store.list("packs/"):
            parsed = pack_format.parse_pack_file(listed.name)
            if parsed is not None:
                out.append(PackFile(parsed[0], listed.name, parsed[2], listed.size))
        return sorted(out, key=lambda pack: pack.name)

    def frames(self, pack: PackFile) -> tuple[bytes, Sequence[int]]:
        try:
            found = packs.rows_of(self.store, pack.name)
            if found is not None:
                flat = list(chain.from_iterable(_ROW.iter_unpack(found[1])))
                return b"".join(flat[::2]), list(map(FRAME_BYTES.__add__, flat[1::2]))
            entries = packs.contents_of(self.store, pack.name).entries
        except RepositoryError as error:
            if error.code != "chunk-missing":  # gone since the listing
                raise
            return b"", []
        return b"".join(e.name for e in entries), [e.place.stored + FRAME_BYTES for e in entries]

    def was_sealed(self, pack: PackFile) -> bool:
        """Whether it had a footer once: a pack that never had is of a writer that died."""
        return self.repository.index.is_sealed(pack.id)

    def spare(self, pack: PackFile, names: Iterable[bytes]) -> bool:
        if self.was_sealed(pack):
            return False
        whole = self.repository.index.packs().keys() - set(damaged_packs(self.store))
        return self.stand(names, whole)

    # Marking

    def mark(self, points: Sequence[str], names: Names, marked: frozenset[str]) -> None:
        self.repository.refresh()
        known = set(marked)
        marker = Marker(self.repository, names)
        for name in points:
            point = self.repository.point(name)
            marker.mark(point, whole=point.continues not in known)
            known.add(name)

    # Moving

    def copy(self, session: Session, pack: PackFile, wanted: bytes, leaving: frozenset[bytes]) -> int:
        moving = self._moving.setdefault(session.id, _Moving())
        copied = 0
        for entry, want in zip(packs.contents_of(self.store, pack.name).entries, wanted, strict=True):
            place = entry.place
            if not want or self._stands(entry.name, place.kind, leaving):
                continue
            frame = packs.read_body(self.store, pack.name, place, entry.name, self.repository.keys)
            writer = self._writer(moving, session, frame)
            writer.add(frame.kind, frame.name, frame.codec, frame.raw, frame.body, frame.scope)
            copied += place.stored + FRAME_BYTES
            for full in writer.take_sealed():
                self._durable(moving, full)
        return copied

    def _stands(self, name: bytes, kind: int, leaving: frozenset[bytes]) -> bool:
        """Whether a chunk is whole in sealed packs other than these already: a collection that was given up copied it."""
        others = {p.pack: p for p in self.repository.index.sealed_places(name) if p.pack not in leaving}
        wanted = 1 if kind == DATA else 2
        # What is left out here is deleted, so a copy elsewhere has to be seen, and not only known of.
        return len(others) >= wanted and sum(self._reads(name, place) for place in others.values()) >= wanted

    def stand(self, names: Iterable[bytes], within: Container[bytes]) -> bool:
        for name in names:
            places = {p.pack: p for p in self.repository.index.sealed_places(name) if p.pack in within}
            wanted = max((1 if place.kind == DATA else 2 for place in places.values()), default=1)
            if len(places) < wanted or sum(self._reads(name, place) for place in places.values()) < wanted:
                return False
        return True

    def _reads(self, name: bytes, place: Place) -> bool:
        file = self.repository.index.pack_name(place.pack)
        try:
            return file is not None and bool(packs.read_frame(self.store, file, place, name, self.repository.keys))
        except RepositoryError:
            return False

    def copy_once(self, session: Session, name: bytes) -> bool:
        """Store a chunk of metadata again from whichever copy is whole; whether there was one."""
        moving = self._moving.setdefault(session.id, _Moving())
        for place in self.repository.index.places(name):
            file = self.repository.index.pack_name(place.pack)
            if file is None:
                continue
            try:
                frame = packs.read_body(self.store, file, place, name, self.repository.keys)
            except RepositoryError:
                continue
            self._writer(moving, session, frame).add(
                frame.kind, frame.name, frame.codec, frame.raw, frame.body, frame.scope
            )
            return True
        return False

    def copied(self, session: Session) -> None:
        moving = self._moving.pop(session.id, None)
        if moving is None:
            return
        try:
            for writers in moving.writers.values():
                for writer in writers:
                    for pack in writer.flush():
                        self._durable(moving, pack)
            failpoint("contents-copies-durable")
            numbered = [
                name + place
                for number, part in enumerate(moving.entries)
                for name, place in runs.renumbered(part, [number])
            ]
            run = runs.Run(UUID(uuid7()), tuple(moving.packs), b"".join(sorted(numbered)))
            self.repository.index.note_run(runs.write(self.store, self.repository.identity, run))
        finally:
            _close(moving)

    def _writer(self, moving: _Moving, session: Session, frame: Frame) -> PackWriter:
        kind = DATA_PACK if frame.kind == DATA else META_PACK
        if kind not in moving.writers:
            scope = bytes(SCOPE_BYTES)
            count = 1 if kind == DATA_PACK else 2
            made = [self.repository.pack_writer(session.epoch, kind, scope) for _ in range(count)]
            moving.writers[kind] = tuple(made)
        writers = moving.writers[kind]
        if kind == DATA_PACK:
            return writers[0]
        again = frame.name in moving.moved
        moving.moved.add(frame.name)
        return writers[again]

    def _durable(self, moving: _Moving, pack: SealedPack) -> None:
        entries = run_entries(pack.entries)
        self.repository.index.add([Pack(pack.pack, pack.name, SEALED)], entries)
        moving.packs.append(runs.Covered(pack.pack, pack.name))
        moving.entries.append(entries)

    # Removing

    def remove_record(self, point: str) -> None:
        points.drop(self.store, point)
        marks.remove(self.store, point)

    def forget(self, gone: Iterable[bytes]) -> None:
        self.repository.forget(gone)
        self.repository.index.sync()

    def close(self) -> None:
        """Let go of copies that came to nothing."""
        for moving in self._moving.values():
            _close(moving)
        self._moving.clear()


def contents_of(holder: Holder) -> RepositoryContents:
    return RepositoryContents(holder.repository)


def _close(moving: _Moving) -> None:
    for writers in moving.writers.values():
        for writer in writers:
            writer.close()


class _Seen:
    """Nodes that were walked: of all of them at first, of the latest when they are too many."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()
        self.has: Final[Callable[[bytes], bool]] = self._names.__contains__  # asked of every entry of every node

    def add(self, joined: bytes) -> None:
        if len(self._names) > _REMEMBERED:
            self._names.clear()
        self._names.update(runs.slices(joined, NAME_SIZE))


class Marker:
    """Adds what points need to `names`. Knows which nodes it has been through."""

    def __init__(self, repository: Repository, names: Names) -> None:
        self._repository = repository
        self._names = names
        self._named = _Seen()  # nodes of disks whose nodes below were named
        self._read = _Seen()  # nodes of disks below which everything was read
        self._folders = _Seen()

    def mark(self, point: Point, *, whole: bool) -> None:
        """Not `whole`: what the point that this one continues needs is there already.

        Raises `RepositoryError` when a node or a run cannot be read.
        """
        self._names.add(b"".join(name for _, name in points.needs(point).chunks))
        for disk in point.disks:
            self._walk(
                tree.walk(self._repository, disk.root, (self._read if whole else self._named).has, leaves=whole), whole
            )
            if not whole:
                for _, data in self._repository.get_many(list(dict.fromkeys(disk.delta)), DELTA):
                    self._names.add(delta.references(data))
        for taken in point.trees:
            for kind, joined in directories.walk(self._repository, taken.root, self._folders.has):
                self._names.add(joined)
                if kind == DIRECTORY:
                    self._folders.add(joined)

    def _walk(self, found: Iterable[tuple[int, bytes]], whole: bool) -> None:
        for kind, joined in found:
            self._names.add(joined)
            if kind == NODE:
                (self._read if whole else self._named).add(joined)
