"""A libvirt on *another host*: a daemon of the tests' own that sees a file system of its own, listens for TLS and is reached by a
real sshd, both at ports of this machine's loopback.

    far = FarLibvirt(Scratch("far").path); far.start() … far.stop()

Started by root, it lives in a mount namespace in which its folder is a tmpfs: images, scratch files and sockets are nowhere in
the file system that an agent sees, so every byte comes by the network. Started by anybody else it shares the file system,
and `isolated` says so. Authority, certificates, host and user keys are made for it and last for a day.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from agents.machines import Host, HostSettings
from agents.platforms.kvm import host as kvm_host
from agents.platforms.kvm.library import libvirt, libvirt_qemu
from deploy.certificates import make
from deploy.embedded.ports import accepts, free_ports
from deploy.embedded.process import Command, Identity, RunningProcess
from deploy.embedded.user import service_user
from tests.stack import kvm
from tests.stack.acceleration import acceleration, prefix
from tests.stack.guest import Guest, make_disk
from tests.stack.kvm import domain_xml, guest_xml, run

START_S: Final = 90.0
DAY: Final = datetime.timedelta(days=1)
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_SSH: Final = ("ssh", "sshd", "ssh-keygen", "virt-ssh-helper")


def why_not() -> str:
    """Empty: this machine can run it."""
    missing = [program for program in _SSH if shutil.which(program, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if (
        os.geteuid() == 0
        and subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode
    ):
        return "root may not make a mount namespace here"
    return kvm.why_not()


class FarLibvirt:
    """`outside`: certificates and keys of the agent's side. `inside`: the host's own folder, by its path there."""

    def __init__(self, outside: Path) -> None:
        self.outside = outside
        self.user = service_user()
        self.isolated = os.geteuid() == 0
        self.login = "backup-agent" if self.isolated else self.user.name
        # Right below /tmp: libvirt makes sockets deep in it, whose paths may be 107 bytes long.
        self.inside = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
        self.images, self.scratch, self.tiny = (self.inside / name for name in ("images", "scratch", "tiny"))
        self.tls_port, self.ssh_port, self.nbd_port = free_ports(3)
        self.pki = self._certificates()
        self.key, self.known_hosts = self._keys()
        self._daemon: RunningProcess | None = None
        self._sshd: RunningProcess | None = None

    # --- what the agent is given -------------------------------------------------------------------------------------

    @property
    def tls_url(self) -> str:
        return f"qemu+tls://localhost:{self.tls_port}/session?pkipath={self.pki}"

    @property
    def ssh_url(self) -> str:
        where = f"{self.login}@127.0.0.1:{self.ssh_port}"
        return f"qemu+ssh://{where}/session?keyfile={self.key}&known_hosts={self.known_hosts}"

    @property
    def options(self) -> dict[str, str]:
        return {
            "scratch": str(self.scratch),
            "shutdown_s": "1",
            "nbd_ports": f"{self.nbd_port}-{min(self.nbd_port + 50, 65_535)}",
        }

    def host(self, url: str, **options: str) -> Host:
        return kvm_host(HostSettings("far", "kvm", url, options={**self.options, **options}))

    # --- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._daemon = RunningProcess(
            Command(
                "libvirtd",
                ["unshare", "--mount", "--propagation", "private", "sh", "-euc", self._world()]
                if self.isolated
                else ["sh", "-euc", self._world()],
                self.outside / "libvirtd.log",
                self.outside,
                {"PATH": _PATH, **self._environment()},
                death_signal=signal.SIGKILL,
                stop_timeout=30,
            )
        )
        self._daemon.wait_ready(self._silence, START_S)
        self._sshd = RunningProcess(
            Command(
                "sshd",
                self._within("/usr/sbin/sshd", "-D", "-e", "-f", str(self.outside / "sshd_config")),
                self.outside / "sshd.log",
                self.outside,
                {"PATH": _PATH},
                death_signal=signal.SIGKILL,
            )
        )
        self._sshd.wait_ready(lambda: None if accepts("127.0.0.1", self.ssh_port) else "it is silent", START_S)

    def stop(self) -> None:
        """Both daemons, and all machines."""
        if self._sshd is not None:
            self._sshd.stop()
        if self._daemon is not None:
            machines = self.machines()
            self._daemon.stop()
            for machine in machines:
                machine.signal(signal.SIGKILL)
                machine.wait_gone(30)
        shutil.rmtree(self.inside, ignore_errors=True)

    def _silence(self) -> str | None:
        try:
            self.connect().close()
        except libvirt().libvirtError as error:
            return str(error)
        return None

    def connect(self) -> Any:
        """As its administrator."""
        return libvirt().open(self.tls_url)

    def path(self, inside: Path | str) -> Path:
        """Where the tests see what the host has at that path; an agent could not, if it is not root."""
        if not self.isolated:
            return Path(inside)
        assert self._daemon is not None
        return Path(f"/proc/{self._daemon.pid}/root{inside}")

    def machines(self) -> list[Identity]:
        """The QEMUs that run."""
        found = []
        for file in self.path(self.inside / "run/libvirt/qemu/run").glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                identity = Identity.of(int(file.read_text()))
                if identity is not None:
                    found.append(identity)
        return found

    # --- its machines ------------------------------------------------------------------------------------------------

    def image(self, name: str, size: int, format_: str) -> Path:
        path = self.images / name
        run("qemu-img", "create", "-q", "-f", format_, str(self.path(path)), str(size))
        self.user.own(self.path(path))
        return path

    def add(self, name: str, disks: Mapping[str, tuple[int, str]]) -> str:
        """A machine that is on and finds nothing to boot; disk → size, format. Its native identity."""
        native = str(uuid4())
        made = {d: (self.image(f"{name}-{d}.{f}", size, f), f) for d, (size, f) in disks.items()}
        conn = self.connect()
        try:
            conn.defineXML(domain_xml(name, made, native=native)).create()
        finally:
            conn.close()
        return native

    @property
    def directory(self) -> Path:
        """Where the consoles of its guests are."""
        return self.path(self.inside)

    def add_guest(self, guest: Guest, name: str, size: int = 32 << 20) -> str:
        """As `tests.stack.kvm.add_guest`. All of its image is there: whatever is written overwrites something."""
        native, raw, image = str(uuid4()), self.outside / f"{name}.raw", self.images / f"{name}.qcow2"
        make_disk(raw, size)
        run("qemu-img", "convert", "-S", "0", "-f", "raw", "-O", "qcow2", str(raw), str(self.path(image)))
        raw.unlink()
        self.user.own(self.path(image))
        conn = self.connect()
        try:
            conn.defineXML(guest_xml(guest, name, image, self.inside / "console.log", native=native)).create()
        finally:
            conn.close()
        return native

    def write(self, native: str, disk: str, offset: int, length: int, byte: int) -> None:
        """As the guest of a machine that is on."""
        device = "/machine/peripheral/virtio-disk{}/virtio-backend".format("abcdefgh".index(disk[-1]))
        conn = self.connect()
        try:
            domain = conn.lookupByUUIDString(native)
            for command in (f"write -P {byte} {offset} {length}", "flush"):
                said = libvirt_qemu().qemuMonitorCommand(domain, f'qemu-io -d {device} "{command}"', 1)
                assert not said.strip(), said
        finally:
            conn.close()

    def content(self, image: Path | str, format_: str) -> bytes:
        """Of an image that nobody writes to."""
        raw = self.outside / "content"
        run("qemu-img", "convert", "-U", "-f", format_, "-O", "raw", str(self.path(image)), str(raw))
        return raw.read_bytes()

    # --- its parts ---------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.inside / "home"),
            "XDG_RUNTIME_DIR": str(self.inside / "run"),
            "XDG_CONFIG_HOME": str(self.inside / "config"),
            "XDG_CACHE_HOME": str(self.inside / "cache"),
            "XDG_DATA_HOME": str(self.inside / "data"),
        }

    def _as_user(self) -> list[str]:
        if not self.isolated:
            return []
        # The kernel forgets with whom to die when a process becomes another user.
        user = (f"--reuid={self.user.uid}", f"--regid={self.user.gid}", "--clear-groups")
        return ["setpriv", *user, "--pdeathsig", "KILL", "--"]

    def _within(self, *command: str) -> list[str]:
        """On that host, as its user."""
        if not self.isolated:
            return list(command)
        assert self._daemon is not None
        return ["nsenter", f"--mount=/proc/{self._daemon.pid}/ns/mnt", *self._as_user(), *command]

    def _world(self) -> str:
        """A script that makes the host and becomes its daemon."""
        inside, config = shlex.quote(str(self.inside)), self.inside / "config/libvirt"
        daemon = ["libvirtd", "--listen", "--config", str(config / "libvirtd.conf")]
        reaper = [shutil.which("python3", path=_PATH) or sys.executable, "-I", str(kvm.REAPER), *daemon]
        lines = [f"mkdir -p {inside}/{{}}".format(name) for name in ("images", "scratch", "tiny", "config", "home")]
        lines += [f"mkdir -p {inside}/{{}}".format(name) for name in ("run", "cache", "data")]
        lines.append(f"cp -r {shlex.quote(str(self._configuration()))} {shlex.quote(str(config))}")
        if self.isolated:
            owner = f"{self.user.uid}:{self.user.gid}"
            lines = [
                f"mount -t tmpfs -o size=256m,mode=755 far {inside}",
                *lines,
                f"mount -t tmpfs -o size=1m tiny {inside}/tiny",
                f"chown -R {owner} {inside}",
                # The user that servers run as has no shell there, and is locked.
                f"mount --bind {shlex.quote(str(self._passwd()))} /etc/passwd",
            ]
        enter = prefix(self.user, self.outside) if acceleration().own_device else self._as_user()
        return "\n".join([*lines, f"exec {shlex.join([*enter, *reaper])}"])

    def _configuration(self) -> Path:
        folder = self.outside / "libvirt"
        folder.mkdir()
        server = self.outside / "server"
        (folder / "qemu.conf").write_text(
            'stdio_handler = "file"\nsecurity_driver = "none"\n'
            f'backup_tls_x509_cert_dir = "{server}"\nbackup_tls_x509_verify = 1\n'
        )
        (folder / "libvirtd.conf").write_text(
            f'log_outputs = "3:stderr"\nlisten_tls = 1\nlisten_addr = "127.0.0.1"\ntls_port = "{self.tls_port}"\n'
            f'ca_file = "{server}/ca-cert.pem"\ncert_file = "{server}/server-cert.pem"\n'
            f'key_file = "{server}/server-key.pem"\n'
        )
        return folder

    def _passwd(self) -> Path:
        path = self.outside / "passwd"
        me = f"{self.login}:*:{self.user.uid}:{self.user.gid}::{self.inside}/home:/bin/sh"
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[0] != self.user.name]
        path.write_text("\n".join([me, *others, ""]))
        return path

    def _certificates(self) -> Path:
        made = self.outside / "made"
        server, client = self.outside / "server", self.outside / "client"
        server.mkdir()
        host = make(made, ["localhost", "127.0.0.1"], "host", DAY)
        for name, path in (("ca-cert", host.ca), ("server-cert", host.certificate), ("server-key", host.key)):
            shutil.copy(path, server / f"{name}.pem")
        self.user.own_tree(server)
        return self.client(client)

    def client(self, folder: Path, *, authority: Path | None = None, lifetime: datetime.timedelta = DAY) -> Path:
        """A folder as `pkipath` names it; `authority`: one that the host knows nothing of."""
        folder.mkdir()
        made = make(authority or self.outside / "made", ["agent"], f"agent-{folder.name}", lifetime)
        for name, path in (("cacert", made.ca), ("clientcert", made.certificate), ("clientkey", made.key)):
            shutil.copy(path, folder / f"{name}.pem")
        return folder

    def _keys(self) -> tuple[Path, Path]:
        folder = self.outside / "ssh"
        folder.mkdir()
        for name in ("host", "agent", "stranger"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        for name in ("host", "host.pub"):
            self.user.own(folder / name)
        (folder / "authorized").write_text(f"restrict,port-forwarding {(folder / 'agent.pub').read_text()}")
        self.user.own(folder / "authorized")
        known = folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{self.ssh_port} {(folder / 'host.pub').read_text()}")
        environment = " ".join(f"{name}={value}" for name, value in self._environment().items())
        (self.outside / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.ssh_port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nSetEnv {environment}\nAllowTcpForwarding local\n"
        )
        return folder / "agent", known
