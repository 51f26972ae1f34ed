"""What a point of a machine says beside what is on its disks: written by `agents.backup`, read by whoever restores it.

    disks                      one `Disk` each, `disk` and `name` being `DiskSeen.disk`; those that were left out are not there
    configuration
      machine.json             `MachineSeen` but for its description and companions, all disks in it: canonical JSON, `format` 1
      description              the platform's own, as it gave it
    attached
      companion/<name>         each companion, in pieces of 1 MiB: chunks, so that what stays the same is stored once
    facts                      short texts, which the log's `point.sealed` and the catalogue have too
      platform, host, native   `HostSettings.kind`, `.host`, `MachineSeen.native`
      taken_us                 when the snapshot was, in µs since 1970
      consistency              crash or files
      mode                     full, incremental or differential
      full                     the newest point that was read whole, at or before this one: what differentials count from
      job                      whose snapshot it was; marks are named after it
      mark/<disk>              what to ask the host since, next time; no entry where nothing keeps track
      since/<disk>             the mark that was asked since; no entry where the disk was read whole
      whole/<disk>             why it was read whole, a sentence; no entry where it was not, or where that was asked for
      left_out/<disk>          why it is not in the point
      scrub/<disk>             `next/of`: which part of the blocks that nothing said had changed is to be looked at next
      scrubbed/<disk>          how many bytes of them this run looked at
      problem/<n>              what the user was told, `code: message`

The point's `created_us` is the snapshot's time. Knows no hosts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agents.machines import Consistency, DiskSeen, MachineSeen, NicSeen
from agents.repository.content import MANIFEST, ChunkSink, ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.points import DAMAGED, Disk, Point, canonical

MACHINE: Final = "machine.json"
DESCRIPTION: Final = "description"
COMPANION: Final = "companion/"
_FORMAT: Final = 1
_PIECE: Final = 1 << 20
_NOT_IN_JSON: Final = frozenset({"description", "companions", "restoring"})


@dataclass(frozen=True, slots=True)
class Kept:
    """A machine as its point has it. `seen`: whole, with description and companions; `disks`: those that are in the point, by the
    name of the disk."""

    platform: str
    host: str
    taken_us: int
    consistency: Consistency
    seen: MachineSeen
    disks: Mapping[str, Disk]


def configuration_of(seen: MachineSeen) -> dict[str, bytes]:
    """`Point.configuration` of a machine."""
    plain = {name: _plain(getattr(seen, name)) for name in seen.__slots__ if name not in _NOT_IN_JSON}
    return {MACHINE: canonical({"format": _FORMAT, **plain}), DESCRIPTION: seen.description}


def attach(sink: ChunkSink, companions: Mapping[str, bytes]) -> dict[str, tuple[bytes, ...]]:
    """Store companions: `Point.attached`."""
    return {
        COMPANION + name: tuple(sink.put(MANIFEST, data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))
        for name, data in companions.items()
    }


def is_machine(point: Point) -> bool:
    """Whether it is a machine's: images of disks (`backup image`) are not."""
    return MACHINE in point.configuration


def machine_of(source: ChunkSource, point: Point) -> Kept:
    """The machine of a point. Raises `RepositoryError`: `point-unfit` when it is not a machine's, `point-damaged`, and what
    reading chunks raises."""
    if not is_machine(point):
        raise RepositoryError(
            "point-unfit", f"point {point.point} is not of a machine", "`holdfast point restore` restores it"
        )
    companions = {
        name.removeprefix(COMPANION): b"".join(source.get(piece, MANIFEST) for piece in pieces)
        for name, pieces in point.attached.items()
        if name.startswith(COMPANION)
    }
    try:
        seen = _seen(json.loads(point.configuration[MACHINE]), point.configuration.get(DESCRIPTION, b""), companions)
        return Kept(
            platform=point.facts["platform"],
            host=point.facts["host"],
            taken_us=int(point.facts["taken_us"]),
            consistency="files" if point.facts.get("consistency") == "files" else "crash",
            seen=seen,
            disks={disk.disk: disk for disk in point.disks},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            DAMAGED,
            f"what point {point.point} says of its machine makes no sense: {error!r}",
            "a newer release of Holdfast may have written it; its disks can be restored by `holdfast point restore`",
        ) from error


def marks_of(facts: Mapping[str, str]) -> dict[str, str]:
    """Disk → mark, of a point's facts."""
    return {name.removeprefix("mark/"): mark for name, mark in facts.items() if name.startswith("mark/")}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, DiskSeen | NicSeen):
        return {name: getattr(value, name) for name in value.__slots__}
    return value


def _seen(plain: dict[str, Any], description: bytes, companions: Mapping[str, bytes]) -> MachineSeen:
    if plain.pop("format") != _FORMAT:
        raise ValueError("its format is another")
    disks = tuple(DiskSeen(**one) for one in plain.pop("disks"))
    nics = tuple(NicSeen(**one) for one in plain.pop("nics"))
    tags = tuple(plain.pop("tags"))
    return MachineSeen(**plain, tags=tags, disks=disks, nics=nics, description=description, companions=companions)
