"""Verifying: what points need is there and is what it was; what stands twice is put right from its second copy.

    metadata   records of points, both copies; every node, run and directory, each copy read; of data, that it is there
    sampled    also a share of the data, another one every time
    full       also all data

Everything is read pack by pack, in the order in which it lies. What is found damaged:

- a copy of a record, or of metadata, whose other copy is whole: written anew, in a pack of this session (`repaired`);
- data of which another copy can be read: nothing is missing, and the pack is noted;
- what no copy of can be read is *lost*: points that need it are marked damaged, with the blocks. Their other blocks restore.

A pack with a damaged chunk is noted in the repository (`damaged/<pack>.json`), and no session builds on it any more
(`agents.repository.collection.absent_for`): what the next backup still finds on its disk is stored again, and heals every
point that needs it, for chunks are found by their names. A death on the way leaves repairs done so far: copies
like others. A store that takes no writes is verified too: what could not be noted, mended or marked is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from agents.failpoints import failpoint
from agents.repository import directories, marks, packs, points, runs, tree
from agents.repository import keys as wraps
from agents.repository import repository as repositories
from agents.repository.collection_files import note_damage
from agents.repository.content import DATA, NAME_SIZE
from agents.repository.contents import Marker, RepositoryContents
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK
from agents.repository.format import Place
from agents.repository.marking import Names
from agents.repository.pack_format import Entry
from agents.repository.points import Point
from agents.repository.sessions import Session
from agents.repository.stores import DENIED, FULL, READ_ONLY, StoreError
from streams.events import PointMarked, Problem, RepositoryChecked

Mode = Literal["metadata", "sampled", "full"]
SHARE: Final = 0.05
_SAID: Final = 100  # problems in a report; figures count all
_RANGES: Final = 20

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Report:
    """What was found. `figures`: points, records_mended, chunks, data_read, damaged, repaired, lost, missing; if there are any
    also unwritten (notes, marks and repairs that the store did not take) and torn_packs (of writers that died). `points`:
    those that do not restore whole, each with what is wrong; `whole`: those that were looked at and do."""

    mode: str
    figures: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    points: dict[str, str] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    _unwritten: set[str] = field(default_factory=set)

    def count(self, what: str, by: int = 1) -> None:
        self.figures[what] = self.figures.get(what, 0) + by

    @contextlib.contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Goes on when the store takes no writes (it is full, say): what was found is worth as much without. Said once each."""
        try:
            yield
        except StoreError as error:
            if error.code not in (FULL, READ_ONLY, DENIED):
                raise
            self.count("unwritten")
            if what not in self._unwritten:
                self._unwritten.add(what)
                self.problems.append(Problem(error.code, f"{what} could not be written: {error.message}", error.hint))

    def say(self, error: Exception, code: str = "chunk-damaged") -> None:
        if len(self.problems) < _SAID:
            known = getattr(error, "problem", None)
            self.problems.append(known() if known is not None else Problem(code, str(error)))


def verify(
    contents: RepositoryContents,
    session: Session,
    wanted: Mapping[str, bytes],
    *,
    mode: Mode = "sampled",
    share: float = SHARE,
    seed: int = 0,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Report:
    """Look at the points `wanted` (id → digest of its record as the log has it), which `session`, of kind verify, pins.

    `seed` chooses the sample. Raises `StoreError` when the store cannot be read at all, and what `progress` raises; what is
    damaged is in the report. Says nothing to the log (`conclude` does).
    """
    report = Report(mode)
    for what in ("damaged", "repaired", "lost", "missing", "records_mended"):
        report.count(what, 0)
    repositories.define(contents.store)  # mends its second copy
    _keys(contents, report)
    _runs(contents, report)
    found = dict(_records(contents, wanted, report, progress))
    needed, there = Names(), Names()
    try:
        _mark(contents, found, needed, report, progress)
        needed.settle()
        bad = _read(contents, session, needed, there, report, mode, share, seed, progress)
        there.settle()
        lost = _lost(contents, bad, report)
        if found and _present(contents, needed, there) < needed.settle():
            lost |= _absent(contents, found, there, report)
        _blame(contents, found, lost, report, progress)
    finally:
        needed.close()
        there.close()
    report.count("points", len(wanted))
    report.whole = [name for name in found if name not in report.points]
    return report


def conclude(contents: RepositoryContents, session: Session, report: Report) -> None:
    """Say what was found: marks of points (damaged; verified, when all was read), each durable before its event, and the
    check itself. Points whose standing this does not change are not marked again."""
    sessions = session.sessions
    for name, why in sorted(report.points.items()):
        if not _standing(contents, name).damaged:
            with report.writing("the mark that a point is damaged"):
                _mark_point(
                    contents, session, marks.Mark(name, "damaged", session.by, sessions.clock(), note=why[:2000])
                )
    for name in report.whole if report.mode == "full" else ():
        with report.writing("the mark that a point was verified"):
            _mark_point(contents, session, marks.Mark(name, "verified", session.by, sessions.clock(), note=report.mode))
    sessions.say(
        RepositoryChecked(
            repository=sessions.repository,
            session=session.id,
            what="verify",
            mode=report.mode,
            figures=report.figures,
            problems=tuple(report.problems),
            checked_us=sessions.clock(),
            by=session.by,
        )
    )


def _standing(contents: RepositoryContents, point: str) -> marks.Standing:
    return marks.standing(*marks.of_point(contents.store, point, contents.repository.record_key))


def _mark_point(contents: RepositoryContents, session: Session, mark: marks.Mark) -> None:
    number = marks.add(contents.store, mark, contents.repository.record_key)
    event = PointMarked(
        repository=session.sessions.repository,
        point=mark.point,
        mark=mark.mark,
        number=number,
        note=mark.note,
        marked_us=mark.at_us,
        by=mark.by,
    )
    session.sessions.say(event, witness=True)


def _keys(contents: RepositoryContents, report: Report) -> None:
    """What opens the repository: with the last copy of the last wrap all of it would be lost."""
    with report.writing("a copy of a key"):
        if mended := wraps.mend(contents.store, lambda _, error: report.say(error)):
            report.count("keys_mended", mended)


def _runs(contents: RepositoryContents, report: Report) -> None:
    """Index runs are a cache of what packs say: one that is damaged is removed."""
    for listed in list(contents.store.list(runs.PREFIX)):
        if not runs.is_run(listed.name):
            continue
        try:
            runs.read(contents.store, contents.repository.identity, listed.name)
        except RepositoryError as error:
            report.say(error)
            with report.writing("the removal of an index run"):
                contents.store.delete(listed.name)
                report.count("runs_removed")


def _records(
    contents: RepositoryContents, wanted: Mapping[str, bytes], report: Report, progress: Progress
) -> Iterator[tuple[str, Point]]:
    key = contents.repository.record_key
    for number, (name, digest) in enumerate(wanted.items()):
        progress("records", number, len(wanted))
        try:
            # The log says that it exists: a first copy that is gone is made from the second.
            with report.writing("a second copy of a point's record"):
                if points.mend(contents.store, name, key):
                    report.count("records_mended")
                    failpoint("verify-record-mended")
            read = points.read(contents.store, name, key)
        except RepositoryError as error:
            report.points[name] = error.message
            report.say(error)
            continue
        if digest and read.record != digest:
            report.points[name] = "its record is not the one that was sealed"
            report.say(RepositoryError("point-changed", f"the record of point {name} is not the one that was sealed"))
            continue
        yield name, read.point


def _mark(
    contents: RepositoryContents, found: Mapping[str, Point], needed: Names, report: Report, progress: Progress
) -> None:
    """Every tree is read, since whether it can be is the question."""
    marker = Marker(contents.repository, needed)
    for number, (name, point) in enumerate(found.items()):
        progress("trees", number, len(found))
        try:
            marker.mark(point, whole=True)
        except RepositoryError as error:
            report.points[name] = error.message
            report.say(error)
            marker = Marker(contents.repository, needed)  # this one thinks that it has been below what cannot be read


def _read(
    contents: RepositoryContents,
    session: Session,
    needed: Names,
    there: Names,
    report: Report,
    mode: Mode,
    share: float,
    seed: int,
    progress: Progress,
) -> dict[bytes, int]:
    """Read what is to be read, pack by pack; repairs metadata. Names of which some copy is damaged, with their kinds."""
    keys, store = contents.repository.keys, contents.store
    bad: dict[bytes, int] = {}
    copies: dict[bytes, int] = {}  # of metadata, how many are whole
    ledger = session.sessions.ledger()
    head, unfinished = ledger.head, frozenset(s.epoch for s in ledger.open_sessions())
    files = contents.packs()
    for number, pack in enumerate(files):
        progress("packs", number, len(files))
        try:
            held = packs.contents_of(store, pack.name)
        except RepositoryError as error:
            report.say(error)
            continue
        gaps = held.damaged
        if not held.sealed and (pack.epoch > head or pack.epoch in unfinished):
            gaps = ()  # it ends where its writer has come to
        elif not held.sealed and not contents.was_sealed(pack):
            gaps = ()  # its writer died, and nothing was ever built on it
            report.count("torn_packs")
        for at, size in gaps:
            report.say(RepositoryError("pack-damaged", f"{pack.name} is damaged: {size} bytes from {at} on"))
        there.add(b"".join(e.name for e in held.entries))
        flags = needed.among(b"".join(e.name for e in held.entries))
        wanted = [e for e, flag in zip(held.entries, flags, strict=True) if flag and _chosen(e, mode, share, seed)]
        before = report.figures["damaged"]

        def damaged(name: bytes, place: Place, error: RepositoryError) -> None:
            bad[name] = place.kind
            report.count("damaged")
            report.say(error)

        pairs = [(e.name, e.place) for e in wanted]
        kinds = {e.name: e.place.kind for e in wanted}
        for name, data in packs.read_frames(store, pack.name, pairs, keys, damaged):
            report.count("chunks")
            if kinds[name] == DATA:
                report.count("data_read", len(data))
            else:
                copies[name] = copies.get(name, 0) + 1
        if gaps or report.figures["damaged"] > before:
            with report.writing("the note that a pack is damaged, so that no backup builds on it,"):
                note_damage(store, pack)
    with report.writing("a second copy of metadata"):
        _repair(contents, session, copies, report)
    return bad


def _chosen(entry: Entry, mode: Mode, share: float, seed: int) -> bool:
    if entry.place.kind != DATA or mode == "full":
        return True
    if mode == "metadata":
        return False
    drawn = int.from_bytes(entry.name[8:12], "big") ^ (seed * 2654435761 & 0xFFFFFFFF)
    return drawn < share * (1 << 32)


def _repair(contents: RepositoryContents, session: Session, copies: Mapping[bytes, int], report: Report) -> None:
    """Metadata that stands whole in one pack only is written once more."""
    once = [name for name, count in copies.items() if count == 1]
    repaired = 0
    for name in once:
        if contents.copy_once(session, name):
            repaired += 1
            failpoint("verify-chunk-repaired")
    contents.copied(session)
    report.count("repaired", repaired)  # durable now


def _lost(contents: RepositoryContents, bad: Mapping[bytes, int], report: Report) -> set[bytes]:
    """Of what is damaged somewhere, what is whole nowhere."""
    out = set()
    for name, kind in bad.items():
        try:
            contents.repository.get(name, kind)
        except RepositoryError:
            out.add(name)
            report.count("lost")
    return out


def _present(contents: RepositoryContents, needed: Names, there: Names) -> int:
    return needed.shared(there)


def _absent(contents: RepositoryContents, found: Mapping[str, Point], there: Names, report: Report) -> set[bytes]:
    """What is needed and in no pack, by going through the points again."""
    out: set[bytes] = set()
    for point in found.values():
        for name in _needed(contents, point):
            if name not in there and name not in out:
                out.add(name)
                report.count("missing")
    return out


def _needed(contents: RepositoryContents, point: Point) -> Iterator[bytes]:
    """Every name that a point needs, as far as it can be read."""
    yield from (name for _, name in points.needs(point).chunks)
    visited: set[bytes] = set()
    walks: list[Iterable[tuple[int, bytes]]] = [tree.walk(contents.repository, disk.root) for disk in point.disks]
    walks += [directories.walk(contents.repository, t.root, visited.__contains__) for t in point.trees]
    for walked in walks:
        try:
            for kind, joined in walked:
                names = [joined[i : i + NAME_SIZE] for i in range(0, len(joined), NAME_SIZE)]
                if kind != DATA:
                    visited.update(names)
                yield from names
        except RepositoryError:
            continue  # said when it was marked


def _blame(
    contents: RepositoryContents, found: Mapping[str, Point], lost: set[bytes], report: Report, progress: Progress
) -> None:
    """Which points need what is lost, and which blocks that is."""
    if not lost:
        return
    for number, (name, point) in enumerate(found.items()):
        progress("points", number, len(found))
        said = [text for disk in point.disks if (text := _blocks(contents, disk, lost))]
        if not said and lost.intersection(_needed(contents, point)):
            said = ["what describes its content, or files in it, cannot be read"]
        if said:
            report.points.setdefault(name, "; ".join(said))


def _blocks(contents: RepositoryContents, disk: points.Disk, lost: set[bytes]) -> str:
    ranges: list[list[int]] = []
    count = 0
    try:
        for run in tree.iterate(contents.repository, disk.root):
            for block, tag, name in (e for e in run.entries() if e[1] == CHUNK):
                if tag == CHUNK and name in lost:
                    count += 1
                    if ranges and ranges[-1][1] == block - 1:
                        ranges[-1][1] = block
                    else:
                        ranges.append([block, block])
    except RepositoryError as error:
        return f"disk {disk.disk}: {error.message}"
    if not ranges:
        return ""
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges[:_RANGES])
    more = f" and {len(ranges) - _RANGES} more ranges" if len(ranges) > _RANGES else ""
    return f"disk {disk.disk}: {count} blocks are lost ({shown}{more})"
