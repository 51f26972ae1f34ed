"""A relay before a MariaDB that loses what a test wants lost: a connection, or the answer to COMMIT.

It knows of the protocol that a command is one packet whose fifth byte is 3 (COM_QUERY) with the text after it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Literal

Cut = Literal["before", "after"]


class MariaDBProxy:
    """Listens on a free port of loopback; relays to `port`. `cut_at` arms it, once: connections die at that statement.

    `before`: the server never sees it. `after`: the server has answered, the client never hears.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._armed: tuple[bytes, Cut] | None = None
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, statement: str, when: Cut) -> None:
        """The next command that begins with `statement` is the connection's last."""
        with self._lock:
            self._armed = (b"\x03" + statement.encode(), when)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.close()
        for each in self._open:
            _shut(each)

    def __enter__(self) -> MariaDBProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [client, server]
            cut = threading.Event()
            threading.Thread(target=self._answers, args=(server, client, cut), daemon=True).start()
            threading.Thread(target=self._commands, args=(client, server, cut), daemon=True).start()

    def _commands(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                with self._lock:
                    armed = self._armed
                    if armed is not None and data[4 : 4 + len(armed[0])] == armed[0]:
                        self._armed = None
                        self.cuts += 1
                        cut.set()
                    else:
                        armed = None
                if armed is not None and armed[1] == "before":
                    break
                server.sendall(data)
        if not cut.is_set() or (armed is not None and armed[1] == "before"):
            _shut(server)
            _shut(client)

    def _answers(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if cut.is_set():
                    break  # this is the answer: it was given, and nobody hears it
                client.sendall(data)
        _shut(client)
        _shut(server)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
