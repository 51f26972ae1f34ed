"""The rolling scrub: at each run a thirtieth of what the host says has not changed is read and compared all the same.

A host's word on what has changed is believed, and may be wrong: maps get lost, bits are dropped by defects. Whatever differs here
was not in the map, so the map lied, and nothing of the disk that rests on it can be believed until all of it was compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from agents.repository import tree
from agents.repository.content import DATA, NAME_SIZE, ChunkSource
from agents.repository.disk_ingest import Source
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK
from agents.repository.keys import Naming
from agents.repository.points import Disk

PARTS: Final = 30
_BATCH: Final = 2 << 20
_THREADS: Final = 2

_Batch = tuple[int, list[bytes]]  # first block, the name of each


def part_of(said: str, parts: int = PARTS) -> int:
    """Which part is next, of what the point before says (`next/of`); the first where it says nothing or counts otherwise."""
    number, _, of = said.partition("/")
    return int(number) % parts if number.isdigit() and of == str(parts) else 0


def after(part: int, parts: int = PARTS) -> str:
    return f"{(part + 1) % parts}/{parts}"


def suspicious(
    source: ChunkSource,
    naming: Naming,
    disk: Disk,
    read: Source,
    flagged: Iterable[tuple[int, int, int]],
    part: int,
    parts: int = PARTS,
    step: Callable[[int], None] = lambda size: None,
) -> tuple[int, int]:
    """Compare a part of the blocks that are not in `flagged` (first, count, tag) with `disk`, the tree before: the first that
    differs, or -1; and how many bytes were read. `step` is called between batches, with their bytes, and may raise."""
    blocks = -(-disk.size // disk.block_size)
    start, end = blocks * part // parts, blocks * (part + 1) // parts
    told = bytearray(end - start)
    for first, count, _ in flagged:
        if first >= end:
            break
        low, high = max(first, start), min(first + count, end)
        if low < high:
            told[low - start : high - start] = b"\1" * (high - low)
    done = 0

    def compare(batch: _Batch) -> int:
        return _compare(source, naming, disk, read, batch)

    with ThreadPoolExecutor(_THREADS, "scrub") as pool:
        for some in _several(_batches(source, disk, told, start, end), _THREADS):
            for found in pool.map(compare, some):
                if found >= 0:
                    return found, done
            size = sum(len(names) for _, names in some) * disk.block_size
            done += size
            step(size)
    return -1, done


def _several(batches: Iterator[_Batch], count: int) -> Iterator[list[_Batch]]:
    some = []
    for batch in batches:
        some.append(batch)
        if len(some) == count:
            yield some
            some = []
    if some:
        yield some


def _batches(source: ChunkSource, disk: Disk, told: bytearray, start: int, end: int) -> Iterator[_Batch]:
    """Stretches of blocks of which the tree says that they are chunks, and nothing said that they have changed.

    Those that it says are zero are left out: a sparse disk would be read from end to end for nothing. What was written there
    without a word is found when the disk is read whole.
    """
    most = max(1, _BATCH // disk.block_size)
    held: list[bytes] = []
    first = 0
    for run in tree.iterate(source, disk.root, start, end):
        for at, count, tag, place in run.extents():
            if tag != CHUNK:
                continue
            for block in range(max(at, start), min(at + count, end)):
                if told[block - start]:
                    continue
                if held and (first + len(held) != block or len(held) == most):
                    yield first, held
                    held = []
                if not held:
                    first = block
                name = place + (block - at) * NAME_SIZE
                held.append(run.names[name : name + NAME_SIZE])
    if held:
        yield first, held


def _compare(source: ChunkSource, naming: Naming, disk: Disk, read: Source, batch: _Batch) -> int:
    first, names = batch
    size = min(len(names) * disk.block_size, disk.size - first * disk.block_size)
    buffer = memoryview(bytearray(size))
    read.read_into(first * disk.block_size, buffer)
    for number, name in enumerate(names):
        piece = buffer[number * disk.block_size : (number + 1) * disk.block_size]
        if naming.name_of(DATA, piece) == name:
            continue
        # Names differ too where the asset's scope of deduplication became another one: bytes decide.
        try:
            if piece == source.get(name, DATA):
                continue
        except RepositoryError:  # cannot be read any more, which verify is there to say
            continue
        return first + number
    return -1
