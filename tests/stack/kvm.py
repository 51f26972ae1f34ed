"""A libvirt of the tests' own, with QEMU: its own daemon, as the unprivileged service user, in a folder of its own (a *session*
daemon with XDG directories there). The system's is never touched.

    libvirt = LibvirtServer(Scratch("kvm").path); libvirt.start() … libvirt.stop()

Machines run on the processor where that can be had, and are emulated elsewhere (`tests.stack.acceleration`). QEMUs make daemons
of themselves and must be reaped at once: so libvirt runs below `tests.stack.reaper`. `why_not` says what this machine lacks.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

from agents.errors import AgentError
from agents.machines import Host, HostSettings
from agents.platforms.kvm import host as kvm_host
from agents.platforms.kvm.library import libvirt, libvirt_qemu
from deploy.embedded.process import Command, Identity, RunningProcess, wait_until
from deploy.embedded.user import service_user
from tests.stack.acceleration import acceleration, prefix
from tests.stack.guest import Guest, make_disk

START_S: Final = 90.0
REAPER: Final = Path(__file__).with_name("reaper.py")
_PROGRAMS: Final = ("libvirtd", "qemu-system-x86_64", "qemu-img", "qemu-io", "qemu-nbd")
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str:
    """Empty: this machine can run it."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        libvirt()
    except AgentError as error:
        return error.message
    return ""


class LibvirtServer:
    """One daemon and its folder. `url` is for `HostSettings`; `images` and `scratch` are folders its machines may use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images = directory / "images"
        self.scratch = directory / "scratch"
        self.user = service_user()
        # Its own folder right below /tmp: libvirt makes sockets deep in it, whose paths may be 107 bytes long.
        self.config = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
        config = self.config / "libvirt"
        for path in (self.images, self.scratch, config, directory / "run", directory / "cache", directory / "data"):
            path.mkdir(parents=True)
        (config / "qemu.conf").write_text('stdio_handler = "file"\nsecurity_driver = "none"\n')
        (config / "libvirtd.conf").write_text(f'log_outputs = "3:file:{directory}/libvirtd.log"\n')
        self.user.own_tree(directory)
        self.user.own_tree(self.config)
        self._process: RunningProcess | None = None
        enter = prefix(self.user, self.config) if acceleration().own_device else []
        self.command = Command(
            "libvirtd",
            [
                *enter,
                shutil.which("python3", path=_PATH) or sys.executable,
                "-I",
                str(REAPER),
                "libvirtd",
                "-f",
                str(config / "libvirtd.conf"),
            ],
            directory / "reaper.log",
            directory,
            {
                "PATH": _PATH,
                "HOME": str(directory),
                "XDG_RUNTIME_DIR": str(directory / "run"),
                "XDG_CONFIG_HOME": str(self.config),
                "XDG_CACHE_HOME": str(directory / "cache"),
                "XDG_DATA_HOME": str(directory / "data"),
            },
            user=None if enter else self.user,
            death_signal=signal.SIGKILL,
            stop_timeout=30,
        )

    @property
    def url(self) -> str:
        return f"qemu:///session?socket={self.directory}/run/libvirt/libvirt-sock"

    def settings(self, name: str = "kvm") -> HostSettings:
        return HostSettings(name, "kvm", self.url, options={"scratch": str(self.scratch), "shutdown_s": "1"})

    def host(self) -> Host:
        return kvm_host(self.settings())

    def start(self) -> None:
        self._process = RunningProcess(self.command)
        self._process.wait_ready(self._silence, START_S)

    def _silence(self) -> str | None:
        try:
            self.connect().close()
        except libvirt().libvirtError as error:
            return str(error)
        return None

    def connect(self) -> Any:
        return libvirt().open(self.url)

    def stop(self) -> None:
        """The daemon, and all machines."""
        if self._process is not None:
            machines = self.machines()
            self._process.stop()
            for machine in machines:
                machine.signal(signal.SIGKILL)
                machine.wait_gone(30)
        shutil.rmtree(self.config, ignore_errors=True)

    def interrupt(self) -> None:
        """The daemon alone; machines go on, and the next `start` finds them."""
        daemon = Identity.of(int((self.directory / "run" / "libvirt" / "libvirtd.pid").read_text()))
        assert daemon is not None
        daemon.signal(signal.SIGTERM)
        # It is silent before it is gone, and another cannot begin while it has the lock of its pid file.
        assert daemon.wait_gone(START_S)

    def resume(self) -> None:
        """After `interrupt`: another daemon under the same reaper."""
        assert self._process is not None
        self._process.signal(signal.SIGHUP)
        assert wait_until(lambda: self._silence() is None, START_S)

    def machines(self) -> list[Identity]:
        """The QEMUs that run."""
        found = []
        for file in (self.directory / "run" / "libvirt" / "qemu" / "run").glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                identity = Identity.of(int(file.read_text()))
                if identity is not None:
                    found.append(identity)
        return found

    def qemu_of(self, name: str) -> Identity:
        identity = Identity.of(int((self.directory / "run" / "libvirt" / "qemu" / "run" / f"{name}.pid").read_text()))
        assert identity is not None
        return identity

    def image(self, name: str, size: int, format_: str) -> Path:
        path = self.images / name
        run("qemu-img", "create", "-q", "-f", format_, str(path), str(size))
        self.user.own(path)
        return path


def run(program: str, *arguments: str) -> str:
    """What it says. It must succeed."""
    command = [shutil.which(program, path=_PATH) or program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, f"{program}: {done.stderr}"
    return done.stdout


def domain_xml(
    name: str, disks: Mapping[str, tuple[Path, str]], *, native: str, more: str = "", memory: int = 64
) -> str:
    """A machine that has nothing to boot from, unless `more` says so."""
    described = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{format_}' discard='unmap'/><source file='{path}'/>"
        f"<target dev='{disk}' bus='virtio'/></disk>"
        for disk, (path, format_) in disks.items()
    )
    return (
        f"<domain type='{acceleration().domain}'><name>{name}</name><uuid>{native}</uuid>"
        f"<memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>"
        f"{acceleration().cpu}<devices>"
        f"<emulator>/usr/bin/qemu-system-x86_64</emulator>{described}<interface type='user'><model type='virtio'/></interface>"
        f"<memballoon model='none'/>{more}</devices></domain>"
    )


class Consoled(Protocol):
    """A host whose guests write to `console.log` in a folder."""

    @property
    def directory(self) -> Path: ...


def add_guest(server: LibvirtServer, guest: Guest, name: str, size: int = 64 << 20, *, start: bool = True) -> str:
    """A machine that boots `guest` and writes to its `vda` all the while; its native identity. The disk of a guest of 64 MiB is
    hardly ever full. What is made of its description has the same console file: lines in it begin with who says them."""
    native = str(uuid4())
    raw = server.directory / f"{name}.raw"
    make_disk(raw, size)
    image = server.images / f"{name}.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()
    server.user.own(image)
    xml = guest_xml(guest, name, image, server.directory / "console.log", native=native)
    conn = server.connect()
    try:
        domain = conn.defineXML(xml)
        if start:
            domain.create()
    finally:
        conn.close()
    return native


def guest_xml(guest: Guest, name: str, image: Path, console: Path, *, native: str) -> str:
    """A machine that boots `guest`, `image` (qcow2) being its `vda`."""
    more = (
        f"<serial type='file'><source path='{console}' append='on'/></serial>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    )
    xml = domain_xml(name, {"vda": (image, "qcow2")}, native=native, more=more, memory=192)
    return xml.replace("</type></os>", f"</type>{guest.boot}</os>")


def said(server: Consoled, native: str, pattern: str, *, after: int = 0, timeout: float = 240) -> re.Match[str]:
    """What guest `native` says on its console that matches, once it has, from byte `after` of the console file on: a guest that
    is emulated on a busy machine may take minutes to boot."""
    wanted = re.compile(f"^{native} {pattern}", re.MULTILINE)
    console = server.directory / "console.log"
    found: re.Match[str] | None = None

    def has_said() -> bool:
        nonlocal found
        with contextlib.suppress(FileNotFoundError):
            found = wanted.search(console.read_bytes()[after:].decode(errors="replace").replace("\r", ""))
        return found is not None

    wait_until(has_said, timeout, 0.2)
    assert found is not None, f"{pattern} was not said: {console.read_bytes()[-2000:]!r}"
    return found


def agent_answers(server: LibvirtServer, native: str) -> None:
    """Wait until the guest's agent does, which comes up beside the rest of it."""
    library, monitor = libvirt(), libvirt_qemu()
    conn = server.connect()
    domain = conn.lookupByUUIDString(native)

    def answers() -> bool:
        try:
            return "return" in monitor.qemuAgentCommand(domain, '{"execute":"guest-ping"}', 10, 0)
        except library.libvirtError:
            return False

    try:
        assert wait_until(answers, 240, 0.2), "the guest agent does not answer"
    finally:
        conn.close()


def domain_state(server: LibvirtServer, native: str) -> str:
    """As libvirt has it: `running`, `paused`, `off`."""
    library = libvirt()
    conn = server.connect()
    try:
        state = conn.lookupByUUIDString(native).state()[0]
    finally:
        conn.close()
    names = {library.VIR_DOMAIN_RUNNING: "running", library.VIR_DOMAIN_PAUSED: "paused"}
    return names.get(state, "off")


class KvmGround:
    """Implements `tests.contract.hosts.HostGround` on a server that runs. Its machines find nothing to boot: only tests write.

    `clear` takes away everything on it.
    """

    quiesces = False
    grows = True

    def __init__(self, server: LibvirtServer) -> None:
        self.server = server
        self._contents: dict[tuple[str, str], bytearray] = {}
        self._conn = server.connect()

    def host(self) -> Host:
        return self.server.host()

    def add(
        self,
        name: str,
        disks: Mapping[str, int],
        *,
        untracked: Sequence[str] = (),
        running: bool = True,
        guest_agent: bool = True,
    ) -> str:
        native = str(uuid4())
        made = {}
        for disk, size in disks.items():
            format_ = "raw" if disk in untracked else "qcow2"
            made[disk] = (self.server.image(f"{name}-{disk}-{native[:8]}", size, format_), format_)
            self._contents[native, disk] = bytearray(size)
        domain = self._conn.defineXML(domain_xml(name, made, native=native))
        if running:
            # Not paused, or nobody would ask it to freeze. Its firmware finds nothing to boot, and writes nothing.
            domain.create()
        return native

    def define(self, xml: str, disks: Mapping[str, int] | None = None) -> Any:
        """A machine as its XML says; libvirt's domain. `disks`: those that are written to, all zeros, and their sizes."""
        domain = self._conn.defineXML(xml)
        self._contents |= {(domain.UUIDString(), disk): bytearray(size) for disk, size in (disks or {}).items()}
        return domain

    def _domain(self, native: str) -> Any:
        return self._conn.lookupByUUIDString(native)

    def _image(self, native: str, disk: str) -> tuple[str, str]:
        seen = {d.disk: d for d in self.host().machine(native).disks}
        return seen[disk].place, seen[disk].format

    def write(self, native: str, disk: str, offset: int, data: bytes) -> None:
        domain = self._domain(native)
        pattern = self.server.directory / "pattern"
        pattern.write_bytes(data)
        pattern.chmod(0o644)
        device = "/machine/peripheral/virtio-disk{}/virtio-backend".format("abcdefgh".index(disk[-1]))
        if domain.isActive():
            for command in (f"write -s {pattern} {offset} {len(data)}", "flush"):
                said = libvirt_qemu().qemuMonitorCommand(domain, f'qemu-io -d {device} "{command}"', 1)
                assert not said.strip(), said
        else:
            place, format_ = self._image(native, disk)
            run("qemu-io", "-f", format_, "-c", f"write -s {pattern} {offset} {len(data)}", "-c", "flush", place)
        self._contents[native, disk][offset : offset + len(data)] = data

    def content(self, native: str, disk: str) -> bytes:
        domain = self._domain(native)
        if domain.isActive():
            return bytes(self._contents[native, disk])
        place, format_ = self._image(native, disk)
        raw = self.server.directory / "content"
        run("qemu-img", "convert", "-f", format_, "-O", "raw", place, str(raw))
        return raw.read_bytes()

    def resize(self, native: str, disk: str, size: int) -> None:
        self._domain(native).blockResize(disk, size, libvirt().VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        self._contents[native, disk].extend(bytes(size - len(self._contents[native, disk])))

    def turn_off(self, native: str) -> None:
        self._domain(native).destroy()

    def lose_tracking(self, native: str, disk: str) -> None:
        domain = self._domain(native)
        self.server.qemu_of(domain.name()).signal(signal.SIGKILL)
        assert wait_until(lambda: not domain.isActive(), 60)
        domain.create()

    @contextmanager
    def others_backup(self, native: str) -> Iterator[None]:
        domain = self._domain(native)
        scratch = self.server.scratch
        xml = (
            f"<domainbackup mode='pull'><server transport='unix' socket='{scratch}/theirs.sock'/><disks>"
            f"<disk name='vda' backup='yes' type='file'><driver type='qcow2'/><scratch file='{scratch}/theirs'/></disk>"
            "</disks></domainbackup>"
        )
        domain.backupBegin(xml, "<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
        yield
        assert "theirs" in domain.backupGetXMLDesc(0), "somebody else's backup was ended"
        assert [c.getName() for c in domain.listAllCheckpoints(0)] == ["theirs"]
        domain.abortJob()
        assert wait_until(lambda: not domain.jobStats(0).get("type"), 60)

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        self.server.interrupt()
        yield
        self.server.resume()
        self._conn = self.server.connect()

    def clear(self) -> None:
        library = libvirt()
        for domain in self._conn.listAllDomains(0):
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(
                library.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | library.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
            )
        for path in self.server.images.iterdir():
            path.unlink()
        self._conn.close()
