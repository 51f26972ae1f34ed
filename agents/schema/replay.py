"""Replaying a statement of the log on the scratch server, in the session it came from, and filling that server.

Only statements that can change a table's definition are replayed: what a view or a routine says is in no definition, and
functions from libraries are none of a scratch server's business. Knows nothing of topics.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pymysql
from pymysql.constants import CR, ER
from pymysql.cursors import Cursor

from agents.mysql.definitions import TableName, quoted, read_definitions
from agents.mysql.dialects import dialect
from streams.events import TableDefinition
from streams.formats.binlog import events as ev
from streams.formats.binlog.charsets import charset_of
from streams.formats.binlog.events import Buffer, FormatDescription, Query, iter_events, parse_query
from streams.formats.binlog.statements import classify, tokens

_OF_TABLES = frozenset({"TABLE", "TABLES", "INDEX", "TRIGGER", "DATABASE", "SCHEMA", "SEQUENCE"})
_OF_OTHERS = frozenset({
    "VIEW", "PROCEDURE", "FUNCTION", "EVENT", "PACKAGE", "USER", "ROLE", "SERVER", "PLUGIN", "SONAME", "CATALOG",
})  # fmt: skip
_NO_FOREIGN_KEY_CHECKS = 0x4000000
_RELAXED_UNIQUE_CHECKS = 0x8000000
_IF_EXISTS = 0x10000000
# Status variables of a query event that MySQL has (Q_EXPLICIT_DEFAULTS_FOR_TIMESTAMP, Q_DEFAULT_COLLATION_FOR_UTF8MB4).
_EXPLICIT_DEFAULTS, _DEFAULT_COLLATION = 16, 18
_SAFE_MODE = "NO_DIR_IN_CREATE,NO_ENGINE_SUBSTITUTION"
_EXISTS = re.compile(r"create database '(.*)'; database exists", re.DOTALL)
_ZONE = re.compile(r"[A-Za-z0-9_+:/-]{1,64}")


def definitions_in(fde: FormatDescription, payload: Buffer) -> list[Query]:
    """The statements of a step, or a piece of one, that define something."""
    found = []
    for event in iter_events(payload, fde.has_checksum):
        if event.type in (ev.QUERY, ev.QUERY_COMPRESSED):
            query = parse_query(event.body, event.type)
            if classify(query.sql) == "ddl":
                found.append(query)
    return found


def concerns_tables(sql: bytes) -> bool:
    """Whether a definition of a table can be another one after `sql`. What is not recognised may."""
    words = []
    for word, _ in zip(tokens(sql), range(40), strict=False):
        words.append(word)
    if words[:1] in (["TRUNCATE"], ["REPAIR"], ["INSTALL"], ["UNINSTALL"], ["COMMENT"]):
        return False
    if words[:1] == ["RENAME"]:
        return "USER" not in words[1:2]
    for word in words[1:]:
        if word in _OF_TABLES:
            return True
        if word in _OF_OTHERS:
            return False
    return True


def replay(conn: pymysql.Connection[Any], query: Query) -> None:
    """Carry out `query` as its session did. Raises PyMySQL's errors, but for one that it met on the source as well."""
    with conn.cursor(Cursor) as cursor:
        for statement in (*_session(query), *_of_family(query, dialect(conn).family)):
            cursor.execute(statement)
        if query.database:
            try:
                cursor.execute(f"USE {quoted(query.database)}")
            except pymysql.err.MySQLError as error:
                if error.args[0] != ER.BAD_DB_ERROR:  # it is the one to be created, or was dropped
                    raise
        try:
            # Of CREATE … SELECT MySQL logs the table in this form; its rows come in events of their own.
            _execute(cursor, query.sql.removesuffix(b" START TRANSACTION"))
        except pymysql.err.MySQLError as error:
            if not query.error_code or error.args[0] != query.error_code:
                raise


def _execute(cursor: Cursor, sql: bytes) -> None:
    """`sql` is in the client's own character set, so it goes as bytes."""
    try:
        cursor.execute(sql)  # type: ignore[call-overload]
    except pymysql.err.MySQLError as error:
        # A database that `fill` knew of before its time.
        found = _EXISTS.search(str(error.args[-1])) if error.args[0] == ER.DB_CREATE_EXISTS else None
        if found is None:
            raise
        cursor.execute("SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", (found[1],))
        if cursor.fetchone() != (0,):
            raise
        cursor.execute(f"DROP DATABASE {quoted(found[1])}")
        cursor.execute(sql)  # type: ignore[call-overload]


def _session(query: Query) -> list[str]:
    flags = query.flags2 or 0
    charset = query.charset or (45, 45, 45)
    zone = query.time_zone if query.time_zone and _ZONE.fullmatch(query.time_zone) else "+00:00"
    # Zones by name are in tables that the scratch server has not.
    zone = zone if zone[:1] in "+-" or zone == "SYSTEM" else "+00:00"
    return [
        f"SET SESSION character_set_client = {charset_of(charset[0]) or 'utf8mb4'}, collation_connection = {charset[1]},"
        f" collation_server = {charset[2]}",
        f"SET SESSION sql_mode = {query.sql_mode or 0}",
        f"SET SESSION sql_mode = CONCAT_WS(',', NULLIF(@@SESSION.sql_mode, ''), '{_SAFE_MODE}')",
        f"SET SESSION foreign_key_checks = {int(not flags & _NO_FOREIGN_KEY_CHECKS)},"
        f" unique_checks = {int(not flags & _RELAXED_UNIQUE_CHECKS)},"
        f" time_zone = '{zone}'",
    ]


def _of_family(query: Query, family: str) -> list[str]:
    """What only one of them has."""
    if family == "MariaDB":
        exists = int(bool((query.flags2 or 0) & _IF_EXISTS))
        return [f"SET SESSION sql_if_exists = {exists}, system_versioning_alter_history = KEEP"]
    names = {_EXPLICIT_DEFAULTS: "explicit_defaults_for_timestamp", _DEFAULT_COLLATION: "default_collation_for_utf8mb4"}
    values = {name: query.status.get(code) for code, name in names.items()}
    return [f"SET SESSION {name} = {int.from_bytes(v, 'little')}" for name, v in values.items() if v is not None]


def fill(
    conn: pymysql.Connection[Any], databases: Mapping[str, str], tables: Mapping[TableName, TableDefinition]
) -> frozenset[TableName]:
    """Create databases (name → statement) and tables on an empty server; the tables that did not come out the same.

    A database that is there too early does no harm: `replay` makes room when its time comes.
    """
    with conn.cursor(Cursor) as cursor:
        cursor.execute(f"SET SESSION foreign_key_checks = 0, sql_mode = '{_SAFE_MODE}', time_zone = '+00:00'")
        wanted = dict.fromkeys([*databases, *(schema for schema, _ in tables)])
        for name in wanted:
            cursor.execute(databases.get(name) or f"CREATE DATABASE {quoted(name)}")
        for table in tables.values():
            _try(cursor, [f"USE {quoted(table.schema)}", table.ddl])
        for table in tables.values():
            _try(cursor, _triggers(table))
    made = {(d.schema, d.table): d.fingerprint for d in read_definitions(conn)}
    return frozenset(name for name, table in tables.items() if made.get(name) != table.fingerprint)


def _try(cursor: Cursor, statements: Iterable[str]) -> None:
    """What fails is found when the result is compared."""
    try:
        for statement in statements:
            cursor.execute(statement)
    except pymysql.err.MySQLError as error:
        if error.args and error.args[0] in (CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST):
            raise


def _triggers(table: TableDefinition) -> Iterable[str]:
    for name, trigger in json.loads(table.definition)["triggers"].items():
        yield (
            f"CREATE TRIGGER {quoted(table.schema, name)} {trigger['timing']} {trigger['event']}"
            f" ON {quoted(table.schema, table.table)} FOR EACH ROW {trigger['statement']}"
        )
