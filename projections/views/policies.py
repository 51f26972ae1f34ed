"""Policies: their definitions, what stands, the runs that were made of them, and what was said of those that were not.

All of it is in one partition, so what counts (`streams.policy_log`) is known where it is applied. What was said is kept,
also what does not count; `as_of_us` asks how it was at a moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import kwargs_row

from projections.views.base import Connection, Cursor, canonical, clock, event_id, moment, text, where
from streams.events import PolicyDefined, PolicyRemoved, PolicyRun
from streams.policy_log import Standing, after, counts

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "policies"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {
    "policy_change": ("policy", "event"),
    "policy_standing": ("policy",),
    "policy_run": ("run",),
    "policy_said": ("policy", "event"),
}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory",)
_EVER = 0x7FFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A policy as last defined; `removed_us` when it is no more. `event` is the definition's."""

    policy: str
    event: str
    version: int
    document: str
    note: str
    defined_us: int
    by: str
    removed_us: int | None
    removed_by: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run that was made; `ended_us` None while it goes on."""

    run: str
    policy: str
    version: int
    instant_us: int
    closes_us: int | None
    reason: str
    message: str
    assets: tuple[str, ...]
    left_out: Mapping[str, str]
    figures: Mapping[str, int]
    fired_us: int
    by: str
    ended_us: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """Something that was said of a policy's runs and counts (`streams.events.policies.PolicyRun`)."""

    policy: str
    version: int
    run: str
    state: str
    instant_us: int
    until_us: int
    reason: str
    message: str
    left_out: Mapping[str, str]
    figures: Mapping[str, int]
    at_us: int
    by: str


# --- apply ----------------------------------------------------------------------------------------------------------

_CHANGE = """
INSERT INTO policy_change (policy, event, hlc, counts, state, version, document, note, at_us, by)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING 1
"""
_SAID = """
INSERT INTO policy_said (policy, event, hlc, counts, answered, version, run, state, instant_us, until_us, reason, message,
                         left_out, figures, at_us, by)
VALUES (%s, %s, %s, %s, 0, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING 1
"""
_FIRED = """
INSERT INTO policy_run (run, policy, version, instant_us, closes_us, reason, message, assets, left_out, figures, fired_us,
                        fired_hlc, by, ended_us, ended_hlc)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, '{}', %s, %s, %s, NULL, NULL) ON CONFLICT DO NOTHING
"""
_STANDING = """
INSERT INTO policy_standing (policy, version, document, removed, since_us, decided_us) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (policy) DO UPDATE SET version = excluded.version, document = excluded.document, removed = excluded.removed,
    since_us = excluded.since_us, decided_us = excluded.decided_us
"""


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Definitions, removals and what is said of runs; other events of this topic are other views'."""
    for message in messages:
        event = message.event
        if not isinstance(event, PolicyDefined | PolicyRemoved | PolicyRun):
            continue
        if cursor.execute(
            "SELECT 1 FROM policy_change WHERE policy = %(p)s AND event = %(e)s"
            " UNION ALL SELECT 1 FROM policy_said WHERE policy = %(p)s AND event = %(e)s",
            {"p": text(event.policy), "e": event_id(message)},
        ).fetchone():
            continue
        before = _standing(cursor, text(event.policy))
        if isinstance(event, PolicyRun):
            ours = counts(before, event) and _run_counts(cursor, event)
            _said(cursor, message, event, ours, before)
        else:
            ours = counts(before, event)
            _change(cursor, message, event, ours)
        if ours and (standing := after(before, event)) is not before:
            values = (int(standing.removed), standing.since_us, standing.decided_us)
            cursor.execute(_STANDING, (standing.policy, standing.version, text(standing.document), *values))


def _standing(cursor: Cursor, policy: str) -> Standing:
    row = cursor.execute(
        "SELECT version, document, removed, since_us, decided_us FROM policy_standing WHERE policy = %s", (policy,)
    ).fetchone()
    if row is None:
        return Standing(policy)
    return Standing(policy, row[0], row[1], bool(row[2]), row[3], row[4])


def _change(cursor: Cursor, message: Message, event: PolicyDefined | PolicyRemoved, ours: bool) -> None:
    match event:
        case PolicyDefined():
            said = ("defined", event.version, text(event.document), text(event.note), event.defined_us)
        case PolicyRemoved():
            said = ("removed", event.version, "", "", event.removed_us)
            if ours:
                cursor.execute(
                    "UPDATE policy_said SET answered = 1 WHERE policy = %s AND state = 'asked' AND counts = 1",
                    (text(event.policy),),
                )
    values = (text(event.policy), event_id(message), clock(message), int(ours), *said, text(event.by))
    cursor.execute(_CHANGE, values)


def _run_counts(cursor: Cursor, event: PolicyRun) -> bool:
    """What `streams.policy_log.PolicyLog` asks beside the standing."""
    run = cursor.execute("SELECT ended_us FROM policy_run WHERE run = %s", (text(event.run),)).fetchone()
    asked = cursor.execute(
        "SELECT 1 FROM policy_said WHERE run = %s AND state = 'asked' AND counts = 1 AND answered = 0",
        (text(event.run),),
    ).fetchone()
    match event.state:
        case "asked":
            return run is None and asked is None
        case "fired" | "skipped" if event.reason == "asked":
            return asked is not None
        case "ended":
            return run is not None and run[0] is None
    return True


def _said(cursor: Cursor, message: Message, event: PolicyRun, ours: bool, before: Standing) -> None:
    # What was decided before is not skipped by who did not know.
    instant_us = max(event.instant_us, before.decided_us + 1) if event.state == "skipped" else event.instant_us
    if event.reason == "asked":
        instant_us = event.instant_us
    run, hlc = text(event.run), clock(message)
    left_out, figures = canonical(_texts(event.left_out)), canonical(dict(event.figures))
    cursor.execute(
        _SAID,
        (text(event.policy), event_id(message), hlc, int(ours), event.version, run, text(event.state), instant_us,
         event.until_us, text(event.reason), text(event.message), left_out, figures, event.at_us, text(event.by)),
    )  # fmt: skip
    if not ours:
        return
    if event.state == "fired":
        assets = canonical([text(a) for a in event.assets])
        cursor.execute(
            _FIRED,
            (run, text(event.policy), event.version, event.instant_us, event.closes_us, text(event.reason),
             text(event.message), assets, left_out, event.at_us, hlc, text(event.by)),
        )  # fmt: skip
    elif event.state == "ended":
        cursor.execute(
            "UPDATE policy_run SET ended_us = %s, ended_hlc = %s, figures = %s WHERE run = %s",
            (event.at_us, hlc, figures, run),
        )
    if event.state in ("fired", "skipped") and event.reason == "asked":
        cursor.execute("UPDATE policy_said SET answered = 1 WHERE run = %s AND state = 'asked'", (run,))


def _texts(values: Mapping[str, str]) -> dict[str, str]:
    return {text(k): text(v) for k, v in values.items()}


# --- queries --------------------------------------------------------------------------------------------------------


_POLICIES = """
SELECT d.policy, d.event, d.version, d.document, d.note, d.at_us AS defined_us, d.by, r.at_us AS removed_us,
       coalesce(r.by, '') AS removed_by
FROM (
    SELECT DISTINCT ON (policy) * FROM policy_change
    WHERE state = 'defined' AND counts = 1 AND hlc <= %(until)s ORDER BY policy, version DESC
) d LEFT JOIN policy_change r
    ON r.policy = d.policy AND r.state = 'removed' AND r.counts = 1 AND r.version = d.version AND r.hlc <= %(until)s
"""


def policies(conn: Connection, *, removed: bool = False, as_of_us: int | None = None) -> list[PolicyRow]:
    """All policies by name; those that were removed only when asked for."""
    with conn.cursor(row_factory=kwargs_row(PolicyRow)) as cur:
        query = _POLICIES + " WHERE %(removed)s OR r.at_us IS NULL ORDER BY d.policy"
        return cur.execute(query, {"until": moment(as_of_us), "removed": removed}).fetchall()


def policy(conn: Connection, name: str, *, as_of_us: int | None = None) -> PolicyRow | None:
    """One policy, also a removed one."""
    with conn.cursor(row_factory=kwargs_row(PolicyRow)) as cur:
        query = _POLICIES + " WHERE d.policy = %(policy)s"
        return cur.execute(query, {"until": moment(as_of_us), "policy": name}).fetchone()


def definition(conn: Connection, name: str, version: int) -> PolicyRow | None:
    """One version of a policy, whatever became of it."""
    with conn.cursor(row_factory=kwargs_row(PolicyRow)) as cur:
        return cur.execute(
            """
            SELECT policy, event, version, document, note, at_us AS defined_us, by, NULL::bigint AS removed_us,
                   '' AS removed_by
            FROM policy_change WHERE policy = %s AND version = %s AND state = 'defined' AND counts = 1
            """,
            (name, version),
        ).fetchone()


def first_defined(conn: Connection, *, as_of_us: int | None = None) -> dict[str, int]:
    """Since when each policy has been there, its changes aside; one that was removed and defined anew: since then."""
    query = """
        SELECT DISTINCT ON (d.policy) d.policy, d.at_us FROM policy_change d
        WHERE d.state = 'defined' AND d.counts = 1 AND d.hlc <= %(until)s AND d.version > coalesce((
            SELECT max(r.version) FROM policy_change r
            WHERE r.policy = d.policy AND r.state = 'removed' AND r.counts = 1 AND r.hlc <= %(until)s
                AND EXISTS (SELECT FROM policy_change n WHERE n.policy = r.policy AND n.state = 'defined' AND n.counts = 1
                            AND n.version > r.version AND n.hlc <= %(until)s)), 0)
        ORDER BY d.policy, d.version
    """
    return dict(conn.execute(query, {"until": moment(as_of_us)}).fetchall())


def counted(conn: Connection, policy: str, event: str) -> bool | None:
    """Whether a definition or removal that was said (by its event id) counts; None while the view has not seen it."""
    found = conn.execute(
        "SELECT counts FROM policy_change WHERE policy = %s AND event = %s", (policy, event)
    ).fetchone()
    return None if found is None else bool(found[0])


def decided(conn: Connection, policy: str) -> int:
    """Up to which instant all is decided; 0 for what was never defined."""
    found = conn.execute("SELECT decided_us, since_us FROM policy_standing WHERE policy = %s", (policy,)).fetchone()
    return 0 if found is None else max(found)


def _run_row(until: int) -> Any:
    def row(**r: Any) -> RunRow:
        fired_hlc, ended_hlc = r.pop("fired_hlc"), r.pop("ended_hlc")
        assert fired_hlc <= until
        if ended_hlc is not None and ended_hlc > until:
            r |= {"ended_us": None, "figures": "{}"}
        lists = {"assets": tuple(json.loads(r["assets"]))}
        return RunRow(**{**r, **lists, **{n: json.loads(r[n]) for n in ("left_out", "figures")}})

    return row


def runs(
    conn: Connection,
    *,
    policy: str | None = None,
    open_only: bool = False,
    as_of_us: int | None = None,
    before: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[RunRow]:
    """Runs, newest first. `before` is `(fired_us, run)` of the last one of the page before."""
    until = moment(as_of_us)
    condition, values = where(
        ("policy = %s", policy),
        ("fired_hlc <= %s", until),
        ("(ended_hlc IS NULL OR ended_hlc > %s)", until if open_only else None),
        ("(fired_us, run) < (%s, %s)", before),
    )
    with conn.cursor(row_factory=kwargs_row(_run_row(until))) as cur:
        query = sql.SQL("SELECT * FROM policy_run {} ORDER BY fired_us DESC, run DESC LIMIT %s").format(condition)
        found: list[RunRow] = cur.execute(query, [*values, limit]).fetchall()
        return found


def run(conn: Connection, name: str) -> RunRow | None:
    with conn.cursor(row_factory=kwargs_row(_run_row(_EVER))) as cur:
        found: RunRow | None = cur.execute("SELECT * FROM policy_run WHERE run = %s", (name,)).fetchone()
        return found


def last_ended(conn: Connection, policy: str) -> int | None:
    """When the last run that ended did."""
    found = conn.execute("SELECT max(ended_us) FROM policy_run WHERE policy = %s", (policy,)).fetchone()
    assert found is not None
    ended: int | None = found[0]
    return ended


def said(
    conn: Connection,
    *,
    policy: str | None = None,
    run: str | None = None,
    as_of_us: int | None = None,
    limit: int = 100,
) -> list[Said]:
    """What was said of runs and counts, newest first."""
    condition, values = where(
        ("counts = %s", 1), ("policy = %s", policy), ("run = %s", run), ("hlc <= %s", moment(as_of_us))
    )
    columns = "policy, version, run, state, instant_us, until_us, reason, message, left_out, figures, at_us, by"
    query = sql.SQL("SELECT {} FROM policy_said {} ORDER BY hlc DESC, event DESC LIMIT %s").format(
        sql.SQL(columns), condition
    )

    def row(**r: Any) -> Said:
        return Said(**{**r, **{n: json.loads(r[n]) for n in ("left_out", "figures")}})

    with conn.cursor(row_factory=kwargs_row(row)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()
