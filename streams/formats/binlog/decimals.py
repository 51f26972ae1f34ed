"""DECIMAL as it is stored: groups of nine digits, big-endian.

Source: MySQL source documentation, `decimal_bin_size`, `bin2decimal`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from streams.formats.errors import damaged

_DIGIT_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def decimal_size(precision: int, scale: int) -> int:
    """Bytes of DECIMAL(precision, scale): nine digits in four bytes, on each side of the point."""
    whole = precision - scale
    return whole // 9 * 4 + _DIGIT_BYTES[whole % 9] + scale // 9 * 4 + _DIGIT_BYTES[scale % 9]


def decode_decimal(raw: bytes, precision: int, scale: int) -> Decimal:
    """DECIMAL's storage: groups of nine digits, big-endian; the top bit is the sign inverted, and all of it is inverted
    for negative numbers."""
    negative = not raw[0] & 0x80
    flipped = bytearray(raw)
    flipped[0] ^= 0x80
    if negative:
        flipped = bytearray(byte ^ 0xFF for byte in flipped)
    whole = precision - scale
    sizes = [whole % 9] + [9] * (whole // 9) + [9] * (scale // 9) + [scale % 9]
    digits, at = "", 0
    for count in sizes:
        size = _DIGIT_BYTES[count]
        if size:
            group = f"{int.from_bytes(flipped[at : at + size], 'big'):0{count}d}"
            if len(group) > count:
                raise damaged("a DECIMAL value")
            digits += group
            at += size
    text = (digits[: len(digits) - scale] or "0") + ("." + digits[len(digits) - scale :] if scale else "")
    return Decimal("-" + text if negative else text)
