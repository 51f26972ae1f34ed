"""What a collection writes into the repository beside the log: its list of what to delete, tombstones, notes of damaged packs.

    collections/<collection>.<stage>.<uuid>.json   the list; its digest stands in the event
    tombstones/<collection>.json                   the list once more, before anything is deleted
    damaged/<pack>.json                            nobody builds on this pack any more

Knows files, not when they may be written (`collection`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from blake3 import blake3

from agents.errors import AgentError
from agents.repository.stores import EXISTS, MISSING, Store, StoreError
from streams.events import CollectionChanged
from streams.ids import uuid7

WAITS: Final = "collection-waits"
OVER: Final = "collection-over"
PLAN_LOST: Final = "collection-plan-lost"

_FORMAT: Final = 1
_ID: Final = 16  # bytes of a pack's
_log = logging.getLogger(__name__)


class CollectionError(AgentError):
    """`collection-waits`: not yet, with what for. `collection-over`: it was abandoned, by whomever. `collection-plan-lost`: the
    list of what to delete cannot be read."""


class PackFile(NamedTuple):
    """A pack in the store. `epoch`: of the session that wrote it, from its name."""

    id: bytes
    name: str
    epoch: int
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection removes. `packs`: (id, store name, bytes); `points`: dropped ones whose records go; `voids`: points
    whose record no session was entitled to. `fenced`: session → the points of it that count, of every session ever fenced."""

    repository: str
    collection: str
    marked: int
    packs: tuple[tuple[bytes, str, int], ...] = ()
    points: tuple[str, ...] = ()
    voids: tuple[str, ...] = ()
    fenced: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.packs)


def new_plan_name(collection: str, stage: str) -> str:
    """`stage`: proposed or executing. Never the same twice: what an event that may come yet names is not written over."""
    return f"collections/{collection}.{stage}.{uuid7()}.json"


def tombstone_name(collection: str) -> str:
    return f"tombstones/{collection}.json"


def encode(plan: Plan) -> bytes:
    """Canonical JSON."""
    document = {
        "format": _FORMAT,
        "repository": plan.repository,
        "collection": plan.collection,
        "marked": plan.marked,
        "packs": [[pack.hex(), name, size] for pack, name, size in plan.packs],
        "points": plan.points,
        "voids": plan.voids,
        "fenced": plan.fenced,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def decode(data: bytes) -> Plan:
    """Raises `CollectionError` (`collection-plan-lost`) on anything but what `encode` makes."""
    try:
        raw: Any = json.loads(data)
        if raw["format"] != _FORMAT:
            raise ValueError(f"format {raw['format']}")
        return Plan(
            _text(raw["repository"]),
            _text(raw["collection"]),
            _count(raw["marked"]),
            tuple((bytes.fromhex(pack), _text(name), _count(size)) for pack, name, size in raw["packs"]),
            tuple(map(_text, raw["points"])),
            tuple(map(_text, raw["voids"])),
            tuple((_text(session), tuple(map(_text, points))) for session, points in raw["fenced"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CollectionError(PLAN_LOST, f"a collection's list is damaged: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def ids_of(plan: Plan) -> bytes:
    return b"".join(pack for pack, _, _ in plan.packs)


def doomed_by(event: CollectionChanged | None) -> frozenset[bytes] | None:
    """The packs that an event says go; None where it is of an earlier release, which said it in the list alone."""
    if event is None or len(event.doomed) != event.packs * _ID:
        return None
    return frozenset(event.doomed[at : at + _ID] for at in range(0, len(event.doomed), _ID))


def fences(store: Store) -> dict[str, frozenset[str]]:
    """Of sessions that were fenced, as tombstones have it: which of their points count. Any other point record of such a session
    may have lost chunks: whoever adopts the repository without its log leaves it out."""
    out: dict[str, frozenset[str]] = {}
    for plan in tombstones(store):
        for session, points in plan.fenced:
            out[session] = out.get(session, frozenset()) | frozenset(points)
    return out


def tombstones(store: Store) -> list[Plan]:
    """In the order in which collections were proposed (ids are UUIDv7)."""
    out = []
    for listed in sorted(store.list("tombstones/"), key=lambda file: file.name):
        try:
            out.append(decode(store.read(listed.name)))
        except CollectionError as error:
            _log.warning("%s: %s", listed.name, error)
        except StoreError as error:
            if error.code != MISSING:
                raise
    return out


def read_plan(store: Store, event: CollectionChanged | None) -> Plan:
    if event is None:
        raise CollectionError(PLAN_LOST, "the log names no list")
    try:
        data = store.read(event.plan)
    except StoreError as error:
        raise CollectionError(PLAN_LOST, f"{event.plan} cannot be read: {error.message}") from error
    if blake3(data).digest() != event.digest:
        raise CollectionError(PLAN_LOST, f"{event.plan} is not what the log says it is")
    return decode(data)


def unfinished_deletions(store: Store) -> frozenset[bytes]:
    """Packs that collections began to delete, as tombstones have it: whoever adopts the repository builds on none of them, and
    removes what is left."""
    return frozenset(pack for plan in tombstones(store) for pack, _, _ in plan.packs)


def damaged_name(pack: bytes) -> str:
    """The file that says that a pack has damaged chunks (`agents.repository.verify`)."""
    return f"damaged/{pack.hex()}.json"


def note_damage(store: Store, pack: PackFile) -> None:
    """Nobody builds on this pack any more, and nothing is moved out of it."""
    try:
        store.create(damaged_name(pack.id), [json.dumps({"format": 1, "pack": pack.name}).encode()])
    except StoreError as error:
        if error.code != EXISTS:
            raise


def damaged_packs(store: Store) -> Iterable[bytes]:
    """Packs that were noted to have damaged chunks."""
    for listed in store.list("damaged/"):
        with contextlib.suppress(ValueError):
            yield bytes.fromhex(listed.name.removeprefix("damaged/").removesuffix(".json"))
