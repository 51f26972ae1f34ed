"""Machines keep their names; only what is different is said."""

from __future__ import annotations

from dataclasses import replace

from agents.backup.inventory import changes
from agents.hosts import Hosts
from agents.machines import DiskSeen, MachineSeen
from streams.events import AssetChanged

KINDS = {"h1": "kvm", "h2": "kvm", "v": "vsphere"}


def machine(native: str, name: str, **more: object) -> MachineSeen:
    seen = MachineSeen(native, name, "running", 1, 1 << 30, disks=(DiskSeen("vda", 1 << 20, "raw"),))
    return replace(seen, **more)  # type: ignore[arg-type]


def after(known: dict[str, AssetChanged], host: str, *machines: MachineSeen) -> list[AssetChanged]:
    """What a look at `host` says, taken in."""
    said = changes(known, {host: (KINDS[host], machines)}, KINDS, "me").events
    for event in said:
        known[event.asset] = event
    return said


def test_names_are_slugs_and_a_taken_one_gets_a_number() -> None:
    known: dict[str, AssetChanged] = {}
    said = after(known, "h1", machine("1", "Shop DB (prod)"), machine("2", "shop-db-prod"), machine("3", "_7"))
    assert [e.asset for e in said] == ["shop-db-prod", "shop-db-prod-2", "machine-7"]
    assert after(known, "h1", machine("3", "_7"), machine("2", "shop-db-prod"), machine("1", "Shop DB (prod)")) == []


def test_a_machine_that_is_renamed_keeps_its_name_and_the_change_is_said() -> None:
    known: dict[str, AssetChanged] = {}
    after(known, "h1", machine("1", "shop"))
    (said,) = after(known, "h1", machine("1", "store"))
    assert (said.asset, said.name, said.state) == ("shop", "store", "seen")


def test_a_machine_that_is_gone_is_said_to_be_once_and_comes_back_under_its_name() -> None:
    known: dict[str, AssetChanged] = {}
    after(known, "h1", machine("1", "shop"), machine("2", "mail"))
    assert [(e.asset, e.state) for e in after(known, "h1", machine("2", "mail"))] == [("shop", "gone")]
    assert after(known, "h1", machine("2", "mail")) == []
    assert [(e.asset, e.state) for e in after(known, "h1", machine("2", "mail"), machine("1", "shop"))] == [
        ("shop", "seen")
    ]


def test_a_host_that_was_not_looked_at_keeps_its_machines() -> None:
    known: dict[str, AssetChanged] = {}
    after(known, "h1", machine("1", "shop"))
    assert [e.asset for e in after(known, "h2", machine("2", "mail"))] == ["mail"]


def test_a_machine_that_moved_keeps_its_name_and_one_that_is_on_both_hosts_is_two() -> None:
    known: dict[str, AssetChanged] = {}
    after(known, "h1", machine("1", "shop"), machine("2", "mail"))
    both = changes(known, {"h1": ("kvm", [machine("2", "mail")]), "h2": ("kvm", [machine("1", "shop")])}, KINDS, "me")
    assert [(e.asset, e.host, e.state) for e in both.events] == [("shop", "h2", "seen")]
    assert [e.asset for e in after(known, "h2", machine("1", "shop"))] == ["shop-2"]
    assert [e.asset for e in after(known, "v", machine("2", "mail"))] == ["mail-2"]


def test_a_name_stays_with_the_machine_that_had_it_first() -> None:
    hosts = Hosts()
    mine, other = (
        changes({}, {"h1": ("kvm", [machine(native, "shop")])}, KINDS, "me").events[0] for native in ("1", "2")
    )
    hosts.apply(mine)
    hosts.apply(other)
    assert hosts.asset("shop").native == "1"
    assert after(hosts.assets(), "h1", machine("1", "shop"), machine("2", "shop"))[0].asset == "shop-2"
