"""Jobs: what was asked for (`commands`), what became of it (`jobs`), and every change on the way.

A job's changes share a key, so they come in order; the command is on another topic and may come before or after them,
so it fills columns of its own. A final state stays: what a fenced agent still says about a finished job is in the
history only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import kwargs_row

from projections.views.base import Connection, Cursor, clock, dump_problems, event_id, load_problems, text, where
from streams.events import FINAL_STATES, CommandRequested, JobChanged, Problem

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "jobs"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {"job": ("job",), "job_event": ("job", "event")}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("commands", "jobs")


@dataclass(frozen=True, slots=True)
class Job:
    """A job. `state` is `requested` while only the command is known, then that of its last change (`warned` changes no
    state, it adds `problems`). `requested_us` is None when the command is not known (yet). `parameters` and `result`
    are JSON or empty."""

    job: str
    kind: str
    asset: str
    requester: str
    requested_us: int | None
    deadline_us: int | None
    parameters: str
    state: str
    state_us: int
    state_by: str
    message: str
    done: int
    total: int
    unit: str
    problems: tuple[Problem, ...]
    result: str
    started_us: int | None
    finished_us: int | None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One change of a job. `(hlc, event)` orders a job's changes and is what `events(after=…)` takes."""

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


# --- apply ----------------------------------------------------------------------------------------------------------

_COMMAND = """
INSERT INTO job AS j (job, kind, asset, requester, requested_us, deadline_us, parameters)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (job) DO UPDATE SET
    requester = excluded.requester, requested_us = excluded.requested_us, deadline_us = excluded.deadline_us,
    parameters = excluded.parameters, kind = excluded.kind, asset = excluded.asset
WHERE j.requested_us IS NULL
"""

# The first command of an id counts, and its kind and asset count more than what a change repeats.
_CHANGE = """
WITH new AS (
    INSERT INTO job_event (job, event, hlc, at_us, state, by, message, done, total, unit, problems, result)
    VALUES (%(job)s, %(event)s, %(hlc)s, %(at_us)s, %(state)s, %(by)s, %(message)s, %(done)s, %(total)s, %(unit)s,
            %(problems)s, %(result)s)
    ON CONFLICT DO NOTHING RETURNING *
)
INSERT INTO job AS j (job, kind, asset, state, state_us, state_by, message, done, total, unit, problems, result,
                      started_us, finished_us)
SELECT job, %(kind)s::text, %(asset)s::text, state, at_us, by, message, done, total, unit, problems, result,
       CASE WHEN state = 'started' THEN at_us END,
       CASE WHEN state IN ('finished', 'failed', 'cancelled') THEN at_us END
FROM new
ON CONFLICT (job) DO UPDATE SET
    kind = CASE WHEN j.requested_us IS NULL THEN excluded.kind ELSE j.kind END,
    asset = CASE WHEN j.requested_us IS NULL THEN excluded.asset ELSE j.asset END,
    state = CASE WHEN excluded.state = 'warned' AND j.state <> 'requested' THEN j.state ELSE excluded.state END,
    state_us = excluded.state_us, state_by = excluded.state_by,
    message = CASE excluded.message WHEN '' THEN j.message ELSE excluded.message END,
    done = CASE WHEN (excluded.done, excluded.total, excluded.unit) = (0, 0, '') THEN j.done ELSE excluded.done END,
    total = CASE WHEN (excluded.done, excluded.total, excluded.unit) = (0, 0, '') THEN j.total ELSE excluded.total END,
    unit = CASE WHEN (excluded.done, excluded.total, excluded.unit) = (0, 0, '') THEN j.unit ELSE excluded.unit END,
    problems = CASE excluded.problems WHEN '[]' THEN j.problems ELSE excluded.problems END,
    result = CASE excluded.result WHEN '' THEN j.result ELSE excluded.result END,
    started_us = coalesce(j.started_us, excluded.started_us),
    finished_us = excluded.finished_us
WHERE j.state NOT IN ('finished', 'failed', 'cancelled')
"""


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Commands and changes. The two fill different columns, so each kind goes in one round trip, in order."""
    commands = [_command(m.event) for m in messages if isinstance(m.event, CommandRequested)]
    changes = [_change(m.event, m) for m in messages if isinstance(m.event, JobChanged)]
    if commands:
        cursor.executemany(_COMMAND, commands)
    if changes:
        cursor.executemany(_CHANGE, changes)


def _command(event: CommandRequested) -> tuple[Any, ...]:
    return (
        event.command,
        text(event.kind),
        text(event.asset),
        text(event.requester),
        event.requested_us,
        event.deadline_us,
        text(event.parameters),
    )


def _change(event: JobChanged, message: Message) -> dict[str, Any]:
    return {
        "job": event.job,
        "event": event_id(message),
        "hlc": clock(message),
        "at_us": event.at_us,
        "state": text(event.state),
        "by": text(event.by),
        "message": text(event.message),
        "done": event.done,
        "total": event.total,
        "unit": text(event.unit),
        "problems": dump_problems(event.problems),
        "result": text(event.result),
        "kind": text(event.kind),
        "asset": text(event.asset),
    }


# --- queries --------------------------------------------------------------------------------------------------------


def _job(**row: Any) -> Job:
    return Job(**row | {"problems": load_problems(row["problems"])})


def _job_event(**row: Any) -> JobEvent:
    return JobEvent(**row | {"problems": load_problems(row["problems"])})


def job(conn: Connection, job_id: str) -> Job | None:
    with conn.cursor(row_factory=kwargs_row(_job)) as cur:
        return cur.execute("SELECT * FROM job WHERE job = %s", (job_id,)).fetchone()


def jobs(
    conn: Connection,
    *,
    asset: str | None = None,
    kind: str | None = None,
    state: str | None = None,
    active: bool = False,
    before: str | None = None,
    limit: int = 50,
) -> list[Job]:
    """Newest first (ids are UUIDv7, so by id); `before` is the id that the page before ended with; `active`: not yet
    final."""
    condition, values = where(("asset = %s", asset), ("kind = %s", kind), ("state = %s", state), ("job < %s", before))
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
