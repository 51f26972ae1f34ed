"""NBD as bytes: what a client says and how it reads what a server answers. No input or output.

Source: the protocol's own document, doc/proto.md of NetworkBlockDevice/nbd ("newstyle fixed" handshake, structured replies,
meta contexts). Integers are big-endian.

    server                              client
    NBDMAGIC IHAVEOPT flags(16)  ──>
                                 <──    flags(32)
                                 <──    IHAVEOPT option(32) length(32) data          (`option`)
    magic(64) option type length data ──>                                            (`option_reply`)
                                 <──    magic flags type cookie offset length        (`request`)
    simple: magic error cookie [data]   ──>                                          (`reply`)
    chunk:  magic flags type cookie length payload ──>
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

# Handshake.
_GREETING: Final = struct.Struct(">QQH")
_INIT: Final = 0x4E42444D41474943  # NBDMAGIC
_OPTION: Final = 0x49484156454F5054  # IHAVEOPT
_OPTION_REPLY: Final = 0x3E889045565A9
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2
GREETING_SIZE: Final = _GREETING.size

OPT_GO: Final = 7
OPT_STARTTLS: Final = 5
OPT_STRUCTURED_REPLY: Final = 8
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
_REP_ERRORS: Final = {
    REP_ERROR | 1: "it does not know the option",
    REP_ERROR | 2: "it refuses by policy",
    REP_ERROR | 3: "it takes the option for malformed",
    REP_ERROR | 4: "its platform does not support that",
    REP_ERROR | 5: "it demands TLS",
    REP_ERROR | 6: "there is no such export",
    REP_ERROR | 7: "it is shutting down",
    REP_ERROR | 9: "what it was asked for is too large",
}
_OPTION_HEADER: Final = struct.Struct(">QII")
_OPTION_REPLY_HEADER: Final = struct.Struct(">QIII")
OPTION_REPLY_SIZE: Final = _OPTION_REPLY_HEADER.size
_INFO_EXPORT: Final = struct.Struct(">HQH")
MAX_OPTION_DATA: Final = 64 << 10

# Of an export (transmission flags).
READ_ONLY: Final = 1 << 1
SEND_FLUSH: Final = 1 << 2
SEND_TRIM: Final = 1 << 5
SEND_WRITE_ZEROES: Final = 1 << 6
CAN_MULTI_CONN: Final = 1 << 8

# Transmission.
Command = Literal[0, 1, 2, 3, 4, 6, 7]
READ: Final = 0
WRITE: Final = 1
DISCONNECT: Final = 2
FLUSH: Final = 3
TRIM: Final = 4
WRITE_ZEROES: Final = 6
BLOCK_STATUS: Final = 7
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_SIMPLE_MAGIC: Final = 0x67446698
_CHUNK_MAGIC: Final = 0x668E33EF
_SIMPLE: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQI")
SIMPLE_SIZE: Final = _SIMPLE.size  # what is read first of any reply
CHUNK_REST: Final = _CHUNK.size - _SIMPLE.size  # and then, of a chunk
FLAG_DONE: Final = 1
NONE: Final = 0
OFFSET_DATA: Final = 1
OFFSET_HOLE: Final = 2
STATUS: Final = 5
_ERROR_BIT: Final = 1 << 15
MAX_READ: Final = 32 << 20  # what every server takes at once
_MAX_CHUNK: Final = MAX_READ + 8
_MAX_STATUS: Final = 16 << 20

STATE_HOLE: Final = 1  # base:allocation
STATE_ZERO: Final = 2
STATE_DIRTY: Final = 1  # qemu:dirty-bitmap:…


class ProtocolError(Exception):
    """What came is not NBD, or not what was asked for."""


class OptionReply(NamedTuple):
    """`refusal` is a sentence where the server refuses."""

    type: int
    length: int

    @property
    def refusal(self) -> str:
        if not self.type & REP_ERROR:
            return ""
        return _REP_ERRORS.get(self.type, f"it refuses with error {self.type & 0xFFFF}")


class Export(NamedTuple):
    """What `OPT_GO` tells of an export. `size` in bytes."""

    size: int
    flags: int


class Reply(NamedTuple):
    """A simple reply (its data, of a read, follows), or the head of a chunk of a structured one (its `length` of payload
    follows). `error` of a simple reply is an errno."""

    structured: bool
    cookie: int
    error: int
    flags: int
    type: int
    length: int


class Status(NamedTuple):
    """A stretch of the export and its state in one context, as (length, flags)."""

    context: int
    extents: Sequence[tuple[int, int]]


def greeting(data: bytes) -> int:
    """The server's handshake flags."""
    magic, version, flags = _GREETING.unpack(data)
    if magic != _INIT:
        raise ProtocolError("it is no NBD server")
    if version != _OPTION or not flags & FIXED_NEWSTYLE:
        raise ProtocolError("it speaks an NBD that is too old")
    return int(flags)


def client_flags(server: int) -> bytes:
    return struct.pack(">I", server & (FIXED_NEWSTYLE | NO_ZEROES))


def option(number: int, data: bytes = b"") -> bytes:
    return _OPTION_HEADER.pack(_OPTION, number, len(data)) + data


def option_reply(data: bytes, number: int) -> OptionReply:
    """The head of an answer to option `number`; its data follow."""
    magic, answered, kind, length = _OPTION_REPLY_HEADER.unpack(data)
    if magic != _OPTION_REPLY:
        raise ProtocolError("an answer to an option does not begin like one")
    if answered != number:
        raise ProtocolError(f"an answer to option {answered}, when {number} was asked")
    if length > MAX_OPTION_DATA:
        raise ProtocolError(f"an answer to an option claims {length} bytes")
    return OptionReply(kind, length)


def go(export: str) -> bytes:
    name = export.encode()
    return option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))


def set_meta_context(export: str, contexts: Sequence[str]) -> bytes:
    name = export.encode()
    queries = b"".join(struct.pack(">I", len(c.encode())) + c.encode() for c in contexts)
    return option(
        OPT_SET_META_CONTEXT, struct.pack(">I", len(name)) + name + struct.pack(">I", len(contexts)) + queries
    )


def meta_context(data: bytes) -> tuple[int, str]:
    """Number and name of a context that the server will speak of."""
    if len(data) < 4:
        raise ProtocolError("a context without a number")
    return struct.unpack_from(">I", data)[0], data[4:].decode("utf-8", "replace")


def info(data: bytes) -> Export | None:
    """None: it tells of something else than size and flags."""
    if len(data) < 2:
        raise ProtocolError("an information without a type")
    if struct.unpack_from(">H", data)[0] != 0:
        return None
    if len(data) != _INFO_EXPORT.size:
        raise ProtocolError(f"size and flags of an export in {len(data)} bytes")
    _, size, flags = _INFO_EXPORT.unpack(data)
    return Export(size, flags)


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    return _REQUEST.pack(_REQUEST_MAGIC, flags, command, cookie, offset, length)


def is_chunk(data: bytes) -> bool:
    """Of the first `SIMPLE_SIZE` bytes of a reply: `CHUNK_REST` more belong to its head."""
    return bool(struct.unpack_from(">I", data)[0] == _CHUNK_MAGIC)


def reply(data: bytes) -> Reply:
    """The whole head of a reply."""
    (magic,) = struct.unpack_from(">I", data)
    if magic == _SIMPLE_MAGIC:
        _, error, cookie = _SIMPLE.unpack(data)
        return Reply(False, cookie, error, FLAG_DONE, NONE, 0)
    if magic != _CHUNK_MAGIC:
        raise ProtocolError("a reply does not begin like one")
    _, flags, kind, cookie, length = _CHUNK.unpack(data)
    if length > (_MAX_STATUS if kind == STATUS else _MAX_CHUNK):
        raise ProtocolError(f"a chunk claims {length} bytes")
    return Reply(True, cookie, 0, flags, kind, length)


def is_error(kind: int) -> bool:
    """Of a chunk's type: its payload is read by `error`."""
    return bool(kind & _ERROR_BIT)


def error(payload: bytes) -> tuple[int, str]:
    """errno, and what the server says of it."""
    if len(payload) < 6:
        raise ProtocolError("an error without a number")
    number, length = struct.unpack_from(">IH", payload)
    return number, payload[6 : 6 + length].decode("utf-8", "replace")


def data_offset(payload: bytes) -> int:
    """Of the 8 bytes that a chunk of data begins with."""
    return int(struct.unpack(">Q", payload)[0])


def hole(payload: bytes) -> tuple[int, int]:
    """Offset and length of zeros."""
    if len(payload) != 12:
        raise ProtocolError(f"a hole in {len(payload)} bytes")
    offset, length = struct.unpack(">QI", payload)
    return offset, length


def status(payload: bytes) -> Status:
    if len(payload) < 12 or len(payload) % 8 != 4:
        raise ProtocolError(f"the state of blocks in {len(payload)} bytes")
    context, *numbers = struct.unpack(f">I{(len(payload) - 4) // 4}I", payload)
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    if not all(length for length, _ in extents):
        raise ProtocolError("a stretch of no length")
    return Status(context, extents)
