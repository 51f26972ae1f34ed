"""Jobs: what was asked for (`commands`), what became of it (`jobs`), and every change on the way.

A job's changes share a key, so they come in order; the command is on another topic and may come before or after them,
so it fills columns of its own. Which change counts is decided by `streams.job_states`, here as in agents; what does not
count (a fenced agent's word, a claim that came second) is in the history only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from psycopg import sql
from psycopg.rows import kwargs_row

from projections.views.base import Connection, Cursor, clock, dump_problems, event_id, load_problems, text, where
from streams.events import FINAL_STATES, CommandRequested, JobChanged, Problem
from streams.job_states import Life, Phase, after

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "jobs"
VERSION = 2
TABLES: Mapping[str, tuple[str, ...]] = {"job": ("job",), "job_event": ("job", "event")}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("commands", "jobs")


class Change(Protocol):
    """What `JobChanged` and the row of one have in common."""

    @property
    def state(self) -> str: ...
    @property
    def at_us(self) -> int: ...
    @property
    def by(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def problems(self) -> tuple[Problem, ...]: ...
    @property
    def result(self) -> str: ...
    @property
    def claim(self) -> str: ...
    @property
    def priority(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A job. `state` is `requested` while only the command is known, then that of its last change that counts (`warned` changes
    no state, it adds `problems`). `requested_us` is None when the command is not known (yet). `parameters` and `result` are JSON
    or empty. `node`: who alone is to do it; `asked_priority`: as it was asked for. From `phase` on: what
    `streams.job_states.Life` has, and when cancelling was asked for."""

    job: str
    kind: str
    asset: str
    requester: str = ""
    requested_us: int | None = None
    deadline_us: int | None = None
    parameters: str = ""
    node: str = ""
    asked_priority: int = 0
    state: str = "requested"
    state_us: int = 0
    state_by: str = ""
    message: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    problems: tuple[Problem, ...] = ()
    result: str = ""
    started_us: int | None = None
    finished_us: int | None = None
    phase: Phase = "waiting"
    claim: str | None = ""
    holder: str = ""
    last: str = ""
    claims: int = 0
    cancel: str = ""
    cancel_us: int | None = None
    priority_said: int | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def priority(self) -> int:
        return self.asked_priority if self.priority_said is None else self.priority_said

    @property
    def life(self) -> Life:
        return Life(
            self.phase, self.state, self.claim, self.holder, "", self.last, self.claims, self.cancel, self.priority_said
        )


def changed(job: Job, change: Change) -> Job:
    """A job after one more change; the very same object when that does not count."""
    before = job.life
    life = after(before, change)
    if life is before:
        return job
    out = replace(
        job,
        phase=life.phase,
        state=life.state,
        claim=life.claim,
        holder=life.holder,
        last=life.last,
        claims=life.claims,
        cancel=life.cancel,
        cancel_us=job.cancel_us if life.cancel == before.cancel else change.at_us,
        priority_said=life.priority,
        message=change.message or job.message,
        problems=change.problems or job.problems,
        result=change.result or job.result,
    )
    if change.state not in ("prioritised", "cancel_asked") or life.over:
        out = replace(out, state_us=change.at_us, state_by=change.by)
    if change.done or change.total or change.unit:
        out = replace(out, done=change.done, total=change.total, unit=change.unit)
    if change.state == "started" and job.started_us is None:
        out = replace(out, started_us=change.at_us)
    return replace(out, finished_us=change.at_us) if life.over else out


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One change of a job. `(hlc, event)` orders a job's changes and is what `events(after=…)` takes. `counted`: whether it said
    anything."""

    job: str
    event: str
    hlc: int
    at_us: int
    state: str
    by: str
    message: str
    done: int
    total: int
    unit: str
    problems: tuple[Problem, ...]
    result: str
    claim: str
    priority: int
    counted: bool


# --- apply ----------------------------------------------------------------------------------------------------------

_COMMAND = """
INSERT INTO job AS j (job, kind, asset, requester, requested_us, deadline_us, parameters, node, asked_priority)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (job) DO UPDATE SET
    requester = excluded.requester, requested_us = excluded.requested_us, deadline_us = excluded.deadline_us,
    parameters = excluded.parameters, node = excluded.node, asked_priority = excluded.asked_priority,
    kind = excluded.kind, asset = excluded.asset
WHERE j.requested_us IS NULL
"""
_EVENT = """
INSERT INTO job_event (job, event, hlc, at_us, state, by, message, done, total, unit, problems, result, claim, priority,
                       counted)
VALUES (%(job)s, %(event)s, %(hlc)s, %(at_us)s, %(state)s, %(by)s, %(message)s, %(done)s, %(total)s, %(unit)s,
        %(problems)s, %(result)s, %(claim)s, %(priority)s, %(counted)s)
"""
# The first command of an id counts, and its kind and asset count more than what a change repeats.
_JOB = """
INSERT INTO job AS j (job, kind, asset, state, state_us, state_by, message, done, total, unit, problems, result,
                      started_us, finished_us, phase, claim, holder, last, claims, cancel, cancel_us, priority_said)
VALUES (%(job)s, %(kind)s, %(asset)s, %(state)s, %(state_us)s, %(state_by)s, %(message)s, %(done)s, %(total)s, %(unit)s,
        %(problems)s, %(result)s, %(started_us)s, %(finished_us)s, %(phase)s, %(claim)s, %(holder)s, %(last)s, %(claims)s,
        %(cancel)s, %(cancel_us)s, %(priority_said)s)
ON CONFLICT (job) DO UPDATE SET
    state = excluded.state, state_us = excluded.state_us, state_by = excluded.state_by, message = excluded.message,
    done = excluded.done, total = excluded.total, unit = excluded.unit, problems = excluded.problems,
    result = excluded.result, started_us = excluded.started_us, finished_us = excluded.finished_us,
    phase = excluded.phase, claim = excluded.claim, holder = excluded.holder, last = excluded.last,
    claims = excluded.claims, cancel = excluded.cancel, cancel_us = excluded.cancel_us,
    priority_said = excluded.priority_said
"""


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Commands and changes. The two fill different columns, so each kind goes by itself, in order."""
    commands = [_command(m.event) for m in messages if isinstance(m.event, CommandRequested)]
    changes = {event_id(m): (m.event, clock(m)) for m in messages if isinstance(m.event, JobChanged)}
    if commands:
        cursor.executemany(_COMMAND, commands)
    if changes:
        _apply(cursor, changes)


def _apply(cursor: Cursor, changes: Mapping[str, tuple[JobChanged, int]]) -> None:
    """Changes by their ids, in order; those that are there already say nothing."""
    ids = sorted({change.job for change, _ in changes.values()})
    cursor.execute("SELECT event FROM job_event WHERE job = ANY(%s) AND event = ANY(%s)", (ids, list(changes)))
    known = {row[0] for row in cursor.fetchall()}
    with cursor.connection.cursor(row_factory=kwargs_row(_job)) as reading:
        found = {job.job: job for job in reading.execute("SELECT * FROM job WHERE job = ANY(%s)", (ids,))}
    rows = []
    for event, (said, hlc) in changes.items():
        if event in known:
            continue
        change = _clean(said)
        before = found.get(change.job) or Job(change.job, change.kind, change.asset)
        job = found[change.job] = changed(before, change)
        rows.append(_row(change, event, hlc, counted=job is not before))
    cursor.executemany(_EVENT, rows)
    cursor.executemany(_JOB, [_columns(job) for job in found.values()])


def _command(event: CommandRequested) -> tuple[Any, ...]:
    return (
        event.command,
        text(event.kind),
        text(event.asset),
        text(event.requester),
        event.requested_us,
        event.deadline_us,
        text(event.parameters),
        text(event.node),
        event.priority,
    )


def _clean(event: JobChanged) -> JobChanged:
    """With texts as PostgreSQL holds them, so that it makes no difference whether a job was stored in between."""
    return replace(
        event,
        kind=text(event.kind),
        asset=text(event.asset),
        state=text(event.state),
        by=text(event.by),
        message=text(event.message),
        unit=text(event.unit),
        result=text(event.result),
        claim=text(event.claim),
        problems=load_problems(dump_problems(event.problems)),
    )


def _row(event: JobChanged, number: str, hlc: int, *, counted: bool) -> dict[str, Any]:
    return {
        "job": event.job,
        "event": number,
        "hlc": hlc,
        "at_us": event.at_us,
        "state": event.state,
        "by": event.by,
        "message": event.message,
        "done": event.done,
        "total": event.total,
        "unit": event.unit,
        "problems": dump_problems(event.problems),
        "result": event.result,
        "claim": event.claim,
        "priority": event.priority,
        "counted": int(counted),
    }


def _columns(job: Job) -> dict[str, Any]:
    return {f.name: getattr(job, f.name) for f in fields(job)} | {"problems": dump_problems(job.problems)}


# --- queries --------------------------------------------------------------------------------------------------------


def _job(**row: Any) -> Job:
    return Job(**row | {"problems": load_problems(row["problems"])})


def _job_event(**row: Any) -> JobEvent:
    return JobEvent(**row | {"problems": load_problems(row["problems"]), "counted": bool(row["counted"])})


def job(conn: Connection, job_id: str) -> Job | None:
    with conn.cursor(row_factory=kwargs_row(_job)) as cur:
        return cur.execute("SELECT * FROM job WHERE job = %s", (job_id,)).fetchone()


def some(conn: Connection, job_ids: Sequence[str]) -> dict[str, Job]:
    """Those of these jobs that are known."""
    with conn.cursor(row_factory=kwargs_row(_job)) as cur:
        cur.execute("SELECT * FROM job WHERE job = ANY(%s)", (list(job_ids),))
        return {row.job: row for row in cur}


def jobs(
    conn: Connection,
    *,
    asset: str | None = None,
    kind: str | None = None,
    state: str | None = None,
    by: str | None = None,
    active: bool = False,
    before: str | None = None,
    limit: int = 50,
) -> list[Job]:
    """Newest first (ids are UUIDv7, so by id); `before` is the id that the page before ended with; `active`: not yet
    final; `by`: who asked for it, or holds or held it last; `kind`: a whole one, or what comes before its dot."""
    condition, values = where(
        ("asset = %s", asset),
        ("(kind = %s OR split_part(kind, '.', 1) = %s)", None if kind is None else (kind, kind)),
        ("state = %s", state),
        ("(requester = %s OR last = %s OR state_by = %s)", None if by is None else (by, by, by)),
        ("job < %s", before),
    )
    open_only = sql.SQL("AND state NOT IN ('finished', 'failed', 'cancelled')" if active else "")
    query = sql.SQL("SELECT * FROM job {} {} ORDER BY job DESC LIMIT %s").format(condition, open_only)
    with conn.cursor(row_factory=kwargs_row(_job)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()


def events(conn: Connection, job_id: str, after: tuple[int, str] = (-1, ""), limit: int = 1000) -> list[JobEvent]:
    """A job's changes in order, after the `(hlc, event)` of the last one seen."""
    with conn.cursor(row_factory=kwargs_row(_job_event)) as cur:
        cur.execute(
            "SELECT * FROM job_event WHERE job = %s AND (hlc, event) > (%s, %s) ORDER BY hlc, event LIMIT %s",
            (job_id, *after, limit),
        )
        return cur.fetchall()
