"""Bringing a file tree, a part of one, or a stream back from a repository, everything verified as it is read.

A directory is made, filled, and only then given its owner, mode and times. A file is written under a name of its own
and renamed when it is whole: what has a name after this process died is whole, and what is called `.holdfast-….part`
is garbage. Nothing is durable before the end, when the target's file system is flushed once: after a power failure a
file that has its name may be anything. So whoever goes on with a target believes no name and no size: each file that is
there is read, its pieces are named, and what is not the snapshot's is made anew. Names of one inode are linked again. What
this process may not do (owners, devices, some attributes) is listed, and the rest goes on.

Nothing is written outside of the target, whatever a damaged or hostile snapshot says: each step goes by the descriptor
of the directory above it, and follows no link.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import pwd
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

from agents.failpoints import failpoint
from agents.repository import directories as d
from agents.repository import files
from agents.repository.comparing import Same
from agents.repository.comparing_trees import OWN_ATTRIBUTES, content_differs
from agents.repository.content import DATA, ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST
from agents.repository.files import Trouble
from agents.repository.reader import LOST_BLOCK, readable
from agents.repository.ropes import damaged

TARGET: Final = "restore-target"
_AT_ONCE: Final = 64
_BATCH_BYTES: Final = 8 << 20
_BATCH: Final = 256  # pieces


@dataclass(slots=True)
class Unpacked:
    """What was brought back. `size`: bytes of files; `kept`: of those that an earlier run had made. `troubles`: what is not
    as it was, with the reason; `lost`: ranges (path, offset, length) of files that are zeros now since no copy of them can be
    read."""

    files: int = 0
    folders: int = 0
    others: int = 0
    size: int = 0
    kept: int = 0
    troubles: list[Trouble] = field(default_factory=list)
    lost: list[tuple[bytes, int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Folder:
    descriptor: int
    path: bytes
    entry: d.Entry
    entries: Iterator[d.Entry]
    waiting: list[Future[None]] = field(default_factory=list)
    links: list[tuple[d.Entry, bytes, Future[None]]] = field(default_factory=list)


def unpack(
    source: ChunkSource,
    root: bytes,
    target: Path,
    *,
    path: bytes = b"",
    owners_by_name: bool = False,
    skip_lost: bool = False,
    threads: int = 2,
    progress: Callable[[int], None] = lambda size: None,
    parts: Path | None = None,
    going_on: Same | None = None,
) -> Unpacked:
    """Restore the directory at `path` of a snapshot as `target`, or the file at it as the file `target`.

    The target must not be there, or be an empty directory; with `going_on` (whether data has a name) it may hold what an
    earlier run made of the same. `parts`: a directory of the same file system, for files that are not whole; without, they
    are beside their names. `progress(bytes)` is called by several threads, also of what is there already.

    Raises `RepositoryError`: `restore-target`, `path-missing`, `block-lost`, `chunk-damaged` and `chunk-missing` unless
    `skip_lost` (then it is zeros, and listed; of a directory that cannot be read, which then lacks entries, its path with a
    slash at the end, and nothing of its length); `directory-damaged`, and what else `source` raises; `OSError`.
    """
    entry = d.find(source, root, path)
    with contextlib.ExitStack() as stack:
        work = _Unpacking(source, owners_by_name, skip_lost, progress, going_on)
        if parts is not None:
            work.parts = os.open(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, work.parts)
        if entry.type != d.FOLDER:
            above = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, above)
            if os.path.lexists(target) and going_on is None:
                raise _taken(target)
            work.other(above, os.fsencode(target.name), entry.name, entry)
            _flush(above)
            return work.unpacked
        try:
            target.mkdir(mode=0o700)
        except FileExistsError:
            if target.is_symlink() or not target.is_dir() or (going_on is None and any(target.iterdir())):
                raise _taken(target) from None
            if going_on is not None:
                target.chmod(0o700)  # it may have been dressed
        # No link, whoever put one there meanwhile: everything else goes by this descriptor.
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with ThreadPoolExecutor(threads, "unpack") as pool:
            work.run(pool, descriptor, entry)
        return work.unpacked


def _taken(target: Path) -> RepositoryError:
    return RepositoryError(TARGET, f"{target} is there already", "name a directory that is empty, or not there yet")


class _Unpacking:
    def __init__(
        self,
        source: ChunkSource,
        owners_by_name: bool,
        skip_lost: bool,
        progress: Callable[[int], None],
        going_on: Same | None,
    ) -> None:
        self._source = source
        self._by_name = owners_by_name
        self._skip_lost = skip_lost
        self._progress = progress
        self._same = going_on
        self.parts = -1
        self._lock = threading.Lock()
        # The first name of an inode: where it is, below the target, and when.
        self._links: dict[int, tuple[bytes, Future[None]]] = {}
        self._top = -1
        self.unpacked = Unpacked()

    def run(self, pool: ThreadPoolExecutor, descriptor: int, entry: d.Entry) -> None:
        """Fill the directory that `descriptor` is of, and close it."""
        self._top = descriptor
        stack = [_Folder(descriptor, b"", entry, self._entries(b"", entry))]
        try:
            while stack:
                below = self._advance(stack[-1], pool)
                if below is not None:
                    stack.append(below)
                    continue
                self._finish(stack[-1])
                if len(stack) == 1:
                    _flush(descriptor)
                os.close(stack.pop().descriptor)
        except BaseException:
            for folder in stack:
                for future in folder.waiting:
                    future.cancel()
            pool.shutdown()
            for folder in stack:
                os.close(folder.descriptor)
            raise

    def _entries(self, path: bytes, folder: d.Entry) -> Iterator[d.Entry]:
        def lost() -> None:
            self._trouble(path, "lost", "entries of this directory are lost: what names them cannot be read")
            with self._lock:
                self.unpacked.lost.append((path or b"/", 0, 0))

        return d.entries(self._source, folder.where, lost if self._skip_lost else None)

    def _advance(self, folder: _Folder, pool: ThreadPoolExecutor) -> _Folder | None:
        """Hand out entries until there are no more, or one is a directory: that one, made and opened."""
        for entry in folder.entries:
            path = folder.path + entry.name
            if entry.type == d.FOLDER:
                self._make_folder(folder.descriptor, entry.name)
                failpoint("unpack-folder-made")
                self._count("folders")
                if entry.flags & d.UNREAD:
                    self._trouble(path, "unreadable", "it could not be read when the snapshot was taken")
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(entry.name, flags, dir_fd=folder.descriptor)
                children = self._entries(path + b"/", entry) if entry.form == d.CHILDREN else iter(())
                return _Folder(descriptor, path + b"/", entry, children)
            if entry.link and entry.link in self._links:
                folder.links.append((entry, *self._links[entry.link]))
                continue
            made = pool.submit(self.other, folder.descriptor, entry.name, path, entry)
            folder.waiting.append(made)
            if entry.link:
                self._links[entry.link] = path, made
            while len(folder.waiting) > _AT_ONCE:
                folder.waiting.pop(0).result()
        return None

    def _make_folder(self, above: int, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            if self._same is None:
                raise
            if stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                os.chmod(name, 0o700, dir_fd=above)  # it may have been dressed
            else:
                os.unlink(name, dir_fd=above)
                os.mkdir(name, 0o700, dir_fd=above)

    def _finish(self, folder: _Folder) -> None:
        for future in folder.waiting:
            future.result()
        folder.waiting.clear()
        for entry, first, made in folder.links:
            made.result()  # it may be of a directory above, which is not finished
            try:
                self._link(first, folder.descriptor, entry.name)
                failpoint("unpack-linked")
                self._count("others")
            except OSError as error:
                # A file system without links, or the first name could not be made: a file of its own is better than
                # none.
                if error.errno not in (errno.EPERM, errno.EMLINK, errno.ENOENT, errno.EOPNOTSUPP, errno.ENAMETOOLONG):
                    raise
                self._trouble(folder.path + entry.name, "unlinked", f"not linked to {first!r}: {error.strerror}")
                self.other(folder.descriptor, entry.name, folder.path + entry.name, entry)
        self._dress(folder.descriptor, folder.path.rstrip(b"/"), folder.entry)
        failpoint("unpack-folder-dressed")

    def _link(self, first: bytes, folder: int, name: bytes) -> None:
        """Give the file at `first`, below the target, this name, too."""
        try:
            os.link(first, name, src_dir_fd=self._top, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            if self._same is None:
                raise
            now, there = (os.stat(n, dir_fd=f, follow_symlinks=False) for n, f in ((first, self._top), (name, folder)))
            if (now.st_dev, now.st_ino) != (there.st_dev, there.st_ino):
                os.unlink(name, dir_fd=folder)
                os.link(first, name, src_dir_fd=self._top, dst_dir_fd=folder, follow_symlinks=False)

    # -- single entries, on the threads

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            setattr(self.unpacked, what, getattr(self.unpacked, what) + by)

    def _trouble(self, path: bytes, code: str, why: str) -> None:
        with self._lock:
            self.unpacked.troubles.append(Trouble(path, code, why))

    def other(self, folder: int, name: bytes, path: bytes, entry: d.Entry) -> None:
        """Make what is no directory."""
        if entry.flags & d.UNREAD:
            self._trouble(path, "unreadable", "it could not be read when the snapshot was taken")
            return
        if entry.flags & d.CHANGED:
            self._trouble(path, "changed", "it changed while it was read when the snapshot was taken")
        if entry.type == d.FILE:
            if self._same is None or not self._is_there(folder, name, path, entry, self._same):
                self._file(folder, name, path, entry)
            return
        if self._same is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        try:
            if entry.type == d.SYMLINK:
                os.symlink(entry.where, name, dir_fd=folder)
            else:
                kind = {d.FIFO: stat.S_IFIFO, d.SOCKET: stat.S_IFSOCK, d.CHARACTER: stat.S_IFCHR, d.BLOCK: stat.S_IFBLK}
                os.mknod(name, kind[entry.type] | 0o600, entry.device, dir_fd=folder)
        except PermissionError as error:
            self._trouble(path, "not-permitted", f"it was not made: {error.strerror}")
            return
        self._count("others")
        self._dress(f"/proc/self/fd/{folder}/".encode() + name, path, entry)

    def _is_there(self, folder: int, name: bytes, path: bytes, entry: d.Entry, same: Same) -> bool:
        """Whether an earlier run made this file: by what is in it. It is given all else again; another one is taken away."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return False
        except OSError:
            descriptor = -1  # a link, or nothing that may be read
        if descriptor >= 0:
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and not content_differs(
                    descriptor, self._source, entry, same, progress=lambda _: self._progress(0)
                ):
                    self._progress(entry.size)
                    self._dress(descriptor, path, entry)
                    self._count("files")
                    self._count("size", entry.size)
                    self._count("kept", entry.size)
                    return True
            except RepositoryError:
                if not self._skip_lost:
                    raise  # what describes it cannot be read
            finally:
                os.close(descriptor)
        os.unlink(name, dir_fd=folder)
        return False

    def _file(self, folder: int, name: bytes, path: bytes, entry: d.Entry) -> None:
        # Of a fixed length: the name itself may be as long as a name can be.
        part = b".holdfast-%x-%x.part" % (threading.get_ident(), entry.inode)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        parts = folder if self.parts < 0 else self.parts
        descriptor = os.open(part, flags, 0o600, dir_fd=parts)
        try:
            self._fill(descriptor, path, entry)
            self._dress(descriptor, path, entry)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=parts)
            raise
        finally:
            os.close(descriptor)
        failpoint("unpack-file-written")
        os.rename(part, name, src_dir_fd=parts, dst_dir_fd=folder)
        failpoint("unpack-file-named")
        self._count("files")
        self._count("size", entry.size)

    def _fill(self, descriptor: int, path: bytes, entry: d.Entry) -> None:
        os.ftruncate(descriptor, entry.size)
        batch: dict[bytes, list[tuple[int, int]]] = {}
        held = at = 0
        for piece in d.pieces(self._source, entry, skip_lost=self._skip_lost):
            if piece.tag == LOST:
                self._lost(path, at, piece.length)
            if piece.tag != CHUNK:
                self._progress(piece.length)
            else:
                batch.setdefault(piece.name, []).append((at, piece.length))
                held += piece.length
                if held >= _BATCH_BYTES or len(batch) >= _BATCH:
                    self._write(descriptor, path, batch)
                    batch, held = {}, 0
            at += piece.length
        if batch:
            self._write(descriptor, path, batch)

    def _lost(self, path: bytes, at: int, length: int) -> None:
        if not self._skip_lost:
            raise RepositoryError(
                LOST_BLOCK,
                f"{length} bytes from {at} on of {path.decode(errors='replace')} are lost",
                "restore the rest with `--skip-lost`, or take the file from another point",
            )
        self._trouble(path, "lost", f"{length} bytes from {at} on are lost, and zeros now")
        with self._lock:
            self.unpacked.lost.append((path, at, length))

    def _write(self, descriptor: int, path: bytes, batch: dict[bytes, list[tuple[int, int]]]) -> None:
        def unreadable(name: bytes) -> None:
            for at, length in batch[name]:
                self._lost(path, at, length)

        for name, data in readable(self._source, list(batch), unreadable if self._skip_lost else None):
            for at, length in batch[name]:
                if len(data) != length:
                    raise damaged(f"a piece of content has {len(data)} bytes where {length} belong")
                view = memoryview(data)
                while view:
                    written = os.pwrite(descriptor, view, at)
                    view, at = view[written:], at + written
            self._progress(len(data) * len(batch[name]))

    def _dress(self, of: int | bytes, path: bytes, entry: d.Entry) -> None:
        """Owner, attributes, mode, times, in the order in which none undoes or forbids another."""
        follow = isinstance(of, int)
        uid, gid = entry.uid, entry.gid
        if self._by_name:
            uid, gid = _uid(entry.owner, uid), _gid(entry.group, gid)
        now = os.stat(of, follow_symlinks=follow)
        try:
            if (now.st_uid, now.st_gid) != (uid, gid):
                os.chown(of, uid, gid, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            self._trouble(path, "owner", f"it belongs to this process's user, not to {uid}:{gid}: {error.strerror}")
        wanted = self._attributes(path, entry)
        for name in files.attributes(of).keys() - wanted.keys():
            if name.startswith(OWN_ATTRIBUTES):  # what a directory gives to all that is made in it
                with contextlib.suppress(OSError):
                    os.removexattr(of, name, follow_symlinks=follow)
        for name, value in wanted.items():
            try:
                os.setxattr(of, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL, errno.ENOSPC):
                    raise
                self._trouble(path, "attribute", f"{name.decode(errors='replace')}: {error.strerror}")
        if entry.type != d.SYMLINK:
            os.chmod(of, entry.mode)
        os.utime(of, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=follow)

    def _attributes(self, path: bytes, entry: d.Entry) -> Mapping[bytes, bytes]:
        try:
            return d.attributes_of(self._source, entry)
        except RepositoryError as error:
            if not self._skip_lost:
                raise
            self._trouble(path, "attribute", f"its attributes are lost: {error.message}")
            return {}


_libc = ctypes.CDLL(None, use_errno=True)


def _flush(descriptor: int) -> None:
    """All of a file system is durable on return: one call, where flushing each of many small files would take most of
    the time."""
    if hasattr(_libc, "syncfs"):
        if _libc.syncfs(ctypes.c_int(descriptor)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    else:  # pragma: no cover - not Linux
        os.sync()


@lru_cache(maxsize=4096)
def _uid(name: bytes, otherwise: int) -> int:
    try:
        return pwd.getpwnam(name.decode()).pw_uid if name else otherwise
    except KeyError:
        return otherwise


@lru_cache(maxsize=4096)
def _gid(name: bytes, otherwise: int) -> int:
    try:
        return grp.getgrnam(name.decode()).gr_gid if name else otherwise
    except KeyError:
        return otherwise


def stream(source: ChunkSource, root: bytes, to: BinaryIO) -> int:
    """Write a stream that was taken, from its first byte to its last: how many there were. Raises as `unpack`, and
    what `to` does."""
    entry = d.top(source, root)
    total = 0
    batch: list[d.Piece] = []

    def write() -> None:
        names = list(dict.fromkeys(piece.name for piece in batch if piece.tag == CHUNK))
        got = dict(source.get_many(names, DATA)) if names else {}
        for piece in batch:
            if piece.tag == LOST:
                raise RepositoryError(
                    LOST_BLOCK, f"{piece.length} bytes of the stream are lost", "take it from another point"
                )
            if piece.tag == CHUNK:
                if len(got[piece.name]) != piece.length:
                    raise damaged("a piece of content is not as long as it should be")
                to.write(got[piece.name])
            else:
                for start in range(0, piece.length, 1 << 20):
                    to.write(bytes(min(1 << 20, piece.length - start)))
        batch.clear()

    held = 0
    for piece in d.pieces(source, entry):
        batch.append(piece)
        total += piece.length
        held += piece.length if piece.tag == CHUNK else 0
        if held >= _BATCH_BYTES or len(batch) >= _BATCH:
            write()
            held = 0
    write()
    return total
