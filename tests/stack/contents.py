"""What is in a database, for comparing two servers: rows of every table, and every definition's text.

Rows are read and compared as bytes. `CHECKSUM TABLE` will not do: with virtual columns it sums up memory that nobody set.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pymysql
from pymysql.cursors import Cursor

from agents.mysql.definitions import quoted


def rows_digest(conn: pymysql.Connection[Any], schema: str, table: str) -> str:
    """Of all columns of all rows, invisible and generated ones too; the order of rows does not count."""
    with conn.cursor(Cursor) as cursor:
        cursor.execute(
            "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
            " ORDER BY ORDINAL_POSITION",
            (schema, table),
        )
        columns = ", ".join(f"HEX({quoted(name)})" for (name,) in cursor.fetchall())
        cursor.execute(f"SELECT {columns} FROM {quoted(schema, table)}")
        digest = hashlib.sha256()
        for row in sorted(map(repr, cursor.fetchall())):
            digest.update(row.encode() + b"\n")
        return digest.hexdigest()


def everything(conn: pymysql.Connection[Any], schema: str) -> dict[str, Any]:
    """Tables, views, routines, triggers and events of `schema` by name."""
    found: dict[str, Any] = {}

    def rows(query: str) -> list[tuple[Any, ...]]:
        with conn.cursor(Cursor) as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    for name, kind in rows(f"SHOW FULL TABLES FROM {quoted(schema)}"):
        if kind == "BASE TABLE":
            found[name] = rows_digest(conn, schema, name)
            text = rows(f"SHOW CREATE TABLE {quoted(schema, name)}")[0][1]
            found[f"{name} definition"] = "\n".join(line.split(" AUTO_INCREMENT=")[0] for line in text.splitlines())
        elif kind == "VIEW":
            found[name] = rows(f"SHOW CREATE VIEW {quoted(schema, name)}")[0][1]
    for what in ("PROCEDURE", "FUNCTION"):
        for row in rows(f"SHOW {what} STATUS WHERE Db = '{schema}'"):
            found[f"{what} {row[1]}"] = rows(f"SHOW CREATE {what} {quoted(schema, row[1])}")[0][2]
    for row in rows(f"SHOW TRIGGERS FROM {quoted(schema)}"):
        found[f"trigger {row[0]}"] = row[1:5]
    events = "SELECT EVENT_NAME, EVENT_DEFINITION, INTERVAL_VALUE FROM information_schema.EVENTS"
    for name, body, value in rows(f"{events} WHERE EVENT_SCHEMA = '{schema}'"):
        found[f"event {name}"] = (body, value)
    return found
