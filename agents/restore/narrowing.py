"""What of an original's disks can differ from a point, by what its host has kept track of: so that nothing else need be read.

    B     a point of the machine whose mark the host still has      the disk was what B's tree says
    now   what the host says has changed since that mark             all else of the disk is what B's tree says
    P     the point to restore                                       so it differs from P at most in
                                                                     changed since B's mark ∪ where the trees of B and P differ

It is asked as a backup asks: by a snapshot since B's mark, which is let go again without a mark of its own. A disk is read whole,
and it is said why, wherever that does not hold for certain: the machine was being restored already, the host has no mark that a
standing point is tied to, says that it cannot count from it, or cannot be asked; B is damaged or suspect; the disk has another
size or other blocks, or a part that is lost; or a sample proves the host wrong: a thirtieth of what it says has not changed is
read and compared with B (`agents.backup.scrub`).

What is trusted, and nothing of it proven, is that the host kept track of every write since B's mark, that B is what the disk was
then (as every incremental backup on B trusts, too), and that nobody starts the machine between the answer and the restore. A
restore says of how many bytes that is so (`trusted`), and reads back all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from agents.backup import choosing, reading, scrub
from agents.backup.machine_facts import marks_of
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.machines import DiskSnapshot, Host, MachineSeen, Wanted
from agents.repository import tree
from agents.repository.backups import is_damaged
from agents.repository.comparing import Chosen
from agents.repository.errors import RepositoryError
from agents.repository.handlers import say_mark
from agents.repository.ledger import Ledger, PointState
from agents.repository.node import Held
from agents.repository.points import Disk
from agents.repository.reader import UNREADABLE
from agents.restore.task import Task

ASKED_NOT: Final = "it was asked that all of it be read"


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What is to be read of a disk: the `chosen` blocks, by the mark of point `base`; or all of it, and `why`."""

    chosen: Chosen | None = None
    base: str = ""
    why: str = ""

    def said(self) -> dict[str, str]:
        """In the job's result."""
        return {"base": self.base, "why_whole": self.why}


@dataclass(frozen=True, slots=True)
class _Base:
    """A point to go on from: of one disk."""

    state: PointState
    disk: Disk
    mark: str
    scope: str  # in which its chunks are likely to be named


def narrowed(task: Task, held: Held, host: Host, seen: MachineSeen) -> Mapping[str, Narrowed]:
    """Of each disk of the task, what is to be read. The machine is off. Raises what `Context.check` does, and what the host
    raises when a snapshot cannot be let go."""
    ledger = held.sessions.ledger()
    out: dict[str, Narrowed] = {}
    bases: dict[str, _Base] = {}
    try:
        marks = {one.name for one in host.leftovers() if one.kind == "mark" and one.native == seen.native}
    except AgentError as error:
        task.ctx.check()
        return {disk.disk: Narrowed(why=f"the host could not be asked: {error.message}") for disk in task.disks}
    for disk in task.disks:
        found = _base(held, ledger, task.point.asset, seen, disk, marks)
        if isinstance(found, str):
            out[disk.disk] = Narrowed(why=found)
        else:
            bases[disk.disk] = found
    if bases:
        out.update(_asked(task, held, ledger, host, seen, bases))
    return out


def _base(held: Held, ledger: Ledger, asset: str, seen: MachineSeen, disk: Disk, marks: Collection[str]) -> _Base | str:
    """The newest point whose mark of the disk the host has; or why there is none."""
    if seen.restoring:
        return "a restore of it had begun before, and nobody kept track of what that wrote"
    there = next((each for each in seen.disks if each.disk == disk.disk), None)
    if there is None or not there.tracked:
        return choosing.NOT_TRACKED
    if disk.counts.get("lost"):
        return "a part of it is lost in the point"
    candidates = [
        state
        for state in ledger.standing().values()
        if (state.sealed.asset, state.sealed.facts.get("native")) == (asset, seen.native)
        and marks_of(state.sealed.facts).get(disk.disk) in marks
    ]
    newest = max(candidates, key=lambda state: state.ordinal, default=None)
    if newest is None:
        return "the host has no mark that a point of the machine is tied to"
    said = {name: mark.number for name, mark in newest.marks.items()}
    if is_damaged(newest) or said.get("suspect", 0) > said.get("verified", 0):
        return f"point {newest.sealed.point}, which its mark is of, is damaged or suspect"
    try:
        kept = held.repository.point(newest.sealed.point)
    except RepositoryError as error:
        return f"point {newest.sealed.point}, which its mark is of, cannot be read: {error.message}"
    was = next((each for each in kept.disks if each.disk == disk.disk), None)
    if was is None or not was.size == disk.size == there.size or was.block_size != disk.block_size:
        return f"it has another size, or other blocks, than at point {newest.sealed.point}, which its mark is of"
    return _Base(newest, was, marks_of(newest.sealed.facts)[disk.disk], kept.namings[0])


def _asked(
    task: Task, held: Held, ledger: Ledger, host: Host, seen: MachineSeen, bases: Mapping[str, _Base]
) -> dict[str, Narrowed]:
    task.ctx.progress(f"asking {host.settings.host} what has changed on {seen.name}")
    since = {name: base.mark for name, base in bases.items()}
    try:
        snapshot = host.snapshot([Wanted(seen.native, tuple(since), since)], job=task.job, quiesce="off")
    except AgentError as error:
        task.ctx.check()
        return {name: Narrowed(why=f"the host could not be asked: {error.message}") for name in bases}
    out = {name: Narrowed(why="the host did not tell") for name in bases}
    try:
        failpoint("restore-host-asked")
        (machine,) = snapshot.machines
        for told in machine.disks:
            name = told.seen.disk
            try:
                out[name] = _of_disk(task, held, ledger, told, bases[name])
            except AgentError as error:
                task.ctx.check()
                if isinstance(error, RepositoryError) and error.code not in UNREADABLE:
                    raise
                out[name] = Narrowed(why=f"what has changed could not be found out: {error.message}")
    finally:
        snapshot.close()
    failpoint("restore-host-answered")
    return out


def _of_disk(task: Task, held: Held, ledger: Ledger, told: DiskSnapshot, base: _Base) -> Narrowed:
    name, was = told.seen.disk, base.disk
    if told.since != base.mark:
        return Narrowed(why=told.why_whole or "the host does not count from its mark any more")
    wanted = next(disk for disk in task.disks if disk.disk == name)
    blocks = -(-was.size // was.block_size)
    chosen = Chosen(blocks)
    for first, count, _ in reading.blocks(told.extents(), was.block_size, was.size):
        chosen[first : first + count] = b"\1" * count
    facts = base.state.sealed.facts
    hit, _ = scrub.suspicious(
        held.repository,
        held.repository.naming(base.scope),
        was,
        told,
        reading.blocks(told.extents(), was.block_size, was.size),
        scrub.part_of(facts.get(f"scrub/{name}", "")),
        step=lambda _: task.ctx.check(),
    )
    if hit >= 0:
        _suspect(task, held, ledger, base, name)
        why = f"what stands at {hit * was.block_size:,} has changed, and the host had not said so"
        task.say(
            "host-untrue", f"disk {name} is read whole: {why}", "its changed-block tracking is not to be relied upon"
        )
        return Narrowed(why=why)
    for run in tree.diff(held.repository, was.root, wanted.root):
        task.ctx.check()
        for extent in run.extents():
            stop = min(extent.first + extent.blocks, blocks)
            if extent.first < stop:
                chosen[extent.first : stop] = b"\1" * (stop - extent.first)
    return Narrowed(chosen, base.state.sealed.point)


def _suspect(task: Task, held: Held, ledger: Ledger, base: _Base, disk: str) -> None:
    """Points that rest on what the host said are not to be relied upon until they are verified, as when a backup finds that."""
    for point in sorted(choosing.unproven(ledger, base.state, disk)):
        said = {name: mark.number for name, mark in ledger.points[point].marks.items()}
        if said.get("suspect", 0) <= said.get("verified", 0):
            note = "the host's changed-block tracking was wrong at some time before it"
            say_mark(held, point, "suspect", task.ctx.command.requester, note=note)
