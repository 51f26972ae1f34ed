"""A connection to libvirt that comes again, and its errors in our words."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from agents.errors import AgentError, SourceUnavailable
from agents.machines import HostSettings
from agents.platforms.kvm.library import libvirt

_SCHEMES: Final = ("qemu", "qemu+unix", "qemu+ssh", "qemu+tls", "qemu+tcp")
# Parameters by which a URI would have this machine run a program of somebody's choice, or trust anybody.
_REFUSED: Final = ("command", "netcat", "no_verify", "no_tty", "proxy")
_LOOPBACK: Final = ("", "localhost", "127.0.0.1", "::1")
_KEEPALIVE_S: Final = 5
_KEEPALIVE_TIMES: Final = 6


class Connection:
    """To the libvirt that `settings.url` names. Threads share it."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        parts = urlsplit(settings.url)
        refused = sorted(set(parse_qs(parts.query, keep_blank_values=True)) & set(_REFUSED))
        if parts.scheme not in _SCHEMES or refused:
            what = f"its parameter {refused[0]}" if refused else f"{parts.scheme or 'no scheme'}"
            raise AgentError(
                "host-url-invalid",
                f"{settings.url}: {what} is not taken",
                f"a libvirt URI as qemu:///system or qemu+ssh://root@kvm1/system; schemes: {', '.join(_SCHEMES)}",
            )
        if parts.scheme == "qemu+tcp" and parts.hostname not in _LOOPBACK:
            raise AgentError(
                "host-url-invalid", f"{settings.url} would speak in clear over the network", "use qemu+tls or qemu+ssh"
            )
        self.scheme = parts.scheme
        self.hostname = parts.hostname or ""
        self.port = parts.port
        self.username = parts.username or ""
        self.path = parts.path
        self._lock = threading.Lock()
        self._open: Any = None

    @property
    def local(self) -> bool:
        """The host is this machine."""
        return self.hostname in _LOOPBACK and self.scheme in ("qemu", "qemu+unix")

    def get(self) -> Any:
        """libvirt's `virConnect`. Raises as `errors` does, and `AgentError` (`extra-missing`)."""
        library = libvirt()
        with self._lock, self.errors():
            if self._open is not None and not self._open.isAlive():
                self._open = None
            if self._open is None:
                asks = [library.VIR_CRED_AUTHNAME, library.VIR_CRED_PASSPHRASE]
                made = library.openAuth(self.settings.url, [asks, self._answer, None], 0)
                made.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_TIMES)
                self._open = made
            return self._open

    def _answer(self, asked: list[list[Any]], _: object) -> int:
        for entry in asked:
            entry[4] = self.settings.account if entry[0] == libvirt().VIR_CRED_AUTHNAME else self.settings.password
        return 0

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What libvirt raises within is raised as ours: `SourceUnavailable` (`host-unreachable`), `AgentError` (`host-denied`,
        `machine-unknown`, `machine-busy`, `host-refused`)."""
        library = libvirt()
        try:
            yield
        except library.libvirtError as error:
            raise self.translated(error) from error

    def translated(self, error: Any) -> AgentError:
        library = libvirt()
        code, domain, said = error.get_error_code(), error.get_error_domain(), str(error)
        if code in (library.VIR_ERR_AUTH_FAILED, library.VIR_ERR_AUTH_CANCELLED, library.VIR_ERR_ACCESS_DENIED):
            return AgentError(
                "host-denied", f"{self.settings.host}: {said}", "give an account that may manage machines"
            )
        if (
            domain in (library.VIR_FROM_RPC, library.VIR_FROM_REMOTE)
            or code in (library.VIR_ERR_NO_CONNECT, library.VIR_ERR_RPC, library.VIR_ERR_GNUTLS_ERROR)
            or "client socket is closed" in said
        ):
            hint = f"is libvirt's daemon running there, and is {self.settings.url} right?"
            return SourceUnavailable("host-unreachable", f"{self.settings.host}: {said}", hint)
        if code == library.VIR_ERR_NO_DOMAIN:
            return AgentError("machine-unknown", f"{self.settings.host}: {said}", "discover again")
        if code == library.VIR_ERR_OPERATION_TIMEOUT:
            return AgentError(
                "machine-busy", f"{self.settings.host}: {said}", "wait until what goes on there has ended"
            )
        return AgentError("host-refused", f"{self.settings.host}: {said}")


def code_of(error: BaseException) -> int:
    """libvirt's code of an error that `Connection.errors` let through as ours; 0 of others."""
    cause = error.__cause__
    return int(cause.get_error_code()) if isinstance(cause, libvirt().libvirtError) else 0
