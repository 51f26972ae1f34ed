"""A scratch server that holds definitions and no rows: started when first needed, alone on a socket in a private folder.

No network, no grant tables, no system schema, nothing flushed to disk: it is thrown away and made again. It dies with the
process that started it (`agents.child`). A server of the source's own series (10.11, MySQL 9.7) is needed, for another one would
write definitions differently.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymysql

from agents.errors import AgentError
from agents.mysql.dialects import family_of, numbers_of

START_S = 60.0
INITIALISE_S = 240.0
# Where servers are besides PATH; `HOLDFAST_MARIADBD` and `HOLDFAST_MYSQLD` name others, separated like PATH.
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/mysql/bin", "/opt/mariadb/bin")
_NAMES = ("mariadbd", "mysqld")
_MARIADB = re.compile(r"(\d+\.\d+)\.\d+[^\s]*-MariaDB|Ver (\d+\.\d+)\.\d+-MariaDB")
_MYSQL = re.compile(r"(?:^|Ver )(\d+\.\d+)\.\d+")
# Globals of the source that a statement's meaning may depend on and that its event does not carry.
_LIKE_SOURCE = (
    "character_set_server",
    "collation_server",
    "character_set_collations",
    "default_storage_engine",
    "explicit_defaults_for_timestamp",
    "innodb_default_row_format",
)
_OF_MYSQL = "MySQL "
_log = logging.getLogger("holdfast.scratch")


def series(version: str) -> str:
    """`10.11` of `10.11.9-MariaDB-log`, `MySQL 9.7` of `9.7.4-2`; empty when it is neither."""
    found = _MARIADB.search(version)
    if found is not None:
        return str(found[1] or found[2])
    found = None if "MariaDB" in version else _MYSQL.search(version)
    return "" if found is None else f"{_OF_MYSQL}{found[1]}"


def find_server(wanted: str, named: str = "") -> str | None:
    """A server program of series `wanted`: `named` first, then those of the environment, of PATH and of known places."""
    variable = "HOLDFAST_MYSQLD" if wanted.startswith(_OF_MYSQL) else "HOLDFAST_MARIADBD"
    candidates = [named, *os.environ.get(variable, "").split(os.pathsep)]
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *_PLACES]
    candidates += [str(Path(folder) / name) for folder in folders if folder for name in _NAMES]
    for candidate in dict.fromkeys(filter(None, candidates)):
        if os.access(candidate, os.X_OK) and not Path(candidate).is_dir() and _series_of(candidate) == wanted:
            return candidate
    return None


def _series_of(program: str) -> str:
    try:
        said = subprocess.run(
            [program, "--no-defaults", "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return series(said.stdout)


class Scratch:
    """One scratch server in `folder`, which is its own and is emptied. Used by one thread, which must outlive it."""

    def __init__(self, program: str, folder: Path, variables: Mapping[str, str]) -> None:
        """Starts it and waits until it answers. Raises `AgentError` (`scratch-failed`)."""
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)
        self._log = folder / "server.log"
        # A socket's path may have 107 bytes: name it through the open folder, wherever that is.
        self._place = os.open(folder / "data", os.O_RDONLY | os.O_DIRECTORY)
        base = Path(program).resolve().parent.parent
        arguments = _arguments(folder, variables, base if (base / "share").is_dir() else None)
        version = variables.get("version", "")
        if family_of(version) == "MySQL" and numbers_of(version) >= (5, 7):
            # Unlike the others it starts on nothing but a data directory that it has initialised.
            made = self._start(
                program, [*(a for a in arguments if not a.startswith("--skip-")), "--initialize-insecure"]
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                made.wait(INITIALISE_S)
            made.kill()
            made.wait()
        self._process = self._start(program, arguments)
        try:
            self._await()
        except BaseException:
            self.close()
            raise
        _log.info("scratch server %s runs as process %d", program, self._process.pid)

    def _start(self, program: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "agents.child", str(os.getpid()), "--exec", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                process_group=0,
            )

    def connect(self) -> pymysql.Connection[Any]:
        """A new connection with all rights."""
        return pymysql.connect(
            unix_socket=f"/proc/self/fd/{self._place}/s.sock",
            user="holdfast",
            ssl_disabled=True,  # or PyMySQL reads all authorities that the system trusts, for a socket
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=5,
            read_timeout=60,
            write_timeout=60,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Stop it and remove its folder. May be called twice."""
        if self._process.poll() is None:
            # Nothing of it is to be kept.
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self._place)
        self._place = -1
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
                return
            except pymysql.err.MySQLError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    lines = self._log.read_text(errors="replace").splitlines()
                    said = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "")
                    raise AgentError("scratch-failed", f"the scratch server did not start: {said or error}") from error
                time.sleep(0.02)


# What is not to be kept need not be safe. Not every MySQL has every one of its own.
_FRUGAL = {
    "MariaDB": (
        "--ssl=0",  # newer versions make themselves a certificate at every start, which takes them seconds or minutes
        "--skip-symbolic-links",
        "--performance-schema=OFF",
        "--debug-no-sync",
        "--innodb-doublewrite=0",
        "--innodb-log-file-size=4M",
        "--innodb-stats-persistent=0",
        "--aria-pagecache-buffer-size=256K",
    ),
    "MySQL": (
        "--loose-performance-schema=OFF",
        "--loose-mysqlx=OFF",
        "--loose-auto-generate-certs=OFF",
        "--loose-innodb-doublewrite=0",
        "--loose-innodb-redo-log-capacity=8M",
        "--loose-innodb-stats-persistent=0",
        "--loose-innodb-use-native-aio=0",
    ),
}


def _arguments(folder: Path, variables: Mapping[str, str], base: Path | None) -> list[str]:
    arguments = [
        "--no-defaults",
        f"--datadir={folder / 'data'}",
        f"--tmpdir={folder}",
        f"--secure-file-priv={folder / 'data'}",
        "--socket=s.sock",
        "--pid-file=s.pid",
        "--skip-networking",
        "--skip-grant-tables",
        "--skip-log-bin",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-buffer-pool-size=16M",
        "--innodb-strict-mode=0",
        "--key-buffer-size=16K",
        "--max-connections=8",
        "--lock-wait-timeout=10",
        "--event-scheduler=OFF",
        *_FRUGAL[family_of(variables.get("version", ""))],
    ]
    if base is not None and base != Path("/usr"):
        arguments.append(f"--basedir={base}")
    if os.geteuid() == 0:
        arguments.append("--user=root")
    arguments.append(f"--lower-case-table-names={variables.get('lower_case_table_names') or '0'}")
    for name in _LIKE_SOURCE:
        if variables.get(name):
            arguments.append(f"--{name.replace('_', '-')}={variables[name]}")
    return arguments
