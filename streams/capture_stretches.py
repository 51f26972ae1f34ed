"""Stretches of a capture topic, read by offset: what has come is kept for a while, for who looks for a place reads it again.

Judges nothing of what it reads: that is its caller's (`streams.capture_log`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from confluent_kafka import TopicPartition
from confluent_kafka.cimpl import Message as KafkaMessage

from streams import consume
from streams.consume import Message
from streams.events import CommitsRecorded
from streams.settings import KafkaSettings

_KEPT_BYTES = 16_777_216  # records kept while a place is looked for, in which they are read up to three times


class Stretches:
    """A connection that reads stretches of partition 0 of one topic, one at a time.

    Kafka sends more than is looked at, and finding a place looks at records several times, so what has come is kept for a while:

        _kept: looked at       │ _waiting: not yet     │ still at Kafka
        _from ………………………………… _next ……………………………………… → time
    """

    def __init__(self, kafka: KafkaSettings, topic: str, fetch_wait_ms: int = 1) -> None:
        """`fetch_wait_ms`: how long Kafka may hold back an answer for want of records, and with it the next question."""
        self._topic = topic
        self._consumer = consume.open_consumer(
            kafka,
            queued_max_messages_kbytes=4096,
            fetch_message_max_bytes=1_048_576,
            fetch_wait_max_ms=fetch_wait_ms,
        )
        consume.partitions(self._consumer, topic)
        self._kept: deque[Message] = deque()
        self._kept_bytes = 0
        self._waiting: deque[KafkaMessage] = deque()
        self._from, self._next = 0, -1  # of nothing
        self._places = consume.Places()

    def ends(self) -> tuple[int, int]:
        return consume.ends(self._consumer, self._topic, 0)

    def read(self, first: int, end: int, *, again: bool = False) -> Iterator[Message]:
        """Records with offsets from `first` on and below `end`, which exists. `again`: they may be read once more."""
        if first >= end:
            return
        if not self._from <= first <= self._next:
            self._begin(first)
        for message in list(self._kept):
            if first <= message.offset < end:
                yield message
        if not again:
            self._forget()
        silence = consume.Silence(self._topic)
        while self._next < end:
            if not self._waiting:
                self._waiting.extend(messages := consume.batch(self._consumer, 1.0, 64, self._places))
                silence.broken_by(messages)
                continue
            raw = self._waiting[0]
            offset = raw.offset() or 0
            if offset >= end:
                return  # what stood before it is not there: a record of Kafka's own, or the end
            self._waiting.popleft()
            self._next = offset + 1
            if raw.error() is not None:
                self._next = offset  # the end, as it was when that was said
                continue
            message = consume.decoded(raw)
            if again:
                self._keep(message)
            else:
                self._from = self._next
            yield message

    def _begin(self, offset: int) -> None:
        self._consumer.assign([TopicPartition(self._topic, 0, offset)])
        self._places = consume.Places({(self._topic, 0): offset})
        self._waiting.clear()
        self._forget()
        self._from = self._next = offset

    def _keep(self, message: Message) -> None:
        self._kept.append(message)
        self._kept_bytes += _size(message)
        while self._kept_bytes > _KEPT_BYTES:
            oldest = self._kept.popleft()
            self._kept_bytes -= _size(oldest)
            self._from = oldest.offset + 1

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0
        self._from = self._next

    def follow(self, first: int, stop: threading.Event) -> Iterator[Message | None]:
        """Records from `first` on as they come, until `stop` is set; None whenever there are no more for now."""
        self._begin(first)
        while not stop.is_set():
            for message in consume.batch(self._consumer, 0.2, 64, self._places):
                if message.error() is None:
                    yield consume.decoded(message)
            yield None

    def rest(self) -> None:
        """Fetch nothing until asked to read again."""
        self._consumer.unassign()
        self._waiting.clear()
        self._forget()
        self._from, self._next = 0, -1

    def close(self) -> None:
        self._consumer.close()


def _size(message: Message) -> int:
    return len(message.event.payload) if isinstance(message.event, CommitsRecorded) else 0
