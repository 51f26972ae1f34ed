"""Packs: chunks are added, read back and listed. What the bytes are: `agents.repository.pack_format`.

And if we die here? Nothing refers to a chunk before `PackWriter.flush` returned its pack, so a pack that was being written is
garbage at worst; `contents_of` finds what is whole in it all the same. Failpoints: `pack-begun`, `pack-frame-written`,
`pack-footer-written`, `pack-durable`, `pack-sealed`.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agents.failpoints import failpoint
from agents.repository.chunks import unpack_body
from agents.repository.errors import CHUNK_MISSING, DAMAGED, PACK_DAMAGED, RepositoryError
from agents.repository.format import LARGEST_BODY, PACK_BYTES, PACK_ID_BYTES, TAG_BYTES, Buffer, Place
from agents.repository.keys import Keys
from agents.repository.pack_format import (
    FRAME_BYTES,
    FRAME_MAGIC,
    HEADER_BYTES,
    LARGEST_FOOTER,
    ROW_BYTES,
    TRAILER_BYTES,
    Entry,
    FrameHead,
    PackHeader,
    digest_of,
    entries_in,
    finish_frame_head,
    nonce,
    pack_file,
    parse_pack_file,
    read_frame_head,
    read_header,
    rows_hold,
    rows_length,
    write_footer,
    write_frame_head,
    write_header,
    write_row,
)
from agents.repository.stores import MISSING, SHORT, Appender, Store, StoreError

_TAIL: Final = 128 << 10  # read at once from a pack's end: the footer of 1,900 frames, more than a usual one, is within
_WINDOW: Final = 1 << 20
_GAP: Final = 64 << 10  # frames this near to each other are read together
_RUN: Final = 8 << 20
_MOST_SEALING: Final = 2  # packs that may wait to be durable: what is dirty, or buffered for a bucket, stays bounded
_MOST_FRAMES: Final = LARGEST_FOOTER // ROW_BYTES


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A pack that is durable and whole: its id, file, kind, bytes, and what is in it in the order it stands."""

    pack: bytes
    name: str
    kind: int
    size: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """A chunk as it is moved between packs: `body` decrypted, still compressed. Give all of it to `PackWriter.add`."""

    name: bytes
    kind: int
    codec: int
    raw: int
    scope: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a pack. `sealed`: its footer says so; otherwise it was found by walking, and `damaged` says where (offset,
    bytes) something else stood. `header`: None when it is damaged."""

    header: PackHeader | None
    entries: tuple[Entry, ...]
    sealed: bool
    damaged: tuple[tuple[int, int], ...] = ()


Damage = Callable[[bytes, Place, RepositoryError], None]


# -- writing


@dataclass(slots=True, eq=False)
class _Open:
    """A pack that is written. Guarded by the writer's lock."""

    header: PackHeader
    head: bytes
    file: str
    appender: Appender
    cipher: AESGCM | None
    size: int
    frames: int = 0
    pending: int = 0
    full: bool = False
    entries: list[Entry] = field(default_factory=list)


class PackWriter:
    """Writes the packs of one session and kind. Any number of threads may `add`: chunks are encrypted on the caller's thread,
    full packs made durable on one of its own. After an error it writes no more: every later call raises it again, and what
    `flush` has not returned counts as not there. Close it."""

    def __init__(
        self, store: Store, keys: Keys, node: str, epoch: int, kind: int, scope: bytes, size: int = PACK_BYTES
    ) -> None:
        """`kind`: DATA_PACK or META_PACK. `scope`: id of the session's dedupe scope (`Naming.scope`). `size`: bytes at which a
        pack is full; the last frame may go beyond."""
        self._store, self._keys, self._node, self._epoch, self._kind, self._scope = (
            store,
            keys,
            node,
            epoch,
            kind,
            scope,
        )
        self._size = size
        self._changed = threading.Condition()
        self._current: _Open | None = None
        self._draining: list[_Open] = []  # full, with frames under way
        self._sealing: list[Future[SealedPack]] = []
        self._undurable = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seal-pack")
        self._error: BaseException | None = None
        self.written = 0
        """Bytes of frames so far."""

    def add(self, kind: int, name: bytes, codec: int, raw: int, body: Buffer, scope: bytes | None = None) -> Place:
        """Append a chunk; where it will be. It is durable once `flush` returned. `scope`: of a chunk that is moved."""
        with self._changed:
            opened = self._opened()
            number = opened.frames
            opened.frames += 1
            opened.pending += 1
            if (
                opened.frames >= _MOST_FRAMES
            ):  # here, and not when it is in: others are under way, and no footer holds more
                self._retire(opened)
        try:
            stored: Buffer = body
            size = len(body) + (TAG_BYTES if opened.cipher else 0)
            head = write_frame_head(
                size, raw, kind, codec, opened.cipher is not None, number, self._scope if scope is None else scope, name
            )
            if opened.cipher:
                stored = opened.cipher.encrypt(nonce(number), body, head + opened.header.pack)
            digest = digest_of(stored)
            head = finish_frame_head(head, digest)
            with self._changed:
                self._raise_if_broken()
                offset = opened.appender.write(head, stored)
                opened.size = offset + len(head) + size
                self.written += len(head) + size
                place = Place(opened.header.pack, offset, size, raw, kind, codec)
                opened.entries.append(Entry(name, place, digest))
                opened.pending -= 1
                if opened is self._current and opened.size >= self._size:
                    self._retire(opened)
                if self._draining:
                    self._seal_drained()
        except BaseException as error:
            with self._changed:
                opened.pending -= 1
                self._break(error)
            raise
        failpoint("pack-frame-written")
        return place

    def flush(self) -> list[SealedPack]:
        """Seal what is open. The packs that were sealed since the last flush, all durable on return."""
        with self._changed:
            if self._current is not None:
                self._retire(self._current)
            self._seal_drained()
            self._changed.wait_for(lambda: not self._draining or self._error is not None)
            self._raise_if_broken()
            waiting, self._sealing = self._sealing, []
        sealed = [future.result() for future in waiting]  # what `_seal` raises is the writer's error already
        with self._changed:
            self._raise_if_broken()
        return sealed

    def take_sealed(self) -> list[SealedPack]:
        """Those that `flush` would return and that are durable already; it returns them no more. Does not wait."""
        with self._changed:
            self._raise_if_broken()
            done = [future for future in self._sealing if future.done()]
            self._sealing = [future for future in self._sealing if future not in done]
        return [future.result() for future in done]

    def close(self) -> None:
        """End. Packs without a footer are deleted, others that were not flushed are garbage. May be called twice."""
        self._break(ValueError("this writer of packs is closed"))
        self._pool.shutdown(wait=True)
        with self._changed:
            left = [*self._draining, *([self._current] if self._current else [])]
            self._draining, self._current = [], None
        for opened in left:
            opened.appender.abandon()
            # Without a footer nobody reads it nor builds on it. On a place that is full, what was in vain is what there is
            # to free: a collection has to write before it can delete.
            with contextlib.suppress(StoreError):
                self._store.delete(opened.file)

    def _opened(self) -> _Open:
        self._raise_if_broken()
        self._changed.wait_for(lambda: self._error is not None or self._undurable <= _MOST_SEALING)
        self._raise_if_broken()
        if self._current is None:
            self._current = self._begin()
        return self._current

    def _begin(self) -> _Open:
        pack = secrets.token_bytes(PACK_ID_BYTES)
        header = PackHeader(pack, self._keys.repository, self._kind, self._epoch, self._keys.encrypted)
        head, file = write_header(header), pack_file(pack, self._node, self._epoch)
        try:
            appender = self._store.append(file)
            appender.write(head)
        except BaseException as error:
            self._break(error)
            raise
        failpoint("pack-begun")
        return _Open(
            header, head, file, appender, self._keys.pack_cipher(pack) if header.encrypted else None, len(head)
        )

    def _retire(self, opened: _Open) -> None:
        """Nothing is added to it any more; once what is under way is in it, it is sealed."""
        self._current = None
        self._draining.append(opened)

    def _seal_drained(self) -> None:
        for opened in [o for o in self._draining if o.pending == 0]:
            if self._error is None:
                self._draining.remove(opened)
                self._undurable += 1
                self._sealing.append(self._pool.submit(self._seal, opened))
        self._changed.notify_all()

    def _seal(self, opened: _Open) -> SealedPack:
        try:
            rows = (
                write_row(e.name, e.place.offset, e.place.stored, e.place.raw, e.place.kind, e.place.codec, e.digest)
                for e in opened.entries
            )
            footer = write_footer(opened.head, rows)
            opened.appender.write(footer)
            failpoint("pack-footer-written")
            opened.appender.sync()
            failpoint("pack-durable")
            opened.appender.close()
            failpoint("pack-sealed")
        except BaseException as error:
            self._break(error)
            opened.appender.abandon()
            raise
        finally:
            with self._changed:
                self._undurable -= 1
                self._changed.notify_all()
        return SealedPack(opened.header.pack, opened.file, self._kind, opened.size + len(footer), tuple(opened.entries))

    def _break(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error


# -- reading


def find_pack(store: Store, pack: bytes) -> str:
    """The file of a pack by its id, by listing. `chunk-missing` when there is none."""
    for listed in store.list(f"packs/{pack[:1].hex()}/{pack.hex()}-"):
        if parse_pack_file(listed.name):
            return listed.name
    raise RepositoryError(CHUNK_MISSING, f"there is no pack {pack.hex()}")


def read_frame(store: Store, file: str, place: Place, name: bytes, keys: Keys) -> bytes:
    """The chunk `name` from its place in the pack `file`, proven: what is returned has that name. `chunk-missing` when the pack
    is gone, `chunk-damaged`; a `StoreError` when it could not be read, which trying again may mend."""
    return _chunk(_stored(store, file, place), place, name, keys)


def read_body(store: Store, file: str, place: Place, name: bytes, keys: Keys) -> Frame:
    """The same as it can be added to another pack. Proven like `read_frame`: damage is never moved on."""
    data = _stored(store, file, place)
    head, body = _opened_frame(data, place, name, keys)
    _proven(unpack_body(head.codec, body, head.raw), head, keys)
    return Frame(name, head.kind, head.codec, head.raw, head.scope, bytes(body))


def read_frames(
    store: Store, file: str, wanted: Iterable[tuple[bytes, Place]], keys: Keys, damaged: Damage | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """`(name, chunk)` of many in one pack, in the order they stand there; neighbours are read at once. What is damaged or
    missing is handed to `damaged`, and the rest goes on; without it the first raises."""
    for run in _runs(sorted(wanted, key=lambda w: w[1].offset)):
        first, last = run[0][1], run[-1][1]
        data: memoryview | None = None
        if len(run) > 1:
            try:
                data = memoryview(
                    store.read(file, first.offset, last.offset + FRAME_BYTES + last.stored - first.offset)
                )
            except StoreError as error:
                if error.code not in (MISSING, SHORT):
                    raise
        for name, place in run:
            try:
                if data is None:
                    frame: Buffer = _stored(store, file, place)
                else:
                    at = place.offset - first.offset
                    frame = data[at : at + FRAME_BYTES + place.stored]
                chunk = _chunk(frame, place, name, keys)
            except RepositoryError as error:
                if damaged is None:
                    raise
                damaged(name, place, error)
                continue
            yield name, chunk


def rows_of(store: Store, file: str) -> tuple[PackHeader, bytes] | None:
    """Header and footer rows (68 bytes each, `pack_format`) of a pack, None when it has no footer that holds. For those who list
    many. `chunk-missing` when there is no such pack."""
    size = _size(store, file)
    if size < HEADER_BYTES + TRAILER_BYTES:
        return None
    try:
        head = store.read(file, 0, HEADER_BYTES)
        tail = store.read(file, max(0, size - _TAIL), min(size, _TAIL))
        trailer = tail[-TRAILER_BYTES:]
        length = rows_length(trailer, size)
        if length is None:
            return None
        rows = tail[-TRAILER_BYTES - length : -TRAILER_BYTES]
        if len(rows) < length:
            rows = store.read(file, size - TRAILER_BYTES - length, length)
    except StoreError as error:
        if error.code == SHORT:
            return None  # it is being cut, or written, under our hands
        raise
    try:
        return (read_header(head), rows) if rows_hold(head, rows, trailer) else None
    except RepositoryError:
        return None


def contents_of(store: Store, file: str) -> Contents:
    """What is in a pack: by its footer, else by walking its frames. Memory: a window of the file, and the entries."""
    found = rows_of(store, file)
    if found is not None:
        header, rows = found
        try:
            end = _size(store, file) - TRAILER_BYTES - len(rows)
            return Contents(header, tuple(entries_in(header.pack, rows, end)), sealed=True)
        except RepositoryError as error:
            if error.code == CHUNK_MISSING:
                raise
    return _walked(store, file)


def frames_of(store: Store, file: str) -> Iterator[Entry]:
    """The entries of a pack, sealed or torn."""
    yield from contents_of(store, file).entries


def _walked(store: Store, file: str) -> Contents:
    name = parse_pack_file(file)
    if name is None:
        raise RepositoryError(PACK_DAMAGED, f"{file} is no pack")
    window = _Window(store, file, _size(store, file))
    try:
        header: PackHeader | None = read_header(window.read(0, HEADER_BYTES))
    except RepositoryError:
        header = None
    entries: list[Entry] = []
    damaged: list[tuple[int, int]] = [] if header else [(0, HEADER_BYTES)]
    at = HEADER_BYTES
    while at + FRAME_BYTES <= window.size:
        head = read_frame_head(window.read(at, FRAME_BYTES))
        if head is None:
            found = window.find(at + 1)
            damaged.append((at, found - at))
            at = found
            continue
        # A head whose CRC32 fits was written by a writer: where its body ends is known, whatever has become of the body.
        # Looking into it would take the packs that a chunk may hold for parts of this one.
        whole = FRAME_BYTES + head.stored
        if at + whole <= window.size and digest_of(window.read(at + FRAME_BYTES, head.stored)) == head.digest:
            entries.append(
                Entry(head.name, Place(name[0], at, head.stored, head.raw, head.kind, head.codec), head.digest)
            )
        else:
            damaged.append((at, min(whole, window.size - at)))
        at += whole
    if at < window.size:
        damaged.append((at, window.size - at))
    return Contents(header, tuple(entries), sealed=False, damaged=tuple(damaged))


class _Window:
    """A file read in pieces, from front to back. It ends where it cannot be read any further."""

    def __init__(self, store: Store, file: str, size: int) -> None:
        self._store, self._file = store, file
        self.size = size
        self._start, self._data = 0, b""

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes, fewer at the end."""
        size = max(0, min(size, self.size - at))
        if not self._start <= at <= at + size <= self._start + len(self._data):
            wanted = min(max(size, _WINDOW), self.size - at)
            try:
                self._data = self._store.read(self._file, at, wanted)
            except StoreError as error:
                if error.code != SHORT:
                    raise
                self.size = min(self.size, self._store.size(self._file))
                return self.read(at, size) if at < self.size else b""
            self._start = at
        return self._data[at - self._start : at - self._start + size]

    def find(self, at: int) -> int:
        """Where the next frame head stands, the end of the file if none does."""
        while at + FRAME_BYTES <= self.size:
            piece = self.read(at, _WINDOW)
            if len(piece) < FRAME_BYTES:
                break
            hit = piece.find(FRAME_MAGIC)
            while hit >= 0:
                if read_frame_head(self.read(at + hit, FRAME_BYTES)) is not None:
                    return at + hit
                hit = piece.find(FRAME_MAGIC, hit + 1)
            at += len(piece) - len(FRAME_MAGIC) + 1
        return self.size


def _runs(wanted: list[tuple[bytes, Place]]) -> Iterator[list[tuple[bytes, Place]]]:
    run: list[tuple[bytes, Place]] = []
    for one in wanted:
        if run:
            start, end = run[0][1].offset, run[-1][1].offset + FRAME_BYTES + run[-1][1].stored
            # What is too large to be is read on its own: `_stored` refuses it.
            too_large = max(one[1].stored, run[-1][1].stored) > LARGEST_BODY
            if too_large or one[1].offset - end > _GAP or one[1].offset + one[1].stored - start > _RUN:
                yield run
                run = []
        run.append(one)
    if run:
        yield run


def _size(store: Store, file: str) -> int:
    try:
        return store.size(file)
    except StoreError as error:
        raise _gone(error, file) from None


def _stored(store: Store, file: str, place: Place) -> bytes:
    if place.stored > LARGEST_BODY:  # places come from indexes, which can be damaged too
        raise RepositoryError(DAMAGED, f"no chunk is as large as the one said to be at {place.offset} of {file}")
    try:
        return store.read(file, place.offset, FRAME_BYTES + place.stored)
    except StoreError as error:
        raise _gone(error, file) from None


def _gone(error: StoreError, file: str) -> StoreError | RepositoryError:
    """What it means for chunks that their file could not be read."""
    if error.code == MISSING:
        return RepositoryError(CHUNK_MISSING, f"{file} is gone")
    if error.code == SHORT:
        return RepositoryError(DAMAGED, f"{file} ends before a chunk that was in it")
    return error


def _chunk(data: Buffer, place: Place, name: bytes, keys: Keys) -> bytes:
    head, body = _opened_frame(data, place, name, keys)
    return _proven(unpack_body(head.codec, body, head.raw), head, keys)


def _opened_frame(data: Buffer, place: Place, name: bytes, keys: Keys) -> tuple[FrameHead, Buffer]:
    head = read_frame_head(data)
    if head is None:
        raise RepositoryError(DAMAGED, f"no chunk stands at {place.offset} of pack {place.pack.hex()}")
    if head.name != name or head.stored != place.stored:
        raise RepositoryError(DAMAGED, f"another chunk stands at {place.offset} of pack {place.pack.hex()}")
    body: Buffer = memoryview(data)[FRAME_BYTES:]
    # The name is proven in the end, and the tag before: the digest is only asked which of two kinds of damage it is.
    if head.encrypted:
        try:
            body = keys.pack_cipher(place.pack).decrypt(nonce(head.number), body, head.clear + place.pack)
        except InvalidTag:
            what = "was changed" if digest_of(body) != head.digest else "does not open with this repository's key"
            raise RepositoryError(DAMAGED, f"the chunk at {place.offset} of pack {place.pack.hex()} {what}") from None
    elif digest_of(body) != head.digest:
        raise RepositoryError(DAMAGED, f"the chunk at {place.offset} of pack {place.pack.hex()} was changed")
    return head, body


def _proven(data: bytes, head: FrameHead, keys: Keys) -> bytes:
    if keys.naming_by_id(head.scope).name_of(head.kind, data) != head.name:
        raise RepositoryError(DAMAGED, f"a chunk is not what its name {head.name.hex()[:16]}… says")
    return data
