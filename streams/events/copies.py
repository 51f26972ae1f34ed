"""Scratch copies: a source as it was after a step, on a private server; and tables that are brought back from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from streams.events.base import Event, Problem, event

ScratchState = Literal["making", "ready", "ended", "failed"]
TableRollbackState = Literal["approved", "confirmed", "loading", "fenced", "applied", "failed", "abandoned"]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchChanged(Event):
    """A scratch copy is in a new state. It holds the source as it was after step `ordinal` in log order, at `position`.

    `host`, `port`, `socket` and `account` say how it is reached from the agent's machine; its password is in a file there
    (`password_file`), never in an event. `tables` (`schema.table`) are those whose rows it has; empty: all. `job` is the
    command that it was made by. `problems` say why it ended, when nobody asked for that.
    """

    TYPE: ClassVar[str] = "scratch.changed"
    TOPIC: ClassVar[str] = "inventory"

    scratch: str
    source: str
    state: str
    ordinal: int
    position: str = ""
    tables: tuple[str, ...] = ()
    host: str = ""
    port: int = 0
    socket: str = ""
    account: str = ""
    password_file: str = ""
    expires_us: int | None = None
    size_bytes: int = 0
    job: str = ""
    at_us: int
    by: str
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        return f"scratch/{self.scratch}"


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class TableRollbackPlanned(Event):
    """One table shall be what it was after step `target_ordinal`: swapped in from a scratch copy.

    `rows_now` is None where the table is gone; the definitions are empty where there is none. `shadow` is the name that it
    is loaded under, `kept` the one that the table of now is kept under. Lists are for people: foreign keys from and to the
    table, triggers, and privileges granted on it. `scratch` is the copy that the plan was made from and will run from;
    `content` the digest of the rows there. `obstacles` make a plan that cannot run.
    """

    TYPE: ClassVar[str] = "table_rollback.planned"
    TOPIC: ClassVar[str] = "rollbacks"

    plan: str
    source: str
    schema: str
    table: str
    target: str
    target_ordinal: int
    target_time_us: int
    head_ordinal: int
    rows_now: int | None
    rows_then: int
    definition_now: str
    definition_then: str
    foreign_keys: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    privileges: tuple[str, ...] = ()
    shadow: str
    kept: str
    scratch: str
    content: bytes
    obstacles: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    digest: bytes
    planned_us: int
    by: str

    @property
    def key(self) -> str:
        return self.source


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class TableRollbackChanged(Event):
    """A plan for one table is in a new state.

    `fenced` carries `read_only_before`, said before the source is made read-only. `applied` tells `kept`, the name under
    which the table that was replaced is kept (empty: there was none), and `position`, the source's after the swap.
    """

    TYPE: ClassVar[str] = "table_rollback.changed"
    TOPIC: ClassVar[str] = "rollbacks"

    plan: str
    source: str
    state: str
    digest: bytes
    at_us: int
    by: str
    read_only_before: str = ""
    position: str = ""
    rows: int = 0
    kept: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        return self.source
