"""Row images as SQL literals that store the very bytes that were logged, for servers that take no native events.

Text is never decoded: a hexadecimal literal is a binary string, which the server copies into a character column as it stands
(and warns, in a session that is not strict, when the bytes are none of the column's character set: `bound` counts warnings).
Temporal values assume the session's time_zone to be UTC and ALLOW_INVALID_DATES; ENUM and SET go by number, so names and
their character sets do not matter; floats are the shortest text that reads back as the same number.

Pure. Tried on MariaDB 10.11 with every type that tests/stand_ins/walk_load.py and the type zoo have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from agents.rollback.schema import ColumnDefinition, Definition
from streams.formats.binlog import table_map as t
from streams.formats.binlog.rows import decode_row
from streams.formats.binlog.table_map import Column, TableMap
from streams.formats.binlog.values import EnumValue, SetValue, Undecoded, Value
from streams.formats.errors import FormatError

_NUMBERS: Final = frozenset({t.TINY, t.SHORT, t.INT24, t.LONG, t.LONGLONG})


@dataclass(frozen=True, slots=True)
class Literals:
    """Row images of one table as literals. `read`: the values of the wanted columns of an image, text undecoded."""

    read: Callable[[bytes], Sequence[Value]]

    def row(self, image: bytes) -> bytes:
        """`(1,X'61',NULL)`."""
        return b"(" + b",".join([literal(v) for v in self.read(image)]) + b")"

    def invalid_members(self, image: bytes) -> int:
        """How many ENUM columns hold the server's invalid value, which it stores only with a warning."""
        return sum(1 for v in self.read(image) if isinstance(v, EnumValue) and v.index == 0)


def literals_of(table_map: TableMap, definition: Definition, wanted: Sequence[str] | None = None) -> Literals:
    """Literals of the columns `wanted` (None: all of the definition's, in its order).

    Raises `FormatError` (`unknown-type`) for a column that cannot be written as a literal (MySQL's binary JSON)."""
    columns = definition.columns
    # A unique key over a long column has a hidden last one, which nobody can write.
    told = tuple(
        _told(column, columns[i]) if i < len(columns) else column for i, column in enumerate(table_map.columns)
    )
    raw = replace(table_map, columns=told, compiled={})
    for column in told[: len(columns)]:
        if column.type == t.JSON:
            raise FormatError(
                "unknown-type",
                f"column {definition.text}.{column.label} holds binary JSON, which bound statements do not write",
                "let the rollback account replay native events",
            )
    if wanted is None or tuple(wanted) == tuple(c.name for c in columns):
        count = len(columns)
        return Literals(lambda image: decode_row(image, raw)[:count])
    places = definition.indexes(wanted)

    def some(image: bytes) -> list[Value]:
        values = decode_row(image, raw)
        return [values[place] for place in places]

    return Literals(some)


def _told(column: Column, defined: ColumnDefinition) -> Column:
    """The column as its definition says it is, with text left as bytes."""
    unsigned = "unsigned" in defined.type.lower() if column.type in _NUMBERS else column.unsigned
    return replace(column, unsigned=unsigned, charset="binary" if defined.charset is None else None)


def literal(value: Value) -> bytes:
    """One value as an SQL literal. Raises `FormatError` for what an image must not leave out."""
    if value is None:
        return b"NULL"
    if isinstance(value, Undecoded):
        value = value.raw
    if isinstance(value, bytes):
        return b"X'" + value.hex().encode() + b"'"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, str):
        return b"'" + value.encode() + b"'"  # a date or time
    if isinstance(value, EnumValue):
        return b"%d" % value.index
    if isinstance(value, SetValue):
        return b"%d" % value.bits
    if isinstance(value, Decimal):
        return f"{value:f}".encode()
    if isinstance(value, float):
        # With an exponent it is a double; without, the server would read a decimal.
        text = repr(value)
        return (text if "e" in text else text + "e0").encode()
    raise FormatError("partial-image", "a row image does not hold all columns", "set binlog_row_image=FULL")


def equals(name: str, value: Value) -> bytes:
    """A condition that is true for exactly this stored value of column `name` (quoted)."""
    column = name.encode()
    if value is None:
        return column + b" IS NULL"
    if isinstance(value, (bytes, Undecoded)):
        return b"BINARY " + column + b" = " + literal(value)
    if isinstance(value, EnumValue):
        return column + b" + 0 = " + literal(value)
    if isinstance(value, SetValue):
        return b"CAST(" + column + b" AS UNSIGNED) = " + literal(value)  # + 0 makes the 64th member's bit a sign
    return column + b" = " + literal(value)
