"""A private MariaDB brought to a step: a baseline loaded, then the captured log replayed by the server's own replication.

The log is served as by a primary (`agents.replay`), and the server is told to stop exactly where the last step ends
(`START SLAVE UNTIL master_gtid_pos`). What is not replayed: account statements (a copy has accounts of its own), rows of
`mysql` and of `holdfast`. Views and routines that belong to accounts of the source are given locked ones of that name.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import pymysql

from agents.baseline.manifest import Manifest
from agents.errors import AgentError
from agents.mysql.positions import parse, reaches, show
from agents.mysql.statements import ask, run
from agents.replay.feed import Served
from agents.replay.server import USER, LogServer
from agents.schema.scratch import find_server, series
from agents.scratch.engine import Progress, Server

_TURN_S: Final = 0.1
_log = logging.getLogger("holdfast.replay")


def program(manifest: Manifest, named: str) -> str | None:
    """See `agents.scratch.engine.Replayer`."""
    return find_server(series(manifest.server_version), named)


def replay(
    server: Server,
    served: Served,
    *,
    progress: Progress = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Apply `served` to `server`, which runs with `start_filling` and is at its start, or further by an earlier call.

    Plain transactions are applied many at a time; should that fail, one by one from where it stands, which either goes or
    says where it does not. Returns the GTID position reached, which is the one after the last step. `check` may raise to
    give up: the replica is stopped then. Raises `AgentError` (`replay-failed`, `disk-full`), and what reading the log
    raises.
    """
    wanted = served.position()
    try:
        return _replay(server, replace(served, gather=True), wanted, progress, check)
    except AgentError as error:
        if error.code != "replay-failed" or not server.alive:
            raise
        _log.warning("transactions are applied one by one from here on: %s", error)
    return _replay(server, served, wanted, progress, check)


def _replay(server: Server, served: Served, wanted: str, progress: Progress, check: Callable[[], None]) -> str:
    # A server on a full disk may never answer.
    with contextlib.closing(server.connect(read_timeout=300.0)) as conn, LogServer(served) as log:
        here = _reached(conn)
        if not reaches(parse(here), parse(served.start)):
            run(conn, f"SET GLOBAL gtid_slave_pos = '{served.start}'")
            here = served.start
        if served.last < served.first or show(parse(here)) == wanted:
            return here
        with conn.cursor() as cursor:
            cursor.execute(
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s,"
                " MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1, MASTER_SSL = 0",
                (log.port, USER, log.password),
            )
            cursor.execute("START SLAVE UNTIL master_gtid_pos = %s", (wanted,))
        with stopped_after(lambda: run(conn, "STOP SLAVE")):
            _await(conn, server, log, served, wanted, progress, check)
        run(conn, "RESET SLAVE ALL")
        return show(parse(_reached(conn)))


@contextlib.contextmanager
def stopped_after(stop: Callable[[], None]) -> Iterator[None]:
    """Have a replica stopped, whatever came of it. On a full disk it would not stop before somebody made room: whoever made
    the server ends it."""
    full = False
    try:
        yield
    except AgentError as error:
        full = error.code == "disk-full"
        raise
    finally:
        if not full:
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                stop()


def stopped(after: int, at: str, said: str) -> AgentError:
    """That replication ended after step `after`, at this native position, and why."""
    full = "No space left" in said or "is full" in said or "ENOSPC" in said
    return AgentError(
        "disk-full" if full else "replay-failed",
        f"replay stopped after step {after} at {at or 'the beginning'}: {said}",
        "make room for it" if full else "the step after it cannot be applied to a copy",
    )


def _await(
    conn: pymysql.Connection[Any],
    server: Server,
    log: LogServer,
    served: Served,
    wanted: str,
    progress: Progress,
    check: Callable[[], None],
) -> None:
    total = served.last - served.first + 1
    while True:
        check()
        try:
            status = _status(conn)
            at = _reached(conn)
        except (pymysql.err.MySQLError, OSError) as error:
            raise AgentError("replay-failed", f"the server that replays is gone: {server.said() or error}") from error
        applied = log.applied(at)
        if show(parse(at)) == wanted:
            if status["Slave_SQL_Running"] == "No":
                progress(total, total)
                return
        elif log.failure is not None:
            raise log.failure
        elif status["Slave_SQL_Running"] == "No":
            said = str(status["Last_SQL_Error"] or status["Last_IO_Error"] or server.said())
            raise stopped(max(applied, served.first - 1), at, said)
        elif status["Slave_IO_Running"] == "No" and status["Last_IO_Error"]:
            raise AgentError("replay-failed", f"the log cannot be served to the copy: {status['Last_IO_Error']}")
        progress(max(0, applied - served.first + 1), total)
        time.sleep(_TURN_S)


def _status(conn: pymysql.Connection[Any]) -> dict[str, Any]:
    with conn.cursor(pymysql.cursors.DictCursor) as cursor:
        cursor.execute("SHOW SLAVE STATUS")
        row = cursor.fetchone()
        assert row is not None
        return dict(row)


def _reached(conn: pymysql.Connection[Any]) -> str:
    ((position,),) = ask(conn, "SELECT @@gtid_slave_pos")
    return str(position or "")
