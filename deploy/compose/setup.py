"""What must be there before the containers of compose.yaml start, and the Kafka account once the brokers run.

    python -P -m deploy.compose.setup files       certificates, passwords, the brokers' configuration
    python -P -m deploy.compose.setup accounts    Holdfast's account on the cluster, with its rights

Who is who is read from holdfast.toml: brokers and PostgreSQL get certificates for the names that stand there. What exists
is kept, so both may run at each start. One volume for each party, so that none sees another's secrets:

    authority/             the authority's private key
    brokers/<host>/        server.properties, tls/
    postgres/              tls, pg_hba.conf, password
    data/                  Holdfast's data directory: secrets/, tls/

If we die here: everything is written whole or not at all, and the next run does what is missing.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploy import certificates
from deploy.embedded.site import KEY_BYTES, write_file
from deploy.errors import DeployError
from deploy.kafka import broker_properties, grant, new_cluster_id
from streams.errors import StreamError
from streams.settings import KafkaSettings, Settings, load

CONTROLLER_PORT = 9094
# Users inside the images that compose.yaml names.
KAFKA_USER, POSTGRES_USER, HOLDFAST_USER = 1000, 999, 10001
# Inside the container anyone may connect, which only its health check does; from outside, with TLS and a password.
HBA = """\
local    all  all       trust
hostssl  all  all  all  scram-sha-256
"""


def files(settings: Settings, volumes: Path) -> None:
    """Write what is missing under `volumes` (the mount points above)."""
    authority, data = volumes / "authority", volumes / "data"
    for directory in (
        authority,
        volumes / "brokers",
        volumes / "postgres",
        data / "secrets",
        data / "tls",
        data / "run",
    ):
        directory.mkdir(parents=True, exist_ok=True)
    password = {name: _secret(authority / f"{name}.password") for name in ("broker", "kafka", "postgres")}

    hosts = [server.rpartition(":") for server in settings.kafka.bootstrap.split(",")]
    voters = ",".join(f"{n}@{host}:{CONTROLLER_PORT}" for n, (host, _, _) in enumerate(hosts, 1))
    cluster = _once(authority / "cluster.id", new_cluster_id())
    for node, (host, _, port) in enumerate(hosts, 1):
        broker = volumes / "brokers" / host
        _certificate(authority, host, [host, "localhost"], broker / "tls")
        pem = (broker / "tls" / f"{host}.key").read_text() + (broker / "tls" / f"{host}.pem").read_text()
        write_file(broker / "tls" / "broker.pem", pem, 0o600)
        values = {
            "NODE_ID": str(node),
            "VOTERS": voters,
            "DATA": "/var/lib/kafka/data",
            "LISTEN_HOST": "0.0.0.0",
            "HOST": host,
            "PORT": port,
            "CONTROLLER_PORT": str(CONTROLLER_PORT),
            "BROKER_PASSWORD": password["broker"],
            "TLS": "/etc/kafka/site/tls",
        }
        lines = [f"{key}={value}\n" for key, value in broker_properties(values).items()]
        write_file(broker / "server.properties", "".join(lines), 0o600)
        write_file(broker / "cluster.id", cluster + "\n", 0o644)
        _own(broker, KAFKA_USER)

    postgres = volumes / "postgres"
    _certificate(authority, settings.postgres.host, [settings.postgres.host], postgres)
    write_file(postgres / "pg_hba.conf", HBA, 0o644)
    write_file(postgres / "password", password["postgres"] + "\n", 0o600)
    _own(postgres, POSTGRES_USER)

    _certificate(authority, "api", ["api", "localhost", "127.0.0.1"], data / "tls")
    for name in ("kafka", "postgres"):
        write_file(data / "secrets" / f"{name}.password", password[name] + "\n", 0o600)
    key = data / "secrets" / "site.key"
    if not key.exists():
        write_file(key, secrets.token_bytes(KEY_BYTES), 0o600)
    (data / "secrets").chmod(0o700)
    _own(data, HOLDFAST_USER)


def accounts(settings: Settings, volumes: Path) -> None:
    """Holdfast's account on the cluster; waits for the brokers. Raises `ServerError`."""
    administrator = replace(
        settings.kafka,
        sasl_mechanism="PLAIN",
        sasl_username="broker",
        sasl_password_file=volumes / "authority" / "broker.password",
        ca_file=volumes / "authority" / "ca.pem",
    )
    account: KafkaSettings = replace(
        settings.kafka,
        sasl_password_file=volumes / "authority" / "kafka.password",
        ca_file=volumes / "authority" / "ca.pem",
    )
    grant(administrator, account, patience=180)


def _certificate(authority: Path, name: str, hosts: Sequence[str], to: Path) -> None:
    """A certificate of the authority's, copied to where its server finds it; the authority's key stays where it is."""
    if not (authority / f"{name}.pem").exists():
        certificates.make(authority, hosts, name)
    to.mkdir(parents=True, exist_ok=True)
    for file in (f"{name}.pem", f"{name}.key", "ca.pem"):
        shutil.copy(authority / file, to / file)


def _secret(path: Path) -> str:
    return _once(path, secrets.token_urlsafe(32))


def _once(path: Path, text: str) -> str:
    if not path.exists():
        write_file(path, text + "\n", 0o600)
    return path.read_text(encoding="utf-8").strip()


def _own(directory: Path, user: int) -> None:
    if os.geteuid() == 0:
        for path in [directory, *directory.rglob("*")]:
            os.chown(path, user, user)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="deploy.compose.setup")
    parser.add_argument("what", choices=["files", "accounts"])
    parser.add_argument("--config", type=Path, default=Path("/etc/holdfast/holdfast.toml"))
    parser.add_argument("--volumes", type=Path, default=Path("/volumes"))
    options = parser.parse_args(arguments)
    try:
        (files if options.what == "files" else accounts)(load(options.config), options.volumes)
    except (DeployError, StreamError) as e:
        print(f"setup: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
