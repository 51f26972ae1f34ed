"""A real MariaDB to protect, for the demonstration and for tests: 10.11 as Debian packs it or 11.4 from Maven.

It is set up as a source should be: row format with full images and metadata, strict GTIDs, and nothing acknowledged
before it is on disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from deploy.demo.server import ROOT, DatabaseError, DatabaseServer, Installation, Options, copy_data, run_once
from deploy.embedded.packages import cache_dir, exclusive, mariadb_11_4
from deploy.embedded.user import ServiceUser

VERSIONS = ("10.11", "11.4")

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


class MariaDB(DatabaseServer):
    """One server and its directory. Made by `prepare`; `port` and the data survive stop, kill and restart."""

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
    ) -> Self:
        """See `DatabaseServer.make`."""
        return cls.make(
            directory,
            lambda user: find(version, user),
            server_id=server_id,
            # A newer server without a certificate makes itself one at every start, which takes seconds, or a minute.
            options={**({} if tls else {"ssl": "0"}), **(options or {})},
            tls=tls,
            port=port,
            death_signal=death_signal,
        )


def find(version: str = "any", user: ServiceUser | None = None) -> Installation:
    """The installation for `version`: `10.11`, `11.4`, or `any` (the system's where there is one, else Maven's 11.4).

    Raises `DatabaseError` (`mariadb-missing`) and `PackageError`.
    """
    system = _system()
    if system is not None and version in ("any", ".".join(system.version.split(".")[:2])):
        return system
    if version in ("any", "11.4"):
        base = mariadb_11_4(user)
        return _installation(
            str(base / "bin" / "mariadbd"),
            str(base / "scripts" / "mariadb-install-db"),
            str(base / "bin" / "mariadb"),
            [f"--basedir={base}"],
        )
    has = f"this system has {system.version}" if system else "this system has no MariaDB server"
    raise DatabaseError("mariadb-missing", f"no MariaDB {version}: {has}", "Debian 12: apt-get install mariadb-server")


def _installation(mariadbd: str, install_db: str, client: str, base: list[str]) -> Installation:
    """`base` is empty for the system's own programs, which know their paths."""
    version = _version(mariadbd)

    def initialise(datadir: Path, server: DatabaseServer) -> None:
        copy_data(_template(version, [install_db, "--no-defaults", *base], server.user), datadir)

    return Installation(
        name="MariaDB",
        version=version,
        server=[mariadbd, "--no-defaults", *base],
        client=client,
        defaults=DEFAULTS,
        accounts=_accounts,
        initialise=initialise,
    )


def _template(version: str, install_db: list[str], user: ServiceUser) -> Path:
    """An initialised data directory to copy: initialising one takes many times as long. Nothing in it is a server's own."""
    target = cache_dir() / f"mariadb-{version}-data"
    with exclusive("mariadb-data"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
                work = Path(scratch)
                work.chmod(0o755)
                made = work / "made"
                made.mkdir()
                user.own(made)
                argv = [
                    *install_db,
                    f"--datadir={made / 'data'}",
                    f"--tmpdir={made}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    "--skip-name-resolve",
                ]
                run_once("mariadb-install-db", argv, made, made / "log", user)
                os.sync()
                (made / "data").rename(target)
    return target


def _accounts(password: str) -> str:
    return (
        f"CREATE USER IF NOT EXISTS '{ROOT}'@'127.0.0.1';\n"
        f"ALTER USER '{ROOT}'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        f"GRANT ALL PRIVILEGES ON *.* TO '{ROOT}'@'127.0.0.1' WITH GRANT OPTION;\n"
        f"ALTER USER IF EXISTS '{ROOT}'@'localhost' IDENTIFIED BY '{password}';\n"
    )


def _system() -> Installation | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/usr/libexec"
    mariadbd = shutil.which("mariadbd", path=path)
    install_db = shutil.which("mariadb-install-db", path=path)
    client = shutil.which("mariadb", path=path)
    if mariadbd is None or install_db is None or client is None:
        return None
    return _installation(mariadbd, install_db, client, [])


def _version(mariadbd: str) -> str:
    said = subprocess.run([mariadbd, "--no-defaults", "--version"], capture_output=True, text=True, check=False).stdout
    m = re.search(r"Ver (\d+\.\d+\.\d+)-MariaDB", said)
    if m is None:
        raise DatabaseError("mariadb-missing", f"{mariadbd} does not say its version: {said.strip()!r}")
    return m[1]
