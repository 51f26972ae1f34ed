"""Connections to an NBD export. Blocking; one thread uses a connection at a time, `Pool` gives each thread one.

Bytes go from the socket right into the caller's buffer, without Python's lock held: that is the hot path of backups
(docs/adr/0025). One request is under way on a connection, so several threads read in parallel by several connections.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, Self

from agents.errors import AgentError, SourceUnavailable
from agents.nbd import wire
from agents.nbd.wire import ProtocolError

TIMEOUT_S: Final = 120.0
_STATUS_STEP: Final = 1 << 30  # asked for at once

Dial = Callable[[], socket.socket]


def unix(path: str, timeout: float = TIMEOUT_S) -> Dial:
    """Connects to a socket in the file system."""

    def dial() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(timeout)
        try:
            made.connect(path)
        except OSError:
            made.close()
            raise
        return made

    return dial


def tcp(host: str, port: int, timeout: float = TIMEOUT_S) -> Dial:
    def dial() -> socket.socket:
        made = socket.create_connection((host, port), timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    return dial


class Connection:
    """One connection to `export`. `context`: what `extents` tells of (`base:allocation`, `qemu:dirty-bitmap:<name>`).

    Raises `SourceUnavailable` (`disk-unreachable`) when there is nobody, or nobody any more; `AgentError` (`disk-io`,
    `disk-export`) when the server says no.
    """

    def __init__(
        self, dial: Dial, export: str, *, context: str = "", tls: ssl.SSLContext | None = None, tls_name: str = ""
    ) -> None:
        self.export = export
        self._cookie = 0
        self._context: int | None = None
        try:
            self._socket = dial()
        except OSError as error:
            raise SourceUnavailable("disk-unreachable", f"nobody answers for disk {export}: {error}") from error
        try:
            self._greet(tls, tls_name)
            if context:
                self._ask_for(context)
            self.size, self.flags = self._go()
        except BaseException:
            self._socket.close()
            raise

    @property
    def read_only(self) -> bool:
        return bool(self.flags & wire.READ_ONLY)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`."""
        with self._lost():
            for at in range(0, len(buffer), wire.MAX_READ):
                self._read(offset + at, buffer[at : at + wire.MAX_READ])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        whole = memoryview(data).cast("B")
        with self._lost():
            for at in range(0, len(whole), wire.MAX_READ):
                part = whole[at : at + wire.MAX_READ]
                cookie = self._send(wire.WRITE, offset + at, len(part), part)
                self._settled(cookie)

    def zero(self, offset: int, length: int) -> None:
        """Zeros, that take no place where the server can do that."""
        with self._lost():
            while length:
                step = min(length, _STATUS_STEP if self.flags & wire.SEND_WRITE_ZEROES else 1 << 20)
                if self.flags & wire.SEND_WRITE_ZEROES:
                    self._settled(self._send(wire.WRITE_ZEROES, offset, step))
                else:
                    self._settled(self._send(wire.WRITE, offset, step, memoryview(bytes(step))))
                offset += step
                length -= step

    def flush(self) -> None:
        with self._lost():
            if self.flags & wire.SEND_FLUSH:
                self._settled(self._send(wire.FLUSH))

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, flags) in the context that was asked for, ascending and without gap, cut at the end."""
        end = offset + length
        while offset < end:
            with self._lost():
                cookie = self._send(wire.BLOCK_STATUS, offset, min(end - offset, _STATUS_STEP))
                told = self._status(cookie)
            if not told:
                raise SourceUnavailable("disk-protocol", f"disk {self.export}: nothing is said of what is at {offset}")
            for size, flags in told:
                size = min(size, end - offset)
                if size:
                    yield offset, size, flags
                    offset += size

    def close(self) -> None:
        """May be called twice. Says goodbye when it can."""
        with contextlib.suppress(OSError):
            self._socket.sendall(wire.request(wire.DISCONNECT, 0))
        self._socket.close()

    # Handshake

    def _greet(self, tls: ssl.SSLContext | None, tls_name: str) -> None:
        with self._lost():
            flags = wire.greeting(self._receive(wire.GREETING_SIZE))
            self._socket.sendall(wire.client_flags(flags))
            if tls is not None:
                self._socket.sendall(wire.option(wire.OPT_STARTTLS))
                self._answer(wire.OPT_STARTTLS)
                self._socket = tls.wrap_socket(self._socket, server_hostname=tls_name or None)
            self._socket.sendall(wire.option(wire.OPT_STRUCTURED_REPLY))
            self._answer(wire.OPT_STRUCTURED_REPLY)

    def _ask_for(self, context: str) -> None:
        with self._lost():
            self._socket.sendall(wire.set_meta_context(self.export, [context]))
            for kind, data in self._answer(wire.OPT_SET_META_CONTEXT):
                if kind == wire.REP_META_CONTEXT:
                    number, name = wire.meta_context(data)
                    if name == context:
                        self._context = number
        if self._context is None:
            raise AgentError("disk-export", f"the export of disk {self.export} does not tell of {context}")

    def _go(self) -> wire.Export:
        with self._lost():
            self._socket.sendall(wire.go(self.export))
            for kind, data in self._answer(wire.OPT_GO):
                if kind == wire.REP_INFO and (told := wire.info(data)) is not None:
                    return told
            raise ProtocolError("an export without a size")

    def _answer(self, number: int) -> list[tuple[int, bytes]]:
        """All that the server says to an option, up to its acknowledgement."""
        said: list[tuple[int, bytes]] = []
        while True:
            head = wire.option_reply(self._receive(wire.OPTION_REPLY_SIZE), number)
            data = self._receive(head.length)
            if head.refusal:
                raise AgentError("disk-export", f"disk {self.export} is not exported: {head.refusal}")
            if head.type == wire.REP_ACK:
                return said
            said.append((head.type, data))

    # Transmission

    def _send(self, command: int, offset: int = 0, length: int = 0, data: memoryview | None = None) -> int:
        self._cookie += 1
        head = wire.request(command, self._cookie, offset, length)
        if data is None or isinstance(self._socket, ssl.SSLSocket):
            self._socket.sendall(head if data is None else head + data)
        else:
            sent = self._socket.sendmsg([head, data])
            if sent < len(head):
                self._socket.sendall(head[sent:])
                sent = len(head)
            self._socket.sendall(data[sent - len(head) :])
        return self._cookie

    def _head(self, cookie: int) -> wire.Reply:
        data = self._receive(wire.SIMPLE_SIZE)
        if wire.is_chunk(data):
            data += self._receive(wire.CHUNK_REST)
        head = wire.reply(data)
        if head.cookie != cookie:
            raise ProtocolError(f"a reply to request {head.cookie}, when {cookie} was sent")
        if head.error:
            self._refused(head.error, "")
        return head

    def _chunk(self, head: wire.Reply, problems: list[tuple[int, str]]) -> bytes | None:
        """Payload of a chunk that is neither data nor an error (those go to `problems`)."""
        payload = self._receive(head.length)
        if wire.is_error(head.type):
            problems.append(wire.error(payload))
            return None
        return payload

    def _settled(self, cookie: int) -> None:
        problems: list[tuple[int, str]] = []
        while True:
            head = self._head(cookie)
            if head.structured:
                self._chunk(head, problems)
            if head.flags & wire.FLAG_DONE:
                break
        if problems:
            self._refused(*problems[0])

    def _status(self, cookie: int) -> list[tuple[int, int]]:
        problems: list[tuple[int, str]] = []
        told: list[tuple[int, int]] = []
        while True:
            head = self._head(cookie)
            payload = self._chunk(head, problems)
            if payload is not None and head.type == wire.STATUS:
                status = wire.status(payload)
                if status.context == self._context:
                    told.extend(status.extents)
            if head.flags & wire.FLAG_DONE:
                break
        if problems:
            self._refused(*problems[0])
        return told

    def _read(self, offset: int, buffer: memoryview) -> None:
        cookie = self._send(wire.READ, offset, len(buffer))
        problems: list[tuple[int, str]] = []
        filled = 0
        while True:
            head = self._head(cookie)
            if not head.structured:
                self._receive_into(buffer)
                filled = len(buffer)
            elif head.type == wire.OFFSET_DATA and head.length > 8:
                at = wire.data_offset(self._receive(8)) - offset
                filled += self._receive_into(self._part(buffer, at, head.length - 8))
            elif head.type == wire.OFFSET_HOLE:
                at, length = wire.hole(self._receive(head.length))
                part = self._part(buffer, at - offset, length)
                part[:] = bytes(length)
                filled += length
            else:
                self._chunk(head, problems)
            if head.flags & wire.FLAG_DONE:
                break
        if problems:
            self._refused(*problems[0])
        if filled != len(buffer):
            raise ProtocolError(f"of {len(buffer)} bytes at {offset}, {filled} came")

    def _part(self, buffer: memoryview, at: int, length: int) -> memoryview:
        if at < 0 or at + length > len(buffer):
            raise ProtocolError("data that were not asked for")
        return buffer[at : at + length]

    def _refused(self, number: int, said: str) -> NoReturn:
        reason = said or os.strerror(number)
        raise SourceUnavailable("disk-io", f"disk {self.export} cannot be read or written: {reason}")

    def _receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, buffer: memoryview) -> int:
        at, size = 0, len(buffer)
        while at < size:
            got = self._socket.recv_into(buffer[at:], size - at)
            if not got:
                raise ConnectionResetError("the server has closed the connection")
            at += got
        return size

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            self._socket.close()
            raise SourceUnavailable("disk-protocol", f"disk {self.export}: {error}") from error
        except OSError as error:
            self._socket.close()
            raise SourceUnavailable("disk-unreachable", f"disk {self.export}: {error}") from error


class Pool:
    """Connections that are made alike, as many as are used at once. A connection that failed is not used again."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    @contextlib.contextmanager
    def take(self) -> Iterator[Connection]:
        with self._lock:
            if self._closed:
                raise SourceUnavailable("disk-unreachable", "the disk was closed")
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """May be called twice. Who uses a connection just now may end."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
