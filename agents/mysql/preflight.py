"""Whether a server can be protected as it is set up now, and the exact statement that mends each thing that is not.

What is asked of a kind and version of server is `Requirements`, data of its platform. Reads variables and the account's own
grants; changes nothing. Settings of single sessions cannot be seen from outside: what a session may override is said in the
hint. The grants asked for are explained in docs/guides/mariadb-source.md and mysql-source.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pymysql

from agents.errors import AgentError, SourceUnavailable
from agents.mysql.connection import connect, error_of
from agents.mysql.dialects import Dialect, Version, dialect, dialect_of, family_of, numbers_of
from agents.protocol import Preflight, SourceSettings
from streams.events import Problem

Values = Mapping[str, str]
_DAY_S = 86_400
_GRANT = re.compile(r"GRANT (?P<what>.+?) ON (?P<where>\S+|`[^`]+`\.\S+) TO ", re.IGNORECASE)
# Of the rollback account (docs/guides/rollback.md), on *.* or holdfast.*.
OWN_PRIVILEGES = ("SELECT", "INSERT", "CREATE", "ALTER", "DROP")
_OWN = frozenset({"`holdfast`.*", "holdfast.*"})
_LOCKED = frozenset({4151, 3118})  # ER_ACCOUNT_HAS_BEEN_LOCKED of MariaDB, of MySQL


@dataclass(frozen=True, slots=True)
class Must:
    """A variable that a source must have at one of `wanted` (where its version has it), the first being what to set. A
    variable that cannot be set while the server runs is `fixed`."""

    name: str
    wanted: tuple[str, ...]
    why: str
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that a source should not be: `applies` to its variables."""

    code: str
    applies: Callable[[Values], bool]
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Requirements:
    """What is asked of a source of one family, from version `since` on.

    `section`: of my.cnf. `privileges`: of the capture account, on *.*, and what each is for. `capability`: level → whether a
    server with these variables is of it (docs/guides). `replica`: whether it is a replica.
    """

    family: Literal["MariaDB", "MySQL"]
    since: Version
    section: str
    must: tuple[Must, ...]
    warn: tuple[Warn, ...]
    privileges: Mapping[str, str]
    capability: Callable[[Values], Mapping[str, bool]]
    variables: tuple[str, ...] = ()
    replica_status: str = ""


def requirements_of(known: Iterable[Requirements], version: str) -> Requirements | None:
    """Those of `known` (ascending) for a server of `version`; None when it is older than all."""
    numbers = numbers_of(version)
    return next((r for r in reversed(tuple(known)) if r.since <= numbers), None)


def check(settings: SourceSettings, known: tuple[Requirements, ...]) -> Preflight:
    """Everything at once. Raises `SourceUnavailable`; a refused login or missing TLS is a problem, not an exception."""
    try:
        connection = connect(settings, "capture")
    except SourceUnavailable:
        raise
    except AgentError as error:
        return Preflight((error.problem(),), (), ())
    family = known[0].family
    try:
        with connection.cursor() as cursor:
            version = variables(cursor, ["version"]).get("version", "")
            if family_of(version) != family:
                other = family_of(version).lower()
                problem = Problem(
                    f"source-not-{family.lower()}", f"the server says it is {version}", f"add it with --kind {other}"
                )
                return Preflight((problem,), (), (), version)
            asked = requirements_of(known, version)
            if asked is None:
                oldest = ".".join(map(str, known[0].since))
                problem = Problem(
                    "source-version-old", f"{family} {version} is older than {oldest}", "upgrade the server"
                )
                return Preflight((problem,), (), (), version)
            values = variables(cursor, _names(asked))
            values["replica"] = _replica(cursor, asked, values)
            account, lines = grants(cursor)
            filters = _filters(cursor, dialect(connection), asked)
    except (pymysql.err.MySQLError, OSError) as error:
        raise error_of(error, settings) from error
    finally:
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            connection.close()
    problems = [*_settings(values, asked), *_missing(account, privileges(lines), asked.privileges), *filters]
    refused, lacking = _rollback_account(settings, version)
    warnings = [Problem(w.code, w.message, w.hint) for w in asked.warn if w.applies(values)]
    capability = tuple(level for level, there in asked.capability(values).items() if there)
    return Preflight((*problems, *refused), (*warnings, *lacking), capability, version)


def _names(asked: Requirements) -> list[str]:
    return [
        "log_bin",
        "server_id",
        "log_slave_updates",
        "log_replica_updates",
        *(m.name for m in asked.must),
        *asked.variables,
    ]


def variables(cursor: Any, names: Iterable[str]) -> dict[str, str]:
    """Global values of those of `names` that this server has."""
    names = tuple(names)
    cursor.execute(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({', '.join(['%s'] * len(names))})", names)
    return {str(name).lower(): str(value) for name, value in cursor.fetchall()}


def _replica(cursor: Any, asked: Requirements, values: Values) -> str:
    """`yes` when the server gets its writes from another one."""
    if values.get("gtid_slave_pos"):
        return "yes"
    if asked.replica_status:
        try:
            cursor.execute(asked.replica_status)
        except pymysql.err.OperationalError:
            return ""  # a missing grant says so by itself
        return "yes" if cursor.fetchone() else ""
    return ""


# -- what must be


def set_global(name: str, value: str, section: str) -> str:
    """The statement that sets a variable, and the line that keeps it."""
    quoted = value if value.isdigit() or value in ("ON", "OFF") else f"'{value}'"
    return f"SET GLOBAL {name} = {quoted}; and in my.cnf, [{section}]: {name}={value}"


def _settings(values: Values, asked: Requirements) -> Iterator[Problem]:
    section = asked.section
    if values.get("log_bin") != "ON":
        yield Problem(
            "source-log-off",
            "the server writes no binary log",
            f"my.cnf, [{section}]: log_bin=binlog; then restart the server",
        )
    if values.get("server_id") in ("0", None):
        yield Problem(
            "source-server-id",
            "the server has no id",
            f"SET GLOBAL server_id = 1; and in my.cnf, [{section}]: server_id=1 (a number no other server here has)",
        )
    for m in asked.must:
        value = values.get(m.name)
        if value is not None and value.upper() not in m.wanted:
            line = f"my.cnf, [{section}]: {m.name}={m.wanted[0]}"
            yield Problem(
                f"source-{m.name.replace('_', '-')}",
                f"{m.name} is {value or 'empty'}: {m.why}",
                f"{line}; then restart the server"
                if m.fixed
                else f"SET GLOBAL {m.name} = '{m.wanted[0]}'; and in {line} "
                "(connections that are open keep what they have: reconnect them)",
            )
    updates = values.get("log_slave_updates", values.get("log_replica_updates"))
    if values.get("replica") and updates == "OFF":
        name = "log_slave_updates" if "log_slave_updates" in values else "log_replica_updates"
        yield Problem(
            "source-replica-unlogged",
            "the server is a replica that does not log what it is sent: its log does not hold all its writes",
            f"my.cnf, [{section}]: {name}=ON, then restart; if it is no replica any more: "
            + ("RESET SLAVE ALL; SET GLOBAL gtid_slave_pos = ''" if asked.family == "MariaDB" else "RESET REPLICA ALL"),
        )


def _filters(cursor: Any, spoken: Dialect, asked: Requirements) -> list[Problem]:
    """Databases that the log leaves out. Empty when the account may not know (a missing grant says so by itself)."""
    try:
        cursor.execute(spoken.log_status)
    except pymysql.err.OperationalError:
        return []
    row = cursor.fetchone()
    if row is None:
        return []
    return [
        Problem(
            "source-binlog-filter",
            f"the log leaves databases out: {name}={text}",
            f"remove {name} from my.cnf, [{asked.section}], and restart the server; then take a baseline",
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


def _missing(account: str, has: set[str], asked: Mapping[str, str]) -> Iterator[Problem]:
    if "ALL PRIVILEGES" in has:
        return
    for privilege, purpose in asked.items():
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
        if cause is not None and cause.args and cause.args[0] in _LOCKED:
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
        Problem(
            "rollback-grant-missing", f"{account} lacks {what}: a rollback by native events would be refused", statement
        )
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
    spoken = dialect_of(version)
    lock = (spoken.row_lock_privilege,) if spoken.row_lock_privilege else ()
    given = {names[0] for names in spoken.privileges.values() if has.intersection(names)}
    for needed, there, where in (
        (("SELECT", "TRIGGER", *lock), anywhere, "*.*"),
        (dict.fromkeys(names[0] for names in spoken.privileges.values()), given, "*.*"),
        ((*OWN_PRIVILEGES, *lock), has | privileges(lines, _OWN), "holdfast.*"),
    ):
        if "ALL PRIVILEGES" in there:
            continue
        if lacking := [p for p in needed if p not in there]:
            names = ", ".join(lacking)
            yield f"{names} on {where}", f"GRANT {names} ON {where} TO {account}"


# -- what should be


def kept_s(values: Values) -> float:
    """How long the server keeps its log after the last write to a file of it; 0: for ever."""
    if values.get("binlog_expire_logs_auto_purge") == "OFF":
        return 0.0
    seconds = float(values.get("binlog_expire_logs_seconds") or 0)
    return seconds or float(values.get("expire_logs_days") or 0) * _DAY_S


def common_warnings(section: str) -> tuple[Warn, ...]:
    """What should not be, whatever the family."""
    return (
        Warn(
            "source-sync-binlog",
            lambda v: v.get("sync_binlog") != "1",
            "sync_binlog is not 1: a crash can lose the end of the log after it was captured, and capture must stop then",
            set_global("sync_binlog", "1", section),
        ),
        Warn(
            "source-innodb-flush",
            lambda v: v.get("innodb_flush_log_at_trx_commit") not in ("1", "3"),
            "innodb_flush_log_at_trx_commit is not 1: a crash can lose committed transactions",
            set_global("innodb_flush_log_at_trx_commit", "1", section),
        ),
        Warn(
            "source-checksum-none",
            lambda v: v.get("binlog_checksum") == "NONE",
            "binlog_checksum is NONE: damage to the source's log would not be noticed",
            set_global("binlog_checksum", "CRC32", section).replace("'CRC32'", "CRC32"),
        ),
        Warn(
            "source-log-kept-short",
            lambda v: 0 < kept_s(v) < _DAY_S,
            "the server keeps its log for less than a day: a longer outage of Holdfast needs a new baseline",
            set_global("binlog_expire_logs_seconds", "604800", section),
        ),
    )
