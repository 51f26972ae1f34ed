"""Guard tables on a server, to be loaded by `BINLOG`: like the table they stand for, a large one lighter. Their SQL: `guard`."""

from __future__ import annotations

from typing import Any, Final

import pymysql

from agents.mysql.definitions import quoted
from agents.mysql.guard import OWN_SCHEMA
from agents.mysql.statements import ask, run
from agents.rollback.schema import Definition

# With fewer rows than this, making a guard table lighter costs more than it saves.
PLAIN_ROWS: Final = 2_000


def names(connection: pymysql.Connection[Any]) -> list[str]:
    """Guard tables that there are, of whatever rollback."""
    return [row[0] for row in ask(
        connection,
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'holdfast' AND TABLE_NAME LIKE 'guard\\_%%'",
    )]  # fmt: skip


def make(work: pymysql.Connection[Any], definition: Definition, name: str, rows: int, engine: str) -> None:
    """A table of the same layout. A large one is made lighter, in two attempts: in `engine` (Aria without transactions loads
    in a third of the time; it need not survive a crash), and without indexes that nobody asks."""
    run(work, f"CREATE TABLE {quoted(OWN_SCHEMA, name)} LIKE {quoted(*definition.name)}")
    if rows < PLAIN_ROWS:
        return
    spare = ", ".join(f"DROP INDEX {quoted(index)}" for index in _spare_indexes(work, definition, name))
    for change in (", ".join(filter(None, [spare, engine and f"ENGINE = {engine}"])), spare):
        if not change:
            return
        try:
            run(work, f"ALTER TABLE {quoted(OWN_SCHEMA, name)} {change}")
        except pymysql.err.MySQLError as error:
            if isinstance(error, pymysql.err.OperationalError) and error.args[0] >= 2000:
                raise
            continue  # a key or column that Aria does not do: the table is as it was
        return


def _spare_indexes(work: pymysql.Connection[Any], definition: Definition, name: str) -> list[str]:
    counted = {row[0] for row in ask(
        work,
        "SELECT COLUMN_NAME FROM information_schema.COLUMNS"
        " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND EXTRA LIKE '%%auto_increment%%'",
        OWN_SCHEMA, name,
    )}  # fmt: skip
    indexes: dict[str, list[str]] = {}
    for index, column in ask(
        work,
        "SELECT INDEX_NAME, COLUMN_NAME FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
        " ORDER BY INDEX_NAME, SEQ_IN_INDEX",
        OWN_SCHEMA, name,
    ):  # fmt: skip
        indexes.setdefault(index, []).append(column)
    key = definition.key[0] if definition.key else ""
    # An AUTO_INCREMENT column needs an index that begins with it.
    return [i for i, columns in indexes.items() if i not in (key, "PRIMARY") and columns[0] not in counted]
