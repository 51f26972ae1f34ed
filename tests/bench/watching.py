"""When things happen, as two processes of their own see it: one commits at a rate, one reads a topic as it grows.

Both take the machine's wall clock (µs), so their times can be subtracted. Neither shares an interpreter with what is
measured or with each other: nobody waits for somebody else's lock.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pymysql
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.settings import KafkaSettings

_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Floor:
    """What a writer does itself after each COMMIT: a plain record of `size` bytes, its id in front, to `topic`."""

    kafka: KafkaSettings
    topic: str
    size: int


@dataclass(frozen=True, slots=True)
class Commits:
    """`count` one-row transactions into `table` with ids from `first` on, `rate` a second, by `writers` connections.

    Open loop: a commit is due when it is due, whatever became of those before it, as far as the connections reach.
    """

    host: str
    port: int
    user: str
    password: str
    database: str
    table: str
    first: int
    count: int
    rate: float
    writers: int = 8
    floor: Floor | None = None

    def run(self) -> dict[int, int]:
        """Commit them all, in a process of its own; id → wall clock (µs) at which COMMIT was acknowledged."""
        ours, theirs = _spawn.Pipe(duplex=False)
        process = _spawn.Process(target=_commit, args=(self, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            acknowledged: dict[int, int] = ours.recv()
        except EOFError as error:
            raise RuntimeError("the writers ended before they were done") from error
        finally:
            process.join(60)
        return acknowledged


def _commit(load: Commits, out: Connection) -> None:
    sys.setswitchinterval(0.0002)  # a writer takes its time as soon as its answer is there
    acknowledged: dict[int, int] = {}
    due = itertools.count()
    start = time.perf_counter() + 0.5
    floor = load.floor
    producer = (
        Producer({**floor.kafka.client_config(), "acks": "all", "enable.idempotence": True, "linger.ms": 0})
        if floor is not None
        else None
    )

    def writer() -> None:
        connection = pymysql.connect(
            host=load.host,
            port=load.port,
            user=load.user,
            password=load.password,
            database=load.database,
            autocommit=True,
        )
        with contextlib.closing(connection), connection.cursor() as cursor:
            while True:
                number = next(due)
                if number >= load.count:
                    return
                wait = start + number / load.rate - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
                identity = load.first + number
                cursor.execute(
                    f"insert into {load.table} values ({identity}, 'customer name {identity}', 1.25, "
                    "'2024-01-02 03:04:05')"
                )
                acknowledged[identity] = time.time_ns() // 1000
                if producer is not None and floor is not None:
                    producer.produce(floor.topic, b"%d " % identity + bytes(max(0, floor.size - 8)))

    threads = [threading.Thread(target=writer) for _ in range(load.writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if producer is not None:
        producer.flush(30)
    out.send(acknowledged)


class Watch:
    """Reads partition 0 of `topic` from its present end on, in a process of its own, until `stop`."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._ours, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=_watch, args=(kafka, topic, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ours.recv()  # it reads

    def count(self) -> int:
        """How many records it has seen."""
        self._ours.send("count")
        return int(self._ours.recv())

    def stop(self) -> list[tuple[int, bytes]]:
        """Wall clock (µs) at which each record could be read, and its value."""
        self._ours.send("stop")
        seen: list[tuple[int, bytes]] = self._ours.recv()
        self._process.join(30)
        return seen

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join(10)


@contextlib.contextmanager
def watch(kafka: KafkaSettings, topic: str) -> Iterator[Watch]:
    watching = Watch(kafka, topic)
    try:
        yield watching
    finally:
        watching.kill()


def _watch(kafka: KafkaSettings, topic: str, asked: Connection) -> None:
    consumer = Consumer(
        {**kafka.client_config(), "group.id": "watch", "enable.auto.commit": False, "fetch.wait.max.ms": 100}
    )
    partition = TopicPartition(topic, 0)
    bounds = consumer.get_watermark_offsets(partition, timeout=30)
    assert bounds is not None
    consumer.assign([TopicPartition(topic, 0, bounds[1])])
    seen: list[tuple[int, Any]] = []
    asked.send("reading")
    while True:
        message = consumer.poll(0.05)
        if message is not None and message.error() is None:
            seen.append((time.time_ns() // 1000, message.value()))
            continue
        if asked.poll():
            if asked.recv() == "count":
                asked.send(len(seen))
            else:
                asked.send(seen)
                consumer.close()
                return
