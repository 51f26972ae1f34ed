"""Three embedded brokers set up as deploy/kafka says a cluster should be: TLS, passwords, rights, three copies.

The brokers run from `deploy/kafka/broker.properties` itself, the accounts' rights come from `deploy/kafka/acls.toml`.
"""

from __future__ import annotations

import secrets
import signal
from pathlib import Path

from confluent_kafka.admin import AdminClient

import deploy.kafka
from deploy import certificates
from deploy.embedded import kafka as embedded_kafka
from deploy.embedded.ports import free_ports
from deploy.embedded.process import RunningProcess, wait_until
from deploy.embedded.user import service_user
from streams.settings import KafkaSettings

BROKERS = 3
ACCOUNT = "holdfast"


class KafkaCluster:
    """Brokers 1, 2, 3. `url(...)` is what a user would put into holdfast.toml."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.user = service_user()
        self.ports = free_ports(BROKERS)
        self.controller_ports = free_ports(BROKERS)
        self._broker_password = self._secret("broker.password")
        self.password_file = directory / "holdfast.password"
        self._secret("holdfast.password")
        self.certificate = certificates.make(directory / "tls", ["127.0.0.1", "localhost"])
        self._processes: dict[int, RunningProcess] = {}
        self._cluster_id = deploy.kafka.new_cluster_id()

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def url(self) -> str:
        return (
            f"kafkas://{ACCOUNT}@{self.bootstrap}?mechanism=SCRAM-SHA-512&password_file={self.password_file}"
            f"&ca_file={self.certificate.ca}&replication_factor=3"
        )

    def settings(self, prefix: str = "holdfast.") -> KafkaSettings:
        """As Holdfast's account."""
        return KafkaSettings(
            self.bootstrap, prefix, 3, "SASL_SSL", "SCRAM-SHA-512", ACCOUNT, self.password_file, self.certificate.ca
        )

    def administrator(self) -> KafkaSettings:
        """As the brokers' own account, who may do everything."""
        password = self.directory / "broker.password"
        return KafkaSettings(self.bootstrap, "", 3, "SASL_SSL", "PLAIN", "broker", password, self.certificate.ca)

    def start(self) -> None:
        """All brokers, then Holdfast's account and its rights."""
        tls = self.directory / "tls"
        (tls / "broker.pem").write_text(self.certificate.key.read_text() + self.certificate.certificate.read_text())
        self.user.own_tree(self.directory)
        for node in range(1, BROKERS + 1):
            self._launch(node)
        for process in self._processes.values():
            process.wait_ready(lambda: embedded_kafka.ready(self.administrator()), 120)
        self.await_brokers(BROKERS)
        deploy.kafka.grant(self.administrator(), self.settings())

    def stop(self) -> None:
        for process in self._processes.values():
            process.signal(signal.SIGTERM)
        for process in self._processes.values():
            process.stop()

    def kill(self, node: int) -> None:
        self._processes[node].kill()

    def restart(self, node: int) -> None:
        """Start a broker that was killed; returns when the cluster knows it again."""
        self._launch(node)
        self.await_brokers(sum(p.alive() for p in self._processes.values()))

    def await_brokers(self, count: int) -> None:
        admin = AdminClient({**self.administrator().client_config(), "log_level": 0})

        def known() -> bool:
            return len(admin.list_topics(timeout=30).brokers) == count

        assert wait_until(known, 60, 0.2), f"not {count} brokers after 60 s"

    def leader(self, topic: str, partition: int = 0) -> int:
        """The node that leads a partition."""
        admin = AdminClient(self.administrator().client_config())
        return int(admin.list_topics(topic, timeout=30).topics[topic].partitions[partition].leader)

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        admin = AdminClient({**self.administrator().client_config(), "log_level": 0})
        return set(admin.list_topics(topic, timeout=30).topics[topic].partitions[partition].isrs)

    def _secret(self, name: str) -> str:
        password = secrets.token_urlsafe(18)
        path = self.directory / name
        path.touch(0o600)
        path.write_text(password + "\n")
        return password

    def _launch(self, node: int) -> None:
        directory = self.directory / str(node)
        values = {
            "NODE_ID": str(node),
            "VOTERS": ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(self.controller_ports, 1)),
            "DATA": str(directory / "data"),
            "LISTEN_HOST": "127.0.0.1",
            "HOST": "127.0.0.1",
            "PORT": str(self.ports[node - 1]),
            "CONTROLLER_PORT": str(self.controller_ports[node - 1]),
            "BROKER_PASSWORD": self._broker_password,
            "TLS": str(self.directory / "tls"),
        }
        broker = embedded_kafka.Broker(
            directory,
            self.ports[node - 1],
            self.controller_ports[node - 1],
            node_id=node,
            cluster_id=self._cluster_id,
            heap="320m",
            user=self.user,
            properties=deploy.kafka.broker_properties(values),
            death_signal=signal.SIGKILL,
        )
        self._processes[node] = RunningProcess(embedded_kafka.prepare(broker))
