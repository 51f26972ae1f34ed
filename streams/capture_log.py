"""Reading the capture topic of one source: its end, a step by its number, steps in order, steps as they come.

Everything given out has been verified from the first record read on (`streams.capture_chain`): it was accepted under the
rules, its digest is right, it follows the one before. Broken: `BrokenChain`, and nothing from there on.

A step is given out as *fragments*. A small step is one; a large one has a fragment for each record it was split into, and
is given out only when it is there to its end, in constant memory: the records up to the end are read once to see that
they complete the step, and once more to give them out.

Kafka's offsets are used to find things and are never remembered by anybody: every call finds its way anew from the end
or by binary search, and proves what it found by the chain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from streams.capture_chain import Chain, Seen, Verdict, anchor, seen
from streams.capture_record import Sealer, read_unsettled, record_digest, step_slices, unseal_payload
from streams.capture_stretches import Stretches
from streams.consume import REFETCHES, Message
from streams.errors import BrokenChain, DeliveryFailed, StreamError
from streams.events import CommitsRecorded, EpochStarted, Event, LineageStarted
from streams.formats.binlog.events import is_format_description, whole_events
from streams.settings import KafkaSettings
from streams.topics import topic_name

_WINDOW = 4  # records looked at first when looking back; a whole record is up to a megabyte
_GROWTH = 4
_WINDOW_LIMIT = 100_000  # further back than this, reading from the start costs less memory
_HELD_BYTES = 8_388_608  # parts of one step kept in memory before they are read twice instead
_log = logging.getLogger("holdfast.capture-log")


Wanted = Callable[[bytes | None], bool]
"""Whether a step of this payload may be wanted; None: it is sealed. It is asked of a whole record first, so what it says yes to
of one step it says yes to of any steps with that one among them, as `streams.formats.binlog.names` does."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a capture topic as a reader sees it.

    `ordinal` is the last complete step's (0: none yet), `digest` what the next record must name as the one before, `end`
    the offset the next thing will have. `record` is the record that holds the last complete step, or its last part: None
    while the lineage has none. `started` is the lineage's first record if it was met on the way, which it always is when
    there is no `record`. `epoch_writer` is who wrote the epoch's marker (empty if it was not met on the way). `lineage`
    is empty when none was started yet.
    """

    lineage: str
    epoch: int
    epoch_writer: str
    digest: bytes
    ordinal: int
    end: int
    record: CommitsRecorded | None
    started: LineageStarted | None


@dataclass(frozen=True, slots=True)
class StepFragment:
    """A step or a piece of it: whole native events in `payload`, to be read with `preamble`, the format description.

    `number` counts a step's fragments from 0, `last` closes it. `payload` is None when it is sealed and the reader has
    no key; `accounts` says that it holds account statements. `position_after` is the source's native position after the
    step where the record says it, which it does for its last step: else empty. `captured_us`, `offset` (Kafka's, a
    cache) and `file` (the source's log file) are the record's.
    """

    ordinal: int
    number: int
    last: bool
    preamble: bytes
    payload: bytes | None
    accounts: bool
    captured_us: int
    position_after: str
    offset: int
    file: str = ""


class CaptureLog:
    """The capture topic of `source`. Threads may share one: each call in progress has a connection of its own.

    Call `close`, or use it in a `with` statement.
    """

    def __init__(self, kafka: KafkaSettings, source: str, secrets: Sealer | None = None) -> None:
        self.topic = topic_name(kafka.prefix, "capture", source)
        self._kafka = kafka
        self._secrets = secrets
        self._idle: queue.SimpleQueue[Stretches] = queue.SimpleQueue()
        self._closed = False
        self._looked_back = 0  # how many records it took the last time to find a certain place

    def tail(self) -> Tail | None:
        """The end, found by looking back from it; None when there is nothing in the topic."""
        with self._reader() as reader:
            low, high = reader.ends()
            if low == high:
                return None
            back = 0
            while True:
                before = max(low, high - back)
                chain, at = self._certain(reader, before, low)
                record, started = None, None
                for message in reader.read(at, high):
                    verdict, event = self._judge(chain, message)
                    if verdict is Verdict.DROPPED:
                        continue
                    if isinstance(event, CommitsRecorded):
                        record = event if event.part is None or event.part.last else record
                    elif isinstance(event, LineageStarted):
                        record, started = None, event
                if before == low or (chain.digest is not None and (record is not None or started is not None)):
                    return Tail(
                        chain.lineage,
                        chain.epoch,
                        chain.epoch_writer,
                        chain.digest or b"",
                        chain.ordinal,
                        high,
                        record,
                        started,
                    )
                back = max(_WINDOW, (high - at) * _GROWTH)

    def locate(self, lineage: str, ordinal: int) -> int:
        """Offset of the first record that counts and holds the step or a part of it.

        Raises `StreamError` (`step-unknown`).
        """
        with self._reader() as reader:
            return self._find(reader, lineage, ordinal, *reader.ends())[1]

    def steps(
        self, lineage: str, first: int, last: int, near: int | None = None, wanted: Wanted | None = None
    ) -> Iterator[StepFragment]:
        """Steps `first..last`, both included, in order. `near`: an offset to look at first, from a granule. With `wanted`,
        small steps that it says no to are left out.

        Raises `StreamError` (`step-unknown`) when one of them is not there, `BrokenChain`.
        """
        if first > last:
            return
        with self._reader() as reader:
            low, high = reader.ends()
            chain, at = self._find(reader, lineage, first, low, high, near)
            for fragment in self._fragments(chain, reader.read(at, high), wanted):
                if chain.lineage != lineage:
                    continue
                if fragment is None:
                    if chain.ordinal >= last:
                        return
                    continue
                if fragment.ordinal < first:
                    continue
                if fragment.ordinal > last:
                    return
                yield fragment
                if fragment.ordinal == last and fragment.last:
                    return
        raise _unknown(lineage, last)

    def newest(self, lineage: str, last: int, count: int, near: int | None = None) -> list[StepFragment]:
        """The `count` steps up to `last` (fewer where the lineage starts), newest first; of a large one, its first piece."""
        steps = self.steps(lineage, max(1, last - count + 1), last, near)
        return [fragment for fragment in steps if fragment.number == 0][::-1]

    def follow(self, lineage: str, after_ordinal: int, stop: threading.Event) -> Iterator[list[StepFragment]]:
        """Steps after `after_ordinal` as they are captured, in lists that are not empty, until `stop` is set.

        Ends by itself when another lineage starts. A large step comes in many lists, once all of it is there. Raises
        `StreamError` (`step-unknown`) when step `after_ordinal` is not there, `BrokenChain`.
        """
        with self._reader() as reader:
            chain, at = self._find(reader, lineage, after_ordinal + 1, *reader.ends(), None, next_too=True)
        with contextlib.closing(Stretches(self._kafka, self.topic, fetch_wait_ms=100)) as reader:
            batch: list[StepFragment] = []
            held = 0
            for fragment in self._fragments(chain, reader.follow(at, stop)):
                if fragment is not None and fragment.ordinal > after_ordinal:
                    batch.append(fragment)
                    held += len(fragment.payload or b"")
                if batch and (fragment is None or held > _HELD_BYTES):
                    yield batch
                    batch, held = [], 0
                if fragment is None and chain.lineage != lineage:
                    return

    def fence(self, epoch: int, writer: str) -> Callable[[int, int], None]:
        """What a `RecordStream` is to `examine` strangers' records with: raises `DeliveryFailed` (`capture-fenced`)

        when one of them ends `epoch`, which `writer` writes.
        """

        def examine(first: int, last: int) -> None:
            with self._reader() as reader:
                for message in reader.read(first, last + 1):
                    event = message.event
                    later = event.epoch > epoch if isinstance(event, EpochStarted) else event.epoch >= epoch
                    if later and message.stamp.writer != writer:
                        raise DeliveryFailed(
                            "capture-fenced",
                            f"another agent took over capture (epoch {event.epoch}, this one had {epoch})",
                            "only one agent may capture a source; this one stops",
                        )

        return examine

    def close(self) -> None:
        """Close connections that no call uses; others close when their call ends."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def __enter__(self) -> CaptureLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Stretches]:
        try:
            reader = self._idle.get_nowait()
        except queue.Empty:
            reader = Stretches(self._kafka, self.topic)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        if self._closed:
            reader.close()
        else:
            reader.rest()
            self._idle.put(reader)

    def _certain(self, reader: Stretches, before: int, low: int, *, ask: bool = True) -> tuple[Chain, int]:
        """A chain that is certain of its epoch, and the offset it goes on from: the last such place before `before`,

        or the topic's first record.
        """
        # Looking up a record, others that are old are not looked up in turn: to drop one changes nothing for the rest.
        elsewhere = self._was_accepted if ask else _believe
        stretch: list[Seen] = []
        begin, size = before, max(_WINDOW, self._looked_back)
        while begin > low and len(stretch) < _WINDOW_LIMIT:
            start = max(low, before - size)
            stretch = [_seen(m) for m in reader.read(start, begin, again=True)] + stretch
            place = anchor(stretch)
            if place is not None:
                self._looked_back = min(len(stretch) - place + 1, _WINDOW * _GROWTH)
                return Chain.at(stretch[place], elsewhere), stretch[place].offset
            # Whoever writes much has much under way, and each record says how much: mostly that is all that was missing.
            missing = min((s.unsettled + 1 - i for i, s in enumerate(stretch) if s.unsettled is not None), default=0)
            once = begin == before and 0 < missing < size * (_GROWTH - 1)
            begin, size = start, size + missing if once else size * _GROWTH
        if begin > low:
            _log.warning("%s: no certain epoch in %d records before offset %d", self.topic, len(stretch), before)
            stretch = []
        first = stretch[0] if stretch else next(map(_seen, reader.read(low, max(before, low + 1))), None)
        if first is None or first.kind is not CommitsRecorded:
            return Chain(elsewhere), low
        return Chain.at(first, elsewhere), first.offset

    def _find(
        self,
        reader: Stretches,
        lineage: str,
        ordinal: int,
        low: int,
        high: int,
        near: int | None = None,
        *,
        next_too: bool = False,
        ask: bool = True,
    ) -> tuple[Chain, int]:
        """A chain before the first accepted record that holds `ordinal`, and that record's offset.

        With `next_too`, `ordinal` may be the one that comes next: then the offset is the end.
        """
        guess = self._guess(reader, lineage, ordinal, low, high) if near is None else min(max(near, low), high - 1)
        back = 0
        while low < high:
            before = max(low, guess + 1 - back)
            chain, at = self._certain(reader, before, low, ask=ask)
            limit = guess + max(_WINDOW, back)
            came_by = before == low  # the step's beginning cannot have been missed
            for message in reader.read(at, high, again=True):
                event = message.event
                if isinstance(event, CommitsRecorded) and _holds(event, lineage, ordinal):
                    here = chain.copy()
                    if self._judge(chain, message)[0] is Verdict.ACCEPTED:
                        if came_by:
                            return here, message.offset
                        break
                elif self._judge(chain, message)[0] is Verdict.ACCEPTED:
                    came_by = came_by or not isinstance(event, EpochStarted)
                if chain.lineage == lineage and chain.ordinal >= ordinal:
                    break  # the anchor was after it already
                if chain.lineage != lineage and message.offset > limit and before > low:
                    break
            else:
                if chain.lineage == lineage and chain.ordinal < ordinal:
                    if next_too and chain.ordinal == ordinal - 1:
                        return chain, high
                    break
            if before == low:
                break
            back = max(_WINDOW, back * _GROWTH)
        raise _unknown(lineage, ordinal)

    def _guess(self, reader: Stretches, lineage: str, ordinal: int, low: int, high: int) -> int:
        """Where the step should be if every record counted. Lineages are UUIDv7, so they sort by age."""
        lo, hi = low, high
        while lo < hi:
            middle = (lo + hi) // 2
            found = None
            for message in reader.read(middle, hi):
                event = message.event
                if isinstance(event, CommitsRecorded):
                    found = message.offset, event.lineage or "", event.last_ordinal
                    if event.part is None and _holds(event, lineage, ordinal):
                        return message.offset
                elif isinstance(event, LineageStarted):
                    found = message.offset, event.lineage or "", 0
                if found is not None:
                    break
            if found is None or found[1:] >= (lineage, ordinal):
                hi = middle
            else:
                lo = found[0] + 1
        return min(lo, high - 1)

    def _was_accepted(self, record: CommitsRecorded) -> bool:
        """Whether `record` is one that counted earlier, further back than a chain remembers."""
        with self._reader() as reader:
            low, high = reader.ends()
            try:
                chain, at = self._find(reader, record.lineage or "", record.first_ordinal, low, high, ask=False)
                for message in reader.read(at, high):
                    verdict, event = self._judge(chain, message)
                    if verdict is Verdict.ACCEPTED and isinstance(event, CommitsRecorded):
                        if event.digest == record.digest:
                            return True
                        if chain.ordinal >= record.last_ordinal:
                            return False
            except StreamError:
                return False
        return False

    def _judge(self, chain: Chain, message: Message) -> tuple[Verdict, Event]:
        """What becomes of `message`, and what it holds. One that is not what its digest says is fetched again before that is
        believed: Kafka's own checksum is looked at when a batch arrives, not after that."""
        for _ in range(REFETCHES):
            try:
                return chain.take(message.event, message.stamp.writer), message.event
            except BrokenChain as error:
                if error.code != "chain-damaged":
                    raise
                _log.warning("%s@%d is fetched again: %s", self.topic, message.offset, error.message)
            with contextlib.closing(Stretches(self._kafka, self.topic)) as reader:
                message = next(reader.read(message.offset, message.offset + 1), message)
        return chain.take(message.event, message.stamp.writer), message.event

    def _fragments(
        self, chain: Chain, messages: Iterable[Message | None], wanted: Wanted | None = None
    ) -> Iterator[StepFragment | None]:
        """What `messages` hold that counts, in fragments; None for each None, where a lineage starts, and after a record of
        which steps may have been left out."""
        step: _Parts | None = None
        for message in messages:
            if message is None:
                yield None
                continue
            verdict, event = self._judge(chain, message)
            if verdict is Verdict.DROPPED:
                continue
            if isinstance(event, LineageStarted):
                yield None
            if not isinstance(event, CommitsRecorded):
                continue
            if event.part is None:
                step = None
                yield from self._whole(event, message.offset, wanted)
                if wanted is not None:
                    yield None
                continue
            if event.part.number == 0:
                step = _Parts()
            if step is not None:  # else reading began in the middle of it
                step.add(message.offset, event)
                if event.part.last:
                    pieces = self._pieces(step)
                    yield from _whole_events(pieces) if is_format_description(event.preamble) else pieces
                    step = None

    def _whole(self, record: CommitsRecorded, offset: int, wanted: Wanted | None = None) -> Iterator[StepFragment]:
        """The steps of a record that holds whole ones."""
        payload = self._payload(record)
        if wanted is not None and not wanted(payload):
            return
        slices = None if payload is None else step_slices(record, payload)
        count = record.last_ordinal - record.first_ordinal + 1
        chosen = range(count) if wanted is None or slices is None else _chosen(wanted, slices, payload or b"", 0, count)
        for i in chosen:
            ordinal = record.first_ordinal + i
            yield StepFragment(
                ordinal,
                0,
                True,
                record.preamble,
                None if slices is None else bytes(slices[i]),
                record.accounts,
                record.captured_us,
                record.after if ordinal == record.last_ordinal else "",
                offset,
                record.file,
            )

    def _pieces(self, step: _Parts) -> Iterator[StepFragment]:
        """The parts of a step that is complete: from memory, or read again."""
        if step.held is not None:
            for offset, record in zip(step.offsets, step.held, strict=True):
                yield self._piece(record, offset)
            return
        wanted = dict(zip(step.offsets, step.digests, strict=True))
        with self._reader() as reader:
            for message in reader.read(step.offsets[0], step.offsets[-1] + 1):
                digest = wanted.pop(message.offset, None)
                if digest is None:
                    continue
                event = message.event
                if not isinstance(event, CommitsRecorded) or record_digest(event) != digest:
                    raise BrokenChain("chain-damaged", f"{self.topic}@{message.offset} is not what it was a moment ago")
                yield self._piece(event, message.offset)
        if wanted:
            raise BrokenChain("chain-damaged", f"{self.topic}@{min(wanted)} is not there any more")

    def _piece(self, record: CommitsRecorded, offset: int) -> StepFragment:
        part = record.part
        assert part is not None
        return StepFragment(
            record.first_ordinal,
            part.number,
            part.last,
            record.preamble,
            self._payload(record),
            record.accounts,
            record.captured_us,
            record.after if part.last else "",
            offset,
            record.file,
        )

    def _payload(self, record: CommitsRecorded) -> bytes | None:
        if record.encryption is not None and self._secrets is None:
            return None
        return unseal_payload(record, self._secrets)


def _chosen(wanted: Wanted, slices: list[memoryview], payload: bytes, first: int, end: int) -> Iterator[int]:
    """Which of the steps `first..end-1` may be wanted, of whose bytes together, `payload`, that has been said already."""
    if end - first == 1:
        yield first
        return
    middle = (first + end) // 2
    size = sum(map(len, slices[first:middle]))
    for start, stop, half in ((first, middle, payload[:size]), (middle, end, payload[size:])):
        if wanted(half):
            yield from _chosen(wanted, slices, half, start, stop)


def _whole_events(fragments: Iterable[StepFragment]) -> Iterator[StepFragment]:
    """The fragments of one step with whole events in each: an event larger than a record was split over several."""
    held: list[bytes] = []
    size = wanted = number = 0
    for fragment in fragments:
        if fragment.payload is None:
            yield fragment
            continue
        held.append(fragment.payload)
        size += len(fragment.payload)
        if not fragment.last and size < wanted:
            continue
        data = b"".join(held)
        whole, wanted = (size, 0) if fragment.last else whole_events(data)
        held, size, wanted = [data[whole:]], size - whole, wanted - whole
        if whole or fragment.last:
            yield dataclasses.replace(fragment, number=number, payload=data[:whole])
            number += 1


class _Parts:
    """The parts of one attempt as they come: where they are, and the records themselves while they are few."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.digests: list[bytes] = []
        self.held: list[CommitsRecorded] | None = []
        self._bytes = 0

    def add(self, offset: int, record: CommitsRecorded) -> None:
        self.offsets.append(offset)
        self.digests.append(record.digest)
        self._bytes += len(record.payload)
        if self._bytes > _HELD_BYTES:
            self.held = None
        if self.held is not None:
            self.held.append(record)


def _seen(message: Message) -> Seen:
    return seen(message.offset, message.event, message.stamp.writer, read_unsettled(message.headers))


def _holds(record: CommitsRecorded, lineage: str, ordinal: int) -> bool:
    return record.lineage == lineage and record.first_ordinal <= ordinal <= record.last_ordinal


def _believe(_: CommitsRecorded) -> bool:
    return True


def _unknown(lineage: str, ordinal: int) -> StreamError:
    return StreamError("step-unknown", f"there is no step {ordinal} in lineage {lineage}", "see `timeline show`")
