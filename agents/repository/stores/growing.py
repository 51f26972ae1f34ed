"""A file on a mounted file system that grows: gathered in large pieces, written past the page cache, behind the caller's back.

What a backup writes is not read again soon, so the page cache would only cost: copying into it took ten times the processor
time of writing past it, and what was dirty was flushed at a third of the disk's speed (measured on ext4). A piece is written by
a thread of its own while the next one is filled; `write` waits when two are on their way. Where a file system knows no
O_DIRECT the same goes through the page cache. The last, shorter piece always does.

Errors of writing are `OSError`s of the next call. After one nothing more is written. Offsets are counted here: nobody else
writes to the file. Knows no names and no store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from agents.repository.stores import Buffer, fresh

PIECE: Final = 2 << 20
_UNDER_WAY: Final = 2
_ALIGNED: Final = 4096  # what O_DIRECT asks for at most, of offsets, lengths and memory
_DIRECT: Final = getattr(os, "O_DIRECT", 0)


def open_new(path: os.PathLike[str] | str, more_flags: int = 0) -> int:
    """A descriptor of a new file for a `Growing`. Raises `FileExistsError` and the like."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | more_flags
    return os.open(path, flags, 0o600)


class Growing:
    """Owns the descriptor. One thread at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._piece: mmap.mmap | None = None
        self._filled = 0
        self._at = 0  # where the piece that is being filled will stand; a multiple of `PIECE`
        self._written = 0  # of that piece, what `sync` has written already
        self._free: list[mmap.mmap] = []
        self._under_way: list[tuple[Future[None], mmap.mmap]] = []
        self._thread: ThreadPoolExecutor | None = None
        self._plain = False

    @property
    def size(self) -> int:
        """Bytes that were taken."""
        return self._at + self._filled

    def write(self, *parts: Buffer) -> int:
        """Take `parts`; the offset at which they begin."""
        at = self.size
        for part in parts:
            view = memoryview(part).cast("B")
            while len(view):
                if self._piece is None:
                    self._piece = self._next_piece()
                took = min(len(view), PIECE - self._filled)
                self._piece[self._filled : self._filled + took] = view[:took]
                self._filled += took
                view = view[took:]
                if self._filled == PIECE:
                    self._send()
        return at

    def _next_piece(self) -> mmap.mmap:
        if self._free:
            return self._free.pop()
        return mmap.mmap(-1, PIECE)  # of whole pages, so aligned; pages that are not touched take no memory

    def _send(self) -> None:
        """Write the full piece on the thread."""
        piece, self._piece = self._piece, None
        assert piece is not None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-pack")
            if not self._plain:
                self._begin_direct()
        while len(self._under_way) >= _UNDER_WAY:
            self._await_one()
        self._under_way.append(
            (self._thread.submit(_write_all, self._fd, piece, self._written, PIECE, self._at), piece)
        )
        self._at += PIECE
        self._filled = self._written = 0

    def _await_one(self) -> None:
        done, piece = self._under_way[0]
        done.result()
        self._under_way.pop(0)
        self._free.append(piece)

    def _begin_direct(self) -> None:
        """Ask for writes past the page cache; a file system that knows none says so here, or at the first write."""
        if _DIRECT:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | _DIRECT)

    def sync(self) -> None:
        """What was taken is on disk on return."""
        while self._under_way:
            self._await_one()
        if self._filled > self._written:
            assert self._piece is not None
            # Not whole pages: from here on the file goes through the page cache.
            self._plain = True
            _made_plain(self._fd)
            _write_all(self._fd, self._piece, self._written, self._filled, self._at)
            self._written = self._filled
        fresh.insisting(lambda: os.fsync(self._fd))

    def close(self) -> None:
        """Let go of the file as it is. May be called twice."""
        fd, self._fd = self._fd, -1
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
        self._piece = None
        self._free.clear()
        self._under_way.clear()
        if fd >= 0:
            os.close(fd)


def _write_all(fd: int, piece: mmap.mmap, start: int, end: int, at: int) -> None:
    """Write what stands from `start` to `end` of a piece that begins at `at` of the file."""
    view, offset = memoryview(piece)[start:end], at + start
    try:
        while len(view):
            try:
                done = fresh.insisting(lambda: os.pwrite(fd, view, offset))  # noqa: B023 - called before they change
            except OSError as error:
                if error.errno != errno.EINVAL or not _DIRECT:
                    raise
                # A file system that took the flag and takes no such writes.
                if not _made_plain(fd):
                    raise
                continue
            view = view[done:]
            offset += done
            if done % _ALIGNED and len(view):  # short, and what follows is not aligned any more
                _made_plain(fd)
    finally:
        view.release()


def _made_plain(fd: int) -> bool:
    """Let writes go through the page cache from now on; whether they had not."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if not flags & _DIRECT:
        return False
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~_DIRECT)
    return True
