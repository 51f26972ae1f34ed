"""What there is on a host: domains as `MachineSeen`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agents.machines import DiskSeen, MachineSeen, Power
from agents.platforms.kvm import notes, storage
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.description import Described, DiskDescribed, described, without_notes
from agents.platforms.kvm.library import libvirt


def domain_of(connection: Connection, native: str) -> Any:
    """Raises `AgentError` (`machine-unknown`)."""
    with connection.errors():
        return connection.get().lookupByUUIDString(native)


def as_running(domain: Any) -> Described:
    """How it is just now: of a machine that runs, the disks it has open."""
    return described(domain.XMLDesc(0))


def power_of(domain: Any) -> Power:
    """A machine that was off and is held by a paused QEMU only so that it can be read is off."""
    library = libvirt()
    state = domain.state()[0]
    if state in (library.VIR_DOMAIN_SHUTOFF, library.VIR_DOMAIN_CRASHED):
        return "off"
    if state in (library.VIR_DOMAIN_PAUSED, library.VIR_DOMAIN_PMSUSPENDED):
        note = notes.read(domain, "hold", live=True)
        return "off" if note is not None and note.get("started") == "yes" else "paused"
    return "running"


def machine_seen(connection: Connection, domain: Any) -> MachineSeen:
    """Raises libvirt's errors."""
    library = libvirt()
    now = as_running(domain)
    xml = domain.XMLDesc(library.VIR_DOMAIN_XML_INACTIVE)
    later = described(xml)
    note = notes.read(domain, "restore", live=False) if domain.isPersistent() else None
    return MachineSeen(
        native=now.native,
        name=now.name,
        power=power_of(domain),
        cpus=later.cpus,
        memory=later.memory,
        firmware=later.firmware,
        tags=later.tags,
        disks=tuple(disk_seen(connection, domain, disk) for disk in now.disks),
        nics=later.nics,
        description=without_notes(xml).encode(),
        companions=_companions(connection, later),
        restoring=note.get("job", "") if note is not None else "",
    )


def disk_seen(connection: Connection, domain: Any, disk: DiskDescribed) -> DiskSeen:
    library = libvirt()
    size, left_out = 0, disk.left_out
    if not left_out:
        try:
            size = int(domain.blockInfo(disk.disk)[0])
        except library.libvirtError as error:
            if error.get_error_domain() in (library.VIR_FROM_RPC, library.VIR_FROM_REMOTE):
                raise
            left_out = f"the host does not tell its size: {error}"
    store = disk.pool or (os.path.dirname(disk.place) if disk.kind == "file" else disk.place)
    return DiskSeen(disk.disk, size, disk.format, disk.bus, store, disk.place, disk.tracked and not left_out, left_out)


def _companions(connection: Connection, seen: Described) -> dict[str, bytes]:
    """The variables of UEFI, of which a machine that never ran has none."""
    if not seen.nvram:
        return {}
    if connection.local:
        try:
            return {"nvram": Path(seen.nvram).read_bytes()}
        except FileNotFoundError:
            return {}
        except OSError:
            pass  # not ours to read here; libvirt may
    content = storage.content_of(connection, seen.nvram)
    return {} if content is None else {"nvram": content}
