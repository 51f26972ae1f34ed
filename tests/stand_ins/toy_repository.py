"""A repository reduced to what collecting is about: packs that hold names, points that need names. Stand-in for the real one.

A pack's file is its chunks' names, joined; a chunk's content is its name. An index is made of a listing whenever a session opens.
What decides (`agents.repository.sessions`, `.ledger`, `.collection`) is the real code, on a store and a journal in memory.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from agents.repository.collection import Absent, absent_for
from agents.repository.collection_files import PackFile
from agents.repository.marking import Names
from agents.repository.sessions import PointHead, Session, Sessions
from agents.repository.stores import MISSING, Store, StoreError
from streams.events import PointSealed
from streams.ids import uuid7

_PACK = re.compile(r"packs/([0-9a-f]{32})-([a-z0-9]+)-(\d+)\.pack")
_numbers = itertools.count(1)


def chunk(content: int) -> bytes:
    """The name of a chunk."""
    return blake3(b"%d" % content).digest()


def split(names: bytes) -> list[bytes]:
    return [names[i : i + 32] for i in range(0, len(names), 32)]


@dataclass(frozen=True)
class ToyRecords:
    store: Store

    def listed(self) -> Iterator[str]:
        points = {file.name.partition("/")[2].removesuffix(".point") for file in self.store.list("points")}
        yield from sorted(points)

    def head(self, point: str) -> PointHead | None:
        record = self.record(point)
        return None if record is None else PointHead(point, record["session"], record["epoch"], record["entry"])

    def record(self, point: str) -> dict[str, Any] | None:
        for folder in ("points", "points2"):
            try:
                record: dict[str, Any] = json.loads(self.store.read(f"{folder}/{point}.point"))
                return record
            except StoreError as error:
                if error.code != MISSING:
                    raise
        return None

    def names(self, point: str) -> list[bytes] | None:
        record = self.record(point)
        return None if record is None else [bytes.fromhex(name) for name in record["names"]]


@dataclass
class ToyContents:
    """Implements `agents.repository.collection.Contents`."""

    store: Store
    copies: dict[str, bytearray] = field(default_factory=dict)

    @property
    def records(self) -> ToyRecords:
        return ToyRecords(self.store)

    def packs(self) -> list[PackFile]:
        out = []
        for file in self.store.list("packs/"):
            match = _PACK.fullmatch(file.name)
            assert match
            out.append(PackFile(bytes.fromhex(match[1]), file.name, int(match[3]), file.size))
        return out

    def frames(self, pack: PackFile) -> tuple[bytes, Sequence[int]]:
        try:
            names = self.store.read(pack.name)
        except StoreError:
            names = b""  # gone since the listing
        return names, [32] * (len(names) // 32)

    def mark(self, points: Sequence[str], names: Names, marked: frozenset[str]) -> None:
        for point in points:
            needed = self.records.names(point)
            assert needed is not None, f"no record of root {point}"
            names.add(b"".join(needed))

    def copy(self, session: Session, pack: PackFile, wanted: bytes, leaving: frozenset[bytes]) -> int:
        stand = {name for other in self.packs() if other.id not in leaving for name in split(self.frames(other)[0])}
        kept = [n for n, want in zip(split(self.frames(pack)[0]), wanted, strict=True) if want and n not in stand]
        self.copies.setdefault(session.id, bytearray()).extend(b"".join(kept))
        return 32 * len(kept)

    def spare(self, pack: PackFile, names: Iterable[bytes]) -> bool:
        return False  # none is torn

    def stand(self, names: Iterable[bytes], within: Container[bytes]) -> bool:
        there = {name for pack in self.packs() if pack.id in within for name in split(self.frames(pack)[0])}
        return there.issuperset(names)

    def copied(self, session: Session) -> None:
        if names := bytes(self.copies.pop(session.id)):
            write_pack(self.store, session, names)

    def remove_record(self, point: str) -> None:
        self.store.delete(f"points/{point}.point")
        self.store.delete(f"points2/{point}.point")

    def forget(self, packs: Iterable[bytes]) -> None:
        """Indexes are made anew for each session."""

    def held(self) -> set[bytes]:
        return {name for pack in self.packs() for name in split(self.frames(pack)[0])}

    def readable(self, names: Iterable[bytes]) -> bool:
        return self.held().issuperset(names)


def write_pack(store: Store, session: Session, names: bytes) -> None:
    pack = next(_numbers).to_bytes(16, "big").hex()
    store.create(f"packs/{pack}-{session.sessions.node}-{session.epoch}.pack", [names])


@dataclass
class Writer:
    """A backup under way."""

    sessions: Sessions
    session: Session
    absent: Absent
    index: dict[bytes, list[bytes]]
    base: str = ""
    needed: list[bytes] = field(default_factory=list)
    point: str = ""

    def put(self, contents: Iterable[int]) -> None:
        """Store what may not be built on; need all of it."""
        new = []
        for content in contents:
            name = chunk(content)
            if all(pack in self.absent for pack in self.index.get(name, [])):
                new.append(name)
                self.index[name] = [b"own"]
            self.needed.append(name)
        if new:
            write_pack(self.sessions.store, self.session, b"".join(new))
        self.index |= {name: [*self.index.get(name, []), b"own"] for name in new}

    def record(self) -> None:
        self.point = uuid7()
        body = {
            "session": self.session.id,
            "epoch": self.session.epoch,
            "entry": self.session.entry,
            "names": [name.hex() for name in self.needed],
        }
        for folder in ("points2", "points"):
            self.sessions.store.create(f"{folder}/{self.point}.point", [json.dumps(body).encode()])

    def seal(self) -> str:
        """Record, then event; the point. Raises as `Session.seal`."""
        if not self.point:
            self.record()
        self.session.seal(
            PointSealed(
                repository=self.sessions.repository,
                session=self.session.id,
                point=self.point,
                asset="vm",
                asset_name="vm",
                kind="disks",
                continues=self.base,
                created_us=1,
                sealed_us=1,
                files_root=b"",
                record=b"",
                by="test",
            )
        )
        return self.point


def begin(sessions: Sessions, base: str = "", lease_ticks: int = 0) -> Writer:
    """Open a backup session that continues `base`; what that needs, the new point needs too."""
    session = sessions.open("backup", by="test", pins=[base] if base else [], lease_ticks=lease_ticks)
    contents = ToyContents(sessions.store)
    index: dict[bytes, list[bytes]] = {}
    for pack in contents.packs():
        for name in split(contents.frames(pack)[0]):
            index.setdefault(name, []).append(pack.id)
    return Writer(sessions, session, absent_for(session), index, base)
