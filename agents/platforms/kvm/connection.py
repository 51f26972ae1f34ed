"""A connection to libvirt that comes again, and its errors in our words."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from agents.errors import AgentError, SourceUnavailable
from agents.machines import HostSettings
from agents.platforms.kvm import shell
from agents.platforms.kvm.library import libvirt

_SCHEMES: Final = ("qemu", "qemu+unix", "qemu+ssh", "qemu+tls", "qemu+tcp")
# Parameters by which a URI would have this machine run a program of somebody's choice, or trust anybody.
_REFUSED: Final = ("command", "netcat", "no_verify", "no_tty", "proxy")
_LOOPBACK: Final = ("", "localhost", "127.0.0.1", "::1")
_KEEPALIVE_S: Final = 5
_KEEPALIVE_TIMES: Final = 6
_CONNECT_S: Final = 20.0
_TLS_PORT: Final = 16514
# Files of a folder `pkipath`, which libvirt wants to find there; then where it looks without one.
_PKI: Final = ("cacert.pem", "clientcert.pem", "clientkey.pem")
_PKI_SYSTEM: Final = (
    "/etc/pki/CA/cacert.pem",
    "/etc/pki/libvirt/clientcert.pem",
    "/etc/pki/libvirt/private/clientkey.pem",
)
# What is said where a connection does not come about: of which scheme, a part of it, our code, the next step.
_UNOPENED: Final = (
    (
        "qemu+ssh",
        "Host key verification failed",
        "host-untrusted",
        "compare its key with what its administrator says (`ssh-keyscan HOST | ssh-keygen -lf -`), and put it into the known"
        " hosts of the agent's user, or into a file that the URL names: known_hosts=",
    ),
    (
        "qemu+ssh",
        "Permission denied (",
        "host-denied",
        "put the agent's public key into authorized_keys of that user on the host; the URL names another private key: keyfile=",
    ),
    (
        "qemu+ssh",
        "Permission denied",
        "host-denied",
        "that user may not connect to libvirt on the host: put it into the group libvirt there",
    ),
    (
        "qemu+tls",
        "Our own certificate",
        "host-denied",
        "have one made for the agent by the authority of the host's",
    ),
    (
        "qemu+tls",
        "client certificate",
        "host-denied",
        "have one made for the agent by the authority of the host's, and look at the clock",
    ),
    (
        "qemu+tls",
        "TLS confirmation",
        "host-denied",
        "the host must trust the authority of the agent's certificate, and its tls_allowed_dn_list name it (libvirtd.conf)",
    ),
)


class Connection:
    """To the libvirt that `settings.url` names. Threads share it."""

    def __init__(self, settings: HostSettings) -> None:
        self.settings = settings
        parts = urlsplit(settings.url)
        asked = parse_qs(parts.query, keep_blank_values=True)
        refused = sorted(set(asked) & set(_REFUSED))
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
        # Files of ours that the URI names.
        self.keyfile = asked.get("keyfile", [""])[-1]
        self.known_hosts = asked.get("known_hosts", [""])[-1]
        self.pkipath = asked.get("pkipath", [""])[-1]
        self._lock = threading.Lock()
        self._open: Any = None
        self._ssh = ""  # the program that libvirt calls

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
                with self._way() as url:
                    try:
                        made = library.openAuth(url, [asks, self._answer, None], 0)
                    except library.libvirtError as error:
                        raise self._unopened(error) from error
                made.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_TIMES)
                self._open = made
            return self._open

    @contextlib.contextmanager
    def _way(self) -> Iterator[str]:
        """The URI that libvirt is given, once what it needs of this machine is there and somebody answers."""
        if self.scheme == "qemu+ssh":
            for path in (self.keyfile, self.known_hosts):
                self._is_there(path)
            with shell.program(self.keyfile, self.known_hosts) as command:
                self._ssh = command
                yield with_parameters(self.settings.url, ("keyfile", "known_hosts"), command=command)
            return
        if self.scheme == "qemu+tls":
            for name in _PKI if self.pkipath else ():
                self._is_there(f"{self.pkipath}/{name}")
            self.address()
        yield self.settings.url

    def _unopened(self, error: Any) -> AgentError:
        if self.scheme == "qemu+tls" and (why := self._distrust()):
            return AgentError(
                "host-untrusted",
                f"{self.settings.host}: the certificate of {self.hostname} is not to be trusted: {why}",
                "trust the authority that signed it (cacert.pem of pkipath), use a name that stands in it, or have it renewed",
            )
        said, text = shell.complaint(self._ssh) if self._ssh else "", str(error)
        if said and said not in text:
            text = f"{text} ({said})"
        for scheme, part, code, hint in _UNOPENED:
            if scheme == self.scheme and part in text:
                return AgentError(code, f"{self.settings.host}: {text}", hint)
        return self.translated(error, text)

    def _distrust(self) -> str:
        """What is wrong with a host's certificate, which libvirt does not say; empty: nothing, or nobody knows."""
        try:
            context = ssl.create_default_context(cafile=self.pki()[0] or None)
            with (
                socket.create_connection((self.hostname, self.port or _TLS_PORT), _CONNECT_S) as plain,
                context.wrap_socket(plain, server_hostname=self.hostname),
            ):
                return ""
        except ssl.SSLCertVerificationError as error:
            return str(error.verify_message)
        except OSError:
            return ""

    def _is_there(self, path: str) -> None:
        if path and not os.access(path, os.R_OK):
            what = "cannot be read" if os.path.exists(path) else "is not there"
            raise AgentError(
                "host-file-missing",
                f"{self.settings.host}: {path}, which its URL names, {what}",
                "it is a file of the machine that the agent runs on, which the agent's user must be able to read",
            )

    def pki(self) -> tuple[str, str, str]:
        """Files of the authority, of our certificate and of its key, where libvirt takes them from; empty: not there."""
        if self.pkipath:
            found = [f"{self.pkipath}/{name}" for name in _PKI]
        else:
            found = list(_PKI_SYSTEM)
        ca, certificate, key = (path if os.access(path, os.R_OK) else "" for path in found)
        return ca, certificate, key

    def address(self) -> str:
        """Of a host that is reached by TLS, the address at which it answers. Raises `SourceUnavailable`."""
        port = self.port or _TLS_PORT
        try:
            with socket.create_connection((self.hostname, port), _CONNECT_S) as made:
                return str(made.getpeername()[0])
        except OSError as error:
            raise SourceUnavailable(
                "host-unreachable",
                f"{self.settings.host}: nobody answers at {self.hostname}, port {port}: {error.strerror or error}",
                "does libvirt listen for TLS there (libvirtd-tls.socket or virtproxyd-tls.socket), and is the port open?",
            ) from error

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

    def translated(self, error: Any, said: str = "") -> AgentError:
        """`said`: more than libvirt itself says of it."""
        library = libvirt()
        code, domain, said = error.get_error_code(), error.get_error_domain(), said or str(error)
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
        return AgentError("host-refused", f"{self.settings.host}: {said}", "the log of libvirt on that host says more")


def with_parameters(url: str, without: tuple[str, ...], **more: str) -> str:
    """A URI with other parameters."""
    parts = urlsplit(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in without]
    return urlunsplit(parts._replace(query=urlencode([*kept, *more.items()])))


def code_of(error: BaseException) -> int:
    """libvirt's code of an error that `Connection.errors` let through as ours; 0 of others."""
    cause = error.__cause__
    return int(cause.get_error_code()) if isinstance(cause, libvirt().libvirtError) else 0
