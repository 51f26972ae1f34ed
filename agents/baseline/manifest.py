"""What a baseline is: facts of its manifest, reading and checking it, and where baselines lie. Knows no database."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zstandard
from blake3 import blake3

from agents.baseline.rows import HashedFile
from agents.errors import AgentError
from streams.events import Problem, TableDefinition

FORMAT = "holdfast baseline 1"
MANIFEST = "manifest.json"
DEFINITIONS = "definitions.jsonl.zst"
OBJECTS = "objects.jsonl.zst"
_PARTIAL = ".new-"

# What is selected of an ENUM or SET in place of its text: its number, to be written back as one.
MEMBERS_AS_NUMBER: Final = "CAST({} AS UNSIGNED)"


@dataclass(frozen=True, slots=True)
class TableFile:
    """One table. `file` is relative, empty when its rows are not kept; `raw_bytes` before compression.

    `consistent`: its rows are those at the baseline's position (transactional tables); else they are of some moments
    while it was made. `types` and `expressions`: of each of `columns` its declared type and what was selected for it.
    """

    schema: str
    table: str
    kind: str
    engine: str
    columns: tuple[str, ...]
    types: tuple[str, ...]
    expressions: tuple[str, ...]
    file: str
    bytes: int
    raw_bytes: int
    rows: int
    blake3: str
    consistent: bool
    auto_increment: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A baseline. `lineage` is the one that starts from it; `job` the command it was made for.

    `position` is native (MariaDB: GTID set), `file` and `offset` the same as a binlog coordinate of `server_id`.
    `variables`: server settings that decide how definitions are read. `digests`: BLAKE3 of definitions and objects.
    """

    baseline: str
    source: str
    kind: str
    lineage: str
    job: str
    position: str
    file: str
    offset: int
    server_id: int
    server_version: str
    started_us: int
    finished_us: int
    schema_version: str
    variables: Mapping[str, str]
    digests: Mapping[str, str]
    tables: tuple[TableFile, ...]
    warnings: tuple[Problem, ...] = ()
    format: str = field(default=FORMAT)

    @property
    def rows(self) -> int:
        return sum(t.rows for t in self.tables)

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.tables)


@dataclass(frozen=True, slots=True)
class CreateObject:
    """What creates one object. `kind`: database, table, sequence, function, procedure, package, package body, view,
    trigger or event; the session settings are those that its text was written under (empty where it has none)."""

    kind: str
    schema: str
    name: str
    sql: str
    sql_mode: str = ""
    charset_client: str = ""
    collation_connection: str = ""
    collation_database: str = ""
    time_zone: str = ""
    table: str = ""


def folder_of(data_dir: Path, source: str) -> Path:
    """Where the baselines of `source` lie."""
    return data_dir / "baselines" / source


@contextlib.contextmanager
def new_folder(data_dir: Path, source: str, baseline: str) -> Iterator[Path]:
    """A folder to write a baseline into. Leaving without an error puts it into its place, durably; with one removes it.

    And if we die here? What is left starts with `.new-`, is no baseline, and `clean` removes it.
    """
    parent = folder_of(data_dir, source)
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (parent, parent.parent, data_dir):
        flush_folder(folder)
    partial = parent / f"{_PARTIAL}{baseline}"
    partial.mkdir(mode=0o700)
    try:
        (partial / "rows").mkdir(mode=0o700)
        yield partial
        flush_folder(partial / "rows")
        flush_folder(partial)
        partial.rename(parent / baseline)
        flush_folder(parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def clean(data_dir: Path, source: str, keep: frozenset[str]) -> list[str]:
    """Remove what a crash left, and whole baselines that are not in `keep`; what was removed."""
    parent = folder_of(data_dir, source)
    gone = []
    for entry in sorted(parent.iterdir()) if parent.is_dir() else ():
        if entry.name not in keep:
            shutil.rmtree(entry)
            gone.append(entry.name)
    if gone:
        flush_folder(parent)
    return gone


def flush_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    with HashedFile(folder / MANIFEST) as out:
        out.write(json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True).encode() + b"\n")
        out.finish()


def read_manifest(folder: Path) -> Manifest:
    """Raises `AgentError` (`baseline-missing`, `baseline-damaged`)."""
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}")
        lists = ("columns", "types", "expressions")
        tables = tuple(TableFile(**t | {name: tuple(t[name]) for name in lists}) for t in raw["tables"])
        return Manifest(**raw | {"tables": tables, "warnings": tuple(Problem(**p) for p in raw["warnings"])})
    except FileNotFoundError:
        raise AgentError("baseline-missing", f"there is no baseline {folder.name}", "make a new one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AgentError("baseline-damaged", f"the manifest of baseline {folder.name} is damaged: {error}") from error


def find(data_dir: Path, source: str, job: str) -> tuple[Path, Manifest] | None:
    """The whole baseline that was made for `job`, if there is one."""
    parent = folder_of(data_dir, source)
    for entry in sorted(parent.iterdir(), reverse=True) if parent.is_dir() else ():
        if not entry.name.startswith("."):
            manifest = read_manifest(entry)
            if manifest.job == job:
                return entry, manifest
    return None


def verify(folder: Path) -> list[Problem]:
    """Compare every file with the manifest; what does not fit, empty when all does."""
    manifest = read_manifest(folder)
    wanted = dict(manifest.digests) | {t.file: t.blake3 for t in manifest.tables if t.file}
    found = []
    for name, digest in sorted(wanted.items()):
        try:
            actual = blake3()
            actual.update_mmap(folder / name)
        except OSError as error:
            found.append(Problem("baseline-file-missing", f"{name} cannot be read: {error.strerror}"))
            continue
        if actual.hexdigest() != digest:
            found.append(Problem("baseline-file-damaged", f"{name} is not what was written", "make a new baseline"))
    return found


def write_lines(path: Path, lines: Iterator[Mapping[str, Any]]) -> str:
    """JSON objects, one a line, compressed; the file's BLAKE3 in hex."""
    zstd = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    with HashedFile(path) as out:
        for line in lines:
            text = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            data = zstd.compress(text.encode("utf-8", "surrogateescape") + b"\n")
            if data:
                out.write(data)
        out.write(zstd.flush())
        return out.finish()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Raises `AgentError` (`baseline-damaged`)."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            rest = b""
            while data := stream.read(1 << 18):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield json.loads(line.decode("utf-8", "surrogateescape"))
            if rest:
                raise ValueError("it is cut off")
    except (ValueError, OSError, zstandard.ZstdError) as error:
        raise AgentError(
            "baseline-damaged", f"{path.name} of the baseline is damaged: {error}", "make a new baseline"
        ) from error


def definitions(folder: Path) -> list[TableDefinition]:
    """The table definitions at the baseline's position."""
    return [
        TableDefinition(d["schema"], d["table"], d["ddl"], d["definition"], bytes.fromhex(d["fingerprint"]))
        for d in read_lines(folder / DEFINITIONS)
    ]


def objects(folder: Path) -> Iterator[CreateObject]:
    """What creates the objects, in the order in which they can be created (views may need several passes)."""
    return (CreateObject(**line) for line in read_lines(folder / OBJECTS))
