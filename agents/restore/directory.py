"""Files of a point as a directory (or as one file), proven before they have their name.

    .NAME.holdfast-restore/     ours alone: what is restored (`holdfast-restore.json`), and files that are not whole (`parts`)
    .NAME.holdfast-part         what has been brought back so far
    NAME                        all of it, read back and compared

The order, and what a death leaves: work folder → `holdfast-restore.json` → the tree, each file renamed out of `parts` when it
is whole → file system flushed → all read back and compared → renamed → work folder removed. The same restore to the same
target, by any job, goes on where that ended; another is refused. It keeps a file that is there already if what is read of it
has the names that the point's tree has, whatever its name, size and times are; all else of it is given again. If a job is
taken up again and the target has its name already, all of that is compared, and then it is done. Knows no hosts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from agents.commands import Context
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository import comparing_trees, unpacking
from agents.repository import directories as d
from agents.repository.comparing import Same
from agents.repository.comparing_trees import OF_CONTENT, Difference, Looked, What
from agents.repository.content import ChunkSource
from agents.repository.files import Trouble
from agents.repository.points import Point
from agents.restore import marker
from agents.restore.progress import Meter
from agents.restore.writing import DIFFERS

_FORMAT: Final = 1
_PARTS: Final = "parts"
_LONGEST: Final = 200  # bytes of a target's name that stand in ours
_SHOWN: Final = 5
_SHOWN_DIFFERENCES: Final = 200
# What a restore has said already of an entry, by the code of its trouble.
_SAID: Final[dict[str, What]] = {
    "owner": "owner",
    "attribute": "attributes",
    "unlinked": "links",
    "not-permitted": "missing",
}


@dataclass(frozen=True, slots=True)
class Directory:
    """What is wanted of a point of files: what is at the path `inside`, empty for all. `resumed`: an earlier run of the job may
    have done it."""

    ctx: Context
    source: ChunkSource
    same: Same
    point: Point
    inside: bytes
    skip_lost: bool = False
    resumed: bool = False

    @property
    def root(self) -> bytes:
        return self.point.trees[0].root

    @property
    def size(self) -> int:
        """Bytes of its files; 0: it is not known."""
        return 0 if self.inside else self.point.trees[0].size


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of it. `size`: bytes of files; `kept`: of those that an earlier run had made; `looked`: at what was looked
    afterwards; `unlike`: entries whose owner, mode, times, attributes or links are not those of the point, each of them told as a
    trouble; `lost` as in `Unpacked`."""

    size: int
    kept: int
    looked: Looked
    unlike: int
    troubles: tuple[Trouble, ...] = ()
    lost: tuple[tuple[bytes, int, int], ...] = ()

    @property
    def compared(self) -> int:
        """Bytes that were read back and found to be the point's."""
        return self.looked.size - sum(length for _, _, length in self.lost)


def restore(wanted: Directory, target: Path) -> Restored:
    """Raises `AgentError`: `path-taken`, `path-busy`, `restore-differs`; as `unpacking.unpack`."""
    entry = d.find(wanted.source, wanted.root, wanted.inside)
    work, part = _places(target)
    if os.path.lexists(target) and not _is_empty(target):
        return _there_already(wanted, entry, target, work)
    if target.is_dir() and entry.type != d.FOLDER:
        raise AgentError(
            "path-taken", f"{target} is a directory, and what is restored is none", f"name a file: {target}/NAME"
        )
    what = {
        "format": _FORMAT,
        "point": wanted.point.point,
        "asset": wanted.point.asset,
        "root": wanted.root.hex(),
        "path": os.fsdecode(wanted.inside),
    }
    goes_on = _begin(work, part, what, target)
    with marker.alone(work):
        if not goes_on:
            marker.write(work, what)
        failpoint("restore-directory-marked")
        parts = work / _PARTS
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(mode=0o700)
        goes_on = os.path.lexists(part)
        done = unpacking.unpack(
            wanted.source,
            wanted.root,
            part,
            path=wanted.inside,
            skip_lost=wanted.skip_lost,
            progress=Meter(wanted.ctx, f"writing {target}", wanted.size).add,
            parts=parts,
            going_on=wanted.same if goes_on else None,
        )
        failpoint("restore-directory-filled")
        restored = _proven(wanted, entry, part, done, target)
        failpoint("restore-directory-proven")
        part.rename(target)
        marker.flush(target.parent)
        failpoint("restore-directory-named")
        shutil.rmtree(work)
    failpoint("restore-directory-forgotten")
    return restored


def _places(target: Path) -> tuple[Path, Path]:
    """The work folder, and where the tree is until it is whole: beside the target, of its file system."""
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        name = os.fsdecode(os.fsencode(name)[: _LONGEST - 9]) + "-" + blake3(os.fsencode(name)).hexdigest()[:8]
    return target.with_name(f".{name}.holdfast-restore"), target.with_name(f".{name}.holdfast-part")


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not target.is_symlink() and not any(target.iterdir())


def _begin(work: Path, part: Path, what: dict[str, Any], target: Path) -> bool:
    """Make the work folder; whether there is one of this restore. Raises `AgentError` (`path-taken`)."""
    try:
        work.mkdir(mode=0o700)
        there = None
    except FileExistsError:
        there = marker.read(work)
    if there == what:
        return True
    if there is not None or os.path.lexists(part):
        of = f"point {there['point']}" if there and "point" in there else "nobody knows what"
        raise AgentError(
            "path-taken",
            f"{work} is of another restore to {target}, which did not end: {of}",
            f"the same restore again goes on with it; or remove {work} and {part}; or name another target",
        )
    return False


def _there_already(wanted: Directory, entry: d.Entry, target: Path, work: Path) -> Restored:
    """Of a job that died when it had given the target its name: it is whole if it is what the point says."""
    if wanted.resumed:
        looked = Looked()
        found = list(_differences(wanted, entry, target, looked, {}))
        if not any(difference.what in OF_CONTENT for difference in found):
            shutil.rmtree(work, ignore_errors=True)
            told = tuple(_trouble(difference) for difference in found)
            return Restored(looked.size, looked.size, looked, len({trouble.path for trouble in told}), told)
    raise AgentError(
        "path-taken", f"{target} is there, and no empty directory", "name a directory that is, or that is not there yet"
    )


def _proven(wanted: Directory, entry: d.Entry, part: Path, done: unpacking.Unpacked, target: Path) -> Restored:
    """Read all of it back. Raises `AgentError` (`restore-differs`)."""
    said = {(trouble.path, _SAID[trouble.code]) for trouble in done.troubles if trouble.code in _SAID}
    lost: dict[bytes, set[tuple[int, int]]] = {}
    for path, offset, length in done.lost:
        lost.setdefault(path if entry.type == d.FOLDER else b"", set()).add((offset, length))
    looked = Looked()
    wrong: list[Difference] = []
    unlike: set[bytes] = set()
    troubles = list(done.troubles)
    for found in _differences(wanted, entry, part, looked, lost):
        known = (found.path, found.what) in said
        if found.what not in OF_CONTENT:
            unlike.add(found.path)
            if not known:
                troubles.append(_trouble(found))
        elif not known:
            wrong.append(found)
            if len(wrong) >= _SHOWN:
                break
    if wrong:
        told = "; ".join(f"{shown(each.path)}: {each.why}" for each in wrong)
        raise AgentError(
            DIFFERS,
            f"{target} does not read as what was written to it: {told}",
            "what it lies on loses writes, or somebody else writes to it: look into that; the same restore again makes anew"
            f" what differs of {part}, and takes nothing away that the point has not",
        )
    return Restored(done.size, done.kept, looked, len(unlike), tuple(troubles), tuple(sorted(done.lost)))


def _differences(
    wanted: Directory, entry: d.Entry, target: Path, looked: Looked, lost: dict[bytes, set[tuple[int, int]]]
) -> Iterator[Difference]:
    meter = Meter(wanted.ctx, f"comparing {target}", wanted.size)
    passed_over: dict[bytes, Collection[tuple[int, int]]] | None = {**lost} if wanted.skip_lost else None
    return comparing_trees.differences(
        target, wanted.source, entry, wanted.same, lost=passed_over, looked=looked, progress=meter.add
    )


def _trouble(difference: Difference) -> Trouble:
    return Trouble(difference.path, "metadata", difference.why)


def shown(path: bytes) -> str:
    """A path below the directory, for people."""
    return os.fsdecode(path or b".").encode("utf-8", "replace").decode()


def compare(wanted: Directory, target: Path) -> dict[str, Any]:
    """What a directory, or a file, that is there has in common with the point: as the job tells it. Changes nothing."""
    entry = d.find(wanted.source, wanted.root, wanted.inside)
    looked = Looked()
    told: list[dict[str, str]] = []
    paths: set[bytes] = set()
    content = metadata = 0
    for found in _differences(wanted, entry, target, looked, {}):
        content += found.what in OF_CONTENT or found.what == "unreadable"
        metadata += found.what not in OF_CONTENT and found.what != "unreadable"
        if len(paths) < _SHOWN_DIFFERENCES or found.path in paths:
            paths.add(found.path)
            told.append({"path": shown(found.path), "what": found.what, "why": found.why})
    return {
        "target": str(target),
        "disk": "",
        "compared": looked.size,
        "files": looked.files,
        "folders": looked.folders,
        "others": looked.others,
        "differs": content + metadata,
        "content": content,
        "metadata": metadata,
        "entries": told,
        "left_out": content + metadata - len(told),
    }
