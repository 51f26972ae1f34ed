"""Conversions of a whole column at a time, for the types whose values rarely recur: amounts, moments, texts.

What `values` does for one value, in calls that take all of them: the stored bytes joined and unpacked together, arithmetic in
one comprehension. Damage, negative amounts and whatever else is not as usual make a conversion decline (None): then each
value goes by `values`, which raises what is to be raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import repeat
from struct import Struct
from typing import Final

from streams.formats.binlog import table_map as t
from streams.formats.binlog.decimals import EXACT, decimal_groups, decimal_unit
from streams.formats.binlog.table_map import Column
from streams.formats.binlog.values import Value, day_text

Columnwise = Callable[[Sequence[bytes]], Sequence[Value] | None]

_CODES: Final = {1: "B", 2: "H", 3: "BH", 4: "I"}
_MOST_DAYS: Final = 4096
_SIXTY_FOUR: Final = tuple(f"{i:02d}" for i in range(64))
# Hours and minutes as DATETIME has them, in 5 and 6 bits; and of a day, by the minute.
_PACKED_MINUTES: Final = tuple(f"{i >> 6:02d}:{i & 63:02d}:" for i in range(1 << 11))
_MINUTES: Final = tuple(f"{i // 60:02d}:{i % 60:02d}:" for i in range(24 * 60))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def columnwise(column: Column) -> Columnwise | None:
    """A function from the stored bytes of a column's non-NULL values, at least one, to the values; None for a type that has
    none."""
    if column.type == t.NEWDECIMAL:
        return _decimals(*column.meta)
    if column.type == t.DATETIME2 and not column.meta[0]:
        return _datetimes
    if column.type == t.TIMESTAMP2 and not column.meta[0]:
        return _timestamps
    return None


def texts(raws: Sequence[bytes], codec: str) -> list[str] | None:
    """Texts of a charset in which a zero byte is nothing but itself. Raises UnicodeDecodeError."""
    found = str(b"\0".join(raws), codec).split("\0")
    return found if len(found) == len(raws) else None


def _decimals(precision: int, scale: int) -> Columnwise:
    groups, unit = decimal_groups(precision, scale), decimal_unit(scale)
    unpack = Struct(">" + "".join(_CODES[size] for size, _ in groups)).iter_unpack
    (first_size, first_most), *others = groups
    top = 1 << 8 * first_size - 1

    def decimals(raws: Sequence[bytes]) -> Sequence[Value] | None:
        if min(raws) < b"\x80":
            return None  # some are negative
        fields = zip(*unpack(b"".join(raws)), strict=True)
        values = _whole(fields, first_size)
        if max(values) >= top + first_most:
            return None
        above = top  # the sign, which stands above the first group
        for size, most in others:
            group = _whole(fields, size)
            if max(group) >= most:
                return None
            values = [(value - above) * most + low for value, low in zip(values, group, strict=True)]
            above = 0
        if above:
            values = [value - above for value in values]
        return list(map(EXACT.multiply, values, repeat(unit)))

    return decimals


def _whole(fields: Iterator[tuple[int, ...]], size: int) -> Sequence[int]:
    """The next group of each value; three bytes are unpacked as one and two."""
    group = next(fields)
    return group if size != 3 else [high << 16 | low for high, low in zip(group, next(fields), strict=True)]


class _Days(dict[int, str]):
    """Of DATETIME: date and the space after it by its first 23 bits, of which the highest is set."""

    def __missing__(self, key: int) -> str:
        if len(self) > _MOST_DAYS:
            self.clear()
        text = self[key] = day_text(key & 0x3FFFFF)
        return text


class _DaysSinceEpoch(dict[int, str]):
    """Date and the space after it by days since 1970."""

    def __missing__(self, key: int) -> str:
        if len(self) > _MOST_DAYS:
            self.clear()
        text = self[key] = f"{_EPOCH + timedelta(days=key):%Y-%m-%d} "
        return text


_days: Final = _Days()
_days_since_epoch: Final = _DaysSinceEpoch()
_five_bytes: Final = Struct(">BI").iter_unpack
_seconds: Final = Struct(">I").iter_unpack


def _datetimes(raws: Sequence[bytes]) -> Sequence[Value] | None:
    if min(raws) < b"\x80":
        return None  # damaged
    days, minutes, two = _days, _PACKED_MINUTES, _SIXTY_FOUR
    return [
        days[high << 15 | low >> 17] + minutes[low >> 6 & 2047] + two[low & 63]
        for high, low in _five_bytes(b"".join(raws))
    ]


def _timestamps(raws: Sequence[bytes]) -> Sequence[Value] | None:
    if min(raws) == b"\0\0\0\0":
        return None  # the zero timestamp is no moment
    days, minutes, two = _days_since_epoch, _MINUTES, _SIXTY_FOUR
    return [
        days[seconds // 86400] + minutes[seconds // 60 % 1440] + two[seconds % 60]
        for (seconds,) in _seconds(b"".join(raws))
    ]
