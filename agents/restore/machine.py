"""A machine of a point onto a host: the one it was of, or a new one.

    the original    off (or stopped, if told so) → host asked what has changed → `restoring` → of each disk, what differs
                    written → read back and compared → settled → started, if told so
    a new one       made, `restoring`, a leftover of its job → each disk filled → read back and compared → settled → started

A machine says of itself that it is `restoring` until it is settled (`agents.machines.Host.settle`): what a death leaves does not
look whole. The same command goes on: with the original by comparing again; with a new machine by the leftover of its job and
the progress files in the data directory, `restores/<job>-<disk>`. A new machine whose restore fails is removed, or named where
that cannot be done. Knows no platform.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.backup.machine_facts import Kept
from agents.commands import Interrupted, JobFailed
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.machines import DiskTarget, DiskWanted, Host, MachineSeen, MachineWanted, NicSeen
from agents.repository.points import Disk
from agents.restore import several, writing
from agents.restore.narrowing import ASKED_NOT, Narrowed
from agents.restore.progress import Meter
from agents.restore.task import Task, data_bytes
from streams.errors import DeliveryFailed
from streams.events import Problem


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new machine has that the described one has not. Empty and None: as described. `identity`: it takes that, too."""

    name: str = ""
    cpus: int | None = None
    memory: int | None = None
    bus: str = ""
    nics: tuple[NicSeen, ...] | None = None
    storage: str = ""
    format: str = ""
    identity: bool = False


Narrow = Callable[[MachineSeen], Mapping[str, Narrowed]]


# --- to the original ----------------------------------------------------------------------------------------------------


def original(
    task: Task, kept: Kept, host: Host, narrow: Narrow | None = None, *, stop: bool, start: bool, dry_run: bool
) -> dict[str, Any]:
    """`narrow` says what of a machine that is off is to be read; without, all is.

    Raises `AgentError`: `machine-unknown`, `machine-running`, `JobFailed` with all that does not fit, `restore-differs`; as
    `restore_disk`.
    """
    seen = _there(host, kept)
    _fits(task, kept, seen)
    stopped = seen.power != "off"
    if stopped and (dry_run or not stop):
        raise AgentError(
            "machine-running",
            f"{seen.name} is {seen.power}, and its disks are to be {'compared' if dry_run else 'overwritten'}",
            "shut it down first"
            if dry_run
            else "shut it down, or let it be stopped: `--stop`; `--start` starts it again",
        )
    disks = _Disks(task, host, seen, times=1 if dry_run else 2)
    if dry_run:
        return _result(host, seen, disks.each(disks.weighed), started=False)
    if stopped:
        task.ctx.progress(f"stopping {seen.name}")
        host.stop(seen.native)
    _let_go(task, host, seen)
    parts = narrow(seen) if narrow is not None else {disk.disk: Narrowed(why=ASKED_NOT) for disk in task.disks}
    failpoint("restore-narrowed")
    try:
        told = disks.each(lambda disk: disks.overwritten(disk, parts[disk.disk]))
    except AgentError as error:
        hint = f"{error.hint}; " if error.hint else ""
        error.hint = f"{hint}{seen.name} is not whole before a restore of it has ended"
        raise
    host.settle(seen.native)
    failpoint("restore-machine-settled")
    return _result(host, seen, told, started=start and _started(task, host, seen))


def _let_go(task: Task, host: Host, seen: MachineSeen) -> None:
    """Of a snapshot by which an earlier run of this job asked what has changed, and over which it died."""
    for left in host.leftovers():
        if (left.job, left.native, left.kind) == (task.job, seen.native, "snapshot"):
            host.remove(left)


def _there(host: Host, kept: Kept) -> MachineSeen:
    try:
        return host.machine(kept.seen.native)
    except AgentError as error:
        if error.code != "machine-unknown":
            raise
        raise AgentError(
            error.code,
            f"{kept.seen.name} is not on host {host.settings.host} any more",
            f"`holdfast restore machine POINT --host {host.settings.host} --keep-identity` makes it anew",
        ) from error


def _fits(task: Task, kept: Kept, seen: MachineSeen) -> None:
    """Raises `JobFailed` unless each disk is there and as large as it was."""
    there = {disk.disk: disk for disk in seen.disks}
    problems = []
    elsewhere = (
        "`holdfast restore machine` restores it to a new machine, `restore files` to a folder, `--disk` the others"
    )
    for disk in task.disks:
        found = there.get(disk.disk)
        if found is None:
            problems.append(Problem("disk-unknown", f"{seen.name} has no disk {disk.disk} any more", elsewhere))
        elif found.size != disk.size:
            how = "smaller" if found.size < disk.size else "larger"
            message = (
                f"disk {disk.disk} of {seen.name} is {how} now: {found.size:,} bytes, and {disk.size:,} at the point"
            )
            problems.append(Problem("disk-size", message, f"resize it; or {elsewhere}"))
    if problems:
        raise JobFailed(tuple(problems))
    others = sorted(set(there) - {disk.disk for disk in task.disks})
    if others:
        task.say(
            "disks-left", f"disks that are left as they are: {', '.join(others)}", "they are of now, not of the point"
        )
    if (seen.cpus, seen.memory) != (kept.seen.cpus, kept.seen.memory):
        task.say("machine-differs", f"{seen.name} keeps its {seen.cpus} cpus and {seen.memory:,} bytes of memory")


# --- disks --------------------------------------------------------------------------------------------------------------


class _Disks:
    """The disks of a machine that are restored, several at once. `times`: how often each is gone through."""

    def __init__(self, task: Task, host: Host, seen: MachineSeen, times: int) -> None:
        self._task = task
        self._host = host
        self._seen = seen
        self._meter = Meter(task.ctx, f"restoring {seen.name}", times * sum(disk.size for disk in task.disks))
        self._asking = threading.Lock()  # a host is asked one thing at a time; bytes go on meanwhile
        self._storage = {disk.disk: disk.storage for disk in seen.disks}

    def each(self, work: Callable[[Disk], dict[str, Any]]) -> list[dict[str, Any]]:
        settings = self._host.settings
        return several.each(
            self._task,
            self._meter,
            lambda disk: several.Place(settings.host, self._storage.get(disk.disk, ""), settings.options),
            work,
        )

    def overwritten(self, disk: Disk, part: Narrowed) -> dict[str, Any]:
        read = (
            f"reading what can have changed since point {part.base}" if part.base else f"reading all of it: {part.why}"
        )
        with self._to_write(disk) as place, self._meter.part(f"restoring {self._seen.name} {disk.disk}, {read}"):
            failpoint("restore-disk-opened")
            done = writing.overwrite(self._task.work(disk), place, self._meter, part.chosen)
        failpoint("restore-disk-written")
        return self._compared(disk, done, part)

    def filled(self, disk: Disk, notes: Path) -> dict[str, Any]:
        """`notes`: the progress file."""
        with self._to_write(disk) as place, self._meter.part(f"restoring {self._seen.name} {disk.disk}"):
            failpoint("restore-disk-opened")
            work = self._task.work(disk)
            if place.blank:
                noted = writing.notes_of(notes, self._task.point.point, disk, machine=self._seen.native)
                try:
                    done = writing.fill(work, place, noted, self._meter)
                finally:
                    noted.close()
            else:
                done = writing.overwrite(work, place, self._meter)
        failpoint("restore-disk-written")
        return self._compared(disk, done)

    def weighed(self, disk: Disk) -> dict[str, Any]:
        with self._to_read(disk) as place, self._meter.part(f"comparing {self._seen.name} {disk.disk}"):
            return writing.said(disk, writing.weigh(self._task.work(disk), place, self._meter))

    def _compared(self, disk: Disk, done: writing.Written, part: Narrowed | None = None) -> dict[str, Any]:
        with self._to_read(disk) as place, self._meter.part(f"comparing {self._seen.name} {disk.disk}"):
            chosen = part.chosen if part is not None else None
            proven = writing.compare(self._task.work(disk), place, done, self._meter, chosen)
        return writing.said(disk, proven, **(part.said() if part is not None else {}))

    @contextlib.contextmanager
    def _to_write(self, disk: Disk) -> Iterator[DiskTarget]:
        with self._asking:
            place = self._host.open_disk(self._seen.native, disk.disk, job=self._task.job)
        with contextlib.closing(place):
            yield place

    @contextlib.contextmanager
    def _to_read(self, disk: Disk) -> Iterator[DiskTarget]:
        with self._asking:
            place = self._host.read_disk(self._seen.native, disk.disk)
        with contextlib.closing(place):
            yield place


# --- to a new machine ---------------------------------------------------------------------------------------------------


def new(
    task: Task, kept: Kept, host: Host, changes: Changes, notes: Path, *, start: bool, dry_run: bool
) -> dict[str, Any]:
    """`notes`: the folder of progress files. Raises `AgentError`: `platform-unlike`, `machine-exists`; as `original`."""
    if kept.platform != host.settings.kind:
        raise AgentError(
            "platform-unlike",
            f"the machine is of {kept.platform}, and {host.settings.host} is a host of kind {host.settings.kind}",
            "restore to a host of its own kind, or to files: `holdfast restore files`",
        )
    wanted = _wanted(task, kept, changes)
    if dry_run:
        _free(host, wanted)
        planned = [writing.said(d, writing.Written(d.size, differed=data_bytes(task.source, d))) for d in task.disks]
        return {**_result(host, None, planned, started=False), "name": wanted.name}
    notes.mkdir(mode=0o700, exist_ok=True)
    mine = next((left for left in host.leftovers() if (left.job, left.kind) == (task.job, "machine")), None)
    whole = _whole(host, notes / f"{task.job}.whole") if mine is None else None
    if whole is not None:  # we died between the last step and the event
        return _ended(task, host, *whole, notes, start=start)
    if mine is not None:
        seen = host.machine(mine.native)
    else:
        task.ctx.progress(f"making {wanted.name}")
        seen = host.create(wanted, job=task.job)
    failpoint("restore-machine-made")
    try:
        disks = _Disks(task, host, seen, times=2)
        told = disks.each(lambda disk: disks.filled(disk, _notes(notes, task.job, disk)))
        (notes / f"{task.job}.whole").write_text(json.dumps({"native": seen.native, "disks": told}))
        failpoint("restore-machine-whole")
        host.settle(seen.native)
        failpoint("restore-machine-settled")
    except (Interrupted, DeliveryFailed):  # the next run goes on with it
        raise
    except Exception:
        with contextlib.suppress(AgentError):  # cancelled, or late: still ours to take away
            task.ctx.check()  # `Interrupted`: another has the job now, and goes on with this machine
        _remove(task, host, seen, notes)
        raise
    return _ended(task, host, seen, told, notes, start=start)


def _wanted(task: Task, kept: Kept, changes: Changes) -> MachineWanted:
    return MachineWanted(
        name=changes.name or kept.seen.name,
        description=kept.seen.description,
        disks=tuple(DiskWanted(d.disk, d.size, changes.format, changes.storage) for d in task.disks),
        companions=kept.seen.companions,
        native=kept.seen.native if changes.identity else "",
        cpus=changes.cpus,
        memory=changes.memory,
        bus=changes.bus,
        nics=changes.nics,
    )


def _free(host: Host, wanted: MachineWanted) -> None:
    """Raises `AgentError` (`machine-exists`) as `create` would."""
    for seen in host.discover():
        if seen.name == wanted.name or (wanted.native and seen.native == wanted.native):
            raise AgentError(
                "machine-exists",
                f"there is a machine {seen.name} on {host.settings.host}",
                "choose another name (`--name`), without `--keep-identity`; or delete it",
            )


def _whole(host: Host, noted: Path) -> tuple[MachineSeen, list[dict[str, Any]]] | None:
    """The machine that an earlier run of this job made whole and settled, and what it said of its disks."""
    try:
        found = json.loads(noted.read_text())
        seen = host.machine(found["native"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    except AgentError as error:
        if error.code != "machine-unknown":
            raise
        return None
    return None if seen.restoring else (seen, found["disks"])


def _notes(folder: Path, job: str, disk: Disk) -> Path:
    return folder / f"{job}-{disk.disk.encode().hex()}"


def _remove(task: Task, host: Host, seen: MachineSeen, notes: Path) -> None:
    """What was made for a restore that failed. It is said where it stays."""
    try:
        host.delete(seen.native)
    except AgentError as error:
        task.say(
            "leftover",
            f"machine {seen.name} ({seen.native}) is not whole, and could not be removed from {host.settings.host}: {error}",
            "delete it there",
        )
    _forget(task, notes)


def _forget(task: Task, notes: Path) -> None:
    for disk in task.disks:
        _notes(notes, task.job, disk).unlink(missing_ok=True)
    (notes / f"{task.job}.whole").unlink(missing_ok=True)


def _ended(
    task: Task, host: Host, seen: MachineSeen, told: list[dict[str, Any]], notes: Path, *, start: bool
) -> dict[str, Any]:
    started = start and _started(task, host, seen)
    failpoint("restore-machine-started")
    _forget(task, notes)
    return _result(host, seen, told, started=started)


def _started(task: Task, host: Host, seen: MachineSeen) -> bool:
    """What was restored is whole, whether it starts or not."""
    try:
        host.start(seen.native)
    except AgentError as error:
        hint = f"{error.hint}; it is restored" if error.hint else "it is restored: see to that, and start it"
        task.say(error.code, error.message, hint)
        return False
    return True


def _result(host: Host, seen: MachineSeen | None, told: list[dict[str, Any]], *, started: bool) -> dict[str, Any]:
    named: Mapping[str, str] = {"machine": seen.native, "name": seen.name} if seen else {"machine": ""}
    return {**named, "host": host.settings.host, "disks": told, "started": started}
