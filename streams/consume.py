"""Reading topics outside Faust: from given offsets, without a group, records decoded; what cannot be read raises.

Offsets are the caller's business (PostgreSQL keeps them for projections). A start that Kafka has trimmed away raises
(`offset-trimmed`) instead of skipping to what is left.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from streams import clients
from streams.codec import decode
from streams.errors import StreamError
from streams.events import Event, Stamp
from streams.settings import KafkaSettings

_PATIENCE_S = 10.0
SILENCE_S = 30.0  # a broker takes less to come back; whoever asks should not wait for ever
_BATCH = 1000
# A batch that is not what its CRC32C says, is of a version that there is not, or does not unpack.
_DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError._NOT_IMPLEMENTED, KafkaError._BAD_COMPRESSION})
_BEYOND = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
REFETCHES = 5  # of the same record, before it counts as damaged where it is kept
_MOVING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError._UNKNOWN_PARTITION,  # of one that was there: nobody is left to say who leads it
    }
)


class ConsumeError(StreamError):
    """A topic cannot be read: `topic-missing`, `offset-trimmed`, `record-damaged`, `kafka-unreachable`,
    `kafka-refused`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One record. `timestamp_us` is Kafka's (milliseconds there); `headers` by name, the last of a name wins."""

    topic: str
    partition: int
    offset: int
    key: str
    event: Event
    stamp: Stamp
    headers: Mapping[str, bytes]
    timestamp_us: int

    @property
    def id(self) -> str:
        """The record's `ce_id`."""
        return self.headers.get("ce_id", b"").decode("ascii", "replace")

    @property
    def hlc(self) -> int:
        """The writer's hybrid clock; 0 when there is none."""
        text = self.headers.get("hlc", b"0")
        try:
            return int(text, 16)
        except ValueError:
            return 0


def open_consumer(kafka: KafkaSettings, **more: Any) -> Consumer:
    """A consumer that is assigned, never subscribed, and commits nothing. `more`: librdkafka's settings."""
    return Consumer(
        clients.config(
            kafka,
            **{
                # Demanded by librdkafka and used for nothing but asking who coordinates it, for which a right is
                # needed: under our prefix, where accounts have theirs (deploy/kafka/acls.toml).
                "group_id": f"{kafka.prefix}reader",
                "enable_auto_commit": False,
                "enable_auto_offset_store": False,
                "enable_partition_eof": True,
                "auto_offset_reset": "error",
                "check_crcs": True,
                "fetch_queue_backoff_ms": 10,
                "queued_max_messages_kbytes": 16_384,
                **more,
            },
        )
    )


def partitions(consumer: Consumer, topic: str) -> list[int]:
    """The partitions of `topic`, ascending. Raises `ConsumeError` (`topic-missing`)."""
    with explained(f"look up {topic}"):
        found = consumer.list_topics(topic, timeout=_PATIENCE_S).topics[topic]
    if found.error is not None or not found.partitions:
        raise ConsumeError("topic-missing", f"there is no topic {topic}", "`holdfast up` or `ensure_topics` creates it")
    return sorted(found.partitions)


def ends(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """`(low, high)` watermarks: the first offset that exists, and the one the next record will have."""
    deadline = time.monotonic() + _PATIENCE_S
    with explained(f"ask for the end of {topic}"):
        while True:
            try:
                found = consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=_PATIENCE_S, cached=False
                )
                break
            except KafkaException as error:
                # A topic created a moment ago, or a leader that moved: the broker asked does not lead it (yet, any more).
                if clients.code_of(error) not in _MOVING:
                    raise
                if time.monotonic() > deadline:
                    raise ConsumeError(
                        "kafka-unreachable", f"nobody leads {topic}: {clients.text_of(error)}", "are all brokers up?"
                    ) from error
                time.sleep(0.1)
    if found is None:
        raise ConsumeError("kafka-unreachable", f"Kafka did not say where {topic} ends", "is Kafka up?")
    low, high = found
    return low, high


def decoded(message: KafkaMessage) -> Message:
    """A record of Kafka's as ours. Raises `StreamError` (`record-unreadable`), naming its place."""
    topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
    try:
        event, stamp = decode(message.value() or b"")
    except StreamError as error:
        raise StreamError(error.code, f"{topic}[{partition}]@{offset}: {error.message}", error.hint) from error
    headers = {name: value.encode() if isinstance(value, str) else value for name, value in _pairs(message) if value}
    key = (message.key() or b"").decode("utf-8", "replace")
    return Message(topic, partition, offset, key, event, stamp, headers, max(0, message.timestamp()[1]) * 1000)


def _pairs(message: KafkaMessage) -> list[tuple[str, str | bytes | None]]:
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


def read_topic(
    kafka: KafkaSettings, full_topic: str, start: Mapping[int, int] | None = None, until_end: bool = True
) -> Iterator[Message]:
    """Records of all partitions of `full_topic`, each partition in order, partitions interleaved.

    `start`: partition → first offset wanted; partitions left out start at the first record there is. With `until_end`
    it stops after the last record that existed when it was called; else it goes on for ever, waiting.
    """
    with contextlib.closing(open_consumer(kafka)) as consumer:
        assigned, stop_at = [], {}
        for partition in partitions(consumer, full_topic):
            low, high = ends(consumer, full_topic, partition)
            first = low if start is None else start.get(partition, low)
            if until_end and first >= high:
                continue
            stop_at[partition] = high
            assigned.append(TopicPartition(full_topic, partition, first))
        consumer.assign(assigned)
        left = {tp.partition for tp in assigned}
        places = Places({(full_topic, tp.partition): tp.offset for tp in assigned})
        silence = Silence(full_topic)
        while left:
            messages = batch(consumer, 0.5, places=places)
            if until_end:
                silence.broken_by(messages)
            for message in messages:
                at = message.partition() or 0
                if message.error() is not None:  # the end of a partition
                    if until_end and (message.offset() or 0) >= stop_at[at]:
                        left.discard(at)
                    continue
                offset = message.offset() or 0
                if until_end and offset >= stop_at[at]:
                    left.discard(at)
                    continue
                yield decoded(message)
                if until_end and offset == stop_at[at] - 1:
                    left.discard(at)


def follow(
    kafka: KafkaSettings,
    topics: Iterable[str],
    start: Mapping[tuple[str, int], int] | None,
    stop: threading.Event,
    *,
    ticks: bool = False,
    turn_s: float = 0.2,
) -> Generator[list[Message], None, None]:
    """Batches of records of full topic names as they come, until `stop` is set (looked at every `turn_s` seconds).

    `start`: (topic, partition) → first offset wanted; what is left out starts at the first record there is. Batches
    are not empty, unless `ticks`: then an empty one says that nothing came for `turn_s` seconds.
    """
    with contextlib.closing(open_consumer(kafka)) as consumer:
        wanted = start or {}
        assigned = [
            TopicPartition(topic, partition, wanted.get((topic, partition), OFFSET_BEGINNING))
            for topic in topics
            for partition in partitions(consumer, topic)
        ]
        consumer.assign(assigned)
        places = Places(wanted)
        while not stop.is_set():
            came = batch(consumer, turn_s, places=places)
            messages = [decoded(m) for m in came if m.error() is None]
            if messages or ticks:
                yield messages


def batch(consumer: Consumer, timeout: float, count: int = _BATCH, places: Places | None = None) -> list[KafkaMessage]:
    """What has come: waits up to `timeout` seconds for the first record only. Ends of partitions are among them.

    With `places`, which must be told of nothing else, what was damaged on its way is fetched again. Raises `ConsumeError` on
    anything else that is not a record; a broker that is away only delays.
    """
    first = consumer.poll(timeout)
    if first is None:
        return []
    messages = [first, *consumer.consume(count - 1, 0)] if count > 1 else [first]
    out = []
    for message in messages:
        error = message.error()
        if (
            error is None
            or error.code() == KafkaError._PARTITION_EOF
            or (places is not None and (error.code() in _DAMAGED or places.is_held(consumer, message)))
        ):
            out.append(message)
        elif error.code() in _BEYOND:
            raise ConsumeError(
                "offset-trimmed",
                f"{message.topic()}[{message.partition()}] does not hold the offset asked for: {error.str()}",
                "it was trimmed, or the topic was created anew: rebuild from what is there or from the archive",
            )
        elif error.code() in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError._UNKNOWN_PARTITION,
        ):
            raise ConsumeError("topic-missing", f"{message.topic()} is gone: {error.str()}")
        elif not error.retriable() and error.code() not in clients.UNREACHABLE:
            raise ConsumeError("kafka-refused", f"cannot read {message.topic()}: {error.str()} ({error.name()})")
    return out if places is None else places.sound(consumer, out)


class Places:
    """Which record of each partition comes next, so that what is damaged on its way is fetched again.

    librdkafka compares each batch with its CRC32C, reports one that differs, and goes on with the next: whoever only looks
    at records would skip it.
    """

    def __init__(self, start: Mapping[tuple[str, int], int] | None = None) -> None:
        """`start`: (topic, partition) → the first offset wanted, where it is known."""
        self._next: dict[tuple[str, int], int] = dict(start or {})
        self._tries: dict[tuple[str, int], tuple[int, int]] = {}

    def sound(self, consumer: Consumer, messages: list[KafkaMessage]) -> list[KafkaMessage]:
        """`messages` less what follows a damaged batch, which will come again.

        Raises `ConsumeError` (`record-damaged`) once the same one was damaged `REFETCHES` times.
        """
        out: list[KafkaMessage] = []
        damaged: dict[tuple[str, int], KafkaMessage] = {}
        for message in messages:
            place = (message.topic() or "", message.partition() or 0)
            if place in damaged:
                continue
            error = message.error()
            if error is None:
                offset = message.offset() or 0
                if offset < self._next.get(place, 0):
                    continue  # of a batch that was fetched again from its beginning
                self._next[place] = offset + 1
            elif error.code() in _DAMAGED | _BEYOND:
                damaged[place] = message
                continue
            out.append(message)
        for place, message in damaged.items():
            self._fetch_again(consumer, place, message)
        return out

    def is_held(self, consumer: Consumer, message: KafkaMessage) -> bool:
        """Whether the offset that Kafka says it does not hold is there: then it was the question that was damaged on its way,
        for requests have no checksum."""
        error = message.error()
        at = self._next.get((message.topic() or "", message.partition() or 0))
        if error is None or error.code() not in _BEYOND or at is None:
            return False
        partition = TopicPartition(message.topic() or "", message.partition() or 0)
        try:
            found = consumer.get_watermark_offsets(partition, timeout=_PATIENCE_S, cached=False)
        except KafkaException:
            return True  # no answer: asked for again, so many times as anything damaged is
        return bool(found[0] <= at <= found[1])

    def _fetch_again(self, consumer: Consumer, place: tuple[str, int], message: KafkaMessage) -> None:
        topic, partition = place
        error = message.error()
        # What else than a wrong checksum is wrong with a batch makes its offset worthless.
        sure = error is not None and error.code() == KafkaError._BAD_MSG
        at = self._next.get(place, (message.offset() or 0) if sure else -1)
        before, tries = self._tries.get(place, (-1, 0))
        tries = tries + 1 if before == at else 1
        self._tries[place] = (at, tries)
        said = "" if error is None else error.str()
        if tries > REFETCHES or at < 0:
            raise ConsumeError(
                "record-damaged",
                f"{topic}[{partition}]@{at} was damaged each of {tries} times: {said}",
                "use TLS to Kafka; check the network, then the brokers' disks",
            )
        clients.logger().warning("%s[%d]@%d is fetched again: %s", topic, partition, at, said)
        with explained(f"read {topic} again"):
            # Not `seek`, which is refused for a partition that librdkafka has stopped reading because of the error.
            consumer.incremental_unassign([TopicPartition(topic, partition)])
            consumer.incremental_assign([TopicPartition(topic, partition, at)])


class Silence:
    """How long Kafka has had nothing to say though records are known to be there."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._since: float | None = None

    def broken_by(self, messages: list[KafkaMessage]) -> None:
        """Raises `ConsumeError` (`kafka-unreachable`) after `SILENCE_S` seconds without anything."""
        if messages:
            self._since = None  # the time that the reader takes for them does not count
        elif self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > SILENCE_S:
            raise ConsumeError(
                "kafka-unreachable", f"Kafka gave nothing of {self._topic} for {SILENCE_S:g} s", "is Kafka up?"
            )


# A broker that has just started says these of topics that it has, until it knows who leads them.
_STARTING = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
    }
)


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Kafka's exceptions as `ConsumeError`."""
    try:
        yield
    except KafkaException as error:
        away, starting = (clients.code_of(error) in codes for codes in (clients.UNREACHABLE, _STARTING))
        raise ConsumeError(
            "kafka-unreachable" if away or starting else "kafka-refused",
            f"could not {doing}: {clients.text_of(error)}",
            "is Kafka up and the address right?" if away else "Kafka may just have been started" if starting else "",
        ) from error
