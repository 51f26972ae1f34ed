"""The topic catalogue as code: names, partitions, keys, what keeps them.

Partition counts never change once a topic exists. Nothing in Kafka is deleted by time: retention is -1 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streams.errors import StreamError
from streams.ids import slug


@dataclass(frozen=True, slots=True)
class Topic:
    """One entry. `per`: None, or what the name is completed with (`source`, `site`). `kept` says who may trim it."""

    name: str
    partitions: int
    key: str
    carries: str
    kept: str
    per: str | None = None
    max_message_bytes: int = 1_048_576


CATALOGUE: tuple[Topic, ...] = (
    Topic("commands", 4, "asset", "requested work", "days, then archive"),
    Topic("jobs", 4, "job", "every change of a job's state", "days, then archive"),
    Topic("blocks", 4, "asset", "block references, point lifecycle", "days, then archive"),
    Topic("repository", 1, "repository", "sessions, points, collection", "days, then archive"),
    Topic(
        "inventory",
        1,
        "asset",
        "assets, sources, agents, policies and their runs, users and roles",
        "days, then archive",
    ),
    Topic("schema", 1, "source", "definitions at the baseline and after each DDL step", "forever", "source", 8_388_608),
    Topic(
        "capture", 1, "source", "commit records in commit order", "until archived; never the last", "source", 8_388_608
    ),
    Topic("commits", 4, "source", "granules", "as capture"),
    Topic("rollbacks", 4, "source", "plans and what became of them", "days, then archive"),
    Topic("replica", 4, "asset", "manifests, delta runs, chunks", "within a byte budget", "site", 8_388_608),
    Topic("receipts", 1, "site", "what a site holds", "days, then archive", "site"),
    Topic("health", 4, "agent", "heartbeats and figures", "days"),
    Topic("audit", 4, "actor", "who asked for what", "days, then archive"),
    Topic("seals", 1, "topic-partition", "signed digests over ranges, cuts", "forever"),
)
BY_NAME: Mapping[str, Topic] = {t.name: t for t in CATALOGUE}

# Flags that every topic is created with. A single broker flushes each record, since nobody else holds a copy; with
# replication, acks=all and min.insync.replicas say that another broker has it, and a flush each would only cost.
COMMON: Mapping[str, str] = {
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
    "unclean.leader.election.enable": "false",
    "message.timestamp.type": "CreateTime",
}


def topic_name(prefix: str, name: str, of: str | None = None) -> str:
    """`holdfast.capture.shop` for ("holdfast.", "capture", "shop"). Raises `StreamError` (`topic-unknown`)."""
    topic = BY_NAME.get(name)
    if topic is None or (topic.per is None) != (of is None):
        raise StreamError("topic-unknown", f"there is no topic {name!r}" + (f" for {of!r}" if of else ""))
    return f"{prefix}{name}" + (f".{slug(of)}" if of is not None else "")


def settings_of(topic: Topic, replication: int) -> dict[str, str]:
    """Kafka's configuration of `topic` on a cluster that keeps `replication` copies."""
    flags = dict(COMMON)
    flags["max.message.bytes"] = str(topic.max_message_bytes)
    flags["min.insync.replicas"] = str(max(1, replication - 1))
    if replication == 1:
        flags["flush.messages"] = "1"
    return flags
