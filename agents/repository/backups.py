"""The commands that take bytes from paths: a directory or a disk image into a repository; and what differs between two points.
`agents.restore.paths` brings them back.

    backup.make     session.opened            a session that the node's next start closes
                    chunks, nodes, runs       garbage of an epoch that is over
                    the point's record        one that does not count: the ledger has no `point.sealed`
                    point.sealed              done, also when the command is resumed: the session says whose it was
                    session.closed

Paths are those of this machine, read and written as the user this process runs as. The data directory, where the site's secrets
are, and the repository itself are never read or written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agents.commands import Command, Context
from agents.errors import AgentError
from agents.repository import directories, files, mounts, points, tree
from agents.repository.collection import absent_for
from agents.repository.disk_ingest import FileSource
from agents.repository.errors import RepositoryError
from agents.repository.extents import CHUNK, ZERO
from agents.repository.handlers import held_of, size_of
from agents.repository.ingest import Ingest, Sealed
from agents.repository.ledger import Ledger, PointState
from agents.repository.node import Held, closing
from agents.repository.points import Disk, Point, Tree
from agents.repository.sessions import Session
from streams.events import Problem
from streams.ids import now_us

DISK: Final = "0"
_POLICY: Final = "policy/"  # what asks for a policy's tasks (`agents.scheduling`); no asset is called so
_PIECE_BYTES: Final = 64 << 20  # of an image, between two looks at whether to go on
_SHOWN_TROUBLES: Final = 20
_IN_POINT: Final = "it is marked in the point"
_HINTS: Final = {
    "unreadable": _IN_POINT,
    "changed": _IN_POINT,
    "vanished": _IN_POINT,
    "too-deep": _IN_POINT,
    "lost": "another point may have it",
    "owner": "restore as root to have that",
    "not-permitted": "restore as root to have that",
    "metadata": "the file system that it is on keeps it otherwise, or somebody has changed it",
}
_CHANGES: Final = {"added": "added", "removed": "removed"}


class Meter:
    """Progress that several threads make, as the job tells it."""

    def __init__(self, ctx: Context, what: str, total: int = 0) -> None:
        self._ctx = ctx
        self._what = what
        self._total = total
        self._lock = threading.Lock()
        self.done = 0

    def add(self, size: int) -> None:
        with self._lock:
            self.done += size
            self._ctx.progress(self._what, self.done, self._total, "bytes")


# --- backup -----------------------------------------------------------------------------------------------------------


def make(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `backup.make`."""
    p = command.parameters
    held, asset = held_of(command, ctx), str(p["asset"])
    path = path_of(str(p["path"]), held, ctx)
    ledger = held.sessions.ledger()
    done = _done(ledger, command.id)
    if done is None:
        previous = newest(ledger.standing(), asset, "files" if p["kind"] == "files" else "disks")
        _one_thing(ctx, asset, path, previous, named=bool(p.get("named", True)))
        take = take_files if p["kind"] == "files" else take_image
        with backup_session(held, command, asset, previous) as session:
            ingest = ingest_of(held, session, asset, previous, ctx)
            with ingest:
                take(ingest, held, path, asset, previous, ctx)
            session.close("done", points=[ingest.point], figures=ingest.figures.as_counts())
        done = held.sessions.ledger().points[ingest.point]
    figures = done.sealed.figures
    return {
        "point": done.sealed.point,
        "asset": asset,
        "size": size_of(done.sealed),
        "read": figures.get("read_bytes", 0),
        "stored": figures.get("stored_bytes", 0),
        "continues": done.sealed.continues,
    }


def _one_thing(ctx: Context, asset: str, path: Path, previous: PointState | None, *, named: bool) -> None:
    """An asset is one thing: retention lets a newer point of it stand for an older one, and its status is of all its points. So
    what has a machine's name is refused, and so is a path whose own name (nobody having given one) is another path's already."""
    machine = ctx.services.hosts.assets().get(asset)
    if machine is not None and machine.state != "gone":
        raise AgentError(
            "asset-other",
            f"{asset} is a machine of {machine.host}",
            f"give the points of {path} another name: --asset NAME",
        )
    if not named and previous is not None and previous.sealed.asset_name != str(path):
        raise AgentError(
            "asset-other",
            f"the points of {asset} are of {previous.sealed.asset_name}",
            f"give those of {path} a name of their own, or this one if it is the same: --asset NAME",
        )


def _done(ledger: Ledger, job: str) -> PointState | None:
    """The point that an earlier run of a command sealed."""
    mine = {name for name, session in list(ledger.sessions.items()) if session.opened.job == job}
    return next((state for state in list(ledger.points.values()) if state.sealed.session in mine), None)


def newest(standing: Mapping[str, PointState], asset: str, kind: str) -> PointState | None:
    """The point that a backup of the asset can continue."""
    mine = [s for s in standing.values() if (s.sealed.asset, s.sealed.kind) == (asset, kind)]
    return max(mine, key=lambda s: s.ordinal, default=None)


@contextlib.contextmanager
def backup_session(held: Held, command: Command, asset: str, previous: PointState | None) -> Iterator[Session]:
    """A session that is closed whatever happens; failed, unless its work closed it."""
    pins = [previous.sealed.point] if previous is not None else []
    session = held.sessions.open("backup", by=command.requester, asset=asset, pins=pins, job=command.id)
    with closing(session):
        yield session


def ingest_of(held: Held, session: Session, asset: str, previous: PointState | None, ctx: Context) -> Ingest:
    return Ingest(
        held.repository,
        session,
        scope=scope_of(held, asset, previous, ctx.command.requester),
        absent=absent_for(session),
        slug=held.name,
        asset=asset,
        say=ctx.services.publisher.publish,
    )


def scope_of(held: Held, asset: str, previous: PointState | None, requester: str) -> str:
    """Within what a backup's chunks are shared. Per job: within what one policy backs up. What a person asks for in between
    goes on in the scope of the policy that made the point before, or else is a job of its own."""
    match held.defined.options.get("dedupe", "repository"):
        case "asset":
            return asset
        case "job":
            if requester.startswith(_POLICY):
                return requester
            try:
                known = held.repository.point(previous.sealed.point).scopes if previous is not None else ()
            except RepositoryError:
                known = ()
            return known[-1] if known and known[-1].startswith(_POLICY) else asset
        case _:
            return ""


def take_image(ingest: Ingest, held: Held, path: Path, asset: str, previous: PointState | None, ctx: Context) -> Sealed:
    """A raw file or a block device. Nothing says what changed, so all that is no hole is read and compared."""
    try:
        # not to wait for who writes to a pipe: it would be an agent's thread for ever, taken up again after every restart
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise AgentError(
            "path-unreadable", f"{path}: {error.strerror}", "give the agent's user the right to read it"
        ) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            hint = f"`holdfast backup files {path}`" if stat.S_ISDIR(mode) else "name an image or a device"
            raise AgentError("path-unfit", f"{path} is neither a file nor a block device", hint)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        before = _disk_before(held, previous)
        block_size = before.block_size if before else int(held.defined.options.get("block_size", "0"))
        if previous is not None and is_damaged(previous):
            before = None
        disk = ingest.disk(DISK, size=size, name=path.name, block_size=block_size, continues=before)
        meter = Meter(ctx, f"reading {path}", size)
        extents = _checked(
            _extents(descriptor, size, disk.block_size, disk.blocks), ingest, meter, disk.block_size, ctx
        )
        disk.feed(FileSource(descriptor), extents, compare=before is not None)
        return ingest.seal(draft(asset, str(path), "disks", previous, disks=(disk.finish(),)))
    finally:
        os.close(descriptor)


def is_damaged(point: PointState) -> bool:
    """Verify found that it does not restore whole. What continues it must take nothing from it: content that is damaged there
    may be whole on disk still, and what describes it may not be readable."""
    said = {name: mark.number for name, mark in point.marks.items()}
    return said.get("damaged", 0) > said.get("verified", 0)


def _disk_before(held: Held, previous: PointState | None) -> Disk | None:
    if previous is None:
        return None
    found = held.repository.point(previous.sealed.point).disks
    return found[0] if len(found) == 1 else None


def draft(
    asset: str,
    name: str,
    kind: Any,
    previous: PointState | None,
    *,
    disks: tuple[Disk, ...] = (),
    trees: tuple[Tree, ...] = (),
    created_us: int | None = None,
    facts: Mapping[str, str] | None = None,
) -> Point:
    """A point but for what sealing it adds."""
    return Point(
        point="",
        asset=asset,
        asset_name=name,
        kind=kind,
        created_us=now_us() if created_us is None else created_us,
        session="",
        epoch=0,
        node="",
        journal=points.JournalPlace(0, ""),
        continues=previous.sealed.point if previous is not None else "",
        previous_record=previous.sealed.record if previous is not None else b"",
        disks=disks,
        trees=trees,
        facts=facts or {},
    )


def _extents(descriptor: int, size: int, block: int, blocks: int) -> Iterator[tuple[int, int, int]]:
    """Blocks as (first, count, tag): what is a hole from end to end is zero and is not read."""
    at = 0  # block
    while at < blocks:
        try:
            start = os.lseek(descriptor, at * block, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a block device knows no holes, and says so: all of it is data
                yield at, blocks - at, CHUNK
                return
            start = size  # only a hole is left
        first = min(start // block, blocks) if start < size else blocks
        if first > at:
            yield at, first - at, ZERO
            at = first
            continue
        end = min(-(-os.lseek(descriptor, start, os.SEEK_HOLE) // block), blocks) if start < size else blocks
        yield at, max(1, end - at), CHUNK
        at = max(at + 1, end)


def _checked(
    extents: Iterator[tuple[int, int, int]], ingest: Ingest, meter: Meter, block: int, ctx: Context
) -> Iterator[tuple[int, int, int]]:
    """The same in pieces; between two of them it is looked whether to go on."""
    step = max(1, _PIECE_BYTES // block)
    for first, count, tag in extents:
        for at in range(first, first + count, step if tag == CHUNK else count):
            ctx.check()
            ingest.session.check()
            some = min(step, first + count - at) if tag == CHUNK else count
            yield at, some, tag
            meter.add(some * block)


def take_files(ingest: Ingest, held: Held, path: Path, asset: str, previous: PointState | None, ctx: Context) -> Sealed:
    """A directory. What has not changed since the asset's last point is not read, unless that is damaged."""
    if not path.is_dir():
        hint = f"`holdfast backup image {path}` if it is a disk; else name the directory that it is in, {path.parent}"
        raise AgentError("path-unfit", f"{path} is no directory", hint)
    whole = previous is not None and not is_damaged(previous)
    before = held.repository.point(previous.sealed.point).trees if previous is not None and whole else ()
    meter = Meter(ctx, f"reading {path}")
    left_out = _inodes(_own_places(held, ctx))

    def progress(size: int) -> None:
        ctx.check()
        meter.add(size)

    taken = files.snapshot(
        path,
        ingest,
        source=held.repository,
        previous=before[0].root if len(before) == 1 else None,
        excluded=lambda _, found: (found.st_dev, found.st_ino) in left_out,
        progress=progress,
    )
    ctx.warn(*troubles_of(taken.troubles))
    ingest.session.check()
    ingest.figures.read_bytes += taken.counts.get("read_bytes", 0)
    kept = Tree(
        name=path.name,
        root=taken.root,
        size=taken.size,
        files=taken.counts.get("files", 0),
        counts=taken.counts,
    )
    return ingest.seal(draft(asset, str(path), "files", previous, trees=(kept,)))


def troubles_of(found: Sequence[files.Trouble]) -> tuple[Problem, ...]:
    """Of files, as a job warns of them."""
    said = [
        Problem(f"file-{t.code}", f"{os.fsdecode(t.path or b'.')!r}: {t.why}", _HINTS.get(t.code, ""))
        for t in found[:_SHOWN_TROUBLES]
    ]
    if len(found) > len(said):
        said.append(Problem("files-unread", f"and {len(found) - len(said):,} more"))
    return tuple(said)


# --- paths ------------------------------------------------------------------------------------------------------------


def _own_places(held: Held, ctx: Context) -> list[Path]:
    """Where nothing is backed up from and nothing restored to: the site's data, the repository itself."""
    own = [ctx.services.settings.data_dir.resolve()]
    defined = held.defined
    return [*own, Path(defined.location).resolve()] if defined.store == "local" else own


def _inodes(places: list[Path]) -> frozenset[tuple[int, int]]:
    found = [place.stat() for place in places if place.exists()]
    return frozenset((s.st_dev, s.st_ino) for s in found)


def path_of(text: str, held: Held, ctx: Context) -> Path:
    """The path itself, links followed. Raises `AgentError` (`path-own`, `path-missing`)."""
    path = Path(text).resolve()
    for own in _own_places(held, ctx):
        if path.is_relative_to(own):
            raise AgentError("path-own", f"{path} is in {own}, which is Holdfast's own", "name a path elsewhere")
    if not path.exists():
        raise AgentError(
            "path-missing", f"there is no {path} on this machine", "paths are those of the agent's machine"
        )
    if (kind := mounts.type_of(path)) in mounts.PRETENDED:
        raise AgentError(
            "path-unfit", f"{path} is no data: the kernel makes it up ({kind})", "name a folder, a file or a device"
        )
    return path


def target_of(text: str, held: Held, ctx: Context) -> Path:
    """Where something is restored to. Raises `AgentError` (`path-own`, `path-missing`)."""
    path = Path(text)
    real = path.parent.resolve() / path.name
    if not real.parent.is_dir():
        raise AgentError(
            "path-missing", f"there is no {real.parent} on this machine", "make it, or name another target"
        )
    for own in [*_own_places(held, ctx), *ctx.services.node.folders()]:
        if real.resolve().is_relative_to(own) or own.is_relative_to(real.resolve()):
            raise AgentError("path-own", f"{real} is Holdfast's own", "name a path elsewhere")
    return real


# --- what differs -----------------------------------------------------------------------------------------------------


def diff(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `point.diff`: from `point` to `with`."""
    p = command.parameters
    held = held_of(command, ctx)
    names, limit = (str(p["point"]), str(p["with"])), int(p.get("limit", 200))
    session = held.sessions.open("restore", by=command.requester, pins=names, job=command.id)
    with closing(session):
        old, new = (held.repository.point(name) for name in names)
        found = _differences(held, old, new, limit, ctx.check)
        session.close("done", points=names)
    return found


def _differences(held: Held, old: Point, new: Point, limit: int, check: Callable[[], None]) -> dict[str, Any]:
    changes: list[dict[str, str]] = []
    disks: list[dict[str, Any]] = []
    left_out = 0
    for before, after in zip(old.trees, new.trees, strict=False):
        for path, change, _, _ in directories.diff(held.repository, before.root, after.root):
            check()
            if len(changes) < limit:
                shown = os.fsdecode(path or b".").encode("utf-8", "replace").decode()
                changes.append({"path": shown, "change": _CHANGES.get(change, "changed")})
            else:
                left_out += 1
    known = {disk.disk: disk for disk in old.disks}
    for disk in new.disks:
        was = known.get(disk.disk)
        first: list[list[int]] = []
        ranges = size = 0
        for run in tree.diff(held.repository, was.root if was else tree.EMPTY, disk.root):
            check()
            for extent in run.extents():
                at = extent.first * disk.block_size
                length = min(extent.blocks * disk.block_size, disk.size - at)
                if length <= 0:  # the disk was larger: what is behind its end now is no difference in it
                    continue
                if first and len(first) <= limit and sum(first[-1]) == at:
                    first[-1][1] += length
                else:
                    ranges += 1
                    if len(first) < limit:
                        first.append([at, length])
                size += length
        if size:
            disks.append({"disk": disk.name, "bytes": size, "ranges": ranges, "first": first})
            left_out += max(0, ranges - len(first))
    return {"files": changes, "disks": disks, "left_out": left_out}
