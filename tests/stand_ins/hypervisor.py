"""A stand-in for a hypervisor: machines whose disks are sparse files in a folder (of /dev/shm, if it is to be memory).

Bytes are real and tracking is real; only the guests are not: a test writes in their stead. It misbehaves on demand. All state
is in the folder, so that a process may die over it and another one, or the test, looks at what is left. As a platform of hosts:
`memory_host`.

    hypervisor = Hypervisor(tmp_path / "host")
    native = hypervisor.add("shop", {"vda": 64 << 20})
    hypervisor.write(native, "vda", 4096, b"what a guest wrote")

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
from typing import Any, Final, Literal
from uuid import uuid4

from agents.errors import AgentError, SourceUnavailable
from agents.machines import (
    DiskSeen,
    HostSettings,
    MachineSeen,
    NicSeen,
    Power,
)

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


@dataclass(frozen=True, slots=True)
class Fault:
    """At the `nth` call of a kind from now on, and at `times` - 1 more (0: at all later ones). `wait`: until `release`."""

    call: Call
    what: What
    nth: int = 1
    times: int = 1


@dataclass(slots=True)
class Disk:
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
class Machine:
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
    disks: dict[str, Disk] = field(default_factory=dict)
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
class State:
    machines: dict[str, Machine] = field(default_factory=dict)
    snapshots: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # id → machine → disks
    faults: list[dict[str, Any]] = field(default_factory=list)
    away: bool = False
    groups: bool = True

    def dump(self) -> str:
        return json.dumps(self, default=lambda o: {slot: getattr(o, slot) for slot in o.__slots__})


def _load(text: str) -> State:
    raw = json.loads(text)
    machines = {}
    for native, machine in raw.pop("machines").items():
        machine["disks"] = {name: Disk(**disk) for name, disk in machine["disks"].items()}
        machines[native] = Machine(**machine)
    return State(machines=machines, **raw)


class Hypervisor:
    """The host itself, as its administrator and its guests see it: what tests use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self.lock(fcntl.LOCK_EX):
            if not self._file.exists():
                self._file.write_text(State().dump())

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
            disk: Disk(disk, size, "raw" if disk in untracked else "qcow2", tracked=disk not in untracked)
            for disk, size in disks.items()
        }
        mac = "02:00:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        with self.changing() as state:
            state.machines[native] = Machine(
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
                self.make_file(self.disk_file(native, disk), size)
        return native

    def configure(self, native: str = "", *, groups: bool | None = None, **changes: object) -> None:
        """Attributes of a machine (`power`, `cpus`, `name`, `guest_agent`, `tags`, …), or of the host (`groups`)."""
        with self.changing() as state:
            if groups is not None:
                state.groups = groups
            for name, value in changes.items():
                setattr(self.machine_of(state, native), name, value)

    def disk_file(self, native: str, disk: str) -> Path:
        """The disk, raw. To be read only: what is written around `write` no tracking sees, and no snapshot is kept from."""
        return self.folder / f"disk-{native}-{disk}"

    def write(self, native: str, disk: str, offset: int, data: bytes, *, tracked: bool = True) -> None:
        """What a guest does. Not `tracked`: the change is in no map, as with a tracking that is broken and does not know."""
        with self.changing() as state:
            self.store(self.disk_of(state, native, disk), native, offset, data, tracked=tracked)

    def content(self, native: str, disk: str) -> bytes:
        return self.disk_file(native, disk).read_bytes()

    def resize(self, native: str, disk: str, size: int) -> None:
        """It grows: what came to it has changed since every mark."""
        with self.changing() as state:
            found = self.disk_of(state, native, disk)
            for mark in found.marks:
                with self.map_file(native, disk, "changed", mark).open("r+b") as map_:
                    map_.seek(found.size // GRANULE)
                    map_.write(b"\1" * (-(-size // GRANULE) - found.size // GRANULE))
            found.size = size
            os.truncate(self.disk_file(native, disk), size)

    def lose_tracking(self, native: str, disk: str) -> None:
        """All its marks are there and of no use, as after a crash of the hypervisor."""
        with self.changing() as state:
            marks = self.disk_of(state, native, disk).marks
            for mark in marks:
                marks[mark] = False

    def remove_machine(self, native: str) -> None:
        with self.changing() as state:
            for disk in state.machines.pop(native).disks:
                self.delete_files(native, disk)

    def go_away(self, away: bool = True) -> None:
        """Nobody can reach it; or they can again."""
        with self.changing() as state:
            state.away = away

    def occupy(self, native: str, busy: bool = True) -> None:
        """Somebody else's backup of the machine goes on; or is over."""
        with self.changing() as state:
            self.machine_of(state, native).busy = busy

    def occupied(self, native: str) -> bool:
        return self.machine_of(self.read(), native).busy

    def drop_snapshots(self) -> None:
        """All snapshots end, as when a hypervisor's process is killed. Marks stay."""
        with self.changing() as state:
            for snapshot in list(state.snapshots):
                self.end(state, snapshot)

    def fault(self, *faults: Fault) -> None:
        """Add them to those there are."""
        with self.changing() as state:
            for fault in faults:
                raw = {"call": fault.call, "what": fault.what, "nth": fault.nth, "times": fault.times, "seen": 0}
                state.faults.append(raw)

    def release(self) -> None:
        """Ends all faults, and with them the waits."""
        with self.changing() as state:
            state.faults.clear()

    @property
    def snapshots(self) -> int:
        """How many go on."""
        return len(self.read().snapshots)

    def marks(self, native: str, disk: str) -> list[str]:
        return list(self.disk_of(self.read(), native, disk).marks)

    # The rest is for `MemoryHost` and what it hands out.

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"

    @contextlib.contextmanager
    def lock(self, how: int) -> Iterator[None]:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def changing(self) -> Iterator[State]:
        with self.lock(fcntl.LOCK_EX):
            state = _load(self._file.read_text())
            yield state
            new = self.folder / "state.new"
            new.write_text(state.dump())
            new.rename(self._file)

    def read(self) -> State:
        return _load(self._file.read_text())

    def called(self, call: Call) -> None:
        """Every call of a `MemoryHost` goes by here, and meets its fault."""
        state = self.read()
        if state.away:
            raise SourceUnavailable("host-unreachable", "the host does not answer", "a test asked for it")
        if not any(fault["call"] == call for fault in state.faults):
            return
        found = ""
        with self.changing() as state:
            for fault in state.faults:
                if fault["call"] == call:
                    fault["seen"] += 1
                    past = fault["seen"] - fault["nth"]
                    if past >= 0 and (not fault["times"] or past < fault["times"]):
                        found = fault["what"]
        if found == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif found == "wait":
            while self.read().faults:
                time.sleep(0.02)  # the state is a file that another process changes
        elif found == "away":
            raise SourceUnavailable("host-unreachable", "the host does not answer", "a test asked for it")
        elif found and call == "read":
            raise SourceUnavailable("snapshot-unreadable", "the snapshot cannot be read", "a test asked for it")
        elif found:
            raise AgentError(f"{call}-failed", f"{call}: a fault that a test asked for", "a test asked for it")

    def machine_of(self, state: State, native: str) -> Machine:
        if native not in state.machines:
            raise AgentError("machine-unknown", f"there is no machine {native} on this host", "discover again")
        return state.machines[native]

    def disk_of(self, state: State, native: str, disk: str) -> Disk:
        machine = self.machine_of(state, native)
        if disk not in machine.disks:
            raise AgentError("disk-unknown", f"machine {machine.name} has no disk {disk}", "discover again")
        return machine.disks[disk]

    def make_file(self, path: Path, size: int) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    def map_file(self, native: str, disk: str, kind: str, name: str) -> Path:
        """`kind`: `changed` (of a mark), `held` (of a snapshot)."""
        return self.folder / f"{kind}-{native}-{disk}-{name}"

    def delete_files(self, native: str, disk: str) -> None:
        for path in self.folder.glob(f"*-{native}-{disk}*"):
            if path.name == f"disk-{native}-{disk}" or path.name.startswith(
                tuple(f"{kind}-{native}-{disk}-" for kind in ("changed", "held", "bytes"))
            ):
                path.unlink()

    def store(self, disk: Disk, native: str, offset: int, data: bytes, *, tracked: bool) -> None:
        if offset + len(data) > disk.size:
            raise ValueError(f"{disk.disk} holds {disk.size} bytes")
        if not data:
            return
        first, end = offset // GRANULE, (offset + len(data) - 1) // GRANULE + 1
        path = self.disk_file(native, disk.disk)
        with path.open("r+b") as file:
            for held in self.folder.glob(f"held-{native}-{disk.disk}-*"):
                snapshot = held.name.rpartition("-")[2]
                with (
                    held.open("r+b") as map_,
                    self.map_file(native, disk.disk, "bytes", snapshot).open("r+b") as bytes_,
                ):
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
                with self.map_file(native, disk.disk, "changed", mark).open("r+b") as map_:
                    map_.seek(first)
                    map_.write(b"\1" * (end - first))

    def forget(self, state: State, native: str, mark: str, disks: Sequence[str] | None = None) -> None:
        """A mark goes; each of the others has its own map, so nothing that changed is forgotten."""
        machine = state.machines.get(native)
        for disk in machine.disks.values() if machine else ():
            if mark in disk.marks and (disks is None or disk.disk in disks):
                del disk.marks[mark]
                self.map_file(native, disk.disk, "changed", mark).unlink(missing_ok=True)

    def end(self, state: State, snapshot: str) -> None:
        for native, disks in state.snapshots.pop(snapshot, {}).items():
            for disk in disks:
                for kind in ("held", "bytes"):
                    self.map_file(native, disk, kind, snapshot.replace("-", "_")).unlink(missing_ok=True)
