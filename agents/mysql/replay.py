"""A private MariaDB brought to a step: a baseline loaded, then the captured log replayed by the server's own replication.

The log is served as by a primary (`agents.replay`), and the server is told to stop exactly where the last step ends
(`START SLAVE UNTIL master_gtid_pos`). What is not replayed: account statements (a copy has accounts of its own), rows of
`mysql` and of `holdfast`. Views and routines that belong to accounts of the source are given locked ones of that name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pymysql
from pymysql.cursors import Cursor

from agents.baseline.load import load
from agents.baseline.manifest import Manifest, definitions
from agents.errors import AgentError
from agents.mysql.definitions import quoted
from agents.mysql.positions import parse, reaches, show
from agents.mysql.private import PrivateServer, told
from agents.replay.chosen import Chosen, needed
from agents.replay.feed import Served
from agents.replay.server import USER, LogServer
from agents.schema.scratch import find_server, series
from agents.scratch.engine import Names, Progress, Server
from streams.capture_log import CaptureLog

_TURN_S: Final = 0.1
_log = logging.getLogger("holdfast.replay")
_OWNED: Final = (
    ("VIEWS", "DEFINER"),
    ("ROUTINES", "DEFINER"),
    ("TRIGGERS", "DEFINER"),
    ("EVENTS", "DEFINER"),
)


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
        here = str(_one(conn, "SELECT @@gtid_slave_pos") or "")
        if not reaches(parse(here), parse(served.start)):
            _run(conn, [f"SET GLOBAL gtid_slave_pos = '{served.start}'"])
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
        with stopped_after(lambda: _run(conn, ["STOP SLAVE"])):
            _await(conn, server, log, served, wanted, progress, check)
        _run(conn, ["RESET SLAVE ALL"])
        return show(parse(str(_one(conn, "SELECT @@gtid_slave_pos") or "")))


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
            at = str(_one(conn, "SELECT @@gtid_slave_pos") or "")
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
            full = "No space left" in said or "is full" in said or "ENOSPC" in said
            raise AgentError(
                "disk-full" if full else "replay-failed",
                f"replay stopped after step {max(applied, served.first - 1)} at {at or 'the beginning'}: {said}",
                "make room for it" if full else "the step after it cannot be applied to a copy",
            )
        elif status["Slave_IO_Running"] == "No" and status["Last_IO_Error"]:
            raise AgentError("replay-failed", f"the log cannot be served to the copy: {status['Last_IO_Error']}")
        progress(max(0, applied - served.first + 1), total)
        time.sleep(_TURN_S)


def give_owners(conn: pymysql.Connection[Any]) -> list[str]:
    """Create, locked, every account that a view, routine, trigger or event belongs to and that is not there: without it
    they could not be used. Returns whom."""
    wanted: set[tuple[str, str]] = set()
    with conn.cursor(Cursor) as cursor:
        for view, column in _OWNED:
            cursor.execute(f"SELECT DISTINCT {column} FROM information_schema.{view}")
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


def _status(conn: pymysql.Connection[Any]) -> dict[str, Any]:
    with conn.cursor(pymysql.cursors.DictCursor) as cursor:
        cursor.execute("SHOW SLAVE STATUS")
        row = cursor.fetchone()
        assert row is not None
        return dict(row)


def _one(conn: pymysql.Connection[Any], query: str) -> Any:
    with conn.cursor(Cursor) as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        return None if row is None else row[0]


def _run(conn: pymysql.Connection[Any], statements: Iterable[str]) -> None:
    with conn.cursor(Cursor) as cursor:
        for statement in statements:
            cursor.execute(statement)


class MariaDBReplayer:
    """`agents.scratch.engine.Replayer` for MariaDB."""

    def program(self, manifest: Manifest, named: str) -> str | None:
        return find_server(series(manifest.server_version), named)

    def server(self, program: str, folder: Path, variables: Mapping[str, str], port: int) -> PrivateServer:
        return PrivateServer(program, folder, variables, port=port)

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
        )
        reached = replay(server, served, progress=progress, check=check)
        with contextlib.closing(server.connect()) as conn:
            give_owners(conn)
        return reached

    def keep_only(self, server: Server, tables: Names) -> frozenset[tuple[str, str]]:
        with contextlib.closing(server.connect(read_timeout=3600.0)) as conn:
            return keep_only(conn, tables)

    def told(self, error: BaseException) -> AgentError | None:
        return told(error)
