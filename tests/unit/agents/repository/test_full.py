"""A place that is really full: what was dropped is collected all the same, and backups go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.repository import collecting, expiring, points, reserve
from agents.repository import repository as repositories
from agents.repository.extents import CHUNK
from agents.repository.ingest import Ingest
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.node import Held
from agents.repository.reader import DiskReader
from agents.repository.retention import Verdict
from agents.repository.sessions import Sessions
from agents.repository.stores import FULL, StoreError
from agents.repository.stores.local import LocalStore
from agents.repository.stores.recorded import RecordedStore
from streams.ids import now_us

ROOM = 64 << 20
BLOCK = 65536


class Image:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root mounts a small file system")
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small file system can be mounted: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    """To the last byte, with what is somebody else's."""
    with (place / "somebody-elses").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def backup(held: Held, data: bytes) -> str:
    session = held.sessions.open("backup", by="tests", asset="vm")
    try:
        with Ingest(held.repository, session, slug="main", asset="vm") as ingest:
            disk = ingest.disk("sda", size=len(data))
            disk.feed(Image(data), [(0, disk.blocks, CHUNK)])
            draft = points.Point(
                "", "vm", "VM", "disks", now_us(), "", 0, "", points.JournalPlace(0, ""), disks=(disk.finish(),)
            )
            point = ingest.seal(draft).point.point
    except BaseException:
        session.close("failed")
        raise
    session.close(points=[point])
    return point


def test_what_was_dropped_is_collected_in_a_place_that_is_full(small: Path, tmp_path: Path) -> None:
    store = RecordedStore(LocalStore(small), tmp_path / "own")
    repositories.create(store, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
    reserve.keep(store)
    repository = repositories.open(store, None, tmp_path / "cache", "node_a")
    held = Held("main", store, repository, Sessions(MemoryJournal(MemoryLog(), "main"), store, "node_a"))
    data = [os.urandom(10 << 20) for _ in range(3)]
    dropped, kept, other = (backup(held, one) for one in data)
    with pytest.raises(StoreError) as full:
        backup(held, os.urandom(60 << 20))
    assert full.value.code == FULL
    fill(small)
    assert store.free_bytes() == 0

    expiring.drop(held, [Verdict(dropped, False, ("too old",)), Verdict(other, False, ("too old",))], "tests", {})
    session = held.sessions.open("collect", by="tests")
    done = collecting.carry_out(held, session)
    session.close()

    assert done["freed"] >= 20 << 20
    assert any(small.glob(reserve.NAME)), "there is room again for the next time"
    assert list(held.sessions.ledger().standing()) == [kept]
    with DiskReader(repository, repository.point(kept).disks[0]) as reader:
        assert reader.read(0, len(data[1])) == data[1]
    backup(held, data[0])
    held.close()


def test_without_room_that_was_kept_a_full_place_could_not_be_collected(small: Path, tmp_path: Path) -> None:
    """That the file is what it takes."""
    store = RecordedStore(LocalStore(small), tmp_path / "own")
    repositories.create(store, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
    repository = repositories.open(store, None, tmp_path / "cache", "node_a")
    held = Held("main", store, repository, Sessions(MemoryJournal(MemoryLog(), "main"), store, "node_a"))
    dropped = backup(held, os.urandom(10 << 20))
    expiring.drop(held, [Verdict(dropped, False, ("too old",))], "tests", {})
    fill(small)
    session = held.sessions.open("collect", by="tests")
    with pytest.raises(StoreError) as full:
        collecting.carry_out(held, session)
    assert full.value.code == FULL
    session.close("failed")
    held.close()
