"""A guest for tests of virtual machines: Debian's cloud kernel and an initramfs of busybox and QEMU's guest agent, booted from
the host; its disk is an ext4 file system, on which it writes all the while.

    python -P -m tests.stack.guest      fetches and makes what is not in the cache yet, as CI does before the tests

Every file `/<sha256>.bin` of the disk is named by its content, written as another name, synced and renamed: so whoever has the
disk at any moment can tell whether it is whole, by `files_in` without booting it. A guest that boots says on its console, each
line beginning with its machine's UUID:

    GUEST-CHECKED ok=12 bad=0       it looked at all files of the disk
    GUEST-HARDWARE cpus=2 memory_kib=… disk=sda nics=1
    GUEST-WROTE 17                  so many files since it booted

Needs no network. Where something is missing, `guest` raises `NoGuest` with the reason, and tests skip.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.embedded.packages import cache_dir, exclusive

_PACKAGE: Final = "linux-image-cloud-amd64"
_MODULES: Final = re.compile(
    r"/(virtio|virtio_ring|virtio_pci(_legacy_dev|_modern_dev)?|virtio_blk|virtio_console|virtio_net|virtio_scsi|net_failover|failover"
    r"|scsi_common|scsi_mod|sd_mod|t10-pi|crc(64|64-rocksoft|64_rocksoft_generic|-t10dif|t10dif_common|t10dif_generic|16|32c_generic)"
    r"|libcrc32c|ext4|jbd2|mbcache)\.ko$"
)
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_REVISION: Final = 1  # of what is made here

_INIT: Final = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
me=$(cat /sys/class/dmi/id/product_uuid | tr A-Z a-z)
say() { echo "$me $*" > /dev/console; }
for pass in 1 2 3 4; do for m in /mods/*.ko; do insmod $m 2>/dev/null; done; done
i=0; while [ ! -b /dev/vda ] && [ ! -b /dev/sda ] && [ $i -lt 200 ]; do sleep 0.1; i=$((i+1)); done
D=vda; [ -b /dev/vda ] || D=sda
mount -t ext4 -o errors=panic /dev/$D /mnt || say GUEST-UNMOUNTABLE
memory=$(sed -n 's/MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)
say "GUEST-HARDWARE cpus=$(grep -c ^processor /proc/cpuinfo) memory_kib=$memory" \
    "disk=$D nics=$(ls /sys/class/net | grep -vc '^lo$')"
ok=0; bad=0
for f in /mnt/*.bin; do
    [ -e "$f" ] || continue
    if [ "$(sha256sum < $f | cut -d' ' -f1).bin" = "${f##*/}" ]; then ok=$((ok+1)); else bad=$((bad+1)); fi
done
say "GUEST-CHECKED ok=$ok bad=$bad"
if [ -e /dev/virtio-ports/org.qemu.guest_agent.0 ] || [ -c /dev/vport*p1 ]; then
    mkdir -p /dev/virtio-ports /var/run
    port=$(ls /dev/vport*p1 | head -1)
    /bin/qemu-ga -m virtio-serial -p $port -t /var/run 2>/dev/null &
fi
n=0
while :; do
    dd if=/dev/urandom of=/mnt/new bs=$((1024 * (n % 96 + 1))) count=1 2>/dev/null
    name=$(sha256sum < /mnt/new | cut -d' ' -f1).bin
    sync /mnt/new; mv /mnt/new /mnt/$name; sync
    n=$((n+1)); say "GUEST-WROTE $n"
    # The oldest go, so that blocks are used again.
    ls -t /mnt/*.bin | tail -n +40 | while read old; do rm "$old"; done
    sleep 0.3
done
"""
_SHUTDOWN: Final = """#!/bin/sh
sync
umount /mnt || mount -o remount,ro /mnt
poweroff -f
"""


class NoGuest(Exception):
    """This machine cannot have it; the message says why."""


@dataclass(frozen=True, slots=True)
class Guest:
    kernel: Path
    initramfs: Path

    @property
    def boot(self) -> str:
        """To stand in a domain's `<os>`."""
        return (
            f"<kernel>{self.kernel}</kernel><initrd>{self.initramfs}</initrd>"
            "<cmdline>console=ttyS0 quiet panic=-1 rdinit=/init</cmdline>"
        )


def guest() -> Guest:
    """Made if it is not in the cache yet."""
    missing = [p for p in ("busybox", "qemu-ga", "mkfs.ext4", "debugfs", "dpkg-deb", "ldd") if not program(p)]
    if missing:
        raise NoGuest(f"not installed: {', '.join(missing)}")
    folder = cache_dir() / f"guest-{_REVISION}"
    with exclusive("guest"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
                made = Path(scratch) / "guest"
                made.mkdir(mode=0o755)
                _make(Path(scratch), made)
                Path(scratch).chmod(0o755)
                made.rename(folder)
    return Guest(folder / "vmlinuz", folder / "initramfs.gz")


def program(name: str) -> str:
    return shutil.which(name, path=_PATH) or ""


def run_quietly(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoGuest(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NoGuest(f"{' '.join(command[:3])}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _make(scratch: Path, made: Path) -> None:
    depends = re.search(r"Depends: (linux-image-\S+)", run_quietly("apt-cache", "depends", _PACKAGE))
    if depends is None:
        raise NoGuest(f"apt knows no {_PACKAGE}")
    run_quietly("apt-get", "-o", "APT::Sandbox::User=", "-qq", "download", depends[1], cwd=scratch)
    package = next(scratch.glob("linux-image-*.deb"))
    run_quietly("dpkg-deb", "--extract", str(package), str(scratch / "kernel"))
    shutil.copy(next(scratch.glob("kernel/boot/vmlinuz-*")), made / "vmlinuz")
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, _INIT.encode()),
        "bin/shutdown": (0o755, _SHUTDOWN.encode()),
        "bin/busybox": (0o755, Path(program("busybox")).read_bytes()),
        "bin/qemu-ga": (0o755, Path(program("qemu-ga")).read_bytes()),
    }
    for path in re.findall(r"(/\S+) \(0x", run_quietly("ldd", program("qemu-ga"))):
        files[path.lstrip("/")] = (0o755, Path(path).read_bytes())
    for module in sorted((scratch / "kernel").rglob("*.ko")):
        if _MODULES.search(str(module)):
            files[f"mods/{module.name}"] = (0o644, module.read_bytes())
    (made / "initramfs.gz").write_bytes(gzip.compress(cpio(files), 6, mtime=0))
    for path in made.iterdir():
        path.chmod(0o644)


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive in cpio's "newc" format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = {"proc", "sys", "dev", "mnt", "sbin", "etc"}
    for name in files:
        parts = name.split("/")[:-1]
        folders |= {"/".join(parts[: n + 1]) for n in range(len(parts))}
    entries = [(name, 0o040755, b"") for name in sorted(folders)]
    entries += [("sbin/shutdown", 0o120777, b"/bin/shutdown")]
    entries += [(name, 0o100000 | mode, data) for name, (mode, data) in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    out = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def make_disk(path: Path, size: int, files: int = 8) -> None:
    """A raw image: a file system with some files, named as the guest names its own."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            content = secrets.token_bytes(4096 * (number + 1))
            (Path(folder) / f"{hashlib.sha256(content).hexdigest()}.bin").write_bytes(content)
        with path.open("wb") as file:
            file.truncate(size)
        run_quietly(program("mkfs.ext4"), "-q", "-F", "-d", folder, str(path))


def check(image: Path) -> str:
    """What e2fsck says against a raw image, its log replayed first as a mount would; empty: the file system is clean."""
    done = subprocess.run(
        [program("e2fsck"), "-fy", str(image)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    # A replayed log is no finding; a second run must have none at all.
    again = subprocess.run(
        [program("e2fsck"), "-fn", str(image)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    wrong = [line for line in done.stdout.splitlines() if "Fix?" in line or "FIXED" in line or "UNEXPECTED" in line]
    if done.returncode in (0, 1) and again.returncode == 0 and not wrong:
        return ""
    return done.stdout + done.stderr + again.stdout


def files_in(image: Path) -> dict[str, str]:
    """Name → SHA-256 of every `*.bin` in the file system of a raw image (whose log was replayed: `check`)."""
    with tempfile.TemporaryDirectory() as folder:
        run_quietly(program("debugfs"), "-R", f"rdump / {folder}", str(image))
        return {path.name: _digest(path) for path in _binaries(Path(folder))}


def _binaries(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.bin"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    try:
        print(guest())
    except NoGuest as reason:
        sys.exit(str(reason))
