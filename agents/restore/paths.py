"""The command `point.restore`: what a point holds to a path of this machine, a disk to a file or a device, files to a directory.

    session.opened (restore, pins the point) → what `agents.repository.restoring`, `agents.restore.directory` say → session.closed
    → job finished

Both go on where a run before ended, and both are read back and compared. Paths are those of this machine, written as the user
this process runs as.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agents.commands import Command, Context, Interrupted
from agents.errors import AgentError
from agents.repository import proven
from agents.repository.backups import Meter, target_of, troubles_of
from agents.repository.comparing import same_by
from agents.repository.errors import RepositoryError
from agents.repository.file_targets import progress_path, restore_file
from agents.repository.handlers import held_of
from agents.repository.node import Held, closing
from agents.repository.points import Disk, Point
from agents.repository.reader import UNREADABLE, disk_of
from agents.repository.restoring import Restored, Stopped
from agents.restore import directory, images, progress, writing
from agents.restore.progress import Limit
from streams.publish import rfc3339

_SHOWN_LOST: Final = 200


def restore(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.restore`."""
    p = command.parameters
    held, name = held_of(command, ctx), str(p["point"])
    target = target_of(str(p["target"]), held, ctx)
    session = held.sessions.open("restore", by=command.requester, pins=[name], job=command.id)
    with closing(session):
        point = held.repository.point(name)
        put = _disk if point.kind == "disks" else _files
        try:
            written, lost, more = put(held, point, target, command, ctx)
        except RepositoryError as error:
            if error.code in UNREADABLE and not p.get("skip_lost"):
                hint = (
                    f"{target} is not whole; `--skip-lost` restores everything but data that cannot be read, and lists that;"
                    f" `holdfast repository verify {held.name} --level full` tells what else is damaged"
                )
                raise RepositoryError(error.code, error.message, hint) from error
            if error.hint:
                raise
            hint = f"{target} is not whole; `holdfast repository verify {held.name} --level full` tells what else is damaged"
            raise RepositoryError(error.code, error.message, f"{hint}, other points may be whole") from error
        except OSError as error:  # what the repository meets is a `StoreError`: this is the target's
            raise AgentError(
                "path-unwritable",
                f"{error.filename or target}: {error.strerror or error}",
                "give it room, the right to write there, or another target, and restore again",
            ) from error
        one_is_all = point.kind != "disks" or (len(point.disks) == 1 and not point.attached)
        if one_is_all and not p.get("path") and not lost and not more.get("kept"):
            proven.by_restore(held, name, ctx)
        session.close("done", points=[name], figures={"written_bytes": written})
    return {
        "target": str(target),
        "asset": point.asset,
        "created": rfc3339(point.created_us),
        "bytes": written,
        **more,
        "lost": lost[:_SHOWN_LOST],
        "lost_bytes": sum(each["length"] for each in lost),
        "left_out": max(0, len(lost) - _SHOWN_LOST),
    }


def _lost(path: str, offset: int, length: int) -> dict[str, Any]:
    """A range of a file, or of a disk (no path), that is zeros now. The path is for people, as in `point.diff`."""
    return {"path": path, "offset": offset, "length": length}


_Done = tuple[int, list[dict[str, Any]], dict[str, int]]  # bytes written, what is lost, more for the result


def _disk(held: Held, point: Point, target: Path, command: Command, ctx: Context) -> _Done:
    disk = _one_disk(point, str(command.parameters.get("disk", "")))
    skip_lost = bool(command.parameters.get("skip_lost"))
    meter = Meter(ctx, f"writing {target}", disk.size)
    compared = 0

    def prove(done: Restored) -> None:
        nonlocal compared
        images.forget_cached(target)
        with contextlib.closing(images.RawRead(target)) as there:
            there.size = min(there.size, disk.size)  # what is behind it on a larger device was nobody's to write
            same = same_by(*map(held.repository.naming, point.namings))
            work = writing.Work(held.repository, disk, same, Limit(0, bool), skip_lost)
            so_far = writing.Written(disk.size, done.written, lost=done.lost)
            reading = progress.Meter(ctx, f"comparing {target}", disk.size)
            compared = writing.compare(work, there, so_far, reading).compared

    try:
        done = restore_file(
            held.repository,
            disk,
            target,
            point=point.point,
            overwrite=bool(command.parameters.get("overwrite")),
            skip_lost=skip_lost,
            progress=meter.add,
            stop=ctx.ending,
            prove=prove,
        )
    except Stopped:
        ctx.check()
        raise Interrupted from None
    except AgentError as error:
        if error.code == writing.DIFFERS:  # nothing that is noted as whole counts
            progress_path(target).unlink(missing_ok=True)
        raise
    more = {"kept": done.kept, "compared": compared}
    return done.written, [_lost("", offset, length) for offset, length in done.lost], more


def _one_disk(point: Point, wanted: str) -> Disk:
    if not wanted and len(point.disks) == 1:
        return point.disks[0]
    return disk_of(point, wanted)


def _files(held: Held, point: Point, target: Path, command: Command, ctx: Context) -> _Done:
    wanted = files_of(held, point, command, ctx)
    done = directory.restore(wanted, target)
    ctx.warn(*troubles_of(done.troubles))
    more = {
        "kept": done.kept,
        "compared": done.compared,
        "files": done.looked.files,
        "folders": done.looked.folders,
        "others": done.looked.others,
        "metadata_differs": done.unlike,
    }
    lost = [_lost(directory.shown(path), at, size) for path, at, size in done.lost]
    return done.size - done.kept, lost, more


def files_of(held: Held, point: Point, command: Command, ctx: Context) -> directory.Directory:
    """What a command wants of a point of files."""
    p = command.parameters
    return directory.Directory(
        ctx=ctx,
        source=held.repository,
        same=same_by(*map(held.repository.naming, point.namings)),
        point=point,
        inside=os.fsencode(str(p.get("path") or "").strip("/")),
        skip_lost=bool(p.get("skip_lost")),
        resumed=command.resumed,
    )
