"""Sessions of a repository as a node has them: opened, renewed, closed, fenced; and whether the log may be believed.

    node                                  log (ordinals)
    open(backup)   ── session.opened ──>  41         counts once read back: 41 is its epoch, and names its packs
    …              ── ticked ──────────>  42, 43     every interval, by the monotonic clock; names the node's own sessions
    seal(point)    ── point.sealed ────>  44         after the record is durable; valid if 41 was open at 44
                   -- witness 44 in the store --
    close          ── session.closed ──>  45

A node that dies, or loses sight of the log, ticks no more. When another ticker has counted the lease out, whoever needs to go on
says `session.fenced`; what the session says after that does not count, and its packs are garbage of an epoch that is over.

**Is this the log that the repository was written under?** Kafka may have been restored from an old state, or be another one. Two
things in the store tell: a point record names (ordinal, id) of its `session.opened`, and a *witness*, a small file that names
(ordinal, id) of the last thing that must not be forgotten (a seal, a drop, a mark, the beginning of a deletion). A log that
lacks one of them is `journal-behind`: nothing may be deleted under it, and nothing be written. Adopting the repository puts
that right.

    witness/<generation, 8 hex>-<ordinal, 16 hex>-<event id>     JSON; those of the highest generation count, adoption raises it

A death between the event and its witness leaves an event nobody was told of, and the witness before it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository.journal import BEHIND, Entry, Journal, JournalError
from agents.repository.ledger import Ledger, SessionState
from agents.repository.stores import EXISTS, Store, StoreError
from streams.events import Event, PointSealed, Problem, SessionClosed, SessionFenced, SessionOpened, Ticked
from streams.ids import now_us, uuid7

LOST: Final = "session-lost"
REFUSED: Final = "session-refused"
LEASE_TICKS: Final = 5
TICK_S: Final = 60.0
_WITNESSES: Final = 3  # kept of a generation
_WITNESS = re.compile(r"witness/([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f-]{36})")


class SessionError(AgentError):
    """`session-refused`: the log did not take it. `session-lost`: it was fenced or closed, and what it did since is void."""


@dataclass(frozen=True, slots=True)
class PointHead:
    """What a point record says of its making: session, the ordinal of its `session.opened` (the epoch) and that entry's id."""

    point: str
    session: str
    epoch: int
    entry: str


class Records(Protocol):
    """The point records of a repository."""

    def listed(self) -> Iterator[str]:
        """Ids of the points that have a record, whatever their worth."""

    def head(self, point: str) -> PointHead | None:
        """None when the record is gone or no copy of it can be read."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What the log must have: the event `id` at `ordinal`."""

    generation: int
    ordinal: int
    id: str

    @property
    def name(self) -> str:
        return f"witness/{self.generation:08x}-{self.ordinal:016x}-{self.id}"


class Sessions:
    """One node's dealings with the log of one repository. Safe to call from several threads; holds nothing open."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        node: str,
        *,
        lease_ticks: int = LEASE_TICKS,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.journal = journal
        self.store = store
        self.node = node
        self.clock = clock
        self._lease_ticks = lease_ticks
        self._ledger = Ledger()
        self._lock = threading.RLock()
        self._held: set[str] = set()

    @property
    def repository(self) -> str:
        return self.journal.repository

    def ledger(self) -> Ledger:
        """What the log says now. Not to be changed; it moves on with every call. Raises `JournalError`."""
        with self._lock:
            return self._ledger.apply(self.journal.read(self._ledger.head))

    def fresh_ledger(self) -> Ledger:
        """The same from the log itself, nothing remembered. Raises `JournalError` (`journal-changed`) when what had been read
        before is not what stands there."""
        with self._lock:
            fresh = Ledger().apply(self.journal.read(0))
            if not fresh.agrees(self._ledger):
                raise JournalError(
                    "journal-changed",
                    f"the log of {self.repository} is not the one that was read before",
                    "was Kafka restored from an earlier state? adopt the repository again",
                )
            self._ledger = fresh
            return fresh

    def say(self, event: Event, *, witness: bool = False) -> Entry:
        """Append `event` and read it back. `witness`: it must not be forgotten. Raises `JournalError`, `StoreError`.

        Under a log that is behind nothing gets a witness: it would pass for the repository's log by that alone.
        """
        if witness:
            self.prove(self.ledger())
        with self._lock:
            entry = self.journal.append(event)
            self.ledger()
        if witness:
            failpoint("session-said")
            bear_witness(self.store, entry.ordinal, entry.id)
        return entry

    def counted(self, entry: Entry) -> bool:
        """Whether the event that stands there changed anything (see `agents.repository.ledger`)."""
        return entry.ordinal not in self.ledger().ignored

    def prove(self, ledger: Ledger, records: Records | None = None) -> None:
        """Refuse a log that lacks what the repository's files name. Raises `JournalError` (`journal-behind`)."""
        for witness in witnesses(self.store):
            # Another node may have written it since the log was read.
            if not ledger.has(witness.ordinal, witness.id) and not self.ledger().has(witness.ordinal, witness.id):
                raise behind(f"the event {witness.id} at {witness.ordinal}, of which the repository has a witness")
        if records is None:
            return
        for point in records.listed():
            if point in ledger.points:
                continue
            head = records.head(point)
            if head is not None and not ledger.has(head.epoch, head.entry):
                raise behind(f"the session {head.session}, opened at {head.epoch}, that made point {point}")

    def open(
        self, kind: str, *, by: str, asset: str = "", pins: Iterable[str] = (), job: str = "", lease_ticks: int = 0
    ) -> Session:
        """Begin a session; it counts when this returns. A backup pins the point that it continues.

        Raises `SessionError` (`session-refused`), `JournalError`. Writers and collectors are refused under a log that is behind.
        """
        ledger = self.ledger()
        if kind in ("backup", "collect"):
            self.prove(ledger)
        session = uuid7()
        event = SessionOpened(
            repository=self.repository,
            session=session,
            kind=kind,
            node=self.node,
            asset=asset,
            pins=tuple(pins),
            lease_ticks=lease_ticks or self._lease_ticks,
            seen=ledger.head,
            job=job,
            opened_us=self.clock(),
            by=by,
        )
        with self._lock:
            self._held.add(session)
        try:
            entry = self.say(event)
        except JournalError:
            self._let_go(session)  # should the event come into the log yet, its lease runs out
            raise
        state = self.ledger().sessions[session]
        if not state.open:
            self._let_go(session)
            raise SessionError(REFUSED, f"no {kind} session of {self.repository}: {state.refusal or state.how}")
        failpoint("session-opened")
        return Session(self, session, entry, by)

    def tick(self, ticker: str, number: int, interval_us: int) -> Entry:
        """Say that an interval has passed, and which sessions of this node go on."""
        with self._lock:
            held = tuple(sorted(self._held))
        return self.say(
            Ticked(
                repository=self.repository,
                node=self.node,
                ticker=ticker,
                number=number,
                interval_us=interval_us,
                sessions=held,
                at_us=self.clock(),
            )
        )

    def fence(self, session: str, reason: str, by: str) -> None:
        """End somebody's session. One that has ended already is left alone."""
        state = self.ledger().sessions.get(session)
        if state is None or not state.open:
            return
        self.say(
            SessionFenced(repository=self.repository, session=session, reason=reason, fenced_us=self.clock(), by=by)
        )

    def fence_expired(self, by: str) -> list[str]:
        """Fence every session whose lease has run out; which ones."""
        expired = [s.opened.session for s in self.ledger().open_sessions() if s.expired]
        for session in expired:
            self.fence(session, "its node has not spoken for it while its lease ran out", by)
        return expired

    def leftovers(self) -> list[SessionState]:
        """Open sessions of this node that this process does not hold: of a run that died. For the owner of the node's lock."""
        with self._lock:
            return [
                s
                for s in self.ledger().open_sessions()
                if s.opened.node == self.node and s.opened.session not in self._held
            ]

    def take_over(self, session: str, by: str) -> Session:
        """Go on with an open session of a run of this node that died: to seal what was durable, or to close it."""
        state = self.ledger().sessions[session]
        if not state.open or state.opened.node != self.node:
            raise SessionError(LOST, f"session {session} is not open, or not of this node")
        with self._lock:
            self._held.add(session)
        return Session(self, session, Entry(state.epoch, state.id, state.opened), by)

    def _let_go(self, session: str) -> None:
        with self._lock:
            self._held.discard(session)


class Session:
    """An open session. `epoch` numbers it among the repository's for all time; `entry` is the id of its `session.opened`."""

    def __init__(self, sessions: Sessions, session: str, opened: Entry, by: str) -> None:
        self.sessions = sessions
        self.id = session
        self.epoch = opened.ordinal
        self.entry = opened.id
        self.by = by

    def state(self) -> SessionState:
        return self.sessions.ledger().sessions[self.id]

    def check(self) -> None:
        """Raises `SessionError` (`session-lost`) when it is over."""
        state = self.state()
        if not state.open:
            self.sessions._let_go(self.id)
            raise SessionError(
                LOST,
                f"session {self.id} was {state.how} at {state.ended}",
                "nothing that it wrote counts unless it was sealed before; begin again",
            )

    def seal(self, event: PointSealed) -> Entry:
        """Say that a point exists whose record is durable. Raises `SessionError` (`session-lost`): then it does not."""
        entry = self.sessions.say(event, witness=True)
        point = self.sessions.ledger().points.get(event.point)
        if point is None or point.sealed.session != self.id:
            self.check()
            raise SessionError(LOST, f"the log did not take point {event.point} of session {self.id}")
        return entry

    def close(
        self,
        outcome: str = "done",
        *,
        points: Iterable[str] = (),
        figures: Mapping[str, int] | None = None,
        problems: Iterable[Problem] = (),
    ) -> None:
        """End it. One that was fenced meanwhile is left so. May be called twice."""
        self.sessions._let_go(self.id)
        if not self.state().open:
            return
        self.sessions.say(
            SessionClosed(
                repository=self.sessions.repository,
                session=self.id,
                outcome=outcome,
                points=tuple(points),
                figures=dict(figures or {}),
                problems=tuple(problems),
                closed_us=self.sessions.clock(),
                by=self.by,
            )
        )


class Ticker:
    """Says that time has passed, for the repositories of a node, while any has an open session or a collection under way.

    Paced by the monotonic clock alone: a wall clock that jumps makes no tick come earlier, and a machine that slept ticks once.
    """

    def __init__(self, interval_s: float = TICK_S, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.id = uuid7()
        self.interval_s = interval_s
        self._monotonic = monotonic
        self._last = monotonic()
        self._number = 0

    def turn(self, repositories: Iterable[Sessions]) -> bool:
        """Tick if it is time; whether it was. Raises `JournalError` when a log cannot be seen: the next turn tries again."""
        now = self._monotonic()
        if now - self._last < self.interval_s:
            return False
        self._last = now
        self._number += 1
        for sessions in repositories:
            ledger = sessions.ledger()
            if ledger.open_sessions() or ledger.active() is not None:
                sessions.tick(self.id, self._number, int(self.interval_s * 1_000_000))
        return True


def bear_witness(store: Store, ordinal: int, identity: str, generation: int | None = None) -> None:
    """Put (ordinal, id) of an event where a log that lost it cannot. Older ones are removed. Raises `StoreError`."""
    known = list(_all_witnesses(store))
    newest = max((w.generation for w in known), default=0) if generation is None else generation
    witness = Witness(newest, ordinal, identity)
    body = {"format": 1, "ordinal": ordinal, "event": identity}
    try:
        store.create(witness.name, [json.dumps(body, sort_keys=True).encode()])
    except StoreError as error:
        if error.code != EXISTS:
            raise
    failpoint("witness-written")
    same = sorted((w for w in known if w.generation == newest), key=lambda w: w.ordinal)
    # Never the newest: another node may have written it this moment.
    for old in [*same[: max(0, len(same) - _WITNESSES)], *(w for w in known if w.generation < newest)]:
        store.delete(old.name)


def witnesses(store: Store) -> list[Witness]:
    """Those that count, in the order of their ordinals."""
    known = list(_all_witnesses(store))
    newest = max((w.generation for w in known), default=0)
    return sorted((w for w in known if w.generation == newest), key=lambda w: w.ordinal)


def _all_witnesses(store: Store) -> Iterator[Witness]:
    for listed in store.list("witness/"):
        if match := _WITNESS.fullmatch(listed.name):
            yield Witness(int(match[1], 16), int(match[2], 16), match[3])


def behind(lacks: str) -> JournalError:
    return JournalError(
        BEHIND,
        f"the log lacks {lacks}",
        "Kafka was restored from an earlier state, or is not the one this repository was written under: nothing is "
        "deleted and nothing written until the repository is adopted (`holdfast repository adopt`)",
    )
