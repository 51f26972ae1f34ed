"""A collector killed with SIGKILL at each of its boundaries, on a repository on disk and a log on Kafka: another node goes on,
every point restores, and what was dropped is gone in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.repository import collection, points
from agents.repository import repository as repositories
from agents.repository.contents import RepositoryContents
from agents.repository.extents import CHUNK
from agents.repository.ingest import Ingest
from agents.repository.journal import KafkaJournal
from agents.repository.reader import DiskReader
from agents.repository.repository import Repository
from agents.repository.sessions import Sessions
from agents.repository.stores.local import LocalStore
from streams.admin import ensure_topics
from streams.events import PointDropped
from streams.publish import Publisher
from streams.settings import Settings
from tests.stack.servers import KafkaServer, config_file
from tests.stand_ins.collector import RULES

pytestmark = pytest.mark.crash

BLOCK = 4096
BLOCKS = 600
PROPOSING = ("session-opened", "collection-marked", "collection-pack-copied", "contents-copies-durable")
PROPOSED = ("collection-proposed-written", "collection-proposed", "collection-executing-written")
DELETING = (
    "collection-executing",
    "witness-written",
    "collection-tombstone",
    "point-copy-removed",
    "collection-forgotten",
    "collection-pack-deleted",
)
PLACES = (*PROPOSING, *PROPOSED, *DELETING, "collection-done")


class Image:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


class Ground:
    """A repository on disk, as node b has it open; node a is the process that is killed."""

    def __init__(self, site: Settings, folder: Path, publisher: Publisher) -> None:
        self.site = site
        self.folder = folder
        (folder / "store").mkdir()
        self.store = LocalStore(folder / "store")
        repositories.create(self.store, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
        self.repository = repositories.open(self.store, None, folder / "b", "b")
        self.journal = KafkaJournal(site.kafka, publisher, "main")
        self.sessions = Sessions(self.journal, self.store, "b")
        self.random = random.Random(3)
        self.kept: dict[str, bytes] = {}
        self.image = bytearray(BLOCKS * BLOCK)

    def back_up(self, image: bytes | None = None) -> str:
        """The whole disk, 60 blocks of which are new; or an image as it is."""
        if image is None:
            for block in self.random.sample(range(BLOCKS), 60):
                self.image[block * BLOCK : (block + 1) * BLOCK] = self.random.randbytes(BLOCK)
            image = bytes(self.image)
        session = self.sessions.open("backup", by="test")
        with Ingest(self.repository, session, absent=collection.absent_for(session), slug="main") as ingest:
            disk = ingest.disk("sda", size=len(image))
            disk.feed(Image(image), [(0, disk.blocks, CHUNK)])
            place = points.JournalPlace(0, "")
            point = ingest.seal(
                points.Point("", "vm", "VM", "disks", 1, "", 0, "", place, disks=(disk.finish(),))
            ).point.point
        session.close(points=[point])
        self.kept[point] = image
        return point

    def drop(self, point: str) -> bytes:
        event = PointDropped(repository="main", point=point, reason="test", dropped_us=1, by="test")
        self.sessions.say(event, witness=True)
        return self.kept.pop(point)

    def killed_at(self, place: str) -> None:
        """A collector of node a that dies there."""
        arguments = [str(config_file(self.site)), str(self.folder / "store"), str(self.folder / "a"), "a"]
        process = subprocess.run(
            [sys.executable, "-P", "-m", "tests.stand_ins.collector", *arguments],
            env={**os.environ, "HOLDFAST_FAILPOINT": place},
            timeout=240,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, f"{place}: {process.returncode} {process.stderr[-2000:]}"

    def goes_on(self) -> bool:
        """Node b takes over; whether it found something half deleted."""
        for state in self.sessions.ledger().open_sessions():
            self.sessions.fence(state.opened.session, "its node died", "test")
        session = self.sessions.open("collect", by="test")
        with contextlib.closing(RepositoryContents(self.repository)) as contents:
            finished = collection.finish(self.sessions, session, contents)
            proposal = collection.propose(self.sessions, session, contents, RULES)
            if proposal is not None:
                collection.execute(self.sessions, session, contents, proposal, RULES)
        session.close()
        return finished is not None

    def everything_restores(self, repository: Repository) -> None:
        for point, image in self.kept.items():
            disk = repository.point(point).disks[0]
            with DiskReader(repository, disk) as reader:
                assert reader.read(0, disk.size) == image, f"{point} is not what it was"

    def close(self) -> None:
        self.journal.close()
        self.repository.close()


@pytest.fixture
def ground(kafka: KafkaServer, fresh_site: Settings, tmp_path: Path) -> Iterator[Ground]:
    ensure_topics(fresh_site.kafka, [("repository", None)])
    folder = tmp_path / "repository"
    folder.mkdir()
    with Publisher(fresh_site, "test") as publisher, contextlib.closing(Ground(fresh_site, folder, publisher)) as made:
        yield made


def test_a_collector_killed_anywhere_costs_no_point_and_leaves_nothing(ground: Ground) -> None:
    ground.back_up()
    for place in PLACES:
        doomed = [ground.back_up(), ground.back_up()]
        ground.back_up()
        gone = [ground.drop(point) for point in doomed]

        ground.killed_at(place)

        ground.everything_restores(ground.repository)
        again = ground.back_up(gone[0])  # builds on what is there, half deleted or not
        assert ground.goes_on() == (place in DELETING), place
        ground.everything_restores(ground.repository)
        ground.drop(again)
        ground.drop(next(iter(ground.kept)))
    ground.goes_on()
    elsewhere = repositories.open(ground.store, None, ground.folder / "c", "c")
    ground.everything_restores(elsewhere)
    assert set(elsewhere.point_ids()) == set(ground.kept)
    elsewhere.close()
    for point in list(ground.kept):
        ground.drop(point)
    ground.goes_on()
    ground.goes_on()
    left = [f.name for f in ground.store.list() if f.name.startswith(("packs/", "points", "collections/"))]
    assert left == []
