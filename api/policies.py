"""Policies as the API knows them: said into the log and known to count, or not, before anybody is told; what is due of them,
what they select, how well assets are protected."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from api import shapes
from api.calls import Call
from api.errors import ApiError
from projections.protection import Captured, Cover, Kept, Protection, captured, protection
from projections.views import assets as machines
from projections.views import catalogue, dashboard, jobs, repositories
from projections.views import policies as view
from projections.views.base import Connection
from projections.views.policies import PolicyRow
from streams import calendar
from streams.calendar import Due
from streams.errors import StreamError
from streams.events import PolicyDefined, PolicyRemoved, PolicyRun
from streams.policies import Policy, microseconds, moment, parsed, schedule_of, selected

PATIENCE_S = 10.0
PROTECTION: Mapping[str, str] = {
    "policies": "inventory",
    "assets": "inventory",
    "repositories": "repository",
    "catalogue": "inventory",
    "jobs": "jobs",
}
"""The views that how well assets are protected follows from, and what they have to have seen of."""


def say(call: Call, event: PolicyDefined | PolicyRemoved | PolicyRun) -> None:
    """Publish, and return when it has come back and counted. Raises `ApiError` 409 (`policy-changed`): somebody else was first;
    503 (`log-behind`): it is in the log and was not seen yet."""
    live, came = call.site.live, threading.Event()
    number = ""
    leave = live.listen("inventory", event.key, lambda seen: came.set())
    try:
        number = call.site.log.publish(event)
        call.site.log.flush()
        while (verdict := live.counted(number)) is None:
            if not came.wait(PATIENCE_S):
                raise ApiError(
                    503,
                    "log-behind",
                    "it is in the log, and whether it counts is not known yet",
                    f"look with `holdfast policy show {event.policy}`",
                    headers={"Retry-After": "1"},
                )
            came.clear()
    finally:
        leave()
    if not verdict:
        raise ApiError(
            409,
            "policy-changed",
            f"policy {event.policy!r} was changed by somebody else meanwhile",
            f"look at what it is now: `holdfast policy show {event.policy}`",
        )


def policy_of(row: PolicyRow) -> Policy | None:
    """None for a document that a newer Holdfast has written."""
    try:
        return parsed(row.document)
    except StreamError:
        return None


def next_runs(conn: Connection, row: PolicyRow, now_us: int, count: int) -> list[Due]:
    """The runs that come, should nothing change. Of a rolling rule only the next is known, and none while one is under way."""
    policy = policy_of(row)
    if policy is None or not policy.enabled or row.removed_us is not None:
        return []
    schedule = schedule_of(policy)
    after_us, rolling = max(now_us, view.decided(conn, row.policy)), None
    if calendar.is_rolling(schedule) and not view.runs(conn, policy=row.policy, open_only=True, limit=1):
        ended_us = view.last_ended(conn, row.policy)
        rolling = moment(after_us if ended_us is None else ended_us)
    return calendar.next_runs(schedule, moment(after_us), count, rolling_from=rolling)


def try_out(policy: Policy, now_us: int, count: int) -> list[Due]:
    """The first runs of a policy that nobody has defined yet."""
    now = moment(now_us)
    return calendar.next_runs(schedule_of(policy), now, count, rolling_from=now)


def never_due(policy: Policy, now_us: int) -> None:
    """Raises `ApiError` 422 (`never-due`) for a policy that is switched on, has a schedule, and no run to come by it."""
    if policy.enabled and not policy.by_hand and not try_out(policy, now_us, 1):
        raise ApiError(
            422, "never-due", "this policy would never run: nothing is due that windows let begin",
            "look at its schedule, windows and blackouts",
        )  # fmt: skip


def known_repository(call: Call, conn: Connection, policy: Policy) -> None:
    """Raises `ApiError` 422 (`repository-unknown`)."""
    if not policy.repository:
        return
    call.site.catch_up(conn, "repositories", "repository", policy.repository)
    if repositories.repository(conn, policy.repository) is None:
        raise ApiError(
            422, "repository-unknown", f"there is no repository {policy.repository!r}", "`holdfast repository list`"
        )


def selection(conn: Connection, policy: Policy, as_of_us: int | None = None) -> list[str]:
    """What a run would be of at that moment."""
    there = machines.assets(conn, as_of_us=as_of_us) if policy.kind == "backup.run" else []
    return selected(policy, there)


@dataclass(frozen=True, slots=True)
class Protected:
    """An asset and how well it is protected. `kind`: machine, database, or data (files and images). `host` is empty for what is
    no machine, `points` counts those that stand."""

    asset: str
    kind: str
    host: str
    points: int
    protection: Protection


def protections(
    conn: Connection, now_us: int, *, asset: str | None = None, policy: str | None = None, as_of_us: int | None = None
) -> list[Protected]:
    """Every asset that is there, is named by a policy or has points, by name; then databases, which no policy backs up."""
    rows = view.policies(conn, as_of_us=as_of_us)
    since = view.first_defined(conn, as_of_us=as_of_us)
    seen = {row.asset: row for row in machines.assets(conn, as_of_us=as_of_us)}
    kept = repositories.kept(conn, as_of_us=as_of_us)
    whole = repositories.kept(conn, as_of_us=as_of_us, whole=True)
    covers: dict[str, list[Cover]] = {}
    for row in rows:
        found = policy_of(row)
        if found is None or not found.backs_up:
            continue
        for name in selected(found, seen.values()):
            covers.setdefault(name, []).append(Cover(row.policy, found, since[row.policy], name in dict(found.disks)))
    out = []
    for name in sorted({*seen, *covers, *kept}):
        if asset is not None and name != asset:
            continue
        if policy is not None and policy not in (c.name for c in covers.get(name, ())):
            continue
        machine = seen.get(name)
        held: dict[str, Kept] = kept.get(name, {})
        first_us = machine.first_us if machine else 0
        how = protection(now_us, covers.get(name, ()), held, whole=whole.get(name, {}), seen_us=first_us)
        host = machine.host if machine else ""
        out.append(Protected(name, "machine" if machine else "data", host, sum(k.points for k in held.values()), how))
    return out if policy is not None else out + _databases(conn, now_us, asset, as_of_us)


def _databases(conn: Connection, now_us: int, asset: str | None, as_of_us: int | None) -> list[Protected]:
    """What agents report is kept as it is now only: as of a moment nothing is known of how far capture was behind."""
    heard: dict[str, int] = {}
    for report in dashboard.agents(conn) if as_of_us is None else ():
        if (lag_ms := report.figures.get("lag_ms")) is not None:
            heard[report.source] = max(report.at_us - round(lag_ms * 1000), heard.get(report.source, 0))
    copies = _copies(conn, as_of_us)
    out = []
    for row in catalogue.standing(conn, as_of_us=as_of_us):
        if asset is None or row.source == asset:
            until_us = now_us if as_of_us is not None and row.state == "capturing" else heard.get(row.source)
            copied_us = copies.get((row.source, row.lineage or ""))
            source = Captured(row.state, row.at_us, row.lineage is not None, until_us, copied_us)
            out.append(Protected(row.source, "database", "", 0, captured(now_us, source)))
    return out


def _copies(conn: Connection, as_of_us: int | None) -> dict[tuple[str, str], int]:
    """(source, lineage) → when a scratch copy of all of it was made last: baseline and log were put together again."""
    found: dict[tuple[str, str], int] = {}
    for job in jobs.jobs(conn, kind="scratch.create", state="finished", limit=1000):
        asked = shapes.json_object(job.parameters)
        at_us = job.finished_us or 0
        if not asked.get("tables") and (as_of_us is None or at_us <= as_of_us):
            of = (str(asked.get("source")), str(asked.get("lineage")))
            found[of] = max(at_us, found.get(of, 0))
    return found


def due_json(runs: Iterable[Due], policy: Policy) -> list[dict[str, Any]]:
    """Runs to come, with when their windows close."""
    schedule = schedule_of(policy)
    out = []
    for run in runs:
        closing = calendar.closes(schedule, run.start)
        out.append({"instant": microseconds(run.instant), "start": microseconds(run.start),
                    "closes": microseconds(closing) if closing else None})  # fmt: skip
    return out
