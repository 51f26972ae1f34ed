"""One disk of a point onto one disk that is there, and afterwards proof that it is the same.

    blank     window by window, what is not zero is written      (a new image, a new machine's disk)
    not so    window by window, blocks that are there are compared with the point's; those that differ are written

Of a blank disk, a window that is whole is noted in a progress file (`file_targets.Notes`); a restore that is taken
up again goes on behind it. Onto a disk that is not blank it compares again instead, which costs reading: nobody knows what has
been written to it since. Then all of the disk is read back and compared. Knows no hosts and no image formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from agents.errors import AgentError
from agents.repository import restoring
from agents.repository.comparing import Chosen, Readable, Same, covered, differences
from agents.repository.content import ChunkSource
from agents.repository.extents import LOST
from agents.repository.file_targets import Notes, work_of
from agents.repository.points import Disk
from agents.repository.restoring import Reserving, restore_disk
from agents.repository.stores import Buffer
from agents.restore.progress import Limit, Meter

DIFFERS: Final = "restore-differs"
_SHOWN: Final = 5
_SHOWN_LOST: Final = 200
_SHOWN_RANGES: Final = 200


class Place(Readable, Protocol):
    """A disk that is written and read (`agents.machines.DiskTarget`, `agents.restore.images.Image`)."""

    def write(self, offset: int, data: Buffer) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Work:
    """What writing one disk needs."""

    source: ChunkSource
    disk: Disk
    same: Same
    limit: Limit
    skip_lost: bool = False
    threads: int = restoring.THREADS

    @property
    def window(self) -> int:
        """Bytes of a window."""
        return restoring.WINDOW * self.disk.block_size

    @property
    def windows(self) -> int:
        return -(-self.disk.size // self.window)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a disk, in bytes. `differed`: what was not as it should be (of a blank one: all that is data). `kept`: was
    whole already when the work was taken up again. `compared`: read back and found to be the point's. `trusted`: not read, since
    its host's word is that it cannot be another (`agents.restore.narrowing`): nothing is proven of it."""

    size: int
    written: int = 0
    differed: int = 0
    kept: int = 0
    compared: int = 0
    trusted: int = 0
    lost: tuple[tuple[int, int], ...] = ()


class _Limited:
    """A place that is written within a limit."""

    def __init__(self, place: Place, limit: Limit) -> None:
        self._write = place.write
        self._limit = limit
        self.zero = place.zero
        self.flush = place.flush
        if isinstance(place, Reserving):
            self.reserve = place.reserve

    def write(self, offset: int, data: Buffer) -> None:
        self._limit.take(len(data))
        self._write(offset, data)


def notes_of(path: Path, point: str, disk: Disk, **more: object) -> Notes:
    """The progress file of writing this disk to something blank, gone on with if it is of this work, which `more` names."""
    what = {**work_of(point, disk), **more}
    head = Notes.head_of(path)
    return Notes(path, what, fresh=head is None or {**what, "fresh": head.get("fresh")} != head)


def fill(work: Work, place: Place, notes: Notes, meter: Meter) -> Written:
    """Make a blank `place` what the disk was; durable and noted on return, not yet compared. Raises as `restore_disk`."""

    def is_whole(window: int) -> bool:
        if window not in notes.windows:
            return False
        meter.add(min(work.window, work.disk.size - window * work.window), known=True)
        return True

    done = restore_disk(
        work.source,
        work.disk,
        _Limited(place, work.limit),
        zeros=not notes.fresh,
        skip_lost=work.skip_lost,
        threads=work.threads,
        done=is_whole,
        finished=notes.finished,
        progress=meter.add,
    )
    return Written(work.disk.size, done.written, done.written, done.kept, lost=done.lost)


def overwrite(work: Work, place: Place, meter: Meter, chosen: Chosen | None = None) -> Written:
    """The same of a `place` with anything in it: only blocks that differ are written. `chosen`: no other block can. Durable on
    return."""
    target = _Limited(place, work.limit)
    done = Written(work.disk.size)
    for first, stop in _looked_at(work, meter, chosen):
        ranges = _ranges(work, place, (first, stop), meter, chosen)
        if not ranges:
            continue
        restored = restore_disk(
            work.source,
            work.disk,
            target,
            ranges=ranges,
            skip_lost=work.skip_lost,
            threads=work.threads,
            progress=lambda _: meter.add(0),  # counted when they were compared
        )
        wanted = sum(size for _, size in ranges)
        lost = (*done.lost, *restored.lost)
        done = replace(done, written=done.written + wanted, differed=done.differed + wanted, lost=lost)
    place.flush()
    return done


def weigh(work: Work, place: Place, meter: Meter) -> Written:
    """What `overwrite` would write."""
    differed = 0
    for blocks in _looked_at(work, meter, None):
        differed += sum(length for _, length in _ranges(work, place, blocks, meter, None))
    return Written(work.disk.size, differed=differed)


@dataclass(frozen=True, slots=True)
class Differing:
    """Bytes and ranges in which a disk is another, and the first ranges."""

    size: int
    ranges: int
    first: list[tuple[int, int]]


def differing(work: Work, place: Readable, meter: Meter) -> Differing:
    """Where `place` is not what the disk was; what is lost in the point differs."""
    first: list[tuple[int, int]] = []
    size = ranges = end = 0
    for offset, length, _ in differences(place, work.source, work.disk, work.same, progress=meter.add):
        if not ranges or offset != end:
            ranges += 1
            if len(first) < _SHOWN_RANGES:
                first.append((offset, 0))
        if ranges == len(first):
            first[-1] = (first[-1][0], first[-1][1] + length)
        size, end = size + length, offset + length
    return Differing(size, ranges, first)


def _looked_at(work: Work, meter: Meter, chosen: Chosen | None) -> Iterator[tuple[int, int]]:
    """Window by window, from the first block up to behind the last one at which is to be looked."""
    disk = work.disk
    for window in range(work.windows):
        first = window * restoring.WINDOW
        stop = min(first + restoring.WINDOW, -(-disk.size // disk.block_size))
        if chosen is not None:
            size = min(stop * disk.block_size, disk.size) - first * disk.block_size
            meter.add(size - covered(disk, chosen, first, stop), known=True)
            first, stop = chosen.find(1, first, stop), chosen.rfind(1, first, stop) + 1
        if 0 <= first < stop:
            yield first, stop


def _ranges(
    work: Work, place: Place, blocks: tuple[int, int], meter: Meter, chosen: Chosen | None
) -> list[tuple[int, int]]:
    """What of some blocks differs: offsets and lengths, none touching another."""
    out: list[tuple[int, int]] = []
    found = differences(place, work.source, work.disk, work.same, blocks=blocks, chosen=chosen, progress=meter.add)
    for offset, length, _ in found:
        if out and sum(out[-1]) == offset:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((offset, length))
    return out


def compare(work: Work, place: Place, done: Written, meter: Meter, chosen: Chosen | None = None) -> Written:
    """Read all of the disk back, or all that is `chosen`. Raises `AgentError` (`restore-differs`)."""
    wrong = []
    for offset, length, tag in _all_differences(work, place, meter, chosen):
        if tag != LOST and not any(at <= offset and offset + length <= at + size for at, size in done.lost):
            wrong.append(f"{length:,} bytes at {offset:,}")
            if len(wrong) >= _SHOWN:
                break
    if place.size > work.disk.size:  # an image is whole sectors long
        tail = bytearray(min(place.size - work.disk.size, 4096))
        place.read_into(work.disk.size, memoryview(tail))
        if any(tail):
            wrong.append("what is behind its end")
    if wrong:
        raise AgentError(
            DIFFERS,
            f"disk {work.disk.name or work.disk.disk} does not read as what was written to it: {', '.join(wrong)}",
            "what it lies on loses writes, or somebody else writes to it: look into that and restore again",
        )
    looked_at = work.disk.size
    if chosen is not None:
        looked_at = covered(work.disk, chosen, 0, len(chosen))
    compared = looked_at - sum(length for _, length in done.lost)
    return replace(done, compared=compared, trusted=work.disk.size - looked_at)


def _all_differences(work: Work, place: Place, meter: Meter, chosen: Chosen | None) -> Iterator[tuple[int, int, int]]:
    if chosen is None:
        yield from differences(place, work.source, work.disk, work.same, progress=meter.add)
        return
    for blocks in _looked_at(work, meter, chosen):
        yield from differences(
            place, work.source, work.disk, work.same, blocks=blocks, chosen=chosen, progress=meter.add
        )


def said(disk: Disk, done: Written, **more: Any) -> dict[str, Any]:
    """A disk in a job's result."""
    return {
        "disk": disk.disk,
        "size": done.size,
        "differed": done.differed,
        "written": done.written,
        "kept": done.kept,
        "compared": done.compared,
        "trusted": done.trusted,
        "lost": [{"offset": offset, "length": length} for offset, length in done.lost[:_SHOWN_LOST]],
        "lost_bytes": sum(length for _, length in done.lost),
        **more,
    }
