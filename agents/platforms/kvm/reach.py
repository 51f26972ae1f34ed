"""How the bytes of a host come here: a socket in its file system, which this machine or an ssh connection reaches, or TLS.

qemu:///…          a unix socket of this machine
qemu+ssh://host/…  a unix socket of the host, forwarded by ssh to one of this machine
qemu+tls://host/…  NBD over TLS, by certificates as libvirt's own (`backup_tls_x509_cert_dir`)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from agents import child
from agents.errors import AgentError, SourceUnavailable
from agents.nbd import Nbd
from agents.platforms.kvm import notes, seeing
from agents.platforms.kvm.connection import Connection

_START_S: Final = 30.0
_CONNECT_S: Final = 60.0
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
    def server_xml(self, native: str, name: str) -> str:
        """The `<server>` of a backup."""
        ...

    def open(self, native: str, name: str) -> Access: ...

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

    def server_xml(self, native: str, name: str) -> str:
        return _unix_xml(_socket(self._scratch, native, name))

    def open(self, native: str, name: str) -> Access:
        return _access(unix(_socket(self._scratch, native, name)), lambda: None)

    def clear(self, native: str, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(_socket(self._scratch, native, name))


class SshReach:
    """By the user's own ssh, its keys and its known hosts. Nothing is asked on a terminal."""

    def __init__(self, connection: Connection, scratch: str) -> None:
        self._connection = connection
        self._scratch = scratch

    def server_xml(self, native: str, name: str) -> str:
        return _unix_xml(_socket(self._scratch, native, name))

    def open(self, native: str, name: str) -> Access:
        folder = Path(tempfile.mkdtemp(prefix="holdfast-ssh-"))
        here = folder / "nbd"
        there = _socket(self._scratch, native, name)
        child = start_child([*ssh_command(self._connection), "-N", "-L", f"{here}:{there}"])

        def close() -> None:
            stop_child(child)
            shutil.rmtree(folder, ignore_errors=True)

        try:
            wait_for_socket(child, here, "ssh")
        except BaseException:
            close()
            raise
        return _access(unix(str(here)), close)

    def clear(self, native: str, name: str) -> None:
        """A socket on another machine stays."""


def ssh_command(connection: Connection) -> list[str]:
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
    if connection.port:
        command += ["-p", str(connection.port)]
    if connection.username:
        command += ["-l", connection.username]
    if connection.hostname.startswith("-"):
        raise AgentError("host-url-invalid", f"{connection.hostname} is no name of a host")
    return [*command, connection.hostname]


class TlsReach:
    """The host's NBD server listens on its name, with the certificates of `backup_tls_x509_cert_dir` of its qemu.conf."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def server_xml(self, native: str, name: str) -> str:
        # `name` stands nowhere in this server: the scratch files carry it.
        return f"<server transport='tcp' tls='yes' name={quoteattr(self._connection.hostname)}/>"

    def open(self, native: str, name: str) -> Access:
        domain = seeing.domain_of(self._connection, native)
        with self._connection.errors():
            server = ElementTree.fromstring(domain.backupGetXMLDesc(0)).find("server")
        if server is None or not server.get("port"):
            raise SourceUnavailable("disk-unreachable", "the host does not say where its NBD server listens")
        settings = self._connection.settings
        context = ssl.create_default_context(
            cadata=settings.tls_ca if "BEGIN" in settings.tls_ca else None,
            cafile=settings.tls_ca if settings.tls_ca and "BEGIN" not in settings.tls_ca else None,
        )
        if certificate := settings.options.get("tls_certificate"):
            context.load_cert_chain(certificate, settings.options.get("tls_key"))
        name, port = self._connection.hostname, int(server.get("port", "0"))
        return _access(
            lambda: socket.create_connection((name, port), _CONNECT_S),
            lambda: None,
            lambda plain: context.wrap_socket(plain, server_hostname=name),
        )

    def clear(self, native: str, name: str) -> None:
        """There is nothing."""


def _access(
    dial: Dial, close: Callable[[], None], secure: Callable[[socket.socket], socket.socket] | None = None
) -> Access:
    def connector(disk: str) -> Connector:
        def connect(contexts: Sequence[str]) -> Nbd:
            try:
                made = dial()
            except OSError as error:
                raise SourceUnavailable("disk-unreachable", f"nobody answers for disk {disk}: {error}") from error
            return Nbd(made, disk, contexts, secure=secure)

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
