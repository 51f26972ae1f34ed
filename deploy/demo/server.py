"""A real database server to protect, for the demonstration and for tests: what MariaDB and MySQL have in common.

It listens on loopback only and runs as an unprivileged user. What differs is an `Installation` (`mariadb`, `mysql`).

If we die here: it goes on running (unless `death_signal` says otherwise); `stop` or a signal to its pid ends it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deploy import certificates
from deploy.embedded.ports import free_ports
from deploy.embedded.process import Command, Identity, RunningProcess, last_line, wait_until
from deploy.embedded.user import ServiceUser, service_user
from deploy.errors import DeployError

if TYPE_CHECKING:
    from pymysql.connections import Connection

ROOT = "root"

Options = Mapping[str, str | None]


class DatabaseError(DeployError):
    """The server cannot be had, set up or started."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Programs of one version, and how a server of it is set up.

    `server`: the beginning of its command line. `defaults`: what a protected source is asked for (agents' preflight checks
    it), and what keeps it small. `accounts`: SQL run at every start, before anyone is let in, a statement a line; it is
    given root's password. `initialise(datadir, server)` fills a directory that does not exist yet.
    """

    name: str
    version: str
    server: Sequence[str]
    client: str
    defaults: Options
    accounts: Callable[[str], str]
    initialise: Callable[[Path, DatabaseServer], None]
    tls: bool = True


@dataclass
class DatabaseServer:
    """One server and its directory. Made by `prepare` of `MariaDB` or `MySQL`; `port` and data survive stop and kill."""

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
    def make(
        cls,
        directory: Path,
        find: Callable[[ServiceUser], Installation],
        *,
        server_id: int,
        options: Options | None,
        tls: bool,
        port: int,
        death_signal: int,
    ) -> Self:
        """Initialise `directory` where that is still to be done; nothing is started.

        `options` are added to the installation's defaults and win over them (None as value: the bare option). With `tls` the
        server has a certificate for 127.0.0.1 and localhost, vouched for by `tls_ca`. `death_signal` is what it gets when
        the process that started it dies (0: it outlives it). Raises `DatabaseError`, `PackageError`.
        """
        user = service_user()
        directory = directory.absolute()
        user.require_reach(directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        user.own(directory)
        installation = find(user)
        if tls and not installation.tls:
            raise DatabaseError("no-tls", f"{installation.name} {installation.version} speaks no TLS of today")
        server = cls(
            directory=directory,
            installation=installation,
            port=port or free_ports(1)[0],
            server_id=server_id,
            options={**installation.defaults, **(options or {})},
            user=user,
            certificate=_certificate(directory, user) if tls else None,
            death_signal=death_signal,
        )
        if not server.datadir.exists():
            server._initialise()
        return server

    @property
    def kind(self) -> str:
        """Of the platform that protects it: `mariadb`, `mysql`."""
        return self.installation.name.lower()

    @property
    def version(self) -> str:
        """Such as `10.11.9`."""
        return self.installation.version

    @property
    def datadir(self) -> Path:
        return self.directory / "data"

    @property
    def log_file(self) -> Path:
        return self.directory / f"{self.installation.name.lower()}.log"

    @property
    def root_password(self) -> str:
        return (self.directory / "root.password").read_text().strip()

    @property
    def tls_ca(self) -> Path | None:
        return self.certificate.ca if self.certificate else None

    @property
    def pid(self) -> int:
        """Of the running server. Raises `DatabaseError` (`database-not-running`)."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def start(self, options: Options | None = None) -> None:
        """Start and wait until it lets `root` in. `options` hold from now on, also for later starts."""
        if self.alive:
            raise DatabaseError(
                "database-running", f"{self.installation.name} in {self.directory} runs already (pid {self.pid})"
            )
        self.options = {**self.options, **(options or {})}
        self._process = RunningProcess(self._command())
        try:
            self._process.wait_ready(self._ready, 120)
        except DeployError as e:
            self._process.kill()
            raise DatabaseError("database-start", e.message, e.hint) from e

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
        """A PyMySQL connection with autocommit; `more` goes to `pymysql.connect`. In clear where the server has no certificate of
        ours: PyMySQL would read every authority that the system trusts, at each connection."""
        import pymysql

        clear = self.certificate is None and "ssl" not in more
        arguments = {"autocommit": True, "charset": "utf8mb4", "connect_timeout": 10, "ssl_disabled": clear, **more}
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
            raise DatabaseError(
                "database-not-running", f"{self.installation.name} in {self.directory} has not been started"
            )
        return self._process

    def _command(self) -> Command:
        options: dict[str, str | None] = {
            "server_id": str(self.server_id),
            **self.options,
            "port": str(self.port),
            "bind_address": self.host,
            # Relative to the data directory: a socket's path may have 107 bytes only.
            "socket": "server.sock",
            "pid_file": "server.pid",
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
            name=f"{self.installation.name} {self.version}",
            argv=[
                *self.installation.server,
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
        password = secrets.token_urlsafe(24)
        self._write("root.password", password)
        # Kept out of the binary log: it is not what is protected.
        self._write("accounts.sql", "SET sql_log_bin = 0;\n" + self.installation.accounts(password))
        new = self.directory / "data.new"
        if new.exists():
            shutil.rmtree(new)
        self.installation.initialise(new, self)
        self.user.own_tree(new)
        new.rename(self.datadir)

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)
        self.user.own(path)


def copy_data(template: Path, to: Path) -> None:
    """A copy of an initialised data directory. Most of its logs is zeros, which take no room and no time."""
    done = subprocess.run(
        ["cp", "-r", "--sparse=always", str(template), str(to)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DatabaseError("database-init", f"cannot copy {template}: {done.stderr.strip()}")


def run_once(name: str, argv: Sequence[str], directory: Path, log_file: Path, user: ServiceUser) -> None:
    """Run a program to its end as `user`. Raises `DatabaseError` (`database-init`)."""
    command = Command(name=name, argv=argv, log_file=log_file, cwd=directory, user=user, death_signal=signal.SIGTERM)
    process = RunningProcess(command)
    if not wait_until(lambda: not process.alive(), 300):
        process.kill()
    if process.exit_status != 0:
        raise DatabaseError("database-init", f"{name} failed: {last_line(command)}", f"see {log_file}")


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
