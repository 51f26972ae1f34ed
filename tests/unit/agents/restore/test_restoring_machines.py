"""Restores of machines on an in-memory host: what is on the disks is what the point says, only what differs is written, and what
is not whole says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.commands import Interrupted
from agents.errors import AgentError
from agents.repository.points import Point
from streams.ids import uuid7
from tests.stand_ins.memory_host import Fault, MemoryHost, registered
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
    assert [(d["written"], d["compared"]) for d in told["disks"]] == [(BLOCK, 8 * MIB), (BLOCK, 3 * MIB + 512)]
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
    left = 9

    def check() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Interrupted

    site.check = check
    with pytest.raises(Interrupted):
        site.restore("machine", point, job=job, name="copy")
    half = site.machines()["copy"]
    assert half.restoring == job
    assert len(site.notes) == 1
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
