"""What a disk was at the point before, for backups that read what may not have changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agents.repository import nodes, points, tree
from agents.repository.content import NAME_SIZE, ChunkSource
from agents.repository.extents import CHUNK

TOGETHER: Final = 512  # extents, or leaves, that are compared at once
_NODES: Final = 2048  # of a tree in memory: 4 MiB


class Nodes:
    """A source that keeps the chunks that were asked for last: windows that are far apart share the nodes above them."""

    def __init__(self, source: ChunkSource) -> None:
        self._source = source
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, name: bytes, kind: int) -> bytes:
        ((_, data),) = self.get_many([name], kind)
        return data

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        unknown = []
        for name in names:
            data = self._kept.get(name)
            if data is None:
                unknown.append(name)
            else:
                self._kept.move_to_end(name)
                yield name, data
        for name, data in self._source.get_many(unknown, kind) if unknown else ():
            self._kept[name] = data
            if len(self._kept) > _NODES:
                self._kept.popitem(last=False)
            yield name, data


class Previous:
    """What a disk was at the point before, for backups that read what may not have changed."""

    def __init__(self, source: ChunkSource, disk: points.Disk) -> None:
        self._source = source
        self._root = disk.root

    def different(self, extents: Iterable[tuple[int, int, int, bytes]]) -> list[tuple[int, int, int, bytes]]:
        """Of `extents` what was not so before. Extents other than of chunks are left alone, leaf by leaf, if all that they say
        was so."""
        out: list[tuple[int, int, int, bytes]] = []
        pieces: list[tuple[int, int, int, bytes]] = []
        wanted: set[int] = set()
        for first, count, tag, names in extents:
            at = 0
            while at < count:
                leaf, slot = divmod(first + at, nodes.FAN_OUT)
                took = min(count - at, nodes.FAN_OUT - slot)
                pieces.append((first + at, took, tag, names[at * NAME_SIZE : (at + took) * NAME_SIZE]))
                wanted.add(leaf)
                at += took
                if len(wanted) == TOGETHER:
                    out += self._differing(pieces, wanted)
                    pieces, wanted = [], set()
        out += self._differing(pieces, wanted)
        return out

    def _differing(
        self, pieces: Sequence[tuple[int, int, int, bytes]], wanted: Iterable[int]
    ) -> Iterator[tuple[int, int, int, bytes]]:
        leaves = tree.leaves(self._source, self._root, wanted)
        for first, count, tag, names in pieces:
            leaf, slot = divmod(first, nodes.FAN_OUT)
            before = leaves[leaf]
            if isinstance(before, int):
                if tag != before:
                    yield first, count, tag, names
                continue
            start = nodes.HEADER_SIZE + slot * NAME_SIZE
            if nodes.is_full(before) and tag == CHUNK and before[start : start + len(names)] == names:
                continue
            same = [nodes.entry_of(before, at) == (tag, name) for at, name in _named(slot, count, names)]
            if tag != CHUNK:
                if not all(same):
                    yield first, count, tag, names
                continue
            for number, equal in enumerate(same):
                if not equal:
                    yield first + number, 1, tag, names[number * NAME_SIZE : (number + 1) * NAME_SIZE]


def _named(slot: int, count: int, names: bytes) -> Iterator[tuple[int, bytes]]:
    """Places in a leaf, each with its name; an empty one where there are no names."""
    for number in range(count):
        yield slot + number, names[number * NAME_SIZE : (number + 1) * NAME_SIZE]
