"""The NBD client against bytes written by hand: what a server may say is understood however it is cut, and what none may say is
told as that. That it speaks with QEMU's servers is in tests/unit/agents/restore and tests/contract/test_hosts.py."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.errors import AgentError
from agents.nbd import ALLOCATION, Nbd

SIZE = 1 << 20
HELLO = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
CHUNK, DONE = 0x668E33EF, 1


def option(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


GREETING = (
    HELLO
    + option(8, 1)
    + option(10, 4, struct.pack(">I", 7) + ALLOCATION.encode())
    + option(10, 1)
    + option(7, 3, struct.pack(">HQH", 0, SIZE, 0xDED))
    + option(7, 1)
)


def chunk(kind: int, data: bytes = b"", flags: int = DONE, cookie: int = 1) -> bytes:
    return struct.pack(">IHHQI", CHUNK, flags, kind, cookie, len(data)) + data


@contextlib.contextmanager
def served(said: bytes, step: int = 0) -> Iterator[socket.socket]:
    """The client's end; `said` comes at once, or `step` bytes at a time, and then nothing."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with contextlib.suppress(OSError):
            for at in range(0, len(said), step or len(said)):
                theirs.sendall(said[at : at + (step or len(said))])
            theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        theirs.close()
        thread.join()


@pytest.mark.parametrize("step", [0, 1])
def test_what_a_server_may_say_is_understood_however_it_is_cut(step: int) -> None:
    data = chunk(1, struct.pack(">Q", 512) + b"d" * 100, flags=0)
    hole = chunk(2, struct.pack(">QI", 612, 412), flags=0) + chunk(0)
    extents = chunk(5, struct.pack(">IIIII", 7, 4096, 3, SIZE, 0), cookie=2)
    refused = chunk(1 << 15 | 1, struct.pack(">IH", errno.ENOSPC, 0), cookie=3)
    with served(GREETING + data + hole + extents + refused, step) as connection:
        nbd = Nbd(connection, contexts=[ALLOCATION])
        assert (nbd.size, nbd.contexts, nbd.read_only) == (SIZE, frozenset({ALLOCATION}), False)
        buffer = bytearray(b"x" * 512)
        nbd.read_into(512, memoryview(buffer))
        assert buffer == b"d" * 100 + bytes(412)
        assert list(nbd.status(0, 8192)) == [(0, 4096, 3), (4096, 4096, 0)]
        with pytest.raises(OSError, match="No space left"):
            nbd.write(0, b"data")


@pytest.mark.parametrize(
    "answer",
    [
        chunk(1, struct.pack(">Q", 0) + b"d" * 512, cookie=9),
        chunk(1, struct.pack(">Q", SIZE) + b"d" * 512),
        chunk(1, struct.pack(">Q", 0) + b"d" * 511),
        chunk(2, struct.pack(">QI", 0, 1 << 31)),
        chunk(9, b"?"),
        struct.pack(">IHHQI", CHUNK, DONE, 1, 1, 1 << 31),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
    ],
)
def test_what_no_server_may_say_is_told_as_that(answer: bytes) -> None:
    with served(GREETING + answer) as connection:
        nbd = Nbd(connection, contexts=[ALLOCATION])
        with pytest.raises(AgentError) as caught:
            nbd.read_into(0, memoryview(bytearray(512)))
        assert caught.value.code in ("nbd-protocol", "nbd-gone")


@given(st.integers(0, len(GREETING) + 100), st.binary(max_size=64), st.booleans())
@settings(deadline=None, max_examples=150)
def test_garbage_is_an_answer_or_an_error_of_ours(at: int, garbage: bytes, replaced: bool) -> None:
    whole = GREETING + chunk(1, struct.pack(">Q", 0) + b"d" * 512)
    said = whole[:at] + garbage + whole[at + (len(garbage) if replaced else 0) :]
    with served(said) as connection, contextlib.suppress(AgentError, OSError):
        Nbd(connection, contexts=[ALLOCATION]).read_into(0, memoryview(bytearray(512)))
