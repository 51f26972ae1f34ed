"""Stands in for the capture topic where a test is about rollback alone: steps read from the server's binlog files.

No Kafka, no capture process: the log's end is the server's. Steps are numbered from where the object was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql

from streams.errors import StreamError
from streams.formats.binlog import events as ev
from streams.formats.binlog.step import split_steps


@dataclass(frozen=True)
class FileStep:
    """As `streams.capture_log.StepFragment`."""

    ordinal: int
    preamble: bytes
    payload: bytes | None
    gtid: str
    number: int = 0
    last: bool = True
    accounts: bool = False
    captured_us: int = 0
    position_after: str = ""
    offset: int = 0


@dataclass(frozen=True)
class _Record:
    after: str


@dataclass(frozen=True)
class _Tail:
    lineage: str
    ordinal: int
    record: Any


class BinlogLog:
    """Implements `agents.rollback.history.Log` on the files of one server. `hold` makes it pretend to lag there."""

    def __init__(
        self,
        connection: pymysql.Connection[Any],
        directory: Path,
        lineage: str = "lineage-1",
        start: tuple[str, int, str] | None = None,
    ) -> None:
        """`start`: where another one of the same server began (`began`), to number steps alike."""
        self.lineage = lineage
        self.recorded: list[FileStep] = []
        self.hold: int | None = None
        self._connection = connection
        self._directory = directory
        self._position: dict[int, str] = {}
        self.began = start or self._status()
        file, offset, base = self.began
        for gtid in filter(None, base.split(",")):
            self._position[int(gtid.split("-")[0])] = gtid
        self._base = dict(self._position)
        self._file, self._offset = file, offset

    def _status(self) -> tuple[str, int, str]:
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW MASTER STATUS")
            row = cursor.fetchone()
            cursor.execute("SELECT @@global.gtid_binlog_pos")
            position = cursor.fetchone()
        assert row is not None
        assert position is not None
        return str(row[0]), int(row[1]), str(position[0])

    def refresh(self) -> None:
        """Take in what has been written."""
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW BINARY LOGS")
            files = [str(row[0]) for row in cursor.fetchall()]
        for file in files[files.index(self._file) :]:
            if file != self._file:
                self._file, self._offset = file, 4
            with (self._directory / file).open("rb") as opened:
                head = opened.read(4 + 19)
                fde = ev.parse_format_description(head[4:] + opened.read(int.from_bytes(head[13:17], "little") - 19))
                opened.seek(self._offset)
                raw = opened.read()
            done = 0
            for step in split_steps(fde, raw):
                payload = bytes(step)
                event = next(ev.iter_events(payload, fde.has_checksum))
                gtid = ev.parse_gtid(ev.GTID, event.server_id, event.body)
                self.recorded.append(FileStep(len(self.recorded) + 1, fde.raw, payload, gtid.text))
                done = raw.index(payload, done) + len(payload)
            self._offset += done

    def tail(self) -> _Tail:
        self.refresh()
        end = len(self.recorded) if self.hold is None else min(self.hold, len(self.recorded))
        position = dict(self._base)
        for step in self.recorded[:end]:
            position[int(step.gtid.split("-")[0])] = step.gtid
        return _Tail(self.lineage, end, _Record(",".join(position[d] for d in sorted(position))))

    def steps(self, lineage: str, first: int, last: int, near: int | None = None) -> Iterator[FileStep]:
        if lineage != self.lineage or last > len(self.recorded):
            raise StreamError("step-unknown", f"there is no step {last}")
        yield from self.recorded[first - 1 : last]
