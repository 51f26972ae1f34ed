"""Comparing a directory that is there with one at a point: by the names of the pieces of its files, so without the repository's
data, and by all else that a restore brings back.

Each file that is there is read and its pieces named; where the point has a hole it must read as zeros. Of every entry type,
owner, mode, time, attributes and a link's target are compared, and that names of one inode are names of one inode. Not compared
are inodes, times of change, and attributes that the system gives by itself (`security.…`) where the point has none of that name.

It is the proof that what was restored is what was sealed, and how a restore that is taken up again knows what it has already.
Follows no link. Memory does not grow with the tree, but for the names of one directory and for inodes that have several names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from agents.repository import directories as d
from agents.repository import files
from agents.repository.comparing import Same
from agents.repository.content import ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST

What = Literal["missing", "extra", "type", "content", "unreadable", "links", "owner", "mode", "time", "attributes"]
OF_CONTENT: Final[frozenset[What]] = frozenset({"missing", "extra", "type", "content"})
OWN_ATTRIBUTES: Final = (b"user.", b"system.posix_acl_")  # nobody but who wrote the tree gives files these
_PIECE: Final = 1 << 20  # of what should read as zeros
_PENDING: Final = 16  # files a thread has waiting, each open

LostParts = Mapping[bytes, Collection[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Difference:
    """`path` below the directory (empty: itself), `why` for people."""

    path: bytes
    what: What
    why: str


@dataclass(slots=True)
class Looked:
    """At how much was looked: entries by kind, `size` bytes of files that were read and named."""

    files: int = 0
    folders: int = 0
    others: int = 0
    size: int = 0


@dataclass(slots=True)
class _Folder:
    """A directory that is being compared: what the point has of it and what is there, both by name."""

    descriptor: int
    path: bytes
    entries: Iterator[d.Entry]
    names: Iterator[bytes]
    entry: d.Entry | None = None
    name: bytes | None = None

    def __post_init__(self) -> None:
        self.entry, self.name = next(self.entries, None), next(self.names, None)

    def next(self) -> tuple[d.Entry | None, bytes | None]:
        """One entry of the point, one that is there, or both, if they have one name; neither at the end."""
        entry, name = self.entry, self.name
        if entry is not None and (name is None or entry.name < name):
            name = None
        elif name is not None and (entry is None or name < entry.name):
            entry = None
        if entry is not None:
            self.entry = next(self.entries, None)
        if name is not None:
            self.name = next(self.names, None)
        return entry, name


def differences(
    target: Path,
    source: ChunkSource,
    entry: d.Entry,
    same: Same,
    *,
    lost: LostParts | None = None,
    looked: Looked | None = None,
    threads: int = 2,
    progress: Callable[[int], None] = lambda size: None,
) -> Iterator[Difference]:
    """Where `target` is not what `entry` (a directory's, or a file's: `directories.find`) was.

    An entry that is missing, is not in the point, or is of another type comes once, for all below it. `lost`: by path, parts
    (offset, length) of files that were not restored since no copy of them can be read; they are passed over, and so is
    whatever describes the tree and cannot be read. Without it what is lost in the point differs, and what cannot be read
    raises. `progress(bytes)` is called by several threads; what it raises ends the comparison. Raises `RepositoryError`;
    `OSError` of what can be read no more.
    """
    work = _Comparison(source, same, lost, looked or Looked(), progress)
    with ThreadPoolExecutor(threads, "compare") as pool:
        try:
            yield from work.run(target, entry, pool, threads * _PENDING)
        finally:
            work.close()


@dataclass(slots=True)
class _Comparison:
    _source: ChunkSource
    _same: Same
    _lost: LostParts | None
    _looked: Looked
    _progress: Callable[[int], None]
    _stack: list[_Folder] = field(default_factory=list)
    _pending: deque[tuple[int, Future[list[Difference]]]] = field(default_factory=deque)  # bytes, what came of it
    _links: dict[int, tuple[int, int]] = field(default_factory=dict)  # → device and inode of the first name

    def run(self, target: Path, entry: d.Entry, pool: ThreadPoolExecutor, most: int) -> Iterator[Difference]:
        above = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from self._both(above, os.fsencode(target.name) or b".", b"", entry, pool)
        except FileNotFoundError:
            yield Difference(b"", "missing", "it is not there")
        finally:
            os.close(above)
        while self._stack:
            folder = self._stack[-1]
            found, name = folder.next()
            if found is None and name is None:
                os.close(self._stack.pop().descriptor)
            elif name is None:
                assert found is not None
                if not found.flags & d.UNREAD:  # a restore makes nothing of it
                    yield Difference(folder.path + found.name, "missing", "it is not there")
            elif found is None:
                yield Difference(folder.path + name, "extra", "it is not in the point")
            else:
                try:
                    yield from self._both(folder.descriptor, name, folder.path + name, found, pool)
                except FileNotFoundError:
                    yield Difference(folder.path + name, "missing", "it went while it was looked at")
            while len(self._pending) > most:
                yield from self._result()
        while self._pending:
            yield from self._result()

    def _result(self) -> list[Difference]:
        size, future = self._pending.popleft()
        found = future.result()
        self._looked.size += size
        return found

    def close(self) -> None:
        for _, future in self._pending:
            future.cancel()  # those that have begun close what they read
        for folder in self._stack:
            os.close(folder.descriptor)

    def _both(
        self, folder: int, name: bytes, path: bytes, entry: d.Entry, pool: ThreadPoolExecutor
    ) -> Iterator[Difference]:
        """An entry that is in both, and of a directory what is in it."""
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        kind = files.TYPES[stat.S_IFMT(found.st_mode)]
        if kind != entry.type:
            yield Difference(path, "type", f"it is {_KINDS[kind]}, and {_KINDS[entry.type]} at the point")
            return
        if entry.flags & d.UNREAD and entry.type != d.FOLDER:
            return  # nobody knows what it was
        of = f"/proc/self/fd/{folder}/".encode() + name
        yield from self._metadata(of, found, path, entry)
        if kind == d.FOLDER:
            self._looked.folders += 1
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=folder)
            except PermissionError as error:
                yield Difference(path, "unreadable", f"it cannot be looked into: {error.strerror}")
                return
            if entry.form == d.CHILDREN:
                self._stack.append(self._folder(descriptor, path, entry))
            else:
                os.close(descriptor)
            return
        if kind == d.FILE:
            yield from self._file(folder, name, path, entry, found, pool)
            return
        self._looked.others += 1
        if kind == d.SYMLINK and os.readlink(name, dir_fd=folder) != entry.where:
            yield Difference(path, "content", "it leads elsewhere")
        if kind in (d.CHARACTER, d.BLOCK) and found.st_rdev != entry.device:
            yield Difference(path, "content", "it is another device")

    def _folder(self, descriptor: int, path: bytes, entry: d.Entry) -> _Folder:
        try:
            names = iter(sorted(os.fsencode(name) for name in os.listdir(descriptor)))
            below = path + b"/" if path else b""
            gone = None if self._lost is None else _passed_over
            return _Folder(descriptor, below, d.entries(self._source, entry.where, gone), names)
        except BaseException:
            os.close(descriptor)
            raise

    def _file(
        self, folder: int, name: bytes, path: bytes, entry: d.Entry, found: os.stat_result, pool: ThreadPoolExecutor
    ) -> Iterator[Difference]:
        self._looked.files += 1
        if entry.link:
            this = found.st_dev, found.st_ino
            first = self._links.get(entry.link)
            if first == this:
                return  # it was read by its first name
            if first is None:
                self._links[entry.link] = this
            else:
                yield Difference(path, "links", "it is a file of its own, and was another name of one at the point")
        if found.st_size != entry.size:
            yield Difference(path, "content", f"it has {found.st_size:,} bytes, and {entry.size:,} at the point")
            return
        try:
            descriptor = files.open_file(name, folder)
        except PermissionError as error:
            yield Difference(path, "unreadable", f"it cannot be read: {error.strerror}")
            return
        future = pool.submit(self._content, descriptor, path, entry)
        future.add_done_callback(lambda done: os.close(descriptor) if done.cancelled() else None)
        self._pending.append((entry.size, future))

    def _content(self, descriptor: int, path: bytes, entry: d.Entry) -> list[Difference]:
        lost = None if self._lost is None else self._lost.get(path, ())
        try:
            why = content_differs(descriptor, self._source, entry, self._same, lost=lost, progress=self._progress)
        finally:
            os.close(descriptor)
        return [Difference(path, "content", why)] if why else []

    def _metadata(self, of: bytes, found: os.stat_result, path: bytes, entry: d.Entry) -> Iterator[Difference]:
        if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
            is_of = f"it belongs to {found.st_uid}:{found.st_gid}"
            yield Difference(path, "owner", f"{is_of}, and to {entry.uid}:{entry.gid} at the point")
        mode = stat.S_IMODE(found.st_mode)
        if entry.type != d.SYMLINK and mode != entry.mode:
            yield Difference(path, "mode", f"its mode is {mode:o}, and {entry.mode:o} at the point")
        if found.st_mtime_ns != entry.mtime_ns:
            yield Difference(path, "time", "it was written at another time, by its file system")
        try:
            wanted = d.attributes_of(self._source, entry)
        except RepositoryError:
            if self._lost is None:
                raise
            return
        there = files.attributes(of)
        names = {name for name, value in wanted.items() if there.get(name) != value}
        names |= {name for name in there.keys() - wanted.keys() if name.startswith(OWN_ATTRIBUTES)}
        if names:
            told = ", ".join(sorted(name.decode(errors="replace") for name in names))
            yield Difference(path, "attributes", f"its attributes are others: {told}")


_KINDS: Final = {
    d.FOLDER: "a directory",
    d.FILE: "a file",
    d.SYMLINK: "a symbolic link",
    d.FIFO: "a FIFO",
    d.SOCKET: "a socket",
    d.CHARACTER: "a character device",
    d.BLOCK: "a block device",
}


def _passed_over() -> None:
    """Entries that cannot be read: the restore has said so."""


def content_differs(
    descriptor: int,
    source: ChunkSource,
    entry: d.Entry,
    same: Same,
    *,
    lost: Collection[tuple[int, int]] | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> str:
    """Why an open file is not what `entry` says, a sentence; empty: it is. Read from the disk, as far as the system does as it
    is asked. `lost` as in `differences`: the parts of this file. Raises `RepositoryError`, `OSError`."""
    size = os.fstat(descriptor).st_size
    if size != entry.size:
        return f"it has {size:,} bytes, and {entry.size:,} at the point"
    if size:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    at = 0
    for piece in d.pieces(source, entry, skip_lost=lost is not None):
        if lost is not None and (at, piece.length) in lost:
            at += piece.length
            continue
        if piece.tag == LOST:
            return f"{piece.length:,} bytes from {at:,} on are lost in the point"
        if piece.tag == CHUNK:
            alike = same(piece.name, _read(descriptor, at, piece.length))
        else:
            alike = _is_zero(descriptor, at, at + piece.length)
        if not alike:
            return f"{piece.length:,} bytes from {at:,} on are others"
        at += piece.length
        progress(piece.length)
    return ""


def _read(descriptor: int, offset: int, length: int) -> bytearray:
    """Shorter at the end of the file."""
    data = bytearray(length)
    view = memoryview(data)
    filled = 0
    while filled < length:
        got = os.preadv(descriptor, [view[filled:]], offset + filled)
        if not got:
            view.release()
            del data[filled:]
            break
        filled += got
    return data


def _is_zero(descriptor: int, offset: int, end: int) -> bool:
    """Whether a range reads as zeros; holes are not read."""
    while offset < end:
        with contextlib.suppress(OSError):  # a file system that does not say: it is read
            try:
                offset = min(os.lseek(descriptor, offset, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return True
                raise
        some = min(_PIECE, end - offset)
        if some and _read(descriptor, offset, some).count(0) != some:
            return False
        offset += some
    return True
