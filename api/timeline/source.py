"""One source's timeline: closed granules from PostgreSQL, and what is in none of them yet from the tail of its log.

    steps      1 ……………………………… 40,960 | 40,961 ………… 43,210
               closed granules        the tail: read from capture.<source>
    turns      markers in granules    markers found in the tail

What a step does not change any more is remembered: own steps and markers up to the newest step looked at. A later call
looks only at what came since, so a target is resolved in the time that the newest steps take to read.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from api.errors import ApiError
from api.timeline.steps import Preambles, StepFacts, closing_time, last_of, look
from api.timeline.targets import History
from projections.views import timeline as view
from projections.views.base import Connection
from projections.views.timeline import Granule
from streams.capture_log import CaptureLog, StepFragment
from streams.capture_record import Sealer
from streams.errors import StreamError
from streams.formats.binlog.names import may_say, may_write, table_name
from streams.formats.binlog.step import OWN_SCHEMA
from streams.paths import Planned, Turn, turn
from streams.settings import KafkaSettings

# A filtered page takes this much log up at most and goes on for so long, then hands over what it has found and where to go on.
PAGE_BYTES = 48 << 20
PAGE_S = 0.25
# A tail longer than this is not a tail: whoever indexes is far behind, and looking through it would take minutes.
TAIL_STEPS = 2_000_000
# A granule closes with the step that takes it beyond 4 MB, so one of twice that ends with a step that is large itself.
_LARGE_GRANULE = 8 << 20
# Steps that may be wanted are kept until it is known how many of them are.
_HELD_BYTES = 16 << 20
_AHEAD = 4
_READERS = ThreadPoolExecutor(8, "timeline")
_MAY_BE_OWN = partial(may_say, word=OWN_SCHEMA.encode())
# So near to the end of the log a step is looked for from there.
_NEAR = 4096


class KnownPlan(Planned, Protocol):
    """A plan that is in the log."""

    @property
    def lineage(self) -> str | None: ...


PlanOf = Callable[[str], KnownPlan | None]


@dataclass(frozen=True, slots=True)
class Now:
    """A source's timeline at one moment. `closed` is the newest indexed step, `lineage` None when nothing was
    captured."""

    lineage: str | None
    head: int
    closed: int
    history: History


@dataclass(frozen=True, slots=True)
class Page:
    """Steps, newest first; go on before `next`, None when there is nothing older."""

    steps: list[StepFacts]
    next: int | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which steps. Times in µs, both included."""

    table: tuple[str, str] | None = None
    since_us: int | None = None
    until_us: int | None = None

    @property
    def none(self) -> bool:
        return self == Filter()

    def may_take(self, fragment: StepFragment) -> bool:
        """Whether a step of one fragment may be wanted, by its time: cheaper than working out what it does."""
        if self.since_us is None and self.until_us is None:
            return True
        at_us = closing_time(fragment)
        return (self.since_us is None or at_us >= self.since_us) and (self.until_us is None or at_us <= self.until_us)

    def promised(self, granule: Granule) -> int:
        """How many steps of a granule are wanted, at most."""
        if self.table is None:
            return granule.steps
        return sum(t.steps for t in granule.tables if (t.schema, t.table) == self.table)

    def takes(self, step: StepFacts) -> bool:
        if self.table is not None and not step.touches(self.table):
            return False
        if self.since_us is not None and step.time_us < self.since_us:
            return False
        return self.until_us is None or step.time_us <= self.until_us


@dataclass(frozen=True, slots=True)
class _Some:
    """Wanted steps of a stretch, newest first; it was looked through down to `floor`; bytes read."""

    steps: list[StepFacts]
    floor: int
    size: int


@dataclass(slots=True)
class _Looked:
    """What has been learnt of a lineage by reading its tail: own steps and markers up to `upto`, ascending."""

    lineage: str
    upto: int = 0
    own: list[int] = field(default_factory=list)
    markers: list[tuple[int, str]] = field(default_factory=list)


class Timeline:
    """The timeline of `source`. `plan_of` answers a plan and what stands after it, None when the log has none."""

    def __init__(self, kafka: KafkaSettings, source: str, secrets: Sealer | None, plan_of: PlanOf) -> None:
        self.source = source
        self.log = CaptureLog(kafka, source, secrets)
        self.preambles = Preambles()
        self._plan_of = plan_of
        self._lock = threading.Lock()
        self._looked: _Looked | None = None
        self._newest = ("", 0, 0)  # lineage, step and offset of the log's end, when it was last looked at

    def close(self) -> None:
        self.log.close()

    # --- where it stands ---------------------------------------------------------------------------------------------

    def now(self, conn: Connection, lineage: str | None = None) -> Now:
        """The newest lineage as of this moment, or another one as far as it is indexed.

        Raises `ApiError`: 404 (`lineage-unknown`), 503 (`timeline-behind`).
        """
        tail = self._tail()
        if tail is None and lineage is None:
            return Now(None, 0, 0, History(self.source, "", 0))
        newest, head = tail if tail is not None else ("", 0)
        wanted = lineage or newest
        closed_granule = view.head(conn, self.source, wanted)
        closed = closed_granule.last_ordinal if closed_granule else 0
        if wanted != newest:
            if not closed:
                raise ApiError(
                    404,
                    "lineage-unknown",
                    f"nothing of lineage {wanted} of {self.source} is known",
                    f"`holdfast timeline show {self.source}` shows the newest",
                )
            head = closed
        # The index may be ahead of the tail that was read a moment before.
        head = max(head, closed)
        return Now(wanted, head, closed, self._history(conn, wanted, head, closed))

    def _tail(self) -> tuple[str, int] | None:
        try:
            tail = self.log.tail()
        except StreamError as error:
            if error.code == "topic-missing":
                return None
            raise
        if tail is None:
            return None
        self._newest = (tail.lineage, tail.ordinal, tail.end - 1)
        return tail.lineage, tail.ordinal

    def _near_end(self, lineage: str, ordinal: int) -> int | None:
        """An offset close to a step that is close to the end: a hint, never trusted."""
        newest, head, offset = self._newest
        return offset if lineage == newest and head - ordinal < _NEAR else None

    def _history(self, conn: Connection, lineage: str, head: int, closed: int) -> History:
        with self._lock:
            looked = self._looked
            if looked is None or looked.lineage != lineage:
                looked = _Looked(lineage)
            self._learn_closed(conn, looked, closed)
            self._learn_tail(looked, head)
            self._looked = looked
            markers = [m for m in looked.markers if m[0] <= head]
            own = tuple(looked.own[: bisect_right(looked.own, head)])
        return History(self.source, lineage, head, self._turns(lineage, markers), own)

    def _turns(self, lineage: str, markers: list[tuple[int, str]]) -> tuple[Turn, ...]:
        """The rollbacks among steps that insert a marker. A marker's row may also come from elsewhere: a dump that holds
        schema `holdfast`, loaded here or on another server. A rollback is the first step behind its plan's head, in the
        plan's lineage; its plan was in the log before it."""
        out: dict[str, Turn] = {}
        for ordinal, plan in markers:
            found = self._plan_of(plan)
            if found is not None and found.lineage == lineage and found.head_ordinal < ordinal and plan not in out:
                out[plan] = turn(found, ordinal)
        return tuple(out.values())

    def _learn_closed(self, conn: Connection, looked: _Looked, closed: int) -> None:
        """Own steps and markers of closed granules, beyond what is known."""
        if closed <= looked.upto:
            return
        marks = view.landmarks(conn, self.source, looked.lineage, looked.upto + 1, closed, ("own", "marker"))
        several = Counter(mark.ordinal for mark in marks)
        for mark in marks:
            _note(looked, mark.ordinal, mark.plan if mark.kind == "marker" and several[mark.ordinal] == 1 else "")
        looked.upto = closed

    def _learn_tail(self, looked: _Looked, head: int) -> None:
        """Own steps and markers of the tail, beyond what is known. What cannot name schema `holdfast` is passed
        over unread."""
        if head <= looked.upto:
            return
        if head - looked.upto > TAIL_STEPS:
            raise ApiError(
                503,
                "timeline-behind",
                f"{head - looked.upto} steps of {self.source} are not indexed yet",
                "wait until the agent's indexer has caught up: `holdfast source show` tells",
            )
        first = looked.upto + 1
        steps = self.log.steps(looked.lineage, first, head, self._near_end(looked.lineage, first), _MAY_BE_OWN)
        for step in look(steps, self.preambles):
            if step.own:
                _note(looked, step.ordinal, step.plan)
            looked.upto = step.ordinal
        looked.upto = head

    # --- pages -------------------------------------------------------------------------------------------------------

    def page(self, conn: Connection, now: Now, before: int | None, limit: int, wanted: Filter) -> Page:
        """Steps older than `before` (None: all), newest first."""
        top = now.head if before is None else min(before - 1, now.head)
        if now.lineage is None or top < 1:
            return Page([], None)
        if wanted.none:
            first = max(1, top - limit + 1)
            steps = list(self._range(conn, now, first, top))[::-1]
            return Page(steps, first if first > 1 else None)
        return self._filtered(conn, now, top, limit, wanted)

    def one(self, conn: Connection, now: Now, ordinal: int) -> StepFacts:
        """One step. Raises `ApiError` 404 (`step-unknown`)."""
        if not 1 <= ordinal <= now.head:
            raise ApiError(
                404,
                "step-unknown",
                f"there is no step {ordinal} in {self.source}: the newest is {now.head}",
                f"see `holdfast timeline show {self.source}`",
            )
        return next(self._range(conn, now, ordinal, ordinal))

    def _range(self, conn: Connection, now: Now, first: int, last: int) -> Iterator[StepFacts]:
        """Steps `first..last`, ascending; large ones without reading them."""
        assert now.lineage is not None
        inside = covering(conn, self.source, now.lineage, first, last)
        at = first
        for granule in inside:
            if ends_large(granule) and granule.last_ordinal <= last:
                yield from self._read(now.lineage, at, granule.last_ordinal - 1, inside)
                yield self._large(conn, now.lineage, granule)
                at = granule.last_ordinal + 1
        yield from self._read(now.lineage, at, last, inside)

    def _large(self, conn: Connection, lineage: str, granule: Granule) -> StepFacts:
        """The large step that a granule ends with; what is read are the small ones before it."""
        marks = view.landmarks(conn, self.source, lineage, granule.last_ordinal, granule.last_ordinal)
        others = self._read(lineage, granule.first_ordinal, granule.last_ordinal - 1, [granule])
        return last_of(granule, view.tables_of(conn, granule), marks, others)

    def _read(self, lineage: str, first: int, last: int, granules: list[Granule]) -> Iterator[StepFacts]:
        yield from look(self.fragments(lineage, first, last, granules), self.preambles)

    def fragments(
        self, lineage: str, first: int, last: int, granules: list[Granule], name: bytes = b""
    ) -> Iterator[StepFragment]:
        """The log's fragments of steps `first..last`; an offset near the first is taken from `granules` if it is
        there. `name`: a table's, as `table_name` makes it; small steps that cannot write it are left out."""
        if first > last:
            return iter(())
        at = near(granules, first)
        at = self._near_end(lineage, first) if at is None else at
        return self.log.steps(lineage, first, last, at, partial(may_write, name=name) if name else None)

    def _filtered(self, conn: Connection, now: Now, top: int, limit: int, wanted: Filter) -> Page:
        """The tail first, then the granules that may hold such steps, until the page or its measure is full."""
        assert now.lineage is not None
        found: list[StepFacts] = []
        deadline = time.monotonic() + PAGE_S
        read = 0
        if top > now.closed:
            for chunk_first, chunk_last in _chunks(now.closed + 1, top):
                some = self._search(now.lineage, chunk_first, chunk_last, [], wanted, limit - len(found))
                found += some.steps
                read += some.size
                if len(found) >= limit or some.floor > chunk_first:
                    return Page(found, some.floor)
                if (read > PAGE_BYTES or time.monotonic() > deadline) and chunk_first > 1:
                    return Page(found, chunk_first)
        before = min(top, now.closed) + 1
        while True:
            granules = view.granules(
                conn,
                self.source,
                now.lineage,
                before=before,
                table=wanted.table,
                since_us=wanted.since_us,
                until_us=wanted.until_us,
                limit=32,
            )
            searches = self._searches(now.lineage, granules, before, wanted, limit)
            for granule, some in zip(granules, searches, strict=True):
                if ends_large(granule) and granule.last_ordinal < before:
                    step = self._large(conn, now.lineage, granule)
                    found += [step] if wanted.takes(step) else []
                room = limit - len(found)
                found += some.steps[:room]
                read += some.size
                if len(found) >= limit:
                    return Page(found, found[-1].ordinal)
                if some.floor > granule.first_ordinal:
                    return Page(found, some.floor)
                if (read > PAGE_BYTES or time.monotonic() > deadline) and granule.first_ordinal > 1:
                    return Page(found, granule.first_ordinal)
            if len(granules) < 32:
                return Page(found, None)
            before = granules[-1].first_ordinal

    def _searches(
        self, lineage: str, granules: list[Granule], before: int, wanted: Filter, most: int
    ) -> Iterator[_Some]:
        """A search of each granule, in order. So many as should fill the page, by what granules say of themselves, are read
        at the same time, a few at most: what takes time is waiting for Kafka."""

        def search(granule: Granule) -> _Some:
            last = min(granule.last_ordinal, before - 1)
            last -= ends_large(granule) and last == granule.last_ordinal
            return self._search(lineage, granule.first_ordinal, last, [granule], wanted, most)

        promised = [wanted.promised(granule) for granule in granules]
        ahead: deque[Future[_Some]] = deque()
        found = 0
        for i, granule in enumerate(granules):
            if not ahead and (found + promised[i] >= most or i + 1 == len(granules)):
                some = search(granule)
            else:
                while i + len(ahead) < len(granules) and (
                    not ahead or (len(ahead) < _AHEAD and found + sum(promised[i : i + len(ahead)]) < most)
                ):
                    ahead.append(_READERS.submit(search, granules[i + len(ahead)]))
                some = ahead.popleft().result()
            found += len(some.steps)
            yield some

    def _search(self, lineage: str, first: int, last: int, granules: list[Granule], wanted: Filter, most: int) -> _Some:
        """What of `first..last` is wanted, newest first, `most` at most. What a step does is worked out only for
        those that may be wanted by their bytes, the newest first, until there are enough."""
        name = table_name(wanted.table) if wanted.table is not None else b""
        small: deque[StepFragment] = deque()
        size, held, floor = 0, 0, first

        def rest() -> Iterator[StepFragment]:
            """Steps of several fragments are looked at as they come; others are put aside if they may be wanted."""
            nonlocal size, held, floor
            for fragment in self.fragments(lineage, first, last, granules, name):
                size += len(fragment.payload or b"")
                if fragment.number or not fragment.last:
                    yield fragment
                elif wanted.may_take(fragment):
                    small.append(fragment)
                    held += len(fragment.payload or b"")
                    if held > _HELD_BYTES and len(small) > most:
                        oldest = small.popleft()
                        held -= len(oldest.payload or b"")
                        floor = oldest.ordinal + 1

        found = [step for step in look(rest(), self.preambles) if wanted.takes(step)]
        count = 0
        while small and count < most:
            fragment = small.pop()
            (step,) = look((fragment,), self.preambles)
            if wanted.takes(step):
                found.append(step)
                count += 1
                if count == most:
                    floor = fragment.ordinal
        here = sorted((s for s in found if s.ordinal >= floor), key=lambda s: -s.ordinal)
        if len(here) > most:
            here = here[:most]
            floor = here[-1].ordinal
        return _Some(here, floor, size)


def _note(looked: _Looked, ordinal: int, plan: str) -> None:
    """Take down an own step, in its place; one that is known already stays."""
    at = bisect_left(looked.own, ordinal)
    if at == len(looked.own) or looked.own[at] != ordinal:
        looked.own.insert(at, ordinal)
    if plan and not any(m[0] == ordinal for m in looked.markers):
        looked.markers.append((ordinal, plan))
        looked.markers.sort()


def covering(conn: Connection, source: str, lineage: str, first: int, last: int) -> list[Granule]:
    """The granules that hold steps `first..last`, ascending, as far as these are indexed."""
    out: list[Granule] = []
    before, some = last + 1, 4
    while True:
        found = view.granules(conn, source, lineage, before=before, limit=some)
        out += [g for g in found if g.last_ordinal >= first]
        if len(found) < some or found[-1].first_ordinal <= first:
            return out[::-1]
        before, some = found[-1].first_ordinal, 1000


def ends_large(granule: Granule) -> bool:
    """Whether the last step of a granule is too large to be read only to be listed."""
    return granule.payload_bytes > _LARGE_GRANULE


def near(granules: list[Granule], ordinal: int) -> int | None:
    """An offset of the capture topic close to step `ordinal`, from the granule that holds it: a hint, never trusted."""
    for granule in granules:
        if granule.first_ordinal <= ordinal <= granule.last_ordinal:
            if granule.steps == 1:
                return granule.first_offset
            into = (ordinal - granule.first_ordinal) / (granule.steps - 1)
            return granule.first_offset + int(into * (granule.last_offset - granule.first_offset))
    return None


def _chunks(first: int, last: int, size: int = 4096) -> Iterator[tuple[int, int]]:
    """`first..last` in pieces, newest first."""
    while last >= first:
        start = max(first, last - size + 1)
        yield start, last
        last = start - 1
