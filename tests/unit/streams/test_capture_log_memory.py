"""A step larger than memory should be: read in pieces, in memory that does not grow with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams.admin import ensure_topics
from streams.capture_record import unsettled_header
from streams.codec import ZERO_DIGEST, encode
from streams.events import Event, Stamp
from streams.ids import uuid7
from streams.publish import RecordStream
from tests.stack.servers import KafkaServer
from tests.stand_ins.capture_writer import CaptureWriter

ROOT = Path(__file__).parents[3]
PART = 900_000
READER = """
import resource, sys
from blake3 import blake3
from streams.capture_log import CaptureLog
from streams.settings import KafkaSettings
bootstrap, prefix = sys.argv[1:]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
with CaptureLog(KafkaSettings(bootstrap, prefix=prefix), "shop") as log:
    tail = log.tail()
    for _ in log.steps(tail.lineage, 1, 3): pass
    before, size, pieces = peak(), 0, 0
    for fragment in log.steps(tail.lineage, 1, tail.ordinal):
        size += len(fragment.payload)
        pieces += 1
    print(tail.ordinal, pieces, size, before, peak())
"""


@pytest.mark.slow
def test_a_step_of_hundreds_of_megabytes_is_read_in_constant_memory(kafka: KafkaServer) -> None:
    settings = kafka.settings(f"t{uuid7()[-8:]}.")
    ensure_topics(settings, [("capture", "shop")])
    writer, started = CaptureWriter.start()
    parts = 500  # 450 MB, after a broken-off attempt of 90

    with RecordStream(settings, f"{settings.prefix}capture.shop") as stream:

        def send(event: Event) -> None:
            value = encode(event, Stamp("a", stream.sent, ZERO_DIGEST))
            stream.send(b"", value, [unsettled_header(30)])

        send(started)
        send(writer.marker(1))
        for _ in range(3):
            send(writer.steps(1))
        for attempt, count in ((uuid7(), 100), (uuid7(), parts)):
            for number in range(count):
                send(writer.part(attempt, number, number == parts - 1, PART))
        for _ in range(3):
            send(writer.steps(1))
        stream.close(120)

    done = subprocess.run(
        [sys.executable, "-c", READER, settings.bootstrap, settings.prefix],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )
    ordinal, pieces, size, before, after = map(int, done.stdout.split())
    assert (ordinal, pieces, size) == (7, parts + 6, parts * PART + 6 * 40)
    assert after - before < 60, f"{before} MB before, {after} MB at the most"
