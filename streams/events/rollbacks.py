"""Rollbacks: plans and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streams.events.base import Event, Problem, event

RollbackState = Literal[
    "approved", "confirmed", "fenced", "applying", "applied", "chunking", "chunked", "failed", "abandoned"
]


@dataclass(frozen=True, slots=True)
class OrdinalRange:
    """Ordinals `first..last`, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class TableEffect:
    """What the plan does to one table, in rows, and what it had to guard."""

    schema: str
    table: str
    inserts: int
    updates: int
    deletes: int
    keyed: bool


@dataclass(frozen=True, slots=True)
class Dependant:
    """A step that wrote again what a selective undo takes back, or wrote what depends on it: `tables` as `schema.table`.
    `taken`: the plan undoes it, too, or writes over it."""

    ordinal: int
    tables: tuple[str, ...]
    taken: bool


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlanned(Event):
    """A plan: a pure function of (lineage, ranges, schema version, options). Rows are not in it; its inputs are.

    `path_before` and `path_after` are the ordinals whose effects stand before and after it, ascending
    (`streams.paths`); `undo` and `redo` follow from them. `obstacles` make a plan that cannot run; `warnings` do not.
    `kind`: `rollback`, `forward`, or `undo`: a selective undo, whose path is the same before and after it, `undo` the steps of
    which rows are taken back, and `dependants` the first of the later steps found to depend on these (`options` says what was
    selected and what becomes of dependants). `schema_version` is the digest of the schemas the plan was made with.
    """

    TYPE: ClassVar[str] = "rollback.planned"
    VERSION: ClassVar[int] = 2
    TOPIC: ClassVar[str] = "rollbacks"

    plan: str
    source: str
    kind: str
    target: str
    target_ordinal: int
    target_time_us: int
    head_ordinal: int
    path_before: tuple[OrdinalRange, ...]
    path_after: tuple[OrdinalRange, ...]
    undo: tuple[OrdinalRange, ...]
    redo: tuple[OrdinalRange, ...]
    steps: int
    rows: int
    payload_bytes: int
    tables: tuple[TableEffect, ...]
    obstacles: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    dependants: tuple[Dependant, ...] = ()
    dependant_steps: int = 0
    schema_version: bytes
    options: str = ""
    estimate_ms: int = 0
    digest: bytes
    planned_us: int
    by: str

    @property
    def key(self) -> str:
        return self.source


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackChanged(Event):
    """A plan is in a new state.

    `chunking`, `chunked`: a plan that is carried out as several others, each with states of its own; `rows` done so far.
    `approved`: somebody (`by`) looked at what `digest` stands for and agreed; it may be said more than once.
    `fenced` carries `read_only_before` (the server's value before we set it), written before it is set, so that a
    restarted agent can put it back. `applied` names the position (GTID) and ordinal of the step that the rollback itself is.
    """

    TYPE: ClassVar[str] = "rollback.changed"
    TOPIC: ClassVar[str] = "rollbacks"

    plan: str
    source: str
    state: str
    digest: bytes
    at_us: int
    by: str
    read_only_before: str = ""
    position: str = ""
    ordinal: int = 0
    rows: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        return self.source
