"""A long log from a short one: a site whose capture is down gets millions of steps that its source never made.

    real steps 1 … s │ generated s+1 … n-2: real steps again, each with the GTID that is due │ real steps n-1, n

The generated ones are written as capture writes: an epoch of their own, records by its `Recorder`, each naming the one
before. What ends the log is real: before it is written the source commits two transactions more, with the GTIDs that come
after all that was generated, so that capture, started again, finds at the source what the log's end says and goes on.

Granules are as the indexer would close them. Blocks of as many steps as a granule has are made of the same steps, so what a
granule of them holds is counted once; positions, offsets and digest are each one's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from agents import registry
from agents.capture.__main__ import defined_source
from agents.capture.engine import LIMIT, UNDER_WAY
from agents.capture.granules import MAX_STEPS, Indexer
from agents.capture.keys import KeyCollector, Recorded
from agents.capture.records import Recorder
from agents.capture.takeover import claim, standing
from agents.protocol import Steps
from streams.admin import topic_id
from streams.capture_log import CaptureLog, StepFragment
from streams.capture_record import unsettled_header
from streams.consume import read_topic
from streams.events import CommitsRecorded, GranuleClosed, GranuleKeys, SchemaRecorded
from streams.ids import now_us
from streams.key_runs import PURPOSE
from streams.publish import Publisher, RecordStream
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name

_RECORD_STEPS = MAX_STEPS // 2
_HEADER = 19
_SEQUENCE = struct.Struct("<Q")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Generated:
    """`steps` were generated; `head` is the newest step's ordinal, a real one; `rare` the ordinals that used `rare`."""

    steps: int
    head: int
    rare: tuple[int, ...]


def extend(settings: Settings, source: str, ends: Sequence[int], template: int, rare: int = 0) -> Generated:
    """Put generated steps between the log's newest step and the real transactions that the source has made since.

    Their sequence numbers are `ends`, ascending; what is generated fills the numbers between. `MAX_STEPS` real steps from
    ordinal `template` on are what is generated again and again; `rare`, another real step, takes the place of one of them
    eight times. Nothing else may write the source's capture topic or granules meanwhile.
    """
    stop = threading.Event()
    with (
        CaptureLog(settings.kafka, source) as log,
        Publisher(settings, f"capture-{source}") as publisher,
        Publisher(settings, f"index-{source}") as granules,
    ):
        claimed = claim(publisher, log, source=source, agent="bench", stop=stop)
        at = standing(log, claimed.tail)
        head, lineage, like = at.ordinal, claimed.tail.lineage, claimed.tail.record
        assert like is not None
        recorder = Recorder(source, lineage, claimed.epoch, claimed.tail.digest, at, None)
        stream = RecordStream(
            settings.kafka,
            log.topic,
            after=claimed.tail.end - 1,
            examine=log.fence(claimed.epoch, publisher.chain.writer),
        )
        writer = _Writer(recorder, stream, publisher, like, claimed.tail.end)
        domain, server, last = (int(x) for x in at.after.split("-"))
        block = [f.payload or b"" for f in log.steps(lineage, template, template + MAX_STEPS - 1)]
        plain = _Block(block)
        rarely = [f.payload or b"" for f in log.steps(lineage, rare, rare)] if rare else block[99:100]
        odd = _Block([*block[:99], *rarely, *block[100:]])
        identity = topic_id(settings.kafka, log.topic)
        closed = _closed(settings, source, lineage)
        if closed != head // MAX_STEPS * MAX_STEPS:
            raise RuntimeError(f"granules end with step {closed} of {head}: steps too large, or not indexed yet")
        closer = _Closer(settings, source, lineage, claimed.epoch, identity, closed)
        for fragment in log.steps(lineage, closed + 1, head) if closed < head else ():
            closer.add(fragment)

        total = ends[0] - last - 1
        # What is missing of the granule that real steps have begun; then whole ones; then what begins the last.
        fill = (closed + MAX_STEPS - head) % MAX_STEPS
        blocks = (total - fill) // MAX_STEPS
        done: list[int] = []
        for record in writer.write(plain, last + 1, 0, fill, domain, server):
            for fragment in record.fragments():
                for event in closer.add(fragment):
                    granules.publish(event)
        usual, unusual = (closer.block(b, like.preamble) for b in (plain, odd))
        number = last + fill + 1
        for i in range(blocks):
            is_odd = rare > 0 and i % max(1, blocks // 8) == max(1, blocks // 8) // 2
            fragments = writer.write(odd if is_odd else plain, number, 0, MAX_STEPS, domain, server)
            if is_odd:
                done.append(fragments[0].ordinal + 99)
            keys, granule = unusual if is_odd else usual
            granule = _like(granule, fragments, domain, server, number)
            granules.publish(
                dataclasses.replace(keys, first_ordinal=granule.first_ordinal, last_ordinal=granule.last_ordinal)
            )
            granules.publish(granule)
            number += MAX_STEPS
        writer.write(plain, number, 0, ends[0] - number, domain, server)
        _real(settings, source, at.after, writer, len(ends))
        writer.close()
        granules.flush(120)
        return Generated(total, recorder.standing.ordinal, tuple(done))


@dataclass(frozen=True, slots=True)
class Written:
    """Steps of one record that was written: the first's ordinal, and what a fragment of theirs would say."""

    ordinal: int
    count: int
    payload: bytes
    ends: Sequence[int]
    preamble: bytes
    captured_us: int
    offset: int

    def fragments(self) -> Iterator[StepFragment]:
        begin = 0
        for i, end in enumerate(self.ends):
            step = self.payload[begin:end]
            yield StepFragment(self.ordinal + i, 0, True, self.preamble, step, False, self.captured_us, "", self.offset)
            begin = end


class _Block:
    """Real steps one behind the other, with where each one's GTID event stands."""

    def __init__(self, steps: Sequence[bytes]) -> None:
        self.steps = steps
        self.sizes = [len(step) for step in steps]
        self.gtid_ends = [int.from_bytes(step[9:13], "little") for step in steps]
        self.events = [_events(step) for step in steps]

    def numbered(self, first: int, begin: int, end: int) -> tuple[bytes, list[int]]:
        """Steps `begin..end-1` with sequence numbers from `first` on, checksums right again; and where each ends."""
        out = bytearray(b"".join(self.steps[begin:end]))
        view = memoryview(out)
        ends, at = [], 0
        put, put_crc, crc = _SEQUENCE.pack_into, _CRC.pack_into, zlib.crc32
        for i in range(begin, end):
            put(out, at + _HEADER, first + i - begin)
            stop = at + self.gtid_ends[i] - 4
            put_crc(out, stop, crc(view[at:stop]))
            at += self.sizes[i]
            ends.append(at)
        view.release()
        return bytes(out), ends


def _events(step: bytes) -> int:
    count = at = 0
    while at < len(step):
        at += int.from_bytes(step[at + 9 : at + 13], "little")
        count += 1
    return count


class _Writer:
    """Sends records as capture does (`agents.capture.engine`). Offsets go on without a gap: nobody else writes."""

    def __init__(
        self, recorder: Recorder, stream: RecordStream, publisher: Publisher, like: CommitsRecorded, offset: int
    ) -> None:
        self._recorder, self._stream, self._publisher = recorder, stream, publisher
        self._like = like
        self._offset = offset

    def write(self, block: _Block, number: int, begin: int, end: int, domain: int, server: int) -> list[Written]:
        """Steps `begin..end-1` of a block with sequence numbers from `number` on, in records."""
        out = []
        for first in range(begin, end, _RECORD_STEPS):
            last = min(end, first + _RECORD_STEPS)
            payload, ends = block.numbered(number + first - begin, first, last)
            newest = number + last - 1 - begin
            like = self._like
            taken = Steps(
                payload=payload,
                ends=ends,
                events=sum(block.events[first:last]),
                before=f"{domain}-{server}-{newest - 1}",
                after=f"{domain}-{server}-{newest}",
                preamble=like.preamble,
                server_id=like.server_id,
                file=like.file,
                offset=like.offset,
                step_time_us=0,
            )
            out.append(self.send(taken))
        return out

    def send(self, taken: Steps) -> Written:
        """Waits while too much is under way."""
        captured_us = now_us()
        record = self._recorder.record(taken, captured_us)
        chain = self._publisher.chain
        while self._stream.sent - self._stream.durable() >= UNDER_WAY:
            self._stream.wait(1.0, self._stream.sent - UNDER_WAY + 1)
        with chain.lock:
            value = chain.encode(record)
            headers = chain.headers(record)
            unsettled = self._stream.unsettled
            if unsettled is not None:
                headers.append(unsettled_header(unsettled))
            self._stream.send(record.key.encode(), value, headers)
        self._offset += 1
        return Written(
            record.first_ordinal,
            len(taken.ends),
            taken.payload,
            taken.ends,
            taken.preamble,
            captured_us,
            self._offset - 1,
        )

    def close(self) -> None:
        self._stream.close(120)


class _Closer:
    """Closes granules with their keys as the indexer does."""

    def __init__(self, settings: Settings, source: str, lineage: str, epoch: int, identity: str, closed: int) -> None:
        self._named = (source, lineage, epoch)
        self._identity = identity
        self._secret = SecretStore(settings).derived(PURPOSE)
        events = (m.event for m in read_topic(settings.kafka, topic_name(settings.kafka.prefix, "schema", source)))
        self._recorded = [e for e in events if isinstance(e, SchemaRecorded)]
        self._indexer = Indexer(*self._named, identity, closed + 1)
        self._keys = KeyCollector(*self._named, *self._secret, Recorded(lineage, self._recorded))

    def add(self, fragment: StepFragment) -> list[GranuleKeys | GranuleClosed]:
        granule = self._indexer.add(fragment)
        self._keys.add(fragment)
        return [] if granule is None else [self._keys.close(granule), granule]

    def block(self, block: _Block, preamble: bytes) -> tuple[GranuleKeys, GranuleClosed]:
        """What the indexer says of a block that is a whole granule, wherever it stands (with today's definitions)."""
        lineage = self._named[1]
        as_baseline = [dataclasses.replace(e, ordinal=0) for e in self._recorded[:1]]
        indexer = Indexer(*self._named, self._identity)
        keys = KeyCollector(*self._named, *self._secret, Recorded(lineage, as_baseline))
        for i, payload in enumerate(block.steps, 1):
            fragment = StepFragment(i, 0, True, preamble, payload, False, 0, "", 0)
            granule = indexer.add(fragment)
            keys.add(fragment)
            if granule is not None and i == len(block.steps):
                return keys.close(granule), granule
        raise RuntimeError(f"{len(block.steps)} steps of the log do not make one granule")


def _closed(settings: Settings, source: str, lineage: str) -> int:
    """The last step that a granule holds."""
    topic = topic_name(settings.kafka.prefix, "commits")
    events = (m.event for m in read_topic(settings.kafka, topic))
    ours = (e for e in events if isinstance(e, GranuleClosed) and e.source == source and e.lineage == lineage)
    return max((e.last_ordinal for e in ours), default=0)


def _like(template: GranuleClosed, written: Sequence[Written], domain: int, server: int, number: int) -> GranuleClosed:
    """The granule of a block that has been written with sequence numbers from `number` on."""
    digest = blake3()
    for record in written:
        digest.update(record.payload)
    first, last = written[0], written[-1]
    count = sum(record.count for record in written)
    return dataclasses.replace(
        template,
        first_ordinal=first.ordinal,
        last_ordinal=first.ordinal + count - 1,
        captured_us=last.captured_us,
        first_position=f"{domain}-{server}-{number}",
        last_position=f"{domain}-{server}-{number + count - 1}",
        first_offset=first.offset,
        last_offset=last.offset,
        digest=digest.digest(),
    )


def _real(settings: Settings, source: str, after: str, writer: _Writer, count: int) -> None:
    """Record the `count` transactions that the source made after `after`."""
    defined = defined_source(settings, source, threading.Event())
    with contextlib.closing(registry.source(defined).open(after, LIMIT)) as stream:
        while count > 0:
            taken = stream.take(10.0)
            if not isinstance(taken, Steps):
                raise RuntimeError(f"the source does not show what it committed after {after}")
            writer.send(taken)
            count -= len(taken.ends)
