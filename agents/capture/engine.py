"""Capture of one source: from its log into ours, in one epoch after another. Kind-neutral: the source is a `Source`.

    claim an epoch → stand → open the source's log before the last captured step → that step again, with the digest it
    had → records, each naming the one before → …
        the source goes away:     wait, open it again from where we stand; same epoch
        what it sends is damaged: likewise, but not for ever: `ATTEMPTS` times without a step in between
        Kafka refuses a record:   nobody knows what got in: a new epoch, from what the log says
        another agent took over:  `Fenced`
        the source is not where it was, or says what we do not understand: `CaptureStopped`. Never a step is skipped.

        Kafka takes nothing:      `KafkaAway`, where there is a spool; the next epoch drains that first (`spooling`)

Without a spool, and while it is full, the source's log is not read on: at most `UNDER_WAY` records are in memory.

And if we die here? Nothing is kept outside the log. What was sent and is not acknowledged is there or not; the next
run reads what is there and asks the source for what follows.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from agents.capture.records import Recorder, Standing, steps_of
from agents.capture.spool import SpoolDamaged
from agents.capture.spooling import AWAY_S, Spooling
from agents.capture.takeover import claim, prove, standing
from agents.errors import DAMAGED, AgentError, CaptureStopped, Fenced, SourceUnavailable
from agents.failpoints import failpoint
from agents.protocol import Piece, Source, Stream, Taken
from streams.capture_log import CaptureLog
from streams.capture_record import Sealer, unsettled_header
from streams.errors import DeliveryFailed
from streams.ids import now_us
from streams.publish import REQUESTS, Publisher, RecordStream
from streams.settings import Settings

LIMIT = 900_000  # bytes of payload in a record
UNDER_WAY = (
    REQUESTS  # records sent and not acknowledged; beyond that steps gather at the source, and records get larger
)
UNDER_WAY_BYTES = 12_000_000
LIGHT_BYTES = 256_000  # under way; below that one record at a time is sent
ATTEMPTS = 4
# What damage on the way can look like while a connection is made in clear: not believed at once.
DOUBTFUL = frozenset({DAMAGED, "source-denied", "source-tls", "source-error"})
_TURN_S = 0.2
_LONGEST_PAUSE_S = 10.0
_TICK_US = 1_000_000  # a step's time by the source is no more exact
_log = logging.getLogger("holdfast.capture")

State = Literal["starting", "capturing", "spooling", "source-unreachable", "stopped"]


@dataclass
class Progress:
    """How far capture is: written by its thread, read by whoever reports. Counts are of this run.

    `ordinal`, `position`: last step that is durable in the log. `step_time_us`: its time by the source's clock.
    `caught_up_us`: when the source had nothing more last; to begin with, when this run began.
    """

    state: State = "starting"
    lineage: str = ""
    epoch: int = 0
    ordinal: int = 0
    position: str = ""
    steps: int = 0
    payload_bytes: int = 0
    records: int = 0
    step_time_us: int = 0
    caught_up_us: int = field(default_factory=now_us)
    trouble: str = ""
    durable: Standing | None = None  # the last step in the log, as far as it is known

    def lag_ms(self, now: int) -> float:
        """How far the log is behind the source at most; an estimate, since steps' times are whole seconds of its clock."""
        behind_us = now - max(self.caught_up_us, self.step_time_us)
        return behind_us / 1000 if behind_us > _TICK_US else 0.0


class KafkaAway(Exception):
    """Kafka takes nothing. What is known to be in the log stands in `Progress`."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A record under way: its number, and where capture stands once it is durable."""

    number: int
    standing: Standing
    steps: int
    payload_bytes: int
    step_time_us: int


@dataclass
class _Epoch:
    """What one epoch writes with."""

    recorder: Recorder
    stream: RecordStream
    publisher: Publisher
    progress: Progress
    patience_s: float = math.inf  # when Kafka takes nothing for so long, that is an end
    gap: str = ""  # what a damaged spool held
    under_way: deque[_Sent] = field(default_factory=deque)
    under_way_bytes: int = 0
    waiting_since: float = 0.0  # for an acknowledgement, while something is under way

    def send(self, taken: Taken, captured_us: int) -> None:
        record = self.recorder.record(taken, captured_us)
        failpoint("capture-record-made")
        chain = self.publisher.chain
        with chain.lock:
            value = chain.encode(record)
            headers = chain.headers(record)
            unsettled = self.stream.unsettled
            if unsettled is not None:
                headers.append(unsettled_header(unsettled))
            self.stream.send(record.key.encode(), value, headers)
        size = len(taken.payload)
        if not self.under_way:
            self.waiting_since = time.monotonic()
        sent = _Sent(self.stream.sent, self.recorder.standing, steps_of(taken), size, taken.step_time_us)
        self.under_way.append(sent)
        self.under_way_bytes += size
        failpoint("capture-part-sent" if isinstance(taken, Piece) and not taken.last else "capture-record-sent")

    def settle(self) -> None:
        """Take in what has been acknowledged. Raises `KafkaAway`."""
        durable = self.stream.durable()
        progress = self.progress
        if self.under_way and self.under_way[0].number <= durable:
            self.waiting_since = time.monotonic()
        elif self.waited_s() > self.patience_s:
            raise KafkaAway(f"Kafka took nothing for {self.patience_s:g} s")
        while self.under_way and self.under_way[0].number <= durable:
            sent = self.under_way.popleft()
            self.under_way_bytes -= sent.payload_bytes
            progress.durable = sent.standing
            progress.ordinal, progress.position = sent.standing.ordinal, sent.standing.after
            progress.steps += sent.steps
            progress.payload_bytes += sent.payload_bytes
            progress.records += 1
            progress.step_time_us = sent.step_time_us or progress.step_time_us
            failpoint("capture-record-durable")

    def waited_s(self) -> float:
        """For how long what is under way has not moved."""
        return time.monotonic() - self.waiting_since if self.under_way else 0.0

    def full(self) -> bool:
        """Whether the next record waits until one under way is durable.

        Kafka flushes one record after the other, and a flush takes its time however little it is for. So small records
        are not queued up: what the source commits while one is under way goes into the next one together, and is durable
        after a flush and a half, where the last of a queue would wait for all of them. Large ones fill the time.
        """
        if self.under_way and self.under_way_bytes < LIGHT_BYTES:
            return True
        return len(self.under_way) >= UNDER_WAY or self.under_way_bytes >= UNDER_WAY_BYTES


def run_epochs(
    settings: Settings,
    source: Source,
    log: CaptureLog,
    publisher: Publisher,
    sealer: Sealer,
    progress: Progress,
    stop: threading.Event,
    agent: str,
    *,
    spooling: Spooling | None = None,
    ours: int | None = None,
    claimed_now: Callable[[], None] = lambda: None,
) -> None:
    """Capture in one epoch, until `stop` is set. Raises `Fenced`, `CaptureStopped`, other `AgentError`, `DeliveryFailed`.

    After `DeliveryFailed` call it again, with a new publisher; likewise after `KafkaAway`, which is raised where there is
    `spooling`. `ours`: the epoch that must still be the log's last. `claimed_now` is called when Kafka has
    answered and capture is ours.
    """
    name = source.settings.source
    claimed = claim(publisher, log, source=name, agent=agent, stop=stop, ours=ours)
    at = standing(log, claimed.tail)
    claimed_now()
    if spooling is not None:
        spooling.answered()
    progress.lineage, progress.epoch = claimed.tail.lineage, claimed.epoch
    progress.ordinal, progress.position, progress.durable = at.ordinal, at.after, at
    _log.info("%s: epoch %d, after step %d at %s", name, claimed.epoch, at.ordinal, at.after or "the beginning")
    stream = RecordStream(
        settings.kafka,
        log.topic,
        compression=settings.kafka.capture_compression,
        after=claimed.tail.end - 1,
        examine=log.fence(claimed.epoch, publisher.chain.writer),
    )
    recorder = Recorder(name, claimed.tail.lineage, claimed.epoch, claimed.tail.digest, at, sealer)
    epoch = _Epoch(recorder, stream, publisher, progress)
    try:
        reader = None
        if spooling is not None and spooling.active:
            reader = _drain(spooling, epoch, stop)
        if spooling is not None:
            epoch.patience_s = spooling.patience_s
        _follow(source, epoch, stop, reader)
    except KafkaAway:
        stream.abandon()
        raise
    except CaptureStopped as error:
        if not epoch.gap or error.code not in ("capture-purged", "capture-position-lost"):
            raise
        raise CaptureStopped("capture-spool-gap", f"{epoch.gap}; {error.message}", error.hint) from error
    except DeliveryFailed as error:
        stream.abandon()
        if error.code == "capture-fenced":
            raise Fenced(error.code, error.message, error.hint) from error
        raise
    finally:
        _finish(epoch, stop)


def _drain(spooling: Spooling, epoch: _Epoch, stop: threading.Event) -> Stream | None:
    """What is spooled into the log, while the source is read on into the spool; then the spool is needed no more.

    Returns the connection that stands where it ended, if there is one. A Kafka that goes away again changes nothing: records
    under way wait for it, and the source goes on being read. Dying here costs nothing: a segment goes once the log has all
    of it, and what the log has is passed by.
    """
    spool, progress = spooling.spool, epoch.progress
    why = spool.align(progress.lineage, epoch.recorder.standing)
    if why:
        spooling.drop(why)
        return None
    progress.state = "spooling"
    _log.info(
        "%s: draining the spool, %d bytes up to step %d", spooling.name, spool.size, spool.end and spool.end.ordinal
    )
    spooling.start()
    try:
        while not stop.is_set():
            epoch.settle()
            spool.release(progress.ordinal)
            if epoch.waited_s() > AWAY_S:
                spooling.start()
            if epoch.full():
                epoch.stream.wait(_TURN_S, epoch.under_way[0].number)
                continue
            found = spool.next()
            if found is not None:
                epoch.send(*found)
            elif spooling.running and epoch.waited_s() <= AWAY_S:
                spooling.pause()  # what it read meanwhile comes with the next turns
            elif epoch.under_way:
                epoch.stream.wait(_TURN_S, epoch.under_way[0].number)
            else:
                failpoint("spool-all-drained")
                reader = spooling.reader()
                spooling.drop("")
                failpoint("spool-dropped")
                return reader
    except SpoolDamaged as error:
        epoch.gap = error.gap
        spooling.drop(f"{error.gap}: read again from the source")
    return None


def _finish(epoch: _Epoch, stop: threading.Event) -> None:
    """What was sent gets its time to arrive; what does not is asked for again by the next run."""
    try:
        deadline = time.monotonic() + 60.0
        while epoch.stream.wait(_TURN_S) < epoch.stream.sent and time.monotonic() < deadline and not stop.is_set():
            pass
        epoch.settle()
        epoch.stream.close()
    except (DeliveryFailed, KafkaAway) as error:
        _log.warning("not everything that was sent is known to be in the log: %s", error)
    finally:
        epoch.stream.release()


def _follow(source: Source, epoch: _Epoch, stop: threading.Event, reader: Stream | None = None) -> None:
    """Read the source until `stop` is set, through lost connections. `reader`: one that stands where we do."""
    progress = epoch.progress
    pause = _TURN_S
    doubts, stood_at = 0, -1
    while not stop.is_set():
        began = time.monotonic()
        try:
            _session(source, epoch, stop, reader)
        except AgentError as error:
            reader = None
            ordinal = epoch.recorder.standing.ordinal
            moved, stood_at = ordinal != stood_at, ordinal
            if error.code in DOUBTFUL:
                doubts = 1 if moved else doubts + 1
                if doubts >= ATTEMPTS:
                    raise believed(error, ordinal) from error
            elif not isinstance(error, SourceUnavailable):
                raise
            _log.warning("%s: %s", source.settings.source, error)
            progress.state, progress.trouble = "source-unreachable", error.message
            well = moved or time.monotonic() - began > 2 * _LONGEST_PAUSE_S
            pause = _TURN_S if well else min(pause * 2, _LONGEST_PAUSE_S)
            until = time.monotonic() + pause
            while not stop.wait(_TURN_S) and time.monotonic() < until:
                epoch.settle()


def believed(error: AgentError, ordinal: int) -> AgentError:
    """The error once it came `ATTEMPTS` times in a row."""
    if error.code != DAMAGED:
        return error
    return CaptureStopped(
        "capture-log-damaged",
        f"after step {ordinal}, each of {ATTEMPTS} times: {error.message}",
        "check the network (TLS tells its damage from the source's) and the source's log; "
        "then `source resume`, or take a new baseline",
    )


def _session(source: Source, epoch: _Epoch, stop: threading.Event, reader: Stream | None) -> None:
    """One connection to the source: `reader`, or a new one."""
    at = epoch.recorder.standing
    proven = reader is not None or at.proof is None
    if reader is None:
        reader = source.open(at.before, LIMIT, proof=at.after)
    progress = epoch.progress
    try:
        if not proven and not prove(reader, at, stop):
            return
        failpoint("capture-proved")
        progress.state, progress.trouble = "capturing", ""
        take, settle = reader.take, epoch.settle
        while not stop.is_set():
            while epoch.full() and not stop.is_set():
                epoch.stream.wait(_TURN_S, epoch.under_way[0].number)
                settle()
            taken = take(_TURN_S)
            if taken is None:
                progress.caught_up_us = now_us()
                settle()
                continue
            captured_us = now_us()
            if not reader.behind:
                progress.caught_up_us = captured_us
            epoch.send(taken, captured_us)
            settle()
    finally:
        reader.close()
