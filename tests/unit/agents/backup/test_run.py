"""Backups of machines on an in-memory host: what a point says is on a disk is what was there, however it was read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from agents import registry
from agents.backup import inventory
from agents.backup.machine_facts import machine_of, marks_of
from agents.commands import Command, Interrupted
from agents.errors import AgentError, SourceUnavailable
from agents.machines import Wanted
from agents.repository import packs
from agents.repository.backups import is_damaged, make
from agents.repository.format import DATA
from agents.repository.handlers import say_mark
from agents.repository.pack_format import FRAME_BYTES
from agents.repository.points import Point
from streams.ids import uuid7
from tests.stack.agent import await_it
from tests.stand_ins.hypervisor import Fault
from tests.stand_ins.memory_host import registered
from tests.unit.agents.backup.site import BLOCK, Guest, Site, closing

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with registered(), closing(Site(tmp_path, "main", "other")) as made:
        yield made


@pytest.fixture
def shop(site: Site) -> Guest:
    guest = Guest(site, "shop", {"vda": SIZE, "vdb": 3 * MIB + 512})
    guest.write("vda", 0, 2 * MIB)
    guest.write("vdb", MIB, MIB)
    site.discover()
    return guest


def same(site: Site, point: Point, guest: Guest, of: str = "main") -> None:
    assert {d.disk for d in point.disks} == set(guest.disks)
    for disk in guest.disks:
        assert site.content(point, disk, of) == guest.content(disk), disk


def changed(point: Point) -> int:
    return sum(d.counts["changed"] for d in point.disks)


def test_a_first_backup_a_second_one_and_what_the_point_says(site: Site, shop: Guest) -> None:
    (first,) = site.backup("shop")
    same(site, first, shop)
    kept = machine_of(site.held["main"].repository, first)
    assert (kept.platform, kept.host, kept.seen.name, kept.seen.native) == ("memory", "h1", "shop", shop.native)
    assert kept.seen.companions == {"nvram": b"variables of shop"}
    assert (first.facts["mode"], first.facts["full"]) == ("full", first.point)
    assert site.told[0]["whole"] == {}

    before = [site.content(first, disk) for disk in ("vda", "vdb")]
    shop.write("vda", 5 * MIB, 10)
    (second,) = site.backup("shop", scrub=False)
    same(site, second, shop)
    assert (second.continues, second.facts["mode"], second.facts["full"]) == (first.point, "incremental", first.point)
    assert (site.told[0]["read"], changed(second)) == (BLOCK, 1)
    assert [site.content(first, disk) for disk in ("vda", "vdb")] == before
    wanted = {marks_of(point.facts)["vda"] for point in (first, second)}
    assert set(site.hypervisor.marks(shop.native, "vda")) == wanted
    assert site.hypervisor.snapshots == 0
    assert not site.warned


def test_what_is_written_during_a_backup_is_in_the_next_one(site: Site, shop: Guest) -> None:
    site.backup("shop")
    then = shop.content("vda")
    site.hypervisor.fault(Fault("read", "wait"))
    found: list[Point] = []
    work = threading.Thread(target=lambda: found.extend(site.backup("shop", mode="full")))
    work.start()
    await_it(lambda: site.hypervisor.snapshots, "a snapshot")
    shop.write("vda", 100, 5000)
    site.hypervisor.release()
    work.join()
    assert site.content(found[0], "vda") == then
    (after,) = site.backup("shop")
    same(site, after, shop)


def test_a_walk_of_all_modes_restores_at_each_step(site: Site, shop: Guest) -> None:
    kept: list[tuple[Point, list[bytes]]] = []
    for mode in ("full", "incremental", "incremental", "differential", "incremental", "full", "differential"):
        shop.scatter()
        (point,) = site.backup("shop", mode=mode)
        same(site, point, shop)
        kept.append((point, [shop.content(disk) for disk in shop.disks]))
    for point, contents in kept:
        assert [site.content(point, disk) for disk in shop.disks] == contents
    fulls = [kept[0][0].point] * 5 + [kept[5][0].point] * 2
    assert [point.facts["full"] for point, _ in kept] == fulls
    assert kept[3][0].continues == kept[0][0].point
    assert kept[4][0].continues == kept[3][0].point
    # Only marks that somebody may ask since are left: of the newest point and of the last full one.
    wanted = {marks_of(kept[n][0].facts)["vda"] for n in (5, 6)}
    assert set(site.hypervisor.marks(shop.native, "vda")) == wanted


def test_two_repositories_do_not_take_each_others_marks_away(site: Site, shop: Guest) -> None:
    site.backup("shop", to="main")
    shop.scatter()
    site.backup("shop", to="other")
    shop.scatter()
    site.backup("shop", to="main")
    shop.scatter()
    (point,) = site.backup("shop", to="other")
    same(site, point, shop, "other")
    assert site.told[0]["whole"] == {}


def test_lost_tracking_is_said_read_around_and_repaired(site: Site, shop: Guest) -> None:
    site.backup("shop")
    shop.write("vda", 4 * MIB, 3)
    site.hypervisor.lose_tracking(shop.native, "vda")
    (point,) = site.backup("shop")
    same(site, point, shop)
    assert set(site.told[0]["whole"]) == {"vda"}
    assert "crash" in point.facts["whole/vda"]
    assert changed(point) == 1  # everything was read, and what differs was kept
    assert [p.code for p in site.warned] == ["disk-read-whole"]
    shop.write("vda", 0, 1)
    (after,) = site.backup("shop", scrub=False)
    same(site, after, shop)
    assert (site.told[0]["whole"], site.told[0]["read"]) == ({}, BLOCK)


def test_a_disk_that_nothing_keeps_track_of_is_compared_each_time(site: Site) -> None:
    guest = Guest(site, "raw", {"vda": SIZE}, untracked=("vda",))
    guest.write("vda", 0, MIB)
    site.discover()
    site.backup("raw")
    guest.write("vda", 3 * BLOCK + 5, 5)
    (point,) = site.backup("raw")
    same(site, point, guest)
    assert changed(point) == 1
    assert point.facts["whole/vda"]
    assert point.facts["full"] == point.point


def test_a_tracking_that_lies_is_found_by_the_scrub_and_points_become_suspect(site: Site, shop: Guest) -> None:
    (first,) = site.backup("shop")
    shop.write("vda", 5 * MIB, 4096)
    (second,) = site.backup("shop")
    shop.write("vda", 70_000, 100, tracked=False)
    for _ in range(40):
        (point,) = site.backup("shop")
        if "vda" in site.told[0]["whole"]:
            break
    same(site, point, shop)
    assert [p.code for p in site.warned] == ["disk-read-whole"]
    ledger = site.held["main"].sessions.ledger()
    suspects = {name for name, state in ledger.points.items() if "suspect" in state.marks}
    assert second.point in suspects
    assert first.point not in suspects  # it was read whole
    assert point.point not in suspects
    assert not is_damaged(site.state(second))
    (after,) = site.backup("shop")
    assert site.told[0]["whole"] == {}
    same(site, after, shop)


def test_a_disk_that_grew_one_that_is_new_and_one_that_is_gone(site: Site, shop: Guest) -> None:
    site.backup("shop")
    site.hypervisor.resize(shop.native, "vdb", 5 * MIB)
    shop.disks["vdb"] = 5 * MIB
    shop.write("vdb", 4 * MIB, 4096)
    (point,) = site.backup("shop")
    same(site, point, shop)
    site.hypervisor.resize(shop.native, "vdb", 2 * MIB + 700)
    shop.disks["vdb"] = 2 * MIB + 700
    (point,) = site.backup("shop")
    same(site, point, shop)


def test_disks_that_were_not_chosen_are_left_out_and_come_back(site: Site, shop: Guest) -> None:
    site.backup("shop")
    (point,) = site.backup("shop", disks=["vda"])
    assert [d.disk for d in point.disks] == ["vda"]
    assert point.facts["left_out/vdb"] == "it was not chosen"
    shop.scatter()
    (point,) = site.backup("shop")
    same(site, point, shop)
    with pytest.raises(AgentError) as refused:
        site.backup("shop", disks=["vdz"])
    assert refused.value.code == "disk-unknown"


def test_nothing_is_taken_from_a_damaged_point(site: Site, shop: Guest) -> None:
    (first,) = site.backup("shop")
    store = site.stores["main"]
    for listed in list(store.list("packs/")):
        body = bytearray(store.read(listed.name))
        for entry in packs.contents_of(store, listed.name).entries:
            body[entry.place.offset + entry.place.stored] ^= 1
        store.put(listed.name, bytes(body))
    say_mark(site.held["main"], first.point, "damaged", "tests")
    for listed in list(store.list("packs/")):  # as verify does: nobody builds on it any more
        store.delete(listed.name)
    site.held["main"].repository.refresh()
    shop.scatter()
    (point,) = site.backup("shop")
    same(site, point, shop)
    assert "damaged" in point.facts["whole/vda"]
    (after,) = site.backup("shop")
    same(site, after, shop)
    assert site.told[0]["whole"] == {}


@pytest.mark.parametrize("data", [True, False])
def test_a_damage_that_nobody_has_found_yet_does_not_stop_the_next_backup(site: Site, shop: Guest, data: bool) -> None:
    site.backup("shop")
    store = site.stores["main"]
    for listed in list(store.list("packs/")):
        body = bytearray(store.read(listed.name))
        for entry in packs.contents_of(store, listed.name).entries:
            if (entry.place.kind == DATA) == data:
                body[entry.place.offset + FRAME_BYTES] ^= 1
        store.put(listed.name, bytes(body))
    shop.scatter()
    (point,) = site.backup("shop")
    if data:  # what is not read again is as damaged as it was: verify is there to find that
        assert site.told[0]["whole"] == {}
        return
    same(site, point, shop)
    assert "cannot be read" in point.facts["whole/vda"]
    (after,) = site.backup("shop")
    same(site, after, shop)
    assert site.told[0]["whole"] == {}


def test_a_group_is_of_one_moment_and_a_host_that_cannot_says_so(site: Site, shop: Guest) -> None:
    mail = Guest(site, "mail", {"vda": MIB}, seed=1)
    mail.write("vda", 0, 70_000)
    site.discover()
    then = [shop.content("vda"), mail.content("vda")]
    site.hypervisor.fault(Fault("read", "wait"))
    found: list[Point] = []
    work = threading.Thread(target=lambda: found.extend(site.backup("shop", "mail")))
    work.start()
    await_it(lambda: site.hypervisor.snapshots, "a snapshot")
    for guest in (shop, mail):
        guest.write("vda", 0, 50_000)
    site.hypervisor.release()
    work.join()
    assert [site.content(point, "vda") for point in found] == then
    site.hypervisor.configure(groups=False)
    with pytest.raises(AgentError) as refused:
        site.backup("shop", "mail")
    assert refused.value.code == "group-unsupported"
    assert not site.held["main"].sessions.ledger().open_sessions()


def test_a_read_that_fails_leaves_nothing_behind_and_loses_no_change(site: Site, shop: Guest) -> None:
    site.backup("shop")
    shop.scatter()
    site.hypervisor.fault(Fault("read", "refuse", nth=2))
    with pytest.raises(SourceUnavailable):
        site.backup("shop")
    assert site.hypervisor.snapshots == 0
    assert len(site.hypervisor.marks(shop.native, "vda")) == 1
    (point,) = site.backup("shop")
    same(site, point, shop)
    assert site.told[0]["whole"] == {}


def test_a_backup_that_is_called_off_ends_soon_and_leaves_nothing(site: Site, shop: Guest) -> None:
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 1:
            raise Interrupted

    site.check = check
    with pytest.raises(Interrupted):
        site.backup("shop", bandwidth=1000)
    assert site.hypervisor.snapshots == 0
    assert not site.held["main"].sessions.ledger().open_sessions()


def test_somebody_elses_backup_is_left_alone(site: Site, shop: Guest) -> None:
    theirs = site.hypervisor
    theirs.occupy(shop.native)
    with pytest.raises(AgentError) as refused:
        site.backup("shop")
    assert refused.value.code == "machine-busy"
    theirs.occupy(shop.native, False)
    site.backup("shop")


def test_a_mark_that_was_lost_is_made_up_for_by_an_older_one(site: Site, shop: Guest) -> None:
    site.backup("shop")
    shop.scatter()
    (second,) = site.backup("shop")
    shop.scatter()
    host = registry.host(site.hypervisor.settings())
    lost = marks_of(second.facts)["vda"]
    for left in host.leftovers():
        if left.name == lost:
            host.remove(left)
    (third,) = site.backup("shop", scrub=False)
    same(site, third, shop)
    assert site.told[0]["whole"] == {}
    assert site.told[0]["read"] < SIZE // 2
    assert third.continues == second.point


def test_another_sites_marks_and_snapshots_are_left_alone(site: Site, shop: Guest) -> None:
    host = registry.host(site.hypervisor.settings())
    theirs = host.snapshot([Wanted(shop.native)], job="0198c0de-0000-7000-8000-00000000ffff")
    theirs.keep({})
    theirs.close()
    (mark,) = site.hypervisor.marks(shop.native, "vda")
    for mode in ("full", "incremental", "incremental"):
        site.backup("shop", mode=mode)
    assert mark in site.hypervisor.marks(shop.native, "vda")
    assert len(site.hypervisor.marks(shop.native, "vda")) == 3


def test_a_host_that_is_removed_is_left_without_marks_of_ours(site: Site, shop: Guest) -> None:
    site.backup("shop")
    command = Command(uuid7(), "host.remove", "host/h1", {"host": "h1"}, "tests", 1)
    assert inventory.remove(command, site.ctx(command)) == {"machines": 1}
    assert site.hypervisor.marks(shop.native, "vda") == []
    with pytest.raises(AgentError) as refused:
        site.backup("shop")
    assert refused.value.code == "asset-gone"
    assert inventory.remove(replace(command, resumed=True), site.ctx(command)) == {"machines": 0}


def test_progress_tells_rate_and_what_takes_longest(site: Site, shop: Guest) -> None:
    site.backup("shop")
    assert any("MB/s" in said and "most of the time goes into" in said for said in site.progress)


def test_an_asset_is_one_thing(site: Site, shop: Guest, tmp_path: Path) -> None:
    """Or a point of a directory would stand for one of a machine: in retention, and in how well that is protected."""
    one, other = tmp_path / "web", tmp_path / "Web"
    site.services.settings = SimpleNamespace(data_dir=tmp_path / "data", config_file=None)
    for folder in (one, other):
        folder.mkdir()

    def files(path: Path, asset: str, *, named: bool) -> None:
        parameters = {"kind": "files", "repository": "main", "path": str(path), "asset": asset, "named": named}
        command = Command(uuid7(), "backup.make", f"asset/{asset}", parameters, "tests", 1)
        make(command, site.ctx(command))

    with pytest.raises(AgentError) as refused:
        files(one, "shop", named=True)
    assert refused.value.code == "asset-other"
    files(one, "web", named=False)
    with pytest.raises(AgentError) as refused:
        files(other, "web", named=False)
    assert refused.value.code == "asset-other"
    files(other, "web", named=True)
    Guest(site, "web", {"vda": SIZE})
    site.discover()
    assert set(site.services.hosts.assets()) == {"shop", "web-2"}
