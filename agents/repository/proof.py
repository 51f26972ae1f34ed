"""One chain of digests from restored bytes to the log (E5): what a point's record says, link by link, and who else
says so.

    bytes of a block → its keyed name → nodes of the tree → the root in the record → BLAKE3 of the record's file →
    `point.sealed` the record → `previous_record` → the record of the point before → … → the first one
    the record → `captured`: digests of captured records of sources' logs

The first line's first half is `agents.repository.comparing.differences`: it names every block of a restored disk and
compares with the tree. This module does the rest. Knows no Kafka: what the log said is handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agents.repository import points
from agents.repository.errors import RepositoryError
from agents.repository.points import Captured, RecordKey
from agents.repository.stores import Store


@dataclass(frozen=True, slots=True)
class Said:
    """What `point.sealed` said of a point: the digest of its record, and the point it continues."""

    record: bytes
    continues: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A point of the chain and the digest of its record, `by` those who say it: `file` (computed from it now), `log`
    and `next` (the record of the point that continues this one). A point that has been dropped has no file any more."""

    point: str
    record: bytes
    by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proof:
    """`links` from the point asked about to the first of its chain, or as far as anybody knows. `problems`: where two
    do not say the same, in words; empty: it is proven as far as it goes. `whole`: it goes to the first point."""

    links: tuple[Link, ...]
    captured: tuple[Captured, ...]
    problems: tuple[str, ...]
    whole: bool


def prove(store: Store, point: str, key: RecordKey, sealed: Mapping[str, Said]) -> Proof:
    """Follow the chain of `point`; `sealed` is what the log has of each point. Raises `RepositoryError`
    (`point-missing`, `point-damaged`) for the point itself, `StoreError`; what is wrong with those before it is a
    problem, not an error."""
    asked = points.read(store, point, key)
    links: list[Link] = []
    problems: list[str] = []
    current, claimed = point, b""  # `claimed`: what the record after this one said
    seen: set[str] = set()
    while current and current not in seen:
        seen.add(current)
        digests: dict[str, bytes] = {"next": claimed} if claimed else {}
        continues = ""
        if current in sealed:
            digests["log"], continues = sealed[current].record, sealed[current].continues
        previous = b""
        try:
            read = asked if current == point else points.read(store, current, key)
        except RepositoryError as error:
            # Dropped: the log and the record after it still say what it was.
            if error.code != points.ABSENT:
                problems.append(str(error))
        else:
            digests["file"], previous = read.record, read.point.previous_record
            if current in sealed and read.point.continues != continues:
                problems.append(
                    f"point {current} continues {read.point.continues or 'nothing'}, and the log says {continues or 'nothing'}"
                )
            continues = read.point.continues
            if bool(previous) != bool(continues):
                problems.append(f"point {current} names the point before it, or its record, and not both")
        if not digests:
            return Proof(tuple(links), asked.point.captured, tuple(problems), False)
        for who, digest in digests.items():
            if digest != next(iter(digests.values())):
                problems.append(f"the record of point {current} is another by {who} than by {next(iter(digests))}")
        links.append(Link(current, digests.get("file") or digests.get("log") or claimed, tuple(sorted(digests))))
        if current in sealed or "file" in digests:
            current, claimed = continues, previous
        else:
            return Proof(tuple(links), asked.point.captured, tuple(problems), False)
    if current:
        problems.append(f"the chain comes back to point {current}")
    return Proof(tuple(links), asked.point.captured, tuple(problems), not current)
