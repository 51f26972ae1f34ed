"""How the bytes of a host come here: a socket in its file system, which this machine or an ssh connection reaches, or TLS.

qemu:///…          a unix socket of this machine
qemu+ssh://host/…  a unix socket of the host, forwarded by ssh to one of this machine
qemu+tls://host/…  NBD over TLS, by certificates as libvirt's own (`backup_tls_x509_cert_dir`)
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from agents import child
from agents.errors import AgentError, SourceUnavailable
from agents.nbd import GONE, Nbd
from agents.platforms.kvm import notes, shell
from agents.platforms.kvm.connection import Connection

_START_S: Final = 30.0
_CONNECT_S: Final = 60.0
_NBD_PORTS: Final = "10809-10872"
PORT_BUSY: Final = "Address already in use"  # in what QEMU says of a port that another has
# A child asks to die with the thread that starts it (`agents.child`): so that is one which lives as long as we do.
_STARTER: Final = ThreadPoolExecutor(1, thread_name_prefix="kvm-children")

Dial = Callable[[], socket.socket]
Connector = Callable[[Sequence[str]], Nbd]


@dataclass(frozen=True, slots=True)
class Access:
    """To the disks of one backup. `connector` gives what connects to a disk with a context (or none)."""

    connector: Callable[[str], Connector]
    close: Callable[[], None]


class Reach(Protocol):
    def server_xml(self, native: str, name: str, attempt: int) -> str | None:
        """The `<server>` of a backup. `attempt`: how often another one was busy already; None: there are no more."""
        ...

    def open(self, native: str, name: str, domain: Any) -> Access:
        """`domain` has the backup."""
        ...

    def clear(self, native: str, name: str) -> None:
        """Take away what a QEMU that was killed leaves of the server."""
        ...


def reach(connection: Connection, scratch: str) -> Reach:
    if connection.local or connection.scheme == "qemu+tcp":
        return LocalReach(scratch)
    if connection.scheme == "qemu+ssh":
        return SshReach(connection, scratch)
    return TlsReach(connection)


def unix(path: str) -> Dial:
    def dial() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(path)
        except OSError:
            made.close()
            raise
        return made

    return dial


def _socket(scratch: str, native: str, name: str) -> str:
    return f"{scratch}/{notes.socket_of(name, native)}"


def _unix_xml(path: str) -> str:
    return f"<server transport='unix' socket={quoteattr(path)}/>"


class LocalReach:
    def __init__(self, scratch: str) -> None:
        self._scratch = scratch

    def server_xml(self, native: str, name: str, attempt: int) -> str | None:
        return None if attempt else _unix_xml(_socket(self._scratch, native, name))

    def open(self, native: str, name: str, domain: Any) -> Access:
        return _access(unix(_socket(self._scratch, native, name)), lambda: None)

    def clear(self, native: str, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(_socket(self._scratch, native, name))


class SshReach:
    """By the user's own ssh, its keys and its known hosts. Nothing is asked on a terminal."""

    def __init__(self, connection: Connection, scratch: str) -> None:
        self._connection = connection
        self._scratch = scratch

    def server_xml(self, native: str, name: str, attempt: int) -> str | None:
        return None if attempt else _unix_xml(_socket(self._scratch, native, name))

    def open(self, native: str, name: str, domain: Any) -> Access:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-ssh-"))
        here = folder / "nbd"
        there = _socket(self._scratch, native, name)
        command = ssh_command(self._connection)
        child = start_child([*command[:-1], "-N", "-L", f"{here}:{there}", command[-1]])

        def close() -> None:
            stop_child(child)
            shutil.rmtree(folder, ignore_errors=True)

        try:
            wait_for_socket(child, here, "ssh")
        except BaseException:
            close()
            raise
        who = self._connection.username or "the user that ssh logs in as"
        hint = f"may {who} open {there} on the host, and does its sshd allow AllowStreamLocalForwarding?"
        return _access(unix(str(here)), close, hint=hint)

    def clear(self, native: str, name: str) -> None:
        """QEMU leaves its sockets. This one stays where that user may not delete it."""
        remove = f"rm -f -- {shlex.quote(_socket(self._scratch, native, name))}"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [*ssh_command(self._connection), remove]
            subprocess.run(command, capture_output=True, check=False, timeout=_CONNECT_S, stdin=subprocess.DEVNULL)


def ssh_command(connection: Connection) -> list[str]:
    command = ["ssh", *shell.arguments(connection.keyfile, connection.known_hosts), "-o", "ExitOnForwardFailure=yes"]
    if connection.port:
        command += ["-p", str(connection.port)]
    if connection.username:
        command += ["-l", connection.username]
    if connection.hostname.startswith("-"):
        raise AgentError("host-url-invalid", f"{connection.hostname} is no name of a host")
    return [*command, connection.hostname]


class TlsReach:
    """The host's NBD server listens at the address that libvirt answers at (or option `nbd_address`), at a port of option
    `nbd_ports`, with the certificates of `backup_tls_x509_cert_dir` of its qemu.conf. Ours are libvirt's, unless `--tls-ca` and
    options `tls_certificate` and `tls_key` name others."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ports = ports_of(connection.settings.options.get("nbd_ports", _NBD_PORTS))
        self._address = connection.settings.options.get("nbd_address", "")

    def server_xml(self, native: str, name: str, attempt: int) -> str | None:
        # libvirt asks for a port and tells of none that is free: machines of one host begin at different ones.
        if attempt >= len(self._ports):
            return None
        port = self._ports[(zlib.crc32(f"{native}/{name}".encode()) + attempt) % len(self._ports)]
        address = self._address or self._connection.address()
        # `name` stands nowhere in this server: the scratch files carry it.
        return f"<server transport='tcp' tls='yes' name={quoteattr(address)} port='{port}'/>"

    def open(self, native: str, name: str, domain: Any) -> Access:
        with self._connection.errors():
            server = ElementTree.fromstring(domain.backupGetXMLDesc(0)).find("server")
        if server is None or not server.get("port"):
            raise SourceUnavailable("disk-unreachable", "the host does not say where its NBD server listens")
        host, port, context = self._connection.hostname, int(server.get("port", "0")), self._context()

        def secure(plain: socket.socket) -> socket.socket:
            try:
                return context.wrap_socket(plain, server_hostname=host)
            except ssl.SSLCertVerificationError as error:
                raise AgentError(
                    "host-untrusted",
                    f"the certificate of the disks' server of {host} is not to be trusted: {error.verify_message}",
                    "see backup_tls_x509_cert_dir in the host's qemu.conf, and which authority is trusted here (--tls-ca)",
                ) from error

        def dial() -> socket.socket:
            return socket.create_connection((host, port), _CONNECT_S)

        return _access(dial, lambda: None, secure, f"is port {port} of {host} open (option nbd_ports)?")

    def _context(self) -> ssl.SSLContext:
        settings = self._connection.settings
        ca, certificate, key = self._connection.pki()
        try:
            if "BEGIN" in settings.tls_ca:
                context = ssl.create_default_context(cadata=settings.tls_ca)
            else:
                context = ssl.create_default_context(cafile=settings.tls_ca or ca or None)
            certificate = settings.options.get("tls_certificate", certificate)
            key = settings.options.get("tls_key", key)
            if certificate:
                context.load_cert_chain(certificate, key or None)
        except (OSError, ValueError) as error:
            raise AgentError(
                "host-file-missing",
                f"a certificate for {settings.host} cannot be read: {error}",
                "see pkipath in its URL, --tls-ca, and options tls_certificate and tls_key",
            ) from error
        return context

    def clear(self, native: str, name: str) -> None:
        """There is nothing."""


def no_port(error: Exception) -> SourceUnavailable:
    """All that a server may listen at are somebody else's."""
    return SourceUnavailable(
        "ports-busy",
        f"QEMU finds no port to serve disks at: {error}",
        "give the host more of them (option nbd_ports), or wait until other backups have ended",
    )


def ports_of(text: str) -> range:
    """`10809-10872`, or one. Raises `AgentError` (`host-option-invalid`)."""
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found or found[0] < 1 or found[-1] > 65_535:
        raise AgentError("host-option-invalid", f"option nbd_ports is {text!r}", "ports as 10809-10872")
    return found


def _access(
    dial: Dial,
    close: Callable[[], None],
    secure: Callable[[socket.socket], socket.socket] | None = None,
    hint: str = "",
) -> Access:
    """`hint`: what to look at where nobody answers, or whoever does hangs up at once."""

    def connector(disk: str) -> Connector:
        def connect(contexts: Sequence[str]) -> Nbd:
            try:
                return Nbd(dial(), disk, contexts, secure=secure)
            except OSError as error:
                raise SourceUnavailable("disk-unreachable", f"nobody answers for disk {disk}: {error}", hint) from error
            except AgentError as error:
                if error.code == GONE:
                    raise SourceUnavailable("disk-unreachable", f"disk {disk}: {error.message}", hint) from error
                raise

        return connect

    return Access(connector, close)


# Programs that serve us until we die


def start_child(command: list[str]) -> subprocess.Popen[bytes]:
    """Killed with this process. Raises `AgentError` (`program-missing`)."""
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/bin")
    if program is None:
        raise AgentError(
            "program-missing", f"there is no {command[0]} here", "install it (Debian: qemu-utils, openssh-client)"
        )
    parent = os.getpid()

    def start() -> subprocess.Popen[bytes]:
        launch = [sys.executable, "-I", "-S", child.__file__, str(parent), "--exec", program, *command[1:]]
        return subprocess.Popen(
            launch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    return _STARTER.submit(start).result()


def stop_child(process: subprocess.Popen[bytes]) -> None:
    """May be called twice."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        process.stderr.close()


def wait_for_socket(process: subprocess.Popen[bytes], path: Path, program: str) -> None:
    """Until somebody listens there. Raises `SourceUnavailable` (`disk-unreachable`)."""
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError):
            unix(str(path))().close()
            return
        if process.poll() is not None:
            said = process.stderr.read().decode(errors="replace").strip() if process.stderr is not None else ""
            raise SourceUnavailable("disk-unreachable", f"{program} ended: {said[-300:]}")
        if time.monotonic() > deadline:
            raise SourceUnavailable("disk-unreachable", f"{program} does not listen after {_START_S:g} s")
        time.sleep(0.02)
