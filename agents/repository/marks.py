"""What people and checks say of a point after it was made: stars, holds, suspicion. One small file each, in the
repository.

`marks/<point>.<number>.json`, numbered from 1, created exclusively, never changed; what is said later stands. A file
is canonical JSON with `proof`: 16 bytes of BLAKE3 over the JSON without it, keyed with `derive_key("holdfast 1 mark",
record key)`: a mark that somebody slipped in, or changed, is none. A mark that cannot be read keeps its point: nothing
is expired on the word of damage.

Marks come first in the repository and then as an event, and they are in neither's place to be ordered by clocks: the
number is the order. But for `dropped`, which is no event: it says again, for whoever adopts the repository without its
log, what `point.dropped` said, and is written after that counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from blake3 import blake3

from agents.failpoints import failpoint
from agents.repository.errors import RepositoryError
from agents.repository.points import RecordKey, canonical
from agents.repository.stores import EXISTS, MISSING, Store, StoreError

MARKS: Final = frozenset(
    {"star", "unstar", "hold", "release", "suspect", "verified", "damaged", "expiry-asked", "expiry-agreed", "dropped"}
)
DROPPED: Final = (
    "dropped"  # of the log alone otherwise: whoever adopts the repository without it must not bring it back
)
PREFIX: Final = "marks/"
DAMAGED: Final = "mark-damaged"
LARGEST: Final = 1 << 16

_CONTEXT: Final = "holdfast 1 mark"
_PROOF = 16
_ATTEMPTS = 100
_FILE = re.compile(PREFIX + r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\.(\d{8})\.json")


@dataclass(frozen=True, slots=True)
class Mark:
    """`mark` is one of `MARKS`; `name` that of a hold; `until_us` ends a hold by itself. `by`, `at_us`, `note`: who,
    when, why."""

    point: str
    mark: str
    by: str
    at_us: int
    name: str = ""
    note: str = ""
    until_us: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a point's marks come to. `holds` by name; `suspect` and `damaged`: the newest word on its content;
    `verified_us`: when it was last found good; `asked` and `agreed`: expiry ahead of policy. `unread`: numbers of
    marks that cannot be read."""

    starred: bool = False
    holds: tuple[Mark, ...] = ()
    suspect: bool = False
    damaged: bool = False
    verified_us: int | None = None
    asked: Mark | None = None
    agreed: Mark | None = None
    unread: tuple[int, ...] = ()
    dropped: Mark | None = None

    def kept(self, now_us: int) -> str:
        """Why no rule may drop the point, empty when one may."""
        if self.starred:
            return "starred"
        for hold in self.holds:
            if hold.until_us is None or hold.until_us > now_us:
                return f"hold {hold.name}"
        return "a mark that cannot be read" if self.unread else ""


def encode(mark: Mark, number: int, key: RecordKey) -> bytes:
    """The file of a mark."""
    plain = _plain(mark, number, key.repository)
    return canonical({**plain, "proof": _proof(plain, key).hex()})


def decode(data: bytes, key: RecordKey) -> tuple[int, Mark]:
    """Number and mark of a file. Raises `RepositoryError` (`mark-damaged`)."""
    try:
        if len(data) > LARGEST:
            raise ValueError("it is too large")
        plain = json.loads(data)
        proof = bytes.fromhex(plain.pop("proof"))
        if proof != _proof(plain, key):
            raise ValueError("it was not written with this repository's key")
        until = plain.get("until_us")
        mark = Mark(
            _text(plain, "point"),
            _text(plain, "mark"),
            _text(plain, "by"),
            int(plain["at_us"]),
            _text(plain, "name"),
            _text(plain, "note"),
            None if until is None else int(until),
        )
        if plain["repository"] != key.repository or mark.mark not in MARKS:
            raise ValueError("it is not of this repository, or of no kind that is known")
        return int(plain["number"]), mark
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(
            DAMAGED, f"a mark of a point is damaged: {error}", "its point is kept; say again what should be of it"
        ) from error


def _plain(mark: Mark, number: int, repository: str) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "repository": repository,
        "point": mark.point,
        "number": number,
        "mark": mark.mark,
        "by": mark.by,
        "at_us": mark.at_us,
        "name": mark.name,
        "note": mark.note,
    }
    if mark.until_us is not None:
        plain["until_us"] = mark.until_us
    return plain


def _proof(plain: dict[str, Any], key: RecordKey) -> bytes:
    return blake3(canonical(plain), key=key.of(b"", _CONTEXT)).digest(_PROOF)


def _text(plain: dict[str, Any], name: str) -> str:
    value = plain[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


# -- files


def add(store: Store, mark: Mark, key: RecordKey) -> int:
    """Write a mark, durable on return: its number. The event comes after. Raises `StoreError`, ValueError for a mark
    that is none."""
    if mark.mark not in MARKS:
        raise ValueError(f"{mark.mark!r} is no mark")
    number = max((n for n, _ in _files(store, mark.point)), default=0)
    for _ in range(_ATTEMPTS):
        number += 1
        try:
            store.create(f"{PREFIX}{mark.point}.{number:08}.json", [encode(mark, number, key)])
        except StoreError as error:
            # Another one was quicker, or this very call was before an answer got lost: said twice it is no other.
            if error.code != EXISTS:
                raise
        else:
            failpoint("mark-created")
            return number
    raise RepositoryError("mark-busy", f"others mark point {mark.point} all the time", "try again")


def of_point(store: Store, point: str, key: RecordKey) -> tuple[list[tuple[int, Mark]], tuple[int, ...]]:
    """A point's marks in order, and the numbers of those that cannot be read. Raises `StoreError`."""
    return _read(store, _files(store, point), point, key)


def all_of(store: Store, key: RecordKey) -> Iterator[tuple[str, Standing]]:
    """Each point that has marks, with what they come to, in no order. Raises `StoreError`."""
    found: dict[str, list[tuple[int, str]]] = {}
    for listed in store.list(PREFIX):
        match = _FILE.fullmatch(listed.name)
        if match:
            found.setdefault(match[1], []).append((int(match[2]), listed.name))
    for point, files in found.items():
        marks, unread = _read(store, sorted(files), point, key)
        yield point, standing(marks, unread)


def _files(store: Store, point: str) -> list[tuple[int, str]]:
    out = []
    for listed in store.list(f"{PREFIX}{point}."):
        match = _FILE.fullmatch(listed.name)
        if match and match[1] == point:
            out.append((int(match[2]), listed.name))
    return sorted(out)


def _read(
    store: Store, files: list[tuple[int, str]], point: str, key: RecordKey
) -> tuple[list[tuple[int, Mark]], tuple[int, ...]]:
    marks, unread = [], []
    for number, name in files:
        try:
            said, mark = decode(store.read(name), key)
            if said != number or mark.point != point:
                raise RepositoryError(DAMAGED, f"{name} is another mark than its name says")
        except RepositoryError:
            unread.append(number)
        except StoreError as error:
            if error.code != MISSING:  # removed with its point, meanwhile
                raise
        else:
            marks.append((number, mark))
    return marks, tuple(unread)


def standing(marks: list[tuple[int, Mark]], unread: tuple[int, ...] = ()) -> Standing:
    """What marks, in order, come to."""
    starred = suspect = damaged = False
    verified: int | None = None
    asked: Mark | None = None
    agreed: Mark | None = None
    dropped: Mark | None = None
    holds: dict[str, Mark] = {}
    for _, mark in marks:
        match mark.mark:
            case "star" | "unstar":
                starred = mark.mark == "star"
            case "hold":
                holds[mark.name] = mark
            case "release":
                holds.pop(mark.name, None)
            case "suspect":
                suspect = True
            case "damaged":
                damaged = True
            case "verified":
                suspect = damaged = False
                verified = mark.at_us
            case "expiry-asked":
                asked, agreed = mark, None
            case "expiry-agreed":
                agreed = mark
            case "dropped":
                dropped = mark
    return Standing(starred, tuple(holds.values()), suspect, damaged, verified, asked, agreed, unread, dropped)


def remove(store: Store, point: str) -> None:
    """Remove the marks of a point that is no more; may be called again. Raises `StoreError`."""
    for _, name in _files(store, point):
        store.delete(name)
