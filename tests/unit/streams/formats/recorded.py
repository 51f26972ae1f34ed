"""Logs to test decoders with: the golden ones, and what a real server writes while a test runs.

The server's own text of a value is the oracle: `expression` is the SQL that gives it, `shown` is ours for the same value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymysql.connections import Connection

from deploy.demo.server import DatabaseServer
from streams.formats.binlog import table_map as t
from streams.formats.binlog.events import FormatDescription, parse_format_description, parse_header
from streams.formats.binlog.sql import quote_name
from streams.formats.binlog.step import split_steps
from streams.formats.binlog.table_map import Column
from streams.formats.binlog.values import EnumValue, SetValue, Value, display

GOLDEN = Path(__file__).parents[3] / "golden" / "binlog"
MAGIC = b"\xfebin"


@dataclass(frozen=True)
class Log:
    """A stretch of log: its preamble and the events after it."""

    fde: FormatDescription
    events: bytes = field(repr=False)

    @property
    def steps(self) -> list[bytes]:
        return [bytes(step) for step in split_steps(self.fde, self.events)]


def golden_names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.binlog"))


def golden(name: str) -> Log:
    """A recorded file, from its first event after the format description."""
    return whole_file((GOLDEN / f"{name}.binlog").read_bytes())


def golden_rows(name: str) -> dict[str, Any]:
    """What the server said of the same rows when the file was recorded."""
    return json.loads((GOLDEN / f"{name}.json").read_text())  # type: ignore[no-any-return]


def whole_file(raw: bytes) -> Log:
    assert raw[:4] == MAGIC
    length = parse_header(raw, 4).length
    return Log(parse_format_description(raw[4 : 4 + length]), raw[4 + length :])


class Recording:
    """What a server writes into its log between two moments. `log` is there once the `with` block has ended."""

    log: Log


@contextmanager
def recording(server: DatabaseServer) -> Iterator[Recording]:
    """The log of what happens in the block; the log must not be rotated meanwhile."""
    result = Recording()
    file, start = server.execute("SHOW MASTER STATUS")[0][:2]
    yield result
    later, end = server.execute("SHOW MASTER STATUS")[0][:2]
    assert later == file
    raw = (server.datadir / str(file)).read_bytes()
    result.log = Log(whole_file(raw).fde, raw[start:end])


@contextmanager
def session(server: DatabaseServer, database: str) -> Iterator[Connection[Any]]:
    """A session in UTC that takes any date, in `database`, which is made if need be."""
    server.execute(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    with closing(server.connect(database=database)) as connection:
        run(connection, "SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,ALLOW_INVALID_DATES'")
        yield connection


def run(connection: Connection[Any], statement: str | bytes, values: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


_BINARY = (
    "binary",
    "varbinary",
    "blob",
    "tinyblob",
    "mediumblob",
    "longblob",
    "geometry",
    "point",
    "linestring",
    "geometrycollection",
    "geomcollection",
    "vector",
)


def expression(name: str, declared: str) -> str:
    """SQL for a column's value as text that loses nothing."""
    kind = declared.split("(")[0].split()[0]
    quoted = quote_name(name)
    if kind in _BINARY:
        return f"CONCAT('0x', LOWER(HEX({quoted})))"
    if kind == "bit":
        return f"CAST(CAST({quoted} AS UNSIGNED) AS CHAR)"
    if kind in ("float", "double"):
        return f"{quoted} * 1e0"
    if "zerofill" in declared:
        return f"CAST({quoted} + 0 AS CHAR)"
    if kind in ("enum", "set"):
        return f"CONCAT(CAST({quoted} AS UNSIGNED), ':', CONVERT({quoted} USING utf8mb4))"
    return f"CAST({quoted} AS CHAR CHARACTER SET utf8mb4)"


def shown(value: Value, column: Column) -> Any:
    """Our value in the form that `expression` gives."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, EnumValue):
        return f"{value.index}:{value.name}"
    if isinstance(value, SetValue):
        return f"{value.bits}:{','.join(value.names or ())}"
    if column.type == t.BIT:
        return str(value)
    return display(value, column)


def selected(connection: Connection[Any], table: str) -> list[tuple[Any, ...]]:
    """All rows of a table, invisible columns too, each value in the form of `expression`, sorted."""
    columns = run(
        connection,
        "SELECT column_name, column_type FROM information_schema.columns WHERE table_schema = DATABASE() AND "
        "table_name = %s ORDER BY ordinal_position",
        (table,),
    )
    listed = ", ".join(expression(name, declared) for name, declared in columns)
    return sorted(run(connection, f"SELECT {listed} FROM `{table}`"), key=repr)
