"""A repository as a whole: what makes one, opening it, finding and reading its chunks. Knows sessions and the log not at all.

`repository.json` says what it is, and never changes; `repository2.json` is its second copy, written first (canonical JSON):

    {"format": 1, "repository": UUID, "created_us": µs, "encrypted": bool, "block_size": bytes, "pack_bytes": bytes,
     "level": of zstd, "key": hex (only if not encrypted), "key_check": hex, "check": hex}

`key_check` is BLAKE3 `derive_key("holdfast 1 key check", key)`, 8 bytes of it, so that a key that was unwrapped can be told from
another repository's; `check` is 8 bytes of BLAKE3 over the same JSON without it. What else there is, by folder:

    keys/, keys2/  wraps of the key (agents.repository.keys)   points/, points2/   point records, two copies of each
    packs/    chunks (agents.repository.packs)                 marks/              stars, holds (agents.repository.marks)
    index/    index runs (agents.repository.runs): a cache     witness/            agents.repository.sessions

And if we die here? While it is created: wraps, second copy, then `repository.json`, which makes it a repository. Wraps without
one, and without packs, are of a creation that died: the next one removes them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from blake3 import blake3

from agents.failpoints import failpoint
from agents.repository import keys as key_wraps
from agents.repository import pack_format, packs, points, runs
from agents.repository.errors import DAMAGED, LOCKED, RepositoryError
from agents.repository.format import LARGEST_CHUNK, PACK_BYTES, Place
from agents.repository.index import SEALED, TORN, Index, Pack, open_index
from agents.repository.keys import Keys, Naming
from agents.repository.stores import MISSING, SHORT, Store, StoreError
from streams.events import Problem
from streams.ids import now_us, uuid7

MISSING_CHUNK: Final = "chunk-missing"
NONE_HERE: Final = "repository-missing"
TAKEN: Final = "repository-exists"
BROKEN: Final = "repository-damaged"

FIRST, SECOND = "repository.json", "repository2.json"
BLOCK_BYTES: Final = 256 << 10
LEVEL: Final = 1

Unlock = Callable[[Store], bytes]
"""Gives the repository key: `agents.repository.keys.unlock` with what there is to unlock it."""

_CONTEXT: Final = "holdfast 1 key check"
_LARGEST: Final = 64 << 10
_KEPT_PROBLEMS: Final = 100
_MERGE_AT: Final = 16  # this many runs of like size become one
_SWEEP_AT: Final = 256  # forgotten packs whose places may stay in the index
_LARGEST_RUN: Final = 1 << 18  # entries: merging so many takes 75 MB; larger runs are left alone


@dataclass(frozen=True, slots=True)
class Definition:
    """What a repository is, for its whole life. `block_size`: what disks are cut in unless their asset says otherwise.

    `key`: of a repository that is not encrypted, where it keeps names apart and nothing secret; empty otherwise.
    """

    identity: UUID
    created_us: int
    encrypted: bool = True
    block_size: int = BLOCK_BYTES
    pack_bytes: int = PACK_BYTES
    level: int = LEVEL
    key: bytes = b""
    key_check: bytes = b""

    def checked(self) -> Definition:
        """Itself, if it can be used. Raises `RepositoryError` (`repository-unfit`)."""
        if not 4096 <= self.block_size <= LARGEST_CHUNK or self.block_size & (self.block_size - 1):
            raise _unfit(
                f"blocks of {self.block_size} bytes", "use a power of two from 4096 up; 131072 and 262144 are good"
            )
        if not 1 << 20 <= self.pack_bytes <= 1 << 30:
            raise _unfit(f"packs of {self.pack_bytes} bytes", "use 1 MiB to 1 GiB; 64 MiB is good")
        if not -10 <= self.level <= 19:
            raise _unfit(f"zstd level {self.level}", "use -10 to 19; 1 is good")
        return self


def _unfit(what: str, hint: str) -> RepositoryError:
    return RepositoryError("repository-unfit", f"a repository cannot have {what}", hint)


# -- the definition's bytes


def encode(definition: Definition) -> bytes:
    plain: dict[str, Any] = {
        "format": 1,
        "repository": str(definition.identity),
        "created_us": definition.created_us,
        "encrypted": definition.encrypted,
        "block_size": definition.block_size,
        "pack_bytes": definition.pack_bytes,
        "level": definition.level,
        "key_check": definition.key_check.hex(),
    }
    if definition.key:
        plain["key"] = definition.key.hex()
    return points.canonical({**plain, "check": _check(plain)})


def decode(data: bytes) -> Definition:
    """Raises `RepositoryError` (`repository-damaged`) for whatever is no definition."""
    try:
        if len(data) > _LARGEST:
            raise ValueError("it is too large")
        plain = json.loads(data)
        if plain["format"] != 1:
            raise RepositoryError(
                BROKEN,
                f"the repository has format {plain['format']}",
                "a newer release of Holdfast made it: use that",
            )
        if plain.pop("check") != _check(plain):
            raise ValueError("its digest differs")
        return Definition(
            UUID(plain["repository"]),
            int(plain["created_us"]),
            bool(plain["encrypted"]),
            int(plain["block_size"]),
            int(plain["pack_bytes"]),
            int(plain["level"]),
            bytes.fromhex(plain.get("key", "")),
            bytes.fromhex(plain["key_check"]),
        ).checked()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(
            BROKEN,
            f"what the repository says of itself is damaged: {error}",
            "there are two copies: restore one of them",
        ) from error


def _check(plain: dict[str, Any]) -> str:
    return blake3(points.canonical(plain)).digest(8).hex()


def key_check(key: bytes) -> bytes:
    return blake3(key, derive_key_context=_CONTEXT).digest(8)


# -- making and opening


def create(
    store: Store,
    *,
    wrap: Callable[[Store, UUID, bytes], None] | None,
    block_size: int = BLOCK_BYTES,
    pack_bytes: int = PACK_BYTES,
    level: int = LEVEL,
) -> Definition:
    """Make a repository in an empty store, durable on return. `wrap(store, identity, key)` keeps the key
    (`agents.repository.keys.add_wrap`, once or more); without it the repository is not encrypted.

    Raises `RepositoryError` (`repository-exists`, `repository-damaged`, `repository-unfit`), `StoreError` (`store-unfit`).
    """
    store.check()
    _refuse_used(store)
    key = key_wraps.new_key()
    definition = Definition(
        UUID(uuid7()),
        now_us(),
        wrap is not None,
        block_size,
        pack_bytes,
        level,
        b"" if wrap else key,
        key_check(key),
    ).checked()
    if wrap is not None:
        wrap(store, definition.identity, key)
    failpoint("repository-key-kept")
    data = encode(definition)
    store.create(SECOND, [data])
    failpoint("repository-second-made")
    store.create(FIRST, [data])
    return definition


def _refuse_used(store: Store) -> None:
    """Only an empty store, or one in which a creation died, becomes a repository."""
    if _has(store, FIRST):
        raise RepositoryError(
            TAKEN, "there is a repository already", "add it (`holdfast repository adopt`) or choose another place"
        )
    for folder in ("packs/", points.FIRST, points.SECOND):
        if next(iter(store.list(folder)), None) is not None:
            raise RepositoryError(
                BROKEN,
                f"there is no {FIRST}, but there are {folder}: what says that this is a repository has been lost",
                f"bring back {FIRST} or {SECOND} from a copy; nothing was changed",
            )
    for folder in (key_wraps.FIRST, key_wraps.SECOND):
        for listed in list(store.list(folder)):
            store.delete(listed.name)
    store.delete(SECOND)


def _has(store: Store, name: str) -> bool:
    try:
        store.size(name)
    except StoreError as error:
        if error.code == MISSING:
            return False
        raise
    return True


def define(store: Store) -> Definition:
    """What the repository in `store` is. A copy that is damaged or gone is made anew from the other.

    Raises `RepositoryError` (`repository-missing`, `repository-damaged`), `StoreError`.
    """
    found: dict[str, Definition | RepositoryError | None] = {}
    for name in (FIRST, SECOND):
        try:
            found[name] = decode(store.read(name))
        except RepositoryError as error:
            found[name] = error
        except StoreError as error:
            if error.code not in (MISSING, SHORT):
                raise
            found[name] = None
    good = next((d for d in found.values() if isinstance(d, Definition)), None)
    if good is None:
        damage = next((e for e in found.values() if isinstance(e, RepositoryError)), None)
        raise damage or RepositoryError(
            NONE_HERE, "there is no repository here", "make one with `holdfast repository add`, or look elsewhere"
        )
    if found[FIRST] is None and found[SECOND] == good and not _used(store):
        # A creation that died before its last step: not a repository yet.
        raise RepositoryError(NONE_HERE, "there is no repository here, only the beginning of one", "make it again")
    for name, copy in found.items():
        if copy != good:
            _mend(store, name, good)
    return good


def _used(store: Store) -> bool:
    return next(iter(store.list("packs/")), None) is not None or next(iter(store.list(points.FIRST)), None) is not None


def _mend(store: Store, name: str, definition: Definition) -> None:
    """A store that takes no writes keeps one copy: that is verify's to complain of."""
    try:
        store.delete(name)
        store.create(name, [encode(definition)])
    except StoreError:
        pass


def open(store: Store, unlock: Unlock | None, cache: Path, node: str) -> Repository:
    """Open the repository in `store`. `cache`: a folder on a local disk for its index; `node`: who writes, [a-z0-9_].

    Raises `RepositoryError`: `repository-missing`, `repository-damaged`, `repository-locked`, `index-unusable`; `StoreError`.
    """
    definition = define(store)
    key = definition.key
    if definition.encrypted:
        if unlock is None:
            raise RepositoryError(LOCKED, "the repository is encrypted", "give what unlocks it")
        key = unlock(store)
    if key_check(key) != definition.key_check:
        raise RepositoryError(
            LOCKED,
            "the key that was unwrapped is not this repository's",
            "a wrap of another repository lies in keys/: remove it",
        )
    index = open_index(cache / str(definition.identity), definition.identity)
    try:
        repository = Repository(
            store, definition, Keys(definition.identity.bytes, key, definition.encrypted), index, node
        )
        repository.refresh()
    except BaseException:
        index.close()
        raise
    return repository


class Repository:
    """An open repository: a source of chunks, each verified when it is read. Safe to use from several threads.

    The store stays the caller's; `close` lets go of the index. `problems` has what was met on the way and worked around.
    """

    def __init__(self, store: Store, definition: Definition, keys: Keys, index: Index, node: str) -> None:
        self.store = store
        self.definition = definition
        self.identity = definition.identity
        self.keys = keys
        self.index = index
        self.node = node
        self.record_key = points.RecordKey(
            str(definition.identity), keys.derived("point records"), definition.encrypted
        )
        self.problems: list[Problem] = []
        self._lock = threading.Lock()
        self._taken_anew = False
        self._refreshing = threading.Lock()
        self._unsealed: dict[str, int] = {}  # packs without a footer, by name: their size when they were last looked at
        self._walked: dict[str, int] = {}  # those that were walked, likewise

    def close(self) -> None:
        self.index.close()

    # Points

    def point_ids(self) -> Iterator[str]:
        """Ids of the points whose records are there, in their order. What the log says of them, the ledger knows."""
        return points.ids(self.store)

    def point(self, point: str) -> points.Point:
        """Raises `RepositoryError`: `point-missing`, `point-damaged`; `StoreError`."""
        return points.read(self.store, point, self.record_key).point

    # Chunks

    def naming(self, scope: str = "") -> Naming:
        return self.keys.naming(scope)

    def get(self, name: bytes, kind: int) -> bytes:
        """What `name` names, from whichever copy is whole. Raises `RepositoryError` (`chunk-missing`, `chunk-damaged`) and
        `StoreError`."""
        (place,) = self._located([name]).values()
        return self._read(name, kind, place)

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        """Each of `names` with what it names, pack by pack, by offset. Raises as `get`."""
        for pack, wanted in self._by_pack(names).items():
            yield from self._read_pack(pack, wanted, kind)

    def read_order(self, names: Sequence[bytes], kind: int) -> list[bytes]:
        """`names` as they are stored. Raises `chunk-missing`."""
        return [name for wanted in self._by_pack(names).values() for name, _ in wanted]

    def _by_pack(self, names: Sequence[bytes]) -> dict[bytes, list[tuple[bytes, Place]]]:
        found: dict[bytes, list[tuple[bytes, Place]]] = {}
        for name, place in self._located(names).items():
            found.setdefault(place.pack, []).append((name, place))
        for wanted in found.values():
            wanted.sort(key=lambda one: one[1].offset)
        return found

    def _located(self, names: Sequence[bytes]) -> dict[bytes, Place]:
        """Where each is; looks again, and into packs without a footer, for what is not known, and into all of them at last: an
        index may have lost names, or have them wrong."""
        found = self.index.locate(names)
        for look in (self.refresh, self._refresh_deep, self._take_anew):
            if len(found) == len(names) or all(name in found for name in names):
                return found
            look()
            found = self.index.locate(names)
        absent = next((name for name in names if name not in found), None)
        if absent is not None:
            raise RepositoryError(
                MISSING_CHUNK,
                f"no pack of the repository holds chunk {absent.hex()}",
                "run `holdfast repository verify`: it says which points that concerns",
            )
        return found

    def _read(self, name: bytes, kind: int, place: Place) -> bytes:
        """One chunk from its place, or from another copy of it."""
        found = list(self._read_pack(place.pack, [(name, place)], kind))
        return found[0][1]

    def _read_pack(self, pack: bytes, wanted: list[tuple[bytes, Place]], kind: int) -> Iterator[tuple[bytes, bytes]]:
        """Chunks of one pack in their order; those that cannot be read there come last, from their other copies."""
        file = self.index.pack_name(pack)
        failed: list[tuple[bytes, Place, RepositoryError]] = []

        def damaged(name: bytes, place: Place, error: RepositoryError) -> None:
            failed.append((name, place, error))

        if file is None:  # forgotten this moment: a collection, or a listing that lacked it
            failed = [(name, place, _gone(name)) for name, place in wanted]
        else:
            known = dict(wanted)
            for name, data in packs.read_frames(self.store, file, wanted, self.keys, damaged):
                if known[name].kind != kind:
                    raise RepositoryError(DAMAGED, f"chunk {name.hex()} is of kind {known[name].kind}, not {kind}")
                yield name, data
        for name, place, error in failed:
            yield name, self._other_copy(name, kind, place, error)

    def _other_copy(self, name: bytes, kind: int, place: Place, error: RepositoryError) -> bytes:
        """A chunk that cannot be read at `place`. Raises `error` when no other copy can be either."""
        tried = {(place.pack, place.offset)}
        for look in (None, self.refresh, self._refresh_deep, self._take_anew):
            if look is not None:
                look()
            for other in self.index.places(name):
                file = self.index.pack_name(other.pack)
                if (other.pack, other.offset) in tried or other.kind != kind or file is None:
                    continue
                tried.add((other.pack, other.offset))
                try:
                    data = packs.read_frame(self.store, file, other, name, self.keys)
                except RepositoryError:
                    continue
                self._note(error)
                return data
        raise error

    # What is there

    def refresh(self, *, deep: bool = False) -> None:
        """See packs and runs that came or went. `deep`: also walk packs without a footer, whose writers died, or still write."""
        with self._refreshing:
            known = self.index.packs()  # first: a pack that comes in while the listing is made is not gone
            there = self._listed_packs()
            if gone := known.keys() - there.keys():
                self.index.forget(gone)
            fresh = {pack for pack in there if pack not in known or known[pack].state != SEALED}
            if self._take_runs(fresh, set(there)):
                known = self.index.packs()
                fresh = {pack for pack in there if pack not in known or known[pack].state != SEALED}
            for pack in sorted(fresh):
                self._take_pack(pack, *there[pack], deep=deep)

    def _refresh_deep(self) -> None:
        self.refresh(deep=True)

    def _take_anew(self) -> None:
        """Believe nothing that the index says, once: what is missing, or not where it says, may be so in the index alone."""
        with self._lock:
            if self._taken_anew:
                return
            self._taken_anew = True
            self._unsealed.clear()
            self._walked.clear()
        self.index.forget_runs(self.index.runs())
        self.index.forget(self.index.packs())
        self.refresh(deep=True)

    def in_place(self) -> None:
        """Look whether the repository is where it was: an unmounted file system leaves an empty folder that would take a backup.

        Raises `RepositoryError` (`repository-missing`, `repository-exchanged`), `StoreError`.
        """
        try:
            found = define(self.store).identity
        except RepositoryError as error:
            if error.code != NONE_HERE:
                raise
            hint = "mount its file system again; nothing was sealed"
            raise RepositoryError(NONE_HERE, "the repository is not in its place any more", hint) from error
        if found != self.identity:
            raise RepositoryError(
                "repository-exchanged",
                f"another repository ({found}) is in the place of this one ({self.identity})",
                "bring back the right one, and start the agent again; nothing was sealed",
            )

    def _listed_packs(self) -> dict[bytes, tuple[str, int]]:
        """Name and size of every pack in the store, by id."""
        found: dict[bytes, tuple[str, int]] = {}
        for listed in self.store.list("packs/"):
            parsed = pack_format.parse_pack_file(listed.name)
            if parsed is not None:
                found[parsed[0]] = (listed.name, listed.size)
        return found

    def _take_runs(self, fresh: set[bytes], there: set[bytes]) -> bool:
        """Take in the runs that are not in the index yet; whether there were any."""
        listed = {one.name for one in self.store.list(runs.PREFIX) if runs.is_run(one.name)}
        known = self.index.runs()
        if gone := known - listed:
            self.index.forget_runs(gone)
        new = sorted(listed - known) if fresh else []
        for name in new:
            try:
                run = runs.read(self.store, self.identity, name)
            except (RepositoryError, StoreError) as error:
                # Merged away meanwhile, or damaged: what it said is read from the packs.
                if not (isinstance(error, StoreError) and error.code == MISSING):
                    self._note(error)
                continue
            self.index.add_run(run, name, there)
        return bool(new)

    def _take_pack(self, pack: bytes, name: str, size: int, *, deep: bool) -> None:
        """Take in a pack that no run speaks of."""
        seen = self._walked if deep else self._unsealed
        if seen.get(name) == size:
            return
        try:
            rows = packs.rows_of(self.store, name)
            if rows is not None:
                # Its length of now: it may have grown, and have been sealed, since it was listed.
                end = self.store.size(name) - pack_format.TRAILER_BYTES - len(rows[1])
                entries = pack_format.entries_in(pack, rows[1], end)
                self.index.add([Pack(pack, name, SEALED)], run_entries(entries))
                return
            seen[name] = size
            if deep:
                contents = packs.contents_of(self.store, name)
                self.index.forget([pack])
                self.index.add([Pack(pack, name, TORN)], run_entries(contents.entries))
        except RepositoryError as error:
            if error.code != MISSING_CHUNK:  # gone meanwhile
                self._note(error)
        except StoreError as error:
            self._note(error)

    def pack_writer(self, epoch: int, kind: int, scope: bytes) -> packs.PackWriter:
        """A writer of packs for a session. Whoever asked for it closes it."""
        return packs.PackWriter(self.store, self.keys, self.node, epoch, kind, scope, size=self.definition.pack_bytes)

    def forget(self, gone: Iterable[bytes]) -> None:
        """Packs that are about to be deleted, or were: nothing is read from them any more, nor built on."""
        self.index.forget(gone)
        if self.index.forgotten() > max(_SWEEP_AT, len(self.index.packs()) // 4):
            self.index.sweep()

    def merge_runs(self, *, at: int = _MERGE_AT) -> int:
        """Make one run of many of like size when there are `at` or more; how many went into it. Two nodes may do it at once: then
        two runs say the same. A death leaves both what went in and what came of it."""
        alike: dict[int, list[str]] = {}
        for one in self.store.list(runs.PREFIX):
            if runs.is_run(one.name) and one.size < _LARGEST_RUN * runs.ENTRY_SIZE // 4:
                alike.setdefault(one.size.bit_length() // 3, []).append(one.name)
        small = next((sorted(names) for _, names in sorted(alike.items()) if len(names) >= at), [])
        if not small:
            return 0
        gathered: list[runs.Run] = []
        names: list[str] = []
        entries = 0
        for name in small:
            try:
                run = runs.read(self.store, self.identity, name)
            except (RepositoryError, StoreError) as error:
                self._note(error)
                continue
            if entries and entries + run.size > _LARGEST_RUN:
                break
            entries += run.size
            gathered.append(run)
            names.append(name)
        if len(gathered) < 2:
            return 0
        merged = runs.merged(UUID(uuid7()), gathered, keep=self._listed_packs().keys())
        made = runs.write(self.store, self.identity, merged)
        self.index.note_run(made)
        failpoint("runs-merged")
        for name in names:
            try:
                self.store.delete(name)
            except StoreError as error:  # a store that keeps everything for a while: a run too many does no harm
                self._note(error)
        return len(names)

    def _note(self, error: RepositoryError | StoreError) -> None:
        with self._lock:
            if len(self.problems) < _KEPT_PROBLEMS:
                self.problems.append(error.problem())


def _gone(name: bytes) -> RepositoryError:
    return RepositoryError(MISSING_CHUNK, f"the pack that held chunk {name.hex()} is gone")


def run_entries(entries: Iterable[pack_format.Entry], pack: int = 0) -> bytes:
    """What is in a pack as entries of a run, `pack` the pack's number there."""
    return b"".join(
        runs.entry(one.name, pack, one.place.offset, one.place.stored, one.place.raw, one.place.kind, one.place.codec)
        for one in entries
    )
