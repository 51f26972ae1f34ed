"""A host with libvirt as `agents.machines.Host`: which module does what."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agents.errors import AgentError
from agents.machines import HostSettings, Leftover, MachineSeen, MachineWanted, Quiesce, Wanted
from agents.platforms.kvm import carrier, disks, making, marks, notes, seeing, snapshot
from agents.platforms.kvm.carrier import Place
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.library import libvirt
from agents.platforms.kvm.reach import reach
from agents.protocol import Preflight
from streams.events import Problem

SCRATCH: Final = "/var/tmp"
_LONGEST: Final = 80
_LIBVIRT: Final = 7_002_000  # backups of chosen disks since chosen checkpoints, in its present form
_QEMU: Final = 5_002_000


class KvmHost:
    """Implements `Host`. Option `scratch`: a folder of the host, where QEMU may write what guests overwrite while a backup
    goes on, and listen on a socket (default /var/tmp). `shutdown_s`: how long `stop` waits for a guest (default 120)."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings)
        self._scratch = settings.options.get("scratch", SCRATCH).rstrip("/")
        if not self._scratch.startswith("/") or len(self._scratch.encode()) > _LONGEST:
            raise AgentError(
                "host-option-invalid",
                f"option scratch is {self._scratch!r}",
                f"an absolute path of at most {_LONGEST} bytes, since there will be sockets in it",
            )
        self._place = Place(self._connection, reach(self._connection, self._scratch), self._scratch)
        self._taker = snapshot.Taker(self._connection, self._place.reach, self._scratch)

    @property
    def settings(self) -> HostSettings:
        return self._settings

    def preflight(self) -> Preflight:
        with self._connection.errors():
            conn = self._connection.get()
            library, hypervisor = conn.getLibVersion(), conn.getVersion()
        problems = []
        if library < _LIBVIRT or hypervisor < _QEMU:
            problems.append(
                Problem(
                    "host-too-old",
                    f"libvirt {_version(library)} with QEMU {_version(hypervisor)}",
                    f"backups need libvirt {_version(_LIBVIRT)} and QEMU {_version(_QEMU)}",
                )
            )
        if self._connection.local and not os.access(self._scratch, os.X_OK):
            problems.append(
                Problem("scratch-unreachable", f"{self._scratch} is no folder that we may enter", "set option scratch")
            )
        said = f"libvirt {_version(library)}, QEMU {_version(hypervisor)}"
        return Preflight(tuple(problems), (), ("tracked", "groups", "quiesce"), said)

    def discover(self) -> Iterator[MachineSeen]:
        with self._connection.errors():
            domains = self._connection.get().listAllDomains(0)
        for domain in domains:
            try:
                with self._connection.errors():
                    if carrier.is_one(domain):
                        continue
                    seen = seeing.machine_seen(self._connection, domain)
            except AgentError as error:
                if error.code == "machine-unknown":
                    continue
                raise
            yield seen

    def machine(self, native: str) -> MachineSeen:
        domain = seeing.domain_of(self._connection, native)
        with self._connection.errors():
            return seeing.machine_seen(self._connection, domain)

    def snapshot(self, wanted: Sequence[Wanted], *, job: str, quiesce: Quiesce = "try") -> snapshot.KvmSnapshot:
        return self._taker.take(wanted, job=job, quiesce=quiesce)

    def leftovers(self) -> Sequence[Leftover]:
        found: list[Leftover] = []
        active: set[str] = set()
        natives: list[str] = []
        with self._connection.errors():
            for domain in self._connection.get().listAllDomains(0):
                with self._vanished():
                    if carrier.is_one(domain):
                        continue
                    native = domain.UUIDString()
                    natives.append(native)
                    name = snapshot.going_on(domain)
                    if name:
                        active.add(name)
                        found.append(Leftover(notes.job_of(name), native, "snapshot", name))
                    found += [Leftover(notes.job_of(mark), native, "mark", mark) for mark, _ in marks.of(domain)]
                    note = notes.read(domain, "restore", live=False) if domain.isPersistent() else None
                    if note is not None and note.get("made") == "yes":
                        found.append(Leftover(note.get("job", ""), native, "machine", domain.name()))
        if self._connection.local:
            files = snapshot.left_files(self._scratch, active)
            found += [Leftover(notes.job_of(name), _owner(path, natives), "file", path) for name, path in files]
        return found

    @contextlib.contextmanager
    def _vanished(self) -> Iterator[None]:
        """A machine that goes while we look at it has left nothing."""
        library = libvirt()
        try:
            yield
        except library.libvirtError as error:
            if error.get_error_code() != library.VIR_ERR_NO_DOMAIN:
                raise

    def remove(self, leftover: Leftover) -> None:
        if leftover.kind == "file":
            path = Path(leftover.name)
            if str(path.parent) == self._scratch and notes.job_of(notes.found_in(path.name)) == leftover.job:
                path.unlink(missing_ok=True)
            return
        domain = self._domain(leftover.native)
        if domain is None:
            return
        with self._connection.errors():
            if leftover.kind == "snapshot" and notes.job_of(leftover.name):
                self._taker.remove(leftover.native, leftover.name)
            elif leftover.kind == "mark" and notes.job_of(leftover.name):
                marks.delete(domain, leftover.name)
            elif leftover.kind == "machine":
                note = notes.read(domain, "restore", live=False)
                if note is not None and note.get("made") == "yes" and note.get("job") == leftover.job:
                    making.delete(self._connection, leftover.native)

    def _domain(self, native: str) -> Any:
        """None: it is gone."""
        try:
            return seeing.domain_of(self._connection, native)
        except AgentError as error:
            if error.code == "machine-unknown":
                return None
            raise

    def create(self, wanted: MachineWanted, *, job: str) -> MachineSeen:
        return making.create(self._connection, wanted, job=job)

    def open_disk(self, native: str, disk: str, *, job: str) -> disks.KvmDiskTarget:
        return disks.open_disk(self._place, native, disk, job=job)

    def read_disk(self, native: str, disk: str) -> disks.KvmDiskTarget:
        return disks.read_disk(self._place, native, disk)

    def settle(self, native: str) -> None:
        making.settle(self._connection, native)

    def start(self, native: str) -> None:
        making.start(self._connection, native)

    def stop(self, native: str) -> None:
        making.stop(self._connection, native)

    def delete(self, native: str) -> None:
        making.delete(self._connection, native)


def _owner(path: str, natives: Sequence[str]) -> str:
    """Which machine a scratch file was made for: a part of its identity stands in the name. Empty: one that is gone."""
    parts = os.path.basename(path).split(".")
    return next((native for native in natives if native[:8] in parts), "")


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
