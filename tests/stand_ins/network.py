"""A stretch of network between a client and a server, for tests: a relay that cuts, delays, throttles, swallows and corrupts.

    with Network(server.port) as network:       # listens on a free port of loopback (or the given one)
        network.cut()                           # every connection dies now; new ones are let in
        network.down() … network.up()           # nobody is let in, and every connection is dead
        network.black_hole() … network.up()     # connections stay, nothing comes through either way
        network.half_close()                    # the server's side of every connection ends, the client's stays
        network.delay_s, network.bytes_per_s    # of each piece that passes; of each connection and direction
        network.corrupt(every, direction)       # flips one bit in about every `every` bytes

Seeded: which bits are flipped follows from `seed`, as far as the pieces that arrive are the same. What it knows of protocols:
nothing. `smallest` keeps short pieces whole: a damaged acknowledgement in clear is a forged one, which only TLS tells.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

Direction = Literal["to-server", "to-client", "both"]
_PIECE = 1 << 16


@dataclass
class _Pair:
    client: socket.socket
    server: socket.socket
    closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.closed.set()
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Network:
    """Relays to `port` of loopback. What it does to the bytes may be changed at any time, from any thread."""

    def __init__(self, port: int, *, listen: int = 0, seed: int = 1) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.connections = 0  # let in so far
        self.corrupted = 0  # bits flipped so far
        self.passed = 0  # bytes passed on so far, both ways
        self._server = port
        self._chance = random.Random(seed)
        self._every = 0
        self._direction: Direction = "both"
        self._smallest = 0
        self._until_next = 0
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._refuses = False
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", listen))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="network", daemon=True).start()

    # -- what a test does

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()

    def down(self) -> None:
        self._refuses = True
        self.cut()

    def black_hole(self) -> None:
        self._flows.clear()

    def up(self) -> None:
        """Everything as it was: connections are let in, nothing is changed."""
        self._refuses = False
        self._every = 0
        self.delay_s = self.bytes_per_s = 0.0
        self._flows.set()

    def half_close(self) -> None:
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            with contextlib.suppress(OSError):
                pair.client.shutdown(socket.SHUT_WR)

    def corrupt(self, every: int, direction: Direction = "both", smallest: int = 0) -> None:
        """One bit in about every `every` bytes of what goes in `direction`, in pieces of `smallest` bytes and more."""
        with self._lock:
            self._every, self._direction, self._smallest = every, direction, smallest
            self._until_next = self._chance.randrange(1, 2 * every)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flows.set()
        self.down()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- how it does it

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refuses:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self._server), timeout=10)
            except OSError:
                client.close()
                continue
            for each in (client, server):
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server)
            with self._lock:
                self._pairs = [p for p in self._pairs if not p.closed.is_set()] + [pair]
                self.connections += 1
            for source, sink, direction in ((client, server, "to-server"), (server, client, "to-client")):
                threading.Thread(target=self._relay, args=(pair, source, sink, direction), daemon=True).start()

    def _relay(self, pair: _Pair, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(_PIECE):
                if self.delay_s:
                    pair.closed.wait(self.delay_s)
                if self.bytes_per_s:
                    self._slowly(pair, len(data))
                self._flows.wait()
                sink.sendall(self._damaged(data, direction))
                self.passed += len(data)
        pair.close()

    def _slowly(self, pair: _Pair, size: int) -> None:
        pair.closed.wait(min(size / self.bytes_per_s, 60.0))

    def _damaged(self, data: bytes, direction: Direction) -> bytes:
        if not self._every:
            return data
        with self._lock:
            if self._direction not in ("both", direction) or len(data) < self._smallest or not self._every:
                return data
            out = bytearray(data)
            at = self._until_next
            while at < len(out):
                out[at] ^= 1 << self._chance.randrange(8)
                self.corrupted += 1
                at += self._chance.randrange(1, 2 * self._every)
            self._until_next = at - len(out)
            return bytes(out)
