"""A disk at a point: a Merkle radix tree over block numbers, fan-out 64, of which a repository stores the nodes as
chunks.

What a tree is follows from what the disk holds and from nothing else: the same content has the same root, however it
came about. So unchanged parts of two points are the same chunks, and comparing two points costs their difference. Of
the nodes (`agents.repository.nodes`) there is one form only:

- a block that is zero has no entry, a node without entries is not there, and a disk of zeros has the root `EMPTY`;
- 64 equal entries other than chunks are one entry of the level above;
- the root is the lowest node that reaches every entry.

Works on columns and slices, not on an object a leaf: a million leaves build in the time their nodes take to hash.
Knows no packs and no points.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import filterfalse
from typing import Final

from agents.repository.content import DATA, NAME_SIZE, NODE, BulkSink, ChunkSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import BLOCKS, CHUNK, LOST, ZERO, Run, RunBuilder, clipped, is_entry
from agents.repository.nodes import (
    FAN_OUT,
    HEADER_SIZE,
    LEVELS,
    Slots,
    checked,
    encode,
    entry_of,
    full_headers,
    is_full,
    names_in,
    slots_of,
    take_apart,
    uniform,
    with_chunk,
)

EMPTY: Final = bytes(NAME_SIZE)  # the root of a disk on which every block is zero; no chunk has this name

_WINDOW: Final = 3  # levels updated together: 64^3 blocks, whose leaves' nodes are 8 MiB
_BATCH: Final = 4096  # extents handed out at once

_apart: Final = [struct.Struct(f"{NAME_SIZE}s" * count) for count in range(FAN_OUT + 1)]  # joined names
Seen = Callable[[bytes], bool]
# -- making trees


def build(sink: BulkSink, entries: Iterable[Run]) -> bytes:
    """The root of the tree with these entries, which ascend from run to run; all else is zero. Its nodes are put
    before."""
    return update(sink, _Nothing(), EMPTY, entries)


def update(sink: BulkSink, source: ChunkSource, root: bytes, changes: Iterable[Run]) -> bytes:
    """The root of `root`'s tree with `changes` made to it; they ascend from run to run. New nodes are put before.

    Memory is a few MiB and what the runs have that arrive; work is that of the nodes that change and of those above.
    Reads only nodes of the old tree. Raises `RepositoryError`: `tree-damaged`, and what `source` raises; nothing
    refers to what was put then.
    """
    return _Update(sink, source, root).run(changes)


class _Nothing:
    """The source of a tree that is not there."""

    def get(self, name: bytes, kind: int) -> bytes:
        raise AssertionError("an empty tree has no nodes")

    def get_many(self, names: object, kind: int) -> Iterator[tuple[bytes, bytes]]:
        raise AssertionError("an empty tree has no nodes")


class _Update:
    """One update of one tree. The changes to a level's nodes become the changes to the level above, and so on up."""

    def __init__(self, sink: BulkSink, source: ChunkSource, root: bytes) -> None:
        self._sink = sink
        self._source = source
        # Nodes of the old tree by level and number, as read, or the tag of all that is below: all of level _WINDOW and
        # above that were needed, below that of one window.
        self._old: list[dict[int, bytes | int]] = [{} for _ in range(LEVELS + 1)]
        self._first: dict[bytes, bytes] = {}  # node 0 of each level as put, which may not be readable yet
        if root == EMPTY:
            self._top = 0
            self._root: bytes | int = ZERO
        else:
            self._root = source.get(root, NODE)
            self._top = checked(self._root)
        self._name = root

    def run(self, changes: Iterable[Run]) -> bytes:
        windows = _windows(changes)
        head = next(windows, None)
        if head is None:
            return self._name
        following = next(windows, None)
        if following is None and head[0] == 0:
            run = head[1]
            self._raise(_level_of(run))
            run = clipped(run, 0, FAN_OUT ** (self._top + 1))
            for level in range(self._top):
                run = self._lift(level, run)
            return self._finish(run)
        self._raise(_WINDOW)
        upper = RunBuilder()
        while head is not None:
            _, run = head
            for level in range(_WINDOW):
                run = self._lift(level, run)
            for extent in run.extents():
                upper.add(extent.first, extent.blocks, extent.tag, _names_of(run, extent.at, extent.blocks))
            for level in range(_WINDOW):
                self._old[level].clear()
            head, following = following, next(windows, None)
        run = upper.take()
        self._raise(_WINDOW + _level_of(run))
        run = clipped(run, 0, FAN_OUT ** (self._top + 1 - _WINDOW))
        for level in range(_WINDOW, self._top):
            run = self._lift(level, run)
        return self._finish(run)

    def _raise(self, level: int) -> None:
        """Put nodes above the old root until it is of `level`. They have one entry, the root below."""
        while self._top < level:
            self._top += 1
            if self._name == EMPTY:
                continue
            tags, names = bytearray(FAN_OUT), bytearray(FAN_OUT * NAME_SIZE)
            tags[0] = CHUNK
            names[:NAME_SIZE] = self._name
            # The root that was may still be read by its name.
            assert isinstance(self._root, bytes)
            self._first[self._name] = self._root
            self._root = encode(self._top, tags, names)
            self._name = self._sink.put(NODE, self._root)
        # Levels are numbered from the leaves, so what was read stays what it is.

    def _lift(self, level: int, run: Run) -> Run:
        """Make `run`'s changes to entries of nodes of `level`: what that changes in the nodes above."""
        names = run.names
        # Each: a node, how many nodes are wholly of one kind (0: a node changed in places), the kind, where names
        # begin; the places.
        work: list[tuple[int, int, int, int, list[tuple[int, int, int, int]]]] = []
        changed: list[int] = []
        places: list[tuple[int, int, int, int]] = []
        current = -1
        for first, count, tag, at in run.extents():
            while count:
                node, slot = first >> 6, first & 63
                if not slot and count >= FAN_OUT:
                    whole = count >> 6
                    work.append((node, whole, tag, at, []))
                    took = whole << 6
                else:
                    took = min(FAN_OUT - slot, count)
                    if node != current:
                        current, places = node, []
                        work.append((node, 0, 0, 0, places))
                        changed.append(node)
                    places.append((slot, took, tag, at))
                first += took
                count -= took
                if tag == CHUNK:
                    at += took * NAME_SIZE
        old = self._nodes(level, changed)
        header = full_headers[level]
        size = FAN_OUT * NAME_SIZE
        data: list[bytes] = []  # of the new nodes
        made: list[tuple[int, int, int]] = []
        for node, whole, tag, at, places in work:
            if not whole:
                tag, one = _patched(level, old[node], places, names)
                if tag == CHUNK:
                    data.append(one)
                made.append((node, 1, tag))
                continue
            if tag == CHUNK:
                data += [header + names[i : i + size] for i in range(at, at + whole * size, size)]
            made.append((node, whole, tag))
        named = self._sink.put_many(NODE, data)
        out = RunBuilder()
        begin = 0
        for node, count, tag in made:
            if tag != CHUNK:
                out.add(node, count, tag)
                continue
            out.add(node, count, CHUNK, b"".join(named[begin : begin + count]))
            if not node:
                self._first[named[begin]] = data[begin]
            begin += count
        return out.take()

    def _nodes(self, level: int, wanted: list[int]) -> dict[int, bytes | int]:
        """Old nodes of `level`, or the tag of everything below where there is none. `wanted` ascends."""
        known = self._old[level]
        missing = [node for node in wanted if node not in known] if known else wanted
        if not missing:
            return known
        if level == self._top:
            return {node: ZERO if node else self._root for node in wanted}
        above = self._nodes(level + 1, sorted({node >> 6 for node in missing}))
        named: dict[bytes, list[int]] = {}
        for node in missing:
            parent = above[node >> 6]
            tag, name = (parent, b"") if isinstance(parent, int) else entry_of(parent, node & 63)
            if tag == CHUNK:
                named.setdefault(name, []).append(node)
            else:
                known[node] = tag
        for name, data in self._fetch(named):
            checked(data, level)
            for node in named[name]:
                known[node] = data
        return known

    def _fetch(self, named: dict[bytes, list[int]]) -> Iterator[tuple[bytes, bytes]]:
        absent = []
        for name in named:
            data = self._first.get(name)
            if data is None:
                absent.append(name)
            else:
                yield name, data
        if absent:
            yield from self._source.get_many(absent, NODE)

    def _finish(self, run: Run) -> bytes:
        """Make the changes to the root, and lower it as far as it goes."""
        slots = slots_of(self._root)
        for first, count, tag, at in run.extents():
            _place(slots, first, count, tag, at, run.names)
        level = self._top
        name = b""
        while level and slots.tags[0] != ZERO and not any(slots.tags[1:]):
            level -= 1
            if slots.tags[0] == CHUNK:
                name = bytes(slots.names[:NAME_SIZE])
                data = self._first.get(name) or self._source.get(name, NODE)
                checked(data, level)
                slots = take_apart(data)
            else:
                slots = uniform(slots.tags[0])
        if not any(slots.tags):
            return EMPTY
        return self._sink.put(NODE, encode(level, *slots))


def _level_of(run: Run) -> int:
    """The lowest level from which a root reaches all of `run` that is not zero."""
    last = 0
    for i in range(len(run.firsts) - 1, -1, -1):
        if run.tags[i] != ZERO:
            last = run.firsts[i] + run.counts[i] - 1
            break
    return max(0, (last.bit_length() - 1) // 6)


def _names_of(run: Run, at: int, count: int) -> bytes:
    return run.names[at : at + count * NAME_SIZE]


def _place(slots: Slots, slot: int, count: int, tag: int, at: int, names: bytes) -> None:
    slots.tags[slot : slot + count] = bytes([tag]) * count
    if tag == CHUNK:
        slots.names[slot * NAME_SIZE : (slot + count) * NAME_SIZE] = names[at : at + count * NAME_SIZE]


def _patched(level: int, old: bytes | int, places: list[tuple[int, int, int, int]], names: bytes) -> tuple[int, bytes]:
    """The node with changes made: CHUNK and its bytes, or the tag that all of it is."""
    if not isinstance(old, int) and is_full(old) and all(place[2] == CHUNK for place in places):
        # By far the most common: a block among others got other content.
        data = bytearray(old)
        for slot, count, _, at in places:
            start = HEADER_SIZE + slot * NAME_SIZE
            data[start : start + count * NAME_SIZE] = names[at : at + count * NAME_SIZE]
        return CHUNK, bytes(data)
    if len(places) == 1 and places[0][1:3] == (1, CHUNK) and (old == ZERO or not isinstance(old, int)):
        # On a sparse disk as common: one block where little stands.
        slot, _, _, at = places[0]
        return CHUNK, with_chunk(None if isinstance(old, int) else old, level, slot, names[at : at + NAME_SIZE])
    slots = slots_of(old)
    for slot, count, tag, at in places:
        _place(slots, slot, count, tag, at, names)
    tag = slots.tags[0]
    if tag != CHUNK and slots.tags.count(tag) == FAN_OUT:
        return tag, b""
    return CHUNK, encode(level, *slots)


def _windows(changes: Iterable[Run]) -> Iterator[tuple[int, Run]]:
    """`changes` cut where windows of 64^3 blocks begin, with the number of the window; extents of one kind may span
    several."""
    width = FAN_OUT**_WINDOW
    builder = RunBuilder()
    current, end = 0, 0
    for run in changes:
        for first, count, tag, at in run.extents():
            if not count or first < end or first + count > BLOCKS or not is_entry(tag):
                raise ValueError(f"changes to a tree do not ascend, or make no sense, at block {first}")
            end = first + count
            while count:
                window = first // width
                if window != current and builder:
                    yield current, builder.take()
                current = window
                took = count
                if tag == CHUNK or first % width:
                    took = min(count, (window + 1) * width - first)
                elif count > width:
                    # As many whole windows as there are: to the levels above that is one extent.
                    took = count - count % width
                builder.add(first, took, tag, run.names[at : at + took * NAME_SIZE] if tag == CHUNK else b"")
                if took > width:
                    current = (first + took - 1) // width
                first += took
                count -= took
                if tag == CHUNK:
                    at += took * NAME_SIZE
    if builder:
        yield current, builder.take()


# -- reading trees


def iterate(
    source: ChunkSource, root: bytes, first: int = 0, end: int = BLOCKS, *, skip_lost: bool = False
) -> Iterator[Run]:
    """What is not zero from block `first` up to, not including, `end`, in ascending runs of a few thousand extents.

    An extent may span far more than the disk has where all of it is of one kind: the caller knows the disk's size.
    `skip_lost`: what a node stands for that cannot be read is lost, and the rest goes on. Otherwise it raises
    `RepositoryError`: `tree-damaged`, and what `source` raises.
    """
    if root == EMPTY or first >= end:
        return
    try:
        data = source.get(root, NODE)
        level = checked(data)
    except RepositoryError:
        if not skip_lost:
            raise
        yield from _one(first, end - first, LOST)
        return
    builder = RunBuilder()
    for extent_first, count, tag, names in _entries(source, data, level, 0, first, end, skip_lost):
        builder.add(extent_first, count, tag, names)
        if len(builder) >= _BATCH:
            yield builder.take()
    if builder:
        yield builder.take()


def leaves(source: ChunkSource, root: bytes, wanted: Iterable[int]) -> dict[int, bytes | int]:
    """Of each of `wanted` (leaf n stands for blocks from 64·n on) its node, or the tag of all of its blocks.

    Asks once a level for all that is needed, so many that are far apart cost little more than as many side by side.
    Raises as `iterate`.
    """
    numbers = sorted(set(wanted))
    if root == EMPTY:
        return dict.fromkeys(numbers, ZERO)
    data = source.get(root, NODE)
    level = checked(data)
    found: dict[int, bytes | int] = {number >> 6 * level: ZERO for number in numbers}
    found[0] = data
    while level:
        level -= 1
        above, found = found, {}
        named: dict[bytes, list[int]] = {}
        for node in sorted({number >> 6 * level for number in numbers}):
            parent = above[node >> 6]
            tag, name = (parent, b"") if isinstance(parent, int) else entry_of(parent, node & 63)
            if tag == CHUNK:
                named.setdefault(name, []).append(node)
            else:
                found[node] = tag
        for name, data in _got(source, dict.fromkeys(named), level).items():
            found.update(dict.fromkeys(named[name], data))
    return found


def _one(first: int, count: int, tag: int) -> Iterator[Run]:
    builder = RunBuilder()
    builder.add(first, count, tag)
    yield builder.take()


def _entries(
    source: ChunkSource, data: bytes, level: int, base: int, first: int, end: int, skip_lost: bool
) -> Iterator[tuple[int, int, int, bytes]]:
    """The entries at or below a checked node of which block `base` is the first."""
    width = FAN_OUT**level
    low = max(0, (first - base) // width)
    high = min(FAN_OUT, -((base - end) // width))
    if not level and is_full(data):
        yield base + low, high - low, CHUNK, data[HEADER_SIZE + low * NAME_SIZE : HEADER_SIZE + high * NAME_SIZE]
        return
    slots = take_apart(data)
    below = _below(source, slots, level, range(low, high), skip_lost=skip_lost) if level else {}
    for slot in range(low, high):
        tag = slots.tags[slot]
        if tag == ZERO:
            continue
        start = base + slot * width
        if tag == CHUNK and level:
            node = below.get(_name(slots, slot))
            if node is None:  # it cannot be read
                yield max(start, first), min(start + width, end) - max(start, first), LOST, b""
            else:
                yield from _entries(source, node, level - 1, start, first, end, skip_lost)
        elif tag == CHUNK:
            yield start, 1, CHUNK, _name(slots, slot)
        else:
            yield max(start, first), min(start + width, end) - max(start, first), tag, b""


def _below(
    source: ChunkSource, slots: Slots, level: int, which: Iterable[int], *, skip_lost: bool = False
) -> dict[bytes, bytes]:
    """Checked nodes below a node of `level`, by name; with `skip_lost` those that can be read."""
    names = {_name(slots, slot): None for slot in which if slots.tags[slot] == CHUNK}
    try:
        return _got(source, names, level - 1)
    except RepositoryError:
        if not skip_lost:
            raise
    out: dict[bytes, bytes] = {}
    for name in names:  # one by one: it says nothing of the others that this one cannot be read
        with contextlib.suppress(RepositoryError):
            out |= _got(source, {name: None}, level - 1)
    return out


def _got(source: ChunkSource, names: dict[bytes, None], level: int) -> dict[bytes, bytes]:
    out = {}
    if names:
        for name, data in source.get_many(list(names), NODE):
            checked(data, level)
            out[name] = data
    return out


def _name(slots: Slots, slot: int) -> bytes:
    return bytes(slots.names[slot * NAME_SIZE : (slot + 1) * NAME_SIZE])


def diff(source: ChunkSource, old: bytes, new: bytes) -> Iterator[Run]:
    """What has to be changed in `old` to have `new`, in ascending runs: `update(old, diff(old, new)) == new`.

    Reads the nodes that differ and no others. Raises as `iterate`.
    """
    builder = RunBuilder()
    for first, count, tag, names in _differences(source, old, new):
        builder.add(first, count, tag, names)
        if len(builder) >= _BATCH:
            yield builder.take()
    if builder:
        yield builder.take()


def _differences(source: ChunkSource, old: bytes, new: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    if old == new:
        return
    made: dict[bytes, bytes] = {}
    a, b = (b"" if root == EMPTY else source.get(root, NODE) for root in (old, new))
    a_level, b_level = (checked(data) if data else 0 for data in (a, b))
    top = max(a_level, b_level)
    # Above the lower root, up to the level of the other: nodes that are only thought of, with one entry each.
    a = _raised(old, a, a_level, top, made)
    b = _raised(new, b, b_level, top, made)
    yield from _compared(source, made, a or ZERO, b or ZERO, top, 0)


def _raised(name: bytes, data: bytes, level: int, top: int, made: dict[bytes, bytes]) -> bytes:
    while data and level < top:
        level += 1
        made[name] = data
        tags, names = bytearray(FAN_OUT), bytearray(FAN_OUT * NAME_SIZE)
        tags[0] = CHUNK
        names[:NAME_SIZE] = name
        data = encode(level, tags, names)
        name = bytes([level]) * NAME_SIZE
    return data


def _compared(
    source: ChunkSource, made: dict[bytes, bytes], old: bytes | int, new: bytes | int, level: int, base: int
) -> Iterator[tuple[int, int, int, bytes]]:
    """Where two checked nodes of `level` differ, of which block `base` is the first; either may be the tag of all
    below."""
    if not isinstance(old, int) and not isinstance(new, int) and is_full(old) and is_full(new):
        differ = _differing(old, new)
        if not level:
            for slot in differ:
                at = HEADER_SIZE + slot * NAME_SIZE
                yield base + slot, 1, CHUNK, new[at : at + NAME_SIZE]
            return
        a, b = take_apart(old), take_apart(new)
    else:
        a, b = slots_of(old), slots_of(new)
        differ = [
            slot
            for slot in range(FAN_OUT)
            if a.tags[slot] != b.tags[slot] or (a.tags[slot] == CHUNK and _name(a, slot) != _name(b, slot))
        ]
    if not level:
        for slot in differ:
            tag = b.tags[slot]
            yield base + slot, 1, tag, _name(b, slot) if tag == CHUNK else b""
        return
    below = {name: data for name, data in made.items() if checked(data) == level - 1}
    wanted = {_name(slots, slot): None for slots in (a, b) for slot in differ if slots.tags[slot] == CHUNK}
    below |= _got(source, {name: None for name in wanted if name not in below}, level - 1)
    width = FAN_OUT**level
    for slot in differ:
        start = base + slot * width
        low, high = (below[_name(slots, slot)] if slots.tags[slot] == CHUNK else slots.tags[slot] for slots in (a, b))
        if isinstance(low, int) and isinstance(high, int):
            yield start, width, high, b""
        else:
            yield from _compared(source, made, low, high, level - 1, start)


def _differing(old: bytes, new: bytes) -> list[int]:
    """The entries in which two nodes of 64 chunks differ. As numbers, since few do: one operation for all that do
    not."""
    rest = int.from_bytes(old[HEADER_SIZE:], "little") ^ int.from_bytes(new[HEADER_SIZE:], "little")
    out = []
    while rest:
        slot = (rest.bit_length() - 1) // (8 * NAME_SIZE)
        out.append(slot)
        rest &= (1 << slot * 8 * NAME_SIZE) - 1
    out.reverse()
    return out


def walk(
    source: ChunkSource, root: bytes, seen: Seen | None = None, *, leaves: bool = True
) -> Iterator[tuple[int, bytes]]:
    """Every chunk that the tree needs, its root first: a kind (NODE or DATA), and names of that kind, joined. Without
    `leaves` nodes only: those of level 0 are named and not read, which is a 64th of the work.

    A node for which `seen` is true is left out with all that is below; what was handed out is asked about only
    afterwards, so `seen` may look into what its caller collects. Without `seen` each node comes once; chunks of data
    may come again. Raises as `iterate`.
    """
    if root == EMPTY:
        return
    if seen is None:
        visited: set[bytes] = set()
        seen = visited.__contains__
        for kind, names in walk(source, root, seen, leaves=leaves):
            if kind == NODE:
                visited.update(names[i : i + NAME_SIZE] for i in range(0, len(names), NAME_SIZE))
            yield kind, names
        return
    if seen(root):
        return
    yield NODE, root
    data = source.get(root, NODE)
    yield from _walked(source, data, checked(data), seen, leaves)


def _walked(source: ChunkSource, data: bytes, level: int, seen: Seen, leaves: bool) -> Iterator[tuple[int, bytes]]:
    names = names_in(data)
    if not level:
        if names and leaves:
            yield DATA, names
        return
    below = dict.fromkeys(filterfalse(seen, _apart[len(names) // NAME_SIZE].unpack(names)))
    if below:
        yield NODE, b"".join(below)
        if level == 1 and not leaves:
            return
        for child in _got(source, below, level - 1).values():
            yield from _walked(source, child, level - 1, seen, leaves)
