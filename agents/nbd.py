"""A client of the NBD protocol, as far as reading and writing disks takes: QEMU's servers (qemu-nbd, backups in pull mode).

    client     NBDMAGIC IHAVEOPT handshake · STRUCTURED_REPLY · SET_META_CONTEXT · GO      server
               request (28 bytes) [+ data] ──>
               <── simple reply (16 bytes) [+ data], or chunks (20 bytes + payload), the last one flagged

Fixed newstyle only (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). Integers are big-endian. A connection
carries one request at a time: who wants several at once opens several (`Pool`). Knows nothing of who serves.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from agents.errors import AgentError

GONE: Final = "nbd-gone"
PROTOCOL: Final = "nbd-protocol"
ALLOCATION: Final = "base:allocation"
HOLE, ZERO = 1, 2  # of `base:allocation`
DIRTY: Final = 1  # of `qemu:dirty-bitmap:NAME`

_MAGIC, _OPTION, _REPLY_OPTION = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _SIMPLE, _CHUNK = 0x25609513, 0x67446698, 0x668E33EF
_OPT_STARTTLS, _OPT_GO, _OPT_STRUCTURED, _OPT_SET_CONTEXT = 5, 7, 8, 10
_REP_ACK, _REP_INFO, _REP_CONTEXT = 1, 3, 4
_FLAG_ERROR: Final = 1 << 31
_READ, _WRITE, _DISCONNECT, _FLUSH, _ZEROES, _STATUS = 0, 1, 2, 3, 6, 7
_CAN_FLUSH, _CAN_ZERO, _READ_ONLY = 1 << 2, 1 << 6, 1 << 1
_DONE: Final = 1
_TYPE_NONE, _TYPE_DATA, _TYPE_HOLE, _TYPE_STATUS = 0, 1, 2, 5
_LARGEST: Final = 32 << 20  # of one request, and of what a server may send at once
# Bytes that one question about extents covers: as many as the protocol's 32 bits take, in whole clusters and grains of bitmaps.
_STATUS_MOST: Final = (1 << 32) - (1 << 26)
_ZEROES_MOST: Final = 1 << 30  # and one request for zeros
_PATIENCE_S: Final = 600.0

_request = struct.Struct(">IHHQQI")
_chunk = struct.Struct(">HHQI")
_option = struct.Struct(">QII")
_option_reply = struct.Struct(">QIII")


class Nbd:
    """One connection to one export. Raises `AgentError` (`nbd-gone`, `nbd-protocol`) and, for what the server refuses, `OSError`.

    Not for several threads at once.
    """

    def __init__(
        self,
        connection: socket.socket,
        export: str = "",
        contexts: Sequence[str] = (),
        *,
        secure: Callable[[socket.socket], socket.socket] | None = None,
    ) -> None:
        """`connection` is ours from now on. `contexts`: what `status` is to tell, where the server knows it. `secure`: puts TLS
        around a connection; a server that has none is refused then."""
        self._socket = connection
        self._socket.settimeout(_PATIENCE_S)
        self._cookie = 0
        self._contexts: dict[int, str] = {}
        self.size = 0
        self._flags = 0
        try:
            self._handshake(export, contexts, secure)
        except BaseException:
            self._socket.close()
            raise

    @property
    def contexts(self) -> frozenset[str]:
        """Those of the asked-for contexts that the server tells."""
        return frozenset(self._contexts.values())

    @property
    def read_only(self) -> bool:
        return bool(self._flags & _READ_ONLY)

    # --- handshake -------------------------------------------------------------------------------------------------------

    def _handshake(
        self, export: str, contexts: Sequence[str], secure: Callable[[socket.socket], socket.socket] | None
    ) -> None:
        magic, version, flags = struct.unpack(">QQH", self._received(18))
        if magic != _MAGIC or version != _OPTION or not flags & 1:
            raise _broken("the server does not speak the fixed newstyle of NBD")
        self._send(struct.pack(">I", flags & 3))
        if secure is not None:
            if self._asked(_OPT_STARTTLS, b"") is None:
                raise _broken("the server has no TLS")
            try:
                self._socket = secure(self._socket)
            except OSError as error:
                raise _gone(error) from error
        structured = self._asked(_OPT_STRUCTURED, b"") is not None
        name = export.encode()
        if structured and contexts:
            body = struct.pack(">I", len(name)) + name + struct.pack(">I", len(contexts))
            for context in contexts:
                body += struct.pack(">I", len(context.encode())) + context.encode()
            for kind, data in self._asked(_OPT_SET_CONTEXT, body) or ():
                if kind == _REP_CONTEXT and len(data) >= 4:
                    self._contexts[struct.unpack_from(">I", data)[0]] = data[4:].decode(errors="replace")
        told = self._asked(_OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        for kind, data in told or ():
            if kind == _REP_INFO and len(data) == 12 and data[:2] == b"\0\0":
                self.size, self._flags = struct.unpack_from(">QH", data, 2)
                return
        raise _broken(f"the server has no export {export!r}")

    def _asked(self, option: int, body: bytes) -> list[tuple[int, bytes]] | None:
        """Replies up to the acknowledgement; None when the server refuses the option."""
        self._send(_option.pack(_OPTION, option, len(body)) + body)
        replies: list[tuple[int, bytes]] = []
        while True:
            magic, about, kind, length = _option_reply.unpack(self._received(_option_reply.size))
            if magic != _REPLY_OPTION or about != option or length > 1 << 16 or len(replies) > 64:
                raise _broken("a reply to an option makes no sense")
            data = bytes(self._received(length))
            if kind & _FLAG_ERROR:
                return None
            if kind == _REP_ACK:
                return replies
            replies.append((kind, data))

    # --- requests --------------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on."""
        for at in range(0, len(buffer), _LARGEST):
            part = buffer[at : at + _LARGEST]
            self._ask(_READ, offset + at, len(part))
            self._answered(part, offset + at)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _LARGEST):
            part = view[at : at + _LARGEST]
            self._ask(_WRITE, offset + at, len(part), part)
            self._answered()

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros; a hole where that can be."""
        if not self._flags & _CAN_ZERO:
            zeros = bytes(min(length, 1 << 20))
            for at in range(0, length, len(zeros) or 1):
                self.write(offset + at, zeros[: length - at])
            return
        while length:
            some = min(length, _ZEROES_MOST)
            self._ask(_ZEROES, offset, some)
            self._answered()
            offset, length = offset + some, length - some

    def flush(self) -> None:
        """What was written, on any connection to this server that has had its answer, is durable on return."""
        if self._flags & _CAN_FLUSH:
            self._ask(_FLUSH, 0, 0)
            self._answered()

    def status(self, offset: int, length: int, context: str = ALLOCATION) -> Iterator[tuple[int, int, int]]:
        """(offset, length, flags) of a range in `context`, ascending and without a gap. Raises `AgentError` (`nbd-protocol`)
        where the server does not tell it."""
        if context not in self._contexts.values():
            raise _broken(f"the server does not tell {context}")
        end = offset + length
        while offset < end:
            self._ask(_STATUS, offset, min(end - offset, _STATUS_MOST))
            found = self._answered().get(context)
            if not found:
                raise _broken("the server tells no extents")
            for size, flags in found:
                size = min(size, end - offset)
                if not size:
                    break
                yield offset, size, flags
                offset += size

    def close(self) -> None:
        """May be called twice."""
        with contextlib.suppress(AgentError, OSError):
            if self._socket.fileno() >= 0:
                self._ask(_DISCONNECT, 0, 0)
        self._socket.close()

    def _ask(self, kind: int, offset: int, length: int, data: memoryview | None = None) -> None:
        self._cookie += 1
        self._send(_request.pack(_REQUEST, 0, kind, self._cookie, offset, length))
        if data is not None:
            self._send(data)

    def _answered(self, into: memoryview | None = None, offset: int = 0) -> dict[str, list[tuple[int, int]]]:
        """Take the answer to the request under way: data into `into`, whose first byte is at `offset`; extents by context."""
        extents: dict[str, list[tuple[int, int]]] = {}
        filled = 0
        while True:
            (magic,) = struct.unpack(">I", self._received(4))
            if magic == _SIMPLE:
                error, cookie = struct.unpack(">IQ", self._received(12))
                self._is_ours(cookie)
                if error:
                    raise OSError(error, os.strerror(error))
                if into is not None:
                    self._receive_into(into)
                return extents
            if magic != _CHUNK:
                raise _broken("an answer makes no sense")
            flags, kind, cookie, length = _chunk.unpack(self._received(_chunk.size))
            self._is_ours(cookie)
            if length > _LARGEST + 8:
                raise _broken("an answer is too long")
            if kind & 1 << 15:
                body = bytes(self._received(length))
                error = struct.unpack_from(">I", body)[0] if length >= 4 else 0
                raise OSError(error or 5, os.strerror(error or 5))
            if kind in (_TYPE_DATA, _TYPE_HOLE) and into is not None and length >= 8:
                (at,) = struct.unpack(">Q", self._received(8))
                size = length - 8 if kind == _TYPE_DATA else struct.unpack(">I", self._received(4))[0]
                if at < offset or at + size > offset + len(into) or (kind == _TYPE_HOLE and length != 12):
                    raise _broken("an answer is of another range than was asked for")
                part = into[at - offset : at - offset + size]
                if kind == _TYPE_DATA:
                    self._receive_into(part)
                else:
                    part[:] = bytes(size)
                filled += size
            elif kind == _TYPE_STATUS and length >= 12 and not (length - 4) % 8:
                (context,) = struct.unpack(">I", self._received(4))
                pairs = struct.iter_unpack(">II", bytes(self._received(length - 4)))
                extents.setdefault(self._contexts.get(context, ""), []).extend((size, f) for size, f in pairs)
            elif kind != _TYPE_NONE or length:
                raise _broken("an answer is none to what was asked")
            if flags & _DONE:
                if into is not None and filled != len(into):
                    raise _broken("an answer has less than was asked for")
                return extents

    def _is_ours(self, cookie: int) -> None:
        if cookie != self._cookie:
            raise _broken("an answer is to another request")

    # --- bytes -----------------------------------------------------------------------------------------------------------

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _gone(error) from error

    def _received(self, length: int) -> bytearray:
        out = bytearray(length)
        self._receive_into(memoryview(out))
        return out

    def _receive_into(self, buffer: memoryview) -> None:
        while buffer:
            try:
                got = self._socket.recv_into(buffer)
            except OSError as error:
                raise _gone(error) from error
            if not got:
                raise _gone(None)
            buffer = buffer[got:]


def _broken(what: str) -> AgentError:
    return AgentError(PROTOCOL, what, "is it QEMU that serves? `qemu-img --version`, and see its log")


def _gone(error: OSError | None) -> AgentError:
    why = f": {error.strerror or error}" if error else ""
    return AgentError(GONE, f"the connection to the server of a disk broke{why}", "try again; see that server's log")


class Pool:
    """Several connections to one export, for several threads: each request takes a free one.

    A request that failed leaves its connection in an unknown state; so it is closed, and what comes after it fails as well.
    """

    def __init__(self, connect: Callable[[], Nbd], connections: int = 2) -> None:
        self._free: queue.SimpleQueue[Nbd] = queue.SimpleQueue()
        self._all: list[Nbd] = []
        try:
            for _ in range(connections):
                self._all.append(connect())
        except BaseException:
            self.close()
            raise
        for one in self._all:
            self._free.put(one)
        self.size = self._all[0].size

    @contextlib.contextmanager
    def one(self) -> Iterator[Nbd]:
        taken = self._free.get()
        try:
            yield taken
        except AgentError:
            taken.close()
            raise
        finally:
            self._free.put(taken)

    def close(self) -> None:
        """May be called twice; no request is under way."""
        for one in self._all:
            one.close()
