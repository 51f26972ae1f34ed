"""Scratch copies, and rollbacks of one table that are made from them.

A copy's events share a key; the newest counts, and a name may be used again. A table's plan is
written once; its state is the last change's, or a final one that was said earlier.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import kwargs_row

from projections.views.base import (
    Connection,
    Cursor,
    canonical,
    clock,
    dump_problems,
    event_id,
    insert,
    load_problems,
    text,
)
from streams.events import Problem, ScratchChanged, TableRollbackChanged, TableRollbackPlanned

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "copies"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {
    "scratch": ("scratch",),
    "table_plan": ("plan",),
    "table_plan_change": ("plan", "event"),
}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory", "rollbacks")
FINAL = ("applied", "abandoned")


@dataclass(frozen=True, slots=True)
class Scratch:
    """A scratch copy as last said (`streams.events.copies.ScratchChanged`)."""

    scratch: str
    source: str
    state: str
    lineage: str | None
    ordinal: int
    position: str
    tables: tuple[str, ...]
    host: str
    port: int
    socket: str
    account: str
    password_file: str
    expires_us: int | None
    size_bytes: int
    job: str
    at_us: int
    by: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class TablePlan:
    """A plan for one table. `facts` are the event's own; the rest is what was said last."""

    plan: str
    source: str
    facts: Mapping[str, Any]
    state: str
    at_us: int
    position: str
    rows: int
    kept: str
    problems: tuple[Problem, ...]


_SCRATCH = """
INSERT INTO scratch AS s (scratch, source, state, lineage, ordinal, position, tables, host, port, socket, account,
                     password_file, expires_us, size_bytes, job, at_us, by, problems, hlc)
VALUES (%(scratch)s, %(source)s, %(state)s, %(lineage)s, %(ordinal)s, %(position)s, %(tables)s, %(host)s, %(port)s,
        %(socket)s, %(account)s, %(password_file)s, %(expires_us)s, %(size_bytes)s, %(job)s, %(at_us)s, %(by)s,
        %(problems)s, %(hlc)s)
ON CONFLICT (scratch) DO UPDATE SET
    source = excluded.source, state = excluded.state, lineage = excluded.lineage, ordinal = excluded.ordinal,
    position = excluded.position, tables = excluded.tables, host = excluded.host, port = excluded.port,
    socket = excluded.socket, account = excluded.account, password_file = excluded.password_file,
    expires_us = excluded.expires_us, size_bytes = excluded.size_bytes, job = excluded.job, at_us = excluded.at_us,
    by = excluded.by, problems = excluded.problems, hlc = excluded.hlc
WHERE excluded.hlc > s.hlc
"""
_PLANNED = insert("table_plan", "plan, source, event")
_CHANGED = insert("table_plan_change", "plan, event, hlc, state, at_us, by, position, rows, kept, problems")


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Copies and table plans; other events of these topics are other views'."""
    for message in messages:
        match message.event:
            case ScratchChanged() as e:
                cursor.execute(_SCRATCH, _scratch(e) | {"hlc": clock(message)})
            case TableRollbackPlanned() as e:
                cursor.execute(_PLANNED, (e.plan, text(e.source), canonical(_facts(e))))
            case TableRollbackChanged() as e:
                said = (e.plan, event_id(message), clock(message), text(e.state), e.at_us, text(e.by))
                came = (text(e.position), e.rows, text(e.kept), dump_problems(e.problems))
                cursor.execute(_CHANGED, (*said, *came))


def _scratch(e: ScratchChanged) -> dict[str, Any]:
    return {
        "scratch": e.scratch,
        "source": text(e.source),
        "state": text(e.state),
        "lineage": e.lineage,
        "ordinal": e.ordinal,
        "position": text(e.position),
        "tables": canonical(list(e.tables)),
        "host": text(e.host),
        "port": e.port,
        "socket": text(e.socket),
        "account": text(e.account),
        "password_file": text(e.password_file),
        "expires_us": e.expires_us,
        "size_bytes": e.size_bytes,
        "job": text(e.job),
        "at_us": e.at_us,
        "by": text(e.by),
        "problems": dump_problems(e.problems),
    }


def _facts(e: TableRollbackPlanned) -> dict[str, Any]:
    problems = {name: [[p.code, p.message, p.hint] for p in getattr(e, name)] for name in ("obstacles", "warnings")}
    lists = {name: [text(t) for t in getattr(e, name)] for name in ("foreign_keys", "triggers", "privileges")}
    texts = ("schema", "table", "target", "definition_now", "definition_then", "shadow", "kept", "scratch", "by")
    numbers = ("target_ordinal", "target_time_us", "head_ordinal", "rows_now", "rows_then", "planned_us", "lineage")
    return {
        **problems,
        **lists,
        **{name: text(getattr(e, name)) for name in texts},
        **{name: getattr(e, name) for name in numbers},
        "content": e.content.hex(),
        "digest": e.digest.hex(),
    }


def _scratch_row(**row: Any) -> Scratch:
    del row["hlc"]
    return Scratch(**row | {"tables": tuple(json.loads(row["tables"])), "problems": load_problems(row["problems"])})


def _plan_row(**row: Any) -> TablePlan:
    facts = json.loads(row.pop("event"))
    for name in ("obstacles", "warnings"):
        facts[name] = tuple(Problem(*p) for p in facts[name])
    problems = row.pop("problems")
    return TablePlan(**row, facts=facts, problems=load_problems(problems) if problems else ())


def scratch(conn: Connection, name: str) -> Scratch | None:
    """One copy, whatever became of it."""
    with conn.cursor(row_factory=kwargs_row(_scratch_row)) as cur:
        return cur.execute("SELECT * FROM scratch WHERE scratch = %s", (name,)).fetchone()


def scratches(conn: Connection, *, ended: bool = False) -> list[Scratch]:
    """All copies by name; those that ended or failed only when asked for."""
    with conn.cursor(row_factory=kwargs_row(_scratch_row)) as cur:
        cur.execute("SELECT * FROM scratch WHERE %s OR state IN ('making', 'ready') ORDER BY scratch", (ended,))
        return cur.fetchall()


_PLANS = """
SELECT p.plan, p.source, p.event, coalesce(c.state, 'planned') AS state, coalesce(c.at_us, 0) AS at_us,
       coalesce(c.position, '') AS position, coalesce(c.rows, 0) AS rows, coalesce(c.kept, '') AS kept,
       coalesce(c.problems, '') AS problems
FROM table_plan p LEFT JOIN LATERAL (
    SELECT * FROM table_plan_change t WHERE t.plan = p.plan
    ORDER BY t.state IN ('applied', 'abandoned') DESC, t.hlc DESC, t.event DESC LIMIT 1
) c ON true
"""


def table_plan(conn: Connection, plan: str) -> TablePlan | None:
    with conn.cursor(row_factory=kwargs_row(_plan_row)) as cur:
        return cur.execute(_PLANS + " WHERE p.plan = %s", (plan,)).fetchone()


def table_plans(conn: Connection, source: str, limit: int = 100) -> list[TablePlan]:
    """A source's table plans, newest first."""
    with conn.cursor(row_factory=kwargs_row(_plan_row)) as cur:
        return cur.execute(_PLANS + " WHERE p.source = %s ORDER BY p.plan DESC LIMIT %s", (source, limit)).fetchall()
