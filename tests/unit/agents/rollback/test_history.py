"""A rollback's own step is found in the log by its marker, however the source writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from agents.rollback.history import find_marker
from streams.capture_log import StepFragment, Wanted
from streams.events import CommitsRecorded
from streams.formats.binlog.events import iter_events
from streams.formats.binlog.names import table_name
from streams.formats.binlog.step import MARKER_TABLE, summarise
from tests.unit.streams.formats.compressing import Step, in_one_event
from tests.unit.streams.formats.recorded import golden

LINEAGE = "lineage"
LOG = golden("groups")


@dataclass
class Fragments:
    """Steps in fragments, each by its pieces, as a log that can be read."""

    preamble: bytes
    steps_: list[list[bytes | None]]
    lineage: str = LINEAGE
    record: CommitsRecorded | None = None

    @property
    def ordinal(self) -> int:
        return len(self.steps_)

    def tail(self) -> Fragments:
        return self

    def steps(
        self, lineage: str, first: int, last: int, near: int | None = None, wanted: Wanted | None = None
    ) -> Iterator[StepFragment]:
        for ordinal in range(first, last + 1):
            pieces = self.steps_[ordinal - 1]
            if len(pieces) == 1 and wanted is not None and not wanted(pieces[0]):
                continue
            for i, piece in enumerate(pieces):
                yield StepFragment(ordinal, i, i == len(pieces) - 1, self.preamble, piece, False, 0, "", 0)


def event_by_event(step: Step) -> list[bytes]:
    return [step[1][e.offset : e.offset + e.length] for e in iter_events(step[1], step[0].has_checksum)]


def whole(step: Step) -> list[bytes]:
    return [step[1]]


def compressed(step: Step) -> list[bytes]:
    return [in_one_event(step, 19)]


def compressed_in_pieces(step: Step) -> list[bytes]:
    """Of a transaction that is larger than a record, the first fragment holds what comes before the payload event."""
    return event_by_event((step[0], in_one_event(step, 19)))


@pytest.mark.parametrize("form", [whole, event_by_event, compressed, compressed_in_pieces])
def test_the_step_of_a_rollback_is_found(form: Callable[[Step], list[bytes]]) -> None:
    (wanted,) = [i for i, s in enumerate(LOG.steps, 1) if summarise(LOG.fde, s).markers]
    (plan,) = summarise(LOG.fde, LOG.steps[wanted - 1]).markers
    log = Fragments(LOG.fde.raw, [list(form((LOG.fde, s))) for s in LOG.steps])
    assert find_marker(log, LINEAGE, plan, 0) == wanted
    assert find_marker(log, LINEAGE, plan, wanted - 1) == wanted
    assert find_marker(log, LINEAGE, plan, wanted) is None
    assert find_marker(log, LINEAGE, "another plan", 0) is None
    assert find_marker(log, "another lineage", plan, 0) is None


def test_what_cannot_be_read_is_not_in_the_way() -> None:
    (step,) = [s for s in LOG.steps if summarise(LOG.fde, s).markers]
    (plan,) = summarise(LOG.fde, step).markers
    damaged = table_name(MARKER_TABLE) + step
    log = Fragments(LOG.fde.raw, [[None], [damaged], [damaged, step], [None, None], [step]])
    assert find_marker(log, LINEAGE, plan, 0) == 5
