"""A stand-in for a hypervisor: a host of machines whose disks are sparse files in a folder (of /dev/shm, if it is to be memory).

Bytes are real and tracking is real; only the guests are not: a test writes in their stead. It misbehaves on demand. All state
is in the folder, so that a process may die over it and another one, or the test, looks at what is left.

    hypervisor = Hypervisor(tmp_path / "host")
    native = hypervisor.add("shop", {"vda": 64 << 20})
    hypervisor.write(native, "vda", 4096, b"what a guest wrote")
    with registered():                      # agents.registry knows the kind "memory" meanwhile
        host = registry.host(hypervisor.settings())

Another process: `python -P -m tests.stand_ins.memory_agent --config FILE` is the agent with the kind registered.

What it can do badly: `Fault`s (at the nth call of a kind: refuse, die, wait, be away), `away`, `lose_tracking`, `write(…,
tracked=False)` (a tracking that lies), `resize`, `occupy` (somebody else's backup), `drop_snapshots`, `configure(groups=False,
guest_agent="fails")`. Leftovers of a dead job come by themselves: a snapshot that nobody closes.

Layout of the folder: `state.json`, `disk-<machine>-<disk>`, and beside a disk, for each mark a map of what changed since, for
each snapshot the granules as they were and a map of which: one byte a granule.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast
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
    NicSeen,
    Power,
    Quiesce,
    Wanted,
)
from agents.protocol import Preflight
from streams.events import Problem
from streams.ids import now_us

KIND: Final = "memory"
GRANULE: Final = 64 << 10

Call = Literal[
    "discover",
    "snapshot",
    "extents",
    "read",
    "keep",
    "close",
    "leftovers",
    "remove",
    "create",
    "open",
    "write",
    "flush",
    "settle",
    "power",
    "delete",
]
What = Literal["refuse", "away", "die", "wait"]
GuestAgent = Literal["works", "missing", "fails"]


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


@dataclass(frozen=True, slots=True)
class Fault:
    """At the `nth` call of a kind from now on, and at `times` - 1 more (0: at all later ones). `wait`: until `release`."""

    call: Call
    what: What
    nth: int = 1
    times: int = 1


@dataclass(slots=True)
class _Disk:
    disk: str
    size: int
    format: str = "qcow2"
    bus: str = "virtio"
    storage: str = "pool"
    tracked: bool = True
    left_out: str = ""
    blank: bool = False
    marks: dict[str, bool] = field(default_factory=dict)  # → it can be asked since

    def seen(self, native: str) -> DiskSeen:
        return DiskSeen(
            self.disk,
            self.size,
            self.format,
            self.bus,
            self.storage,
            f"disk-{native}-{self.disk}",
            self.tracked,
            self.left_out,
        )


@dataclass(slots=True)
class _Machine:
    native: str
    name: str
    power: Power = "running"
    cpus: int = 2
    memory: int = 1 << 30
    firmware: Literal["bios", "uefi"] = "bios"
    folder: str = ""
    tags: list[str] = field(default_factory=list)
    nics: list[list[str]] = field(default_factory=list)
    companions: dict[str, str] = field(default_factory=dict)  # base64
    disks: dict[str, _Disk] = field(default_factory=dict)
    guest_agent: GuestAgent = "works"
    busy: bool = False
    restoring: str = ""
    made: bool = False  # by the job that restores it, which may delete it

    def seen(self) -> MachineSeen:
        described = {
            "name": self.name,
            "cpus": self.cpus,
            "memory": self.memory,
            "firmware": self.firmware,
            "nics": self.nics,
            "disks": {name: [d.size, d.format, d.bus, d.storage] for name, d in self.disks.items()},
        }
        return MachineSeen(
            self.native,
            self.name,
            self.power,
            self.cpus,
            self.memory,
            self.firmware,
            self.folder,
            tuple(self.tags),
            tuple(disk.seen(self.native) for disk in self.disks.values()),
            tuple(NicSeen(*nic) for nic in self.nics),
            json.dumps(described).encode(),
            {name: base64.b64decode(text) for name, text in self.companions.items()},
            self.restoring,
        )


@dataclass(slots=True)
class _State:
    machines: dict[str, _Machine] = field(default_factory=dict)
    snapshots: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # id → machine → disks
    faults: list[dict[str, Any]] = field(default_factory=list)
    away: bool = False
    groups: bool = True

    def dump(self) -> str:
        return json.dumps(self, default=lambda o: {slot: getattr(o, slot) for slot in o.__slots__})


def _load(text: str) -> _State:
    raw = json.loads(text)
    machines = {}
    for native, machine in raw.pop("machines").items():
        machine["disks"] = {name: _Disk(**disk) for name, disk in machine["disks"].items()}
        machines[native] = _Machine(**machine)
    return _State(machines=machines, **raw)


class Hypervisor:
    """The host itself, as its administrator and its guests see it: what tests use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock(fcntl.LOCK_EX):
            if not self._file.exists():
                self._file.write_text(_State().dump())

    def settings(self, name: str = "memory") -> HostSettings:
        return HostSettings(name, KIND, f"memory:{self.folder}")

    def add(
        self,
        name: str,
        disks: Mapping[str, int],
        *,
        untracked: Sequence[str] = (),
        power: Power = "running",
        guest_agent: GuestAgent = "works",
        folder: str = "",
        tags: Sequence[str] = (),
        native: str = "",
    ) -> str:
        """A machine with `disks` (name → bytes), which read as zeros. Its native identity."""
        native = native or str(uuid4())
        made = {
            disk: _Disk(disk, size, "raw" if disk in untracked else "qcow2", tracked=disk not in untracked)
            for disk, size in disks.items()
        }
        mac = "02:00:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        with self._changing() as state:
            state.machines[native] = _Machine(
                native,
                name,
                power,
                folder=folder,
                tags=list(tags),
                nics=[[mac, "default", "virtio"]],
                companions={"nvram": base64.b64encode(b"variables of " + name.encode()).decode()},
                disks=made,
                guest_agent=guest_agent,
            )
            for disk, size in disks.items():
                self._make_file(self.disk_file(native, disk), size)
        return native

    def configure(self, native: str = "", *, groups: bool | None = None, **changes: object) -> None:
        """Attributes of a machine (`power`, `cpus`, `name`, `guest_agent`, `tags`, …), or of the host (`groups`)."""
        with self._changing() as state:
            if groups is not None:
                state.groups = groups
            for name, value in changes.items():
                setattr(self._machine(state, native), name, value)

    def disk_file(self, native: str, disk: str) -> Path:
        """The disk, raw. To be read only: what is written around `write` no tracking sees, and no snapshot is kept from."""
        return self.folder / f"disk-{native}-{disk}"

    def write(self, native: str, disk: str, offset: int, data: bytes, *, tracked: bool = True) -> None:
        """What a guest does. Not `tracked`: the change is in no map, as with a tracking that is broken and does not know."""
        with self._changing() as state:
            self._store(self._disk(state, native, disk), native, offset, data, tracked=tracked)

    def content(self, native: str, disk: str) -> bytes:
        return self.disk_file(native, disk).read_bytes()

    def resize(self, native: str, disk: str, size: int) -> None:
        """It grows: what came to it has changed since every mark."""
        with self._changing() as state:
            found = self._disk(state, native, disk)
            for mark in found.marks:
                with self._map(native, disk, "changed", mark).open("r+b") as map_:
                    map_.seek(found.size // GRANULE)
                    map_.write(b"\1" * (-(-size // GRANULE) - found.size // GRANULE))
            found.size = size
            os.truncate(self.disk_file(native, disk), size)

    def lose_tracking(self, native: str, disk: str) -> None:
        """All its marks are there and of no use, as after a crash of the hypervisor."""
        with self._changing() as state:
            marks = self._disk(state, native, disk).marks
            for mark in marks:
                marks[mark] = False

    def remove_machine(self, native: str) -> None:
        with self._changing() as state:
            for disk in state.machines.pop(native).disks:
                self._delete_files(native, disk)

    def go_away(self, away: bool = True) -> None:
        """Nobody can reach it; or they can again."""
        with self._changing() as state:
            state.away = away

    def occupy(self, native: str, busy: bool = True) -> None:
        """Somebody else's backup of the machine goes on; or is over."""
        with self._changing() as state:
            self._machine(state, native).busy = busy

    def occupied(self, native: str) -> bool:
        return self._machine(self._read(), native).busy

    def drop_snapshots(self) -> None:
        """All snapshots end, as when a hypervisor's process is killed. Marks stay."""
        with self._changing() as state:
            for snapshot in list(state.snapshots):
                self._end(state, snapshot)

    def fault(self, *faults: Fault) -> None:
        """Add them to those there are."""
        with self._changing() as state:
            for fault in faults:
                raw = {"call": fault.call, "what": fault.what, "nth": fault.nth, "times": fault.times, "seen": 0}
                state.faults.append(raw)

    def release(self) -> None:
        """Ends all faults, and with them the waits."""
        with self._changing() as state:
            state.faults.clear()

    @property
    def snapshots(self) -> int:
        """How many go on."""
        return len(self._read().snapshots)

    def marks(self, native: str, disk: str) -> list[str]:
        return list(self._disk(self._read(), native, disk).marks)

    # The rest is for `MemoryHost` and what it hands out.

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_State]:
        with self._lock(fcntl.LOCK_EX):
            state = _load(self._file.read_text())
            yield state
            new = self.folder / "state.new"
            new.write_text(state.dump())
            new.rename(self._file)

    def _read(self) -> _State:
        return _load(self._file.read_text())

    def _called(self, call: Call) -> None:
        """Every call of a `MemoryHost` goes by here, and meets its fault."""
        state = self._read()
        if state.away:
            raise SourceUnavailable("host-unreachable", "the host does not answer", "a test asked for it")
        if not any(fault["call"] == call for fault in state.faults):
            return
        found = ""
        with self._changing() as state:
            for fault in state.faults:
                if fault["call"] == call:
                    fault["seen"] += 1
                    past = fault["seen"] - fault["nth"]
                    if past >= 0 and (not fault["times"] or past < fault["times"]):
                        found = fault["what"]
        if found == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif found == "wait":
            while self._read().faults:
                time.sleep(0.02)
        elif found == "away":
            raise SourceUnavailable("host-unreachable", "the host does not answer", "a test asked for it")
        elif found and call == "read":
            raise SourceUnavailable("snapshot-unreadable", "the snapshot cannot be read", "a test asked for it")
        elif found:
            raise AgentError(f"{call}-failed", f"{call}: a fault that a test asked for", "a test asked for it")

    def _machine(self, state: _State, native: str) -> _Machine:
        if native not in state.machines:
            raise AgentError("machine-unknown", f"there is no machine {native} on this host", "discover again")
        return state.machines[native]

    def _disk(self, state: _State, native: str, disk: str) -> _Disk:
        machine = self._machine(state, native)
        if disk not in machine.disks:
            raise AgentError("disk-unknown", f"machine {machine.name} has no disk {disk}", "discover again")
        return machine.disks[disk]

    def _make_file(self, path: Path, size: int) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    def _map(self, native: str, disk: str, kind: str, name: str) -> Path:
        """`kind`: `changed` (of a mark), `held` (of a snapshot)."""
        return self.folder / f"{kind}-{native}-{disk}-{name}"

    def _delete_files(self, native: str, disk: str) -> None:
        for path in self.folder.glob(f"*-{native}-{disk}*"):
            if path.name == f"disk-{native}-{disk}" or path.name.startswith(
                tuple(f"{kind}-{native}-{disk}-" for kind in ("changed", "held", "bytes"))
            ):
                path.unlink()

    def _store(self, disk: _Disk, native: str, offset: int, data: bytes, *, tracked: bool) -> None:
        if offset + len(data) > disk.size:
            raise ValueError(f"{disk.disk} holds {disk.size} bytes")
        if not data:
            return
        first, end = offset // GRANULE, (offset + len(data) - 1) // GRANULE + 1
        path = self.disk_file(native, disk.disk)
        with path.open("r+b") as file:
            for held in self.folder.glob(f"held-{native}-{disk.disk}-*"):
                snapshot = held.name.rpartition("-")[2]
                with held.open("r+b") as map_, self._map(native, disk.disk, "bytes", snapshot).open("r+b") as bytes_:
                    for granule in range(first, end):
                        map_.seek(granule)
                        if map_.read(1) != b"\1":
                            file.seek(granule * GRANULE)
                            bytes_.seek(granule * GRANULE)
                            bytes_.write(file.read(GRANULE))
                            map_.seek(granule)
                            map_.write(b"\1")
            file.seek(offset)
            file.write(data)
        if tracked:
            for mark in disk.marks:
                with self._map(native, disk.disk, "changed", mark).open("r+b") as map_:
                    map_.seek(first)
                    map_.write(b"\1" * (end - first))

    def _forget(self, state: _State, native: str, mark: str, disks: Sequence[str] | None = None) -> None:
        """A mark goes; each of the others has its own map, so nothing that changed is forgotten."""
        machine = state.machines.get(native)
        for disk in machine.disks.values() if machine else ():
            if mark in disk.marks and (disks is None or disk.disk in disks):
                del disk.marks[mark]
                self._map(native, disk.disk, "changed", mark).unlink(missing_ok=True)

    def _end(self, state: _State, snapshot: str) -> None:
        for native, disks in state.snapshots.pop(snapshot, {}).items():
            for disk in disks:
                for kind in ("held", "bytes"):
                    self._map(native, disk, kind, snapshot.replace("-", "_")).unlink(missing_ok=True)


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
        self._on._called("discover")
        return Preflight((), (), ("tracked", "groups") if self._on._read().groups else ("tracked",), "memory 1")

    def discover(self) -> Iterator[MachineSeen]:
        self._on._called("discover")
        for machine in self._on._read().machines.values():
            yield machine.seen()

    def machine(self, native: str) -> MachineSeen:
        self._on._called("discover")
        return self._on._machine(self._on._read(), native).seen()

    def snapshot(self, wanted: Sequence[Wanted], *, job: str, quiesce: Quiesce = "try") -> _Snapshot:
        self._on._called("snapshot")
        name = f"holdfast-{job}-{secrets.token_hex(4)}"
        asked_since = {mark for want in wanted for mark in want.since.values()}
        with self._on._changing() as state:
            if len(wanted) > 1 and not state.groups:
                raise AgentError(
                    "group-unsupported", "this host takes no snapshot of several machines at once", "one at a time"
                )
            for snapshot in [s for s in state.snapshots if _job_of(s) == job]:
                self._on._end(state, snapshot)
            for want in wanted:
                machine = self._on._machine(state, want.native)
                for mark in {m for d in machine.disks.values() for m in d.marks if _job_of(m) == job} - asked_since:
                    self._on._forget(state, want.native, mark)
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

    def _taken(self, state: _State, want: Wanted, name: str, quiesce: Quiesce) -> _MachineSnapshot:
        machine = state.machines[want.native]
        seen = machine.seen()
        chosen = want.disks or tuple(d for d, disk in machine.disks.items() if not disk.left_out)
        disks = []
        for disk_name in chosen:
            disk = self._on._disk(state, want.native, disk_name)
            asked, since, why = want.since.get(disk_name, ""), "", ""
            if asked:
                if not disk.tracked:
                    why = "nothing keeps track of what changes on this disk"
                elif asked not in disk.marks:
                    why = f"the mark {asked} is not there"
                elif not disk.marks[asked]:
                    why = "what changed was lost in a crash of the hypervisor; it is kept track of again from now on"
                    self._on._forget(state, want.native, asked, [disk_name])
                else:
                    since = asked
            granules = -(-disk.size // GRANULE)
            held = name.replace("-", "_")
            self._on._make_file(self._on._map(want.native, disk_name, "held", held), granules)
            self._on._make_file(self._on._map(want.native, disk_name, "bytes", held), disk.size)
            if disk.tracked:
                self._on._make_file(self._on._map(want.native, disk_name, "changed", name), granules)
                disk.marks[name] = True
            changed = b""
            if since:
                changed = self._on._map(want.native, disk_name, "changed", since).read_bytes()
            mark = name if disk.tracked else ""
            disks.append(_DiskSnapshot(self._on, want.native, disk.seen(want.native), name, mark, since, why, changed))
        frozen = quiesce != "off" and machine.power == "running" and machine.guest_agent == "works"
        problems: tuple[Problem, ...] = ()
        if quiesce == "try" and machine.power == "running" and machine.guest_agent != "works":
            problems = (Problem("quiesce-failed", f"the guest agent of {machine.name} did not answer", "install it"),)
        consistency: Consistency = "files" if frozen or machine.power == "off" else "crash"
        return _MachineSnapshot(seen, now_us(), consistency, problems, tuple(disks))

    def leftovers(self) -> Sequence[Leftover]:
        self._on._called("leftovers")
        state = self._on._read()
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
        self._on._called("remove")
        with self._on._changing() as state:
            if leftover.kind == "snapshot":
                self._on._end(state, leftover.name)
            elif leftover.kind == "mark":
                self._on._forget(state, leftover.native, leftover.name)
            elif leftover.kind == "machine" and state.machines.get(leftover.native) is not None:
                machine = state.machines[leftover.native]
                if not machine.made or machine.restoring != leftover.job:
                    return
                for disk in state.machines.pop(leftover.native).disks:
                    self._on._delete_files(leftover.native, disk)

    def create(self, wanted: MachineWanted, *, job: str) -> MachineSeen:
        self._on._called("create")
        described = json.loads(wanted.description)
        native = wanted.native or str(uuid4())
        nics = described["nics"]
        if wanted.nics is not None:
            nics = [[nic.mac or _new_mac(), nic.network, nic.model] for nic in wanted.nics]
        elif not wanted.native:
            nics = [[_new_mac(), *nic[1:]] for nic in nics]
        with self._on._changing() as state:
            if native in state.machines or any(m.name == wanted.name for m in state.machines.values()):
                raise AgentError(
                    "machine-exists", f"there is a machine {wanted.name} already", "choose another name, or delete it"
                )
            disks = {}
            for want in wanted.disks:
                _, format_, bus, storage = described["disks"].get(want.disk, (0, "qcow2", "virtio", "pool"))
                disks[want.disk] = _Disk(
                    want.disk,
                    want.size,
                    want.format or format_,
                    wanted.bus or bus,
                    want.storage or storage,
                    tracked=(want.format or format_) == "qcow2",
                    blank=True,
                )
                self._on._make_file(self._on.disk_file(native, want.disk), want.size)
            made = _Machine(
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
        self._on._called("open")
        with self._on._changing() as state:
            machine = self._on._machine(state, native)
            if machine.power != "off":
                raise AgentError("machine-running", f"{machine.name} is not off", "shut it down first")
            found = self._on._disk(state, native, disk)
            for mark in list(found.marks):
                self._on._forget(state, native, mark, [disk])
            machine.restoring = job
            return _DiskTarget(self._on, native, disk, found.size, found.blank)

    def read_disk(self, native: str, disk: str) -> _DiskTarget:
        self._on._called("open")
        state = self._on._read()
        machine = self._on._machine(state, native)
        found = self._on._disk(state, native, disk)
        if machine.power != "off":
            raise AgentError("machine-running", f"{machine.name} is not off", "shut it down first")
        return _DiskTarget(self._on, native, disk, found.size, found.blank, read_only=True)

    def settle(self, native: str) -> None:
        self._on._called("settle")
        with self._on._changing() as state:
            machine = self._on._machine(state, native)
            machine.restoring, machine.made = "", False
            for disk in machine.disks.values():
                disk.blank = False

    def start(self, native: str) -> None:
        self._power(native, "running")

    def stop(self, native: str) -> None:
        self._power(native, "off")

    def _power(self, native: str, power: Power) -> None:
        self._on._called("power")
        with self._on._changing() as state:
            machine = self._on._machine(state, native)
            machine.power = power
            for disk in machine.disks.values():
                disk.blank = disk.blank and power == "off"

    def delete(self, native: str) -> None:
        self._on._called("delete")
        with self._on._changing() as state:
            machine = state.machines.get(native)
            if machine is None:
                return
            if machine.power != "off":
                raise AgentError("machine-running", f"{machine.name} is not off", "shut it down first")
            for disk in state.machines.pop(native).disks:
                self._on._delete_files(native, disk)


def _new_mac() -> str:
    return "02:00:01:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


@dataclass(slots=True)
class _Snapshot:
    _on: Hypervisor
    _name: str
    machines: tuple[_MachineSnapshot, ...]
    _kept: bool = False

    def keep(self, needed: Mapping[str, Sequence[str]]) -> None:
        self._on._called("keep")
        self._kept = True
        with self._on._changing() as state:
            for machine in self.machines:
                native = machine.seen.native
                there = state.machines.get(native)
                chosen = [disk.seen.disk for disk in machine.disks]
                for disk in there.disks.values() if there else ():
                    for mark in list(disk.marks):
                        if disk.disk in chosen and mark != self._name and mark not in needed.get(native, ()):
                            self._on._forget(state, native, mark, [disk.disk])

    def close(self) -> None:
        self._on._called("close")
        with self._on._changing() as state:
            self._on._end(state, self._name)
            if not self._kept:
                for machine in self.machines:
                    self._on._forget(state, machine.seen.native, self._name)


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
        self._on._called("extents")
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
        with self._on._lock(fcntl.LOCK_SH):
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
            return self._on._map(self._native, self.seen.disk, "held", self._snapshot.replace("-", "_")).read_bytes()
        except FileNotFoundError:
            raise SourceUnavailable("snapshot-lost", "the snapshot is no more", "run the backup again") from None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._on._called("read")
        end = offset + len(buffer)
        if end > self.seen.size:
            raise ValueError(f"{self.seen.disk} ends at {self.seen.size}")
        with self._on._lock(fcntl.LOCK_SH):
            path = self._on.disk_file(self._native, self.seen.disk)
            held = self._held()
            with (
                path.open("rb", buffering=0) as now,
                self._on._map(self._native, self.seen.disk, "bytes", self._snapshot.replace("-", "_")).open(
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
        self._on._called("write")
        if self.read_only:
            raise AgentError("disk-read-only", f"{self._disk} was opened to be read only")

    def flush(self) -> None:
        self._on._called("flush")
        fd = os.open(self._on.disk_file(self._native, self._disk), os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        pass
