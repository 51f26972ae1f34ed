"""A private MySQL brought to a step, as `replay` brings a MariaDB: by `START REPLICA`, until it has every GTID that is served.

Sources with GTIDs only, of version 8.4 and later, where a server program of their series is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pymysql
from pymysql.cursors import Cursor, DictCursor

from agents.baseline.load import load
from agents.baseline.manifest import Manifest
from agents.errors import AgentError
from agents.mysql import gtid_sets
from agents.mysql.dialects import numbers_of
from agents.mysql.file_positions import is_file_position
from agents.mysql.private import told
from agents.mysql.private_mysql import SINCE, MySQLPrivateServer
from agents.mysql.replay import give_owners, keep_only, parents, stopped_after
from agents.replay.chosen import Chosen, needed
from agents.replay.feed import Served
from agents.replay.feed_mysql import position_after
from agents.replay.server import USER, LogServer
from agents.schema.scratch import find_server, series
from agents.scratch.engine import Names, Progress, Server
from streams.capture_log import CaptureLog

_TURN_S: Final = 0.1
_EXECUTED: Final = "SELECT @@global.gtid_executed"


def replay(
    server: Server,
    served: Served,
    *,
    progress: Progress = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Apply `served` to `server`, which runs with `start_filling` and is at its start, or further by an earlier call.

    `check` may raise to give up: the replica is stopped then. Raises `AgentError` (`replay-failed`, `disk-full`), and what
    reading the log raises.
    """
    # A server on a full disk may never answer.
    with contextlib.closing(server.connect(read_timeout=300.0)) as conn, LogServer(served) as log:
        if not gtid_sets.contains(gtid_sets.parse(_text(conn)), gtid_sets.parse(served.start)):
            _run(conn, "RESET BINARY LOGS AND GTIDS")
            _run(conn, "SET GLOBAL gtid_purged = %s", served.start)
        if served.last < served.first:
            return
        _run(
            conn,
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = %s, SOURCE_USER = %s,"
            " SOURCE_PASSWORD = %s, SOURCE_AUTO_POSITION = 1, SOURCE_CONNECT_RETRY = 1, SOURCE_SSL = 0",
            log.port, USER, log.password,
        )  # fmt: skip
        _run(conn, "START REPLICA")
        with stopped_after(lambda: _run(conn, "STOP REPLICA")):
            _await(conn, server, log, served, progress, check)
        _run(conn, "RESET REPLICA ALL")


def _await(
    conn: pymysql.Connection[Any],
    server: Server,
    log: LogServer,
    served: Served,
    progress: Progress,
    check: Callable[[], None],
) -> None:
    total = served.last - served.first + 1
    while True:
        check()
        try:
            status, at = _status(conn), _text(conn)
        except (pymysql.err.MySQLError, OSError) as error:
            raise AgentError("replay-failed", f"the server that replays is gone: {server.said() or error}") from error
        if log.reached(at):
            progress(total, total)
            return
        applied = max(log.applied(at), served.first - 1)
        if log.failure is not None:
            raise log.failure
        if status["Replica_SQL_Running"] == "No":
            said = str(status["Last_SQL_Error"] or status["Last_IO_Error"] or server.said())
            full = "No space left" in said or "is full" in said or "ENOSPC" in said
            raise AgentError(
                "disk-full" if full else "replay-failed",
                f"replay stopped after step {applied}, at {at or 'the beginning'}: {said}",
                "make room for it" if full else "the step after it cannot be applied to a copy",
            )
        if status["Replica_IO_Running"] == "No" and status["Last_IO_Error"]:
            raise AgentError("replay-failed", f"the log cannot be served to the copy: {status['Last_IO_Error']}")
        progress(applied - served.first + 1, total)
        time.sleep(_TURN_S)


def _status(conn: pymysql.Connection[Any]) -> dict[str, Any]:
    with conn.cursor(DictCursor) as cursor:
        cursor.execute("SHOW REPLICA STATUS")
        row = cursor.fetchone()
        assert row is not None
        return dict(row)


def _text(conn: pymysql.Connection[Any]) -> str:
    with conn.cursor(Cursor) as cursor:
        cursor.execute(_EXECUTED)
        row = cursor.fetchone()
        return "" if row is None else str(row[0] or "").replace("\n", "")


def _run(conn: pymysql.Connection[Any], sql: str, *args: Any) -> None:
    with conn.cursor(Cursor) as cursor:
        cursor.execute(sql, args or None)


class MySQLReplayer:
    """`agents.scratch.engine.Replayer` for MySQL."""

    def program(self, manifest: Manifest, named: str) -> str | None:
        version = manifest.server_version
        if numbers_of(version) < SINCE or is_file_position(manifest.position):
            raise AgentError(
                "kind-unsupported",
                f"copies of this source are not made: it is MySQL {version}"
                + (" without GTIDs" if is_file_position(manifest.position) else ""),
                "they are of MySQL 8.4 and later with gtid_mode=ON, and of MariaDB",
            )
        return find_server(series(version), named)

    def server(self, program: str, folder: Path, variables: Mapping[str, str], port: int) -> MySQLPrivateServer:
        return MySQLPrivateServer(program, folder, variables, port=port)

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
            mysql=True,
        )
        replay(server, served, progress=progress, check=check)
        with contextlib.closing(server.connect()) as conn:
            give_owners(conn)
        return position_after(served)

    def keep_only(self, server: Server, tables: Names) -> frozenset[tuple[str, str]]:
        with contextlib.closing(server.connect(read_timeout=3600.0)) as conn:
            return keep_only(conn, tables)

    def told(self, error: BaseException) -> AgentError | None:
        return told(error)
