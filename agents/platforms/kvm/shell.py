"""How ssh is called: by libvirt for its own connection, and by us to forward the sockets of disks; the same for both.

Nothing is asked on a terminal; a host whose key is not known is refused, whatever the user's own configuration says; what does
not answer fails. Otherwise it is the user's own ssh. Parameters of the URI, files of the agent's:

    keyfile       the private key (libvirt's own parameter)
    known_hosts   keys of hosts, in place of the user's (libvirt has it for libssh alone)
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agents.errors import AgentError

_OPTIONS: Final = (
    *("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=20"),
    *("ServerAliveInterval=15", "ServerAliveCountMax=4"),
)


def arguments(keyfile: str, known_hosts: str) -> list[str]:
    """Those of any call."""
    out = [part for option in _OPTIONS for part in ("-o", option)]
    if keyfile:
        out += ["-i", keyfile, "-o", "IdentitiesOnly=yes"]
    if known_hosts:
        out += ["-o", f"UserKnownHostsFile={_quoted(known_hosts)}", "-o", "GlobalKnownHostsFile=none"]
    return out


def _quoted(path: str) -> str:
    """A path that ssh neither splits nor expands."""
    return '"' + path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextlib.contextmanager
def program(keyfile: str, known_hosts: str) -> Iterator[str]:
    """Path of a program that libvirt may call in the place of ssh, for as long as it needs to begin; what ssh complains of is
    `complaint`. Raises `AgentError` (`program-missing`)."""
    ssh = shutil.which("ssh") or shutil.which("ssh", path="/usr/bin")
    if ssh is None:
        raise AgentError("program-missing", "there is no ssh here", "install it (Debian: openssh-client)")
    folder = Path(tempfile.mkdtemp(prefix="holdfast-ssh-"))
    try:
        script = folder / "ssh"
        command = shlex.join([ssh, *arguments(keyfile, known_hosts)])
        # libvirt tells what ssh complained of only if it gets to see that before the end of the connection.
        script.write_text(f'#!/bin/sh\nexec {command} "$@" 2>{shlex.quote(str(_complaints(script)))}\n')
        script.chmod(0o700)
        yield os.fspath(script)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def complaint(command: str) -> str:
    """What ssh complained of that was called by `program`, once it ended."""
    try:
        return _complaints(Path(command)).read_text(errors="replace").strip()
    except OSError:
        return ""


def _complaints(script: Path) -> Path:
    return script.with_name("complaints")
