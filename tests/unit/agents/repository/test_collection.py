"""Collection step by step: what is waited for, spared, refused and carried on. At random: `test_collection_model`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest

from agents.repository import collection, collection_files, sessions
from agents.repository.collection import Rules
from agents.repository.collection_files import CollectionError
from agents.repository.journal import Entry, JournalError, MemoryJournal, MemoryLog
from agents.repository.ledger import Ledger
from agents.repository.sessions import Session, SessionError, Sessions, Ticker
from agents.repository.stores.memory import MemoryStore
from streams.events import PointDropped, PointMarked
from tests.stand_ins.toy_repository import ToyContents, Writer, begin, chunk

MANY = Rules(live_share=0.9)
NEVER = Rules(live_share=0.0)


class Ground:
    """A repository with nothing in it, and nodes that share its log and store."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.store = MemoryStore()
        self.contents = ToyContents(self.store)
        self.now = itertools.count(1_000_000, 1_000_000)

    def node(self, name: str = "a", log: MemoryLog | None = None) -> Sessions:
        journal = MemoryJournal(log or self.log, "main")
        return Sessions(journal, self.store, name, lease_ticks=2, clock=lambda: next(self.now))

    def backup(self, node: Sessions, contents: list[int]) -> str:
        writer = begin(node)
        writer.put(contents)
        point = writer.seal()
        writer.session.close()
        return point

    def drop(self, node: Sessions, point: str) -> None:
        node.say(
            PointDropped(repository="main", point=point, reason="test", dropped_us=next(self.now), by="test"),
            witness=True,
        )

    def collect(self, node: Sessions, rules: Rules = NEVER) -> dict[str, int] | None:
        session = node.open("collect", by="test")
        try:
            proposal = collection.propose(node, session, self.contents, rules)
            return None if proposal is None else collection.execute(node, session, self.contents, proposal, rules)
        finally:
            session.close()

    def restores(self, point: str) -> bool:
        names = self.contents.records.names(point)
        return names is not None and self.contents.readable(names)

    def holds(self, content: int) -> bool:
        return self.contents.readable([chunk(content)])


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_what_no_point_needs_goes_and_the_rest_stays(ground: Ground) -> None:
    node = ground.node()
    first, second = ground.backup(node, [1, 2]), ground.backup(node, [3])
    ground.drop(node, first)

    figures = ground.collect(node)

    assert figures is not None
    assert (figures["packs_deleted"], figures["records_deleted"]) == (1, 1)
    assert not ground.holds(1)
    assert ground.contents.records.names(first) is None
    assert ground.restores(second)
    assert ground.collect(node) is None


def test_what_is_alive_in_a_mostly_dead_pack_is_copied_before_it_goes(ground: Ground) -> None:
    node = ground.node()
    first = ground.backup(node, [1, 2, 3, 4])
    second = ground.backup(node, [4, 5])
    ground.drop(node, first)

    figures = ground.collect(node, MANY)

    assert figures is not None
    assert figures["copied_bytes"] == 32
    assert ground.restores(second)
    assert not ground.holds(1)


def test_a_session_opened_before_the_proposal_is_waited_for_and_what_it_built_on_is_spared(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    first = ground.backup(node, [1])
    ground.drop(node, first)
    writer = begin(other)
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    writer.put([1])  # finds it, and may

    with pytest.raises(CollectionError) as refused:
        collection.execute(node, collector, ground.contents, proposal)
    assert refused.value.code == "collection-waits"
    assert writer.session.id in refused.value.message
    point = writer.seal()
    writer.session.close()
    figures = collection.execute(node, collector, ground.contents, proposal)

    assert figures["spared_packs"] == 1
    assert ground.restores(point)


def test_a_session_opened_after_the_proposal_stores_again_what_is_going(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    first = ground.backup(node, [1])
    ground.drop(node, first)
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    writer = begin(other)
    assert len(writer.absent.packs) == 1
    writer.put([1])

    figures = collection.execute(node, collector, ground.contents, proposal)
    point = writer.seal()

    assert (figures["spared_packs"], figures["packs_deleted"]) == (0, 1)
    assert ground.restores(point)


def test_what_a_session_seals_while_a_collection_waits_takes_nothing_from_it_that_it_stored_itself(
    ground: Ground,
) -> None:
    node, other = ground.node(), ground.node("b")
    ground.drop(node, ground.backup(node, [1]))
    early = begin(other)
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    late = begin(other)
    late.put([1])
    point = late.seal()
    early.session.close()

    figures = collection.execute(node, collector, ground.contents, proposal)

    assert figures["packs_deleted"] == 1
    assert ground.restores(point)


def test_an_export_keeps_a_dropped_point(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    point = ground.backup(node, [1])
    export = other.open("export", by="test", pins=[point])
    ground.drop(node, point)

    assert ground.collect(node) is None
    assert ground.restores(point)
    export.close()
    assert ground.collect(node) is not None
    assert not ground.holds(1)


def test_an_export_of_a_dropped_point_is_refused(ground: Ground) -> None:
    node = ground.node()
    point = ground.backup(node, [1])
    ground.drop(node, point)
    with pytest.raises(SessionError) as refused:
        node.open("export", by="test", pins=[point])
    assert refused.value.code == "session-refused"


def test_packs_of_an_open_session_are_left_alone(ground: Ground) -> None:
    node = ground.node()
    writer = begin(node)
    writer.put([1])
    assert ground.collect(ground.node("b")) is None
    writer.put([2])
    assert ground.restores(writer.seal())


def test_what_a_fenced_session_seals_does_not_count_and_its_record_goes(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    zombie = begin(other)
    zombie.put([1])
    node.fence(zombie.session.id, "test", "test")
    with pytest.raises(SessionError) as lost:
        zombie.seal()
    assert lost.value.code == "session-lost"
    assert node.ledger().points == {}
    assert ground.contents.records.names(zombie.point) is not None

    figures = ground.collect(node)

    assert figures is not None
    assert figures["records_deleted"] == 1
    assert ground.contents.records.names(zombie.point) is None
    assert not ground.holds(1)
    assert collection_files.fences(ground.store) == {zombie.session.id: frozenset()}


def test_a_point_that_a_session_sealed_before_it_was_fenced_counts(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    writer = begin(other)
    writer.put([1])
    point = writer.seal()
    node.fence(writer.session.id, "test", "test")
    ground.drop(node, ground.backup(node, [2]))

    assert ground.collect(node) is not None

    assert ground.restores(point)
    assert collection_files.fences(ground.store) == {writer.session.id: frozenset({point})}


@pytest.mark.parametrize("mark", ["star", "hold"])
def test_a_starred_or_held_point_is_not_dropped_whatever_is_said(ground: Ground, mark: str) -> None:
    node = ground.node()
    point = ground.backup(node, [1])
    event = PointMarked(repository="main", point=point, mark=mark, number=1, name="case 7", marked_us=1, by="test")
    node.say(event, witness=True)
    ground.drop(node, point)
    assert ground.collect(node) is None
    assert point in node.ledger().standing()


def test_a_word_that_did_not_get_through_is_said_again(ground: Ground) -> None:
    node = ground.node()
    ground.drop(node, ground.backup(node, [1]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    append = node.journal.append

    def unreachable(_event: object) -> Entry:
        raise JournalError("journal-unreachable", "test")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node.journal, "append", unreachable)
        with pytest.raises(JournalError):
            collection.execute(node, collector, ground.contents, proposal)
    assert node.journal.append == append
    assert ground.holds(1)

    collection.execute(node, collector, ground.contents, proposal)
    assert not ground.holds(1)


def test_one_collector_at_a_time(ground: Ground) -> None:
    node = ground.node()
    node.open("collect", by="test")
    with pytest.raises(SessionError, match="another session collects"):
        ground.node("b").open("collect", by="test")


def test_a_collector_that_was_fenced_deletes_nothing(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    ground.drop(node, ground.backup(node, [1]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    other.fence(collector.id, "test", "test")
    assert ground.backup(other, [1])  # builds on what was proposed: nobody says any more that it goes

    with pytest.raises(SessionError):
        collection.execute(node, collector, ground.contents, proposal)
    assert ground.holds(1)


def test_a_fence_between_the_last_look_and_the_word_is_seen_when_it_is_read_back(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = ground.node(), ground.node("b")
    ground.drop(node, ground.backup(node, [1]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None

    def fence(name: str) -> None:
        if name == "collection-executing-written":
            other.fence(collector.id, "test", "test")

    monkeypatch.setattr(collection, "failpoint", fence)
    with pytest.raises(SessionError):
        collection.execute(node, collector, ground.contents, proposal)
    assert ground.holds(1)


DELETING = (
    "collection-executing",
    "collection-tombstone",
    "collection-record-removed",
    "collection-forgotten",
    "collection-pack-deleted",
)
BEFORE = (
    "collection-marked",
    "collection-pack-copied",
    "collection-copied",
    "collection-proposed-written",
    "collection-proposed",
    "collection-marked-again",
    "collection-executing-written",
)


class Died(BaseException):
    """Nothing of what would follow happens."""


def dies_at(name: str) -> Callable[[str], None]:
    def hook(place: str) -> None:
        if place == name:
            raise Died

    return hook


def propose_and_execute(node: Sessions, collector: Session, contents: ToyContents) -> None:
    proposal = collection.propose(node, collector, contents, MANY)
    assert proposal is not None
    collection.execute(node, collector, contents, proposal, MANY)


@pytest.mark.parametrize("place", [*BEFORE, *DELETING, "collection-done"])
def test_a_collection_that_dies_is_begun_again_or_carried_on(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    node = ground.node()
    first = ground.backup(node, [1, 2, 3, 4])
    kept = [ground.backup(node, [4, 5]), ground.backup(node, [6])]
    ground.drop(node, first)
    ground.drop(node, ground.backup(node, [7]))
    collector = node.open("collect", by="test")
    with monkeypatch.context() as patched:
        patched.setattr(collection, "failpoint", dies_at(place))
        with pytest.raises(Died):
            propose_and_execute(node, collector, ground.contents)

    assert all(map(ground.restores, kept))
    other = ground.node("b")
    other.fence(collector.id, "its node died", "test")
    meanwhile = ground.backup(other, [1, 7])  # while it may be half deleted
    session = other.open("collect", by="test")
    finished = collection.finish(other, session, ground.contents)
    session.close()
    assert (finished is not None) == (place in DELETING)
    ground.collect(other, MANY)

    assert all(map(ground.restores, [*kept, meanwhile]))
    assert ground.contents.records.names(first) is None
    assert not ground.holds(2)
    assert list(ground.store.list("collections/")) == []


def test_a_log_restored_from_an_earlier_state_deletes_nothing(ground: Ground) -> None:
    node = ground.node()
    kept = ground.backup(node, [1])
    before = ground.log.restored(len(ground.log.entries))
    late = ground.backup(node, [2])

    for old in (before, MemoryLog()):
        behind = ground.node("b", old)
        with pytest.raises(JournalError) as refused:
            behind.open("collect", by="test")
        assert refused.value.code == "journal-behind"
    assert ground.restores(kept)
    assert ground.restores(late)


def test_a_log_that_lost_a_seal_and_grew_on_deletes_nothing(ground: Ground) -> None:
    node = ground.node()
    writer = begin(node)
    writer.put([1])
    before = ground.log.restored(len(ground.log.entries))
    point = writer.seal()
    other = ground.node("b", before)
    other.fence(writer.session.id, "test", "test")  # its ordinal is that of the seal
    assert before.entries[-1].ordinal == ground.log.entries[-1].ordinal

    with pytest.raises(JournalError) as refused:
        ground.collect(other)
    assert refused.value.code == "journal-behind"
    assert ground.restores(point)


def test_a_log_that_lacks_the_session_of_a_record_deletes_nothing(ground: Ground) -> None:
    """The witness is of an earlier event here: the record alone tells."""
    node = ground.node()
    ground.drop(node, ground.backup(node, [1]))
    elsewhere = ground.log.restored(len(ground.log.entries))
    alone = ground.node("alone", elsewhere)
    writer = begin(alone)  # believes itself alone, on a log of its own
    writer.put([2])
    writer.record()
    ground.backup(node, [3])

    with pytest.raises(JournalError) as refused:
        ground.collect(node)
    assert refused.value.code == "journal-behind"
    assert writer.session.id in refused.value.message


def test_a_log_that_changed_under_a_running_node_is_noticed(ground: Ground) -> None:
    node = ground.node()
    ground.backup(node, [1])
    del ground.log.entries[1:]
    with pytest.raises(JournalError):
        node.fresh_ledger()


def test_a_node_that_cannot_see_the_log_deletes_nothing(ground: Ground) -> None:
    sees = True
    node = Sessions(MemoryJournal(ground.log, "main", lambda: sees), ground.store, "a", lease_ticks=2)
    ground.drop(node, ground.backup(node, [1]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    sees = False
    with pytest.raises(JournalError):
        collection.execute(node, collector, ground.contents, proposal)
    assert ground.holds(1)


def test_leases_run_out_by_one_tickers_count_and_not_by_a_clock(ground: Ground) -> None:
    node, other, third = ground.node(), ground.node("b"), ground.node("c")
    writer = begin(other)
    moment = 0.0
    tickers = [(s, Ticker(60, lambda: moment)) for s in (node, third)]
    for _ in range(10):  # asked often, and the wall clock runs on: no time has passed
        assert not any(ticker.turn([s]) for s, ticker in tickers)
    moment += 61
    assert all(ticker.turn([s]) for s, ticker in tickers)  # two tickers, one tick each
    assert node.fence_expired("test") == []
    moment += 61
    tickers[0][1].turn([node])
    assert node.fence_expired("test") == [writer.session.id]


def test_a_node_that_ticks_keeps_its_sessions_and_a_new_run_of_it_does_not(ground: Ground) -> None:
    node, other = ground.node(), ground.node("b")
    writer = begin(other)
    for number in range(5):
        node.tick("n", number, 1)
        other.tick("o", number, 1)
    assert node.fence_expired("test") == []
    again = ground.node("b")
    assert [s.opened.session for s in again.leftovers()] == [writer.session.id]
    for number in range(2):
        again.tick("p", number, 1)
    assert again.fence_expired("test") == [writer.session.id]


def test_a_run_that_finds_a_durable_record_of_its_predecessor_seals_it(ground: Ground) -> None:
    writer = begin(ground.node())
    writer.put([1])
    writer.record()

    again = ground.node()
    session = again.take_over(writer.session.id, "test")
    taken = Writer(again, session, writer.absent, {}, point=writer.point, needed=writer.needed)
    assert taken.seal() == writer.point
    session.close()

    assert list(again.ledger().standing()) == [writer.point]


def test_the_delay_is_ticks_and_a_wall_clock_can_only_make_it_longer(ground: Ground) -> None:
    rules = Rules(delay_ticks=2, delay_us=3_600_000_000)
    now = 1_000_000
    node = Sessions(MemoryJournal(ground.log, "main"), ground.store, "a", lease_ticks=9, clock=lambda: now)
    ground.drop(node, ground.backup(node, [1]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents, rules)
    assert proposal is not None

    now += 10 * rules.delay_us  # jumps ahead
    assert collection.waits_for(node, proposal, rules) == ["2 more ticks of the delay"]
    node.tick("t", 1, 1)
    node.tick("t", 2, 1)
    now = 1  # jumps back
    (waits,) = collection.waits_for(node, proposal, rules)
    assert "seconds" in waits
    now = 1_000_000 + 2 * rules.delay_us
    assert collection.waits_for(node, proposal, rules) == []
    now = 1
    assert collection.waits_for(node, proposal, NEVER) == [], "no delay, no clock"


@pytest.mark.parametrize("release", ["earlier", "this"])
def test_a_list_that_is_damaged_is_not_believed(ground: Ground, monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    if release == "earlier":  # the log had no ids of packs
        monkeypatch.setattr(collection, "ids_of", lambda _plan: b"")
    node = ground.node()
    ground.drop(node, ground.backup(node, [1]))
    kept = ground.backup(node, [2])
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    with monkeypatch.context() as patched:
        patched.setattr(collection, "failpoint", dies_at("collection-executing"))
        with pytest.raises(Died):
            collection.execute(node, collector, ground.contents, proposal)
    collector.close()
    (name,) = [f.name for f in ground.store.list("collections/") if ".executing." in f.name]
    (victim,) = [p for p in ground.contents.packs() if ground.contents.frames(p)[0] == chunk(2)]
    forged = ground.store.read(name).replace(proposal.plan.packs[0][0].hex().encode(), victim.id.hex().encode())
    ground.store.put(name, forged)
    for other in [f.name for f in ground.store.list("collections/") if ".proposed." in f.name]:
        ground.store.delete(other)

    careful = begin(ground.node("b"))
    assert careful.absent.everything == (release == "earlier")
    assert all(pack in careful.absent for pack, _, _ in proposal.plan.packs)
    careful.session.close()
    session = node.open("collect", by="test")
    ended = collection.finish(node, session, ground.contents)
    assert ended is not None
    session.close()
    if release == "this":
        assert (ended["packs_deleted"], ended["records_deleted"]) == (1, 1)
        assert ground.restores(kept)
        assert not ground.holds(1)
        assert [f.name for f in ground.store.list("collections/")] == []
        return
    assert (ended["packs_deleted"], ended["list_lost"]) == (0, 1)
    assert ground.restores(kept)
    assert ground.holds(1)
    after = begin(ground.node("b"))
    assert not after.absent.everything
    after.session.close()
    figures = ground.collect(node)
    assert figures is not None, "collecting goes on"
    assert not ground.holds(1)
    assert ground.restores(kept)


def test_who_is_deleting_stops_when_somebody_ended_the_collection_whose_list_was_lost(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier release: between his look and his deleting there is a moment."""
    monkeypatch.setattr(collection, "ids_of", lambda _plan: b"")
    node, other = ground.node(), ground.node("b")
    ground.drop(node, ground.backup(node, [1]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    sealed = []

    def meanwhile(place: str) -> None:
        if place != "collection-forgotten":
            return
        monkeypatch.setattr(collection, "failpoint", lambda _place: None)
        other.fence(collector.id, "it is too slow", "test")
        for folder in ("collections/", "tombstones/"):
            for file in list(ground.store.list(folder)):
                ground.store.delete(file.name)
        session = other.open("collect", by="test")
        assert collection.finish(other, session, ground.contents)
        session.close()
        sealed.append(ground.backup(other, [1]))  # builds on what was to be deleted

    monkeypatch.setattr(collection, "failpoint", meanwhile)
    with pytest.raises(CollectionError, match="collection-over"):
        collection.execute(node, collector, ground.contents, proposal)
    assert ground.restores(sealed[0])


def test_who_deletes_late_by_a_list_that_was_lost_deletes_nothing_that_was_built_since(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He has looked whether the collection goes on, and sleeps before he deletes: as long as it takes others to end it, and to
    store the same again."""
    node, other = ground.node(), ground.node("b")
    for content in (1, 2):
        ground.drop(node, ground.backup(node, [content]))
    collector = node.open("collect", by="test")
    proposal = collection.propose(node, collector, ground.contents)
    assert proposal is not None
    delete, sealed = ground.store.delete, list[str]()

    def late(name: str) -> None:
        if name.startswith("packs/") and not sealed:
            monkeypatch.setattr(ground.store, "delete", delete)
            other.fence(collector.id, "it is too slow", "test")
            for folder in ("collections/", "tombstones/"):
                for file in list(ground.store.list(folder)):
                    delete(file.name)
            session = other.open("collect", by="test")
            assert collection.finish(other, session, ground.contents)
            session.close()
            sealed.append(ground.backup(other, [1, 2]))
        delete(name)

    monkeypatch.setattr(ground.store, "delete", late)
    with contextlib.suppress(CollectionError):
        collection.execute(node, collector, ground.contents, proposal)
    assert ground.restores(sealed[0])
    assert list(node.ledger().standing()) == sealed


def test_no_more_packs_go_at_a_time_than_an_event_names(ground: Ground) -> None:
    node = ground.node()
    for content in range(5):
        ground.drop(node, ground.backup(node, [content]))
    figures = ground.collect(node, Rules(live_share=0.0, packs=2))
    assert figures is not None
    assert (figures["packs_deleted"], figures["left_packs"], figures["records_deleted"]) == (2, 3, 5)
    again = ground.collect(node, NEVER)
    assert again is not None
    assert (again["packs_deleted"], again["left_packs"], again["packs_bytes"]) == (3, 0, 0)


def test_packs_of_the_log_before_an_adoption_are_collected_at_once(ground: Ground) -> None:
    before = ground.node()
    for content in range(9):
        ground.backup(before, [content])
    abandoned = begin(before)
    abandoned.put([77])
    fresh = ground.node("b", MemoryLog())
    adopting = fresh.open("adopt", by="test")
    sessions.bear_witness(ground.store, adopting.epoch, adopting.entry, generation=1)
    adopting.close()
    assert max(pack.epoch for pack in ground.contents.packs()) > fresh.ledger().head + 5
    for name in list(ground.store.list("points")):
        ground.store.delete(name.name)  # what the adoption did not take
    collector = fresh.open("collect", by="test")
    proposal = collection.propose(fresh, collector, ground.contents)
    assert proposal is not None
    under_way = begin(fresh)
    under_way.put([5, 88])

    figures = collection.execute(fresh, collector, ground.contents, proposal)

    assert figures["packs_deleted"] >= 9
    assert not ground.holds(77)
    assert ground.restores(under_way.seal()), "what is being written now is nobody's garbage"


def test_witnesses_are_few_and_of_the_newest_generation(ground: Ground) -> None:
    node = ground.node()
    for content in range(9):
        ground.backup(node, [content])
    assert 1 <= len(sessions.witnesses(ground.store)) <= 4
    sessions.bear_witness(ground.store, 1, ground.log.entries[0].id, generation=7)
    assert [(w.generation, w.ordinal) for w in sessions.witnesses(ground.store)] == [(7, 1)]


def test_a_ledger_is_read_while_another_thread_moves_it_on() -> None:
    ledger = Ledger()

    class Meanwhile:
        """A point, in the moment of whose reading another one is sealed."""

        @property
        def dropped(self) -> None:
            ledger.points[f"{len(ledger.points)}"] = self  # type: ignore[assignment]

    for number in range(2):
        ledger.points[f"{number}"] = Meanwhile()  # type: ignore[assignment]
    assert list(ledger.standing()) == ["0", "1"]
    assert ledger.roots() >= {"0", "1"}
