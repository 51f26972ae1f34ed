"""Plans: what leads from the state of one path to that of another, or takes back what a selective undo chose, as net changes,
with what stands in the way.

A plan is a pure function of (lineage, paths, schema version, options): the same inputs give the same digest in
whatever process, and nothing else may run under a confirmed one. Reads steps from the log it is given, never from a
projection or the source; what only the source shows (locks, later writes, grants) is found when the plan is applied.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from blake3 import blake3

from agents.errors import AgentError
from agents.rollback.choose import Chooser, Index
from agents.rollback.findings import SCRATCH
from agents.rollback.fold import Folder
from agents.rollback.schema import Definition, Schema, TableName
from agents.rollback.steps import ReadSteps
from streams.errors import StreamError
from streams.events import Dependant, OrdinalRange, Problem, RollbackPlanned, TableEffect
from streams.formats.binlog.net import NetChanges, core_content
from streams.formats.binlog.step import UNDO
from streams.formats.binlog.table_map import JSON
from streams.paths import Path, length, normalise, way
from streams.selection import Selection, parse_selection

# The digest's domain. Change it whenever the same inputs come to be carried out differently.
PLAN_FORMAT: Final = b"holdfast plan 1"

# Without a key each row is a scan of its table: about 14 ms at 50,000 rows.
KEYLESS_ROW_MS: Final = 14.0
KEYLESS_WARN_ROWS: Final = 100
KEYLESS_MOST_ROWS: Final = 20_000
# Guard loaded, compared, applied: about 10 µs a row, on top of what any rollback costs.
ROW_MS: Final = 0.01
BASE_MS: Final = 150
# By bound statements: literals loaded, joined.
BOUND_ROW_MS: Final = 0.05

METHODS: Final = ("native", "bound")

CROSSED_SHOWN: Final = 5

DEFAULT_MEMORY_BYTES: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """What a plan is asked to do (parameters of `rollback.plan`)."""

    plan: str
    kind: str
    target: str
    target_ordinal: int
    target_time_us: int
    lineage: str
    head_ordinal: int
    path_before: Path
    path_after: Path
    whole_source: bool = True
    selection: Selection | None = None
    """Of kind `undo`: what to take back."""
    method: str = "native"
    """How changes are made: `native` events, or `bound` statements where the account may not replay events."""
    approval: bool = False
    """Whether a second person must approve before it runs (`agents.rollback.approval`)."""
    chunk_rows: int = 0
    """Carry it out in chunks of about so many rows (`agents.rollback.chunks`); 0: at once."""
    pause_ms: int = 0
    part_of: str = ""
    """The plan that this is a chunk of."""
    undo: Path | None = None
    """A chunk's steps; otherwise they follow from the paths."""
    redo: Path | None = None

    @property
    def way(self) -> tuple[Path, Path]:
        """(undo, redo)."""
        if self.undo is not None and self.redo is not None:
            return self.undo, self.redo
        return way(self.path_before, self.path_after)

    @property
    def options(self) -> str:
        """Canonical JSON of the options that the digest covers. An option at its default is left out, all but the oldest."""
        options: dict[str, Any] = {"whole_source": self.whole_source}
        if self.selection is not None:
            options["select"] = self.selection.options()
        if self.method != "native":
            options["method"] = self.method
        if self.approval:
            options["approval"] = True
        if self.chunk_rows:
            options |= {"chunk_rows": self.chunk_rows, "pause_ms": self.pause_ms}
        if self.part_of:
            options["part_of"] = self.part_of
        return json.dumps(options, sort_keys=True, separators=(",", ":"))


def parse_request(parameters: Mapping[str, Any]) -> Request:
    """Raises `AgentError` (`command-invalid`) when the parameters are not those of docs/design.md."""
    try:
        options = parameters.get("options") or {}
        request = Request(
            plan=str(parameters["plan"]),
            kind=str(parameters["kind"]),
            target=str(parameters.get("target", "")),
            target_ordinal=int(parameters["target_ordinal"]),
            target_time_us=int(parameters.get("target_time_us") or 0),
            lineage=str(parameters["lineage"]),
            head_ordinal=int(parameters["head_ordinal"]),
            path_before=_path(parameters["path_before"]),
            path_after=_path(parameters["path_after"]),
            whole_source=bool(options.get("whole_source", True)),
            selection=parse_selection(options["select"]) if "select" in options else None,
            method=str(options.get("method", "native")),
            approval=bool(options.get("approval", False)),
            chunk_rows=int(options.get("chunk_rows") or 0),
            pause_ms=int(options.get("pause_ms") or 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AgentError("command-invalid", f"the parameters of rollback.plan are not valid: {error!r}") from error
    except StreamError as error:
        raise AgentError("command-invalid", error.message, error.hint) from error
    if request.kind not in ("rollback", "forward", UNDO):
        raise AgentError("command-invalid", f"{request.kind!r} is no kind of plan")
    if (request.kind == UNDO) != (request.selection is not None):
        raise AgentError(
            "command-invalid",
            f"a plan of kind {request.kind!r} {'needs' if request.kind == UNDO else 'has no'} selection",
        )
    if request.kind == UNDO and (request.whole_source or request.path_before != request.path_after):
        raise AgentError("command-invalid", "a selective undo leaves the path and later steps alone")
    if request.kind == UNDO and request.chunk_rows:
        raise AgentError("command-invalid", "a selective undo is not carried out in chunks")
    if request.method not in METHODS:
        raise AgentError("command-invalid", f"{request.method!r} is no way to make changes", " or ".join(METHODS))
    unknown = set(options) - {"whole_source", "select", "method", "approval", "chunk_rows", "pause_ms"}
    if unknown:
        raise AgentError("command-invalid", f"rollback.plan knows no option {', '.join(sorted(unknown))}")
    return request


def request_of(planned: RollbackPlanned) -> Request:
    """The request that a recorded plan was made from."""
    options = json.loads(planned.options or "{}")
    return Request(
        plan=planned.plan,
        kind=planned.kind,
        target=planned.target,
        target_ordinal=planned.target_ordinal,
        target_time_us=planned.target_time_us,
        lineage=planned.lineage or "",
        head_ordinal=planned.head_ordinal,
        path_before=planned.path_before,
        path_after=planned.path_after,
        whole_source=options.get("whole_source", True),
        selection=parse_selection(options["select"]) if "select" in options else None,
        method=options.get("method", "native"),
        approval=options.get("approval", False),
        chunk_rows=options.get("chunk_rows", 0),
        pause_ms=options.get("pause_ms", 0),
        part_of=options.get("part_of", ""),
        undo=planned.undo if "part_of" in options else None,
        redo=planned.redo if "part_of" in options else None,
    )


def _path(raw: Any) -> Path:
    return normalise(OrdinalRange(int(first), int(last)) for first, last in raw)


@dataclass(frozen=True, slots=True, eq=False)
class TablePlan:
    """The net changes of one table. `children`: foreign keys that must not point at rows that go away."""

    definition: Definition
    changes: NetChanges
    children: tuple[tuple[Definition, int], ...] = ()
    """(child, index into its `foreign_keys`)."""

    @property
    def effect(self) -> TableEffect:
        c = self.changes
        return TableEffect(
            self.definition.schema,
            self.definition.table,
            len(c.inserts),
            len(c.updates),
            len(c.deletes),
            c.table.keyed,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A plan with its rows. `event` is what is published: everything but the rows."""

    event: RollbackPlanned
    tables: tuple[TablePlan, ...]
    preamble: bytes
    """The format description that native events of this plan are replayed with."""
    behind: bool = False
    """A step of it defines something that is not recorded yet: planned again in a moment, it may not be in the way."""

    @property
    def runnable(self) -> bool:
        return not self.event.obstacles

    def table(self, name: TableName) -> TablePlan | None:
        return next((t for t in self.tables if t.definition.name == name), None)


def make_plan(
    request: Request,
    schema: Schema,
    steps: ReadSteps,
    *,
    source: str,
    by: str,
    planned_us: int,
    index: Index | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Read the steps and say what undoing and redoing them comes to. `index`: where to look for what a selective undo needs;
    without one, or where it has nothing, every step is looked at.

    Never raises for what stands in the way: that is in the event's `obstacles`, and the plan is then not runnable.
    """
    definitions: dict[TableName, Definition | None] = {}

    def look_up(name: TableName) -> Definition | None:
        if name not in definitions:
            definitions[name] = schema.get(name)
        return definitions[name]

    read = _chosen if request.selection is not None else _way
    folder, made = read(request, schema, look_up, steps, index, memory_bytes, progress)
    problems = [*folder.problems(), *made.problems]
    tables = () if folder.too_large else _tables(folder, look_up)
    warnings = [*made.warnings, *_warnings(folder, tables, request.method)]
    keyless = sum(t.changes.rows for t in tables if not t.changes.table.keyed)
    rows = sum(t.changes.rows for t in tables)
    problems += _keyless(tables)
    if request.method == "bound":
        problems += _set_off(tables) + _unwritable(tables)
    if request.chunk_rows:
        problems += _CHUNKS_WHOLE if request.whole_source else ()
        warnings.append(_in_chunks(request.chunk_rows, rows))
    if not problems and not made.undo and not made.redo:
        problems.append(made.nothing)
    event = RollbackPlanned(
        lineage=request.lineage,
        plan=request.plan,
        source=source,
        kind=request.kind,
        target=request.target,
        target_ordinal=request.target_ordinal,
        target_time_us=request.target_time_us,
        head_ordinal=request.head_ordinal,
        path_before=request.path_before,
        path_after=request.path_after,
        undo=made.undo,
        redo=made.redo,
        steps=made.steps,
        rows=rows,
        payload_bytes=folder.payload_bytes,
        tables=tuple(t.effect for t in tables),
        obstacles=tuple(problems),
        warnings=tuple(warnings),
        dependants=made.dependants,
        dependant_steps=made.dependant_steps,
        schema_version=schema.version,
        options=request.options,
        estimate_ms=int(
            BASE_MS + (BOUND_ROW_MS if request.method == "bound" else ROW_MS) * rows + KEYLESS_ROW_MS * keyless
        ),
        digest=plan_digest(request, made.undo, made.redo, schema.version, tables),
        planned_us=planned_us,
        by=by,
    )
    return Plan(event, tables, folder.preamble, folder.unrecorded)


_NOTHING: Final = Problem("nothing-to-do", "the source is in that state already", "see `timeline show`")


@dataclass(frozen=True, slots=True)
class _Made:
    """What was read into a plan. `nothing`: what there is to say when that is nothing."""

    undo: Path
    redo: Path
    steps: int
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    dependants: tuple[Dependant, ...] = ()
    dependant_steps: int = 0
    nothing: Problem = _NOTHING


LookUp = Callable[[TableName], Definition | None]


def _way(
    request: Request,
    schema: Schema,
    look_up: LookUp,
    steps: ReadSteps,
    index: Index | None,
    memory_bytes: int,
    progress: Callable[[int, int], None],
) -> tuple[Folder, _Made]:
    """From the state of one path to that of another: all of the steps between."""
    undo, redo = request.way
    total = length(undo) + length(redo)
    folder = Folder(
        look_up, most_bytes=memory_bytes, redefinitions=schema.redefinitions, whole_source=request.whole_source
    )
    for ranges, undone in ((undo, True), (redo, False)):
        for r in ranges:
            for fragment in steps(r.first, r.last):
                folder.step(fragment.ordinal, fragment.preamble, fragment.payload, first=fragment.number == 0)
                if folder.steps % 10_000 == 0 and fragment.number == 0:
                    progress(folder.steps, total)
        if undone:
            folder.turn_round()
    problems: tuple[Problem, ...] = ()
    if folder.steps != total:
        problems = (Problem(
            "too-few-steps", f"the plan covers {total} steps, of which the log holds {folder.steps}",
            "roll back less far",
        ),)  # fmt: skip
    return folder, _Made(undo, redo, folder.steps, problems)


def _chosen(
    request: Request,
    schema: Schema,
    look_up: LookUp,
    steps: ReadSteps,
    index: Index | None,
    memory_bytes: int,
    progress: Callable[[int, int], None],
) -> tuple[Folder, _Made]:
    """What was selected, and what depends on it."""
    assert request.selection is not None
    chooser = Chooser(request.selection, request.path_before, look_up, index, schema.redefinitions)
    folder = Folder(look_up, most_bytes=memory_bytes, chooser=chooser)
    chooser.run(folder, steps, lambda ordinal: progress(ordinal, request.head_ordinal))
    chosen = chooser.finish(folder)
    folder.unrecorded = chooser.unrecorded
    folder.turn_round()
    nothing = Problem(
        "nothing-to-do", "no row that stands was changed by what is selected", "see `timeline show` and `row history`"
    )
    return folder, _Made(
        chosen.steps,
        (),
        length(chosen.steps),
        chosen.problems,
        chosen.warnings,
        chosen.dependants,
        chosen.dependant_steps,
        nothing,
    )


def _tables(folder: Folder, look_up: Callable[[TableName], Definition | None]) -> tuple[TablePlan, ...]:
    out = []
    for name, net in sorted(folder.tables.items()):
        changes = net.result()
        if not changes.rows and not changes.expected:
            continue
        definition = folder.definitions[name]
        children = []
        for reference in definition.referenced_by:
            child = look_up((reference.schema, reference.table))
            for i, fk in enumerate(child.foreign_keys if child is not None else ()):
                if fk.name == reference.constraint and child is not None:
                    children.append((child, i))
        out.append(TablePlan(definition, changes, tuple(children)))
    return tuple(out)


def _warnings(folder: Folder, tables: tuple[TablePlan, ...], method: str) -> list[Problem]:
    out = []
    for t in tables:
        if t.definition.triggers and method == "native":
            names = ", ".join(t.definition.triggers)
            out.append(Problem(
                "triggers", f"triggers of {t.definition.text} do not run during the rollback: {names}",
                "what they once changed is undone from the log; effects outside the database are not",
            ))  # fmt: skip
        rows = t.changes.rows
        if not t.changes.table.keyed and rows > KEYLESS_WARN_ROWS:
            out.append(Problem(
                "no-key", f"{t.definition.text} has no key: {rows} rows may take {rows * KEYLESS_ROW_MS / 1000:.0f} s",
                "give the table a primary key",
            ))  # fmt: skip
    if folder.accounts:
        first, more = folder.accounts[0], len(folder.accounts) - 1
        out.append(Problem(
            "account-statement", f"step {first} changes accounts or privileges" + (f", and so do {more} more" if more else "")
            + ": they stay as they are now", "change them by hand where that is meant, too",
        ))  # fmt: skip
    crossed = sorted(folder.crossed.items())
    for ordinal, change in crossed[:CROSSED_SHOWN]:
        out.append(Problem(
            "definition-stays", f"what step {ordinal} defined stays as it is: {change.text}",
            "rows are rolled back, definitions are not",
        ))  # fmt: skip
    if len(crossed) > CROSSED_SHOWN:
        out.append(Problem("definition-stays", f"and {len(crossed) - CROSSED_SHOWN} more steps that define something"))
    for schema, table in sorted(folder.sequences):
        out.append(Problem(
            "sequence", f"sequence {schema}.{table} keeps its value: numbers already given are not given again"
        ))  # fmt: skip
    return out


_CHUNKS_WHOLE: Final = (Problem(
    "chunks-whole-source", "between chunks others may write, so nobody can promise that the whole source is as it was",
    "plan with whole_source off (--not-whole-source), or without chunks",
),)  # fmt: skip


def _in_chunks(most: int, rows: int) -> Problem:
    return Problem(
        "chunks",
        f"{rows} rows, in chunks of whole steps of about {most} rows each: after each chunk the source is in a state that it"
        " once had (beside later steps), which applications see; a larger step is a chunk of its own",
        "stopped half way it stays there: run the plan again to go on, or take its chunks back with `holdfast rollback"
        " forward`, newest first",
    )


def no_fence(account: str = "the rollback account") -> Problem:
    """A plan for the whole source, and nobody to keep others from writing."""
    return Problem(
        "no-fence",
        "the rollback account may not make the source read-only, so others could write between the last look and COMMIT:"
        " nobody can promise that the whole source is as it was",
        f"plan with whole_source off (--not-whole-source), or GRANT READ_ONLY ADMIN ON *.* TO {account}",
    )


def _set_off(tables: tuple[TablePlan, ...]) -> list[Problem]:
    """Triggers that bound statements would set off: no session may leave them out, and what they do is in no plan."""
    out = []
    for t in tables:
        made = {"INSERT": t.changes.inserts, "UPDATE": t.changes.updates, "DELETE": t.changes.deletes}
        kinds = [kind for kind, rows in made.items() if rows]
        names = [n for n, event in t.definition.triggers.items() if any(kind in event.upper() for kind in kinds)]
        if names:
            out.append(Problem(
                "triggers", f"triggers of {t.definition.text} would run a second time: {', '.join(names)}",
                "native events do not set them off: GRANT BINLOG REPLAY, BINLOG ADMIN, READ_ONLY ADMIN ON *.* to the"
                " rollback account and plan with method native, where the server allows it",
            ))  # fmt: skip
    return out


def _unwritable(tables: tuple[TablePlan, ...]) -> list[Problem]:
    """Columns whose values bound statements cannot write: MySQL logs JSON in a form of its own, some of which no text has."""
    out = []
    for t in tables:
        names = [c.label for c in t.changes.table.table_map.columns if c.type == JSON]
        if names:
            out.append(Problem(
                "unknown-type", f"bound statements do not write binary JSON: {t.definition.text}, {', '.join(names)}",
                "let the rollback account replay native events and plan with method native, or leave the table out",
            ))  # fmt: skip
    return out


def _keyless(tables: tuple[TablePlan, ...]) -> list[Problem]:
    return [
        Problem(
            "no-key",
            f"{t.definition.text} has no key and {t.changes.rows} rows of it would change, each by a scan of the table",
            f"give the table a primary key, {SCRATCH}",
        )
        for t in tables
        if not t.changes.table.keyed and t.changes.rows > KEYLESS_MOST_ROWS
    ]


def plan_digest(
    request: Request, undo: Path, redo: Path, schema_version: bytes, tables: tuple[TablePlan, ...]
) -> bytes:
    """BLAKE3-256 over PLAN_FORMAT, the inputs as canonical JSON, and for each table, by name: layout and fingerprint,
    then each list of images (expected, deletes, updates, inserts, removed) as count, bytes, images. Counts and lengths
    are u64, little-endian. The plan's own id is no part of it."""
    digest = blake3(PLAN_FORMAT)

    def put(data: bytes) -> None:
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)

    inputs = {
        "kind": request.kind,
        "lineage": request.lineage,
        "head": request.head_ordinal,
        "before": [[r.first, r.last] for r in request.path_before],
        "after": [[r.first, r.last] for r in request.path_after],
        "undo": [[r.first, r.last] for r in undo],
        "redo": [[r.first, r.last] for r in redo],
        "schema": schema_version.hex(),
        "options": request.options,
    }
    put(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode())
    for t in tables:
        c = t.changes
        put(core_content(c.table.table_map, *t.definition.name))
        put(t.definition.fingerprint)
        for images in (c.expected, c.deletes, [i for pair in c.updates for i in pair], c.inserts, c.removed):
            digest.update(len(images).to_bytes(8, "little"))
            digest.update(sum(map(len, images)).to_bytes(8, "little"))
            for at in range(0, len(images), 10_000):
                digest.update(b"".join(images[at : at + 10_000]))
    return digest.digest()
