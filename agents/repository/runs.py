"""Index runs: which chunk lies where, sorted, in files that never change (`index/<id>.run`). Pure but for `read` and `write`.

A run covers whole packs: what it says of them is all there is in them, so that whoever has the runs need not read the packs'
footers. Nothing depends on runs (packs describe themselves); they are why a repository is adopted in seconds. All integers
little-endian:

    head     "HFRUN\\x01\\r\\n" · u16 version (1) · u16 bytes of an entry (56) · u32 packs · u64 entries · 16 repository · 16 run
    packs    each: 16 pack · u16 length · store name in UTF-8
    entries  ascending by all of their bytes but the pack number, each:
             32 name · u32 pack (its number among those above, from 0) · u64 offset · u32 stored · u32 raw · u8 kind · u8 codec ·
             2 zero
    end      32 BLAKE3-256 of everything before

A name may stand there twice, in different packs: a second copy. Entries are packed bytes everywhere, also in memory and in
the index (`agents.repository.index`), where the pack's number is that of the index.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from blake3 import blake3

from agents.repository.errors import RepositoryError
from agents.repository.stores import Store

PREFIX: Final = "index/"
DAMAGED: Final = "run-damaged"
ENTRY_SIZE: Final = 56
PLACE_SIZE: Final = 24  # an entry without its name
NAME_SIZE: Final = 32

_MAGIC: Final = b"HFRUN\x01\r\n"
_VERSION: Final = 1
_DIGEST_SIZE: Final = 32
_head = struct.Struct("<8sHHIQ16s16s")
_pack = struct.Struct("<16sH")
_split = struct.Struct("<32sI20s")  # name, pack, the rest of an entry
_file_name = re.compile(r"index/[0-9a-f]{32}\.run")


class Covered(NamedTuple):
    """A pack that a run speaks of: its id and the name of its file."""

    pack: bytes
    name: str


class Run(NamedTuple):
    """A run in memory. `entries` are packed, 56 bytes each, with pack numbers counted along `packs`."""

    run: UUID
    packs: tuple[Covered, ...]
    entries: bytes

    @property
    def size(self) -> int:
        """How many entries."""
        return len(self.entries) // ENTRY_SIZE


def file_name(run: UUID) -> str:
    return f"{PREFIX}{run.hex}.run"


def is_run(name: str) -> bool:
    """Whether a file of the repository can be a run, by its name."""
    return _file_name.fullmatch(name) is not None


def encode(run: Run, repository: UUID) -> list[bytes]:
    """The parts of the run's file. `entries` are put in order here."""
    entries = sort_entries(run.entries)
    parts = [
        _head.pack(_MAGIC, _VERSION, ENTRY_SIZE, len(run.packs), run.size, repository.bytes, run.run.bytes),
        b"".join(_pack.pack(pack, len(name.encode())) + name.encode() for pack, name in run.packs),
        entries,
    ]
    digest = blake3()
    for part in parts:
        digest.update(part)
    return [*parts, digest.digest()]


def decode(data: bytes, repository: UUID) -> Run:
    """The run whose file is `data`. Raises `RepositoryError` (`run-damaged`) unless it is one, whole, of this repository."""
    if len(data) < _head.size + _DIGEST_SIZE:
        raise _damaged("it is cut off")
    magic, version, entry_size, packs, count, owner, run = _head.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged("it does not begin as one")
    if version != _VERSION or entry_size != ENTRY_SIZE:
        raise RepositoryError(
            DAMAGED, f"an index run has version {version}", "a newer release of Holdfast wrote it: read it with that"
        )
    body = memoryview(data)[:-_DIGEST_SIZE]
    if blake3(body, max_threads=blake3.AUTO).digest() != data[-_DIGEST_SIZE:]:
        raise _damaged("its digest does not fit")
    if owner != repository.bytes:
        raise _damaged(f"it is of repository {UUID(bytes=owner)}")
    covered, at = _packs(bytes(body[_head.size : _head.size + (len(body) - _head.size - count * ENTRY_SIZE)]), packs)
    entries = bytes(body[_head.size + at :])
    if len(entries) != count * ENTRY_SIZE:
        raise _damaged("its parts do not fit each other")
    return Run(UUID(bytes=run), covered, entries)


def _packs(data: bytes, count: int) -> tuple[tuple[Covered, ...], int]:
    """`count` packs from the beginning of `data`, and where they end."""
    found, at = [], 0
    for _ in range(count):
        if at + _pack.size > len(data):
            raise _damaged("its list of packs is cut off")
        pack, length = _pack.unpack_from(data, at)
        at += _pack.size
        try:
            found.append(Covered(pack, data[at : at + length].decode()))
        except UnicodeDecodeError:
            raise _damaged("a pack of it has no name") from None
        at += length
    return tuple(found), at


def entry(name: bytes, pack: int, offset: int, stored: int, raw: int, kind: int, codec: int) -> bytes:
    """One packed entry."""
    return name + place(pack, offset, stored, raw, kind, codec)


_place = struct.Struct("<IQIIBBxx")
place = _place.pack
unplace = _place.unpack  # pack, offset, stored, raw, kind, codec


def sort_entries(entries: bytes) -> bytes:
    """Packed entries in ascending order."""
    return b"".join(sorted(slices(entries)))


def slices(entries: bytes, size: int = ENTRY_SIZE) -> list[bytes]:
    """Packed bytes cut in equal pieces."""
    return [piece for (piece,) in struct.iter_unpack(f"{size}s", entries)]


def renumbered(entries: bytes, numbers: Sequence[int | None]) -> list[tuple[bytes, bytes]]:
    """(name, place) of each entry, its pack number replaced by `numbers[it]`; entries of packs that have None are left out.

    Raises `RepositoryError` (`run-damaged`) for a number that is none of `numbers`.
    """
    packed = [None if n is None else struct.pack("<I", n) for n in numbers]
    try:
        found = [(name, packed[pack], rest) for name, pack, rest in _split.iter_unpack(entries)]
    except IndexError:
        raise _damaged("an entry of it is of no pack") from None
    return [(name, number + rest) for name, number, rest in found if number is not None]


def merged(run: UUID, runs: Iterable[Run], keep: Iterable[bytes] | None = None) -> Run:
    """One run that says what `runs` say, of the packs `keep` only when given."""
    kept = None if keep is None else set(keep)
    numbers: dict[bytes, int] = {}
    packs: list[Covered] = []
    entries: list[bytes] = []
    for one in runs:
        table: list[int | None] = []
        for covered in one.packs:
            if covered.pack in numbers or (kept is not None and covered.pack not in kept):
                table.append(None)  # another run has said all of it, or it is gone
                continue
            table.append(len(packs))
            packs.append(covered)
        for covered, number in zip(one.packs, table, strict=True):
            if number is not None:
                numbers[covered.pack] = number
        entries += [name + rest for name, rest in renumbered(one.entries, table)]
    entries.sort()
    return Run(run, tuple(packs), b"".join(entries))


def write(store: Store, repository: UUID, run: Run) -> str:
    """Make the run's file, durable on return; its name."""
    name = file_name(run.run)
    store.create(name, encode(run, repository))
    return name


def read(store: Store, repository: UUID, name: str) -> Run:
    """Raises `StoreError`, `RepositoryError` (`run-damaged`)."""
    return decode(store.read(name), repository)


def _damaged(why: str) -> RepositoryError:
    return RepositoryError(
        DAMAGED,
        f"an index run is damaged: {why}",
        "nothing is lost by it: what it said is read from the packs; `holdfast repository verify` removes it",
    )
