"""Domain XML: what is read of it, and what it says of a machine that is made anew."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.errors import AgentError
from agents.machines import HostSettings, MachineWanted, NicSeen
from agents.platforms.kvm import notes
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.description import described, remade, restoring_title, without_notes

# As `virsh dumpxml --inactive` of libvirt 9.0 gives it, cut down.
XML = """<domain type='kvm'>
  <name>shop</name>
  <uuid>0b6f4f0e-55a5-4b6e-9d1c-2b1c9a5e7f10</uuid>
  <title>The shop</title>
  <metadata><holdfasttags:tags xmlns:holdfasttags="https://holdfast.invalid/kvm/tags">prod, web</holdfasttags:tags></metadata>
  <memory unit='MiB'>2048</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/shop_VARS.fd</nvram></os>
  <cpu mode='host-model'><topology sockets='1' dies='1' cores='4' threads='1'/></cpu>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/><source file='/img/shop.qcow2'/>
      <target dev='vda' bus='virtio'/><address type='pci' bus='0x04'/></disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/data'/>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'/>
      <target dev='vdc' bus='virtio'/></disk>
    <disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/sdz'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='disk'><source file='/img/ro.img'/><target dev='vdd' bus='virtio'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><model type='virtio'/>
      <address type='pci' bus='0x01'/></interface>
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/><model type='e1000'/></interface>
    <channel type='unix'><source mode='bind' path='/run/shop.agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>"""
PLACES = {"vda": ("/img/new-vda.qcow2", "qcow2"), "vdb": ("/img/new-vdb.raw", "raw")}


def made(nvram: str = "", **changes: object) -> ElementTree.Element:
    wanted = MachineWanted("new", XML.encode(), (), **changes)  # type: ignore[arg-type]
    return ElementTree.fromstring(remade(wanted, PLACES, job="j1", nvram=nvram, networks=["default", "lab"]))


def test_what_a_domain_says_of_a_machine() -> None:
    found = described(XML)
    assert (found.name, found.cpus, found.memory, found.firmware) == ("shop", 4, 2 << 30, "uefi")
    assert found.native == "0b6f4f0e-55a5-4b6e-9d1c-2b1c9a5e7f10"
    assert found.nvram == "/var/lib/libvirt/qemu/nvram/shop_VARS.fd"
    assert found.tags == ("prod", "web")
    assert found.guest_agent
    disks = {disk.disk: disk for disk in found.disks}
    assert [(d.disk, d.kind, d.format, d.tracked) for d in found.disks if not d.left_out] == [
        ("vda", "file", "qcow2", True),
        ("vdb", "block", "raw", False),
        ("vdc", "network", "raw", False),
    ]
    assert disks["sda"].left_out
    assert disks["vdd"].left_out
    assert found.others == ("sdb",)
    assert found.nics == (
        NicSeen("52:54:00:00:00:01", "default", "virtio"),
        NicSeen("52:54:00:00:00:02", "br0", "e1000"),
    )


def test_a_machine_made_anew_has_an_identity_and_addresses_of_its_own() -> None:
    root = made()
    assert root.findtext("name") == "new"
    assert root.find("uuid") is None
    assert not root.findall("devices/interface/mac")
    assert root.find("devices/channel/source") is None
    assert root.find("os/nvram") is None, "the host makes one of its template"
    assert root.findtext("vcpu") == "4"
    sources = {d.find("target").get("dev"): d.find("source") for d in root.iterfind("devices/disk")}  # type: ignore[union-attr]
    assert {dev: source.get("file") for dev, source in sources.items() if source is not None} == {
        "vda": "/img/new-vda.qcow2",
        "vdb": "/img/new-vdb.raw",
        "sdb": "/iso/x.iso",
    }
    assert set(sources) == {"vda", "vdb", "sdb"}, "disks that are not wanted are left out"


def test_a_machine_takes_the_identity_of_one_that_is_gone() -> None:
    root = made(native="0b6f4f0e-55a5-4b6e-9d1c-2b1c9a5e7f10", nvram="/img/new.fd")
    assert root.findtext("uuid") == "0b6f4f0e-55a5-4b6e-9d1c-2b1c9a5e7f10"
    assert [mac.get("address") for mac in root.iterfind("devices/interface/mac")] == [
        "52:54:00:00:00:01",
        "52:54:00:00:00:02",
    ]
    assert root.findtext("os/nvram") == "/img/new.fd"


def test_other_hardware() -> None:
    root = made(
        cpus=6, memory=3 << 30, bus="scsi", nics=(NicSeen("", "lab"), NicSeen("52:54:00:00:00:09", "br0", "virtio"))
    )
    found = described(ElementTree.tostring(root, encoding="unicode"))
    assert (found.cpus, found.memory) == (6, 3 << 30)
    vcpu = root.find("vcpu")
    assert vcpu is not None
    assert vcpu.get("current") is None
    assert root.find("cpu/topology") is None
    assert {disk.bus for disk in found.disks} == {"scsi"}
    first = root.find("devices/disk")
    assert first is not None
    assert first.find("address") is None
    assert "iothread" not in first.find("driver").attrib  # type: ignore[union-attr]
    assert root.find("devices/controller[@type='scsi']") is not None
    assert found.nics == (NicSeen("", "lab", "virtio"), NicSeen("52:54:00:00:00:09", "br0", "virtio"))
    assert made(nics=()).find("devices/interface") is None


def test_our_notes_are_not_part_of_a_description() -> None:
    root = made()
    assert root.findtext("title") == restoring_title("The shop")
    plain = ElementTree.fromstring(without_notes(ElementTree.tostring(root, encoding="unicode")))
    assert plain.findtext("title") == "The shop"
    metadata = plain.find("metadata")
    assert metadata is not None
    assert [element.tag.rpartition("}")[2] for element in metadata] == ["tags"]


@given(st.text(max_size=200))
def test_what_is_no_description_is_refused_in_our_words(text: str) -> None:
    with pytest.raises(AgentError) as refused:
        described(text)
    assert refused.value.code == "description-unreadable"


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True))
def test_a_name_tells_its_job(job: str) -> None:
    name = notes.new_name(job)
    assert notes.job_of(name) == job
    assert notes.found_in(f"/var/tmp/{name}.0b6f4f0e.vda") == name
    assert notes.job_of(f"{name}.vda") == ""
    assert notes.job_of(f"x{name}") == ""


@pytest.mark.parametrize(
    "url",
    [
        "qemu+ext:///system?command=/bin/evil",
        "qemu+ssh://kvm1/system?netcat=/bin/evil",
        "qemu+ssh://kvm1/system?command=/bin/evil",
        "qemu+tls://kvm1/system?no_verify=1",
        "qemu+tcp://kvm1/system",
        "test:///default",
        "/etc/passwd",
    ],
)
def test_urls_that_would_run_a_program_or_trust_anybody_are_refused(url: str) -> None:
    with pytest.raises(AgentError) as refused:
        Connection(HostSettings("h1", "kvm", url))
    assert refused.value.code == "host-url-invalid"
