"""What the binary log holds compressed: MariaDB's compressed events, MySQL's transaction payloads.

Knows no events. What a header claims to hold is never believed further than its kind of compression could have come.

Sources: as of `events`.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import zstandard

from streams.formats.errors import FormatError, damaged, only_format_errors

if TYPE_CHECKING:
    from streams.formats.binlog.events import Buffer

# zlib cannot expand further than this; a larger claim is damage, not a reason to allocate memory.
_ZLIB_MAX_RATIO = 1032
# zstd stores a block of 128 KiB of one byte in four bytes.
_ZSTD_MAX_RATIO = 32768
_MAX_DECOMPRESSED = 1 << 30


@only_format_errors("a compressed event")
def decompress(data: Buffer) -> bytes:
    """MariaDB's log_bin_compress: a byte `1 000 0 nnn`, the original length in n bytes (big-endian), a zlib stream."""
    raw = bytes(data)
    head = raw[0]
    if not head & 0x80 or head & 0x70:
        raise FormatError("unsupported-event", f"a compressed event uses algorithm {head >> 4 & 7}, which is not known")
    width = head & 0x07
    if not 1 <= width <= 4 or len(raw) < 1 + width:
        raise IndexError
    size = int.from_bytes(raw[1 : 1 + width], "big")
    if size > _MAX_DECOMPRESSED or size > _ZLIB_MAX_RATIO * len(raw) + 64:
        raise FormatError("too-large", f"a compressed event of {len(raw)} bytes claims to hold {size}")
    inflater = zlib.decompressobj()
    out = inflater.decompress(raw[1 + width :], size + 1)
    if len(out) != size or not inflater.eof:
        raise damaged("a compressed event")
    return out


@only_format_errors("a transaction payload")
def payload(body: Buffer) -> bytes:
    """What a transaction payload (40) holds compressed: events without checksums, which nobody has looked at yet.

    Fields of type, length and value (packed integers): 1 size, 2 algorithm (0 zstd, 255 none), 3 size of what is compressed;
    0 ends them and is followed by the data.
    """
    raw = bytes(body)
    at, algorithm, size = 0, 255, 0
    while True:
        kind, at = _packed(raw, at)
        if kind == 0:
            break
        length, at = _packed(raw, at)
        value, _ = _packed(raw, at)
        if at + length > len(raw):
            raise IndexError
        at += length
        algorithm, size = (value, size) if kind == 2 else (algorithm, value) if kind == 3 else (algorithm, size)
    data = raw[at:]
    if algorithm == 255:
        return data
    if algorithm != 0:
        raise FormatError("unsupported-event", f"a transaction payload uses algorithm {algorithm}, which is not known")
    if size > _MAX_DECOMPRESSED or size > _ZSTD_MAX_RATIO * len(data) + 64:
        raise FormatError("too-large", f"a transaction payload of {len(raw)} bytes claims to hold {size}")
    pieces, left = [], size
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(data)
        # One more byte is asked for than is claimed. What is asked for is allocated, so it is asked for in pieces.
        while piece := reader.read(min(left + 1, 1 << 20)):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                break
    except zstandard.ZstdError as error:
        raise damaged("a transaction payload") from error
    if left:
        raise damaged("a transaction payload")
    return b"".join(pieces)


def _packed(raw: bytes, at: int) -> tuple[int, int]:
    """A packed integer at `at`, and where it ends."""
    first = raw[at]
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    if first >= 0xFF or at + 1 + width > len(raw):
        raise IndexError
    return (int.from_bytes(raw[at + 1 : at + 1 + width], "little") if width else first), at + 1 + width
