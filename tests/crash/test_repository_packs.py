"""A writer of packs dies, runs out of room or loses its disk at every place where it could: what it was told is durable is there,
whole; what is there besides is garbage that can be told, and the next writer is not in its way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from agents.repository.errors import RepositoryError
from agents.repository.format import DATA, DATA_PACK
from agents.repository.pack_format import parse_pack_file
from agents.repository.packs import PackWriter, contents_of, find_pack, read_frame, read_frames
from agents.repository.stores import FULL, READ_ONLY, Store, StoreError
from agents.repository.stores.local import SCRATCH, LocalStore
from agents.repository.stores.memory import MemoryStore
from tests.stand_ins.faulty_store import Call, Fault, FaultyStore
from tests.stand_ins.pack_writer import CHUNKS, KEYS, content

pytestmark = pytest.mark.crash
NAMING = KEYS.naming()


def run(root: Path, epoch: int, rounds: int, failpoint: str = "", largest: int = 0) -> tuple[int, list[list[str]]]:
    """Exit status and lines of a writer."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.stand_ins.pack_writer", *map(str, (root, epoch, rounds, largest))],
        env={**os.environ, "HOLDFAST_FAILPOINT": failpoint},
        stdout=subprocess.PIPE,
        timeout=300,
    )
    return done.returncode, [line.split() for line in done.stdout.decode().splitlines()]


def check(store: Store, lines: list[list[str]]) -> None:
    """What was said to be durable is."""
    deleted = {line[1] for line in lines if line[0] in ("deleting", "deleted")}
    for line in lines:
        if line[0] == "file" and line[1] not in deleted:
            assert store.read(line[1]) == content(int(line[1].partition("-")[2].partition(".")[0]))
        if line[0] == "pack":
            found = contents_of(store, line[1])
            assert found.sealed
            assert [e.name.hex() for e in found.entries] == line[2:]
            assert not found.damaged
            chunks = dict(read_frames(store, line[1], ((e.name, e.place) for e in found.entries), KEYS))
            assert all(NAMING.name_of(DATA, data) == name for name, data in chunks.items())
            assert len(chunks) == len(set(line[2:]))


def check_rest(store: Store) -> int:
    """Whatever stands under a pack's name can be listed, and every chunk that is listed can be read. How many."""
    chunks = 0
    for listed in store.list("packs/"):
        assert parse_pack_file(listed.name)
        for entry in contents_of(store, listed.name).entries:
            read_frame(store, listed.name, entry.place, entry.name, KEYS)
            chunks += 1
    return chunks


FAILPOINTS = [
    "pack-begun:2",
    "pack-frame-written:9",
    "pack-footer-written:2",
    "pack-durable:2",
    "pack-sealed:2",
    "store-scratch-written:2",
    "store-scratch-durable:2",
    "store-file-linked:2",
    "store-file-durable:2",
    "store-file-unlinked",
]
LEAVE_SCRATCH = ("store-scratch-written:2", "store-scratch-durable:2", "store-file-linked:2")


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_what_was_durable_survives_a_kill(tmp_path: Path, failpoint: str) -> None:
    status, lines = run(tmp_path, 1, 50, failpoint)
    assert status == -9
    store = LocalStore(tmp_path)
    check(store, lines)
    check_rest(store)
    for listed in store.list("points/"):  # a file is there whole or not at all, said or not
        assert store.read(listed.name) == content(int(listed.name.partition("-")[2].partition(".")[0]))
    status, after = run(tmp_path, 2, 2)
    assert status == 0
    check(store, lines + after)
    assert store.sweep(older_than_s=-1) == (failpoint in LEAVE_SCRATCH)
    assert not [f for _, _, files in os.walk(tmp_path) for f in files if f.startswith(SCRATCH)]


def test_what_was_durable_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.stand_ins.pack_writer", str(tmp_path), "1", "100000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    lines = [child.stdout.readline().split() for _ in range(150)]
    child.kill()
    lines += [line.split() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    store = LocalStore(tmp_path)
    check(store, lines)
    said = sum(len(line) - 2 for line in lines if line[0] == "pack")
    assert check_rest(store) >= said


def test_a_file_that_may_not_grow_ends_the_writer_and_nothing_else(tmp_path: Path) -> None:
    status, lines = run(tmp_path, 1, 50, largest=11_000)  # the kernel refuses further bytes: EFBIG
    assert status == 0
    assert lines[-1] == ["error", FULL]
    check(LocalStore(tmp_path), lines)
    check_rest(LocalStore(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB of its own."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "holdfast-test", str(point)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_full_and_then_read_only_disk_loses_nothing(small_disk: Path) -> None:
    status, lines = run(small_disk, 1, 1000)
    assert status == 0
    assert lines[-1] == ["error", FULL]
    assert len([line for line in lines if line[0] == "pack"]) > 20
    store = LocalStore(small_disk)
    check(store, lines)
    assert (store.free_bytes() or 0) < 200_000
    with pytest.raises(StoreError) as full:
        store.create("points/large.point", [bytes(1 << 20)])
    assert full.value.code == FULL
    assert not list(store.list("points/large"))

    # Room is made: the next writer goes on.
    packs = [line[1] for line in lines if line[0] == "pack"]
    for pack in packs[:10]:
        store.delete(pack)
    rest = [line for line in lines if line[1] not in packs[:10]]
    status, after = run(small_disk, 2, 2)
    assert (status, after[-1][0]) == (0, "deleted")
    check(store, rest + after)

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    check(store, rest + after)
    for call in (
        lambda: store.create("points/new.point", [b"x"]),
        lambda: store.append("packs/ab/new.pack"),
        lambda: store.delete(after[-1][1].replace("-0.", "-1.")),
        lambda: store.check(),
    ):
        with pytest.raises(StoreError) as refused:
            call()
        assert refused.value.code == READ_ONLY


# -- a store that misbehaves; power that fails


def write(store: Store, rounds: int) -> tuple[dict[bytes, tuple[str, bytes]], StoreError | None]:
    """Chunks by name as far as flushes went: file and content; the error that ended it."""
    durable: dict[bytes, tuple[str, bytes]] = {}
    writer = PackWriter(store, KEYS, "node", 1, DATA_PACK, NAMING.scope, 12_000)
    try:
        for number in range(rounds):
            pending = {}
            for i in range(CHUNKS):
                data = content(number * CHUNKS + i)
                pending[NAMING.name_of(DATA, data)] = data
                writer.add(DATA, NAMING.name_of(DATA, data), 0, len(data), data)
            for pack in writer.flush():
                durable |= {e.name: (pack.name, pending[e.name]) for e in pack.entries}
    except StoreError as error:
        with pytest.raises(StoreError):  # sticky: nothing is added behind a hole
            writer.flush()
        return durable, error
    finally:
        writer.close()
    return durable, None


FAULTS = [Fault("write", "torn", nth) for nth in (1, 2, 7, 12)] + [
    Fault(call, what, nth)
    for call in get_args(Call)[1:5]
    for what in ("full", "io", "lost-answer")
    for nth in (1, 2, 7)
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.call}-{f.what}-{f.nth}")
def test_an_error_costs_what_was_not_flushed(fault: Fault) -> None:
    store = FaultyStore(MemoryStore(), fault)
    durable, error = write(store, 6)
    assert error is not None
    for name, (file, data) in durable.items():
        place = next(e.place for e in contents_of(store, file).entries if e.name == name)
        assert read_frame(store, file, place, name, KEYS) == data
    check_rest(store)


@pytest.mark.parametrize("nth", [1, 2, 5, 11, 23])
def test_a_power_cut_costs_what_was_not_flushed(nth: int) -> None:
    store = FaultyStore(MemoryStore(), Fault("write", "io", nth, times=0))
    durable, _ = write(store, 6)
    left = store.power_loss()
    for name, (file, data) in durable.items():
        found = contents_of(left, file)
        assert found.sealed
        place = next(e.place for e in found.entries if e.name == name)
        assert read_frame(left, file, place, name, KEYS) == data
    check_rest(left)


def test_reading_tells_what_may_pass_from_what_may_not() -> None:
    store = FaultyStore(MemoryStore())
    durable, _ = write(store, 2)
    name, (file, data) = next(iter(durable.items()))
    place = next(e.place for e in contents_of(store, file).entries if e.name == name)
    seen = []
    for what in ("io", "short", "flip", "vanish"):
        store.faults, store._seen = [Fault("read", what)], {}
        try:
            read_frame(store, file, place, name, KEYS)
        except (RepositoryError, StoreError) as error:
            seen.append(error.code)
        if what != "vanish":
            assert read_frame(store, file, place, name, KEYS) == data
    assert seen == ["store-io", "chunk-damaged", "chunk-damaged", "chunk-missing"]
    with pytest.raises(RepositoryError):
        find_pack(store, place.pack)
