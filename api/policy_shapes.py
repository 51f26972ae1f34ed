"""Policies, their runs and how assets are protected, as the JSON that `schemas/openapi.yaml` promises. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from api.policies import Protected
from api.shapes import json_object, time
from projections.views.jobs import Job
from projections.views.notices import Notice
from projections.views.policies import PolicyRow, RunRow, Said
from streams.calendar import Due
from streams.policies import microseconds as us_of


def policy(row: PolicyRow, coming: Due | None, last: RunRow | None) -> dict[str, Any]:
    """`coming`: its next run; `last`: the one that was made last."""
    return {
        "name": row.policy,
        "version": row.version,
        "document": json_object(row.document),
        "note": row.note,
        "defined": time(row.defined_us),
        "by": row.by,
        "next": time(us_of(coming.start)) if coming else None,
        "last": _run(last) if last else None,
    }


def due(found: Mapping[str, int | None]) -> dict[str, Any]:
    return {name: time(us) for name, us in found.items()}


def _run(row: RunRow) -> dict[str, Any]:
    return {
        "run": row.run,
        "policy": row.policy,
        "version": row.version,
        "instant": time(row.instant_us),
        "fired": time(row.fired_us),
        "closes": time(row.closes_us),
        "ended": time(row.ended_us),
        "reason": row.reason,
        "message": row.message,
        "assets": list(row.assets),
        "left_out": dict(row.left_out),
        "figures": dict(row.figures),
        "by": row.by,
    }


def said(row: Said, made: RunRow | None) -> dict[str, Any]:
    """What was said of runs: one that was made, with how it ended, or why nothing was made of what was due."""
    return {
        "state": row.state,
        "at": time(row.at_us),
        "from": time(row.instant_us),
        "until": time(row.until_us or row.instant_us),
        "version": row.version,
        "reason": row.reason,
        "message": row.message,
        "left_out": dict(row.left_out),
        "by": row.by,
        "run": _run(made) if made is not None and row.state == "fired" else None,
    }


def run(number: str, row: RunRow | None, found: Iterable[Said], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """`state`: asked, going, ended or skipped."""
    lines = list(found)
    skipped = next((s for s in lines if s.state == "skipped"), None)
    state = "ended" if row and row.ended_us else "going" if row else "skipped" if skipped else "asked"
    return {
        "run": number,
        "policy": row.policy if row else lines[0].policy,
        "state": state,
        "reason": row.reason if row else skipped.reason if skipped else "asked",
        "message": row.message if row else skipped.message if skipped else "",
        "made": _run(row) if row else None,
        "tasks": tasks,
    }


def task(job: Job) -> dict[str, Any]:
    """A job of a run, as far as it is."""
    problem = job.problems[0].message if job.problems else ""
    return {
        "job": job.job,
        "state": job.state,
        "message": problem or job.message,
        "done": job.done,
        "total": job.total,
        "unit": job.unit,
    }


def notice(row: Notice) -> dict[str, Any]:
    return {
        "at": time(row.at_us),
        "asset": row.asset,
        "kind": row.kind,
        "state": row.state,
        "before": row.before,
        "policy": row.policy,
        "late_s": row.late_s,
        "proof": row.proof,
    }


def protected(found: Protected) -> dict[str, Any]:
    how = found.protection
    return {
        "asset": found.asset,
        "kind": found.kind,
        "host": found.host,
        "state": how.state,
        "late_s": how.late_us // 1_000_000,
        "policy": how.policy,
        "policies": list(how.policies),
        "points": found.points,
        "newest": time(how.sound_us),
        "verified": time(how.verified_us),
        "proof": how.proof,
    }
