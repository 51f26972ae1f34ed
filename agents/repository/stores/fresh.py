"""What a file server says now, and not what this machine remembers of it.

A client of NFS or SMB keeps attributes, listings and even the names that were not there: for up to a minute, as NFS is mounted
by default. That is in order as long as nobody else writes. Beside a second machine it hides a point that was just sealed,
shows a pack as long as it was half a minute ago, and has "File exists" answered by a link whose count is remembered as 1.

`statx(AT_STATX_FORCE_SYNC)` asks the server, and what is remembered of a folder that has changed goes with the answer
(statx(2); tried with NFS 3 and 4.2 and SMB 3.1.1: tests/contract/on_file_servers.py). On a disk of one's own it is a `stat`
like any other. A C library that has no statx has `stat`: nothing is worse than it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_STATX_FORCE_SYNC: Final = 0x2000
_STATX_BASIC_STATS: Final = 0x7FF
# struct statx: mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask; four times (s, ns), of which
# the last is when it was written; rdev and dev as (major, minor); 256 bytes in all.
_STATX: Final = struct.Struct("=IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII")
_ROOM: Final = 256
WAITS_S: Final = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Between attempts that a file server neither refused nor granted."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Status:
    """`device` and `inode` say which file it is; `links`: names it has; `size` bytes; `mtime_ns` by the server's clock."""

    device: int
    inode: int
    mode: int
    links: int
    size: int
    mtime_ns: int

    def is_same(self, other: Status) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


def _find_statx() -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    return found


_statx = _find_statx()


def status(path: Path | str) -> Status:
    """Of a file or folder; links are not followed. Raises `OSError`."""
    if _statx is not None:
        room = ctypes.create_string_buffer(_ROOM)
        flags = _AT_SYMLINK_NOFOLLOW | _AT_STATX_FORCE_SYNC
        if _statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_BASIC_STATS, room) == 0:
            fields = _STATX.unpack_from(room)
            _, _, _, links, _, _, mode, inode, size = fields[:9]
            seconds, nanoseconds = fields[17:19]
            return Status(os.makedev(*fields[21:23]), inode, mode, links, size, seconds * 1_000_000_000 + nanoseconds)
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EPERM):  # a container's filter may know no statx
            raise OSError(number, os.strerror(number), str(path))
    found = os.stat(path, follow_symlinks=False)
    return Status(found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns)


def insisting(ask: Callable[[], _T]) -> _T:
    """Ask again while the answer is EAGAIN: so a client of SMB answers what was under way when its connection broke, even when it
    is mounted `hard`. It may have been done or not: `ask` must be something that may be asked twice."""
    for wait_s in WAITS_S:
        try:
            return ask()
        except BlockingIOError:
            time.sleep(wait_s)
    return ask()


def refresh(root: Path, folder: Path, *, by_listing: bool = False) -> bool:
    """Forget what is remembered of the folders from `root` down to `folder`: names may be there now that were not. Whether
    `folder` is. `by_listing`: on file servers; for it is not enough to ask for attributes there (`entries`). Raises `OSError`
    for anything but its absence."""
    at = root
    for part in ("", *folder.relative_to(root).parts):
        at = at / part
        try:
            status(at)
            if by_listing:
                entries(at)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder of a file server, listed anew.

    NFS 3 tells by the time of a folder whether it has changed, and servers' times go in ticks of milliseconds: of two changes
    in one tick the second would never be seen. So the pages that hold the listing are let go. A name that was not there is
    remembered likewise, by SMB for a second whatever is asked: being listed ends that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    with os.scandir(folder) as found:
        return list(found)
