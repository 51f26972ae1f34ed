"""Adoption: a log that knows nothing, or too little, learns what the repository holds; only then may it delete or write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.repository import adopt, collection, expiring, marks, points
from agents.repository import repository as repositories
from agents.repository.contents import RepositoryContents
from agents.repository.extents import CHUNK
from agents.repository.ingest import Ingest
from agents.repository.journal import Entry, JournalError, MemoryJournal, MemoryLog
from agents.repository.node import Held
from agents.repository.reader import DiskReader
from agents.repository.repository import Repository
from agents.repository.sessions import Sessions, witnesses
from agents.repository.stores.memory import MemoryStore
from agents.repository.stores.recorded import RecordedStore
from streams.events import Event, PointDropped, PointMarked
from streams.ids import now_us

BLOCK = 4096


class Image:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    repositories.create(made, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
    return made


@pytest.fixture
def repository(store: MemoryStore, tmp_path: Path) -> Iterator[Repository]:
    opened = repositories.open(store, None, tmp_path / "cache", "node_a")
    yield opened
    opened.close()


def sessions_of(log: MemoryLog, store: MemoryStore) -> Sessions:
    return Sessions(MemoryJournal(log, "main"), store, "node_a")


def backup(repository: Repository, sessions: Sessions, data: bytes) -> str:
    session = sessions.open("backup", by="tests", asset="vm")
    with Ingest(repository, session, slug="main", asset="vm") as ingest:
        disk = ingest.disk("sda", size=len(data))
        disk.feed(Image(data), [(0, disk.blocks, CHUNK)])
        draft = points.Point(
            "", "vm", "VM", "disks", now_us(), "", 0, "", points.JournalPlace(0, ""), disks=(disk.finish(),)
        )
        sealed = ingest.seal(draft)
    session.close(points=[sealed.point.point])
    return sealed.point.point


def mark(repository: Repository, sessions: Sessions, point: str, what: str, name: str = "") -> None:
    made = marks.Mark(point, what, "somebody", now_us(), name=name)
    number = marks.add(repository.store, made, repository.record_key)
    sessions.say(
        PointMarked(
            repository="main", point=point, mark=what, number=number, name=name, marked_us=made.at_us, by="somebody"
        ),
        witness=True,
    )


def drop(sessions: Sessions, repository: Repository, point: str) -> None:
    sessions.say(PointDropped(repository="main", point=point, reason="old", dropped_us=now_us(), by="x"), witness=True)
    points.drop(repository.store, point)


def test_a_log_that_is_behind_cannot_bear_witness_and_so_become_the_repositorys(
    repository: Repository, store: MemoryStore, tmp_path: Path
) -> None:
    old = sessions_of(MemoryLog(), store)
    point = backup(repository, old, os.urandom(3 * BLOCK))
    elsewhere = repositories.open(store, None, tmp_path / "another site", "node_b")
    adopt.adopt(elsewhere, sessions_of(MemoryLog(), store), by="tests")
    there = witnesses(store)
    with pytest.raises(JournalError, match="journal-behind"):
        mark(repository, old, point, "star")
    assert witnesses(store) == there
    assert not old.ledger().points[point].starred
    with pytest.raises(JournalError, match="journal-behind"):
        old.open("backup", by="tests")
    elsewhere.close()


def test_an_empty_log_comes_to_know_points_stars_and_holds(
    repository: Repository, store: MemoryStore, tmp_path: Path
) -> None:
    old = sessions_of(MemoryLog(), store)
    data = [os.urandom(30 * BLOCK) for _ in range(3)]
    ids = [backup(repository, old, one) for one in data]
    mark(repository, old, ids[0], "star")
    mark(repository, old, ids[1], "hold", "case 7")
    mark(repository, old, ids[2], "star")
    mark(repository, old, ids[2], "unstar")

    elsewhere = repositories.open(store, None, tmp_path / "another site", "node_b")
    new = sessions_of(MemoryLog(), store)
    with pytest.raises(JournalError, match="journal-behind"):
        new.open("backup", by="tests")
    adopted = adopt.adopt(elsewhere, new, by="tests")
    assert adopted.points == tuple(ids)
    assert adopted.marks == 4
    assert not adopted.left_out
    assert not adopted.problems
    standing = new.ledger().standing()
    assert list(standing) == ids
    assert all(state.sealed.adopted for state in standing.values())
    assert [state.starred for state in standing.values()] == [True, False, False]
    assert standing[ids[1]].holds == {"case 7": None}
    for point, expected in zip(ids, data, strict=True):
        with DiskReader(elsewhere, elsewhere.point(point).disks[0]) as reader:
            assert reader.read(0, len(expected)) == expected

    again = adopt.adopt(elsewhere, new, by="tests")
    assert (again.points, again.marks, dict(again.left_out)) == ((), 0, {})
    backup(elsewhere, new, data[0])
    new.prove(new.ledger())
    with pytest.raises(JournalError, match="journal-behind"):
        old.prove(old.ledger())
    elsewhere.close()


def test_a_log_from_an_earlier_state_learns_what_it_missed(repository: Repository, store: MemoryStore) -> None:
    log = MemoryLog()
    sessions = sessions_of(log, store)
    first = backup(repository, sessions, os.urandom(10 * BLOCK))
    gone = backup(repository, sessions, os.urandom(10 * BLOCK))
    earlier = log.restored(len(log.entries))
    later = backup(repository, sessions, os.urandom(10 * BLOCK))
    drop(sessions, repository, gone)
    mark(repository, sessions, first, "star")

    restored = sessions_of(earlier, store)
    with pytest.raises(JournalError, match="journal-behind"):
        restored.prove(restored.ledger())
    adopted = adopt.adopt(repository, restored, by="tests")
    assert adopted.points == (later,)
    assert adopted.marks == 1
    assert [problem.code for problem in adopted.problems] == ["point-missing"]
    assert list(restored.ledger().standing()) == [first, later]
    assert restored.ledger().points[first].starred
    restored.prove(restored.ledger())


def test_a_log_from_an_earlier_state_gives_up_what_is_gone_whatever_star_it_has_of_it(
    repository: Repository, store: MemoryStore
) -> None:
    log = MemoryLog()
    sessions = sessions_of(log, store)
    starred, held, kept = (backup(repository, sessions, os.urandom(10 * BLOCK)) for _ in range(3))
    mark(repository, sessions, starred, "star")
    mark(repository, sessions, held, "hold", "case 7")
    earlier = log.restored(len(log.entries))
    mark(repository, sessions, starred, "unstar")
    mark(repository, sessions, held, "release", "case 7")
    for point in (starred, held):
        drop(sessions, repository, point)
        marks.remove(store, point)  # as a collection does

    restored = sessions_of(earlier, store)
    adopted = adopt.adopt(repository, restored, by="tests")
    assert [problem.code for problem in adopted.problems] == ["point-missing"] * 2
    assert list(restored.ledger().standing()) == [kept]
    collector = restored.open("collect", by="tests")
    with contextlib.closing(RepositoryContents(repository)) as contents:
        assert collection.propose(restored, collector, contents), "points without a record would end the marking"


@pytest.mark.parametrize("known", [False, True], ids=["fresh log", "earlier log"])
def test_what_was_dropped_and_not_collected_does_not_come_back(
    repository: Repository, store: MemoryStore, tmp_path: Path, known: bool
) -> None:
    log = MemoryLog()
    sessions = sessions_of(log, store)
    dropped, kept, starred = (backup(repository, sessions, os.urandom(10 * BLOCK)) for _ in range(3))
    mark(repository, sessions, starred, "star")
    earlier = log.restored(len(log.entries) if known else 0)
    node = Held("main", RecordedStore(store, tmp_path / "own"), repository, sessions)
    for point in (dropped, starred):  # the star stands: that drop does not count
        event = PointDropped(repository="main", point=point, reason="old", dropped_us=now_us(), by="x")
        expiring.say_drop(node, event, witness=True)

    new = sessions_of(earlier, store)
    adopted = adopt.adopt(repository, new, by="tests")
    assert list(new.ledger().standing()) == [kept, starred]
    assert dict(adopted.left_out) == ({} if known else {dropped: "it had been dropped: old"})
    collector = new.open("collect", by="tests")
    with contextlib.closing(RepositoryContents(repository)) as contents:
        proposal = collection.propose(new, collector, contents)
        assert proposal is not None
        assert proposal.plan.points == (dropped,)
    stale = PointDropped(repository="main", point=kept, reason="old", dropped_us=now_us(), by="x")
    with pytest.raises(JournalError, match="journal-behind"):
        expiring.say_drop(node, stale, witness=False)
    assert not adopt.dropped_points(repository).keys() & {kept}


@pytest.mark.parametrize("ended", [False, True])
def test_a_log_that_was_cut_off_between_session_and_seal_learns_of_the_point(
    repository: Repository, store: MemoryStore, ended: bool
) -> None:
    """What was sealed was promised. That its session, as the cut log has it, was ended without a seal proves nothing."""
    log = MemoryLog()
    sessions = sessions_of(log, store)
    first = backup(repository, sessions, os.urandom(10 * BLOCK))
    cut = len(log.entries) + 1
    data = os.urandom(10 * BLOCK)
    promised = backup(repository, sessions, data)
    assert log.entries[cut - 1].event.TYPE == "session.opened"

    restored = sessions_of(log.restored(cut), store)
    if ended:  # as the node does with what a dead run left
        (left,) = restored.leftovers()
        restored.take_over(left.opened.session, "node_a").close("failed")
    assert adopt.adopt(repository, restored, by="tests").points == (promised,)
    for left in restored.leftovers():
        restored.take_over(left.opened.session, "node_a").close("failed")
    collector = restored.open("collect", by="tests")
    with contextlib.closing(RepositoryContents(repository)) as contents:
        proposal = collection.propose(restored, collector, contents)
        if proposal is not None:
            collection.execute(restored, collector, contents, proposal)
    assert list(restored.ledger().standing()) == [first, promised]
    with DiskReader(repository, repository.point(promised).disks[0]) as reader:
        assert reader.read(0, len(data)) == data


class Dying(MemoryJournal):
    """A journal that takes `left` more events and is away then."""

    left = 1 << 30

    def append(self, event: Event) -> Entry:
        if self.left == 0:
            raise JournalError("journal-unreachable", "away")
        self.left -= 1
        return super().append(event)


def test_an_adoption_that_died_is_gone_on_with(repository: Repository, store: MemoryStore) -> None:
    old = sessions_of(MemoryLog(), store)
    ids = [backup(repository, old, os.urandom(5 * BLOCK)) for _ in range(4)]
    mark(repository, old, ids[3], "star")
    log = MemoryLog()
    deaths = 0
    while True:
        journal = Dying(log, "main")
        journal.left = 2  # the session, and a word more
        fresh = sessions_of(log, store)
        try:
            adopt.adopt(repository, Sessions(journal, store, "node_a"), by="tests")
        except JournalError:
            deaths += 1
        else:
            break
        if len(fresh.ledger().points) < 4:
            with pytest.raises(JournalError, match="journal-behind"):
                fresh.prove(fresh.ledger())
    assert deaths >= 5
    new = sessions_of(log, store)
    adopt.adopt(repository, new, by="tests")
    assert list(new.ledger().standing()) == ids
    assert new.ledger().points[ids[3]].starred
    assert len([e for e in log.entries if e.event.TYPE == "point.sealed"]) == 4
    new.prove(new.ledger())


def test_what_is_damaged_is_said(repository: Repository, store: MemoryStore, tmp_path: Path) -> None:
    old = sessions_of(MemoryLog(), store)
    ids = [backup(repository, old, os.urandom(20 * BLOCK)) for _ in range(3)]
    for folder in ("points", "points2"):
        name = f"{folder}/{ids[0]}.point"
        whole = store.read(name)
        store.delete(name)
        store.create(name, [whole[:-1]])
    root = repository.point(ids[1]).disks[0].root
    for place in repository.index.places(root):
        name = repository.index.pack_name(place.pack) or ""
        store.delete(name)
    elsewhere = repositories.open(store, None, tmp_path / "another site", "node_b")
    new = sessions_of(MemoryLog(), store)
    adopted = adopt.adopt(elsewhere, new, by="tests")
    assert adopted.points == (ids[1], ids[2])
    assert list(adopted.left_out) == [ids[0]]
    assert sorted(problem.code for problem in adopted.problems) == ["point-damaged", "point-left-out"]
    assert list(new.ledger().points[ids[1]].marks) == ["damaged"]
    assert not new.ledger().points[ids[2]].marks
    elsewhere.close()


def test_a_record_whose_session_this_log_ended_makes_no_point(repository: Repository, store: MemoryStore) -> None:
    sessions = sessions_of(MemoryLog(), store)
    first = backup(repository, sessions, os.urandom(5 * BLOCK))
    session = sessions.open("backup", by="tests", asset="vm")
    with Ingest(repository, session, slug="main") as ingest:
        disk = ingest.disk("sda", size=BLOCK)
        disk.write(0, os.urandom(BLOCK))
        draft = points.Point("", "vm", "VM", "disks", 1, "", 0, "", points.JournalPlace(0, ""), disks=(disk.finish(),))
        sessions.fence(session.id, "tests", "tests")
        with pytest.raises(Exception, match="session-lost"):
            ingest.seal(draft)
        record = points.Point(
            ingest.point,
            "vm",
            "VM",
            "disks",
            1,
            session.id,
            session.epoch,
            "node_a",
            points.JournalPlace(session.epoch, session.entry),
        )
        points.seal(store, record, repository.record_key)  # as if it had been fenced a moment later
    adopted = adopt.adopt(repository, sessions, by="tests")
    assert adopted.points == ()
    assert list(adopted.left_out) == [record.point]
    assert list(sessions.ledger().standing()) == [first]
