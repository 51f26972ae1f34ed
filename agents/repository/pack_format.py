"""The bytes of a pack, a file of chunks that is written once; no files here. Frames that describe themselves, then a footer
that lists them.

    packs/<2 hex>/<32 hex pack id>-<node>-<epoch>.pack                                    (integers little-endian)

    header   56  "HFPACK1\\n" · u16 format · u8 flags (1: encrypted) · u8 pack kind (1 data, 2 meta) · 16 pack id ·
                 16 repository id · u64 epoch of the writer · u32 CRC32 of all before
    frame    80  "HFCK" · u32 stored · u32 raw · u8 kind · u8 codec · u16 flags (1: encrypted) · u32 frame number ·
                 8 scope id · 32 name · 16 BLAKE3-128 of the body as stored · u32 CRC32 of all before; then the body
    footer       a row a frame, in the order they stand: 32 name · u64 offset · u32 stored · u32 raw · u8 kind ·
                 u8 codec · u16 flags (0) · 16 digest of the body = 68 bytes; then
             48  32 BLAKE3-256 of header and rows · u64 bytes of rows · "HFPACKE\\n"

A body is AES-256-GCM (tag at its end) when its frame says so: key derived from the repository key and the pack id, nonce the
frame number (u96), associated data what stands in the frame before the digest, and the pack id. So a frame counts in its own
pack, under its own number and name only. Frame numbers are given out before chunks are encrypted, which is done on many
threads, so they need not ascend in the file. A pack id is random (128 bits) and a pack is never reopened for writing: no
nonce is used twice.

A pack without a footer is a beginning: `agents.repository.packs.contents_of` walks it frame by frame, looks for the next
frame head behind anything damaged, and believes a frame whose CRC32 and digest fit.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from agents.repository.errors import PACK_DAMAGED, RepositoryError
from agents.repository.format import (
    DIGEST_BYTES,
    FORMAT,
    KINDS,
    LARGEST_BODY,
    LARGEST_CHUNK,
    PACK_KINDS,
    PLAIN,
    TAG_BYTES,
    ZSTD,
    Buffer,
    Place,
)

PACK_MAGIC: Final = b"HFPACK1\n"
FRAME_MAGIC: Final = b"HFCK"
END_MAGIC: Final = b"HFPACKE\n"
ENCRYPTED: Final = 1

_header = struct.Struct("<8sHBB16s16sQ")
_frame = struct.Struct("<4sIIBBHI8s32s")
_row = struct.Struct("<32sQIIBBH16s")
_trailer = struct.Struct("<32sQ8s")
_u32 = struct.Struct("<I")

HEADER_BYTES: Final = _header.size + 4
FRAME_BYTES: Final = _frame.size + DIGEST_BYTES + 4
ROW_BYTES: Final = _row.size
TRAILER_BYTES: Final = _trailer.size
LARGEST_FOOTER: Final = 64 << 20
"""Bytes of rows, about a million frames. What a trailer may say before it is damage."""

_PACK_NAME = re.compile(r"packs/([0-9a-f]{2})/([0-9a-f]{32})-([a-z0-9][a-z0-9_-]{0,63})-([0-9]{1,20})\.pack")


@dataclass(frozen=True, slots=True)
class PackHeader:
    """What a pack begins with. `epoch`: of the writer, so that a fenced writer's packs can be told."""

    pack: bytes
    repository: bytes
    kind: int
    epoch: int
    encrypted: bool


@dataclass(frozen=True, slots=True)
class FrameHead:
    """What stands before a body of `stored` bytes. `clear`: the part that an encrypted body is bound to."""

    stored: int
    raw: int
    kind: int
    codec: int
    encrypted: bool
    number: int
    scope: bytes
    name: bytes
    digest: bytes
    clear: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A chunk in a pack. `digest`: BLAKE3-128 of its body as stored, checkable without any key."""

    name: bytes
    place: Place
    digest: bytes


def pack_file(pack: bytes, node: str, epoch: int) -> str:
    """The file of a pack. `node`: [a-z0-9_-], at most 64."""
    name = f"packs/{pack[:1].hex()}/{pack.hex()}-{node}-{epoch}.pack"
    if parse_pack_file(name) is None:
        raise ValueError(f"no pack can be called {name!r}")
    return name


def parse_pack_file(name: str) -> tuple[bytes, str, int] | None:
    """`(pack id, node, epoch)`; None when this is no pack's file."""
    found = _PACK_NAME.fullmatch(name)
    if not found or found[1] != found[2][:2]:
        return None
    return bytes.fromhex(found[2]), found[3], int(found[4])


def write_header(header: PackHeader) -> bytes:
    flags = ENCRYPTED if header.encrypted else 0
    out = _header.pack(PACK_MAGIC, FORMAT, flags, header.kind, header.pack, header.repository, header.epoch)
    return out + _u32.pack(zlib.crc32(out))


def read_header(data: Buffer) -> PackHeader:
    """The header at the start of `data`. `pack-damaged`."""
    if len(data) < HEADER_BYTES:
        raise RepositoryError(PACK_DAMAGED, "a pack that ends within its header")
    magic, version, flags, kind, pack, repository, epoch = _header.unpack_from(data)
    if magic != PACK_MAGIC or zlib.crc32(data[: _header.size]) != _u32.unpack_from(data, _header.size)[0]:
        raise RepositoryError(PACK_DAMAGED, "a pack whose header is damaged")
    if version != FORMAT or kind not in PACK_KINDS or flags & ~ENCRYPTED:
        raise RepositoryError(
            PACK_DAMAGED, f"a pack of format {version}, kind {kind}, flags {flags}", "a newer version may read it"
        )
    return PackHeader(pack, repository, kind, epoch, bool(flags & ENCRYPTED))


def write_frame_head(
    stored: int, raw: int, kind: int, codec: int, encrypted: bool, number: int, scope: bytes, name: bytes
) -> bytes:
    """The part of a frame's head before the digest, which an encrypted body is bound to."""
    return _frame.pack(FRAME_MAGIC, stored, raw, kind, codec, ENCRYPTED if encrypted else 0, number, scope, name)


def finish_frame_head(clear: bytes, digest: bytes) -> bytes:
    """The whole head, digest and CRC32 included."""
    out = clear + digest
    return out + _u32.pack(zlib.crc32(out))


def read_frame_head(data: Buffer) -> FrameHead | None:
    """The frame head at the start of `data`; None when none stands there, whole and possible."""
    if len(data) < FRAME_BYTES:
        return None
    magic, stored, raw, kind, codec, flags, number, scope, name = _frame.unpack_from(data)
    if magic != FRAME_MAGIC or zlib.crc32(data[: FRAME_BYTES - 4]) != _u32.unpack_from(data, FRAME_BYTES - 4)[0]:
        return None
    encrypted = bool(flags & ENCRYPTED)
    if not possible(stored, raw, kind, codec) or flags & ~ENCRYPTED or (encrypted and stored < TAG_BYTES):
        return None
    clear = bytes(data[: _frame.size])
    digest = bytes(data[_frame.size : _frame.size + DIGEST_BYTES])
    return FrameHead(stored, raw, kind, codec, encrypted, number, scope, name, digest, clear)


def possible(stored: int, raw: int, kind: int, codec: int) -> bool:
    """A chunk can be so."""
    return raw <= LARGEST_CHUNK and stored <= LARGEST_BODY and kind in KINDS and codec in (PLAIN, ZSTD)


def nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


def digest_of(body: Buffer) -> bytes:
    """BLAKE3-128 of a body as stored."""
    return blake3(body).digest(length=DIGEST_BYTES)


def write_row(name: bytes, offset: int, stored: int, raw: int, kind: int, codec: int, digest: bytes) -> bytes:
    return _row.pack(name, offset, stored, raw, kind, codec, 0, digest)


def write_footer(header: bytes, rows: Iterable[bytes]) -> bytes:
    """Rows and trailer. `header`: the pack's, as bytes."""
    table = b"".join(rows)
    return table + _trailer.pack(blake3(header + table).digest(), len(table), END_MAGIC)


def rows_length(trailer: Buffer, size: int) -> int | None:
    """How many bytes of rows stand before the last 48 bytes of a pack of `size` bytes; None when those are no trailer."""
    if len(trailer) != TRAILER_BYTES:
        return None
    _, length, magic = _trailer.unpack(trailer)
    fits = length % ROW_BYTES == 0 and length <= min(LARGEST_FOOTER, size - TRAILER_BYTES - HEADER_BYTES)
    return int(length) if magic == END_MAGIC and fits else None


def rows_hold(header: Buffer, rows: Buffer, trailer: Buffer) -> bool:
    """The digest of header and rows is what the trailer says."""
    return blake3(header).update(rows).digest() == bytes(trailer[:32])


def entries_in(pack: bytes, rows: Buffer, size: int) -> Iterator[Entry]:
    """The entries of a footer's rows. `pack-damaged` for a row that says what cannot be in a pack whose rows begin at `size`."""
    for name, offset, stored, raw, kind, codec, _, digest in _row.iter_unpack(rows):
        if not possible(stored, raw, kind, codec) or offset + FRAME_BYTES + stored > size:
            raise RepositoryError(PACK_DAMAGED, "a footer that lists what cannot be")
        yield Entry(name, Place(pack, offset, stored, raw, kind, codec), digest)
