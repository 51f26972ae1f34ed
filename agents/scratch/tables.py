"""The commands that bring one table back: `rollback.table-plan`, `.table-approve`, `.table-run`, `.table-abandon`.

A plan is made on a scratch copy (one that stands at the step already, else one made for it and dropped again): the table's
rows and definition go into `<data_dir>/tables/<plan>/`, beside what the source has now. What is confirmed is its digest.

    planned ──> confirmed ──> loading ──> fenced ──> applied      (`approved` between planned, or failed, and confirmed)
       │           ^ │            │          │
       v           │ v            v          v
    abandoned     failed <────────┴──────────┘

And if we die here? Up to the swap the source has its table and perhaps a shadow of the new one, which the next start drops;
after it, the next start completes what is left (foreign keys, triggers). Which of both it is, names and a row in schema
`holdfast` tell (`agents.mysql.table`). `read_only` is put back to what `fenced` says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from agents import registry
from agents.baseline.manifest import CreateObject, TableFile, flush_folder
from agents.commands import Command, Context, Interrupted, JobFailed, Services
from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.rollback import approval
from agents.rollback.rights import option
from agents.scratch import handlers
from agents.scratch.engine import ChildKey, Tables, TableState, TableTarget
from streams.consume import read_topic
from streams.events import Problem, TableDefinition, TableRollbackChanged, TableRollbackPlanned
from streams.ids import now_us
from streams.topics import topic_name

FACTS = "table.json"
ROWS = "rows.zst"
_UNDECIDED = frozenset({"confirmed", "loading", "fenced"})
_FINAL = frozenset({"applied", "abandoned"})
_RUNNABLE = frozenset({"planned", "approved", "failed"})
_MOST_KEYS = 100_000
"""Keys of a child that are compared when a plan is made. All are when it runs."""


@dataclass
class History:
    """Table plans of one source, and what was said of each."""

    plans: dict[str, TableRollbackPlanned] = field(default_factory=dict)
    changes: dict[str, list[TableRollbackChanged]] = field(default_factory=dict)

    def state(self, plan: str) -> str:
        said = [c.state for c in self.changes.get(plan, [])]
        return next((s for s in said if s in _FINAL), said[-1] if said else "planned")

    def last(self, plan: str, state: str) -> TableRollbackChanged | None:
        return next((c for c in reversed(self.changes.get(plan, [])) if c.state == state), None)


def read_history(services: Services, source: str) -> History:
    history = History()
    kafka = services.settings.kafka
    for message in read_topic(kafka, topic_name(kafka.prefix, "rollbacks")):
        event = message.event
        if message.key != source:
            continue
        if isinstance(event, TableRollbackPlanned):
            history.plans.setdefault(event.plan, event)
        elif isinstance(event, TableRollbackChanged):
            history.changes.setdefault(event.plan, []).append(event)
    return history


def plan(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.table-plan`; parameters in docs/design.md. Says the same again when it is called again."""
    p, services, source = command.parameters, ctx.services, command.asset
    recover(services, source)
    name = str(p["plan"])
    known = read_history(services, source).plans.get(name)
    if known is None:
        wanted = (str(p["schema"]), str(p["table"]))
        with _copy(ctx, source, str(p["lineage"]), int(p["target_ordinal"]), name, wanted) as copy:
            known = _plan(ctx, source, name, copy)
        failpoint("table.planned")
        ctx.durable(known)
    return {"plan": name, "digest": known.digest.hex(), "runnable": not known.obstacles}


@contextlib.contextmanager
def _copy(ctx: Context, source: str, lineage: str, ordinal: int, plan: str, wanted: tuple[str, str]) -> Any:
    """The name of a scratch copy that stands at that step: one of everything that is there already, else one of the table
    and what it needs, made for this. Where a table cannot be had alone, all of it is copied."""
    keeper = ctx.services.copies
    there = keeper.at(source, lineage, ordinal)
    if there is not None:
        yield there
        return
    name = f"table-{plan[-12:]}"
    copy = keeper.find(name)
    if copy is None:
        try:
            copy = handlers.make(ctx, name, source, lineage, ordinal, None, ctx.command.id, [wanted])
        except AgentError as error:
            if error.code != "tables-not-alone":
                raise
            copy = handlers.make(ctx, name, source, lineage, ordinal, None, ctx.command.id)
    keeper.adopt(copy)
    try:
        yield name
    except Interrupted:
        raise
    except BaseException:
        keeper.drop(name)
        raise
    keeper.drop(name)


def _plan(ctx: Context, source: str, plan: str, copy: str) -> TableRollbackPlanned:
    p, services = ctx.command.parameters, ctx.services
    schema, table = str(p["schema"]), str(p["table"])
    kind = services.sources.get(source).defined.kind
    tables = registry.tables(kind)
    folder = _folder(services, plan)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    with contextlib.closing(services.copies.connect(copy)) as conn:
        then = tables.look(conn, schema, table)
        if then is None:
            raise AgentError(
                "table-unknown", f"there was no table {schema}.{table} after step {p['target_ordinal']}",
                "choose a step at which it was there",
            )  # fmt: skip
        file = tables.table_file(conn, then, ROWS)
        reading = f"reading {schema}.{table} as it was"
        count, content = tables.keep(
            conn, file, folder / ROWS, lambda rows: ctx.progress(reading, rows, then.rows, "rows")
        )
    file = dataclasses.replace(file, rows=count)
    with contextlib.closing(tables.target(services.source_settings(source))) as target:
        now = target.look(schema, table)
        children = now.children if now is not None else ()
        obstacles = [*_in_the_way(schema, table, then, now), *target.lacks(schema, then, children)]
        dangling, unseen = _dangling(ctx, tables, copy, target, then, children)
    short = plan.replace("-", "")[-12:]
    shadow, kept = f"_holdfast_new_{short}", f"_holdfast_old_{short}" if now is not None else ""
    facts = _facts(then, file, content, children)
    _write(folder, facts)
    keys = [f"{table}: {clause}" for clause in then.foreign_keys.values()]
    if now is not None:
        keys += [f"{c.text} points at this table" for c in now.children]
    triggers = [f"{t.name} (then)" for t in then.triggers]
    triggers += [f"{t.name} (now)" for t in (now.triggers if now is not None else ())]
    digest = blake3(_json([
        p["lineage"], source, schema, table, int(p["target_ordinal"]), facts, shadow, kept,
        now.definition.ddl if now is not None else "",
    ]).encode()).digest()  # fmt: skip
    return TableRollbackPlanned(
        lineage=str(p["lineage"]),
        plan=plan,
        source=source,
        schema=schema,
        table=table,
        target=str(p["target"]),
        target_ordinal=int(p["target_ordinal"]),
        target_time_us=int(p.get("target_time_us") or 0),
        head_ordinal=int(p["head_ordinal"]),
        rows_now=now.rows if now is not None else None,
        rows_then=count,
        definition_now=now.definition.ddl if now is not None else "",
        definition_then=then.definition.ddl,
        foreign_keys=tuple(keys),
        triggers=tuple(triggers),
        privileges=now.privileges if now is not None else (),
        shadow=shadow,
        kept=kept,
        scratch=copy,
        content=content,
        obstacles=(*obstacles, *dangling),
        warnings=(*_asks_for_approval(services, source), *_to_know(then, now), *unseen),
        digest=digest,
        planned_us=now_us(),
        by=ctx.command.requester,
    )


def _asks_for_approval(services: Services, source: str) -> list[Problem]:
    if option(services.source_settings(source), "approval") != approval.REQUIRED:
        return []
    return [Problem(
        _APPROVAL, "it runs only when somebody has approved it who neither planned it nor runs it",
        "have them look at it and say `holdfast rollback approve`",
    )]  # fmt: skip


# A plan that was made with this warning needs an approval, whatever the source's policy is when it runs.
_APPROVAL = "approval-required"


def _check_approval(services: Services, known: History, planned: TableRollbackPlanned, requester: str) -> None:
    """Raises `AgentError` (`approval-missing`) unless the plan may run for `requester`."""
    policy = option(services.source_settings(planned.source), "approval")
    if policy == approval.REQUIRED or any(w.code == _APPROVAL for w in planned.warnings):
        said = known.changes.get(planned.plan, [])
        given = [c.by for c in said if c.state == "approved" and c.digest == planned.digest]
        approval.require(planned.plan, planned.by, requester, given)


def _dangling(
    ctx: Context, tables: Tables, copy: str, target: TableTarget, then: TableState, children: Sequence[ChildKey]
) -> tuple[list[Problem], list[Problem]]:
    """Rows of other tables that would point nowhere; what was not looked at."""
    found, unseen = [], []
    with contextlib.closing(ctx.services.copies.connect(copy)) as conn:
        for child in children:
            ctx.progress(f"looking at what points at the table from {child.text}")
            there = set(child.references) <= {c["name"] for c in json.loads(then.definition.definition)["columns"]}
            if not there:
                found.append(Problem(
                    "foreign-key-to", f"{child.text} points at {', '.join(child.references)}, which the table of then lacks",
                    f"ALTER TABLE `{child.schema}`.`{child.table}` DROP FOREIGN KEY `{child.constraint}`, then plan again",
                ))  # fmt: skip
                continue
            keys = target.keys_of(child, _MOST_KEYS)
            if keys is None:
                unseen.append(Problem(
                    "children-unseen", f"{child.text} points at more than {_MOST_KEYS:,} rows; whether all of them are there"
                    " then is looked at when this runs, before anything is changed",
                ))  # fmt: skip
            elif gone := tables.without(conn, then, child, keys):
                found.append(tables.dangling_problem(child, gone))
    return found, unseen


def _in_the_way(schema: str, table: str, then: TableState, now: TableState | None) -> list[Problem]:
    out = []
    if then.kind != "BASE TABLE" or then.versioned:
        what = "keeps its own history" if then.versioned else f"is a {then.kind.lower()}"
        out.append(Problem("not-a-table", f"{schema}.{table} {what}", "take what is needed from a scratch copy"))
    if now is not None and now.kind != "BASE TABLE":
        out.append(Problem(
            "not-a-table", f"{schema}.{table} is a {now.kind.lower()} now", "rename or drop it, then plan again"
        ))  # fmt: skip
    return out


def _to_know(then: TableState, now: TableState | None) -> list[Problem]:
    out = []
    if now is not None and _own(now) != _own(then):
        out.append(
            Problem("definition-differs", "the table's definition is another one now; it becomes what it was then")
        )
    if now is not None and now.foreign_keys:
        out.append(
            Problem("kept-without-keys", "the table that is kept loses its foreign keys: their names are taken again")
        )
    if now is not None and now.triggers:
        out.append(
            Problem("kept-without-triggers", "the table that is kept loses its triggers; those of then are made")
        )
    if now is not None and now.children:
        names = ", ".join(c.text for c in now.children)
        out.append(
            Problem("children-follow", f"foreign keys that point at the table are taken off and put on again: {names}")
        )
    if now is None:
        out.append(Problem("children", "foreign keys of other tables that named this one hold again, unchecked"))
    return out


def _own(state: TableState) -> dict[str, Any]:
    """A table's definition without what others say of it: a copy may have it alone."""
    return {k: v for k, v in json.loads(state.definition.definition).items() if k != "referenced_by"}


def run(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.table-run`: carries out exactly the plan whose digest is given."""
    services, source = ctx.services, command.asset
    recover(services, source)
    name, digest = str(command.parameters.get("plan", "")), str(command.parameters.get("digest", ""))
    known = read_history(services, source)
    planned = known.plans.get(name)
    if planned is None:
        raise AgentError("plan-unknown", f"{source} has no plan {name}", "make one: `holdfast rollback table`")
    state = known.state(name)
    if command.resumed and state in ("applied", "failed"):
        last = known.last(name, state)
        assert last is not None
        if state == "failed":
            raise JobFailed(last.problems or (Problem("plan-failed", f"plan {name} failed", "run it again"),))
        return _result(last)
    if state not in _RUNNABLE:
        raise AgentError(f"plan-{state}", f"plan {name} is {state} and cannot be run (again)", "make a new plan")
    if planned.digest.hex() != digest.lower():
        raise AgentError(
            "digest-mismatch", f"the confirmed digest is not that of plan {name}", "confirm what was shown"
        )
    if planned.obstacles:
        raise JobFailed(planned.obstacles)
    _check_approval(services, known, planned, command.requester)
    then, file, children = _read(_folder(services, name), planned)
    tables = registry.tables(services.sources.get(source).defined.kind)
    with contextlib.closing(tables.target(services.source_settings(source))) as target:
        return _result(_Run(ctx, planned, then, file, children, target).run())


@dataclass
class _Run:
    ctx: Context
    planned: TableRollbackPlanned
    then: TableState
    file: TableFile
    children: tuple[ChildKey, ...]
    target: TableTarget

    def run(self) -> TableRollbackChanged:
        p, target = self.planned, self.target
        self.say("confirmed")
        fenced = ""
        try:
            if lacking := target.lacks(p.schema, self.then, self.children):
                raise JobFailed(tuple(lacking))
            target.hold()
            now = self._unchanged()
            self.say("loading")
            failpoint("table.loading")
            loading = f"loading {p.schema}.{p.table}"
            folder = _folder(self.ctx.services, p.plan)
            target.load(self.then, now, p.shadow, folder, self.file, self._progress(loading))
            failpoint("table.loaded")
            if target.content(self.file, p.shadow, self._progress("comparing")) != (p.rows_then, p.content):
                raise AgentError(
                    "content-differs", "what was loaded is not what was read", "report it; nothing was changed"
                )
            self.ctx.check()
            fenced = target.read_only()
            self.say("fenced", read_only_before=fenced)
            failpoint("table.fenced")
            target.fence()
            self._unchanged()
            pointless = [*target.orphans(self.then, p.shadow)]
            for child in self.children:
                pointless += target.dangling(child, p.schema, p.shadow)
            if pointless:
                raise JobFailed(tuple(pointless))
            target.swap(p.plan, p.digest, p.schema, p.table, p.shadow, p.kept)
            failpoint("table.swapped")
        except Exception as error:
            # What is known to be undone is put back here; what is not known is looked at by the next start or command.
            if not target.swapped(p.plan, p.schema, p.table, p.shadow, p.kept):
                target.forget(p.schema, p.shadow)
                if fenced:
                    target.unfence(fenced)
                self.say("failed", problems=_why(error))
            raise
        return self.complete(fenced)

    def complete(self, read_only_before: str) -> TableRollbackChanged:
        """After the swap."""
        p = self.planned
        problems = _finish(self.target, self.then, p.kept, self.children)
        failpoint("table.finished")
        position = self.target.position()
        if read_only_before:
            self.target.unfence(read_only_before)
        failpoint("table.unfenced")
        self.ctx.warn(*problems)
        return self.say("applied", position=position, rows=p.rows_then, kept=p.kept, problems=problems)

    def _unchanged(self) -> TableState | None:
        """The table of now, which must be the one that the plan was made beside."""
        p = self.planned
        now = self.target.look(p.schema, p.table)
        same = (now.definition.ddl if now is not None else "") == p.definition_now
        if not same and _without_counter(now.definition.ddl if now is not None else "") != _without_counter(
            p.definition_now
        ):
            raise AgentError(
                "source-moved-on", f"{p.schema}.{p.table} is not what it was when this was planned", "plan again"
            )
        if set(now.children if now is not None else ()) != set(self.children):
            raise AgentError(
                "source-moved-on",
                f"other foreign keys point at {p.schema}.{p.table} than when this was planned",
                "plan again",
            )
        return now

    def _progress(self, what: str) -> Callable[[int], None]:
        def tell(rows: int) -> None:
            self.ctx.check()
            self.ctx.progress(what, rows, self.planned.rows_then, "rows")

        return tell

    def say(self, state: str, **more: Any) -> TableRollbackChanged:
        event = _changed(self.ctx.services, self.planned, state, **more)
        self.ctx.durable(event)
        return event


def _finish(target: TableTarget, then: TableState, kept: str, children: Sequence[ChildKey]) -> tuple[Problem, ...]:
    """The table is there whatever this meets; what could not be put on it is told."""
    try:
        target.finish(then, kept, children)
    except SourceUnavailable:
        raise
    except AgentError as error:
        missing = [*then.foreign_keys.values(), *(t.sql for t in then.triggers)]
        missing += [f"ALTER TABLE `{c.schema}`.`{c.table}` ADD {c.clause}" for c in children]
        hint = "make what is missing by hand: " + "; ".join(missing)
        return (Problem("unfinished", f"the table is back, but not all that belongs to it: {error.message}", hint),)
    return ()


def _why(error: BaseException) -> tuple[Problem, ...]:
    if isinstance(error, JobFailed):
        return error.problems
    if isinstance(error, AgentError):
        return (error.problem(),)
    if isinstance(error, Interrupted):
        return (Problem("interrupted", "the agent was to end; nothing was changed", "run the plan again"),)
    return (Problem("internal", "the agent met a defect; nothing was changed", "its log says more"),)


def approve(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.table-approve`: who asks has looked at the plan of this digest and agrees that it runs."""
    services, source = ctx.services, command.asset
    name, digest = str(command.parameters.get("plan", "")), str(command.parameters.get("digest", ""))
    known = read_history(services, source)
    planned = known.plans.get(name)
    if planned is None:
        raise AgentError("plan-unknown", f"{source} has no plan {name}")
    state = known.state(name)
    if state not in _RUNNABLE:
        raise AgentError(f"plan-{state}", f"plan {name} is {state} and cannot be approved", "make a new plan")
    if planned.digest.hex() != digest.lower():
        raise AgentError("digest-mismatch", f"the approved digest is not that of plan {name}", "approve what was shown")
    approval.not_own(planned.by, command.requester)
    ctx.durable(_changed(services, planned, "approved", by=command.requester))
    return {"plan": name, "by": command.requester}


def abandon(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `rollback.table-abandon`: the plan will not be run."""
    services, source = ctx.services, command.asset
    recover(services, source)
    name = str(command.parameters.get("plan", ""))
    known = read_history(services, source)
    planned = known.plans.get(name)
    if planned is None:
        raise AgentError("plan-unknown", f"{source} has no plan {name}")
    state = known.state(name)
    if state != "abandoned":
        if state not in _RUNNABLE:
            raise AgentError(f"plan-{state}", f"plan {name} is {state} and cannot be abandoned")
        ctx.durable(_changed(services, planned, "abandoned"))
    shutil.rmtree(_folder(services, name), ignore_errors=True)
    return {}


def recover(services: Services, source: str) -> None:
    """No table plan of `source` stays undecided: commands of a source run one at a time, so what is now was left by a
    death, or while the source was away."""
    known = read_history(services, source)
    for name, planned in known.plans.items():
        state = known.state(name)
        if state in _FINAL:
            shutil.rmtree(_folder(services, name), ignore_errors=True)
        if state not in _UNDECIDED:
            continue
        tables = registry.tables(services.sources.get(source).defined.kind)
        with contextlib.closing(tables.target(services.source_settings(source))) as target:
            target.hold(at_once=False)
            fenced = known.last(name, "fenced") if state == "fenced" else None
            before = fenced.read_only_before if fenced is not None else ""
            if fenced is not None and target.swapped(name, planned.schema, planned.table, planned.shadow, planned.kept):
                then, _, children = _read(_folder(services, name), planned)
                problems = _finish(target, then, planned.kept, children)
                position = target.position()
                target.unfence(before)
                said = _changed(
                    services, planned, "applied", position=position, rows=planned.rows_then, kept=planned.kept,
                    problems=problems,
                )  # fmt: skip
            else:
                target.forget(planned.schema, planned.shadow)
                if before:
                    target.unfence(before)
                died = Problem(
                    "agent-died", "the agent ended while the table was being brought back; the table is as it was",
                    "run the plan again",
                )  # fmt: skip
                said = _changed(services, planned, "failed", problems=(died,))
        services.publisher.sent_and_durable(said)


def _changed(services: Services, planned: TableRollbackPlanned, state: str, **more: Any) -> TableRollbackChanged:
    return TableRollbackChanged(
        lineage=planned.lineage,
        plan=planned.plan,
        source=planned.source,
        state=state,
        digest=planned.digest,
        at_us=now_us(),
        **{"by": services.agent, **more},
    )


def _result(applied: TableRollbackChanged) -> Mapping[str, Any]:
    return {"plan": applied.plan, "position": applied.position, "rows": applied.rows, "kept": applied.kept}


def _without_counter(ddl: str) -> str:
    head, sign, rest = ddl.rpartition(" AUTO_INCREMENT=")
    return head + rest.lstrip("0123456789") if sign else ddl


def _folder(services: Services, plan: str) -> Path:
    return services.settings.data_dir / "tables" / plan


def _facts(then: TableState, file: TableFile, content: bytes, children: Sequence[ChildKey]) -> dict[str, Any]:
    """`children`: what points at the table of now."""
    return {
        "file": dataclasses.asdict(file),
        "children": [dataclasses.asdict(c) for c in children],
        "state": {
            **dataclasses.asdict(then),
            "definition": {**dataclasses.asdict(then.definition), "fingerprint": then.definition.fingerprint.hex()},
        },
        "content": content.hex(),
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _write(folder: Path, facts: Mapping[str, Any]) -> None:
    (folder / FACTS).write_text(_json(facts))
    flush_folder(folder)
    flush_folder(folder.parent)


def _read(folder: Path, planned: TableRollbackPlanned) -> tuple[TableState, TableFile, tuple[ChildKey, ...]]:
    """Raises `AgentError` (`plan-gone`)."""
    try:
        raw = json.loads((folder / FACTS).read_text())
        state, file = raw["state"], raw["file"]
        if raw["content"] != planned.content.hex():
            raise ValueError("it is another plan's")
        definition = TableDefinition(
            **{**state["definition"], "fingerprint": bytes.fromhex(state["definition"]["fingerprint"])}
        )
        then = TableState(**{
            **state,
            "definition": definition,
            "triggers": tuple(CreateObject(**t) for t in state["triggers"]),
            "definers": tuple(state["definers"]),
            "children": _children(state["children"]),
            "privileges": tuple(state["privileges"]),
        })  # fmt: skip
        lists = ("columns", "types", "expressions")
        return then, TableFile(**file | {name: tuple(file[name]) for name in lists}), _children(raw["children"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AgentError(
            "plan-gone", f"what plan {planned.plan} would load is not here: {error}", "plan again"
        ) from error


def _children(raw: Sequence[Mapping[str, Any]]) -> tuple[ChildKey, ...]:
    return tuple(ChildKey(**{**c, "columns": tuple(c["columns"]), "references": tuple(c["references"])}) for c in raw)
