"""Restoring a disk: everything it holds at a point, in the order in which packs have it, in parallel, verified, and
resumable.

A disk is restored window by window (4 GiB at 256 KiB a block). In a window chunks are read in the order of packs, a
few MiB at a time on several threads, and written where they belong: a chunk that stands in many places is read once.
Zero and omitted blocks become holes. The order of writes, and what a death leaves:

    target created or taken → progress file created → blocks of a window written → target flushed → the window's line
    in the progress file, flushed → … → target flushed → progress file removed

A window without a line is restored again, whatever there is of it. The progress file is `<target>.holdfast-restore`: a
line of JSON that says what is being restored, then a line for each window that is whole. A target that is there and
has no such file is not ours: it is taken only if the caller says so. Knows no packs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import mmap
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from agents.failpoints import failpoint
from agents.repository import tree
from agents.repository.content import DATA, NAME_SIZE, ChunkSource, Ordering
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST
from agents.repository.points import Disk
from agents.repository.reader import UNREADABLE, Fitting, lost, readable
from agents.repository.stores import Buffer

WINDOW: Final = 1 << 14  # blocks
TARGET: Final = "restore-target"
_SLICE_BYTES: Final = 4 << 20  # what a thread reads at once
_GATHERED: Final = 4 << 20  # what a thread writes at once, at most
_PAGE: Final = 4096
_PENDING: Final = 2  # slices a thread has waiting
_RESERVED: Final = 1 << 20  # stretches shorter than this are not worth a call of their own
THREADS: Final = (os.cpu_count() or 2) + 2  # two wait for the disk while the processors are busy

_BLKZEROOUT: Final = 0x127F
_BLKGETSIZE64: Final = 0x80081272
_FALLOC_KEEP: Final = 0x01  # the size
_FALLOC_PUNCH: Final = _FALLOC_KEEP | 0x02


class Target(Protocol):
    """Where a disk is restored to. `write` may be called by several threads, for ranges that do not overlap."""

    def write(self, offset: int, data: Buffer) -> None:
        """`data` is the caller's again on return."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...

    def flush(self) -> None:
        """What was written is durable on return."""
        ...


@runtime_checkable
class Reserving(Protocol):
    """A target that gains by being told what will be written."""

    def reserve(self, offset: int, length: int) -> None:
        """All of this range will be written. It reads as before until then. Raises `OSError` when there is no room."""
        ...


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. Bytes: of the disk's ranges asked for, written as data, found restored already; `lost`:
    ranges of bytes that were left as zeros since they are lost, or no copy of them can be read; ascending."""

    wanted: int
    written: int
    kept: int
    lost: tuple[tuple[int, int], ...]


class Stopped(Exception):
    """The caller asked to stop; what was restored is on record, and a restore to the same target goes on from there."""


def restore_disk(
    source: ChunkSource,
    disk: Disk,
    target: Target,
    *,
    ranges: Sequence[tuple[int, int]] | None = None,
    zeros: bool = True,
    skip_lost: bool = False,
    threads: int = THREADS,
    done: Callable[[int], bool] = lambda window: False,
    finished: Callable[[int], None] = lambda window: None,
    progress: Callable[[int], None] = lambda size: None,
    stop: Callable[[], bool] = lambda: False,
) -> Restored:
    """Write what `disk` holds to `target`: all of it, or the `ranges` (offset and length in bytes, ascending).

    `zeros`: the target is not known to be zero, so zeros are written too. `done(window)` says that a window is
    restored already; `finished(window)` is called when one is, and durable; `progress(bytes)` as it goes on, from
    several threads. Raises `RepositoryError`: `block-lost` (before anything of its window is written, unless
    `skip_lost`), `chunk-damaged`, `chunk-missing`, `tree-damaged` (likewise: all that a node stands for is lost); `StoreError`,
    `OSError`, `Stopped`. A window that lacks something is not `finished`: whoever goes on finds again what it lacks.
    """
    fitting = Fitting(disk.size, disk.block_size)
    wanted = [(0, disk.size)] if ranges is None else [(o, min(n, disk.size - o)) for o, n in ranges if o < disk.size]
    work = _Work(source, fitting, target, zeros, skip_lost, threads, progress, stop)
    kept = 0
    with ThreadPoolExecutor(threads, "restore") as pool, ThreadPoolExecutor(1, "flush") as flusher:
        flushed: Future[None] | None = None
        try:
            for number, parts in _windows(wanted, disk.block_size):
                if done(number):
                    kept += sum(length for _, length in parts)
                    continue
                lost_before = len(work.lost)
                for offset, length in parts:
                    work.restore(pool, disk.root, offset, length)
                noted = finished if len(work.lost) == lost_before else _unnoted
                failpoint("restore-window-written")
                # The disk writes while the next window is read.
                if flushed:
                    flushed.result()
                flushed = flusher.submit(_flushed, target, noted, number)
            if flushed:
                flushed.result()
                flushed = None
        finally:
            if flushed:
                wait([flushed])
    target.flush()
    return Restored(sum(length for _, length in wanted), work.written, kept, _joined(work.lost))


def _unnoted(window: int) -> None:
    """Of a window that is not whole."""


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges (offset, length), none touching another, ascending."""
    out: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if out and sum(out[-1]) == offset:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((offset, length))
    return tuple(out)


def _flushed(target: Target, finished: Callable[[int], None], number: int) -> None:
    target.flush()
    failpoint("restore-window-flushed")
    finished(number)


def _windows(ranges: Sequence[tuple[int, int]], block_size: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """`ranges` by window: its number, and the parts of ranges (offset, length) in it."""
    width = WINDOW * block_size
    parts: list[tuple[int, int]] = []
    current = end = 0
    for offset, length in ranges:
        if offset < end or length < 0:
            raise ValueError("ranges to restore do not ascend")
        end = offset + length
        while offset < end:
            if offset // width != current and parts:
                yield current, parts
                parts = []
            current = offset // width
            took = min(end, (current + 1) * width) - offset
            parts.append((offset, took))
            offset += took
    if parts:
        yield current, parts


class _Work:
    """What the threads of one restore share."""

    def __init__(
        self,
        source: ChunkSource,
        fitting: Fitting,
        target: Target,
        zeros: bool,
        skip_lost: bool,
        threads: int,
        progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        self._source = source
        self._fitting = fitting
        self._target = target
        self._zeros = zeros
        self._skip_lost = skip_lost
        self._threads = threads
        self._progress = progress
        self._stop = stop
        self._lock = threading.Lock()
        self._own = threading.local()
        self._failed = False
        self.written = 0
        self.lost: list[tuple[int, int]] = []

    def restore(self, pool: ThreadPoolExecutor, root: bytes, offset: int, length: int) -> None:
        """Restore one range, which is not larger than a window."""
        end = offset + length
        size = self._fitting.block_size
        first, stop = offset // size, -(-end // size)
        places: dict[bytes, list[int]] = {}
        holes: list[tuple[int, int]] = []
        lost_here: list[tuple[int, int]] = []
        at = first
        for run in tree.iterate(self._source, root, first, stop, skip_lost=self._skip_lost):
            names = run.names
            for begin, count, tag, start in run.extents():
                if begin > at:
                    holes.append((at, begin))
                at = begin + count
                if tag == CHUNK:
                    for i in range(count):
                        name = names[start + i * NAME_SIZE : start + (i + 1) * NAME_SIZE]
                        if name in places:
                            places[name].append(begin + i)
                        else:
                            places[name] = [begin + i]
                else:
                    holes.append((begin, at))
                    if tag == LOST:
                        lost_here.append((begin, at))
        if at < stop:
            holes.append((at, stop))
        if lost_here and not self._skip_lost:
            raise lost(lost_here[0][0], size)
        bounds = (offset, end)
        for begin, until in lost_here:
            start = max(begin * size, offset)
            self.lost.append((start, min(until * size, end) - start))
        for begin, until in holes:
            start, length = max(begin * size, offset), min(until * size, end) - max(begin * size, offset)
            if self._zeros:
                self._target.zero(start, length)
            self._progress(length)
        self._reserve(holes, bounds)
        ordered = list(places)
        if isinstance(self._source, Ordering):
            try:
                ordered = self._source.read_order(ordered, DATA)
            except RepositoryError as error:
                if not self._skip_lost or error.code not in UNREADABLE:
                    raise  # otherwise in the disk's order: slower, and whole but for what is not there
        step = max(1, _SLICE_BYTES // size)
        slices = iter([ordered[i : i + step] for i in range(0, len(ordered), step)])
        running: set[Future[None]] = set()
        try:
            for names_of in itertools.islice(slices, self._threads * _PENDING):
                running.add(pool.submit(self._slice, names_of, places, bounds))
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                    following = next(slices, None)
                    if following is not None:
                        running.add(pool.submit(self._slice, following, places, bounds))
        except BaseException:
            self._failed = True
            for future in running:
                future.cancel()
            wait(running)
            raise

    def _reserve(self, holes: list[tuple[int, int]], bounds: tuple[int, int]) -> None:
        """Tell the target of what is between `holes`, ranges of blocks that ascend."""
        if not isinstance(self._target, Reserving):
            return
        size = self._fitting.block_size
        at, end = bounds
        for begin, until in (*holes, (-(-end // size), -(-end // size))):
            data_ends = min(begin * size, end)
            if data_ends - at >= _RESERVED:
                self._target.reserve(at, data_ends - at)
            at = max(at, until * size)

    def _slice(self, names: list[bytes], places: dict[bytes, list[int]], bounds: tuple[int, int]) -> None:
        if self._failed:
            return
        if self._stop():
            raise Stopped
        offset, end = bounds
        size = self._fitting.block_size
        gathering: _Gathering | None = getattr(self._own, "gathering", None)
        if gathering is None:
            gathering = self._own.gathering = _Gathering(self._target, size)
        written = 0

        def unreadable(name: bytes) -> None:
            for block in places[name]:
                start, stop = max(block * size, offset), min((block + 1) * size, end)
                self._target.zero(start, stop - start)  # an earlier run may have read it, or it is another's target
                with self._lock:
                    self.lost.append((start, stop - start))

        gathering.expect(block for name in names for block in places[name])
        for name, data in readable(self._source, names, unreadable if self._skip_lost else None):
            for block in places[name]:
                start = block * size
                part: Buffer = self._fitting.fitted(block, data)
                if start < offset or start + len(part) > end:
                    part = memoryview(part)[max(0, offset - start) : end - start]
                    start = max(start, offset)
                gathering.put(block, start, part)
                written += len(part)
        gathering.flush()
        self._progress(written)
        with self._lock:
            self.written += written


class _Gathering:
    """Blocks that are neighbours on the disk become one write, in whatever order they come: packs have that of the threads
    which stored them. From memory that begins where a page does: a thread's own."""

    def __init__(self, target: Target, block_size: int) -> None:
        self._target = target
        self._size = block_size
        self._memory = memoryview(mmap.mmap(-1, max(_GATHERED, block_size)))
        self._slots: dict[int, int] = {}  # by block, ascending: where in the memory it goes
        self._held: dict[int, tuple[int, int]] = {}  # by block: the bytes of the disk that are in its slot, from and to

    def expect(self, blocks: Iterable[int]) -> None:
        """The blocks that `put` will be given until `flush`. What went before and was not flushed is let go of."""
        room = len(self._memory) // self._size
        self._slots = {block: slot * self._size for slot, block in enumerate(sorted(blocks)[:room])}
        self._held = {}

    def put(self, block: int, offset: int, data: Buffer) -> None:
        """`data` goes to `offset` bytes on the disk, which is in `block`."""
        slot = self._slots.get(block)
        if slot is None:  # a chunk that stands in many places
            self._target.write(offset, data)
            return
        at = slot + offset - block * self._size
        self._memory[at : at + len(data)] = data
        self._held[block] = offset, offset + len(data)

    def flush(self) -> None:
        first = end = memory = 0
        for block, slot in self._slots.items():
            if block not in self._held:
                continue  # unreadable: there is nothing to write
            begin, stop = self._held[block]
            at = slot + begin - block * self._size
            if begin == end and at == memory + end - first:
                end = stop
                continue
            if end > first:
                self._target.write(first, self._memory[memory : memory + end - first])
            first, end, memory = begin, stop, at
        if end > first:
            self._target.write(first, self._memory[memory : memory + end - first])
        self._held = {}


# -- files and block devices


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
    what = {
        "point": point,
        "disk": disk.disk,
        "root": disk.root.hex(),
        "size": disk.size,
        "block_size": disk.block_size,
    }
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
