"""Row keys in a form that does not depend on how a table happens to be laid out: what the key index is made of.

A key's *canonical form* is the text of each of its columns, as bytes behind their length (u32, little-endian), in key
order. An INT that becomes a BIGINT, or a VARCHAR that grows, keeps its keys' canonical forms; and what a user types
(`key_of_texts`) has the same form as what stands in a row image (`key_reader`).

Text is folded: two keys that a collation holds equal ('A' and 'a', 'é' and 'e', 'x' and 'x ') have one canonical form.
Folding is coarser than most collations and not exactly any of them, so it serves to find candidates, never to say that two
rows are the same. What some collation holds equal and folding does not ('ß' and 's' of utf8mb4_general_ci) is not found
under one form.

A table without a key has none: its rows are known by their whole image, as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address
from typing import Any, Final

from streams.formats.binlog import table_map as t
from streams.formats.binlog.net import column_slicer
from streams.formats.binlog.rows import RowLayout
from streams.formats.binlog.table_map import Column, Declared
from streams.formats.binlog.values import JsonBinary, Undecoded, Value, decoder_of, display, shortest_single, size_of
from streams.formats.errors import FormatError

KeyReader = Callable[[bytes], bytes]
"""From a row image to its key's canonical form."""

INTEGERS: Final = frozenset({t.TINY, t.SHORT, t.INT24, t.LONG, t.LONGLONG})
_INTEGER_TYPES: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "integer", "bigint"})
_BYTES_TYPES: Final = frozenset({"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"})
_LENGTHS: Final = tuple(size.to_bytes(4, "little") for size in range(32))
_INTEGER: Final = re.compile(r"[+-]?\d{1,20}")
_WORD: Final = re.compile(r"[a-z0-9]*")
_SIZE: Final = re.compile(r"\((\d+)\)")


def fold_text(text: str) -> str:
    """Without case, accents and trailing spaces."""
    if text.isascii():
        return text.lower().rstrip(" ")
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return unicodedata.normalize("NFKC", bare.casefold()).rstrip(" ")


def canonical(pieces: Sequence[bytes]) -> bytes:
    return b"".join([len(piece).to_bytes(4, "little") + piece for piece in pieces])


def key_reader(layout: RowLayout, columns: Sequence[int]) -> KeyReader:
    """Reads the canonical form of `columns` (indexes into the table) out of full row images of this layout.

    A NULL among them gives a form that no key has. The table map should be one that knows signedness and character sets.
    """
    slice_of = column_slicer(layout, columns)
    described = [layout.table_map.columns[i] for i in columns]
    if len(described) == 1 and described[0].type in INTEGERS:
        signed, size = not described[0].unsigned, size_of(described[0])[0]
        from_bytes = int.from_bytes

        def read_integer(image: bytes) -> bytes:
            raw = slice_of(image)
            if len(raw) != size:
                return b"raw" + raw
            text = b"%d" % from_bytes(raw, "little", signed=signed)
            return _LENGTHS[len(text)] + text

        return read_integer
    decoders = [decoder_of(column) for column in described]

    def read(image: bytes) -> bytes:
        raw, at = slice_of(image), 0
        pieces = []
        try:
            for column, decode in zip(described, decoders, strict=True):
                value, at = decode(raw, at)
                pieces.append(_piece(value, column))
        except (FormatError, IndexError, ValueError):
            at = -1
        return canonical(pieces) if at == len(raw) else b"raw" + raw

    return read


def form_of_values(values: Sequence[Value], columns: Sequence[Column]) -> bytes:
    """The canonical form of a key whose values were decoded."""
    return canonical([_piece(value, column) for value, column in zip(values, columns, strict=True)])


def has_null(layout: RowLayout, columns: Sequence[int]) -> Callable[[bytes], bool]:
    """Whether one of `columns` is NULL in an image."""
    places = [layout.present.index(column) for column in columns]
    size = layout.null_bytes

    def null(image: bytes) -> bool:
        bits = int.from_bytes(image[:size], "little")
        return any(bits >> place & 1 for place in places)

    return null


def _piece(value: Value, column: Column) -> bytes:
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, str):
        return fold_text(value).encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return value
    if isinstance(value, Undecoded | JsonBinary):
        return value.raw or b""
    if isinstance(value, Decimal):
        return _decimal(value)
    return fold_text(display(value, column)).encode("utf-8", "surrogatepass")


def _decimal(value: Decimal) -> bytes:
    return f"{value.normalize():f}".encode() if value else b"0"


def declared_key(definition: Mapping[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """The name and columns of what a row of a table is known by, from its canonical definition (docs/design.md): the primary
    key, else the first unique key by name without nullable columns; None without one."""
    if definition["primary_key"]:
        return "PRIMARY", tuple(definition["primary_key"])
    # A virtual column has no place of its own in the row, so nothing is looked up by it.
    usable = {c["name"] for c in definition["columns"] if not c["nullable"] and c["generated"] != "virtual"}
    for name, columns in sorted(definition["unique_keys"].items()):
        if usable.issuperset(columns):
            return name, tuple(columns)
    return None


def declared(definition: Mapping[str, Any]) -> tuple[Declared, ...]:
    """The columns of a canonical definition."""
    return tuple(Declared(c["name"], c.get("type") or "", c.get("charset")) for c in definition["columns"])


def key_of_texts(columns: Sequence[Declared], texts: Sequence[str]) -> bytes:
    """The canonical form of a key that somebody typed. Raises `FormatError` (`key-invalid`).

    Integers and decimals as numbers, bytes as `0x…`, UUID and INET as the server shows them, times as the server shows them
    (UTC for TIMESTAMP).
    """
    if len(texts) != len(columns):
        names = ", ".join(c.name for c in columns)
        raise FormatError(
            "key-invalid", f"the key has {len(columns)} columns ({names}), {len(texts)} values were given"
        )
    return canonical([_typed(column, text) for column, text in zip(columns, texts, strict=True)])


def is_integer(column: Declared) -> bool:
    """Whether keys of this column can be counted through."""
    return _base(column) in _INTEGER_TYPES


def _base(column: Declared) -> str:
    return _WORD.match(column.type.lower())[0]  # type: ignore[index]  # matches the empty text, too


def _typed(column: Declared, text: str) -> bytes:
    base = _base(column)
    try:
        if base in _INTEGER_TYPES or base == "year":
            return b"%d" % integer(text)
        if base == "bit":
            return b"%d" % (int(text[2:-1], 2) if text.startswith("b'") else integer(text))
        if base in ("decimal", "numeric"):
            return _decimal(Decimal(text.strip()))
        if base in ("float", "double"):
            number = float(text)
            return (shortest_single(number) if base == "float" else repr(number)).encode()
        if base == "uuid":
            return bytes.fromhex(text.replace("-", ""))
        if base in ("inet4", "inet6"):
            return ip_address(text).packed
        if base in _BYTES_TYPES:
            raw = bytes.fromhex(text[2:]) if text[:2].lower() == "0x" else text.encode()
            size = _SIZE.search(column.type)
            return raw.ljust(int(size[1]), b"\0") if base == "binary" and size else raw
    except (ValueError, InvalidOperation) as error:
        raise FormatError("key-invalid", f"{text!r} is no value of {column.name} ({column.type})") from error
    return fold_text(text).encode("utf-8", "surrogatepass")


def same_text(column: Declared, collation: str | None, text: str, value: Value) -> bool:
    """Whether a value of a text column is the one typed, as far as its collation's name says what it tells apart: all texts
    (`_bin`, `_as_cs`), accents (`_as_ci`), spaces at the end (MySQL's 0900, `nopad`); else both are folded."""
    if not isinstance(value, str):
        return True
    name = collation or ""
    if "_0900_" not in name and "_nopad_" not in name:
        text, value = text.rstrip(" "), value.rstrip(" ")
    elif _spaces(text) != _spaces(value):
        return False
    if name.endswith("_bin"):
        return value == text
    text, value = unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", value)
    if name.endswith("_as_cs"):
        return value == text
    if name.endswith("_as_ci"):
        return value.casefold() == text.casefold()
    return fold_text(value) == fold_text(text)


def _spaces(text: str) -> int:
    return len(text) - len(text.rstrip(" "))


def integer(text: str) -> int:
    """Raises `ValueError`."""
    if not _INTEGER.fullmatch(text.strip()):
        raise ValueError(text)
    return int(text)
