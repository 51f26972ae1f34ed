"""Restoring a disk to a file or a block device, resumably, and how far that is.

The order of writes, and what a death leaves:

    target created or taken → progress file created → blocks of a window written → target flushed → the window's line
    in the progress file, flushed → … → target flushed → progress file removed

A window without a line is restored again, whatever there is of it. The progress file is `<target>.holdfast-restore`: a
line of JSON that says what is being restored, then a line for each window that is whole. A target that is there and
has no such file is not ours: it is taken only if the caller says so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agents.failpoints import failpoint
from agents.repository.content import ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.points import Disk
from agents.repository.restoring import THREADS, Restored, restore_disk
from agents.repository.stores import Buffer

TARGET: Final = "restore-target"
_PAGE: Final = 4096
_BLKZEROOUT: Final = 0x127F
_BLKGETSIZE64: Final = 0x80081272
_FALLOC_KEEP: Final = 0x01  # the size
_FALLOC_PUNCH: Final = _FALLOC_KEEP | 0x02


class FileTarget:
    """A file, or a block device. Written past the page cache and punched with holes where that is possible."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self._fd = descriptor
        self.size = size
        self._device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        self._punches = True
        try:
            # Past the page cache: twice as fast where the disk is, and what others read stays cached.
            self._direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            self._direct = -1  # a file system without it

    def stretch(self) -> None:
        """Give a file the disk's size."""
        if not self._device:
            os.ftruncate(self._fd, self.size)

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        if self._direct >= 0 and not offset % _PAGE and len(view) >= _PAGE:
            whole = len(view) - len(view) % _PAGE
            try:
                written = os.pwrite(self._direct, view[:whole], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                written = 0  # memory that does not begin where a page does, or a disk that wants more than that
            view, offset = view[written:], offset + written
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def reserve(self, offset: int, length: int) -> None:
        """Have the file system find room in one go: threads that write past the page cache to where there is none yet wait for
        each other."""
        if self._device or self._direct < 0:
            return
        try:
            _fallocate(self._fd, _FALLOC_KEEP, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EINTR):
                raise

    def zero(self, offset: int, length: int) -> None:
        if self._punches:
            try:
                if self._device:
                    fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))
                else:
                    _fallocate(self._fd, _FALLOC_PUNCH, offset, length)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY):
                    raise
                self._punches = False
        zeros = bytes(min(length, 1 << 20))
        while length:
            took = min(length, len(zeros))
            self.write(offset, zeros[:took])
            offset, length = offset + took, length - took

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        for descriptor in {self._fd, self._direct} - {-1}:
            os.close(descriptor)
        self._fd = self._direct = -1


_libc = ctypes.CDLL(None, use_errno=True)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if not hasattr(_libc, "fallocate"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    arguments = (ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
    if _libc.fallocate(ctypes.c_int(descriptor), *arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def progress_path(target: Path) -> Path:
    return target.with_name(target.name + ".holdfast-restore")


def restore_file(
    source: ChunkSource,
    disk: Disk,
    path: Path,
    *,
    point: str,
    overwrite: bool = False,
    skip_lost: bool = False,
    threads: int = THREADS,
    progress: Callable[[int], None] = lambda size: None,
    stop: Callable[[], bool] = lambda: False,
    prove: Callable[[Restored], None] = lambda restored: None,
) -> Restored:
    """Restore a whole disk to a file or a block device; goes on where an interrupted restore of the same disk to it
    ended.

    `overwrite`: what is there already may be lost (an empty file has nothing to lose; a device always has). `prove` is called
    when all is written and the progress file still there: who dies in it, or whom it raises for, goes on behind it. Raises
    `RepositoryError` (`restore-target`) when the target is there, too small, or being restored to by another process;
    and as `restore_disk`.
    """
    what = work_of(point, disk)
    taken, fresh = _open(path, disk.size, overwrite)
    try:
        notes = Notes(progress_path(path), what, fresh=fresh)
        taken.stretch()
        try:
            restored = restore_disk(
                source,
                disk,
                taken,
                zeros=not notes.fresh,
                skip_lost=skip_lost,
                threads=threads,
                done=notes.windows.__contains__,
                finished=notes.finished,
                progress=progress,
                stop=stop,
            )
            prove(restored)
        except BaseException:
            notes.close()
            raise
        notes.remove()
        return restored
    finally:
        taken.close()


def _open(path: Path, size: int, overwrite: bool) -> tuple[FileTarget, bool]:
    """The target, and whether there is nothing in it (so that it is zero wherever it is not written)."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryError(TARGET, f"another process restores to {path}", "wait for it, or stop it") from None
        found = os.fstat(descriptor)
        mode = found.st_mode
        fresh = stat.S_ISREG(mode) and not found.st_size
        if not fresh and not overwrite and Notes.head_of(progress_path(path)) is None:
            raise RepositoryError(
                TARGET, f"{path} is there already", "name another target, or add `--overwrite` to lose what is in it"
            )
        if stat.S_ISBLK(mode):
            (there,) = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)))
            if there < size:
                raise RepositoryError(TARGET, f"{path} has {there} bytes, the disk {size}", "name a larger device")
        elif not stat.S_ISREG(mode):
            raise RepositoryError(TARGET, f"{path} is neither a file nor a block device")
    except BaseException:
        os.close(descriptor)
        raise
    failpoint("restore-target-opened")
    return FileTarget(path, descriptor, size), fresh


def work_of(point: str, disk: Disk) -> dict[str, object]:
    """What a progress file says of which disk of which point is being restored."""
    return {
        "point": point,
        "disk": disk.disk,
        "root": disk.root.hex(),
        "size": disk.size,
        "block_size": disk.block_size,
    }


class Notes:
    """The progress file of one restore. `windows`: those that are whole. `fresh`: the target was empty when it
    began. What is noted of anything but `what` does not count, and if `fresh` is so now nothing does."""

    def __init__(self, path: Path, what: dict[str, object], *, fresh: bool) -> None:
        self._path = path
        self.windows: set[int] = set()
        self.fresh = fresh
        head = None if fresh else self.head_of(path)
        if head is not None and {**what, "fresh": head.get("fresh")} == head:
            self.fresh = bool(head["fresh"])
            self.windows, size = _lines(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            # Behind the last whole line, what a death cut off.
            os.ftruncate(self._fd, size)
            os.lseek(self._fd, 0, os.SEEK_END)
            return
        new = path.with_name(path.name + ".new")
        # The folder may be one in which others may put links.
        self._fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.write(self._fd, _line(json.dumps({**what, "fresh": fresh}, sort_keys=True)))
        os.fsync(self._fd)
        os.rename(new, path)
        _flush_folder(path.parent)
        failpoint("restore-progress-created")

    @staticmethod
    def head_of(path: Path) -> dict[str, object] | None:
        """What a progress file says is being restored; None if there is none, or it says nothing."""
        try:
            with path.open("rb") as file:
                text = _checked(file.readline(1 << 16))
        except FileNotFoundError:
            return None
        try:
            head = json.loads(text or "null")
        except ValueError:
            return None
        return head if isinstance(head, dict) else None

    def finished(self, window: int) -> None:
        os.write(self._fd, _line(str(window)))
        os.fdatasync(self._fd)
        failpoint("restore-window-recorded")

    def close(self) -> None:
        os.close(self._fd)

    def remove(self) -> None:
        os.close(self._fd)
        failpoint("restore-finished")
        self._path.unlink()
        _flush_folder(self._path.parent)


def _line(text: str) -> bytes:
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


def _checked(line: bytes) -> str | None:
    text = line[9:-1]
    return text.decode(errors="replace") if line.endswith(b"\n") and line[:9] == b"%08x " % zlib.crc32(text) else None


def _lines(path: Path) -> tuple[set[int], int]:
    """Windows on record, and where the last whole line ends."""
    windows: set[int] = set()
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            text = _checked(line)
            if text is None or (number and not text.isdecimal()):
                break
            size += len(line)
            if number:
                windows.add(int(text))
    return windows, size


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
