"""Snapshots: libvirt's pull-mode backup, which keeps what guests overwrite aside in a scratch file and serves the disk as it
was over NBD, with a checkpoint to count from next time.

    notes on the domains ─> freeze ─> pause (several) ─> begin each ─> resume ─> thaw ─> read … ─> keep ─> close

What is done to a guest is undone whatever happens; should we die, the note says what there is to undo (`release`). A machine
that is off is started paused, so that there is a QEMU to read and to write its bitmaps, and is off again at the end; if
somebody resumes it meanwhile, it stays.

Failpoints: `kvm.held` (guests frozen, nothing begun), `kvm.begun` (backups go on, nobody knows), `kvm.kept`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.machines import (
    Consistency,
    DiskSeen,
    ExtentKind,
    MachineSeen,
    Quiesce,
    Wanted,
)
from agents.nbd import ALLOCATION, DIRTY, ZERO, Nbd, Pool
from agents.platforms.kvm import marks, notes, seeing
from agents.platforms.kvm.connection import Connection
from agents.platforms.kvm.library import libvirt
from agents.platforms.kvm.reach import PORT_BUSY, Connector, Reach, no_port
from agents.platforms.kvm.watching import Watch, stopped_over_a_write
from streams.events import Problem
from streams.ids import now_us

_FREEZE_S: Final = 30
_END_S: Final = 60.0
_READERS: Final = 4  # connections of a disk
_BITMAP: Final = "changes"


@dataclass(slots=True)
class Taking:
    """One machine on its way into a snapshot."""

    domain: Any
    seen: MachineSeen
    disks: tuple[DiskSeen, ...]
    others: tuple[str, ...]
    since: dict[str, str]
    why: dict[str, str] = field(default_factory=dict)
    hold: dict[str, str] = field(default_factory=dict)
    shut_down: bool = False
    begun: bool = False
    marked: bool = False
    frozen: bool = False
    taken_us: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def native(self) -> str:
        return self.seen.native


class Taker:
    """Takes snapshots on one host. `scratch`: a folder of the host for scratch files and sockets."""

    def __init__(self, connection: Connection, reach: Reach, scratch: str) -> None:
        self._connection = connection
        self._reach = reach
        self._scratch = scratch

    def take(self, wanted: Sequence[Wanted], *, job: str, quiesce: Quiesce) -> KvmSnapshot:
        name = notes.new_name(job)
        with self._connection.errors():
            taking = [self._look(want) for want in wanted]
            for each in taking:
                self._clear(each, job)
            for each in taking:
                self._refuse_busy(each)
            try:
                self._begin_all(taking, name, job, quiesce)
            except BaseException:
                for each in taking:
                    with contextlib.suppress(AgentError):
                        self._end(each, name, keep_mark=False)
                raise
            failpoint("kvm.begun")
            return self._snapshot(taking, name)

    def _look(self, want: Wanted) -> Taking:
        library = libvirt()
        domain = seeing.domain_of(self._connection, want.native)
        seen = seeing.machine_seen(self._connection, domain)
        now = seeing.as_running(domain)
        by_name = {disk.disk: disk for disk in seen.disks}
        for disk in want.disks:
            if disk not in by_name:
                raise AgentError("disk-unknown", f"{seen.name} has no disk {disk}", "discover again")
            if by_name[disk].left_out:
                raise AgentError("disk-unfit", f"disk {disk} of {seen.name}: {by_name[disk].left_out}")
        chosen = want.disks or tuple(disk.disk for disk in seen.disks if not disk.left_out)
        disks = tuple(by_name[disk] for disk in chosen)
        if not disks:
            raise AgentError("disk-unknown", f"{seen.name} has no disk that can be backed up")
        others = (*(disk.disk for disk in seen.disks if disk.disk not in chosen), *now.others)
        state, reason = domain.state()
        shut_down = state == library.VIR_DOMAIN_SHUTOFF and reason == library.VIR_DOMAIN_SHUTOFF_SHUTDOWN
        taking = Taking(domain, seen, disks, others, {}, shut_down=shut_down)
        for disk_seen in disks:
            mark = want.since.get(disk_seen.disk, "")
            if mark and disk_seen.tracked:
                taking.since[disk_seen.disk] = mark
            elif mark:
                taking.why[disk_seen.disk] = f"an image of format {disk_seen.format} keeps no track of what changes"
        return taking

    def _clear(self, each: Taking, job: str) -> None:
        """What an earlier run of `job` left."""
        name = going_on(each.domain)
        if name and notes.job_of(name) == job:
            self.remove(each.native, name)
        if each.domain.isActive():
            for mark, _ in list(marks.of(each.domain)):
                if notes.job_of(mark) == job and mark not in each.since.values():
                    marks.delete(each.domain, mark)

    def _refuse_busy(self, each: Taking) -> None:
        library = libvirt()
        if not each.domain.isActive():
            return
        name = going_on(each.domain)
        if name:
            raise AgentError(
                "machine-busy",
                f"a backup of {each.seen.name} goes on, of job {notes.job_of(name)}",
                "wait until it ends",
            )
        if each.domain.jobStats(0).get("type", library.VIR_DOMAIN_JOB_NONE) != library.VIR_DOMAIN_JOB_NONE:
            what = "a backup that is not Holdfast's" if backup_xml(each.domain) else "a job of its host's"
            raise AgentError("machine-busy", f"{what} goes on with {each.seen.name}", "wait until it has ended")

    def _begin_all(self, taking: Sequence[Taking], name: str, job: str, quiesce: Quiesce) -> None:
        for each in taking:
            self._hold(each, name, job)
        running = [each for each in taking if each.seen.power == "running"]
        try:
            if quiesce != "off":
                for each in running:
                    self._freeze(each, quiesce)
            if len(taking) > 1:
                for each in running:
                    self._note(each, suspended="yes")
                    each.domain.suspend()
            failpoint("kvm.held")
            for each in taking:
                self._begin(each, name)
        finally:
            for each in running:
                let_go(each.domain, each.hold)
        for each in taking:
            self._note(each)

    def _hold(self, each: Taking, name: str, job: str) -> None:
        """The note; and a QEMU, of a machine that is off."""
        library = libvirt()
        each.hold = {"job": job, "run": name}
        if each.seen.power == "off":
            each.hold["started"] = "yes"
            if not each.domain.isPersistent():
                raise AgentError("machine-unknown", f"{each.seen.name} is gone", "discover again")
            notes.write(each.domain, "hold", each.hold, live=False)
            try:
                each.domain.createWithFlags(library.VIR_DOMAIN_START_PAUSED)
            except library.libvirtError as error:
                raise AgentError(
                    "machine-unstartable",
                    f"{each.seen.name} is off and could not be started paused, to be read: {error}",
                    "back it up while it runs, or make room for it on the host",
                ) from error
            finally:
                notes.write(each.domain, "hold", None, live=False)
        else:
            notes.write(each.domain, "hold", each.hold, live=True)

    def _note(self, each: Taking, **more: str) -> None:
        each.hold.update(more)
        notes.write(each.domain, "hold", each.hold, live=True)

    def _freeze(self, each: Taking, quiesce: Quiesce) -> None:
        library = libvirt()
        self._note(each, frozen="yes")
        try:
            each.domain.agentSetResponseTimeout(_FREEZE_S, 0)
            each.domain.fsFreeze()
            each.frozen = True
        except library.libvirtError as error:
            sentence = f"the file systems of {each.seen.name} could not be frozen: {error}"
            hint = "install qemu-guest-agent in it, and give it the channel org.qemu.guest_agent.0"
            if quiesce == "require":
                raise AgentError("quiesce-failed", sentence, f"{hint}; or do not require it") from error
            each.problems.append(Problem("quiesce-failed", sentence, hint))

    def _begin(self, each: Taking, name: str) -> None:
        library = libvirt()
        checkpoint = any(disk.tracked for disk in each.disks)
        busy = 0  # ports that somebody else had
        while True:
            backup_ = self._backup_xml(each, name, busy)
            checkpoint_ = _checkpoint_xml(each, name) if checkpoint else None
            try:
                each.domain.backupBegin(backup_, checkpoint_, 0)
                break
            except library.libvirtError as error:
                code = error.get_error_code()
                if PORT_BUSY in str(error):
                    busy += 1
                    if self._reach.server_xml(each.native, name, busy) is None:
                        raise no_port(error) from error
                    continue
                broken = code in (library.VIR_ERR_CHECKPOINT_INCONSISTENT, library.VIR_ERR_NO_DOMAIN_CHECKPOINT)
                if broken and each.since:
                    lost = code == library.VIR_ERR_NO_DOMAIN_CHECKPOINT
                    found = marks.disk_in(str(error))
                    for disk in [found] if found in each.since else list(each.since):
                        mark = each.since.pop(disk)
                        each.why[disk] = f"the host has no mark {mark} of this disk any more" if lost else _BROKEN
                elif checkpoint and error.get_error_domain() == library.VIR_FROM_QEMU and not each.since:
                    # An image of an old format, or a QEMU that keeps no bitmaps: the snapshot is worth more than the mark.
                    checkpoint = False
                    each.problems.append(
                        Problem("tracking-failed", f"the host marks no moment of {each.seen.name}: {error}", "")
                    )
                else:
                    raise
        each.begun, each.marked, each.taken_us = True, checkpoint, now_us()

    def _backup_xml(self, each: Taking, name: str, busy: int) -> str:
        disks = []
        for disk in each.disks:
            scratch = quoteattr(f"{self._scratch}/{name}.{each.native[:8]}.{disk.disk}")
            mark = each.since.get(disk.disk)
            how = f" backupmode='incremental' incremental={quoteattr(mark)} exportbitmap='{_BITMAP}'" if mark else ""
            how = how or " backupmode='full'"
            disks.append(
                f"<disk name={quoteattr(disk.disk)} backup='yes' type='file'{how} exportname={quoteattr(disk.disk)}>"
                f"<driver type='qcow2'/><scratch file={scratch}/></disk>"
            )
        disks += [f"<disk name={quoteattr(other)} backup='no'/>" for other in each.others]
        server = self._reach.server_xml(each.native, name, busy)
        return f"<domainbackup mode='pull'>{server}<disks>{''.join(disks)}</disks></domainbackup>"

    def _snapshot(self, taking: Sequence[Taking], name: str) -> KvmSnapshot:
        machines = []
        by_native = {each.native: each for each in taking}
        watch = Watch(
            self._connection,
            [(each.native, each.seen.name) for each in taking if each.seen.power == "running"],
            self._scratch,
            lambda native: self._end(by_native[native], name, keep_mark=False),
        )
        try:
            for each in taking:
                machines.append(self._machine(each, name, watch))
        except BaseException:
            watch.stop()
            for machine in machines:
                machine.close_disks()
            for each in taking:
                with contextlib.suppress(AgentError):
                    self._end(each, name, keep_mark=False)
            raise
        return KvmSnapshot(self, taking, name, tuple(machines), watch)

    def _machine(self, each: Taking, name: str, watch: Watch) -> KvmMachineSnapshot:
        access = self._reach.open(each.native, name, each.domain)
        disks = []
        for seen in each.disks:
            connect = access.connector(seen.disk)
            disks.append(
                KvmDiskSnapshot(
                    seen=seen,
                    mark=name if each.marked and seen.tracked else "",
                    since=each.since.get(seen.disk, ""),
                    why_whole=each.why.get(seen.disk, ""),
                    _connect=connect,
                    _read=Pool(functools.partial(connect, ()), _READERS),
                    _given_up=lambda: watch.error,
                )
            )
        clean = each.frozen or (each.seen.power == "off" and each.shut_down)
        return KvmMachineSnapshot(
            each.seen, each.taken_us, "files" if clean else "crash", tuple(each.problems), tuple(disks), access.close
        )

    def _end(self, each: Taking, name: str, *, keep_mark: bool) -> None:
        try:
            domain = seeing.domain_of(self._connection, each.native)
        except AgentError as error:
            if error.code == "machine-unknown":
                return
            raise
        with self._connection.errors():
            release(domain, name, forget="" if keep_mark else name)
        self._reach.clear(each.native, name)

    def remove(self, native: str, name: str) -> None:
        """End a snapshot that somebody left; its marks stay."""
        domain = seeing.domain_of(self._connection, native)
        with self._connection.errors():
            if going_on(domain) == name:
                release(domain, name)
        self._reach.clear(native, name)

    def keep(self, each: Taking, name: str, needed: Sequence[str]) -> None:
        try:
            domain = seeing.domain_of(self._connection, each.native)
        except AgentError as error:
            if error.code == "machine-unknown":
                return
            raise
        with self._connection.errors():
            if each.marked:
                marks.keep_only(domain, name, [disk.disk for disk in each.disks], needed)
            failpoint("kvm.kept")


_BROKEN: Final = (
    "what changed since then was not written down, because the hypervisor's process ended without writing its bitmaps;"
    " it is kept track of again from now on"
)


def _checkpoint_xml(each: Taking, name: str) -> str:
    tracked = {disk.disk for disk in each.disks if disk.tracked}
    names = [*(disk.disk for disk in each.disks), *each.others]
    disks = "".join(
        f"<disk name={quoteattr(disk)} checkpoint='{'bitmap' if disk in tracked else 'no'}'/>" for disk in names
    )
    return f"<domaincheckpoint><name>{name}</name><disks>{disks}</disks></domaincheckpoint>"


def backup_xml(domain: Any) -> str:
    """Of the backup that goes on; empty: none does."""
    library = libvirt()
    try:
        return str(domain.backupGetXMLDesc(0))
    except library.libvirtError as error:
        if error.get_error_code() in (library.VIR_ERR_NO_DOMAIN_BACKUP, library.VIR_ERR_OPERATION_INVALID):
            return ""
        raise


def backup_of_ours(domain: Any) -> str:
    """The name of a backup of ours that goes on; empty: none does, or somebody else's. It stands in the paths of its scratch
    files; marks that it counts from have names of the same kind."""
    xml = backup_xml(domain)
    if not xml:
        return ""
    scratch = ElementTree.fromstring(xml).iterfind("disks/disk/scratch")
    return next((name for e in scratch if (name := notes.found_in(os.path.basename(e.get("file", ""))))), "")


def going_on(domain: Any) -> str:
    """The name of a snapshot of ours that goes on, or that a death left in between; empty: none."""
    live = domain.isActive()
    if live:
        name = backup_of_ours(domain)
        if name:
            return name
    for where in (True, False) if live else (False,):
        note = notes.read(domain, "hold", live=where)
        if note is not None:
            return note.get("run", "")
    return ""


def let_go(domain: Any, hold: dict[str, str]) -> None:
    """Undo what `hold` says was done to a guest. It is off the note once it is undone."""
    library = libvirt()
    if hold.get("suspended") == "yes":
        if domain.state()[0] == library.VIR_DOMAIN_PAUSED:
            domain.resume()
        hold.pop("suspended")
    if hold.get("frozen") == "yes":
        # Also after a freeze that failed: it may yet have been carried out.
        with contextlib.suppress(library.libvirtError):
            domain.fsThaw()
        hold.pop("frozen")


def release(domain: Any, name: str, forget: str = "") -> None:
    """End snapshot `name`, by whomever it was begun; `forget`: a mark that goes with it. Nothing when it is over."""
    library = libvirt()
    try:
        if domain.isActive():
            _release_running(domain, name, forget)
    except library.libvirtError as error:
        # Its QEMU may end while we are at it, and a machine that is not persistent with it.
        if error.get_error_code() == library.VIR_ERR_NO_DOMAIN:
            return
        if domain.isActive():
            raise
    if not domain.isActive() and domain.isPersistent():
        notes.write(domain, "hold", None, live=False)


def _release_running(domain: Any, name: str, forget: str) -> None:
    library = libvirt()
    note = notes.read(domain, "hold", live=True)
    hold = dict(note.attrib) if note is not None and note.get("run") == name else {}
    let_go(domain, hold)
    if backup_of_ours(domain) == name:
        domain.abortJob()
        deadline = time.monotonic() + _END_S
        while backup_xml(domain):
            if time.monotonic() > deadline:
                raise SourceUnavailable("snapshot-endless", "the host does not end a backup that was called off")
            time.sleep(0.01)
    if hold and hold.get("started") != "yes" and stopped_over_a_write(domain):
        domain.resume()  # there was no room for what it overwrote; see `watching`
    if forget:
        marks.delete(domain, forget)
    if hold.get("started") == "yes" and domain.state()[0] == library.VIR_DOMAIN_PAUSED:
        domain.destroy()
    elif hold:
        notes.write(domain, "hold", None, live=True)


@dataclass(slots=True)
class KvmSnapshot:
    """Implements `Snapshot`."""

    _taker: Taker
    _taking: Sequence[Taking]
    _name: str
    machines: tuple[KvmMachineSnapshot, ...]
    _watch: Watch
    _kept: bool = False

    def keep(self, needed: Mapping[str, Sequence[str]]) -> None:
        # From here on the marks of this snapshot stand, whatever happens to the earlier ones.
        self._watch.stop()
        self._kept = True
        for each in self._taking:
            self._taker.keep(each, self._name, needed.get(each.native, ()))

    def close(self) -> None:
        self._watch.stop()
        for machine in self.machines:
            machine.close_disks()
        first: AgentError | None = None
        for each in self._taking:
            try:
                self._taker._end(each, self._name, keep_mark=self._kept)
            except AgentError as error:
                first = first or error
        if first is not None:
            raise first


@dataclass(frozen=True, slots=True)
class KvmMachineSnapshot:
    """Implements `MachineSnapshot`."""

    seen: MachineSeen
    taken_us: int
    consistency: Consistency
    problems: tuple[Problem, ...]
    disks: tuple[KvmDiskSnapshot, ...]
    _let_go: Callable[[], None] = field(repr=False)

    def close_disks(self) -> None:
        for disk in self.disks:
            disk._read.close()
        self._let_go()


@dataclass(frozen=True, slots=True)
class KvmDiskSnapshot:
    """Implements `DiskSnapshot`."""

    seen: DiskSeen
    mark: str
    since: str
    why_whole: str
    _connect: Connector = field(repr=False)
    _read: Pool = field(repr=False)
    _given_up: Callable[[], AgentError | None] = field(default=lambda: None, repr=False)

    def extents(self, *, whole: bool = False) -> Iterator[tuple[int, int, ExtentKind]]:
        # Two connections, one a context: where little has changed, QEMU is asked of zeros only there.
        with self._lost(), contextlib.closing(self._connect([ALLOCATION])) as allocation:
            for offset, length in self._flagged(whole):
                yield from _merged(allocation, offset, length)

    def _flagged(self, whole: bool) -> Iterator[tuple[int, int]]:
        if whole or not self.since:
            yield 0, self.seen.size
            return
        context = f"qemu:dirty-bitmap:{_BITMAP}"
        with contextlib.closing(self._connect([context])) as dirty:
            for offset, length, flags in dirty.status(0, self.seen.size, context):
                if flags & DIRTY:
                    yield offset, length

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._lost(), self._read.one() as connection:
            connection.read_into(offset, buffer)

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """A machine that goes off, or a host that goes away, ends the snapshot."""
        try:
            yield
        except (AgentError, OSError) as error:
            given_up = self._given_up()
            if given_up is not None:
                raise given_up from error
            raise SourceUnavailable(
                "snapshot-lost",
                f"disk {self.seen.disk} cannot be read as it was: {error}",
                "was the machine switched off, or its host? the backup is to be run again",
            ) from error


def _merged(allocation: Nbd, offset: int, length: int) -> Iterator[tuple[int, int, ExtentKind]]:
    """Neighbours of one kind as one."""
    start, end, kind = offset, offset, ""
    for at, size, flags in allocation.status(offset, length):
        this = "zero" if flags & ZERO else "data"
        if this != kind and end > start:
            yield start, end - start, "zero" if kind == "zero" else "data"
            start = at
        kind, end = this, at + size
    if end > start:
        yield start, end - start, "zero" if kind == "zero" else "data"


def left_files(scratch: str, active: set[str]) -> Iterator[tuple[str, str]]:
    """Name of the snapshot and path of each scratch file in a folder of this machine that no snapshot uses."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for entry in os.scandir(scratch):
            name = notes.found_in(entry.name)
            if name and entry.name.startswith(name) and name not in active:
                yield name, entry.path
