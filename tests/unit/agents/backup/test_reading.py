"""What is read is all that may have changed, in whole blocks, each once; what is taken for zero is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.backup.reading import blocks, bytes_to_read, resized
from agents.machines import ExtentKind
from agents.repository.extents import CHUNK, ZERO

BLOCK = 8
Extent = tuple[int, int, ExtentKind]


@st.composite
def disks(draw: st.DrawFn, whole: bool = False) -> tuple[int, list[Extent]]:
    """A disk's size, and extents of it: in order, without overlap; without a gap if `whole`."""
    size = draw(st.integers(1, 120))
    cuts = sorted(draw(st.sets(st.integers(1, size), max_size=14)) | {size})
    found: list[Extent] = []
    at = 0
    for cut in cuts:
        kind = draw(st.sampled_from(("data", "zero") if whole else ("data", "zero", "")))
        if kind:
            found.append((at, cut - at, "data" if kind == "data" else "zero"))
        at = cut
    return size, found


def told(size: int, extents: list[Extent]) -> dict[int, str]:
    """Byte → kind."""
    return {byte: kind for offset, length, kind in extents for byte in range(offset, min(size, offset + length))}


@given(disks())
def test_all_that_may_have_changed_is_read_and_nothing_twice(disk: tuple[int, list[Extent]]) -> None:
    size, extents = disk
    said, seen, end = told(size, extents), dict[int, int](), 0
    for first, count, tag in blocks(extents, BLOCK, size):
        assert first >= end
        assert 0 < count <= -(-size // BLOCK) - first
        end = first + count
        seen |= dict.fromkeys(range(first, first + count), tag)
    for byte, kind in said.items():
        assert seen[byte // BLOCK] == CHUNK or kind == "zero"
    for block, tag in seen.items():
        kinds = {said.get(byte) for byte in range(block * BLOCK, min(size, (block + 1) * BLOCK))}
        assert kinds == {"zero"} if tag == ZERO else kinds != {None}


@given(disks(whole=True))
def test_of_a_whole_disk_every_block_is_told(disk: tuple[int, list[Extent]]) -> None:
    size, extents = disk
    assert sum(count for _, count, _ in blocks(extents, BLOCK, size)) == -(-size // BLOCK)


@given(disks(), st.integers(1, 120))
def test_behind_the_smaller_end_all_is_read(disk: tuple[int, list[Extent]], before: int) -> None:
    size, extents = disk
    read = {
        block
        for first, count, tag in blocks(resized(extents, before, size, BLOCK), BLOCK, size)
        for block in range(first, first + count)
        if tag == CHUNK
    }
    if before != size:
        assert read >= set(range(min(before, size) // BLOCK, -(-size // BLOCK)))
    for byte, kind in told(size, extents).items():
        assert kind == "zero" or byte // BLOCK in read


def test_blocks_of_one_kind_come_as_one_and_are_counted() -> None:
    extents: list[Extent] = [(0, 3, "data"), (5, 11, "data"), (16, 16, "zero"), (40, 1, "data")]
    found = list(blocks(extents, BLOCK, 100))
    assert found == [(0, 2, CHUNK), (2, 2, ZERO), (5, 1, CHUNK)]
    assert bytes_to_read(found, BLOCK) == 24
