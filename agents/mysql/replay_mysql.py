"""A private MySQL brought to a step, as `replay` brings a MariaDB: by `START REPLICA`, until it has every GTID that is served.

Sources with GTIDs only, of version 8.4 and later, where a server program of their series is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import pymysql
from pymysql.cursors import DictCursor

from agents.baseline.manifest import Manifest
from agents.errors import AgentError
from agents.mysql import gtid_sets
from agents.mysql.dialects import numbers_of
from agents.mysql.file_positions import is_file_position
from agents.mysql.private_mysql import SINCE
from agents.mysql.replay import stopped, stopped_after
from agents.mysql.statements import ask, run
from agents.replay.feed import Served
from agents.replay.feed_mysql import position_after
from agents.replay.server import USER, LogServer
from agents.schema.scratch import find_server, series
from agents.scratch.engine import Progress, Server

_TURN_S: Final = 0.1
_EXECUTED: Final = "SELECT @@global.gtid_executed"


def program(manifest: Manifest, named: str) -> str | None:
    """See `agents.scratch.engine.Replayer`."""
    version = manifest.server_version
    if numbers_of(version) < SINCE or is_file_position(manifest.position):
        raise AgentError(
            "kind-unsupported",
            f"copies of this source are not made: it is MySQL {version}"
            + (" without GTIDs" if is_file_position(manifest.position) else ""),
            "they are of MySQL 8.4 and later with gtid_mode=ON, and of MariaDB",
        )
    return find_server(series(version), named)


def replay(
    server: Server,
    served: Served,
    *,
    progress: Progress = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Apply `served` to `server`, which runs with `start_filling` and is at its start, or further by an earlier call.

    Returns the position after the last step. `check` may raise to give up: the replica is stopped then. Raises `AgentError`
    (`replay-failed`, `disk-full`), and what reading the log raises.
    """
    # A server on a full disk may never answer.
    with contextlib.closing(server.connect(read_timeout=300.0)) as conn, LogServer(served) as log:
        if not gtid_sets.contains(gtid_sets.parse(_text(conn)), gtid_sets.parse(served.start)):
            run(conn, "RESET BINARY LOGS AND GTIDS")
            run(conn, "SET GLOBAL gtid_purged = %s", served.start)
        if served.last < served.first:
            return position_after(served)
        run(
            conn,
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = %s, SOURCE_USER = %s,"
            " SOURCE_PASSWORD = %s, SOURCE_AUTO_POSITION = 1, SOURCE_CONNECT_RETRY = 1, SOURCE_SSL = 0",
            log.port, USER, log.password,
        )  # fmt: skip
        run(conn, "START REPLICA")
        with stopped_after(lambda: run(conn, "STOP REPLICA")):
            _await(conn, server, log, served, progress, check)
        run(conn, "RESET REPLICA ALL")
    return position_after(served)


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
            raise stopped(applied, at, said)
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
    ((executed,),) = ask(conn, _EXECUTED)
    return str(executed or "").replace("\n", "")
