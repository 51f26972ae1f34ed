"""The journal on a real Kafka: ordinals are the same for everybody, and a log that is not what it was is noticed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from agents.repository.journal import Counting, JournalError, KafkaJournal
from agents.repository.ledger import Ledger
from agents.repository.sessions import SessionError, Sessions
from agents.repository.stores.memory import MemoryStore
from deploy.embedded.process import wait_until
from streams.admin import ensure_topics, topic_id
from streams.consume import ends, open_consumer, read_topic
from streams.events import SessionClosed, Ticked
from streams.publish import Publisher
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings
from tests.stack.servers import KafkaServer
from tests.stand_ins.toy_repository import begin


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path) -> Settings:
    postgres = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")
    log = kafka.settings(f"t{secrets.token_hex(4)}.")
    settings = Settings("test", tmp_path, log, postgres, ApiSettings(), tmp_path / "site.key")
    ensure_topics(settings.kafka, [("repository", None)])
    return settings


@pytest.fixture
def publisher(site: Settings) -> Iterator[Publisher]:
    with Publisher(site, "test") as made:
        yield made


@pytest.fixture
def journal(site: Settings, publisher: Publisher) -> Iterator[KafkaJournal]:
    made = KafkaJournal(site.kafka, publisher, "main")
    yield made
    made.close()


def tick(number: int, repository: str = "main") -> Ticked:
    return Ticked(repository=repository, node="a", ticker="t", number=number, interval_us=1, at_us=1)


def end(number: int) -> SessionClosed:
    return SessionClosed(repository="main", session=f"s{number}", outcome="done", closed_us=1, by="test")


def raw(kafka: KafkaSettings) -> list[Message]:
    """What the topic holds, as Kafka has it."""
    topic = f"{kafka.prefix}repository"
    consumer: Consumer = open_consumer(kafka)
    try:
        high = ends(consumer, topic, 0)[1]
        consumer.assign([TopicPartition(topic, 0, 0)])
        out: list[Message] = []
        while len(out) < high:
            message = consumer.poll(5)
            if message is not None and message.error() is None:
                out.append(message)
        return out
    finally:
        consumer.close()


def copied(records: Iterable[Message], to: KafkaSettings) -> None:
    """What a mirror, or a backup that is played back, does: the records as they are, at other offsets."""
    producer = Producer({**to.client_config(), "acks": "all"})
    for m in records:
        producer.produce(f"{to.prefix}repository", m.value(), m.key(), 0, headers=m.headers())
    assert producer.flush(30) == 0


def another_log(kafka: KafkaServer) -> KafkaSettings:
    made = kafka.settings(f"t{secrets.token_hex(4)}.")
    ensure_topics(made, [("repository", None)])
    return made


def test_ordinals_count_a_repositorys_own_events_for_everybody_alike(
    site: Settings, publisher: Publisher, journal: KafkaJournal
) -> None:
    other = KafkaJournal(site.kafka, publisher, "other")
    assert journal.head() == 0
    said = [journal.append(tick(1)), journal.append(end(1))]
    elsewhere = other.append(tick(1, "other"))
    said.append(journal.append(end(2)))

    assert [e.ordinal for e in said] == [1, 2, 3]
    assert elsewhere.ordinal == 1
    fresh = KafkaJournal(site.kafka, publisher, "main")
    assert list(fresh.read()) == list(journal.read()) == list(journal.read(0)) == said
    assert list(journal.read(1)) == list(fresh.read(1)) == said[1:]
    assert fresh.head() == 3
    fresh.close()
    other.close()


def test_a_copy_of_the_log_has_the_same_ordinals_and_what_came_twice_counts_once(
    kafka: KafkaServer, site: Settings, publisher: Publisher, journal: KafkaJournal
) -> None:
    said = [journal.append(end(n)) for n in range(4)]
    records = raw(site.kafka)
    mirror = another_log(kafka)
    copied([*records[:3], *records[1:3], *records[1:]], mirror)

    copy = KafkaJournal(mirror, publisher, "main")
    assert list(copy.read()) == said
    copy.close()


def test_a_copy_that_is_out_of_order_is_refused(
    kafka: KafkaServer, site: Settings, publisher: Publisher, journal: KafkaJournal
) -> None:
    for number in range(3):
        journal.append(end(number))
    records = raw(site.kafka)
    mirror = another_log(kafka)
    copied([records[0], records[2], records[1]], mirror)

    copy = KafkaJournal(mirror, publisher, "main")
    with pytest.raises(JournalError) as refused:
        list(copy.read())
    assert refused.value.code == "journal-broken"
    copy.close()


def test_a_log_without_its_beginning_cannot_be_counted(
    site: Settings, publisher: Publisher, journal: KafkaJournal
) -> None:
    for number in range(3):
        journal.append(end(number))
    topic = f"{site.kafka.prefix}repository"
    admin = AdminClient(site.kafka.client_config())
    for future in admin.delete_records([TopicPartition(topic, 0, 2)]).values():
        future.result()
    fresh = KafkaJournal(site.kafka, publisher, "main")
    for one in (fresh, journal):
        with pytest.raises(JournalError) as refused:
            list(one.read())
        assert refused.value.code == "journal-trimmed"
    fresh.close()


def test_a_kafka_restored_from_an_earlier_state_takes_no_collector_and_no_backup(
    kafka: KafkaServer, site: Settings, publisher: Publisher, journal: KafkaJournal
) -> None:
    store = MemoryStore()
    node = Sessions(journal, store, "a")
    first = begin(node)
    first.put([1])
    first.seal()
    first.session.close()
    old = raw(site.kafka)
    second = begin(node)
    second.put([2])
    second.seal()
    second.session.close()

    restored = another_log(kafka)
    copied(old, restored)
    with Publisher(replace(site, kafka=restored), "test") as there:
        behind = Sessions(KafkaJournal(restored, there, "main"), store, "a")
        for kind in ("collect", "backup"):
            with pytest.raises(JournalError) as refused:
                behind.open(kind, by="test")
            assert refused.value.code == "journal-behind"
        assert behind.open("restore", by="test", pins=list(behind.ledger().standing())).epoch
        behind.journal.close()


def test_a_log_that_became_shorter_under_a_running_node_is_noticed(
    site: Settings, publisher: Publisher, journal: KafkaJournal
) -> None:
    for number in range(5):
        journal.append(end(number))
    records = raw(site.kafka)
    topic = f"{site.kafka.prefix}repository"
    before = topic_id(site.kafka, topic)
    admin = AdminClient(site.kafka.client_config())
    for future in admin.delete_topics([topic]).values():
        future.result()
    assert wait_until(lambda: topic not in admin.list_topics(timeout=60).topics, 60, 0.2)
    ensure_topics(site.kafka, [("repository", None)])
    assert topic_id(site.kafka, topic) != before
    copied(records[:2], site.kafka)
    with pytest.raises(JournalError) as refused:
        journal.head()
    assert refused.value.code in ("journal-changed", "journal-unreachable")


def test_what_kafka_does_not_confirm_is_not_said_and_may_come_into_the_log_yet(
    kafka: KafkaServer, site: Settings, publisher: Publisher
) -> None:
    hasty = KafkaJournal(site.kafka, publisher, "main", patience_s=1)
    kafka.pause()
    try:
        with pytest.raises(JournalError) as refused:
            hasty.append(end(1))
        assert refused.value.code == "journal-unreachable"
    finally:
        kafka.resume()
    publisher.flush(120)
    hasty.close()
    patient = KafkaJournal(site.kafka, publisher, "main", patience_s=120)
    assert [entry.event for entry in patient.read()] == [end(1)]
    patient.close()


def test_two_nodes_on_one_log_agree_who_was_fenced(site: Settings, publisher: Publisher) -> None:
    store = MemoryStore()
    with Publisher(site, "test") as elsewhere:
        a = Sessions(KafkaJournal(site.kafka, publisher, "main"), store, "a", lease_ticks=2)
        b = Sessions(KafkaJournal(site.kafka, elsewhere, "main"), store, "b", lease_ticks=2)
        zombie, living = begin(b), begin(a)
        for number in range(2):
            a.tick("ticker of a", number, 1)
        assert a.fence_expired("test") == [zombie.session.id]
        with pytest.raises(SessionError):
            zombie.seal()
        point = living.seal()
        assert list(a.ledger().standing()) == list(b.ledger().standing()) == [point]
        assert Ledger().apply(b.journal.read()).ignored == a.ledger().ignored
        a.journal.close()
        b.journal.close()


def test_counting_is_of_one_repository(site: Settings, publisher: Publisher, journal: KafkaJournal) -> None:
    journal.append(end(1))
    publisher.sent_and_durable(tick(1, "other"))
    counting = Counting("other")
    taken = [counting.take(m) for m in read_topic(site.kafka, f"{site.kafka.prefix}repository")]
    assert [None if e is None else e.ordinal for e in taken] == [None, 1]
