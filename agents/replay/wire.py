"""The client/server protocol from the server's side, as far as a replica speaks it: bytes to records and back.

A packet is a 3-byte length, a sequence number and the content; content of 2^24-1 bytes goes on in the next packet.
Nothing here reads a socket. Garbage is a `FormatError`, never another exception.

https://mariadb.com/kb/en/clientserver-protocol/, …/connection/, …/com_register_slave/, …/com_binlog_dump/
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from streams.formats.errors import FormatError, only_format_errors

FULL: Final = 0xFFFFFF
SCRAMBLE: Final = 20
# A replica sends short questions only; whatever is longer is not one.
MOST_BYTES: Final = 1 << 20

PROTOCOL_41: Final = 0x0200
CONNECT_WITH_DB: Final = 0x0008
SECURE_CONNECTION: Final = 0x8000
PLUGIN_AUTH: Final = 0x00080000
LENENC_AUTH: Final = 0x00200000
_SSL: Final = 0x0800
_LONG_PASSWORD, _LONG_FLAG, _TRANSACTIONS, _MULTI = 0x1, 0x4, 0x2000, 0x30000
# No SSL: what is served does not leave the machine. No DEPRECATE_EOF: results end as they always did.
CAPABILITIES: Final = (
    _LONG_PASSWORD | _LONG_FLAG | CONNECT_WITH_DB | PROTOCOL_41 | _TRANSACTIONS | SECURE_CONNECTION | _MULTI | PLUGIN_AUTH
    | LENENC_AUTH
)  # fmt: skip
NATIVE: Final = b"mysql_native_password"
CACHING: Final = b"caching_sha2_password"

COM_QUIT, COM_QUERY, COM_PING, COM_BINLOG_DUMP, COM_REGISTER = 0x01, 0x03, 0x0E, 0x12, 0x15
COM_BINLOG_DUMP_GTID = 0x1E
_AUTOCOMMIT: Final = 0x0002
_UTF8: Final = 33
_VARCHAR: Final = 0xFD

_u16, _u32, _head = Struct("<H"), Struct("<I"), Struct("<IB")


@dataclass(frozen=True, slots=True)
class Login:
    """A client's answer to the greeting. `plugin` is empty when it names none."""

    capabilities: int
    user: str
    response: bytes
    plugin: bytes


@dataclass(frozen=True, slots=True)
class Question:
    sql: str


@dataclass(frozen=True, slots=True)
class Register:
    """COM_REGISTER_SLAVE: a replica introduces itself."""

    server_id: int


@dataclass(frozen=True, slots=True)
class Dump:
    """COM_BINLOG_DUMP: the log is asked for. `position` and `file` say nothing where a GTID position was set before."""

    position: int
    flags: int
    server_id: int
    file: str


@dataclass(frozen=True, slots=True)
class DumpGtid:
    """COM_BINLOG_DUMP_GTID: MySQL's log is asked for, beyond the GTID set `executed` (`agents.mysql.gtid_sets.decode`)."""

    flags: int
    server_id: int
    executed: bytes


@dataclass(frozen=True, slots=True)
class Other:
    """A command that needs no record of its own: `code` is its first byte."""

    code: int


Command = Question | Register | Dump | DumpGtid | Other


def packet(content: bytes, sequence: int) -> bytes:
    """`content` in as many packets as it takes, the first numbered `sequence`."""
    out = []
    for at in range(0, len(content) + 1, FULL):
        piece = content[at : at + FULL]
        out.append(_u32.pack(len(piece) | (sequence & 0xFF) << 24) + piece)
        sequence += 1
    return b"".join(out)


class Packets:
    """Packets as they come in any cuts. `feed` bytes, then iterate over what is whole: (sequence number, content)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> None:
        self._rest += data

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while len(self._rest) >= 4:
            (word,) = _u32.unpack_from(self._rest)
            length, sequence = word & FULL, word >> 24
            if length > MOST_BYTES:
                raise FormatError("bad-length", f"a packet of {length} bytes is no question of a replica")
            if len(self._rest) < 4 + length:
                return
            content, self._rest = self._rest[4 : 4 + length], self._rest[4 + length :]
            yield sequence, content


def greeting(version: str, connection: int, scramble: bytes, plugin: bytes = NATIVE) -> bytes:
    """The first packet's content: protocol 10. `scramble`: 20 bytes, none of them zero."""
    return b"".join((
        b"\x0a", version.encode("ascii", "replace"), b"\0",
        _u32.pack(connection), scramble[:8], b"\0",
        _u16.pack(CAPABILITIES & 0xFFFF), bytes([_UTF8]), _u16.pack(_AUTOCOMMIT), _u16.pack(CAPABILITIES >> 16),
        bytes([SCRAMBLE + 1]), bytes(10), scramble[8:], b"\0",
        plugin, b"\0",
    ))  # fmt: skip


@only_format_errors("a login")
def parse_login(content: bytes) -> Login:
    (capabilities,) = _u32.unpack_from(content)
    if not capabilities & PROTOCOL_41 or capabilities & _SSL:
        raise FormatError("unsupported-login", "a client that wants TLS, or is older than 4.1")
    at = 32
    end = content.index(b"\0", at)
    user, at = content[at:end].decode("utf-8", "replace"), end + 1
    if capabilities & (LENENC_AUTH | SECURE_CONNECTION):
        # Both are one byte of length for responses as short as ours.
        length = content[at]
        response, at = content[at + 1 : at + 1 + length], at + 1 + length
    else:
        end = content.index(b"\0", at)
        response, at = content[at:end], end + 1
    if at > len(content):
        raise IndexError
    if capabilities & CONNECT_WITH_DB and at < len(content):
        at = content.index(b"\0", at) + 1
    plugin = b""
    if capabilities & PLUGIN_AUTH and at < len(content):
        plugin = content[at:].split(b"\0", 1)[0]
    return Login(capabilities, user, response, plugin)


def switch(scramble: bytes, plugin: bytes = NATIVE) -> bytes:
    """A request to answer as `plugin` does."""
    return b"\xfe" + plugin + b"\0" + scramble + b"\0"


def fast_login(sequence: int) -> bytes:
    """What caching_sha2_password is told before OK when its answer was right, so that it need not send the password."""
    return packet(b"\x01\x03", sequence)


def password_matches(password: str, scramble: bytes, response: bytes, plugin: bytes = NATIVE) -> bool:
    """mysql_native_password: SHA1(p) xor SHA1(scramble + SHA1(SHA1(p))); caching_sha2_password: SHA256(p) xor
    SHA256(SHA256(SHA256(p)) + scramble). Compared in constant time."""
    if plugin == CACHING:
        first = hashlib.sha256(password.encode()).digest()
        mask = hashlib.sha256(hashlib.sha256(first).digest() + scramble).digest()
        return hmac.compare_digest(bytes(a ^ b for a, b in zip(first, mask, strict=True)), response)
    once = hashlib.sha1(password.encode()).digest()
    twice = hashlib.sha1(once).digest()
    mask = hashlib.sha1(scramble + twice).digest()
    return hmac.compare_digest(bytes(a ^ b for a, b in zip(once, mask, strict=True)), response)


@only_format_errors("a command")
def parse_command(content: bytes) -> Command:
    code, body = content[0], content[1:]
    match code:
        case 0x03:
            return Question(body.decode("utf-8", "replace"))
        case 0x15:
            return Register(_u32.unpack_from(body)[0])
        case 0x12:
            position, flags, server_id = Struct("<IHI").unpack_from(body)
            return Dump(position, flags, server_id, body[10:].decode("utf-8", "replace"))
        case 0x1E:
            flags, server_id, named = Struct("<HII").unpack_from(body)
            at = 10 + named + 8
            (size,) = _u32.unpack_from(body, at)
            if len(body) < at + 4 + size:
                raise IndexError
            return DumpGtid(flags, server_id, body[at + 4 : at + 4 + size])
        case _:
            return Other(code)


def ok(sequence: int) -> bytes:
    return packet(b"\0\0\0" + _u16.pack(_AUTOCOMMIT) + b"\0\0", sequence)


def eof(sequence: int) -> bytes:
    return packet(b"\xfe\0\0" + _u16.pack(_AUTOCOMMIT), sequence)


def error(number: int, message: str, sequence: int, state: str = "HY000") -> bytes:
    return packet(b"\xff" + _u16.pack(number) + b"#" + state.encode() + message.encode()[:512], sequence)


def rows(names: Sequence[str], values: Sequence[Sequence[str | None]], sequence: int) -> bytes:
    """A result set of texts."""
    out = [packet(bytes([len(names)]), sequence)]
    for name in names:
        column = [_text("def"), _text(""), _text(""), _text(""), _text(name), _text(name)]
        fixed = b"\x0c" + _u16.pack(_UTF8) + _u32.pack(1024) + bytes([_VARCHAR]) + b"\0\0\0\0\0"
        sequence += 1
        out.append(packet(b"".join(column) + fixed, sequence))
    out.append(eof(sequence + 1))
    sequence += 2
    for row in values:
        out.append(packet(b"".join(b"\xfb" if v is None else _text(v) for v in row), sequence))
        sequence += 1
    out.append(eof(sequence))
    return b"".join(out)


def _text(value: str) -> bytes:
    data = value.encode()
    return (bytes([len(data)]) if len(data) < 251 else b"\xfc" + _u16.pack(len(data))) + data


def framed(payload: bytes | memoryview, sequence: int) -> tuple[list[bytes], int]:
    """Whole events as packets of a dump: a zero byte before each, and the number of the next packet.

    Raises `FormatError` (`truncated`). This is where serving a long log spends its time.
    """
    out: list[bytes] = []
    data = bytes(payload)
    at, end, pack, length_at = 0, len(data), _head.pack, _u32.unpack_from
    while at < end:
        if end - at < 19:
            raise FormatError("truncated", "an event of a step is cut off")
        (length,) = length_at(data, at + 9)
        stop = at + length
        if length < 19 or stop > end:
            raise FormatError("truncated", "an event of a step is cut off")
        if length < FULL - 1:
            out.append(pack(length + 1 | sequence << 24, 0))
            out.append(data[at:stop])
            sequence = sequence + 1 & 0xFF
        else:
            out.append(packet(b"\0" + data[at:stop], sequence))
            sequence = sequence + 1 + (length + 1) // FULL & 0xFF
        at = stop
    return out, sequence
