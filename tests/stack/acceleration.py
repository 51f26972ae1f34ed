"""Whether virtual machines of tests run on the processor itself (KVM) or are emulated (TCG): found out by running one.

    python -P -m tests.stack.acceleration      says which, as CI does before the tests

/dev/kvm is often root's alone, and QEMU runs as the unprivileged service user. So where we are root, what starts QEMU gets a
mount namespace in which a device of that user's stands in its place; of the machine nothing is changed.
`HOLDFAST_TEST_ACCELERATION`: `tcg` emulates in any case, `kvm` fails where it cannot be had.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.embedded.user import ServiceUser, service_user

VARIABLE: Final = "HOLDFAST_TEST_ACCELERATION"
_DEVICE: Final = Path("/dev/kvm")
_CPUINFO: Final = Path("/proc/cpuinfo")
_EXTENSIONS: Final = frozenset({"vmx", "svm"})
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_EXIT_PORT: Final = 0xF4
_VALUE: Final = 16
_PROBE_S: Final = 60
_CPU: Final = "kvm64"
_ENTER: Final = (
    'node=$1 uid=$2 gid=$3; shift 3; mount --bind "$node" /dev/kvm &&'
    ' exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --pdeathsig KILL -- "$@"'
)


@dataclass(frozen=True, slots=True)
class Acceleration:
    """`kvm`: on the processor. `own_device`: by a device of the service user's own (`prefix`). `why`: why it is, or is not."""

    kvm: bool
    own_device: bool
    why: str

    @property
    def domain(self) -> str:
        """libvirt's type of a domain."""
        return "kvm" if self.kvm else "qemu"

    @property
    def cpu(self) -> str:
        """To stand in a domain: plain processors, since a host that is a guest itself may lack what it says that it has."""
        if self.kvm:
            return f"<cpu mode='custom' match='exact' check='none'><model>{_CPU}</model></cpu>"
        return "<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"


@functools.cache
def acceleration() -> Acceleration:
    """Of this machine. Raises `AssertionError` where `kvm` is wanted and cannot be had."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "tcg":
        return Acceleration(False, False, f"{VARIABLE} says so")
    found = _found()
    assert found.kvm or wanted != "kvm", f"no hardware virtualisation: {found.why}"
    return found


def _found() -> Acceleration:
    try:
        device = _DEVICE.stat()
    except OSError as error:
        return Acceleration(False, False, f"{_DEVICE}: {error.strerror}")
    if not stat.S_ISCHR(device.st_mode):
        return Acceleration(False, False, f"{_DEVICE} is no device")
    if not _EXTENSIONS & set(_CPUINFO.read_text().split()):
        # There is a KVM that needs none (kvm-pvm): it runs firmware, and of kernels only such as know of it.
        return Acceleration(
            False, False, f"{_DEVICE} is there, but the processor has none of {', '.join(sorted(_EXTENSIONS))}"
        )
    user = service_user()
    reasons = []
    for own in (False, True) if os.geteuid() == 0 else (False,):
        with tempfile.TemporaryDirectory(prefix="hf", dir="/tmp") as folder:
            reason = _tried(user, Path(folder), own)
        if not reason:
            return Acceleration(True, own, f"{_DEVICE} works" + (" by a device of the user's own" if own else ""))
        reasons.append(reason)
    return Acceleration(False, False, "; ".join(reasons))


def prefix(user: ServiceUser, folder: Path) -> list[str]:
    """What a command begins with that is to be run as `user`, with a device of its own in `folder`. For root."""
    node = folder / "kvm"
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o600, _DEVICE.stat().st_rdev)
        os.chown(node, user.uid, user.gid)
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
    return [*enter, str(node), str(user.uid), str(user.gid)]


def _tried(user: ServiceUser, folder: Path, own: bool) -> str:
    """Empty: `user` has run a machine. A machine whose firmware does one thing: it says a number to a device that ends QEMU."""
    firmware = folder / "firmware"
    code = bytes((0xB0, _VALUE, 0xE6, _EXIT_PORT, 0xF4))  # mov al, 16; out 0xf4, al; hlt: where a processor begins
    firmware.write_bytes(bytes((64 << 10) - 16) + code.ljust(16, b"\xf4"))
    command = [
        *(
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            _CPU,
            "-machine",
            "pc",
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
        ),
        *("-no-reboot", "-bios", str(firmware), "-device", f"isa-debug-exit,iobase={_EXIT_PORT},iosize=4"),
    ]
    uid: int | None = None
    gid: int | None = None
    try:
        user.own_tree(folder)
        if own:
            command = [*prefix(user, folder), *command]
        elif user.uid != os.geteuid():
            uid, gid = user.uid, user.gid
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_S,
            cwd="/",
            env={"PATH": _PATH},
            check=False,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == _VALUE << 1 | 1:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1][-300:] if said else f"QEMU ended with {done.returncode}"


def main() -> None:
    if shutil.which("qemu-system-x86_64", path=_PATH) is None:
        print("virtual machines of the tests: no QEMU")
        return
    found = acceleration()
    print(f"virtual machines of the tests: {'KVM' if found.kvm else 'emulated'} ({found.why})")


if __name__ == "__main__":
    main()
