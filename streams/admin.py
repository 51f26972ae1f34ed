"""Topics as the catalogue says, and whether the cluster is one to trust with them.

Knows the catalogue (`streams.topics`) and Kafka's administration; nothing of what topics carry.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._metadata import TopicMetadata
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from streams import clients
from streams.errors import StreamError
from streams.events import Problem
from streams.settings import KafkaSettings
from streams.topics import BY_NAME, COMMON, settings_of, topic_name

_PATIENCE_S = 30.0
_ATTEMPTS = 3
# What a controller says that has just been paused, or is not one any more: its time for a request is over, not the request wrong.
_BUSY = frozenset({KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_CONTROLLER})


class AdminError(StreamError):
    """Kafka refused an administrative request or could not be reached (`kafka-…`, `topic-…`)."""


def ensure_topics(kafka: KafkaSettings, names: Iterable[tuple[str, str | None]]) -> None:
    """Create what is missing of `names` ((catalogue name, source or site or None)) and wait until it can be written.

    May be called again and by several processes at once. A topic that exists with another number of partitions, or that
    Kafka would delete records of, is refused (`topic-mismatch`): nobody's configuration is changed behind their back.
    """
    wanted = {topic_name(kafka.prefix, name, of): BY_NAME[name] for name, of in names}
    if not wanted:
        return
    admin = clients.admin(kafka)
    with _explained("create topics"):
        existing = admin.list_topics(timeout=_PATIENCE_S).topics
        copies = kafka.replication_factor
        missing = [
            NewTopic(full, topic.partitions, copies, config=settings_of(topic, copies))
            for full, topic in wanted.items()
            if full not in existing
        ]
        deadline = time.monotonic() + _PATIENCE_S
        while missing:
            asked, missing = missing, []
            for full, future in admin.create_topics(asked, operation_timeout=_PATIENCE_S).items():
                try:
                    future.result(_PATIENCE_S)
                except KafkaException as error:
                    if clients.code_of(error) in clients.UNREACHABLE | _BUSY:
                        raise  # the request may have been carried out all the same: whoever asks again finds it
                    if _is_fenced(error, copies) and time.monotonic() < deadline:
                        missing += [topic for topic in asked if topic.topic == full]
                    elif clients.code_of(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise AdminError(
                            "topic-not-created",
                            f"Kafka did not create {full}: {clients.text_of(error)}",
                            _create_hint(error, copies),
                        ) from error
            if missing:
                time.sleep(0.2)
        _await_leaders(admin, wanted)
        _check_existing(admin, {full: topic.partitions for full, topic in wanted.items() if full in existing})


def _is_fenced(error: KafkaException, copies: int) -> bool:
    """Whether not even one copy finds a broker: the only one was paused, and has not reported back to the controller yet."""
    return copies == 1 and clients.code_of(error) == KafkaError.INVALID_REPLICATION_FACTOR


def topic_id(kafka: KafkaSettings, full_name: str) -> str:
    """The topic's UUID as Kafka writes it (base64); a re-created topic has another.

    Raises `AdminError` (`topic-missing`, `kafka-unreachable`).
    """
    return topic_ids(kafka, [full_name])[full_name]


def topic_ids(kafka: KafkaSettings, full_names: Iterable[str]) -> dict[str, str]:
    """`topic_id` of several, asked at once. A broker that dies with the question is asked for another's answer."""
    names = list(full_names)
    admin = clients.admin(kafka, timeout_ms=2 * int(_PATIENCE_S * 1000))
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return {name: _topic_id(admin, name, _PATIENCE_S / _ATTEMPTS) for name in names}
        except (KafkaException, TimeoutError) as error:
            timed_out = isinstance(error, TimeoutError) or clients.code_of(error) in clients.UNREACHABLE
            if timed_out and attempt < _ATTEMPTS:
                continue
            raise AdminError(
                "kafka-unreachable" if timed_out else "kafka-refused",
                f"could not describe {', '.join(names)}: "
                + (clients.text_of(error) if isinstance(error, KafkaException) else "no answer"),
                "is Kafka up and the address right?" if timed_out else "",
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _topic_id(admin: AdminClient, name: str, patience_s: float) -> str:
    try:
        described = admin.describe_topics(TopicCollection([name]), request_timeout=patience_s)[name]
        identity = described.result(patience_s + 1).topic_id
    except KafkaException as error:
        if clients.code_of(error) == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise AdminError("topic-missing", f"there is no topic {name}") from error
        raise
    return str(identity) if isinstance(identity, Uuid) else ""


def check_cluster(kafka: KafkaSettings) -> list[Problem]:
    """What is wrong with the cluster for keeping a log that must not lose anything; empty when nothing is.

    Never raises for what it is to find: a cluster out of reach is a problem too (`kafka-unreachable`).
    """
    admin = clients.admin(kafka, timeout_ms=15_000)
    try:
        brokers = admin.list_topics(timeout=5).brokers
        some = next(iter(brokers))
        resource = ConfigResource(ResourceType.BROKER, str(some))
        config = admin.describe_configs([resource], request_timeout=10)[resource].result(10)
    except KafkaException as error:
        if clients.code_of(error) in (KafkaError.CLUSTER_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            return [
                Problem(
                    "kafka-describe-denied",
                    "this account may not read the brokers' configuration, so it was not checked",
                    "grant DESCRIBE_CONFIGS on the cluster",
                )
            ]
        return [Problem("kafka-unreachable", f"Kafka at {kafka.bootstrap} cannot be reached: {clients.text_of(error)}")]
    return _judge(kafka, len(brokers), {name: entry.value or "" for name, entry in config.items()})


def _judge(kafka: KafkaSettings, brokers: int, flags: Mapping[str, str]) -> list[Problem]:
    """Problems of a cluster of `brokers` brokers with configuration `flags`."""
    found: list[Problem] = []
    if brokers < kafka.replication_factor:
        found.append(
            Problem(
                "kafka-too-few-brokers",
                f"{kafka.replication_factor} copies are asked for, but there are {brokers} brokers",
                "start more brokers, or lower `kafka.replication_factor` before topics are created",
            )
        )
    if flags.get("unclean.leader.election.enable") == "true":
        found.append(
            Problem(
                "kafka-unclean-election",
                "a broker that is behind may become leader and drop acknowledged records",
                "set unclean.leader.election.enable=false",
            )
        )
    if kafka.replication_factor == 2:
        found.append(
            Problem(
                "kafka-two-copies",
                "with two copies, while one broker is down the other holds the only copy of what is written",
                "keep three copies",
            )
        )
    if flags.get("auto.create.topics.enable") == "true":
        found.append(
            Problem(
                "kafka-auto-create",
                "Kafka creates topics by itself, with settings that delete records after a week",
                "set auto.create.topics.enable=false",
            )
        )
    return found


def _await_leaders(admin: AdminClient, names: Iterable[str]) -> None:
    """A new topic refuses writers until its partitions have leaders: wait for that."""
    deadline = time.monotonic() + _PATIENCE_S
    waiting = set(names)
    while waiting:
        topics = admin.list_topics(timeout=_PATIENCE_S).topics
        waiting = {n for n in waiting if n not in topics or not _led(topics[n])}
        if waiting:
            if time.monotonic() > deadline:
                raise AdminError("topic-without-leader", f"no broker leads {min(waiting)}", "are all brokers up?")
            time.sleep(0.05)


def _led(topic: TopicMetadata) -> bool:
    return bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())


def _check_existing(admin: AdminClient, partitions: Mapping[str, int]) -> None:
    """Refuse topics of another shape, or that Kafka deletes records of by time, by size or by key."""
    if not partitions:
        return
    topics = admin.list_topics(timeout=_PATIENCE_S).topics
    for full, expected in partitions.items():
        if len(topics[full].partitions) != expected:
            raise AdminError(
                "topic-mismatch",
                f"{full} has {len(topics[full].partitions)} partitions, not {expected}",
                "the number of partitions never changes: use another prefix, or remove the topic if it is not ours",
            )
    resources = [ConfigResource(ResourceType.TOPIC, full) for full in partitions]
    for resource, future in admin.describe_configs(resources, request_timeout=_PATIENCE_S).items():
        flags = future.result(_PATIENCE_S)
        for flag in ("retention.ms", "retention.bytes", "cleanup.policy"):
            value = flags[flag].value if flag in flags else COMMON[flag]
            if value != COMMON[flag]:
                raise AdminError(
                    "topic-mismatch",
                    f"{resource.name} has {flag}={value}: Kafka would delete records of it",
                    f"set {flag}={COMMON[flag]}",
                )


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise AdminError(
            "kafka-unreachable", f"could not {doing}: no answer", "is Kafka up and the address right?"
        ) from error
    except KafkaException as error:
        away = clients.code_of(error) in clients.UNREACHABLE | _BUSY
        raise AdminError(
            "kafka-unreachable" if away else "kafka-refused",
            f"could not {doing}: {clients.text_of(error)}",
            "is Kafka up and the address right?" if away else "",
        ) from error


def _create_hint(error: KafkaException, copies: int) -> str:
    if clients.code_of(error) == KafkaError.INVALID_REPLICATION_FACTOR:
        return f"`kafka.replication_factor` is {copies}, which needs as many brokers"
    if clients.code_of(error) in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
        return "grant this account CREATE on topics with our prefix"
    return ""
