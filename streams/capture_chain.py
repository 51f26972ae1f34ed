"""Which records of a capture topic count: the reader's rules as a state machine, without Kafka.

`Chain` is fed everything that stands in the topic from some place on, in order, and says of each whether it counts.
Rules in prose, so that code and docs/design.md can be compared:

1. `lineage.started` of a lineage seen before, or with an epoch below the current one: dropped. Else the chain starts
   anew at its digest, ordinals at 1.
2. `epoch.started` with an epoch not above the current one: dropped. Else that is the current epoch.
3. A commit record of a lower epoch: dropped, a zombie wrote it. Of a higher one: broken, since no marker announced it.
4. A record whose digest was accepted before: dropped, it was delivered twice.
5. A record that is not what its digest says, or does not name the last accepted record as the one before: broken.
6. Ordinals go on without a gap. Parts of one attempt are numbered from 0 without a gap; part 0 of another attempt
   discards what came of the one before, and so does a whole record.

Where reading starts in the middle, the epoch there must be certain, or a zombie's record would pass for the chain's.
`anchor` finds a place in a stretch of the topic where it is:

- a record of which a later one says (`hf-unsettled`) that its writer has seen it in the log with nothing of a later
  epoch before it;
- an epoch's marker followed by a record of the same writer: a writer looks back before its first record.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streams.capture_record import lineage_digest, record_digest
from streams.errors import BrokenChain
from streams.events import CommitsRecorded, EpochStarted, Event, LineageStarted, Part

REMEMBERED = 16_384  # digests of accepted records kept to recognise what is delivered twice


class Verdict(enum.Enum):
    """What becomes of a record."""

    ACCEPTED = "accepted"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Seen:
    """A record of a capture topic without its payload. `digest` of a lineage's start is where its chain begins."""

    offset: int
    kind: type[Event]
    epoch: int
    lineage: str
    writer: str
    first: int = 0
    last: int = 0
    part: Part | None = None
    previous: bytes = b""
    digest: bytes = b""
    unsettled: int | None = None


def seen(offset: int, event: Event, writer: str, unsettled: int | None) -> Seen:
    """What is kept of `event`, written by `writer`, with its `hf-unsettled` header."""
    lineage = event.lineage or ""
    if isinstance(event, CommitsRecorded):
        return Seen(
            offset,
            CommitsRecorded,
            event.epoch,
            lineage,
            writer,
            event.first_ordinal,
            event.last_ordinal,
            event.part,
            event.previous_record,
            event.digest,
            unsettled,
        )
    digest = event.digest if isinstance(event, LineageStarted) else b""
    return Seen(offset, type(event), event.epoch, lineage, writer, digest=digest)


class Chain:
    """The reader's state. `ordinal` is the last complete step's, `digest` the last accepted record's (None: not known).

    `elsewhere` is asked about a record that does not follow the last accepted, when its steps have been met already:
    whether it is one that was accepted earlier than this chain remembers.
    """

    def __init__(self, elsewhere: Callable[[CommitsRecorded], bool] | None = None) -> None:
        self.lineage = ""
        self.epoch = 0
        self.epoch_writer = ""
        self.ordinal = 0
        self.digest: bytes | None = None
        self.attempt: str | None = None
        self.parts = 0
        self._elsewhere = elsewhere
        self._known: dict[bytes, None] = {}
        self._lineages: set[str] = set()

    @classmethod
    def at(cls, place: Seen, elsewhere: Callable[[CommitsRecorded], bool] | None = None) -> Chain:
        """A chain whose next thing is `place`, of which the epoch is certain; what it names before it is believed."""
        chain = cls(elsewhere)
        if place.kind is CommitsRecorded:
            chain.lineage = place.lineage
            chain.epoch = place.epoch
            chain.ordinal = place.first - 1
            chain.digest = place.previous
            if place.part is not None and place.part.number > 0:
                chain.attempt, chain.parts = place.part.attempt, place.part.number
        else:
            chain.epoch = place.epoch - 1 if place.kind is EpochStarted else place.epoch
        return chain

    def take(self, event: Event, writer: str = "") -> Verdict:
        """Judge the next thing in the topic, which `writer` wrote. Raises `BrokenChain`: nothing after it counts for anybody."""
        if isinstance(event, CommitsRecorded):
            return self._take_record(event)
        if isinstance(event, EpochStarted):
            if event.epoch <= self.epoch:
                return Verdict.DROPPED
            self.epoch, self.epoch_writer = event.epoch, writer
            return Verdict.ACCEPTED
        if isinstance(event, LineageStarted):
            return self._take_lineage(event)
        raise BrokenChain("chain-foreign", f"a capture topic does not hold {event.TYPE}")

    def _take_lineage(self, event: LineageStarted) -> Verdict:
        lineage = event.lineage or ""
        if event.epoch < self.epoch or lineage == self.lineage or lineage in self._lineages:
            return Verdict.DROPPED
        if event.digest != lineage_digest(lineage, event.position):
            raise BrokenChain("chain-damaged", f"the start of lineage {lineage} is not what its digest says")
        self.lineage = lineage
        self._lineages.add(lineage)
        self.ordinal = 0
        self.attempt = None
        self._accept(event.digest)
        return Verdict.ACCEPTED

    def _take_record(self, record: CommitsRecorded) -> Verdict:
        if record.epoch < self.epoch:
            return Verdict.DROPPED
        if record.epoch > self.epoch:
            raise self._broken(record, "chain-epoch", f"of epoch {record.epoch}, which nothing announced")
        if record.digest in self._known:
            return Verdict.DROPPED
        if record.digest != record_digest(record):
            raise self._broken(record, "chain-damaged", "not what its digest says")
        if self.digest is None:
            self.lineage, self.ordinal, self.digest = (
                record.lineage or "",
                record.first_ordinal - 1,
                record.previous_record,
            )
            if record.part is not None and record.part.number > 0:
                self.attempt, self.parts = record.part.attempt, record.part.number
        if record.lineage != self.lineage or record.previous_record != self.digest:
            reached = self.ordinal if record.part is None else self.ordinal + 1
            old = record.lineage != self.lineage or record.last_ordinal <= reached
            if old and self._elsewhere is not None and self._elsewhere(record):
                return Verdict.DROPPED
            raise self._broken(record, "chain-broken", "not preceded by the record it names")
        self._count(record)
        self._accept(record.digest)
        return Verdict.ACCEPTED

    def _count(self, record: CommitsRecorded) -> None:
        """Move on by the steps or the part in `record`."""
        part = record.part
        steps = record.last_ordinal - record.first_ordinal + 1
        if record.first_ordinal != self.ordinal + 1 or steps < 1 or (part is not None and steps != 1):
            raise self._broken(record, "chain-ordinals", f"after step {self.ordinal}")
        if part is None:
            if len(record.step_ends) != 4 * steps:
                raise self._broken(record, "chain-ordinals", "without an end for each step")
            self.ordinal, self.attempt = record.last_ordinal, None
            return
        expected = self.parts if part.attempt == self.attempt else 0
        if part.number != expected:
            raise self._broken(record, "chain-parts", f"part {part.number} of an attempt, where {expected} is next")
        self.attempt, self.parts = part.attempt, part.number + 1
        if part.last:
            self.ordinal, self.attempt = record.last_ordinal, None

    def _accept(self, digest: bytes) -> None:
        self.digest = digest
        self._known[digest] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    def _broken(self, record: CommitsRecorded, code: str, why: str) -> BrokenChain:
        return BrokenChain(
            code,
            f"the record of steps {record.first_ordinal} to {record.last_ordinal} in lineage {record.lineage} is {why}",
            "something was lost, changed or written by somebody else: nothing from here on can be trusted; "
            "start a new lineage from a new baseline",
        )

    def copy(self) -> Chain:
        """The same state, to go on from independently."""
        other = Chain(self._elsewhere)
        other.lineage, other.epoch, other.ordinal, other.digest = self.lineage, self.epoch, self.ordinal, self.digest
        other.epoch_writer, other.attempt, other.parts = self.epoch_writer, self.attempt, self.parts
        other._known, other._lineages = dict(self._known), set(self._lineages)
        return other


def anchor(stretch: Sequence[Seen]) -> int | None:
    """Index of a place in an unbroken stretch of the topic where the epoch is certain, for `Chain.at`; the last found."""
    index: dict[bytes, int] = {}
    depth: list[int] = []  # how many records before each are in the stretch, going by what they name
    for i, s in enumerate(stretch):
        before = index.get(s.previous) if s.kind is CommitsRecorded else None
        depth.append(0 if before is None else depth[before] + 1)
        if s.digest:
            index.setdefault(s.digest, i)
    writers: set[tuple[int, str]] = set()
    for i in range(len(stretch) - 1, -1, -1):
        s = stretch[i]
        if s.kind is CommitsRecorded:
            writers.add((s.epoch, s.writer))
            if s.unsettled is not None and depth[i] > s.unsettled:
                at = i
                for _ in range(s.unsettled + 1):
                    at = index[stretch[at].previous]
                return at
        elif s.kind is EpochStarted and (s.epoch, s.writer) in writers:
            return i
    return None
