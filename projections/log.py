"""How far the log goes, for the topics that views read: ids, first and last offsets, and whether a view can be read on
from where it stands. Knows Kafka and the catalogue of topics."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from projections.errors import ProjectionError
from projections.offsets import Cut, Partition
from projections.views.base import View
from streams import admin, consume
from streams.consume import Message
from streams.settings import KafkaSettings
from streams.topics import topic_name

# Kept for days, in no archive: what it alone feeds cannot be rebuilt and is in no digest.
EPHEMERAL = ("health",)


@dataclass(frozen=True, slots=True)
class Extent:
    """One partition: the topic's id, the first offset that is there, and the offset after the last record."""

    topic_id: str
    first: int
    end: int


def full_topics(kafka: KafkaSettings, view: View) -> list[str]:
    return [topic_name(kafka.prefix, name) for name in view.TOPICS]


def is_ephemeral(full_topic: str) -> bool:
    """Whether the topic (with any prefix) is one of those kept for days only."""
    return full_topic.rpartition(".")[2] in EPHEMERAL


def extents(kafka: KafkaSettings, topics: Iterable[str]) -> dict[Partition, Extent]:
    """Every partition of the full topic names. Raises `streams.errors.StreamError` (`topic-missing`,
    `kafka-unreachable`)."""
    ids = admin.topic_ids(kafka, topics)
    return {p: Extent(ids[p[0]], first, end) for p, (first, end) in watermarks(kafka, ids).items()}


def watermarks(kafka: KafkaSettings, topics: Iterable[str]) -> dict[Partition, tuple[int, int]]:
    """Every partition of the full topic names: the first offset that is there, and the offset after the last record.
    Raises as `extents`."""
    with contextlib.closing(consume.open_consumer(kafka)) as consumer:
        return {
            (topic, partition): consume.ends(consumer, topic, partition)
            for topic in topics
            for partition in consume.partitions(consumer, topic)
        }


def starts(view: str, log: Mapping[Partition, Extent]) -> dict[Partition, tuple[str, int]]:
    """Where a view that has read nothing begins: (topic id, first offset). Raises `ProjectionError` (`log-trimmed`)
    when the beginning of what it needs is not in Kafka any more."""
    out = {}
    for (topic, partition), extent in log.items():
        if extent.first > 0 and not is_ephemeral(topic):
            raise ProjectionError(
                "log-trimmed",
                f"view {view} needs {topic}[{partition}] from its beginning, but Kafka holds it from {extent.first} on",
                "rebuild needs what was trimmed; the archive that keeps it is not built yet",
            )
        out[topic, partition] = (extent.topic_id, extent.first)
    return out


def check_stand(view: str, stand: Cut, ids: Mapping[str, str], log: Mapping[Partition, Extent]) -> dict[Partition, int]:
    """Partitions of ephemeral topics whose records were trimmed while nobody read: where to go on instead.

    Raises `ProjectionError`: `topic-recreated` (offsets count in another topic), `log-shorter` (the log ends before
    the view: Kafka lost records or was restored from an older state), `log-trimmed`.
    """
    moved = {}
    for (topic, partition), at in stand.items():
        extent = log.get((topic, partition))
        if extent is None:
            continue
        place = f"{topic}[{partition}]"
        if ids.get(topic, extent.topic_id) != extent.topic_id:
            raise ProjectionError(
                "topic-recreated",
                f"view {view} has read another topic that was called {topic}; this one was created later",
                f"`holdfast projections rebuild {view}` reads this one from its beginning",
            )
        if at > extent.end:
            raise ProjectionError(
                "log-shorter",
                f"view {view} has read {place} up to {at}, but it ends at {extent.end}: the log lost records",
                f"find out why before anything else; `holdfast projections rebuild {view}` shows what the log says now",
            )
        if at < extent.first:
            if not is_ephemeral(topic):
                raise ProjectionError(
                    "log-trimmed",
                    f"view {view} stands at {place}@{at}, but Kafka holds it from {extent.first} on",
                    "records were trimmed before they were read; they are in the archive, once that is built",
                )
            moved[topic, partition] = extent.first
    return moved


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of several partitions, and what was gone through to get them: partition → (from, to), `to` not
    included."""

    messages: list[Message]
    read: dict[Partition, tuple[int, int]]


def replay(
    kafka: KafkaSettings, start: Cut, end: Cut, stop: threading.Event, patience_s: float = 60.0
) -> Iterator[Batch]:
    """All records from `start` up to `end` (not included), by the bulk reader, each partition in order, partitions
    interleaved.

    Ends early when `stop` is set. Raises `ProjectionError` (`log-silent`) when nothing comes for `patience_s` seconds.
    """
    at = {p: start[p] for p in end if start[p] < end[p]}
    if not at:
        return
    with contextlib.closing(consume.open_consumer(kafka)) as consumer:
        consumer.assign([TopicPartition(topic, partition, first) for (topic, partition), first in at.items()])
        waited = 0.0
        places = consume.Places(at)
        while at and not stop.is_set():
            raw = consume.batch(consumer, 0.5, places=places)
            messages: list[Message] = []
            read: dict[Partition, tuple[int, int]] = {}
            done = []
            for record in raw:
                key = (record.topic() or "", record.partition() or 0)
                if key not in at:
                    continue
                offset = record.offset() or 0
                began = read.get(key, (at[key], 0))[0]
                if record.error() is None and offset < end[key]:
                    messages.append(consume.decoded(record))
                    at[key] = offset + 1
                else:
                    at[key] = min(offset, end[key])  # the end of the partition, or beyond what is wanted
                if at[key] > began:
                    read[key] = (began, at[key])
                if at[key] >= end[key]:
                    del at[key]
                    done.append(TopicPartition(*key))
            if done:
                consumer.incremental_unassign(done)
            if read:
                waited = 0.0
                yield Batch(messages, read)
            else:
                waited += 0.5
                if waited > patience_s:
                    raise ProjectionError(
                        "log-silent",
                        f"Kafka gave nothing for {patience_s:.0f} s, {len(at)} partitions are not read to the end",
                        "is Kafka up? the rebuild can be started again",
                    )
