"""The command `backup.run`: machines as they are at one moment into a repository, one point each.

    session.opened        a session that the node's next start closes; from here on the job is known to have been at work
    leftovers             of dead jobs of ours, taken away: some, or all
    the snapshot          on the host: a snapshot and its marks, of a job that the log knows; the same command, or the next one of
                          the machine, takes them away
    chunks, trees         garbage of an epoch that is over; what is in durable packs is found again by name and not stored again
    the point's record    one that does not count: the ledger has no `point.sealed`
    point.sealed          a point; its marks are on the host and the log says so: they are kept, whoever looks next. Earlier ones
                          are still there and the same one lets them go
    snapshot.keep         a point whose job has no end: the same command, resumed, finds the point by the session's job
    session.closed        the same

Every point is whole, whatever the mode: what is not read stays as it is in the tree of the point before. Several machines in one
command are taken at one moment, and are done all or none: what one of them sealed before another failed is a point nevertheless.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agents.backup import choosing, inventory, machine_facts, reading, scrub
from agents.backup.choosing import Base, Mode
from agents.backup.limits import Bucket, number
from agents.backup.progress import Pace, Reading
from agents.commands import Command, Context
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.machines import DiskSnapshot, Host, Leftover, MachineSnapshot, Quiesce, Wanted
from agents.repository import nodes, points
from agents.repository.backups import backup_session, draft, ingest_of
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK
from agents.repository.handlers import held_of, say_mark
from agents.repository.ingest import Ingest, Sealed
from agents.repository.ledger import Ledger, PointState
from agents.repository.node import Held
from agents.repository.points import Disk
from agents.repository.reader import UNREADABLE
from agents.repository.sessions import Session
from streams.events import AssetChanged, Problem
from streams.events.repository import NOT_CHOSEN

_DISKS_AT_ONCE: Final = 16
_LOOK_S: Final = 0.25
_SESSION_S: Final = 2.0
_PIECE_BYTES: Final = 64 << 20  # between two looks at whether to go on
_PROBLEMS: Final = 20
_UNREADABLE: Final = UNREADABLE | {nodes.DAMAGED}
_QUIESCE: Final[Mapping[str, Quiesce]] = {"off": "off", "try": "try", "require": "require"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a command asks for. `disks`: of a machine's, by asset; an asset that is not in it: all of them."""

    assets: tuple[AssetChanged, ...]
    mode: Mode
    disks: Mapping[str, tuple[str, ...]]
    quiesce: Quiesce
    bandwidth: int
    scrub: bool

    @property
    def host(self) -> str:
        return self.assets[0].host


@dataclass(slots=True)
class _Machine:
    """One machine on its way into a point."""

    asset: AssetChanged
    base: Base
    session: Session
    ingest: Ingest
    snapshot: MachineSnapshot
    before: Mapping[str, Disk]  # what the new trees go on from
    facts: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    suspects: set[str] = field(default_factory=set)
    futures: list[Future[Disk]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def whole(self, disk: str, why: str) -> None:
        """A disk is read whole though that was not asked for."""
        with self.lock:
            self.facts[f"whole/{disk}"] = why
            self.problems.append(Problem("disk-read-whole", f"{self.asset.asset}: {disk} was read whole: {why}"))


def run(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `backup.run`."""
    held, asked = held_of(command, ctx), _asked(command, ctx)
    host = inventory.open_host(ctx, asked.host)
    natives = [a.native for a in asked.assets]
    with ctx.services.limits.machines(asked.host, natives, ctx.check):
        done = _sealed_by(held.sessions.ledger(), command.id, asked)
        if len(done) < len(asked.assets):
            _back_up(command, ctx, held, host, asked)
            done = _sealed_by(held.sessions.ledger(), command.id, asked)
        else:
            # An earlier run had sealed its points. What it had not come to: letting the snapshot and older marks go.
            with contextlib.suppress(AgentError):  # the next backup does it
                _tidy(ctx, host, asked)
    return {"points": [_told(state) for state in done]}


def _asked(command: Command, ctx: Context) -> _Asked:
    p = command.parameters
    names = [str(n) for n in p.get("assets") or [p["asset"]]]
    assets = tuple(ctx.services.hosts.asset(name) for name in dict.fromkeys(names))
    if len({a.host for a in assets}) != 1:
        raise AgentError(
            "group-hosts", "the machines of one backup are on different hosts", "one moment is one host's: ask for each"
        )
    disks = p.get("disks") or {}
    if not isinstance(disks, Mapping):
        disks = {assets[0].asset: disks}
    quiesce = _QUIESCE.get(str(p.get("quiesce") or "try"))
    if quiesce is None:
        raise AgentError("quiesce-unknown", f"there is no quiescing {p['quiesce']!r}", "off, try, require")
    return _Asked(
        assets,
        choosing.parsed_mode(str(p.get("mode") or "")),
        {str(asset): tuple(str(d) for d in chosen) for asset, chosen in disks.items()},
        quiesce,
        int(p.get("bandwidth") or 0),
        bool(p.get("scrub", True)),
    )


def _sealed_by(ledger: Ledger, job: str, asked: _Asked) -> list[PointState]:
    """The points that a run of this job sealed, one for each of its machines or none of those that are missing."""
    mine = {name for name, session in list(ledger.sessions.items()) if session.opened.job == job}
    found: dict[str, PointState] = {}
    for state in sorted(ledger.points.values(), key=lambda s: s.ordinal):
        if state.sealed.session in mine:
            found[state.sealed.asset] = state
    return [found[a.asset] for a in asked.assets if a.asset in found]


def _told(state: PointState) -> dict[str, Any]:
    sealed = state.sealed
    facts = sealed.facts
    return {
        "point": sealed.point,
        "asset": sealed.asset,
        "mode": facts.get("mode", ""),
        "size": sum(d.size for d in sealed.disks),
        "read": sealed.figures.get("read_bytes", 0),
        "changed": sum(d.changed * d.block_size for d in sealed.disks),
        "stored": sealed.figures.get("stored_bytes", 0),
        "continues": sealed.continues,
        "consistency": facts.get("consistency", ""),
        "whole": {name.removeprefix("whole/"): why for name, why in facts.items() if name.startswith("whole/")},
        "left_out": {
            name.removeprefix("left_out/"): why for name, why in facts.items() if name.startswith("left_out/")
        },
    }


# --- the work ---------------------------------------------------------------------------------------------------------


def _back_up(command: Command, ctx: Context, held: Held, host: Host, asked: _Asked) -> None:
    pace = Pace(_buckets(ctx, asked))
    with contextlib.ExitStack() as stack:
        ctx.progress("looking at what is there")
        marks = {(one.native, one.name) for one in host.leftovers() if one.kind == "mark"}
        ledger = held.sessions.ledger()
        bases = [
            choosing.choose(ledger, a.asset, a.native, asked.mode, {m for n, m in marks if n == a.native})
            for a in asked.assets
        ]
        sessions = [
            stack.enter_context(backup_session(held, command, asset.asset, base.point))
            for asset, base in zip(asked.assets, bases, strict=True)
        ]
        _tidy(ctx, host, asked, {mark for base in bases for mark in base.since.values()})
        failpoint("backup-tidied")
        ctx.progress("taking a snapshot")
        wanted = [_wanted(host, asset, base, asked) for asset, base in zip(asked.assets, bases, strict=True)]
        snapshot = host.snapshot(wanted, job=command.id, quiesce=asked.quiesce)
        stack.callback(snapshot.close)
        failpoint("backup-snapshot-taken")
        machines = []
        for asset, base, session, taken in zip(asked.assets, bases, sessions, snapshot.machines, strict=True):
            ingest = stack.enter_context(ingest_of(held, session, asset.asset, base.point, ctx))
            machines.append(_begun(ctx, held, asset, base, session, ingest, taken))
        pool = ThreadPoolExecutor(_DISKS_AT_ONCE, "disk")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        stack.callback(pace.stop)
        for machine in machines:
            for disk in machine.snapshot.disks:
                machine.futures.append(pool.submit(_disk, ctx, held, asked, machine, disk, pace))
        _await(ctx, machines, pace)
        for machine in machines:
            _seal(command, ctx, machine, asked)
            failpoint("backup-point-sealed")
        snapshot.keep(_to_keep(ctx, host, asked))
        failpoint("backup-marks-kept")
        snapshot.close()
        for machine in machines:
            ctx.warn(*machine.problems[:_PROBLEMS])
            machine.session.close("done", points=[machine.ingest.point], figures=machine.ingest.figures.as_counts())


def _buckets(ctx: Context, asked: _Asked) -> list[Bucket]:
    """The job's own limit, and the host's, which all of its jobs share."""
    limits = ctx.services.limits
    options = ctx.services.hosts.get(asked.host).options
    rates = {f"job/{ctx.command.id}": asked.bandwidth, f"host/{asked.host}": number(options, "bandwidth", 0)}
    return [limits.bucket(what, rate) for what, rate in rates.items() if rate]


def _wanted(host: Host, asset: AssetChanged, base: Base, asked: _Asked) -> Wanted:
    """Raises `AgentError` (`machine-restoring`, `disk-unknown`, `disks-missing`)."""
    seen = host.machine(asset.native)
    if seen.restoring:
        raise AgentError(
            "machine-restoring",
            f"{asset.asset} is being restored by job {seen.restoring}: its disks are not whole",
            "let that end, or restore it again",
        )
    chosen = asked.disks.get(asset.asset, ())
    there = {disk.disk: disk for disk in seen.disks}
    for name in chosen:
        if name not in there or there[name].left_out:
            why = there[name].left_out if name in there else f"its disks are: {', '.join(there) or 'none'}"
            raise AgentError("disk-unknown", f"{asset.asset} has no disk {name!r} that can be backed up", why)
    disks = tuple(name for name, disk in there.items() if not disk.left_out and (not chosen or name in chosen))
    if not disks:
        raise AgentError("disks-missing", f"{asset.asset} has no disk that can be backed up", "`holdfast asset show`")
    return Wanted(asset.native, disks, {disk: mark for disk, mark in base.since.items() if disk in disks})


def _begun(
    ctx: Context,
    held: Held,
    asset: AssetChanged,
    base: Base,
    session: Session,
    ingest: Ingest,
    taken: MachineSnapshot,
) -> _Machine:
    before: Mapping[str, Disk] = {}
    if base.point is not None and base.takes:
        try:
            before = {disk.disk: disk for disk in held.repository.point(base.point.sealed.point).disks}
        except RepositoryError as error:
            if error.code != points.DAMAGED:
                raise
            base = replace(base, takes=False, whole={"": error.message})
    inventory.note(ctx, asset, taken.seen)
    machine = _Machine(asset, base, session, ingest, taken, before)
    machine.problems.extend(taken.problems)
    return machine


def _disk(ctx: Context, held: Held, asked: _Asked, machine: _Machine, disk: DiskSnapshot, pace: Pace) -> Disk:
    """One disk, on a thread of its own: a place to read in, what is to be read, its tree."""
    name = disk.seen.disk
    options = ctx.services.hosts.get(asked.host).options
    with ctx.services.limits.disk(asked.host, disk.seen.storage, options, pace.go_on):
        before = machine.before.get(name)
        try:
            whole = _is_whole(held, asked, machine, disk, before, pace)
            return _read(held, machine, disk, before, whole, pace)
        except RepositoryError as error:
            if before is None or error.code not in _UNREADABLE:
                raise
            with machine.lock:
                machine.facts.pop(f"since/{name}", None)
            machine.whole(
                name, f"the point before cannot be read, `holdfast repository verify` says more: {error.message}"
            )
        return _read(held, machine, disk, None, True, pace)


def _read(held: Held, machine: _Machine, disk: DiskSnapshot, before: Disk | None, whole: bool, pace: Pace) -> Disk:
    """A disk's tree: `before` with what differs, or one of its own."""
    seen = disk.seen
    new = machine.ingest.disk(
        seen.disk,
        size=seen.size,
        block_size=before.block_size if before else _block_size(held, machine),
        continues=before,
        geometry={"format": seen.format, "bus": seen.bus},
    )

    def blocks() -> Iterator[tuple[int, int, int]]:
        found = disk.extents(whole=whole)
        if before is not None and not whole:
            found = reading.resized(found, before.size, seen.size, new.block_size)
        return reading.blocks(found, new.block_size, seen.size)

    pace.expect(reading.bytes_to_read(blocks(), new.block_size))
    new.feed(Reading(disk, pace), _pieces(blocks(), new.block_size, pace), compare=before is not None)
    return new.finish()


def _block_size(held: Held, machine: _Machine) -> int:
    """An asset keeps its blocks: those of its other disks, else the repository's."""
    others = (disk.block_size for disk in machine.before.values())
    return next(others, int(held.defined.options.get("block_size", "0")))


def _is_whole(
    held: Held, asked: _Asked, machine: _Machine, disk: DiskSnapshot, before: Disk | None, pace: Pace
) -> bool:
    """Whether all of a disk is to be read; says why where that was not asked for, and looks whether the host tells the truth."""
    name, base = disk.seen.disk, machine.base
    if not disk.since or before is None:
        why = disk.why_whole or base.whole.get(name) or base.whole.get("", "")
        if base.mode != "full":
            machine.whole(name, why or "it is not in the point before")
        return True
    machine.facts[f"since/{name}"] = disk.since
    if not asked.scrub:
        return False
    assert base.point is not None
    part = scrub.part_of(base.point.sealed.facts.get(f"scrub/{name}", ""))
    flagged = reading.blocks(disk.extents(), before.block_size, disk.seen.size)
    scope = machine.asset.asset if held.defined.options.get("dedupe") == "asset" else ""
    # Where it was cut off or goes on, a block is another without anybody's having written to it.
    size = (
        before.size
        if before.size == disk.seen.size
        else min(before.size, disk.seen.size) // before.block_size * before.block_size
    )
    hit, read = scrub.suspicious(
        held.repository,
        held.repository.naming(scope),
        replace(before, size=size),
        Reading(disk, pace, extra=True),
        flagged,
        part,
        step=lambda _: pace.go_on(),
    )
    with machine.lock:
        machine.facts[f"scrub/{name}"] = scrub.after(part)
        machine.facts[f"scrubbed/{name}"] = str(read)
    if hit < 0:
        return False
    with machine.lock:
        machine.suspects.update(choosing.unproven(held.sessions.ledger(), base.point, name))
        del machine.facts[f"since/{name}"]
    _suspect(held, machine)
    machine.whole(name, f"what stands at {hit * before.block_size} has changed, and the host had not said so")
    return True


def _suspect(held: Held, machine: _Machine) -> None:
    """Points that rest on what the host said are not to be relied upon until they are verified."""
    ledger = held.sessions.ledger()
    for point in sorted(machine.suspects):
        marked = {name: mark.number for name, mark in ledger.points[point].marks.items()}
        if marked.get("suspect", 0) <= marked.get("verified", 0):
            note = "the host's changed-block tracking was wrong at some time before it"
            say_mark(held, point, "suspect", machine.session.by, note=note)


def _pieces(found: Iterator[tuple[int, int, int]], block_size: int, pace: Pace) -> Iterator[tuple[int, int, int]]:
    step = max(1, _PIECE_BYTES // block_size)
    for first, count, tag in found:
        for at in range(first, first + count, step if tag == CHUNK else count):
            pace.go_on()
            yield at, min(step, first + count - at) if tag == CHUNK else count, tag


def _await(ctx: Context, machines: Sequence[_Machine], pace: Pace) -> None:
    """Until all disks have come; says how far that is. Raises what any of them raised, and what `ctx.check` does."""
    pending = {future for machine in machines for future in machine.futures}
    looked = time.monotonic()
    while pending:
        done, pending = wait(pending, _LOOK_S, FIRST_EXCEPTION)
        for future in done:
            future.result()
        ctx.check()
        if time.monotonic() - looked > _SESSION_S:
            looked = time.monotonic()
            for machine in machines:
                machine.session.check()
        # Until all disks have said how much there is to read of them, nobody knows the whole.
        known = pace.disks >= sum(len(machine.futures) for machine in machines)
        said = pace.told((machine.ingest.spent for machine in machines), known)
        ctx.progress(said, pace.done, pace.total if known else 0, "bytes")


def _seal(command: Command, ctx: Context, machine: _Machine, asked: _Asked) -> Sealed:
    ingest, base, taken = machine.ingest, machine.base, machine.snapshot
    disks = tuple(future.result() for future in machine.futures)
    facts = {
        **machine.facts,
        "platform": ctx.services.hosts.get(asked.host).kind,
        "host": asked.host,
        "native": taken.seen.native,
        "taken_us": str(taken.taken_us),
        "consistency": taken.consistency,
        "mode": base.mode,
        "job": command.id,
        **{f"mark/{d.seen.disk}": d.mark for d in taken.disks if d.mark},
    }
    was_whole = all(f"since/{d.seen.disk}" not in facts for d in taken.disks)
    facts["full"] = ingest.point if was_whole or not base.full else base.full
    kept = {d.seen.disk for d in taken.disks}
    for seen in taken.seen.disks:
        if seen.disk not in kept:
            facts[f"left_out/{seen.disk}"] = seen.left_out or NOT_CHOSEN
    for n, problem in enumerate(machine.problems[:_PROBLEMS]):
        facts[f"problem/{n}"] = f"{problem.code}: {problem.message}"
    attached = machine_facts.attach(ingest, taken.seen.companions)
    failpoint("backup-disks-read")
    made = draft(
        machine.asset.asset,
        taken.seen.name,
        "disks",
        base.point,
        disks=disks,
        created_us=taken.taken_us,
        facts=facts,
    )
    return ingest.seal(replace(made, configuration=machine_facts.configuration_of(taken.seen), attached=attached))


# --- what stays on the host -------------------------------------------------------------------------------------------


def _to_keep(ctx: Context, host: Host, asked: _Asked) -> dict[str, list[str]]:
    """By machine, the marks that stay when this job's are kept: those that may be asked since, and those that are not ours."""
    found = host.leftovers()
    gone = _dead(ctx, found, asked)
    kept: dict[str, list[str]] = {a.native: [] for a in asked.assets}
    for one in found:
        if one.kind == "mark" and one.native in kept and one not in gone:
            kept[one.native].append(one.name)
    return kept


def _tidy(ctx: Context, host: Host, asked: _Asked, asking: Collection[str] = ()) -> None:
    """Take away what dead jobs of ours left on these machines, but for marks that are needed or are to be asked since now."""
    for one in _dead(ctx, host.leftovers(), asked, asking):
        host.remove(one)
        failpoint("backup-leftover-removed")


def _dead(ctx: Context, found: Sequence[Leftover], asked: _Asked, asking: Collection[str] = ()) -> list[Leftover]:
    ledgers = ctx.services.node.ledgers()
    wanted = {mark for a in asked.assets for mark in choosing.needed(ledgers, a.asset, a.native)}.union(asking)
    return choosing.dead(found, [a.native for a in asked.assets], ledgers, wanted, ctx.command.id)
