"""Our side of the capture benchmarks: the capture process, as a site runs it, on a site of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Consumer, TopicPartition

from agents.capture.takeover import start_lineage
from streams.admin import ensure_topics
from streams.capture_log import CaptureLog
from streams.consume import read_topic
from streams.events import CommitsRecorded, SourceDefined
from streams.ids import now_us
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name
from tests.bench import ground
from tests.bench.ground import Ground
from tests.stack.servers import config_file

SOURCE = "bench"


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` from reading the first record's steps to Kafka's appending of the last; CPU of the process in between."""

    seconds: float
    cpu_seconds: float
    payload_bytes: int
    records: int


def prepare(g: Ground, name: str, position: str) -> Settings:
    """A site that protects the source from native `position` on; nothing captures yet."""
    settings = g.site(name)
    topic = topic_name(settings.kafka.prefix, "capture", SOURCE)
    # The broker's own clock on each record, so that nothing has to watch while capture runs.
    ground.create_topic(settings.kafka, topic, {"message.timestamp.type": "LogAppendTime"})
    ensure_topics(settings.kafka, [("inventory", None), ("health", None), ("capture", SOURCE)])
    store = SecretStore(settings)
    reference = store.put(f"sources/{SOURCE}/capture", g.passwords["capture"].encode())
    with Publisher(settings, "bench") as publisher, CaptureLog(settings.kafka, SOURCE) as log:
        publisher.sent_and_durable(
            SourceDefined(
                source=SOURCE,
                kind="mariadb",
                host="127.0.0.1",
                port=g.mariadb.port,
                accounts={"capture": "hf_capture"},
                secrets={"capture": reference},
                defined_us=now_us(),
                by="bench",
            )
        )
        start_lineage(
            publisher,
            log,
            source=SOURCE,
            position=position,
            baseline="none",
            reason="protected",
            server_id=1,
            server_version=g.mariadb.version,
            agent="bench",
        )
    return settings


@contextlib.contextmanager
def capture(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The capture process of the site."""
    argv = [sys.executable, "-P", "-m", "agents.capture", "--config", str(config_file(settings)), "--source", SOURCE]
    with (settings.data_dir / "capture.log").open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def watermark(settings: Settings) -> Iterator[Watermark]:
    consumer = Consumer({**settings.kafka.client_config(), "group.id": "bench"})
    try:
        yield Watermark(consumer, TopicPartition(topic_name(settings.kafka.prefix, "capture", SOURCE), 0))
    finally:
        consumer.close()


@dataclass(frozen=True, slots=True)
class Watermark:
    """Asks Kafka each time."""

    consumer: Consumer
    partition: TopicPartition

    def __call__(self) -> int:
        """How many records the capture topic has."""
        found = self.consumer.get_watermark_offsets(self.partition, timeout=10)
        assert found is not None
        return int(found[1])


def backlog(g: Ground, name: str, position: str, steps: int, limit: float = 600) -> Run:
    """Capture everything after `position` that the source's binlog holds: `steps` steps."""
    settings = prepare(g, name, position)
    with watermark(settings) as high:
        before = high()
        with capture(settings) as process:
            ground.until(lambda: high() > before + 1, 60)
            return await_steps(settings, high, steps, limit, process)


def await_steps(settings: Settings, high: Watermark, steps: int, limit: float, process: subprocess.Popen[bytes]) -> Run:
    """Wait until capture, which has begun, has reached step `steps`, and everything it was sent is in the log."""
    cpu = ground.cpu_seconds(process.pid)
    _await_step(settings, high, steps, limit, process)
    cpu = ground.cpu_seconds(process.pid) - cpu
    first = last = payload_bytes = records = 0
    for message in read_topic(settings.kafka, high.partition.topic):
        event = message.event
        if isinstance(event, CommitsRecorded):
            first, last = first or event.captured_us, message.timestamp_us
            payload_bytes += len(event.payload)
            records += 1
    return Run((last - first) / 1e6, cpu, payload_bytes, records)


def _await_step(
    settings: Settings, high: Watermark, steps: int, limit: float, process: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + limit
    last = -1
    with CaptureLog(settings.kafka, SOURCE) as log:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError((settings.data_dir / "capture.log").read_text()[-2000:])
            now = high()
            if now == last:  # fallen silent: done, or stuck
                tail = log.tail()
                if tail is not None and tail.ordinal >= steps:
                    return
            last = now
            time.sleep(0.25)
    raise TimeoutError(f"capture did not reach step {steps} within {limit:g} s")
