"""Publishing and reading on a real Kafka: stamps, headers, order, back-pressure, ends, errors."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams import clients
from streams.admin import ensure_topics
from streams.codec import ZERO_DIGEST, chain_digest, encode
from streams.consume import ConsumeError, Message, explained, follow, read_topic
from streams.errors import DeliveryFailed, StreamError
from streams.events import CallAudited, CommandRequested, Event, JobChanged, SourceChanged
from streams.ids import now_us, uuid7
from streams.publish import Publisher, RecordStream
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings
from tests.stack.servers import KafkaServer
from tests.stand_ins.capture_writer import CaptureWriter


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path) -> Settings:
    settings = kafka.settings(f"t{uuid7()[-8:]}.")
    ensure_topics(settings, [("jobs", None), ("commands", None), ("audit", None), ("capture", "shop")])
    postgres = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")
    return Settings("berlin", tmp_path, settings, postgres, ApiSettings(), tmp_path / "site.key")


def job(number: int, key: str = "j") -> JobChanged:
    return JobChanged(job=key, kind="x", asset="shop", state="progressed", at_us=now_us(), by="t", done=number)


def command() -> CommandRequested:
    return CommandRequested(
        command=uuid7(), kind="source.pause", asset="shop", parameters="{}", requester="ann", requested_us=now_us()
    )


def all_of(site: Settings, *topics: str) -> list[Message]:
    return [m for t in topics for m in read_topic(site.kafka, site.kafka.prefix + t)]


def code(call: Callable[[], object]) -> str:
    with pytest.raises(StreamError) as caught:
        call()
    return caught.value.code


def test_what_is_published_is_read_back_with_cloud_event_headers(site: Settings) -> None:
    asked = command()
    before = now_us()
    with Publisher(site, "api") as publisher:
        cause = publisher.publish(asked)
        publisher.publish(job(1), correlation=asked.command, causation=cause)

    (first,) = all_of(site, "commands")
    (second,) = all_of(site, "jobs")
    assert (first.event, first.key, first.id) == (asked, "shop", cause)
    h = {name: value.decode() for name, value in second.headers.items()}
    writer = second.stamp.writer
    assert re.fullmatch(r"api-[0-9a-f-]{36}", writer)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", h.pop("ce_id"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", h.pop("ce_time"))
    assert len(h["hlc"]) == 16
    assert int(h.pop("hlc"), 16) == second.hlc > first.hlc
    assert h == {
        "ce_specversion": "1.0",
        "ce_type": "holdfast.job.changed.v2",
        "ce_source": f"/sites/berlin/{writer}",
        "ce_subject": "j",
        "content-type": "application/avro",
        "correlationid": asked.command,
        "causationid": cause,
    }
    assert before - 1000 <= second.timestamp_us <= now_us() + 1000


def test_the_stamps_of_a_writer_are_one_chain_over_all_topics_whatever_thread_wrote(site: Settings) -> None:
    audited = CallAudited(
        request="r", actor="ann", role="admin", token="t", action="a", object="o", outcome=200, detail="{}",
        remote="127.0.0.1", at_us=1,
    )  # fmt: skip
    with Publisher(site, "agent") as publisher:

        def run(n: int) -> None:
            events: list[Event] = [job(n), command(), audited]
            for i in range(60):
                publisher.publish(events[(n + i) % 3])

        threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    with Publisher(site, "agent") as another:
        another.publish(job(0))
        other_writer = another.chain.writer

    messages = [m for m in all_of(site, "jobs", "commands", "audit") if m.stamp.writer != other_writer]
    previous = ZERO_DIGEST
    for n, message in enumerate(sorted(messages, key=lambda m: m.stamp.sequence)):
        assert (message.stamp.sequence, message.stamp.previous) == (n, previous)
        previous = chain_digest(encode(message.event, message.stamp))
    assert len(messages) == 240
    assert len({m.stamp.writer for m in messages}) == 1
    stamps = sorted((m.stamp.sequence, m.hlc) for m in messages)
    assert stamps == sorted(stamps, key=lambda s: s[1]), "the clock follows the order of publishing"


def test_an_effect_is_later_than_the_cause_it_observed(site: Settings) -> None:
    with Publisher(site, "api") as publisher:
        publisher.observe(2**62)
        publisher.publish(job(1))
    (message,) = all_of(site, "jobs")
    assert message.hlc > 2**62


def test_keys_keep_their_order_and_the_partition_that_java_would_choose(site: Settings) -> None:
    with Publisher(site, "agent") as publisher:
        for n in range(300):
            publisher.publish(job(n, f"job-{n % 7}"))
    messages = all_of(site, "jobs")
    for key in {m.key for m in messages}:
        mine = [m for m in messages if m.key == key]
        assert len({m.partition for m in mine}) == 1
        numbers = [m.event.done for m in mine if isinstance(m.event, JobChanged)]
        assert numbers == sorted(numbers)
    # org.apache.kafka.common.utils.Utils.murmur2 of these keys, made positive, modulo 4.
    assert {m.key: m.partition for m in messages} == {f"job-{n}": murmur2(b"job-%d" % n) % 4 for n in range(7)}


def murmur2(data: bytes) -> int:
    """MurmurHash2 as Kafka's Java clients use it for keys (Austin Appleby; seed 0x9747b28c), made positive."""
    mask = 0xFFFFFFFF
    m, h = 0x5BD1E995, (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


def test_per_source_topics_take_the_name_from_the_event_or_from_the_caller(site: Settings) -> None:
    _, started = CaptureWriter.start("shop")
    with Publisher(site, "agent") as publisher:
        publisher.sent_and_durable(started, started, of="shop")
        publisher.sent_and_durable(started)
        assert code(lambda: publisher.publish(job(1), of="shop")) == "topic-unknown"
    assert [m.event for m in all_of(site, "capture.shop")] == [started] * 3


def test_an_event_that_does_not_fit_takes_no_place_in_the_chain(site: Settings) -> None:
    with Publisher(site, "agent") as publisher:
        publisher.publish(job(0))
        assert code(lambda: publisher.publish(job("one"))) == "event-invalid"  # type: ignore[arg-type]
        publisher.publish(job(1))
    assert [m.stamp.sequence for m in all_of(site, "jobs")] == [0, 1]


def test_flush_waits_for_what_was_published_and_says_when_it_cannot(site: Settings, kafka: KafkaServer) -> None:
    with Publisher(site, "agent") as publisher:
        publisher.flush(0)
        publisher.sent_and_durable(job(0))
        assert len(all_of(site, "jobs")) == 1
        kafka.pause()
        try:
            publisher.publish(job(1))
            began = time.monotonic()
            assert code(lambda: publisher.flush(0.3)) == "delivery-unconfirmed"
            assert time.monotonic() - began < 5
        finally:
            kafka.resume()
        publisher.flush(30)
    assert len(all_of(site, "jobs")) == 2


def test_a_topic_that_is_not_there_is_a_sticky_error_that_names_the_remedy(site: Settings) -> None:
    publisher = Publisher(site, "agent")
    changed = SourceChanged(source="shop", state="paused", at_us=1, by="t")
    with pytest.raises(DeliveryFailed) as caught:
        publisher.sent_and_durable(changed)
    assert (caught.value.code, "inventory" in caught.value.message) == ("delivery-failed", True)
    assert "ensure_topics" in caught.value.hint
    assert code(lambda: publisher.publish(job(1))) == "delivery-failed"
    assert code(publisher.flush) == "delivery-failed"
    assert code(publisher.close) == "delivery-failed"
    publisher.close()


def test_closing_with_records_that_did_not_arrive_says_so(site: Settings, kafka: KafkaServer) -> None:
    publisher, stream = Publisher(site, "agent"), RecordStream(site.kafka, f"{site.kafka.prefix}capture.shop")
    publisher.sent_and_durable(job(0))
    stream.send(b"", b"0", [])
    assert stream.wait(120) == 1
    kafka.pause()
    try:
        publisher.publish(job(1))
        stream.send(b"", b"1", [])
        assert code(lambda: publisher.close(0.2)) == "delivery-unconfirmed"
        assert code(lambda: stream.close(0.2)) == "delivery-unconfirmed"
        assert code(lambda: publisher.publish(job(2))) == "delivery-abandoned"
    finally:
        kafka.resume()


def test_a_full_queue_makes_the_writer_wait_and_memory_stays_bounded(site: Settings, kafka: KafkaServer) -> None:
    topic = f"{site.kafka.prefix}capture.shop"
    stream = RecordStream(site.kafka, topic, queue_kib=512)
    stream.send(b"", b"first", [])
    assert stream.wait(120) == 1
    resumed = threading.Event()

    def resume() -> None:
        resumed.set()
        kafka.resume()

    kafka.pause()
    timer = threading.Timer(2.0, resume)
    timer.start()
    value = bytes(100_000)
    before: list[int] = []
    for _ in range(30):
        stream.send(b"", value, [])
        if not resumed.is_set():
            before.append(stream.sent)
    timer.join()
    assert before[-1] <= 1 + 6, "six records of 100 kB are more than the queue holds"
    stream.close(60)
    assert stream.sent == 31


def test_somebody_who_waits_for_room_can_be_told_to_give_up(site: Settings, kafka: KafkaServer) -> None:
    stream = RecordStream(site.kafka, f"{site.kafka.prefix}capture.shop", queue_kib=64)
    stream.send(b"", b"first", [])
    assert stream.wait(120) == 1
    kafka.pause()
    try:
        threading.Timer(0.5, stream.abandon).start()

        def fill() -> None:
            while True:
                stream.send(b"", bytes(10_000), [])

        assert code(fill) == "delivery-abandoned"
    finally:
        kafka.resume()
        stream.release()


def test_durable_counts_and_wait_returns_soon_after_the_acknowledgement(site: Settings) -> None:
    with RecordStream(site.kafka, f"{site.kafka.prefix}capture.shop") as stream:
        assert (stream.durable(), stream.sent, stream.wait(0.01)) == (0, 0, 0)
        waits = []
        for n in range(1, 101):
            began = time.monotonic()
            stream.send(b"", bytes(500), [])
            assert stream.wait(10) == n
            waits.append(time.monotonic() - began)
        for _ in range(50):
            stream.send(b"", bytes(500), [])
        assert stream.wait(10, count=120) >= 120
        assert stream.wait(10) == 150
    # Far below a turn of waiting: whoever waits is woken by the acknowledgement itself. The median, on a busy machine.
    assert sorted(waits)[50] < 0.08


def test_two_threads_that_wait_are_both_woken(site: Settings) -> None:
    with Publisher(site, "agent") as publisher:
        publisher.sent_and_durable(job(0))
        slowest: list[float] = []

        def run() -> None:
            took = []
            for n in range(30):
                began = time.monotonic()
                publisher.sent_and_durable(job(n))
                took.append(time.monotonic() - began)
            slowest.append(sorted(took)[15])

        threads = [threading.Thread(target=run) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(slowest) == 3
    assert max(slowest) < 0.2


def test_strangers_between_our_records_are_examined_and_count_until_then_as_unsettled(site: Settings) -> None:
    topic = f"{site.kafka.prefix}capture.shop"
    examined: list[tuple[int, int]] = []
    refuse = False

    def examine(first: int, last: int) -> None:
        examined.append((first, last))
        if refuse:
            raise DeliveryFailed("capture-fenced", "somebody else")

    with RecordStream(site.kafka, topic) as other, RecordStream(site.kafka, topic) as blind:
        other.send(b"", b"x", [])
        assert other.wait(120) == 1
        stream = RecordStream(site.kafka, topic, after=-1, examine=examine)
        assert (stream.unsettled, blind.unsettled) == (0, None)
        stream.send(b"", b"a", [])
        assert stream.wait(120) == 1
        assert (examined, stream.unsettled) == ([(0, 0)], 0)
        for _ in range(3):
            other.send(b"", b"y", [])
        assert other.wait(120) == 4
        stream.send(b"", b"b", [])
        assert stream.wait(120) == 2
        assert (examined, stream.unsettled) == ([(0, 0), (2, 4)], 0)

        refuse = True
        other.send(b"", b"z", [])
        assert other.wait(120) == 5
        stream.send(b"", b"c", [])
        assert code(lambda: stream.wait(120)) == "capture-fenced"
        assert code(lambda: stream.send(b"", b"d", [])) == "capture-fenced"
        stream.release()


def test_reading_starts_where_it_is_told_and_ends_where_the_topic_ended(site: Settings) -> None:
    with Publisher(site, "agent") as publisher:
        for n in range(100):
            publisher.publish(job(n, f"job-{n % 7}"))
    topic = f"{site.kafka.prefix}jobs"
    everything = all_of(site, "jobs")
    assert len(everything) == 100
    sizes = {p: sum(m.partition == p for m in everything) for p in range(4)}
    full = next(p for p in sizes if sizes[p] > 2)

    part = list(read_topic(site.kafka, topic, {full: sizes[full] - 2}))
    assert [m.offset for m in part if m.partition == full] == [sizes[full] - 2, sizes[full] - 1]
    assert len(part) == 100 - sizes[full] + 2
    assert list(read_topic(site.kafka, topic, sizes)) == []


def test_reading_an_empty_topic_ends_at_once_and_a_missing_one_says_so(site: Settings) -> None:
    assert all_of(site, "audit") == []
    assert code(lambda: all_of(site, "nothing")) == "topic-missing"


def test_an_offset_that_kafka_has_trimmed_is_not_skipped(site: Settings) -> None:
    from confluent_kafka import TopicPartition

    topic = f"{site.kafka.prefix}capture.shop"
    _, started = CaptureWriter.start()
    with Publisher(site, "agent") as publisher:
        for _ in range(10):
            publisher.publish(started)
    admin = clients.admin(site.kafka)
    for future in admin.delete_records([TopicPartition(topic, 0, 4)]).values():
        future.result(20)

    assert [m.offset for m in read_topic(site.kafka, topic)] == [4, 5, 6, 7, 8, 9]
    assert code(lambda: list(read_topic(site.kafka, topic, {0: 2}))) == "offset-trimmed"
    assert code(lambda: list(follow(site.kafka, [topic], {(topic, 0): 2}, threading.Event()))) == "offset-trimmed"
    assert code(lambda: list(follow(site.kafka, [topic], {(topic, 0): 20}, threading.Event()))) == "offset-trimmed"


def test_a_record_that_is_none_of_ours_raises_and_says_where_it_is(site: Settings) -> None:
    topic = f"{site.kafka.prefix}jobs"
    with RecordStream(site.kafka, topic) as stream:
        stream.send(b"", b"hello", [])
    with pytest.raises(StreamError) as caught:
        list(read_topic(site.kafka, topic))
    assert caught.value.code == "record-unreadable"
    assert f"{topic}[0]@0" in caught.value.message


def test_following_gives_what_is_there_and_what_comes_in_batches_that_are_not_empty(site: Settings) -> None:
    topics = [f"{site.kafka.prefix}{t}" for t in ("jobs", "commands")]
    stop = threading.Event()
    got: list[Message] = []
    with Publisher(site, "agent") as publisher:
        for n in range(50):
            publisher.publish(job(n))
        publisher.sent_and_durable(command())
        for messages in follow(site.kafka, topics, None, stop):
            assert messages
            got += messages
            if len(got) == 51:
                publisher.publish(job(50))
            if len(got) >= 52:
                stop.set()
    assert len(got) == 52
    rest = follow(
        site.kafka, topics, {(m.topic, m.partition): m.offset + 1 for m in got}, threading.Event(), ticks=True
    )
    assert next(rest) == []
    rest.close()


def test_a_broker_that_is_away_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    settings = KafkaSettings("127.0.0.1:1")
    with caplog.at_level(logging.DEBUG, logger="holdfast.kafka"):
        stream = RecordStream(settings, "x")
        stream.send(b"", b"", [])
        stream.wait(2.0)
        assert "Connection refused" in stream.trouble or "down" in stream.trouble
        stream.release()
    assert 1 <= sum("refused" in r.getMessage() for r in caplog.records) <= 4


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (KafkaError._TRANSPORT, "kafka-unreachable"),
        (KafkaError._UNKNOWN_PARTITION, "kafka-unreachable"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "kafka-refused"),
    ],
)
def test_a_broker_that_is_just_starting_is_away_and_does_not_refuse(code: int, wanted: str) -> None:
    with pytest.raises(ConsumeError) as caught, explained("look"):
        raise KafkaException(KafkaError(code))
    assert caught.value.code == wanted
