"""What the log of a repository says: which sessions are open, which points stand, what is being collected. Pure.

A `Ledger` is a fold over entries in their order. Whether an event counts depends on what stands before it and on nothing else,
so everybody who reads the same log knows the same, and a node that was away learns what became of what it had said:

    session.opened      refused when one of its pins is no point that stands, when it collects while another does, or when it is
                        of another node than the definition names: the repository was moved
    session.closed      of a session that is open                         \\  ends it
    session.fenced      likewise, whoever says it                         /
    point.sealed        counts in an open session of kind backup or adopt; else the point never was
    point.dropped       not while the point is starred or held
    collection.changed
        proposed        in an open collector's session, while nothing else is proposed or executing
        executing       by the session that proposed, still open, when every session opened before the proposal has ended
        done            after executing, in any open collector's session: what one began another may end
        abandoned       before executing; a proposal whose session has ended is abandoned by that

Time is ticks (`Ticked`), counted ticker by ticker; wall clocks are looked at where they can only make a wait longer.

It holds every session and point there ever was, so it keeps of each what is asked for: text that many have once, and of a point
that was dropped neither its disks nor its figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from agents.repository.journal import Entry
from streams.events import (
    CollectionChanged,
    Event,
    PointDropped,
    PointMarked,
    PointSealed,
    RepositoryDefined,
    SessionClosed,
    SessionFenced,
    SessionOpened,
    Ticked,
)

E = TypeVar("E", bound=Event)

WRITING: Final = frozenset({"backup", "adopt"})  # kinds of sessions whose points count
ACTIVE: Final = frozenset({"proposed", "executing"})


@dataclass(slots=True)
class SessionState:
    """A session as the log has it. `epoch` is the ordinal of its `session.opened`, `id` that entry's.

    `ended`: the ordinal at which it was closed or fenced, or its own when it was refused; `how` says which. `waited`: by
    ticker, the ticks since the session's own node last spoke for it.
    """

    opened: SessionOpened
    epoch: int
    id: str
    ended: int | None = None
    how: str = ""
    outcome: str = ""
    refusal: str = ""
    waited: dict[str, int] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return self.ended is None

    def open_at(self, ordinal: int) -> bool:
        """Whether it had been opened and had not ended when `ordinal` was written."""
        return self.epoch <= ordinal and (self.ended is None or self.ended > ordinal)

    @property
    def expired(self) -> bool:
        """Whether it may be fenced: its node has not spoken for it while its lease ran out by one ticker's count."""
        return self.open and max(self.waited.values(), default=0) >= self.opened.lease_ticks


@dataclass(slots=True)
class PointState:
    """A point as the log has it. `holds`: name → when it ends by itself (None: it does not). `asked`: who wants it gone ahead of
    policy, and `agreed`: who agreed, both with when."""

    sealed: PointSealed
    ordinal: int
    dropped: int | None = None
    drop: PointDropped | None = None
    starred: bool = False
    holds: dict[str, int | None] = field(default_factory=dict)
    marks: dict[str, PointMarked] = field(default_factory=dict)  # the newest of each kind

    def held_at(self, now_us: int) -> bool:
        return any(until is None or until > now_us for until in self.holds.values())

    def stands_at(self, ordinal: int) -> bool:
        """Whether it was sealed and not dropped when `ordinal` was written."""
        return self.ordinal <= ordinal and (self.dropped is None or self.dropped > ordinal)


@dataclass(slots=True)
class CollectionState:
    """A collection as the log has it. `proposed` and `executing` are the ordinals; `events` the newest event of each state."""

    id: str
    session: str
    state: str
    proposed: int
    executing: int | None = None
    ended: int | None = None
    waited: dict[str, int] = field(default_factory=dict)
    events: dict[str, CollectionChanged] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def ticks(self) -> int:
        """How many ticks have passed since it was proposed, by the ticker that counted most."""
        return max(self.waited.values(), default=0)


class Ledger:
    """The state after `head`. `apply` takes entries in their order; everything else is reading, which goes through copies: other
    threads may read while one applies."""

    def __init__(self) -> None:
        self.head = 0
        self.defined: RepositoryDefined | None = None
        self.sessions: dict[str, SessionState] = {}
        self.points: dict[str, PointState] = {}
        self.collections: dict[str, CollectionState] = {}
        self.ignored: list[int] = []  # ordinals of events that do not count
        self._ids: dict[int, str] = {}  # of everything but ticks
        self._open: dict[str, SessionState] = {}

    # -- reading

    def has(self, ordinal: int, identity: str) -> bool:
        """Whether the event with this id stands at this place."""
        return self._ids.get(ordinal) == identity

    def id_of(self, ordinal: int) -> str:
        """The id of the event there, which is no tick."""
        return self._ids[ordinal]

    def agrees(self, earlier: Ledger) -> bool:
        """Whether everything that `earlier` had read stands here too."""
        return self.head >= earlier.head and all(self._ids.get(at) == name for at, name in earlier._ids.items())

    def open_sessions(self) -> list[SessionState]:
        return list(self._open.values())

    def epochs(self) -> set[int]:
        """Of every session that was ever opened."""
        return {session.epoch for session in list(self.sessions.values())}

    def standing(self) -> dict[str, PointState]:
        """Points that are sealed and not dropped."""
        return {name: p for name, p in list(self.points.items()) if p.dropped is None}

    def roots(self) -> set[str]:
        """Points whose content must stay: those that stand, and those that open sessions pin."""
        pinned = {pin for s in self.open_sessions() for pin in s.opened.pins}
        return {name for name, p in list(self.points.items()) if p.dropped is None or name in pinned}

    def active(self) -> CollectionState | None:
        """The collection that is proposed or executing."""
        return next((c for c in list(self.collections.values()) if c.active), None)

    def in_the_way(self, collection: CollectionState) -> list[SessionState]:
        """Sessions that a proposal has to wait for: opened before it, still open, not its own."""
        return [
            s for s in self.open_sessions() if s.epoch < collection.proposed and s.opened.session != collection.session
        ]

    def binding(self, epoch: int) -> list[CollectionState]:
        """Collections whose candidates a session with this epoch has to treat as absent, for as long as it is open: those that
        were proposed before it and had not ended when it was opened."""
        return [
            c for c in list(self.collections.values()) if c.proposed < epoch and (c.ended is None or c.ended > epoch)
        ]

    # -- folding

    def apply(self, entries: Iterable[Entry]) -> Ledger:
        """Take entries in; those up to `head` are known. Returns itself."""
        for entry in entries:
            if entry.ordinal <= self.head:
                continue
            if entry.ordinal != self.head + 1:
                raise ValueError(f"entry {entry.ordinal} does not follow {self.head}")
            self.head = entry.ordinal
            event = entry.event
            if isinstance(event, Ticked):
                self._ticked(event)
                continue
            self._ids[entry.ordinal] = entry.id
            if not self._counts(entry):
                self.ignored.append(entry.ordinal)
        return self

    def _counts(self, entry: Entry) -> bool:
        match entry.event:
            case RepositoryDefined() as event:
                self.defined = event
            case SessionOpened() as event:
                return self._opened(event, entry)
            case SessionClosed() as event:
                return self._ended(event.session, entry.ordinal, "closed", event.outcome)
            case SessionFenced() as event:
                return self._ended(event.session, entry.ordinal, "fenced", "")
            case PointSealed() as event:
                return self._sealed(event, entry.ordinal)
            case PointDropped() as event:
                return self._dropped(event, entry.ordinal)
            case PointMarked() as event:
                return self._marked(event)
            case CollectionChanged() as event:
                return self._collected(event, entry.ordinal)
        return True

    def _opened(self, event: SessionOpened, entry: Entry) -> bool:
        if event.session in self.sessions:
            return False
        state = SessionState(_sharing(event, "repository", "kind", "node", "asset", "by"), entry.ordinal, entry.id)
        self.sessions[event.session] = state
        gone = [pin for pin in event.pins if pin not in self.points or self.points[pin].dropped is not None]
        if self.defined is not None and self.defined.node != event.node:
            state.refusal = f"the repository is node {self.defined.node}'s"
        elif gone:
            state.refusal = f"point {gone[0]} does not stand any more"
        elif event.kind == "collect" and any(s.opened.kind == "collect" for s in self._open.values()):
            state.refusal = "another session collects"
        if state.refusal:
            state.ended, state.how = entry.ordinal, "refused"
            return False
        self._open[event.session] = state
        return True

    def _ended(self, session: str, ordinal: int, how: str, outcome: str) -> bool:
        state = self._open.pop(session, None)
        if state is None:
            return False
        state.ended, state.how, state.outcome = ordinal, how, outcome
        for collection in self.collections.values():
            if collection.session == session and collection.state == "proposed":
                collection.state, collection.ended = "abandoned", ordinal
        return True

    def _sealed(self, event: PointSealed, ordinal: int) -> bool:
        session = self._open.get(event.session)
        if session is None or session.opened.kind not in WRITING or event.point in self.points:
            return False
        facts = {sys.intern(name): value for name, value in event.facts.items()}
        figures = {sys.intern(name): value for name, value in event.figures.items()}
        shared = _sharing(event, "repository", "asset", "asset_name", "kind", "by")
        self.points[event.point] = PointState(replace(shared, facts=facts, figures=figures), ordinal)
        return True

    def _dropped(self, event: PointDropped, ordinal: int) -> bool:
        point = self.points.get(event.point)
        if point is None or point.dropped is not None or point.starred or point.held_at(event.dropped_us):
            return False
        point.dropped, point.drop = ordinal, _sharing(event, "repository", "reason", "by", "agreed_by")
        point.sealed = replace(point.sealed, disks=(), figures={})
        return True

    def _marked(self, event: PointMarked) -> bool:
        point = self.points.get(event.point)
        if point is None or point.dropped is not None:
            return False
        point.marks[event.mark] = event
        if event.mark in ("star", "unstar"):
            point.starred = event.mark == "star"
        elif event.mark == "hold":
            point.holds[event.name] = event.until_us
        elif event.mark == "release":
            point.holds.pop(event.name, None)
        return True

    def _collected(self, event: CollectionChanged, ordinal: int) -> bool:
        session = self._open.get(event.session)
        if session is None or session.opened.kind != "collect":
            return False
        known = self.collections.get(event.collection)
        if event.state == "proposed":
            if known is not None or self.active() is not None:
                return False
            known = CollectionState(event.collection, event.session, "proposed", ordinal)
            self.collections[event.collection] = known
        elif known is None or not self._may(known, event):
            return False
        known.state = event.state
        known.events[event.state] = event
        if event.state == "executing":
            known.executing = ordinal
        elif event.state != "proposed":
            known.ended = ordinal
        return True

    def _may(self, collection: CollectionState, event: CollectionChanged) -> bool:
        if event.state == "executing":
            mine = event.session == collection.session
            return mine and collection.state == "proposed" and not self.in_the_way(collection)
        if event.state == "done":
            return collection.state == "executing"
        return event.state == "abandoned" and collection.state == "proposed" and event.session == collection.session

    def _ticked(self, event: Ticked) -> None:
        for name, session in self._open.items():
            if name in event.sessions and session.opened.node == event.node:
                session.waited.clear()
            else:
                session.waited[event.ticker] = session.waited.get(event.ticker, 0) + 1
        for collection in self.collections.values():
            if collection.active:
                collection.waited[event.ticker] = collection.waited.get(event.ticker, 0) + 1


def _sharing(event: E, *names: str) -> E:
    """The same event, of whose text in these fields there is one copy however many events have it."""
    return replace(event, **{name: sys.intern(getattr(event, name)) for name in names})  # type: ignore[arg-type]


def figures(ledger: Ledger) -> Mapping[str, int]:
    """Counts for status reports."""
    return {
        "points": len(ledger.standing()),
        "open_sessions": len(ledger.open_sessions()),
        "collections": len(ledger.collections),
        "ignored_events": len(ledger.ignored),
    }
