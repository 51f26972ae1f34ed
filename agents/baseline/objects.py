"""What creates every object of a server: databases, tables, sequences, routines, views, triggers, events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pymysql
from pymysql.constants import ER
from pymysql.cursors import Cursor

from agents.baseline.manifest import CreateObject
from agents.errors import AgentError
from agents.mysql.definitions import SYSTEM_SCHEMAS, quoted
from agents.mysql.dialects import dialect
from streams.events import TableDefinition

# Errors that say that a table, column or database is not what it was: among them, that a snapshot is older than it.
MOVED = frozenset({1412, ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR, ER.BAD_DB_ERROR})


class SchemaMovedError(Exception):
    """A definition changed while it mattered that none does; begin anew."""


def rows_of(conn: pymysql.Connection[Any], query: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    with conn.cursor(Cursor) as cursor:
        cursor.execute(query, args or None)  # without values PyMySQL leaves a % in a name alone
        return list(cursor.fetchall())


def read_objects(conn: pymysql.Connection[Any], definitions: list[TableDefinition]) -> Iterator[CreateObject]:
    """Everything to create, in this order: databases, sequences, tables, routines, views, triggers, events."""
    places = ", ".join(["%s"] * len(SYSTEM_SCHEMAS))

    def listed(columns: str, view: str, schema: str, also: str = "") -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM information_schema.{view} WHERE {schema} NOT IN ({places}){also} ORDER BY 1, 2"
        return rows_of(conn, query, SYSTEM_SCHEMAS)

    for name, charset, collation in listed(
        "SCHEMA_NAME, DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME", "SCHEMATA", "SCHEMA_NAME"
    ):
        sql = f"CREATE DATABASE {quoted(name)} CHARACTER SET {charset} COLLATE {collation}"
        yield CreateObject("database", name, name, sql)
    for kind, wanted in (("sequence", True), ("table", False)):
        for d in definitions:
            if d.ddl.upper().startswith("CREATE SEQUENCE") == wanted:
                yield CreateObject(kind, d.schema, d.table, d.ddl)
    for schema, name, kind in listed("ROUTINE_SCHEMA, ROUTINE_NAME, ROUTINE_TYPE", "ROUTINES", "ROUTINE_SCHEMA"):
        row = _show_create(conn, kind, schema, name, 2)
        yield CreateObject(kind.lower(), schema, name, row[2], row[1], row[3], row[4], row[5])
    for schema, name in listed("TABLE_SCHEMA, TABLE_NAME", "VIEWS", "TABLE_SCHEMA"):
        row = _show_create(conn, "VIEW", schema, name, 1)
        yield CreateObject("view", schema, name, row[1], "", row[2], row[3])
    triggers = listed("TRIGGER_SCHEMA, EVENT_OBJECT_TABLE, ACTION_ORDER, TRIGGER_NAME", "TRIGGERS", "TRIGGER_SCHEMA")
    for schema, table, _, name in sorted(triggers):
        row = _show_create(conn, "TRIGGER", schema, name, 2)
        yield CreateObject("trigger", schema, name, row[2], row[1], row[3], row[4], row[5], table=table)
    for schema, name in listed("EVENT_SCHEMA, EVENT_NAME", "EVENTS", "EVENT_SCHEMA"):
        row = _show_create(conn, "EVENT", schema, name, 3)
        yield CreateObject("event", schema, name, row[3], row[1], row[4], row[5], row[6], row[2])


def _show_create(conn: pymysql.Connection[Any], kind: str, schema: str, name: str, text: int) -> tuple[Any, ...]:
    try:
        rows = rows_of(conn, f"SHOW CREATE {kind} {quoted(schema, name)}")
    except pymysql.err.MySQLError as error:
        if error.args and error.args[0] in (ER.SP_DOES_NOT_EXIST, ER.TRG_DOES_NOT_EXIST, 1539, *MOVED):
            raise SchemaMovedError(f"{kind.lower()} {schema}.{name} is gone") from error
        raise
    if not rows or rows[0][text] is None:
        raise AgentError(
            "privilege-missing",
            f"the account may not see the text of {kind.lower()} {quoted(schema, name)}",
            dialect(conn).show_create_routines,
        )
    return rows[0]
