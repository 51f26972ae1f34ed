"""Taking a file tree or a stream into a repository. `agents.repository.unpacking` brings it back.

A directory is read in the order of its names, its files on a few threads; what a file holds is cut by its content,
holes are kept as holes. A file that is as it was in the previous snapshot (type, size, both times, inode) is not read
again, unless it was so young then that its times prove nothing. A file that changes while it is read is read again,
and in the end said to have changed. What cannot be read is listed with the reason and stands in its directory with a
flag: nothing is left out in silence.

Names are bytes. Memory does not grow with the tree, but for the names of one directory and for inodes that have
several names. Knows Linux's file systems and no repository's files.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

from blake3 import blake3

from agents.repository import directories as d
from agents.repository.chunking import LARGEST, Read, chunks
from agents.repository.content import DATA, ChunkSink, ChunkSource
from agents.repository.errors import RepositoryError

_READ_AGAIN: Final = 3
_YOUNG_NS: Final = 2_000_000_000  # within it a file may change again and keep its times, on some file systems
_DEEPEST: Final = 512  # directories within each other: each holds a descriptor while it is read
_AT_ONCE: Final = 64  # files of a directory handed to the threads
_UNREADABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENXIO,
    errno.ELOOP,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ESTALE,
)

TYPES: Final = {
    stat.S_IFDIR: d.FOLDER,
    stat.S_IFREG: d.FILE,
    stat.S_IFLNK: d.SYMLINK,
    stat.S_IFIFO: d.FIFO,
    stat.S_IFSOCK: d.SOCKET,
    stat.S_IFCHR: d.CHARACTER,
    stat.S_IFBLK: d.BLOCK,
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not in a snapshot as it was on disk. `code`: `unreadable`, `changed`, `vanished`,
    `too-deep`."""

    path: bytes
    code: str
    why: str


@dataclass(slots=True)
class Taken:
    """A snapshot. `root`: of its directory; `size`: bytes in files; `counts`: files, folders, others, unchanged,
    read_bytes …"""

    root: bytes = b""
    size: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by


def _nothing_excluded(path: bytes, found: os.stat_result) -> bool:
    return False


def snapshot(
    path: Path | bytes,
    sink: ChunkSink,
    *,
    source: ChunkSource | None = None,
    previous: bytes | None = None,
    seed: int = 0,
    excluded: Callable[[bytes, os.stat_result], bool] = _nothing_excluded,
    one_file_system: bool = False,
    threads: int = 2,
    progress: Callable[[int], None] = lambda size: None,
) -> Taken:
    """Take the directory `path`, all that is below it included; `previous` is the root of an earlier snapshot, in
    `source`.

    `excluded(path, stat)` leaves out an entry (path below the root, as bytes) and what is below it. Raises
    `RepositoryError` (`path-unreadable`) if the directory itself cannot be read, and what `sink` and `source` raise.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RepositoryError(
            "path-unreadable", f"{os.fsdecode(path)}: {error.strerror}", "name a directory that this process may read"
        ) from error
    work = _Snapshot(sink, source, seed, excluded, one_file_system, progress)
    before = None
    if source is not None and previous is not None:
        last = d.top(source, previous)
        before = last.where if last.form == d.CHILDREN else None
    with ThreadPoolExecutor(threads, "files") as pool:
        return work.run(descriptor, before, pool)


@dataclass(slots=True)
class _Folder:
    """A directory that is being read: what is left of it, what it was before, where its entry goes."""

    descriptor: int
    path: bytes
    names: Iterator[bytes]
    writer: d.DirectoryWriter
    before: _Before
    entry: d.Entry  # of the directory itself, without `where`
    waiting: list[tuple[bytes, Future[d.Entry | None]]] = field(default_factory=list)


class _Before:
    """The entries of a directory in the previous snapshot, asked for in ascending order."""

    def __init__(self, source: ChunkSource | None, directory: bytes | None) -> None:
        self._entries = iter(()) if source is None or not directory else d.entries(source, directory)
        self._at: d.Entry | None = None

    def get(self, name: bytes) -> d.Entry | None:
        while self._at is None or self._at.name < name:
            self._at = next(self._entries, None)
            if self._at is None:
                self._entries = iter(())
                return None
        return self._at if self._at.name == name else None


class _Snapshot:
    def __init__(
        self,
        sink: ChunkSink,
        source: ChunkSource | None,
        seed: int,
        excluded: Callable[[bytes, os.stat_result], bool],
        one_file_system: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._sink = sink
        self._source = source
        self._seed = seed
        self._excluded = excluded
        self._one_file_system = one_file_system
        self._progress = progress
        self._taken = Taken()
        self._lock = threading.Lock()
        self._links: dict[int, Future[d.Entry]] = {}
        self._device = 0

    def run(self, descriptor: int, before: bytes | None, pool: ThreadPoolExecutor) -> Taken:
        found = os.fstat(descriptor)
        self._device = found.st_dev
        stack = [self._folder(descriptor, b"", self._entry(b".", found, descriptor), before)]
        try:
            while True:
                top = stack[-1]
                below = self._advance(top, pool, len(stack))
                if below is not None:
                    stack.append(below)
                    continue
                self._drain(top, 0)
                os.close(top.descriptor)
                stack.pop()
                root = top.writer.finish()
                self._taken.count("folders")
                if not stack:
                    # The root's own mode, owner and times are an entry like any other: of a directory that holds it
                    # alone.
                    whole = d.DirectoryWriter(self._sink)
                    whole.add(replace(top.entry, name=b"root", form=d.CHILDREN, where=root))
                    self._taken.root = whole.finish()
                    return self._taken
                stack[-1].writer.add(replace(top.entry, form=d.CHILDREN, where=root))
        except BaseException:
            for folder in stack:
                for _, future in folder.waiting:
                    future.cancel()
                with contextlib.suppress(OSError):
                    os.close(folder.descriptor)
            raise

    def _folder(self, descriptor: int, path: bytes, entry: d.Entry, before: bytes | None) -> _Folder:
        names = sorted(os.fsencode(name) for name in os.listdir(descriptor))
        return _Folder(
            descriptor, path, iter(names), d.DirectoryWriter(self._sink), _Before(self._source, before), entry
        )

    def _advance(self, folder: _Folder, pool: ThreadPoolExecutor, depth: int) -> _Folder | None:
        """Hand out entries until there are no more, or one is a directory: that one, opened."""
        for name in folder.names:
            path = folder.path + name
            try:
                found = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
                if self._excluded(path, found):
                    self._taken.count("excluded")
                    continue
                before = folder.before.get(name)
                if not stat.S_ISDIR(found.st_mode):
                    future = pool.submit(self._other, folder.descriptor, name, path, found, before)
                    folder.waiting.append((name, future))
                    self._drain(folder, _AT_ONCE)
                    continue
                self._drain(folder, 0)
                below = self._open_folder(folder, name, path, found, before, depth)
                if below is not None:
                    return below
            except FileNotFoundError:
                self._trouble(path, "vanished", "it was removed while the snapshot was taken")
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                self._trouble(path, "unreadable", error.strerror)
        return None

    def _open_folder(
        self, folder: _Folder, name: bytes, path: bytes, found: os.stat_result, before: d.Entry | None, depth: int
    ) -> _Folder | None:
        entry = self._entry(name, found, None)
        if self._one_file_system and found.st_dev != self._device:
            folder.writer.add(replace(entry, form=d.CHILDREN, where=d.DirectoryWriter(self._sink).finish()))
            self._taken.count("other_file_systems")
            return None
        if depth >= _DEEPEST:
            self._trouble(path, "too-deep", f"more than {_DEEPEST} directories within each other are not taken")
            folder.writer.add(replace(entry, flags=d.UNREAD))
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = -1
        try:
            descriptor = os.open(name, flags, dir_fd=folder.descriptor)
            entry = self._entry(name, os.fstat(descriptor), descriptor)
            children = before.where if before is not None and before.form == d.CHILDREN else None
            return self._folder(descriptor, path + b"/", entry, children)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            if not isinstance(error, OSError) or error.errno not in _UNREADABLE:
                raise
            self._trouble(path, "unreadable", error.strerror)
            folder.writer.add(replace(entry, flags=d.UNREAD))
            return None

    def _drain(self, folder: _Folder, at_most: int) -> None:
        """Take in what the threads have done, in order, until at most so many are under way."""
        while len(folder.waiting) > at_most:
            _, future = folder.waiting.pop(0)
            entry = future.result()
            if entry is not None:
                folder.writer.add(entry)

    def _trouble(self, path: bytes, code: str, why: str | None) -> None:
        with self._lock:
            self._taken.troubles.append(Trouble(path, code, why or code))

    # -- entries; what is below runs on the threads

    def _entry(self, name: bytes, found: os.stat_result, descriptor: int | None) -> d.Entry:
        """All of an entry but what it holds. Attributes are those of `descriptor`."""
        kind = TYPES[stat.S_IFMT(found.st_mode)]
        packed, flag = b"", 0
        if descriptor is not None:
            packed, flag = d.put_attributes(self._sink, attributes(descriptor))
        return d.Entry(
            name,
            kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            inode=found.st_ino,
            size=found.st_size if kind == d.FILE else 0,
            link=_link(found) if found.st_nlink > 1 and kind != d.FOLDER else 0,
            device=found.st_rdev if kind in (d.CHARACTER, d.BLOCK) else 0,
            flags=flag,
            owner=_owner(found.st_uid),
            group=_group(found.st_gid),
            attributes=packed,
        )

    def _other(
        self, folder: int, name: bytes, path: bytes, found: os.stat_result, before: d.Entry | None
    ) -> d.Entry | None:
        """The entry of what is no directory; None if it is gone."""
        try:
            if stat.S_ISREG(found.st_mode):
                return self._file(folder, name, path, found, before)
            self._count("others")
            entry = self._entry(name, found, None)
            packed, flag = d.put_attributes(self._sink, attributes(f"/proc/self/fd/{folder}/".encode() + name))
            entry = replace(entry, attributes=packed, flags=flag)
            if entry.type == d.SYMLINK:
                return replace(entry, form=d.TARGET, where=os.readlink(name, dir_fd=folder))
            return entry
        except FileNotFoundError:
            self._trouble(path, "vanished", "it was removed while the snapshot was taken")
            return None

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._taken.count(what, by)

    def _file(
        self, folder: int, name: bytes, path: bytes, found: os.stat_result, before: d.Entry | None
    ) -> d.Entry | None:
        self._count("files")
        mine: Future[d.Entry] | None = None
        if found.st_nlink > 1:
            with self._lock:
                theirs = self._links.get(_link(found))
                if theirs is None:
                    mine = self._links[_link(found)] = Future()
            if theirs is not None:
                with contextlib.suppress(OSError, RepositoryError):
                    # Whoever has the other name reads it, on another thread, and waits for nobody.
                    return replace(theirs.result(), name=name)
        try:
            entry = self._read_file(folder, name, path, found, before)
            with self._lock:
                self._taken.size += entry.size
            if mine is not None:
                mine.set_result(entry)
            return entry
        except BaseException as error:
            if mine is not None:
                mine.set_exception(error)
            raise

    def _read_file(
        self, folder: int, name: bytes, path: bytes, found: os.stat_result, before: d.Entry | None
    ) -> d.Entry:
        try:
            descriptor = open_file(name, folder)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            self._trouble(path, "unreadable", error.strerror)
            return replace(self._entry(name, found, None), flags=d.UNREAD)
        try:
            for attempt in range(1, _READ_AGAIN + 1):
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise FileNotFoundError(errno.ENOENT, "another thing took its place")
                entry = self._entry(name, found, descriptor)
                if before is not None and _same(before, entry):
                    self._count("unchanged")
                    return replace(entry, form=before.form, where=before.where)
                young = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _YOUNG_NS
                form, where, size = self._content(descriptor, found.st_size)
                after = os.fstat(descriptor)
                changed = size != found.st_size or _times(after) != _times(found)
                if not changed or attempt == _READ_AGAIN:
                    if changed:
                        self._trouble(
                            path, "changed", "it changed while it was read: what is kept never was on disk so"
                        )
                    flags = entry.flags | (d.YOUNG if young else 0) | (d.CHANGED if changed else 0)
                    return replace(entry, form=form, where=where, size=size, flags=flags)
            raise AssertionError("the last attempt returns")
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno not in _UNREADABLE:
                raise
            self._trouble(path, "unreadable", error.strerror)
            return replace(self._entry(name, found, None), flags=d.UNREAD)
        finally:
            os.close(descriptor)

    def _content(self, descriptor: int, size: int) -> tuple[int, bytes, int]:
        """Form and `where` of what a file holds, and its length as it was read."""
        writer = d.ContentWriter(self._sink)
        if size <= LARGEST:
            self._small(descriptor, size, writer)
        else:
            for start, end in _stretches(descriptor, size):
                writer.hole(start - writer.size)
                for chunk in chunks(_reading(descriptor, start, end), self._seed):
                    self._put(chunk, writer)
                if writer.size < end:
                    break  # it has become shorter
            else:
                writer.hole(size - writer.size)
        form, where = writer.finish()
        return form, where, writer.size

    def _small(self, descriptor: int, size: int, writer: d.ContentWriter) -> None:
        data = os.pread(descriptor, size + 1, 0)
        if len(data) > 1 << 16 or len(data) > size:
            # Larger than what is never cut: cut like all else, so that moving an end over a limit changes nothing
            # before it.
            parts = iter([data])
            for chunk in chunks(lambda _: next(parts, b""), self._seed):
                self._put(chunk, writer)
        elif data:
            self._put(data, writer)

    def _put(self, chunk: bytes, writer: d.ContentWriter) -> None:
        if not chunk.strip(b"\0"):
            writer.hole(len(chunk))
        else:
            writer.chunk(self._sink.put(DATA, chunk), len(chunk))
        self._count("read_bytes", len(chunk))
        self._progress(len(chunk))


def open_file(name: bytes, folder: int) -> int:
    """To read it; no link is followed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # Only an owner may read without leaving a trace of it.
        return os.open(name, flags | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, flags, dir_fd=folder)


def _stretches(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, by its file system; all of it if that does not say."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            start, end = at, size
        if start >= size:
            return
        yield start, end
        at = end


def _reading(descriptor: int, start: int, end: int) -> Read:
    at = start

    def read(size: int) -> bytes:
        nonlocal at
        data = os.pread(descriptor, min(size, end - at), at)
        at += len(data)
        return data

    return read


def _times(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _same(before: d.Entry, now: d.Entry) -> bool:
    """A file is what it was: nothing says otherwise, and its times were old enough to say it."""
    return (
        before.type == now.type
        and not before.flags & (d.YOUNG | d.CHANGED | d.UNREAD)
        and (before.size, before.mtime_ns, before.ctime_ns, before.inode)
        == (now.size, now.mtime_ns, now.ctime_ns, now.inode)
    )


def _link(found: os.stat_result) -> int:
    """What names of one inode have in common: 63 bits, never 0."""
    return int.from_bytes(blake3(b"%d %d" % (found.st_dev, found.st_ino)).digest(8), "little") >> 1 | 1


def attributes(of: int | bytes) -> dict[bytes, bytes]:
    """Extended ones, of a descriptor or of what a path names itself; those that this process may read."""
    if not hasattr(os, "listxattr"):  # pragma: no cover - not Linux
        return {}
    out = {}
    follow = isinstance(of, int)
    try:
        names = os.listxattr(of, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOENT, errno.EBADF):
            return {}
        raise
    for name in names:
        try:
            out[os.fsencode(name)] = os.getxattr(of, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise
    return out


@lru_cache(maxsize=4096)
def _owner(uid: int) -> bytes:
    try:
        return pwd.getpwuid(uid).pw_name.encode()
    except KeyError:
        return b""


@lru_cache(maxsize=4096)
def _group(gid: int) -> bytes:
    try:
        return grp.getgrgid(gid).gr_name.encode()
    except KeyError:
        return b""


# -- streams


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that was taken: `root` is a content list with its own entry (`agents.repository.directories`)."""

    root: bytes
    size: int


def take_stream(read: Read | BinaryIO, sink: ChunkSink, *, name: bytes = b"stream", seed: int = 0) -> Stream:
    """Take what `read` gives until its end. It is kept as a directory with one file, `name`. Raises what `read` and
    `sink` raise."""
    reader = read if callable(read) else read.read
    writer = d.ContentWriter(sink)
    for chunk in chunks(reader, seed):
        if chunk.strip(b"\0"):
            writer.chunk(sink.put(DATA, chunk), len(chunk))
        else:
            writer.hole(len(chunk))
    form, where = writer.finish()
    directory = d.DirectoryWriter(sink)
    directory.add(d.Entry(name, d.FILE, mode=0o600, size=writer.size, form=form, where=where))
    return Stream(directory.finish(), writer.size)
