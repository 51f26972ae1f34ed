"""What the rollback account may do on a server, and which of its settings stand in the way of a rollback: each lack with the
statement that mends it.

Asked of the privilege tables where they say it, and by trying where roles may; nothing is changed by asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pymysql

from agents.mysql.definitions import quoted
from agents.mysql.dialects import Dialect
from agents.mysql.guard import OWN_SCHEMA
from agents.mysql.statements import ask, run
from agents.rollback.plan import Plan
from agents.rollback.schema import Definition
from streams.events import Problem

# What a fence takes, of a dialect's privileges.
FENCING: Final = frozenset({"fence", "switch"})


def lacking(control: pymysql.Connection[Any], spoken: Dialect, account: str) -> dict[str, str]:
    """What the account may not do (replay events, work unlogged, set `read_only`) and the privilege for it.

    MariaDB is asked by trying, as roles count there, too."""
    asked = spoken.privileges
    has = _privileges(control, account, OWN_SCHEMA)
    probes: dict[str, str] = {}
    if spoken.family == "MariaDB":
        probes = {
            "replay": "SET SESSION server_id = @@server_id",
            "log": "SET SESSION binlog_annotate_row_events = 0",
        }
        ((read_only,),) = ask(control, "SELECT @@global.read_only")
        probes["fence"] = f"SET GLOBAL read_only = {read_only}"
    missing: dict[str, str] = {}
    for purpose, any_of in asked.items():
        if has.intersection(any_of):
            continue
        if purpose in probes and not denied(control, probes[purpose]):
            continue
        if not probes and _has_role(control, spoken):
            continue
        missing[purpose] = any_of[0]
    return missing


def _has_role(connection: pymysql.Connection[Any], spoken: Dialect) -> bool:
    """Then only the server's refusal tells what is missing."""
    expression = spoken.current_role
    return bool(expression) and ask(connection, f"SELECT {expression}")[0][0] is not None


def of_tables(
    control: pymysql.Connection[Any], spoken: Dialect, account: str, schema: str, tables: Sequence[Definition]
) -> list[Problem]:
    """SELECT to compare rows, TRIGGER without which information_schema is silent about triggers and foreign keys."""
    more = spoken.row_lock_privilege
    problem = [grant(f"SELECT, TRIGGER, {more}" if more else "SELECT, TRIGGER", quoted(schema) + ".*", account)]
    if any(denied(control, f"SELECT 1 FROM {quoted(*d.name)} LIMIT 0 FOR UPDATE") for d in tables):
        return problem
    if "TRIGGER" in _privileges(control, account, schema) or _has_role(control, spoken):
        return []
    granted = {row[0] for row in ask(
        control,
        "SELECT TABLE_NAME FROM information_schema.TABLE_PRIVILEGES"
        " WHERE GRANTEE = %s AND TABLE_SCHEMA = %s AND PRIVILEGE_TYPE = 'TRIGGER'",
        account, schema,
    )}  # fmt: skip
    return [] if granted.issuperset(d.table for d in tables) else problem


def of_own_schema(control: pymysql.Connection[Any], spoken: Dialect, account: str, own: Sequence[str]) -> list[Problem]:
    """Whether the account may work in schema `holdfast`: asked of the privilege tables, so that nothing is made."""
    needed = [*own, *filter(None, [spoken.row_lock_privilege])]
    if _privileges(control, account, OWN_SCHEMA).issuperset(needed) or _has_role(control, spoken):
        return []
    return [grant(", ".join(needed), "`holdfast`.*", account)]


def settings_in_the_way(control: pymysql.Connection[Any], spoken: Dialect, plan: Plan) -> list[Problem]:
    """Settings of the server that native events cannot be replayed with, each with the statement that mends it."""
    ((log_bin, run_triggers, packet),) = ask(control, f"SELECT @@log_bin, {spoken.triggers_run}, @@max_allowed_packet")
    out = []
    largest, table = max(((t.changes.largest, t.definition.text) for t in plan.tables), default=(0, ""))
    # Of base64; in two halves, where the server takes them: more pieces it does not.
    needed = (largest + 4096) * 4 // 3 // (2 if spoken.split_statements else 1) + 1024
    if needed > packet:
        out.append(Problem(
            "row-too-large", f"a row of {table} needs packets of {needed} bytes; the server takes {packet}",
            f"SET GLOBAL max_allowed_packet = {min(1 << 30, 1 << needed.bit_length())}",
        ))  # fmt: skip
    if not log_bin:
        out.append(Problem("log-off", "the target keeps no binary log", "start it with log_bin"))
    for expression, wanted in spoken.variables.items():
        ((value,),) = ask(control, f"SELECT {expression}")
        if value != wanted:
            name = expression.rpartition(".")[2].lstrip("@")
            out.append(Problem(
                "setting", f"{name} is {value}: errors of native events would be passed over",
                f"SET GLOBAL {name} = '{wanted}'",
            ))  # fmt: skip
    if run_triggers != "NO" and any(t.definition.triggers for t in plan.tables):
        out.append(Problem(
            "setting", f"slave_run_triggers_for_rbr is {run_triggers}: triggers would run a second time",
            "SET GLOBAL slave_run_triggers_for_rbr = 'NO'",
        ))  # fmt: skip
    if spoken.super_read_only and ask(control, "SELECT @@global.super_read_only")[0][0]:
        out.append(Problem(
            "setting", "super_read_only is ON: the rollback itself could not write",
            "SET GLOBAL super_read_only = OFF (read_only stays as it is)",
        ))  # fmt: skip
    return out


def denied(connection: pymysql.Connection[Any], sql: str) -> bool:
    """Whether the account may not do this. Other errors are none of this question's."""
    try:
        run(connection, sql)
    except pymysql.err.MySQLError as error:
        return bool(error.args and error.args[0] in (1044, 1142, 1227, 1370))
    return False


def _privileges(connection: pymysql.Connection[Any], account: str, schema: str) -> set[str]:
    """What was granted to the account everywhere or on `schema`. What comes by a role is not in these views."""
    return {row[0] for row in ask(
        connection,
        "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = %s UNION"
        " SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = %s AND %s LIKE TABLE_SCHEMA",
        account, account, schema,
    )}  # fmt: skip


def account_of(current: str) -> str:
    """`user@host` as SQL writes an account, and as information_schema spells a grantee."""
    user, _, host = current.rpartition("@")
    return f"'{user}'@'{host}'"


def grant(privileges: str, where: str, account: str) -> Problem:
    return Problem(
        "privilege-missing", f"the rollback account lacks {privileges} on {where.replace('`', '')}",
        f"GRANT {privileges} ON {where} TO {account}",
    )  # fmt: skip
