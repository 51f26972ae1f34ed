"""Reading disks: any range at random, read ahead or not, equals the image; a restore equals it too, wherever it was
interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository import file_targets, reader, restoring, tree
from agents.repository.comparing import FileDisk, differences
from agents.repository.content import DATA
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, FREE, LOST, RunBuilder, omitted
from agents.repository.points import Disk, JournalPlace, Point
from agents.repository.reader import DiskReader
from agents.repository.stores import Buffer
from tests.stand_ins.chunk_store import ChunkStore

BLOCK = 4096


def imaged(
    store: ChunkStore, blocks: int, seed: int, *, tail: int = 777, lost: Sequence[int] = ()
) -> tuple[Disk, bytes]:
    """A disk and what it reads as: stretches of data, of repeated data, zeros and omitted blocks; the last block is
    short."""
    rng = random.Random(seed)
    builder = RunBuilder()
    image = bytearray()
    size = (blocks - 1) * BLOCK + tail
    block = 0
    while block < blocks:
        kind = rng.choice(["data", "data", "same", "zero", "omitted"])
        for _ in range(rng.randint(1, 40)):
            if block == blocks:
                break
            length = min(BLOCK, size - block * BLOCK)
            data = bytes(length)
            if block in lost:
                builder.add(block, 1, LOST)
            elif kind in ("data", "same"):
                data = rng.randbytes(length) if kind == "data" else (b"again" * BLOCK)[:length]
                builder.add(block, 1, CHUNK, store.put(DATA, data))
            elif kind == "omitted":
                builder.add(block, 1, omitted(FREE))
            image += data
            block += 1
    return Disk("d0", "sda", size, BLOCK, tree.build(store, [builder.take()])), bytes(image)


class Slow(ChunkStore):
    """Reads wait for `gate`, if told to; `asked` has every name that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: threading.Event | None = None
        self.asked: list[bytes] = []
        self.fail = 0

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        if kind == DATA:
            if self.gate is not None:
                self.gate.wait(60)
            self.asked += names
            if self.fail:
                self.fail -= 1
                raise RepositoryError("chunk-damaged", "a chunk is damaged")
        yield from super().get_many(names, kind)


@given(
    st.integers(1, 300),
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(0, 200_000)), max_size=20),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_any_range_reads_as_the_image_has_it(blocks: int, seed: int, ranges: list[tuple[int, int]]) -> None:
    store = ChunkStore()
    disk, image = imaged(store, blocks, seed)
    with DiskReader(store, disk, cache_bytes=64 << 10, ahead_bytes=32 << 10) as reading:
        for offset, length in ranges:
            assert reading.read(offset, length) == image[offset : offset + length]
        at = 0
        while at < disk.size:
            assert reading.read(at, 10_000) == image[at : at + 10_000]
            at += 10_000


def test_many_threads_read_what_the_image_has_and_the_cache_stays_within_its_bounds() -> None:
    store = ChunkStore()
    disk, image = imaged(store, 2000, 1)
    rng = random.Random(2)
    ranges = [(rng.randrange(disk.size), rng.randrange(100_000)) for _ in range(400)]
    with DiskReader(store, disk, cache_bytes=1 << 20) as reading, ThreadPoolExecutor(4) as pool:
        for (offset, length), found in zip(ranges, pool.map(lambda r: reading.read(*r), ranges), strict=True):
            assert found == image[offset : offset + length]
        assert reading._held == sum(map(len, reading._blocks.values()))
        assert reading._held <= 1 << 20
        assert reading._pending == {}


def test_a_block_is_read_once_while_it_is_kept() -> None:
    store = Slow()
    disk, image = imaged(store, 64, 3)
    with DiskReader(store, disk, threads=0) as reading:
        for _ in range(3):
            assert reading.read(0, disk.size) == image
    assert len(store.asked) == len(set(store.asked))


def test_reading_on_reads_ahead_and_jumping_about_does_not() -> None:
    store = Slow()
    builder = RunBuilder()
    for block in range(256):
        builder.add(block, 1, CHUNK, store.put(DATA, bytes([block]) * BLOCK))
    disk = Disk("d", "d", 256 * BLOCK, BLOCK, tree.build(store, [builder.take()]))
    with DiskReader(store, disk) as reading:
        for block in (7, 3, 200, 90):
            reading.read(block * BLOCK, BLOCK)
        assert len(store.asked) == 4
    store.asked.clear()
    with DiskReader(store, disk) as reading:
        for block in range(20):
            reading.read(block * BLOCK, BLOCK)
        assert reading._threads is not None
        reading._threads.shutdown()  # what was asked for has been read then
        assert len(store.asked) > 30
        assert len(store.asked) == len(set(store.asked))


def test_what_two_want_at_once_is_read_once() -> None:
    store = Slow()
    disk, image = imaged(store, 64, 4)
    store.gate = threading.Event()
    with DiskReader(store, disk) as reading, ThreadPoolExecutor(3) as pool:
        found = [pool.submit(reading.read, 0, disk.size) for _ in range(3)]
        store.gate.set()
        assert [f.result(60) for f in found] == [image] * 3
    assert len(store.asked) == len(set(store.asked))


def test_what_failed_is_raised_and_may_be_asked_for_again() -> None:
    store = Slow()
    disk, image = imaged(store, 64, 5)
    store.fail = 1
    with DiskReader(store, disk) as reading:
        with pytest.raises(RepositoryError, match="damaged"):
            reading.read(0, disk.size)
        assert reading.read(0, disk.size) == image


def test_a_lost_block_never_reads_as_anything() -> None:
    store = ChunkStore()
    disk, image = imaged(store, 64, 6, lost=[10, 11])
    with DiskReader(store, disk) as reading:
        assert reading.read(0, 10 * BLOCK) == image[: 10 * BLOCK]
        for offset in (10 * BLOCK, 12 * BLOCK - 1):
            with pytest.raises(RepositoryError) as caught:
                reading.read(offset, 1)
            assert caught.value.code == "block-lost"
        assert (10 * BLOCK, 2 * BLOCK, LOST) in list(reading.extents())


def test_extents_are_what_is_not_zero() -> None:
    store = ChunkStore()
    disk, image = imaged(store, 300, 7)
    with DiskReader(store, disk) as reading:
        for offset, length in ((0, disk.size), (5000, 300_000), (disk.size - 10, 100), (0, 0)):
            at = offset
            for start, size, _tag in reading.extents(offset, length):
                assert not any(image[at:start])
                assert at <= start
                at = start + size
            assert at <= min(offset + length, disk.size)
            assert not any(image[at : offset + length])


def test_a_chunk_that_is_not_as_long_as_its_block_is_refused(tmp_path: Path) -> None:
    store = ChunkStore()
    builder = RunBuilder()
    builder.add(0, 1, CHUNK, store.put(DATA, b"short"))
    disk = Disk("d", "d", 2 * BLOCK, BLOCK, tree.build(store, [builder.take()]))
    with DiskReader(store, disk) as reading, pytest.raises(RepositoryError, match="should have"):
        reading.read(0, 1)
    with pytest.raises(RepositoryError, match="should have"):
        file_targets.restore_file(store, disk, tmp_path / "x", point="p")


def test_a_disk_is_found_by_id_or_name() -> None:
    disk = Disk("d0", "sda", 1, 4096, tree.EMPTY)
    point = Point(
        "p", "", "", "disks", 0, "s", 0, "", JournalPlace(0, ""), disks=(disk, replace(disk, disk="d1", name="sdb"))
    )
    assert reader.disk_of(point, "d1").name == "sdb"
    assert reader.disk_of(point, "sda").disk == "d0"
    with pytest.raises(RepositoryError, match="no disk"):
        reader.disk_of(point, "sdc")


# -- restoring


def differing(path: Path, store: ChunkStore, disk: Disk) -> list[tuple[int, int, int]]:
    with contextlib.closing(FileDisk(path)) as there:
        return list(differences(there, store, disk, store.same))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "WINDOW", 64)
    monkeypatch.setattr(restoring, "_SLICE_BYTES", 5 * BLOCK)


def test_a_disk_is_restored_and_is_sparse_where_it_was_zero(tmp_path: Path) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 1000, 8)
    told: list[int] = []
    restored = file_targets.restore_file(store, disk, tmp_path / "x", point="p", progress=told.append)
    assert (tmp_path / "x").read_bytes() == image
    assert restored.wanted == disk.size == sum(told)
    assert (tmp_path / "x").stat().st_blocks * 512 <= restored.written + (1 << 16)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert list(differing(tmp_path / "x", store, disk)) == []


def test_over_something_else_it_is_restored_whole_if_that_may_be_lost(tmp_path: Path) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 300, 9)
    (tmp_path / "x").write_bytes(b"z" * (disk.size + 9999))
    with pytest.raises(RepositoryError, match="there already"):
        file_targets.restore_file(store, disk, tmp_path / "x", point="p")
    file_targets.restore_file(store, disk, tmp_path / "x", point="p", overwrite=True)
    assert (tmp_path / "x").read_bytes() == image


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 400_000)), max_size=5),
    st.sampled_from([4 << 20, 5 * BLOCK]),  # less than a slice may come to
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
def test_ranges_are_restored_and_nothing_else_is_touched(seed: int, cuts: list[tuple[int, int]], gathered: int) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 300, seed)
    ranges = []
    at = 0
    for gap, length in cuts:
        if at + gap < disk.size:
            ranges.append((at + gap, length))
        at += gap + length
    written = bytearray(b"z" * len(image))
    expected = bytearray(written)
    for offset, length in ranges:
        expected[offset : offset + length] = image[offset : offset + length]

    reserved, put = bytearray(len(image)), bytearray(len(image))

    class Memory:
        def reserve(self, offset: int, length: int) -> None:
            assert not any(put[offset : offset + length]), "what is written already is reserved"
            reserved[offset : offset + length] = b"1" * length

        def write(self, offset: int, data: Buffer) -> None:
            written[offset : offset + len(data)] = data
            put[offset : offset + len(data)] = b"1" * len(data)

        def zero(self, offset: int, length: int) -> None:
            written[offset : offset + length] = bytes(length)

        def flush(self) -> None:
            pass

    with patch.object(restoring, "_RESERVED", 1), patch.object(restoring, "_GATHERED", gathered):
        restoring.restore_disk(store, disk, Memory(), ranges=ranges)
    assert written == expected
    assert reserved == put  # nothing that stays a hole, and all that is written


def test_neighbours_are_written_at_once_however_packs_have_them() -> None:
    store = ChunkStore()  # has chunks in the order of their names, which is none
    builder, rng = RunBuilder(), random.Random(5)
    image = rng.randbytes(300 * BLOCK)
    for block in range(300):
        builder.add(block, 1, CHUNK, store.put(DATA, image[block * BLOCK : (block + 1) * BLOCK]))
    disk = Disk("d", "vda", len(image), BLOCK, tree.build(store, [builder.take()]))
    writes: dict[int, bytes] = {}

    class Memory:
        def write(self, offset: int, data: Buffer) -> None:
            writes[offset] = bytes(data)

        def zero(self, offset: int, length: int) -> None:
            raise AssertionError("there are no zeros")

        def flush(self) -> None:
            pass

    with patch.object(restoring, "WINDOW", 300), patch.object(restoring, "_SLICE_BYTES", 300 * BLOCK):
        restoring.restore_disk(store, disk, Memory())
    assert writes == {0: image}


def test_a_restore_that_ended_early_goes_on_where_it_was(tmp_path: Path) -> None:
    store = Slow()
    disk, image = imaged(store, 1000, 10)
    count = 0

    def enough() -> bool:
        nonlocal count
        count += 1
        return count > 60

    with pytest.raises(restoring.Stopped):
        file_targets.restore_file(store, disk, tmp_path / "x", point="p", stop=enough)
    assert file_targets.progress_path(tmp_path / "x").exists()
    store.asked.clear()
    restored = file_targets.restore_file(store, disk, tmp_path / "x", point="p")
    assert restored.kept > 0
    assert (tmp_path / "x").read_bytes() == image
    assert not file_targets.progress_path(tmp_path / "x").exists()


def test_progress_of_another_point_or_torn_is_not_believed(tmp_path: Path) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 500, 11)
    other, other_image = imaged(store, 500, 12)
    target, notes = tmp_path / "x", file_targets.progress_path(tmp_path / "x")
    with pytest.raises(restoring.Stopped):
        file_targets.restore_file(
            store, disk, target, point="p", stop=lambda: notes.exists() and b" 2\n" in notes.read_bytes()
        )
    restored = file_targets.restore_file(store, other, target, point="q")
    assert restored.kept == 0
    assert target.read_bytes() == other_image
    target.unlink()
    with pytest.raises(restoring.Stopped):
        file_targets.restore_file(
            store, disk, target, point="p", stop=lambda: notes.exists() and b" 2\n" in notes.read_bytes()
        )
    with notes.open("ab") as file:
        file.write(b"00000000 3\n12345678 4")
    file_targets.restore_file(store, disk, target, point="p")
    assert target.read_bytes() == image


def test_what_is_damaged_ends_a_restore_and_what_is_lost_is_left_out_if_told_so(tmp_path: Path) -> None:
    store = Slow()
    disk, image = imaged(store, 300, 13, lost=[100, 101, 299])
    with pytest.raises(RepositoryError) as caught:
        file_targets.restore_file(store, disk, tmp_path / "x", point="p")
    assert caught.value.code == "block-lost"
    restored = file_targets.restore_file(store, disk, tmp_path / "x", point="p", skip_lost=True)
    assert restored.lost == ((100 * BLOCK, 2 * BLOCK), (299 * BLOCK, 777))
    assert (tmp_path / "x").read_bytes() == image
    assert {at for at, _, _ in differing(tmp_path / "x", store, disk)} == {
        100 * BLOCK,
        101 * BLOCK,
        299 * BLOCK,
    }
    disk, image = imaged(store, 300, 14)
    store.fail = 1
    with pytest.raises(RepositoryError, match="damaged"):
        file_targets.restore_file(store, disk, tmp_path / "y", point="p")
    file_targets.restore_file(store, disk, tmp_path / "y", point="p")
    assert (tmp_path / "y").read_bytes() == image


def test_data_that_cannot_be_read_is_left_out_if_told_so_also_when_the_restore_goes_on(tmp_path: Path) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 500, 16)
    block = next(b for b in range(20, 500) if any(image[b * BLOCK : (b + 1) * BLOCK]))
    gone = image[block * BLOCK : (block + 1) * BLOCK]
    places = [at for at in range(0, len(image), BLOCK) if image[at : at + BLOCK] == gone]
    store.chunks.pop(store.put(DATA, gone))
    target, notes = tmp_path / "x", file_targets.progress_path(tmp_path / "x")
    with pytest.raises(RepositoryError, match="no chunk has the name"):
        file_targets.restore_file(store, disk, target, point="p")

    def late() -> bool:
        return notes.exists() and b" 2\n" in notes.read_bytes()

    with pytest.raises(restoring.Stopped):
        file_targets.restore_file(store, disk, target, point="p", skip_lost=True, stop=late)
    restored = file_targets.restore_file(store, disk, target, point="p", skip_lost=True)
    assert restored.kept > 0
    assert {at for start, length in restored.lost for at in range(start, start + length, BLOCK)} == set(places)
    wanted = bytearray(image)
    for at in places:
        wanted[at : at + BLOCK] = bytes(BLOCK)
    assert target.read_bytes() == wanted


def test_two_do_not_restore_to_one_target(tmp_path: Path) -> None:
    store = Slow()
    disk, image = imaged(store, 100, 16)
    store.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(file_targets.restore_file, store, disk, tmp_path / "x", point="p")
        while not file_targets.progress_path(tmp_path / "x").exists():
            assert not first.done()
            os.sched_yield()
        with pytest.raises(RepositoryError, match="another process"):
            file_targets.restore_file(store, disk, tmp_path / "x", point="p")
        store.gate.set()
        first.result(60)
    assert (tmp_path / "x").read_bytes() == image


def test_a_progress_file_is_written_through_no_link(tmp_path: Path) -> None:
    store = ChunkStore()
    disk, _ = imaged(store, 10, 8)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "x.holdfast-restore.new").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic link"):
        file_targets.restore_file(store, disk, tmp_path / "x", point="p")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_target_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    disk = Disk("d", "d", BLOCK, BLOCK, tree.EMPTY)
    with pytest.raises(RepositoryError, match="neither"):
        file_targets.restore_file(ChunkStore(), disk, tmp_path / "fifo", point="p", overwrite=True)
    file_targets.restore_file(ChunkStore(), disk, tmp_path / "x", point="p")
    assert (tmp_path / "x").read_bytes() == bytes(BLOCK)


@given(st.binary(max_size=200), st.booleans())
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_whatever_stands_in_a_progress_file_the_restore_is_right(tmp_path: Path, junk: bytes, behind: bool) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 150, 17)
    target, notes = tmp_path / "x", file_targets.progress_path(tmp_path / "x")
    target.unlink(missing_ok=True)
    if behind:  # behind lines that are right
        with pytest.raises(restoring.Stopped):
            file_targets.restore_file(store, disk, target, point="p", stop=lambda: b" 0\n" in notes.read_bytes())
        with notes.open("ab") as file:
            file.write(junk)
    else:
        target.write_bytes(b"half of something")
        notes.write_bytes(junk)
    file_targets.restore_file(store, disk, target, point="p", overwrite=True)
    assert target.read_bytes() == image


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_target_that_fails_ends_a_restore_which_goes_on_when_it_is_well_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = ChunkStore()
    disk, image = imaged(store, 800, 18)
    calls = 0
    real = file_targets.FileTarget.write

    def write(self: file_targets.FileTarget, offset: int, data: Buffer) -> None:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise OSError(code, os.strerror(code))
        real(self, offset, data)

    monkeypatch.setattr(file_targets.FileTarget, "write", write)
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        file_targets.restore_file(store, disk, tmp_path / "x", point="p")
    monkeypatch.undo()
    monkeypatch.setattr(restoring, "WINDOW", 64)
    restored = file_targets.restore_file(store, disk, tmp_path / "x", point="p")
    assert restored.kept > 0
    assert (tmp_path / "x").read_bytes() == image
