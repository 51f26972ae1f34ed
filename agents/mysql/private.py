"""A private server with data of its own: made from nothing, filled, kept, started again. MariaDB's; what MySQL does otherwise is
in `private_mysql`.

Beside `agents.schema.scratch` (definitions only, thrown away) this is a whole server: system tables, an account with a
password, a port on loopback. It dies with the process that started it (`agents.child`); its data stay.

    <folder>/data/        the server's
    <folder>/password     of account `holdfast`, for its owner only
    <folder>/server.log
    <folder>/data/s.sock  the socket

And if we die here? While it is made (`start_filling`) nothing is flushed: what is found then is thrown away. Whoever says
that it is whole stops it first and flushes its files (`agents.scratch.folder.complete`); from then on (`start`) it is a
server like any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pymysql

from agents.errors import AgentError

ACCOUNT: Final = "holdfast"
START_S: Final = 120.0
STOP_S: Final = 60.0
_BOOTSTRAP: Final = (
    ("mysql_system_tables.sql", "mariadb_system_tables.sql"),
    ("mysql_performance_tables.sql", "mariadb_performance_tables.sql"),
    ("mysql_system_tables_data.sql", "mariadb_system_tables_data.sql"),
    ("maria_add_gis_sp_bootstrap.sql",),
)
# What a definition or a logged statement may depend on beyond what its event carries.
_LIKE_SOURCE: Final = (
    "character_set_server",
    "collation_server",
    "character_set_collations",
    "default_storage_engine",
    "explicit_defaults_for_timestamp",
    "innodb_default_row_format",
    "lower_case_table_names",
)
# Pages go by way of the system's cache, which has room where the buffer pool has none, and nothing waits for the disk.
FAST: Final = (
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-flush-method=fsync",
    "--debug-no-sync",
)
# Server errors that say that a disk is full (mariadb.com/kb/en/mariadb-error-codes).
_FULL: Final = frozenset({3, 1021, 1026, 1114})
_log = logging.getLogger("holdfast.private")


class PrivateServer:
    """One server in `folder`. Used by one thread at a time; `connect` by any."""

    def __init__(self, program: str, folder: Path, variables: Mapping[str, str], *, port: int) -> None:
        """`variables`: the source's settings (a baseline's manifest has them). Nothing is started."""
        self.folder = folder
        self.port = port
        self._program = program
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._place = -1

    @property
    def password(self) -> str:
        return self.password_file.read_text().strip()

    @property
    def account(self) -> str:
        return ACCOUNT

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    @property
    def socket(self) -> Path:
        return self.folder / "data" / "s.sock"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def create(self) -> None:
        """Make the data directory: system tables, and nobody in them. Raises `AgentError` (`private-failed`)."""
        data = self.folder / "data"
        data.mkdir(mode=0o700, parents=True)
        self.folder.chmod(0o700)
        words = os.open(self.folder / "password", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(words, "w") as out:
            out.write(secrets.token_urlsafe(18) + "\n")
        self._initialise(data)

    def _initialise(self, data: Path) -> None:
        share = self._share()
        script = [b"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL, @current_hostname='localhost';\n"]
        for names in _BOOTSTRAP:
            found = next((share / n for n in names if (share / n).is_file()), None)
            if found is not None:
                script.append(found.read_bytes())
        script.append(b"\nDELETE FROM mysql.global_priv WHERE User NOT IN ('mariadb.sys');\n")
        arguments = [*self._base(), f"--datadir={data}", f"--tmpdir={self.folder}", "--bootstrap", "--debug-no-sync",
                     "--skip-log-bin", "--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0"]  # fmt: skip
        self._run_once(arguments, b"".join(script))

    def _run_once(self, arguments: list[str], script: bytes = b"") -> None:
        """The program, to its end. Raises `AgentError` (`private-failed`)."""
        with (self.folder / "server.log").open("ab") as out:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "agents.child", str(os.getpid()), "--exec", self._program, *arguments],
                input=script,
                stdout=out,
                stderr=out,
                timeout=600,
                check=False,
            )
        if done.returncode:
            raise AgentError("private-failed", f"the private server cannot be made: {self._said()}")

    def start(self) -> None:
        """Start and wait until it lets us in. Raises `AgentError` (`private-failed`)."""
        self._start(())

    def start_filling(self) -> None:
        """Start as a replica of the captured log; nothing of it need survive a power cut. Raises as `start`."""
        self._start(self._filling())

    def _filling(self) -> tuple[str, ...]:
        return (*FAST, *replica_options())

    def _start(self, more: tuple[str, ...]) -> None:
        assert not self.alive, "it runs"
        init = self._init_file()
        arguments = [*self._arguments(), f"--init-file={init}", *more]
        if self._place < 0:
            # A socket's path may have 107 bytes: name it through the open folder, wherever that is.
            self._place = os.open(self.folder / "data", os.O_RDONLY | os.O_DIRECTORY)
        with (self.folder / "server.log").open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agents.child", str(os.getpid()), "--exec", self._program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                process_group=0,
            )
        try:
            self._await()
        except BaseException:
            self.kill()
            raise
        finally:
            init.unlink(missing_ok=True)
        _log.info("private server in %s runs as process %d", self.folder, self._process.pid)

    def connect(self, **options: Any) -> pymysql.Connection[Any]:
        """A new connection with all rights."""
        return pymysql.connect(
            unix_socket=f"/proc/self/fd/{self._place}/s.sock",
            user=ACCOUNT,
            password=self.password,
            ssl_disabled=True,  # or PyMySQL reads all authorities that the system trusts, for a socket
            **{"autocommit": True, "charset": "utf8mb4", "connect_timeout": 10, **options},
        )

    def stop(self) -> None:
        """An orderly end; killed when it takes too long. May be called twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                _log.warning("private server in %s did not end within %g s and is killed", self.folder, STOP_S)
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        if self._place >= 0:
            with contextlib.suppress(OSError):
                os.close(self._place)
        self._place = -1

    def said(self) -> str:
        """The last error in its log."""
        return self._said()

    def in_use(self) -> bool:
        """Whether anybody but us is connected."""
        try:
            with contextlib.closing(self.connect(read_timeout=10.0)) as conn, conn.cursor() as cursor:
                cursor.execute(
                    "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID()"
                    " AND COMMAND NOT IN ('Daemon', 'Slave_worker') AND USER <> 'system user'"
                )
                row = cursor.fetchone()
                return row is not None and int(row[0]) > 0
        except (pymysql.err.MySQLError, OSError):
            return False

    def _share(self) -> Path:
        base = Path(self._program).resolve().parent.parent
        for folder in (base / "share", base / "share/mysql", base / "share/mariadb"):
            if any((folder / name).is_file() for name in _BOOTSTRAP[0]):
                return folder
        raise AgentError(
            "private-failed",
            f"the system tables' scripts of {self._program} are not beside it ({base}/share)",
            "install the whole server package",
        )

    def _base(self) -> list[str]:
        base = Path(self._program).resolve().parent.parent
        arguments = ["--no-defaults"]
        if base != Path("/usr") and (base / "share").is_dir():
            arguments.append(f"--basedir={base}")
        if os.geteuid() == 0:
            arguments.append("--user=root")
        for name in _LIKE_SOURCE:
            if self._variables.get(name):
                arguments.append(f"--{name.replace('_', '-')}={self._variables[name]}")
        return arguments

    def _arguments(self) -> list[str]:
        data = self.folder / "data"
        return [
            *self._base(),
            f"--datadir={data}",
            f"--tmpdir={self.folder}",
            f"--secure-file-priv={data}",
            "--socket=s.sock",
            "--pid-file=s.pid",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--local-infile=OFF",
            "--performance-schema=OFF",
            "--event-scheduler=OFF",
            "--max-allowed-packet=1G",
            "--innodb-strict-mode=0",
            "--innodb-buffer-pool-size=256M",
            *self._special(),
        ]

    def _special(self) -> tuple[str, ...]:
        """What only servers of this family know, or call so."""
        return (
            "--skip-symbolic-links",
            "--ssl=0",  # newer versions make themselves a certificate at every start, which takes them seconds or minutes
            "--skip-slave-start",
            "--innodb-log-file-size=256M",
            "--innodb-fast-shutdown=1",
        )

    def _init_file(self) -> Path:
        """What gives the account its password: passwords do not stand among arguments."""
        path = self.folder / "init.sql"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.writelines(f"{line};\n" for line in self._accounts())
        return path

    def _accounts(self) -> Iterator[str]:
        for host in ("localhost", "127.0.0.1"):
            yield f"CREATE OR REPLACE USER '{ACCOUNT}'@'{host}' IDENTIFIED BY '{self.password}'"
            yield f"GRANT ALL ON *.* TO '{ACCOUNT}'@'{host}' WITH GRANT OPTION"

    def _await(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
                return
            except (pymysql.err.MySQLError, OSError) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AgentError(
                        "private-failed", f"the private server did not start: {self._said() or error}"
                    ) from error
                time.sleep(0.05)

    def _said(self) -> str:
        try:
            lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "")


def replica_options() -> tuple[str, ...]:
    """What a server is started with to be a replica of the captured log."""
    workers = max(2, min(8, os.cpu_count() or 2))
    return (
        "--server-id=4294967295",
        "--relay-log=relay",
        "--relay-log-space-limit=512M",
        "--relay-log-purge=ON",
        "--sync-relay-log=0",
        "--sync-master-info=0",
        "--sync-relay-log-info=0",
        f"--slave-parallel-threads={workers}",
        "--slave-parallel-mode=optimistic",
        "--slave-parallel-max-queued=8M",
        "--slave-max-allowed-packet=1G",
        "--slave-net-timeout=60",
        "--slave-exec-mode=STRICT",
        "--replicate-wild-ignore-table=mysql.%",
        "--replicate-wild-ignore-table=holdfast.%",
    )


def told(error: BaseException) -> AgentError | None:
    """What a user is told of an error of the driver's; None when it is none."""
    if not isinstance(error, pymysql.err.MySQLError):
        return None
    number = error.args[0] if error.args else 0
    if number in _FULL:
        return AgentError("disk-full", f"there is no room for the copy: {error.args[-1]}", "make room for it")
    return AgentError("scratch-failed", f"the private server refuses: {error}", "see the agent's log")
