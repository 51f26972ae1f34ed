"""Disks of machines on another host: a machine of ours over there, which never runs, holds the image, and its QEMU serves it.

    an empty file ──> disk vdb ─┐
    the image     ──> disk vda ─┴─ holdfast-disk-… : transient, paused, gone with the connection that started it
                                       backup of vdb (pull mode) = libvirt's NBD server, by a socket or with its certificates
                                       block-export-add           = vda in the same server, to be written to

Where the image is, its format and who may open it is libvirt's business and QEMU's, as if the machine itself were started; as
then, QEMU's locks keep everybody else from it. libvirt has no call that serves a disk to be written to, so the last step
goes past it to QEMU's monitor, of that machine alone. Should we die, the connection breaks and libvirt ends it
(VIR_DOMAIN_START_AUTODESTROY); where libvirt itself was started anew meanwhile, the next `carried` of the same job does.

Failpoint: `kvm.carried`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import quoteattr

from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.platforms.kvm import notes, storage
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.description import carrier_of, described
from agents.platforms.kvm.library import libvirt, libvirt_qemu
from agents.platforms.kvm.reach import PORT_BUSY, Access, Reach, no_port

EXPORT: Final = "disk"
_SPARE: Final = 1 << 20  # bytes of the disk that is backed up so that there is a server
_DEVICE: Final = "virtio-disk0"


@dataclass(frozen=True, slots=True)
class Place:
    """A host that is another machine: how it is asked, how its sockets and ports are reached, its folder for such files."""

    connection: Connection
    reach: Reach
    scratch: str


@contextlib.contextmanager
def carried(
    place: Place, domain: Any, disk: str, *, job: str, read_only: bool, unmark: bool = False
) -> Iterator[Access]:
    """A server of `disk` of a machine that is off, as export `EXPORT`. `unmark`: take our bitmaps off its image. Raises
    `AgentError` (`disk-busy`, `disk-unopened`)."""
    library = libvirt()
    native = domain.UUIDString()
    _end_of(place, native, disk, job)
    name = _name(place, f"{native}/{disk}", job)
    spare = f"{place.scratch}/{name}.spare"
    xml = carrier_of(
        domain.XMLDesc(library.VIR_DOMAIN_XML_INACTIVE),
        disk,
        name=name,
        spare=spare,
        job=job,
        read_only=read_only,
    )
    with place.connection.errors():
        made = None
        try:
            storage.delete(place.connection, spare)
            storage.make(place.connection, spare, _SPARE, "raw")
            made = _started(place, xml, disk)
            _serve(place, made, native, name)
            _export(made, read_only=read_only, unmark=unmark)
            failpoint("kvm.carried")
            access = place.reach.open(native, name, made)
            try:
                yield access
            finally:
                access.close()
        finally:
            if made is not None:
                _end(made)
                place.reach.clear(native, name)
            # Not before its machine: where a file is missing, libvirt gives none of the others back to whom they were.
            with contextlib.suppress(AgentError):
                storage.delete(place.connection, spare)


def _name(place: Place, what: str, job: str) -> str:
    """Of the same job always the same, and of readers the first that is free: so that the files that a death left are made anew
    by the next one, and go with it."""
    if job:
        return notes.name_of("disk", f"{what}/{job}")
    with place.connection.errors():
        there = {domain.name() for domain in place.connection.get().listAllDomains(0)}
    names = (notes.name_of("disk", f"{what}//{number}") for number in itertools.count())
    return next(name for name in names if name not in there)


def _started(place: Place, xml: str, disk: str) -> Any:
    library = libvirt()
    flags = library.VIR_DOMAIN_START_PAUSED | library.VIR_DOMAIN_START_AUTODESTROY
    try:
        return place.connection.get().createXML(xml, flags)
    except library.libvirtError as error:
        if error.get_error_domain() in (library.VIR_FROM_RPC, library.VIR_FROM_REMOTE):
            raise
        if " lock" in str(error):
            raise AgentError(
                "disk-busy",
                f"disk {disk} is in use: {error}",
                "wait until it is not; a machine holdfast-disk-… that nobody uses any more may be ended: virsh destroy",
            ) from error
        raise AgentError(
            "disk-unopened",
            f"the host does not open disk {disk}: {error}",
            "could its machine be started there? What this needs is in the guide of KVM hosts, Other machines",
        ) from error


def _serve(place: Place, domain: Any, native: str, name: str) -> None:
    library = libvirt()
    busy = 0
    scratch = quoteattr(f"{place.scratch}/{name}.{native[:8]}.spare")
    while True:
        server = place.reach.server_xml(native, name, busy)
        disks = (
            "<disk name='vda' backup='no'/><disk name='vdb' backup='yes' type='file'><driver type='qcow2'/>"
            f"<scratch file={scratch}/></disk>"
        )
        try:
            domain.backupBegin(f"<domainbackup mode='pull'>{server}<disks>{disks}</disks></domainbackup>", None, 0)
            return
        except library.libvirtError as error:
            busy += 1
            if PORT_BUSY not in str(error):
                raise
            if place.reach.server_xml(native, name, busy) is None:
                raise no_port(error) from error


def _export(domain: Any, *, read_only: bool, unmark: bool) -> None:
    node = next(
        (
            block["inserted"]
            for block in monitor(domain, "query-block")
            if _DEVICE in block.get("qdev", "") and block.get("inserted")
        ),
        None,
    )
    if node is None:
        raise SourceUnavailable("disk-unreachable", "the host's QEMU does not tell which of its nodes the disk is")
    for bitmap in node.get("dirty-bitmaps", ()) if unmark and not read_only else ():
        if notes.job_of(bitmap.get("name", "")):
            monitor(domain, "block-dirty-bitmap-remove", node=node["node-name"], name=bitmap["name"])
    export = {
        "type": "nbd",
        "id": "holdfast",
        "node-name": node["node-name"],
        "name": EXPORT,
        "writable": not read_only,
    }
    monitor(domain, "block-export-add", **export)


def monitor(domain: Any, execute: str, **arguments: Any) -> Any:
    """What QEMU itself answers. Raises `AgentError` (`host-refused`) for what it refuses."""
    asked = json.dumps({"execute": execute, "arguments": arguments} if arguments else {"execute": execute})
    answer = json.loads(libvirt_qemu().qemuMonitorCommand(domain, asked, 0))
    if "error" in answer:
        raise AgentError("host-refused", f"QEMU refuses {execute}: {answer['error'].get('desc', '')}")
    return answer.get("return")


def _end(domain: Any) -> None:
    """Nothing when it is gone."""
    library = libvirt()
    with contextlib.suppress(library.libvirtError):  # with the connection, it is ended by libvirt
        domain.destroy()


def _end_of(place: Place, native: str, disk: str, job: str) -> None:
    """End what an earlier run of `job` left of the same."""
    library = libvirt()
    with place.connection.errors():
        for domain in place.connection.get().listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_TRANSIENT):
            try:
                note = notes.read(domain, "carrier", live=True) if is_one(domain) else None
            except library.libvirtError as error:
                if error.get_error_code() != library.VIR_ERR_NO_DOMAIN:
                    raise
                continue
            if job and note is not None and note.attrib == {"of": native, "disk": disk, "job": job}:
                _end(domain)


def is_one(domain: Any) -> bool:
    """Machines of ours that are nobody's."""
    return notes.job_of(domain.name()) == "disk" and described(domain.XMLDesc(0)).carrier
