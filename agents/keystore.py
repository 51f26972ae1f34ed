"""The key index on the agent's own disk: a cache of what the indexer published, so that a plan need not read it from Kafka.

    <data_dir>/keys/<source>/<lineage>/granules.jsonl      a line a granule: steps, offsets, tables, landmarks
                                      /<first>-<last>.<level>.run
                                          8 bytes magic · BLAKE3-256 of what follows · fan · entries (`streams.key_runs`)

The indexer writes it behind the log: a granule is added once it is durable there. Whoever plans reads it and takes from the
capture log whatever it does not cover; what it covers it covers without a gap. It can be deleted at any time.

And if we die here? A run is written beside its place and renamed, then its line is written; a run without a line, a line cut
off, parts of a run that was merged already: all are told and dropped by the next writer, who takes what is missing from the
topic. Nothing is flushed to disk: a run torn by a power cut does not have its digest, and the reader does without the index.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import re
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from blake3 import blake3

from streams.consume import read_topic
from streams.events import GranuleClosed, GranuleKeys
from streams.key_runs import (
    ENTRY,
    FAN_BYTES,
    FAN_IN,
    LEVELS,
    PURPOSE,
    Run,
    bounds,
    due,
    fan_of,
    hasher,
    merge,
    steps_in,
)
from streams.settings import KafkaSettings
from streams.topics import topic_name

MAGIC: Final = b"HFKEYS\x01\n"
_HEAD: Final = len(MAGIC) + 32
_NAME: Final = re.compile(r"(\d{20})-(\d{20})\.(\d)\.run")
_log = logging.getLogger("holdfast.index")

TableName = tuple[str, str]


class Secrets(Protocol):
    """What is needed of `streams.secrets.SecretStore`."""

    def key_ids(self) -> tuple[str, ...]: ...
    def derived(self, purpose: str, key_id: str = "") -> tuple[str, bytes]: ...


def folder_of(data_dir: Path, source: str, lineage: str = "") -> Path:
    """The store of a lineage; without one, the folder of all of a source's."""
    return data_dir / "keys" / source / lineage


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    first: int
    last: int
    level: int


def _files(folder: Path) -> list[_File]:
    """Run files, ascending, without those that lie within another."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            match = _NAME.fullmatch(name)
            if match:
                found.append(_File(folder / name, int(match[1]), int(match[2]), int(match[3])))
    found.sort(key=lambda f: (f.first, -f.last))
    out: list[_File] = []
    for file in found:
        if not out or file.last > out[-1].last:
            out.append(file)
    return out


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Granules, ascending and without a gap; one that is cut off ends them."""
    path, last = folder / "granules.jsonl", None
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw)
            except ValueError:
                return
            if not raw.endswith(b"\n") or (last is not None and line["first"] != last + 1):
                return
            last = line["last"]
            yield line


# --- writing -----------------------------------------------------------------------------------------------------------


class KeyStore:
    """The store of one lineage, for its one writer. `last`: the last step covered, 0 when there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[list[_File]] = [[] for _ in range(LEVELS + 1)]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = list(_lines(folder))
        files = _files(folder)
        self.last = lines[-1]["last"] if lines else 0
        if files and lines and files[-1].first > self.last:
            files.pop()  # its line was not written
        if not _contiguous(files, lines):
            self.clear()
            return
        keep = {f.path.name for f in files}
        for name in os.listdir(folder):
            if name != "granules.jsonl" and name not in keep:
                (folder / name).unlink()
        whole = b"".join(_line(line) for line in lines)
        if (folder / "granules.jsonl").exists() and (folder / "granules.jsonl").stat().st_size != len(whole):
            self._write(folder / "granules.jsonl", whole)
        self._waiting = [[f for f in files if f.level == level] for level in range(LEVELS + 1)]

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.last = 0
        self._waiting = [[] for _ in range(LEVELS + 1)]

    def add(self, keys: GranuleKeys, granule: GranuleClosed) -> None:
        """The next granule; one that is known already is passed over, a gap makes the store begin anew."""
        if granule.last_ordinal <= self.last:
            return
        if self.last and granule.first_ordinal != self.last + 1:
            self.clear()
        self._put(Run(granule.first_ordinal, granule.last_ordinal, 1, keys.entries), 0)
        line = {
            "first": granule.first_ordinal,
            "last": granule.last_ordinal,
            "offsets": [granule.first_offset, granule.last_offset],
            "tables": [[t.schema, t.table, list(t.columns), t.dense] for t in keys.tables],
            "marks": [[m.ordinal, m.kind, m.text] for m in granule.landmarks],
        }
        with (self._folder / "granules.jsonl").open("ab") as lines:
            lines.write(_line(line))
        self.last = granule.last_ordinal
        while (level := due([len(files) for files in self._waiting])) is not None:
            parts = self._waiting[level][:FAN_IN]
            self._put(merge([_run(file) for file in parts]), level + 1)
            self._waiting[level] = self._waiting[level][FAN_IN:]
            for file in parts:
                file.path.unlink()

    def _put(self, run: Run, level: int) -> None:
        path = self._folder / f"{run.first:020d}-{run.last:020d}.{level}.run"
        body = fan_of(run.entries) + run.entries
        self._write(path, MAGIC + blake3(body).digest() + body)
        self._waiting[level].append(_File(path, run.first, run.last, level))

    def _write(self, path: Path, data: bytes) -> None:
        scratch = path.with_name(".new-" + path.name)
        scratch.write_bytes(data)
        scratch.rename(path)

    def fill(self, kafka: KafkaSettings, source: str, lineage: str, upto: int) -> None:
        """Add what the topic has up to granule end `upto` and the store has not."""
        if self.last == upto:
            return
        if self.last > upto:
            self.clear()  # of another log than this
        keys: GranuleKeys | None = None
        for message in read_topic(kafka, topic_name(kafka.prefix, "commits")):
            event = message.event
            if message.key != source or event.lineage != lineage:
                continue
            if isinstance(event, GranuleKeys):
                keys = event
            elif isinstance(event, GranuleClosed) and keys is not None and keys.first_ordinal == event.first_ordinal:
                if event.last_ordinal > upto:
                    break
                self.add(keys, event)
        _log.info("%s: key index on disk reaches step %d", source, self.last)


def _line(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _contiguous(files: Sequence[_File], lines: Sequence[dict[str, Any]]) -> bool:
    """Whether the runs are those of the lines, neither more nor less."""
    if not lines:
        return False
    at = lines[0]["first"]
    for file in files:
        if file.first != at:
            return False
        at = file.last + 1
    return bool(files) and at == lines[-1]["last"] + 1


def _run(file: _File) -> Run:
    data = file.path.read_bytes()
    _check(data, file.path)
    return Run(file.first, file.last, 0, data[_HEAD + FAN_BYTES :])


def _check(data: bytes | mmap.mmap, path: Path) -> None:
    view = memoryview(data)
    try:
        ok = bytes(view[: len(MAGIC)]) == MAGIC and blake3(view[_HEAD:]).digest() == bytes(view[len(MAGIC) : _HEAD])
    finally:
        view.release()
    if not ok:
        raise ValueError(f"{path} is damaged")


# --- reading -----------------------------------------------------------------------------------------------------------


_checked: set[tuple[str, int, int]] = set()


@dataclass(frozen=True, slots=True)
class _Mapped:
    first: int
    last: int
    data: mmap.mmap


class KeyIndex:
    """Implements `agents.rollback.choose.Index`. Close it."""

    def __init__(self, runs: Sequence[_Mapped], lines: Sequence[dict[str, Any]], secrets: Sequence[bytes]) -> None:
        self._runs, self._secrets = runs, secrets
        self._firsts = [line["first"] for line in lines]
        self._lasts = [line["last"] for line in lines]
        self._offsets = [line["offsets"] for line in lines]
        self._marks = [(int(o), str(kind), str(text)) for line in lines for o, kind, text in line["marks"]]
        self._mark_ordinals = [mark[0] for mark in self._marks]
        self._tables: dict[TableName, list[tuple[int, tuple[str, ...], bool]]] = {}
        for number, line in enumerate(lines):
            for schema, table, columns, dense in line["tables"]:
                self._tables.setdefault((schema, table), []).append((number, tuple(columns), dense))

    @property
    def first(self) -> int:
        return int(self._firsts[0])

    @property
    def last(self) -> int:
        return int(self._lasts[-1])

    def close(self) -> None:
        for run in self._runs:
            run.data.close()

    def steps_of(self, name: TableName, columns: tuple[str, ...], form: bytes, after: int) -> Iterable[int]:
        for secret in self._secrets:
            wanted = hasher(secret, *name, columns)(form)
            for run in self._runs:
                if run.last <= after:
                    continue
                start, end = bounds(run.data[_HEAD + wanted[0] * 4 : _HEAD + wanted[0] * 4 + 8], 0)
                begin = _HEAD + FAN_BYTES
                for step in steps_in(run.data[begin + start * ENTRY : begin + end * ENTRY], wanted):
                    if run.first + step > after:
                        yield run.first + step

    def granules_of(self, name: TableName, after: int) -> Iterable[tuple[int, int]]:
        known = bisect_right(self._lasts, after)
        for number, _, _ in self._tables.get(name, ()):
            if number >= known:
                yield self._firsts[number], self._lasts[number]

    def dense(self, name: TableName, columns: tuple[str, ...], after: int) -> Iterable[tuple[int, int]]:
        known = bisect_right(self._lasts, after)
        for number, by, dense in self._tables.get(name, ()):
            if number >= known and (dense or by != columns):
                yield self._firsts[number], self._lasts[number]

    def marks(self, after: int) -> Iterable[tuple[int, str, str]]:
        return self._marks[bisect_right(self._mark_ordinals, after) :]

    def near(self, ordinal: int) -> int | None:
        """An offset of the capture topic close to a step: a hint."""
        at = bisect_left(self._lasts, ordinal)
        if at == len(self._lasts) or self._firsts[at] > ordinal:
            return None
        (low, high), count = self._offsets[at], self._lasts[at] - self._firsts[at]
        return int(low + (high - low) * (ordinal - self._firsts[at]) // max(1, count))


def open_index(data_dir: Path, source: str, lineage: str, secrets: Secrets) -> KeyIndex | None:
    """The index as it is now; None when there is none, or it cannot be read."""
    folder = folder_of(data_dir, source, lineage)
    keys = [secrets.derived(PURPOSE, key_id)[1] for key_id in secrets.key_ids()]
    for _ in range(5):  # the writer may merge what was just listed
        lines = list(_lines(folder))
        files = _files(folder)
        while files and lines and files[-1].last > lines[-1]["last"]:
            if files[-1].first <= lines[-1]["last"]:
                break
            files.pop()  # its line is about to be written
        if not _contiguous(files, lines):
            continue
        runs: list[_Mapped] = []
        try:
            for file in files:
                runs.append(_mapped(file))
        except FileNotFoundError:
            for run in runs:
                run.data.close()
            continue
        except (ValueError, OSError) as error:
            _log.warning("%s: the key index on disk is of no use: %s", source, error)
            for run in runs:
                run.data.close()
            return None
        return KeyIndex(runs, lines, keys)
    return None


def _mapped(file: _File) -> _Mapped:
    with file.path.open("rb") as opened:
        status = os.fstat(opened.fileno())
        if status.st_size < _HEAD + FAN_BYTES:
            raise ValueError(f"{file.path} is cut off")
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    identity = (str(file.path), status.st_ino, status.st_mtime_ns)
    if identity not in _checked:
        _check(data, file.path)
        _checked.add(identity)
    return _Mapped(file.first, file.last, data)
