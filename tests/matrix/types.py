"""The type zoo: tables of every column type, with the values at their ends, as data that fits every server.

    Server   flavour and version: which tables and columns there are (`zoo`)
    Table    columns with the SQL literals that go into them, keys, and the code of the obstacle where changes of it
             cannot be undone and a plan must say so
    Load     a seeded load over the tables: each `transaction` commits one transaction that changes something
    contents everything in a table, byte for byte

Literals are for a session that ran `SESSION`. To add a type, add a column: it is then captured, decoded, rolled back and
redone on every server that has it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pymysql

DATABASE: Final = "zoo"
Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Server:
    """`flavour`: `mariadb` or `mysql`."""

    flavour: str
    version: Version

    @classmethod
    def of(cls, version: str) -> Server:
        """From what `SELECT VERSION()` says."""
        major, minor = version.split(".")[:2]
        return cls("mariadb" if "mariadb" in version.lower() else "mysql", (int(major), int(minor)))


@dataclass(frozen=True, slots=True)
class Since:
    """The version a thing came with; None: this flavour has never had it."""

    mariadb: Version | None = (10, 5)
    mysql: Version | None = (5, 5)

    def has(self, server: Server) -> bool:
        first = self.mariadb if server.flavour == "mariadb" else self.mysql
        return first is not None and server.version >= first


ALWAYS: Final = Since()
MARIADB: Final = Since(mysql=None)
FRACTIONS: Final = Since(mysql=(5, 6))
GENERATED: Final = Since(mysql=(5, 7))


@dataclass(frozen=True, slots=True)
class Column:
    """`values`: SQL literals, each to be stored and read back; empty for what the server fills in."""

    name: str
    declared: str
    values: tuple[str, ...] = ()
    since: Since = ALWAYS

    @property
    def nullable(self) -> bool:
        return "not null" not in self.declared


@dataclass(frozen=True, slots=True)
class Table:
    """`name` may be any name, `options` what follows the columns, `more` further parts of the list of columns.

    `key`: the column by which rows are addressed, filled with 1, 2, 3 …, None for a table without one (rows are then
    addressed by nothing: changes take the first ones). `obstacle`: the code with which a plan that undoes or redoes
    changes of this table is refused.
    """

    name: str
    columns: tuple[Column, ...]
    more: tuple[str, ...] = ()
    options: str = "engine=InnoDB"
    since: Since = ALWAYS
    key: Column | None = Column("id", "int unsigned not null primary key")
    obstacle: str = ""
    after: tuple[str, ...] = ()
    """Statements that complete it; `{}` stands for the quoted name."""

    @property
    def written(self) -> tuple[Column, ...]:
        """The columns that statements give values to, without the key."""
        return tuple(c for c in self.columns if c.values)

    def create(self) -> tuple[str, ...]:
        columns = [*([self.key] if self.key else []), *self.columns]
        parts = [f"{quoted(c.name)} {c.declared}" for c in columns] + list(self.more)
        made = f"CREATE TABLE {quoted(self.name)} ({', '.join(parts)}) {self.options}"
        return (made, *(s.replace("{}", quoted(self.name)) for s in self.after))

    def insert(self, key: int, values: Sequence[str], verb: str = "INSERT") -> str:
        """One row, `values` for `written`."""
        names = [quoted(c.name) for c in ([self.key] if self.key else []) + list(self.written)]
        row = [*([str(key)] if self.key else []), *values]
        return f"{verb} INTO {quoted(self.name)} ({', '.join(names)}) VALUES ({', '.join(row)})"

    def rows(self) -> Iterator[str]:
        """INSERTs that between them hold every value of every column, and NULL where it may be."""
        most = max((len(c.values) for c in self.written), default=1)
        for i in range(most):
            yield self.insert(i + 1, [c.values[i % len(c.values)] for c in self.written])
        if any(c.nullable for c in self.written):
            yield self.insert(most + 1, ["NULL" if c.nullable else c.values[-1] for c in self.written])


# A session that takes what the zoo holds: zero and impossible dates, an ENUM's index 0, times in UTC.
SESSION: Final = "SET time_zone = '+00:00', sql_mode = 'ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO', autocommit = 1"


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


# --- numbers ---------------------------------------------------------------------------------------------------------


def _integers() -> tuple[Column, ...]:
    out = []
    for name, bits in (("tinyint", 8), ("smallint", 16), ("mediumint", 24), ("int", 32), ("bigint", 64)):
        half = 1 << bits - 1
        out.append(Column(name, name, (str(-half), str(half - 1), "0", "-1", "1")))
        out.append(Column(f"{name}_u", f"{name} unsigned", ("0", str(2 * half - 1), str(half), str(half - 1), "1")))
    out.append(Column("zero_filled", "int(7) unsigned zerofill", ("0", "42", "4294967295")))
    out.append(Column("truth", "tinyint(1)", ("0", "1", "-128")))
    return tuple(out)


def _decimals() -> tuple[Column, ...]:
    """Every number of leftover digits on both sides of the point, and the largest there is."""
    shapes = [(65, 30), (65, 0), (30, 30), (38, 19), (1, 0), (1, 1), *((9 + n, n) for n in range(10))]
    out = []
    for precision, scale in shapes:
        nines = "9" * (precision - scale) or "0"
        most = f"{nines}.{'9' * scale}" if scale else nines
        least = f"0.{'0' * (scale - 1)}1" if scale else "1"
        out.append(
            Column(
                f"d{precision}_{scale}", f"decimal({precision},{scale})", (most, f"-{most}", "0", least, f"-{least}")
            )
        )
    out.append(Column("du", "decimal(20,6) unsigned", ("0", "99999999999999.999999", "0.000001")))
    return tuple(out)


_FLOATS: Final = (
    Column("f", "float", ("0e0", "-0e0", "3.40282e38", "-3.40282e38", "1.17549e-38", "0.1e0", "1.4e-45", "16777217e0")),
    Column("fu", "float unsigned", ("0e0", "0.333333333e0")),
    Column("f72", "float(7,2)", ("-12345.67e0", "0.01e0")),
    Column(
        "d",
        "double",
        (
            "0e0",
            "-0e0",
            "1.7976931348623157e308",
            "-1.7976931348623157e308",
            "2.2250738585072014e-308",
            "0.1e0",
            "5e-324",
        ),
    ),
    Column("du", "double unsigned", ("0.30000000000000004e0", "1e300")),
)


def _bits() -> tuple[Column, ...]:
    def of(width: int) -> Column:
        alternating = int("01" * 32, 2) & ((1 << width) - 1)
        values = (0, (1 << width) - 1, 1, 1 << width - 1, alternating)
        return Column(f"b{width}", f"bit({width})", tuple(f"b'{v:b}'" for v in values))

    return tuple(of(width) for width in range(1, 65))


# --- time ------------------------------------------------------------------------------------------------------------

_YEARS: Final = (
    Column("y", "year", ("0", "'0000'", "1901", "2155", "1999")),
    Column("d", "date", ("'0000-00-00'", "'9999-12-31'", "'1000-01-01'", "'2023-00-00'", "'2023-02-30'", "'2024-02-29'")),
)  # fmt: skip


def _moments() -> tuple[Column, ...]:
    out = []
    for digits in range(7):
        fraction = f".{'9' * digits}" if digits else ""
        tiny = f".{'0' * (digits - 1)}1" if digits else ""
        since = FRACTIONS if digits else ALWAYS
        size = f"({digits})" if digits else ""
        # MySQL holds 838:59:59.000000 and nothing beyond; MariaDB up to .999999.
        beyond = (f"'838:59:59{fraction}'", f"'-838:59:59{fraction}'")
        times = (
            "'838:59:59'",
            "'-838:59:59'",
            "'00:00:00'",
            f"'-00:00:00{tiny}'",
            f"'-01:02:03{tiny}'",
            f"'12:34:56{fraction}'",
        )
        out.append(Column(f"t{digits}", f"time{size}", times, since))
        out.append(Column(f"tb{digits}", f"time{size}", beyond, MARIADB))
        datetimes = ("'0000-00-00 00:00:00'", f"'9999-12-31 23:59:59{fraction}'", f"'2023-00-00 01:02:03{tiny}'",
                     f"'2023-02-30 01:02:03{fraction}'", f"'1000-01-01 00:00:00{tiny}'")  # fmt: skip
        out.append(Column(f"dt{digits}", f"datetime{size}", datetimes, since))
        stamps = ("'0000-00-00 00:00:00'", f"'2038-01-19 03:14:07{fraction if digits < 6 else ''}'",
                  f"'1970-01-01 00:00:01{tiny}'", f"'2024-10-27 00:30:00{fraction}'")  # fmt: skip
        out.append(Column(f"ts{digits}", f"timestamp{size} null", stamps, since))
    return tuple(out)


# --- text ------------------------------------------------------------------------------------------------------------

_SINGLE: Final = (
    "armscii8", "ascii", "cp1250", "cp1251", "cp1256", "cp1257", "cp850", "cp852", "cp866", "dec8", "geostd8", "greek",
    "hebrew", "hp8", "keybcs2", "koi8r", "koi8u", "latin1", "latin2", "latin5", "latin7", "macce", "macroman", "swe7",
    "tis620",
)  # fmt: skip
# Character sets of several bytes, with text in them as bytes; among it pairs that stand for no character.
_MULTIPLE: Final = {
    "big5": (b"\xa4\xa4\xa4\xe5", b"\xf9\xd5a"),
    "cp932": (b"\x83e\x83X\x83g", b"\x87\x40\xfa\x40", b"\xb1\xb2"),
    "eucjpms": (b"\xa5\xc6\xa5\xb9", b"\x8e\xb1\xad\xa1"),
    "euckr": (b"\xc7\xd1\xb1\xdb", b"\x81\x41"),
    "gb2312": (b"\xd6\xd0\xce\xc4", b"\xa1\xa1"),
    "gbk": (b"\xd6\xd0\xce\xc4", b"\xa2\xa1", b"\xfe\x50"),
    "sjis": (b"\x83e\x83X\x83g", b"\x81\x5f", b"\xb1\xb2"),
    "ujis": (b"\xa5\xc6\xa5\xb9", b"\x8f\xb0\xa1"),
    "ucs2": ("日本".encode("utf-16-be"), b"\x00a\xd8\x00"),
    "utf8": ("é日本".encode(), b"plain"),
    "utf8mb4": ("🦆é".encode(), "\U0010ffff".encode()),
    "utf16": ("🦆é".encode("utf-16-be"), b"\x00\x27\x00\x5c"),
    "utf32": ("🦆é".encode("utf-32-be"),),
}


def _charsets() -> tuple[Column, ...]:
    """Text in each character set: all bytes of those that have one a character, as a set of literals of 64 bytes."""
    out = []
    for name in _SINGLE:
        top = 128 if name in ("ascii", "swe7") else 256
        chunks = tuple(_bytes(bytes(range(start, start + 64)), name) for start in range(0, top, 64))
        quotes = "'it''s'" if name == "swe7" else "'it''s \\\\ \\n'"
        out.append(Column(name, f"varchar(64) character set {name}", (*chunks, "''", quotes)))
    for name, texts in _MULTIPLE.items():
        values = (*(_bytes(text, name) for text in texts), "''", "'quote'''")
        out.append(Column(name, f"varchar(40) character set {name}", values))
    more = Since(mysql=(5, 6))
    out.append(
        Column("utf16le", "varchar(40) character set utf16le", (_bytes("🦆é".encode("utf-16-le"), "utf16le"),), more)
    )
    gb = Since(mariadb=None, mysql=(5, 7))
    out.append(
        Column("gb18030", "varchar(40) character set gb18030", (_bytes("中🦆".encode("gb18030"), "gb18030"), "''"), gb)
    )
    return tuple(out)


def _bytes(raw: bytes, charset: str = "") -> str:
    return f"_{charset} x'{raw.hex()}'" if charset else f"x'{raw.hex()}'"


_TEXTS: Final = (
    Column(
        "c", "char(10) character set utf8mb4", ("''", "'  lead'", "'trail  '", "'zehn Zeich'", "'🦆🦆🦆🦆🦆🦆🦆🦆🦆🦆'")
    ),
    Column("cl", "char(255) character set utf8mb4", ("repeat('ü',255)", "''", "'x'")),
    Column("c1", "char(255) character set latin1", ("repeat('é',255)", "''", "'x'")),
    Column("v255", "varchar(255) character set latin1", ("repeat('v',255)", "''", "'trail  '")),
    Column("v256", "varchar(256) character set latin1", ("repeat('v',256)", "''", "' '")),
    Column("vb", "varchar(63) character set utf8mb4 collate utf8mb4_bin", ("repeat('🦆',63)", "'a'", "'A'")),
    Column("vl", "varchar(3000) character set utf8mb4", ("repeat('日',3000)", "''", "'''\"`\\\\%s {}'")),
    Column("tt", "tinytext character set utf8mb4", ("repeat('t',255)", "''", "'null'")),
    Column("tx", "text character set utf8mb4", ("repeat('x',65535)", "''", "'\\0\\n\\r\\Z'")),
    Column("mt", "mediumtext character set latin1", ("repeat('m',70000)", "''")),
    Column("lt", "longtext character set utf8mb4", ("repeat('🦆',20000)", "''")),
)
_BINARIES: Final = (
    Column("b", "binary(16)", ("x'000102030405060708090a0b0c0d0e0f'", "''", "x'00'", "x'20'", "x'61000000'")),
    Column("bl", "binary(255)", ("repeat(x'ff',255)", "''")),
    Column("v", "varbinary(20)", ("x'00ff00ff'", "''", "x'00'", "x'6100'")),
    Column("vl", "varbinary(4000)", ("repeat(x'80',4000)", "''")),
    Column("tb", "tinyblob", ("repeat(x'fe',255)", "''")),
    Column("bb", "blob", ("repeat(x'00',65535)", "''", "x'27225c00'")),
    Column("mb", "mediumblob", ("repeat(x'01',70000)", "''")),
    Column("lb", "longblob", ("repeat(x'02',90000)", "''")),
)


def _members(count: int, prefix: str) -> str:
    return ",".join(f"'{prefix}{i}'" for i in range(1, count + 1))


def _enumerations() -> tuple[Column, ...]:
    out = [
        Column("e", "enum('small','medium','','it''s','ü') character set utf8mb4",
               ("'small'", "''", "'it''s'", "'ü'", "'bogus'", "5")),
        Column("el", "enum('é','x') character set latin1", ("'é'", "2", "'bogus'")),
        Column("eb", "enum('a','b') character set binary", ("'a'", "'b'", "'bogus'")),
        Column("e255", f"enum({_members(255, 'm')})", ("255", "1", "'bogus'")),
        Column("e300", f"enum({_members(300, 'm')})", ("300", "256", "1", "'bogus'")),
    ]  # fmt: skip
    for count in (1, 8, 9, 16, 17, 24, 25, 32, 33, 63, 64):
        all_of_them = str((1 << count) - 1)
        values = (all_of_them, "0", str(1 << count - 1), "1")
        out.append(Column(f"s{count}", f"set({_members(count, 'm')})", values))
    out.append(Column("se", "set('','a','b c','é') character set utf8mb4", ("''", "1", "'a,é'", "15")))
    return tuple(out)


# --- types of their own ----------------------------------------------------------------------------------------------

_JSON_TEXTS: Final = (
    "'{}'", "'[]'", "'null'", "'true'", "'\"text ü 🦆 \\\\\"quoted\\\\\" \\\\u0000\"'",
    "'{\"a\": [1, -1, 1.5, 1e300, 18446744073709551615, -9223372036854775808], \"b\": {\"c\": null}}'",
    "'[65535, 65536, -32768, -32769, 2147483647, 2147483648, -2147483649]'",
    "concat('{\"long\": \"', repeat('x', 200), '\", \"longer\": \"', repeat('y', 70000), '\"}')",
    "concat('[', repeat('{\"k\": [1, 2, {\"deep\": true}]}, ', 3000), 'false]')",
)  # fmt: skip
# Only MySQL's JSON has values that no JSON text can write.
_JSON_BINARIES: Final = (
    "json_object('d', cast('2023-06-15' as date), 't', cast('-838:59:58.000001' as time(6)), 'dt',"
    " cast('2023-06-15 10:20:30.123456' as datetime(6)))",
    "json_array(cast(-1234567890.12345 as decimal(20,5)), cast(99999999999999999999999999999999999 as decimal(65,0)))",
    "json_object('blob', cast(x'00ff27' as binary), 'empty', cast('' as binary))",
)


def _wkb(srid: int, kind: int, *numbers: float) -> str:
    """A geometry as it is stored: SRID, byte order, type, coordinates (points and lines, which is all that is needed)."""
    import struct

    body = struct.pack("<IBI", srid, 1, kind)
    if kind == 2:
        body += struct.pack("<I", len(numbers) // 2)
    return _bytes(body + struct.pack(f"<{len(numbers)}d", *numbers))


_COLLECTION: Final = "x'00000000" + "0107000000" + "01000000" + "0101000000" + "00" * 16 + "'"
_POLYGON: Final = (
    "x'e6100000" + "0103000000" + "01000000" + "04000000" + "00" * 16
    + "000000000000f03f" + "00" * 8 + "000000000000f03f" * 2 + "00" * 16 + "'"
)  # fmt: skip
_GEOMETRIES: Final = (
    Column("g", "geometry", (_wkb(0, 1, 1.5, -2.5), _wkb(4326, 1, 10.0, 20.0), _wkb(3857, 2, 0, 0, 1, 1), _POLYGON, _COLLECTION)),
    Column("p", "point", (_wkb(0, 1, 0.0, -0.0), _wkb(4326, 1, 89.0, 179.0))),
    Column("l", "linestring", (_wkb(0, 2, 0, 0, 1e300, -1e-300), _wkb(4326, 2, 1, 2, 3, 4, 5, 6))),
)  # fmt: skip

_VECTOR: Final = Since(mariadb=(11, 7), mysql=(9, 0))
_VECTORS: Final = (
    Column("v1", "vector(1)", ("x'0000803f'", "x'00000080'")),
    Column("v3", "vector(3)", ("x'0000803f000000400000c0bf'", "x'000000000000000000000000'")),
)

_ADDRESSES: Final = (
    Column("u", "uuid", ("'123e4567-e89b-12d3-a456-426655440000'", "'00000000-0000-0000-0000-000000000000'",
                         "'ffffffff-ffff-ffff-ffff-ffffffffffff'"), Since((10, 7), None)),
    Column("i4", "inet4", ("'1.2.3.4'", "'0.0.0.0'", "'255.255.255.255'"), Since((10, 10), None)),
    Column("i6", "inet6", ("'2001:db8::ff00:42:8329'", "'::'", "'::1'", "'::ffff:1.2.3.4'", "'::1.2.3.4'", "'1:0:0:2::3'"),
           MARIADB),
)  # fmt: skip

# --- tables whose shape is what is looked at -------------------------------------------------------------------------

_N: Final = Column("n", "int", ("1", "2", "3"))
_V: Final = Column("v", "varchar(30) character set utf8mb4", ("'one'", "'two'", "'drei ü'"))

# 64 characters are the most, three bytes each; supplementary characters are refused by the servers themselves. A table's
# name becomes a file's, in which an umlaut takes three characters and 日 five.
LONGEST_COLUMN: Final = "日" * 64
LONGEST_TABLE: Final = "ü" * 64
_ODD_NAMES: Final = ("we``ird na`me", "it's", 'quo"ted', "per%cent %s %(x)s", "dot.ted.name", "back\\slash", "sla/sh", " lead",
                     "日本", "select", "DB_ROW_HASH_", "semi;colon -- x", "#1", "@v", "0123")  # fmt: skip


def _named() -> Iterator[Table]:
    odd = tuple(Column(name, "int", (str(i), str(-i))) for i, name in enumerate((*_ODD_NAMES, LONGEST_COLUMN)))
    yield Table("odd columns", odd)
    for name in (*_ODD_NAMES, LONGEST_TABLE):
        yield Table(name, (_N, _V))


def _wide() -> Table:
    """More columns than one byte counts, a bitmap of many bytes, values of all widths between NULLs."""
    kinds = ("int", "varchar(5)", "tinyint not null default 3", "bit(3)")
    values = {"int": ("7", "-7"), "varchar(5)": ("'ab'", "''"), "bit(3)": ("b'101'",)}
    return Table("wide", tuple(Column(f"c{i}", kinds[i % 4], values.get(kinds[i % 4], ("1", "2"))) for i in range(300)))


TABLES: Final[tuple[Table, ...]] = (
    Table("integers", _integers()),
    Table("decimals", _decimals()),
    Table("floats", _FLOATS),
    Table("bits", _bits()),
    Table("years", _YEARS),
    Table("moments", _moments()),
    Table("charsets", _charsets()),
    Table("texts", _TEXTS),
    Table("binaries", _BINARIES),
    Table("enumerations", _enumerations()),
    Table("jsontext", (Column("j", "json", _JSON_TEXTS), Column("j2", "json", ("'[1]'",))), since=MARIADB),
    Table("jsonbinary", (Column("j", "json", _JSON_TEXTS), Column("j2", "json", ("'[1]'",))), since=Since(None, (5, 7))),
    Table("jsontyped", (Column("j", "json", _JSON_BINARIES),), since=Since(None, (5, 7))),
    Table("geometries", _GEOMETRIES),
    Table("vectors", _VECTORS, since=_VECTOR),
    Table("addresses", _ADDRESSES, since=MARIADB),
    Table("compressed", (
        Column("t", "text compressed", ("repeat('Lorem ipsum ', 300)", "''", "'short'")),
        Column("b", "blob compressed", ("repeat(x'00', 5000)", "x'00'")),
        Column("v", "varchar(300) compressed", ("repeat('a', 300)", "''", "' '")),
        Column("vb", "varbinary(300) compressed", ("repeat(x'04', 300)", "''")),
    ), since=MARIADB),
    Table("generated", (
        _N, Column("s", "int as (n * 2) stored"), Column("vi", "varchar(20) as (concat('x', n)) virtual"), _V,
        Column("sv", "varchar(40) character set utf8mb4 as (upper(v)) stored"),
    ), more=("key (vi)", "unique key (s, id)"), since=GENERATED),
    Table("invisible", (_N, Column("h", "int invisible default 4", ("5", "6")), _V), since=Since((10, 5), (8, 1))),
    Table("defaults", (_N, Column("d", "varchar(40) default (concat('x', 'y'))", ("'given'",)),
                       Column("c", "int check (c < 100)", ("1", "99"))), since=Since((10, 5), (8, 1))),
    Table("hashed", (Column("u", "text character set utf8mb4", ("repeat('long', 2000)", "'b'", "''")),),
          more=("unique key (u)",), since=MARIADB),
    Table("functional", (_N, _V), more=("key ((n + 1))", "unique key ((concat(v, id)))"), since=Since(None, (8, 1))),
    Table("versioned", (_N, _V), options="engine=InnoDB with system versioning", since=MARIADB, obstacle="system-versioned"),
    Table("by range", (_N, Column("r", "int not null", ("1", "7", "12"))), key=Column("id", "int not null"),
          more=("primary key (id, r)",),
          options="engine=InnoDB partition by range (r) (partition a values less than (5),"
          " partition b values less than (10), partition c values less than maxvalue)"),
    Table("by hash", (_N, _V), options="engine=InnoDB partition by hash (id) partitions 4"),
    Table("no key", (_N, _V, Column("f", "float", ("0.1e0", "3e30"))), key=None),
    Table("no key at all, one column", (_N,), key=None),
    Table("nullable unique", (_N, Column("a", "int", ("1", "2", "3", "4")), Column("b", "varchar(9)", ("'x'", "'y'"))),
          key=None, more=("unique key ab (a, b)",)),
    Table("unique not null", (_N, Column("code", "char(8) character set latin1 not null",
                                         ("'a'", "'B'", "'c '", "'d'", "'e'", "'F'"))),
          key=None, more=("unique key (code)",)),
    Table("key of text", (Column("k", "varchar(20) character set utf8mb4 not null", ("'a'", "'é'", "'日本'", "''", "'x '")), _N),
          key=Column("id", "smallint unsigned not null"), more=("primary key (k, id)",)),
    Table("key of prefix", (Column("k", "blob not null", ("x'00ff'", "x'0102'", "'abcdef'")), _N),
          key=Column("id", "int not null"), more=("primary key (k(3), id)",)),
    Table("key last", (_N, _V, Column("z", "binary(4) not null", ("x'00000001'", "x'61620000'"))),
          key=Column("id", "bigint unsigned not null"), more=("primary key (z, id)",)),
    _wide(),
    *_named(),
)  # fmt: skip


def zoo(server: Server, *, obstacles: bool = False) -> tuple[Table, ...]:
    """The tables that this server has, with the columns it has. `obstacles`: those too that a plan refuses."""
    out = []
    for table in TABLES:
        if not table.since.has(server) or (table.obstacle and not obstacles):
            continue
        columns = tuple(c for c in table.columns if c.since.has(server))
        out.append(
            Table(table.name, columns, table.more, table.options, table.since, table.key, table.obstacle, table.after)
        )
    return tuple(out)


def statements(tables: Iterable[Table]) -> tuple[str, ...]:
    """What makes the schema and its tables, empty, for one session."""
    made = (SESSION, f"DROP DATABASE IF EXISTS {DATABASE}", f"CREATE DATABASE {DATABASE}", f"USE {DATABASE}")
    return (*made, *(statement for table in tables for statement in table.create()))


@dataclass
class Load:
    """Draws and commits transactions; the same ones for the same seed and start. `connection` is its own."""

    connection: pymysql.Connection[Any]
    rng: random.Random
    tables: tuple[Table, ...]
    most_keys: int = 14
    executed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for statement in (SESSION, f"USE {DATABASE}"):
            run(self.connection, statement)

    def fill(self) -> Iterator[Table]:
        """Every value of every column, a table a transaction; yields after each commit."""
        for table in self.tables:
            self.connection.begin()
            for statement in table.rows():
                self._run(statement)
            self.connection.commit()
            yield table

    def transaction(self) -> None:
        """Commit one transaction of one to five changes, at least one of which changes a row."""
        changed = 0
        while not changed:
            self.connection.begin()
            for _ in range(self.rng.choice((1, 1, 2, 3, 5))):
                changed += self._change(self.rng.choice(self.tables))
            self.connection.commit()

    def _run(self, statement: str) -> int:
        """How many rows changed; 0 where the statement broke a rule of the table, which is none of ours."""
        self.executed.append(statement)
        with self.connection.cursor() as cursor:
            try:
                return int(cursor.execute(statement))
            except (pymysql.err.IntegrityError, pymysql.err.DataError):
                return 0

    def _value(self, column: Column) -> str:
        return "NULL" if column.nullable and self.rng.random() < 0.15 else self.rng.choice(column.values)

    def _change(self, table: Table) -> int:
        r, name = self.rng, quoted(table.name)
        key = r.randint(1, self.most_keys)
        where = f"WHERE {quoted(table.key.name)} = {key}" if table.key else "LIMIT 2"
        draw = r.random()
        if draw < 0.4:
            verb = r.choice(("INSERT", "REPLACE")) if table.key else "INSERT"
            return self._run(table.insert(key, [self._value(c) for c in table.written], verb))
        if draw < 0.75:
            columns = r.sample(table.written, min(len(table.written), r.choice((1, 1, 2, 40))))
            assigned = ", ".join(f"{quoted(c.name)} = {self._value(c)}" for c in columns)
            return self._run(f"UPDATE {name} SET {assigned} {where}")
        if draw < 0.82 and table.key:
            return self._run(f"UPDATE {name} SET {quoted(table.key.name)} = {r.randint(1, self.most_keys)} {where}")
        return self._run(f"DELETE FROM {name} {where}")


def run(connection: pymysql.Connection[Any], statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def exact(name: str, declared: str) -> str:
    """SQL for everything that a column holds, as text: stored bytes of text and bytes, all digits of numbers."""
    kind, column = declared.lower().split("(")[0].split()[0], quoted(name)
    if kind in ("float", "double"):
        return f"CAST({column} * 1e0 AS CHAR)"
    if kind == "enum":
        return f"CAST({column} + 0 AS CHAR)"
    if kind in ("set", "bit"):
        return f"CAST(CAST({column} AS UNSIGNED) AS CHAR)"
    if kind in ("uuid", "inet4", "inet6", "date", "time", "datetime", "timestamp", "year", "decimal") or (
        kind.endswith(("int", "integer")) and kind not in ("point", "multipoint")
    ):
        return f"CAST({column} AS CHAR)"
    return f"HEX({column})"


def contents(connection: pymysql.Connection[Any], table: Table, database: str = DATABASE) -> list[tuple[Any, ...]]:
    """All rows of a table, every column of it (generated and invisible ones too) in the form of `exact`, sorted.

    The session must be in UTC (`SESSION`).
    """
    columns = [*([table.key] if table.key else []), *table.columns]
    listed = ", ".join(exact(c.name, c.declared) for c in columns)
    return sorted(run(connection, f"SELECT {listed} FROM {quoted(database)}.{quoted(table.name)}"), key=repr)


def digests(connection: pymysql.Connection[Any], tables: Iterable[Table]) -> dict[str, str]:
    """What is in each table, as a digest. The order of rows does not count."""
    return {t.name: hashlib.blake2b(repr(contents(connection, t)).encode(), digest_size=16).hexdigest() for t in tables}
