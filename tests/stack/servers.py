"""The servers behind the fixtures: Kafka and PostgreSQL as `holdfast up` runs them, MariaDB and MySQL as the demo does."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shlex
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import psycopg
import pytest
from psycopg import sql

from deploy.demo.mariadb import MariaDB
from deploy.demo.mysql import MySQL
from deploy.demo.server import DatabaseServer, Options
from deploy.embedded import kafka as embedded_kafka
from deploy.embedded import postgres as embedded_postgres
from deploy.embedded import site
from deploy.embedded.ports import free_ports
from deploy.embedded.process import RunningProcess
from deploy.embedded.user import service_user
from deploy.errors import PackageError
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings

START_TIMEOUT = 90.0


class Scratch:
    """A directory that servers may use (they may run as another user, who cannot enter pytest's), removed by `remove`.

    Kept when HOLDFAST_TEST_KEEP is set.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"holdfast-test-{name}-"))
        service_user().own(self.path)

    def remove(self) -> None:
        if not os.environ.get("HOLDFAST_TEST_KEEP"):
            shutil.rmtree(self.path, ignore_errors=True)


class _Server(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


_S = TypeVar("_S", bound=_Server)


@contextlib.contextmanager
def started(kind: Callable[[Path], _S], folder: str, lacking: str = "") -> Iterator[_S]:
    """A server of that kind, in a scratch folder of that name, until it is let go of; `lacking`: why the test is skipped."""
    if lacking:
        pytest.skip(lacking)
    scratch = Scratch(folder)
    server = kind(scratch.path)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        scratch.remove()


class KafkaServer:
    """A single embedded broker. `bootstrap` and its data survive kill and restart.

    `far`: a port at which clients are to reach a second listener of it, on `far_port`; a relay stands in between.
    """

    def __init__(self, directory: Path, far: int = 0) -> None:
        port, controller_port, self.far_port = free_ports(3)
        self.broker = embedded_kafka.Broker(
            directory, port, controller_port, user=service_user(), death_signal=signal.SIGKILL
        )
        if far:
            own = embedded_kafka.configuration(self.broker)
            self.broker = replace(
                self.broker,
                properties={
                    **own,
                    "listeners": f"{own['listeners']},FAR://127.0.0.1:{self.far_port}",
                    "advertised.listeners": f"{own['advertised.listeners']},FAR://127.0.0.1:{far}",
                    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,FAR:PLAINTEXT",
                },
            )
        self._process: RunningProcess | None = None

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    @property
    def log_file(self) -> Path:
        return self.broker.log

    def settings(self, prefix: str = "holdfast.") -> KafkaSettings:
        return KafkaSettings(bootstrap=self.bootstrap, prefix=prefix)

    @property
    def process(self) -> RunningProcess:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        """Start and wait until it answers."""
        self._process = RunningProcess(embedded_kafka.prepare(self.broker))
        self._process.wait_ready(lambda: embedded_kafka.ready(self.settings()), START_TIMEOUT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def restart(self) -> None:
        """Stop if it runs, start again, wait until it answers."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT, and wait until it answers."""
        self.process.resume()
        self.process.wait_ready(lambda: embedded_kafka.ready(self.settings()), START_TIMEOUT)


class PostgresServer:
    """An embedded PostgreSQL. Port and data survive kill and restart."""

    def __init__(self, directory: Path) -> None:
        self.cluster = embedded_postgres.Cluster(
            directory,
            free_ports(1)[0],
            directory / "password",
            user=service_user(),
            parameters={"max_connections": "200"},
            death_signal=signal.SIGQUIT,
        )
        self._process: RunningProcess | None = None

    def settings(self, dbname: str = "postgres") -> PostgresSettings:
        return self.cluster.settings(dbname)

    @property
    def process(self) -> RunningProcess:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        """Start and wait until it lets us in."""
        self._process = RunningProcess(embedded_postgres.prepare(self.cluster))
        self._process.wait_ready(lambda: embedded_postgres.ready(self.settings()), START_TIMEOUT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL to the server; its workers end by themselves."""
        self.process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP to the server itself: no new connections; open ones go on."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def fresh_database(self) -> PostgresSettings:
        """A new empty database."""
        dbname = f"t_{secrets.token_hex(6)}"
        embedded_postgres.ensure_database(self.cluster, dbname)
        return self.settings(dbname)

    def drop_database(self, dbname: str) -> None:
        with psycopg.connect(self.settings().conninfo(), autocommit=True) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(dbname)))


def start_mariadb(
    directory: Path, version: str = "10.11", options: Options | None = None, tls: bool = False
) -> MariaDB:
    """A running MariaDB that dies with the tests; `stop` it all the same."""
    server = MariaDB.prepare(directory, version=version, options=options, tls=tls, death_signal=signal.SIGKILL)
    server.start()
    return server


# Every server that Holdfast is tested with, by the name that parametrised tests use; its kind is what stands before the dash.
DATABASES: Mapping[str, Callable[..., DatabaseServer]] = {
    "mariadb-10.11": functools.partial(MariaDB.prepare, version="10.11"),
    "mariadb-11.4": functools.partial(MariaDB.prepare, version="11.4"),
    "mysql-9": functools.partial(MySQL.prepare, version="9"),
    "mysql-5.5": functools.partial(MySQL.prepare, version="5.5"),
}


def kind_of(name: str) -> str:
    """Of a name in `DATABASES`: the platform that protects it, such as `mysql`."""
    return name.partition("-")[0]


def start_database(
    directory: Path, name: str, options: Options | None = None, tls: bool = False, server_id: int = 1
) -> DatabaseServer:
    """A running server of `DATABASES` that dies with the tests; `stop` it all the same. A test that needs one that cannot
    be had on this machine is skipped."""
    try:
        server = DATABASES[name](directory, options=options, tls=tls, server_id=server_id, death_signal=signal.SIGKILL)
    except PackageError as error:
        pytest.skip(f"no {name} here: {error}")
    server.start()
    return server


def program_of(server: DatabaseServer, directory: Path) -> str:
    """The server's program as one file, with what it needs to run where it was unpacked; an installed one is that file."""
    argv = [a for a in server.installation.server if a != "--no-defaults"]
    at = next(i for i, a in enumerate(argv) if a.endswith(("mysqld", "mariadbd"))) + 1
    program = directory / "bin" / Path(argv[at - 1]).name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.join(argv[:at])} "$@" {shlex.join(argv[at:])}\n')
    program.chmod(0o755)
    return str(program)


def make_site(data_dir: Path, kafka: KafkaSettings, postgres: PostgresSettings, name: str = "test") -> Settings:
    """Settings of a site on servers that run already, with its key, as a directory with `holdfast.toml` in it."""
    site.create(data_dir, service_user())
    settings = Settings(
        site=name,
        data_dir=data_dir,
        kafka=kafka,
        postgres=postgres,
        # What an API says by itself would be among what a test counts.
        api=ApiSettings(port=free_ports(1)[0], watch_s=0),
        secret_key_file=data_dir / "secrets" / "site.key",
    )
    site.write_settings(settings)
    return settings


def config_file(settings: Settings) -> Path:
    """What to give a process as `--config`."""
    return settings.data_dir / site.SETTINGS
