"""The scheduler waits for a Kafka that is away, and ends when the agent does."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from agents.scheduling.scheduler import Scheduler
from streams.errors import DeliveryFailed
from streams.publish import Publisher
from streams.settings import KafkaSettings


class Away:
    """A publisher whose first flushes are not confirmed."""

    def __init__(self, code: str, times: int, stop: threading.Event) -> None:
        self.code, self.times, self.stop = code, times, stop
        self.asked = 0

    def flush(self, timeout: float) -> None:
        self.asked += 1
        if self.asked == 20:
            self.stop.set()
        if self.asked <= self.times:
            raise DeliveryFailed(self.code, "not yet")


def scheduler(code: str, times: int) -> tuple[Scheduler, Away]:
    stop = threading.Event()
    away = Away(code, times, stop)
    return Scheduler(KafkaSettings(bootstrap="nowhere:1"), cast("Publisher", away), "agent-a", stop), away


def test_a_kafka_that_is_away_is_waited_for() -> None:
    waiting, away = scheduler("delivery-unconfirmed", 3)
    assert waiting._durable()
    assert away.asked == 4
    ending, away = scheduler("delivery-unconfirmed", 100)
    assert not ending._durable(), "until the agent is to end"
    broken, _ = scheduler("delivery-failed", 1)
    with pytest.raises(DeliveryFailed):
        broken._durable()
