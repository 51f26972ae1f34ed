"""A store in a directory of any file system that is mounted: local disks, NFS, SMB.

`create` writes `.new-<random>` beside its place, flushes it, links it into place (which fails if something is there), and flushes
the directory. Where a file system has no links, renameat2(RENAME_NOREPLACE) does the same; one that has neither is refused.
NFS may say that a link exists although it was our own request, sent twice, that made it: the scratch file's count of links
tells. Directories are mode 0700, files 0600.

And if we die here? A file that starts with `.new-` is garbage (`sweep`), and no listing shows it. An appended file is there as
far as it came.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from agents.failpoints import failpoint
from agents.repository import mounts
from agents.repository.stores import (
    DENIED,
    EXISTS,
    FULL,
    IO,
    READ_ONLY,
    UNFIT,
    Buffer,
    Listed,
    StoreError,
    Traits,
    checked_name,
    checked_prefix,
    exists,
    may_delete,
    missing,
    short,
)
from agents.repository.stores.growing import Growing, open_new

SCRATCH: Final = ".new-"
_NETWORK: Final = ("nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs", "afs", "virtiofs")
_CODES: Final = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EROFS: READ_ONLY,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
}
_HINTS: Final = {
    FULL: "make room, or give the repository a larger place; what is sealed is not touched",
    READ_ONLY: "look why the file system was mounted read-only: often it has met an error",
    DENIED: "give the folder to the user this process runs as",
}
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100


class LocalStore:
    """Implements `Store`. `root` must exist: a missing one is often a file system that is not mounted."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise StoreError("store-unfit", f"{root} is a file, not a folder", "name a folder, or choose another place")
        if not root.is_dir():
            raise StoreError("store-missing", f"there is no folder {root}", "mount its file system, or make the folder")
        self.root: Final = root
        self._made: set[Path] = {root}

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        path = self._path(name)
        with _named(name, path):
            self._make_folder(path.parent)
            scratch = path.parent / f"{SCRATCH}{secrets.token_hex(8)}"
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                try:
                    for part in parts:
                        _write_all(fd, [part])
                    failpoint("store-scratch-written")
                    os.fsync(fd)
                    failpoint("store-scratch-durable")
                finally:
                    os.close(fd)
                _into_place(scratch, path)
                failpoint("store-file-linked")
            finally:
                with contextlib.suppress(FileNotFoundError):
                    scratch.unlink()
            _flush_folder(path.parent)
        failpoint("store-file-durable")

    def append(self, name: str) -> _Growing:
        path = self._path(name)
        with _named(name, path):
            self._make_folder(path.parent)
            return _Growing(name, path, open_new(path))

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        path = self._path(name)
        with _named(name, path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                there = os.fstat(fd).st_size
                wanted = max(0, there - offset) if size is None else size
                if offset + wanted > max(
                    there, offset
                ):  # before memory is taken for it: sizes may come from damaged files
                    raise short(name, offset, wanted, max(0, there - offset))
                if not wanted:
                    return b""
                data = _read_all(fd, offset, wanted)
            finally:
                os.close(fd)
        if len(data) < wanted:
            raise short(name, offset, wanted, len(data))
        return data

    def size(self, name: str) -> int:
        path = self._path(name)
        with _named(name, path):
            return path.stat().st_size

    def list(self, prefix: str = "") -> Iterator[Listed]:
        top = checked_prefix(prefix).rpartition("/")[0]
        yield from _walk(self.root / top, f"{top}/" if top else "", prefix)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _named(name, path):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            failpoint("store-file-unlinked")
            _flush_folder(path.parent)

    def check(self) -> Traits:
        folder, probe = self.root / "check", f"check/{secrets.token_hex(8)}"
        mounted = mounts.type_of(self.root)
        notes: list[str] = []
        network = mounted.startswith(_NETWORK)
        try:
            self.create(probe, [b"one ", b"file"])
            try:
                self.create(probe, [b"another"])
            except StoreError as error:
                if error.code != EXISTS:
                    raise
            else:
                raise _unfit(self.root, mounted, "a file can be made over one that is there")
            try:
                self.append(probe).abandon()
            except StoreError as error:
                if error.code != EXISTS:
                    raise
            else:
                raise _unfit(self.root, mounted, "a file that is there can be made anew")
            if self.read(probe) != b"one file" or [f.name for f in self.list(probe)] != [probe]:
                raise _unfit(self.root, mounted, "what was written is not what is read")
            if not _flushes_folders(folder):
                if not network:
                    raise _unfit(self.root, mounted, "it does not make folders durable (fsync)")
                notes.append("folders are flushed by the file server alone")
            if abs(next(iter(self.list(probe))).mtime_us - time.time_ns() // 1000) > 300_000_000:
                notes.append("the file server's clock is more than five minutes away from this machine's")
            deletable = may_delete(self, probe, notes)
            if deletable and list(self.list(probe)):
                raise _unfit(self.root, mounted, "a deleted file is still listed")
        finally:
            with contextlib.suppress(OSError):
                (self.root / probe).unlink()
        return Traits("directory", str(self.root), mounted, network, deletable, notes=tuple(notes))

    def free_bytes(self) -> int | None:
        with _named("the folder", self.root):
            found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """No connection is kept."""

    def sweep(self, older_than_s: float) -> int:
        """Remove scratch files that a crash left, by age alone: whoever writes one is done with it in that time. How many."""
        swept, before = 0, time.time() - older_than_s
        for folder, _, files in os.walk(self.root):
            for file in files:
                path = Path(folder, file)
                if file.startswith(SCRATCH):
                    with contextlib.suppress(OSError):
                        if path.stat().st_mtime < before:
                            path.unlink()
                            swept += 1
        return swept

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)

    def _make_folder(self, folder: Path) -> None:
        """Make it and its parents, each entry flushed into the folder above. Never the root: it would be the mount point's."""
        if folder in self._made:
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _flush_folder(folder.parent)  # also when it was there: whoever made it may not have come to this
        self._made.add(folder)


class _Growing:
    """An `Appender`: a `Growing` in our words, whose name is durable too."""

    def __init__(self, name: str, path: Path, fd: int) -> None:
        self._name, self._path = name, path
        self._file = Growing(fd)
        self._synced = 0
        self._named = self._closed = False

    def write(self, *parts: Buffer) -> int:
        with _named(self._name, self._path):
            return self._file.write(*parts)

    def sync(self) -> None:
        with _named(self._name, self._path):
            self._file.sync()
            if not self._named:
                _flush_folder(self._path.parent)
                self._named = True
        self._synced = self._file.size

    def close(self) -> None:
        if self._closed:
            return
        if self._synced < self._file.size or not self._named:
            self.sync()
        self._closed = True
        with _named(self._name, self._path):
            self._file.close()  # NFS tells here what it could not write

    def abandon(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._file.close()


@contextlib.contextmanager
def _named(name: str, path: Path) -> Iterator[None]:
    """What the system says, in our words."""
    try:
        yield
    except FileNotFoundError:
        raise missing(name) from None
    except FileExistsError:
        raise exists(name) from None
    except (IsADirectoryError, NotADirectoryError):
        raise missing(name) from None
    except OSError as error:
        code = _CODES.get(error.errno or 0, IO)
        raise StoreError(code, f"{path}: {error.strerror or error}", _HINTS.get(code, "")) from error


def _write_all(fd: int, parts: Iterable[Buffer]) -> int:
    views = [memoryview(p).cast("B") for p in parts]
    total = sum(map(len, views))
    while views:
        done = os.writev(fd, views[:64])
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]
    return total


def _read_all(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    pieces = [data]
    got = len(data)
    while got < size and (data := os.pread(fd, size - got, offset + got)):
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)


def _into_place(scratch: Path, path: Path) -> None:
    try:
        os.link(scratch, path)
    except FileExistsError:
        # Ours, if the server carried out a request whose answer was lost and which was sent again.
        if os.stat(scratch).st_nlink != 2 or not os.path.samefile(scratch, path):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_exclusively(scratch, path, error)


def _rename_exclusively(scratch: Path, path: Path, refused: OSError) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(scratch), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EEXIST:
            raise FileExistsError(number, os.strerror(number), str(path))
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), str(path))
    raise StoreError(
        UNFIT,
        f"{path.parent}: this file system neither links files nor renames them exclusively ({refused.strerror})",
        "use a file system or server that has hard links",
    )


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # SMB: `check` has looked whether this is one that may
            raise
    finally:
        os.close(fd)


def _flushes_folders(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    finally:
        os.close(fd)
    return True


def _walk(folder: Path, before: str, prefix: str) -> Iterator[Listed]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)  # a folder at a time: what is deleted meanwhile must not confuse the walk
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(IO, f"{folder}: {error.strerror}") from error
    for entry in found:
        name = before + entry.name
        if entry.name.startswith(".") or not (name.startswith(prefix) or prefix.startswith(f"{name}/")):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{name}/", prefix)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield Listed(name, status.st_size, status.st_mtime_ns // 1000)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(IO, f"{entry.path}: {error.strerror}") from error


def _unfit(root: Path, mounted: str, why: str) -> StoreError:
    return StoreError(UNFIT, f"{root} ({mounted}) cannot hold a repository: {why}", "use another file system")
