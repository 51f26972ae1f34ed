"""What the contract suite of hosts (`test_hosts.py`) needs of each platform beside `agents.machines.Host`: a *ground*, where
machines can be made and written to as guests would, and where things go wrong on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from agents.machines import DiskSnapshot, Host, Snapshot, Wanted
from tests.stand_ins.hypervisor import Hypervisor
from tests.stand_ins.memory_host import MemoryHost


class HostGround(Protocol):
    """One host. Machines of a ground have no guest that writes by itself, so that what is on their disks is known."""

    def host(self) -> Host:
        """Another object for the same host each time: as another process would have it."""
        ...

    def add(
        self,
        name: str,
        disks: Mapping[str, int],
        *,
        untracked: Sequence[str] = (),
        running: bool = True,
        guest_agent: bool = True,
    ) -> str:
        """A machine with disks that read as zeros; its native identity. `guest_agent` may be promised in vain: a host whose
        guests are not there says False to `quiesces`."""
        ...

    quiesces: bool
    grows: bool  # disks grow while marks are on them

    def write(self, native: str, disk: str, offset: int, data: bytes) -> None:
        """As its guest."""
        ...

    def content(self, native: str, disk: str) -> bytes:
        """All that stands on the disk of a machine, whatever it does just now."""
        ...

    def resize(self, native: str, disk: str, size: int) -> None: ...

    def turn_off(self, native: str) -> None: ...

    def lose_tracking(self, native: str, disk: str) -> None:
        """The hypervisor's process dies over a running machine, which is started again."""
        ...

    def others_backup(self, native: str) -> AbstractContextManager[None]:
        """Somebody else's backup goes on meanwhile; raises at the end if it does not any more."""
        ...

    def interrupted(self) -> AbstractContextManager[None]:
        """Meanwhile the host cannot be reached."""
        ...


class MemoryGround:
    """Implements `HostGround` on the stand-in."""

    quiesces = True
    grows = True

    def __init__(self, folder: Path) -> None:
        self.hypervisor = Hypervisor(folder)

    def host(self) -> Host:
        return MemoryHost(self.hypervisor.settings(), Hypervisor(self.hypervisor.folder))

    def add(
        self,
        name: str,
        disks: Mapping[str, int],
        *,
        untracked: Sequence[str] = (),
        running: bool = True,
        guest_agent: bool = True,
    ) -> str:
        return self.hypervisor.add(
            name,
            disks,
            untracked=untracked,
            power="running" if running else "off",
            guest_agent="works" if guest_agent else "missing",
        )

    def write(self, native: str, disk: str, offset: int, data: bytes) -> None:
        self.hypervisor.write(native, disk, offset, data)

    def content(self, native: str, disk: str) -> bytes:
        return self.hypervisor.content(native, disk)

    def resize(self, native: str, disk: str, size: int) -> None:
        self.hypervisor.resize(native, disk, size)

    def turn_off(self, native: str) -> None:
        self.hypervisor.configure(native, power="off")

    def lose_tracking(self, native: str, disk: str) -> None:
        self.hypervisor.lose_tracking(native, disk)

    @contextmanager
    def others_backup(self, native: str) -> Iterator[None]:
        self.hypervisor.occupy(native)
        yield
        assert self.hypervisor.occupied(native), "somebody else's backup was ended"
        self.hypervisor.occupy(native, False)

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        self.hypervisor.go_away()
        yield
        self.hypervisor.go_away(False)


def read_whole(disk: DiskSnapshot) -> bytes:
    """By its extents of the whole disk: what is said to be zeros is not read."""
    at, parts = 0, []
    for offset, length, kind in disk.extents(whole=True):
        assert offset == at, f"a gap or an overlap at {at}"
        assert length > 0
        part = bytearray(length)
        if kind == "data":
            disk.read_into(offset, memoryview(part))
        parts.append(part)
        at += length
    assert at == disk.seen.size
    return b"".join(parts)


def patched(before: bytes, disk: DiskSnapshot) -> bytes:
    """What stood at `disk.since`, and over it what the extents say has changed."""
    assert disk.since
    out = bytearray(before.ljust(disk.seen.size, b"\0"))
    at = 0
    for offset, length, kind in disk.extents():
        assert offset >= at, f"not ascending at {offset}"
        at = offset + length
        part = bytearray(length)
        if kind == "data":
            disk.read_into(offset, memoryview(part))
        out[offset:at] = part
    assert at <= disk.seen.size
    return bytes(out)


def changed_bytes(disk: DiskSnapshot) -> int:
    return sum(length for _, length, _ in disk.extents())


@contextmanager
def snapshot_of(
    host: Host, native: str, job: str, *, since: Mapping[str, str] | None = None, disks: Sequence[str] = ()
) -> Iterator[Snapshot]:
    """Of one machine; closed at the end, whatever happens."""
    snapshot = host.snapshot([Wanted(native, tuple(disks), since or {})], job=job, quiesce="off")
    try:
        yield snapshot
    finally:
        snapshot.close()


def the_disk(snapshot: Snapshot, name: str = "vda") -> DiskSnapshot:
    return next(disk for machine in snapshot.machines for disk in machine.disks if disk.seen.disk == name)


def kept(host: Host, native: str, job: str) -> tuple[str, bytes]:
    """A backup of `vda` from beginning to end: its mark and what was read."""
    with snapshot_of(host, native, job) as snapshot:
        disk = the_disk(snapshot)
        content = read_whole(disk)
        snapshot.keep({})
        return disk.mark, content
