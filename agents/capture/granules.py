"""Granules: where they end, and what they say. Steps in order go in, closed granules come out.

A granule closes with the step that makes it 4,096 steps or 4 MB of payload, whichever is first, or with the last step of its
lineage when another one starts. That depends on the steps alone: whoever indexes the same lineage, however often it was stopped
and whatever records the steps came in, closes the same granules.
Pure: knows nothing of Kafka.
"""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from streams.capture_log import StepFragment
from streams.events import GranuleClosed, Landmark, TableCount
from streams.formats.binlog.events import FormatDescription, parse_format_description
from streams.formats.binlog.step import StepSummary, Summariser

MAX_STEPS = 4_096
MAX_BYTES = 4_000_000
TEXT_LENGTH = 200

_BARRIERS = frozenset({"ddl", "statement", "account", "xa", "incident", "rolled_back"})


class Indexer:
    """Closes granules of one lineage. `first_ordinal` is that of the first step it will be given."""

    # Of the granule being gathered; `_first` 0: nothing yet.
    _first: int
    _first_offset: int
    _times_us: tuple[int, int]
    _steps: int
    _bytes: int
    _events: int
    _digest: blake3
    _last: StepFragment

    def __init__(self, source: str, lineage: str, epoch: int, topic_id: str, first_ordinal: int = 1) -> None:
        self._source, self._lineage, self._epoch, self._topic_id = source, lineage, epoch, topic_id
        self._expected = first_ordinal
        self._preamble = b""
        self._format: FormatDescription | None = None
        self._step: Summariser | None = None
        self._time_us = 0
        self.closed: StepSummary | None = None
        """The step that the last fragment given in closed; None when it closed none, or one that is sealed."""
        self._open()

    def add(self, fragment: StepFragment) -> GranuleClosed | None:
        """The granule that this fragment closes, if it closes one. Raises `FormatError` on a step that cannot be read."""
        if fragment.number == 0:
            if fragment.ordinal != self._expected:
                raise ValueError(f"step {fragment.ordinal} came where {self._expected} was due")
            if self._first == 0:
                self._first = fragment.ordinal
                self._first_offset = fragment.offset
            self._step = None
        if fragment.payload is not None:
            if self._step is None:
                self._step = Summariser(self._read_with(fragment.preamble))
            self._step.feed(fragment.payload)
            self._bytes += len(fragment.payload)
            if not fragment.accounts:
                self._digest.update(fragment.payload)
            elif fragment.number == 0:
                # What an account statement says leaves no trace in the index, not even a digest to guess against.
                self._digest.update(b"account")
        if not fragment.last:
            self.closed = None
            return None
        self._close_step(fragment)
        if self._steps < MAX_STEPS and self._bytes < MAX_BYTES:
            return None
        return self._close(fragment)

    @property
    def expected(self) -> int:
        """The ordinal of the step that comes next."""
        return self._expected

    def rest(self) -> GranuleClosed | None:
        """The granule of the steps that are in none yet. For the end of a lineage: it may not be closed at any other time."""
        return None if self._steps == 0 else self._close(self._last)

    def _open(self) -> None:
        self._first = 0
        self._steps = 0
        self._bytes = 0
        self._events = 0
        self._first_offset = 0
        self._times_us = (0, 0)
        self._first_position = self._last_position = ""
        self._tables: dict[tuple[str, str], list[int]] = {}
        self._landmarks: list[Landmark] = []
        self._digest = blake3()

    def _read_with(self, preamble: bytes) -> FormatDescription:
        if self._format is None or preamble != self._preamble:
            self._format, self._preamble = parse_format_description(preamble), preamble
        return self._format

    def _close_step(self, fragment: StepFragment) -> None:
        ordinal = fragment.ordinal
        if self._step is None:  # sealed, and no key here: its place is known, nothing else
            self._time_us = max(self._time_us, fragment.captured_us // 1_000_000 * 1_000_000)
            position = fragment.position_after
            self._landmarks.append(Landmark(ordinal, "account"))
            self.closed = None
        else:
            summary = self.closed = self._step.finish()
            self._time_us = summary.commit_time * 1_000_000
            position = summary.gtid or (f"{fragment.file}:{summary.end}" if fragment.file else "")
            self._events += summary.events
            for table, change in summary.changes.items():
                count = self._tables.get(table)
                if count is None:
                    count = self._tables[table] = [0, 0, 0, 0]
                count[0] += 1
                count[1] += change.inserts
                count[2] += change.updates
                count[3] += change.deletes
            if summary.kind != "rows" or summary.partial or summary.own or summary.markers:
                self._landmarks += landmarks(ordinal, summary, account=fragment.accounts)
        if self._steps == 0:
            self._first_position, self._times_us = position, (self._time_us, self._time_us)
        else:
            # Clocks are set back, sessions choose their time (SET timestamp): what comes first in the log need not be oldest.
            oldest, newest = self._times_us
            if not oldest <= self._time_us <= newest:
                self._times_us = (min(oldest, self._time_us), max(newest, self._time_us))
        self._last_position = position
        self._steps += 1
        self._expected = ordinal + 1
        self._last = fragment
        self._step = None

    def _close(self, fragment: StepFragment) -> GranuleClosed:
        granule = GranuleClosed(
            lineage=self._lineage,
            epoch=self._epoch,
            source=self._source,
            first_ordinal=self._first,
            last_ordinal=fragment.ordinal,
            first_time_us=self._times_us[0],
            last_time_us=self._times_us[1],
            captured_us=fragment.captured_us,
            first_position=self._first_position,
            last_position=self._last_position,
            payload_bytes=self._bytes,
            events=self._events,
            tables=tuple(TableCount(*table, *count) for table, count in sorted(self._tables.items())),
            landmarks=tuple(self._landmarks),
            topic_id=self._topic_id,
            first_offset=self._first_offset,
            last_offset=fragment.offset,
            digest=self._digest.digest(),
        )
        self._open()
        return granule


def landmarks(ordinal: int, summary: StepSummary, *, account: bool = False) -> Iterator[Landmark]:
    """What must be known of a step more than its counts. Also of steps that are in no granule yet."""
    for plan in summary.markers:
        yield Landmark(ordinal, "undo" if summary.undo else "marker", plan=plan)
    if summary.markers:
        return
    if summary.own:
        yield Landmark(ordinal, "own")
    elif account or summary.secret or summary.kind == "account":
        yield Landmark(ordinal, "account")
    elif summary.kind in _BARRIERS:
        yield Landmark(ordinal, summary.kind, "; ".join(summary.statements)[:TEXT_LENGTH])
    elif summary.partial:
        yield Landmark(ordinal, "partial")
