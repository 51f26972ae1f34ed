"""DECIMAL as it is stored: groups of nine digits, big-endian.

Source: MySQL source documentation, `decimal_bin_size`, `bin2decimal`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Final

from streams.formats.errors import damaged

_EXACT: Final = Context(prec=100)
_DIGIT_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def decimal_size(precision: int, scale: int) -> int:
    """Bytes of DECIMAL(precision, scale): nine digits in four bytes, on each side of the point."""
    whole = precision - scale
    return whole // 9 * 4 + _DIGIT_BYTES[whole % 9] + scale // 9 * 4 + _DIGIT_BYTES[scale % 9]


def decode_decimal(raw: bytes, precision: int, scale: int) -> Decimal:
    """The value of DECIMAL(precision, scale). Raises `FormatError` where a group holds more than its digits."""
    return decimal_reader(precision, scale)(raw)


@functools.lru_cache(maxsize=1024)
def decimal_reader(precision: int, scale: int) -> Callable[[bytes], Decimal]:
    """A function from the stored bytes of DECIMAL(precision, scale) to the value.

    The top bit is the sign inverted, and all of it is inverted for negative numbers.
    """
    whole = precision - scale
    digits = [n for n in (whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9) if n]
    # Each group as (how far from the right, mask, what it counts up to), from the left.
    bits, groups = 0, []
    for count in reversed(digits):
        size = 8 * _DIGIT_BYTES[count]
        groups.append((bits, (1 << size) - 1, 10**count))
        bits += size
    groups.reverse()
    top, everything = 1 << max(bits - 1, 0), (1 << bits) - 1

    def exactly(value: int, negative: bool) -> Decimal:
        if value or not negative:
            return Decimal(-value if negative else value).scaleb(-scale, _EXACT)
        return Decimal(f"-0E-{scale}")

    def read(raw: bytes) -> Decimal:
        packed = int.from_bytes(raw, "big") ^ top
        negative = packed & top
        if negative:
            packed ^= everything
        value = 0
        for shift, mask, most in groups:
            group = packed >> shift & mask
            if group >= most:
                raise damaged("a DECIMAL value")
            value = value * most + group
        return exactly(value, bool(negative))

    if len(groups) > 3:
        return read
    # Nearly all there are: the loop unrolled.
    padded = [(bits, 0, 1)] * (3 - len(groups)) + groups
    (s1, _, most1), (s2, mask2, most2), (_, mask3, most3) = padded

    def read_short(raw: bytes) -> Decimal:
        packed = int.from_bytes(raw, "big") ^ top
        if packed & top:
            return read(raw)
        first, second, third = packed >> s1, packed >> s2 & mask2, packed & mask3
        if first >= most1 or second >= most2 or third >= most3:
            raise damaged("a DECIMAL value")
        return Decimal((first * most2 + second) * most3 + third).scaleb(-scale, _EXACT)

    return read_short
