"""Column values: from the bytes of a row image to Python values without loss, and from those to text for people.

What a value becomes: integers, YEAR and BIT `int`; DECIMAL `Decimal`; FLOAT and DOUBLE `float`; dates and times `str`
as the server writes them, with the column's fraction digits, TIMESTAMP in UTC (no `datetime` holds `0000-00-00` or
`-838:59:59`); character columns `str`; binary, geometry and vector columns `bytes`; ENUM and SET `EnumValue` and
`SetValue`; text that cannot be decoded exactly, or whose character set the log does not say, `Undecoded`; MySQL's JSON
`JsonBinary`, which `jsonb` reads; SQL NULL `None`; a column the row image leaves out `ABSENT`.

Sources: MariaDB Knowledge Base "Rows_event_v1"; MySQL source documentation, `Rows_event`, and the storage formats of
temporal and decimal types; compressed columns as observed on MariaDB 10.11.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from streams.formats.binlog import jsonb
from streams.formats.binlog import table_map as t
from streams.formats.binlog.charsets import decode_text
from streams.formats.binlog.decimals import decimal_reader, decimal_size
from streams.formats.binlog.table_map import Column
from streams.formats.errors import FormatError, damaged


class Absent(enum.Enum):
    """The one value `ABSENT`: the row image does not say what the column holds (MINIMAL and NOBLOB images)."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class EnumValue:
    """`index` counts from 1; 0 is the server's invalid value, shown as empty text. `name` where members are known."""

    index: int
    name: str | None


@dataclass(frozen=True, slots=True)
class SetValue:
    """Member i is in the set when bit i of `bits` is set. `names` in declaration order, where members are known."""

    bits: int
    names: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Undecoded:
    """Bytes of a character column; `charset` None when the log does not say which."""

    raw: bytes
    charset: str | None


@dataclass(frozen=True, slots=True)
class JsonBinary:
    """A document in MySQL's binary form, and what a partial update changes of it. `raw` None: only the changes are known."""

    raw: bytes | None
    diffs: tuple[jsonb.Diff, ...] = ()

    def document(self) -> jsonb.Json:
        """Raises `FormatError`; so for a document of which only the changes are known."""
        if self.raw is None:
            raise FormatError("partial-image", "only what changed in a JSON document is in the row image")
        return jsonb.apply(jsonb.decode(self.raw), self.diffs)

    def text(self) -> str:
        """As the server writes it. Raises `FormatError`."""
        return jsonb.text(self.document())


Value = int | float | Decimal | str | bytes | EnumValue | SetValue | Undecoded | JsonBinary | Absent | None
Decoder = Callable[[bytes, int], tuple[Value, int]]
Convert = Callable[[bytes], Value]

_FIXED: Final[dict[int, int]] = {
    t.NULL: 0,
    t.TINY: 1,
    t.SHORT: 2,
    t.INT24: 3,
    t.LONG: 4,
    t.LONGLONG: 8,
    t.FLOAT: 4,
    t.DOUBLE: 8,
    t.YEAR: 1,
    t.DATE: 3,
    t.NEWDATE: 3,
    t.TIME: 3,
    t.DATETIME: 8,
    t.TIMESTAMP: 4,
}
_TEMPORAL2: Final[dict[int, int]] = {t.TIMESTAMP2: 4, t.DATETIME2: 5, t.TIME2: 3}
_MAX_PRECISION: Final = 65
_MAX_DECOMPRESSED: Final = 1 << 32


def size_of(column: Column) -> tuple[int, int]:
    """(fixed size, 0) or (0, width of the length prefix): how many bytes a non-NULL value of this column takes."""
    kind, (first, second) = column.type, column.meta
    if kind in _FIXED:
        return _FIXED[kind], 0
    if kind in _TEMPORAL2:
        if first > 6:
            raise damaged(f"column {column.label}")
        return _TEMPORAL2[kind] + (first + 1) // 2, 0
    if kind == t.NEWDECIMAL:
        if second > first or first > _MAX_PRECISION:
            raise damaged(f"column {column.label}")
        return decimal_size(first, second), 0
    if kind in (t.ENUM, t.SET):
        if not 1 <= second <= 8:
            raise damaged(f"column {column.label}")
        return second, 0
    if kind == t.BIT:
        return column.max_bytes, 0
    if kind in (t.VARCHAR, t.VARCHAR_COMPRESSED, t.STRING, t.VAR_STRING):
        return 0, 1 if column.max_bytes < 256 else 2
    if kind in (t.BLOB, t.TINY_BLOB, t.MEDIUM_BLOB, t.LONG_BLOB, t.BLOB_COMPRESSED, t.GEOMETRY, t.JSON, t.VECTOR):
        if not 1 <= first <= 4:
            raise damaged(f"column {column.label}")
        return 0, first
    raise FormatError(
        "unknown-type",
        f"column {column.label} has type {kind}, which this version does not read",
        "exclude the table, or upgrade",
    )


def converter_of(column: Column) -> Convert:
    """A function from the bytes of a non-NULL value (without its length) to the value."""
    size, width = size_of(column)
    return _variable(column) if width else _fixed(column, size)


def decoder_of(column: Column) -> Decoder:
    """A function (buffer, offset of a non-NULL value) -> (value, offset after it)."""
    size, width = size_of(column)
    convert = converter_of(column)
    if width:

        def decode_variable(buffer: bytes, at: int) -> tuple[Value, int]:
            start = at + width
            end = start + int.from_bytes(buffer[at:start], "little")
            if end > len(buffer):
                raise damaged(f"a value of column {column.label}")
            return convert(buffer[start:end]), end

        return decode_variable

    def decode_fixed(buffer: bytes, at: int) -> tuple[Value, int]:
        end = at + size
        if end > len(buffer):
            raise damaged(f"a value of column {column.label}")
        return convert(buffer[at:end]), end

    return decode_fixed


def _fixed(column: Column, size: int) -> Convert:
    kind, fraction = column.type, column.meta[0]
    if kind in (t.TINY, t.SHORT, t.INT24, t.LONG, t.LONGLONG):
        signed = not column.unsigned
        return lambda raw: int.from_bytes(raw, "little", signed=signed)
    if kind == t.NEWDECIMAL:
        return decimal_reader(*column.meta)
    if kind in (t.FLOAT, t.DOUBLE):
        unpack = struct.Struct("<f" if kind == t.FLOAT else "<d").unpack
        return lambda raw: unpack(raw)[0]
    if kind == t.BIT:
        return lambda raw: int.from_bytes(raw, "big")
    if kind == t.ENUM:
        members = column.members
        return lambda raw: _enum(int.from_bytes(raw, "little"), members)
    if kind == t.SET:
        names = column.members
        return lambda raw: _set(int.from_bytes(raw, "little"), names)
    if kind == t.YEAR:
        return lambda raw: raw[0] + 1900 if raw[0] else 0
    if kind in (t.DATE, t.NEWDATE):
        return _date
    if kind == t.TIME:
        return _old_time
    if kind == t.DATETIME:
        return _old_datetime
    if kind == t.TIMESTAMP:
        return lambda raw: _timestamp(int.from_bytes(raw, "little"), 0, 0)
    if kind == t.TIMESTAMP2:
        return lambda raw: _timestamp(int.from_bytes(raw[:4], "big"), _fraction(raw[4:], fraction), fraction)
    if kind == t.DATETIME2:
        return _datetime2 if not fraction else lambda raw: _datetime2(raw, fraction)
    if kind == t.TIME2:
        return lambda raw: _time2(raw, fraction)
    return lambda raw: None


def _enum(index: int, members: tuple[str, ...] | None) -> EnumValue:
    if members is None:
        return EnumValue(index, None)
    return EnumValue(index, "" if index == 0 else members[index - 1] if index <= len(members) else None)


def _set(bits: int, members: tuple[str, ...] | None) -> SetValue:
    if members is None or bits >> len(members):
        return SetValue(bits, None)
    return SetValue(bits, tuple(member for i, member in enumerate(members) if bits >> i & 1))


def _date(raw: bytes) -> str:
    packed = int.from_bytes(raw, "little")
    return f"{packed >> 9:04d}-{packed >> 5 & 15:02d}-{packed & 31:02d}"


def _old_time(raw: bytes) -> str:
    packed = int.from_bytes(raw, "little", signed=True)
    sign, packed = ("-", -packed) if packed < 0 else ("", packed)
    return f"{sign}{packed // 10000:02d}:{packed // 100 % 100:02d}:{packed % 100:02d}"


def _old_datetime(raw: bytes) -> str:
    date, time = divmod(int.from_bytes(raw, "little"), 1_000_000)
    return (
        f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d} "
        f"{time // 10000:02d}:{time // 100 % 100:02d}:{time % 100:02d}"
    )


def _fraction(raw: bytes, digits: int) -> int:
    """Microseconds from the fraction bytes, which count hundredths, ten-thousandths or millionths."""
    return int.from_bytes(raw, "big") * (1, 10_000, 100, 1)[(digits + 1) // 2]


_TWO_DIGITS: Final = tuple(f"{i:02d}" for i in range(64))


def _with_fraction(text: str, microseconds: int, digits: int) -> str:
    return f"{text}.{f'{microseconds:06d}'[:digits]}" if digits else text


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _timestamp(seconds: int, microseconds: int, digits: int) -> str:
    if seconds == 0 and microseconds == 0:
        return _with_fraction("0000-00-00 00:00:00", 0, digits)
    moment = _EPOCH + timedelta(seconds=seconds)
    return _with_fraction(f"{moment:%Y-%m-%d %H:%M:%S}", microseconds, digits)


@functools.lru_cache(maxsize=4096)
def day_text(packed: int) -> str:
    """The date and the space after it, of year and month (as one number, by 13) and day."""
    year, month = divmod(packed >> 5, 13)
    return f"{year:04d}-{month:02d}-{packed & 31:02d} "


def _datetime2(raw: bytes, digits: int = 0) -> str:
    packed = int.from_bytes(raw[:5], "big") - 0x8000000000
    if packed < 0:
        raise damaged("a DATETIME value")
    two = _TWO_DIGITS
    text = f"{day_text(packed >> 17)}{two[packed >> 12 & 31]}:{two[packed >> 6 & 63]}:{two[packed & 63]}"
    return _with_fraction(text, _fraction(raw[5:], digits), digits) if digits else text


def _time2(raw: bytes, digits: int) -> str:
    """The whole value is one big-endian number with an offset, so a negative time borrows from its fraction."""
    bits = 8 * (len(raw) - 3)
    packed = int.from_bytes(raw, "big") - (0x800000 << bits)
    sign, packed = ("-", -packed) if packed < 0 else ("", packed)
    time = packed >> bits
    fraction = (packed & (1 << bits) - 1) * (1, 10_000, 100, 1)[(digits + 1) // 2]
    text = f"{sign}{time >> 12 & 0x3FF:02d}:{time >> 6 & 63:02d}:{time & 63:02d}"
    return _with_fraction(text, fraction, digits)


def _variable(column: Column) -> Convert:
    kind, charset = column.type, column.charset
    if kind in (t.GEOMETRY, t.VECTOR):
        return lambda raw: raw
    if kind == t.JSON:
        return JsonBinary
    if kind in (t.VARCHAR_COMPRESSED, t.BLOB_COMPRESSED):
        return lambda raw: _text(decompress_column(raw), charset)
    if kind == t.STRING and charset == "binary":
        # The log strips BINARY(n) of its trailing zero bytes.
        length = column.max_bytes
        return lambda raw: raw.ljust(length, b"\0")
    return lambda raw: _text(raw, charset)


def _text(raw: bytes, charset: str | None) -> Value:
    if charset == "binary":
        return raw
    text = decode_text(raw, charset) if charset is not None else None
    return Undecoded(raw, charset) if text is None else text


def decompress_column(raw: bytes) -> bytes:
    """MariaDB's COMPRESSED columns: a byte (method << 4 | no zlib header << 3 | n), the length in n bytes, the stream.

    An empty value is empty, method 0 stores what follows as it is, method 8 is zlib.
    """
    if not raw:
        return b""
    head = raw[0]
    if head == 0:
        return raw[1:]
    width = head & 7
    if head >> 4 != 8 or not 1 <= width <= 4 or len(raw) < 1 + width:
        raise damaged("a compressed value")
    size = int.from_bytes(raw[1 : 1 + width], "big")
    if size > _MAX_DECOMPRESSED or size > 1032 * len(raw) + 64:
        raise FormatError("too-large", f"a compressed value of {len(raw)} bytes claims to hold {size}")
    inflater = zlib.decompressobj(wbits=-15 if head & 8 else 15)
    out = inflater.decompress(raw[1 + width :], size + 1)
    if len(out) != size:
        raise damaged("a compressed value")
    return out


def display(value: Value, column: Column) -> str:
    """`value` as text for people, on one line for each line it has. Not SQL (see `sql`) and not meant to be parsed."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return value
    if isinstance(value, Absent):
        return "(not in the row image)"
    if isinstance(value, EnumValue):
        return value.name if value.name is not None else f"#{value.index}"
    if isinstance(value, SetValue):
        return ",".join(value.names) if value.names is not None else f"#{value.bits:#x}"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float):
        return shortest_single(value) if column.type == t.FLOAT else repr(value)
    if isinstance(value, int):
        if column.type == t.BIT:
            return f"b'{value:0{column.meta[0] + 8 * column.meta[1]}b}'"
        return f"{value:04d}" if column.type == t.YEAR else str(value)
    if isinstance(value, Undecoded):
        text = decode_text(value.raw, "utf8mb4") if value.charset is None else None
        return text if text is not None else "0x" + value.raw.hex()
    if isinstance(value, JsonBinary):
        return _display_json(value)
    return _display_bytes(value, column.declared or "")


def _display_json(value: JsonBinary) -> str:
    try:
        if value.raw is not None:
            return value.text()
        changes = [
            f"{jsonb.OPERATIONS[d.operation]} {d.path}"
            + (f" {jsonb.text(jsonb.decode(d.value))}" if d.value is not None else "")
            for d in value.diffs
        ]
    except FormatError:
        return f"(damaged JSON) 0x{(value.raw or b'').hex()}"
    return f"(changed: {'; '.join(changes)})"


def _display_bytes(raw: bytes, declared: str) -> str:
    if declared == "uuid" and len(raw) == 16:
        text = raw.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    if declared in ("inet4", "inet6") and len(raw) in (4, 16):
        # An IPv4 address in IPv6 is written with dots, as by inet_ntop.
        if (
            len(raw) == 16
            and raw[:10] == bytes(10)
            and (raw[10:12] == b"\xff\xff" or (not any(raw[10:12]) and any(raw[12:14])))
        ):
            return ("::ffff:" if raw[10] else "::") + str(ipaddress.IPv4Address(raw[12:]))
        return str(ipaddress.ip_address(raw))
    return "0x" + raw.hex()


def shortest_single(value: float) -> str:
    """The shortest decimal that reads back as the same single-precision number."""
    exact = struct.pack("<f", value)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        try:
            if struct.pack("<f", float(text)) == exact:
                return text
        except OverflowError:  # rounded up beyond the largest single
            continue
    return repr(value)
