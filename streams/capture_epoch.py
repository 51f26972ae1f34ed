"""Taking over capture of a source: a new epoch in its log, and the stream that is written under it.

    agent A   E1 r r r r · · · (slow, paused, cut off) · r r        <- dropped by readers; A stops when it sees E2
    agent B                     E2 · reads up to E2 · r r r

The marker goes into the log and is acknowledged; then the log is read up to it. What a predecessor still got in before
it counts; what comes after does not. If somebody else's marker with the same number stands before ours, theirs counts:
we take the next number. Nothing is written under an epoch before this is certain, and readers rely on that.

And if we die here? A marker without records after it: the next epoch has a higher number, nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from streams.capture_log import CaptureLog, Tail
from streams.capture_record import unsettled_header
from streams.errors import DeliveryFailed
from streams.events import EpochStarted, Event
from streams.ids import now_us
from streams.publish import RecordStream, WriterChain
from streams.settings import KafkaSettings

_ATTEMPTS = 8


@dataclass(frozen=True)
class Epoch:
    """An epoch of ours. `tail` is the log up to its marker: where to resume, and what the next record must name."""

    number: int
    tail: Tail
    stream: RecordStream
    chain: WriterChain
    key: bytes

    def send(self, event: Event) -> None:
        """Stamp `event`, a commit record or a lineage's start, and queue it in the stream (`RecordStream.send`)."""
        with self.chain.lock:
            headers = self.chain.headers(event)
            unsettled = self.stream.unsettled
            if unsettled is not None:
                headers.append(unsettled_header(unsettled))
            self.stream.send(self.key, self.chain.encode(event), headers)


def begin_epoch(
    kafka: KafkaSettings,
    log: CaptureLog,
    chain: WriterChain,
    source: str,
    agent: str,
    *,
    queue_kib: int = 32_768,
    compression: str = "none",
    timeout: float = 60.0,
) -> Epoch:
    """Take over capture of `source` as `agent`. Close `Epoch.stream` when done.

    Raises `DeliveryFailed` (`delivery-unconfirmed`, `capture-contended`) and what `CaptureLog.tail` raises.
    """
    number = 0
    stream = RecordStream(
        kafka,
        log.topic,
        compression=compression,
        queue_kib=queue_kib,
        examine=lambda first, last: log.fence(number, chain.writer)(first, last),
    )
    try:
        for _ in range(_ATTEMPTS):
            tail = log.tail()
            number = max(number, tail.epoch if tail is not None else 0) + 1
            lineage = tail.lineage if tail is not None and tail.lineage else None
            marker = EpochStarted(lineage=lineage, epoch=number, source=source, agent=agent, at_us=now_us())
            epoch = Epoch(number, tail or _NOTHING, stream, chain, source.encode())
            epoch.send(marker)
            if stream.wait(timeout) < stream.sent:
                raise DeliveryFailed(
                    "delivery-unconfirmed", f"the epoch's marker was not acknowledged in {timeout:g} s"
                )
            tail = log.tail()
            if tail is not None and (tail.epoch, tail.epoch_writer) == (number, chain.writer):
                return Epoch(number, tail, stream, chain, source.encode())
        raise DeliveryFailed(
            "capture-contended", f"other agents keep taking over capture of {source}", "let only one agent run"
        )
    except BaseException:
        stream.abandon()
        stream.release()
        raise


_NOTHING = Tail("", 0, "", b"", 0, 0, None, None)
