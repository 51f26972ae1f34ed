"""Row changes as SQL for people to review, and to run where native events cannot be.

Literals are exact: what the server reads back is the value that was logged, byte for byte; text comparisons are binary.
The statements assume the session that `SQL_PREAMBLE` sets up: UTC, since TIMESTAMP values are written in it; strict, so
that a value that does not fit fails; dates as permissive as the log's.

Tried on MariaDB 10.11. Does not know generated columns: name them, they cannot be written.
"""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from typing import Final

from streams.formats.binlog import jsonb
from streams.formats.binlog import table_map as t
from streams.formats.binlog.charsets import SAME_AS_SERVER, UTF8, WIDE, encode_text
from streams.formats.binlog.rows import Kind
from streams.formats.binlog.step import Change
from streams.formats.binlog.table_map import Column
from streams.formats.binlog.values import Absent, EnumValue, JsonBinary, SetValue, Undecoded, Value
from streams.formats.errors import FormatError

SQL_PREAMBLE: Final = (
    "SET NAMES utf8mb4;\n"
    "SET time_zone = '+00:00';\n"
    "SET sql_mode = 'STRICT_ALL_TABLES,ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO';\n"
)

_ESCAPES: Final = str.maketrans(
    {
        "'": "''",
        "\\": "\\\\",
        "\0": "\\0",
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
        "\x1a": "\\Z",
    }
)
_CHARACTER: Final = frozenset(
    {
        t.VARCHAR,
        t.VAR_STRING,
        t.STRING,
        t.BLOB,
        t.TINY_BLOB,
        t.MEDIUM_BLOB,
        t.LONG_BLOB,
        t.VARCHAR_COMPRESSED,
        t.BLOB_COMPRESSED,
    }
)
_OPPOSITE: Final[dict[Kind, Kind]] = {"insert": "delete", "update": "update", "delete": "insert"}


def quote_name(name: str) -> str:
    """An identifier in backquotes."""
    return "`" + name.replace("`", "``") + "`"


def to_sql(change: Change, inverse: bool, generated: Collection[str] = ()) -> str:
    """One statement, without its semicolon, that makes `change` again or (inverse) undoes it.

    UPDATE and DELETE find the row by all columns of its image and touch one row at most: none, if it has changed since.
    `generated` names the columns that the server computes. Raises FormatError where the log lacks names or columns.
    """
    before, after, kind = change.before, change.after, change.kind
    if inverse:
        before, after, kind = after, before, _OPPOSITE[kind]
    table = f"{quote_name(change.schema)}.{quote_name(change.table)}"
    if kind == "insert":
        assert after is not None
        written = [(c, v) for c, v in _named(change, after) if c.name not in generated]
        columns = ", ".join(quote_name(column.label) for column, _ in written)
        return f"INSERT INTO {table} ({columns}) VALUES ({', '.join(literal(v, c) for c, v in written)})"
    assert before is not None
    where = " AND ".join(
        _equals(column, value, column.index in (change.primary_key or ())) for column, value in _named(change, before)
    )
    if kind == "delete":
        return f"DELETE FROM {table} WHERE {where} LIMIT 1"
    assert after is not None
    changed = [
        f"{quote_name(column.label)} = {literal(new, column)}"
        for (column, new), old in zip(_named(change, after), before, strict=True)
        if not _same(new, old) and column.name not in generated
    ]
    if not changed:
        first = quote_name(change.columns[0].label)
        changed = [f"{first} = {first}"]
    return f"UPDATE {table} SET {', '.join(changed)} WHERE {where} LIMIT 1"


def _same(one: Value, other: Value) -> bool:
    # Text that differs in trailing zeroes of a number (1.0, 1.00) or in the sign of zero is a difference.
    return type(one) is type(other) and repr(one) == repr(other)


def _named(change: Change, values: tuple[Value, ...]) -> list[tuple[Column, Value]]:
    pairs = list(zip(change.columns, values, strict=True))
    if any(column.name is None for column, _ in pairs):
        raise FormatError(
            "unknown-table",
            f"the log does not name the columns of {change.schema}.{change.table}",
            "set binlog_row_metadata=FULL on the source, or fill the table map in from its schema",
        )
    if any(isinstance(value, Absent) for _, value in pairs):
        raise FormatError(
            "partial-image",
            f"a row image of {change.schema}.{change.table} does not hold all columns",
            "set binlog_row_image=FULL on the source; steps written before cannot be inverted",
        )
    return pairs


def literal(value: Value, column: Column) -> str:
    """`value` as an SQL literal to be assigned to `column`."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return _hex(value)
    if isinstance(value, str):
        if column.type not in _CHARACTER:
            return f"'{value}'"  # a date or time
        if value.isascii() or column.charset in SAME_AS_SERVER:
            return _text(value)
        raw = encode_text(value, column.charset or "")
        return f"_{column.charset} {_hex(raw)}" if raw is not None else _text(value)
    if isinstance(value, EnumValue):
        # An empty name is ambiguous: a member may be empty, and so is the server's invalid value.
        return _text(value.name) if value.name else str(value.index)
    if isinstance(value, SetValue):
        return str(value.bits) if value.names is None or "" in value.names else _text(",".join(value.names))
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float):
        # With an exponent it is a double; without, the server would read a decimal.
        text = repr(value)
        return text if "e" in text else text + "e0"
    if isinstance(value, int):
        return f"b'{value:b}'" if column.type == t.BIT else str(value)
    if isinstance(value, Undecoded):
        return f"_{value.charset} {_hex(value.raw)}" if value.charset is not None else _hex(value.raw)
    if isinstance(value, JsonBinary):
        document = value.document()
        if not jsonb.pure(document):
            raise FormatError(
                "unknown-type",
                f"column {column.label} holds JSON with decimals, times or bytes in it, which no JSON text can say",
                "apply the change natively",
            )
        return f"CAST({_text(jsonb.text(document))} AS JSON)"
    raise FormatError("partial-image", f"column {column.label} is not in the row image")


def _equals(column: Column, value: Value, key: bool) -> str:
    """A condition that is true for exactly this value. Key columns are also compared as they are, for the index."""
    name = quote_name(column.label)
    if isinstance(value, EnumValue):
        return f"{name} + 0 <=> {value.index}"
    if isinstance(value, SetValue):
        return f"CAST({name} AS UNSIGNED) <=> {value.bits}"  # + 0 makes the 64th member's bit a sign
    if value is None or column.type not in _CHARACTER or isinstance(value, bytes):
        return f"{name} <=> {literal(value, column)}"
    exact = f"BINARY {name} <=> {_bytes_literal(value, column)}"
    return f"{name} = {literal(value, column)} AND {exact}" if key else exact


def _bytes_literal(value: Value, column: Column) -> str:
    """A literal whose own bytes are those of the column."""
    if isinstance(value, str) and (column.charset in UTF8 or (value.isascii() and column.charset not in WIDE)):
        return _text(value)
    if isinstance(value, str):
        raw = encode_text(value, column.charset or "")
        if raw is not None:
            return _hex(raw)
    return _hex(value.raw) if isinstance(value, Undecoded) else literal(value, column)


def _text(value: str) -> str:
    quoted = "'" + value.translate(_ESCAPES) + "'"
    return quoted if value.isascii() else "_utf8mb4" + quoted


def _hex(raw: bytes) -> str:
    return f"X'{raw.hex().upper()}'"
