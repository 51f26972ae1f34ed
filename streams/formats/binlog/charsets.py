"""Collation ids of the server to its character sets, and those to Python codecs.

A text is decoded only where encoding it again gives the same bytes; who cannot have that shows bytes instead.
Source: MariaDB 10.11 information_schema.collation_character_set_applicability; MySQL 8.0 information_schema.collations.
"""

from __future__ import annotations

import codecs
import functools
from typing import Final

_IDS: Final[dict[str, tuple[int | range, ...]]] = {
    "armscii8": (32, 64),
    "ascii": (11, 65),
    "big5": (1, 84),
    "binary": (63,),
    "cp1250": (26, 34, 44, 66, 99),
    "cp1251": (14, 23, 50, 51, 52),
    "cp1256": (57, 67),
    "cp1257": (29, 58, 59),
    "cp850": (4, 80),
    "cp852": (40, 81),
    "cp866": (36, 68),
    "cp932": (95, 96),
    "dec8": (3, 69),
    "eucjpms": (97, 98),
    "euckr": (19, 85),
    "gb18030": (248, 249, 250),
    "gb2312": (24, 86),
    "gbk": (28, 87),
    "geostd8": (92, 93),
    "greek": (25, 70),
    "hebrew": (16, 71),
    "hp8": (6, 72),
    "keybcs2": (37, 73),
    "koi8r": (7, 74),
    "koi8u": (22, 75),
    "latin1": (5, 8, 15, 31, 47, 48, 49, 94),
    "latin2": (2, 9, 21, 27, 77),
    "latin5": (30, 78),
    "latin7": (20, 41, 42, 79),
    "macce": (38, 43),
    "macroman": (39, 53),
    "sjis": (13, 88),
    "swe7": (10, 82),
    "tis620": (18, 89),
    "ucs2": (35, 90, range(128, 152), 159, range(640, 672)),
    "ujis": (12, 91),
    "utf16": (54, 55, range(101, 125), range(672, 704)),
    "utf16le": (56, 62),
    "utf32": (60, 61, range(160, 184), range(736, 768)),
    "utf8mb3": (33, 76, 83, range(192, 216), 223, range(576, 608)),
    "utf8mb4": (45, 46, range(224, 248), range(255, 324), range(608, 640)),
}

# MariaDB numbers its UCA 14.0.0 collations in blocks of 256, one block a character set.
_UCA1400: Final = ("utf8mb3", "utf8mb4", "ucs2", "utf16", "utf32")
_NOPAD: Final = 1024  # MariaDB: the NO PAD twin of a collation

_CODECS: Final[dict[str, str]] = {
    "ascii": "ascii",
    "big5": "big5",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1256": "cp1256",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp866": "cp866",
    "cp932": "cp932",
    "eucjpms": "euc_jp",
    "euckr": "euc_kr",
    "gb18030": "gb18030",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "greek": "iso8859_7",
    "hebrew": "iso8859_8",
    "hp8": "hp_roman8",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "latin2": "iso8859_2",
    "latin5": "iso8859_9",
    "latin7": "iso8859_13",
    "macce": "mac_latin2",
    "macroman": "mac_roman",
    "sjis": "shift_jis",
    "tis620": "tis_620",
    "ucs2": "utf-16-be",
    "ujis": "euc_jp",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
    "utf8mb3": "utf-8",
    "utf8mb4": "utf-8",
}

UNICODE: Final = frozenset({"utf8mb3", "utf8mb4", "ucs2", "utf16", "utf16le", "utf32"})
UTF8: Final = frozenset({"utf8mb3", "utf8mb4", "ascii"})
# Character sets in which ASCII text is not the same bytes.
WIDE: Final = frozenset({"ucs2", "utf16", "utf16le", "utf32"})
BYTES_PER_CHARACTER: Final[dict[str, int]] = {
    **dict.fromkeys(("big5", "cp932", "euckr", "gb2312", "gbk", "sjis", "ucs2"), 2),
    **dict.fromkeys(("eucjpms", "ujis", "utf8mb3"), 3),
    **dict.fromkeys(("gb18030", "utf16", "utf16le", "utf32", "utf8mb4"), 4),
}
"""The most that one character takes; 1 where the character set is not named."""
_NOT_ASCII: Final = WIDE | {"swe7"}

# Those that Python's codec and the server map to Unicode alike (every character compared on MariaDB 10.11): text in them
# may be written as a utf8mb4 literal, and converts to the same bytes.
SAME_AS_SERVER: Final = UNICODE | {
    "ascii",
    "cp1250",
    "cp1251",
    "cp1257",
    "cp850",
    "cp852",
    "cp932",
    "euckr",
    "gb2312",
    "gbk",
    "hp8",
    "koi8r",
    "latin1",
    "latin2",
    "latin5",
    "latin7",
    "macce",
    "macroman",
    "tis620",
}

# The server's latin1 is Windows-1252 with its five holes filled by the control characters of the same number.
_LATIN1_TABLE: Final = "".join(bytes([i]).decode("cp1252", "ignore") or chr(i) for i in range(256))
_LATIN1_ENCODE: Final = {ord(character): i for i, character in enumerate(_LATIN1_TABLE)}


def _flatten() -> dict[int, str]:
    flat: dict[int, str] = {}
    for name, ids in _IDS.items():
        for entry in ids:
            for number in entry if isinstance(entry, range) else (entry,):
                flat[number] = name
    return flat


_BY_ID: Final = _flatten()


@functools.lru_cache(maxsize=4096)
def charset_of(collation: int) -> str | None:
    """The character set of a collation id, or None if this version does not know it. `utf8` is called `utf8mb3`."""
    if 2048 <= collation < 2048 + 256 * len(_UCA1400):
        return _UCA1400[(collation - 2048) // 256]
    if _NOPAD <= collation < 2048:
        return _BY_ID.get(collation - _NOPAD)
    return _BY_ID.get(collation)


def decode_text(raw: bytes, charset: str | None) -> str | None:
    """The text of `raw`, or None where the character set is unknown or decoding would lose something."""
    if charset in UTF8:
        try:
            return raw.decode("utf-8" if charset != "ascii" else "ascii")
        except UnicodeDecodeError:
            return None
    if charset == "latin1":
        return codecs.charmap_decode(raw, "strict", _LATIN1_TABLE)[0]
    codec = _CODECS.get(charset or "")
    if codec is None:
        return raw.decode("ascii") if raw.isascii() and charset is not None and charset not in _NOT_ASCII else None
    try:
        text = raw.decode(codec)
        return text if text.encode(codec) == raw else None
    except UnicodeError:
        return None


def encode_text(text: str, charset: str) -> bytes | None:
    """The inverse of `decode_text`, or None where the character set cannot hold the text."""
    try:
        if charset == "latin1":
            return codecs.charmap_encode(text, "strict", _LATIN1_ENCODE)[0]
        return text.encode(_CODECS.get(charset, "ascii"))
    except UnicodeError:
        return None
