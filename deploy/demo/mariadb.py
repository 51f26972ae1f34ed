"""A real MariaDB to protect, for the demonstration and for tests: 10.11 as Debian packs it or 11.4 from Maven.

It is set up as a source should be: row format with full images and metadata, strict GTIDs, and nothing acknowledged
before it is on disk. It listens on loopback only and runs as an unprivileged user.

If we die here: it goes on running (unless `death_signal` says otherwise); `stop` or a signal to its pid ends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import certificates
from deploy.embedded.packages import mariadb_11_4
from deploy.embedded.ports import free_ports
from deploy.embedded.process import Command, Identity, RunningProcess, last_line, wait_until
from deploy.embedded.user import ServiceUser, service_user
from deploy.errors import DeployError

if TYPE_CHECKING:
    from pymysql.connections import Connection

VERSIONS = ("10.11", "11.4")
ROOT = "root"

Options = Mapping[str, str | None]

# What a protected source is asked for (agents' preflight checks it), and what keeps it small.
DEFAULTS: Options = {
    "log_bin": "binlog",
    "binlog_format": "ROW",
    "binlog_row_image": "FULL",
    "binlog_row_metadata": "FULL",
    "gtid_strict_mode": "ON",
    "sync_binlog": "1",
    "innodb_flush_log_at_trx_commit": "1",
    "max_binlog_size": "1G",
    "character_set_server": "utf8mb4",
    "innodb_buffer_pool_size": "256M",
    "performance_schema": "OFF",
    "skip_name_resolve": None,
}


class MariaDBError(DeployError):
    """The server cannot be had, set up or started."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Programs of one MariaDB version. `basedir` is None for the system's own, which knows its paths."""

    version: str
    mariadbd: str
    install_db: str
    client: str
    basedir: Path | None

    def base(self) -> list[str]:
        return [f"--basedir={self.basedir}"] if self.basedir else []


def find(version: str = "any", user: ServiceUser | None = None) -> Installation:
    """The installation for `version`: `10.11`, `11.4`, or `any` (the system's where there is one, else Maven's 11.4).

    Raises `MariaDBError` (`mariadb-missing`) and `PackageError`.
    """
    system = _system()
    if system is not None and version in ("any", ".".join(system.version.split(".")[:2])):
        return system
    if version in ("any", "11.4"):
        base = mariadb_11_4(user)
        return Installation(
            version=_version(str(base / "bin" / "mariadbd")),
            mariadbd=str(base / "bin" / "mariadbd"),
            install_db=str(base / "scripts" / "mariadb-install-db"),
            client=str(base / "bin" / "mariadb"),
            basedir=base,
        )
    has = f"this system has {system.version}" if system else "this system has no MariaDB server"
    raise MariaDBError("mariadb-missing", f"no MariaDB {version}: {has}", "Debian 12: apt-get install mariadb-server")


@dataclass
class MariaDB:
    """One server and its directory. Made by `prepare`; `port` and the data survive stop, kill and restart."""

    directory: Path
    installation: Installation
    port: int
    server_id: int
    options: Options
    user: ServiceUser
    certificate: certificates.Certificate | None
    death_signal: int
    host: str = "127.0.0.1"
    _process: RunningProcess | None = field(default=None, repr=False)

    @classmethod
    def prepare(
        cls,
        directory: Path,
        *,
        version: str = "any",
        server_id: int = 1,
        options: Options | None = None,
        tls: bool = False,
        port: int = 0,
        death_signal: int = 0,
    ) -> MariaDB:
        """Initialise `directory` where that is still to be done; nothing is started.

        `options` are added to `DEFAULTS` and win over them (None as value: the bare option). With `tls` the server has
        a certificate for 127.0.0.1 and localhost, vouched for by `tls_ca`. `death_signal` is what it gets when the
        process that started it dies (0: it outlives it). Raises `MariaDBError`.
        """
        user = service_user()
        directory = directory.absolute()
        user.require_reach(directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        user.own(directory)
        server = cls(
            directory=directory,
            installation=find(version, user),
            port=port or free_ports(1)[0],
            server_id=server_id,
            options={**DEFAULTS, **(options or {})},
            user=user,
            certificate=_certificate(directory, user) if tls else None,
            death_signal=death_signal,
        )
        if not server.datadir.exists():
            server._initialise()
        return server

    @property
    def version(self) -> str:
        """Such as `10.11.9`."""
        return self.installation.version

    @property
    def datadir(self) -> Path:
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        return self.directory / "mariadb.log"

    @property
    def root_password(self) -> str:
        return (self.directory / "root.password").read_text().strip()

    @property
    def tls_ca(self) -> Path | None:
        return self.certificate.ca if self.certificate else None

    @property
    def pid(self) -> int:
        """Of the running server. Raises `MariaDBError` (`mariadb-not-running`)."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def start(self, options: Options | None = None) -> None:
        """Start and wait until it lets `root` in. `options` hold from now on, also for later starts."""
        if self.alive:
            raise MariaDBError("mariadb-running", f"MariaDB in {self.directory} runs already (pid {self.pid})")
        self.options = {**self.options, **(options or {})}
        self._process = RunningProcess(self._command())
        try:
            self._process.wait_ready(self._ready, 120)
        except DeployError as e:
            self._process.kill()
            raise MariaDBError("mariadb-start", e.message, e.hint) from e

    def stop(self) -> None:
        """An orderly shutdown; returns when it is gone."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL: what a crash leaves."""
        self._running().kill()

    def restart(self, options: Options | None = None) -> None:
        """Stop if it runs, start again on the same port and data."""
        self.stop()
        self.start(options)

    def pause(self) -> None:
        self._running().pause()

    def resume(self) -> None:
        self._running().resume()

    def connect(
        self, user: str = ROOT, password: str | None = None, database: str | None = None, **more: Any
    ) -> Connection[Any]:
        """A PyMySQL connection with autocommit; `more` goes to `pymysql.connect`."""
        import pymysql

        arguments = {"autocommit": True, "charset": "utf8mb4", "connect_timeout": 10, **more}
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=user,
            password=self.root_password if password is None and user == ROOT else password or "",
            database=database,
            **arguments,
        )

    def execute(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run `statements` as root, each a transaction; the rows of the last one."""
        with contextlib.closing(self.connect(database=database)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def client_command(self) -> str:
        """What to type for the command-line client, as root."""
        return f"{self.installation.client} --defaults-extra-file={self._client_file()}"

    def _client_file(self) -> Path:
        path = self.directory / "client.cnf"
        text = f"[client]\nhost={self.host}\nport={self.port}\nuser={ROOT}\npassword={self.root_password}\n"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)
        return path

    def _running(self) -> RunningProcess:
        if self._process is None:
            raise MariaDBError("mariadb-not-running", f"MariaDB in {self.directory} has not been started")
        return self._process

    def _command(self) -> Command:
        options: dict[str, str | None] = {
            "server_id": str(self.server_id),
            **self.options,
            "port": str(self.port),
            "bind_address": self.host,
            # Relative to the data directory: a socket's path may have 107 bytes only.
            "socket": "mariadb.sock",
            "pid_file": "mariadb.pid",
            "init_file": str(self.directory / "accounts.sql"),
            "tmpdir": str(self.directory),
        }
        if self.certificate is not None:
            options |= {
                "ssl_cert": str(self.certificate.certificate),
                "ssl_key": str(self.certificate.key),
                "ssl_ca": str(self.certificate.ca),
            }
        return Command(
            name=f"MariaDB {self.version}",
            argv=[
                self.installation.mariadbd,
                "--no-defaults",
                *self.installation.base(),
                f"--datadir={self.datadir}",
                *(f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()),
            ],
            log_file=self.log_file,
            cwd=self.directory,
            user=self.user,
            death_signal=self.death_signal,
            stop_timeout=120,
        )

    def _ready(self) -> str | None:
        import pymysql

        try:
            self.connect(connect_timeout=2).close()
        except pymysql.Error as e:
            return str(e)
        return None

    def _initialise(self) -> None:
        self._write("root.password", secrets.token_urlsafe(24))
        # Run at every start, before anyone is let in, and kept out of the binary log: it is not what is protected.
        self._write(
            "accounts.sql",
            "SET sql_log_bin = 0;\n"
            f"CREATE USER IF NOT EXISTS '{ROOT}'@'127.0.0.1';\n"
            f"ALTER USER '{ROOT}'@'127.0.0.1' IDENTIFIED BY '{self.root_password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{ROOT}'@'127.0.0.1' WITH GRANT OPTION;\n"
            f"ALTER USER IF EXISTS '{ROOT}'@'localhost' IDENTIFIED BY '{self.root_password}';\n",
        )
        new = self.directory / "data.new"
        if new.exists():
            shutil.rmtree(new)
        command = Command(
            name="mariadb-install-db",
            argv=[
                self.installation.install_db,
                "--no-defaults",
                *self.installation.base(),
                f"--datadir={new}",
                f"--tmpdir={self.directory}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            ],
            log_file=self.log_file,
            cwd=self.directory,
            user=self.user,
            death_signal=signal.SIGTERM,
        )
        process = RunningProcess(command)
        if not wait_until(lambda: not process.alive(), 180):
            process.kill()
        if process.exit_status != 0:
            raise MariaDBError(
                "mariadb-init", f"cannot initialise MariaDB: {last_line(command)}", f"see {self.log_file}"
            )
        new.rename(self.datadir)

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)
        self.user.own(path)


def end(pid: int, timeout: float = 60) -> bool:
    """Stop the server with this pid, whoever started it. False when it is still there after `timeout` seconds."""
    identity = Identity.of(pid)
    if identity is None:
        return True
    identity.signal(signal.SIGTERM)
    return identity.wait_gone(timeout)


def _certificate(directory: Path, user: ServiceUser) -> certificates.Certificate:
    made = certificates.make(directory / "tls", ["127.0.0.1", "localhost"])
    user.own_tree(directory / "tls")
    return made


def _system() -> Installation | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/usr/libexec"
    mariadbd = shutil.which("mariadbd", path=path)
    install_db = shutil.which("mariadb-install-db", path=path)
    client = shutil.which("mariadb", path=path)
    if mariadbd is None or install_db is None or client is None:
        return None
    return Installation(_version(mariadbd), mariadbd, install_db, client, None)


def _version(mariadbd: str) -> str:
    said = subprocess.run([mariadbd, "--no-defaults", "--version"], capture_output=True, text=True, check=False).stdout
    m = re.search(r"Ver (\d+\.\d+\.\d+)-MariaDB", said)
    if m is None:
        raise MariaDBError("mariadb-missing", f"{mariadbd} does not say its version: {said.strip()!r}")
    return m[1]
