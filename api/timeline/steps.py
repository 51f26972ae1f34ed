"""One step as the API shows it, made from its payload or, for a large one, from the granule that it fills alone.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from api.shapes import time
from api.timeline import values
from projections.views.timeline import Granule, Landmark
from streams.capture_log import StepFragment
from streams.events import TableCount
from streams.formats.binlog.events import HEADER_SIZE, FormatDescription, parse_format_description
from streams.formats.binlog.step import StepSummary, Summariser
from streams.formats.errors import FormatError

ACCOUNT_TEXT = "account statement"
_header = Struct("<IBIIIH").unpack_from


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a page shows of a step, before it is known whether it stands. Times in µs."""

    ordinal: int
    time_us: int
    captured_us: int
    position: str
    kind: str
    tables: tuple[tuple[tuple[str, str], tuple[int, int, int]], ...]
    size: int
    own: bool
    plan: str
    text: str

    @property
    def rows(self) -> int:
        return sum(sum(counts) for _, counts in self.tables)

    def touches(self, table: tuple[str, str]) -> bool:
        return any(name == table for name, _ in self.tables)


class Preambles:
    """Format descriptions by their bytes: a page's steps mostly share one."""

    def __init__(self) -> None:
        self._known: dict[bytes, FormatDescription] = {}

    def of(self, preamble: bytes) -> FormatDescription:
        known = self._known.get(preamble)
        if known is None:
            if len(self._known) > 64:
                self._known.clear()
            known = self._known[preamble] = parse_format_description(preamble)
        return known


def closing_time(fragment: StepFragment) -> int:
    """Commit time in µs: the timestamp of the step's last event, which is in its last fragment."""
    payload = fragment.payload or b""
    at, seconds = 0, 0
    while at + HEADER_SIZE <= len(payload):
        seconds, _, _, size, _, _ = _header(payload, at)
        if size < HEADER_SIZE:
            break
        at += size
    return int(seconds) * 1_000_000


def look(fragments: Iterable[StepFragment], preambles: Preambles) -> Iterator[StepFacts]:
    """What each step is and does, one fragment in memory at a time.

    A payload that cannot be read makes a step of kind `unreadable`: it is there and says why, and no page fails for it.
    """
    reading: _Reading | None = None
    for fragment in fragments:
        if fragment.number == 0:
            reading = _Reading(fragment, preambles)
        if reading is None:
            continue
        reading.feed(fragment)
        if fragment.last:
            yield reading.finish()
            reading = None


class _Reading:
    """One step under way."""

    def __init__(self, first: StepFragment, preambles: Preambles) -> None:
        self.first = first
        self.size = 0
        self.error = ""
        try:
            self.summariser = Summariser(preambles.of(first.preamble))
        except FormatError as error:
            self.error = str(error)

    def feed(self, fragment: StepFragment) -> None:
        if fragment.payload is None:
            self.error = "encrypted, and the key is not here"
            return
        self.size += len(fragment.payload)
        if not self.error:
            try:
                self.summariser.feed(fragment.payload)
            except FormatError as error:
                self.error = str(error)

    def finish(self) -> StepFacts:
        if self.error:
            kind = "account" if self.first.accounts else "unreadable"
            return _unread(self.first, self.size, kind, ACCOUNT_TEXT if self.first.accounts else self.error)
        return _facts(self.first, self.summariser.finish(), self.size)


def _unread(fragment: StepFragment, size: int, kind: str, text: str) -> StepFacts:
    captured = fragment.captured_us
    return StepFacts(fragment.ordinal, captured, captured, "", kind, (), size, False, "", text)


def _facts(first: StepFragment, s: StepSummary, size: int) -> StepFacts:
    # A rollback's step holds its own marker and no other: several come with a dump of schema `holdfast`.
    plan = s.markers[0] if len(s.markers) == 1 else ""
    account = first.accounts or s.secret or s.kind == "account"
    text = ACCOUNT_TEXT if account else "; ".join(s.statements)
    return StepFacts(
        ordinal=first.ordinal,
        time_us=s.commit_time * 1_000_000,
        captured_us=first.captured_us,
        position=s.gtid or (f"{first.file}:{s.end}" if first.file else ""),
        kind=("undo" if s.undo else "rollback") if plan else s.kind,
        tables=tuple((name, (c.inserts, c.updates, c.deletes)) for name, c in s.changes.items()),
        size=size,
        own=(bool(s.markers) and not s.undo) or s.own,
        plan=plan,
        text=text,
    )


def last_of(
    granule: Granule, tables: Sequence[TableCount], landmarks: Sequence[Landmark], others: Iterable[StepFacts]
) -> StepFacts:
    """The last step of a granule, from what the granule says and what the `others` in it do, without reading it: it may
    be gigabytes. `landmarks` are that step's."""
    left = {(t.schema, t.table): [t.inserts, t.updates, t.deletes] for t in tables}
    size = granule.payload_bytes
    for step in others:
        size -= step.size
        for name, counts in step.tables:
            for i, n in enumerate(counts):
                left[name][i] -= n
    mark = next((m for m in landmarks if m.kind != "own"), None)
    kind = {"marker": "rollback", "partial": "rows"}.get(mark.kind, mark.kind) if mark else "rows"
    return StepFacts(
        ordinal=granule.last_ordinal,
        time_us=granule.last_time_us,
        captured_us=granule.captured_us,
        position=granule.last_position,
        kind=kind,
        tables=tuple((name, (i, u, d)) for name, (i, u, d) in left.items() if i or u or d),
        size=size,
        own=any(m.kind in ("own", "marker") for m in landmarks),
        plan=mark.plan if mark else "",
        text=ACCOUNT_TEXT if kind == "account" else (mark.text if mark else ""),
    )


def step_json(source: str, lineage: str, step: StepFacts, stands: bool) -> dict[str, Any]:
    return {
        "id": f"{source}/{lineage}:{step.ordinal}",
        "lineage": lineage,
        "ordinal": step.ordinal,
        "time": time(step.time_us),
        "captured": time(step.captured_us),
        "position": step.position,
        "kind": step.kind,
        "tables": values.counted(dict(sorted(step.tables))),
        "rows": step.rows,
        "bytes": step.size,
        "stands": stands,
        "own": step.own,
        "plan": step.plan or None,
        "text": step.text,
    }
