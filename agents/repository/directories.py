"""File trees as chunks: entries of directories, pieces of contents, and reading, comparing and walking them. Touches
no file system.

A directory is a list of entries (`agents.repository.ropes`), sorted by name, which is bytes as the file system has
them. An entry (integers little-endian):

    u8 type · u8 flags · u32 mode · u32 uid · u32 gid · i64 mtime ns · i64 ctime ns · u64 inode · u64 size · u64 link ·
    u64 device · u8 form · fields: name, owner, group, where, attributes

each field with its length before it as u16. `type`: 1 directory, 2 file, 3 symbolic link, 4 FIFO, 5 socket, 6
character device, 7 block device. `mode` has the permission bits alone. `link`: equal for names of one inode, 0 when
there is one name. Flags: 1 it changed while it was read, 2 it was so young when it was read that its times prove
nothing, 4 it could not be read (`where` is empty). `where` by `form`: 0 nothing, 1 the name of the one chunk that is
all of the content, 2 pieces as below, 3 the root of a list of pieces, 4 the root of a directory, 5 a symbolic link's
target. `attributes`: extended ones (ACLs among them), sorted, a u16 length before each name and a u32 before each
value; if they are too many for a field, flag 8 is set and the field is the name of a chunk (kind DIRECTORY) of them.

A piece is u8 tag · u64 length, then a chunk's 32 bytes of name: tag 0 a hole, 1 a chunk, 2 lost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from agents.repository.content import DATA, DIRECTORY, NAME_SIZE, ChunkSink, ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, LOST, ZERO
from agents.repository.ropes import CONTENT, ENTRIES, Rope, damaged, items_of, opened
from agents.repository.ropes import walk as walk_rope

FOLDER, FILE, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK = range(1, 8)
CHANGED, YOUNG, UNREAD, FAR_ATTRIBUTES = 1, 2, 4, 8
NOTHING, WHOLE, PIECES, LIST, CHILDREN, TARGET = range(6)
_FORMS: Final = {FOLDER: (CHILDREN,), FILE: (NOTHING, WHOLE, PIECES, LIST), SYMLINK: (TARGET,)}

_fixed = struct.Struct("<BBIIIqqQQQQB")
_u16, _u32, _u64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_piece = struct.Struct("<BQ")
_INLINE: Final = 4  # pieces that stand in the entry
_FIELD: Final = 16 << 10  # what attributes may take in an entry

Seen = Callable[[bytes], bool]


class Piece(NamedTuple):
    """A stretch of content: a hole (ZERO), a CHUNK with its name, or LOST."""

    tag: int
    length: int
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory. Fields as in the module's head; `attributes` sorted by name, as bytes."""

    name: bytes
    type: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    size: int = 0
    link: int = 0
    device: int = 0
    flags: int = 0
    form: int = NOTHING
    where: bytes = b""
    owner: bytes = b""
    group: bytes = b""
    attributes: bytes = b""


def encode(entry: Entry) -> bytes:
    fields = (entry.name, entry.owner, entry.group, entry.where, entry.attributes)
    return _fixed.pack(
        entry.type,
        entry.flags,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.ctime_ns,
        entry.inode,
        entry.size,
        entry.link,
        entry.device,
        entry.form,
    ) + b"".join(part for field in fields for part in (_u16.pack(len(field)), field))


def decode(item: bytes) -> Entry:
    """Raises `RepositoryError` (`directory-damaged`), also for a name that no directory can have."""
    if len(item) < _fixed.size:
        raise damaged("an entry is cut off")
    type_, flags, mode, uid, gid, mtime, ctime, inode, size, link, device, form = _fixed.unpack_from(item)
    at = _fixed.size
    fields = []
    for _ in range(5):
        if at + 2 > len(item):
            raise damaged("an entry is cut off")
        (length,) = _u16.unpack_from(item, at)
        fields.append(item[at + 2 : at + 2 + length])
        at += 2 + length
    if at != len(item):
        raise damaged("an entry's parts do not fit it")
    name, owner, group, where, attributes = fields
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise damaged(f"no file can be called {name!r}")
    if not FOLDER <= type_ <= BLOCK or form not in _FORMS.get(type_, (NOTHING,)) + (
        (NOTHING,) if flags & UNREAD else ()
    ):
        raise damaged(f"{name!r} is of no known type")
    fits = len(where) == NAME_SIZE if form in (WHOLE, LIST, CHILDREN) else form != NOTHING or not where
    if not fits or mode > 0o7777 or (flags & FAR_ATTRIBUTES and len(attributes) != NAME_SIZE):
        raise damaged(f"{name!r} has content of no known form")
    return Entry(
        name,
        type_,
        mode,
        uid,
        gid,
        mtime,
        ctime,
        inode,
        size,
        link,
        device,
        flags,
        form,
        where,
        owner,
        group,
        attributes,
    )


# -- attributes


def pack_attributes(attributes: dict[bytes, bytes]) -> bytes:
    """Extended attributes in their one form."""
    return b"".join(
        part
        for name in sorted(attributes)
        for part in (_u16.pack(len(name)), name, _u32.pack(len(attributes[name])), attributes[name])
    )


def put_attributes(sink: ChunkSink, attributes: dict[bytes, bytes]) -> tuple[bytes, int]:
    """The field of an entry, and the flag that belongs to it."""
    packed = pack_attributes(attributes)
    return (packed, 0) if len(packed) <= _FIELD else (sink.put(DIRECTORY, packed), FAR_ATTRIBUTES)


def attributes_of(source: ChunkSource, entry: Entry) -> dict[bytes, bytes]:
    """Raises `RepositoryError` (`directory-damaged`), and what `source` raises."""
    data = entry.attributes
    if entry.flags & FAR_ATTRIBUTES:
        data = source.get(data, DIRECTORY)
    out = {}
    at = 0
    try:
        while at < len(data):
            (size,) = _u16.unpack_from(data, at)
            name = data[at + 2 : at + 2 + size]
            at += 2 + size
            (length,) = _u32.unpack_from(data, at)
            value = data[at + 4 : at + 4 + length]
            at += 4 + length
            if at > len(data):
                raise damaged("an extended attribute is cut off")
            out[name] = value
    except struct.error as error:
        raise damaged("an extended attribute is cut off") from error
    return out


# -- contents


def pack_piece(piece: Piece) -> bytes:
    return _piece.pack(piece.tag, piece.length) + piece.name


def _unpack_piece(item: bytes) -> Piece:
    if len(item) < _piece.size:
        raise damaged("a piece of content is cut off")
    tag, length = _piece.unpack_from(item)
    name = item[_piece.size :]
    if tag not in (ZERO, CHUNK, LOST) or len(name) != (NAME_SIZE if tag == CHUNK else 0):
        raise damaged("a piece of content is of no known kind")
    return Piece(tag, length, name)


class ContentWriter:
    """Lists the pieces of one content; joins holes. Short lists stand in the entry, longer ones are chunks."""

    def __init__(self, sink: ChunkSink) -> None:
        self._sink = sink
        self._first: list[Piece] = []
        self._rope: Rope | None = None
        self._hole: int = 0
        self.size = 0

    def hole(self, length: int) -> None:
        self._hole += length
        self.size += length

    def chunk(self, name: bytes, length: int) -> None:
        self._end_hole()
        self._add(Piece(CHUNK, length, name))
        self.size += length

    def _end_hole(self) -> None:
        if self._hole:
            self._add(Piece(ZERO, self._hole))
            self._hole = 0

    def _add(self, piece: Piece) -> None:
        if self._rope is not None:
            self._rope.add(pack_piece(piece))
            return
        self._first.append(piece)
        if len(self._first) > _INLINE:
            self._rope = Rope(self._sink, CONTENT, _length_of, _joined_lengths)
            for early in self._first:
                self._rope.add(pack_piece(early))

    def finish(self) -> tuple[int, bytes]:
        """Form and `where` of the entry."""
        if self._rope is None and not self._first:
            return NOTHING, b""  # empty, or a hole from end to end
        self._end_hole()
        if self._rope is not None:
            return LIST, self._rope.finish()
        if len(self._first) == 1 and self._first[0].tag == CHUNK:
            return WHOLE, self._first[0].name
        return PIECES, b"".join(pack_piece(piece) for piece in self._first)


def _length_of(items: list[bytes]) -> bytes:
    return _u64.pack(sum(_piece.unpack_from(item)[1] for item in items))


def _joined_lengths(labels: list[bytes]) -> bytes:
    return _u64.pack(sum(_u64.unpack(label)[0] for label in labels))


def pieces(source: ChunkSource, entry: Entry, *, skip_lost: bool = False) -> Iterator[Piece]:
    """The content of a file, from its first byte to its last. Raises `RepositoryError` (`directory-damaged`) if that
    is not its size. `skip_lost`: what is said nowhere that can be read is a lost piece."""
    yield from content(source, entry.form, entry.where, entry.size, skip_lost=skip_lost)


def content(source: ChunkSource, form: int, where: bytes, size: int, *, skip_lost: bool = False) -> Iterator[Piece]:
    """The same of a stream, which has no entry."""
    total = 0
    for piece in _pieces(source, form, where, size, skip_lost=skip_lost):
        total += piece.length
        if total > size:
            break
        yield piece
    if total != size:
        raise damaged(f"content has {total} bytes where {size} belong")


def _pieces(source: ChunkSource, form: int, where: bytes, size: int, *, skip_lost: bool = False) -> Iterator[Piece]:
    if form == NOTHING:
        if size:
            yield Piece(ZERO, size)
    elif form == WHOLE:
        yield Piece(CHUNK, size, where)
    elif form == PIECES:
        at = 0
        while at < len(where):
            end = at + _piece.size + (NAME_SIZE if where[at] == CHUNK else 0)
            yield _unpack_piece(where[at:end])
            at = end
    elif form == LIST:

        def lost(label: bytes) -> list[bytes]:
            return [_piece.pack(LOST, _u64.unpack(label)[0] if label else size)]

        for item in items_of(source, where, CONTENT, lost=lost if skip_lost else None):
            yield _unpack_piece(item)
    else:
        raise damaged("content of no known form")


# -- directories


class DirectoryWriter:
    """Lists the entries of one directory, which come sorted by name."""

    def __init__(self, sink: ChunkSink) -> None:
        self._rope = Rope(sink, ENTRIES, lambda items: decode(items[0]).name, lambda labels: labels[0])
        self._last = b""

    def add(self, entry: Entry) -> None:
        if entry.name <= self._last:
            raise ValueError(f"{entry.name!r} does not come after {self._last!r}")
        self._last = entry.name
        self._rope.add(encode(entry))

    def finish(self) -> bytes:
        return self._rope.finish()


def entries(source: ChunkSource, directory: bytes, lost: Callable[[], None] | None = None) -> Iterator[Entry]:
    """The entries of a directory, sorted by name. `lost` is called where some of them stand in what cannot be read, and
    the rest goes on. Raises `RepositoryError`: `directory-damaged`, and what `source` raises, without it."""
    last = b""

    def gone(_label: bytes) -> tuple[bytes, ...]:
        if lost is not None:
            lost()
        return ()

    for item in items_of(source, directory, ENTRIES, lost=gone if lost is not None else None):
        entry = decode(item)
        if entry.name <= last:
            raise damaged("names of a directory do not ascend")
        last = entry.name
        yield entry


def top(source: ChunkSource, root: bytes) -> Entry:
    """The one entry of a snapshot's root: the directory that was taken (called `root`), or a stream."""
    found = list(entries(source, root))
    if len(found) != 1:
        raise damaged(f"a root with {len(found)} entries")
    return found[0]


def find(source: ChunkSource, root: bytes, path: bytes) -> Entry:
    """The entry at a path of a snapshot (`b"a/b"`; empty for the directory that was taken). Raises `RepositoryError`
    (`path-missing`)."""
    found: Entry | None = top(source, root)
    for part in filter(None, path.split(b"/")):
        found = _child(source, found.where, part) if found is not None and found.form == CHILDREN else None
    if found is None:
        raise RepositoryError(
            "path-missing",
            f"the point has no {path.decode(errors='replace')!r}",
            "paths begin below the folder that was backed up; restore the folder above this one to see what it has",
        )
    return found


def _child(source: ChunkSource, directory: bytes, name: bytes) -> Entry | None:
    node = directory
    level: int | None = None
    while True:
        level, items = opened(source.get(node, DIRECTORY), ENTRIES, level)
        if not level:
            return next((e for e in map(decode, items) if e.name == name), None)
        below = [item for item in items if item[NAME_SIZE:] <= name]
        if not below:
            return None
        node, level = below[-1][:NAME_SIZE], level - 1


Change = Literal["added", "removed", "content", "metadata", "type"]


Difference = tuple[bytes, Change, Entry | None, Entry | None]


class _Descend(NamedTuple):
    """Two folders of one path to be compared next: they are kept on a list, since folders go deeper than calls may."""

    path: bytes
    old: bytes
    new: bytes


def diff(source: ChunkSource, old: bytes, new: bytes) -> Iterator[Difference]:
    """What differs between two snapshots, by path: added, removed, other content, other metadata, another type. Folders
    whose content is the same are not read. An added or removed folder comes once, for all below it."""
    if old == new:
        return
    under_way = [_compared(b"", top(source, old), top(source, new))]
    while under_way:
        found = next(under_way[-1], None)
        if found is None:
            under_way.pop()
        elif isinstance(found, _Descend):
            under_way.append(_folders(source, found))
        else:
            yield found


def _compared(path: bytes, a: Entry, b: Entry) -> Iterator[Difference | _Descend]:
    if a.type != b.type:
        yield path, "type", a, b
        return
    if a.form != CHILDREN and (a.form, a.where, a.size, a.device) != (b.form, b.where, b.size, b.device):
        yield path, "content", a, b
    elif _metadata(a) != _metadata(b):
        yield path, "metadata", a, b
    if a.form == CHILDREN == b.form and a.where != b.where:
        yield _Descend(path + b"/" if path else b"", a.where, b.where)


def _folders(source: ChunkSource, folders: _Descend) -> Iterator[Difference | _Descend]:
    path = folders.path
    before, after = entries(source, folders.old), entries(source, folders.new)
    a, b = next(before, None), next(after, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.name < b.name):
            assert a is not None
            yield path + a.name, "removed", a, None
            a = next(before, None)
        elif a is None or b.name < a.name:
            yield path + b.name, "added", None, b
            b = next(after, None)
        else:
            yield from _compared(path + a.name, a, b)
            a, b = next(before, None), next(after, None)


def _metadata(entry: Entry) -> tuple[object, ...]:
    # Not ctime and inode: they are about where a file lay, not what it is. Not sizes of folders.
    return entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.attributes, bool(entry.link)


def walk(source: ChunkSource, root: bytes, seen: Seen) -> Iterator[tuple[int, bytes]]:
    """Every chunk that a file tree needs: a kind (DIRECTORY or DATA), and names of that kind, joined.

    A node for which `seen` is true is left out with all below it; whoever calls takes what came into what `seen` looks
    into, before it asks for more. Raises as `entries`.
    """
    folders = [root]
    while folders:
        for names, items in walk_rope(source, folders.pop(), ENTRIES, seen):
            if names:
                yield DIRECTORY, names
            far, data = [], []
            for entry in map(decode, items):
                if entry.flags & FAR_ATTRIBUTES:
                    far.append(entry.attributes)
                if entry.form == CHILDREN:
                    folders.append(entry.where)
                elif entry.form == LIST:
                    yield from walk_content(source, entry.form, entry.where, seen)
                elif entry.form in (WHOLE, PIECES):
                    data += [p.name for p in _pieces(source, entry.form, entry.where, 0) if p.tag == CHUNK]
            if far:
                yield DIRECTORY, b"".join(far)
            if data:
                yield DATA, b"".join(data)


def walk_content(source: ChunkSource, form: int, where: bytes, seen: Seen) -> Iterator[tuple[int, bytes]]:
    """The same of a content."""
    if form != LIST:
        data = b"".join(p.name for p in _pieces(source, form, where, 0) if p.tag == CHUNK)
        if data:
            yield DATA, data
        return
    for names, items in walk_rope(source, where, CONTENT, seen):
        if names:
            yield DIRECTORY, names
        data = b"".join(p.name for p in map(_unpack_piece, items) if p.tag == CHUNK)
        if data:
            yield DATA, data
