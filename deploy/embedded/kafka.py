"""Apache Kafka as one process: broker and controller (KRaft), for a single machine, and brokers for tests of clusters.

What is written to the broker's configuration and why:

- A record is acknowledged when it is on disk (`log.flush.interval.messages=1`). Kafka by itself leaves that to the
  operating system and relies on the other brokers' copies; a single broker has none, so a power cut would take
  acknowledged records with it. A replicated cluster need not pay for this: with acks=all and `min.insync.replicas=2` an
  acknowledged record is in the memory of two machines, which do not lose power together. The brokers' metadata log is
  always flushed (Raft demands it).
- Nothing is deleted by time or size (`log.retention.ms=-1`): an idle topic under `retention.ms` loses its last record.
- No topic springs up because somebody mistyped its name; a replica that missed records never becomes leader.
- Listeners are on loopback. Anything else is a cluster of one's own, with TLS and passwords (deploy/kafka).

If we die here: the configuration is written anew at each start; formatting is done once, under `meta.properties`, and a
directory half formatted is formatted again (`--ignore-formatted`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.embedded.packages import Progress, broker_cache, java, kafka_classpath
from deploy.embedded.process import Command
from deploy.embedded.user import ServiceUser
from deploy.errors import ServerError
from deploy.kafka import new_cluster_id
from streams.settings import KafkaSettings

MAX_MESSAGE_BYTES = 8_388_608 + 65_536  # the largest topic's limit (streams.topics) and some room for what wraps it

# What a cluster of Holdfast's must have, on one machine or many (deploy/kafka repeats them for clusters).
COMMON: Mapping[str, str] = {
    "auto.create.topics.enable": "false",
    "unclean.leader.election.enable": "false",
    "log.retention.ms": "-1",
    "log.retention.bytes": "-1",
    "message.max.bytes": str(MAX_MESSAGE_BYTES),
    "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
    # Progress is kept in PostgreSQL; what groups there are only share out partitions.
    "offsets.retention.minutes": "10080",
    "group.initial.rebalance.delay.ms": "0",
}
SINGLE: Mapping[str, str] = {
    "log.flush.interval.messages": "1",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    # A broker that was killed may come back once its session has run out: nobody waits for it meanwhile.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.dedupe.buffer.size": "16777216",
}


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker: where it keeps its data and where it listens. `properties`, where given, are all of its configuration."""

    directory: Path
    port: int
    controller_port: int
    node_id: int = 1
    cluster_id: str = ""  # base64 of 16 bytes, the same on all nodes of a cluster; empty: a random one
    heap: str = "512m"
    user: ServiceUser | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    death_signal: int = signal.SIGTERM
    log_file: Path | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def configuration(self) -> Path:
        return self.directory / "server.properties"

    @property
    def log(self) -> Path:
        return self.log_file or self.directory / "kafka.log"


def configuration(broker: Broker) -> dict[str, str]:
    """The broker's `server.properties`. A cluster's brokers say all in `properties` (deploy/kafka/broker.properties)."""
    if broker.properties:
        return dict(broker.properties)
    return {
        "process.roles": "broker,controller",
        "node.id": str(broker.node_id),
        "controller.quorum.voters": f"{broker.node_id}@127.0.0.1:{broker.controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{broker.port},CONTROLLER://127.0.0.1:{broker.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker.port}",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(broker.data),
        **COMMON,
        **SINGLE,
    }


def prepare(broker: Broker, progress: Progress = lambda _: None) -> Command:
    """Write the configuration, format the data directory where that is still to be done, and say how to start it."""
    user = broker.user
    runtime = java(user, progress)
    classpath = kafka_classpath(progress)
    for directory in (broker.directory, broker.data):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = "".join(f"{key}={value}\n" for key, value in configuration(broker).items())
    _write(broker.configuration, "# Written at each start; changes are lost.\n" + text)
    if user is not None:
        user.own_tree(broker.directory)

    jvm = [runtime, f"-Xmx{broker.heap}", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
    # Without these the JVM leaves files in the machine's temporary directory, and a crash report in our working one.
    jvm += [
        "-XX:-UsePerfData",
        f"-XX:ErrorFile={broker.directory}/jvm-crash.log",
        f"-Djava.io.tmpdir={broker.directory}",
    ]
    jvm += [f"-Dorg.slf4j.simpleLogger.{k}={v}" for k, v in _LOGGING.items()]
    if (cache := broker_cache(runtime, classpath)).exists():
        # Parts that do not fit are made anew, which a JVM warns of at length.
        jvm += [f"-XX:AOTCache={cache}", "-Xlog:aot*=off"]
    jvm += ["--enable-native-access=ALL-UNNAMED", "-cp", classpath]
    environ = {"HOME": str(broker.directory), "CLASSPATH": ""}
    if not (broker.data / "meta.properties").exists():
        progress("formatting Kafka's storage")
        _format(broker, jvm, environ)
    return Command(
        name="kafka",
        argv=[*jvm, "kafka.Kafka", str(broker.configuration)],
        log_file=broker.log,
        cwd=broker.directory,
        environ=environ,
        user=user,
        death_signal=broker.death_signal,
    )


def ready(kafka: KafkaSettings, timeout: float = 5.0) -> str | None:
    """None when the cluster answers and has a controller; else what is missing."""
    try:
        # Without a listener librdkafka logs each refused connection to standard error.
        # A metadata request, not an administrative one: when an administrative request and its connection time out at the
        # same moment, librdkafka aborts the whole process (its issue 4605), and this is asked of brokers that hang.
        client = AdminClient({**kafka.client_config(), "log_level": 0, "socket.timeout.ms": int(timeout * 1000)})
        cluster = client.list_topics(timeout=timeout)
    except KafkaException as e:
        return f"it does not answer on {kafka.bootstrap}: {_reason(e)}"
    if not cluster.brokers or cluster.controller_id < 0:
        return "it has no controller yet"
    return None


_LOGGING = {
    "defaultLogLevel": "warn",
    "log.kafka.server": "info",
    "log.org.apache.kafka.storage.internals.log.LogManager": "info",
    "showDateTime": "true",
    "dateTimeFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "showThreadName": "false",
}


def _format(broker: Broker, jvm: Sequence[str], environ: Mapping[str, str]) -> None:
    from deploy.embedded.process import RunningProcess, last_line, wait_until

    command = Command(
        name="kafka storage format",
        argv=[
            *jvm,
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            "--cluster-id",
            broker.cluster_id or new_cluster_id(),
            "--config",
            str(broker.configuration),
        ],
        log_file=broker.log,
        cwd=broker.directory,
        environ=environ,
        user=broker.user,
    )
    process = RunningProcess(command)
    if not wait_until(lambda: not process.alive(), 60):
        process.kill()
    if process.exit_status != 0:
        raise ServerError("kafka-format", f"cannot format Kafka's storage: {last_line(command)}", f"see {broker.log}")


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also across a power cut; readable to its owner only, since it may hold passwords."""
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    new.rename(path)


def _reason(e: Exception) -> str:
    if isinstance(e, KafkaException) and e.args and hasattr(e.args[0], "str"):
        return str(e.args[0].str())
    return str(e) or type(e).__name__
