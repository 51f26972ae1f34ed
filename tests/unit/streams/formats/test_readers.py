"""Many rows at a time are what each of their values is alone: the reader of values one by one is the oracle."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.formats.binlog import table_map as t
from streams.formats.binlog.decimals import decimal_groups
from streams.formats.binlog.rows import layout_of, values_of
from streams.formats.binlog.table_map import Column, TableMap
from streams.formats.binlog.values import Value, decoder_of, size_of
from streams.formats.errors import FormatError

_TEXTS = ("", "a", "Grüße", "\0", "a\0b", "世界", "x" * 300)


def _decimal(r: random.Random, precision: int, scale: int, usual: bool) -> bytes:
    raw = b"".join(
        r.choice((0, most - 1, r.randrange(most))).to_bytes(size, "big")
        for size, most in decimal_groups(precision, scale)
    )
    raw = bytes([raw[0] ^ 0x80]) + raw[1:]
    return raw if usual or r.random() < 0.9 else bytes(byte ^ 0xFF for byte in raw)


def _raw(r: random.Random, column: Column, usual: bool) -> bytes:
    """A value as it is stored, without its length. Not `usual`: now and then one that cannot be converted beside the others."""
    if column.type == t.NEWDECIMAL:
        return _decimal(r, *column.meta, usual)
    if column.type == t.DATETIME2:
        return bytes([0x80 | r.randrange(128)]) + r.randbytes(4 + (column.meta[0] + 1) // 2)
    if column.type == t.TIMESTAMP2:
        return bytes(4) if not usual and r.random() < 0.02 else r.randbytes(4)
    if column.type == t.VARCHAR:
        return r.choice(_TEXTS).encode() if usual or r.random() < 0.99 else b"\xff"
    if column.type == t.MEDIUM_BLOB:
        return r.randbytes(r.randrange(5))
    return r.randbytes(size_of(column)[0])


@st.composite
def columns(draw: st.DrawFn) -> tuple[Column, ...]:
    found = []
    for index in range(draw(st.integers(1, 9))):
        precision = draw(st.integers(1, 65))
        kind, meta, charset = draw(
            st.sampled_from((
                (t.LONG, (0, 0), None),
                (t.NEWDECIMAL, (precision, draw(st.integers(0, min(precision, 38)))), None),
                (t.DATETIME2, (draw(st.sampled_from((0, 0, 3))), 0), None),
                (t.TIMESTAMP2, (0, 0), None),
                (t.VARCHAR, (draw(st.sampled_from((200, 255))), draw(st.sampled_from((0, 1)))), "utf8mb4"),
                (t.MEDIUM_BLOB, (3, 0), "binary"),
            ))
        )  # fmt: skip
        found.append(Column(index, kind, meta, draw(st.booleans()), f"c{index}", False, charset=charset))
    return tuple(found)


def _row(
    r: random.Random, found: tuple[Column, ...], nulls: bool, usual: bool, same: dict[int, bytes]
) -> tuple[bytes, list[Value]]:
    """A row image, and its values as they are one by one."""
    bits, data = 0, b""
    values: list[Value] = []
    for column in found:
        if nulls and column.nullable and r.random() < 0.3:
            bits |= 1 << column.index
            values.append(None)
            continue
        width = size_of(column)[1]
        most = 255 if width == 1 else 1 << 16
        raw = same.get(column.index) or _raw(r, column, usual)[:most]
        stored = len(raw).to_bytes(width, "little") + raw if width else raw
        value, end = decoder_of(column)(stored, 0)
        assert end == len(stored)
        values.append(value)
        data += stored
    unused = -1 << len(found) & (1 << 8 * ((len(found) + 7) // 8)) - 1
    return (bits | unused).to_bytes((len(found) + 7) // 8, "little") + data, values


@settings(max_examples=100, deadline=None)
@given(
    columns(),
    st.integers(0, 1 << 30),
    st.sampled_from((1, 2, 50, 1023, 1024, 1025, 2600)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_many_rows_are_what_each_value_is_alone(
    found: tuple[Column, ...], seed: int, count: int, nulls: bool, usual: bool, recurring: bool
) -> None:
    r = random.Random(seed)
    same = {c.index: _raw(r, c, usual) for c in found if recurring and c.type not in (t.VARCHAR, t.MEDIUM_BLOB)}
    rows = [_row(r, found, nulls, usual, same) for _ in range(count)]
    buffer = b"ahead" + b"".join(image for image, _ in rows) + b"behind"
    layout = layout_of(TableMap("s", "t", found, None, None, b""), b"\xff" * ((len(found) + 7) // 8))
    batches = list(values_of(layout, buffer, 5, len(buffer) - 6))
    assert [repr(values) for batch in batches for values in batch] == [repr(tuple(values)) for _, values in rows]
    assert not any(len(batch) % 2 for batch in batches[:-1]), "an update's images would be parted"


@pytest.mark.parametrize(
    ("column", "good", "damaged"),
    [
        (Column(0, t.NEWDECIMAL, (12, 2), False), b"\x81\0\0\0\1\2", b"\x81\0\0\0\1\x64"),
        (Column(0, t.NEWDECIMAL, (12, 2), False), b"\x81\0\0\0\1\2", b"\x8a\0\0\0\1\2"),
        (Column(0, t.NEWDECIMAL, (12, 2), False), b"\x81\0\0\0\1\2", b"\x81\xff\xff\xff\xff\2"),
        (Column(0, t.DATETIME2, (0, 0), False), b"\x99\0\0\0\0", b"\x79\0\0\0\0"),
    ],
)
def test_one_damaged_value_among_many_is_found(column: Column, good: bytes, damaged: bytes) -> None:
    layout = layout_of(TableMap("s", "t", (column,), None, None, b""), b"\xff")
    others = b"".join(b"\xfe" + good[:-1] + bytes([number]) for number in range(50))
    for at in (0, len(good) + 1, len(others)):
        buffer = others[:at] + b"\xfe" + damaged + others[at:]
        with pytest.raises(FormatError):
            list(values_of(layout, buffer, 0, len(buffer)))
