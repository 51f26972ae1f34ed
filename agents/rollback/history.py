"""What the log says of a source's rollbacks and schema: plans, what became of them, which path stands now.

Reads `rollbacks`, `schema.<source>` and the capture topic; never PostgreSQL. Knows no target.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from agents.errors import AgentError
from agents.rollback.fold import own_definition
from agents.rollback.plan import Request
from agents.rollback.redefined import Redefinition, Redefinitions, redefinition
from agents.rollback.schema import Schema
from agents.rollback.stages import FINAL, UNDECIDED
from agents.rollback.steps import Fragment
from agents.schema.record import State, versions
from agents.schema.replay import definitions_in
from streams.capture_log import Wanted
from streams.consume import read_topic
from streams.events import CommitsRecorded, RollbackChanged, RollbackPlanned, SchemaRecorded
from streams.formats.binlog.events import Query, parse_format_description
from streams.formats.binlog.names import may_write, table_name
from streams.formats.binlog.step import MARKER_TABLE, UNDO, Summariser
from streams.formats.errors import FormatError
from streams.paths import Turn, path_at, turn
from streams.settings import KafkaSettings
from streams.topics import topic_name

_log = logging.getLogger("holdfast.rollback")


class LogEnd(Protocol):
    """What is needed of `streams.capture_log.Tail`."""

    @property
    def lineage(self) -> str: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def record(self) -> CommitsRecorded | None: ...


class Log(Protocol):
    """What is needed of `streams.capture_log.CaptureLog`."""

    def tail(self) -> LogEnd | None: ...
    def steps(
        self, lineage: str, first: int, last: int, near: int | None = None, wanted: Wanted | None = None
    ) -> Iterable[Fragment]: ...


@dataclass(frozen=True, slots=True)
class History:
    """The rollbacks of one source: plans by id, and every change of their states, in the order of the topic."""

    plans: dict[str, RollbackPlanned] = field(default_factory=dict)
    changes: dict[str, list[RollbackChanged]] = field(default_factory=dict)

    def state(self, plan: str) -> str:
        """`planned`, or the last state that it was said to be in. A final state stays, whoever says more."""
        said = [c.state for c in self.changes.get(plan, [])]
        return next((s for s in said if s in FINAL), said[-1] if said else "planned")

    def undecided(self) -> list[str]:
        """Plans that were begun and of which nobody has said how they ended."""
        return [plan for plan in self.plans if self.state(plan) in UNDECIDED]

    def last(self, plan: str, state: str) -> RollbackChanged | None:
        """The last change into `state`."""
        return next((c for c in reversed(self.changes.get(plan, [])) if c.state == state), None)


def read_history(kafka: KafkaSettings, source: str) -> History:
    """Everything said so far about `source`'s rollbacks."""
    history = History()
    for message in read_topic(kafka, topic_name(kafka.prefix, "rollbacks")):
        event = message.event
        if message.key != source:
            continue
        if isinstance(event, RollbackPlanned):
            history.plans.setdefault(event.plan, event)
        elif isinstance(event, RollbackChanged):
            history.changes.setdefault(event.plan, []).append(event)
    return history


def read_schema(
    kafka: KafkaSettings, source: str, lineage: str, ordinal: int, *, log: Log | None = None, first: int = 0
) -> Schema:
    """The source's schema as it was recorded after step `ordinal`; with `log`, what has been redefined from step `first` on."""
    events = (m.event for m in read_topic(kafka, topic_name(kafka.prefix, "schema", source)))
    mine = (e for e in events if isinstance(e, SchemaRecorded) and e.lineage == lineage and e.ordinal <= ordinal)
    state, trusted = State(), True
    found: list[Redefinition] = []
    for version, origin in versions(mine):
        # A live schema may be that of a later step: what happened at this one, and at the next, it does not tell.
        known, trusted = trusted and origin != "live", origin != "live"
        if log is not None and version.ordinal >= max(first, 1):
            queries = _definitions(log, lineage, version.ordinal)
            found.append(redefinition(version.ordinal, queries, state.tables, version.tables if known else None))
        state = version
    return Schema(state.tables, state.version, Redefinitions(found) if log is not None else None)


def _definitions(log: Log, lineage: str, ordinal: int) -> list[Query]:
    """The definition statements of one step, which stand in its first fragment."""
    for fragment in log.steps(lineage, ordinal, ordinal):
        if fragment.payload is None or fragment.accounts:
            return []
        described = parse_format_description(fragment.preamble)
        return [q for q in definitions_in(described, fragment.payload) if not own_definition(q)]
    return []


def turns(history: History, log: Log, lineage: str) -> list[Turn]:
    """The rollbacks that happened in this lineage, ascending."""
    out = []
    for plan, planned in history.plans.items():
        if planned.lineage != lineage or planned.kind == UNDO or history.state(plan) != "applied":
            continue
        applied = history.last(plan, "applied")
        ordinal = applied.ordinal if applied is not None else 0
        if not ordinal:
            # Capture was behind when the agent said so: the marker tells the step.
            ordinal = find_marker(log, lineage, plan, planned.head_ordinal) or 0
        if not ordinal:
            raise AgentError(
                "turn-unknown", f"the step of rollback {plan} has not been captured yet", "try again when capture runs"
            )
        out.append(turn(planned, ordinal))
    return sorted(out, key=lambda t: t.ordinal)


def find_marker(log: Log, lineage: str, plan: str, after: int) -> int | None:
    """The step after ordinal `after` that is the rollback `plan`'s own; None when it is not in the log (yet)."""
    tail = log.tail()
    if tail is None or tail.lineage != lineage or tail.ordinal <= after:
        return None
    reading: Summariser | None = None
    wanted = partial(may_write, name=table_name(MARKER_TABLE))
    for fragment in log.steps(lineage, after + 1, tail.ordinal, wanted=wanted):
        if fragment.number == 0:
            reading = Summariser(fragment.preamble)
        if reading is None or fragment.payload is None:
            continue
        try:
            reading.feed(fragment.payload)
        except FormatError as error:
            # A rollback is rows and nothing else: what cannot be read is somebody else's.
            _log.warning("step %d is passed over in search of rollback %s: %s", fragment.ordinal, plan, error)
            reading = None
            continue
        told = reading.finish()
        if plan in told.markers:
            return fragment.ordinal
        if told.changes:
            reading = None  # the marker is the first row that the transaction writes
    return None


def check_paths(request: Request, known: list[Turn], head: int) -> None:
    """Whether the log still says what the request was made from. Raises `AgentError` (`path-stale`, `target-unknown`)."""
    if request.head_ordinal > head:
        raise AgentError(
            "path-stale", f"the plan is for step {request.head_ordinal}, the log ends at {head}", "plan again"
        )
    if path_at(request.head_ordinal, known) != request.path_before:
        raise AgentError(
            "path-stale",
            f"which steps stand at step {request.head_ordinal} is not what the plan was asked with",
            "another rollback was applied meanwhile: plan again",
        )
    if request.kind != UNDO and path_at(request.target_ordinal, known) != request.path_after:
        raise AgentError(
            "target-unknown", f"the path asked for is not the one at step {request.target_ordinal}", "plan again"
        )
