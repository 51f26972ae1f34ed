"""A broker that pauses or dies while records are on their way: where others lose records in the middle, we do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as KafkaMessage

from streams.admin import ensure_topics
from streams.consume import batch, ends, open_consumer, read_topic
from streams.errors import DeliveryFailed
from streams.events import JobChanged
from streams.ids import now_us, uuid7
from streams.publish import Publisher, RecordStream
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings
from tests.stack.servers import KafkaServer

pytestmark = pytest.mark.crash
PAUSE_S = 6.0


@pytest.fixture
def topics(kafka: KafkaServer) -> Iterator[KafkaSettings]:
    settings = kafka.settings(f"t{uuid7()[-8:]}.")
    ensure_topics(settings, [("capture", "shop"), ("jobs", None)])
    yield settings
    if not kafka.process.alive():
        kafka.restart()


def in_the_log(settings: KafkaSettings, topic: str) -> list[int]:
    """The numbers that stand in partition 0, in order."""
    from confluent_kafka import TopicPartition

    consumer = open_consumer(settings)
    try:
        _, high = ends(consumer, topic, 0)
        consumer.assign([TopicPartition(topic, 0, 0)])
        out: list[int] = []
        at = 0
        while at < high:
            for message in batch(consumer, 1.0):
                if message.error() is None:
                    out.append(int(message.value() or b"-1"))
                    at = (message.offset() or 0) + 1
        return out
    finally:
        consumer.close()


def pause_for(kafka: KafkaServer, seconds: float) -> threading.Thread:
    """Stop the broker now, let it go on after `seconds`."""
    kafka.pause()
    thread = threading.Timer(seconds, kafka.resume)
    thread.start()
    return thread


def test_with_a_time_limit_on_delivery_an_idempotent_producer_leaves_a_hole(
    kafka: KafkaServer, topics: KafkaSettings
) -> None:
    """The peer: librdkafka with acks=all and idempotence, and a finite message.timeout.ms."""
    topic = f"{topics.prefix}capture.shop"
    errors: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: KafkaMessage) -> None:
        if error is not None:
            errors.append(error)

    producer = Producer(
        {
            **topics.client_config(),
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": 2000,
            "linger.ms": 0,
            "log_level": 0,
        }
    )
    producer.produce(topic, b"0", on_delivery=delivered)
    assert producer.flush(30) == 0
    resuming = pause_for(kafka, PAUSE_S)
    try:
        for number in range(1, 101):
            producer.produce(topic, b"%d" % number, on_delivery=delivered)
            producer.poll(0.1)
    finally:
        resuming.join()
    producer.flush(60)

    there = in_the_log(topics, topic)
    missing = sorted(set(range(101)) - set(there))
    assert missing
    assert max(there) > max(missing), "the hole is in the middle"
    assert not any(error.fatal() for error in errors), "and nothing fatal was said"


def test_our_stream_loses_nothing_in_the_same_pause_and_keeps_the_order(
    kafka: KafkaServer, topics: KafkaSettings
) -> None:
    topic = f"{topics.prefix}capture.shop"
    with RecordStream(topics, topic) as stream:
        stream.send(b"", b"0", [])
        assert stream.wait(120) == 1
        resuming = pause_for(kafka, PAUSE_S)
        try:
            for number in range(1, 101):
                stream.send(b"", b"%d" % number, [])
                stream.wait(0.1)
        finally:
            resuming.join()
        assert stream.wait(120) == 101
    assert in_the_log(topics, topic) == list(range(101))


@pytest.fixture
def site(topics: KafkaSettings, tmp_path: Path) -> Settings:
    postgres = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")
    return Settings("test", tmp_path, topics, postgres, ApiSettings(), tmp_path / "site.key")


def job(number: int) -> JobChanged:
    return JobChanged(
        job=f"j{number % 5}", kind="x", asset="shop", state="progressed", at_us=now_us(), by="t", done=number
    )


def assert_all_jobs_in_order(settings: KafkaSettings, count: int) -> None:
    """Each once; in each key's order; and one unbroken chain of the writer over all partitions."""
    messages = list(read_topic(settings, f"{settings.prefix}jobs"))
    events = [m.event for m in messages if isinstance(m.event, JobChanged)]
    assert sorted(e.done for e in events) == list(range(count))
    for key in {e.job for e in events}:
        numbers = [e.done for e in events if e.job == key]
        assert numbers == sorted(numbers)
    assert sorted(m.stamp.sequence for m in messages) == list(range(count))


def test_our_publisher_loses_nothing_in_the_same_pause(kafka: KafkaServer, site: Settings) -> None:
    with Publisher(site, "test") as publisher:
        publisher.sent_and_durable(job(0))
        resuming = pause_for(kafka, PAUSE_S)
        try:
            with pytest.raises(DeliveryFailed) as caught:
                publisher.sent_and_durable(job(1), timeout=1.0)
            assert caught.value.code == "delivery-unconfirmed", "not known yet, and not an error to stay"
            for number in range(2, 101):
                publisher.publish(job(number))
        finally:
            resuming.join()
        publisher.flush(60)
    assert_all_jobs_in_order(site.kafka, 101)


def test_a_broker_killed_again_and_again_while_we_publish_delays_and_nothing_else(
    kafka: KafkaServer, topics: KafkaSettings, site: Settings
) -> None:
    topic = f"{topics.prefix}capture.shop"
    stop = threading.Event()
    sent = {"stream": 0, "publisher": 0}
    failed: list[BaseException] = []

    def run_stream() -> None:
        try:
            with RecordStream(topics, topic) as stream:
                while not stop.is_set():
                    stream.send(b"", b"%d" % sent["stream"], [])
                    sent["stream"] += 1
                    if sent["stream"] % 50 == 0:
                        stream.wait(0.02)
                stream.close(60)
        except BaseException as error:
            failed.append(error)
            raise

    def run_publisher() -> None:
        try:
            publisher = Publisher(site, "test")
            while not stop.is_set():
                publisher.publish(job(sent["publisher"]))
                sent["publisher"] += 1
                if sent["publisher"] % 20 == 0:
                    time.sleep(0.02)
            publisher.close(60)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run_stream), threading.Thread(target=run_publisher)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            mark = dict(sent)
            deadline = time.monotonic() + 60
            while any(sent[k] < mark[k] + 500 for k in sent) and not failed and time.monotonic() < deadline:
                time.sleep(0.02)
            kafka.kill()
            kafka.restart()
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)

    assert not failed
    assert in_the_log(topics, topic) == list(range(sent["stream"]))
    assert sent["stream"] > 1000
    assert_all_jobs_in_order(site.kafka, sent["publisher"])


def test_what_cannot_be_delivered_ends_the_stream_there_with_nothing_after_it_in_the_log(
    kafka: KafkaServer, topics: KafkaSettings
) -> None:
    """A record larger than the topic takes, with a hundred behind it already: they must not close ranks over the gap."""
    topic = f"{topics.prefix}jobs"  # takes 1 MiB, our client sends up to 8
    stream = RecordStream(topics, topic)
    for number in range(5):
        stream.send(b"", b"%d" % number, [])
    assert stream.wait(120) == 5

    def go_on() -> None:
        stream.send(b"", b"0" * 2_000_000, [])
        for number in range(6, 106):
            stream.send(b"", b"%d" % number, [])
        stream.wait(120)

    with pytest.raises(DeliveryFailed) as caught:
        go_on()
    assert caught.value.code == "delivery-failed"
    assert "max.message.bytes" in caught.value.hint
    for call in (stream.durable, lambda: stream.wait(0), lambda: stream.send(b"", b"", []), stream.close):
        with pytest.raises(DeliveryFailed):
            call()
    assert in_the_log(topics, topic) == list(range(5))
