"""Scratch copies of MariaDB and MySQL: what both do with a baseline and the log. What differs is in `replay`, `replay_mysql`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pymysql
from pymysql.cursors import Cursor

from agents.baseline.load import load
from agents.baseline.manifest import Manifest, definitions
from agents.errors import AgentError
from agents.mysql.definitions import quoted
from agents.mysql.private import told
from agents.replay.chosen import Chosen, needed
from agents.replay.feed import Served
from agents.scratch.engine import Names, Progress, Server
from streams.capture_log import CaptureLog

_OWNED: Final = ("VIEWS", "ROUTINES", "TRIGGERS", "EVENTS")


class Replication(Protocol):
    """A module: how a private server of one kind follows the log."""

    def program(self, manifest: Manifest, named: str) -> str | None: ...
    def replay(self, server: Server, served: Served, *, progress: Progress, check: Callable[[], None]) -> str: ...


class MakeServer(Protocol):
    def __call__(self, program: str, folder: Path, variables: Mapping[str, str], *, port: int) -> Server: ...


@dataclass(frozen=True, slots=True)
class BinlogReplayer:
    """`agents.scratch.engine.Replayer` of both. `mysql`: the log is served as MySQL's."""

    replication: Replication
    make: MakeServer
    mysql: bool = False

    def program(self, manifest: Manifest, named: str) -> str | None:
        return self.replication.program(manifest, named)

    def server(self, program: str, folder: Path, variables: Mapping[str, str], port: int) -> Server:
        return self.make(program, folder, variables, port=port)

    def needed(
        self, log: CaptureLog, baseline: Path, manifest: Manifest, ordinal: int, asked: Names
    ) -> frozenset[tuple[str, str]]:
        return needed(log, manifest.lineage, ordinal, asked, parents(baseline))

    def load(
        self,
        server: Server,
        baseline: Path,
        tables: Names | None,
        progress: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        with contextlib.closing(server.connect(read_timeout=3600.0)) as conn:
            load(conn, baseline, tables=tables, progress=progress, check=check)
            give_owners(conn)

    def replay(
        self,
        server: Server,
        log: CaptureLog,
        manifest: Manifest,
        ordinal: int,
        tables: Names | None,
        progress: Progress,
        check: Callable[[], None],
    ) -> str:
        served = Served(
            log if tables is None else Chosen(log, frozenset(tables)),
            manifest.lineage,
            manifest.position,
            ordinal,
            version=manifest.server_version,
            server_id=manifest.server_id or 1,
            mysql=self.mysql,
        )
        reached = self.replication.replay(server, served, progress=progress, check=check)
        with contextlib.closing(server.connect()) as conn:
            give_owners(conn)
        return reached

    def keep_only(self, server: Server, tables: Names) -> frozenset[tuple[str, str]]:
        with contextlib.closing(server.connect(read_timeout=3600.0)) as conn:
            return keep_only(conn, tables)

    def told(self, error: BaseException) -> AgentError | None:
        return told(error)


def give_owners(conn: pymysql.Connection[Any]) -> list[str]:
    """Create, locked, every account that a view, routine, trigger or event belongs to and that is not there: without it
    they could not be used. Returns whom."""
    wanted: set[tuple[str, str]] = set()
    with conn.cursor(Cursor) as cursor:
        for view in _OWNED:
            cursor.execute(f"SELECT DISTINCT DEFINER FROM information_schema.{view}")
            for (definer,) in cursor.fetchall():
                user, at, host = str(definer or "").rpartition("@")
                if at:
                    wanted.add((user, host))
        made = []
        for user, host in sorted(wanted):
            cursor.execute("SELECT 1 FROM mysql.user WHERE User = %s AND Host = %s", (user, host))
            if cursor.fetchone() is None and host:
                cursor.execute("CREATE USER IF NOT EXISTS %s@%s ACCOUNT LOCK", (user, host))
                cursor.execute("GRANT ALL ON *.* TO %s@%s", (user, host))
                made.append(f"{user}@{host}")
        return made


def parents(baseline: Path) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """(table, table that it points at) as of the baseline."""
    for d in definitions(baseline):
        for key in json.loads(d.definition)["foreign_keys"].values():
            yield (d.schema, d.table), (key["schema"], key["table"])


def keep_only(conn: pymysql.Connection[Any], tables: Names) -> frozenset[tuple[str, str]]:
    """See `agents.scratch.engine.Replayer.keep_only`."""
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SET SESSION foreign_key_checks = 0")
        cursor.execute(
            "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA NOT IN"
            " ('mysql', 'sys', 'information_schema', 'performance_schema') AND TABLE_TYPE <> 'SEQUENCE'"
        )
        there = {(str(schema), str(table)): str(kind) for schema, table, kind in cursor.fetchall()}
        for name, kind in there.items():
            if name not in tables or kind == "VIEW":
                cursor.execute(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} {quoted(*name)}")
    return frozenset(name for name, kind in there.items() if name in tables and kind != "VIEW")
