"""The platform of hosts `memory`: `agents.machines.Host` on the stand-in for a hypervisor (`hypervisor`).

    with registered():                      # agents.registry knows the kind "memory" meanwhile
        host = registry.host(hypervisor.settings())

Another process: `python -P -m tests.stand_ins.memory_agent --config FILE` is the agent with the kind registered.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from uuid import uuid4

from agents import registry
from agents.errors import AgentError, SourceUnavailable
from agents.machines import (
    Consistency,
    DiskSeen,
    ExtentKind,
    HostSettings,
    Leftover,
    MachineSeen,
    MachineWanted,
    Power,
    Quiesce,
    Wanted,
)
from agents.protocol import Preflight
from streams.events import Problem
from streams.ids import now_us
from tests.stand_ins.hypervisor import GRANULE, KIND, Disk, Hypervisor, Machine, State


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """`agents.registry` makes hosts of kind `memory` meanwhile."""
    hosts = cast("dict[str, str]", registry.HOSTS)
    hosts[KIND] = "tests.stand_ins.memory_host"
    try:
        yield
    finally:
        del hosts[KIND]


def host(settings: HostSettings) -> MemoryHost:
    """For the registry. `settings.url`: `memory:<folder>`."""
    return MemoryHost(settings, Hypervisor(Path(settings.url.partition(":")[2])))


def _job_of(name: str) -> str:
    """Of `holdfast-<job>-<run>`; empty for what is not ours."""
    parts = name.split("-")
    return "-".join(parts[1:-1]) if parts[0] == "holdfast" and len(parts) > 2 else ""


class MemoryHost:
    """Implements `Host`."""

    def __init__(self, settings: HostSettings, hypervisor: Hypervisor) -> None:
        self._settings = settings
        self._on = hypervisor

    @property
    def settings(self) -> HostSettings:
        return self._settings

    def preflight(self) -> Preflight:
        self._on.called("discover")
        return Preflight((), (), ("tracked", "groups") if self._on.read().groups else ("tracked",), "memory 1")

    def discover(self) -> Iterator[MachineSeen]:
        self._on.called("discover")
        for machine in self._on.read().machines.values():
            yield machine.seen()

    def machine(self, native: str) -> MachineSeen:
        self._on.called("discover")
        return self._on.machine_of(self._on.read(), native).seen()

    def snapshot(self, wanted: Sequence[Wanted], *, job: str, quiesce: Quiesce = "try") -> _Snapshot:
        self._on.called("snapshot")
        name = f"holdfast-{job}-{secrets.token_hex(4)}"
        asked_since = {mark for want in wanted for mark in want.since.values()}
        with self._on.changing() as state:
            if len(wanted) > 1 and not state.groups:
                raise AgentError(
                    "group-unsupported", "this host takes no snapshot of several machines at once", "one at a time"
                )
            for snapshot in [s for s in state.snapshots if _job_of(s) == job]:
                self._on.end(state, snapshot)
            for want in wanted:
                machine = self._on.machine_of(state, want.native)
                for mark in {m for d in machine.disks.values() for m in d.marks if _job_of(m) == job} - asked_since:
                    self._on.forget(state, want.native, mark)
                if machine.busy or any(want.native in s for s in state.snapshots.values()):
                    raise AgentError("machine-busy", f"a backup of {machine.name} goes on", "wait until it has ended")
                if quiesce == "require" and machine.guest_agent != "works":
                    raise AgentError(
                        "quiesce-failed",
                        f"the file systems of {machine.name} could not be frozen",
                        "install the guest agent, or do not require it",
                    )
            machines = tuple(self._taken(state, want, name, quiesce) for want in wanted)
            state.snapshots[name] = {m.seen.native: [d.seen.disk for d in m.disks] for m in machines}
        return _Snapshot(self._on, name, machines)

    def _taken(self, state: State, want: Wanted, name: str, quiesce: Quiesce) -> _MachineSnapshot:
        machine = state.machines[want.native]
        seen = machine.seen()
        chosen = want.disks or tuple(d for d, disk in machine.disks.items() if not disk.left_out)
        disks = []
        for disk_name in chosen:
            disk = self._on.disk_of(state, want.native, disk_name)
            asked, since, why = want.since.get(disk_name, ""), "", ""
            if asked:
                if not disk.tracked:
                    why = "nothing keeps track of what changes on this disk"
                elif asked not in disk.marks:
                    why = f"the mark {asked} is not there"
                elif not disk.marks[asked]:
                    why = "what changed was lost in a crash of the hypervisor; it is kept track of again from now on"
                    self._on.forget(state, want.native, asked, [disk_name])
                else:
                    since = asked
            granules = -(-disk.size // GRANULE)
            held = name.replace("-", "_")
            self._on.make_file(self._on.map_file(want.native, disk_name, "held", held), granules)
            self._on.make_file(self._on.map_file(want.native, disk_name, "bytes", held), disk.size)
            if disk.tracked:
                self._on.make_file(self._on.map_file(want.native, disk_name, "changed", name), granules)
                disk.marks[name] = True
            changed = b""
            if since:
                changed = self._on.map_file(want.native, disk_name, "changed", since).read_bytes()
            mark = name if disk.tracked else ""
            disks.append(_DiskSnapshot(self._on, want.native, disk.seen(want.native), name, mark, since, why, changed))
        frozen = quiesce != "off" and machine.power == "running" and machine.guest_agent == "works"
        problems: tuple[Problem, ...] = ()
        if quiesce == "try" and machine.power == "running" and machine.guest_agent != "works":
            problems = (Problem("quiesce-failed", f"the guest agent of {machine.name} did not answer", "install it"),)
        consistency: Consistency = "files" if frozen or machine.power == "off" else "crash"
        return _MachineSnapshot(seen, now_us(), consistency, problems, tuple(disks))

    def leftovers(self) -> Sequence[Leftover]:
        self._on.called("leftovers")
        state = self._on.read()
        found = [
            Leftover(_job_of(name), native, "snapshot", name)
            for name, machines in state.snapshots.items()
            for native in machines
        ]
        for native, machine in state.machines.items():
            marks = dict.fromkeys(mark for disk in machine.disks.values() for mark in disk.marks)
            found += [Leftover(_job_of(mark), native, "mark", mark) for mark in marks]
            if machine.made and machine.restoring:
                found.append(Leftover(machine.restoring, native, "machine", machine.name))
        return found

    def remove(self, leftover: Leftover) -> None:
        self._on.called("remove")
        with self._on.changing() as state:
            if leftover.kind == "snapshot":
                self._on.end(state, leftover.name)
            elif leftover.kind == "mark":
                self._on.forget(state, leftover.native, leftover.name)
            elif leftover.kind == "machine" and state.machines.get(leftover.native) is not None:
                machine = state.machines[leftover.native]
                if not machine.made or machine.restoring != leftover.job:
                    return
                for disk in state.machines.pop(leftover.native).disks:
                    self._on.delete_files(leftover.native, disk)

    def create(self, wanted: MachineWanted, *, job: str) -> MachineSeen:
        self._on.called("create")
        described = json.loads(wanted.description)
        native = wanted.native or str(uuid4())
        nics = described["nics"]
        if wanted.nics is not None:
            nics = [[nic.mac or _new_mac(), nic.network, nic.model] for nic in wanted.nics]
        elif not wanted.native:
            nics = [[_new_mac(), *nic[1:]] for nic in nics]
        with self._on.changing() as state:
            if native in state.machines or any(m.name == wanted.name for m in state.machines.values()):
                raise AgentError(
                    "machine-exists", f"there is a machine {wanted.name} already", "choose another name, or delete it"
                )
            disks = {}
            for want in wanted.disks:
                _, format_, bus, storage = described["disks"].get(want.disk, (0, "qcow2", "virtio", "pool"))
                disks[want.disk] = Disk(
                    want.disk,
                    want.size,
                    want.format or format_,
                    wanted.bus or bus,
                    want.storage or storage,
                    tracked=(want.format or format_) == "qcow2",
                    blank=True,
                )
                self._on.make_file(self._on.disk_file(native, want.disk), want.size)
            made = Machine(
                native,
                wanted.name,
                "off",
                wanted.cpus or described["cpus"],
                wanted.memory or described["memory"],
                described["firmware"],
                nics=nics,
                companions={name: base64.b64encode(data).decode() for name, data in wanted.companions.items()},
                disks=disks,
                restoring=job,
                made=True,
            )
            state.machines[native] = made
            return made.seen()

    def open_disk(self, native: str, disk: str, *, job: str) -> _DiskTarget:
        self._on.called("open")
        with self._on.changing() as state:
            machine = self._on.machine_of(state, native)
            if machine.power != "off":
                raise AgentError("machine-running", f"{machine.name} is not off", "shut it down first")
            found = self._on.disk_of(state, native, disk)
            for mark in list(found.marks):
                self._on.forget(state, native, mark, [disk])
            machine.restoring = job
            return _DiskTarget(self._on, native, disk, found.size, found.blank)

    def read_disk(self, native: str, disk: str) -> _DiskTarget:
        self._on.called("open")
        state = self._on.read()
        machine = self._on.machine_of(state, native)
        found = self._on.disk_of(state, native, disk)
        if machine.power != "off":
            raise AgentError("machine-running", f"{machine.name} is not off", "shut it down first")
        return _DiskTarget(self._on, native, disk, found.size, found.blank, read_only=True)

    def settle(self, native: str) -> None:
        self._on.called("settle")
        with self._on.changing() as state:
            machine = self._on.machine_of(state, native)
            machine.restoring, machine.made = "", False
            for disk in machine.disks.values():
                disk.blank = False

    def start(self, native: str) -> None:
        self._power(native, "running")

    def stop(self, native: str) -> None:
        self._power(native, "off")

    def _power(self, native: str, power: Power) -> None:
        self._on.called("power")
        with self._on.changing() as state:
            machine = self._on.machine_of(state, native)
            machine.power = power
            for disk in machine.disks.values():
                disk.blank = disk.blank and power == "off"

    def delete(self, native: str) -> None:
        self._on.called("delete")
        with self._on.changing() as state:
            machine = state.machines.get(native)
            if machine is None:
                return
            if machine.power != "off":
                raise AgentError("machine-running", f"{machine.name} is not off", "shut it down first")
            for disk in state.machines.pop(native).disks:
                self._on.delete_files(native, disk)


def _new_mac() -> str:
    return "02:00:01:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


@dataclass(slots=True)
class _Snapshot:
    _on: Hypervisor
    _name: str
    machines: tuple[_MachineSnapshot, ...]
    _kept: bool = False

    def keep(self, needed: Mapping[str, Sequence[str]]) -> None:
        self._on.called("keep")
        self._kept = True
        with self._on.changing() as state:
            for machine in self.machines:
                native = machine.seen.native
                there = state.machines.get(native)
                chosen = [disk.seen.disk for disk in machine.disks]
                for disk in there.disks.values() if there else ():
                    for mark in list(disk.marks):
                        if disk.disk in chosen and mark != self._name and mark not in needed.get(native, ()):
                            self._on.forget(state, native, mark, [disk.disk])

    def close(self) -> None:
        self._on.called("close")
        with self._on.changing() as state:
            self._on.end(state, self._name)
            if not self._kept:
                for machine in self.machines:
                    self._on.forget(state, machine.seen.native, self._name)


@dataclass(frozen=True, slots=True)
class _MachineSnapshot:
    seen: MachineSeen
    taken_us: int
    consistency: Consistency
    problems: tuple[Problem, ...]
    disks: tuple[_DiskSnapshot, ...]


@dataclass(frozen=True, slots=True)
class _DiskSnapshot:
    _on: Hypervisor
    _native: str
    seen: DiskSeen
    _snapshot: str
    mark: str
    since: str
    why_whole: str
    _changed: bytes = field(repr=False)

    def extents(self, *, whole: bool = False) -> Iterator[tuple[int, int, ExtentKind]]:
        self._on.called("extents")
        for offset, end in self._flagged() if self.since and not whole else [(0, self.seen.size)]:
            yield from self._allocated(offset, end)

    def _flagged(self) -> Iterator[tuple[int, int]]:
        at = 0
        while (first := self._changed.find(b"\1", at)) >= 0:
            end = self._changed.find(b"\0", first)
            at = len(self._changed) if end < 0 else end
            yield first * GRANULE, min(at * GRANULE, self.seen.size)

    def _allocated(self, offset: int, end: int) -> Iterator[tuple[int, int, ExtentKind]]:
        """A hole of the file is zeros, unless something was there at the snapshot and is kept aside since."""
        with self._on.lock(fcntl.LOCK_SH):
            held = self._held()
            fd = os.open(self._on.disk_file(self._native, self.seen.disk), os.O_RDONLY)
            kinds: list[tuple[int, int, ExtentKind]] = []
            try:
                at = offset
                while at < end:
                    stop, data = _run_of(fd, at, end)
                    first, last = at // GRANULE, -(-stop // GRANULE)
                    if not data and held.find(b"\1", first, last) >= 0:
                        data = True
                    kind: ExtentKind = "data" if data else "zero"
                    if kinds and kinds[-1][2] == kind:
                        kinds[-1] = (kinds[-1][0], stop - kinds[-1][0], kind)
                    else:
                        kinds.append((at, stop - at, kind))
                    at = stop
            finally:
                os.close(fd)
        yield from kinds

    def _held(self) -> bytes:
        try:
            return self._on.map_file(
                self._native, self.seen.disk, "held", self._snapshot.replace("-", "_")
            ).read_bytes()
        except FileNotFoundError:
            raise SourceUnavailable("snapshot-lost", "the snapshot is no more", "run the backup again") from None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._on.called("read")
        end = offset + len(buffer)
        if end > self.seen.size:
            raise ValueError(f"{self.seen.disk} ends at {self.seen.size}")
        with self._on.lock(fcntl.LOCK_SH):
            path = self._on.disk_file(self._native, self.seen.disk)
            held = self._held()
            with (
                path.open("rb", buffering=0) as now,
                self._on.map_file(self._native, self.seen.disk, "bytes", self._snapshot.replace("-", "_")).open(
                    "rb", buffering=0
                ) as then,
            ):
                at = offset
                while at < end:
                    granule = at // GRANULE
                    aside = held[granule : granule + 1] == b"\1"
                    stop = held.find(b"\0" if aside else b"\1", granule)
                    stop = end if stop < 0 else min(end, stop * GRANULE)
                    got = os.preadv((then if aside else now).fileno(), [buffer[at - offset : stop - offset]], at)
                    if not got:
                        raise SourceUnavailable("snapshot-unreadable", f"{path.name} ends at {at}", "")
                    at += got


def _run_of(fd: int, at: int, end: int) -> tuple[int, bool]:
    """Where the stretch of data or hole that `at` is in ends, and whether it is data."""
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # nothing but a hole from here on
        return end, False
    if data > at:
        return min(data, end), False
    return min(os.lseek(fd, at, os.SEEK_HOLE), end), True


@dataclass(slots=True)
class _DiskTarget:
    _on: Hypervisor
    _native: str
    _disk: str
    size: int
    blank: bool
    read_only: bool = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._on.disk_file(self._native, self._disk).open("rb") as file:
            file.seek(offset)
            if file.readinto(buffer) != len(buffer):
                raise ValueError(f"{self._disk} ends at {self.size}")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._may_write()
        self._on.write(self._native, self._disk, offset, bytes(data))

    def zero(self, offset: int, length: int) -> None:
        self._may_write()
        if offset + length > self.size:
            raise ValueError(f"{self._disk} ends at {self.size}")
        # Nothing is buffered: looking for data moves the place that a buffer believes it is at.
        with self._on.disk_file(self._native, self._disk).open("r+b", buffering=0) as file:
            at = offset
            while at < offset + length:
                stop, data = _run_of(file.fileno(), at, offset + length)
                while data and at < stop:
                    at += os.pwrite(file.fileno(), bytes(min(stop - at, 1 << 20)), at)
                at = stop

    def _may_write(self) -> None:
        self._on.called("write")
        if self.read_only:
            raise AgentError("disk-read-only", f"{self._disk} was opened to be read only")

    def flush(self) -> None:
        self._on.called("flush")
        fd = os.open(self._on.disk_file(self._native, self._disk), os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        pass
