"""One statement on a connection: run it, or ask for its rows."""

from __future__ import annotations

from typing import Any

import pymysql
from pymysql.cursors import Cursor


def run(connection: pymysql.Connection[Any], sql: str | bytes, *args: Any) -> None:
    if isinstance(sql, bytes):
        connection.query(sql)
        return
    with connection.cursor(Cursor) as cursor:
        cursor.execute(sql, args or None)


def ask(connection: pymysql.Connection[Any], sql: str, *args: Any) -> list[tuple[Any, ...]]:
    with connection.cursor(Cursor) as cursor:
        cursor.execute(sql, args or None)  # without values PyMySQL leaves a % in a name alone
        return list(cursor.fetchall())
