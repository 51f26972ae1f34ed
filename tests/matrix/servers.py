"""Servers of the rewind matrix, as data. A column of docs/rewind-matrix.md each."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo.server import DatabaseServer
from tests.stack.servers import start_database


@dataclass(frozen=True, slots=True)
class ServerKind:
    """`database`: its name in `tests.stack.servers.DATABASES`. `options`: of the server program. `encrypted`: its binary log
    is, with a key of its own."""

    name: str
    database: str
    encrypted: bool = False
    options: Mapping[str, str | None] = field(default_factory=dict)

    def start(self, directory: Path) -> DatabaseServer:
        """A running server in `directory`; it dies with the tests, `stop` it all the same. Skips where it cannot be had."""
        options = dict(self.options)
        if self.encrypted:
            keys = directory.parent / "binlog.keys"
            keys.write_text(f"1;{secrets.token_hex(32)}\n")
            keys.chmod(0o644)
            options |= {
                "plugin_load_add": "file_key_management",
                "file_key_management_filename": str(keys),
                "encrypt_binlog": "ON",
            }
        return start_database(directory, self.database, options)


SERVERS = (
    ServerKind("MariaDB 10.11", "mariadb-10.11", encrypted=True),
    ServerKind("MariaDB 11.4", "mariadb-11.4"),
    ServerKind("MySQL 9", "mysql-9", options={"local_infile": "ON"}),
    ServerKind("MySQL 5.5", "mysql-5.5"),
)
