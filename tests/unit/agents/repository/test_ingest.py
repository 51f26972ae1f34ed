"""From blocks to a sealed point and back: what was fed is what is read, nothing is stored twice, memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from agents.errors import AgentError
from agents.repository import delta, keys, points, runs, tree
from agents.repository import repository as repositories
from agents.repository.disk_ingest import FileSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, FREE, ZERO, omitted
from agents.repository.format import DATA, DIRECTORY
from agents.repository.index import SEALED
from agents.repository.ingest import Ingest, Sealed
from agents.repository.reader import DiskReader
from agents.repository.repository import Repository
from agents.repository.stores import Store, StoreError
from agents.repository.stores.memory import MemoryStore
from streams.events import ReferencesRecorded
from tests.stand_ins.faulty_store import Call, Fault, FaultyStore, What
from tests.stand_ins.repository_session import LoneSession

BLOCK = 4096
PASSPHRASE = "correct horse"
CHEAP = {"n": 2, "r": 8, "p": 1}  # scrypt's own cost is not what is tested here


def wrap(store: Store, identity: UUID, key: bytes) -> None:
    keys.add_wrap(store, identity.bytes, key, "passphrase", PASSPHRASE.encode(), scrypt=CHEAP)


def unlock(store: Store) -> bytes:
    return keys.unlock(store, passphrase=PASSPHRASE)


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    repositories.create(made, wrap=wrap, block_size=BLOCK, pack_bytes=1 << 20)
    return made


@pytest.fixture
def repository(store: MemoryStore, tmp_path: Path) -> Iterator[Repository]:
    opened = repositories.open(store, unlock, tmp_path / "cache", "node_a")
    yield opened
    opened.close()


def draft(*disks: points.Disk, continues: str = "") -> points.Point:
    return points.Point("", "vm-1", "VM 1", "disks", 1, "", 0, "", points.JournalPlace(0, ""), continues, disks=disks)


def disk_image(blocks: int, seed: int) -> bytes:
    """Blocks of which some are zero, some compress, some repeat and some are none of these; the last one is short."""
    rng = random.Random(seed)
    kinds: list[Callable[[], bytes]] = [
        lambda: bytes(BLOCK),
        lambda: rng.randbytes(16) * (BLOCK // 16),
        lambda: b"the same".ljust(BLOCK, b"."),
        lambda: rng.randbytes(BLOCK),
    ]
    return b"".join(rng.choice(kinds)() for _ in range(blocks)) + rng.randbytes(777)


class Image:
    """A disk in memory; `reads` are the ranges that were read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.data[offset : offset + len(buffer)]


def backup(repository: Repository, data: bytes, session: LoneSession | None = None) -> tuple[Sealed, Ingest]:
    with Ingest(repository, session or LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(data))
        disk.feed(Image(data), [(0, disk.blocks, CHUNK)])
        return ingest.seal(draft(disk.finish())), ingest


def read_back(repository: Repository, point: str, disk: int = 0) -> bytes:
    found = repository.point(point).disks[disk]
    with DiskReader(repository, found) as reader:
        return reader.read(0, found.size)


def test_a_disk_comes_back_as_it_was(repository: Repository) -> None:
    data = disk_image(700, 1)
    session = LoneSession()
    sealed, ingest = backup(repository, data, session)
    assert read_back(repository, sealed.point.point) == data
    assert repository.point(sealed.point.point) == sealed.point
    (event,) = session.sealed
    assert event.record == sealed.record
    assert event.disks[0].root == sealed.point.disks[0].root
    figures = ingest.figures
    assert figures.read_bytes == len(data)
    assert figures.zero_bytes == sum(data[i : i + BLOCK] == bytes(BLOCK) for i in range(0, len(data), BLOCK)) * BLOCK
    assert sealed.point.disks[0].counts["data"] + sealed.point.disks[0].counts["zero"] == 701


def test_an_empty_folder_in_the_place_of_the_repository_takes_no_backup(
    repository: Repository, store: MemoryStore
) -> None:
    with Ingest(repository, LoneSession()) as ingest:
        for listed in list(store.list()):
            store.delete(listed.name)  # as an unmounted file system looks
        with pytest.raises(RepositoryError, match="not in its place"):
            ingest.seal(draft())
    with pytest.raises(RepositoryError, match="not in its place"):
        Ingest(repository, LoneSession())
    assert not list(store.list("points"))


def test_what_the_index_has_wrong_or_not_at_all_is_found_in_the_packs(repository: Repository) -> None:
    data = disk_image(300, 4)
    sealed, _ = backup(repository, data)
    index = repository.index
    with index._writing() as txn, txn.cursor(index._chunks) as cursor:
        for number, (name, place) in enumerate(list(cursor)):
            txn.delete(name, place, db=index._chunks)
            if number % 3:
                moved = bytearray(place)
                moved[4] ^= 8  # in its offset
                txn.put(name, bytes(moved), db=index._chunks)
    assert read_back(repository, sealed.point.point) == data


def test_equal_blocks_are_stored_once_whatever_thread_meets_them(repository: Repository) -> None:
    data = (b"x" * BLOCK + b"y" * BLOCK) * 3000
    sealed, ingest = backup(repository, data)
    stored = [name for name, place in repository.index.items() if place.kind == DATA]
    assert len(stored) == len(set(stored)) == 2
    assert ingest.figures.new_bytes < 100 * BLOCK
    assert read_back(repository, sealed.point.point) == data


def test_a_second_backup_of_the_same_stores_no_data(repository: Repository, store: MemoryStore) -> None:
    data = disk_image(500, 2)
    first, _ = backup(repository, data)
    packs = {one.name for one in store.list("packs/")}
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(data), continues=first.point.disks[0])
        disk.feed(Image(data), [(0, disk.blocks, CHUNK)], compare=True)
        second = ingest.seal(draft(disk.finish(), continues=first.point.point))
    assert {one.name for one in store.list("packs/")} == packs
    assert second.point.disks[0].root == first.point.disks[0].root
    assert second.point.disks[0].delta == ()
    assert second.point.disks[0].counts == {"changed": 0}


def test_dirty_extents_make_a_point_that_is_whole_and_a_run_that_is_the_difference(repository: Repository) -> None:
    before = disk_image(1000, 3)
    first, _ = backup(repository, before)
    after = bytearray(before)
    rng = random.Random(4)
    dirty = sorted(rng.sample(range(1000), 60))
    for number, block in enumerate(dirty):
        after[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK) if number % 3 == 0 else rng.randbytes(BLOCK)
    image = Image(bytes(after))
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(after), continues=first.point.disks[0])
        disk.feed(image, [(block, 1, CHUNK) for block in dirty])
        second = ingest.seal(draft(disk.finish(), continues=first.point.point))
    assert sum(size for _, size in image.reads) == 60 * BLOCK
    assert read_back(repository, second.point.point) == after
    assert read_back(repository, first.point.point) == before
    said = [block for run in delta.read(repository, second.point.disks[0].delta) for block, _, _ in run.entries()]
    assert said == dirty
    changed = [
        block
        for run in tree.diff(repository, first.point.disks[0].root, second.point.disks[0].root)
        for block, _, _ in run.entries()
    ]
    assert set(changed) <= set(dirty)


@pytest.mark.parametrize("together", [1, 7, 512])
def test_of_what_may_have_changed_that_is_said_which_did(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """Far apart and side by side, data, zeros and blocks left out, in leaves that are there and in holes."""
    monkeypatch.setattr("agents.repository.previous.TOGETHER", together)
    monkeypatch.setattr("agents.repository.disk_ingest.TOGETHER", together)
    rng = random.Random(together)
    blocks = 64 * 70
    before = bytearray(blocks * BLOCK)
    for at in rng.sample(range(blocks), 200) + list(range(640, 800)):  # some leaves are full
        before[at * BLOCK : (at + 1) * BLOCK] = rng.randbytes(BLOCK)
    first, _ = backup(repository, bytes(before))
    after, extents, changed = bytearray(before), [], set()
    at = 0
    while at < blocks:
        count = min(rng.choice([1, 1, 3, 64, 200]), blocks - at)
        if rng.random() < 0.3:
            zero = rng.random() < 0.5
            for block in range(at, at + count):
                here = slice(block * BLOCK, (block + 1) * BLOCK)
                if zero:
                    after[here] = bytes(BLOCK)
                elif rng.random() < 0.3:
                    after[here] = rng.randbytes(BLOCK)
                if after[here] != before[here]:
                    changed.add(block)
            extents.append((at, count, ZERO if zero else CHUNK))
        at += count + rng.choice([0, 1, 70])
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(after), continues=first.point.disks[0])
        disk.feed(Image(bytes(after)), extents, compare=True)
        second = ingest.seal(draft(disk.finish(), continues=first.point.point))
    assert read_back(repository, second.point.point) == after
    said = {block for run in delta.read(repository, second.point.disks[0].delta) for block, _, _ in run.entries()}
    assert changed <= said
    # Nothing beside it but zeros in the same leaf as one that is new.
    assert {block // 64 for block in said} == {block // 64 for block in changed}
    assert {block for block in said - changed if any(after[block * BLOCK : (block + 1) * BLOCK])} == set()


def test_the_tree_does_not_depend_on_how_it_came_about(repository: Repository) -> None:
    before, after = disk_image(300, 5), disk_image(300, 6)
    first, _ = backup(repository, before)
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(after), continues=first.point.disks[0])
        disk.feed(Image(after), [(0, disk.blocks, CHUNK)], compare=True)
        second = ingest.seal(draft(disk.finish()))
    fresh, _ = backup(repository, after)
    assert second.point.disks[0].root == fresh.point.disks[0].root


def test_blocks_left_out_read_as_zeros_and_are_listed(repository: Repository) -> None:
    data = b"\1" * BLOCK * 10
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(data))
        disk.feed(Image(data), [(0, 3, CHUNK), (3, 4, omitted(FREE)), (7, 1, ZERO)])
        disk.write(8, data[: 2 * BLOCK])
        sealed = ingest.seal(draft(disk.finish()))
    assert sealed.point.disks[0].counts == {"data": 5, "zero": 1, "omitted": 4, "lost": 0, "changed": 10}
    assert read_back(repository, sealed.point.point) == data[: 3 * BLOCK] + bytes(5 * BLOCK) + data[: 2 * BLOCK]


@pytest.mark.parametrize("blocks", [3, 40])
def test_a_disk_that_changed_its_size(repository: Repository, blocks: int) -> None:
    before = b"\1" * BLOCK * 20
    first, _ = backup(repository, before)
    after = b"\1" * BLOCK * min(blocks, 20) + b"\2" * BLOCK * max(0, blocks - 20)
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(after), continues=first.point.disks[0])
        if blocks > 20:
            disk.feed(Image(after), [(20, blocks - 20, CHUNK)])
        second = ingest.seal(draft(disk.finish()))
    assert read_back(repository, second.point.point) == after
    fresh, _ = backup(repository, after)
    assert fresh.point.disks[0].root == second.point.disks[0].root


@pytest.mark.parametrize(
    "dirty", [[], [(3, 1, CHUNK)], [(0, 1, CHUNK), (12, 1, CHUNK)]], ids=["none", "before", "around"]
)
@pytest.mark.parametrize("size", [9 * BLOCK + 100, 9 * BLOCK + 3000, 10 * BLOCK, 14 * BLOCK + 7, 4 * BLOCK + 5])
def test_the_block_in_which_a_disk_ended_fits_though_nothing_says_that_it_changed(
    repository: Repository, size: int, dirty: list[tuple[int, int, int]]
) -> None:
    before = random.Random(5).randbytes(9 * BLOCK + 777)
    first, _ = backup(repository, before)
    after = before[:size].ljust(size, b"\0")
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=size, continues=first.point.disks[0])
        disk.feed(Image(after), [extent for extent in dirty if extent[0] < disk.blocks])
        second = ingest.seal(draft(disk.finish()))
    assert read_back(repository, second.point.point) == after
    fresh, _ = backup(repository, after)
    assert fresh.point.disks[0].root == second.point.disks[0].root


def test_blocks_out_of_order_or_outside_are_refused(repository: Repository) -> None:
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=10 * BLOCK)
        disk.write(4, bytes(BLOCK))
        for block, data in ((4, bytes(BLOCK)), (3, bytes(BLOCK)), (9, bytes(2 * BLOCK)), (7, bytes(5))):
            with pytest.raises(ValueError, match="block"):
                disk.write(block, data)


def test_a_file_is_read_and_one_that_ends_too_early_is_refused(repository: Repository, tmp_path: Path) -> None:
    data = disk_image(300, 9)
    (tmp_path / "image").write_bytes(data)
    with (tmp_path / "image").open("rb") as file:
        with Ingest(repository, LoneSession()) as ingest:
            disk = ingest.disk("sda", size=len(data))
            disk.feed(FileSource(file.fileno()), [(0, disk.blocks, CHUNK)])
            sealed = ingest.seal(draft(disk.finish()))
        assert read_back(repository, sealed.point.point) == data
        with Ingest(repository, LoneSession()) as ingest:
            disk = ingest.disk("sda", size=len(data) + BLOCK)
            with pytest.raises(RepositoryError, match="source-short"):
                disk.feed(FileSource(file.fileno()), [(0, disk.blocks, CHUNK)])


def test_several_disks_at_once(repository: Repository) -> None:
    images = [disk_image(200 + i, 10 + i) for i in range(4)]
    with Ingest(repository, LoneSession()) as ingest:
        disks = [ingest.disk(f"disk{i}", size=len(image)) for i, image in enumerate(images)]
        threads = [
            threading.Thread(target=disk.feed, args=(Image(image), [(0, disk.blocks, CHUNK)]))
            for disk, image in zip(disks, images, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sealed = ingest.seal(draft(*(disk.finish() for disk in disks)))
    assert [read_back(repository, sealed.point.point, i) for i in range(4)] == images


def test_everything_but_data_is_stored_twice_in_different_packs(repository: Repository, store: MemoryStore) -> None:
    data = disk_image(500, 7)
    sealed, _ = backup(repository, data)
    for kind, names in tree.walk(repository, sealed.point.disks[0].root):
        for at in range(0, len(names), 32):
            places = repository.index.places(names[at : at + 32])
            assert places[0].kind == kind
            assert len({place.pack for place in places}) == (1 if kind == DATA else 2)
    root = repository.index.places(sealed.point.disks[0].root)
    name = repository.index.pack_name(root[0].pack)
    assert name is not None
    store.delete(name)
    assert read_back(repository, sealed.point.point) == data


def test_references_are_said_in_batches_that_add_up_to_the_run(repository: Repository) -> None:
    said: list[ReferencesRecorded] = []
    data = disk_image(25_000, 8)
    with Ingest(repository, LoneSession(), slug="main", asset="vm-1", say=said.append) as ingest:
        disk = ingest.disk("sda", size=len(data))
        disk.feed(Image(data), [(0, disk.blocks, CHUNK)])
        sealed = ingest.seal(draft(disk.finish()))
    assert [event.number for event in said] == list(range(len(said)))
    assert len(said) > 1
    assert all(len(event.references) < 900_000 and event.point == sealed.point.point for event in said)
    from_events = [entry for event in said for entry in delta.decode(event.references).entries()]
    assert from_events == [e for run in delta.read(repository, sealed.point.disks[0].delta) for e in run.entries()]


def test_single_chunks_are_stored_and_found_by_kind(repository: Repository) -> None:
    pieces = [os.urandom(100_000) for _ in range(50)]
    with Ingest(repository, LoneSession()) as ingest:
        names = [ingest.put(DATA, piece) for piece in pieces]
        folder = ingest.put(DIRECTORY, b"a folder")
        ingest.seal(draft())
    assert dict(repository.get_many(names, DATA)) == dict(zip(names, pieces, strict=True))
    assert repository.get(folder, DIRECTORY) == b"a folder"
    assert sorted(repository.read_order(names, DATA)) == sorted(names)
    with pytest.raises(RepositoryError, match="kind"):
        repository.get(folder, DATA)
    with pytest.raises(RepositoryError, match="chunk-missing"):
        repository.get(bytes(32), DATA)


def test_scopes_share_nothing_and_read_alike(repository: Repository) -> None:
    data = os.urandom(BLOCK)
    names = []
    for scope in ("tenant-a", "tenant-b"):
        with Ingest(repository, LoneSession(), scope=scope) as ingest:
            names.append(ingest.put(DATA, data))
            ingest.seal(draft())
    assert len(set(names)) == 2
    assert all(repository.get(name, DATA) == data for name in names)


def test_what_a_collection_is_about_to_delete_is_stored_again(repository: Repository) -> None:
    with Ingest(repository, LoneSession()) as ingest:
        name = ingest.put(DATA, b"doomed" * 100)
        ingest.seal(draft())
    (doomed,) = repository.index.places(name)
    with Ingest(repository, LoneSession(), absent={doomed.pack}) as ingest:
        assert ingest.put(DATA, b"doomed" * 100) == name
        assert ingest.put(DATA, b"doomed" * 100) == name
        ingest.seal(draft())
    places = repository.index.places(name)
    assert len(places) == 2
    repository.forget([doomed.pack])
    assert repository.get(name, DATA) == b"doomed" * 100


def test_a_session_that_is_over_seals_nothing(repository: Repository) -> None:
    session = LoneSession()
    with Ingest(repository, session) as ingest:
        disk = ingest.disk("sda", size=10 * BLOCK)
        disk.write(0, os.urandom(10 * BLOCK))
        done = disk.finish()
        session.over = AgentError("session-lost", "fenced")
        with pytest.raises(AgentError, match="fenced"):
            ingest.seal(draft(done))
    assert list(repository.point_ids()) == []


def test_an_error_of_the_source_ends_it_and_nothing_is_sealed(repository: Repository) -> None:
    class Bad(Image):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            if offset > 3 << 20:
                raise OSError(5, "Input/output error")
            super().read_into(offset, buffer)

    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=10 << 20)
        with pytest.raises(OSError, match="Input/output error"):
            disk.feed(Bad(os.urandom(10 << 20)), [(0, disk.blocks, CHUNK)])
        with pytest.raises(OSError, match="Input/output error"):
            ingest.seal(draft())
    assert list(repository.point_ids()) == []


def test_a_repository_is_adopted_from_its_files_alone(
    repository: Repository, store: MemoryStore, tmp_path: Path
) -> None:
    data = disk_image(600, 20)
    sealed, _ = backup(repository, data)
    again = repositories.open(store, unlock, tmp_path / "elsewhere", "node_b")
    assert read_back(again, sealed.point.point) == data
    assert sorted(again.index.items(), key=repr) == sorted(repository.index.items(), key=repr)
    again.close()
    for listed in list(store.list("index/")):
        store.delete(listed.name)
    bare = repositories.open(store, unlock, tmp_path / "third", "node_c")
    assert read_back(bare, sealed.point.point) == data
    assert bare.problems == []
    bare.close()


def test_a_damaged_run_and_a_torn_pack_are_worked_around(
    repository: Repository, store: MemoryStore, tmp_path: Path
) -> None:
    data = disk_image(600, 21)
    sealed, _ = backup(repository, data)
    for listed in list(store.list("index/")):
        whole = store.read(listed.name)
        store.delete(listed.name)
        store.create(listed.name, [whole[:-5]])
    for listed in list(store.list("packs/")):
        whole = store.read(listed.name)
        store.delete(listed.name)
        store.create(listed.name, [whole[:-40]])
    again = repositories.open(store, unlock, tmp_path / "elsewhere", "node_b")
    assert [problem.code for problem in again.problems] == ["run-damaged"]
    assert read_back(again, sealed.point.point) == data
    # What stands in packs without a footer may be read and is not built on.
    with Ingest(again, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(data))
        disk.feed(Image(data), [(0, disk.blocks, CHUNK)])
        second = ingest.seal(draft(disk.finish()))
        assert ingest.figures.new_bytes > 0
    for listed in list(store.list("packs/")):
        if "node_a" in listed.name:
            store.delete(listed.name)
    again.refresh()
    assert read_back(again, second.point.point) == data
    again.close()


def test_two_nodes_write_at_once_and_read_each_other(
    repository: Repository, store: MemoryStore, tmp_path: Path
) -> None:
    other = repositories.open(store, unlock, tmp_path / "other", "node_b")
    data = [disk_image(800, 30), disk_image(800, 30) + bytes(BLOCK) + disk_image(100, 31)]
    sealed: dict[int, Sealed] = {}

    def run(number: int, own: Repository) -> None:
        sealed[number], _ = backup(own, data[number])

    threads = [threading.Thread(target=run, args=args) for args in ((0, repository), (1, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in (repository, other):
        assert {own.point(p).point for p in own.point_ids()} == {s.point.point for s in sealed.values()}
        for number, one in sealed.items():
            assert read_back(own, one.point.point) == data[number]
    other.close()


def test_runs_stay_few_by_themselves(repository: Repository, store: MemoryStore) -> None:
    images = {backup(repository, image)[0].point.point: image for image in (os.urandom(BLOCK) for _ in range(40))}
    assert len(list(store.list(runs.PREFIX))) < 20
    assert _points(repository) == images


def test_a_large_backup_writes_runs_as_it_goes(
    repository: Repository, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, a_pack = 300, (1 << 20) // BLOCK + 10
    monkeypatch.setattr("agents.repository.ingest._RUN_ENTRIES", limit)
    data = random.Random(5).randbytes(1500 * BLOCK)
    sealed, _ = backup(repository, data)
    made = [runs.read(store, repository.identity, listed.name) for listed in store.list(runs.PREFIX)]
    assert len(made) > 2
    assert max(run.size for run in made) < limit + 3 * a_pack
    covered = [pack.name for run in made for pack in run.packs]
    assert sorted(covered) == sorted(listed.name for listed in store.list("packs/"))
    again = repositories.open(store, unlock, tmp_path / "elsewhere", "node_b")
    assert read_back(again, sealed.point.point) == data
    again.close()


def test_a_pack_that_comes_in_while_packs_are_listed_is_not_forgotten(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=10 * BLOCK)
        disk.write(0, os.urandom(10 * BLOCK))
        listed = repository._listed_packs

        def overtaken() -> dict[bytes, tuple[str, int]]:
            found = listed()
            ingest.seal(draft(disk.finish()))
            return found

        monkeypatch.setattr(repository, "_listed_packs", overtaken)
        repository.refresh()
    monkeypatch.undo()
    assert repository.index.packs().keys() == repository._listed_packs().keys() != set()


def test_a_pack_that_was_sealed_after_it_was_listed_is_not_damaged(
    repository: Repository, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(repository, os.urandom(50 * BLOCK))
    for listed in list(store.list(runs.PREFIX)):
        store.delete(listed.name)
    listing = Repository._listed_packs

    def early(self: Repository) -> dict[bytes, tuple[str, int]]:
        return {pack: (name, size // 2) for pack, (name, size) in listing(self).items()}

    monkeypatch.setattr(Repository, "_listed_packs", early)
    other = repositories.open(store, unlock, tmp_path / "elsewhere", "node_b")
    assert not other.problems
    assert {pack.state for pack in other.index.packs().values()} == {SEALED}
    other.close()


def test_runs_are_merged_when_they_are_many(repository: Repository, store: MemoryStore, tmp_path: Path) -> None:
    images = [os.urandom(5 * BLOCK) for _ in range(5)]
    ids = [backup(repository, image)[0].point.point for image in images]
    assert repository.merge_runs(at=6) == 0
    assert repository.merge_runs(at=5) == 5
    assert len(list(store.list(runs.PREFIX))) == 1
    again = repositories.open(store, unlock, tmp_path / "elsewhere", "node_b")
    assert [read_back(again, point) for point in ids] == images
    assert again.problems == []
    again.close()


@pytest.mark.parametrize("lost", ["repository.json", "repository2.json"])
def test_what_the_repository_says_of_itself_is_mended(store: MemoryStore, tmp_path: Path, lost: str) -> None:
    before = repositories.define(store)
    backing = repositories.open(store, unlock, tmp_path / "cache", "node_a")
    backup(backing, b"x" * BLOCK)
    backing.close()
    whole = store.read(lost)
    store.delete(lost)
    assert repositories.define(store) == before
    assert store.read(lost) == whole
    store.delete(lost)
    store.create(lost, [whole[:-9] + b"123456789"])
    assert repositories.define(store) == before
    assert store.read(lost) == whole


def test_a_store_in_use_becomes_no_second_repository(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="repository-exists"):
        repositories.create(store, wrap=wrap)
    opened = repositories.open(store, unlock, tmp_path / "cache", "node_a")
    backup(opened, b"x" * BLOCK)
    opened.close()
    store.delete("repository.json")
    store.delete("repository2.json")
    with pytest.raises(RepositoryError, match="repository-damaged"):
        repositories.create(store, wrap=wrap)
    with pytest.raises(RepositoryError, match="repository-missing"):
        repositories.define(store)


def test_a_creation_that_died_is_begun_again(tmp_path: Path) -> None:
    store = MemoryStore()
    made = repositories.create(store, wrap=wrap)
    store.delete("repository.json")  # as if it had died before its last step
    with pytest.raises(RepositoryError, match="repository-missing"):
        repositories.define(store)
    again = repositories.create(store, wrap=wrap)
    assert again.identity != made.identity
    repositories.open(store, unlock, tmp_path / "cache", "node_a").close()


def test_the_wrong_key_and_no_key_open_nothing(store: MemoryStore, tmp_path: Path) -> None:
    for attempt in (None, lambda _: bytes(32), lambda s: keys.unlock(s, passphrase="wrong")):
        with pytest.raises(RepositoryError, match="repository-locked"):
            repositories.open(store, attempt, tmp_path / "cache", "node_a")


def test_a_repository_without_encryption_needs_no_key(tmp_path: Path) -> None:
    store = MemoryStore()
    repositories.create(store, wrap=None, block_size=BLOCK)
    opened = repositories.open(store, None, tmp_path / "cache", "node_a")
    data = disk_image(100, 40)
    sealed, _ = backup(opened, data)
    assert read_back(opened, sealed.point.point) == data
    opened.close()


@pytest.mark.parametrize("wrong", [{"block_size": 5000}, {"block_size": 1 << 30}, {"pack_bytes": 5}, {"level": 99}])
def test_a_repository_that_could_not_work_is_not_made(wrong: dict[str, int]) -> None:
    store = MemoryStore()
    with pytest.raises(RepositoryError, match="repository-unfit"):
        repositories.create(store, wrap=wrap, **wrong)
    assert list(store.list()) == []


# -- a store that misbehaves


def _points(repository: Repository) -> dict[str, bytes]:
    return {point: read_back(repository, point) for point in repository.point_ids()}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("create", "full"),
        ("create", "torn"),
        ("create", "lost-answer"),
        ("append", "io"),
        ("append", "read-only"),
        ("write", "full"),
        ("write", "torn"),
        ("sync", "io"),
        ("sync", "lost-answer"),
        ("close", "io"),
    ],
)
def test_whatever_the_store_refuses_a_point_is_there_whole_or_not_at_all(
    store: MemoryStore, tmp_path: Path, call: Call, what: What
) -> None:
    """From some call of a kind on all fail, a later one each time, until a backup comes by without meeting it."""
    before, after = disk_image(60, 50), disk_image(60, 51)
    healthy = repositories.open(store, unlock, tmp_path / "healthy", "node_a")
    first, _ = backup(healthy, before)
    allowed = {first.point.point: before}
    healthy.close()
    nth = 1
    while True:
        faulty = FaultyStore(store, Fault(call, what, nth=nth, times=0))
        opened = repositories.open(faulty, unlock, tmp_path / f"faulty-{nth}", "node_a")
        made = ""
        with contextlib.suppress(StoreError), Ingest(opened, LoneSession()) as ingest:
            allowed[ingest.point] = after
            disk = ingest.disk("sda", size=len(after), continues=first.point.disks[0])
            disk.feed(Image(after), [(0, disk.blocks, CHUNK)], compare=True)
            made = ingest.seal(draft(disk.finish(), continues=first.point.point)).point.point
        opened.close()
        for number, left in enumerate((store, faulty.power_loss())):
            found = repositories.open(left, unlock, tmp_path / f"found-{nth}-{number}", "node_b")
            there = _points(found)
            assert first.point.point in there
            assert there.items() <= allowed.items()
            assert not made or made in there
            found.close()
        if made:
            return
        nth += max(1, nth // 2)
        assert nth < 1000


def test_a_store_that_cannot_be_read_is_not_taken_for_one_without_chunks(store: MemoryStore, tmp_path: Path) -> None:
    healthy = repositories.open(store, unlock, tmp_path / "healthy", "node_a")
    data = disk_image(100, 60)
    sealed, _ = backup(healthy, data)
    healthy.close()
    faulty = FaultyStore(store)
    opened = repositories.open(faulty, unlock, tmp_path / "faulty", "node_a")
    faulty.faults.append(Fault("read", "io", times=0, name="packs/"))
    with pytest.raises(StoreError, match="store-io"):
        read_back(opened, sealed.point.point)
    faulty.faults.clear()
    faulty.faults.append(Fault("read", "flip", times=1, name="packs/"))
    faulty.faults.append(Fault("read", "short", times=1, name="packs/"))
    with contextlib.suppress(RepositoryError):  # of data there is one copy; whatever came is no other data
        assert read_back(opened, sealed.point.point) == data
    assert read_back(opened, sealed.point.point) == data
    opened.close()


def test_a_node_that_is_damaged_is_read_from_its_second_copy_and_noted(store: MemoryStore, tmp_path: Path) -> None:
    healthy = repositories.open(store, unlock, tmp_path / "healthy", "node_a")
    data = disk_image(300, 61)
    sealed, _ = backup(healthy, data)
    (place, _) = healthy.index.places(sealed.point.disks[0].root)
    name = healthy.index.pack_name(place.pack)
    assert name is not None
    whole = bytearray(store.read(name))
    whole[place.offset + 100] ^= 1
    store.delete(name)
    store.create(name, [bytes(whole)])
    assert read_back(healthy, sealed.point.point) == data
    assert {problem.code for problem in healthy.problems} <= {"chunk-damaged"}
    healthy.close()
