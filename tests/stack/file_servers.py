"""A kernel that has clients of NFS and SMB, for tests of stores on file servers: Debian's user-mode Linux, which runs as a
process of this machine and needs no hardware's help. It sees the root of this machine, read-only (hostfs), below a file
system of its own memory. So it runs what is installed here, this checkout and its `.venv` included, and nothing it does stays.
Servers (the kernel's nfsd, Samba) are unpacked from Debian's packages into the cache and laid over that root: nothing of
them is installed here.

    python -P -m tests.stack.file_servers      fetches and makes what is not in the cache yet, as CI does before the tests

`run` boots it, has it run a command (`tests.stack.served` there sets up servers and mounts) and waits until it is off. Needs no
network. Where something is missing, `machine` raises `NoGuest` with the reason, and tests skip.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.embedded.packages import cache_dir, exclusive
from deploy.embedded.process import Command, RunningProcess, wait_until
from tests.stack.guest import NoGuest, cpio, program, run_quietly

_KERNEL: Final = "user-mode-linux"
_SERVERS: Final = ("nfs-kernel-server", "samba")
_MODULES: Final = (
    "overlay ext4 crc32c_generic veth nfs nfsv3 nfsv4 nfsd cifs nls_utf8 "
    "cmac ccm gcm ghash_generic ctr cbc ecb hmac md5 sha256_generic sha512_generic aes_generic"
)
_REVISION: Final = 1  # of what is made here
_OVER_S: Final = 30.0

_INIT: Final = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for m in /mods/*.ko; do insmod $m || echo "no $m"; done
word() { sed -n "s/.* $1=\([^ ]*\).*/\1/p" /proc/cmdline; }
mkdir -p /host /packages /over /new
mount -t hostfs -o ro,/ host /host || poweroff -f
mount -t hostfs -o "ro,$(word packages)" packages /packages || poweroff -f
mount -t tmpfs -o size=60% t /over; mkdir /over/up /over/work
mount -t overlay -o lowerdir=/packages:/host,upperdir=/over/up,workdir=/over/work o /new || poweroff -f
mount -t proc p /new/proc; mount -t sysfs s /new/sys; mount -t devtmpfs d /new/dev
for at in tmp run var/tmp; do mkdir -p /new/$at; mount -t tmpfs -o mode=1777 t /new/$at; done
mkdir -p /new/dev/shm /new/run/out; mount -t tmpfs t /new/dev/shm
mount -t hostfs -o "$(word out)" out /new/run/out || poweroff -f
ip link set lo up
chroot /new /bin/sh /run/out/command > /new/run/out/said 2>&1 < /dev/null
echo $? > /new/run/out/status
sync; umount /new/run/out
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Kernel, initramfs and the folder of unpacked packages."""

    kernel: Path
    initramfs: Path
    packages: Path


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended (None: the machine was off before it did) and what it wrote, and what the kernel said."""

    status: int | None
    said: str
    console: str


def machine() -> Machine:
    """Made if it is not in the cache yet."""
    missing = [p for p in ("busybox", "mkfs.ext4", "dpkg-deb", "apt-get", "ip") if not program(p)]
    if missing:
        raise NoGuest(f"not installed: {', '.join(missing)}")
    folder = cache_dir() / f"file-servers-{_REVISION}"
    with exclusive("file-servers"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
                made = Path(scratch) / "made"
                made.mkdir(mode=0o755)
                _make(Path(scratch), made)
                made.rename(folder)
    return Machine(folder / "linux", folder / "initramfs.gz", folder / "packages")


def run(made: Machine, out: Path, command: str, *, disks: tuple[int, ...] = (), within_s: float) -> Ran:
    """Boot, run a shell script, wait until it is off. `out` is that machine's /run/out; `disks`: bytes of each, an ext4 file
    system on it. Raises `NoGuest` when it is not off in time, which ends it."""
    (out / "command").write_text(command)
    console = out / "console"
    argv = [
        str(made.kernel), "mem=1536M", f"initrd={made.initramfs}", "rdinit=/init", "quiet", "panic=-1",
        "con=null", "con0=null,fd:1", f"packages={made.packages}", f"out={out}",
    ]  # fmt: skip
    for number, size in enumerate(disks):
        image = out / f"disk{number}.raw"
        with image.open("wb") as file:
            file.truncate(size)
        run_quietly(program("mkfs.ext4"), "-q", "-F", "-E", "nodiscard", str(image))
        argv += [f"ubd{number}={image}"]
    linux = RunningProcess(Command("file-servers", argv, console, out, death_signal=signal.SIGKILL))
    try:
        in_time = wait_until(lambda: not linux.alive(), within_s, 0.1)
    finally:
        # It has processes of its own, in a session of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(linux.pid, signal.SIGKILL)
        linux.stop()
        for image in out.glob("disk*.raw"):
            image.unlink()
    said = _text(out / "said")
    if not in_time:
        raise NoGuest(f"the machine was not off after {within_s:g} s: {said[-5000:]}{_text(console)[-2000:]}")
    status = _text(out / "status").strip()
    return Ran(int(status) if status else None, said, _text(console))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _make(scratch: Path, made: Path) -> None:
    wanted = [_KERNEL]
    for name in _SERVERS:
        # What an installation would bring along: all that is not here already.
        plan = run_quietly("apt-get", "-s", "--no-install-recommends", "install", name)
        wanted += [found for found in re.findall(r"^Inst (\S+)", plan, re.MULTILINE) if found not in wanted]
    run_quietly("apt-get", "-o", "APT::Sandbox::User=", "-qq", "download", *wanted, cwd=scratch)
    packages = made / "packages"
    packages.mkdir(mode=0o755)
    for package in scratch.glob("*.deb"):
        into = scratch / "kernel" if package.name.startswith(_KERNEL) else packages
        run_quietly("dpkg-deb", "--extract", str(package), str(into))
    _merge_into_usr(packages)
    shutil.copy(scratch / "kernel" / "usr" / "bin" / "linux.uml", made / "linux")
    files = {"init": (0o755, _INIT.encode()), "bin/busybox": (0o755, Path(program("busybox")).read_bytes())}
    for number, module in enumerate(_in_order(scratch / "kernel")):
        files[f"mods/{number:03d}-{module.name}"] = (0o644, module.read_bytes())
    (made / "initramfs.gz").write_bytes(gzip.compress(cpio(files), 6, mtime=0))


def _merge_into_usr(tree: Path) -> None:
    """As the root below has it, where /lib is a link to /usr/lib: a folder of that name above would hide it."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if (tree / name).is_dir() and Path("/", name).is_symlink():
            shutil.copytree(tree / name, tree / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(tree / name)


def _in_order(kernel: Path) -> list[Path]:
    """The modules that are wanted and those they depend on, which come first. What is not a module is in the kernel."""
    there = {path.stem.replace("-", "_"): path for path in kernel.rglob("*.ko")}
    out: list[Path] = []

    def add(name: str) -> None:
        path = there.get(name.replace("-", "_"))
        if path is None or path in out:
            return
        for depends in re.findall(rb"\0depends=([^\0]*)\0", path.read_bytes()):
            for other in filter(None, depends.decode().split(",")):
                add(other)
        out.append(path)

    for name in _MODULES.split():
        add(name)
    return out


if __name__ == "__main__":
    try:
        print(machine())
    except NoGuest as reason:
        sys.exit(str(reason))
