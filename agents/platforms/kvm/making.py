"""Machines made of a description, started, stopped, and deleted.

The domain is defined before its images are made, with a note that names them: a death in between leaves a machine that is
found (`Host.leftovers`) and goes with all that was made for it.

Failpoints: `kvm.defined`, `kvm.made`.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Any, Final
from xml.etree.ElementTree import Element

from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.machines import MachineSeen, MachineWanted
from agents.platforms.kvm import notes, seeing, storage
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.description import described, remade
from agents.platforms.kvm.library import libvirt

_DEFAULT: Final = "/var/lib/libvirt/images"
_SHUTDOWN_S: Final = 120.0
_FORMATS: Final = ("qcow2", "raw")


def create(connection: Connection, wanted: MachineWanted, *, job: str) -> MachineSeen:
    """See `agents.machines.Host.create`."""
    library = libvirt()
    was = described(wanted.description.decode("utf-8", "replace"))
    by_name = {disk.disk: disk for disk in was.disks}
    with connection.errors():
        conn = connection.get()
        for domain in conn.listAllDomains(0):
            if domain.name() == wanted.name or domain.UUIDString() == wanted.native:
                raise AgentError(
                    "machine-exists",
                    f"{connection.settings.host} has a machine {domain.name()} ({domain.UUIDString()}) already",
                    "choose another name, or delete it",
                )
        places: dict[str, tuple[str, str]] = {}
        folder = _DEFAULT
        for want in wanted.disks:
            like = by_name.get(want.disk)
            if want.storage:
                folder = storage.folder_of(connection, want.storage)
            elif like is not None and like.kind == "file":
                folder = os.path.dirname(like.place) or _DEFAULT
            format_ = want.format or (like.format if like is not None else "qcow2")
            if format_ not in _FORMATS:
                raise AgentError(
                    "format-unsupported", f"images of format {format_} are not made", " or ".join(_FORMATS)
                )
            places[want.disk] = (_free(connection, folder, f"{wanted.name}-{want.disk}", format_), format_)
        nvram = ""
        if "nvram" in wanted.companions and was.firmware == "uefi":
            nvram = _free(connection, folder, f"{wanted.name}-nvram", "fd")
        networks = [network.name() for network in conn.listAllNetworks(0)] if wanted.nics else []
        xml = remade(wanted, places, job=job, nvram=nvram, networks=networks)
        try:
            domain = conn.defineXMLFlags(xml, library.VIR_DOMAIN_DEFINE_VALIDATE)
        except library.libvirtError as error:
            raise AgentError(
                "machine-refused",
                f"the host does not take the machine: {error}",
                "ask for another name, fewer cpus, another bus or other cards: `holdfast restore machine --help`",
            ) from error
        failpoint("kvm.defined")
        try:
            for want in wanted.disks:
                path, format_ = places[want.disk]
                storage.make(connection, path, want.size, format_)
            if nvram:
                storage.put(connection, nvram, wanted.companions["nvram"])
        except library.libvirtError as error:
            delete(connection, domain.UUIDString())
            raise AgentError(
                "storage-failed", f"an image could not be made: {error}", "is there room, and a folder?"
            ) from error
        failpoint("kvm.made")
        return seeing.machine_seen(connection, domain)


def _free(connection: Connection, folder: str, name: str, suffix: str) -> str:
    """A path that nothing has."""
    path = f"{folder}/{name}.{suffix}"
    while storage.exists(connection, path):
        path = f"{folder}/{name}-{secrets.token_hex(3)}.{suffix}"
    return path


def settle(connection: Connection, native: str) -> None:
    domain = seeing.domain_of(connection, native)
    with connection.errors():
        if domain.isPersistent():
            notes.end_restore(domain)


def start(connection: Connection, native: str) -> None:
    library = libvirt()
    domain = seeing.domain_of(connection, native)
    with connection.errors():
        if domain.isActive():
            return
        note = notes.read(domain, "restore", live=False)
        if note is not None and note.get("blank") == "yes":
            notes.write(domain, "restore", {**note.attrib, "blank": "no"}, live=False)
        try:
            domain.create()
        except library.libvirtError as error:
            if not domain.isActive():  # or somebody else was faster
                raise AgentError("machine-unstartable", f"{domain.name()} does not start: {error}") from error


def stop(connection: Connection, native: str) -> None:
    """Asked by ACPI, and switched off when it has not gone within option `shutdown_s` (seconds, 120)."""
    library = libvirt()
    domain = seeing.domain_of(connection, native)
    with connection.errors():
        if not domain.isActive():
            return
        try:
            if domain.state()[0] == library.VIR_DOMAIN_RUNNING:
                domain.shutdown()
                deadline = time.monotonic() + float(connection.settings.options.get("shutdown_s", _SHUTDOWN_S))
                while domain.isActive() and time.monotonic() < deadline:
                    time.sleep(0.2)
            if domain.isActive():
                domain.destroy()
        except library.libvirtError as error:
            if error.get_error_code() != library.VIR_ERR_OPERATION_INVALID:  # it went off by itself
                raise


def delete(connection: Connection, native: str) -> None:
    library = libvirt()
    try:
        domain = seeing.domain_of(connection, native)
    except AgentError as error:
        if error.code == "machine-unknown":
            return
        raise
    with connection.errors():
        if domain.isActive():
            raise AgentError("machine-running", f"{domain.name()} is not off", "shut it down first")
        for path in _made(domain):
            storage.delete(connection, path)
        flags = (
            library.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | library.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | library.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        )
        domain.undefineFlags(flags)


def _made(domain: Any) -> list[str]:
    note: Element | None = notes.read(domain, "made", live=False)
    return [] if note is None else [element.get("path", "") for element in note.iterfind("file")]
