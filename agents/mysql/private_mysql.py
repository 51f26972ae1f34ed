"""A private MySQL server (see `private`): 8.4 and later, with GTIDs, so that a replay knows where it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agents.mysql.private import ACCOUNT, PrivateServer

SINCE: Final = (8, 4)
"""Older ones are filled by other statements, and none could be tried."""
_OWN: Final = (
    "--mysqlx=OFF",
    "--auto-generate-certs=OFF",
    "--innodb-use-native-aio=OFF",  # a machine allows few of them
)
_FILLING: Final = (
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=OFF",
    "--server-id=4294967295",
    "--relay-log=relay",
    "--relay-log-space-limit=512M",
    "--relay-log-purge=ON",
    "--sync-relay-log=0",
    "--replica-parallel-workers=0",  # see `agents.replay.feed_mysql`
    "--replica-max-allowed-packet=1G",
    "--replica-net-timeout=60",
    "--replicate-wild-ignore-table=mysql.%",
    "--replicate-wild-ignore-table=holdfast.%",
)


class MySQLPrivateServer(PrivateServer):
    """One server in a folder of its own."""

    def _initialise(self, data: Path) -> None:
        self._run_once([
            *self._base(), f"--datadir={data}", f"--tmpdir={self.folder}", "--initialize-insecure", *_OWN,
            "--skip-log-bin", "--performance-schema=OFF", "--innodb-buffer-pool-size=256M", "--innodb-redo-log-capacity=8M",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=OFF",
        ])  # fmt: skip

    def _filling(self) -> tuple[str, ...]:
        return _FILLING

    def _special(self) -> tuple[str, ...]:
        return (
            "--skip-replica-start",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--innodb-redo-log-capacity=256M",
            *_OWN,
        )

    def _accounts(self) -> Iterator[str]:
        for host in ("localhost", "127.0.0.1"):
            yield f"CREATE USER IF NOT EXISTS '{ACCOUNT}'@'{host}' IDENTIFIED BY '{self.password}'"
            yield f"GRANT ALL ON *.* TO '{ACCOUNT}'@'{host}' WITH GRANT OPTION"
        yield "DROP USER IF EXISTS 'root'@'localhost'"  # who has no password yet
