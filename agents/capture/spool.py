"""The spool of one source: what was read from it while Kafka is away, on the agent's disk. Files, a writer's end and a reader's.

    <data_dir>/spool/<source>/000000000001.spool, …      segments, in order (`spool_format`)

    append … append │ sync: what is before it counts        next → next → … (only what counts)      release: oldest segments go

A cache of what the source said, never the record of what was captured: that is the log alone. All of it may be dropped at any
time, and then the source is asked again. So before anything of it goes into the log, `align` finds the log's last step in it
and compares digests; and whatever is damaged, is in the wrong place or follows something that is, counts for nothing.

And if we die here? A frame that was written and not flushed is there or torn: the next start cuts the spool off after the last
whole step of its last segment, and the source is asked for what follows. A segment is made beside its place, flushed and
renamed: it is there with its head or not at all. A segment is removed once the log has every step in it: if it is still there
afterwards, `align` passes it by.

One thread appends, another reads; a lock holds them apart. Knows nothing of Kafka, and of the source only what it handed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from agents.capture.records import Standing
from agents.capture.spool_format import (
    Frame,
    FrameDamaged,
    Head,
    frame_size,
    read_frame,
    read_head,
    read_standing,
    steps_in,
    write_frame,
    write_head,
)
from agents.failpoints import failpoint
from agents.protocol import Piece, Steps, Taken
from streams.capture_record import Sealer
from streams.ids import now_us

SEGMENT_BYTES = 64 << 20
SUFFIX = ".spool"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_log = logging.getLogger("holdfast.capture")

CountEvents = Callable[[bytes], int]


class SpoolDamaged(Exception):
    """What comes next in the spool cannot be read. `gap` says which steps that are, as far as it is known."""

    def __init__(self, gap: str) -> None:
        super().__init__(gap)
        self.gap = gap


@dataclass
class _Segment:
    path: Path
    head: Head
    standing: Standing  # before its first frame
    end: int  # where the next frame goes


def folder_of(data_dir: Path, source: str) -> Path:
    return data_dir / "spool" / source


def segments_in(folder: Path) -> list[Path]:
    """Files of segments, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


@dataclass(frozen=True, slots=True)
class Seen:
    """What anybody may see of a spool: steps `first..last` in `size` bytes, begun at `since_us`."""

    first: int
    last: int
    size: int
    since_us: int


def look(folder: Path) -> Seen | None:
    """What is in the spool in `folder`, without a key and whoever has it; None: nothing. Raises `OSError`."""
    first = last = size = since_us = 0
    for path in segments_in(folder):
        try:
            data = path.read_bytes()
            head = read_head(data)
            at = head.size
            first, since_us = first or head.ordinal + 1, since_us or head.since_us
            last = max(last, head.ordinal)
            size += len(data)
            while at < len(data):
                end = at + frame_size(data[at : at + 8])
                last = max(last, steps_in(data[at:end])[1])
                at = end
        except FileNotFoundError:  # drained just now
            continue
        except FrameDamaged:
            break
    return Seen(first, last, size, since_us) if since_us else None


class Spool:
    """What is spooled of `source`, at most `limit` bytes of files. `count` tells how many events are in a payload.

    Raises `BlockingIOError` when another process has it, `OSError`.
    """

    def __init__(self, folder: Path, source: str, sealer: Sealer, limit: int, count: CountEvents) -> None:
        self.limit = limit
        self._folder = folder
        self._source = source
        self._sealer = sealer
        self._count = count
        self._lock = threading.RLock()
        self._segments: list[_Segment] = []
        self._fd = -1
        self._end: Standing | None = None
        self._boundary = (0, 0)  # segment and offset after the last whole step
        self._open = blake3()  # of the pieces since
        self._synced = (0, 0)
        self._cursor = (0, 0)
        self._skip = 0  # steps of the next frame that are in the log already
        self._read = Standing(0, "", "", None)  # where reading has come to
        self._reading: blake3 | None = None  # of the pieces read of a step
        self.unsynced = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owner = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except BaseException:
            os.close(self._owner)
            raise

    # -- what there is

    @property
    def end(self) -> Standing | None:
        """After the last whole step in it; None: there is no spool."""
        with self._lock:
            return self._end

    @property
    def lineage(self) -> str:
        with self._lock:
            return self._segments[0].head.lineage if self._segments else ""

    @property
    def since_us(self) -> int:
        """When spooling began; 0: there is no spool."""
        with self._lock:
            return self._segments[0].head.since_us if self._segments else 0

    @property
    def size(self) -> int:
        """Bytes of its files."""
        with self._lock:
            return sum(s.end for s in self._segments)

    # -- writing

    def begin(self, lineage: str, standing: Standing) -> None:
        """An empty spool that goes on after `standing`; what was there is dropped. Raises `OSError`."""
        with self._lock:
            self.drop()
            self._add(Head(secrets.token_bytes(16), 1, now_us(), standing.ordinal, False, lineage), standing)
            self._end = self._read = standing
            self._boundary = self._synced = self._cursor = (1, self._segments[0].end)

    def append(self, taken: Taken, captured_us: int) -> bool:
        """Write what the source handed over; False when there is no room for it. It counts once `sync` has returned."""
        with self._lock:
            end = self._end
            assert end is not None
            if self.size + len(taken.payload) + 4096 > self.limit:
                return False
            after, digest = end, b""
            first = end.ordinal + 1
            pieces = blake3() if isinstance(taken, Steps) or taken.first else self._open.copy()
            if isinstance(taken, Steps):
                start = taken.ends[-2] if len(taken.ends) > 1 else 0
                digest = blake3(memoryview(taken.payload)[start:]).digest()
                after = Standing(end.ordinal + len(taken.ends), taken.before, taken.after, digest)
            else:
                pieces.update(taken.payload)
                if taken.last:
                    digest = pieces.digest()
                    after = Standing(first, taken.before, taken.after, digest)
            frame = Frame(taken, first, max(first, after.ordinal), captured_us, digest)
            try:
                if self._segments[-1].end > min(SEGMENT_BYTES, self.limit // 8):
                    self._roll()
                self._write(frame)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                _log.warning("%s: no room on the disk for the spool: %s", self._source, error)
                self._truncate(self._segments[-1], self._segments[-1].end)
                return False
            self._open = pieces
            if frame.completes:
                self._end = after
                self._boundary = (self._segments[-1].head.number, self._segments[-1].end)
            return True

    def _write(self, frame: Frame) -> None:
        segment = self._segments[-1]
        data = memoryview(write_frame(frame, segment.head, segment.end, self._source, self._sealer))
        at = segment.end
        while data:
            written = os.pwrite(self._fd, data, at)
            at, data = at + written, data[written:]
        self.unsynced += at - segment.end
        segment.end = at
        failpoint("spool-frame-written")

    def _roll(self) -> None:
        """Close the segment, begin another."""
        self.sync()
        failpoint("spool-segment-sealed")
        last = self._segments[-1].head
        end = self._end
        assert end is not None
        within = self._boundary != (last.number, self._segments[-1].end)
        self._add(replace(last, number=last.number + 1, ordinal=end.ordinal, open=within), end)
        if not within:
            self._boundary = (last.number + 1, self._segments[-1].end)
        self._synced = (last.number + 1, self._segments[-1].end)
        failpoint("spool-segment-begun")

    def _add(self, head: Head, standing: Standing) -> None:
        path = self._folder / f"{head.number:012d}{SUFFIX}"
        scratch = path.with_suffix(".new")
        data = write_head(head, standing, self._source, self._sealer)
        fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, data, 0)
            os.fsync(fd)
            scratch.rename(path)
            self._flush_folder()
        except BaseException:
            os.close(fd)
            raise
        self._close_file()
        self._fd = fd
        self._segments.append(_Segment(path, replace(head, size=len(data)), standing, len(data)))

    def sync(self) -> None:
        """Flush: everything appended so far counts, also after a power cut."""
        with self._lock:
            if self.unsynced:
                os.fsync(self._fd)
                failpoint("spool-frame-durable")
                self.unsynced = 0
            if self._segments:
                self._synced = (self._segments[-1].head.number, self._segments[-1].end)

    def cut(self) -> None:
        """Take away pieces of a step whose end never came: it will be read again from its beginning."""
        with self._lock:
            if self._end is None:
                return
            number, offset = self._boundary
            while self._segments[-1].head.number > number:
                self._remove(self._segments.pop())
                self._reopen()
            self._truncate(self._segments[-1], offset)
            self._synced = min(self._synced, self._boundary)
            if self._cursor > self._boundary:
                self._cursor, self._read, self._reading = self._boundary, self._end, None
            self._open = blake3()

    # -- reading

    def align(self, lineage: str, standing: Standing) -> str:
        """Have `next` go on after the log's last step, `standing` of `lineage`. Empty: so it is. Else why it cannot be."""
        with self._lock:
            end = self._end
            if end is None:
                return "there is no spool"
            if self.lineage != lineage:
                return f"it is of lineage {self.lineage}, the log of {lineage}"
            self.sync()
            begin = self._segments[0].standing.ordinal
            if not begin <= standing.ordinal <= end.ordinal:
                return f"it holds steps {begin + 1} to {end.ordinal}, the log ends with {standing.ordinal}"
            try:
                self._place(standing)
            except FrameDamaged as error:
                return f"it is damaged: {error}"
            except _OtherHistory:
                return f"what it holds as step {standing.ordinal} is not what was captured"
            self._read, self._reading = standing, None
            return ""

    def _place(self, standing: Standing) -> None:
        for segment in self._segments:
            if segment.standing.ordinal == standing.ordinal and not segment.head.open:
                if (segment.standing.after, segment.standing.proof) != (standing.after, standing.proof):
                    raise _OtherHistory
                self._cursor, self._skip = (segment.head.number, segment.head.size), 0
                return
        before = [s for s in self._segments if s.standing.ordinal < standing.ordinal and not s.head.open]
        if not before:
            raise FrameDamaged("the beginning of a step is missing")
        at = (before[-1].head.number, before[-1].head.size)
        hasher = blake3()
        while True:
            found = self._frame_at(at)
            if found is None:
                raise FrameDamaged(f"step {standing.ordinal} is missing", standing.ordinal, standing.ordinal)
            frame, at, after = found[0], found[1], found[2]
            taken = frame.taken
            if isinstance(taken, Steps):
                if frame.last < standing.ordinal:
                    at = after
                    continue
                i = standing.ordinal - frame.first
                start = taken.ends[i - 1] if i else 0
                proof = blake3(memoryview(taken.payload)[start : taken.ends[i]]).digest()
                place, skip = (after, 0) if frame.last == standing.ordinal else (at, i + 1)
            else:
                if taken.first:
                    hasher.reset()
                hasher.update(taken.payload)
                if frame.last < standing.ordinal or not taken.last:
                    at = after
                    continue
                proof, place, skip = hasher.digest(), after, 0
            if proof != standing.proof:
                raise _OtherHistory
            self._cursor, self._skip = place, skip
            return

    def next(self) -> tuple[Taken, int] | None:
        """What comes next and counts, with the time when it was read from the source; None: nothing more so far.

        Raises `SpoolDamaged`: from there on the spool is of no use.
        """
        with self._lock:
            try:
                found = self._frame_at(self._cursor)
                if found is None:
                    return None
                frame, _, after = found
                first = frame.first + self._skip
                if first != self._read.ordinal + 1:
                    raise FrameDamaged(f"step {first} follows step {self._read.ordinal}", self._read.ordinal + 1)
                taken = frame.taken
                if isinstance(taken, Piece):
                    self._check_piece(taken, frame)
                elif self._skip:
                    taken = _without(taken, self._skip, self._count)
                self._cursor, self._skip = after, 0
                if frame.completes:
                    self._read = Standing(frame.last, taken.before, taken.after, frame.digest)
                return taken, frame.captured_us
            except FrameDamaged as error:
                known = f"{error.first} to {error.last}" if error.last else f"from {self._read.ordinal + 1} on"
                raise SpoolDamaged(f"steps {known} stood in a part of the spool that is damaged ({error})") from error

    def _check_piece(self, piece: Piece, frame: Frame) -> None:
        """Every piece of a step must be there: with the last one, their digest says so."""
        if piece.first:
            self._reading = blake3()
        if self._reading is None:
            raise FrameDamaged("the beginning of a step is missing", frame.first, frame.last)
        self._reading.update(piece.payload)
        if piece.last:
            digest, self._reading = self._reading.digest(), None
            if digest != frame.digest:
                raise FrameDamaged("a piece of a step is missing", frame.first, frame.last)

    def _frame_at(self, at: tuple[int, int]) -> tuple[Frame, tuple[int, int], tuple[int, int]] | None:
        """The frame at a place, that place, and the one after it; None where nothing more counts. Raises `FrameDamaged`."""
        number, offset = at
        segment = next((s for s in self._segments if s.head.number == number), None)
        if segment is None:
            raise FrameDamaged("a segment is missing")
        if offset >= segment.end and number < self._segments[-1].head.number:
            return self._frame_at((number + 1, self._following(number).head.size))
        if (number, offset) >= self._synced:
            return None
        with segment.path.open("rb") as file:
            file.seek(offset)
            start = file.read(8)
            data = start + file.read(frame_size(start) - 8)
        frame = read_frame(data, segment.head, offset, self._source, self._sealer)
        return frame, (number, offset), (number, offset + frame.size)

    def _following(self, number: int) -> _Segment:
        found = next((s for s in self._segments if s.head.number == number + 1), None)
        if found is None:
            raise FrameDamaged("a segment is missing")
        return found

    # -- letting go

    def release(self, ordinal: int) -> None:
        """Remove segments of which the log has every step: it has all up to `ordinal`."""
        with self._lock:
            while len(self._segments) > 1:
                following = self._segments[1]
                read_past = self._cursor[0] >= following.head.number
                if not read_past or following.head.ordinal + following.head.open > ordinal:
                    return
                failpoint("spool-drained")
                self._remove(self._segments.pop(0))
                failpoint("spool-segment-deleted")

    def drop(self) -> None:
        """All of it, newest first: what is left if we die here is the beginning of a spool."""
        with self._lock:
            self._close_file()
            while self._segments:
                self._remove(self._segments.pop())
            self._end = None
            self.unsynced = 0

    def close(self) -> None:
        """Let go of the files. What is in them stays."""
        with self._lock:
            self._close_file()
            if self._owner >= 0:
                os.close(self._owner)
                self._owner = -1

    # -- files

    def _recover(self) -> None:
        """Take up what an earlier run left: segments that follow one another, up to the last whole step."""
        for left in self._folder.glob("*.new"):
            left.unlink()
        for path in segments_in(self._folder):
            try:
                with path.open("rb") as file:
                    data = file.read(1 << 16)
                head = read_head(data)
                last = self._segments[-1].head if self._segments else None
                if last is not None and (head.spool, head.number) != (last.spool, last.number + 1):
                    raise FrameDamaged("a segment is missing before it")
                standing = read_standing(data, self._source, self._sealer)
                self._segments.append(_Segment(path, head, standing, path.stat().st_size))
            except FrameDamaged as error:
                _log.warning("%s: the spool is cut off at %s: %s", self._source, path.name, error)
                for useless in [p for p in segments_in(self._folder) if p >= path]:
                    useless.unlink()
                break
        while self._segments and not self._cut_off_last():
            self._remove(self._segments.pop())
        if not self._segments:
            return
        first = self._segments[0]
        self._cursor, self._read = (first.head.number, first.head.size), first.standing
        self._reopen()
        self._truncate(self._segments[-1], self._boundary[1])
        os.fsync(self._fd)
        self._synced = self._boundary

    def _cut_off_last(self) -> bool:
        """Find where whole steps end in the last segment; False when none does."""
        segment = self._segments[-1]
        at, size = segment.head.size, segment.end
        boundary, standing = (0 if segment.head.open else at), segment.standing
        self._synced = (segment.head.number, size)
        segment.end = size
        while at < size:
            try:
                found = self._frame_at((segment.head.number, at))
            except FrameDamaged as error:
                _log.warning("%s: the spool ends with step %d: %s", self._source, standing.ordinal, error)
                break
            if found is None:
                break
            frame = found[0]
            at += frame.size
            if frame.completes:
                boundary = at
                standing = Standing(frame.last, frame.taken.before, frame.taken.after, frame.digest)
        if not boundary:
            return False
        self._boundary, self._end = (segment.head.number, boundary), standing
        return True

    def _reopen(self) -> None:
        self._close_file()
        self._fd = os.open(self._segments[-1].path, os.O_RDWR | os.O_CLOEXEC)

    def _truncate(self, segment: _Segment, size: int) -> None:
        os.ftruncate(self._fd, size)
        segment.end = size
        self.unsynced = max(self.unsynced, 1)

    def _remove(self, segment: _Segment) -> None:
        with contextlib.suppress(FileNotFoundError):
            segment.path.unlink()
        self._flush_folder()

    def _flush_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _OtherHistory(Exception):
    """The spool holds something else as the log's last step."""


def _without(taken: Steps, skip: int, count: CountEvents) -> Steps:
    """`taken` less its first `skip` steps."""
    cut = taken.ends[skip - 1]
    payload = taken.payload[cut:]
    return replace(taken, payload=payload, ends=[e - cut for e in taken.ends[skip:]], events=count(payload))
