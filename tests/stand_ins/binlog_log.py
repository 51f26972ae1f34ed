"""Stands in for the capture topic where a test is about rollback alone: steps read from the server's binlog files.

No Kafka, no capture process: the log's end is the server's. Steps are numbered from where the object was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql

from agents.mysql import file_positions, gtid_sets, whereabouts
from agents.mysql.dialects import dialect
from streams.capture_log import Wanted
from streams.errors import StreamError
from streams.formats.binlog import events as ev
from streams.formats.binlog.gtids import parse_gtid
from streams.formats.binlog.step import split_steps, summarise


@dataclass(frozen=True)
class FileStep:
    """As `streams.capture_log.StepFragment`. `gtid`: or file and offset, where the server has none. `passed`: GTIDs of groups
    before it that are no step yet."""

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
    passed: tuple[str, ...] = ()
    file: str = ""


@dataclass(frozen=True)
class _Record:
    after: str


@dataclass(frozen=True)
class _Tail:
    lineage: str
    ordinal: int
    record: Any


class BinlogLog:
    """Implements `agents.rollback.history.Log` on the files of one server. `hold` makes it pretend to lag there.

    `parks`: what prepares an XA transaction is no step, and is behind the next one, as capture has it. (Outcomes are not
    followed.)
    """

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
        self.parks = False
        self._passed: list[str] = []
        self._connection = connection
        self._directory = directory
        self.began = start or self._status()
        self._file, self._offset, self._base = self.began

    def _status(self) -> tuple[str, int, str]:
        spoken = dialect(self._connection)
        with self._connection.cursor() as cursor:
            cursor.execute(spoken.log_status)
            row = cursor.fetchone()
            position = whereabouts.position(cursor, spoken)
        assert row is not None
        return str(row[0]), int(row[1]), position

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
                done = raw.index(payload, done) + len(payload)
                place = _place(fde, payload, file)
                if self.parks and summarise(fde.raw, payload).kind == "xa":
                    self._passed.append(place)
                    continue
                number, passed = len(self.recorded) + 1, tuple(self._passed)
                self.recorded.append(FileStep(number, fde.raw, payload, place, passed=passed, file=file))
                self._passed.clear()
            self._offset += done

    def tail(self) -> _Tail:
        self.refresh()
        end = len(self.recorded) if self.hold is None else min(self.hold, len(self.recorded))
        return _Tail(self.lineage, end, _Record(after_steps(self._base, _places(self.recorded[:end]))))

    def steps(
        self, lineage: str, first: int, last: int, near: int | None = None, wanted: Wanted | None = None
    ) -> Iterator[FileStep]:
        if lineage != self.lineage or last > len(self.recorded):
            raise StreamError("step-unknown", f"there is no step {last}")
        yield from (s for s in self.recorded[first - 1 : last] if wanted is None or wanted(s.payload))


def _place(fde: ev.FormatDescription, payload: bytes, file: str) -> str:
    events = list(ev.iter_events(payload, fde.has_checksum))
    first = events[0]
    if first.type in ev.GTIDS and first.type != ev.MYSQL_ANONYMOUS_GTID:
        return parse_gtid(first.type, first.server_id, first.body).text
    return f"{file}:{events[-1].next_pos}"


def _places(steps: list[FileStep]) -> list[str]:
    return [place for step in steps for place in (*step.passed, step.gtid)]


def after_steps(base: str, places: list[str]) -> str:
    """Where the server is after steps at `places`."""
    if file_positions.is_file_position(base):
        return f"{base.rpartition('/')[0]}/{places[-1]}" if places else base
    if ":" in "".join(places) or ":" in base:
        gtids = gtid_sets.parse(base)
        for place in places:
            gtid_sets.add(gtids, gtid_sets.gtid(place))
        return gtid_sets.show(gtids)
    position = {gtid.split("-")[0]: gtid for gtid in (*filter(None, base.split(",")), *places)}
    return ",".join(position[domain] for domain in sorted(position, key=int))
