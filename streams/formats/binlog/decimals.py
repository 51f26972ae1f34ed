"""DECIMAL as it is stored: groups of nine digits, big-endian.

Source: MySQL source documentation, `decimal_bin_size`, `bin2decimal`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Final

from streams.formats.errors import damaged

EXACT: Final = Context(prec=100)
_DIGIT_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def decimal_size(precision: int, scale: int) -> int:
    """Bytes of DECIMAL(precision, scale): nine digits in four bytes, on each side of the point."""
    whole = precision - scale
    return whole // 9 * 4 + _DIGIT_BYTES[whole % 9] + scale // 9 * 4 + _DIGIT_BYTES[scale % 9]


def decimal_groups(precision: int, scale: int) -> list[tuple[int, int]]:
    """The groups of digits as they are stored, from the left: bytes, and what they count up to."""
    whole = precision - scale
    digits = [n for n in (whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9) if n]
    return [(_DIGIT_BYTES[n], 10**n) for n in digits]


def decimal_unit(scale: int) -> Decimal:
    """What a whole number is to be multiplied by, in `EXACT`, to have `scale` digits after the point."""
    return Decimal(1).scaleb(-scale)


def decode_decimal(raw: bytes, precision: int, scale: int) -> Decimal:
    """The value of DECIMAL(precision, scale). Raises `FormatError` where a group holds more than its digits."""
    return decimal_reader(precision, scale)(raw)


@functools.lru_cache(maxsize=1024)
def decimal_reader(precision: int, scale: int) -> Callable[[bytes], Decimal]:
    """A function from the stored bytes of DECIMAL(precision, scale) to the value.

    The top bit is the sign inverted, and all of it is inverted for negative numbers.
    """
    # Each group as (how far from the right, mask, what it counts up to), from the left.
    bits, groups = 0, []
    for size, most in reversed(decimal_groups(precision, scale)):
        groups.append((bits, (1 << 8 * size) - 1, most))
        bits += 8 * size
    groups.reverse()
    unit = decimal_unit(scale)
    top, everything = 1 << max(bits - 1, 0), (1 << bits) - 1

    def exactly(value: int, negative: bool) -> Decimal:
        if value or not negative:
            return EXACT.multiply(-value if negative else value, unit)
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
        return EXACT.multiply((first * most2 + second) * most3 + third, unit)

    return read_short
