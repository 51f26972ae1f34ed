"""A year of a repository: a disk image and a file tree backed up every day, encrypted, under retention, with stars and holds and
collections, through torn packs, a lost index, a second writer and a fenced one; then an adoption where nothing is left but the
repository's own files, and every point that survived restored and compared with what was there on its day.

Days are simulated (the repository's clock is the test's); Kafka, PostgreSQL, the repository's files and what is backed up are
real.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from agents.repository import adopt as adoption
from agents.repository import collecting, expiring, files, keys, points, unpacking
from agents.repository import repository as repositories
from agents.repository.backups import draft, newest
from agents.repository.collection import absent_for
from agents.repository.contents import RepositoryContents
from agents.repository.disk_ingest import FileSource
from agents.repository.extents import CHUNK
from agents.repository.file_targets import restore_file
from agents.repository.handlers import say_mark
from agents.repository.ingest import Ingest
from agents.repository.journal import KafkaJournal
from agents.repository.keeping import rules_of
from agents.repository.node import Held
from agents.repository.points import Tree
from agents.repository.sessions import SessionError, Sessions
from agents.repository.stores import Store
from agents.repository.stores.local import LocalStore
from agents.repository.stores.recorded import RecordedStore
from agents.repository.verify import verify
from api import shapes
from projections.database import connect
from projections.views import repositories as view
from streams.admin import ensure_topics
from streams.publish import Publisher
from streams.settings import Settings
from streams.topics import CATALOGUE
from tests.stack.running_api import apply_views, prepare
from tests.stand_ins.changing import Files, Image

GIB = int(os.environ.get("HOLDFAST_LIFE_GIB", "1"))
"""How large the disk is, and how many times as much changes in it: 8 is the whole size, 1 what CI has time for."""

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900 * GIB)]

NAME, PASSPHRASE = "vault", "correct horse battery staple"
DAYS = 365
MONTH_ENDS = {30, 58, 89, 119, 150, 180, 211, 242, 272, 303, 333}
BLOCK = 128 << 10
SIZE = GIB << 30
KEEP = "7d,5w,12m"
START_US = 1_767_225_600_000_000  # 2026-01-01
DAY_US = 86_400_000_000


@dataclass
class Life:
    """The repository's place, what is backed up, and the day."""

    folder: Path
    site: Settings
    image: Image
    tree: Files
    day: int = 0
    opened: list[contextlib.ExitStack] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return self.folder / "repository"

    def clock(self) -> int:
        return START_US + self.day * DAY_US + DAY_US // 2

    def node(self, name: str, site: Settings | None = None) -> Held:
        """A node that opens the repository, with an index and a publisher of its own."""
        undo = contextlib.ExitStack()
        self.opened.append(undo)
        site = site or self.site
        publisher = Publisher(site, name)
        undo.callback(publisher.close)
        store = RecordedStore(LocalStore(self.place), self.folder / f"{name}.own")
        journal = KafkaJournal(site.kafka, publisher, NAME)
        undo.callback(journal.close)
        sessions = Sessions(journal, store, name, clock=self.clock)
        repository = repositories.open(store, unlock, self.folder / "cache" / name, name)
        undo.callback(repository.close)
        return Held(NAME, store, repository, sessions)


def unlock(store: Store) -> bytes:
    return keys.unlock(store, passphrase=PASSPHRASE)


@pytest.fixture
def life(fresh_site: Settings, tmp_path: Path) -> Iterator[Life]:
    rng = random.Random(5)
    ensure_topics(fresh_site.kafka, [(t.name, None) for t in CATALOGUE if t.per is None])
    image = Image(tmp_path / "image", SIZE, BLOCK, rng, first=250 * GIB, daily=6 * GIB)
    life = Life(tmp_path, fresh_site, image, Files(tmp_path / "tree", rng))
    life.place.mkdir()

    def wrap(store: Store, identity: object, key: bytes) -> None:
        keys.add_wrap(store, identity.bytes, key, "passphrase", PASSPHRASE.encode())  # type: ignore[attr-defined]

    repositories.create(LocalStore(life.place), wrap=wrap, block_size=BLOCK, pack_bytes=4 << 20)
    try:
        yield life
    finally:
        for undo in life.opened:
            undo.close()


# --- what is done every day -------------------------------------------------------------------------------------------


def back_up(held: Held, life: Life, dirty: list[tuple[int, int]]) -> tuple[str, str]:
    """The day's two points, in one session."""
    disk, tree = (before_of(held, asset, kind) for asset, kind in (("disk", "disks"), ("tree", "files")))
    pins = [point.point for point in (disk, tree) if point is not None]
    session = held.sessions.open("backup", by=held.repository.node, asset="daily", pins=pins)
    absent = absent_for(session)
    with Ingest(held.repository, session, absent=absent, slug=NAME, asset="disk") as ingest:
        one = back_up_image(ingest, held, life, disk, dirty)
    with Ingest(held.repository, session, absent=absent, slug=NAME, asset="tree") as ingest:
        other = back_up_tree(ingest, held, life, "tree", tree)
    session.close("done", points=[one, other])
    return one, other


def before_of(held: Held, asset: str, kind: str) -> points.Point | None:
    """The point that the next one continues."""
    previous = newest(held.sessions.ledger().standing(), asset, kind)
    return held.repository.point(previous.sealed.point) if previous is not None else None


def back_up_image(
    ingest: Ingest, held: Held, life: Life, before: points.Point | None, dirty: list[tuple[int, int]]
) -> str:
    """The disk, by the extents that are said to have changed."""
    with life.image.path.open("rb") as file:
        disk = ingest.disk("0", size=SIZE, name="disk", continues=before.disks[0] if before else None)
        extents = (
            [(at // BLOCK, length // BLOCK, CHUNK) for at, length in dirty] if before else [(0, SIZE // BLOCK, CHUNK)]
        )
        disk.feed(FileSource(file.fileno()), extents)
        return seal(ingest, held, "disk", "disks", life, disks=(disk.finish(),))


def back_up_tree(ingest: Ingest, held: Held, life: Life, asset: str, before: points.Point | None) -> str:
    root = before.trees[0].root if before else None
    taken = files.snapshot(life.tree.root, ingest, source=held.repository, previous=root)
    assert not taken.troubles
    kept = Tree("tree", taken.root, taken.size, taken.counts.get("files", 0))
    return seal(ingest, held, asset, "files", life, trees=(kept,))


def back_up_twin(held: Held, life: Life) -> str:
    """Another node backs up the same tree as an asset of its own."""
    before = before_of(held, "twin", "files")
    session = held.sessions.open("backup", by="two", asset="twin", pins=[before.point] if before else [])
    with Ingest(held.repository, session, absent=absent_for(session), slug=NAME, asset="twin") as ingest:
        point = back_up_tree(ingest, held, life, "twin", before)
    session.close("done", points=[point])
    return point


def seal(ingest: Ingest, held: Held, asset: str, kind: str, life: Life, **parts: object) -> str:
    previous = newest(held.sessions.ledger().standing(), asset, kind)
    made = draft(asset, asset, kind, previous, created_us=life.clock(), facts={"day": str(life.day)}, **parts)  # type: ignore[arg-type]
    return ingest.seal(made).point.point


def expire(held: Held) -> int:
    verdicts = expiring.judged(held.sessions.ledger().standing(), rules_of(KEEP), held.sessions.clock())
    going = [v for v in verdicts if not v.keep]
    expiring.drop(held, going, "retention", {})
    return len(going)


def collect(held: Held) -> int:
    session = held.sessions.open("collect", by=held.repository.node)
    done = collecting.carry_out(held, session)
    session.close("done")
    assert not done["waiting"]
    return int(done["freed"])


# --- what goes wrong --------------------------------------------------------------------------------------------------


def die_while_backing_up(held: Held, life: Life) -> None:
    """A node dies in the middle: its pack has no footer and ends within a frame, its session is open until it is fenced."""
    there = packs_of(life)
    session = held.sessions.open("backup", by="dead", asset="disk")
    ingest = Ingest(held.repository, session, slug=NAME, asset="disk")
    for number in range(40):
        ingest.put(1, random.Random(number).randbytes(BLOCK))
    with contextlib.suppress(Exception):
        ingest._drain_puts()
    ingest.close()
    torn = max(packs_of(life) - there, key=lambda p: p.stat().st_size)
    os.truncate(torn, torn.stat().st_size - 1000)
    held.sessions.fence(session.id, "its node does not answer", "test")


def packs_of(life: Life) -> set[Path]:
    return set(life.place.glob("packs/*/*"))


def tear_one_copy_of_a_description(held: Held, life: Life, point: str) -> None:
    """A sealed pack loses its end; what is in it stands in a second pack as well."""
    root = held.repository.point(point).disks[0].root
    place = held.repository.index.places(root)[0]
    name = held.repository.index.pack_name(place.pack)
    assert name is not None
    torn = life.place / name
    os.truncate(torn, place.offset + 10)


# --- the year ---------------------------------------------------------------------------------------------------------


def test_a_year_of_a_repository(life: Life, tmp_path: Path) -> None:
    one = life.node("one")
    made: dict[str, tuple[str, int]] = {}  # point → asset, day
    kept: set[str] = set()
    freed = dropped = 0
    for life.day in range(DAYS):
        dirty = life.image.day(life.day)
        life.tree.day(life.day)
        disk, tree = back_up(one, life, dirty)
        made |= {disk: ("disk", life.day), tree: ("tree", life.day)}
        if life.day in (45, 200):
            kept.add(disk)
            say_mark(one, disk, "star", "ada")
        if life.day == 77:
            kept.add(tree)
            say_mark(one, tree, "hold", "ada", name="case-7", note="asked for by a court")
        if life.day == 60:
            die_while_backing_up(one, life)
        if life.day == 100:
            tear_one_copy_of_a_description(one, life, disk)
            verify_and_repair(one)
        if life.day == 150:  # the index is lost: the repository's own files have all that was in it
            life.opened.pop().close()
            shutil.rmtree(tmp_path / "cache" / "one")
            one = life.node("one")
        if life.day == 180:
            other = life.node("two")
        if 180 <= life.day < 185:  # two nodes write; what one stores the other finds
            made[back_up_twin(other, life)] = ("twin", life.day)
        if life.day == 190:
            fence_a_writer_that_believes_itself_alone(one, other, life)
        if life.day % 30 == 29:
            dropped += expire(one)
            freed += collect(one)
    dropped += expire(one)
    freed += collect(one)
    assert dropped > 600
    assert freed > 16 << 20

    standing = one.sessions.ledger().standing()
    assert kept <= standing.keys()
    days = {asset: {made[p][1] for p in standing if made[p][0] == asset} for asset in ("disk", "tree", "twin")}
    for asset in ("disk", "tree"):
        assert set(range(DAYS - 7, DAYS)) <= days[asset], "seven days"
        assert days[asset] >= MONTH_ENDS, "the last day of each month"
        assert len(days[asset]) < 30
    assert 184 in days["twin"]
    the_read_model_says_the_same(life.site, one)

    for undo in life.opened:
        undo.close()
    life.opened.clear()
    adopted = adopt(life)
    again = adopted.sessions.ledger().standing()
    assert again.keys() == standing.keys()
    for name, state in again.items():  # what each point added stands in its record
        assert state.sealed.figures == standing[name].sealed.figures
    assert {p for p, state in again.items() if state.starred or state.holds} == kept
    for name, state in again.items():
        restored = tmp_path / "restored"
        day = made[name][1]
        point = adopted.repository.point(name)
        if state.sealed.kind == "disks":
            restore_file(adopted.repository, point.disks[0], restored, point=name)
            life.image.check(restored, day)
            restored.unlink()
        else:
            done = unpacking.unpack(adopted.repository, point.trees[0].root, restored)
            assert not done.troubles
            life.tree.check(restored, day)
            shutil.rmtree(restored)


def verify_and_repair(held: Held) -> None:
    """What stood in the torn pack is read from its second copy, and stands twice again."""
    standing = held.sessions.ledger().standing()
    session = held.sessions.open("verify", by=held.repository.node, pins=standing)
    with contextlib.closing(RepositoryContents(held.repository)) as contents:
        wanted = {name: state.sealed.record for name, state in standing.items()}
        report = verify(contents, session, wanted, mode="metadata")
    session.close("done")
    assert report.figures["repaired"] > 0
    assert report.figures["lost"] == 0
    assert report.points == {}


def the_read_model_says_the_same(site: Settings, held: Held) -> None:
    """What counts is decided twice, by the ledger where it matters and by the view for people: from one log they say the same."""
    prepare(site)
    apply_views(site, "repositories")
    ledger = held.sessions.ledger()
    with contextlib.closing(connect(site.postgres)) as conn:
        found = {p.point: p for p in view.points(conn, repository=NAME, dropped=True, limit=100_000)}
        marks = view.marks(conn, found)
        holds = view.holding(conn, NAME)
    assert found.keys() == ledger.points.keys()
    assert {name for name, p in found.items() if p.dropped_us is None} == ledger.standing().keys()
    shown = {name: shapes.point(p, marks.get(name, ())) for name, p in found.items()}
    assert {name for name, p in shown.items() if p["starred"]} == {n for n, p in ledger.points.items() if p.starred}
    assert {name for name, p in shown.items() if p["held"]} == {n for n, p in ledger.points.items() if p.holds}
    assert holds.points == len(ledger.standing())
    assert {s.session for s in holds.sessions} == {s.opened.session for s in ledger.open_sessions()}
    assert holds.collection is not None
    assert holds.collection.state == "done"


def fence_a_writer_that_believes_itself_alone(one: Held, other: Held, life: Life) -> None:
    """`other` is fenced while it backs up. It does not know, and seals: that does not count, its point is nowhere to be seen."""
    session = other.sessions.open("backup", by="two", asset="twin")
    with Ingest(other.repository, session, slug=NAME, asset="twin") as ingest:
        taken = files.snapshot(life.tree.root, ingest)
        one.sessions.fence(session.id, "it was taken for dead", "test")
        kept = Tree("tree", taken.root, taken.size, 1)
        with pytest.raises(SessionError) as refused:
            ingest.seal(draft("twin", "twin", "files", None, trees=(kept,), created_us=life.clock()))
    assert refused.value.code == "session-lost"
    assert ingest.point not in one.sessions.ledger().points


def adopt(life: Life) -> Held:
    """On an installation that has nothing: other topics, no index, no keys but the passphrase."""
    site = replace(life.site, kafka=replace(life.site.kafka, prefix=f"t{secrets.token_hex(4)}."))
    ensure_topics(site.kafka, [(t.name, None) for t in CATALOGUE if t.per is None])
    held = life.node("three", site)
    told = adoption.adopt(held.repository, held.sessions, by="ada")
    assert (told.problems, told.left_out) == ((), {})
    return held
