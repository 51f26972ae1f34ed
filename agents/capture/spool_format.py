"""The bytes of a spool segment: a head, then frames. Bytes to records and back, sealed and checksummed; no files.

A segment (integers little-endian):

    head    "HFSPOOL\\x01" · u32 bytes that follow · 16 id of the spool · u64 number of the segment · u64 since_us ·
            u64 ordinal · u8 open · 36 lineage · 16 key id · 12 nonce · sealed standing · u32 CRC32 of all before
    frame   "HFFR" · u32 bytes that follow · u8 flags · u64 first ordinal · u64 last ordinal ·
            16 key id · 12 nonce · sealed body · u32 CRC32 of all before in the frame

`ordinal` is the last complete step's before the segment, `open` says that a step larger than a record goes on in it. Sealed is
AES-256-GCM under the site key for the purpose `spool/<source>`. A head's associated data is what stands before its key id; a
frame's is the spool's id, the segment's number, the frame's offset in the file (u64 each) and its flags and ordinals: so a
frame counts in its own place only. The CRC32 tells damage without the key. In clear are: how much, since when, which steps.

    standing   three fields: native position before step `ordinal`, after it, its digest (empty: the lineage has no step yet)
    body       zstd of: u64 captured_us · u32 events · u32 server id · u64 offset · i64 step_time_us, then seven fields: before,
               after, file, preamble, digest of the last complete step (empty while there is none in the frame), ends of steps
               (u32 each), payload; each field with its length before it as u32

Flags: 1 a piece of a step, 2 its first, 4 its last, 8 account statements.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from dataclasses import dataclass
from struct import Struct

import zstandard

from agents.capture.records import Standing, packed
from agents.protocol import Piece, Steps, Taken
from streams.capture_record import Sealer
from streams.errors import StreamError

HEAD_MAGIC = b"HFSPOOL\x01"
FRAME_MAGIC = b"HFFR"
PIECE, FIRST, LAST, ACCOUNTS = 1, 2, 4, 8
LARGEST_FRAME = 64 << 20  # what a length may say before it is damage
_LEVEL = 1

_u32 = Struct("<I")
_head = Struct("<16sQQQB36s")
_frame = Struct("<BQQ")
_place = Struct("<16sQQ")
_body = Struct("<QIIQq")
_KEY_ID, _NONCE = 16, 12


class FrameDamaged(Exception):
    """What stands there is not what was written. `first`, `last`: which steps it held, 0 when that cannot be told."""

    def __init__(self, why: str, first: int = 0, last: int = 0) -> None:
        super().__init__(why)
        self.first = first
        self.last = last


@dataclass(frozen=True, slots=True)
class Head:
    """What a segment begins with. `size` in bytes; `open`: the segment begins within step `ordinal` + 1."""

    spool: bytes
    number: int
    since_us: int
    ordinal: int
    open: bool
    lineage: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """What the source handed over at once: steps `first..last`, or a piece of step `first`. `digest`: of the last complete
    step in it, empty while there is none. `size`: bytes in the file."""

    taken: Taken
    first: int
    last: int
    captured_us: int
    digest: bytes
    size: int = 0

    @property
    def completes(self) -> bool:
        """A step is complete at its end."""
        return isinstance(self.taken, Steps) or self.taken.last


def purpose(source: str) -> str:
    """What the spool of a source is sealed for."""
    return f"spool/{source}"


# -- heads


def write_head(head: Head, standing: Standing, source: str, sealer: Sealer) -> bytes:
    clear = _head.pack(
        head.spool, head.number, head.since_us, head.ordinal, head.open, head.lineage.encode().ljust(36, b"\0")
    )
    key_id, nonce, sealed = sealer.seal(
        purpose(source), _fields(standing.before.encode(), standing.after.encode(), standing.proof or b""), clear
    )
    rest = clear + key_id.encode() + nonce + sealed
    out = HEAD_MAGIC + _u32.pack(len(rest) + 4) + rest
    return out + _u32.pack(zlib.crc32(out))


def read_head(data: bytes) -> Head:
    """The clear part of the head at the start of `data`; needs no key. Raises `FrameDamaged`."""
    head, _ = _checked_head(data)
    return head


def read_standing(data: bytes, source: str, sealer: Sealer) -> Standing:
    """The sealed part of the head at the start of `data`. Raises `FrameDamaged`."""
    head, clear = _checked_head(data)
    at = 12 + len(clear)
    before, after, digest = _split(_unsealed(sealer, source, data, at, head.size - 4, clear), 3)
    return Standing(head.ordinal, before.decode(), after.decode(), digest or None)


def _checked_head(data: bytes) -> tuple[Head, bytes]:
    if len(data) < 12 + _head.size or data[:8] != HEAD_MAGIC:
        raise FrameDamaged("no head of a segment")
    size = 12 + int.from_bytes(data[8:12], "little")
    if size > min(len(data), 1 << 20) or zlib.crc32(data[: size - 4]) != int.from_bytes(
        data[size - 4 : size], "little"
    ):
        raise FrameDamaged("the head of a segment is damaged")
    clear = data[12 : 12 + _head.size]
    spool, number, since_us, ordinal, is_open, lineage = _head.unpack(clear)
    return Head(spool, number, since_us, ordinal, bool(is_open), lineage.rstrip(b"\0").decode(), size), clear


# -- frames


def write_frame(frame: Frame, head: Head, offset: int, source: str, sealer: Sealer) -> bytes:
    """The frame as it stands at `offset` of the segment that `head` begins."""
    taken = frame.taken
    ends = packed(taken.ends) if isinstance(taken, Steps) else b""
    flags = ACCOUNTS if taken.accounts else 0
    if isinstance(taken, Piece):
        flags |= PIECE | (FIRST if taken.first else 0) | (LAST if taken.last else 0)
    plain = _body.pack(frame.captured_us, taken.events, taken.server_id, taken.offset, taken.step_time_us) + _fields(
        taken.before.encode(),
        taken.after.encode(),
        taken.file.encode(),
        taken.preamble,
        frame.digest,
        ends,
        taken.payload,
    )
    clear = _frame.pack(flags, frame.first, frame.last)
    body = zstandard.ZstdCompressor(level=_LEVEL).compress(plain)
    key_id, nonce, sealed = sealer.seal(purpose(source), body, _bound(head, offset, clear))
    rest = clear + key_id.encode() + nonce + sealed
    out = FRAME_MAGIC + _u32.pack(len(rest) + 4) + rest
    return out + _u32.pack(zlib.crc32(out))


def frame_size(start: bytes) -> int:
    """Bytes of the frame of which `start` is the first eight. Raises `FrameDamaged`."""
    if len(start) < 8 or start[:4] != FRAME_MAGIC:
        raise FrameDamaged("no frame begins there")
    size = 8 + int.from_bytes(start[4:8], "little")
    if not 8 + _frame.size + _KEY_ID + _NONCE + 16 + 4 <= size <= LARGEST_FRAME:
        raise FrameDamaged("a frame of an impossible length")
    return size


def steps_in(data: bytes) -> tuple[int, int]:
    """First and last step in a frame; needs no key. Raises `FrameDamaged`."""
    if frame_size(data[:8]) != len(data) or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise FrameDamaged("a frame that is not what its checksum says")
    _, first, last = _frame.unpack_from(data, 8)
    return first, last


def read_frame(data: bytes, head: Head, offset: int, source: str, sealer: Sealer) -> Frame:
    """The frame that `data` is, which stood at `offset` of `head`'s segment. Raises `FrameDamaged`, naming its steps."""
    if frame_size(data[:8]) != len(data):
        raise FrameDamaged("a frame that is cut off")
    clear = data[8 : 8 + _frame.size]
    flags, first, last = _frame.unpack(clear)
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise FrameDamaged("a frame that is not what its checksum says", first, last)
    body = _unsealed(sealer, source, data, 8 + _frame.size, len(data) - 4, _bound(head, offset, clear))
    try:
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=LARGEST_FRAME)
        captured_us, events, server_id, place, time_us = _body.unpack_from(plain)
        before, after, file, preamble, digest, ends, payload = _split(plain[_body.size :], 7)
    except (zstandard.ZstdError, struct.error) as error:
        raise FrameDamaged(f"a frame that makes no sense: {error}", first, last) from error
    common = {
        "payload": payload,
        "events": events,
        "before": before.decode(),
        "after": after.decode(),
        "preamble": preamble,
        "server_id": server_id,
        "file": file.decode(),
        "offset": place,
        "step_time_us": time_us,
        "accounts": bool(flags & ACCOUNTS),
    }
    taken: Taken
    if flags & PIECE:
        taken = Piece(first=bool(flags & FIRST), last=bool(flags & LAST), **common)
    else:
        taken = Steps(ends=_unpacked(ends), **common)
    return Frame(taken, first, last, captured_us, digest, len(data))


def _bound(head: Head, offset: int, clear: bytes) -> bytes:
    return _place.pack(head.spool, head.number, offset) + clear


def _unsealed(sealer: Sealer, source: str, data: bytes, at: int, end: int, aad: bytes) -> bytes:
    key_id = data[at : at + _KEY_ID].decode("ascii", "replace")
    nonce = data[at + _KEY_ID : at + _KEY_ID + _NONCE]
    try:
        return sealer.unseal(purpose(source), key_id, nonce, data[at + _KEY_ID + _NONCE : end], aad)
    except StreamError as error:
        raise FrameDamaged(f"what was sealed does not open: {error.message}") from error


def _fields(*values: bytes) -> bytes:
    return b"".join(part for value in values for part in (_u32.pack(len(value)), value))


def _split(data: bytes, count: int) -> list[bytes]:
    out = []
    at = 0
    for _ in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        out.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(data):
        raise FrameDamaged("fields that do not fit what holds them")
    return out


def _unpacked(data: bytes) -> list[int]:
    out = array("I", data)
    if sys.byteorder == "big":  # pragma: no cover - no platform of ours
        out.byteswap()
    return out.tolist()
