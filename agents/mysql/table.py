"""One table, read where it is right and put in where it is wrong: for undoing DROP, TRUNCATE and other definitions.

    CREATE shadow                      beside the table, in its schema, so that the log and every replica see it
    rows, then compared                order-free digests over the bytes that the server sends
    read_only, a row in `holdfast`     the plan's id: what the swap is linked to it by
    RENAME t TO kept, shadow TO t      atomic: the source has the old table or the new one, never neither
    foreign keys, triggers             taken off the kept table, put on the new one; done again by whoever finds it half done

Knows the two servers, not plans, events or copies. MariaDB 10.6 and later, MySQL 8 and later: RENAME of several tables is
crash-safe there.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pymysql
from blake3 import blake3
from pymysql.cursors import Cursor

from agents.baseline.load import create_statements, row_statements
from agents.baseline.making import raw_rows, selection
from agents.baseline.manifest import CreateObject, TableFile
from agents.baseline.rows import HashedFile, RowsWriter
from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.mysql import fence, whereabouts
from agents.mysql.apply import LOCK_NAME
from agents.mysql.connection import connect, error_of
from agents.mysql.definitions import quoted, read_definitions
from agents.mysql.dialects import dialect
from agents.mysql.statements import ask, run
from agents.protocol import SourceSettings
from agents.scratch.engine import ChildKey, TableState
from streams.events import Problem, TableDefinition
from streams.ids import now_us

NEEDED: Final = ("SELECT", "INSERT", "CREATE", "ALTER", "DROP", "TRIGGER")
NEEDED_OF_CHILDREN: Final = ("SELECT", "INSERT", "CREATE", "ALTER", "TRIGGER")
"""Where tables are whose foreign keys are put on another one."""
_COMMIT_BYTES: Final = 32 << 20
_MODULUS: Final = 1 << 256
_FOREIGN_KEY = re.compile(r"^\s+CONSTRAINT `(?:[^`]|``)*` FOREIGN KEY .*?,?$")
_CHECK = re.compile(r"^(\s+)CONSTRAINT `((?:[^`]|``)*)` (?=CHECK \()")
_SESSION: Final = (
    "SET SESSION time_zone = '+00:00', sql_mode = '', autocommit = 1, foreign_key_checks = 0, unique_checks = 1,"
    " lock_wait_timeout = 30, innodb_lock_wait_timeout = 30, wait_timeout = 3600, sql_quote_show_create = 1, {more}"
)
_MORE: Final = {
    "MariaDB": "check_constraint_checks = 0, max_statement_time = 0",
    # Statistics would be a day old otherwise, and the counter of a table with them.
    "MySQL": "max_execution_time = 0, information_schema_stats_expiry = 0",
}
# What an account may do to have a table of its own put in, by family: purpose → privileges of which any is enough.
_ADMIN: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "MariaDB": {"fence": ("READ_ONLY ADMIN", "READ ONLY ADMIN", "SUPER"), "definers": ("SET USER", "SUPER")},
    "MySQL": {
        "fence": ("CONNECTION_ADMIN", "SUPER"),
        "switch": ("SYSTEM_VARIABLES_ADMIN", "SUPER"),
        "definers": ("SET_ANY_DEFINER", "SET_USER_ID", "SUPER"),
    },
}
_OWN: Final = (
    "CREATE DATABASE IF NOT EXISTS `holdfast`",
    "CREATE TABLE IF NOT EXISTS `holdfast`.`table_rollback` (plan varchar(36) CHARACTER SET ascii NOT NULL PRIMARY KEY,"
    " digest varbinary(32) NOT NULL, at_us bigint NOT NULL) ENGINE=InnoDB",
)
Progress = Callable[[int], None]


def look(conn: pymysql.Connection[Any], schema: str, table: str) -> TableState | None:
    """What there is; None when there is no such table. Counts its rows."""
    found = ask(
        conn,
        "SELECT TABLE_TYPE, AUTO_INCREMENT FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
        schema, table,
    )  # fmt: skip
    if not found:
        return None
    definitions = read_definitions(conn, [(schema, table)])
    if not definitions:
        return None
    facts = json.loads(definitions[0].definition)
    kind, auto = str(found[0][0]), found[0][1]
    triggers, definers = [], []
    for name, definer in ask(
        conn,
        "SELECT TRIGGER_NAME, DEFINER FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = %s"
        " AND EVENT_OBJECT_TABLE = %s ORDER BY ACTION_ORDER",
        schema, table,
    ):  # fmt: skip
        row = ask(conn, f"SHOW CREATE TRIGGER {quoted(schema, name)}")[0]
        triggers.append(CreateObject("trigger", schema, name, row[2], row[1], row[3], row[4], row[5], table=table))
        definers.append(str(definer))
    plain = kind in ("BASE TABLE", "SYSTEM VERSIONED")
    return TableState(
        definition=definitions[0],
        kind=kind,
        rows=int(ask(conn, f"SELECT COUNT(*) FROM {quoted(schema, table)}")[0][0]) if plain else 0,
        auto_increment=None if auto is None else int(auto),
        versioned=bool(facts.get("system_versioned")),
        triggers=tuple(triggers),
        definers=tuple(definers),
        foreign_keys=_clauses(definitions[0]),
        children=tuple(
            _child(conn, s, t, c) for s, t, c, *_ in facts.get("referenced_by", ()) if (s, t) != (schema, table)
        ),
        privileges=_privileges_on(conn, schema, table),
    )


def _clauses(definition: TableDefinition) -> dict[str, str]:
    """What adds each of a table's foreign keys."""
    lines = (line.strip().rstrip(",") for line in definition.ddl.splitlines() if _FOREIGN_KEY.match(line))
    return {clause.split("`")[1]: clause for clause in lines}


def _child(conn: pymysql.Connection[Any], schema: str, table: str, constraint: str) -> ChildKey:
    (definition,) = read_definitions(conn, [(schema, table)])
    key = json.loads(definition.definition)["foreign_keys"][constraint]
    clause = _clauses(definition)[constraint]
    return ChildKey(schema, table, constraint, tuple(key["columns"]), tuple(key["references"]), clause)


def without(
    conn: pymysql.Connection[Any], then: TableState, child: ChildKey, keys: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """See `agents.scratch.engine.Tables.without`. The server compares, as the columns' collations do."""
    name = quoted(then.definition.schema, then.definition.table)
    columns = ", ".join(map(quoted, child.references))
    joined = " AND ".join(f"p.{quoted(c)} = k.{quoted(c)}" for c in child.references)
    run(conn, "CREATE DATABASE IF NOT EXISTS `holdfast`")
    run(conn, "DROP TEMPORARY TABLE IF EXISTS `holdfast`.`child_keys`")
    run(conn, f"CREATE TEMPORARY TABLE `holdfast`.`child_keys` AS SELECT {columns} FROM {name} LIMIT 0")
    with conn.cursor(Cursor) as cursor:
        places = ", ".join(["%s"] * len(child.references))
        cursor.executemany(f"INSERT INTO `holdfast`.`child_keys` ({columns}) VALUES ({places})", keys)
    return ask(
        conn,
        f"SELECT {columns} FROM `holdfast`.`child_keys` k WHERE NOT EXISTS (SELECT 1 FROM {name} p WHERE {joined})",
    )


def table_file(conn: pymysql.Connection[Any], state: TableState, file: str) -> TableFile:
    """How its rows are read and put in again (as in a baseline)."""
    columns, types, expressions = selection(state.definition, dialect(conn).float_as_double)
    d = state.definition
    return TableFile(
        d.schema, d.table, state.kind, "", tuple(columns), tuple(types), tuple(expressions), file, 0, 0, state.rows, "",
        True, state.auto_increment,
    )  # fmt: skip


def keep(conn: pymysql.Connection[Any], table: TableFile, path: Path, progress: Progress) -> tuple[int, bytes]:
    """Read all rows into a rows file; how many, and the digest of what they are (`content`)."""
    with HashedFile(path) as out:
        rows, total = RowsWriter(out, table.schema, table.table, list(table.columns)), 0
        for row in _rows(conn, table):
            rows.add(row)
            total = _added(total, row)
            if not rows.rows & 0xFFF:
                progress(rows.rows)
        rows.finish()
        out.finish()
    return rows.rows, total.to_bytes(32, "little")


def content(conn: pymysql.Connection[Any], table: TableFile, progress: Progress) -> tuple[int, bytes]:
    """How many rows there are, and a digest of them that their order does not matter to."""
    count = total = 0
    for row in _rows(conn, table):
        count, total = count + 1, _added(total, row)
        if not count & 0xFFF:
            progress(count)
    return count, total.to_bytes(32, "little")


def _rows(conn: pymysql.Connection[Any], table: TableFile) -> Iterator[bytes]:
    _settle(conn)
    run(conn, "SET character_set_results = NULL")
    yield from raw_rows(conn, f"SELECT {', '.join(table.expressions)} FROM {quoted(table.schema, table.table)}")
    run(conn, "SET NAMES utf8mb4")


def _added(total: int, row: bytes) -> int:
    return (total + int.from_bytes(blake3(row).digest(), "little")) % _MODULUS


class NativeTableTarget:
    """Implements `agents.scratch.engine.TableTarget` with the source's rollback account. Used by one thread. Raises as
    `connect`."""

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._conn = connect(settings, "rollback", read_timeout=3600.0, write_timeout=600.0)
        with self._explained():
            self._dialect = dialect(self._conn)
            _settle(self._conn)

    def close(self) -> None:
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            self._conn.close()

    def look(self, schema: str, table: str) -> TableState | None:
        with self._explained():
            return look(self._conn, schema, table)

    def lacks(self, schema: str, then: TableState, children: Sequence[ChildKey]) -> list[Problem]:
        """What the account may not do here, with the statements that mend it."""
        with self._explained():
            user, _, host = str(ask(self._conn, "SELECT CURRENT_USER()")[0][0]).rpartition("@")
            account = f"'{user}'@'{host}'"
            everywhere = {str(r[0]) for r in ask(
                self._conn, "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = %s", account
            )}  # fmt: skip
            here = everywhere | {str(r[0]) for r in ask(
                self._conn,
                "SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = %s AND %s LIKE TABLE_SCHEMA",
                account, schema,
            )}  # fmt: skip
            role = ask(self._conn, f"SELECT {self._dialect.current_role}")[0][0] is not None
            trusted = int(ask(self._conn, "SELECT @@log_bin_trust_function_creators")[0][0])
        out = []
        needed = [*NEEDED, *(["REFERENCES"] if then.foreign_keys or children else [])]
        missing = [p for p in needed if p not in here]
        if missing and not role:
            out.append(_grant(", ".join(missing), f"{quoted(schema)}.*", account))
        for other in sorted({c.schema for c in children} - {schema}):
            with self._explained():
                there = everywhere | {str(r[0]) for r in ask(
                    self._conn,
                    "SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = %s"
                    " AND %s LIKE TABLE_SCHEMA",
                    account, other,
                )}  # fmt: skip
            missing = [p for p in NEEDED_OF_CHILDREN if p not in there]
            if missing and not role:
                out.append(_grant(", ".join(missing), f"{quoted(other)}.*", account))
        foreign = [d for d in then.definers if d != f"{user}@{host}"]
        for purpose, any_of in _ADMIN[self._dialect.family].items():
            if (purpose != "definers" or foreign) and not everywhere.intersection(any_of) and not role:
                out.append(_grant(any_of[0], "*.*", account))
        if self._dialect.family == "MySQL":
            if "SYSTEM_USER" not in everywhere and not role and self._system_users(foreign):
                out.append(_grant("SYSTEM_USER", "*.*", account))
            out += self._named_checks(schema, then)
            with self._explained():
                ((closed,),) = ask(self._conn, "SELECT @@global.super_read_only")
            if closed:
                out.append(Problem(
                    "setting", "super_read_only is ON: nothing could be put into the source",
                    "SET GLOBAL super_read_only = OFF (read_only stays as it is)",
                ))  # fmt: skip
        if then.triggers and not trusted and "SUPER" not in everywhere and not role:
            out.append(
                Problem(
                    "setting",
                    "with a binary log, the server lets an account without SUPER create no triggers",
                    "SET GLOBAL log_bin_trust_function_creators = 1 (for as long as this takes)",
                )
            )
        return out

    def _system_users(self, accounts: Sequence[str]) -> bool:
        """Whether one of them is a system user, in whose name only another may create anything."""
        with self._explained():
            found = ask(
                self._conn,
                "SELECT GRANTEE FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE = 'SYSTEM_USER'",
            )
        grantees = {str(r[0]) for r in found}
        return any("'{}'@'{}'".format(*a.rsplit("@", 1)) in grantees for a in accounts)

    def _named_checks(self, schema: str, then: TableState) -> list[Problem]:
        """MySQL's CHECKs have names that are unique in a schema. Those that the server made follow the table's name; others
        are the kept table's."""
        d = then.definition
        found = [m[2] for line in d.ddl.splitlines() if (m := _CHECK.match(line))]
        made = [f"{d.table}_chk_{i}" for i in range(1, len(found) + 1)]
        if found == made or not self._exists(schema, d.table):
            return []
        return [Problem(
            "named-checks", f"CHECK constraints of {schema}.{d.table} have names of their own ({', '.join(found)}), which no two"
            " tables of a schema can have", "rename the table of now first (RENAME TABLE …), or drop it, then plan again",
        )]  # fmt: skip

    def hold(self, *, at_once: bool = True) -> None:
        """So that no other rollback runs beside this one. Not `at_once`: end a session that a death left behind."""
        deadline = time.monotonic() + (0 if at_once else 300)
        with self._explained():
            while True:
                if not at_once:
                    ((holder,),) = ask(self._conn, "SELECT IS_USED_LOCK(%s)", LOCK_NAME)
                    if holder is not None:
                        with contextlib.suppress(pymysql.err.MySQLError):
                            run(self._conn, f"KILL CONNECTION {int(holder)}")
                ((got,),) = ask(self._conn, "SELECT GET_LOCK(%s, 2)", LOCK_NAME)
                if got == 1:
                    return
                if time.monotonic() > deadline:
                    what = "another rollback holds this server" if at_once else "an earlier session does not end"
                    raise SourceUnavailable("rollback-busy", what, "wait for it, or restart the agent")

    def load(
        self, then: TableState, now: TableState | None, shadow: str, folder: Path, table: TableFile, progress: Progress
    ) -> None:
        """Create the shadow and fill it. Foreign keys whose names are taken by the table of now are put on later."""
        d = then.definition
        with self._explained():
            run(self._conn, "SET NAMES utf8mb4")
            self.forget(d.schema, shadow)
            # The table is created under the settings that its text was written for, and nothing is made nicer.
            run(self._conn, "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'")
            checks = now is None or self._dialect.family == "MariaDB"
            run(self._conn, shadow_ddl(d, shadow, keys=now is None, checks=checks))
            failpoint("table.created")
            held, rows = 0, 0
            self._conn.begin()
            for statement in row_statements(folder, replace(table, table=shadow, auto_increment=None)):
                _raw(self._conn, statement)
                held += len(statement)
                if held > _COMMIT_BYTES:
                    self._conn.commit()
                    self._conn.begin()
                    held = 0
                rows = min(table.rows, rows + 1)
                progress(rows)
            self._conn.commit()
            _settle(self._conn)
            run(self._conn, "SET NAMES utf8mb4")
            counters = [s.auto_increment for s in (then, now) if s is not None and s.auto_increment is not None]
            if then.auto_increment is not None and counters:
                run(self._conn, f"ALTER TABLE {quoted(d.schema, shadow)} AUTO_INCREMENT = {max(counters)}")

    def content(self, table: TableFile, shadow: str, progress: Progress) -> tuple[int, bytes]:
        with self._explained():
            return content(self._conn, replace(table, table=shadow), progress)

    def orphans(self, then: TableState, shadow: str) -> list[Problem]:
        """Rows of the shadow whose foreign keys point nowhere."""
        d = then.definition
        out = []
        with self._explained():
            for name, key in json.loads(d.definition)["foreign_keys"].items():
                parent = quoted(d.schema, shadow) if (key["schema"], key["table"]) == (d.schema, d.table) else quoted(
                    key["schema"], key["table"]
                )  # fmt: skip
                pairs = list(zip(key["columns"], key["references"], strict=True))
                joined = " AND ".join(f"p.{quoted(b)} = c.{quoted(a)}" for a, b in pairs)
                set_ = " AND ".join(f"c.{quoted(a)} IS NOT NULL" for a, _ in pairs)
                sql = (
                    f"SELECT COUNT(*) FROM {quoted(d.schema, shadow)} c WHERE {set_}"
                    f" AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE {joined})"
                )
                try:
                    ((count,),) = ask(self._conn, sql)
                except pymysql.err.ProgrammingError as error:
                    raise AgentError(
                        "orphan", f"{name} points at a table that is not there: {error.args[-1]}"
                    ) from error
                if count:
                    out.append(Problem(
                        "orphan", f"{count} rows would point at rows of {key['schema']}.{key['table']} that are gone ({name})",
                        "bring that table back as well, first",
                    ))  # fmt: skip
        return out

    def keys_of(self, child: ChildKey, most: int) -> list[tuple[Any, ...]] | None:
        columns = ", ".join(map(quoted, child.columns))
        set_ = " AND ".join(f"{quoted(c)} IS NOT NULL" for c in child.columns)
        with self._explained():
            found = ask(
                self._conn,
                f"SELECT DISTINCT {columns} FROM {quoted(child.schema, child.table)} WHERE {set_} LIMIT {most + 1}",
            )
        return found if len(found) <= most else None

    def dangling(self, child: ChildKey, schema: str, shadow: str) -> list[Problem]:
        pairs = list(zip(child.columns, child.references, strict=True))
        columns = ", ".join(f"c.{quoted(a)}" for a, _ in pairs)
        joined = " AND ".join(f"p.{quoted(b)} = c.{quoted(a)}" for a, b in pairs)
        set_ = " AND ".join(f"c.{quoted(a)} IS NOT NULL" for a, _ in pairs)
        with self._explained():
            found = ask(
                self._conn,
                f"SELECT DISTINCT {columns} FROM {quoted(child.schema, child.table)} c WHERE {set_}"
                f" AND NOT EXISTS (SELECT 1 FROM {quoted(schema, shadow)} p WHERE {joined})",
            )
        return [dangling_problem(child, found)] if found else []

    def read_only(self) -> str:
        with self._explained():
            return fence.read_only(self._conn)

    def fence(self) -> None:
        with self._explained():
            fence.close(self._conn, "then run the plan again")

    def unfence(self, before: str) -> None:
        with self._explained():
            fence.reopen(self._conn, before)

    def swap(self, plan: str, digest: bytes, schema: str, table: str, shadow: str, kept: str) -> None:
        """`kept` empty: there is no table to keep."""
        with self._explained():
            for statement in _OWN:
                run(self._conn, statement)
            run(
                self._conn,
                "INSERT IGNORE INTO `holdfast`.`table_rollback` (plan, digest, at_us) VALUES (%s, %s, %s)",
                plan, digest, now_us(),
            )  # fmt: skip
            failpoint("table.noted")
            moves = [f"{quoted(schema, table)} TO {quoted(schema, kept)}"] if kept else []
            run(
                self._conn,
                "RENAME TABLE " + ", ".join([*moves, f"{quoted(schema, shadow)} TO {quoted(schema, table)}"]),
            )

    def swapped(self, plan: str, schema: str, table: str, shadow: str, kept: str) -> bool:
        """Whether `swap` of this plan has happened."""
        with self._explained():
            noted = self._exists("holdfast", "table_rollback") and ask(
                self._conn, "SELECT 1 FROM `holdfast`.`table_rollback` WHERE plan = %s", plan
            )
            there = self._exists(schema, table) and not self._exists(schema, shadow)
            return bool(noted) and there and (not kept or self._exists(schema, kept))

    def finish(self, then: TableState, kept: str, children: Sequence[ChildKey]) -> None:
        """After the swap: foreign keys and triggers where they belong. May be called again after a death within it.

        Foreign keys of other tables follow a table that is renamed. They are put back unchecked: `dangling` has looked,
        and nobody has written since."""
        d = then.definition
        name = quoted(d.schema, d.table)
        with self._explained():
            run(self._conn, "SET SESSION foreign_key_checks = 0")
            if kept:
                for key in _keys_of(self._conn, d.schema, kept):
                    run(self._conn, f"ALTER TABLE {quoted(d.schema, kept)} DROP FOREIGN KEY {quoted(key)}")
                for (trigger,) in ask(
                    self._conn,
                    "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = %s"
                    " AND EVENT_OBJECT_TABLE = %s",
                    d.schema, kept,
                ):  # fmt: skip
                    run(self._conn, f"DROP TRIGGER {quoted(d.schema, trigger)}")
            failpoint("table.stripped")
            missing = [c for k, c in then.foreign_keys.items() if k not in _keys_of(self._conn, d.schema, d.table)]
            if missing:
                run(self._conn, f"ALTER TABLE {name} " + ", ".join(f"ADD {clause}" for clause in missing))
            for child in children:
                self._point_back(child, d)
            failpoint("table.pointed-back")
            there = {str(r[0]) for r in ask(
                self._conn, "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = %s", d.schema
            )}  # fmt: skip
            for trigger in then.triggers:
                if trigger.name not in there:
                    for statement in create_statements(trigger):
                        _raw(self._conn, statement)
            _settle(self._conn)
            run(self._conn, "SET NAMES utf8mb4")

    def _point_back(self, child: ChildKey, parent: TableDefinition) -> None:
        name = quoted(child.schema, child.table)
        found = ask(
            self._conn,
            "SELECT UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS"
            " WHERE CONSTRAINT_SCHEMA = %s AND TABLE_NAME = %s AND CONSTRAINT_NAME = %s",
            child.schema, child.table, child.constraint,
        )  # fmt: skip
        if found and found[0] == (parent.schema, parent.table):
            return
        if found:
            run(self._conn, f"ALTER TABLE {name} DROP FOREIGN KEY {quoted(child.constraint)}")
            failpoint("table.child-stripped")
        run(self._conn, f"ALTER TABLE {name} ADD {child.clause}")

    def forget(self, schema: str, shadow: str) -> None:
        """Drop a shadow, if it is there."""
        with self._explained():
            run(self._conn, "SET SESSION foreign_key_checks = 0")
            if self._exists(schema, shadow):
                run(self._conn, f"DROP TABLE {quoted(schema, shadow)}")

    def position(self) -> str:
        with self._explained(), self._conn.cursor(Cursor) as cursor:
            return whereabouts.position(cursor, self._dialect)

    def _exists(self, schema: str, table: str) -> bool:
        return bool(ask(
            self._conn, "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", schema, table
        ))  # fmt: skip

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (pymysql.err.MySQLError, OSError) as error:
            raise error_of(error, self._settings) from error


def _settle(conn: pymysql.Connection[Any]) -> None:
    """Session settings that nothing here depends on the server's defaults for."""
    family = dialect(conn).family
    run(conn, _SESSION.format(more=_MORE[family]))
    if family == "MySQL":
        # A table may be without a key. Who may not say so lacks a right that `lacks` tells of.
        with contextlib.suppress(pymysql.err.OperationalError):
            run(conn, "SET SESSION sql_require_primary_key = 0")


def shadow_ddl(d: TableDefinition, shadow: str, *, keys: bool, checks: bool = True) -> str:
    """What creates the table under another name; without its foreign keys unless `keys`, without names of CHECKs unless
    `checks`."""
    head = f"CREATE TABLE {quoted(d.table)} ("
    if not d.ddl.startswith(head):
        raise AgentError(
            "not-a-table", f"{d.schema}.{d.table} is created by {d.ddl[:40]!r}", "only tables are brought back"
        )
    lines = d.ddl[len(head) :].split("\n")
    if not keys:
        lines = [line for line in lines if not _FOREIGN_KEY.match(line)]
        # The last line before the closing one ends without a comma.
        at = max(i for i, line in enumerate(lines) if line.startswith(")")) - 1
        lines[at] = lines[at].rstrip(",")
    if not checks:
        lines = [_CHECK.sub(r"\1", line) for line in lines]
    return f"CREATE TABLE {quoted(d.schema, shadow)} (" + "\n".join(lines)


def _keys_of(conn: pymysql.Connection[Any], schema: str, table: str) -> set[str]:
    return {str(r[0]) for r in ask(
        conn,
        "SELECT CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = %s AND TABLE_NAME = %s",
        schema, table,
    )}  # fmt: skip


def _privileges_on(conn: pymysql.Connection[Any], schema: str, table: str) -> tuple[str, ...]:
    rows = ask(
        conn,
        "SELECT GRANTEE, GROUP_CONCAT(PRIVILEGE_TYPE ORDER BY PRIVILEGE_TYPE SEPARATOR ', ') FROM"
        " information_schema.TABLE_PRIVILEGES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s GROUP BY GRANTEE ORDER BY GRANTEE",
        schema, table,
    )  # fmt: skip
    return tuple(f"{privileges} to {grantee}" for grantee, privileges in rows)


def _grant(privileges: str, where: str, account: str) -> Problem:
    return Problem(
        "privilege-missing",
        f"the rollback account lacks {privileges} on {where.replace('`', '')}",
        f"GRANT {privileges} ON {where} TO {account}",
    )


def _raw(conn: pymysql.Connection[Any], sql: bytes) -> None:
    with conn.cursor(Cursor) as cursor:
        cursor.execute(sql)  # type: ignore[call-overload]  # bytes go as they are


def dangling_problem(child: ChildKey, keys: Sequence[tuple[Any, ...]]) -> Problem:
    """What is to be said of a child's keys that no row has any more."""
    shown = ", ".join(str(k[0] if len(k) == 1 else k) for k in keys[:5]) + (", …" if len(keys) > 5 else "")
    columns = ", ".join(child.columns)
    return Problem(
        "dangling-children",
        f"rows of {child.text} point at {len(keys)} rows that the table does not have then: {columns} = {shown}",
        f"delete those rows of {child.schema}.{child.table} or let them point elsewhere, then plan again",
    )


class NativeTables:
    """`agents.scratch.engine.Tables` for both families."""

    without = staticmethod(without)
    dangling_problem = staticmethod(dangling_problem)

    look = staticmethod(look)
    table_file = staticmethod(table_file)
    keep = staticmethod(keep)

    def target(self, settings: SourceSettings) -> NativeTableTarget:
        return NativeTableTarget(settings)
