"""A real MySQL to protect, for tests: 9.7 as Debian's newest suite packs it, or 5.5 from Maven.

    python -P -m deploy.demo.mysql      fetch what is not in the cache yet, and say where the programs are

It is set up as a source should be, as far as its version can be: row format with full images (and metadata, GTIDs), and
nothing acknowledged before it is on disk. 9.x has accounts with caching_sha2_password only; 5.5 has no GTIDs, no
checksums, no column names in its log, and a TLS that no client of today speaks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from deploy.demo.debian import unpacked
from deploy.demo.server import ROOT, DatabaseError, DatabaseServer, Installation, Options, copy_data, run_once
from deploy.embedded.packages import cache_dir, exclusive, mysql_5_5
from deploy.embedded.user import ServiceUser
from deploy.errors import DeployError, PackageError

VERSIONS = ("9", "5.5")
SUITE = "sid"
PACKAGE = "mysql-server-core"
# What is tested with. The suite moves on; when it has left this behind, tests of MySQL 9 are skipped and say so.
SERIES_9 = "9.7."

DEFAULTS_9: Options = {
    "log_bin": "binlog",
    "binlog_row_image": "FULL",
    "binlog_row_metadata": "FULL",
    "gtid_mode": "ON",
    "enforce_gtid_consistency": "ON",
    "sync_binlog": "1",
    "innodb_flush_log_at_trx_commit": "1",
    "max_binlog_size": "1G",
    "character_set_server": "utf8mb4",
    "innodb_buffer_pool_size": "128M",
    "innodb_use_native_aio": "OFF",  # a machine allows few of them, and tests start many servers
    "performance_schema": "OFF",
    "skip_name_resolve": None,
    "mysqlx": "OFF",
    "secure_file_priv": "",  # the packaged default names a directory that only an installation makes
}
DEFAULTS_5_5: Options = {
    "log_bin": "binlog",
    "binlog_format": "ROW",
    "sync_binlog": "1",
    "innodb_flush_log_at_trx_commit": "1",
    "max_binlog_size": "1G",
    "character_set_server": "utf8mb4",
    "innodb_buffer_pool_size": "64M",
    "innodb_use_native_aio": "OFF",
    "innodb_file_per_table": "ON",
    "skip_name_resolve": None,
}


class MySQL(DatabaseServer):
    """One server and its directory. Made by `prepare`; `port` and the data survive stop, kill and restart."""

    @classmethod
    def prepare(
        cls,
        directory: Path,
        *,
        version: str = "9",
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
            options=options,
            tls=tls,
            port=port,
            death_signal=death_signal,
        )


def find(version: str = "9", user: ServiceUser | None = None) -> Installation:
    """The installation for `version`: `9` or `5.5`. Raises `PackageError`, `DatabaseError`."""
    if version == "9":
        return _nine(user)
    if version == "5.5":
        return _five(user)
    raise DatabaseError("mysql-missing", f"no MySQL {version}: there are {' and '.join(VERSIONS)}")


def _nine(user: ServiceUser | None) -> Installation:
    root = unpacked(PACKAGE, SUITE, SERIES_9)
    program = root.program("usr/sbin/mysqld")
    if user is not None and not user.can_reach(Path(program[0])):
        raise PackageError("package-unreachable", f"{user.name} cannot run {program[0]}", "set HOLDFAST_CACHE")
    server = [
        *program,
        "--no-defaults",
        f"--basedir={root.path / 'usr'}",
        f"--lc-messages-dir={root.path / 'usr/share/mysql'}",
        f"--character-sets-dir={root.path / 'usr/share/mysql/charsets'}",
        f"--plugin-dir={root.path / 'usr/lib/mysql/plugin'}",
    ]

    def initialise(datadir: Path, of: DatabaseServer) -> None:
        copy_data(_template(root.version, server, of.user), datadir)

    return Installation(
        name="MySQL",
        version=_version(server[:-4]),
        server=server,
        client=shutil.which("mysql") or shutil.which("mariadb") or "mysql",
        defaults=DEFAULTS_9,
        accounts=_accounts_9,
        initialise=initialise,
    )


def _template(version: str, server: list[str], user: ServiceUser) -> Path:
    """An initialised data directory to copy: initialising one takes many times as long. What makes a server itself (its
    UUID, its keys) is not in it, and is made when a copy is first started."""
    target = cache_dir() / f"mysql-{version}-data"
    with exclusive("mysql-data"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
                work = Path(scratch)
                work.chmod(0o755)
                made = work / "made"
                made.mkdir()
                user.own(made)
                argv = [
                    *server,
                    f"--datadir={made / 'data'}",
                    "--innodb-redo-log-capacity=8M",
                    "--innodb-use-native-aio=OFF",
                    "--initialize-insecure",
                ]
                run_once("mysqld --initialize", argv, made, made / "log", user)
                for own in ("auto.cnf", "*.pem"):
                    for path in (made / "data").glob(own):
                        path.unlink()
                os.sync()
                (made / "data").rename(target)
    return target


def _accounts_9(password: str) -> str:
    return (
        f"CREATE USER IF NOT EXISTS '{ROOT}'@'127.0.0.1';\n"
        f"ALTER USER '{ROOT}'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        f"GRANT ALL PRIVILEGES ON *.* TO '{ROOT}'@'127.0.0.1' WITH GRANT OPTION;\n"
        f"ALTER USER '{ROOT}'@'localhost' IDENTIFIED BY '{password}';\n"
    )


def _five(user: ServiceUser | None) -> Installation:
    base = mysql_5_5(user)
    server = [
        str(base / "bin" / "mysqld"),
        "--no-defaults",
        f"--basedir={base}",
        f"--lc-messages-dir={base / 'share'}",
        f"--character-sets-dir={base / 'share' / 'charsets'}",
    ]

    def initialise(datadir: Path, of: DatabaseServer) -> None:
        shutil.copytree(base / "data", datadir)

    return Installation(
        name="MySQL",
        version=_version(server[:1]),
        server=server,
        client=str(base / "bin" / "mysql"),
        defaults=DEFAULTS_5_5,
        accounts=_accounts_5_5,
        initialise=initialise,
        tls=False,
    )


def _accounts_5_5(password: str) -> str:
    return (
        f"GRANT ALL PRIVILEGES ON *.* TO '{ROOT}'@'127.0.0.1' IDENTIFIED BY '{password}' WITH GRANT OPTION;\n"
        f"SET PASSWORD FOR '{ROOT}'@'localhost' = PASSWORD('{password}');\n"
        "DELETE FROM mysql.user WHERE User = '' OR Password = '';\n"
        "DELETE FROM mysql.db WHERE User = '';\n"
        "FLUSH PRIVILEGES;\n"
        "DROP DATABASE IF EXISTS test;\n"
    )


def _version(mysqld: list[str]) -> str:
    said = subprocess.run([*mysqld, "--no-defaults", "--version"], capture_output=True, text=True, check=False).stdout
    m = re.search(r"Ver (\d+\.\d+\.\d+)", said)
    if m is None or "MariaDB" in said:
        raise DatabaseError("mysql-missing", f"{mysqld[-1]} does not say its version: {said.strip()!r}")
    return m[1]


def main() -> int:
    status = 0
    for version in VERSIONS:
        try:
            print(f"MySQL {find(version).version}: {find(version).server[0]}")
        except DeployError as error:
            print(f"no MySQL {version}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
