"""Domain XML: what it says of a machine, and what it says once a machine is made anew of it. No input or output.

The format is libvirt's (https://libvirt.org/formatdomain.html). What Holdfast notes on a domain stands in elements of its
metadata, each in a namespace of its own (libvirt keeps one element a namespace):

    <hold job= run= started= frozen= suspended=/>   a snapshot goes on, and what has to be undone should we die (live)
    <restore job= made= blank= title=/>             it is made or overwritten (persistent); the title people gave it
    <made><file path=/>…</made>                     files that were made for it, and go with it (persistent)
    <carrier of= disk= job=/>                       it is no machine: it holds a disk of another one (`carrier`; live)
    <tags>a, b</tags>                               what an administrator wants policies to know it by
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from agents.errors import AgentError
from agents.machines import Firmware, MachineWanted, NicSeen

NOTES: Final = ("hold", "restore", "made", "carrier")
_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_SPACE: Final = "https://holdfast.invalid/kvm"
_UNITS: Final = {
    "b": 1, "bytes": 1, "": 1 << 10, "k": 1 << 10, "KiB": 1 << 10, "KB": 1000, "M": 1 << 20, "MiB": 1 << 20,
    "MB": 1000**2, "G": 1 << 30, "GiB": 1 << 30, "GB": 1000**3, "T": 1 << 40, "TiB": 1 << 40, "TB": 1000**4,
}  # fmt: skip


def namespace(note: str) -> str:
    return f"{_SPACE}/{note}"


def qualified(note: str) -> str:
    """The name of its element, as ElementTree writes it."""
    return f"{{{namespace(note)}}}{note}"


@dataclass(frozen=True, slots=True)
class DiskDescribed:
    """A disk as a domain describes it. `kind`: what its source is (`file`, `block`, `network`, `volume`, …); `place` a path,
    or what is nearest to it; `left_out` as `agents.machines.DiskSeen.left_out`."""

    disk: str
    format: str
    bus: str
    kind: str
    place: str
    pool: str = ""
    left_out: str = ""

    @property
    def tracked(self) -> bool:
        """Only qcow2 keeps bitmaps."""
        return self.format == "qcow2" and not self.left_out


@dataclass(frozen=True, slots=True)
class Described:
    """What a domain's XML says. `memory` in bytes; `nvram` is the path of the file, or empty; `others`: CD-ROMs and the like,
    which a backup has to be told to leave out."""

    native: str
    name: str
    cpus: int
    memory: int
    firmware: Firmware
    nvram: str
    tags: tuple[str, ...]
    disks: tuple[DiskDescribed, ...]
    others: tuple[str, ...]
    nics: tuple[NicSeen, ...]
    guest_agent: bool
    carrier: bool = False


def parsed(xml: str) -> Element:
    """Raises `AgentError` (`description-unreadable`)."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise AgentError("description-unreadable", f"the description of the machine is not XML: {error}") from error
    if root.tag != "domain":
        raise AgentError("description-unreadable", f"the description is of a <{root.tag}>, not of a <domain>")
    return root


def described(xml: str) -> Described:
    root = parsed(xml)
    found = [_disk(element) for element in root.iterfind("devices/disk")]
    os_ = root.find("os")
    uefi = os_ is not None and (os_.get("firmware") == "efi" or os_.find("loader[@type='pflash']") is not None)
    tags = root.findtext(f"metadata/{qualified('tags')}") or ""
    return Described(
        native=root.findtext("uuid") or "",
        name=root.findtext("name") or "",
        cpus=int(root.findtext("vcpu") or 1),
        memory=_bytes(root.find("memory")),
        firmware="uefi" if uefi else "bios",
        nvram=(root.findtext("os/nvram") or "").strip(),
        tags=tuple(tag.strip() for tag in tags.split(",") if tag.strip()),
        disks=tuple(disk for is_disk, disk in found if is_disk),
        others=tuple(disk.disk for is_disk, disk in found if not is_disk),
        nics=tuple(_nic(element) for element in root.iterfind("devices/interface")),
        guest_agent=root.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None,
        carrier=root.find(f"metadata/{qualified('carrier')}") is not None,
    )


def _bytes(element: Element | None) -> int:
    if element is None:
        return 0
    return int(element.text or 0) * _UNITS.get(element.get("unit", ""), 1 << 10)


def _disk(element: Element) -> tuple[bool, DiskDescribed]:
    """Whether it is a disk (and no CD-ROM or floppy), and which."""
    device = element.get("device", "disk")
    target, driver = element.find("target"), element.find("driver")
    source = element.find("source")
    kind = element.get("type", "")
    name = target.get("dev", "") if target is not None else ""
    place, pool, left_out = "", "", ""
    if source is not None:
        place = (
            source.get("file")
            or source.get("dev")
            or source.get("volume")
            or source.get("name")
            or source.get("dir")
            or ""
        )
        pool = source.get("pool", "") or (source.get("protocol", "") if kind == "network" else "")
    if device == "lun":
        left_out = "it is a device of the host's that is passed through"
    elif source is None or not place:
        left_out = "it has no source that can be read"
    elif element.find("readonly") is not None:
        left_out = "it is read-only"
    elif element.find("transient") is not None:
        left_out = "what is written to it is thrown away"
    described_ = DiskDescribed(
        name,
        driver.get("type", "raw") if driver is not None else "raw",
        target.get("bus", "") if target is not None else "",
        kind,
        place,
        pool,
        left_out,
    )
    return device in ("disk", "lun"), described_


def _nic(element: Element) -> NicSeen:
    mac, model, source = element.find("mac"), element.find("model"), element.find("source")
    kind = element.get("type", "")
    network = ""
    if source is not None:
        network = source.get(kind) or source.get("dev") or ""
    return NicSeen(
        mac.get("address", "") if mac is not None else "",
        network or kind,
        model.get("type", "") if model is not None else "",
    )


def without_notes(xml: str) -> str:
    """The description as its administrator wrote it: our notes are not part of it, tags are."""
    root = parsed(xml)
    note = root.find(f"metadata/{qualified('restore')}")
    if note is not None:
        set_title(root, note.get("title", ""))
    metadata = root.find("metadata")
    if metadata is not None:
        for name in NOTES:
            for element in metadata.findall(qualified(name)):
                metadata.remove(element)
        if not len(metadata):
            root.remove(metadata)
    return text_of(root)


def text_of(root: Element) -> str:
    for note in (*NOTES, "tags"):
        ElementTree.register_namespace(f"holdfast{note}", namespace(note))
    return ElementTree.tostring(root, encoding="unicode")


def set_title(root: Element, title: str) -> None:
    found = root.find("title")
    if title and found is None:
        found = Element("title")
        root.insert(1, found)
    if found is not None and title:
        found.text = title
    elif found is not None:
        root.remove(found)


def remade(
    wanted: MachineWanted, places: Mapping[str, tuple[str, str]], *, job: str, nvram: str, networks: Sequence[str]
) -> str:
    """The XML of a machine to be made of `wanted.description`. `places`: disk → path, format; `nvram`: a path, or empty;
    `networks`: those that the host has by name, a card on anything else is on a bridge. Raises `AgentError`."""
    root = parsed(wanted.description.decode("utf-8", "replace"))
    devices = root.find("devices")
    if devices is None:
        raise AgentError("description-unreadable", "the description names no devices")
    _text(root, "name", wanted.name)
    for name in ("uuid", "genid"):
        for element in root.findall(name):
            root.remove(element)
    if wanted.native:
        _text(root, "uuid", wanted.native)
    if wanted.cpus is not None:
        _set_cpus(root, wanted.cpus)
    if wanted.memory is not None:
        _set_memory(root, wanted.memory)
    _set_nvram(root, nvram)
    _set_disks(devices, places, wanted.bus)
    _set_nics(devices, wanted, networks)
    for channel in devices.findall("channel"):  # sockets of the machine that it was
        source = channel.find("source")
        if source is not None and channel.get("type") == "unix":
            channel.remove(source)
    note = Element(
        qualified("restore"), {"job": job, "made": "yes", "blank": "yes", "title": root.findtext("title") or ""}
    )
    made = Element(qualified("made"))
    for path in [path for path, _ in places.values()] + ([nvram] if nvram else []):
        SubElement(made, "file", {"path": path})
    metadata = root.find("metadata")
    if metadata is None:
        metadata = SubElement(root, "metadata")
    for name in NOTES:
        for element in metadata.findall(qualified(name)):
            metadata.remove(element)
    metadata.extend([note, made])
    set_title(root, restoring_title(root.findtext("title") or ""))
    return text_of(root)


def carrier_of(xml: str, disk: str, *, name: str, spare: str, job: str, read_only: bool) -> str:
    """The XML of a machine that is never to run and holds `disk` of the described one as its `vda`, opened as that machine would;
    `spare`: an image of a MiB for its `vdb`. Raises `AgentError` (`disk-unknown`)."""
    was = parsed(xml)
    found = next((e for e in was.iterfind("devices/disk") if e.find(f"target[@dev='{disk}']") is not None), None)
    if found is None:
        raise AgentError("disk-unknown", f"{was.findtext('name')} has no disk {disk}", "discover again")
    root = Element("domain", {"type": was.get("type", "kvm")})
    _text(root, "name", name)
    SubElement(root, "memory", {"unit": "MiB"}).text = "64"
    SubElement(root, "vcpu").text = "1"
    os_ = SubElement(root, "os")
    kind = was.find("os/type")
    os_.append(copy.deepcopy(kind) if kind is not None else Element("type"))
    metadata = SubElement(root, "metadata")
    note = {"of": was.findtext("uuid") or "", "disk": disk, "job": job}
    metadata.append(Element(qualified("carrier"), note))
    devices = SubElement(root, "devices")
    emulator = was.find("devices/emulator")
    if emulator is not None:
        devices.append(copy.deepcopy(emulator))
    held = Element("disk", {"type": found.get("type", "file"), "device": "disk"})
    for tag in ("auth", "source", "backingStore"):
        held.extend(copy.deepcopy(element) for element in found.findall(tag))
    driver = found.find("driver")
    kept = (
        {k: v for k, v in driver.attrib.items() if k in ("name", "type", "cache", "io")} if driver is not None else {}
    )
    held.append(Element("driver", {"name": "qemu", "type": "raw", **kept, "discard": "unmap"}))
    held.append(Element("target", {"dev": "vda", "bus": "virtio"}))
    if read_only:
        held.append(Element("readonly"))
    devices.append(held)
    second = SubElement(devices, "disk", {"type": "file", "device": "disk"})
    second.extend((Element("driver", {"name": "qemu", "type": "raw"}), Element("source", {"file": spare})))
    second.append(Element("target", {"dev": "vdb", "bus": "virtio"}))
    SubElement(devices, "controller", {"type": "usb", "model": "none"})
    SubElement(devices, "memballoon", {"model": "none"})
    root.extend(copy.deepcopy(element) for element in was.findall("seclabel"))
    # The device of a machine that never runs would not let anybody else write to its disk, not even this QEMU's server.
    command = SubElement(root, f"{{{_QEMU}}}commandline")
    for argument in ("-global", "virtio-blk-device.share-rw=on"):
        SubElement(command, f"{{{_QEMU}}}arg", {"value": argument})
    ElementTree.register_namespace("qemu", _QEMU)
    return text_of(root)


def restoring_title(title: str) -> str:
    return f"{title} (being restored, do not start)".strip()


def _text(root: Element, name: str, text: str) -> None:
    found = root.find(name)
    if found is None:
        found = Element(name)
        root.insert(0, found)
    found.text = text


def _set_cpus(root: Element, cpus: int) -> None:
    for name in ("vcpus", "cputune"):  # which name processors that may be no more
        for element in root.findall(name):
            root.remove(element)
    _text(root, "vcpu", str(cpus))
    vcpu = root.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("current", None)
        vcpu.attrib.pop("cpuset", None)
    cpu = root.find("cpu")
    for name in ("topology", "numa"):
        for element in cpu.findall(name) if cpu is not None else ():
            cpu.remove(element)  # type: ignore[union-attr]


def _set_memory(root: Element, memory: int) -> None:
    for name in ("memory", "currentMemory", "maxMemory", "numatune"):
        for element in root.findall(name):
            root.remove(element)
    kib = -(-memory // 1024)
    for name in ("currentMemory", "memory"):
        element = Element(name, {"unit": "KiB"})
        element.text = str(kib)
        root.insert(1, element)


def _set_nvram(root: Element, nvram: str) -> None:
    os_ = root.find("os")
    found = os_.find("nvram") if os_ is not None else None
    if os_ is None or found is None:
        return
    if nvram:
        for child in list(found):
            found.remove(child)
        found.attrib.pop("type", None)
        found.text = nvram
    else:
        os_.remove(found)  # the host makes one of its template


def _set_disks(devices: Element, places: Mapping[str, tuple[str, str]], bus: str) -> None:
    for element in devices.findall("disk"):
        is_disk, disk = _disk(element)
        if not is_disk:
            source = element.find("source")
            if source is not None and element.get("type") == "file":
                source.set("startupPolicy", "optional")  # the image of a CD may be elsewhere
            continue
        if disk.disk not in places:
            devices.remove(element)
            continue
        path, format_ = places[disk.disk]
        for name in ("source", "backingStore", "mirror", "auth"):
            for child in element.findall(name):
                element.remove(child)
        element.set("type", "file")
        element.insert(0, Element("source", {"file": path}))
        driver = element.find("driver")
        if driver is None:
            driver = SubElement(element, "driver", {"name": "qemu"})
        driver.set("type", format_)
        target = element.find("target")
        if bus and target is not None and target.get("bus") != bus:
            target.set("bus", bus)
            for name in ("address", "alias"):
                for child in element.findall(name):
                    element.remove(child)
            for attribute in ("iothread", "queues", "ats", "iommu", "packed", "event_idx", "ioeventfd"):
                driver.attrib.pop(attribute, None)
    if bus == "scsi" and devices.find("controller[@type='scsi']") is None:
        SubElement(devices, "controller", {"type": "scsi", "index": "0", "model": "virtio-scsi"})


def _set_nics(devices: Element, wanted: MachineWanted, networks: Sequence[str]) -> None:
    old = devices.findall("interface")
    if wanted.nics is None:
        for element in old if not wanted.native else ():
            for mac in element.findall("mac"):
                element.remove(mac)
        return
    for element in old:
        devices.remove(element)
    for nic in wanted.nics:
        like = next((e for e in old if nic.network and _nic(e).network == nic.network), None)
        made = copy.deepcopy(like) if like is not None else _new_nic(nic, networks)
        for name in ("mac", "target", "address", "alias"):
            for child in made.findall(name):
                made.remove(child)
        if nic.mac:
            made.append(Element("mac", {"address": nic.mac}))
        if nic.model or made.find("model") is None:
            for child in made.findall("model"):
                made.remove(child)
            made.append(Element("model", {"type": nic.model or "virtio"}))
        devices.append(made)


def _new_nic(nic: NicSeen, networks: Sequence[str]) -> Element:
    if nic.network == "user":
        return Element("interface", {"type": "user"})
    kind = "network" if nic.network in networks or not nic.network else "bridge"
    made = Element("interface", {"type": kind})
    made.append(Element("source", {kind: nic.network or "default"}))
    return made
