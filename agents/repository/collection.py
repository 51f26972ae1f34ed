"""Collection: what no root reaches is proposed, waited for, marked again, and only then deleted.

    P    proposed at ordinal P, by marks as of ordinal M < P. Candidates are packs: all that is alive in one that is mostly dead
         has been copied into new packs before, so a candidate holds nothing that a root of M needs.
         A session opened before P may build on candidates without knowing better. One opened after P treats them as absent
         and stores again what it finds in them (`absent_for`).
    X    executing, once every session opened before P was closed or fenced. What they sealed since M is marked, and a candidate
         that holds anything of it is spared. After X nobody can come to need a candidate any more: who could is over, and who
         is not stored again.

    executing event read back → tombstone → point records → index entries → bytes → done event

That is the order of writing, reversed. Whoever finds a collection executing carries it on (`finish`): deleting twice is harmless,
since a pack's name is never given again. What is deleted are the packs whose ids stand in the event, never what a listing shows,
so a collection is over only when every one of them is gone: who was slow, and deletes by a list that he read long ago, finds
nothing to delete. The list has their names, and what else goes; lost, it is made again from the event and a listing.

Events of earlier releases have no ids. There a list that cannot be read any more means that nothing is deleted, and that
sessions build on nothing until the next collector has ended that collection; what it left are packs like any other then.

Nothing is deleted under a log that cannot be seen, or lacks what the repository's files name (`Sessions.prove`). Knows
what is in a repository by `Contents` alone.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from blake3 import blake3

from agents.failpoints import failpoint
from agents.repository.collection_files import (
    OVER,
    PLAN_LOST,
    WAITS,
    CollectionError,
    PackFile,
    Plan,
    damaged_name,
    damaged_packs,
    doomed_by,
    encode,
    fences,
    ids_of,
    new_plan_name,
    note_damage,
    read_plan,
    tombstone_name,
    tombstones,
)
from agents.repository.errors import RepositoryError
from agents.repository.ledger import CollectionState, Ledger
from agents.repository.marking import Names
from agents.repository.sessions import Records, Session, Sessions, bear_witness
from agents.repository.stores import EXISTS, Store, StoreError
from streams.events import CollectionChanged
from streams.ids import uuid7

_TOMBSTONES: Final = 3  # kept; the newest says everything that the older ones said of fences
_log = logging.getLogger(__name__)


class Contents(Protocol):
    """What a repository holds, as far as collecting goes."""

    @property
    def store(self) -> Store: ...

    @property
    def records(self) -> Records: ...

    def packs(self) -> Iterable[PackFile]:
        """Every pack there is in the store, by a listing of now."""

    def frames(self, pack: PackFile) -> tuple[bytes, Sequence[int]]:
        """The names of a pack's chunks, 32 bytes each, joined, and what each takes up. A chunk of data that is stored in several
        packs may be left out of all but the one that readers are led to: the other copies are garbage then."""

    def mark(self, points: Sequence[str], names: Names, marked: frozenset[str]) -> None:
        """Add the name of every chunk that `points` need; those that the points `marked` need may be left out. Raises
        `RepositoryError` when it cannot tell (a node that cannot be read): then nothing is collected."""

    def copy(self, session: Session, pack: PackFile, wanted: bytes, leaving: frozenset[bytes]) -> int:
        """Store the chunks of a pack whose byte in `wanted` is not 0 again, in a pack of `session`; how many bytes. What stands
        whole in packs other than `leaving` already, as often as it should, is not stored once more. Raises
        `RepositoryError` when one of them is damaged: then the pack stays."""

    def spare(self, pack: PackFile, names: Iterable[bytes]) -> bool:
        """Whether a pack is one that was never finished, and each of these chunks of it can be read elsewhere: whoever lost it
        to a death has stored them again."""

    def stand(self, names: Iterable[bytes], within: Container[bytes]) -> bool:
        """Whether each of these chunks can be read in sealed packs among `within`, as often as it should stand."""

    def copied(self, session: Session) -> None:
        """What `copy` stored is durable, and is found by whoever looks for it from now on."""

    def remove_record(self, point: str) -> None:
        """Remove a point's records and marks: the first copy, then the second, then the marks. Durable on return."""

    def forget(self, packs: Iterable[bytes]) -> None:
        """The index knows nothing of these packs any more, durably."""


@dataclass(frozen=True, slots=True)
class Rules:
    """`live_share`: a pack less than that alive, by bytes, is rewritten. `copy_bytes`: at most so much is copied at a time, the
    deadest packs first. `packs`: at most so many go at a time, for their ids stand in an event of at most 900 KB.
    `delay_ticks`, `delay_us`: what must have passed since the proposal; the second by wall clock, which can only make it longer.
    `folder`, `memory_bytes`: where marks go that exceed memory, and when."""

    live_share: float = 0.5
    copy_bytes: int = 16 << 30
    packs: int = 40_000
    delay_ticks: int = 0
    delay_us: int = 0
    folder: Path | None = None
    memory_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan that was proposed at ordinal `proposed`, and what executing it needs to know beside it."""

    plan: Plan
    proposed: int
    proposed_us: int
    roots: frozenset[str]
    unfinished: frozenset[int]  # epochs of sessions that were open when marks were made
    figures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Absent:
    """Packs that a session must not build on: what it finds in them it stores again. `everything`: nothing may be built on."""

    packs: frozenset[bytes] = frozenset()
    everything: bool = False

    def __contains__(self, pack: object) -> bool:
        return self.everything or pack in self.packs


def absent_for(session: Session) -> Absent:
    """What an open session that writes must treat as absent: what is being collected, and packs with damaged chunks. Asked
    for once, after it was opened and before it looks anything up; it holds until the session ends. Raises `JournalError`,
    `StoreError`."""
    store = session.sessions.store
    packs = set(damaged_packs(store))
    for collection in session.sessions.ledger().binding(session.epoch):
        doomed = doomed_by(collection.events.get("proposed"))
        if doomed is not None:
            packs.update(doomed)
            continue
        try:
            plan = read_plan(store, collection.events.get("proposed"))
        except CollectionError:
            # Gone with the end of the collection, perhaps; its tombstone has what was deleted of it.
            try:
                plan = _final_plan(store, collection)
            except CollectionError as error:
                _log.warning("session %s builds on nothing: %s", session.id, error)
                return Absent(everything=True)
        packs.update(pack for pack, _, _ in plan.packs)
    return Absent(frozenset(packs))


# -- the collection


def propose(
    sessions: Sessions,
    session: Session,
    contents: Contents,
    rules: Rules | None = None,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> Proposal | None:
    """Mark, copy what is alive in mostly dead packs, and say what can go. None when there is nothing.

    `session` is an open one of kind collect. `progress` is told a stage, done, total. Raises `JournalError` (`journal-behind`,
    …), `SessionError`, `StoreError`, and `RepositoryError` when roots cannot be read: nothing is proposed then.
    """
    plan, roots, unfinished, figures = _planned(sessions, session, contents, rules or Rules(), progress, dry_run=False)
    if not plan.packs and not plan.points and not plan.voids:
        return None
    entry = _say(sessions, session, "proposed", plan, figures)
    failpoint("collection-proposed")
    state = sessions.ledger().collections.get(plan.collection)
    if state is None or state.proposed != entry:
        session.check()
        raise CollectionError(OVER, "the log did not take the proposal: another collection is under way")
    return Proposal(plan, entry, sessions.clock(), roots, unfinished, figures)


def forecast(
    sessions: Sessions,
    session: Session,
    contents: Contents,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> tuple[Plan, dict[str, int]]:
    """What could go now if nothing is moved, and figures: read only, for a store may be full. Raises as `propose`."""
    plan, _, _, figures = _planned(
        sessions, session, contents, Rules(live_share=0.0, packs=sys.maxsize), progress, dry_run=True
    )
    return plan, figures


def _planned(
    sessions: Sessions,
    session: Session,
    contents: Contents,
    rules: Rules,
    progress: Callable[[str, int, int], None],
    *,
    dry_run: bool,
) -> tuple[Plan, frozenset[str], frozenset[int], dict[str, int]]:
    """A plan, the roots it goes by, the epochs of sessions open when marks were made, and figures."""
    ledger = sessions.fresh_ledger()
    sessions.prove(ledger, contents.records)
    if not dry_run:
        _clear_lists(ledger, sessions.store)
    marked = ledger.head
    roots = frozenset(ledger.roots())
    names = Names(rules.folder, rules.memory_bytes)
    try:
        progress("mark", 0, len(roots))
        contents.mark(_in_order(ledger, roots), names, frozenset())
        alive = names.settle()
        failpoint("collection-marked")
        unfinished = frozenset(s.epoch for s in ledger.open_sessions())
        doomed, rewritten, figures = _weighed(
            contents, names, marked, unfinished, lambda: sessions.ledger().epochs(), rules, progress
        )
        figures["left_packs"] = max(0, len(doomed) + len(rewritten) - rules.packs)
        doomed = doomed[: rules.packs]
        rewritten = rewritten[: rules.packs - len(doomed)]
        figures |= {"roots": len(roots), "chunks_alive": alive}
        if dry_run:
            figures["copied_bytes"], rewritten = 0, []
        else:
            figures["copied_bytes"], rewritten = _compact(session, contents, names, rewritten, progress)
    finally:
        names.close()
    plan = Plan(
        sessions.repository,
        uuid7(),
        marked,
        tuple((pack.id, pack.name, pack.size) for pack in [*doomed, *rewritten]),
        tuple(sorted(point for point in contents.records.listed() if point in ledger.points and point not in roots)),
        tuple(sorted(_voids(ledger, contents.records))),
        tuple(sorted(_fenced(ledger, sessions.store).items())),
    )
    return plan, roots, unfinished, figures


def waits_for(sessions: Sessions, proposal: Proposal, rules: Rules | None = None) -> list[str]:
    """What has to come to pass before the proposal may be executed, for people; empty when nothing."""
    rules = rules or Rules()
    state = sessions.ledger().collections[proposal.plan.collection]
    out = [
        f"the {s.opened.kind} session {s.opened.session} of node {s.opened.node}, opened before the proposal"
        for s in sessions.ledger().in_the_way(state)
    ]
    if state.ticks < rules.delay_ticks:
        out.append(f"{rules.delay_ticks - state.ticks} more ticks of the delay")
    left = proposal.proposed_us + rules.delay_us - sessions.clock()
    if rules.delay_us and left > 0:  # without a delay a clock that was put back is nothing to wait for
        out.append(f"{-(-left // 1_000_000)} more seconds of the delay")
    return out


def execute(
    sessions: Sessions, session: Session, contents: Contents, proposal: Proposal, rules: Rules | None = None
) -> dict[str, int]:
    """Mark again, say so, delete; figures of what went. Raises `CollectionError` (`collection-waits`, `collection-over`), and as
    `propose`. After `executing` was said, a failure leaves a collection for `finish`."""
    rules = rules or Rules()
    ledger = sessions.fresh_ledger()
    sessions.prove(ledger, contents.records)
    plan = proposal.plan
    _still(ledger, session, plan, "proposed")
    if missing := waits_for(sessions, proposal, rules):
        raise CollectionError(WAITS, f"the collection waits for {missing[0]}")
    spared = _spared(sessions, ledger, contents, proposal, rules)
    roots = ledger.roots()
    final = replace(
        plan,
        packs=tuple(pack for pack in plan.packs if pack[0] not in spared),
        points=tuple(point for point in plan.points if point not in roots),
        voids=tuple(point for point in plan.voids if point not in ledger.points),
        fenced=tuple(sorted(_fenced(ledger, sessions.store).items())),
    )
    failpoint("collection-marked-again")
    figures = proposal.figures | {"spared_packs": len(spared)}
    ordinal = _say(sessions, session, "executing", final, figures)
    failpoint("collection-executing")
    state = sessions.ledger().collections[plan.collection]
    if state.executing != ordinal:
        session.check()
        raise CollectionError(OVER, f"the log did not take the beginning of collection {plan.collection}")
    return _delete(sessions, session, contents, state)


def finish(sessions: Sessions, session: Session, contents: Contents) -> dict[str, int] | None:
    """Carry on a collection that somebody began to execute; None when there is none. Raises as `execute`.

    One of an earlier release whose list is gone, or is not what the log says, in both copies is ended without deleting anything
    (`list_lost`)."""
    ledger = sessions.fresh_ledger()
    sessions.prove(ledger, contents.records)
    state = ledger.active()
    if state is None or state.state != "executing":
        return None
    try:
        return _delete(sessions, session, contents, state)
    except CollectionError as lost:
        if lost.code != PLAN_LOST:
            raise
        _log.error("collection %s ends, and what it had not deleted is weighed again: %s", state.id, lost)
        nothing = {"freed_bytes": 0, "packs_deleted": 0, "records_deleted": 0, "list_lost": 1}
        return _end(sessions, session, state, nothing)


def abandon(sessions: Sessions, session: Session, proposal: Proposal) -> None:
    """Give a proposal up; nothing was deleted. Closing the session does the same."""
    _say(sessions, session, "abandoned", proposal.plan, proposal.figures, write=False)
    _clear_away(sessions.store, proposal.plan.collection)


# -- parts


def _in_order(ledger: Ledger, points: Iterable[str]) -> list[str]:
    return sorted(points, key=lambda name: ledger.points[name].ordinal)


def _still(ledger: Ledger, session: Session, plan: Plan, state: str) -> CollectionState:
    session.check()
    found = ledger.collections.get(plan.collection)
    if found is None or found.state != state:
        raise CollectionError(
            OVER, f"collection {plan.collection} is {found.state if found else 'unknown'}, not {state}"
        )
    return found


def _weighed(
    contents: Contents,
    names: Names,
    marked: int,
    unfinished: frozenset[int],
    sessions_of_this_log: Callable[[], set[int]],
    rules: Rules,
    progress: Callable[[str, int, int], None],
) -> tuple[list[PackFile], list[PackFile], dict[str, int]]:
    """Packs in which nothing is alive, packs to rewrite, and figures. Packs of sessions that are not over are left alone, and so
    is whatever was begun after marks were made. A pack whose epoch is none of this log's is of the log before it was adopted:
    its session is over, whatever number it had."""
    dead, sparse = [], []
    damaged = set(damaged_packs(contents.store))
    live_bytes = garbage = 0
    packs = [p for p in contents.packs() if p.epoch not in unfinished]
    epochs = sessions_of_this_log()  # after the listing: whatever wrote what is listed had been opened
    packs = [p for p in packs if p.epoch <= marked or p.epoch not in epochs]
    for number, pack in enumerate(packs):
        if not number & 63:
            progress("weigh", number, len(packs))
        chunks, sizes = contents.frames(pack)
        alive = sum(itertools.compress(sizes, names.among(chunks)))
        live_bytes += alive
        garbage += max(0, pack.size - alive)
        if not alive or contents.spare(pack, (chunks[at * 32 : at * 32 + 32] for at in _set(names.among(chunks)))):
            dead.append(pack)
        elif alive < sum(sizes) * rules.live_share and pack.id not in damaged:
            sparse.append((alive, pack))
    rewritten = []
    room = rules.copy_bytes
    for alive, pack in sorted(sparse, key=lambda s: s[0] / max(1, s[1].size)):
        if alive <= room:
            room -= alive
            rewritten.append(pack)
    rewritten.sort(key=lambda p: (p.epoch, p.name))  # what was written together stays together
    return dead, rewritten, {"live_bytes": live_bytes, "garbage_bytes": garbage, "packs": len(packs)}


def _set(flags: Sequence[int]) -> Iterator[int]:
    return (at for at, flag in enumerate(flags) if flag)


def _compact(
    session: Session,
    contents: Contents,
    names: Names,
    packs: Sequence[PackFile],
    progress: Callable[[str, int, int], None],
) -> tuple[int, list[PackFile]]:
    """Copy what is alive in `packs`; bytes copied, and the packs that may go for it. One with damage is noted and stays: what is
    damaged for good must not keep everything else from being collected, nor be copied around again and again.

    A death leaves copies of chunks that are still where they were, which the next one finds and does not make again."""
    copied = 0
    # What stands in a pack with damage may be what is damaged there: it counts as nowhere.
    leaving = frozenset(pack.id for pack in packs).union(damaged_packs(contents.store))
    moved = []
    for number, pack in enumerate(packs):
        progress("copy", number, len(packs))
        chunks, _ = contents.frames(pack)
        try:
            copied += contents.copy(session, pack, bytes(names.among(chunks)), leaving)
        except RepositoryError as error:
            _log.warning("%s stays: %s", pack.name, error)
            note_damage(contents.store, pack)
            continue
        moved.append(pack)
        failpoint("collection-pack-copied")
    if packs:
        contents.copied(session)
        failpoint("collection-copied")
    return copied, moved


def _voids(ledger: Ledger, records: Records) -> list[str]:
    """Points that have a record and were never sealed, of sessions that are over."""
    out = []
    for point in records.listed():
        if point in ledger.points:
            continue
        head = records.head(point)
        session = ledger.sessions.get(head.session) if head is not None else None
        if session is not None and not session.open:
            out.append(point)
    return out


def _fenced(ledger: Ledger, store: Store) -> dict[str, tuple[str, ...]]:
    out = {session: tuple(sorted(points)) for session, points in fences(store).items()}
    for session in list(ledger.sessions.values()):
        if session.how == "fenced" and session.opened.kind == "backup":
            out.setdefault(session.opened.session, ())
    for name, point in list(ledger.points.items()):
        if point.sealed.session in out:
            out[point.sealed.session] = tuple(sorted({*out[point.sealed.session], name}))
    return out


def _spared(sessions: Sessions, ledger: Ledger, contents: Contents, proposal: Proposal, rules: Rules) -> set[bytes]:
    """Candidates that hold what a root sealed since the marks needs and has nowhere else.

    Somewhere else is a pack that no collection can have proposed: begun after the marks, or of a session that was open then. What
    is to be deleted for it is read there: a pack that was torn, or damaged meanwhile, has no copies.
    """
    plan = proposal.plan
    fresh = [name for name in ledger.roots() if name not in proposal.roots]
    if not fresh or not plan.packs:
        return set()
    needed, elsewhere = Names(rules.folder, rules.memory_bytes), Names(rules.folder, rules.memory_bytes)
    try:
        contents.mark(_in_order(ledger, fresh), needed, proposal.roots)
        needed.settle()
        candidates = {pack for pack, _, _ in plan.packs}
        doomed = []
        within = set()
        packs = list(contents.packs())
        epochs = sessions.ledger().epochs()
        damaged = set(damaged_packs(contents.store))
        for pack in packs:
            begun_since = pack.epoch > plan.marked and pack.epoch in epochs
            if pack.id in candidates:
                doomed.append(pack)
            elif (begun_since or pack.epoch in proposal.unfinished) and pack.id not in damaged:
                within.add(pack.id)
                elsewhere.add(contents.frames(pack)[0])
        elsewhere.settle()
        out = set()
        for pack in doomed:
            chunks = contents.frames(pack)[0]
            wanted, had = needed.among(chunks), elsewhere.among(chunks)
            names = [chunks[at * 32 : at * 32 + 32] for at, want in enumerate(wanted) if want]
            if any(want and not have for want, have in zip(wanted, had, strict=True)) or not contents.stand(
                names, within
            ):
                out.add(pack.id)
        return out
    finally:
        needed.close()
        elsewhere.close()


def _say(
    sessions: Sessions, session: Session, state: str, plan: Plan, figures: dict[str, int], *, write: bool = True
) -> int:
    """The list durable, then the event; its ordinal."""
    data = encode(plan)
    name = new_plan_name(plan.collection, state) if write else ""
    if write:
        sessions.store.create(name, [data])
        failpoint(f"collection-{state}-written")
    event = CollectionChanged(
        repository=sessions.repository,
        collection=plan.collection,
        session=session.id,
        state=state,
        marked=plan.marked,
        plan=name,
        digest=blake3(data).digest() if write else b"",
        packs=len(plan.packs),
        points=len(plan.points) + len(plan.voids),
        freed_bytes=plan.bytes,
        figures=figures,
        at_us=sessions.clock(),
        by=session.by,
        doomed=ids_of(plan) if write else b"",
    )
    return sessions.say(event).ordinal


def _delete(sessions: Sessions, session: Session, contents: Contents, state: CollectionState) -> dict[str, int]:
    """Tombstone, records, index entries, bytes, and the word that it is done."""
    store = sessions.store
    try:
        plan = _final_plan(store, state)
    except CollectionError:
        plan = _made_again(sessions.ledger(), contents, state)
    assert state.executing is not None
    bear_witness(store, state.executing, sessions.ledger().id_of(state.executing))
    try:
        store.create(tombstone_name(plan.collection), [encode(plan)])
    except StoreError as error:
        if error.code != EXISTS:
            raise
    failpoint("collection-tombstone")
    for point in (*plan.points, *plan.voids):
        contents.remove_record(point)
        failpoint("collection-record-removed")
    contents.forget([pack for pack, _, _ in plan.packs])
    failpoint("collection-forgotten")
    for pack, name, _ in plan.packs:
        # Somebody else may have ended it: without deleting all of it only if it is of an earlier release, and its list was gone.
        if (found := sessions.ledger().collections[plan.collection].state) != "executing":
            raise CollectionError(OVER, f"collection {plan.collection} is {found}: somebody else has ended it")
        store.delete(name)
        store.delete(damaged_name(pack))
        failpoint("collection-pack-deleted")
    figures = {
        "packs_bytes": sum(pack.size for pack in contents.packs()),
        "freed_bytes": plan.bytes,
        "packs_deleted": len(plan.packs),
        "records_deleted": len(plan.points) + len(plan.voids),
    }
    return _end(sessions, session, state, figures)


def _end(sessions: Sessions, session: Session, state: CollectionState, figures: dict[str, int]) -> dict[str, int]:
    """The word that it is done. What is left of a list that was lost are packs like any other: who was open while it was under
    way built on nothing, and who comes now may."""
    event = state.events["executing"]
    figures = dict(event.figures) | figures
    sessions.say(
        replace(
            event,
            state="done",
            session=session.id,
            plan="",
            digest=b"",
            doomed=b"",
            figures=figures,
            at_us=sessions.clock(),
        )
    )
    failpoint("collection-done")
    _clear_away(sessions.store, state.id)
    return figures


def _made_again(ledger: Ledger, contents: Contents, state: CollectionState) -> Plan:
    """The list of a collection whose files were lost, in place of them: the packs of its event that are still there, and the
    records that no point needs now. Raises `CollectionError` (`collection-plan-lost`) when the event does not say."""
    event = state.events.get("executing")
    doomed = doomed_by(event)
    if event is None or doomed is None:
        raise CollectionError(
            PLAN_LOST,
            f"neither the list of collection {state.id} nor its tombstone can be read: nothing is deleted",
            "the next collection ends this one, and weighs what it left",
        )
    _log.warning("the list of collection %s is lost, and made again from the log and a listing", state.id)
    store, roots = contents.store, ledger.roots()
    store.delete(tombstone_name(state.id))  # it is gone, or is none
    return Plan(
        event.repository,
        state.id,
        event.marked,
        tuple((pack.id, pack.name, pack.size) for pack in contents.packs() if pack.id in doomed),
        tuple(sorted(point for point in contents.records.listed() if point in ledger.points and point not in roots)),
        tuple(sorted(_voids(ledger, contents.records))),
        tuple(sorted(_fenced(ledger, store).items())),
    )


def _final_plan(store: Store, state: CollectionState) -> Plan:
    """The list whose digest the log has, from its own file or from the tombstone."""
    event = state.events.get("executing")
    try:
        return read_plan(store, event)
    except CollectionError as lost:
        if event is None:
            raise
        try:
            return read_plan(store, replace(event, plan=tombstone_name(state.id)))
        except CollectionError:
            raise CollectionError(PLAN_LOST, f"{lost.message}, and its tombstone neither") from lost


def _clear_lists(ledger: Ledger, store: Store) -> None:
    """Remove what proposals left that came to nothing. For a collector in an open session: there is no other."""
    for listed in list(store.list("collections/")):
        state = ledger.collections.get(listed.name.removeprefix("collections/").partition(".")[0])
        if state is None or not state.active:
            store.delete(listed.name)


def _clear_away(store: Store, collection: str) -> None:
    """Lists that are of no use any more, and tombstones whose say newer ones have."""
    for listed in list(store.list(f"collections/{collection}.")):
        store.delete(listed.name)
    for plan in tombstones(store)[:-_TOMBSTONES]:
        store.delete(tombstone_name(plan.collection))
