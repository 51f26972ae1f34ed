"""Rows and events as the JSON that `schemas/openapi.yaml` promises. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from projections.views.access import Token
from projections.views.assets import Asset, Host
from projections.views.audit import Call
from projections.views.catalogue import Source
from projections.views.copies import Scratch, TablePlan
from projections.views.dashboard import AgentHealth
from projections.views.jobs import Job
from projections.views.repositories import Holding, Point, PointMark, Repository
from projections.views.timeline import Plan
from streams.events import Problem, RollbackChanged, RollbackPlanned
from streams.ids import now_us
from streams.paths import Path
from streams.publish import rfc3339

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time(us: int | None) -> str | None:
    """RFC 3339, UTC, µs; null for what has no time."""
    return rfc3339(us) if us else None


def microseconds(text: str) -> int:
    """Of a time that has been checked to be RFC 3339."""
    moment = datetime.fromisoformat(text.upper())
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)


def problems(found: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"code": p.code, "message": p.message, "hint": p.hint} for p in found]


def path(ranges: Path) -> list[list[int]]:
    return [[r.first, r.last] for r in ranges]


def json_object(text: str) -> dict[str, Any]:
    """What an event carries as a JSON object in text; empty when it is none."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def source(row: Source, agents: Iterable[AgentHealth]) -> dict[str, Any]:
    """A source with how far it is captured: what agents have reported since its state last changed, or that change."""
    reports = [a for a in agents if a.source == row.source]
    since = [(a.ordinal, a.position) for a in reports if a.position and a.at_us > row.state_us]
    ordinal, position = max([(row.ordinal, row.position), *since])
    return {
        "name": row.source,
        "kind": row.kind,
        "host": row.host,
        "port": row.port,
        "tls": row.tls,
        "accounts": dict(row.accounts),
        "options": dict(row.options),
        "state": row.state,
        "since": time(row.state_us),
        "by": row.state_by,
        "defined": time(row.defined_us),
        "problems": problems(row.problems),
        "capability": list(row.capability),
        "server_version": row.server_version,
        "lineage": row.lineage,
        "ordinal": ordinal,
        "position": position,
        "baseline": row.baseline,
        "agents": [
            {"agent": a.agent, "state": a.state, "at": time(a.at_us), "figures": dict(a.figures)} for a in reports
        ],
    }


def job(row: Job) -> dict[str, Any]:
    return {
        "job": row.job,
        "kind": row.kind,
        "asset": row.asset,
        "state": row.state,
        "message": row.message,
        "done": row.done,
        "total": row.total,
        "unit": row.unit,
        "problems": problems(row.problems),
        "result": json_object(row.result),
        "requester": row.requester,
        "requested": time(row.requested_us),
        "since": time(row.state_us or row.requested_us),
        "by": row.state_by,
        "final": row.final,
        "priority": row.priority,
        "node": row.node,
        "deadline": time(row.deadline_us),
        "started": time(row.started_us),
        "finished": time(row.finished_us),
        "holder": row.holder,
        "claims": row.claims,
        "cancel": {"by": row.cancel, "at": time(row.cancel_us)} if row.cancel else None,
    }


def plan(row: Plan) -> dict[str, Any]:
    return {
        "plan": row.plan,
        "source": row.source,
        "lineage": row.lineage,
        "kind": row.kind,
        "state": row.state,
        "since": time(row.state_us or row.planned_us),
        "by": row.state_by or row.planned_by,
        "target": row.target,
        "target_ordinal": row.target_ordinal,
        "target_time": time(row.target_time_us),
        "head": row.head_ordinal,
        "path_before": path(row.path_before),
        "path_after": path(row.path_after),
        "undo": path(row.undo),
        "redo": path(row.redo),
        "steps": row.steps,
        "rows": row.rows,
        "bytes": row.payload_bytes,
        "tables": [
            {
                "schema": t.schema,
                "table": t.table,
                "inserts": t.inserts,
                "updates": t.updates,
                "deletes": t.deletes,
                "keyed": t.keyed,
            }
            for t in row.tables
        ],
        "obstacles": problems(row.obstacles),
        "warnings": problems(row.warnings),
        "dependants": [{"ordinal": d.ordinal, "tables": list(d.tables), "taken": d.taken} for d in row.dependants],
        "dependant_steps": row.dependant_steps,
        "runnable": row.runnable,
        "options": json_object(row.options),
        "estimate_ms": row.estimate_ms,
        "digest": row.digest.hex(),
        "planned": time(row.planned_us),
        "planned_by": row.planned_by,
        "position": row.position,
        "ordinal": row.ordinal,
        "applied_rows": row.applied_rows,
        "problems": problems(row.problems),
    }


def planned(event: RollbackPlanned) -> Plan:
    """A plan as its event alone tells it, before anything became of it."""
    return Plan(
        plan=event.plan,
        source=event.source,
        lineage=event.lineage,
        kind=event.kind,
        target=event.target,
        target_ordinal=event.target_ordinal,
        target_time_us=event.target_time_us,
        head_ordinal=event.head_ordinal,
        path_before=event.path_before,
        path_after=event.path_after,
        undo=event.undo,
        redo=event.redo,
        steps=event.steps,
        rows=event.rows,
        payload_bytes=event.payload_bytes,
        tables=event.tables,
        obstacles=event.obstacles,
        warnings=event.warnings,
        dependants=event.dependants,
        dependant_steps=event.dependant_steps,
        schema_version=event.schema_version,
        options=event.options,
        estimate_ms=event.estimate_ms,
        digest=event.digest,
        planned_us=event.planned_us,
        planned_by=event.by,
        state="planned",
        state_us=0,
        state_by="",
        read_only_before="",
        position="",
        ordinal=0,
        applied_rows=0,
        problems=(),
    )


def changed(row: Plan, event: RollbackChanged) -> Plan:
    """`row` after `event`; once applied it stays applied (`projections.views.plans`)."""
    if row.state == "applied":
        return row
    return replace(
        row,
        state=event.state,
        state_us=event.at_us,
        state_by=event.by,
        read_only_before=event.read_only_before or row.read_only_before,
        position=event.position or row.position,
        ordinal=event.ordinal or row.ordinal,
        applied_rows=event.rows or row.applied_rows,
        problems=event.problems,
    )


def token(row: Token, now_us: int) -> dict[str, Any]:
    return {
        "token": row.token,
        "actor": row.actor,
        "role": row.role,
        "issued": time(row.issued_us),
        "expires": time(row.expires_us),
        "issued_by": row.issued_by,
        "revoked": time(row.revoked_us),
        "revoked_by": row.revoked_by,
        "usable": row.valid(now_us),
    }


def call(row: Call) -> dict[str, Any]:
    return {
        "request": row.request,
        "at": time(row.at_us),
        "actor": row.actor,
        "role": row.role,
        "token": row.token,
        "action": row.action,
        "object": row.object,
        "outcome": row.outcome,
        "detail": json_object(row.detail),
        "remote": row.remote,
    }


def scratch(row: Scratch) -> dict[str, Any]:
    return {
        "name": row.scratch,
        "source": row.source,
        "state": row.state,
        "since": time(row.at_us),
        "by": row.by,
        "lineage": row.lineage,
        "ordinal": row.ordinal,
        "position": row.position,
        "tables": list(row.tables),
        "host": row.host,
        "port": row.port,
        "socket": row.socket,
        "account": row.account,
        "password_file": row.password_file,
        "expires": time(row.expires_us),
        "bytes": row.size_bytes,
        "job": row.job,
        "problems": problems(row.problems),
    }


def table_plan(row: TablePlan) -> dict[str, Any]:
    facts = row.facts
    same = ("lineage", "schema", "table", "target", "target_ordinal", "rows_now", "rows_then", "definition_now",
            "definition_then", "foreign_keys", "triggers", "privileges", "shadow", "scratch", "digest")  # fmt: skip
    return {
        "plan": row.plan,
        "source": row.source,
        "state": row.state,
        "since": time(row.at_us or facts["planned_us"]),
        **{name: facts[name] for name in same},
        "target_time": time(facts["target_time_us"]),
        "head": facts["head_ordinal"],
        "keeps": facts["kept"],
        "obstacles": problems(facts["obstacles"]),
        "warnings": problems(facts["warnings"]),
        "runnable": not facts["obstacles"],
        "planned": time(facts["planned_us"]),
        "planned_by": facts["by"],
        "position": row.position,
        "applied_rows": row.rows,
        "kept": row.kept,
        "problems": problems(row.problems),
    }


def repository(row: Repository, holds: Holding) -> dict[str, Any]:
    return {
        "name": row.repository,
        "id": row.identity,
        "kind": row.store,
        "place": row.location,
        "encrypted": row.encrypted,
        "options": dict(row.options),
        "keep": row.options.get("keep", ""),
        "protected_from": list(row.protected_from),
        "defined": time(row.first_us),
        "by": row.node,
        "points": holds.points,
        "assets": holds.assets,
        "stored": holds.stored_bytes,
        "newest": time(holds.newest_us),
        "sessions": [
            {"session": s.session, "kind": s.kind, "asset": s.asset, "by": s.node, "opened": time(s.opened_us)}
            for s in holds.sessions
        ],
        "collection": {
            "collection": holds.collection.collection,
            "state": holds.collection.state,
            "at": time(holds.collection.at_us),
            "freed": holds.collection.freed_bytes,
        }
        if holds.collection is not None
        else None,
        "checks": [
            {
                "what": c.what,
                "mode": c.mode,
                "at": time(c.at_us),
                "by": c.by,
                "figures": dict(c.figures),
                "problems": problems(c.problems),
            }
            for c in holds.checks
        ],
        "problems": [p for c in holds.checks for p in problems(c.problems)],
    }


def host(row: Host) -> dict[str, Any]:
    return {
        "name": row.host,
        "kind": row.kind,
        "url": row.url,
        "account": row.account,
        "options": dict(row.options),
        "version": row.version,
        "state": row.state,
        "problems": problems(row.problems),
        "defined": time(row.first_us),
        "since": time(row.defined_us),
        "by": row.by,
        "machines": row.machines,
    }


def asset(row: Asset, newest: Point | None) -> dict[str, Any]:
    return {
        **{
            name: getattr(row, name) for name in ("asset", "state", "host", "native", "name", "folder", "power", "cpus")
        },
        "memory": row.memory,
        "firmware": row.firmware,
        "tags": list(row.tags),
        "disks": [dict(disk) for disk in row.disks],
        "nics": [dict(nic) for nic in row.nics],
        "first_seen": time(row.first_us),
        "seen": time(row.seen_us),
        "point": {
            "point": newest.point,
            "repository": newest.repository,
            "created": time(newest.created_us),
            "size": newest.size_bytes,
            "mode": newest.facts.get("mode", ""),
            "consistency": newest.facts.get("consistency", ""),
        }
        if newest is not None
        else None,
    }


def point(row: Point, marks: Iterable[PointMark], as_of_us: int | None = None) -> dict[str, Any]:
    """`as_of_us`: what was said later is left out; `marks` are those of then."""
    said = list(marks)
    now = as_of_us if as_of_us is not None else now_us()
    dropped = row.dropped_us is not None and (as_of_us is None or row.dropped_us <= as_of_us)
    held: set[str] = set()
    for mark in said:
        if mark.mark == "release":
            held.discard(mark.name)
        elif mark.mark == "hold" and (mark.until_us is None or mark.until_us > now):
            held.add(mark.name)
    word = next((m for m in reversed(said) if m.mark in ("suspect", "damaged", "verified")), None)
    return {
        "point": row.point,
        "repository": row.repository,
        "asset": row.asset,
        "kind": row.kind,
        "created": time(row.created_us),
        "sealed": time(row.sealed_us),
        "session": row.session,
        "by": row.by,
        "previous": row.continues or None,
        "size": row.size_bytes,
        # The record of an earlier release has no figures; every backup meets a chunk.
        "stored": None if row.adopted and not row.figures.get("chunks") else row.stored_bytes,
        "digest": row.record,
        "disks": [dict(d) for d in row.disks],
        "starred": _last(said, "star", "unstar") == "star",
        "held": bool(held),
        "suspect": word is not None and word.mark != "verified",
        "condition": word.mark if word is not None else "",
        "verified": time(word.marked_us) if word is not None and word.mark == "verified" else None,
        "marks": [
            {
                "mark": m.mark,
                "name": m.name,
                "at": time(m.marked_us),
                "by": m.by,
                "note": m.note,
                "until": time(m.until_us),
            }
            for m in said
        ],
        "dropped": time(row.dropped_us) if dropped else None,
        "dropped_by": row.dropped_by if dropped else "",
        "why": row.reason if dropped else "",
    }


def _last(marks: Iterable[PointMark], *names: str) -> str:
    return next((m.mark for m in reversed(list(marks)) if m.mark in names), "")
