"""The commands `restore.run` (disks of a point to files in a folder, to the machine they were of, or to a new one) and
`point.compare` (whether a file or device is what a disk was, a directory what files were). `point.restore` is in
`agents.restore.paths`.

    session.opened (restore, pins the point) → what `agents.restore.folder`, `.machine` say → session.closed → job finished

A death anywhere leaves a session that the node's next start closes, and a target that says that it is not whole; the same
command, resumed, completes it. Paths are those of this machine, written as the user this process runs as.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agents.backup.inventory import discover, note, open_host
from agents.backup.machine_facts import machine_of
from agents.commands import Command, Context
from agents.errors import AgentError
from agents.machines import Host, NicSeen
from agents.repository import proven
from agents.repository.backups import path_of, target_of
from agents.repository.comparing import same_by
from agents.repository.errors import RepositoryError
from agents.repository.handlers import held_of
from agents.repository.node import Held, closing
from agents.repository.points import Point
from agents.repository.reader import UNREADABLE
from agents.repository.repository import Repository
from agents.restore import directory, folder, images, machine, narrowing, several, writing
from agents.restore.paths import files_of
from agents.restore.progress import Limit, Meter
from agents.restore.task import Task, chosen, one_of
from streams.publish import rfc3339

_NOTES: Final = "restores"  # in the data directory


def run(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `restore.run`. `how`: files, original or machine."""
    p = command.parameters
    held, name = held_of(command, ctx), str(p["point"])
    session = held.sessions.open("restore", by=command.requester, pins=[name], job=command.id)
    with closing(session):
        point = held.repository.point(name)
        task = task_of(held.repository, point, command, ctx)
        how = {"files": _files, "original": _original, "machine": _machine}[str(p["how"])]
        try:
            result = how(task, held, p)
        except RepositoryError as error:
            raise _with_hint(error, held, skip_lost=task.skip_lost) from error
        except OSError as error:  # what the repository meets is a `StoreError`: this is the target's
            raise several.unwritable(error) from error
        written = sum(disk["written"] for disk in result["disks"])
        lost = sum(disk["lost_bytes"] for disk in result["disks"])
        kept = sum(disk["kept"] for disk in result["disks"])
        all_of_it = str(p["how"]) != "original" and not p.get("dry_run") and len(task.disks) == len(point.disks)
        if all_of_it and not lost and not kept:
            proven.by_restore(held, name, ctx)
        session.close("done", points=[name], figures={"written_bytes": written})
    about = {"how": str(p["how"]), "asset": point.asset, "created": rfc3339(point.created_us)}
    return {**result, **about, "written": written, "lost_bytes": lost, "dry_run": bool(p.get("dry_run"))}


def compare(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.compare`: reads a file, a device, an image or a directory on this machine and changes nothing."""
    p = command.parameters
    held, name = held_of(command, ctx), str(p["point"])
    path = path_of(str(p["target"]), held, ctx)
    session = held.sessions.open("restore", by=command.requester, pins=[name], job=command.id)
    with closing(session):
        point = held.repository.point(name)
        try:
            if point.kind == "files":
                told = directory.compare(files_of(held, point, command, ctx), path)
            else:
                told = _compared(task_of(held.repository, point, command, ctx), path, str(p.get("format") or "raw"))
        except OSError as error:
            raise AgentError(
                "path-unreadable", f"{path}: {error.strerror or error}", "give the agent's user the right to read it"
            ) from error
        session.close("done", points=[name])
    return told


def _compared(task: Task, path: Path, format: str) -> dict[str, Any]:
    images.check(format)
    disk = one_of(task)
    with images.opened(path, format, read_only=True) as image:
        found = writing.differing(task.work(disk), image, Meter(task.ctx, f"comparing {path.name}", disk.size))
        longer = image.size - disk.size
    return {
        "target": str(path),
        "disk": disk.disk,
        "compared": disk.size,
        "differs": found.size,
        "ranges": [{"offset": offset, "length": length} for offset, length in found.first],
        "left_out": found.ranges - len(found.first),
        "longer": longer,
    }


def task_of(repository: Repository, point: Point, command: Command, ctx: Context) -> Task:
    p = command.parameters
    disks = chosen(point, [str(name) for name in p.get("disks") or ()])
    return Task(
        ctx=ctx,
        job=command.id,
        source=repository,
        point=point,
        disks=disks,
        same=same_by(*map(repository.naming, point.namings)),
        limit=Limit(int(p.get("bandwidth") or 0), ctx.services.stop.wait),
        skip_lost=bool(p.get("skip_lost")),
        threads=several.threads_of(len(disks)),
    )


def _files(task: Task, held: Held, p: Mapping[str, Any]) -> dict[str, Any]:
    place = target_of(str(p["to"]), held, task.ctx)
    return folder.restore(task, place, str(p.get("format") or "qcow2"), dry_run=bool(p.get("dry_run")))


def _original(task: Task, held: Held, p: Mapping[str, Any]) -> dict[str, Any]:
    kept = machine_of(held.repository, task.point)
    asset = task.ctx.services.hosts.assets().get(task.point.asset)
    host = open_host(task.ctx, asset.host if asset is not None and asset.native == kept.seen.native else kept.host)
    dry_run = bool(p.get("dry_run"))
    narrow = None if p.get("whole") else functools.partial(narrowing.narrowed, task, held, host)
    done = machine.original(
        task, kept, host, narrow, stop=bool(p.get("stop")), start=bool(p.get("start")), dry_run=dry_run
    )
    if asset is not None and not dry_run:
        note(task.ctx, asset, host.machine(kept.seen.native))
    return done


def _machine(task: Task, held: Held, p: Mapping[str, Any]) -> dict[str, Any]:
    kept = machine_of(held.repository, task.point)
    host = open_host(task.ctx, str(p.get("host") or kept.host))
    nics = p.get("nics")
    changes = machine.Changes(
        name=str(p.get("name") or ""),
        cpus=p.get("cpus"),
        memory=p.get("memory"),
        bus=str(p.get("bus") or ""),
        nics=None if nics is None else tuple(_nic(nic) for nic in nics),
        storage=str(p.get("storage") or ""),
        format=str(p.get("format") or ""),
        identity=bool(p.get("keep_identity")),
    )
    notes = task.ctx.services.settings.data_dir / _NOTES
    dry_run = bool(p.get("dry_run"))
    done = machine.new(task, kept, host, changes, notes, start=bool(p.get("start")), dry_run=dry_run)
    if not dry_run:
        _discovered(task.ctx, host)
    return done


def _nic(plain: Mapping[str, Any]) -> NicSeen:
    return NicSeen(str(plain.get("mac") or ""), str(plain.get("network") or ""), str(plain.get("model") or ""))


def _discovered(ctx: Context, host: Host) -> None:
    """The catalogue hears of the new machine now. The restore stands without that."""
    try:
        discover(replace(ctx.command, parameters={"host": host.settings.host}), ctx)
    except AgentError as error:
        ctx.warn(error.problem())


def _with_hint(error: RepositoryError, held: Held, *, skip_lost: bool) -> RepositoryError:
    verify = f"`holdfast repository verify {held.name} --level full` tells what else is damaged"
    if error.code in UNREADABLE and not skip_lost:
        hint = f"`--skip-lost` restores everything but data that cannot be read, and lists that; {verify}"
        return RepositoryError(error.code, error.message, hint)
    if error.hint:
        return error
    return RepositoryError(error.code, error.message, f"{verify}, other points may be whole")
