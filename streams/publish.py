"""Publishing that cannot lose silently: idempotent, acknowledged by all, without a time limit, in order, bounded.

With a finite `message.timeout.ms` a broker that pauses for 5 s makes a hole in the middle of an idempotent, acks=all
stream, without a fatal error (tests/crash/test_log_publish.py shows it). So a record here waits for as long as it
takes; what cannot be delivered at all ends the session: that error is sticky, and whoever publishes starts again from
what the log says. `enable.gapless.guarantee` makes librdkafka itself stop at the first error that would leave a gap.

Two ways in: `Publisher` for events of all topics, `RecordStream` for one partition at speed. Both are bounded: when the
queue is full, sending waits. Neither has a thread of its own: acknowledgements are taken in when sending or waiting.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams import clients
from streams.codec import ZERO_DIGEST, chain_digest, encode
from streams.errors import DeliveryFailed
from streams.events import Event, Stamp
from streams.ids import HybridClock, now_us, uuid7
from streams.settings import KafkaSettings, Settings
from streams.topics import BY_NAME, topic_name

Header = tuple[str, str | bytes | None]  # as confluent-kafka types it; ours are bytes
_OnDelivery = Callable[[KafkaError | None, Message], None]
CONTENT_TYPE = b"application/avro"
REQUESTS = 5
"""Produce requests under way at a time, the most that idempotence allows. Who sends large records at speed should not
queue more than these: librdkafka asks over and over whether it may send a record that waits for its turn, a processor's
worth (docs/adr/0023)."""
_QUEUE_KIB = 32_768
_QUEUE_RECORDS = 2048
_TURN_S = 0.1  # how long one wait inside librdkafka lasts before the sticky error and `abandon` are looked at again


def producer_config(kafka: KafkaSettings, *, queue_kib: int, compression: str) -> dict[str, Any]:
    """librdkafka's configuration of every producer of ours (docs/design.md, "Publishing")."""
    return clients.config(
        kafka,
        enable_idempotence=True,
        enable_gapless_guarantee=True,
        acks="all",
        message_timeout_ms=0,  # no limit: a paused broker delays, it never makes a hole
        max_in_flight_requests_per_connection=REQUESTS,
        linger_ms=0,  # a lone record leaves at once; while requests are under way the next batch gathers by itself
        batch_size=1_000_000,
        message_max_bytes=8_388_608,
        queue_buffering_max_messages=_QUEUE_RECORDS,
        queue_buffering_max_kbytes=queue_kib,
        compression_type=compression,
        retry_backoff_ms=50,
        retry_backoff_max_ms=1000,
        topic_metadata_propagation_max_ms=10_000,
        partitioner="murmur2",  # what Java's clients and aiokafka do with a key
    )


class _Delivery:
    """A producer, its sticky error, and one thread at a time that takes in acknowledgements for all."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.error: DeliveryFailed | None = None
        self.trouble = ""  # what Kafka complained of last, final or not
        self.abandoned = False
        self.closed = False
        self._taking_in = threading.Lock()
        self._taken_in = threading.Condition()
        self._producer = Producer({**config, "error_cb": self._on_error})

    def fail(self, error: KafkaError, topic: str) -> None:
        if self.error is None and not self.closed:  # letting go of what is under way is fatal, too
            text = f"Kafka did not take a record for {topic}: {error.str()} ({error.name()})"
            self.error = DeliveryFailed("delivery-failed", text, _hint(error))

    def _on_error(self, error: KafkaError) -> None:
        self.trouble = error.str()
        if error.fatal():
            self.fail(error, "some topic")

    def check(self) -> None:
        if self.error is not None:
            raise DeliveryFailed(self.error.code, self.error.message, self.error.hint)
        if self.abandoned:
            raise DeliveryFailed("delivery-abandoned", "publishing was stopped before everything was delivered")

    def poll(self, timeout: float) -> None:
        """Take in acknowledgements; waits up to `timeout` seconds for some, taken in here or by another thread."""
        if self.closed:
            self.check()
        if self._taking_in.acquire(blocking=False):
            try:
                self._producer.poll(timeout)
            except (KafkaException, SystemError) as error:
                # A fatal error is raised here and not reported. confluent-kafka 2.16 goes on calling delivery callbacks
                # with that exception set, of which Python makes a SystemError.
                self._fail_with(error, "some topic")
            finally:
                self._taking_in.release()
            with self._taken_in:
                self._taken_in.notify_all()
        elif timeout > 0:
            with self._taken_in:
                self._taken_in.wait(timeout)
        self.check()

    def produce(
        self, topic: str, value: bytes, key: bytes, partition: int, headers: list[Header], delivered: _OnDelivery
    ) -> None:
        """Queue a record; waits while the queue is full."""
        while True:
            self.check()
            try:
                self._producer.produce(topic, value, key, partition, delivered, headers=headers)
                return
            except BufferError:
                self.poll(_TURN_S)
            except KafkaException as error:
                self._fail_with(error, topic)

    def _fail_with(self, error: Exception, topic: str) -> None:
        cause = error.args[0] if error.args else None
        self.fail(cause if isinstance(cause, KafkaError) else KafkaError(KafkaError.UNKNOWN, str(error)), topic)

    def close(self) -> None:
        """Let go of what is not delivered, and of the connections."""
        self.abandoned = self.closed = True
        with self._taking_in:
            # To purge what is under way is fatal for a producer that promised no gaps; it is let go of anyway.
            with contextlib.suppress(KafkaException, SystemError):
                self._producer.purge(blocking=False)
            with contextlib.suppress(KafkaException, SystemError):
                self._producer.flush(0.5)


def _hint(error: KafkaError) -> str:
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return "does the topic exist? `streams.admin.ensure_topics` creates it"
    large = error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
    if large or "size too large" in error.str():  # the second: as the reason of a fatal error
        return "raise the topic's max.message.bytes to what the catalogue says"
    if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
        return "grant this account WRITE on topics with our prefix, and IDEMPOTENT_WRITE"
    return "the session ends; it starts again from what the log says"


class RecordStream:
    """One partition, written in order at speed; capture's way into the log.

    `send` queues (and waits while `queue_kib` KiB or 2048 records are under way). `durable` is how many of the
    records sent so far are in the log: there is one partition and no gap, so these are the first ones. Everything
    raises `DeliveryFailed` once a delivery has failed, and from then on.

    Where somebody else may write too, `examine(first, last)` is called with the offsets, both included, that stand
    between records of ours and are not ours (also between `after`, an offset, and our first). It may read them, and raise
    `DeliveryFailed` to end the session (`CaptureLog.fence`). Then `unsettled` tells how much of what was sent is not yet
    known to be in the log with everything before it examined; without `examine` it is None.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        *,
        compression: str = "none",
        queue_kib: int = _QUEUE_KIB,
        after: int | None = None,
        examine: Callable[[int, int], None] | None = None,
    ) -> None:
        self.topic = topic
        self._sent = 0
        self._acked = 0
        self._settled = 0
        self._next = None if after is None else after + 1
        self._foreign: list[tuple[int, int]] = []
        self._examine = examine
        self._delivery = _Delivery(producer_config(kafka, queue_kib=queue_kib, compression=compression))

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._delivery.fail(error, self.topic)
            return
        offset = message.offset()
        if offset != self._next and offset is not None and self._next is not None:
            self._foreign.append((self._next, offset - 1))
        self._next = None if offset is None else offset + 1
        self._acked += 1

    def send(self, key: bytes, value: bytes, headers: list[Header]) -> None:
        """Queue one record. Returns at once unless the queue is full."""
        self._delivery.produce(self.topic, value, key, 0, headers, self._delivered)
        self._sent += 1
        self._delivery.poll(0)
        self._settle()

    def durable(self) -> int:
        """How many records are in the log, counted from the first sent. Does not wait."""
        self._delivery.poll(0)
        self._settle()
        return self._acked

    def wait(self, timeout: float, count: int | None = None) -> int:
        """Wait until `count` records (default: all sent so far) are in the log, or `timeout` seconds; `durable()`."""
        target = self._sent if count is None else count
        deadline = time.monotonic() + timeout
        while self._acked < target:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._delivery.poll(min(left, _TURN_S))
        return self.durable()

    @property
    def sent(self) -> int:
        """How many records were queued so far."""
        return self._sent

    @property
    def unsettled(self) -> int | None:
        """How many records sent are not known to stand in the log with everything before them examined."""
        return None if self._examine is None else self._sent - self._settled

    @property
    def trouble(self) -> str:
        """What Kafka complained of last, for health reports; empty when it never did."""
        return self._delivery.trouble

    def _settle(self) -> None:
        acked = self._acked
        while self._foreign and self._examine is not None:
            try:
                self._examine(*self._foreign[0])
            except DeliveryFailed as error:
                self._delivery.error = error
                raise
            del self._foreign[0]
        self._settled = acked

    def abandon(self) -> None:
        """Make every call raise, also one that waits in another thread right now. For stopping while Kafka is away."""
        self._delivery.abandoned = True

    def release(self) -> None:
        """Let go of the connections and of what is not delivered."""
        self._delivery.close()

    def close(self, timeout: float = 10.0) -> None:
        """Wait for what was sent, let go of the connections. Raises `DeliveryFailed` when not all is in the log.

        Again: does nothing.
        """
        if self._delivery.closed:
            return
        try:
            durable = self.wait(timeout)
        finally:
            self._delivery.close()
        if durable < self._sent:
            raise DeliveryFailed(
                "delivery-unconfirmed", f"{self._sent - durable} records were not acknowledged within {timeout:g} s"
            )

    def __enter__(self) -> RecordStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._delivery.close()


class WriterChain:
    """The stamps of one run of one process: every record, to whatever topic, names the digest of the one before.

    `encode` gives the value of the next record; whoever calls it must publish in the order of calls (hold `lock` around
    both where several threads write).
    """

    def __init__(self, site: str, role: str) -> None:
        self.writer = f"{role}-{uuid7()}"
        self.source = f"/sites/{site}/{self.writer}"
        self.clock = HybridClock()
        self.lock = threading.RLock()
        self._sequence = 0
        self._previous = ZERO_DIGEST
        self._source = self.source.encode()

    def encode(self, event: Event) -> bytes:
        """The value of the writer's next record. Raises `StreamError` (`event-invalid`); that takes no place."""
        with self.lock:
            value = encode(event, Stamp(self.writer, self._sequence, self._previous))
            self._previous = chain_digest(value)
            self._sequence += 1
            return value

    def headers(self, event: Event, *, correlation: str = "", causation: str = "") -> list[Header]:
        """CloudEvents headers, Kafka binding in binary mode, 1.0 (docs/design.md, "Records"). The first is `ce_id`."""
        headers: list[Header] = [
            ("ce_id", uuid7().encode()),
            ("ce_specversion", b"1.0"),
            ("ce_type", f"holdfast.{event.TYPE}.v{event.VERSION}".encode()),
            ("ce_source", self._source),
            ("ce_time", rfc3339(now_us()).encode()),
            ("ce_subject", event.key.encode()),
            ("content-type", CONTENT_TYPE),
            ("hlc", f"{self.clock.tick():016x}".encode()),
        ]
        if correlation:
            headers.append(("correlationid", correlation.encode()))
        if causation:
            headers.append(("causationid", causation.encode()))
        return headers


def rfc3339(us: int) -> str:
    """Microseconds since 1970 as `2026-01-02T03:04:05.678901Z`."""
    seconds, fraction = divmod(us, 1_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:06d}Z"


class Publisher:
    """Events of any topic, stamped, in order of calls, from any thread. `role` names the process (`agent`, `api` …)."""

    def __init__(
        self, settings: Settings, role: str, *, queue_kib: int = _QUEUE_KIB, compression: str = "none"
    ) -> None:
        self.chain = WriterChain(settings.site, role)
        self._prefix = settings.kafka.prefix
        self._pending: dict[int, None] = {}
        self._sent = 0
        self._delivery = _Delivery(producer_config(settings.kafka, queue_kib=queue_kib, compression=compression))

    def publish(self, event: Event, *, correlation: str = "", causation: str = "", of: str | None = None) -> str:
        """Queue `event`; its `ce_id`, to be named as the cause of others.

        `of` is the source or site that completes the name of a topic kept per source or site; left out, it is the
        event's own `source`. Raises `DeliveryFailed` when an earlier record was not delivered, `StreamError` when the
        event does not fit its schema or topic.
        """
        if of is None and BY_NAME[event.TOPIC].per == "source":
            of = getattr(event, "source", None)
        topic = topic_name(self._prefix, event.TOPIC, of)
        key = event.key.encode()
        with self.chain.lock:
            self._delivery.check()
            value = self.chain.encode(event)
            headers = self.chain.headers(event, correlation=correlation, causation=causation)
            number = self._sent
            self._pending[number] = None
            self._sent += 1
            self._produce(topic, value, key, headers, number)
        self._delivery.poll(0)
        identity = headers[0][1]
        return identity.decode() if isinstance(identity, bytes) else ""

    def _produce(self, topic: str, value: bytes, key: bytes, headers: list[Header], number: int) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._delivery.fail(error, topic)
            else:
                self._pending.pop(number, None)

        self._delivery.produce(topic, value, key, -1, headers, delivered)

    def flush(self, timeout: float = 30.0) -> None:
        """Return when everything published before this call is in the log.

        Raises `DeliveryFailed`: `delivery-failed` is final; `delivery-unconfirmed` says that `timeout` seconds are over
        and the records are still under way: they may be delivered yet.
        """
        last = self._sent - 1
        deadline = time.monotonic() + timeout
        while True:
            self._delivery.poll(0)
            oldest = self._oldest()
            if oldest is None or oldest > last:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeliveryFailed(
                    "delivery-unconfirmed",
                    f"{last - oldest + 1} records were not acknowledged within {timeout:g} s",
                    f"is Kafka up? {self._delivery.trouble}".strip(),
                )
            self._delivery.poll(min(left, _TURN_S))

    def _oldest(self) -> int | None:
        """The number of the oldest record that is not acknowledged."""
        while True:
            try:
                return next(iter(self._pending), None)
            except RuntimeError:  # another thread published or took in an acknowledgement at this moment
                continue

    def sent_and_durable(
        self, *events: Event, correlation: str = "", causation: str = "", of: str | None = None, timeout: float = 30.0
    ) -> None:
        """Publish `events` and wait until all are in the log. Raises as `publish` and `flush`."""
        for event in events:
            self.publish(event, correlation=correlation, causation=causation, of=of)
        self.flush(timeout)

    def observe(self, hlc: int) -> None:
        """Take note of a cause's clock (`Message.hlc`), so that what is published from now on is later than it."""
        self.chain.clock.observe(hlc)

    @property
    def trouble(self) -> str:
        """What Kafka complained of last, for health reports; empty when it never did."""
        return self._delivery.trouble

    def abandon(self) -> None:
        """Make every call raise, also one that waits in another thread right now. For stopping while Kafka is away."""
        self._delivery.abandoned = True

    @property
    def failed(self) -> bool:
        """Whether everything raises from now on."""
        return self._delivery.error is not None or self._delivery.abandoned

    def close(self, timeout: float = 10.0) -> None:
        """Flush, then let go of the connections. Raises as `flush`. Again: does nothing."""
        if self._delivery.closed:
            return
        try:
            self.flush(timeout)
        finally:
            self._delivery.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(DeliveryFailed):
                self.close(timeout=1.0)
