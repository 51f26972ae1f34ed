"""Disk images as other programs read them: made by `qemu-img`, written and read through `qemu-nbd`, both separate processes.

    raw      the disk, byte by byte, with holes            no other program is needed
    qcow2    QEMU, KVM, Proxmox VE, OpenStack
    vmdk     VMware (monolithic and sparse: ESXi takes it through `vmkfstools -i`), VirtualBox
    vhdx     Hyper-V (dynamic)

Bytes go straight into the image: no raw copy of the disk stands anywhere on the way, and what reads as zeros takes no room. The
server of an image dies with this process, and ends when we let go of it. Knows nothing of points.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from agents import child
from agents.errors import AgentError
from agents.nbd import ALLOCATION, GONE, ZERO, Nbd, Pool
from agents.repository.comparing import FileDisk
from agents.repository.file_targets import FileTarget
from agents.repository.restoring import THREADS

FORMATS: Final = ("raw", "qcow2", "vmdk", "vhdx")
SECTOR: Final = 512  # images other than raw are whole sectors long
UNFIT: Final = "image-unfit"
_HINT: Final = "apt install qemu-utils (dnf install qemu-img), or restore to --format raw, which needs no other program"
_PATIENCE_S: Final = 60.0
_ASKED_AT_ONCE: Final = 1 << 30
# A third to a half less processor time for the server, and what is read back comes from the disk. Not vmdk: its grains of 64 KiB
# are noted one by one, which takes half as long again then.
_UNCACHED: Final = ("qcow2", "vhdx")


def check(format: str) -> None:
    """Raises `AgentError`: `format-unknown`, `qemu-missing`."""
    if format not in FORMATS:
        raise AgentError("format-unknown", f"there is no image format {format!r}", f"known are: {', '.join(FORMATS)}")
    if format != "raw":
        _tool("qemu-img")
        _tool("qemu-nbd")


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise AgentError("qemu-missing", f"there is no {name} on this machine", _HINT)
    return found


def rounded(size: int, format: str) -> int:
    """How long an image of a disk of `size` bytes is for whoever reads it."""
    return size if format == "raw" else -(-size // SECTOR) * SECTOR


def make(path: Path, format: str, size: int) -> None:
    """An image that reads as zeros, durable on return. Raises `AgentError`, `OSError`; `path` may be there then."""
    # Ours alone, and no link that somebody put there: qemu-img would follow it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if format == "raw":
            os.ftruncate(descriptor, size)
        else:
            command = [_tool("qemu-img"), "create", "-q", "-f", format, _plain(path), str(rounded(size, format))]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
            if done.returncode:
                raise _refused(f"{path} cannot be made", done.stderr)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """What is read next comes from the disk, not from memory, as far as the system does as it is asked. It has been flushed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def open_image(path: Path, format: str, *, read_only: bool = False, threads: int = THREADS) -> Image:
    """Raises `AgentError` (`image-unfit`, `image-busy`, `qemu-missing`), `OSError`."""
    if format == "raw":
        return RawRead(path) if read_only else RawImage(path)
    if format in _UNCACHED and _takes_direct(path):
        try:
            return QemuImage(path, format, read_only=read_only, threads=threads, cache="none")
        except AgentError as error:
            if error.code != UNFIT:
                raise
        # It takes that for a file and not for an image, or the image itself is what cannot be opened: then this fails, too.
    return QemuImage(path, format, read_only=read_only, threads=threads)


def _takes_direct(path: Path) -> bool:
    """Whether its file system does without the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


class RawImage:
    """A raw file: to write and to read."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.size = os.fstat(descriptor).st_size
        self._file = FileTarget(path, descriptor, self.size)
        self._reading = FileDisk(path)
        self.write, self.zero, self.flush = self._file.write, self._file.zero, self._file.flush
        self.reserve = self._file.reserve
        self.read_into, self.holes = self._reading.read_into, self._reading.holes

    def close(self) -> None:
        """May be called twice."""
        self._file.close()
        self._reading.close()


class RawRead(FileDisk):
    """A raw file, to read."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def zero(self, offset: int, length: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def flush(self) -> None:
        """Nothing was written."""


class QemuImage:
    """An image in any format that QEMU knows, served by a `qemu-nbd` of its own."""

    def __init__(self, path: Path, format: str, *, read_only: bool, threads: int, cache: str = "writeback") -> None:
        command = [_tool("qemu-nbd"), "--format", format, "--shared", str(threads), "--discard", "unmap"]
        command += ["--cache", cache]
        if read_only:
            command.append("--read-only")
        # A path of its own, short enough for a socket's; nothing of it is left once the connections stand.
        with tempfile.TemporaryDirectory(prefix="holdfast-nbd-") as folder, tempfile.TemporaryFile() as log:
            place = os.path.join(folder, "nbd")
            # The bare interpreter: it is up in a third of the time, and an image is served twice.
            launch = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), "--exec"]
            self._process = subprocess.Popen(
                [*launch, *command, "--socket", place, _plain(path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            try:
                self._pool = Pool(lambda: self._opened(path, place, log), threads)
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise
        self.size = self._pool.size

    def _opened(self, path: Path, place: str, log: IO[bytes]) -> Nbd:
        try:
            return Nbd(self._connected(path, place, log), contexts=[ALLOCATION])
        except AgentError as error:
            if error.code != GONE:
                raise
            # It listens before it has looked at the image: what it cannot open ends it while we shake hands.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)
            if self._process.poll() is None:
                raise
            log.seek(0)
            raise _refused(f"{path} cannot be opened", log.read().decode(errors="replace")) from error

    def _connected(self, path: Path, place: str, log: IO[bytes]) -> socket.socket:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(place)
            except (FileNotFoundError, ConnectionRefusedError):  # it has not come to listening yet
                connection.close()
            else:
                return connection
            if self._process.poll() is not None:
                log.seek(0)
                raise _refused(f"{path} cannot be opened", log.read().decode(errors="replace"))
            if time.monotonic() > deadline:
                raise AgentError("image-unserved", f"qemu-nbd does not begin to serve {path}", "try again")
            time.sleep(0.01)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._pool.one() as nbd:
            nbd.read_into(offset, buffer)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with self._pool.one() as nbd:
            nbd.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        with self._pool.one() as nbd:
            nbd.zero(offset, length)

    def flush(self) -> None:
        with self._pool.one() as nbd:
            nbd.flush()

    def holes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        begin = end = offset
        for at in range(offset, offset + length, _ASKED_AT_ONCE):
            with self._pool.one() as nbd:
                if ALLOCATION not in nbd.contexts:
                    return
                found = list(nbd.status(at, min(_ASKED_AT_ONCE, offset + length - at)))
            for start, size, flags in found:
                if not flags & ZERO:
                    continue
                if start == end:
                    end = start + size
                    continue
                if end > begin:
                    yield begin, end - begin
                begin, end = start, start + size
        if end > begin:
            yield begin, end - begin

    def close(self) -> None:
        """Returns when the image is nobody's; may be called twice."""
        self._pool.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


Image = RawImage | RawRead | QemuImage


def _plain(path: Path) -> str:
    """A path as QEMU takes it for one, whatever is in it."""
    return f"file:{path.absolute()}"


def _refused(what: str, said: str) -> AgentError:
    why = said.strip().rpartition("\n")[2] or "it did not say why"
    if "lock" in why:
        return AgentError("image-busy", f"{what}: {why}", "another program has it open: end that")
    if os.strerror(errno.ENOSPC) in why:
        return AgentError("space-short", f"{what}: {why}", "give the folder room, or name another")
    return AgentError(UNFIT, f"{what}: {why}", "is the folder's file system one that can hold it?")


@contextlib.contextmanager
def opened(path: Path, format: str, *, read_only: bool = False) -> Iterator[Image]:
    image = open_image(path, format, read_only=read_only)
    try:
        yield image
    finally:
        image.close()
