"""A server of this family as `agents.protocol.Source`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pymysql

from agents.mysql import preflight, whereabouts
from agents.mysql.connection import connect, error_of
from agents.mysql.cutting import HEADER
from agents.mysql.dialects import dialect
from agents.mysql.dump import Dump
from agents.protocol import Facts, Preflight, SourceSettings, Stream

_FACTS = (
    "version", "server_id", "log_bin", "binlog_expire_logs_seconds", "binlog_expire_logs_auto_purge", "expire_logs_days",
)  # fmt: skip


@dataclass(frozen=True)
class BinlogSource:
    """Holds no connection between calls."""

    settings: SourceSettings
    requirements: tuple[preflight.Requirements, ...]

    def facts(self) -> Facts:
        with self._cursor() as cursor:
            values = preflight.variables(cursor, _FACTS)
            logs = values.get("log_bin") == "ON"
            return Facts(
                server_version=values.get("version", ""),
                server_id=int(values.get("server_id") or 0),
                position=whereabouts.position(cursor, dialect(cursor.connection)) if logs else "",
                purge_after_s=preflight.kept_s(values) or None,
                log_bytes=_log_bytes(cursor),
            )

    def preflight(self) -> Preflight:
        return preflight.check(self.settings, self.requirements)

    def open(self, position: str, limit: int, *, proof: str | None = None) -> Stream:
        return Dump(self.settings, position, limit, proof)

    def events_in(self, payload: bytes) -> int:
        count = at = 0
        while at < len(payload):
            at += max(int.from_bytes(payload[at + 9 : at + 13], "little"), HEADER)
            count += 1
        return count

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        connection = connect(self.settings, "capture")
        try:
            with connection.cursor() as cursor:
                yield cursor
        except (pymysql.err.MySQLError, OSError) as error:
            raise error_of(error, self.settings) from error
        finally:
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                connection.close()


def _log_bytes(cursor: Any) -> int:
    try:
        cursor.execute("SHOW BINARY LOGS")
    except (pymysql.err.OperationalError, pymysql.err.ProgrammingError):
        return 0  # the account may not know, or there is no log
    return sum(int(row[1]) for row in cursor.fetchall())
