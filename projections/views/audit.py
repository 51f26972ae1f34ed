"""The audit trail: every call of the API, by whom, and what came of it. A call is one event and never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.rows import class_row

from projections.views.base import Connection, Cursor, text, where
from streams.events import CallAudited

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "audit"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {"call": ("request",)}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("audit",)


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `outcome` is the HTTP status, `detail` a JSON object."""

    request: str
    at_us: int
    actor: str
    role: str
    token: str
    action: str
    object: str
    outcome: int
    detail: str
    remote: str


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """All calls of a batch in one statement."""
    rows = [
        (
            e.request,
            e.at_us,
            text(e.actor),
            text(e.role),
            text(e.token),
            text(e.action),
            text(e.object),
            e.outcome,
            text(e.detail),
            text(e.remote),
        )
        for e in (m.event for m in messages)
        if isinstance(e, CallAudited)
    ]
    if rows:
        cursor.execute(
            """
            INSERT INTO call (request, at_us, actor, role, token, action, object, outcome, detail, remote)
            SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
                                 %s::bigint[], %s::text[], %s::text[])
            ON CONFLICT DO NOTHING
            """,
            [list(column) for column in zip(*rows, strict=True)],
        )


def calls(
    conn: Connection,
    *,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
    outcome_from: int = 0,
    since_us: int | None = None,
    until_us: int | None = None,
    before: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[Call]:
    """Newest first; `since_us <= at_us < until_us`; `outcome_from` 400 asks for refused and failed calls; `before` is
    `(at_us, request)` of the last call of the page before."""
    condition, values = where(
        ("actor = %s", actor),
        ("action = %s", action),
        ("object = %s", object),
        ("outcome >= %s", outcome_from or None),
        ("at_us >= %s", since_us),
        ("at_us < %s", until_us),
        ("(at_us, request) < (%s, %s)", before),
    )
    query = sql.SQL("SELECT * FROM call {} ORDER BY at_us DESC, request DESC LIMIT %s").format(condition)
    with conn.cursor(row_factory=class_row(Call)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()
