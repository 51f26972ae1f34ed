"""Whether a MariaDB server can be protected as it is set up now, and the exact statement that mends each thing that is not.

Reads variables and the account's own grants; changes nothing. Settings of single sessions cannot be seen from outside: what a
session may override is said in the hint. The grants asked for are explained in docs/guides/mariadb-source.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pymysql

from agents.errors import AgentError, SourceUnavailable
from agents.mysql.connection import connect, error_of
from agents.protocol import Preflight, SourceSettings
from streams.events import Problem

OLDEST = (10, 5)
# Privileges of the capture account, on *.*: what each is for.
CAPTURE_PRIVILEGES: Mapping[str, str] = {
    "REPLICATION SLAVE": "to be sent the log",
    "BINLOG MONITOR": "to see what the log holds, from when to when",
    "SELECT": "to read the baseline",
    "SHOW VIEW": "to read views' definitions for the baseline",
    "TRIGGER": "to read triggers' definitions for the baseline",
    "EVENT": "to read events' definitions for the baseline",
}
# Privileges of the rollback account (docs/guides/rollback.md): on *.*, and on *.* or holdfast.*.
ROLLBACK_PRIVILEGES = ("BINLOG REPLAY", "BINLOG ADMIN", "READ_ONLY ADMIN")
OWN_PRIVILEGES = ("SELECT", "INSERT", "CREATE", "ALTER", "DROP")
_VARIABLES = (
    "version", "log_bin", "server_id", "binlog_format", "binlog_row_image", "binlog_row_metadata", "gtid_strict_mode",
    "gtid_slave_pos", "log_slave_updates", "sync_binlog", "innodb_flush_log_at_trx_commit", "binlog_checksum",
    "binlog_expire_logs_seconds", "expire_logs_days", "max_binlog_total_size", "binlog_alter_two_phase",
)  # fmt: skip
_DAY_S = 86_400
_VERSION = r"(?:5\.5\.5-)?(\d+)\.(\d+)"
_GRANT = re.compile(r"GRANT (?P<what>.+?) ON (?P<where>\S+|`[^`]+`\.\S+) TO ", re.IGNORECASE)
_OWN = frozenset({"`holdfast`.*", "holdfast.*"})
_LOCKED = 4151  # ER_ACCOUNT_HAS_BEEN_LOCKED


def check(settings: SourceSettings) -> Preflight:
    """Everything at once. Raises `SourceUnavailable`; a refused login or missing TLS is a problem, not an exception."""
    try:
        connection = connect(settings, "capture")
    except SourceUnavailable:
        raise
    except AgentError as error:
        return Preflight((error.problem(),), (), ())
    try:
        with connection.cursor() as cursor:
            values = variables(cursor, _VARIABLES)
            account, lines = grants(cursor)
            filters = _filters(cursor)
    except (pymysql.err.MySQLError, OSError) as error:
        raise error_of(error, settings) from error
    finally:
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            connection.close()
    version = values.get("version", "")
    if "MariaDB" not in version:
        problem = Problem("source-not-mariadb", f"the server says it is {version}", "this kind of source is mariadb")
        return Preflight((problem,), (), (), version)
    has = privileges(lines)
    problems = [*_version(version), *_settings(values), *_missing(account, has), *filters]
    refused, lacking = _rollback_account(settings, version)
    return Preflight((*problems, *refused), (*_warnings(values), *lacking), _capability(values), version)


def variables(cursor: Any, names: Iterable[str]) -> dict[str, str]:
    """Global values of those of `names` that this server has."""
    names = tuple(names)
    cursor.execute(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({', '.join(['%s'] * len(names))})", names)
    return {str(name).lower(): str(value) for name, value in cursor.fetchall()}


# -- what must be

# Variable, value that it must have, why.
_MUST: tuple[tuple[str, str, str], ...] = (
    ("binlog_format", "ROW", "statements instead of rows cannot be undone"),
    ("binlog_row_image", "FULL", "rows are not logged whole, so what stood there before is not known"),
    ("binlog_row_metadata", "FULL", "names and keys of columns are not logged"),
    ("gtid_strict_mode", "ON", "GTIDs may be logged out of order, and a position would not say what is behind it"),
)


def _settings(values: Mapping[str, str]) -> Iterator[Problem]:
    if values.get("log_bin") != "ON":
        yield Problem(
            "source-log-off",
            "the server writes no binary log",
            "my.cnf, [mariadbd]: log_bin=binlog; then restart the server",
        )
    if values.get("server_id") in ("0", None):
        yield Problem(
            "source-server-id",
            "the server has no id",
            "SET GLOBAL server_id = 1; and in my.cnf, [mariadbd]: server_id=1 (a number no other server here has)",
        )
    for name, wanted, why in _MUST:
        value = values.get(name)
        if value is not None and value.upper() != wanted:
            yield Problem(
                f"source-{name.replace('_', '-')}",
                f"{name} is {value}: {why}",
                f"SET GLOBAL {name} = '{wanted}'; and in my.cnf, [mariadbd]: {name}={wanted} "
                "(connections that are open keep what they have: reconnect them)",
            )
    if values.get("binlog_alter_two_phase") == "ON":
        yield Problem(
            "source-binlog-alter-two-phase",
            "binlog_alter_two_phase is ON: one ALTER TABLE is logged as two steps, which is not handled yet",
            "SET GLOBAL binlog_alter_two_phase = OFF; and in my.cnf, [mariadbd]: binlog_alter_two_phase=OFF",
        )
    if values.get("gtid_slave_pos") and values.get("log_slave_updates") == "OFF":
        yield Problem(
            "source-replica-unlogged",
            "the server is a replica that does not log what it is sent: its log does not hold all its writes",
            "my.cnf, [mariadbd]: log_slave_updates=ON, then restart; "
            "if it is no replica any more: RESET SLAVE ALL; SET GLOBAL gtid_slave_pos = ''",
        )


def _version(version: str) -> Iterator[Problem]:
    if not re.match(_VERSION, version) or _before(version, *OLDEST):
        yield Problem(
            "source-version-old",
            f"MariaDB {version} is older than {OLDEST[0]}.{OLDEST[1]}",
            "upgrade the server: older ones do not log names and keys of columns",
        )


def _filters(cursor: Any) -> list[Problem]:
    """Databases that the log leaves out. Empty when the account may not know (a missing grant says so by itself)."""
    try:
        cursor.execute("SHOW MASTER STATUS")
    except pymysql.err.OperationalError:
        return []
    row = cursor.fetchone()
    if row is None:
        return []
    return [
        Problem(
            "source-binlog-filter",
            f"the log leaves databases out: {name}={text}",
            f"remove {name} from my.cnf and restart the server; then take a baseline",
        )
        for name, text in (("binlog_do_db", row[2]), ("binlog_ignore_db", row[3]))
        if text
    ]


def grants(cursor: Any) -> tuple[str, list[str]]:
    """The account as GRANT names it, and what SHOW GRANTS says, which holds a hash of its password: it goes nowhere."""
    cursor.execute("SELECT CURRENT_USER()")
    user, _, host = str(cursor.fetchone()[0]).rpartition("@")
    cursor.execute("SHOW GRANTS")
    return f"'{user}'@'{host}'", [str(row[0]) for row in cursor.fetchall()]


def privileges(lines: Iterable[str], places: Container[str] = frozenset({"*.*"})) -> set[str]:
    """The privileges on `places`, spelled as SHOW GRANTS does, in lines of it; upper case."""
    out: set[str] = set()
    for line in lines:
        m = _GRANT.match(line)
        if m is not None and m["where"] in places:
            out.update(p.strip().upper() for p in m["what"].split(","))
    return out


def _missing(account: str, has: set[str]) -> Iterator[Problem]:
    if "ALL PRIVILEGES" in has:
        return
    for privilege, purpose in CAPTURE_PRIVILEGES.items():
        if privilege not in has:
            yield Problem(
                "source-grant-missing",
                f"{account} lacks {privilege}, needed {purpose}",
                f"GRANT {privilege} ON *.* TO {account}",
            )


# -- the account that carries out rollbacks


def _rollback_account(settings: SourceSettings, version: str) -> tuple[list[Problem], list[Problem]]:
    """Problems and warnings. A password that is wrong now is wrong on the day of the disaster; an account that is locked
    until then, or lacks privileges until then, may be meant so: that is only said."""
    if not settings.accounts.get("rollback"):
        return [], []
    try:
        connection = connect(settings, "rollback")
    except SourceUnavailable:
        raise
    except AgentError as error:
        problem = error.problem()
        cause = error.__cause__
        if cause is not None and cause.args and cause.args[0] == _LOCKED:
            hint = "unlock it before a rollback: ALTER USER … ACCOUNT UNLOCK"
            return [], [Problem("rollback-account-locked", problem.message, hint)]
        return [replace(problem, message=f"rollback account: {problem.message}")], []
    try:
        with connection.cursor() as cursor:
            account, lines = grants(cursor)
    except (pymysql.err.MySQLError, OSError) as error:
        raise error_of(error, settings) from error
    finally:
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            connection.close()
    return [], [
        Problem("rollback-grant-missing", f"{account} lacks {what}: a rollback would be refused", statement)
        for what, statement in missing_for_rollback(account, lines, version)
    ]


def missing_for_rollback(account: str, lines: Sequence[str], version: str) -> Iterator[tuple[str, str]]:
    """What the rollback account lacks, each with the statement that grants it. Whether it may read the tables of a plan is
    looked at when the plan is run; here, only that it may read some."""
    has = {p.replace("READ ONLY ADMIN", "READ_ONLY ADMIN") for p in privileges(lines)}
    if "ALL PRIVILEGES" in has:
        return
    elsewhere = [m for line in lines if (m := _GRANT.match(line)) and m["where"] not in _OWN]
    anywhere = {p for m in elsewhere for p in m["what"].upper().split(", ")}
    older = set(ROLLBACK_PRIVILEGES) if "SUPER" in has and _before(version, 10, 11) else set()
    for needed, there, where in (
        (("SELECT", "TRIGGER"), anywhere, "*.*"),
        (ROLLBACK_PRIVILEGES, has | older, "*.*"),
        (OWN_PRIVILEGES, has | privileges(lines, _OWN), "holdfast.*"),
    ):
        if "ALL PRIVILEGES" in there:
            continue
        if lacking := [p for p in needed if p not in there]:
            names = ", ".join(lacking)
            yield f"{names} on {where}", f"GRANT {names} ON {where} TO {account}"


def _before(version: str, *wanted: int) -> bool:
    m = re.match(_VERSION, version)
    return m is not None and (int(m[1]), int(m[2])) < wanted


# -- what should be

_WARN: tuple[tuple[str, Callable[[Mapping[str, str]], bool], str, str], ...] = (
    (
        "source-sync-binlog",
        lambda v: v.get("sync_binlog") != "1",
        "sync_binlog is not 1: a crash can lose the end of the log after it was captured, and capture must stop then",
        "SET GLOBAL sync_binlog = 1; and in my.cnf, [mariadbd]: sync_binlog=1",
    ),
    (
        "source-innodb-flush",
        lambda v: v.get("innodb_flush_log_at_trx_commit") not in ("1", "3"),
        "innodb_flush_log_at_trx_commit is not 1: a crash can lose committed transactions",
        "SET GLOBAL innodb_flush_log_at_trx_commit = 1; and in my.cnf, [mariadbd]: innodb_flush_log_at_trx_commit=1",
    ),
    (
        "source-checksum-none",
        lambda v: v.get("binlog_checksum") == "NONE",
        "binlog_checksum is NONE: damage to the source's log would not be noticed",
        "SET GLOBAL binlog_checksum = CRC32; and in my.cnf, [mariadbd]: binlog_checksum=CRC32",
    ),
    (
        "source-log-kept-short",
        lambda v: 0 < kept_s(v) < _DAY_S,
        "the server keeps its log for less than a day: a longer outage of Holdfast needs a new baseline",
        "SET GLOBAL binlog_expire_logs_seconds = 604800; and in my.cnf, [mariadbd]: binlog_expire_logs_seconds=604800",
    ),
    (
        "source-log-limited",
        lambda v: int(v.get("max_binlog_total_size") or 0) > 0,
        "max_binlog_total_size limits the log: a burst of writes can purge what was not captured yet",
        "SET GLOBAL max_binlog_total_size = 0; or keep slave_connections_needed_for_purge at 1",
    ),
)


def kept_s(values: Mapping[str, str]) -> float:
    """How long the server keeps its log after the last write to a file of it; 0: for ever."""
    seconds = float(values.get("binlog_expire_logs_seconds") or 0)
    return seconds or float(values.get("expire_logs_days") or 0) * _DAY_S


def _warnings(values: Mapping[str, str]) -> Iterator[Problem]:
    for code, applies, message, hint in _WARN:
        if applies(values):
            yield Problem(code, message, hint)


def _capability(values: Mapping[str, str]) -> tuple[str, ...]:
    """Levels, as docs/guides/mariadb-source.md explains them."""
    has = {
        "gtid": values.get("log_bin") == "ON",
        "rows": values.get("binlog_format", "").upper() == "ROW",
        "images-full": values.get("binlog_row_image", "").upper() == "FULL",
        "metadata-full": values.get("binlog_row_metadata", "").upper() == "FULL",
        "checksums": values.get("binlog_checksum") == "CRC32",
        "crash-safe": values.get("sync_binlog") == "1",
    }
    return tuple(level for level, there in has.items() if there)
