"""A Kafka and a PostgreSQL of one's own: three brokers with TLS, passwords and rights; PostgreSQL with TLS.

What was acknowledged is there whatever single broker dies; what cannot be acknowledged waits.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from deploy import certificates
from deploy.embedded import kafka as embedded_kafka
from deploy.embedded.packages import PostgresBinaries
from deploy.embedded.ports import free_ports
from deploy.embedded.postgres import ensure_database
from deploy.embedded.process import wait_until
from deploy.embedded.user import service_user
from deploy.kafka import broker_properties
from streams.admin import check_cluster, ensure_topics
from streams.consume import open_consumer
from streams.publish import RecordStream
from streams.settings import KafkaSettings, load
from tests.stack.cluster import KafkaCluster
from tests.stack.command_line import Site
from tests.stack.servers import PostgresServer, Scratch

pytestmark = [pytest.mark.e2e, pytest.mark.external]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    scratch = Scratch("cluster")
    made = KafkaCluster(scratch.path)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        scratch.remove()


def capture_topic(cluster: KafkaCluster, source: str) -> str:
    """A capture topic, created by Holdfast's account as the catalogue says."""
    ensure_topics(cluster.settings(), [("capture", source)])
    return f"holdfast.capture.{source}"


def read_all(kafka: KafkaSettings, topic: str) -> list[bytes]:
    from confluent_kafka import TopicPartition

    consumer = open_consumer(kafka, enable_partition_eof=False)
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=60)
        consumer.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes] = []
        while len(values) < end:
            batch = consumer.consume(1000, 30)
            assert batch, f"{len(values)} of {end} records, then nothing"
            for message in batch:
                assert message.error() is None, message.error()
                values.append(message.value() or b"")
        return values
    finally:
        consumer.close()


class Writer(threading.Thread):
    """Publishes numbered records until told to stop, as capture does; `acknowledged` is how many are durable."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        super().__init__()
        self._kafka, self._topic = kafka, topic
        self._enough = threading.Event()
        self.acknowledged = 0
        self.sent = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with RecordStream(self._kafka, self._topic) as stream:
                while not self._enough.is_set():
                    for _ in range(20):
                        stream.send(b"k", b"%d" % self.sent, [])
                        self.sent += 1
                    self.acknowledged = stream.wait(0.02)
                while self.acknowledged < self.sent:
                    self.acknowledged = stream.wait(1)
        except Exception as e:  # noqa: BLE001 -- reported by the test
            self.error = e

    def finish(self) -> None:
        self._enough.set()
        self.join(120)
        assert not self.is_alive()
        assert self.error is None, self.error

    def await_acknowledged(self, more: int) -> None:
        target = self.acknowledged + more
        assert wait_until(lambda: self.acknowledged >= target or self.error is not None, 60)
        assert self.error is None, self.error


def test_one_broker_killed_while_publishing_loses_nothing(cluster: KafkaCluster) -> None:
    topic = capture_topic(cluster, "killed")
    writer = Writer(cluster.settings(), topic)
    writer.start()
    writer.await_acknowledged(500)

    leader = cluster.leader(topic)
    cluster.kill(leader)
    writer.await_acknowledged(500)
    assert cluster.leader(topic) != leader
    cluster.restart(leader)
    writer.await_acknowledged(500)
    writer.finish()

    assert read_all(cluster.settings(), topic) == [b"%d" % n for n in range(writer.sent)]
    assert wait_until(lambda: cluster.in_sync(topic) == {1, 2, 3}, 60)


def test_with_two_brokers_gone_publishing_waits_and_then_goes_on(cluster: KafkaCluster) -> None:
    topic = capture_topic(cluster, "starved")
    writer = Writer(cluster.settings(), topic)
    writer.start()
    writer.await_acknowledged(200)

    # One that does not lead, so that the leader is there to refuse, then the other that does not.
    leader = cluster.leader(topic)
    first, second = sorted({1, 2, 3} - {leader})
    cluster.kill(first)
    writer.await_acknowledged(200)
    cluster.kill(second)
    # With one copy left nothing may be acknowledged for as long as that lasts, and nothing is given up either.
    wait_until(lambda: False, 1)  # what the second one had taken before it died may still be reported
    so_far = writer.acknowledged
    assert not wait_until(lambda: writer.acknowledged > so_far or writer.error is not None, 5)
    assert writer.sent > so_far
    cluster.restart(first)
    cluster.restart(second)
    writer.await_acknowledged(200)
    writer.finish()

    assert read_all(cluster.settings(), topic) == [b"%d" % n for n in range(writer.sent)]


def test_topics_of_the_catalogue_have_three_copies_and_no_flush_per_record(cluster: KafkaCluster) -> None:
    topic = capture_topic(cluster, "copies")
    admin = AdminClient(cluster.administrator().client_config())
    partition = admin.list_topics(topic, timeout=30).topics[topic].partitions[0]
    resource = ConfigResource(ResourceType.TOPIC, topic)
    flags: dict[str, str | None] = {}

    def told() -> bool:
        # By any broker, and one that was started a moment ago may not have heard of the topic yet.
        with contextlib.suppress(KafkaException):
            found = admin.describe_configs([resource])[resource].result(30)
            flags.update({name: entry.value for name, entry in found.items()})
        return bool(flags)

    assert wait_until(told, 60)
    assert len(partition.replicas) == 3
    assert flags["min.insync.replicas"] == "2"
    assert flags["retention.ms"] == "-1"
    assert flags["unclean.leader.election.enable"] == "false"
    assert flags["flush.messages"] == str(2**63 - 1)


def test_the_doctor_has_no_complaint_about_this_cluster(cluster: KafkaCluster) -> None:
    assert check_cluster(cluster.settings()) == []


def test_the_url_of_the_settings_file_leads_to_the_same_account(cluster: KafkaCluster, tmp_path: Path) -> None:
    config = tmp_path / "holdfast.toml"
    config.write_text(f'[kafka]\nurl = "{cluster.url()}"\n')
    settings = load(config, {})
    assert settings.kafka == cluster.settings()
    assert embedded_kafka.ready(settings.kafka) is None


def test_a_wrong_password_an_unknown_authority_and_plaintext_are_refused(cluster: KafkaCluster, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    stranger = certificates.make(tmp_path / "tls", ["127.0.0.1"])
    good = cluster.settings()
    assert embedded_kafka.ready(good) is None
    for settings in (
        replace(good, sasl_password_file=wrong),
        replace(good, ca_file=stranger.ca),
        KafkaSettings(cluster.bootstrap),
        replace(good, security_protocol="SASL_PLAINTEXT", ca_file=None),
    ):
        assert embedded_kafka.ready(settings, timeout=3) is not None, settings


def test_holdfasts_account_reaches_nothing_outside_its_prefix(cluster: KafkaCluster) -> None:
    admin = AdminClient(cluster.settings().client_config())
    with pytest.raises(KafkaException, match=r"(?i)authoriz"):
        admin.create_topics([NewTopic("payroll", 1, 3)])["payroll"].result(30)


def test_passwords_are_in_no_process_arguments(cluster: KafkaCluster) -> None:
    import psutil

    secrets_ = [(cluster.directory / name).read_text().strip() for name in ("broker.password", "holdfast.password")]
    lines = [" ".join(psutil.Process(p.pid).cmdline()) for p in cluster._processes.values() if p.alive()]
    assert len(lines) == 3
    assert not [s for s in secrets_ for line in lines if s in line]


def test_what_a_cluster_must_have_is_in_the_production_file() -> None:
    names = ("NODE_ID", "VOTERS", "DATA", "LISTEN_HOST", "HOST", "PORT", "CONTROLLER_PORT", "BROKER_PASSWORD", "TLS")
    properties = broker_properties(dict.fromkeys(names, "x"))
    for key, value in embedded_kafka.COMMON.items():
        if key != "offsets.retention.minutes":
            assert properties[key] == value, key
    assert properties["min.insync.replicas"] == "2"
    assert properties["default.replication.factor"] == "3"
    assert not [key for key in properties if "flush" in key]


def test_a_site_on_servers_of_its_owners_starts_only_itself(
    cluster: KafkaCluster, tls_postgres: tuple[PostgresServer, certificates.Certificate]
) -> None:
    server, made = tls_postgres
    ensure_database(server.cluster, "site")
    scratch = Scratch("site")
    site = Site(scratch.path / "site")
    postgres_url = (
        f"postgresql://holdfast@127.0.0.1:{server.cluster.port}/site?sslmode=verify-full&sslrootcert={made.ca}"
        f"&password_file={server.cluster.password_file}"
    )
    (port,) = free_ports(1)
    try:
        site.holdfast(
            *("up", "--detach", "--kafka-url", cluster.url(), "--postgres-url", postgres_url, "--port-api", str(port))
        )
        assert {s["name"]: s["state"] for s in site.status()["services"]} == {
            "processors": "running",
            "agent": "running",
            "api": "running",
        }
        assert json.loads(site.holdfast("source", "list", "--json"))["sources"] == []
        views = json.loads(site.holdfast("projections", "list", "--json"))["projections"]
        assert {view["state"] for view in views} == {"live"}
        findings = json.loads(site.holdfast("doctor", "--json"))
        assert [f for f in findings if f["level"] == "bad"] == []

        # A broker may die: the site goes on.
        cluster.kill(2)
        assert site.status()["well"]
        assert wait_until(lambda: cluster.in_sync("holdfast.inventory") == {1, 3}, 60)
        found = json.loads(site.holdfast("doctor", "--json", expect=4))
        assert any("2 of 3 copies are in step" in f["says"] for f in found if f["level"] == "bad")
        site.holdfast("token", "issue", "auditor-1", "--role", "auditor", "--json")
        cluster.restart(2)
    finally:
        site.holdfast("down")
        scratch.remove()


@pytest.fixture
def tls_postgres() -> Iterator[tuple[PostgresServer, certificates.Certificate]]:
    """The system's PostgreSQL (Debian 12: 15): the embedded one is built without TLS, which nobody misses on loopback."""
    installed = [PostgresBinaries(path) for path in sorted(Path("/usr/lib/postgresql").glob("*"))]
    if not installed:
        pytest.skip("needs a PostgreSQL server built with TLS (Debian: apt-get install postgresql)")
    scratch = Scratch("postgres")
    made = certificates.make(scratch.path / "tls", ["127.0.0.1", "localhost"])
    service_user().own_tree(scratch.path)
    server = PostgresServer(scratch.path / "server")
    parameters = {"ssl": "on", "ssl_cert_file": str(made.certificate), "ssl_key_file": str(made.key)}
    server.cluster = replace(server.cluster, parameters=parameters, binaries=installed[-1])
    try:
        server.start()
        yield server, made
    finally:
        server.stop()
        scratch.remove()


def test_postgresql_by_url_with_tls_verifies_whom_it_talks_to(
    tls_postgres: tuple[PostgresServer, certificates.Certificate], tmp_path: Path
) -> None:
    server, made = tls_postgres
    other = certificates.make(tmp_path / "tls", ["127.0.0.1"])
    config = tmp_path / "holdfast.toml"

    def settings(ca: Path) -> str:
        address = f"127.0.0.1:{server.cluster.port}"
        url = (
            f"postgresql://holdfast@{address}/postgres?sslmode=verify-full&sslrootcert={ca}"
            f"&password_file={server.cluster.password_file}"
        )
        config.write_text(f'[kafka]\nbootstrap = "127.0.0.1:1"\n[postgres]\nurl = "{url}"\n')
        return load(config, {}).postgres.conninfo()

    with psycopg.connect(settings(made.ca)) as connection:
        row = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert row == (True, "TLSv1.3")
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(settings(other.ca))
