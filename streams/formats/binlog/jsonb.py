"""JSON as MySQL stores and logs it: its binary form, and the differences of which a partial update consists.

    document  = type value                                   no bytes at all: null
    object    = count size key-entry* value-entry* key* value*     numbers of 2 bytes, in large ones of 4
    array     = count size value-entry* value*
    key-entry = offset, length (2 bytes)                     offsets from the object's or array's own beginning
    value-entry = type, offset or the value itself where it fits
    string    = length (7 bits a byte, lowest first) text;  opaque = type of a column, length, bytes

A document becomes dicts (keys in stored order), lists, None, bool, int, float, str, `Decimal`, `Moment` and `Opaque`.
`text` writes it as the server does. Damaged documents may point anywhere: nothing is read twice, so they cost no more than
whole ones. Does not know rows.

Source: MySQL source documentation, "JSON binary format" (json_binary), `Json_diff`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from struct import Struct
from typing import Final, Union

from streams.formats.binlog.decimals import decimal_size, decode_decimal
from streams.formats.binlog.table_map import packed_integer
from streams.formats.errors import FormatError, damaged, only_format_errors

SMALL_OBJECT, LARGE_OBJECT, SMALL_ARRAY, LARGE_ARRAY, LITERAL = 0, 1, 2, 3, 4
INT16, UINT16, INT32, UINT32, INT64, UINT64, DOUBLE, STRING, OPAQUE = 5, 6, 7, 8, 9, 10, 11, 12, 15

# Types of columns that opaque values are of.
_DATE, _TIME, _DATETIME, _TIMESTAMP, _NEWDECIMAL = 10, 11, 12, 7, 246

_DEEPEST: Final = 100
_LITERALS: Final[dict[int, bool | None]] = {0: None, 1: True, 2: False}
_numbers: Final[dict[int, Struct]] = {
    INT16: Struct("<h"),
    UINT16: Struct("<H"),
    INT32: Struct("<i"),
    UINT32: Struct("<I"),
    INT64: Struct("<q"),
    UINT64: Struct("<Q"),
    DOUBLE: Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """A date, time or date and time within a document, as the server writes it."""

    text: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """Bytes within a document; `type` is that of the column they came from."""

    type: int
    raw: bytes


Json = Union[None, bool, int, float, Decimal, str, Moment, Opaque, "list[Json]", "dict[str, Json]"]

REPLACE, INSERT, REMOVE = 0, 1, 2
OPERATIONS: Final = ("replace", "insert", "remove")


@dataclass(frozen=True, slots=True)
class Diff:
    """One change of a document: `operation` (an index of `OPERATIONS`) at `path` (`$.a[1]`); `value` in binary form."""

    operation: int
    path: str
    value: bytes | None


class _Reader:
    """Reads one document. `left`: bytes that no value has claimed yet; those of a whole document never run out."""

    __slots__ = ("left", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.left = len(raw)

    def claim(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise damaged("a JSON document")

    def take(self, at: int, size: int) -> bytes:
        self.claim(size)
        if at + size > len(self.raw):
            raise IndexError
        return self.raw[at : at + size]

    def value(self, kind: int, at: int, depth: int) -> Json:
        if kind <= LARGE_ARRAY:
            if depth > _DEEPEST:
                raise damaged("a JSON document")
            return self.container(kind, at, depth)
        if kind == STRING:
            size, at = self.length(at)
            return self.take(at, size).decode("utf-8")
        if kind == LITERAL:
            return _LITERALS[self.raw[at]]
        number = _numbers.get(kind)
        if number is not None:
            found: int | float = number.unpack_from(self.raw, at)[0]
            return found
        if kind == OPAQUE:
            size, start = self.length(at + 1)
            return _opaque(self.raw[at], self.take(start, size))
        raise damaged("a JSON document")

    def length(self, at: int) -> tuple[int, int]:
        size = shift = 0
        while True:
            byte = self.raw[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return size, at
            if shift > 28:
                raise IndexError

    def container(self, kind: int, start: int, depth: int) -> Json:
        large, raw = kind & 1, self.raw
        width = 4 if large else 2
        inlined = (LITERAL, INT16, UINT16, INT32, UINT32) if large else (LITERAL, INT16, UINT16)
        count = int.from_bytes(raw[start : start + width], "little")
        keyed = kind <= LARGE_OBJECT
        entries = start + 2 * width
        values = entries + (count * (width + 2) if keyed else 0)
        self.claim(values + count * (width + 1) - start)
        if values + count * (width + 1) > len(raw):
            raise IndexError
        items: list[Json] = []
        for at in range(values, values + count * (width + 1), width + 1):
            inner = raw[at]
            if inner in inlined:
                items.append(self.value(inner, at + 1, depth))
            else:
                offset = start + int.from_bytes(raw[at + 1 : at + 1 + width], "little")
                items.append(self.value(inner, offset, depth + 1))
        if not keyed:
            return items
        keys = []
        for at in range(entries, values, width + 2):
            offset = start + int.from_bytes(raw[at : at + width], "little")
            keys.append(self.take(offset, raw[at + width] | raw[at + width + 1] << 8).decode("utf-8"))
        return dict(zip(keys, items, strict=True))


@only_format_errors("a JSON document")
def decode(raw: bytes) -> Json:
    """The document. Raises `FormatError`."""
    return _Reader(raw).value(raw[0], 1, 0) if raw else None


def _opaque(kind: int, raw: bytes) -> Json:
    if kind == _NEWDECIMAL:
        precision, scale = raw[0], raw[1]
        if scale > precision or len(raw) != 2 + decimal_size(precision, scale):
            raise IndexError
        return decode_decimal(raw[2:], precision, scale)
    if kind in (_DATE, _TIME, _DATETIME, _TIMESTAMP):
        if len(raw) != 8:
            raise IndexError
        return Moment(_moment(kind, int.from_bytes(raw, "little", signed=True)))
    return Opaque(kind, raw)


def _moment(kind: int, packed: int) -> str:
    """A packed time: date (year and month in one, by 13), time and microseconds in 24 bits."""
    sign, packed = ("-", -packed) if packed < 0 else ("", packed)
    whole, micro = packed >> 24, packed & 0xFFFFFF
    time = f"{whole >> 12 & (0x3FF if kind == _TIME else 0x1F):02d}:{whole >> 6 & 63:02d}:{whole & 63:02d}.{micro:06d}"
    if kind == _TIME:
        return sign + time
    day = whole >> 17
    date = f"{(day >> 5) // 13:04d}-{(day >> 5) % 13:02d}-{day & 31:02d}"
    return date if kind == _DATE else f"{date} {time}"


# --- text ------------------------------------------------------------------------------------------------------------

_ESCAPES: Final = str.maketrans(
    {**{chr(i): f"\\u{i:04x}" for i in range(32)}, "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    | {'"': '\\"', "\\": "\\\\"}
)


def text(document: Json) -> str:
    """The document as the server writes it."""
    out: list[str] = []
    _write(document, out.append)
    return "".join(out)


def _write(value: Json, put: Callable[[str], None]) -> None:
    if isinstance(value, dict):
        before = "{"
        for key, item in value.items():
            put(before + _quoted(key) + ": ")
            _write(item, put)
            before = ", "
        put("}" if value else "{}")
    elif isinstance(value, list):
        before = "["
        for item in value:
            put(before)
            _write(item, put)
            before = ", "
        put("]" if value else "[]")
    elif value is None or isinstance(value, bool):
        put("null" if value is None else "true" if value else "false")
    elif isinstance(value, str):
        put(_quoted(value))
    elif isinstance(value, float):
        put(number(value))
    elif isinstance(value, Decimal):
        put(f"{value:f}")
    elif isinstance(value, Moment):
        put(f'"{value.text}"')
    elif isinstance(value, Opaque):
        put(f'"base64:type{value.type}:{base64.b64encode(value.raw).decode()}"')
    else:
        put(str(value))


def _quoted(value: str) -> str:
    return '"' + value.translate(_ESCAPES) + '"'


def number(value: float) -> str:
    """The shortest decimal that reads back as this double, written as the server does."""
    if not math.isfinite(value):
        return "null"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    shown = "".join(map(str, digits))
    point = len(shown) + exponent
    if -15 < point <= 15 or (len(shown) > point > 0):
        if point <= 0:
            body = "0." + "0" * -point + shown
        elif point >= len(shown):
            body = shown + "0" * (point - len(shown)) + ".0"
        else:
            body = shown[:point] + "." + shown[point:]
    else:
        body = (shown[0] + ("." + shown[1:] if len(shown) > 1 else "")) + f"e{point - 1}"
    return "-" + body if sign else body


def pure(document: Json) -> bool:
    """Whether JSON text says all of it: there is nothing in it that only the binary form holds."""
    if isinstance(document, dict):
        return all(map(pure, document.values()))
    if isinstance(document, list):
        return all(map(pure, document))
    return not isinstance(document, Decimal | Moment | Opaque)


# --- differences -----------------------------------------------------------------------------------------------------


@only_format_errors("a JSON difference")
def parse_diffs(raw: bytes) -> tuple[Diff, ...]:
    """The value of a column in a partial update, without its length."""
    diffs, at = [], 0
    while at < len(raw):
        operation = raw[at]
        if operation > REMOVE:
            raise damaged("a JSON difference")
        size, at = packed_integer(raw, at + 1)
        path, at = _piece(raw, at, size), at + size
        value = None
        if operation != REMOVE:
            size, at = packed_integer(raw, at)
            value, at = _piece(raw, at, size), at + size
        diffs.append(Diff(operation, path.decode("utf-8"), value))
    return tuple(diffs)


def _piece(raw: bytes, at: int, size: int) -> bytes:
    if at + size > len(raw):
        raise IndexError
    return raw[at : at + size]


@only_format_errors("a JSON difference")
def apply(document: Json, diffs: tuple[Diff, ...]) -> Json:
    """The document after `diffs`; it is changed in place where it can be. Raises `FormatError` where a path leads nowhere."""
    for diff in diffs:
        legs = parse_path(diff.path)
        value = decode(diff.value) if diff.value is not None else None
        if not legs:
            document = value
            continue
        parent = document
        for leg in legs[:-1]:
            parent = _child(parent, leg)
        _change(parent, legs[-1], diff.operation, value)
    return document


def _child(parent: Json, leg: str | int) -> Json:
    if isinstance(parent, dict) and isinstance(leg, str):
        return parent[leg]
    if isinstance(parent, list) and isinstance(leg, int):
        return parent[leg]
    raise _nowhere()


def _change(parent: Json, leg: str | int, operation: int, value: Json) -> None:
    if isinstance(parent, dict) and isinstance(leg, str):
        if (leg in parent) == (operation == INSERT):
            raise _nowhere()
        if operation == REMOVE:
            del parent[leg]
        elif operation == REPLACE:
            parent[leg] = value
        else:
            parent[leg] = value
            ordered = sorted(parent.items(), key=lambda item: (len(raw := item[0].encode()), raw))
            parent.clear()
            parent.update(ordered)
    elif isinstance(parent, list) and isinstance(leg, int):
        if leg >= len(parent) + (operation == INSERT):
            raise _nowhere()
        if operation == REMOVE:
            del parent[leg]
        elif operation == REPLACE:
            parent[leg] = value
        else:
            parent.insert(leg, value)
    else:
        raise _nowhere()


def _nowhere() -> FormatError:
    return FormatError("chain-broken", "a change within a JSON document does not fit the document before it")


def parse_path(path: str) -> list[str | int]:
    """`$.a."b c"[3]` as its legs: members by name, cells by index. The `$` may be missing."""
    legs: list[str | int] = []
    at = 1 if path.startswith("$") else 0
    while at < len(path):
        if path[at] == "[":
            end = path.index("]", at)
            legs.append(int(path[at + 1 : end]))
            at = end + 1
        elif path[at] == "." and path[at + 1 : at + 2] == '"':
            end = at + 2
            while path[end] != '"':
                end += 2 if path[end] == "\\" else 1
            legs.append(_unquoted(path[at + 1 : end + 1]))
            at = end + 1
        elif path[at] == ".":
            end = at + 1
            while end < len(path) and path[end] not in ".[":
                end += 1
            legs.append(path[at + 1 : end])
            at = end
        else:
            raise damaged("a path within a JSON document")
    return legs


def _unquoted(literal: str) -> str:
    found = json.loads(literal)
    if not isinstance(found, str):
        raise damaged("a path within a JSON document")
    return found
