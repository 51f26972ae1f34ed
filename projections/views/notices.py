"""Notices: when an asset came to be late, was never backed up, is covered again.

All of it is in one partition, so what counts (`streams.protection_log`) is known where it is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.rows import class_row

from projections.views.base import Connection, Cursor, clock, event_id, text, where
from streams.events import ProtectionChanged
from streams.protection_log import counts

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "notices"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {"protection_change": ("kind", "asset", "event")}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory",)


@dataclass(frozen=True, slots=True)
class Notice:
    """A change that counts (`streams.events.protection.ProtectionChanged`)."""

    event: str
    hlc: int
    kind: str
    asset: str
    state: str
    before: str
    policy: str
    late_s: int
    proof: str
    at_us: int
    by: str


_CHANGE = """
INSERT INTO protection_change (kind, asset, event, hlc, counts, state, before, policy, late_s, proof, at_us, by)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_KNOWN = "SELECT 1 FROM protection_change WHERE kind = %s AND asset = %s AND event = %s"
_STANDING = """
SELECT state FROM protection_change WHERE kind = %s AND asset = %s AND counts = 1 ORDER BY hlc DESC, event DESC LIMIT 1
"""


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """What is said of protection; other events of this topic are other views'."""
    for message in messages:
        event = message.event
        if not isinstance(event, ProtectionChanged):
            continue
        of, number = (text(event.kind), text(event.asset)), event_id(message)
        if cursor.execute(_KNOWN, (*of, number)).fetchone():
            continue
        found = cursor.execute(_STANDING, of).fetchone()
        said = (text(event.state), text(event.before), text(event.policy), event.late_s, text(event.proof))
        ours = int(counts(found[0] if found else "", event))
        cursor.execute(_CHANGE, (*of, number, clock(message), ours, *said, event.at_us, text(event.by)))


def notices(
    conn: Connection,
    *,
    asset: str | None = None,
    state: str | None = None,
    before: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[Notice]:
    """Changes that count, newest first. `before` is `(hlc, event)` of the last one of the page before."""
    condition, values = where(
        ("counts = %s", 1), ("asset = %s", asset), ("state = %s", state), ("(hlc, event) < (%s, %s)", before)
    )
    columns = "event, hlc, kind, asset, state, before, policy, late_s, proof, at_us, by"
    query = sql.SQL("SELECT {} FROM protection_change {} ORDER BY hlc DESC, event DESC LIMIT %s").format(
        sql.SQL(columns), condition
    )
    with conn.cursor(row_factory=class_row(Notice)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()
