"""The scheduler as a thread of the agent: reads `inventory`, `commands` and `jobs`, says what is due.

    … → decide → policy.run fired → durable → read back → command.requested … → durable → read back → policy.run ended

What it knows is the `Book`'s, which is read anew with every start. A site has as many schedulers as agents.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from agents.failpoints import failpoint
from agents.scheduling.book import Book, Say
from streams.consume import Message, follow, read_topic
from streams.errors import DeliveryFailed
from streams.ids import now_us
from streams.publish import Publisher
from streams.settings import KafkaSettings
from streams.topics import topic_name

TOPICS: Final = ("inventory", "commands", "jobs")
_TURN_S: Final = 0.5
_AT_ONCE: Final = 200  # events between two waits for the log
_JUMP_S: Final = 60.0
_FLUSH_S: Final = 5.0
_log = logging.getLogger("holdfast.scheduling")


class Scheduler:
    """`run` returns when `stop` is set. `me` is the agent's name; `clock` gives µs since 1970."""

    def __init__(
        self,
        kafka: KafkaSettings,
        publisher: Publisher,
        me: str,
        stop: threading.Event,
        *,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.book = Book(me)
        self._kafka = kafka
        self._publisher = publisher
        self._stop = stop
        self._clock = clock
        self._offset_s: float | None = None

    def run(self) -> None:
        """Raises what reading and writing the log raises."""
        for message in self._messages():
            if self._stop.is_set():
                return
            if message is None:
                self._say(self.book.decide(self._now(), time.monotonic()))
            else:
                self._publisher.observe(message.hlc)
                self.book.take(message.event, message.stamp.writer, time.monotonic())

    def _messages(self) -> Iterator[Message | None]:
        """What is in the log, then what comes; None whenever there is time to decide."""
        topics = [topic_name(self._kafka.prefix, name) for name in TOPICS]
        place: dict[tuple[str, int], int] = {}
        for topic in topics:
            for message in read_topic(self._kafka, topic):
                place[topic, message.partition] = message.offset + 1
                yield message
            self.book.settle()  # runs are known before their commands and jobs come
        yield None
        for batch in follow(self._kafka, topics, place, self._stop, ticks=True, turn_s=_TURN_S):
            yield from batch
            yield None

    def _now(self) -> int:
        now, offset_s = self._clock(), self._clock() / 1e6 - time.monotonic()
        if self._offset_s is not None and abs(offset_s - self._offset_s) > _JUMP_S:
            _log.warning("the clock of this machine was moved by %.0f s", offset_s - self._offset_s)
        self._offset_s = offset_s
        return now

    def _say(self, what: Sequence[Say]) -> None:
        for start in range(0, len(what), _AT_ONCE):
            some = what[start : start + _AT_ONCE]
            failpoint("schedule.decided")
            for place, event in some:
                correlation = getattr(event, "command", "") or getattr(event, "job", "")
                self._publisher.publish(event, correlation=str(correlation))
                failpoint(place)
            if not self._durable():
                return
            for place, _ in some:
                failpoint(f"{place}.durable")

    def _durable(self) -> bool:
        """Wait until what was said is in the log, however long Kafka is away; False: the agent is to end."""
        while not self._stop.is_set():
            try:
                self._publisher.flush(_FLUSH_S)
                return True
            except DeliveryFailed as error:
                if error.code != "delivery-unconfirmed":
                    raise
        return False
