"""Collecting in a real repository: marks are exact, what is dropped goes, what stays restores, second copies stay apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.repository import collection, collection_files, directories, files, points, tree, verify
from agents.repository import repository as repositories
from agents.repository.collection import Rules
from agents.repository.contents import RepositoryContents
from agents.repository.extents import CHUNK
from agents.repository.format import DATA, NAME_BYTES
from agents.repository.ingest import Ingest
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.marking import Names
from agents.repository.reader import DiskReader
from agents.repository.repository import Repository
from agents.repository.sessions import Sessions
from agents.repository.stores.memory import MemoryStore
from streams.events import PointDropped

BLOCK = 4096
BLOCKS = 64 * 64 + 100  # three levels of nodes


class Image:
    def __init__(self, data: bytearray) -> None:
        self.data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


class Site:
    """A repository and days of backups of one disk, of which each is remembered."""

    def __init__(self, cache: Path) -> None:
        self.store = MemoryStore()
        repositories.create(self.store, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
        self.repository = repositories.open(self.store, None, cache, "a")
        self.log = MemoryLog()
        self.sessions = Sessions(MemoryJournal(self.log, "main"), self.store, "a")
        self.contents = RepositoryContents(self.repository)
        self.random = random.Random(7)
        self.image = bytearray(BLOCKS * BLOCK)
        self.kept: dict[str, bytes] = {}
        self.newest = ""

    def day(self, changed: int) -> str:
        """Change some blocks, far apart, and back up what changed."""
        blocks = sorted(self.random.sample(range(BLOCKS), changed))
        for block in blocks:
            data = bytes(BLOCK) if self.random.random() < 0.2 else self.random.randbytes(BLOCK)
            self.image[block * BLOCK : (block + 1) * BLOCK] = data
        pins = [self.newest] if self.newest else []
        session = self.sessions.open("backup", by="test", pins=pins)
        before = self.repository.point(self.newest).disks[0] if self.newest else None
        with Ingest(self.repository, session, absent=collection.absent_for(session), slug="main") as ingest:
            disk = ingest.disk("sda", size=len(self.image), continues=before)
            disk.feed(Image(self.image), [(block, 1, CHUNK) for block in blocks])
            draft = points.Point(
                "", "vm", "VM", "disks", 1, "", 0, "", points.JournalPlace(0, ""), self.newest, disks=(disk.finish(),)
            )
            point = ingest.seal(draft).point.point
        session.close(points=[point])
        self.kept[point] = bytes(self.image)
        self.newest = point
        return point

    def drop(self, point: str) -> None:
        event = PointDropped(repository="main", point=point, reason="test", dropped_us=1, by="test")
        self.sessions.say(event, witness=True)
        del self.kept[point]

    def collect(self, rules: Rules | None = None) -> dict[str, int] | None:
        session = self.sessions.open("collect", by="test")
        proposal = collection.propose(self.sessions, session, self.contents, rules)
        done = None if proposal is None else collection.execute(self.sessions, session, self.contents, proposal, rules)
        session.close()
        return done

    def stored(self) -> int:
        return sum(file.size for file in self.store.list("packs/"))

    def everything_restores(self, repository: Repository | None = None) -> None:
        source = repository or self.repository
        for point, image in self.kept.items():
            disk = source.point(point).disks[0]
            with DiskReader(source, disk) as reader:
                assert reader.read(0, disk.size) == image, f"{point} is not what it was"

    def needed(self, found: set[str]) -> set[bytes]:
        """What points need, by reading every tree through: slow, and the truth."""
        out: set[bytes] = set()
        for name in found:
            point = self.repository.point(name)
            out.update(chunk for _, chunk in points.needs(point).chunks)
            for disk in point.disks:
                for _, joined in tree.walk(self.repository, disk.root):
                    out.update(joined[i : i + NAME_BYTES] for i in range(0, len(joined), NAME_BYTES))
        return out


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "cache")
    yield made
    made.contents.close()
    made.repository.close()


def ordered(site: Site) -> list[str]:
    points = site.sessions.ledger().points
    return sorted(site.kept, key=lambda name: points[name].ordinal)


def marked(site: Site, points: list[str], known: frozenset[str] = frozenset()) -> Names:
    names = Names()
    site.contents.mark(points, names, known)
    names.settle()
    return names


def test_marks_by_delta_runs_are_what_reading_every_tree_finds(site: Site) -> None:
    for changed in (900, 60, 40, 1, 300, 25, 80, 10):
        site.day(changed)
    for drop in (1, 3):
        site.drop(ordered(site)[drop])
    truth = site.needed(set(site.kept))
    names = marked(site, ordered(site))
    assert len(names) == len(truth)
    assert all(name in names for name in truth)


def test_marks_of_what_was_sealed_since_leave_out_only_what_earlier_ones_have(site: Site) -> None:
    for changed in (500, 60, 40, 30):
        site.day(changed)
    early, late = ordered(site)[:2], ordered(site)[2:]
    names = marked(site, late, frozenset(early))
    missing = {name for name in site.needed(set(late)) if name not in names}
    assert missing <= site.needed(set(early))
    assert names.settle() < 400


def test_what_is_dropped_goes_and_every_other_day_restores_also_elsewhere(site: Site, tmp_path: Path) -> None:
    for changed in (900, 200, 150, 150, 150, 150, 150):
        site.day(changed)
    full = site.stored()
    for drop in (0, 1, 2, 4):
        site.drop(ordered(site)[0 if drop < 3 else 1])
    first = site.collect(Rules(live_share=0.95))
    assert first is not None
    assert first["freed_bytes"] > 0
    assert first["copied_bytes"] > 0
    site.everything_restores()
    site.day(100)
    site.collect(Rules(live_share=0.95))
    site.everything_restores()
    assert site.stored() < full

    elsewhere = repositories.open(site.store, None, tmp_path / "other cache", "b")
    try:
        site.everything_restores(elsewhere)
        assert len(list(elsewhere.point_ids())) == len(site.kept)
    finally:
        elsewhere.close()


def test_everything_goes_when_everything_is_dropped(site: Site) -> None:
    for changed in (300, 50, 20):
        site.day(changed)
    for point in ordered(site):
        site.drop(point)
    site.newest = ""
    site.collect()
    site.collect()
    assert [f.name for f in site.store.list() if f.name.startswith(("packs/", "points", "marks/"))] == []
    site.image = bytearray(BLOCKS * BLOCK)
    site.day(10)
    site.everything_restores()


def test_metadata_that_is_moved_still_stands_in_two_packs(site: Site) -> None:
    for changed in (900, 200, 200):
        site.day(changed)
    for _ in range(2):
        site.drop(ordered(site)[0])
    site.collect(Rules(live_share=1.0))
    point = site.repository.point(site.newest)
    for kind, joined in tree.walk(site.repository, point.disks[0].root):
        if kind == DATA:
            continue
        for name in (joined[i : i + NAME_BYTES] for i in range(0, len(joined), NAME_BYTES)):
            assert len({place.pack for place in site.repository.index.places(name)}) >= 2


def test_a_collection_that_is_given_up_again_and_again_copies_nothing_twice(site: Site) -> None:
    for changed in (900, 200, 200):
        site.day(changed)
    for _ in range(2):
        site.drop(ordered(site)[0])
    rules = Rules(live_share=0.95)
    sizes = []
    for _ in range(3):
        session = site.sessions.open("collect", by="test")
        proposal = collection.propose(site.sessions, session, site.contents, rules)
        assert proposal is not None
        collection.abandon(site.sessions, session, proposal)
        session.close()
        sizes.append(site.stored())
    assert sizes[0] == sizes[1] == sizes[2]
    site.collect(rules)
    site.everything_restores()
    assert site.stored() < sizes[0]


def test_a_second_node_that_slept_through_a_collection_builds_on_nothing_that_went(site: Site, tmp_path: Path) -> None:
    site.day(200)
    gone = bytes(site.image)
    sleeper = repositories.open(site.store, None, tmp_path / "sleeper", "b")
    site.drop(site.newest)
    site.newest = ""
    site.collect()
    other = Sessions(MemoryJournal(site.log, "main"), site.store, "b")
    session = other.open("backup", by="test")
    with Ingest(sleeper, session, absent=collection.absent_for(session), slug="main") as ingest:
        disk = ingest.disk("sda", size=len(gone))
        disk.feed(Image(bytearray(gone)), [(0, disk.blocks, CHUNK)])
        blank = points.JournalPlace(0, "")
        point = ingest.seal(
            points.Point("", "vm", "VM", "disks", 1, "", 0, "", blank, disks=(disk.finish(),))
        ).point.point
    session.close()
    site.kept[point] = gone
    site.everything_restores(sleeper)
    sleeper.close()
    site.repository.refresh()
    site.everything_restores()


@pytest.mark.parametrize("harm", ["torn", "damaged", "noted"])
def test_what_is_stored_again_takes_nothing_away_unless_it_can_be_read_there(
    site: Site, tmp_path: Path, harm: str
) -> None:
    """While a collection waits, a session stores again what is going; its pack is harmed before the collection goes on. Torn: as
    somebody finds it who never saw it whole."""
    site.day(200)
    image = bytearray(site.image)
    site.drop(site.newest)
    site.newest = ""
    early = site.sessions.open("backup", by="test")  # has to be waited for
    collector = site.sessions.open("collect", by="test")
    proposal = collection.propose(site.sessions, collector, site.contents)
    assert proposal is not None
    candidates = {name for _, name, _ in proposal.plan.packs}
    site.image = bytearray(len(image))
    site.random = random.Random(7)
    site.day(200)
    assert site.image == image
    again = [f for f in site.store.list("packs/") if f.name not in candidates]
    victim = max(again, key=lambda f: f.size)  # of data: what describes it stands twice
    whole = site.store.read(victim.name)
    if harm == "noted":
        (pack,) = [p for p in site.contents.packs() if p.name == victim.name]
        collection_files.note_damage(site.store, pack)
    middle = len(whole) // 2
    site.store.put(
        victim.name,
        whole[:-1] if harm == "torn" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    )
    early.close()
    if harm == "torn":
        for run in list(site.store.list("index/")):
            site.store.delete(run.name)
    elsewhere = repositories.open(site.store, None, tmp_path / "elsewhere", "b")

    figures = collection.execute(site.sessions, collector, RepositoryContents(elsewhere), proposal)
    collector.close()

    assert figures["spared_packs"] >= 1
    site.everything_restores(elsewhere)
    elsewhere.close()


def test_a_pack_whose_writer_died_is_garbage_and_goes_though_what_is_in_it_is_needed(
    site: Site, tmp_path: Path
) -> None:
    """What it had stored was stored again by who did its work over: that copy is the one that counts."""
    site.image[: 50 * BLOCK] = site.random.randbytes(50 * BLOCK)
    died = site.sessions.open("backup", by="test")
    ingest = Ingest(site.repository, died, slug="main")
    disk = ingest.disk("sda", size=len(site.image))
    disk.feed(Image(site.image), [(0, disk.blocks, CHUNK)])
    left = {file.name: site.store.read(file.name) for file in site.store.list("packs/")}
    ingest.close()
    for name, data in left.items():
        site.store.put(name, data)  # as a death leaves them
    died.close("failed")
    assert left
    site.random = random.Random(8)
    site.day(1)
    point = site.newest
    session = site.sessions.open("backup", by="test")
    with Ingest(site.repository, session, slug="main") as again:
        disk = again.disk("sda", size=len(site.image))
        disk.feed(Image(site.image), [(0, disk.blocks, CHUNK)])
        blank = points.JournalPlace(0, "")
        whole = again.seal(
            points.Point("", "vm", "VM", "disks", 1, "", 0, "", blank, disks=(disk.finish(),))
        ).point.point
    session.close(points=[whole])
    site.kept[whole] = bytes(site.image)
    del site.kept[point]

    standing = site.sessions.ledger().standing()
    checking = site.sessions.open("verify", by="test", pins=list(standing))
    report = verify.verify(
        site.contents, checking, {name: s.sealed.record for name, s in standing.items()}, mode="full"
    )
    checking.close()
    assert report.problems == []
    assert report.figures["torn_packs"] == len(left)
    assert list(site.store.list("damaged/")) == []

    site.collect(Rules(live_share=0.0))

    assert not left.keys() & {file.name for file in site.store.list("packs/")}
    site.everything_restores()
    elsewhere = repositories.open(site.store, None, tmp_path / "elsewhere", "b")
    site.everything_restores(elsewhere)
    elsewhere.close()


def test_files_of_points_are_marked(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for number in range(40):
        (folder / "deep" / f"file {number}").write_bytes(site.random.randbytes(3000 * number))
    session = site.sessions.open("backup", by="test")
    with Ingest(site.repository, session, slug="main") as ingest:
        taken = files.snapshot(folder, ingest)
        top = points.Tree("folder", taken.root, 1)
        blank = points.JournalPlace(0, "")
        point = ingest.seal(points.Point("", "f", "F", "files", 1, "", 0, "", blank, trees=(top,))).point.point
    session.close()
    site.day(10)
    site.drop(site.newest)

    site.collect()
    site.collect(Rules(live_share=1.0))

    root = site.repository.point(point).trees[0].root
    for kind, joined in directories.walk(site.repository, root, lambda _name: False):
        for name in (joined[i : i + NAME_BYTES] for i in range(0, len(joined), NAME_BYTES)):
            assert site.repository.get(name, kind)
