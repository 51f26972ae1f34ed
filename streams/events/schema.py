"""The schema topic of one source: every object's definition at the baseline, then a version for each DDL step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.events.base import Event, event


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """One table. `definition` is canonical JSON (columns, keys, foreign keys, triggers, engine: docs/design.md),
    `fingerprint` its BLAKE3-256, `ddl` what SHOW CREATE TABLE says."""

    schema: str
    table: str
    ddl: str
    definition: str
    fingerprint: bytes


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRecorded(Event):
    """The schema as of step `ordinal` (0: the baseline). `tables` holds all (`full`) or those that this step changed;
    `dropped` names tables that are gone as `schema.table`. `origin`: `baseline`, `replayed` (on the scratch server) or
    `live` (read from the source, which races with later DDL; the capability level says so)."""

    TYPE: ClassVar[str] = "schema.recorded"
    TOPIC: ClassVar[str] = "schema"

    source: str
    ordinal: int
    position: str
    full: bool
    origin: str
    statement: str
    tables: tuple[TableDefinition, ...]
    dropped: tuple[str, ...] = ()
    version: bytes
    at_us: int

    @property
    def key(self) -> str:
        return self.source
