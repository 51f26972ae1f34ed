"""The catalogue, and topics made from it on a real Kafka."""

from __future__ import annotations

import threading
import time

import pytest
from confluent_kafka.cimpl import NewTopic

from streams import clients
from streams.admin import AdminError, _judge, check_cluster, ensure_topics, topic_id
from streams.errors import StreamError
from streams.ids import uuid7
from streams.settings import KafkaSettings
from streams.topics import BY_NAME, CATALOGUE, settings_of, topic_name
from tests.stack.servers import KafkaServer


@pytest.fixture
def settings(kafka: KafkaServer) -> KafkaSettings:
    return kafka.settings(f"t{uuid7()[-8:]}.")


def test_names() -> None:
    assert topic_name("holdfast.", "jobs") == "holdfast.jobs"
    assert topic_name("hf.", "capture", "shop") == "hf.capture.shop"
    for wrong in (("nothing", None), ("jobs", "shop"), ("capture", None), ("capture", "a.b"), ("capture", "")):
        with pytest.raises(StreamError):
            topic_name("holdfast.", *wrong)


def test_the_capture_topic_has_one_partition_and_takes_records_of_several_megabytes() -> None:
    assert BY_NAME["capture"].partitions == 1
    assert BY_NAME["capture"].max_message_bytes >= 2_000_000


@pytest.mark.parametrize(("copies", "insync", "flush"), [(1, "1", "1"), (2, "1", None), (3, "2", None)])
def test_a_single_broker_flushes_each_record_and_several_wait_for_each_other(
    copies: int, insync: str, flush: str | None
) -> None:
    flags = settings_of(BY_NAME["jobs"], copies)
    assert (flags["min.insync.replicas"], flags.get("flush.messages")) == (insync, flush)


def test_topics_are_created_as_the_catalogue_says_and_kept_for_ever(settings: KafkaSettings) -> None:
    names = [(t.name, "x" if t.per else None) for t in CATALOGUE]
    ensure_topics(settings, names)
    ensure_topics(settings, names)

    admin = clients.admin(settings)
    there = admin.list_topics(timeout=10).topics
    for name, of in names:
        full = topic_name(settings.prefix, name, of)
        assert len(there[full].partitions) == BY_NAME[name].partitions
    from confluent_kafka.admin._config import ConfigResource
    from confluent_kafka.admin._resource import ResourceType

    resource = ConfigResource(ResourceType.TOPIC, f"{settings.prefix}capture.x")
    flags = admin.describe_configs([resource])[resource].result(10)
    for name, value in settings_of(BY_NAME["capture"], 1).items():
        assert flags[name].value == value


def test_processes_that_start_at_once_may_all_ask_for_the_same_topics(settings: KafkaSettings) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            ensure_topics(settings, [("jobs", None), ("capture", "shop")])
        except StreamError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert failed == []


@pytest.mark.parametrize(
    ("partitions", "flags", "said"),
    [
        (3, {"retention.ms": "-1"}, "3 partitions"),
        (4, {"retention.ms": "604800000"}, "retention.ms"),
        (4, {"retention.ms": "-1", "cleanup.policy": "compact"}, "cleanup.policy"),
        (4, {"retention.ms": "-1", "retention.bytes": "1000000"}, "retention.bytes"),
    ],
)
def test_a_topic_that_is_not_ours_or_would_lose_records_is_refused(
    settings: KafkaSettings, partitions: int, flags: dict[str, str], said: str
) -> None:
    topic = NewTopic(f"{settings.prefix}jobs", partitions, 1, config=flags)
    admin = clients.admin(settings)
    for future in admin.create_topics([topic], operation_timeout=10).values():
        future.result(20)

    with pytest.raises(AdminError) as caught:
        ensure_topics(settings, [("jobs", None)])
    assert caught.value.code == "topic-mismatch"
    assert said in caught.value.message


def test_more_copies_than_brokers_are_refused_with_the_setting_to_change(kafka: KafkaServer) -> None:
    settings = KafkaSettings(kafka.bootstrap, prefix=f"t{uuid7()[-8:]}.", replication_factor=3)
    with pytest.raises(AdminError) as caught:
        ensure_topics(settings, [("jobs", None)])
    assert caught.value.code == "topic-not-created"
    assert "kafka.replication_factor" in caught.value.hint
    assert [p.code for p in check_cluster(settings)] == ["kafka-too-few-brokers"]


def test_a_topic_made_anew_has_another_id(settings: KafkaSettings) -> None:
    full = f"{settings.prefix}jobs"
    with pytest.raises(AdminError) as caught:
        topic_id(settings, full)
    assert caught.value.code == "topic-missing"

    ensure_topics(settings, [("jobs", None)])
    first = topic_id(settings, full)
    assert first == topic_id(settings, full) != ""
    admin = clients.admin(settings)
    for future in admin.delete_topics([full], operation_timeout=10).values():
        future.result(20)
    deadline = time.monotonic() + 20
    while full in admin.list_topics(timeout=10).topics and time.monotonic() < deadline:
        time.sleep(0.05)
    ensure_topics(settings, [("jobs", None)])
    assert topic_id(settings, full) != first


def test_our_own_broker_is_one_to_trust(settings: KafkaSettings) -> None:
    assert check_cluster(settings) == []


def test_a_cluster_out_of_reach_is_a_problem_and_not_an_exception() -> None:
    (problem,) = check_cluster(KafkaSettings("127.0.0.1:1"))
    assert problem.code == "kafka-unreachable"


@pytest.mark.parametrize(
    ("copies", "brokers", "flags", "codes"),
    [
        (3, 3, {}, []),
        (2, 3, {}, ["kafka-two-copies"]),
        (1, 1, {"unclean.leader.election.enable": "true"}, ["kafka-unclean-election"]),
        (1, 1, {"auto.create.topics.enable": "true"}, ["kafka-auto-create"]),
    ],
)
def test_what_makes_a_cluster_unfit(copies: int, brokers: int, flags: dict[str, str], codes: list[str]) -> None:
    settings = KafkaSettings("127.0.0.1:1", replication_factor=copies)
    assert [p.code for p in _judge(settings, brokers, flags)] == codes
