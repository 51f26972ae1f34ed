"""Table maps: the event that says which table the rows after it belong to, and how its columns are laid out.

Knows the event and the optional metadata (`binlog_row_metadata=MINIMAL|FULL`), whose absence it bears: names, keys,
signedness and character sets are then None until `with_declared` supplies them from elsewhere. Does not know rows.

Sources: MariaDB Knowledge Base "TABLE_MAP_EVENT"; MySQL source documentation, `Table_map_event`.
Observed on MariaDB 10.11: its character-set lists also count geometry and compressed columns, MySQL's do not, but on MySQL 9
those of VECTOR; UUID and INET columns look like BINARY(n).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streams.formats.binlog.charsets import BYTES_PER_CHARACTER, charset_of, decode_text
from streams.formats.binlog.events import Buffer
from streams.formats.errors import FormatError, only_format_errors

# Column types as the log writes them.
DECIMAL: Final = 0
TINY: Final = 1
SHORT: Final = 2
LONG: Final = 3
FLOAT: Final = 4
DOUBLE: Final = 5
NULL: Final = 6
TIMESTAMP: Final = 7
LONGLONG: Final = 8
INT24: Final = 9
DATE: Final = 10
TIME: Final = 11
DATETIME: Final = 12
YEAR: Final = 13
NEWDATE: Final = 14
VARCHAR: Final = 15
BIT: Final = 16
TIMESTAMP2: Final = 17
DATETIME2: Final = 18
TIME2: Final = 19
BLOB_COMPRESSED: Final = 140
VARCHAR_COMPRESSED: Final = 141
VECTOR: Final = 242
JSON: Final = 245
NEWDECIMAL: Final = 246
ENUM: Final = 247
SET: Final = 248
TINY_BLOB: Final = 249
MEDIUM_BLOB: Final = 250
LONG_BLOB: Final = 251
BLOB: Final = 252
VAR_STRING: Final = 253
STRING: Final = 254
GEOMETRY: Final = 255

_BLOBS: Final = frozenset({TINY_BLOB, MEDIUM_BLOB, LONG_BLOB, BLOB})
_METADATA_SIZE: Final[dict[int, int]] = {
    FLOAT: 1,
    DOUBLE: 1,
    VARCHAR: 2,
    VARCHAR_COMPRESSED: 2,
    BIT: 2,
    NEWDECIMAL: 2,
    ENUM: 2,
    SET: 2,
    VAR_STRING: 2,
    STRING: 2,
    BLOB: 1,
    TINY_BLOB: 1,
    MEDIUM_BLOB: 1,
    LONG_BLOB: 1,
    BLOB_COMPRESSED: 1,
    GEOMETRY: 1,
    JSON: 1,
    VECTOR: 1,
    TIMESTAMP2: 1,
    DATETIME2: 1,
    TIME2: 1,
    DECIMAL: 0,
    TINY: 0,
    SHORT: 0,
    LONG: 0,
    NULL: 0,
    TIMESTAMP: 0,
    LONGLONG: 0,
    INT24: 0,
    DATE: 0,
    TIME: 0,
    DATETIME: 0,
    YEAR: 0,
    NEWDATE: 0,
}
_NUMERIC: Final = frozenset({TINY, SHORT, INT24, LONG, LONGLONG, FLOAT, DOUBLE, DECIMAL, NEWDECIMAL, YEAR})
_INTEGER_BYTES: Final = {TINY: 1, SHORT: 2, INT24: 3, LONG: 4, LONGLONG: 8}
_CHARACTER: Final = _BLOBS | {VARCHAR, VAR_STRING, STRING, VECTOR}
_CHARACTER_MARIADB: Final = _CHARACTER | {VARCHAR_COMPRESSED, BLOB_COMPRESSED, GEOMETRY}

# Codes of the optional metadata.
_SIGNEDNESS, _DEFAULT_CHARSET, _COLUMN_CHARSET, _COLUMN_NAME, _SET_VALUES, _ENUM_VALUES = 1, 2, 3, 4, 5, 6
_GEOMETRY_TYPE, _PRIMARY_KEY, _PRIMARY_KEY_PREFIX, _ENUM_SET_DEFAULT, _ENUM_SET_CHARSET = 7, 8, 9, 10, 11
_VISIBILITY, _VECTOR_DIMENSIONS = 12, 13

_GEOMETRY_NAMES: Final = (
    "geometry",
    "point",
    "linestring",
    "polygon",
    "multipoint",
    "multilinestring",
    "multipolygon",
    "geometrycollection",
)
SEQUENCE_COLUMNS: Final = (
    "next_not_cached_value",
    "minimum_value",
    "maximum_value",
    "start_value",
    "increment",
    "cache_size",
    "cycle_option",
    "cycle_count",
)
_MAX_COLUMNS: Final = 4096


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table map.

    `type` is the code of the stored type (ENUM and SET are told from STRING), `meta` its two metadata bytes as
    (first, second); `values` knows their meaning by type. None in `name`, `unsigned`, `charset`, `collation`,
    `members`, `geometry`, `visible` means: the log did not say. `declared` is the type as declared (`uuid`, `inet6`),
    where a caller supplied it.
    """

    index: int
    type: int
    meta: tuple[int, int]
    nullable: bool
    name: str | None = None
    unsigned: bool | None = None
    collation: int | None = None
    charset: str | None = None
    members: tuple[str, ...] | None = None
    geometry: int | None = None
    visible: bool | None = None
    declared: str | None = None

    @property
    def label(self) -> str:
        """The name, or `@3` for the third column of a log without names."""
        return self.name if self.name is not None else f"@{self.index + 1}"

    @property
    def max_bytes(self) -> int:
        """For character columns and BIT: the longest value in bytes."""
        if self.type in (STRING, VAR_STRING):
            return self.meta[1] | ((self.meta[0] & 0x30) ^ 0x30) << 4
        if self.type in (VARCHAR, VARCHAR_COMPRESSED):
            return self.meta[0] | self.meta[1] << 8
        if self.type == BIT:
            return self.meta[1] + (1 if self.meta[0] else 0)
        return 0

    @property
    def type_name(self) -> str:
        """The type as SQL writes it, as far as the log tells; `declared` where it is known."""
        return self.declared if self.declared is not None else _type_name(self)


@dataclass(frozen=True, slots=True, eq=False)
class TableMap:
    """What a table map says, without the table id: ids change with every server start, the content does not.

    `content` is the body after the table id and flags; two maps of equal content are the same layout.
    `primary_key` are column indexes in key order, `()` for a table that has none, None where the log does not say;
    `primary_key_prefixes` their prefix lengths in characters (0: whole column).
    """

    schema: str
    table: str
    columns: tuple[Column, ...]
    primary_key: tuple[int, ...] | None
    primary_key_prefixes: tuple[int, ...] | None
    content: bytes = field(repr=False)
    mariadb: bool = True
    compiled: dict[bytes, Any] = field(default_factory=dict, repr=False)
    """Row layouts already worked out, by column bitmap: a cache of `rows`."""

    @property
    def key(self) -> tuple[str, str]:
        return (self.schema, self.table)

    @property
    def named(self) -> bool:
        """Whether the log gave column names (FULL metadata)."""
        return bool(self.columns) and self.columns[0].name is not None

    @property
    def is_sequence(self) -> bool:
        """A MariaDB sequence: its one row is written, never deleted, and cannot be rolled back."""
        return tuple(column.name for column in self.columns) == SEQUENCE_COLUMNS


def table_id(body: Buffer) -> int:
    """The number by which the rows events after a table map refer to it (6 bytes)."""
    if len(body) < 8:
        raise FormatError("truncated", "a table map is cut off")
    return int.from_bytes(body[:6], "little")


# Maps recur in every step: parsed ones are kept, by content. Emptied when full, since what recurs comes back.
_MARIADB_MAPS: Final[dict[bytes, TableMap]] = {}
_MYSQL_MAPS: Final[dict[bytes, TableMap]] = {}
_MOST_MAPS: Final = 4096
_MOST_MAP_BYTES: Final = 64 << 20


def parse_table_map(body: Buffer, mariadb: bool = True) -> TableMap:
    """The body of a TABLE_MAP event (19), without header and checksum. `mariadb` is `FormatDescription.mariadb`."""
    return table_map_of(bytes(body[8:]), mariadb)


def table_map_of(content: bytes, mariadb: bool = True) -> TableMap:
    """As `parse_table_map`, of a body without table id and flags (its first 8 bytes). Equal content, same object."""
    known = known_maps(mariadb).get(content)
    return known if known is not None else _remember(content, mariadb)


def known_maps(mariadb: bool) -> dict[bytes, TableMap]:
    """The maps parsed so far by content, for loops that cannot afford a call; see `table_map_of`."""
    return _MARIADB_MAPS if mariadb else _MYSQL_MAPS


def _remember(content: bytes, mariadb: bool) -> TableMap:
    made = _parse(content, mariadb)
    maps = known_maps(mariadb)
    if len(maps) >= _MOST_MAPS or len(content) * len(maps) > _MOST_MAP_BYTES:
        maps.clear()
    maps[content] = made
    return made


def packed_integer(raw: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer at `at` and the offset after it."""
    first = raw[at]
    if first < 251:
        return first, at + 1
    width = {252: 2, 253: 3, 254: 8}.get(first)
    if width is None or at + 1 + width > len(raw):
        raise IndexError
    return int.from_bytes(raw[at + 1 : at + 1 + width], "little"), at + 1 + width


def _take(raw: bytes, at: int, size: int) -> bytes:
    if size < 0 or at + size > len(raw):
        raise IndexError
    return raw[at : at + size]


@only_format_errors("a table map")
def _parse(raw: bytes, mariadb: bool) -> TableMap:
    schema = _take(raw, 1, raw[0])
    at = raw[0] + 2
    table = _take(raw, at + 1, raw[at])
    at += raw[at] + 2
    count, at = packed_integer(raw, at)
    if not 0 < count <= _MAX_COLUMNS:
        raise FormatError("malformed", f"a table map claims {count} columns")
    types = _take(raw, at, count)
    at += count
    size, at = packed_integer(raw, at)
    meta = _column_metadata(types, _take(raw, at, size))
    at += size
    nulls = _take(raw, at, (count + 7) // 8)
    at += len(nulls)
    columns = []
    for index, kind in enumerate(types):
        first, second = meta[index]
        if kind == STRING and first in (ENUM, SET):
            kind = first
        columns.append(Column(index, kind, (first, second), bool(nulls[index >> 3] & 1 << (index & 7))))
    optional = _optional_fields(raw, at)
    described, key, prefixes = _describe(columns, optional, mariadb)
    return TableMap(
        schema.decode("utf-8", "backslashreplace"),
        table.decode("utf-8", "backslashreplace"),
        described,
        key,
        prefixes,
        raw,
        mariadb,
    )


def _column_metadata(types: bytes, raw: bytes) -> list[tuple[int, int]]:
    meta = []
    at = 0
    for index, kind in enumerate(types):
        size = _METADATA_SIZE.get(kind)
        if size is None:
            raise FormatError(
                "unknown-type",
                f"column {index + 1} has type {kind}, which this version does not read",
                "exclude the table, or upgrade",
            )
        meta.append((raw[at] if size else 0, raw[at + 1] if size == 2 else 0))
        at += size
    if at != len(raw):
        raise IndexError
    return meta


def _optional_fields(raw: bytes, at: int) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    while at < len(raw):
        code = raw[at]
        size, at = packed_integer(raw, at + 1)
        fields[code] = _take(raw, at, size)
        at += size
    return fields


def needed_metadata(raw: bytes, at: int) -> bytes:
    """Of the optional metadata that begin at `at`: what a server asks for before it applies rows (MySQL: how many dimensions
    vectors have)."""
    dimensions = _optional_fields(raw, at).get(_VECTOR_DIMENSIONS)
    return b"" if dimensions is None else bytes((_VECTOR_DIMENSIONS, len(dimensions))) + dimensions


def _describe(
    columns: list[Column], optional: dict[int, bytes], mariadb: bool
) -> tuple[tuple[Column, ...], tuple[int, ...] | None, tuple[int, ...] | None]:
    """Columns with what the optional metadata adds; the primary key and its prefixes."""
    added: list[dict[str, Any]] = [{} for _ in columns]
    numeric = [c.index for c in columns if c.type in _NUMERIC]
    _bits(optional.get(_SIGNEDNESS), numeric, added, "unsigned")
    _bits(optional.get(_VISIBILITY), range(len(columns)), added, "visible")
    counted = _CHARACTER_MARIADB if mariadb else _CHARACTER
    _charsets(optional, _DEFAULT_CHARSET, _COLUMN_CHARSET, [c.index for c in columns if c.type in counted], added)
    enums = [c.index for c in columns if c.type in (ENUM, SET)]
    _charsets(optional, _ENUM_SET_DEFAULT, _ENUM_SET_CHARSET, enums, added)
    if _COLUMN_NAME in optional:
        for index, name in enumerate(_strings(optional[_COLUMN_NAME], len(columns))):
            added[index]["name"] = name.decode("utf-8", "backslashreplace")
    for code, kind in ((_SET_VALUES, SET), (_ENUM_VALUES, ENUM)):
        if code in optional:
            at = 0
            for column in (c for c in columns if c.type == kind):
                values, at = _string_list(optional[code], at)
                charset = added[column.index].get("charset") or "utf8mb4"
                texts = tuple(decode_text(value, charset) for value in values)
                if all(text is not None for text in texts):
                    added[column.index]["members"] = texts
    if _GEOMETRY_TYPE in optional:
        at = 0
        for column in (c for c in columns if c.type == GEOMETRY):
            added[column.index]["geometry"], at = packed_integer(optional[_GEOMETRY_TYPE], at)
    key, prefixes = _primary_key(optional, len(columns))
    described = tuple(dataclasses.replace(c, **more) if more else c for c, more in zip(columns, added, strict=True))
    return described, key, prefixes


def _bits(raw: bytes | None, indexes: Iterable[int], added: list[dict[str, Any]], name: str) -> None:
    if raw is not None:
        for place, index in enumerate(indexes):
            added[index][name] = bool(raw[place >> 3] & 0x80 >> (place & 7))


def _charsets(
    optional: dict[int, bytes], default: int, each: int, indexes: list[int], added: list[dict[str, Any]]
) -> None:
    if default in optional:
        raw = optional[default]
        usual, at = packed_integer(raw, 0)
        collations = dict.fromkeys(range(len(indexes)), usual)
        while at < len(raw):
            place, at = packed_integer(raw, at)
            collations[place], at = packed_integer(raw, at)
    elif each in optional:
        raw, at = optional[each], 0
        collations = {}
        while at < len(raw):
            collations[len(collations)], at = packed_integer(raw, at)
    else:
        return
    for place, index in enumerate(indexes):
        added[index].update(collation=collations[place], charset=charset_of(collations[place]))


def _strings(raw: bytes, count: int) -> list[bytes]:
    strings, at = [], 0
    for _ in range(count):
        size, at = packed_integer(raw, at)
        strings.append(_take(raw, at, size))
        at += size
    return strings


def _string_list(raw: bytes, at: int) -> tuple[list[bytes], int]:
    count, at = packed_integer(raw, at)
    if count > len(raw):
        raise IndexError
    values = []
    for _ in range(count):
        size, at = packed_integer(raw, at)
        values.append(_take(raw, at, size))
        at += size
    return values, at


def _primary_key(optional: dict[int, bytes], columns: int) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    if _PRIMARY_KEY not in optional and _PRIMARY_KEY_PREFIX not in optional:
        # FULL metadata always names columns: without a key field there is then no key.
        return ((), ()) if _COLUMN_NAME in optional else (None, None)
    prefixed = _PRIMARY_KEY_PREFIX in optional
    raw, at = optional[_PRIMARY_KEY_PREFIX if prefixed else _PRIMARY_KEY], 0
    key, prefixes = [], []
    while at < len(raw):
        index, at = packed_integer(raw, at)
        prefix = 0
        if prefixed:
            prefix, at = packed_integer(raw, at)
        if index >= columns:
            raise IndexError
        key.append(index)
        prefixes.append(prefix)
    return tuple(key), tuple(prefixes)


@dataclass(frozen=True, slots=True)
class Declared:
    """What `schema.<source>` knows of a column and the log may not say."""

    name: str
    type: str = ""
    charset: str | None = None


def with_declared(table_map: TableMap, columns: Iterable[Declared], primary_key: Iterable[str] = ()) -> TableMap:
    """The map with names, declared types, signedness, members, character sets and key filled in from a schema.

    What the log itself says is kept. The columns must be all of the table's, in order.
    """
    declared = list(columns)
    if len(declared) != len(table_map.columns):
        raise FormatError(
            "malformed",
            f"the log has {len(table_map.columns)} columns for {table_map.schema}.{table_map.table}, "
            f"the schema {len(declared)}",
            "the schema is of another version: replay the DDL up to this step",
        )
    filled = tuple(_fill(column, more) for column, more in zip(table_map.columns, declared, strict=True))
    key, prefixes = table_map.primary_key, table_map.primary_key_prefixes
    if key is None:
        places = {column.name: column.index for column in filled}
        key = tuple(places[name] for name in primary_key if name in places)
        prefixes = tuple(0 for _ in key)
    return dataclasses.replace(table_map, columns=filled, primary_key=key, primary_key_prefixes=prefixes, compiled={})


_BINARY_TYPES = ("binary", "varbinary", "blob", "tinyblob", "mediumblob", "longblob", "uuid", "inet4", "inet6")


def _fill(column: Column, declared: Declared) -> Column:
    text = declared.type.lower()
    more: dict[str, Any] = {"declared": text or column.declared}
    if column.name is None:
        more["name"] = declared.name
    if column.unsigned is None and column.type in _NUMERIC and text:
        more["unsigned"] = "unsigned" in text or "zerofill" in text or column.type == YEAR
    if column.charset is None and column.type in _CHARACTER_MARIADB | {ENUM, SET}:
        binary = declared.charset is None and text.startswith(_BINARY_TYPES)
        # What the log calls utf8mb3 was called utf8 by servers for long.
        more["charset"] = "binary" if binary else "utf8mb3" if declared.charset == "utf8" else declared.charset
    if column.members is None and column.type in (ENUM, SET) and text:
        more["members"] = _declared_members(declared.type)
    return dataclasses.replace(column, **more)


def _declared_members(declared: str) -> tuple[str, ...] | None:
    """The members of `enum('a','it''s')`; None when the text is not of this form."""
    body = declared[declared.find("(") + 1 : declared.rfind(")")]
    members, at = [], 0
    while at < len(body):
        if body[at] != "'":
            return None
        member, at = "", at + 1
        while at < len(body) and not (body[at] == "'" and body[at + 1 : at + 2] != "'"):
            at += body[at] == "'"
            member += body[at]
            at += 1
        members.append(member)
        at += 2
    return tuple(members)


def _type_name(column: Column) -> str:
    kind, (first, second) = column.type, column.meta
    sign = " unsigned" if column.unsigned and kind != YEAR else ""
    binary = column.charset == "binary"
    simple: Mapping[int, str] = {
        TINY: "tinyint",
        SHORT: "smallint",
        INT24: "mediumint",
        LONG: "int",
        LONGLONG: "bigint",
        FLOAT: "float",
        DOUBLE: "double",
        DECIMAL: "decimal",
        DATE: "date",
        NEWDATE: "date",
        YEAR: "year",
        TIME: "time",
        DATETIME: "datetime",
        TIMESTAMP: "timestamp",
        JSON: "json",
        VECTOR: "vector",
        NULL: "null",
    }
    if kind in simple:
        return simple[kind] + sign
    if kind == NEWDECIMAL:
        return f"decimal({first},{second}){sign}"
    if kind in (TIME2, DATETIME2, TIMESTAMP2):
        name = {TIME2: "time", DATETIME2: "datetime", TIMESTAMP2: "timestamp"}[kind]
        return f"{name}({first})" if first else name
    if kind == BIT:
        return f"bit({first + 8 * second})"
    if kind in (ENUM, SET):
        name = "enum" if kind == ENUM else "set"
        if column.members is None:
            return name
        return name + "(" + ",".join("'" + member.replace("'", "''") + "'" for member in column.members) + ")"
    if kind == GEOMETRY:
        return dict(enumerate(_GEOMETRY_NAMES)).get(column.geometry or 0, "geometry")
    if kind in _BLOBS or kind == BLOB_COMPRESSED:
        size = {1: "tiny", 2: "", 3: "medium", 4: "long"}.get(first, "")
        return size + ("text" if column.charset is not None and not binary else "blob")
    width = BYTES_PER_CHARACTER.get(column.charset or "", 1)
    if kind in (VARCHAR, VARCHAR_COMPRESSED):
        return f"{'varbinary' if binary else 'varchar'}({column.max_bytes // width})"
    return f"{'binary' if binary else 'char'}({column.max_bytes // width})"
