"""What a scratch copy is on disk, and what a death leaves of one. Knows no server.

<data_dir>/copies/.making-<name>/    being made: worth nothing, removed by whoever finds it
<data_dir>/copies/<name>/            whole: everything in it was flushed, `copy.json` last, before the folder was renamed
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.baseline.manifest import flush_folder
from agents.errors import AgentError

FORMAT = "holdfast scratch copy 1"
FACTS = "copy.json"
_PARTIAL = ".making-"


@dataclass(frozen=True, slots=True)
class Copy:
    """A whole scratch copy. `kind` is its source's; `program` the server that made it, `variables` what it was given."""

    name: str
    source: str
    kind: str
    lineage: str
    ordinal: int
    position: str
    tables: tuple[str, ...]
    port: int
    expires_us: int | None
    job: str
    program: str
    variables: Mapping[str, str]
    format: str = FORMAT


def parent(data_dir: Path) -> Path:
    return data_dir / "copies"


def making(data_dir: Path, name: str) -> Path:
    """Where a copy is made."""
    return parent(data_dir) / f"{_PARTIAL}{name}"


def begin(data_dir: Path, name: str) -> Path:
    """An empty folder to make a copy in; what a death left of an earlier attempt is removed."""
    abandon(data_dir, name)
    folder = making(data_dir, name)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def abandon(data_dir: Path, name: str) -> None:
    """Remove what was begun under `name`."""
    shutil.rmtree(making(data_dir, name), ignore_errors=True)


def complete(data_dir: Path, copy: Copy) -> Path:
    """Say that what was made is whole; returns where it is now. Its server must have ended in order; it has flushed nothing."""
    folder = making(data_dir, copy.name)
    _flush(folder)
    with (folder / FACTS).open("wb") as out:
        out.write(json.dumps(dataclasses.asdict(copy), indent=1, sort_keys=True).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
    flush_folder(folder)
    whole = parent(data_dir) / copy.name
    folder.rename(whole)
    flush_folder(whole.parent)
    return whole


def _flush(folder: Path) -> None:
    """Everything below `folder` to disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            path = Path(place) / name
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        flush_folder(Path(place))


def read(folder: Path) -> Copy:
    """Raises `AgentError` (`scratch-damaged`)."""
    try:
        raw = json.loads((folder / FACTS).read_bytes())
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}")
        return Copy(**raw | {"tables": tuple(raw["tables"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AgentError("scratch-damaged", f"scratch copy {folder.name} cannot be read: {error}", "drop it") from error


def whole(data_dir: Path) -> list[Path]:
    """Folders of whole copies."""
    there = parent(data_dir)
    return sorted(e for e in there.iterdir() if not e.name.startswith(".")) if there.is_dir() else []


def remove(folder: Path) -> None:
    """And if we die here? It is renamed first, so that what is left of it is no copy any more."""
    gone = folder.parent / f"{_PARTIAL}{folder.name}"
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        flush_folder(folder.parent)
        shutil.rmtree(gone, ignore_errors=True)


def clean(data_dir: Path) -> None:
    """Remove everything that is half made or half removed. Nobody must be at work."""
    there = parent(data_dir)
    for entry in there.iterdir() if there.is_dir() else ():
        if entry.name.startswith(_PARTIAL):
            shutil.rmtree(entry, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes that it takes on disk."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total
