"""Long lists as trees of chunks, cut by what is in them: what files hold, and what directories hold. Bytes and chunks,
no files.

A node (kind DIRECTORY, integers little-endian):

    u8 version (1) · u8 what · u8 level · u8 0 · u32 items · items, each with its length before it as u16

`what` is 1 for pieces of content, 2 for entries of a directory. Items of level 0 are what the list is of; those of a
higher level name nodes of the level below: 32 bytes of name, then a label that says what is in it (bytes of content as
u64; the first entry's name). A node ends behind an item that says so by its digest (one in 256 or so, above level 0
one in 64), or at 2,048 items or 1 MiB: so an item that is put in changes the node it is in and those above. The root
is the lowest node that holds everything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from agents.repository.content import DIRECTORY, NAME_SIZE, ChunkSink, ChunkSource
from agents.repository.errors import RepositoryError

CONTENT: Final = 1
ENTRIES: Final = 2
DAMAGED: Final = "directory-damaged"

_VERSION: Final = 1
_header = struct.Struct("<BBBxI")
_u16 = struct.Struct("<H")
_ITEMS: Final = 2048
_BYTES: Final = 1 << 20
_LEVELS: Final = 12
_ONE_IN: Final = (256, 64)


def damaged(why: str) -> RepositoryError:
    return RepositoryError(
        DAMAGED,
        f"what should be of a file tree is not: {why}",
        "run `holdfast repository verify`: it says which points that concerns",
    )


class Rope:
    """Writes one list. `label(items)`: the label of a node of level 0 that has these items; `joined(labels)`: of one
    above."""

    def __init__(
        self,
        sink: ChunkSink,
        what: int,
        label: Callable[[list[bytes]], bytes],
        joined: Callable[[list[bytes]], bytes],
    ) -> None:
        self._sink = sink
        self._what = what
        self._label = label
        self._joined = joined
        self._levels: list[list[bytes]] = [[]]
        self._sizes = [0]

    def add(self, item: bytes) -> None:
        """The next item, of at most 65,535 bytes."""
        self._add(0, item, item)

    def _add(self, level: int, item: bytes, decides: bytes) -> None:
        if level == len(self._levels):
            self._levels.append([])
            self._sizes.append(0)
        items = self._levels[level]
        items.append(item)
        self._sizes[level] += len(item) + 2
        ends = zlib.crc32(decides) % _ONE_IN[min(level, 1)] == 0
        if len(items) >= _ITEMS or self._sizes[level] >= _BYTES or (ends and len(items) > 1):
            self._close(level)

    def _close(self, level: int) -> None:
        items = self._levels[level]
        name = self._put(level)
        label = self._label(items) if not level else self._joined([item[NAME_SIZE:] for item in items])
        self._levels[level] = []
        self._sizes[level] = 0
        self._add(level + 1, name + label, name)

    def _put(self, level: int) -> bytes:
        items = self._levels[level]
        parts = [_header.pack(_VERSION, self._what, level, len(items))]
        for item in items:
            parts += (_u16.pack(len(item)), item)
        return self._sink.put(DIRECTORY, b"".join(parts))

    def finish(self) -> bytes:
        """The name of the root; of an empty list as well."""
        level = 0
        while True:
            if level + 1 == len(self._levels):
                # Nothing was closed here, so all there is stands in this node; a node with one child is not needed.
                items = self._levels[level]
                if level and len(items) == 1:
                    return items[0][:NAME_SIZE]
                return self._put(level)
            if self._levels[level]:
                self._close(level)
            level += 1


def opened(data: bytes, what: int, level: int | None = None) -> tuple[int, list[bytes]]:
    """Level and items of a node. Raises `RepositoryError` (`directory-damaged`) unless it is one."""
    if len(data) < _header.size:
        raise damaged("it is cut off")
    version, found, its, count = _header.unpack_from(data)
    if version != _VERSION:
        raise RepositoryError(
            DAMAGED,
            f"a node of a file tree has version {version}",
            "a newer release of Holdfast wrote it: read it with that",
        )
    if found != what or its > _LEVELS or (level is not None and its != level) or data[3]:
        raise damaged("it is of another kind or level than belongs there")
    items = []
    at = _header.size
    for _ in range(count):
        if at + 2 > len(data):
            raise damaged("it ends within its items")
        (size,) = _u16.unpack_from(data, at)
        item = data[at + 2 : at + 2 + size]
        at += 2 + size
        if len(item) != size or (its and size < NAME_SIZE):
            raise damaged("an item is cut off")
        items.append(item)
    if at != len(data):
        raise damaged("more stands in it than items")
    return int(its), items


Lost = Callable[[bytes], Iterable[bytes]]
"""Is given the label of a node that cannot be read (empty: of a list's root), gives what stands for its items."""


def items_of(
    source: ChunkSource,
    root: bytes,
    what: int,
    wanted: Callable[[int, bytes], bool] | None = None,
    lost: Lost | None = None,
) -> Iterator[bytes]:
    """A list's items in order. `wanted(i, label)` says of a node above level 0 whether its i-th child is to be read,
    in order. `lost`: of nodes that cannot be read; the rest goes on.

    Raises `RepositoryError`: `directory-damaged`, and what `source` raises, without `lost`.
    """
    try:
        level, items = opened(source.get(root, DIRECTORY), what)
    except RepositoryError:
        if lost is None:
            raise
        yield from lost(b"")
        return
    yield from _items(source, level, items, what, wanted, lost)


def _items(
    source: ChunkSource,
    level: int,
    items: list[bytes],
    what: int,
    wanted: Callable[[int, bytes], bool] | None,
    lost: Lost | None,
) -> Iterator[bytes]:
    if not level:
        yield from items
        return
    for number, item in enumerate(items):
        if wanted is None or wanted(number, item[NAME_SIZE:]):
            try:
                _, below = opened(source.get(item[:NAME_SIZE], DIRECTORY), what, level - 1)
            except RepositoryError:
                if lost is None:
                    raise
                yield from lost(item[NAME_SIZE:])
                continue
            yield from _items(source, level - 1, below, what, wanted, lost)


def walk(
    source: ChunkSource, root: bytes, what: int, seen: Callable[[bytes], bool]
) -> Iterator[tuple[bytes, list[bytes]]]:
    """Names of nodes, joined, before they are read (whoever cannot read one knows of it), and the items in each node of
    level 0. One for which `seen` is true is left out."""
    if seen(root):
        return
    yield root, []
    level, items = opened(source.get(root, DIRECTORY), what)
    yield from _walked(source, level, items, what, seen)


def _walked(
    source: ChunkSource, level: int, items: list[bytes], what: int, seen: Callable[[bytes], bool]
) -> Iterator[tuple[bytes, list[bytes]]]:
    if not level:
        yield b"", items
        return
    below = list(dict.fromkeys(item[:NAME_SIZE] for item in items if not seen(item[:NAME_SIZE])))
    yield b"".join(below), []
    for _, data in source.get_many(below, DIRECTORY):
        _, its = opened(data, what, level - 1)
        yield from _walked(source, level - 1, its, what, seen)
