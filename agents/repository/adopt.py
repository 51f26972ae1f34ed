"""Taking over a repository from its files alone: another site, an empty log, a log that was restored from an earlier state.

Opening it has found its packs (`agents.repository.repository`); what is left is to tell the log what stands: every point with a
record that counts, and its marks. Nothing else is needed and nothing in the repository is changed but witnesses: raising their
generation is what makes this the repository's log.

    session.opened (adopt) → point.sealed (adopted) … → point.marked … → witness of a new generation → session.closed

And if we die here? Adoption goes on with the points that the log does not know; before the witness the log is refused for
deleting and for writing, as it was. It may be done again at any time, and then does nothing.

A record that cannot be read in either copy is left out, and said to be. A point of which chunks are missing is told, and marked
*damaged*: it is for people to give up. Records of sessions that a tombstone says were fenced, and of points that a mark says
were dropped, are told and dropped in one breath, so that the next collection removes them. What this log has seen the session
of, and never took, is left as it is; unless the log was behind, for then the seal may be among what it lost: such a record is a
point. Under a log that was behind, points that it knows and that have no record any more, or a mark that says so, are dropped,
whatever star or hold it has of them: the log that was lost had dropped them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository import collection_files, delta, marks, points, tree
from agents.repository.content import NAME_SIZE
from agents.repository.errors import RepositoryError
from agents.repository.ingest import Figures, sealed_event
from agents.repository.journal import UNREACHABLE
from agents.repository.ledger import Ledger
from agents.repository.repository import Repository
from agents.repository.sessions import Session, Sessions, bear_witness, witnesses
from agents.repository.stores import StoreError
from streams.events import PointDropped, PointMarked, Problem
from streams.ids import now_us


@dataclass(frozen=True, slots=True)
class Adopted:
    """What adoption told the log. `left_out`: by point, why; `points` are the ids of those that were new to the log."""

    points: tuple[str, ...]
    marks: int
    left_out: Mapping[str, str]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point whose record can be read and that the log does not know. `void`: why it does not count; `lacks`: what of it is
    missing. Empty: nothing."""

    point: points.Point
    record: bytes
    void: str = ""
    lacks: str = ""


def survey(repository: Repository, ledger: Ledger, *, behind: bool) -> tuple[list[Candidate], dict[str, str]]:
    """Every point that the log does not know and should, in their order; and why other records make none. Changes nothing.

    `behind`: the log lacks what stood in the one that the repository was written under, seals among it, perhaps.

    Raises `StoreError`: a store that cannot be read must not be taken for one that holds less.
    """
    fenced = collection_files.fences(repository.store)
    dropped = dropped_points(repository)
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for name in repository.point_ids():
        if name in ledger.points:
            continue
        try:
            read = points.read(repository.store, name, repository.record_key)
        except RepositoryError as error:
            left_out[name] = error.message
            continue
        session = read.point.session
        if name in dropped:
            found.append(Candidate(read.point, read.record, void=f"it had been dropped: {dropped[name]}"))
        elif not behind and session in ledger.sessions and ledger.sessions[session].opened.kind == "backup":
            left_out[name] = f"its session {session} is in this log and did not seal it"
        elif session in fenced and name not in fenced[session]:
            found.append(
                Candidate(read.point, read.record, void=f"its session {session} was fenced and had not sealed it")
            )
        else:
            found.append(Candidate(read.point, read.record, lacks=_lacks(repository, read.point)))
    return found, left_out


def dropped_points(repository: Repository) -> dict[str, str]:
    """Points that were dropped and not collected yet, by their marks; why they were. Raises `StoreError`."""
    said = marks.all_of(repository.store, repository.record_key)
    return {point: standing.dropped.note for point, standing in said if standing.dropped is not None}


def _lacks(repository: Repository, point: points.Point) -> str:
    try:
        for names in _own_chunks(repository, point):
            there = repository.index.locate(names)
            if missing := len(set(names)) - len(there):
                return f"{missing} chunks are not there"
    except RepositoryError as error:
        return f"its own metadata cannot be read: {error.message}"
    return ""


def _own_chunks(repository: Repository, point: points.Point) -> Iterator[Sequence[bytes]]:
    """Names that the point itself brought: roots, and what its delta runs name. What it shares with others is theirs to have."""
    needs = points.needs(point)
    roots = [root for root in (*needs.disks, *needs.trees) if root != tree.EMPTY]
    yield [*roots, *(name for _, name in needs.chunks)]
    for disk in point.disks:
        for joined in delta.walk(repository, disk.delta):
            yield [joined[at : at + NAME_SIZE] for at in range(0, len(joined), NAME_SIZE)]


def adopt(repository: Repository, sessions: Sessions, *, by: str, job: str = "") -> Adopted:
    """Tell the log of `sessions` what the repository holds. Raises `JournalError`, `SessionError`, `StoreError`."""
    session = sessions.open("adopt", by=by, job=job)
    try:
        adopted = _adopt(repository, session)
    except BaseException as error:
        problems = (error.problem(),) if isinstance(error, AgentError) else ()
        if not isinstance(error, AgentError) or error.code != UNREACHABLE:
            session.close("failed", problems=problems)
        raise
    figures = {"points": len(adopted.points), "marks": adopted.marks, "left_out": len(adopted.left_out)}
    figures["packs_bytes"] = sum(listed.size for listed in repository.store.list("packs/"))
    session.close("done", points=adopted.points, figures=figures, problems=adopted.problems)
    return adopted


def _adopt(repository: Repository, session: Session) -> Adopted:
    sessions = session.sessions
    ledger = sessions.ledger()
    behind = not _is_the_log(sessions, ledger)
    before = set(ledger.points)
    candidates, left_out = survey(repository, ledger, behind=behind)
    problems = [_problem("point-left-out", point, why) for point, why in left_out.items()]
    told: list[str] = []
    for candidate in candidates:
        name = candidate.point.point
        sessions.say(
            sealed_event(
                sessions.repository, candidate.point, candidate.record, session, _figures(candidate.point), adopted=True
            )
        )
        failpoint("adopt-point-said")
        if candidate.void:
            _drop(session, name, candidate.void)
            left_out[name] = candidate.void
            continue
        told.append(name)
        if candidate.lacks:
            problems.append(_problem("point-damaged", name, candidate.lacks))
            mark = marks.Mark(name, "damaged", session.by, now_us(), note=candidate.lacks)
            marks.add(repository.store, mark, repository.record_key)
    said = sum(_say_marks(repository, session, point, problems) for point in sorted({*told, *before}))
    if behind:
        there = set(repository.point_ids())
        dropped = dropped_points(repository)
        for point in sorted(sessions.ledger().standing().keys() & before):
            if point not in there:
                _drop(session, point, "it has no record any more")
                problems.append(_problem("point-missing", point, "the log knew it, and it has no record any more"))
            elif point in dropped:
                _drop(session, point, f"it had been dropped: {dropped[point]}")
        failpoint("adopt-said")
        _believe(session)
    return Adopted(tuple(told), said, left_out, tuple(problems))


def _figures(point: points.Point) -> Figures:
    """As its record has them; a record of an earlier release has none."""
    return Figures(**{name: point.figures.get(name, 0) for name in Figures.__slots__})


def _problem(code: str, point: str, why: str) -> Problem:
    return Problem(code, f"point {point}: {why}", "run `holdfast repository verify`")


def _drop(session: Session, point: str, reason: str) -> None:
    """What keeps it goes first: it is of before the log that was lost dropped the point."""
    sessions = session.sessions
    state = sessions.ledger().points[point]
    newest = max((event.number for event in state.marks.values()), default=0)
    keeping = [("unstar", "")] * state.starred + [("release", name) for name in sorted(state.holds)]
    for number, (mark, name) in enumerate(keeping, newest + 1):
        sessions.say(_marked(session, point, number, marks.Mark(point, mark, session.by, now_us(), name, reason)))
    sessions.say(
        PointDropped(repository=sessions.repository, point=point, reason=reason, dropped_us=now_us(), by=session.by)
    )


def _say_marks(repository: Repository, session: Session, point: str, problems: list[Problem]) -> int:
    """Marks that the log has not heard of; how many."""
    sessions = session.sessions
    state = sessions.ledger().points[point]
    newest = max((event.number for event in state.marks.values()), default=-1)
    found, unread = marks.of_point(repository.store, point, repository.record_key)
    problems += [Problem(marks.DAMAGED, f"mark {number} of point {point} cannot be read", "") for number in unread]
    said = 0
    for number, mark in found:
        if number > newest and mark.mark != marks.DROPPED:
            sessions.say(_marked(session, point, number, mark))
            said += 1
    return said


def _marked(session: Session, point: str, number: int, mark: marks.Mark) -> PointMarked:
    return PointMarked(
        repository=session.sessions.repository,
        point=point,
        mark=mark.mark,
        number=number,
        name=mark.name,
        note=mark.note,
        until_us=mark.until_us,
        marked_us=mark.at_us,
        by=mark.by,
    )


def _is_the_log(sessions: Sessions, ledger: Ledger) -> bool:
    """Whether this log is the one that the repository was last written under."""
    standing = witnesses(sessions.store)
    return bool(standing) and all(ledger.has(witness.ordinal, witness.id) for witness in standing)


def _believe(session: Session) -> None:
    """From here on this log is the repository's: a witness of a higher generation than any that another log left."""
    newest = max((witness.generation for witness in witnesses(session.sessions.store)), default=-1)
    bear_witness(session.sessions.store, session.epoch, session.entry, newest + 1)
    failpoint("adopt-believed")


def leftovers(repository: Repository) -> list[str]:
    """Packs that a collection under another log began to delete: nothing is built on them, and they may go."""
    try:
        doomed = collection_files.unfinished_deletions(repository.store)
    except StoreError:
        return []
    return [pack.name for pack in repository.index.packs().values() if pack.pack in doomed]
