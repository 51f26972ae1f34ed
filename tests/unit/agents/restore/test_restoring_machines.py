"""Restores of machines on an in-memory host: what is on the disks is what the point says, only what differs is written, and what
is not whole says so."""

from __future__ import annotations

import errno
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.commands import Cancelled, Interrupted
from agents.errors import AgentError
from agents.machines import Wanted
from agents.repository.handlers import say_mark
from agents.repository.points import Point
from agents.restore import writing
from streams.events import HostDefined
from streams.ids import uuid7
from tests.stand_ins import memory_host
from tests.stand_ins.hypervisor import Fault
from tests.stand_ins.memory_host import MemoryHost, registered
from tests.unit.agents.backup.site import BLOCK, Guest, closing
from tests.unit.agents.restore.site import Restores

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Restores]:
    with registered(), closing(Restores(tmp_path)) as made:
        assert isinstance(made, Restores)
        yield made


@pytest.fixture
def shop(site: Restores) -> Guest:
    guest = Guest(site, "shop", {"vda": 8 * MIB, "vdb": 3 * MIB + 512})
    guest.write("vda", 0, 2 * MIB)
    guest.write("vdb", MIB, MIB)
    site.discover()
    return guest


def contents(site: Restores, native: str, point: Point) -> Mapping[str, bool]:
    """Disk → whether it is what the point says."""
    return {d.disk: site.hypervisor.content(native, d.disk) == site.content(point, d.disk) for d in point.disks}


WHOLE = {"vda": True, "vdb": True}


def test_the_original_gets_what_differs_and_nothing_else(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    shop.write("vda", 5 * MIB, 10)  # a block that was zero
    shop.write("vdb", MIB + 7, 1)
    with pytest.raises(AgentError) as running:
        site.restore("original", point)
    assert running.value.code == "machine-running"
    site.hypervisor.configure(shop.native, power="off")

    told = site.restore("original", point, dry_run=True)
    assert [d["differed"] for d in told["disks"]] == [BLOCK, BLOCK]
    assert contents(site, shop.native, point) == {"vda": False, "vdb": False}, "a dry run writes nothing"
    assert not site.host.machine(shop.native).restoring

    told = site.restore("original", point)
    assert contents(site, shop.native, point) == WHOLE
    assert [(d["written"], d["compared"] + d["trusted"]) for d in told["disks"]] == [
        (BLOCK, 8 * MIB),
        (BLOCK, 3 * MIB + 512),
    ]
    assert not site.host.machine(shop.native).restoring
    assert not told["started"]
    assert site.restore("original", point)["written"] == 0
    # What the host had kept track of is of no use now, and the next backup does without.
    (following,) = site.backup("shop")
    assert all(site.content(following, disk) == shop.content(disk) for disk in ("vda", "vdb"))


def test_a_running_original_is_stopped_and_started_if_told_so(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    shop.scatter()
    told = site.restore("original", point, stop=True, start=True)
    assert told["started"]
    assert site.host.machine(shop.native).power == "running"
    assert contents(site, shop.native, point) == WHOLE


def test_chosen_disks_alone_are_restored_and_the_others_are_said(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    shop.scatter()
    site.hypervisor.configure(shop.native, power="off")
    site.restore("original", point, disks=["vdb"])
    assert contents(site, shop.native, point) == {"vda": False, "vdb": True}
    assert [(p.code, "vda" in p.message) for p in site.warned] == [("disks-left", True)]


def test_an_original_that_does_not_fit_is_not_touched(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    site.hypervisor.configure(shop.native, power="off")
    site.hypervisor.resize(shop.native, "vda", 9 * MIB)
    with pytest.raises(AgentError) as refused:
        site.restore("original", point)
    assert refused.value.code == "disk-size"
    assert "larger" in refused.value.message
    assert not site.host.machine(shop.native).restoring
    site.hypervisor.remove_machine(shop.native)
    with pytest.raises(AgentError) as gone:
        site.restore("original", point)
    assert gone.value.code == "machine-unknown"
    assert "restore machine" in gone.value.hint


def test_a_new_machine_is_as_asked_for_and_the_old_one_is_left_alone(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    shop.scatter()
    then = {disk: shop.content(disk) for disk in shop.disks}
    with pytest.raises(AgentError) as taken:
        site.restore("machine", point)
    assert taken.value.code == "machine-exists"
    nics = [{"network": "lab", "model": "e1000"}]
    more: dict[str, Any] = {
        "name": "copy",
        "cpus": 7,
        "memory": 2 << 30,
        "bus": "sata",
        "nics": nics,
        "storage": "slow",
    }
    planned = site.restore("machine", point, dry_run=True, **more)
    assert planned["name"] == "copy"
    assert set(site.machines()) == {"shop"}

    told = site.restore("machine", point, start=True, **more)
    made = site.machines()["copy"]
    assert made.native == told["machine"] != shop.native
    assert contents(site, made.native, point) == WHOLE
    assert (made.cpus, made.memory, made.power, made.restoring) == (7, 2 << 30, "running", "")
    assert {(d.bus, d.storage) for d in made.disks} == {("sata", "slow")}
    assert [(n.network, n.model) for n in made.nics] == [("lab", "e1000")]
    assert made.companions == {"nvram": b"variables of shop"}
    assert {disk: shop.content(disk) for disk in shop.disks} == then
    assert site.notes == []
    assert "copy" in site.services.hosts.assets(), "the catalogue hears of it"


def test_a_machine_that_does_not_start_is_restored_nevertheless(
    site: Restores, shop: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = site.backup("shop")

    def refuse(*_: object) -> None:
        raise AgentError("machine-unstartable", "there is no such network")

    monkeypatch.setattr(MemoryHost, "start", refuse)
    told = site.restore("machine", point, name="copy", start=True)
    assert (told["started"], [p.code for p in site.warned]) == (False, ["machine-unstartable"])
    assert contents(site, told["machine"], point) == WHOLE
    assert not site.machines()["copy"].restoring


def test_a_machine_that_is_gone_comes_back_as_itself(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    mac = site.machines()["shop"].nics[0].mac
    site.hypervisor.remove_machine(shop.native)
    site.restore("machine", point, keep_identity=True)
    back = site.machines()["shop"]
    assert (back.native, back.nics[0].mac, back.cpus) == (shop.native, mac, 2)
    assert contents(site, back.native, point) == WHOLE


def test_a_restore_that_fails_leaves_no_machine_or_names_it(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    site.hypervisor.fault(Fault("write", "refuse", nth=2))
    with pytest.raises(AgentError, match="a fault that a test asked for"):
        site.restore("machine", point, name="copy")
    assert set(site.machines()) == {"shop"}
    assert site.notes == []
    site.hypervisor.release()
    site.hypervisor.fault(Fault("write", "refuse", nth=2), Fault("delete", "refuse"))
    with pytest.raises(AgentError, match="a fault"):
        site.restore("machine", point, name="copy")
    assert [p.code for p in site.warned] == ["leftover"]
    assert site.machines()["copy"].restoring, "what is not whole says so"
    site.hypervisor.release()


def test_who_has_lost_the_job_does_not_remove_the_machine_that_another_goes_on_with(
    site: Restores, shop: Guest
) -> None:
    (point,) = site.backup("shop")

    def check() -> None:
        if site.notes:  # it was begun
            raise Interrupted

    job = uuid7()
    site.hypervisor.fault(Fault("write", "refuse"))
    site.check = check
    with pytest.raises(Interrupted):
        site.restore("machine", point, job=job, name="copy")
    assert site.machines()["copy"].restoring == job
    site.check = lambda: None
    site.hypervisor.release()
    told = site.restore("machine", point, job=job, resumed=True, name="copy")
    assert contents(site, told["machine"], point) == WHOLE


def test_an_original_whose_restore_fails_says_that_it_is_not_whole(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    shop.scatter()
    site.hypervisor.configure(shop.native, power="off")
    site.hypervisor.fault(Fault("write", "refuse"))
    with pytest.raises(AgentError) as failed:
        site.restore("original", point)
    assert "not whole" in failed.value.hint
    assert site.host.machine(shop.native).restoring
    site.hypervisor.release()
    site.restore("original", point)
    assert contents(site, shop.native, point) == WHOLE
    assert not site.host.machine(shop.native).restoring


def test_a_host_that_loses_writes_is_found_out(site: Restores, shop: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    (point,) = site.backup("shop")
    shop.write("vda", 5 * MIB, 10)
    site.hypervisor.configure(shop.native, power="off")
    monkeypatch.setattr("tests.stand_ins.memory_host._DiskTarget.zero", lambda *_: None)
    with pytest.raises(AgentError) as found:
        site.restore("original", point)
    assert found.value.code == "restore-differs"
    assert site.host.machine(shop.native).restoring


def test_a_new_machine_that_was_interrupted_is_gone_on_with(
    site: Restores, shop: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.repository.restoring.WINDOW", 8)
    (point,) = site.backup("shop")
    job = uuid7()
    notes = site.services.settings.data_dir / "restores"

    def check() -> None:
        if any(b" 1\n" in path.read_bytes() for path in notes.glob(f"{job}-*")):
            raise Interrupted

    site.check = check
    with pytest.raises(Interrupted):
        site.restore("machine", point, job=job, name="copy")
    site.check = lambda: None
    half = site.machines()["copy"]
    assert half.restoring == job
    assert site.notes
    told = site.restore("machine", point, job=job, resumed=True, name="copy")
    assert told["machine"] == half.native
    assert sum(d["kept"] for d in told["disks"]) > 0
    assert contents(site, half.native, point) == WHOLE
    assert not site.machines()["copy"].restoring
    assert site.notes == []


def test_another_platforms_machine_is_refused(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    name, defined = "h1", site.services.hosts.get("h1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MemoryHost, "settings", property(lambda _: replace(site.hypervisor.settings("h1"), kind="kvm")))
        with pytest.raises(AgentError) as refused:
            site.restore("machine", point, host=name)
    assert (refused.value.code, defined.kind) == ("platform-unlike", "memory")


def test_a_limit_on_bandwidth_is_kept_to(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")
    waited: list[float] = []
    site.services.stop.wait = waited.append
    site.restore("machine", point, name="copy", bandwidth=1024)
    assert sum(waited) > 1000, "three MiB go through at one KiB a second"


# Several disks at once


def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many disks are written to at the same time, at most: grows by one when another begins."""
    now, most, lock, real = [0], [0], threading.Lock(), writing.fill

    def counted(*args: Any) -> writing.Written:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            deadline = time.monotonic() + WAIT_S
            while most[0] < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            return real(*args)
        finally:
            with lock:
                now[0] -= 1

    monkeypatch.setattr(writing, "fill", counted)
    return most


WAIT_S = 60.0


def test_disks_go_at_once_and_progress_is_of_all_of_them(
    site: Restores, shop: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = site.backup("shop")
    most = at_once(monkeypatch)
    site.counts.clear()
    told = site.restore("machine", point, name="copy")
    assert most == [2]
    assert contents(site, told["machine"], point) == WHOLE
    size = 2 * sum(shop.disks.values())  # written, and read back
    counts = [(done, total) for done, total in site.counts if total > BLOCK]
    assert {total for _, total in counts} == {size}
    assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    assert counts[-1][0] == size
    assert any("restoring copy vda, restoring copy vdb" in said or "vdb, restoring" in said for said in site.progress)


def test_a_host_that_is_to_be_spared_gets_one_disk_after_the_other(
    site: Restores, shop: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site.hypervisor.settings("h1")
    site.services.hosts.apply(
        HostDefined(
            host="h1", kind=settings.kind, state="changed", url=settings.url, options={"storage_disks": "1"}, defined_us=2,
            by="tests",
        )
    )  # fmt: skip
    (point,) = site.backup("shop")
    monkeypatch.setattr(sys.modules[__name__], "WAIT_S", 0.0)
    most = at_once(monkeypatch)
    told = site.restore("machine", point, name="copy")
    assert most == [1]
    assert contents(site, told["machine"], point) == WHOLE


def test_of_a_disk_that_fails_its_name_is_told_and_how_it_stands_with_the_others(
    site: Restores, shop: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = site.backup("shop")
    for disk in shop.disks:
        shop.write(disk, MIB + 7, 1)
    site.hypervisor.configure(shop.native, power="off")
    real = memory_host._DiskTarget.write

    def write(self: Any, offset: int, data: Any) -> None:
        if self._disk == "vdb":
            raise OSError(errno.EIO, "it is broken")
        real(self, offset, data)

    with monkeypatch.context() as patched:
        patched.setattr(memory_host._DiskTarget, "write", write)
        with pytest.raises(AgentError) as failed:
            site.restore("original", point)
    assert failed.value.code == "target-unwritable"
    assert failed.value.message.startswith("disk vdb: it is broken (of the others, vda ")
    assert "not whole" in failed.value.hint
    assert site.host.machine(shop.native).restoring
    site.restore("original", point)
    assert contents(site, shop.native, point) == WHOLE


def test_a_cancelled_one_says_so_and_nothing_of_disks(site: Restores, shop: Guest) -> None:
    (point,) = site.backup("shop")

    def check() -> None:
        if site.notes:  # it was begun
            raise Cancelled("ada")

    site.check = check
    with pytest.raises(Cancelled) as cancelled:
        site.restore("machine", point, name="copy")
    assert cancelled.value.message == "ada cancelled it"
    assert set(site.machines()) == {"shop"}
    assert site.notes == []


# What need not be read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is read of disks that are restored: disk, offset, length."""
    found: list[tuple[str, int, int]] = []
    real = memory_host._DiskTarget.read_into

    def read_into(self: Any, offset: int, buffer: memoryview) -> None:
        found.append((self._disk, offset, len(buffer)))
        real(self, offset, buffer)

    monkeypatch.setattr(memory_host._DiskTarget, "read_into", read_into)
    return found


def two_points(site: Restores, shop: Guest) -> tuple[Point, Point]:
    """The second one's mark is on the host; after it something has been written, and the machine is off."""
    (first,) = site.backup("shop")
    shop.write("vda", 5 * MIB, 10)
    shop.write("vdb", 2 * MIB, 10)
    (second,) = site.backup("shop")
    shop.write("vda", 6 * MIB, 10)
    site.hypervisor.configure(shop.native, power="off")
    return first, second


def test_only_what_can_differ_is_read_and_it_is_said_what_was_not(
    site: Restores, shop: Guest, reads: list[tuple[str, int, int]]
) -> None:
    first, second = two_points(site, shop)
    told = site.restore("original", first)
    assert contents(site, shop.native, first) == WHOLE
    vda, vdb = told["disks"]
    assert [(d["written"], d["compared"], d["base"]) for d in (vda, vdb)] == [
        (2 * BLOCK, 2 * BLOCK, second.point),
        (BLOCK, BLOCK, second.point),
    ]
    assert [d["compared"] + d["trusted"] for d in (vda, vdb)] == [8 * MIB, 3 * MIB + 512]
    assert {(disk, offset // BLOCK) for disk, offset, _ in reads} == {("vda", 80), ("vda", 96), ("vdb", 32)}
    assert {length for _, _, length in reads} == {BLOCK}
    assert site.counts[-1][0] == site.counts[-1][1], "what is not read counts as done"
    assert any(f"reading what can have changed since point {second.point}" in said for said in site.progress)
    assert site.hypervisor.snapshots == 0
    assert site.hypervisor.marks(shop.native, "vda") == []
    # Asked to, it reads everything; and so it does where nobody keeps track any more.
    for whole, why in ((True, "it was asked"), (False, "no mark")):
        told = site.restore("original", first, whole=whole)
        assert [(d["written"], d["compared"], d["trusted"]) for d in told["disks"]] == [
            (0, 8 * MIB, 0),
            (0, 3 * MIB + 512, 0),
        ]
        assert all(why in d["why_whole"] for d in told["disks"])


@pytest.mark.parametrize("seed", range(3))
def test_whatever_was_written_a_point_comes_back(site: Restores, shop: Guest, seed: int) -> None:
    rng = random.Random(seed)
    points = list(site.backup("shop"))
    for _ in range(3):
        shop.scatter(rng.randrange(4))
        points += site.backup("shop", mode=rng.choice(["incremental", "differential"]))
    shop.scatter(rng.randrange(4))
    site.hypervisor.configure(shop.native, power="off")
    wanted = rng.choice(points)
    told = site.restore("original", wanted)
    assert contents(site, shop.native, wanted) == WHOLE
    assert all(d["base"] and d["trusted"] for d in told["disks"])


def test_a_host_that_lies_is_believed_for_no_more_than_is_said(site: Restores, shop: Guest) -> None:
    """A write that no map has, where no sample is taken: what was read back is not said to be all."""
    first, _ = two_points(site, shop)
    shop.write("vda", 30 * BLOCK, 10, tracked=False)
    told = site.restore("original", first)
    assert contents(site, shop.native, first) == {"vda": False, "vdb": True}
    assert told["disks"][0]["compared"] == 2 * BLOCK
    assert told["disks"][0]["trusted"] == 8 * MIB - 2 * BLOCK
    site.restore("original", first, whole=True)
    assert contents(site, shop.native, first) == WHOLE


def test_a_host_that_a_sample_proves_wrong_is_not_believed(site: Restores, shop: Guest) -> None:
    first, second = two_points(site, shop)
    shop.write("vda", 5 * BLOCK, 10, tracked=False)  # the second thirtieth of it, whose turn it is
    told = site.restore("original", first)
    assert contents(site, shop.native, first) == WHOLE
    assert "had not said so" in told["disks"][0]["why_whole"]
    assert told["disks"][0]["compared"] == 8 * MIB
    assert told["disks"][1]["trusted"] > 0
    assert [problem.code for problem in site.warned] == ["host-untrue"]
    assert "suspect" in site.state(second).marks
    assert "suspect" not in site.state(first).marks, "it was read whole"


def _remove_marks(site: Restores, shop: Guest, second: Point) -> None:
    for left in site.host.leftovers():
        site.host.remove(left)


def _mark(mark: str) -> Callable[[Restores, Guest, Point], object]:
    return lambda site, shop, second: say_mark(site.held["main"], second.point, mark, "tests")


UNSURE: dict[str, tuple[Callable[[Restores, Guest, Point], object], str]] = {
    "tracking was lost": (lambda s, g, _: s.hypervisor.lose_tracking(g.native, "vda"), "crash of the hypervisor"),
    "marks are gone": (_remove_marks, "no mark"),
    "its point is damaged": (_mark("damaged"), "damaged or suspect"),
    "its point is suspect": (_mark("suspect"), "damaged or suspect"),
    "a snapshot is refused": (lambda s, g, _: s.hypervisor.fault(Fault("snapshot", "refuse")), "could not be asked"),
    "somebody else's backup": (lambda s, g, _: s.hypervisor.occupy(g.native), "could not be asked"),
    "the snapshot is lost": (lambda s, g, _: s.hypervisor.fault(Fault("read", "refuse")), "could not be found out"),
    "another restore had begun": (
        lambda s, g, _: s.host.open_disk(g.native, "vdb", job=uuid7()),
        "had begun before",
    ),
}


@pytest.mark.parametrize("case", UNSURE)
def test_where_it_is_not_sure_all_is_read_and_it_is_said_why(site: Restores, shop: Guest, case: str) -> None:
    first, second = two_points(site, shop)
    make, why = UNSURE[case]
    make(site, shop, second)
    told = site.restore("original", first)
    assert contents(site, shop.native, first) == WHOLE
    vda = told["disks"][0]
    assert (vda["compared"], vda["trusted"], vda["base"]) == (8 * MIB, 0, "")
    assert why in vda["why_whole"]
    assert any(f"reading all of it: {vda['why_whole']}" in said for said in site.progress)
    assert site.hypervisor.snapshots == 0
    site.hypervisor.release()


def test_who_died_over_the_question_is_taken_up_again(site: Restores, shop: Guest) -> None:
    """What a death leaves on the host, made as it makes it: nobody closes."""
    first, second = two_points(site, shop)
    job = uuid7()
    since = {"vda": second.facts["mark/vda"]}
    site.host.snapshot([Wanted(shop.native, ("vda",), since)], job=job)
    told = site.restore("original", first, job=job, resumed=True)
    assert (site.hypervisor.snapshots, told["disks"][0]["base"]) == (0, second.point)
    assert contents(site, shop.native, first) == WHOLE


def test_a_restore_of_all_of_a_point_proves_it_and_less_does_not(site: Restores, shop: Guest, tmp_path: Path) -> None:
    (point,) = site.backup("shop")

    def marks() -> dict[str, str]:
        return {name: mark.note for name, mark in site.state(point).marks.items()}

    site.restore("files", point, to=str(tmp_path / "some"), format="raw", disks=["vdb"])
    site.restore("files", point, to=str(tmp_path / "none"), format="raw", dry_run=True)
    site.hypervisor.configure(shop.native, power="off")
    site.restore("original", point)
    assert marks() == {}, "not all of it was read"
    site.restore("machine", point, name="copy")
    assert marks() == {"verified": "restored"}
    say_mark(site.held["main"], point.point, "suspect", "tests")
    site.restore("files", point, to=str(tmp_path / "all"), format="raw")
    numbers = {name: mark.number for name, mark in site.state(point).marks.items()}
    assert numbers["suspect"] > numbers["verified"], "what is in doubt a restore does not clear"
