"""Disks of a point as image files in a folder, with what belongs to the machine beside them.

    holdfast-restore.json              what is restored here, `whole` false
    vda.qcow2.part                     being written
    vda.qcow2.part.holdfast-restore    which windows of it are whole
    vda.qcow2                          written, read back and compared
    machine.json, description, …       of a machine's point: what else its record has
    holdfast-restore.json              `whole` true, and the job's result

The order, and what a death leaves: folder made → `holdfast-restore.json` → for each disk, several at once: image made →
progress file → windows → flushed → read back and compared → said in `holdfast-restore.json` → renamed → progress file removed;
then files of the machine → `whole`. Nothing has its name before it is proven, and nothing in the folder counts before `whole`.
The same restore to the same folder goes on where that ended, another is refused. Knows no hosts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository.content import MANIFEST, ChunkSource
from agents.repository.file_targets import Notes, progress_path
from agents.repository.points import Disk, Point
from agents.restore import images, marker, several, writing
from agents.restore.progress import Meter
from agents.restore.task import Task, data_bytes

MARKER: Final = marker.MARKER
_FORMAT: Final = 1
_KEPT_FREE: Final = 16 << 20


def names_of(disks: tuple[Disk, ...], format: str) -> dict[str, str]:
    """Disk → name of its file: what people call it, in letters that every file system has, none twice."""
    out: dict[str, str] = {}
    for disk in disks:
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", disk.name or disk.disk).strip(".-") or "disk"
        base = base.removesuffix(f".{format}")[:100]
        name, number = f"{base}.{format}", 2
        while name.lower() in {there.lower() for there in out.values()}:
            name, number = f"{base}-{number}.{format}", number + 1
        out[disk.disk] = name
    return out


def restore(task: Task, folder: Path, format: str, *, dry_run: bool) -> dict[str, Any]:
    """Raises `AgentError`: `format-unknown`, `qemu-missing`, `path-taken`, `space-short`, `restore-differs`; as `restore_disk`;
    `OSError` of the folder."""
    images.check(format)
    names = names_of(task.disks, format)
    what = {
        "format": _FORMAT,
        "point": task.point.point,
        "asset": task.point.asset,
        "image": format,
        "disks": {disk.disk: {"file": names[disk.disk], "size": disk.size} for disk in task.disks},
    }
    if dry_run:
        there = marker.read(folder) if folder.is_dir() else None
        _refuse(folder, there, what, task)
        _room(folder if folder.is_dir() else folder.parent, task, names, folder)
        told = [
            writing.said(d, writing.Written(d.size, differed=data_bytes(task.source, d)), file=names[d.disk])
            for d in task.disks
        ]
        return {"to": str(folder), "format": format, "disks": told, "goes_on": there is not None}
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    with marker.alone(folder):
        there = marker.read(folder)
        if there is not None and there.get("whole") and there.get("job") == task.job:
            return dict(there["result"])  # we died between the last write and the event
        _refuse(folder, there, what, task)
        done: dict[str, dict[str, Any]] = dict((there or {}).get("done") or {})
        state = {**what, "job": task.job, "whole": False, "done": done}
        marker.write(folder, state)
        failpoint("restore-folder-marked")
        _room(folder, task, names, folder)
        meter = Meter(task.ctx, f"restoring to {folder}", 2 * sum(disk.size for disk in task.disks))
        saying = threading.Lock()

        def one(disk: Disk) -> None:
            path = folder / names[disk.disk]
            if path.exists():  # nothing has this name before it is proven, and before that is said
                progress_path(_part(path)).unlink(missing_ok=True)
                meter.add(2 * disk.size, known=True)
                return
            proven = _disk(task, disk, path, format, meter)
            with saying:
                done[disk.disk] = proven
                marker.write(folder, state)
            failpoint("restore-image-proven")
            _part(path).rename(path)
            marker.flush(folder)
            failpoint("restore-image-named")
            progress_path(_part(path)).unlink(missing_ok=True)

        storage = several.Place("", f"device {folder.stat().st_dev}")
        several.each(task, meter, lambda _: storage, one)
        extra = _of_machine(task.source, task.point, folder)
        told = [done[disk.disk] for disk in task.disks]
        result = {"to": str(folder), "format": format, "disks": told, "files": extra}
        marker.write(folder, {**state, "whole": True, "result": result})
        failpoint("restore-folder-whole")
    return result


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


# --- one disk -----------------------------------------------------------------------------------------------------------


def _disk(task: Task, disk: Disk, path: Path, format: str, meter: Meter) -> dict[str, Any]:
    """Written and proven, under the name that says that it is not whole; what to say of it."""
    part = _part(path)
    notes_path = progress_path(part)
    longer = images.rounded(disk.size, format) - disk.size
    more = {"file": path.name, **({"longer": longer} if longer else {})}
    work = task.work(disk)
    with meter.part(f"writing {path.name}"):
        done = _written(task, work, part, notes_path, format, meter)
    images.forget_cached(part)
    try:
        with meter.part(f"comparing {path.name}"), images.opened(part, format, read_only=True) as image:
            done = writing.compare(work, image, done, meter)
    except AgentError as error:
        if error.code == writing.DIFFERS:  # whoever comes next begins it anew
            part.unlink()
            notes_path.unlink(missing_ok=True)
        raise
    return writing.said(disk, done, **more)


def _written(
    task: Task, work: writing.Work, part: Path, notes_path: Path, format: str, meter: Meter
) -> writing.Written:
    disk = work.disk
    if not part.exists() or Notes.head_of(notes_path) is None:  # there is nothing to go on with
        _begin(part, notes_path, format, disk.size)
    try:
        image = images.open_image(part, format, threads=work.threads)
    except AgentError as error:
        if error.code != images.UNFIT:
            raise
        task.say("restore-anew", f"{part.name} of an earlier run cannot be opened: it is written from its beginning")
        _begin(part, notes_path, format, disk.size)
        image = images.open_image(part, format, threads=work.threads)
    try:
        notes = writing.notes_of(notes_path, task.point.point, disk, image=format)
        try:
            return writing.fill(work, image, notes, meter)
        finally:
            notes.close()
    finally:
        image.close()


def _begin(part: Path, notes_path: Path, format: str, size: int) -> None:
    notes_path.unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    images.make(part, format, size)
    failpoint("restore-image-made")


# --- the folder ---------------------------------------------------------------------------------------------------------


def _refuse(folder: Path, there: dict[str, Any] | None, what: dict[str, Any], task: Task) -> None:
    """Raises `AgentError` (`path-taken`) unless the folder is empty, or not there, or is of this restore and not whole."""
    if there is None:
        if os.path.lexists(folder) and not folder.is_dir():
            raise AgentError("path-taken", f"{folder} is there, and no folder", "name a folder")
        found = sorted(os.listdir(folder))[:3] if folder.is_dir() else []
        # A death between two steps of the very first one leaves this.
        if [name for name in found if name != f"{MARKER}.new"]:
            raise AgentError(
                "path-taken",
                f"{folder} is not empty: {', '.join(found)} are in it",
                "name an empty folder, or one that is not there yet",
            )
    elif there.get("whole"):
        raise AgentError("path-taken", f"{folder} holds what point {there.get('point')} was", "name another folder")
    elif {name: there.get(name) for name in what} != what:
        raise AgentError(
            "path-taken",
            f"{folder} is of another restore, which did not end: point {there.get('point')} as {there.get('image')}",
            f"the same restore again goes on with it; or empty the folder; or name another for point {task.point.point}",
        )


def _room(at: Path, task: Task, names: Mapping[str, str], folder: Path) -> None:
    needed = 0
    for disk in task.disks:
        there = 0
        path = folder / names[disk.disk]
        for place in (path, _part(path)):
            with contextlib.suppress(FileNotFoundError):
                there += place.stat().st_blocks * 512
        needed += max(0, data_bytes(task.source, disk) - there)
    free = shutil.disk_usage(at).free
    if needed + _KEPT_FREE > free:
        raise AgentError(
            "space-short",
            f"{at} has {free:,} bytes free, and up to {needed:,} are needed",
            "give it room, name another folder, or restore some of the disks (`--disk`)",
        )


def _of_machine(source: ChunkSource, point: Point, folder: Path) -> list[str]:
    """What else the point's record has: a machine's description, its companions."""
    files = {name: point.configuration[name] for name in sorted(point.configuration)}
    for name, pieces in sorted(point.attached.items()):
        files[name] = b"".join(source.get(piece, MANIFEST) for piece in pieces)
    written = []
    for name, data in files.items():
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "file"
        marker.replace(folder, plain, data)
        written.append(plain)
    return written
