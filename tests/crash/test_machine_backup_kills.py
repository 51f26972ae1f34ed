"""An agent that is killed at each boundary of a machine's backup: the same command, taken up again, makes its one point; the
point is what was on the disks; nothing stays on the host but what the next backup asks for; what is not ours stays as it is.

The host is a stand-in whose bytes and tracking are real (`tests.stand_ins.memory_host`); log, agent and repository are real.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import registry
from agents.backup.machine_facts import marks_of
from agents.machines import Wanted
from agents.repository import repository as repositories
from agents.repository.points import Point
from agents.repository.reader import DiskReader
from agents.repository.stores.local import LocalStore
from streams.events import AssetChanged, PointSealed, SessionOpened
from streams.settings import Settings
from tests.stack.agent import AgentProcess, await_job, events, send
from tests.stand_ins.hypervisor import Fault, Hypervisor
from tests.stand_ins.memory_host import registered

pytestmark = pytest.mark.crash

MIB = 1 << 20
DISKS = {"vda": 4 * MIB, "vdb": MIB + 512}
FOREIGN = "0198c0de-0000-7000-8000-00000000ffff"
# In the order in which a backup comes by. Those before the point is sealed leave none.
PLACES = (
    "session-opened",
    "backup-snapshot-taken",
    "ingest-meta-durable",
    "ingest-record-durable",
    "backup-point-sealed",
    "backup-marks-kept",
    "command.done",
)


class Site:
    """An agent that knows a host with one machine, and a repository."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.agent = AgentProcess(settings, "tests.stand_ins.memory_agent")
        self.hypervisor = Hypervisor(folder / "host")
        self.native = self.hypervisor.add("shop", DISKS)
        self.random = random.Random(7)
        (folder / "vault").mkdir()
        self.agent.start()
        host = self.hypervisor.settings("h1")
        self.done("host.add", "host/h1", host="h1", kind=host.kind, url=host.url)
        store = {"kind": "local", "path": str(folder / "vault")}
        self.done(
            "repository.add", "repository/vault", name="vault", store=store, encrypted=False, block_size=65_536,
            dedupe="repository", keep="", dry_run=False, secrets={},
        )  # fmt: skip
        self.write()
        self.done("backup.run", "asset/shop", **self.request)
        self.agent.stop()

    request: dict[str, Any] = {"assets": ["shop"], "repository": "vault"}  # noqa: RUF012

    def done(self, what: str, asset: str, /, **parameters: Any) -> dict[str, Any]:
        return self.result(send(self.settings, what, asset, **parameters))

    def result(self, command: str) -> dict[str, Any]:
        end = await_job(self.settings, command)
        assert end.state == "finished", (end.problems, self.agent.tail())
        found: dict[str, Any] = json.loads(end.result)
        return found

    def write(self) -> None:
        for disk, size in DISKS.items():
            for _ in range(3):
                length = self.random.choice((512, 70_000))
                self.hypervisor.write(
                    self.native, disk, self.random.randrange(size - length), self.random.randbytes(length)
                )

    @contextlib.contextmanager
    def repository(self) -> Iterator[repositories.Repository]:
        store = LocalStore(self.folder / "vault")
        with contextlib.closing(repositories.open(store, None, self.folder / "cache", "tester")) as opened:
            yield opened

    def same(self, point: str) -> Point:
        """The point, whose disks are what the machine's are now."""
        with self.repository() as repository:
            found = repository.point(point)
            for disk in found.disks:
                with DiskReader(repository, disk) as reader:
                    assert reader.read(0, disk.size) == self.hypervisor.content(self.native, disk.disk), disk.disk
        assert {disk.disk for disk in found.disks} == set(DISKS)
        return found

    def points_of(self, job: str) -> list[str]:
        sessions = {e.session for e in events(self.settings, "repository", SessionOpened) if e.job == job}
        return [e.point for e in events(self.settings, "repository", PointSealed) if e.session in sessions]


@pytest.fixture
def site(fresh_site: Settings, tmp_path: Path) -> Iterator[Site]:
    made = Site(fresh_site, tmp_path)
    try:
        yield made
    finally:
        made.agent.end()


def test_a_backup_is_made_once_wherever_the_agent_dies(site: Site) -> None:
    with registered():
        theirs = registry.host(site.hypervisor.settings()).snapshot([Wanted(site.native)], job=FOREIGN)
        theirs.keep({site.native: site.hypervisor.marks(site.native, "vda")})
        theirs.close()
    (full,) = events(site.settings, "repository", PointSealed)
    (foreign,) = set(site.hypervisor.marks(site.native, "vda")) - set(marks_of(full.facts).values())
    for place in PLACES:
        site.write()
        site.agent.start(place)
        command = send(site.settings, "backup.run", "asset/shop", **site.request)
        assert site.agent.wait() == -9, (place, site.agent.tail())
        sealed = site.points_of(command)
        assert len(sealed) == (PLACES.index(place) >= PLACES.index("backup-point-sealed")), place
        site.agent.start()
        (told,) = site.result(command)["points"]
        assert site.points_of(command) == [told["point"]], place
        assert told["whole"] == {}, place  # tracking outlived it
        point = site.same(told["point"])
        site.agent.stop()
        assert site.hypervisor.snapshots == 0, place
        wanted = {foreign, *marks_of(point.facts).values(), *marks_of(full.facts).values()}
        assert set(site.hypervisor.marks(site.native, "vda")) == wanted, place
    assert [e.asset for e in events(site.settings, "inventory", AssetChanged)] == ["shop"]


def test_what_a_dead_job_left_goes_with_the_next_backup(site: Site) -> None:
    """A job that died over a snapshot, and failed when it was taken up again because its host was away."""
    site.write()
    site.agent.start("backup-snapshot-taken")
    lost = send(site.settings, "backup.run", "asset/shop", **site.request)
    assert site.agent.wait() == -9, site.agent.tail()
    assert site.hypervisor.snapshots == 1
    site.hypervisor.fault(Fault("leftovers", "away"))
    site.agent.start("backup-leftover-removed")
    assert await_job(site.settings, lost).state == "failed"
    command = send(site.settings, "backup.run", "asset/shop", **site.request)
    assert site.agent.wait() == -9, site.agent.tail()
    site.agent.start()
    (told,) = site.result(command)["points"]
    assert told["whole"] == {}
    site.same(told["point"])
    assert site.hypervisor.snapshots == 0
    assert len(site.hypervisor.marks(site.native, "vda")) == 2


def test_a_restore_is_taken_up_again_and_completed(site: Site, tmp_path: Path) -> None:
    """By the agent's next run, with a real log; each boundary by itself is in test_restore_kills."""
    (sealed,) = events(site.settings, "repository", PointSealed)
    then = {disk: site.hypervisor.content(site.native, disk) for disk in DISKS}
    site.write()
    request: dict[str, Any] = {"repository": "vault", "point": sealed.point}

    def killed(place: str, asset: str, **more: Any) -> dict[str, Any]:
        site.agent.start(place)
        command = send(site.settings, "restore.run", asset, **request, **more)
        assert site.agent.wait() == -9, (place, site.agent.tail())
        site.agent.start()
        told = site.result(command)
        site.agent.stop()
        assert [disk["compared"] for disk in told["disks"]] == list(DISKS.values())
        return told

    killed("restore-disk-written", "shop", how="original", stop=True, start=True)
    assert {disk: site.hypervisor.content(site.native, disk) for disk in DISKS} == then

    made = killed("restore-disk-opened:2", "restore/1", how="machine", host="h1", name="copy", cpus=3, start=True)
    assert {disk: site.hypervisor.content(made["machine"], disk) for disk in DISKS} == then
    with registered():
        machines = {seen.name: seen for seen in registry.host(site.hypervisor.settings()).discover()}
    assert {name: (seen.power, seen.cpus, seen.restoring) for name, seen in machines.items()} == {
        "shop": ("running", 2, ""),
        "copy": ("running", 3, ""),
    }
    assert {e.asset for e in events(site.settings, "inventory", AssetChanged)} == {"shop", "copy"}

    killed("restore-image-proven", "restore/2", how="files", to=str(tmp_path / "out"), format="raw")
    assert {disk: (tmp_path / "out" / f"{disk}.raw").read_bytes() for disk in DISKS} == then
