"""Point records: what a restore point is, as one small file, stored twice. With it and the chunks it names everything
is there.

A record, `points/<point>.point` and `points2/<point>.point`, of the same bytes (integers little-endian):

    "HFPOINT1" · u8 version (1) · u8 sealed · u16 0 · u32 length of clear · clear · u32 length of body · 12 nonce ·
    body · 32 BLAKE3-256 of all before

`clear` is canonical JSON: repository, point, session, journal (ordinal and id of the session's `session.opened`),
created_us: what must be known without keys. `body` is the zstd of canonical JSON, the `Point`. Sealed it is
AES-256-GCM, the key BLAKE3 `derive_key("holdfast 1 point record", record key ‖ point id)`, associated data all that
stands before the nonce. In a repository that is not encrypted 16 bytes of BLAKE3, keyed with that key, over the same
data, nonce and body follow it: whoever has not the repository's key can make no point. The digest at the end needs no
key, so one who has none can tell a damaged record.

The order: `points2` is created, then `points`; a point is there when a file in `points` is. So a death in between
leaves a second copy that nobody asks for. Dropping goes the other way. A damaged copy is mended by one beside it,
`<point>.1.point`, before it is removed. Canonical JSON: sorted keys, no spaces, ASCII; bytes as hexadecimal, contents
of configurations as base64.

Marks (stars, holds …) are files of their own, `agents.repository.marks`. Knows no packs and no log.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agents.failpoints import failpoint
from agents.repository.content import DELTA, MANIFEST, NAME_SIZE
from agents.repository.errors import RepositoryError
from agents.repository.stores import EXISTS, MISSING, SHORT, Store, StoreError

DAMAGED: Final = "point-damaged"
ABSENT: Final = "point-missing"
TAKEN: Final = "point-exists"
LARGEST: Final = 64 << 20  # of a record and of what is in it

FIRST, SECOND = "points/", "points2/"
KINDS: Final = ("disks", "files", "stream")

_MAGIC: Final = b"HFPOINT1"
_VERSION: Final = 1
_head = struct.Struct("<8sBBHI")
_u32 = struct.Struct("<I")
_NONCE, _TAG, _DIGEST = 12, 16, 32
_COPIES: Final = 10  # of one record, below one folder, before something is very wrong
_CONTEXT: Final = "holdfast 1 point record"
_FILE = re.compile(
    r"(?:points2?)/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})(?:\.(\d{1,3}))?\.point"
)


@dataclass(frozen=True, slots=True)
class RecordKey:
    """What records of one repository are made with. `key`: 32 bytes, for records alone; `repository`: its identity."""

    repository: str
    key: bytes = field(repr=False)
    encrypted: bool

    def of(self, what: bytes, context: str = _CONTEXT) -> bytes:
        derived: bytes = blake3(self.key + what, derive_key_context=context).digest()
        return derived


# -- what a point is


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """An event of the repository's log: its ordinal and id. A log that lacks it is not the one the point was made
    under."""

    ordinal: int
    event: str


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk. `size` bytes in blocks of `block_size`, the last one shorter if need be. `root`: of its tree
    (`agents.repository.tree`, 32 bytes). `delta`: segments of the run that leads here from the point that this one
    `continues`. `counts`: blocks by what they are (`data`, `zero`, `omitted`, `lost`, `changed`). `geometry`: what
    else it takes to make the disk.
    """

    disk: str
    name: str
    size: int
    block_size: int
    root: bytes
    delta: tuple[bytes, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    geometry: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tree:
    """A file tree, or a stream. `root` names its directory (or the stream's list, `agents.repository.files`); `delta`:
    the names of chunks that are in this and not in the point it `continues`, as delta segments, or empty."""

    name: str
    root: bytes
    size: int
    files: int = 0
    delta: tuple[bytes, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captured:
    """Where a source's log stood at the point: the digest is that of the captured record, so restored bytes lead to a
    write."""

    source: str
    lineage: str
    ordinal: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point, whole. Times in µs since 1970.

    `continues`: the point whose content the delta runs start from, empty for a first one; `previous_record`: the
    digest of that point's record file, so points of an asset are one chain. `session`, `journal`: who wrote it, and
    where the log said so; `epoch` is the session's. `configuration`: small files as they are (a VM's definition, its
    NVRAM), `attached`: larger ones, as chunks of kind MANIFEST in order. `facts`: what the application said of itself.
    `figures`: what making it read and stored (`agents.repository.ingest.Figures`). `scopes`: within which its chunks were
    named, the newest last; empty: within the whole repository.
    """

    point: str
    asset: str
    asset_name: str
    kind: Literal["disks", "files", "stream"]
    created_us: int
    session: str
    epoch: int
    node: str
    journal: JournalPlace
    continues: str = ""
    previous_record: bytes = b""
    disks: tuple[Disk, ...] = ()
    trees: tuple[Tree, ...] = ()
    configuration: Mapping[str, bytes] = field(default_factory=dict)
    attached: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    captured: tuple[Captured, ...] = ()
    figures: Mapping[str, int] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()

    @property
    def namings(self) -> tuple[str, ...]:
        """Every scope that a chunk of it can have been named in, the likeliest first. Records of before scopes were recorded
        say none: it was the repository's, or the asset's."""
        return tuple(dict.fromkeys((*reversed(self.scopes), "", self.asset)))


@dataclass(frozen=True, slots=True)
class Clear:
    """What a record says to whoever has no key."""

    repository: str
    point: str
    session: str
    journal: JournalPlace
    created_us: int


@dataclass(frozen=True, slots=True)
class Needs:
    """Chunks that a point names itself: (kind, name). What is below them, `tree.walk` and `files.walk` say."""

    disks: tuple[bytes, ...]  # roots of trees of disks
    trees: tuple[bytes, ...]  # roots of file trees and streams
    chunks: tuple[tuple[int, bytes], ...]  # needed as they are


def needs(point: Point) -> Needs:
    """Everything that marking must start from. Roots of empty disks are among them."""
    chunks = [(DELTA, name) for disk in point.disks for name in disk.delta]
    chunks += [(DELTA, name) for tree in point.trees for name in tree.delta]
    chunks += [(MANIFEST, name) for names in point.attached.values() for name in names]
    return Needs(tuple(d.root for d in point.disks), tuple(t.root for t in point.trees), tuple(chunks))


# -- bytes


def encode(point: Point, key: RecordKey, nonce: bytes | None = None) -> bytes:
    """The file of a point. `nonce` is for golden files only."""
    clear = canonical(
        {
            "repository": key.repository,
            "point": point.point,
            "session": point.session,
            "journal": _plain(point.journal),
            "created_us": point.created_us,
        }
    )
    body = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(canonical(_plain(point)))
    nonce = os.urandom(_NONCE) if nonce is None else nonce
    size = len(body) + _TAG
    head = _head.pack(_MAGIC, _VERSION, key.encrypted, 0, len(clear)) + clear + _u32.pack(size)
    own = key.of(point.point.encode())
    if key.encrypted:
        body = AESGCM(own).encrypt(nonce, body, head)
    else:
        body += blake3(head + nonce + body, key=own).digest(_TAG)
    record = head + nonce + body
    if len(record) + _DIGEST > LARGEST:
        raise RepositoryError(
            "point-too-large",
            f"the record of a point would have {len(record)} bytes",
            "attach large configuration files as chunks",
        )
    return record + blake3(record).digest()


def read_clear(data: bytes) -> Clear:
    """What a record says without a key. Raises `RepositoryError` (`point-damaged`)."""
    return _framed(data)[0]


def decode(data: bytes, key: RecordKey) -> Point:
    """The point that a file is of. Raises `RepositoryError` (`point-damaged`) also where the key is another's."""
    clear, sealed, head, nonce, body = _framed(data)
    if clear.repository != key.repository:
        raise _damaged(clear.point, f"it is of another repository, {clear.repository}")
    if sealed != key.encrypted:
        raise _damaged(clear.point, "it is sealed in a repository that is not, or the other way round")
    own = key.of(clear.point.encode())
    try:
        if sealed:
            plain = AESGCM(own).decrypt(nonce, body, head)
        else:
            plain, tag = body[:-_TAG], body[-_TAG:]
            if blake3(head + nonce + plain, key=own).digest(_TAG) != tag:
                raise InvalidTag
        text = zstandard.ZstdDecompressor().decompress(plain, max_output_size=LARGEST)
        point = _point(json.loads(text))
    except InvalidTag:
        raise _damaged(clear.point, "it was not written with this repository's key") from None
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(clear.point, f"what is in it makes no sense: {error}") from error
    if (point.point, point.session, point.journal, point.created_us) != (
        clear.point,
        clear.session,
        clear.journal,
        clear.created_us,
    ):
        raise _damaged(clear.point, "what it says in clear is not what it says")
    return point


def _framed(data: bytes) -> tuple[Clear, bool, bytes, bytes, bytes]:
    if len(data) < _head.size or len(data) > LARGEST:
        raise _damaged("", "it is cut off" if len(data) < _head.size else "it is too large")
    magic, version, sealed, nothing, size = _head.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged("", "it does not begin like one")
    if blake3(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise _damaged("", "its digest is another")
    if version != _VERSION:
        raise RepositoryError(
            DAMAGED,
            f"a point's record has version {version}",
            "a newer release of Holdfast wrote it: read it with that",
        )
    at = _head.size + size + _u32.size
    if at > len(data) or sealed > 1 or nothing:
        raise _damaged("", "its parts do not fit")
    (body,) = _u32.unpack_from(data, at - _u32.size)
    if body < _TAG or at + _NONCE + body + _DIGEST != len(data):
        raise _damaged("", "its parts do not fit")
    try:
        clear = _clear(json.loads(data[_head.size : _head.size + size]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged("", f"what it says in clear makes no sense: {error}") from error
    return clear, bool(sealed), data[:at], data[at : at + _NONCE], data[at + _NONCE : -_DIGEST]


def _damaged(point: str, why: str) -> RepositoryError:
    return RepositoryError(
        DAMAGED,
        f"the record of point {point or '(unknown)'} is damaged: {why}",
        "there are two copies of each: run `holdfast repository verify`, which mends one from the other",
    )


def canonical(value: object) -> bytes:
    """JSON in its one form: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _plain(value: Any) -> Any:
    """A point as JSON has it. Fields that are empty are left out, so a field that is added later changes no older
    record."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Point):
        out = _fields(value)
        if value.configuration:
            out["configuration"] = {k: base64.b64encode(v).decode() for k, v in value.configuration.items()}
        return out
    if isinstance(value, Disk | Tree | Captured | JournalPlace):
        return _fields(value)
    return value


def _fields(value: Point | Disk | Tree | Captured | JournalPlace) -> dict[str, Any]:
    named = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: _plain(v) for name, v in named.items() if v or isinstance(v, int)}


def _clear(value: dict[str, Any]) -> Clear:
    return Clear(
        _text(value["repository"]),
        _text(value["point"]),
        _text(value["session"]),
        _journal(value["journal"]),
        _number(value["created_us"]),
    )


def _point(value: dict[str, Any]) -> Point:
    kind = _text(value["kind"])
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}")
    return Point(
        point=_text(value["point"]),
        asset=_text(value.get("asset", "")),
        asset_name=_text(value.get("asset_name", "")),
        kind=kind,  # type: ignore[arg-type]
        created_us=_number(value["created_us"]),
        session=_text(value["session"]),
        epoch=_number(value["epoch"]),
        node=_text(value.get("node", "")),
        journal=_journal(value["journal"]),
        continues=_text(value.get("continues", "")),
        previous_record=bytes.fromhex(value.get("previous_record", "")),
        disks=tuple(_disk(v) for v in value.get("disks", ())),
        trees=tuple(_tree(v) for v in value.get("trees", ())),
        configuration={_text(k): base64.b64decode(v, validate=True) for k, v in value.get("configuration", {}).items()},
        attached={_text(k): _names(v) for k, v in value.get("attached", {}).items()},
        facts={_text(k): _text(v) for k, v in value.get("facts", {}).items()},
        captured=tuple(
            Captured(_text(v["source"]), _text(v["lineage"]), _number(v["ordinal"]), bytes.fromhex(v.get("digest", "")))
            for v in value.get("captured", ())
        ),
        figures=_counts(value.get("figures", {})),
        scopes=tuple(_text(v) for v in value.get("scopes", ())),
    )


def _disk(value: dict[str, Any]) -> Disk:
    block_size = _number(value["block_size"])
    if block_size < 512 or block_size & (block_size - 1):
        raise ValueError(f"blocks of {block_size} bytes")
    return Disk(
        disk=_text(value.get("disk", "")),
        name=_text(value.get("name", "")),
        size=_number(value["size"]),
        block_size=block_size,
        root=_name(value["root"]),
        delta=_names(value.get("delta", ())),
        counts=_counts(value.get("counts", {})),
        geometry={_text(k): _text(v) for k, v in value.get("geometry", {}).items()},
    )


def _tree(value: dict[str, Any]) -> Tree:
    return Tree(
        name=_text(value.get("name", "")),
        root=_name(value["root"]),
        size=_number(value["size"]),
        files=_number(value.get("files", 0)),
        delta=_names(value.get("delta", ())),
        counts=_counts(value.get("counts", {})),
    )


def _journal(value: dict[str, Any]) -> JournalPlace:
    return JournalPlace(_number(value["ordinal"]), _text(value["event"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise TypeError(f"{value!r} is no number that can stand there")
    return value


def _counts(value: dict[str, Any]) -> dict[str, int]:
    return {_text(k): _number(v) for k, v in value.items()}


def _name(value: object) -> bytes:
    name = bytes.fromhex(_text(value))
    if len(name) != NAME_SIZE:
        raise ValueError("a name that is too short or too long")
    return name


def _names(value: Any) -> tuple[bytes, ...]:
    return tuple(_name(v) for v in value)


# -- files


@dataclass(frozen=True, slots=True)
class Read:
    """A point as it was found. `record`: digest of its file; `mend`: one of its copies is damaged or gone."""

    point: Point
    record: bytes
    mend: bool


def record_digest(data: bytes) -> bytes:
    """What names a record in the log: BLAKE3-256 of its file."""
    digest: bytes = blake3(data).digest()
    return digest


def seal(store: Store, point: Point, key: RecordKey) -> bytes:
    """Make the point exist: the digest of its record. Everything it names is durable before; the event comes after.

    The same point again (after a death, or an error that left open whether it is there) finds what was done and does
    the rest. Raises `RepositoryError` (`point-exists`) when there is another of this id, `StoreError`.
    """
    data = encode(point, key)
    failpoint("point-encoded")
    data = _create(store, SECOND, data, point, key)
    failpoint("point-second-created")
    data = _create(store, FIRST, data, point, key)
    failpoint("point-created")
    return record_digest(data)


def _create(store: Store, prefix: str, data: bytes, point: Point, key: RecordKey) -> bytes:
    """Create a copy, or find that it is there: the bytes of it."""
    for number in range(_COPIES):
        name = _copy_name(prefix, point.point, number)
        try:
            store.create(name, [data])
            return data
        except StoreError as error:
            if error.code != EXISTS:
                raise
        found: bytes = store.read(name)
        try:
            there = decode(found, key)
        except RepositoryError:
            continue  # a store that broke its promise when it failed left half of one: the next copy stands in for it
        if there == point:
            return found
        break
    raise RepositoryError(
        TAKEN,
        f"there is another point {point.point} in the repository",
        "seal it again under a new id; nothing was overwritten",
    )


def _copy_name(prefix: str, point: str, number: int) -> str:
    return f"{prefix}{point}.{number}.point" if number else f"{prefix}{point}.point"


def ids(store: Store) -> Iterator[str]:
    """The points that exist, in order of their ids."""
    yield from sorted(copies_of(store, FIRST))


def copies_of(store: Store, prefix: str) -> dict[str, list[str]]:
    """Files of points below `FIRST` or `SECOND`, by point; a mended copy before the one it stands in for."""
    found: dict[str, list[tuple[int, str]]] = {}
    for listed in store.list(prefix):
        match = _FILE.fullmatch(listed.name)
        if match:
            found.setdefault(match[1], []).append((int(match[2] or 0), listed.name))
    return {point: [name for _, name in sorted(names, reverse=True)] for point, names in found.items()}


def leftovers(store: Store) -> list[str]:
    """Second copies without a first: of points that were never sealed, or were dropped; or whose first copy was taken
    away. Which of these it is, the log knows."""
    first = set(copies_of(store, FIRST))
    return sorted(set(copies_of(store, SECOND)) - first)


def read(store: Store, point: str, key: RecordKey) -> Read:
    """A point that exists, from whichever copy is whole. Raises `RepositoryError`: `point-missing`, `point-damaged`;
    `StoreError`."""
    with contextlib.suppress(StoreError, RepositoryError):
        # As it nearly always is, without listing anything; whatever is the matter comes up again below.
        data = store.read(_copy_name(FIRST, point, 0))
        found = decode(data, key)
        if found.point == point and store.read(_copy_name(SECOND, point, 0)) == data:
            return Read(found, record_digest(data), False)
    first = _copies(store, FIRST, point)
    if not first:
        raise RepositoryError(
            ABSENT, f"there is no point {point} in the repository", "`holdfast point list` shows those there are"
        )
    second = _copies(store, SECOND, point)
    damage: RepositoryError | None = None
    for names in (first, second):
        whole, error = _whole(store, names, point, key)
        if whole is not None:
            other = second if names is first else first
            mend = damage is not None or len(names) > 1 or _whole(store, other, point, key)[0] != whole
            return Read(decode(whole, key), record_digest(whole), mend)
        damage = error or damage
    raise damage or _damaged(point, "no copy of it can be read")


def _copies(store: Store, prefix: str, point: str) -> list[str]:
    return copies_of(store, f"{prefix}{point}").get(point, [])


def _whole(store: Store, names: list[str], point: str, key: RecordKey) -> tuple[bytes | None, RepositoryError | None]:
    """The first copy among `names` that is undamaged, or what is wrong with the last one."""
    damage = None
    for name in names:
        try:
            data = store.read(name)
            found = decode(data, key)
        except RepositoryError as error:
            damage = error
        except StoreError as error:
            if error.code not in (MISSING, SHORT):
                raise
        else:
            if found.point == point:
                return data, None
            damage = _damaged(point, f"it is the record of {found.point}")
    return None, damage


def mend(store: Store, point: str, key: RecordKey) -> bool:
    """Make both copies of a point whole again from the one that is: whether anything was done.

    Also makes a point of a second copy whose first one is gone: ask for that only if the log says that the point
    exists. Raises `RepositoryError` (`point-damaged`, `point-missing`), `StoreError`. A death on the way leaves the
    point as readable as it was.
    """
    both = {prefix: _copies(store, prefix, point) for prefix in (SECOND, FIRST)}
    if not any(both.values()):
        raise RepositoryError(ABSENT, f"there is no copy of point {point} in the repository")
    whole = {prefix: _whole(store, names, point, key) for prefix, names in both.items()}
    good = next((data for data, _ in whole.values() if data is not None), None)
    if good is None:
        raise next((e for _, e in whole.values() if e is not None), _damaged(point, "no copy of it can be read"))
    done = False
    for prefix, names in both.items():
        keep = ""
        if whole[prefix][0] is None:
            taken = {int(m[2] or 0) for n in names if (m := _FILE.fullmatch(n))}
            number = max(taken, default=-1) + 1
            keep = _copy_name(prefix, point, number)
            store.create(keep, [good])
            failpoint("point-mended")
            done = True
        else:
            keep = next(n for n in names if _whole(store, [n], point, key)[0] is not None)
        for name in names:
            if name != keep:
                store.delete(name)
                failpoint("point-damaged-copy-removed")
                done = True
    return done


def drop(store: Store, point: str) -> None:
    """Make the point not exist; may be called again. What it named is not touched. Raises `StoreError`."""
    for prefix in (FIRST, SECOND):
        for name in _copies(store, prefix, point):
            store.delete(name)
            failpoint("point-copy-removed")
