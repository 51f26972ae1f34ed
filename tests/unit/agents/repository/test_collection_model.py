"""Collection under random interleavings, against a model that says what must be readable.

Three nodes on one log and one store back up, restore, drop, star, tick, fence, collect; any of them dies at any failpoint of a
collection, loses sight of the log, comes back as a zombie that goes on with what it had, or meets a clock that jumps. The model
knows only what callers were told: a point whose `seal` returned and that nobody dropped restores; whoever was let in to read, and
was not fenced, can read; a point whose `seal` failed is not there. After every step all of it is looked at; at the end
everything is dropped, and nothing may be left in the store. At any time the log may turn out to be an older state of itself: then
a collection may do what it likes, and must not lose a point.

That it can fail was tried by breaking the protocol, one way after another (docs/design.md, "What the model catches").
HOLDFAST_MODEL_EXAMPLES and HOLDFAST_MODEL_STEPS make it run longer than it does in CI.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agents.errors import AgentError
from agents.repository import collection, journal, sessions
from agents.repository.collection import Proposal, Rules
from agents.repository.journal import JournalError, MemoryJournal, MemoryLog
from agents.repository.ledger import CollectionState
from agents.repository.sessions import Session, Sessions
from agents.repository.stores.memory import MemoryStore
from streams.events import PointDropped, PointMarked
from streams.ids import uuid7
from tests.stand_ins import toy_repository
from tests.stand_ins.toy_repository import ToyContents, Writer, begin

EXAMPLES = int(os.environ.get("HOLDFAST_MODEL_EXAMPLES", "150"))
STEPS = int(os.environ.get("HOLDFAST_MODEL_STEPS", "30"))
T = TypeVar("T")
NODES = st.integers(0, 2)
PICK = st.integers(0, 1 << 16)
CONTENTS = st.lists(st.integers(0, 4), min_size=1, max_size=3)
OFTEN = st.sampled_from([True, True, True, False])
DEATHS = st.sampled_from([0, 0, 0, 0, *range(1, 13)])
RULES = Rules(live_share=0.7)


class Died(BaseException):
    """The process is gone: nothing of what would follow happens."""


class Mortal:
    """In place of `failpoint`: at one visit the process dies, at another somebody else does something."""

    def __init__(self) -> None:
        self.disarm()

    def arm(self, dies: int, meanwhile: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self._dies, self._meanwhile, self._act = dies, meanwhile, act

    def disarm(self) -> None:
        self.arm(0)

    def __call__(self, _name: str) -> None:
        self._dies -= 1
        self._meanwhile -= 1
        if self._meanwhile == 0:
            self._act()
        if self._dies == 0:
            raise Died


@dataclass
class Reader:
    session: Session
    point: str
    names: list[bytes]


@dataclass
class Collecting:
    session: Session
    proposal: Proposal | None = None
    state: CollectionState | None = None  # what it was deleting when it died


@dataclass
class Node:
    sessions: Sessions
    sees: bool = True
    writers: list[Writer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    collecting: list[Collecting] = field(default_factory=list)


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = MemoryLog()
        self.store = MemoryStore()
        self.contents = ToyContents(self.store)
        self.now = 1_000_000_000
        self.mortal = Mortal()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(collection, "failpoint", self.mortal)
        self.nodes = [self.new_node(i) for i in range(3)]
        self.watcher = Sessions(MemoryJournal(self.log, "main"), self.store, "watcher")
        self.ticks = 0
        self.must: dict[str, list[bytes]] = {}  # points that restore
        self.never: set[str] = set()  # their seal failed
        self.fenced: set[str] = set()
        self.kept: set[str] = set()  # starred, known to the log

    def new_node(self, number: int) -> Node:
        def sees() -> bool:
            return not hasattr(self, "nodes") or self.nodes[number].sees

        journal = MemoryJournal(self.log, "main", sees)
        return Node(Sessions(journal, self.store, "abc"[number], lease_ticks=2, clock=lambda: self.now))

    def teardown(self) -> None:
        try:
            self.everything_goes_when_everything_is_dropped()
        finally:
            self.patched.undo()

    # -- backups

    @rule(number=NODES, pick=PICK, continues=st.booleans())
    def begin_backup(self, number: int, pick: int, continues: bool) -> None:
        node = self.nodes[number]
        standing = sorted(self.must)
        base = standing[pick % len(standing)] if continues and standing else ""
        try:
            writer = begin(node.sessions, base)
        except JournalError:
            return
        if base:  # an incremental: what the earlier point needs is needed, and not looked up again
            writer.needed += self.must[base]
        node.writers.append(writer)

    @precondition(lambda self: self.writers())
    @rule(pick=PICK, contents=CONTENTS)
    def write(self, pick: int, contents: list[int]) -> None:
        _, writer = self.some(self.writers(), pick)
        if not writer.point:
            writer.put(contents)

    @precondition(lambda self: self.writers())
    @rule(pick=PICK)
    def record(self, pick: int) -> None:
        """What a seal does first."""
        _, writer = self.some(self.writers(), pick)
        if not writer.point:
            writer.record()

    @precondition(lambda self: self.writers())
    @rule(pick=PICK)
    def seal(self, pick: int) -> None:
        node, writer = self.some(self.writers(), pick)
        node.writers.remove(writer)
        try:
            point = writer.seal()
        except JournalError:
            self.never.add(writer.point)
            return
        except AgentError:
            self.never.add(writer.point)
            assert writer.session.id in self.fenced, "an open session could not seal"
            return
        assert writer.session.id not in self.fenced, "a fenced session sealed a point"
        self.must[point] = list(writer.needed)
        self.close(writer.session)

    @rule(number=NODES, contents=CONTENTS)
    def back_up(self, number: int, contents: list[int]) -> None:
        """From end to end."""
        node = self.nodes[number]
        try:
            writer = begin(node.sessions)
            writer.put(contents)
            self.must[writer.seal()] = list(writer.needed)
        except JournalError:
            return
        self.close(writer.session)

    @precondition(lambda self: self.writers())
    @rule(pick=PICK, recorded=st.booleans())
    def end_without_a_point(self, pick: int, recorded: bool) -> None:
        """Given up, or dead between the record and the event."""
        node, writer = self.some(self.writers(), pick)
        node.writers.remove(writer)
        if recorded and not writer.point:
            writer.record()
        self.never.add(writer.point)
        if not recorded:
            self.close(writer.session)

    # -- readers

    @rule(number=NODES, pick=PICK)
    def begin_or_end_a_restore(self, number: int, pick: int) -> None:
        node = self.nodes[number]
        if node.readers:
            self.close(node.readers.pop().session)
        elif self.must:
            point = sorted(self.must)[pick % len(self.must)]
            with contextlib.suppress(JournalError):
                session = node.sessions.open("restore", by="model", pins=[point])
                node.readers.append(Reader(session, point, self.must[point]))

    # -- points

    @precondition(lambda self: self.must)
    @rule(number=NODES, pick=PICK, all_of_them=st.booleans())
    def drop(self, number: int, pick: int, all_of_them: bool) -> None:
        points = sorted(self.must)
        for point in points if all_of_them else [points[pick % len(points)]]:
            event = PointDropped(repository="main", point=point, reason="model", dropped_us=self.now, by="model")
            try:
                self.nodes[number].sessions.say(event, witness=True)
            except JournalError:
                return
            if point not in self.kept:
                del self.must[point]

    # -- time and trouble

    @rule(number=NODES, times=st.integers(1, 3))
    def time_passes(self, number: int, times: int) -> None:
        node = self.nodes[number]
        with contextlib.suppress(JournalError):
            for _ in range(times):
                self.ticks += 1
                node.sessions.tick(f"ticker {number}", self.ticks, 60_000_000)
            self.fenced.update(node.sessions.fence_expired("model"))

    @rule(number=NODES, trouble=st.sampled_from(["restart", "cut off", "clock", "star"]), by=PICK)
    def trouble(self, number: int, trouble: str, by: int) -> None:
        for node in self.nodes:
            node.sees = True
        old = self.nodes[number]
        if trouble == "restart":  # what was under way goes on as a zombie's: the new run does not speak for it
            fresh = self.new_node(number)
            fresh.writers, fresh.readers, fresh.collecting = old.writers, old.readers, old.collecting
            self.nodes[number] = fresh
        elif trouble == "clock":
            self.now = max(1, self.now + (by - (1 << 15)) * 10**12)
        elif trouble == "star" and self.must:
            self.star(old.sessions, sorted(self.must)[by % len(self.must)])
        elif trouble == "cut off":
            old.sees = False

    def star(self, sessions: Sessions, point: str) -> None:
        mark = "unstar" if point in self.kept else "star"
        event = PointMarked(repository="main", point=point, mark=mark, number=1, marked_us=self.now, by="model")
        with contextlib.suppress(JournalError):
            sessions.say(event, witness=True)
            self.kept ^= {point}

    # -- collections

    @rule(number=NODES, dies=DEATHS, meanwhile=DEATHS, contents=CONTENTS)
    def collect(self, number: int, dies: int, meanwhile: int, contents: list[int]) -> None:
        """Open, carry on what is there, propose. The session stays open for `execute`."""
        node = self.nodes[number]
        try:
            collecting = Collecting(node.sessions.open("collect", by="model"))
        except AgentError:
            return
        node.collecting.append(collecting)
        self.mortal.arm(dies, meanwhile, lambda: self.somebody_acts(number + 1, contents))
        try:
            collection.finish(node.sessions, collecting.session, self.contents)
            collecting.proposal = collection.propose(node.sessions, collecting.session, self.contents, RULES)
        except Died:
            self.died(collecting)
        except AgentError:
            pass
        finally:
            self.mortal.disarm()
        if collecting.proposal is None and collecting.state is None:
            node.collecting.remove(collecting)
            self.close(collecting.session)

    @precondition(lambda self: any(n.collecting for n in self.nodes))
    @rule(pick=PICK, dies=DEATHS, meanwhile=DEATHS, contents=CONTENTS)
    def execute(self, pick: int, dies: int, meanwhile: int, contents: list[int]) -> None:
        node, collecting = self.some([(n, c) for n in self.nodes for c in n.collecting], pick)
        sessions = collecting.session.sessions
        self.mortal.arm(dies, meanwhile, lambda: self.somebody_acts(pick, contents))
        try:
            if collecting.state is not None:  # a zombie wakes up in the midst of deleting
                collection._delete(sessions, collecting.session, self.contents, collecting.state)
            elif collecting.proposal is not None:
                collection.execute(sessions, collecting.session, self.contents, collecting.proposal, RULES)
        except Died:
            self.died(collecting)
            return
        except AgentError as error:
            if error.code in ("collection-waits", "journal-unreachable"):
                return
        finally:
            self.mortal.disarm()
        node.collecting.remove(collecting)
        self.close(collecting.session)

    @rule(
        data=st.data(),
        number=NODES,
        contents=CONTENTS,
        quiet=OFTEN,
        early=OFTEN,
        acts=st.lists(st.sampled_from(["begin", "write", "finish", "seal", "read", "time"]), min_size=1, max_size=6),
        dies=DEATHS,
        meanwhile=DEATHS,
        seals=st.integers(0, 3),
    )
    def collect_amid_others(
        self,
        data: st.DataObject,
        number: int,
        contents: list[int],
        quiet: bool,
        early: bool,
        acts: list[str],
        dies: int,
        meanwhile: int,
        seals: int,
    ) -> None:
        """A collection whose wait is full of what others do: what the protocol is there for, and chance alone seldom makes."""
        while quiet and self.writers():
            self.end_without_a_point(0, False)
        self.back_up(number, contents)
        if early:
            self.begin_backup(data.draw(NODES), 0, not data.draw(OFTEN))
            if self.writers() and not data.draw(OFTEN):
                self.write(0, contents)
                self.record(0)
        if self.must:
            self.drop(number, -1, data.draw(st.booleans()))
        self.collect(number, dies, meanwhile, contents)
        for act in acts:
            if act == "begin":
                self.begin_backup(data.draw(NODES), data.draw(PICK), data.draw(st.booleans()))
            elif act == "read":
                self.begin_or_end_a_restore(data.draw(NODES), data.draw(PICK))
            elif act == "time":
                self.time_passes(data.draw(NODES), 3)
            elif self.writers() and act == "write":
                self.write(data.draw(PICK), contents)
            elif self.writers():
                if act == "finish":
                    self.write(0, contents)
                self.seal(0)
        if any(n.collecting for n in self.nodes):
            self.execute(-1, dies, meanwhile, contents)
        for _ in range(seals):
            if self.writers():
                self.seal(0)

    @rule()
    def lists_are_lost(self) -> None:
        for folder in ("collections/", "tombstones/"):
            for file in list(self.store.list(folder)):
                self.store.delete(file.name)

    def somebody_acts(self, number: int, contents: list[int]) -> None:
        """Between two steps of a collector: begin, write, record or seal, whatever comes next on that node."""
        node = self.nodes[number % len(self.nodes)]
        if not node.writers:
            self.begin_backup(number % len(self.nodes), 0, False)
            return
        writer = node.writers[0]
        if not writer.needed:
            writer.put(contents)
        elif not writer.point:
            writer.record()
        else:
            self.seal([w for _, w in self.writers()].index(writer))

    def died(self, collecting: Collecting) -> None:
        """It may come back. Its session is open until somebody fences it."""
        self.mortal.disarm()
        active = collecting.session.sessions.ledger().active() if self.reachable(collecting) else None
        collecting.state = active if active is not None and active.state == "executing" else None

    # -- what must be

    @invariant()
    def what_was_sealed_restores_and_who_reads_can_go_on(self) -> None:
        held = self.contents.held()
        for point, names in self.must.items():
            assert self.contents.records.names(point) is not None, f"the record of {point} is gone"
            assert held.issuperset(names), f"{point} does not restore any more"
        for reader in (r for n in self.nodes for r in n.readers):
            if reader.session.id not in self.fenced:
                assert held.issuperset(reader.names), f"{reader.point} vanished under a restore"

    @invariant()
    def the_log_has_just_these_points(self) -> None:
        standing = self.watcher.ledger().standing()
        assert set(standing) == set(self.must)
        assert not self.never & set(standing)

    @rule(share=st.floats(0, 1))
    def an_older_state_of_the_log_loses_nothing(self, share: float) -> None:
        """On copies of log and store: fence all, collect twice, and look."""
        log = self.log.restored(int(len(self.log.entries) * share))
        store = MemoryStore()
        for file in self.store.list():
            store.create(file.name, [self.store.read(file.name)])
        sessions = Sessions(MemoryJournal(log, "main"), store, "old", lease_ticks=2, clock=lambda: self.now)
        contents = ToyContents(store)
        for _ in range(2):
            try:
                collect_everything(sessions, contents)
            except AgentError:
                continue
        held = contents.held()
        for point, names in self.must.items():
            assert contents.records.names(point) is not None, f"an older log cost the record of {point}"
            assert held.issuperset(names), f"an older log cost {point}"

    def everything_goes_when_everything_is_dropped(self) -> None:
        """Collection is no use if it leaves things."""
        sessions = Sessions(MemoryJournal(self.log, "main"), self.store, "last", lease_ticks=2, clock=lambda: self.now)
        for point in self.must:
            for mark in ("unstar",):
                sessions.say(
                    PointMarked(repository="main", point=point, mark=mark, number=2, marked_us=self.now, by="model")
                )
            sessions.say(PointDropped(repository="main", point=point, reason="end", dropped_us=self.now, by="model"))
        for _ in range(2):
            collect_everything(sessions, self.contents)
        left = [f.name for f in self.store.list() if f.name.startswith(("packs/", "points", "collections/"))]
        assert left == []

    # -- parts

    def writers(self) -> list[tuple[Node, Writer]]:
        return [(n, w) for n in self.nodes for w in n.writers]

    def some(self, choices: list[T], pick: int) -> T:
        return choices[pick % len(choices)]

    def close(self, session: Session) -> None:
        try:
            session.close()
        except JournalError:
            return

    def reachable(self, collecting: Collecting) -> bool:
        try:
            collecting.session.sessions.ledger()
        except JournalError:
            return False
        return True


def collect_everything(sessions: Sessions, contents: ToyContents) -> None:
    """Fence whoever is there, then collect."""
    for state in sessions.ledger().open_sessions():
        sessions.fence(state.opened.session, "model", "model")
    session = sessions.open("collect", by="model")
    try:
        collection.finish(sessions, session, contents)
        proposal = collection.propose(sessions, session, contents, RULES)
        if proposal is not None:
            collection.execute(sessions, session, contents, proposal, RULES)
    finally:
        session.close()


def test_whatever_happens_in_whatever_order_nothing_that_is_needed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ids of one millisecond sort at random, and what is replayed must be what was played.
    moments = itertools.count(1)
    for module in (collection, journal, sessions, toy_repository):
        monkeypatch.setattr(module, "uuid7", lambda: uuid7(next(moments)))
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,  # a run of CI finds what it finds; longer ones are made by hand
            suppress_health_check=list(HealthCheck),
        ),
    )
