"""The socket that a replica connects to: on loopback, with a password made for this one use.

One thread accepts, one serves each connection. And if we die here? The replica keeps what it has applied, its position
with it in one transaction, and connects again to whoever serves the log then.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import socket
import threading
import time
import uuid
from typing import Final

from agents.errors import AgentError
from agents.mysql import gtid_sets
from agents.replay import wire
from agents.replay.feed import Feed, Served
from agents.replay.feed_mysql import MySQLFeed
from agents.replay.session import Session
from streams.errors import StreamError

USER: Final = "replay"
_LOGIN_S: Final = 10.0
_DENIED: Final = 1045
_CANNOT_READ: Final = 1236
_AHEAD: Final = 8  # lists of packets made before the socket takes them
_log = logging.getLogger("holdfast.replay")


class LogServer:
    """Serves `served` to replicas until `close`. `failure` says what ended a stream that did not end by itself."""

    def __init__(self, served: Served) -> None:
        self.password = secrets.token_urlsafe(24)
        self.failure: Exception | None = None
        self._served = served
        self._feed: Feed | MySQLFeed | None = None
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._count = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="replay-accept", daemon=True)
        self._thread.start()

    def applied(self, position: str) -> int:
        """About which step a replica at native `position` has applied."""
        feed = self._feed
        return 0 if feed is None else feed.ordinal_at(position)

    def reached(self, position: str) -> bool:
        """MySQL: whether a replica at native `position` has applied all that there is to serve."""
        feed = self._feed
        return isinstance(feed, MySQLFeed) and feed.reached(position)

    @property
    def sent(self) -> int:
        """The last step that was handed to a replica."""
        feed = self._feed
        return 0 if feed is None else feed.sent

    def close(self) -> None:
        """May be called twice."""
        self._closing.set()
        # Closing alone does not wake a thread that waits in accept.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def __enter__(self) -> LogServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
                self._count += 1
                number = self._count
            name = f"replay-{number}"
            threading.Thread(target=self._serve, args=(connection, number), name=name, daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_LOGIN_S)
            _Conversation(self, connection, number).run()
        except (OSError, EOFError) as error:
            _log.debug("connection %d ended: %s", number, error)
        except (StreamError, AgentError) as error:
            _log.warning("connection %d: %s", number, error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def stream(self, connection: socket.socket, feed: Feed | MySQLFeed) -> None:
        """The dump itself. Made in one thread and sent in another, so that neither waits for the other for long."""
        self._feed = feed
        ready: queue.Queue[list[bytes] | Exception | None] = queue.Queue(_AHEAD)
        given_up = threading.Event()

        def make() -> None:
            last: list[bytes] | Exception | None = None
            try:
                for batch in feed.packets():
                    if not _put(ready, batch, given_up):
                        return
            except Exception as error:  # noqa: BLE001 - handed to the thread that sends, which raises it
                last = error
            _put(ready, last, given_up)

        maker = threading.Thread(target=make, name="replay-make", daemon=True)
        maker.start()
        try:
            connection.settimeout(None)
            while not self._closing.is_set():
                try:
                    batch = ready.get(timeout=0.5)
                except queue.Empty:
                    # No heartbeats: a replica that hears nothing for a minute connects again, from where it is.
                    continue
                if batch is None:
                    break
                if isinstance(batch, Exception):
                    raise batch
                connection.sendall(b"".join(batch))
            # The replica has all there is: it hangs up.
            connection.settimeout(_LOGIN_S)
            with contextlib.suppress(OSError):
                while not self._closing.is_set() and connection.recv(4096):
                    pass
        except (StreamError, AgentError) as error:
            self.failure = error
            with contextlib.suppress(OSError):
                connection.sendall(wire.error(_CANNOT_READ, str(error), 1))
        finally:
            given_up.set()
            maker.join()

    @property
    def served(self) -> Served:
        return self._served


class _Conversation:
    """Greeting, login, questions, dump."""

    def __init__(self, server: LogServer, connection: socket.socket, number: int) -> None:
        self._server = server
        self._connection = connection
        self._number = number
        self._packets = wire.Packets()
        served = server.served
        mysql = served.mysql
        # MariaDB's replicas take off this prefix, by which old clients were kept from refusing a version they did not know.
        version = served.version if mysql else f"5.5.5-{served.version}"
        self._session = Session(served.server_id, version, str(uuid.uuid4()))
        # What each family's clients can still do.
        self._plugin = wire.CACHING if mysql else wire.NATIVE

    def run(self) -> None:
        if not self._login():
            return
        self._connection.settimeout(None)
        while True:
            sequence, content = self._receive()
            if not content:
                return
            command = wire.parse_command(content)
            match command:
                case wire.Question(sql):
                    self._connection.sendall(self._session.answer(sql, int(time.time()), sequence + 1))
                    if self._session.unknown:
                        _log.info("a replica asked what is not known here: %s", self._session.unknown.pop())
                case wire.Register():
                    self._connection.sendall(wire.ok(sequence + 1))
                case wire.Dump():
                    if self._session.connect_state is None:
                        said = wire.error(
                            _CANNOT_READ, "this log is served by GTID only: MASTER_USE_GTID", sequence + 1
                        )
                        self._connection.sendall(said)
                        return
                    feed = Feed(self._server.served, self._session.connect_state, sequence=sequence + 1)
                    self._server.stream(self._connection, feed)
                    return
                case wire.DumpGtid():
                    executed = gtid_sets.decode(command.executed)
                    self._server.stream(
                        self._connection, MySQLFeed(self._server.served, executed, sequence=sequence + 1)
                    )
                    return
                case wire.Other(wire.COM_PING):
                    self._connection.sendall(wire.ok(sequence + 1))
                case wire.Other(wire.COM_QUIT):
                    return
                case wire.Other(code):
                    self._connection.sendall(wire.error(1047, f"command {code} is not served here", sequence + 1))

    def _login(self) -> bool:
        # No zero bytes: the scramble is sent as a text.
        scramble = bytes(1 + b % 127 for b in secrets.token_bytes(wire.SCRAMBLE))
        greeting = wire.greeting(self._session.version, self._number, scramble, self._plugin)
        self._connection.sendall(wire.packet(greeting, 0))
        sequence, content = self._receive()
        login = wire.parse_login(content)
        response = login.response
        if login.plugin not in (b"", self._plugin):
            self._connection.sendall(wire.packet(wire.switch(scramble, self._plugin), sequence + 1))
            sequence, response = self._receive()
        if login.user != USER or not wire.password_matches(self._server.password, scramble, response, self._plugin):
            self._connection.sendall(wire.error(_DENIED, "access denied", sequence + 1, "28000"))
            return False
        if self._plugin == wire.CACHING:
            sequence += 1
            self._connection.sendall(wire.fast_login(sequence))
        self._connection.sendall(wire.ok(sequence + 1))
        return True

    def _receive(self) -> tuple[int, bytes]:
        """The next packet. Raises `EOFError` when there is none any more."""
        while True:
            for found in self._packets:
                return found
            data = self._connection.recv(65536)
            if not data:
                raise EOFError("the replica hung up")
            self._packets.feed(data)


def _put(
    ready: queue.Queue[list[bytes] | Exception | None], item: list[bytes] | Exception | None, stop: threading.Event
) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.2)
        except queue.Full:
            continue
        return True
    return False
