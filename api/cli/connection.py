"""Finding the API and its token, and speaking to it: JSON calls and server-sent events over the standard library's
HTTP.

    HOLDFAST_URL, HOLDFAST_TOKEN_FILE, HOLDFAST_CA_FILE     a site elsewhere
    HOLDFAST_DATA or --data-dir                             this machine's: holdfast.toml and secrets/admin.token there

A token goes over TLS or to this machine, nowhere else.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from api.cli.errors import DENIED, FAILED, UNREACHABLE, USAGE, CliError, from_problem

DEFAULT_PORT = 8473
CALL_S = 60.0
# The API says something every 15 s.
STREAM_S = 45.0
_RECONNECTS = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the API is. `ca` is a file of certificates to trust, `pinned` that it is the API's own."""

    url: str
    token: str
    ca: Path | None = None
    pinned: bool = False


def find(environ: Mapping[str, str] = os.environ) -> Place:
    """Raises `CliError`."""
    token_file = environ.get("HOLDFAST_TOKEN_FILE")
    ca = environ.get("HOLDFAST_CA_FILE")
    if url := environ.get("HOLDFAST_URL"):
        if token_file is None:
            raise CliError(
                "token-missing",
                "HOLDFAST_URL says where the API is, but there is no token for it",
                "name a file that holds one in HOLDFAST_TOKEN_FILE",
                exit_code=DENIED,
            )
        return Place(_checked(url), _token(Path(token_file)), Path(ca) if ca else None)
    directory = Path(environ.get("HOLDFAST_DATA") or _default_directory(environ))
    settings = directory / "holdfast.toml"
    try:
        found = tomllib.loads(settings.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CliError(
            "site-missing",
            f"there is no site in {directory}",
            "`holdfast up` makes one; name another with --data-dir, or a site elsewhere with HOLDFAST_URL",
            exit_code=UNREACHABLE,
        ) from error
    except (OSError, ValueError) as error:
        raise CliError("settings-unreadable", f"cannot read {settings}: {error}") from error
    return _local(directory, found, environ, token_file, ca)


def _local(
    directory: Path, found: Mapping[str, Any], environ: Mapping[str, str], token_file: str | None, ca: str | None
) -> Place:
    api = found.get("api", {})
    host = environ.get("HOLDFAST_API_HOST") or api.get("host") or "127.0.0.1"
    port = environ.get("HOLDFAST_API_PORT") or api.get("port") or DEFAULT_PORT
    cert = environ.get("HOLDFAST_API_TLS_CERT") or api.get("tls_cert")
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    data_dir = directory / (found.get("data_dir") or ".")
    token = _token(Path(token_file) if token_file else data_dir / "secrets" / "admin.token")
    at = f"[{host}]" if ":" in str(host) else host
    scheme = "https" if cert else "http"
    trusted = Path(ca) if ca else (directory / cert if cert else None)
    return Place(f"{scheme}://{at}:{port}", token, trusted, pinned=bool(cert) and not ca)


def _default_directory(environ: Mapping[str, str]) -> Path:
    """As `deploy.embedded.site.default_data_dir`, which this room may not ask."""
    if os.geteuid() == 0:
        return Path("/var/lib/holdfast")
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "holdfast"


def _token(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError as error:
        raise CliError(
            "token-missing",
            f"there is no token in {path}",
            "the API writes it when it first starts (`holdfast status`); or name another file in HOLDFAST_TOKEN_FILE",
            exit_code=DENIED,
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(
            "token-unreadable",
            f"cannot read the token in {path}: {error}",
            "it belongs to whoever started the site; an administrator can issue one of your own",
            exit_code=DENIED,
        ) from error


def _checked(url: str) -> str:
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError as error:
        raise CliError("url-invalid", f"HOLDFAST_URL is {url!r}", "https://host:port", exit_code=USAGE) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise CliError("url-invalid", f"HOLDFAST_URL is {url!r}", "https://host:port", exit_code=USAGE)
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise CliError(
            "url-plaintext", f"a token does not go to {parts.hostname} in the clear", "use https://", exit_code=USAGE
        )
    return url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def segment(text: str) -> str:
    """One part of a path."""
    return quote(text, safe="")


class Api:
    """Calls to one API over one connection that is kept; made anew when it was closed meanwhile."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._kept: http.client.HTTPConnection | None = None

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self.call("POST", path, body=body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.call("PUT", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self.call("PATCH", path, body=body)

    def delete(self, path: str, **query: Any) -> Any:
        return self.call("DELETE", path, query=query)

    def call(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> Any:
        """The answer's JSON; None for an empty one. Raises `CliError`."""
        raw = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if raw is not None else {}
        answer = self._ask(method, _with(path, query), raw, headers)
        text = answer.read()
        if answer.status >= 400:
            raise from_problem(answer.status, _json(text))
        return _json(text) if text else None

    def text(self, path: str) -> Iterator[str]:
        """A text answer, in pieces."""
        answer = self._ask("GET", path, None, {})
        if answer.status >= 400:
            raise from_problem(answer.status, _json(answer.read()))
        while piece := answer.read1(65_536):
            yield piece.decode("utf-8", "replace")

    def events(
        self, path: str, done: Callable[[str, Any], bool] = lambda event, data: False, **query: Any
    ) -> Iterator[tuple[str, Any]]:
        """Server-sent events as (event, data), up to one of which `done` says that it is the last.

        A stream that breaks off or is ended by an API that stops is taken up again after the last event.
        """
        last, tries = "", 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            connection = self._connect(STREAM_S)
            try:
                answer = self._send(connection, "GET", _with(path, query), None, headers)
                if answer.status >= 400:
                    raise from_problem(answer.status, _json(answer.read()))
                for number, event, data in _parse(answer):
                    tries = 0
                    last = number or last
                    if event == "error":
                        raise CliError(data["code"], data["message"], data["hint"])
                    yield event, data
                    if done(event, data):
                        return
                raise http.client.RemoteDisconnected("the API ended the stream")
            except (OSError, http.client.HTTPException) as error:
                tries += 1
                if tries > _RECONNECTS:
                    raise self._away(error) from error
                _pause(tries)
            except CliError as error:
                # An API that has just been started again is not ready at once.
                if error.exit_code != UNREACHABLE or not tries or tries > _RECONNECTS:
                    raise
                tries += 1
                _pause(tries)
            finally:
                connection.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        kept = self._kept
        if kept is not None:
            try:
                return self._send(kept, method, path, body, headers)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                self.close()
                if method != "GET":
                    # It may have been done: only reading is asked for twice.
                    raise self._away(error) from error
        self._kept = self._connect(CALL_S)
        try:
            return self._send(self._kept, method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._away(error) from error

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> http.client.HTTPResponse:
        sent = {"Authorization": f"Bearer {self.place.token}", "User-Agent": "holdfast-cli", **headers}
        connection.request(method, path, body, sent)
        return connection.getresponse()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.place.url)
        host, port = parts.hostname or "", parts.port
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            import ssl

            try:
                context = ssl.create_default_context(cafile=str(self.place.ca) if self.place.ca else None)
            except OSError as error:
                raise CliError("ca-unreadable", f"cannot use the certificates in {self.place.ca}: {error}") from error
            # The site's own certificate is the only one trusted then; it need not name this machine's loopback.
            context.check_hostname = not self.place.pinned
            connection = http.client.HTTPSConnection(host, port or 443, timeout=timeout, context=context)
        else:
            connection = http.client.HTTPConnection(host, port or 80, timeout=timeout)
        with contextlib.suppress(OSError):
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _away(self, error: Exception) -> CliError:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
            what = "what answers there does not speak HTTP"
        return CliError(
            "api-unreachable",
            f"the API at {self.place.url} does not answer: {what}",
            "`holdfast status` says what is up, `holdfast up` starts it",
            exit_code=UNREACHABLE,
        )


def _pause(tries: int) -> None:
    import time

    time.sleep(min(2.0, 0.1 * 2**tries))


def _with(path: str, query: Mapping[str, Any] | None) -> str:
    given = {
        k: ("true" if v else "false") if isinstance(v, bool) else v for k, v in (query or {}).items() if v is not None
    }
    return f"{path}?{urlencode(given)}" if given else path


def _json(text: bytes) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise CliError(
            "answer-strange", "what answered is not a Holdfast API", "is the address right?", exit_code=FAILED
        ) from error


def _parse(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str, Any]]:
    """(id, event, data) from a stream of server-sent events."""
    number = event = data = ""
    while line := answer.readline():
        text = line.decode().rstrip("\r\n")
        name, _, value = text.partition(": ")
        match name:
            case "id":
                number = value
            case "event":
                event = value
            case "data":
                data = value
            case "" if event and not text:
                yield number, event, json.loads(data)
                number = event = data = ""
            case _:
                pass
