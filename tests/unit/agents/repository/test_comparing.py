"""Comparing a disk that is there with one at a point: every block that is another is found, and no other."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.repository import comparing, tree
from agents.repository.comparing import FileDisk, differences
from agents.repository.content import DATA
from agents.repository.extents import CHUNK, FREE, LOST, RunBuilder, omitted
from agents.repository.points import Disk
from tests.stand_ins.chunk_store import ChunkStore

BLOCK = 4096


class Bytes:
    """A disk in memory. `reads`: the ranges that were read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.data[offset : offset + len(buffer)]


class Sparse(Bytes):
    """And it knows where it is empty."""

    def holes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        begin = None
        for at in range(offset, offset + length, BLOCK):
            zero = not any(self.data[at : min(at + BLOCK, offset + length)])
            if zero and begin is None:
                begin = at
            if not zero and begin is not None:
                yield begin, at - begin
                begin = None
        if begin is not None:
            yield begin, offset + length - begin


def built(store: ChunkStore, kinds: str, tail: int) -> tuple[Disk, bytes]:
    """`d` data, `z` zero, `o` omitted, `l` lost: a disk and what it reads as; its last block is short by `tail`."""
    rng, builder, image = random.Random(1), RunBuilder(), bytearray()
    size = len(kinds) * BLOCK - tail
    for block, kind in enumerate(kinds):
        data = bytes(min(BLOCK, size - block * BLOCK))
        if kind == "d":
            data = rng.randbytes(len(data))
            builder.add(block, 1, CHUNK, store.put(DATA, data))
        elif kind in "ol":
            builder.add(block, 1, LOST if kind == "l" else omitted(FREE))
        image += data
    return Disk("d0", "sda", size, BLOCK, tree.build(store, [builder.take()])), bytes(image)


@given(
    st.text("dddzzo", min_size=1, max_size=150),
    st.integers(0, BLOCK - 1),
    st.sets(st.integers(0, 149), max_size=10),
    st.booleans(),
    st.integers(0, 160),
    st.integers(0, 160),
    st.sets(st.integers(0, 149)),
)
@settings(deadline=None, max_examples=100)
def test_what_differs_is_found_and_nothing_else(
    kinds: str, tail: int, flipped: set[int], sparse: bool, first: int, stop: int, wanted: set[int]
) -> None:
    store = ChunkStore()
    disk, image = built(store, kinds, tail)
    changed = bytearray(image)
    flipped = {block for block in flipped if block < len(kinds)}
    for block in flipped:
        changed[min(block * BLOCK + 7, disk.size - 1)] ^= 1
    target = (Sparse if sparse else Bytes)(bytes(changed))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(comparing, "_PIECE_BYTES", 5 * BLOCK)
        told: list[int] = []
        found = [at // BLOCK for at, _, _ in differences(target, store, disk, store.same, progress=told.append)]
        assert found == sorted(flipped)
        assert sum(told) == disk.size
        some = [at // BLOCK for at, _, _ in differences(target, store, disk, store.same, blocks=(first, stop))]
        assert some == sorted(block for block in flipped if first <= block < stop)
        chosen = bytearray(block in wanted for block in range(len(kinds)))
        told.clear()
        target.reads.clear()
        ranges = list(differences(target, store, disk, store.same, chosen=chosen, progress=told.append))
        assert [at // BLOCK for at, _, _ in ranges] == sorted(flipped & wanted)
        assert sum(told) == comparing.covered(disk, chosen, 0, len(kinds))
        read = {at // BLOCK for offset, length in target.reads for at in range(offset, offset + length, BLOCK)}
        assert read <= wanted


def test_empty_stretches_are_not_read_where_the_disk_knows_of_them() -> None:
    store = ChunkStore()
    disk, image = built(store, "z" * 4000 + "d" + "z" * 4000, 0)
    target = Sparse(image)
    assert list(differences(target, store, disk, store.same)) == []
    assert sum(length for _, length in target.reads) <= 4 << 20


def test_lost_blocks_always_differ_and_so_does_what_is_behind_the_end() -> None:
    store = ChunkStore()
    disk, image = built(store, "dlzdzo", 100)
    assert [at for at, _, _ in differences(Bytes(image), store, disk, store.same)] == [BLOCK]
    short = differences(Bytes(image[: 3 * BLOCK + 5]), store, disk, store.same)
    assert [at // BLOCK for at, _, _ in short] == [1, 3, 4, 5]
    longer = differences(Bytes(image + b"more"), store, disk, store.same)
    assert [at // BLOCK for at, _, _ in longer] == [1]


def test_a_files_holes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(8 << 20)
        file.seek(5 << 20)
        file.write(os.urandom(1 << 20))
    with contextlib.closing(FileDisk(path)) as there:
        assert there.size == 8 << 20
        holes = list(there.holes(0, there.size))
        data = path.read_bytes()
        at = 0
        for offset, length in holes:
            assert at <= offset
            assert not any(data[offset : offset + length])
            at = offset + length
        assert sum(length for _, length in holes) >= 5 << 20, "the file system under the tests knows holes"
        assert list(there.holes(2 << 20, 1 << 20)) == [(2 << 20, 1 << 20)]
