"""Between an S3 server that is real and who asks it: answers 503 or 500, cuts connections, loses answers, is slow. A
stand-in for a bad day of a network or a server; requests and answers that pass are not touched.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal

What = Literal["500", "503", "cut", "lost", "half", "slow"]
"""Answered so and not passed on · the connection is cut, the request not passed on · carried out, and the answer lost · half of
the answer's body, then cut · passed on after `SLOW_S`."""

SLOW_S: Final = 0.3
_HOP: Final = frozenset({"connection", "expect", "keep-alive", "transfer-encoding", "te", "upgrade"})
_BUSY: Final = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>later</Message></Error>"


class Trouble:
    """Every `every`-th request whose method (`GET`, `LIST`, `HEAD`, `PUT`, `DELETE`) has trouble meets it, `most` times in all:
    whoever asks waits after each. `met` counts."""

    def __init__(self, port: int) -> None:
        """`port`: of the real server, on this machine, without TLS."""
        self.server_port = port
        self.met: Counter[tuple[str, What]] = Counter()
        self._rules: dict[str, tuple[tuple[What, ...], int]] = {}
        self._seen: Counter[str] = Counter()
        self._most = 0
        self._lock = threading.Lock()
        trouble = self

        class Handler(_Handler):
            between = trouble

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def set(self, every: int = 3, most: int = 9, **kinds: tuple[What, ...]) -> None:
        """By method, in capitals: what happens to it, in turn."""
        with self._lock:
            self._rules = {method: (what, every) for method, what in kinds.items()}
            self._seen.clear()
            self._most = most

    def next(self, method: str) -> What | None:
        with self._lock:
            if method not in self._rules:
                return None
            what, every = self._rules[method]
            self._seen[method] += 1
            turn, due = divmod(self._seen[method], every)
            if due or turn > self._most:
                return None
            chosen = what[(turn - 1) % len(what)]
            self.met[method, chosen] += 1
            return chosen

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


@contextmanager
def trouble(port: int) -> Iterator[Trouble]:
    between = Trouble(port)
    try:
        yield between
    finally:
        between.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    between: Trouble

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = "LIST" if self.command == "GET" and "list-type=" in self.path else self.command
        what = self.between.next(method)
        if what == "slow":
            threading.Event().wait(SLOW_S)
        if what == "cut":
            self._cut()
        elif what in ("500", "503"):
            self._answer(int(what), [("Content-Type", "application/xml")], _BUSY)
        else:
            self._pass_on(body, what)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - what http.server asks for

    def _pass_on(self, body: bytes, what: What | None) -> None:
        there = http.client.HTTPConnection("127.0.0.1", self.between.server_port, timeout=60)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Host too: it is signed
                if name.lower() not in _HOP:
                    there.putheader(name, value)
            there.endheaders(body)
            answer = there.getresponse()
            data = answer.read()
            headers = [
                (n, v) for n, v in answer.getheaders() if n.lower() not in _HOP and n.lower() != "content-length"
            ]
            size = int(answer.getheader("Content-Length") or len(data)) if self.command == "HEAD" else len(data)
            if what == "lost":
                self._cut()
            else:
                self._answer(answer.status, headers, data, size, half=what == "half")
        finally:
            there.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, size: int | None = None, *, half: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self._cut()

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""
