"""The seam between Holdfast and what runs virtual machines: what a platform must offer to back them up and to restore them.

A *host* is a hypervisor, or what manages several (libvirt's connection, a vCenter). A platform (`agents/platforms/<kind>`) makes
one of `HostSettings`; backup and restore (`agents/backup`, `agents/restore`) know nothing else of it. `agents.protocol` is the
seam for databases. Knows nothing of Kafka, nor of repositories.

    discover ──> MachineSeen: what there is
    snapshot ──> MachineSnapshot ──> DiskSnapshot: the machine as it was at one moment; what may have changed; bytes
                     │ keep: sealed, so what it marks may be asked since    close: as if it had never been
    create   ──> a machine that is off ──> open_disk ──> DiskTarget: bytes the other way

Every call may block and take the network; offsets and lengths are bytes. What a platform makes on a host carries the name of the
job it was made for, so that leftovers of dead jobs are told from everybody else's (`leftovers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agents.protocol import Preflight
from streams.events import Problem

Quiesce = Literal["off", "try", "require"]
Power = Literal["running", "paused", "off"]
Firmware = Literal["bios", "uefi"]
ExtentKind = Literal["data", "zero"]
Consistency = Literal["crash", "files"]


@dataclass(frozen=True, slots=True)
class HostSettings:
    """How to reach a host. `url` is the platform's own (libvirt: a connection URI). The password is never shown."""

    host: str
    kind: str
    url: str
    account: str = ""
    password: str = field(default="", repr=False)
    tls_ca: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiskSeen:
    """A disk of a machine. `disk` names it within the machine, the same after restarts and moves (KVM: the target, `vda`).

    `storage` is what limits are counted by (a pool, a datastore, a folder), `place` where the disk is in it, for people.
    `tracked`: the platform can say what changed since a snapshot. `left_out` is why it cannot be backed up, or empty (a CD-ROM
    is no disk and is not listed).
    """

    disk: str
    size: int
    format: str
    bus: str = ""
    storage: str = ""
    place: str = ""
    tracked: bool = False
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class NicSeen:
    """A network card. `network` names what it is plugged into, as the host calls that."""

    mac: str
    network: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class MachineSeen:
    """A machine as its host describes it. `native` is the host's own identity of it (libvirt: the UUID).

    `description` is the host's own, whole (libvirt: the domain's inactive XML); `companions` are small files that belong to the
    machine and to no disk (NVRAM), by a name that the platform understands when it gets them back. `memory` in bytes.
    `restoring`: the job that makes or overwrites it: its disks are not whole (`Host.open_disk`, `Host.settle`).
    """

    native: str
    name: str
    power: Power
    cpus: int
    memory: int
    firmware: Firmware = "bios"
    folder: str = ""
    tags: tuple[str, ...] = ()
    disks: tuple[DiskSeen, ...] = ()
    nics: tuple[NicSeen, ...] = ()
    description: bytes = b""
    companions: Mapping[str, bytes] = field(default_factory=dict)
    restoring: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A machine to take a snapshot of. `disks`: which, empty for all that can be. `since`: disk → the mark to ask since
    (`DiskSnapshot.mark` of an earlier snapshot); a disk that is not in it is read whole."""

    native: str
    disks: tuple[str, ...] = ()
    since: Mapping[str, str] = field(default_factory=dict)


class DiskSnapshot(Protocol):
    """A disk at the moment of a snapshot. Several threads read at once."""

    @property
    def seen(self) -> DiskSeen: ...

    @property
    def mark(self) -> str:
        """What to ask since next time; empty: nothing keeps track of this disk, so next time it is read and compared."""
        ...

    @property
    def since(self) -> str:
        """The mark that `extents` counts from; empty: `extents` are of the whole disk."""
        ...

    @property
    def why_whole(self) -> str:
        """A sentence: why not since the mark that was asked for. Empty when it is, and when none was asked for."""
        ...

    def extents(self, *, whole: bool = False) -> Iterator[tuple[int, int, ExtentKind]]:
        """(offset, length, kind), ascending, without overlap. `zero` reads as zeros and need not be read. May be asked again.

        Of the whole disk (`since` is empty, or `whole`): from 0 to its end without a gap. Since a mark: all that may have
        changed, and maybe more.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`. Raises `SourceUnavailable` when the snapshot cannot be read (any more)."""
        ...


class MachineSnapshot(Protocol):
    """A machine at the moment of a snapshot."""

    @property
    def seen(self) -> MachineSeen:
        """As it was then."""
        ...

    @property
    def taken_us(self) -> int: ...

    @property
    def consistency(self) -> Consistency:
        """`files`: the guest's file systems were frozen for the moment, so their logs are clean."""
        ...

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What the user should know though the snapshot stands."""
        ...

    @property
    def disks(self) -> tuple[DiskSnapshot, ...]: ...


class Snapshot(Protocol):
    """One or several machines as they were at one moment."""

    @property
    def machines(self) -> tuple[MachineSnapshot, ...]: ...

    def keep(self, needed: Mapping[str, Sequence[str]]) -> None:
        """What was read is safe: the marks of this snapshot stand. `needed`: machine → earlier marks of ours that may be asked
        since yet (a differential's); all other earlier ones of ours go. May be called again after a death in between."""
        ...

    def close(self) -> None:
        """Let go of everything but marks that are kept. Without `keep` the marks it made go, and what changed since an earlier
        mark is still known. May be called twice, and after any error."""
        ...


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of ours that a job left on a host: a backup that goes on, a mark, a scratch file. `job` made it.

    `name` of a mark is what `DiskSnapshot.mark` says. A snapshot that is left behind leaves its marks as well, as leftovers of
    their own: a point may have been sealed that counts on them, which only the log knows.
    """

    job: str
    native: str
    kind: Literal["snapshot", "mark", "file", "machine"]
    name: str


@dataclass(frozen=True, slots=True)
class DiskWanted:
    """A disk of a machine to be made, of `size` bytes, reading as zeros. `storage` and `format` as the host calls them; empty:
    as described, or what the host does by itself."""

    disk: str
    size: int
    format: str = ""
    storage: str = ""


@dataclass(frozen=True, slots=True)
class MachineWanted:
    """A machine to be made of a description of the same platform's. None and empty: as described.

    `native`: take this identity, too (the machine that had it is gone); empty: a new one, with new addresses of its cards.
    `bus`: of all its disks. `nics`: all of its cards; None: those described. A disk that is described and not among `disks` is
    left out.
    """

    name: str
    description: bytes
    disks: tuple[DiskWanted, ...]
    companions: Mapping[str, bytes] = field(default_factory=dict)
    native: str = ""
    cpus: int | None = None
    memory: int | None = None
    bus: str = ""
    nics: tuple[NicSeen, ...] | None = None


class DiskTarget(Protocol):
    """A disk of a machine that is off. `write` may be called by several threads for ranges that do not overlap."""

    @property
    def size(self) -> int: ...

    @property
    def blank(self) -> bool:
        """It was made for us and reads as zeros where nothing was written: no need to compare."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None: ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    def zero(self, offset: int, length: int) -> None: ...

    def flush(self) -> None:
        """What was written is durable on return."""
        ...

    def close(self) -> None:
        """May be called twice, and after any error. Does not flush."""
        ...


class Host(Protocol):
    """A hypervisor, or what manages several. Every method may block and connect; raises `SourceUnavailable` when the host
    cannot be reached, `AgentError` (`machine-unknown`, `machine-busy`, `disk-unknown`, …) otherwise."""

    @property
    def settings(self) -> HostSettings: ...

    def preflight(self) -> Preflight:
        """What stands in the way of backing machines up. Changes nothing."""
        ...

    def discover(self) -> Iterator[MachineSeen]:
        """All machines, in no order. One that vanishes meanwhile is left out."""
        ...

    def machine(self, native: str) -> MachineSeen:
        """Raises `AgentError` (`machine-unknown`)."""
        ...

    def snapshot(self, wanted: Sequence[Wanted], *, job: str, quiesce: Quiesce = "try") -> Snapshot:
        """All of `wanted` as they were at one moment (a host that cannot do that for several says so: `group-unsupported`).

        Whatever it makes is named after `job`. Of `job` itself, what an earlier run left is taken away before. Raises
        `machine-busy` when somebody else's backup of the machine goes on, `quiesce-failed` when that is required.
        """
        ...

    def leftovers(self) -> Sequence[Leftover]:
        """What jobs of ours left on the host or have there now; never anybody else's. Marks that points need are in it."""
        ...

    def remove(self, leftover: Leftover) -> None:
        """Take it away; nothing when it is gone. A mark goes without what changed since an earlier one being forgotten; a
        snapshot goes and its marks stay."""
        ...

    def create(self, wanted: MachineWanted, *, job: str) -> MachineSeen:
        """A machine that is off, with disks that read as zeros; `restoring` by `job`, and a leftover of it, until it is settled.
        Raises `machine-exists`."""
        ...

    def open_disk(self, native: str, disk: str, *, job: str) -> DiskTarget:
        """To overwrite it: from now on the machine is `restoring` by `job`, durably and where people see it (libvirt: its title),
        also when another job left it so. Raises `machine-running`, `disk-unknown`. Our marks on it are of no use then and go."""
        ...

    def read_disk(self, native: str, disk: str) -> DiskTarget:
        """Only to read it, of a machine that is off. Changes nothing; writing raises. Raises as `open_disk`."""
        ...

    def settle(self, native: str) -> None:
        """The machine is whole: it is no longer `restoring`, and no leftover. Nothing when it is so already."""
        ...

    def start(self, native: str) -> None:
        """Nothing when it runs."""
        ...

    def stop(self, native: str) -> None:
        """Off on return: asked to shut down, and switched off when it has not done so in time. Nothing when it is off."""
        ...

    def delete(self, native: str) -> None:
        """The machine and the disks that `create` made for it; nothing when it is gone. Raises `machine-running`."""
        ...


class HostPlatform(Protocol):
    """A module of the registry."""

    def host(self, settings: HostSettings) -> Host: ...
