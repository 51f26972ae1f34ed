"""A store in a directory of any file system that is mounted: local disks, NFS, SMB.

`create` writes `.new-<random>` beside its place, flushes it, links it into place (which fails if something is there), and flushes
the directory. Where a file system has no links, renameat2(RENAME_NOREPLACE) does the same; one that has neither is refused.
A file server may say that a link exists, or a file is gone, although it was our own request, sent twice, that made it so: the
scratch file's count of links tells, or its number (`_is_linked`, `_is_renamed`). What a client remembers is not believed where
another machine may have changed it (`agents.repository.stores.fresh`). Directories are mode 0700, files 0600.

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

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
    fresh,
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
_SMB: Final = ("cifs", "smb3")
_STALE: Final = "the file server knows this folder no more: unmount and mount it again, and look what it serves now"
_ODD: Final = {
    "soft": "mounted `soft`: while the file server does not answer, backups fail instead of waiting; mount it `hard`",
    "softerr": "mounted `softerr`: while the file server does not answer, backups fail instead of waiting; mount it `hard`",
    "nocto": "mounted `nocto`: what other machines write is seen late, and packs that grow seem too short",
}
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100
_YOUNG_NS: Final = 86_400 * 1_000_000_000  # a file that was written to so lately may be growing still
_T = TypeVar("_T")


class LocalStore:
    """Implements `Store`. `root` must exist: a missing one is often a file system that is not mounted."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise StoreError("store-unfit", f"{root} is a file, not a folder", "name a folder, or choose another place")
        if not root.is_dir():
            raise StoreError("store-missing", f"there is no folder {root}", "mount its file system, or make the folder")
        self.root: Final = root
        self._made: set[Path] = {root}
        kind = mounts.type_of(root)
        self._remote = kind.startswith(_NETWORK)
        # A client of SMB takes what was written for safe, and does not notice when the server dies before it is flushed.
        self._more_flags = os.O_SYNC if kind in _SMB else 0

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        path = self._path(name)
        with _named(name, path):
            self._make_folder(path.parent)
            scratch, fd = _open_scratch(path.parent, self._more_flags)
            try:
                try:
                    for part in parts:
                        _write_all(fd, [part])
                    failpoint("store-scratch-written")
                    fresh.insisting(lambda: os.fsync(fd))
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
            return _Growing(name, path, _open_pack(path, self._more_flags))

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        path = self._path(name)
        with _named(name, path):
            fd = self._again(path, lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
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
            found = self._again(path, lambda: fresh.status(path))
            if found.is_folder:
                raise missing(name)
            return found.size

    def list(self, prefix: str = "") -> Iterator[Listed]:
        top = checked_prefix(prefix).rpartition("/")[0]
        folder = self.root / top
        try:
            there = self._refresh(folder)
        except OSError as error:
            raise _unlistable(folder, error) from error
        if there:
            yield from _walk(folder, f"{top}/" if top else "", prefix, remote=self._remote)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _named(name, path):
            try:
                self._again(path, path.unlink)
                failpoint("store-file-unlinked")
            except (FileNotFoundError, NotADirectoryError):
                # Gone by a request of ours that was sent twice, or of one who died before the next line.
                if not path.parent.is_dir():
                    return
            _flush_folder(path.parent)

    def check(self) -> Traits:
        folder, probe = self.root / "check", f"check/{secrets.token_hex(8)}"
        mounted = mounts.type_of(self.root)
        network = mounted.startswith(_NETWORK)
        notes = _oddities(mounted, mounts.options_of(self.root)) if network else []
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

    def _again(self, path: Path, ask: Callable[[], _T]) -> _T:
        """What `ask` says of a file; once more, when it says that there is none, after the server was asked too."""
        try:
            return fresh.insisting(ask)
        except FileNotFoundError:
            if not self._refresh(path.parent):
                raise
        except OSError as error:
            if error.errno != errno.ESTALE or not self._refresh(path.parent):
                raise
        return fresh.insisting(ask)

    def _refresh(self, folder: Path) -> bool:
        return fresh.refresh(self.root, folder, by_listing=self._remote)

    def _make_folder(self, folder: Path) -> None:
        """Make it and its parents, each entry flushed into the folder above. Never the root: it would be the mount point's."""
        if folder in self._made:
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            fresh.insisting(lambda: folder.mkdir(mode=0o700))
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
        hint = _STALE if error.errno == errno.ESTALE else _HINTS.get(code, "")
        raise StoreError(code, f"{path}: {error.strerror or error}", hint) from error


def _write_all(fd: int, parts: Iterable[Buffer]) -> int:
    views = [memoryview(p).cast("B") for p in parts]
    total = sum(map(len, views))
    while views:
        done = fresh.insisting(lambda: os.writev(fd, views[:64]))  # an EAGAIN has not moved the file's position
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]
    return total


def _read_all(fd: int, offset: int, size: int) -> bytes:
    data = fresh.insisting(lambda: os.pread(fd, size, offset))
    if len(data) == size or not data:
        return data
    pieces = [data]
    got = len(data)
    while got < size and (data := os.pread(fd, size - got, offset + got)):
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)


def _oddities(kind: str, options: frozenset[str]) -> list[str]:
    """What is to be said of how a file server's folder is mounted."""
    notes = [note for option, note in _ODD.items() if option in options]
    if kind in _SMB and "serverino" not in options:
        notes.append(
            "mounted without `serverino`: a file of ours whose making was answered late may be taken for another's"
        )
    if kind in _SMB and "nolease" not in options:
        notes.append("mounted without `nolease`: a file whose making was answered late cannot be read for a while")
    return notes


def _open_scratch(folder: Path, more_flags: int) -> tuple[Path, int]:
    """A new scratch file. That its name is taken is no word about the file that it is to become: the name is random, so it is
    ours, by a request that was sent twice."""
    for wait_s in fresh.WAITS_S:
        scratch = folder / f"{SCRATCH}{secrets.token_hex(8)}"
        try:
            return scratch, open_new(scratch, more_flags)
        except (FileExistsError, BlockingIOError):
            time.sleep(wait_s)
            with contextlib.suppress(OSError):
                scratch.unlink()
    raise StoreError(IO, f"{folder}: the file server does not say whether it makes files")


def _open_pack(path: Path, more_flags: int) -> int:
    try:
        return open_new(path, more_flags)
    except BlockingIOError as error:
        # Whether it was made nobody knows, nor whose it would be if it is there now.
        raise StoreError(IO, f"{path}: {error.strerror}", "try again, with a file of another name") from error


def _into_place(scratch: Path, path: Path) -> None:
    for wait_s in (*fresh.WAITS_S, None):
        try:
            os.link(scratch, path)
            return
        except OSError as error:
            # Done all the same, if the server carried out a request whose answer was lost.
            if _is_linked(scratch, path):
                return
            if isinstance(error, BlockingIOError) and wait_s is not None:
                time.sleep(wait_s)
                continue
            if error.errno not in _NO_LINKS:
                raise
            _rename_exclusively(scratch, path, error)
            return


def _is_linked(scratch: Path, path: Path) -> bool:
    """Whether both are names of one file: nobody else knows the first."""
    try:
        ours = fresh.status(scratch)
        return ours.links == 2 and ours.is_same(fresh.status(path))
    except OSError:
        return False


def _is_renamed(ours: fresh.Status, scratch: Path, path: Path) -> bool:
    """Whether the file that was `scratch` is `path` now."""
    try:
        return ours.is_same(fresh.status(path)) and not os.path.lexists(scratch)
    except OSError:
        return False


def _rename_exclusively(scratch: Path, path: Path, refused: OSError) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        ours = fresh.status(scratch)
        if renameat2(_AT_FDCWD, os.fsencode(scratch), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if _is_renamed(ours, scratch, path):
            return
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
    fd = fresh.insisting(lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        fresh.insisting(lambda: os.fsync(fd))
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


def _walk(folder: Path, before: str, prefix: str, *, remote: bool) -> Iterator[Listed]:
    try:
        # A folder at a time: what is deleted meanwhile must not confuse the walk.
        found = fresh.insisting(lambda: _entries(folder, remote=remote))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unlistable(folder, error) from error
    young_ns = time.time_ns() - _YOUNG_NS
    for entry in found:
        name = before + entry.name
        if entry.name.startswith(".") or not (name.startswith(prefix) or prefix.startswith(f"{name}/")):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{name}/", prefix, remote=remote)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                size, mtime_ns = status.st_size, status.st_mtime_ns
                if mtime_ns > young_ns:  # it may be growing on another machine: how long it was then is of no use
                    now = fresh.status(entry.path)
                    size, mtime_ns = now.size, now.mtime_ns
                yield Listed(name, size, mtime_ns // 1000)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unlistable(entry.path, error) from error


def _entries(folder: Path, *, remote: bool) -> list[os.DirEntry[str]]:
    fresh.status(folder)
    if remote:
        return fresh.entries(folder)
    with os.scandir(folder) as found:
        return list(found)


def _unlistable(path: Path | str, error: OSError) -> StoreError:
    return StoreError(IO, f"{path}: {error.strerror}", _STALE if error.errno == errno.ESTALE else "")


def _unfit(root: Path, mounted: str, why: str) -> StoreError:
    return StoreError(UNFIT, f"{root} ({mounted}) cannot hold a repository: {why}", "use another file system")
