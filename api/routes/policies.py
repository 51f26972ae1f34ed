"""Policies: said into the log by this API, made to happen by agents' schedulers. Whoever defines one names the version that it
changes, so that nobody's change is lost."""

from __future__ import annotations

import re
from typing import Any

from api import policies, policy_shapes, shapes
from api.calls import Call, Reply
from api.errors import ApiError, not_found
from projections.views import jobs
from projections.views import notices as notice_view
from projections.views import policies as view
from projections.views.base import Connection
from projections.views.policies import PolicyRow, RunRow
from streams.events import PolicyDefined, PolicyRemoved, PolicyRun
from streams.ids import now_us, slug
from streams.policies import canonical, command_id, parse, run_id, tasks

_ATTEMPTS = 2000  # tasks of a run that are shown with their jobs


def _moment(call: Call) -> int | None:
    text = call.parameters["as_of"]
    return shapes.microseconds(text) if text else None


def known(call: Call, conn: Connection, as_of_us: int | None = None) -> PolicyRow:
    """The policy that the path names. Raises `ApiError` 404 (`policy-unknown`)."""
    name = call.text("policy")
    call.site.catch_up(conn, "policies", "inventory", f"policy/{name}")
    found = view.policy(conn, name, as_of_us=as_of_us)
    if found is None or found.removed_us is not None:
        raise not_found("policy", name, "`holdfast policy list` shows them")
    return found


def _shown(conn: Connection, row: PolicyRow, now: int, as_of_us: int | None = None) -> dict[str, Any]:
    found = policies.policy_of(row)
    coming = [] if found is None or as_of_us is not None else policies.next_runs(conn, row, now, 1)
    runs = view.runs(conn, policy=row.policy, as_of_us=as_of_us, limit=1)
    return policy_shapes.policy(row, coming[0] if coming else None, runs[0] if runs else None)


def list_all(call: Call) -> Reply:
    now, as_of = now_us(), _moment(call)
    with call.site.views() as conn:
        call.site.catch_up(conn, "policies", "inventory", "")
        rows = view.policies(conn, as_of_us=as_of)
        return Reply({"items": [_shown(conn, row, now, as_of) for row in rows]})


def show(call: Call) -> Reply:
    as_of = _moment(call)
    with call.site.views() as conn:
        return Reply(_shown(conn, known(call, conn, as_of), now_us(), as_of))


def add(call: Call) -> Reply:
    name = slug(call.body["name"])
    standing = call.site.live.policy(name)
    if standing.there:
        raise ApiError(409, "policy-exists", f"there is a policy {name!r}", f"`holdfast policy set {name}` changes it")
    return _define(call, name, standing.version, 201)


def change(call: Call) -> Reply:
    name = call.text("policy")
    standing = call.site.live.policy(name)
    if not standing.there:
        raise not_found("policy", name, "`holdfast policy add` makes one")
    return _define(call, name, call.body["version"], 200)


def _define(call: Call, name: str, version: int, status: int) -> Reply:
    policy, now = parse(call.body["document"]), now_us()
    with call.site.views() as conn:
        policies.known_repository(call, conn, policy)
    policies.never_due(policy, now)
    event = PolicyDefined(
        policy=name,
        version=version + 1,
        document=canonical(policy),
        note=call.body["note"],
        defined_us=now,
        by=call.actor,
    )
    policies.say(call, event)
    row = PolicyRow(name, "", event.version, event.document, event.note, now, call.actor, None, "")
    coming = policies.try_out(policy, now, 1) if policy.enabled else []
    return Reply(policy_shapes.policy(row, coming[0] if coming else None, None), status=status, about=name)


def remove(call: Call) -> Reply:
    name = call.text("policy")
    standing = call.site.live.policy(name)
    if not standing.there:
        raise not_found("policy", name, "`holdfast policy list` shows them")
    policies.say(call, PolicyRemoved(policy=name, version=standing.version, removed_us=now_us(), by=call.actor))
    return Reply(None, status=204)


def try_out(call: Call) -> Reply:
    policy, now = parse(call.body["document"]), now_us()
    runs = policies.try_out(policy, now, call.body["count"])
    with call.site.views() as conn:
        chosen = policies.selection(conn, policy)
    return Reply(
        {
            "document": shapes.json_object(canonical(policy)),
            "runs": [policy_shapes.due(r) for r in policies.due_json(runs, policy)],
            "assets": chosen,
        }
    )


def next_runs(call: Call) -> Reply:
    with call.site.views() as conn:
        row = known(call, conn)
        found = policies.policy_of(row)
        if found is None:
            raise ApiError(409, "policy-newer", "a newer Holdfast has written this policy", "upgrade this one")
        runs = policies.next_runs(conn, row, now_us(), call.parameters["count"])
        chosen = policies.selection(conn, found)
    return Reply({"items": [policy_shapes.due(r) for r in policies.due_json(runs, found)], "assets": chosen})


def run(call: Call) -> Reply:
    """An agent's scheduler makes the run, as soon as it reads this; windows do not count."""
    name, now = call.text("policy"), now_us()
    standing = call.site.live.policy(name)
    if not standing.there:
        raise not_found("policy", name, "`holdfast policy list` shows them")
    number = run_id(name, 0, now)
    policies.say(
        call,
        PolicyRun(
            policy=name, version=standing.version, run=number, state="asked", instant_us=now, reason="asked",
            at_us=now, by=call.actor,
        ),
    )  # fmt: skip
    return Reply({"run": number}, status=202, note={"run": number})


def list_runs(call: Call) -> Reply:
    p, as_of = call.parameters, _moment(call)
    with call.site.views() as conn:
        name = known(call, conn, as_of).policy
        found = view.said(conn, policy=name, as_of_us=as_of, limit=p["limit"])
        runs = {r.run: r for r in view.runs(conn, policy=name, as_of_us=as_of, limit=p["limit"])}
    items = [policy_shapes.said(s, runs.get(s.run)) for s in found if s.state not in ("ended", "asked")]
    return Reply({"items": items})


def show_run(call: Call) -> Reply:
    number = call.text("run")
    with call.site.views() as conn:
        call.site.catch_up(conn, "policies", "inventory", "")
        found = view.run(conn, number)
        said = view.said(conn, run=number, limit=10)
        if found is None and not said:
            raise not_found("run", number, "`holdfast policy status POLICY` shows a policy's runs")
        tasks = _tasks(conn, found) if found else []
    return Reply(policy_shapes.run(number, found, said, tasks))


def _tasks(conn: Connection, run: RunRow) -> list[dict[str, Any]]:
    """Each asset with the jobs that were made for it, the newest last; those that are backed up together have the same."""
    row = view.definition(conn, run.policy, run.version)
    policy = policies.policy_of(row) if row else None
    if policy is None:
        return []
    tries = len(policy.retries_s) + 1
    names = {
        asset: [command_id(run.run, run.instant_us, task.name, attempt) for attempt in range(tries)]
        for task in tasks(policy, run.assets)
        for asset in task.assets
    }
    shown = dict(list(names.items())[: _ATTEMPTS // tries])
    known_jobs = jobs.some(conn, sorted({name for ids in shown.values() for name in ids}))
    return [
        {"asset": asset, "jobs": [policy_shapes.task(known_jobs[n]) for n in ids if n in known_jobs]}
        for asset, ids in shown.items()
    ]


def protection(call: Call) -> Reply:
    p, as_of = call.parameters, _moment(call)
    now = as_of if as_of is not None else now_us()
    with call.site.views() as conn:
        call.site.catch_up_all(conn, policies.PROTECTION)
        found = policies.protections(conn, now, asset=p["asset"], policy=p["policy"], as_of_us=as_of)
    if p["state"]:
        found = [f for f in found if f.protection.state == p["state"]]
    return Reply({"at": shapes.time(now), "items": [policy_shapes.protected(f) for f in found]})


def notices(call: Call) -> Reply:
    """When the protection of an asset changed, newest first."""
    p = call.parameters
    with call.site.views() as conn:
        call.site.catch_up(conn, "notices", "inventory", "")
        before = _place(p["before"]) if p["before"] else None
        found = notice_view.notices(conn, asset=p["asset"], state=p["state"], before=before, limit=p["limit"])
    last = f"{found[-1].hlc:016x}.{found[-1].event}" if len(found) == p["limit"] else None
    return Reply({"items": [policy_shapes.notice(row) for row in found], "next": last})


def _place(text: str) -> tuple[int, str]:
    """Where a page ended. Raises `ApiError` 422 (`page-unknown`)."""
    hlc, dot, event = text.partition(".")
    if not dot or not re.fullmatch(r"[0-9a-f]{16}", hlc):
        raise ApiError(422, "page-unknown", f"{text!r} is not where a page ended", "take `next` of the page before")
    return int(hlc, 16), event
