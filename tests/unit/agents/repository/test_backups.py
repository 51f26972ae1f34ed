"""Backing up an asset whose newest point was found damaged: what is whole on disk is whole in the next point."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.repository import backups, collection, directories, packs, unpacking, verify
from agents.repository import repository as repositories
from agents.repository.comparing import FileDisk, differences, same_by
from agents.repository.contents import RepositoryContents
from agents.repository.disk_ingest import FileSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK
from agents.repository.file_targets import progress_path, restore_file
from agents.repository.format import DATA, NAME_BYTES, NODE
from agents.repository.ingest import Ingest
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.node import Held
from agents.repository.nodes import take_apart
from agents.repository.pack_format import FRAME_BYTES
from agents.repository.points import Point
from agents.repository.reader import DiskReader
from agents.repository.sessions import Sessions
from agents.repository.stores.memory import MemoryStore
from agents.repository.stores.recorded import RecordedStore
from streams.events import RepositoryDefined
from tests.stack.devices import loop_device

BLOCK = 4096


class Site:
    """A node's repository, and what its commands are given."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        definition = repositories.create(self.store, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
        recorded = RecordedStore(self.store, folder / "main.own")
        repository = repositories.open(recorded, None, folder / "cache", "node_a")
        sessions = Sessions(MemoryJournal(MemoryLog(), "main"), recorded, "node_a")
        self.held = Held("main", recorded, repository, sessions)
        sessions.say(
            RepositoryDefined(
                repository="main",
                identity=str(definition.identity),
                state="added",
                store="memory",
                location="",
                node="node_a",
                encrypted=False,
                options={},
                defined_us=1,
                by="tests",
            )
        )
        settings = SimpleNamespace(data_dir=folder / "data")
        self.ctx: Any = SimpleNamespace(
            check=lambda: None,
            progress=lambda *_: None,
            warn=lambda *_: None,
            services=SimpleNamespace(settings=settings),
        )

    def backup(self, path: Path, kind: str, asset: str = "asset", by: str = "tests") -> Point:
        ledger = self.held.sessions.ledger()
        previous = backups.newest(ledger.standing(), asset, kind)
        pins = [previous.sealed.point] if previous else []
        session = self.held.sessions.open("backup", by=by, asset=asset, pins=pins)
        take = backups.take_files if kind == "files" else backups.take_image
        scope, absent = backups.scope_of(self.held, asset, previous, by), collection.absent_for(session)
        with Ingest(self.held.repository, session, scope=scope, absent=absent, slug="main") as ingest:
            sealed = take(ingest, self.held, path, asset, previous, self.ctx)
        session.close(points=[sealed.point.point])
        return sealed.point

    def damage(self, data: bool) -> None:
        """Flip a bit in every chunk of data, or in every other one."""
        for listed in list(self.store.list("packs/")):
            body = bytearray(self.store.read(listed.name))
            for entry in packs.contents_of(self.store, listed.name).entries:
                if (entry.place.kind == DATA) == data:
                    body[entry.place.offset + FRAME_BYTES] ^= 1
            self.store.put(listed.name, bytes(body))

    def verify(self) -> list[str]:
        """The points that it found damaged."""
        standing = self.held.sessions.ledger().standing()
        session = self.held.sessions.open("verify", by="tests", pins=list(standing))
        contents = RepositoryContents(self.held.repository)
        wanted = {name: state.sealed.record for name, state in standing.items()}
        report = verify.verify(contents, session, wanted, mode="full")
        verify.conclude(contents, session, report)
        contents.close()
        session.close()
        return sorted(report.points)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.held.close()


@pytest.mark.parametrize("data", [True, False])
def test_files_that_have_not_changed_are_read_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bool
) -> None:
    monkeypatch.setattr("agents.repository.files._YOUNG_NS", -1)  # times prove something at once
    folder = tmp_path / "files"
    folder.mkdir()
    content = os.urandom(100_000)
    (folder / "file").write_bytes(content)
    first = site.backup(folder, "files")
    assert site.backup(folder, "files").trees[0].counts["unchanged"] == 1
    site.damage(data)
    assert first.point in site.verify()

    healed = site.backup(folder, "files")

    assert healed.point not in site.verify()
    unpacking.unpack(site.held.repository, healed.trees[0].root, tmp_path / "back")
    assert (tmp_path / "back" / "file").read_bytes() == content
    assert site.backup(folder, "files").trees[0].counts["unchanged"] == 1


@pytest.mark.parametrize("data", [True, False])
def test_an_image_is_taken_whole(site: Site, tmp_path: Path, data: bool) -> None:
    image = tmp_path / "image"
    content = os.urandom(70 * BLOCK + 100)
    image.write_bytes(content)
    first = site.backup(image, "disks")
    site.damage(data)
    assert site.verify() == [first.point]

    healed = site.backup(image, "disks")

    assert healed.disks[0].block_size == first.disks[0].block_size
    assert healed.point not in site.verify()
    with DiskReader(site.held.repository, healed.disks[0]) as reader:
        assert reader.read(0, len(content)) == content


def test_a_block_device_is_backed_up_and_restored_to(site: Site, tmp_path: Path) -> None:
    """A device says of no range that it is a hole, and has what was on it before."""
    content = bytearray(40 * BLOCK)
    content[5 * BLOCK : 9 * BLOCK] = os.urandom(4 * BLOCK)
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "target").write_bytes(b"what was there" * (5 * BLOCK))
    with loop_device(tmp_path / "source") as device:
        first = site.backup(device, "disks")
        assert first.disks[0].size == len(content)
        content[20 * BLOCK : 21 * BLOCK] = os.urandom(BLOCK)
        with device.open("r+b") as file:
            os.pwrite(file.fileno(), content[20 * BLOCK : 21 * BLOCK], 20 * BLOCK)
            os.fsync(file.fileno())
        second = site.backup(device, "disks")
    assert second.disks[0].counts["changed"] == 1
    with DiskReader(site.held.repository, second.disks[0]) as reader:
        assert reader.read(0, len(content)) == content
    with loop_device(tmp_path / "target") as device:
        with pytest.raises(RepositoryError, match="is there already"):
            restore_file(site.held.repository, second.disks[0], device, point=second.point)
        restore_file(site.held.repository, second.disks[0], device, point=second.point, overwrite=True)
        assert not progress_path(device).exists()
        assert device.read_bytes()[: len(content)] == content
        with contextlib.closing(FileDisk(device)) as there:
            same = same_by(site.held.repository.naming())
            assert not list(differences(there, site.held.repository, second.disks[0], same))
    (tmp_path / "small").write_bytes(bytes(39 * BLOCK))
    with loop_device(tmp_path / "small") as device, pytest.raises(RepositoryError, match="name a larger device"):
        restore_file(site.held.repository, second.disks[0], device, point=second.point, overwrite=True)


def test_files_are_restored_but_for_what_cannot_be_read_if_told_so(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.repository.files._YOUNG_NS", -1)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "lost").write_bytes(os.urandom(100_000))
    site.backup(folder, "files")
    site.damage(data=True)
    whole = os.urandom(50_000)
    (folder / "whole").write_bytes(whole)
    root = site.backup(folder, "files").trees[0].root
    with pytest.raises(RepositoryError) as refused:
        unpacking.unpack(site.held.repository, root, tmp_path / "refused")
    assert refused.value.code == "chunk-damaged"

    done = unpacking.unpack(site.held.repository, root, tmp_path / "back", skip_lost=True)

    assert (tmp_path / "back" / "whole").read_bytes() == whole
    assert (tmp_path / "back" / "lost").read_bytes() == bytes(100_000)
    assert {path for path, _, _ in done.lost} == {b"lost"}
    assert sum(length for _, _, length in done.lost) == 100_000


def test_per_job_chunks_are_shared_within_what_one_policy_backs_up(site: Site, tmp_path: Path) -> None:
    site.held.sessions.say(replace(site.held.defined, state="changed", options={"dedupe": "job"}))
    image = tmp_path / "image"
    image.write_bytes(content := os.urandom(70 * BLOCK))

    def added(asset: str, by: str) -> tuple[bool, Point]:
        """Whether all of the image was stored once more, and the point."""
        point = site.backup(image, "disks", asset, by)
        new = point.figures["new_bytes"]
        assert not 5 * BLOCK < new < len(content)
        return new >= len(content), point

    assert [added("one", "policy/nightly")[0], added("two", "policy/nightly")[0]] == [True, False]
    assert [added("three", "policy/other")[0], added("four", "policy/other")[0]] == [True, False]
    assert [added("five", "ada")[0], added("five", "ada")[0]] == [True, False], "a job of its own"
    with image.open("r+b") as file:
        file.write(os.urandom(BLOCK))
    stored, by_hand = added("one", "ada")
    assert (stored, by_hand.scopes) == (False, ("policy/nightly",)), "by hand, it goes on where the policy left it"
    stored, moved = added("one", "policy/other")
    assert (stored, moved.scopes) == (False, ("policy/nightly", "policy/other"))
    assert site.verify() == []


def test_what_was_stored_in_several_scopes_is_compared_by_its_names_in_all_of_them(site: Site, tmp_path: Path) -> None:
    """Of a machine's disk only what changed is read: the rest keeps the names it had."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(10 * BLOCK))
    point = site.backup(image, "disks")
    for number, scope in enumerate(("policy/a", "policy/b")):
        with image.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), os.urandom(BLOCK), number * BLOCK)
            session = site.held.sessions.open("backup", by=scope, asset="asset", pins=[point.point])
            with Ingest(site.held.repository, session, scope=scope, slug="main") as ingest:
                disk = ingest.disk("0", size=10 * BLOCK, block_size=BLOCK, continues=point.disks[0])
                disk.feed(FileSource(file.fileno()), [(number, 1, CHUNK)])
                previous = site.held.sessions.ledger().points[point.point]
                point = ingest.seal(backups.draft("asset", "image", "disks", previous, disks=(disk.finish(),))).point
            session.close(points=[point.point])
    assert point.scopes == ("", "asset", "policy/a", "policy/b")
    repository = site.held.repository
    with contextlib.closing(FileDisk(image)) as there:
        all_of_them = same_by(*map(repository.naming, point.namings))
        assert not list(differences(there, repository, point.disks[0], all_of_them))
        some = same_by(repository.naming(), repository.naming("policy/b"))
        assert [at for at, _, _ in differences(there, repository, point.disks[0], some)] == [0], "of policy a"


def spoil(site: Site, *names: bytes) -> None:
    """Flip a bit in every copy of these chunks."""
    for listed in list(site.store.list("packs/")):
        body = bytearray(site.store.read(listed.name))
        for entry in packs.contents_of(site.store, listed.name).entries:
            if entry.name in names:
                body[entry.place.offset + FRAME_BYTES] ^= 1
        site.store.put(listed.name, bytes(body))


def test_of_a_disk_all_is_restored_but_what_a_node_stood_for_that_no_copy_of_can_be_read(
    site: Site, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    content = os.urandom((3 * 64 + 10) * BLOCK + 5)
    image.write_bytes(content)
    point = site.backup(image, "disks")
    slots = take_apart(site.held.repository.get(point.disks[0].root, NODE))
    below = [bytes(slots.names[at * NAME_BYTES : (at + 1) * NAME_BYTES]) for at in range(4)]
    spoil(site, below[1])
    with pytest.raises(RepositoryError, match="chunk-damaged"):
        restore_file(site.held.repository, point.disks[0], tmp_path / "refused", point=point.point)

    done = restore_file(site.held.repository, point.disks[0], tmp_path / "rest", point=point.point, skip_lost=True)

    assert done.lost == ((64 * BLOCK, 64 * BLOCK),)
    wanted = content[: 64 * BLOCK] + bytes(64 * BLOCK) + content[128 * BLOCK :]
    assert (tmp_path / "rest").read_bytes() == wanted
    spoil(site, point.disks[0].root)
    (tmp_path / "none").write_bytes(b"what was there" * BLOCK)
    nothing = restore_file(
        site.held.repository, point.disks[0], tmp_path / "none", point=point.point, skip_lost=True, overwrite=True
    )
    assert nothing.lost == ((0, len(content)),)
    assert (tmp_path / "none").read_bytes() == bytes(len(content))


def test_of_files_all_is_restored_but_what_stood_in_directories_that_no_copy_of_can_be_read(
    site: Site, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    for name in ("gone", "whole"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "file").write_bytes(os.urandom(5000))
    large = os.urandom(12 << 20)
    (folder / "large").write_bytes(large)
    point = site.backup(folder, "files")
    repository, root = site.held.repository, point.trees[0].root
    gone = directories.find(repository, root, b"gone")
    listed = directories.find(repository, root, b"large")
    spoil(site, gone.where)
    with pytest.raises(RepositoryError, match="chunk-damaged"):
        unpacking.unpack(repository, root, tmp_path / "refused")

    done = unpacking.unpack(repository, root, tmp_path / "back", skip_lost=True)

    assert done.lost == [(b"gone/", 0, 0)]
    assert (b"gone/", "lost") in {(t.path, t.code) for t in done.troubles}
    assert list((tmp_path / "back" / "gone").iterdir()) == []
    same = Path("whole", "deep", "file")
    assert (tmp_path / "back" / same).read_bytes() == (folder / same).read_bytes()
    assert (tmp_path / "back" / "large").read_bytes() == large

    assert listed.form == directories.LIST
    spoil(site, listed.where)
    rest = unpacking.unpack(repository, root, tmp_path / "rest", skip_lost=True)
    assert (b"large", 0, len(large)) in rest.lost
    assert (tmp_path / "rest" / "large").read_bytes() == bytes(len(large))
