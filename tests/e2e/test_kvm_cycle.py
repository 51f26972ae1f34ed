"""Backups and restores of a real guest that writes all the while, on a real libvirt."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from agents.errors import AgentError, SourceUnavailable
from agents.machines import Host, Snapshot, Wanted
from agents.repository.retention import DAY_US
from deploy.embedded.process import wait_until
from streams.events import HostDefined
from streams.ids import now_us
from tests.contract.hosts import patched, read_whole, the_disk
from tests.stack.guest import NoGuest, check, files_in, guest
from tests.stack.kvm import KvmGround, LibvirtServer, add_guest, agent_answers, domain_state, run, said, why_not
from tests.stack.running_api import eventually
from tests.stack.running_site import RunningSite
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, make_site
from tests.unit.agents.backup.site import closing
from tests.unit.agents.restore.site import Restores

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Shop:
    """A libvirt with a guest that has begun to write."""

    server: LibvirtServer
    native: str

    def host(self) -> Host:
        return self.server.host()

    def goes_on(self) -> None:
        """Return when the guest has written something more from now on, and could freeze."""
        so_far = (self.server.directory / "console.log").stat().st_size
        said(self.server, self.native, "GUEST-WROTE", after=so_far)
        agent_answers(self.server, self.native)

    def is_whole(self, content: bytes) -> int:
        """Of a disk: the file system is clean and every file holds what it is named by. How many files."""
        image = self.server.directory / "image"
        image.write_bytes(content)
        assert check(image) == ""
        files = files_in(image)
        assert {name: f"{digest}.bin" for name, digest in files.items()} == {name: name for name in files}
        assert files
        return len(files)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    if reason := why_not():
        pytest.skip(reason)
    try:
        program = guest()
    except NoGuest as reason:
        pytest.skip(str(reason))
    scratch = Scratch("k")  # with a job's id, a socket's path is as long as it may be
    server = LibvirtServer(scratch.path)
    try:
        server.start()
        native = add_guest(server, program, "shop")
        said(server, native, "GUEST-WROTE 3")
        yield Shop(server, native)
    finally:
        server.stop()
        scratch.remove()


@dataclass(slots=True)
class Chain:
    """Backups of the guest, one after the other: what the last one's point holds, and its mark."""

    shop: Shop
    content: bytes = b""
    mark: str = ""
    consistency: str = ""
    why_whole: str = ""

    def back_up(self, job: str) -> None:
        since = {"vda": self.mark} if self.mark else {}
        snapshot = self.shop.host().snapshot([Wanted(self.shop.native, since=since)], job=job)
        try:
            self.take(snapshot)
            snapshot.keep({})
        finally:
            snapshot.close()

    def take(self, snapshot: Snapshot) -> None:
        disk = the_disk(snapshot)
        self.content = patched(self.content, disk) if disk.since else read_whole(disk)
        self.mark, self.why_whole = disk.mark, disk.why_whole
        self.consistency = snapshot.machines[0].consistency
        # What QEMU says has changed is all that has.
        assert self.content == read_whole(disk)


def test_a_guest_is_backed_up_while_it_writes_and_when_it_is_off(shop: Shop) -> None:
    chain = Chain(shop)
    shop.goes_on()
    chain.back_up("full")
    assert chain.consistency == "files"
    shop.is_whole(chain.content)
    for job in ("first", "second"):
        shop.goes_on()
        chain.back_up(job)
        assert not chain.why_whole
        shop.is_whole(chain.content)

    host = shop.host()
    # Off, it is read by a QEMU that is there for that alone, and what changed up to the end is known.
    host.stop(shop.native)
    chain.back_up("off")
    assert not chain.why_whole
    assert host.machine(shop.native).power == "off"
    shop.is_whole(chain.content)

    host.start(shop.native)
    shop.goes_on()


def taker(shop: Shop, failpoint: str, job: str, wanted: Mapping[str, Mapping[str, str]], quiesce: str = "try") -> int:
    """Another process takes a snapshot and dies at `failpoint`; how it ended."""
    request = {
        "url": shop.server.url,
        "scratch": str(shop.server.scratch),
        "job": job,
        "quiesce": quiesce,
        "wanted": list(wanted.items()),
        "keep": True,
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "tests.stand_ins.kvm_taker"],
        input=json.dumps(request),
        text=True,
        env={**os.environ, "HOLDFAST_FAILPOINT": failpoint},
        timeout=300,
        check=False,
    ).returncode


@pytest.mark.crash
@pytest.mark.parametrize("failpoint", ["kvm.held", "kvm.begun", "kvm.kept"])
def test_a_node_that_dies_over_a_snapshot_leaves_guests_that_go_on_and_forgets_nothing(
    shop: Shop, failpoint: str, tmp_path: Path
) -> None:
    """The guest and another machine, at one moment: frozen and paused when the node dies at `kvm.held`."""
    host = shop.host()
    ground = KvmGround(shop.server)
    other = ground.add(f"other-{failpoint}", {"vda": 1 << 20})
    chain = Chain(shop)
    chain.back_up("before")
    shop.goes_on()
    job = f"dead-{failpoint}"
    assert taker(shop, failpoint, job, {shop.native: {"vda": chain.mark}, other: {}}) == -signal.SIGKILL
    if failpoint == "kvm.held":
        assert domain_state(shop.server, shop.native) == "paused"
    left = [found for found in shop.host().leftovers() if found.job == job]
    assert {found.native for found in left if found.kind == "snapshot"} == {shop.native, other}
    for found in left:
        if found.kind == "snapshot" or failpoint != "kvm.kept":
            host.remove(found)
    shop.goes_on()
    assert domain_state(shop.server, other) == "running"
    marks = [found.name for found in host.leftovers() if found.native == shop.native and found.kind == "mark"]
    if failpoint == "kvm.kept":
        # The point was sealed: the dead job's mark counts, and the earlier one is gone.
        (kept,) = marks
        snapshot = host.snapshot([Wanted(shop.native, since={"vda": kept})], job="later")
        try:
            assert the_disk(snapshot).since == kept
        finally:
            snapshot.close()
    else:
        assert marks == [chain.mark]
        chain.back_up("later")
        assert not chain.why_whole
        shop.is_whole(chain.content)
    host.stop(other)
    host.delete(other)


def test_a_machine_that_is_frozen_by_force_is_said_to_be_of_files(shop: Shop) -> None:
    shop.goes_on()
    snapshot = shop.host().snapshot([Wanted(shop.native)], job="frozen", quiesce="require")
    try:
        assert snapshot.machines[0].consistency == "files"
        with pytest.raises(AgentError) as refused:
            shop.host().snapshot([Wanted(shop.native)], job="another")
        assert refused.value.code == "machine-busy"
    finally:
        snapshot.close()
    shop.goes_on()


@pytest.fixture
def site(shop: Shop, tmp_path: Path) -> Iterator[Restores]:
    """A repository, and handlers of commands, over the real libvirt."""
    with closing(Restores(tmp_path)) as made:
        assert isinstance(made, Restores)
        found = shop.server.settings("h1")
        defined = HostDefined(
            host="h1", kind=found.kind, state="changed", url=found.url, options=found.options, defined_us=2, by="tests"
        )
        made.services.hosts.apply(defined)
        made.discover()
        yield made


def test_points_of_a_guest_go_back_to_it_to_a_new_machine_and_to_files(
    shop: Shop, site: Restores, tmp_path: Path
) -> None:
    host = shop.host()
    (first,) = site.backup("shop")
    shop.goes_on()
    (second,) = site.backup("shop")
    assert second.facts["mode"] == "incremental"
    for point in (first, second):
        shop.is_whole(site.content(point, "vda"))

    # To files: each is read back by QEMU, and its file system is clean.
    for format in ("qcow2", "vmdk", "vhdx"):
        to = tmp_path / format
        told = site.restore("files", second, to=str(to), format=format)
        assert told["disks"][0]["compared"] == second.disks[0].size
        run("qemu-img", "convert", "-f", format, "-O", "raw", str(to / f"vda.{format}"), str(tmp_path / "raw"))
        assert (tmp_path / "raw").read_bytes() == site.content(second, "vda")
        assert b"<domain" in (to / "description").read_bytes()

    # To a new machine with other hardware, which boots while the old one goes on.
    wanted: dict[str, Any] = {
        "cpus": 2,
        "memory": 256 << 20,
        "bus": "scsi",
        "nics": [{"network": "user"}, {"network": "user"}],
    }
    made = site.restore("machine", second, name="copy", start=True, **wanted)
    hardware = said(shop.server, made["machine"], r"GUEST-HARDWARE cpus=(\d) memory_kib=(\d+) disk=(\w+) nics=(\d)")
    assert (hardware[1], hardware[3], hardware[4]) == ("2", "sda", "2")
    files = shop.is_whole(site.content(second, "vda"))
    checked = said(shop.server, made["machine"], r"GUEST-CHECKED ok=(\d+) bad=(\d+)")
    assert (int(checked[1]), checked[2]) == (files, "0")
    host.stop(made["machine"])
    host.delete(made["machine"])

    # Back to the first point: the machine is stopped for it, only what differs is written, and it boots again.
    shop.goes_on()
    told = site.restore("original", first, stop=True)
    (disk,) = told["disks"]
    assert 0 < disk["written"] <= disk["compared"] < disk["size"]
    assert (disk["base"], disk["compared"] + disk["trusted"]) == (second.point, disk["size"]), disk["why_whole"]
    assert KvmGround(shop.server).content(shop.native, "vda") == site.content(first, "vda")
    assert not host.machine(shop.native).restoring
    assert site.restore("original", first, dry_run=True)["disks"][0]["differed"] == 0
    booted = (shop.server.directory / "console.log").stat().st_size
    (disk,) = site.restore("original", first, start=True)["disks"]
    assert (disk["compared"], disk["base"]) == (disk["size"], ""), "nobody had kept track any more"
    files = shop.is_whole(site.content(first, "vda"))
    checked = said(shop.server, shop.native, r"GUEST-CHECKED ok=(\d+) bad=(\d+)", after=booted)
    assert (int(checked[1]), checked[2]) == (files, "0")
    shop.goes_on()
    (third,) = site.backup("shop")
    assert site.told[0]["whole"], "what the host had kept track of before the restore is of no use"
    shop.is_whole(site.content(third, "vda"))
    assert not [left for left in host.leftovers() if left.kind in ("snapshot", "machine", "file")]


def test_a_qemu_that_dies_over_a_backup_costs_one_reading_of_the_whole_disk(shop: Shop, site: Restores) -> None:
    host = shop.host()
    shop.goes_on()
    (first,) = site.backup("shop")
    shop.is_whole(site.content(first, "vda"))
    assert first.facts["consistency"] == "files"
    shop.goes_on()
    booted = (shop.server.directory / "console.log").stat().st_size
    killed: list[bool] = []

    def kill_once() -> None:  # asked while disks are read
        if not killed:
            killed.append(True)
            shop.server.qemu_of("shop").signal(signal.SIGKILL)

    site.check = kill_once
    with pytest.raises(SourceUnavailable):
        site.backup("shop", mode="full", bandwidth=200_000)
    assert not site.held["main"].sessions.ledger().open_sessions()
    assert wait_until(lambda: host.machine(shop.native).power == "off", 60)
    host.start(shop.native)
    assert said(shop.server, shop.native, r"GUEST-CHECKED ok=\d+ bad=(\d+)", after=booted)[1] == "0"

    shop.goes_on()
    (after,) = site.backup("shop")
    assert set(site.told[0]["whole"]) == {"vda"}
    assert after.continues == first.point
    assert 0 < site.told[0]["changed"] < site.told[0]["size"] // 2
    shop.is_whole(site.content(after, "vda"))
    assert not [left for left in host.leftovers() if left.kind in ("snapshot", "file")]
    for mode in ("incremental", "differential", "incremental"):
        shop.goes_on()
        (point,) = site.backup("shop", mode=mode)
        assert site.told[0]["whole"] == {}
        assert point.facts["full"] == after.point
        shop.is_whole(site.content(point, "vda"))
    jobs = {point.facts["job"], after.facts["job"]}
    ours = {left.job for left in host.leftovers() if left.kind == "mark" and left.job in _jobs(site)}
    assert ours == jobs, "marks that somebody may ask since, and no others"
    shop.is_whole(site.content(first, "vda"))


def test_points_that_expire_take_nothing_from_those_that_stay(shop: Shop, site: Restores) -> None:
    """The full one is let go, and one in the middle; one that continues it is starred, another is the newest."""
    host = shop.host()
    points = []
    for mode in ("full", "incremental", "incremental", "incremental"):
        shop.goes_on()
        points += site.backup("shop", mode=mode)
    stay = {point.point: site.content(point, "vda") for point in (points[1], points[3])}
    site.do("point.star", point=points[1].point, note="the last before the move")
    days_later = now_us() + 3 * DAY_US
    site.held["main"].sessions.clock = lambda: days_later
    site.do("repository.retention", keep="1d")
    shown = site.do("point.expire", dry_run=True)
    assert {one["point"] for one in shown["points"] if not one["keep"]} == {points[0].point, points[2].point}
    site.do("point.expire", dry_run=False, digest=shown["digest"])
    assert set(site.held["main"].sessions.ledger().standing()) == set(stay)
    before = _packed(site)
    done = site.do("repository.collect")
    assert (done["waiting"], done["freed"] > 0) == ([], True)
    assert _packed(site) < before

    files = {}
    for point in (points[3], points[1]):
        assert site.content(point, "vda") == stay[point.point]
        files[point.point] = shop.is_whole(stay[point.point])
    # The one that continued what is gone boots.
    made = site.restore("machine", points[1], name="kept", start=True)
    checked = said(shop.server, made["machine"], r"GUEST-CHECKED ok=(\d+) bad=(\d+)")
    assert (int(checked[1]), checked[2]) == (files[points[1].point], "0")
    host.stop(made["machine"])
    host.delete(made["machine"])
    shop.goes_on()
    (next_,) = site.backup("shop")
    assert next_.continues == points[3].point
    assert site.told[0]["whole"] == {}
    shop.is_whole(site.content(next_, "vda"))


def _packed(site: Restores) -> int:
    return sum(pack.size for pack in site.stores["main"].list("packs/"))


def _jobs(site: Restores) -> set[str]:
    return {session.opened.job for session in site.held["main"].sessions.ledger().sessions.values()}


# The same as a user does it


@pytest.fixture(scope="module")
def installation(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[RunningSite]:
    scratch = Scratch("kvm-site")
    database = postgres.fresh_database()
    running = RunningSite(make_site(scratch.path / "site", kafka.settings(f"t{secrets.token_hex(4)}."), database))
    try:
        # The API is up before the processors have made the read models.
        eventually(lambda: running.run("repository", "list").returncode == 0)
        yield running
    finally:
        running.close()
        postgres.drop_database(database.dbname)
        scratch.remove()


def test_a_machine_is_backed_up_and_restored_by_the_command_line(
    shop: Shop, installation: RunningSite, tmp_path: Path
) -> None:
    (tmp_path / "vault").mkdir()
    installation.cli("repository", "add", "vault", str(tmp_path / "vault"), "--no-encryption")
    option = f"scratch={shop.server.scratch}"
    installation.cli("host", "add", "h1", "--url", shop.server.url, "--option", option, "--option", "shutdown_s=60")

    def assets() -> list[str]:
        return [asset["asset"] for asset in installation.json("asset", "list")["assets"]]

    eventually(lambda: assets() == ["shop"])

    def back_up() -> dict[str, Any]:
        (job,) = installation.json("backup", "machine", "shop", "--to", "vault")["jobs"]
        (point,) = job["result"]["points"]
        return dict(point)

    shop.goes_on()
    points = [back_up()]
    shop.goes_on()
    points.append(back_up())
    assert points[1]["whole"] == {}, "only what changed is read"
    assert points[1]["changed"] < points[1]["size"] // 4
    assert {point["consistency"] for point in points} == {"files"}
    assert list(shop.server.scratch.iterdir()) == []

    # The agent dies while it reads; when it is there again, it does what was asked for, since the same mark.
    shop.goes_on()
    (job,) = installation.json("backup", "machine", "shop", "--to", "vault", "--bandwidth", "300K", "--no-wait")["jobs"]
    assert wait_until(lambda: "snapshot" in {left.kind for left in shop.host().leftovers() if left.job == job}, 120)
    installation.kill("agent")
    assert "snapshot" in {left.kind for left in shop.host().leftovers() if left.job == job}
    installation.start("agent")
    eventually(lambda: installation.json("job", "show", job)["state"] in ("finished", "failed"), patience_s=240)
    ended = installation.json("job", "show", job)
    assert ended["state"] == "finished", ended
    (point,) = ended["result"]["points"]
    points.append(point)
    assert point["whole"] == {}, "nothing that changed was forgotten"
    assert not [left for left in shop.host().leftovers() if left.kind == "snapshot"]

    # To files: the guest's file system as it was, whole.
    place = tmp_path / "files"
    installation.cli("restore", "files", points[2]["point"], "--to", str(place), "--format", "raw")
    (image,) = place.glob("*.raw")
    files = shop.is_whole(image.read_bytes())
    host = shop.host()

    # To the original, which has gone on: only what differs is written.
    shop.goes_on()
    booted = (shop.server.directory / "console.log").stat().st_size
    installation.cli("restore", "original", points[2]["point"], "--stop", "--start", "--yes")
    checked = said(shop.server, shop.native, r"GUEST-CHECKED ok=(\d+) bad=(\d+)", after=booted)
    assert (int(checked[1]), checked[2]) == (files, "0")
    assert not host.machine(shop.native).restoring
    shop.goes_on()
    assert back_up()["whole"], "what the host had kept track of was of no use after the restore"
    marks = [found for found in host.leftovers() if found.native == shop.native]
    assert {found.kind for found in marks} == {"mark"}, marks
    assert len(marks) <= 2, marks


# Several nodes


LEASE_S = 8


@dataclass(frozen=True, slots=True)
class Nodes:
    """The site's agent and another, `two`, with a data directory of its own and the same secrets, as on another machine."""

    installation: RunningSite
    second: Path

    def start_one(self, stop_at: str = "") -> None:
        self.installation.start("agent", {"HOLDFAST_AGENT_LEASE_S": str(LEASE_S), "HOLDFAST_STOPPOINT": stop_at})

    def start_two(self) -> None:
        there = {"HOLDFAST_DATA": str(self.second), "HOLDFAST_AGENT_NODE": "two"}
        key = {"HOLDFAST_SECRET_KEY_FILE": str(self.installation.settings.secret_key_file)}
        self.installation.start("agent-two", {"HOLDFAST_AGENT_LEASE_S": str(LEASE_S), **there, **key})


@pytest.fixture
def nodes(installation: RunningSite, tmp_path: Path) -> Iterator[Nodes]:
    """None is started yet."""
    second = tmp_path / "second"
    second.mkdir()
    (second / "secrets").symlink_to(installation.settings.data_dir / "secrets")
    installation.processes["agent"].stop()
    try:
        yield Nodes(installation, second)
    finally:
        for name in [name for name in installation.processes if name.startswith("agent")]:
            installation.processes.pop(name).stop()
        installation.start("agent")


@pytest.mark.crash
def test_a_node_dies_over_a_scheduled_backup_and_another_does_it_once(
    shop: Shop, installation: RunningSite, nodes: Nodes, tmp_path: Path
) -> None:
    # It stops when all has been read and stored, the snapshot goes on, and no point has been made.
    nodes.start_one(stop_at="ingest-data-durable")
    (tmp_path / "nightly").mkdir()
    installation.json("repository", "add", "nightly", str(tmp_path / "nightly"), "--no-encryption", "--no-wait")
    option = f"scratch={shop.server.scratch}"
    installation.cli("host", "add", "h1", "--url", shop.server.url, "--option", option, "--option", "shutdown_s=60")
    eventually(lambda: installation.run("repository", "show", "nightly").returncode == 0)
    eventually(lambda: [a["asset"] for a in installation.json("asset", "list")["assets"]] == ["shop"])
    nodes.start_two()
    shop.goes_on()
    marks = {left.name for left in shop.host().leftovers() if left.kind == "mark"}
    # Due at once, and then not for a long time.
    installation.cli("policy", "add", "often", "--to", "nightly", "--name", "s*", "-s", "rolling 90d")
    one = psutil.Process(installation.processes["agent"].pid)
    assert wait_until(lambda: one.status() == psutil.STATUS_STOPPED, 240), installation.log("agent")
    (job,) = {left.job for left in shop.host().leftovers() if left.kind == "snapshot"}
    assert list(shop.server.scratch.iterdir()), "a scratch file and a socket"
    installation.kill("agent")
    shop.goes_on()
    assert job in {left.job for left in shop.host().leftovers() if left.kind == "snapshot"}
    assert installation.json("point", "list", "--repository", "nightly")["points"] == []
    installation.cli("repository", "move", "nightly", "--to", "two")

    def status() -> list[dict[str, Any]]:
        runs = installation.json("policy", "status", "often")["runs"]
        return [run["run"] for run in runs if run["run"] and run["run"]["ended"]]

    (run_,) = eventually(status, patience_s=240)
    assert (run_["assets"], run_["figures"]["done"]) == (["shop"], 1)
    ended = installation.json("job", "show", job)
    assert (ended["state"], ended["by"], ended["claims"] >= 2) == ("finished", "agent-two", True), ended
    backups = installation.json("job", "list", "--kind", "backup.run", "--state", "finished")["jobs"]
    assert [one["job"] for one in backups if one["requested"] >= ended["requested"]] == [job]
    (point,) = eventually(lambda: installation.json("point", "list", "--repository", "nightly")["points"])
    assert point["asset"] == "shop"

    # Nothing of the dead one is left: no snapshot, no scratch file, no socket, and of marks only what is asked since.
    left = [left for left in shop.host().leftovers() if left.name not in marks]
    assert [(found.kind, found.job) for found in left] == [("mark", job)]
    assert list(shop.server.scratch.iterdir()) == []
    place = tmp_path / "files"
    installation.cli("restore", "files", point["point"], "--to", str(place), "--format", "raw")
    (image,) = place.glob("*.raw")
    shop.is_whole(image.read_bytes())

    # It comes back and has nothing to do; what changes is known to the one that has the repository now.
    nodes.start_one()
    shop.goes_on()
    ran = installation.json("policy", "run", "often")
    ((again,),) = [task["jobs"] for task in ran["tasks"]]
    told = installation.json("job", "show", again["job"])
    assert (told["state"], told["by"]) == ("finished", "agent-two")
    assert told["result"]["points"][0]["whole"] == {}
    assert told["result"]["points"][0]["continues"] == point["point"]
    assert len(installation.json("point", "list", "--repository", "nightly")["points"]) == 2
