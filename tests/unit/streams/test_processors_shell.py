"""The Faust shell on a real Kafka: begins where it is told, commits nothing, stops at what it cannot apply."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import pytest
from confluent_kafka import Producer, TopicPartition

from streams import consume
from streams.app import Partition, make_app
from streams.consume import Message
from streams.errors import StreamError
from streams.events import CallAudited
from streams.processors.shell import attach
from streams.settings import Settings
from tests.contract.running import make_topics, publish
from tests.contract.sample_log import History

PATIENCE_S = 180.0


class Stands:
    """An offset store in memory."""

    def __init__(self, at: Mapping[Partition, int] | None = None) -> None:
        self.at = dict(at or {})
        self.asked = 0

    async def positions(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        self.asked += 1
        return {p: self.at.get(p, 0) for p in partitions}


def calls(count: int) -> list[CallAudited]:
    h = History(random.Random(count))
    for _ in range(count):
        h.call()
    return [e for e in h.events if isinstance(e, CallAudited)]


async def run(
    site: Settings,
    stands: Stands,
    apply: Callable[[str, Sequence[Message]], Awaitable[None]],
    until: Callable[[], bool],
    failures: list[tuple[str, BaseException]],
    topics: Sequence[str] = ("audit",),
) -> dict[Partition, list[int]]:
    """Run an app until `until`; returns what its consumer keeps of acknowledged offsets, which ought to be nothing."""
    app = make_app(site.kafka, "test", stands, instance="one")
    attach(app, "view", [f"{site.kafka.prefix}{t}" for t in topics], apply, lambda v, e: failures.append((v, e)))
    await app.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not until():
                await asyncio.sleep(0.02)
        return {(tp.topic, tp.partition): list(offsets) for tp, offsets in vars(app.consumer)["_acked"].items()}
    finally:
        await app.stop()


def test_records_come_in_order_from_where_the_store_says_and_nothing_is_committed(fresh_site: Settings) -> None:
    make_topics(fresh_site)
    publish(fresh_site, calls(3000))
    stands, got = Stands(), list[Message]()

    async def apply(view: str, batch: Sequence[Message]) -> None:
        assert view == "view"
        got.extend(batch)

    kept = asyncio.run(run(fresh_site, stands, apply, lambda: len(got) >= 3000, []))
    assert not any(kept.values())
    by_partition: dict[int, list[Message]] = {}
    for m in got:
        by_partition.setdefault(m.partition, []).append(m)
    assert {p: [m.offset for m in ms] for p, ms in by_partition.items()} == {
        p: list(range(len(ms))) for p, ms in by_partition.items()
    }
    # The same as the bulk reader's, field by field.
    bulk = list(consume.read_topic(fresh_site.kafka, f"{fresh_site.kafka.prefix}audit"))
    assert sorted(got, key=lambda m: (m.partition, m.offset)) == sorted(bulk, key=lambda m: (m.partition, m.offset))

    # Kafka knows nothing of this progress, so a second run asks the store alone.
    with_group = consume.open_consumer(fresh_site.kafka, group_id=f"{fresh_site.kafka.prefix}test")
    committed = with_group.committed(
        [TopicPartition(f"{fresh_site.kafka.prefix}audit", p) for p in range(4)], timeout=30
    )
    with_group.close()
    assert all(tp.offset < 0 for tp in committed)
    partition = max(by_partition, key=lambda p: len(by_partition[p]))
    topic = f"{fresh_site.kafka.prefix}audit"
    ends = {(topic, p): len(ms) for p, ms in by_partition.items()}
    last_ten = Stands(ends | {(topic, partition): ends[topic, partition] - 10})
    got.clear()
    asyncio.run(run(fresh_site, last_ten, apply, lambda: len(got) >= 10, []))
    assert [m.offset for m in got] == list(range(ends[topic, partition] - 10, ends[topic, partition]))
    assert last_ten.asked >= 1


def test_a_batch_that_fails_is_told_and_nothing_comes_after_it(fresh_site: Settings) -> None:
    make_topics(fresh_site)
    publish(fresh_site, calls(2500))
    batches: list[int] = []
    failures: list[tuple[str, BaseException]] = []

    async def apply(view: str, batch: Sequence[Message]) -> None:
        batches.append(len(batch))
        if len(batches) == 2:
            raise ValueError("the second batch")

    asyncio.run(run(fresh_site, Stands(), apply, lambda: bool(failures), failures))
    assert [(view, str(error)) for view, error in failures] == [("view", "the second batch")]
    assert len(batches) == 2


def test_a_record_that_is_none_of_ours_is_told_with_its_place(fresh_site: Settings) -> None:
    make_topics(fresh_site)
    topic = f"{fresh_site.kafka.prefix}audit"
    producer = Producer(fresh_site.kafka.client_config())
    producer.produce(topic, b"not ours", b"k", 2)
    assert producer.flush(30) == 0
    failures: list[tuple[str, BaseException]] = []

    async def apply(view: str, batch: Sequence[Message]) -> None:
        raise AssertionError("nothing readable came")

    asyncio.run(run(fresh_site, Stands(), apply, lambda: bool(failures), failures))
    error = failures[0][1]
    assert isinstance(error, StreamError)
    assert error.code == "record-unreadable"
    assert f"{topic}[2]@0" in error.message


def test_two_views_on_one_topic_both_get_all_of_it(fresh_site: Settings) -> None:
    make_topics(fresh_site)
    publish(fresh_site, calls(500))
    got: dict[str, list[Message]] = {"one": [], "two": []}

    async def apply(view: str, batch: Sequence[Message]) -> None:
        got[view].extend(batch)
        await asyncio.sleep(0.01 if view == "two" else 0)

    async def both() -> None:
        app = make_app(fresh_site.kafka, "test", Stands())
        for view in got:
            attach(app, view, [f"{fresh_site.kafka.prefix}audit"], apply, lambda v, e: pytest.fail(str(e)))
        await app.start()
        async with asyncio.timeout(PATIENCE_S):
            while any(len(messages) < 500 for messages in got.values()):
                await asyncio.sleep(0.02)
        await app.stop()

    asyncio.run(both())
    places = [sorted((m.partition, m.offset) for m in messages) for messages in got.values()]
    assert places[0] == places[1]
    assert len(set(places[0])) == 500
