"""The Faust application that processors run in: how it reaches Kafka, and where its progress is kept.

Progress is the caller's: rows and offsets are committed together elsewhere, so this app commits nothing to Kafka. Faust seeks to
*committed* offsets after every assignment of partitions, overriding any seek made before; the consumer here answers that question
from an `OffsetStore` and makes `commit` do nothing. Stores are in memory, there are no tables, no web server, no leader topic,
and Faust creates no topics.

Knows nothing of what processors do, nor of PostgreSQL.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.settings import KafkaSettings

# (full topic name, partition)
Partition = tuple[str, int]

# A member that dies without a word is missed after this long (brokers allow no less than 6 s by default). A member with a
# static id that comes back sooner gets its partitions at once.
SESSION_TIMEOUT_S = 10.0


class OffsetStore(Protocol):
    """Where progress is kept."""

    async def positions(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """The offset of the first record wanted of each partition. Called after every assignment, again and again when the
        caller raises; it may wait for its database."""


def _transport(offsets: OffsetStore) -> type[driver.Transport]:
    """aiokafka's transport, whose consumer finds its committed offsets in `offsets`."""

    class Consumer(driver.Consumer):
        async def seek_to_committed(self) -> Mapping[TP, int]:
            assigned = [TP(*tp) for tp in self.assignment()]
            wanted = await offsets.positions((tp.topic, tp.partition) for tp in assigned)
            found = {}
            for tp in assigned:
                offset = wanted[tp.topic, tp.partition]
                await self.seek(tp, offset)
                found[tp] = offset
            return found

        async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
            return True

        def verify_event_path(self, now: float, tp: TP) -> None:
            """Faust complains when nothing is committed; progress is watched by `streams.watchdog` instead."""

    class Transport(driver.Transport):
        pass

    Transport.Consumer = Consumer
    return Transport


class _App(faust.App):
    def _create_directories(self) -> None:
        """For tables in files, which there are not: whoever is killed would leave them behind."""


def make_app(kafka: KafkaSettings, name: str, offsets: OffsetStore, instance: str = "") -> faust.App:
    """An app whose consumer group is the prefix and `name`.

    `instance` names this member for good (static membership): restarted after a crash, it takes its partitions back without
    waiting for its former self to be missed. Should that one live after all, both read, and the offset store has to cope.
    """
    app = _App(
        f"{kafka.prefix}{name}",
        broker=[f"kafka://{server}" for server in kafka.bootstrap.split(",")],
        broker_credentials=credentials(kafka),
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        autodiscover=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=instance or None,
        consumer_max_fetch_size=4 << 20,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 4,
        broker_commit_interval=3600.0,
        stream_wait_empty=False,
        stream_buffer_maxsize=4096,
    )
    app._transport = _transport(offsets)(app.conf.broker, app)
    return app


def credentials(kafka: KafkaSettings) -> SASLCredentials | SSLCredentials | None:
    """What aiokafka needs to be let in; None for a plain connection. Holds the password: never log it."""
    context = ssl.create_default_context(cafile=str(kafka.ca_file) if kafka.ca_file else None) if kafka.tls else None
    if kafka.sasl:
        return SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.password(),
            mechanism=kafka.sasl_mechanism or "PLAIN",
            ssl_context=context,
        )
    return SSLCredentials(context) if context else None
