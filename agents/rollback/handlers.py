"""The handlers of `rollback.plan`, `rollback.approve`, `rollback.run`, `rollback.abandon`, and the recovery of an agent's start.

Each reads what the log says, hands it to `plan`, `apply` or `recover`, and publishes what comes of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from agents import registry
from agents.commands import JobFailed
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.keystore import KeyIndex, open_index
from agents.rollback import approval, chunks
from agents.rollback import history as past
from agents.rollback.apply import Application, Outcome
from agents.rollback.approval import REQUIRED
from agents.rollback.plan import Plan, Request, make_plan, parse_request, request_of
from agents.rollback.recover import settle_all
from agents.rollback.rights import option, with_method
from agents.rollback.stages import NEXT
from agents.rollback.target import Stopped
from streams.capture_log import CaptureLog
from streams.events import Problem, RollbackChanged, RollbackPlanned
from streams.ids import now_us
from streams.paths import path_at

if TYPE_CHECKING:
    from agents.commands import Command, Context, Services
    from agents.protocol import SourceSettings


SCHEMA_WAIT_S: Final = 5.0
_SCHEMA_BEHIND: Final = frozenset({"schema-unknown", "schema-differs"})


def plan(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.plan`: publishes `rollback.planned`. Says the same again when it is called again."""
    request = parse_request(command.parameters)
    services, source = ctx.services, command.asset
    known = _decided(services, source)
    planned = known.plans.get(request.plan)
    if planned is None:
        asked = str((command.parameters.get("options") or {}).get("method") or "")
        settings = services.source_settings(source)
        request = replace(request, approval=request.approval or option(settings, "approval") == REQUIRED)
        request, notes = with_method(settings, request, asked)
        with CaptureLog(services.settings.kafka, source, services.secrets) as log:
            made = notes.on(_make(ctx, source, request, known, log))
        planned = made.event
        ctx.durable(planned)
        _keep(made)
    return {"plan": planned.plan, "digest": planned.digest.hex(), "runnable": not planned.obstacles}


def run(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.run`: carries out exactly the plan whose digest is given."""
    services, source = ctx.services, command.asset
    name, digest = str(command.parameters.get("plan", "")), str(command.parameters.get("digest", ""))
    known = _decided(services, source)
    planned = known.plans.get(name)
    if planned is None:
        raise AgentError("plan-unknown", f"{source} has no plan {name}", "make one: `holdfast rollback plan`")
    state = known.state(name)
    if state in ("applied", "chunked") and command.resumed:
        applied = known.last(name, state)
        assert applied is not None
        return _result(name, applied.ordinal, applied.position, applied.rows)
    if state == "failed" and command.resumed:
        failed = known.last(name, state)
        assert failed is not None
        raise JobFailed(failed.problems or (Problem("plan-failed", f"plan {name} failed", "make a new plan"),))
    whole = request_of(planned)
    if whole.part_of:
        raise AgentError(
            "plan-part", f"plan {name} is a chunk of {whole.part_of}", "run that one: it goes on where it was"
        )
    if ("chunking" if whole.chunk_rows else "confirmed") not in NEXT[state]:
        raise AgentError(f"plan-{state}", f"plan {name} is {state} and cannot be run (again)", "make a new plan")
    if planned.digest.hex() != digest.lower():
        raise AgentError(
            "digest-mismatch", f"the confirmed digest is not that of plan {name}", "confirm what `rollback show` says"
        )
    if planned.obstacles:
        raise JobFailed(planned.obstacles)
    settings = services.source_settings(source)
    approval.check(known, planned, command.requester, option(settings, "approval"))
    with CaptureLog(services.settings.kafka, source, services.secrets) as log:
        made = _again(ctx, source, whole, known, log)
        if made.event.digest != planned.digest:
            raise AgentError(
                "digest-mismatch",
                f"what plan {name} would do now is not what was planned: {made.event.digest.hex()[:16]}… against "
                f"{planned.digest.hex()[:16]}…",
                "make a new plan",
            )
        if whole.chunk_rows:
            without = [str(r) for r in command.parameters.get("without_replicas") or ()]
            waited_for = chunks.replicas(settings, without)
            return _run_chunks(ctx, planned, whole, settings, waited_for, log)
        outcome = _carry_out(ctx, Plan(planned, made.tables, made.preamble), settings, log)
    return _result(name, outcome.ordinal, outcome.position, outcome.rows)


def _carry_out(ctx: Context, made: Plan, settings: SourceSettings, log: past.Log) -> Outcome:
    application = Application(
        made,
        registry.target(settings, request_of(made.event).method),
        log,
        ctx.services.agent,
        say=ctx.durable,
        check=ctx.check,
        progress=lambda message, done, total: ctx.progress(message, done, total, "rows"),
    )
    try:
        return application.run()
    except Stopped as error:
        raise JobFailed(error.problems) from error


def _run_chunks(
    ctx: Context,
    planned: RollbackPlanned,
    whole: Request,
    settings: SourceSettings,
    waited_for: Sequence[SourceSettings],
    log: past.Log,
) -> Mapping[str, Any]:
    """Carry out what is left of a plan, chunk by chunk. A death leaves it `chunking`, and the command goes on from there."""
    services, source = ctx.services, planned.source
    kafka = services.settings.kafka

    def say(state: str, problems: tuple[Problem, ...] = ()) -> None:
        ctx.durable(
            RollbackChanged(
                lineage=planned.lineage,
                plan=planned.plan,
                source=source,
                state=state,
                digest=planned.digest,
                at_us=now_us(),
                by=services.agent,
                rows=done,
                problems=problems,
            )
        )

    breath = chunks.Breath(
        lambda where: registry.target(where, whole.method),
        settings,
        waited_for,
        whole.pause_ms,
        ctx.check,
        lambda why: ctx.progress(why, done, planned.rows, "rows"),
    )
    rows: dict[int, int] | None = None
    known = past.read_history(kafka, source)
    parts = [plan for plan, p in known.plans.items() if request_of(p).part_of == planned.plan]
    number = len(parts)
    done = sum(c.rows for plan in parts if (c := known.last(plan, "applied")) is not None)
    say("chunking")
    try:
        while True:
            known = past.read_history(kafka, source)
            tail = log.tail()
            if tail is None or tail.lineage != planned.lineage:
                raise AgentError("lineage-ended", "another lineage has begun since the plan was made", "plan again")
            standing = path_at(tail.ordinal, past.turns(known, log, tail.lineage))
            undo, redo = chunks.remaining(planned, standing)
            if not undo and not redo:
                break
            rows = chunks.count_rows(log, tail.lineage, (undo, redo)) if rows is None else rows
            number += 1
            steps = chunks.next_chunk(undo, redo, rows, whole.chunk_rows)
            request = chunks.request_of_chunk(planned, whole, standing, tail.ordinal, steps, number)
            made = _make(ctx, source, request, known, log)
            ctx.durable(made.event)
            if made.event.obstacles:
                raise JobFailed(made.event.obstacles)
            outcome = _carry_out(ctx, made, settings, log)
            failpoint("rollback-chunk")
            done += outcome.rows
            ctx.progress(f"chunk {number} is in", done, planned.rows, "rows")
            breath.take(request.plan)
    except (AgentError, JobFailed) as error:
        say("failed", error.problems if isinstance(error, JobFailed) else (error.problem(),))
        raise
    say("chunked")
    return {**_result(planned.plan, 0, "", done), "chunks": number}


def approve(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.approve`: who asks has looked at the plan of this digest and agrees that it runs."""
    services, source = ctx.services, command.asset
    name, digest = str(command.parameters.get("plan", "")), str(command.parameters.get("digest", ""))
    known = past.read_history(services.settings.kafka, source)
    planned = known.plans.get(name)
    if planned is None:
        raise AgentError("plan-unknown", f"{source} has no plan {name}")
    state = known.state(name)
    if "approved" not in NEXT[state]:
        raise AgentError(f"plan-{state}", f"plan {name} is {state} and cannot be approved", "make a new plan")
    if planned.digest.hex() != digest.lower():
        raise AgentError(
            "digest-mismatch", f"the approved digest is not that of plan {name}", "approve what `rollback show` says"
        )
    approval.not_own(planned.by, command.requester)
    ctx.durable(
        RollbackChanged(
            lineage=planned.lineage,
            plan=name,
            source=source,
            state="approved",
            digest=planned.digest,
            at_us=now_us(),
            by=command.requester,
        )
    )
    return {"plan": name, "by": command.requester}


def abandon(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.abandon`: the plan will not be run."""
    services, source = ctx.services, command.asset
    name = str(command.parameters.get("plan", ""))
    known = past.read_history(services.settings.kafka, source)
    planned = known.plans.get(name)
    if planned is None:
        raise AgentError("plan-unknown", f"{source} has no plan {name}")
    state = known.state(name)
    if state == "abandoned":
        return {}
    if "abandoned" not in NEXT[state]:
        raise AgentError(f"plan-{state}", f"plan {name} is {state} and cannot be abandoned")
    ctx.durable(
        RollbackChanged(
            lineage=planned.lineage,
            plan=name,
            source=source,
            state="abandoned",
            digest=planned.digest,
            at_us=now_us(),
            by=command.requester,
        )
    )
    return {}


def recover(services: Services, source: str) -> None:
    """Recovery of an agent's start: no rollback of `source` stays undecided, and `read_only` is as it was."""
    _decided(services, source)


def _decided(services: Services, source: str) -> past.History:
    """What is known of the source's rollbacks, once none is undecided. Commands of a source run one at a time, so

    whatever is undecided now was left so by a death, or while the source was away.
    """
    kafka = services.settings.kafka
    known = past.read_history(kafka, source)
    if not known.undecided():
        return known
    with CaptureLog(kafka, source, services.secrets) as log:
        settle_all(
            known,
            source,
            services.agent,
            log,
            lambda method: registry.target(services.source_settings(source), method),
            services.publisher.sent_and_durable,
        )
    return past.read_history(kafka, source)


def _make(ctx: Context, source: str, request: Request, known: past.History, log: past.Log) -> Plan:
    tail = log.tail()
    if tail is None or tail.lineage != request.lineage:
        raise AgentError("lineage-ended", f"lineage {request.lineage} of {source} is not the current one", "plan again")
    if not request.part_of:  # a chunk's are of the path that stands, as `_run_chunks` found it
        past.check_paths(request, past.turns(known, log, request.lineage), tail.ordinal)
    deadline = time.monotonic() + SCHEMA_WAIT_S
    settings = ctx.services.settings
    index = open_index(settings.data_dir, source, request.lineage, ctx.services.secrets) if request.selection else None
    with contextlib.closing(index) if index is not None else contextlib.nullcontext():
        return _made(ctx, source, request, log, index, deadline)


def _made(ctx: Context, source: str, request: Request, log: past.Log, index: KeyIndex | None, deadline: float) -> Plan:
    between = [r for part in (*request.way, *([request.selection.steps] if request.selection else [])) for r in part]
    first = min((r.first for r in between), default=request.head_ordinal + 1)
    while True:
        schema = past.read_schema(
            ctx.services.settings.kafka, source, request.lineage, request.head_ordinal, log=log, first=first
        )
        made = make_plan(
            request,
            schema,
            lambda first, last: log.steps(
                request.lineage, first, last, index.near(first) if index is not None else None
            ),
            source=source,
            by=ctx.command.requester,
            planned_us=now_us(),
            index=index,
            progress=lambda done, total: ctx.progress("reading steps", done, total, "steps"),
        )
        # Definitions are recorded a moment after their step is captured.
        behind = made.behind or _SCHEMA_BEHIND & {p.code for p in made.event.obstacles}
        if time.monotonic() > deadline or not behind:
            return made
        ctx.check()
        time.sleep(0.25)


def _again(ctx: Context, source: str, request: Request, known: past.History, log: past.Log) -> Plan:
    """The plan with its rows: the one made last if it is that, else made anew from the log."""
    kept = _kept.pop(request.plan, None)
    return kept if kept is not None else _make(ctx, source, request, known, log)


# The last plan made by this process, rows included, so that running it at once does not read the log twice. A plan is a
# pure function of a log that only grows: what is kept cannot become wrong.
_kept: dict[str, Plan] = {}
_KEEP_BYTES = 64 << 20


def _keep(made: Plan) -> None:
    _kept.clear()
    if sum(t.changes.table.size for t in made.tables) <= _KEEP_BYTES:
        _kept[made.event.plan] = made


def _result(name: str, ordinal: int, position: str, rows: int) -> Mapping[str, Any]:
    return {"plan": name, "ordinal": ordinal, "position": position, "rows": rows}
