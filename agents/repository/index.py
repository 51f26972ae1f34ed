"""Where each chunk is: a cache on local disk (LMDB), made anew from index runs and packs whenever it does not fit.

    chunks   name (32) -> place (24 bytes as in `agents.repository.runs`), several where a chunk is stored more than once
    packs    number u32 (big-endian) -> 16 pack, u8 state, store name
    meta     "format", "repository", "next" (number of the next pack), "gone/" and the number of a pack that was forgotten, until
             its places are swept, "run/<name>" of runs that are in here

A pack has its number for good and numbers are never given again, so a pack is forgotten by removing its number: places in it
are then as good as absent, and are swept away later. Only packs that are durable get in. A pack without a footer (its writer
died, or writes still) may be read from and is never built on: `find` tells the two apart.

The cache is as durable as each transaction of LMDB is; losing the last ones, or all, costs reading runs and footers. It says
nothing that the repository does not: `agents.repository.repository` compares its packs with a listing whenever it opens it.
What is found damaged in use is told (`index-damaged`), and thrown away when it is opened next. Several processes may have it
open, several threads may call at once; the slots for readers that one had which was killed are
taken back when there are no others.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import lmdb

from agents.failpoints import failpoint
from agents.repository.errors import RepositoryError
from agents.repository.format import Place
from agents.repository.runs import ENTRY_SIZE, Run, renumbered, unplace

SEALED: Final = 1  # with a footer: what it holds is known and durable
TORN: Final = 2  # without: what could be found in it may be read

UNUSABLE: Final = "index-unusable"
BROKEN: Final = "index-damaged"

_FORMAT: Final = b"1"
_MAP_SIZE: Final = 1 << 38  # of address space: the file grows as it is filled
_BATCH: Final = 1 << 17  # entries a transaction: what it changes is in memory until it ends
_BROKEN: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.IncompatibleError,
    lmdb.BadTxnError,
)
_number = struct.Struct(">I")
_GONE: Final = b"gone/"
_UNWRITTEN: Final = 64 << 10  # bytes
_SPOILT: Final = "damaged"  # a file beside it


class Pack(NamedTuple):
    """A pack that the index knows. `name`: its file. `state`: SEALED or TORN."""

    pack: bytes
    name: str
    state: int


def open_index(folder: Path, repository: UUID) -> Index:
    """The index of a repository in a folder of its own, which is made if need be; an empty one if what is there is of no use.

    Raises `RepositoryError` (`index-unusable`) when the folder cannot be used at all.
    """
    try:
        try:
            return _open(folder, repository)
        except (*_BROKEN, _Unfit, RepositoryError):
            shutil.rmtree(folder, ignore_errors=True)
            return _open(folder, repository)
    except (lmdb.Error, OSError) as error:
        raise RepositoryError(
            UNUSABLE,
            f"the index of repository {repository} cannot be kept in {folder}: {error}",
            "give the cache a folder on a local disk with room in it",
        ) from error


class _Unfit(Exception):
    """What is there is of another repository, of another release, or damaged."""


def _open(folder: Path, repository: UUID) -> Index:
    if (folder / _SPOILT).exists():
        raise _Unfit
    folder.mkdir(parents=True, exist_ok=True)
    env = lmdb.open(str(folder), map_size=_MAP_SIZE, max_dbs=4, max_readers=126, metasync=False, readahead=False)
    try:
        _refuse_cut(folder / "data.mdb", (env.info()["last_pgno"] + 1) * env.stat()["psize"])
        env.reader_check()  # who was killed while it read keeps pages from being used again
        index = Index(env, repository)
        with env.begin(write=True) as txn:
            wanted = {b"format": _FORMAT, b"repository": repository.bytes}
            for key, value in wanted.items():
                found = txn.get(key, db=index.meta)
                if found is None:
                    txn.put(key, value, db=index.meta)
                elif found != value:
                    raise _Unfit
        index.packs()
    except BaseException:
        env.close()
        raise
    return index


def _refuse_cut(file: Path, size: int) -> None:
    """Of a file that was cut off what is mapped behind its end would end this process when it is read. Pages that a transaction
    took and gave back are not written, so a few may lack: they are made, as zeros, which no page is."""
    lacks = size - file.stat().st_size
    if lacks > _UNWRITTEN:
        raise _Unfit
    if lacks > 0:
        os.truncate(file, size)


class Index:
    """Open it with `open_index`, close it when done."""

    def __init__(self, env: lmdb.Environment, repository: UUID) -> None:
        self.repository = repository
        self._env = env
        self._chunks = env.open_db(b"chunks", dupsort=True, dupfixed=True)
        self._packs_db = env.open_db(b"packs")
        self.meta = env.open_db(b"meta")
        self._lock = threading.Lock()
        self._seen = -1  # the transaction that the tables below are of
        self._by_number: dict[int, Pack] = {}
        self._numbers: dict[bytes, int] = {}

    # What is known

    def packs(self) -> dict[bytes, Pack]:
        """Every pack by its id."""
        with self._reading():
            return {pack.pack: pack for pack in self._by_number.values()}

    def runs(self) -> set[str]:
        """Names of the runs that are in here."""
        with self._reading() as txn:
            return {name.removeprefix("run/") for name in self._keys(txn, "run/")}

    def pack_name(self, pack: bytes) -> str | None:
        """The file of a pack, if it is known."""
        with self._lock:
            number = self._numbers.get(pack)
            return None if number is None else self._by_number[number].name

    def is_sealed(self, pack: bytes) -> bool:
        """Whether a pack is known with a footer, whatever has become of its file."""
        with self._reading():
            number = self._numbers.get(pack)
            return number is not None and self._by_number[number].state == SEALED

    def __len__(self) -> int:
        """Places, those in forgotten packs too: an upper bound of what there is."""
        with self._begin() as txn:
            return int(txn.stat(self._chunks)["entries"])

    def find(self, names: Iterable[bytes], absent: Container[bytes] = ()) -> dict[bytes, Place]:
        """Of `names` those that are in sealed packs other than `absent`, and where: what a writer may build on."""
        return self._find(names, sealed=True, absent=absent)

    def locate(self, names: Iterable[bytes]) -> dict[bytes, Place]:
        """Of `names` those that can be read, and where; sealed packs are preferred."""
        found = self._find(names, sealed=True)
        rest = [name for name in names if name not in found]
        return {**found, **self._find(rest, sealed=False)} if rest else found

    def sealed_places(self, name: bytes) -> list[Place]:
        """Every copy of a chunk in sealed packs."""
        with self._reading() as txn, txn.cursor(self._chunks) as cursor:
            found = [self._place(value) for _, value in cursor.getmulti([name], dupdata=True)]
        return [place for pack, place in filter(None, found) if pack.state == SEALED]

    def places(self, name: bytes) -> list[Place]:
        """Every copy of a chunk, those in sealed packs first."""
        with self._reading() as txn, txn.cursor(self._chunks) as cursor:
            found = [self._place(value) for _, value in cursor.getmulti([name], dupdata=True)]
        copies = [(pack.state, place) for pack, place in filter(None, found)]
        return [place for _, place in sorted(copies, key=lambda one: (one[0], one[1].pack, one[1].offset))]

    def _find(self, names: Iterable[bytes], *, sealed: bool, absent: Container[bytes] = ()) -> dict[bytes, Place]:
        out: dict[bytes, Place] = {}
        with self._reading() as txn, txn.cursor(self._chunks) as cursor:
            by_number = self._by_number
            for name, value in cursor.getmulti(names, dupdata=True):
                number, offset, stored, raw, kind, codec = unplace(value)
                pack = by_number.get(number)
                if pack is None or (sealed and pack.state != SEALED) or name in out:
                    continue
                if pack.pack not in absent:
                    out[name] = Place(pack.pack, offset, stored, raw, kind, codec)
        return out

    def entries_of(self, packs: Iterable[bytes]) -> Iterator[tuple[bytes, Place]]:
        """(name, place) of all that is in `packs`, by name: goes through the whole index."""
        wanted = set(packs)
        for name, place in self.items():
            if place.pack in wanted:
                yield name, place

    def items(self) -> Iterator[tuple[bytes, Place]]:
        """(name, place) of everything, ascending by name. The index may be changed meanwhile: that is not seen."""
        with self._reading() as txn, txn.cursor(self._chunks) as cursor:
            for name, value in cursor:
                found = self._place(value)
                if found is not None:
                    yield name, found[1]

    def _place(self, value: bytes) -> tuple[Pack, Place] | None:
        number, offset, stored, raw, kind, codec = unplace(value)
        pack = self._by_number.get(number)
        return None if pack is None else (pack, Place(pack.pack, offset, stored, raw, kind, codec))

    # What changes it

    def add(self, packs: Sequence[Pack], entries: bytes, run: str | None = None) -> int:
        """Take in all that is in `packs`: packed entries with pack numbers along `packs`. Those that are known as sealed
        already are left as they are. `run`: the name of the run they are from. Returns how many places came in."""
        known = self.packs()
        fresh = [pack.pack not in known or known[pack.pack].state > pack.state for pack in packs]
        step = _BATCH * ENTRY_SIZE
        batches = [entries[at : at + step] for at in range(0, len(entries), step)] or [b""]
        added = 0
        numbers: list[int | None] = []
        for number, batch in enumerate(batches):
            with self._writing() as txn:
                if not number:
                    numbers = self._numbered(txn, fresh)
                places = renumbered(batch, numbers)
                with txn.cursor(self._chunks) as cursor:
                    cursor.putmulti(places, dupdata=True, overwrite=True)
                added += len(places)
                if number == len(batches) - 1:
                    # The packs last: a death before leaves places of numbers that no pack has.
                    self._name_packs(txn, packs, numbers)
                    if run is not None:
                        txn.put(f"run/{run}".encode(), b"", db=self.meta)
            failpoint("index-places-added")
        return added

    def _numbered(self, txn: lmdb.Transaction[bytes], fresh: Sequence[bool]) -> list[int | None]:
        """A number for each pack that is new."""
        following = int(txn.get(b"next", b"0", db=self.meta))
        numbers: list[int | None] = []
        for new in fresh:
            numbers.append(following if new else None)
            following += new
        txn.put(b"next", str(following).encode(), db=self.meta)
        return numbers

    def _name_packs(self, txn: lmdb.Transaction[bytes], packs: Sequence[Pack], numbers: Sequence[int | None]) -> None:
        states = {value[:16]: value[16] for _, value in txn.cursor(self._packs_db)}
        for pack, number in zip(packs, numbers, strict=True):
            if number is None:
                continue
            if states.get(pack.pack, TORN + 1) <= pack.state:  # another process was first
                txn.put(_GONE + _number.pack(number), b"", db=self.meta)
                continue
            if pack.pack in states:
                self._forget(txn, {pack.pack})
            value = pack.pack + bytes([pack.state]) + pack.name.encode()
            txn.put(_number.pack(number), value, db=self._packs_db)

    def add_run(self, run: Run, name: str, there: set[bytes]) -> int:
        """Take in a run, of the packs `there` only. Returns how many places came in."""
        packs = [Pack(pack, file, SEALED) for pack, file in run.packs if pack in there]
        if len(packs) == len(run.packs):
            return self.add(packs, run.entries, name)
        numbers = {pack.pack: number for number, pack in enumerate(packs)}
        kept = renumbered(run.entries, [numbers.get(pack) for pack, _ in run.packs])
        return self.add(packs, b"".join(chunk + place for chunk, place in kept), name)

    def forget(self, packs: Iterable[bytes]) -> None:
        """Know nothing of these packs any more."""
        with self._writing() as txn:
            self._forget(txn, set(packs))

    def _forget(self, txn: lmdb.Transaction[bytes], packs: set[bytes]) -> None:
        numbers = [key for key, value in txn.cursor(self._packs_db) if value[:16] in packs]
        for key in numbers:
            txn.delete(key, db=self._packs_db)
            txn.put(_GONE + key, b"", db=self.meta)

    def note_run(self, name: str) -> None:
        """What this run says is in here."""
        with self._writing() as txn:
            txn.put(f"run/{name}".encode(), b"", db=self.meta)

    def forget_runs(self, names: Iterable[str]) -> None:
        with self._writing() as txn:
            for name in names:
                txn.delete(f"run/{name}".encode(), db=self.meta)

    def forgotten(self) -> int:
        """How many packs have been forgotten whose places may be here still."""
        with self._begin() as txn:
            return len(self._gone(txn))

    def sweep(self) -> int:
        """Remove the places of forgotten packs; how many there were. Of those alone: a number that no pack has may be one of a
        pack that somebody is taking in."""
        removed = 0
        start = b""
        with self._begin() as txn:
            gone = self._gone(txn)
        numbers = {_number.unpack(key)[0] for key in gone}
        while numbers:
            with self._writing() as txn, txn.cursor(self._chunks) as cursor:
                more = cursor.set_range(start) if start else cursor.first()
                seen = 0
                while more and seen < _BATCH:
                    seen += 1
                    if unplace(cursor.value())[0] not in numbers:
                        more = cursor.next()
                        continue
                    cursor.delete()  # the cursor is on the next one then
                    removed += 1
                    more = bool(cursor.key())
                if not more:
                    for key in gone:
                        txn.delete(_GONE + key, db=self.meta)
                    break
                start = cursor.key()
        return removed

    def _gone(self, txn: lmdb.Transaction[bytes]) -> list[bytes]:
        """Numbers of packs that were forgotten, as their keys were."""
        with txn.cursor(self.meta) as cursor:
            found: list[bytes] = []
            if cursor.set_range(_GONE):
                for key in cursor.iternext(values=False):
                    if not key.startswith(_GONE):
                        break
                    found.append(bytes(key[len(_GONE) :]))
            return found

    def sync(self) -> None:
        """All of it is on disk on return."""
        self._env.sync(True)

    def close(self) -> None:
        self._env.close()

    # Inside

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A snapshot, and the table of packs at least as new."""
        with self._telling(), self._begin() as txn:
            if txn.id() != self._seen:
                self._read_packs(txn)
            yield txn

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction[bytes]]:
        with self._telling(), self._env.begin(write=True) as txn:
            yield txn

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """That what is there makes no sense; it is thrown away when it is opened next."""
        try:
            yield
        except (*_BROKEN, struct.error, UnicodeDecodeError) as error:
            with suppress(OSError):
                Path(self._env.path(), _SPOILT).touch()
            raise RepositoryError(
                BROKEN,
                f"the index of repository {self.repository} is damaged on this machine's disk: {error}",
                "start the agent again: it makes the index anew; the repository itself is not concerned",
            ) from error

    def _begin(self) -> lmdb.Transaction[bytes]:
        try:
            return self._env.begin()
        except lmdb.ReadersFullError:
            # A process that was killed gives nothing back, and the file of locks outlives it while another one has it open.
            self._env.reader_check()
            return self._env.begin()

    def _read_packs(self, txn: lmdb.Transaction[bytes]) -> None:
        found = {}
        for key, value in txn.cursor(self._packs_db):
            found[_number.unpack(key)[0]] = Pack(bytes(value[:16]), bytes(value[17:]).decode(), value[16])
        with self._lock:
            if txn.id() > self._seen:
                self._by_number = found
                self._numbers = {pack.pack: number for number, pack in found.items()}
                self._seen = txn.id()

    def _keys(self, txn: lmdb.Transaction[bytes], prefix: str) -> Iterator[str]:
        with txn.cursor(self.meta) as cursor:
            if cursor.set_range(prefix.encode()):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix.encode()):
                        return
                    yield key.decode()
