"""A process that captures a source that is not there: it takes over, then appends steps until it is killed or fenced.

`python -P -m tests.stand_ins.capture_agent BOOTSTRAP PREFIX SOURCE LIMIT`: it stops by itself after step LIMIT, and exits
with 3 when another one took over. What step n holds follows from n (`payload_of`), so whoever reads can tell.
"""

from __future__ import annotations

import random
import sys

from streams.capture_log import CaptureLog
from streams.capture_record import unsettled_header
from streams.errors import DeliveryFailed
from streams.events import Event
from streams.ids import uuid7
from streams.publish import RecordStream, WriterChain
from streams.settings import KafkaSettings
from tests.stand_ins.capture_writer import CaptureWriter

FENCED = 3
CONTENDED = 4


def size_of(ordinal: int) -> int:
    """Bytes of a step, or of each of its parts."""
    return 2000 if ordinal % 50 == 0 else 40


def parts_of(ordinal: int) -> int:
    """In how many parts a step comes; 1: as a whole."""
    return 2 + ordinal % 7 if ordinal % 50 == 0 else 1


def main(bootstrap: str, prefix: str, source: str, limit: int) -> int:
    kafka = KafkaSettings(bootstrap, prefix=prefix)
    chain = WriterChain("test", "agent")
    rng = random.Random()
    with CaptureLog(kafka, source) as log:
        before = log.tail()
        writer, started = CaptureWriter.start(source)
        if before is not None and before.lineage:
            writer.lineage = before.lineage
        marker = writer.marker((before.epoch if before is not None else 0) + 1)
        with RecordStream(kafka, log.topic) as first:
            first.send(b"", chain.encode(marker), chain.headers(marker))
            first.wait(120)
        tail = log.tail()
        if tail is None or (tail.epoch, tail.epoch_writer) != (writer.epoch, chain.writer):
            return CONTENDED
        stream = RecordStream(
            kafka, log.topic, queue_kib=256, after=tail.end - 1, examine=log.fence(writer.epoch, chain.writer)
        )

        def send(event: Event) -> None:
            settled = stream.unsettled
            assert settled is not None
            headers = [*chain.headers(event), unsettled_header(settled)]
            stream.send(source.encode(), chain.encode(event), headers)

        try:
            if tail.lineage:
                writer.digest, writer.ordinal = tail.digest, tail.ordinal
            else:
                send(started)
            while writer.ordinal < limit:
                following = writer.ordinal + 1
                if parts_of(following) > 1:
                    attempt = uuid7()
                    for number in range(parts_of(following)):
                        send(writer.part(attempt, number, number == parts_of(following) - 1, size_of(following)))
                else:
                    send(writer.steps(min(rng.randint(1, 5), 50 - following % 50), 40))
            stream.close(60)
        except DeliveryFailed as error:
            if error.code == "capture-fenced":
                return FENCED
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
