"""Table definitions as a plan needs them: parsed from `schema.<source>`, never read from the live source.

Knows the canonical JSON of docs/design.md ("Granules, schema, rollbacks"). What the definitions are compared with later
(the live ones, once the tables are held) is the target's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.events import TableDefinition
from streams.formats.binlog.keys import declared_key
from streams.formats.binlog.table_map import SEQUENCE_COLUMNS, Declared, TableMap, with_declared

if TYPE_CHECKING:
    from agents.rollback.redefined import Redefinitions

TableName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    """`generated`: None, `stored` or `virtual`; `charset`: None for what is not text."""

    name: str
    type: str
    nullable: bool
    generated: str | None
    charset: str | None
    collation: str | None = None


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """`columns` of a child point at `references` of table (`schema`, `table`), in this order."""

    name: str
    columns: tuple[str, ...]
    schema: str
    table: str
    references: tuple[str, ...]
    on_delete: str
    on_update: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A child's foreign key, seen from the parent."""

    schema: str
    table: str
    constraint: str
    on_delete: str
    on_update: str


@dataclass(frozen=True, slots=True)
class Definition:
    """One table. `key`: the name and columns of what a row is found by — the primary key, else the first unique key
    (by name) without nullable columns; None without one."""

    schema: str
    table: str
    engine: str
    columns: tuple[ColumnDefinition, ...]
    primary_key: tuple[str, ...]
    unique_keys: Mapping[str, tuple[str, ...]]
    foreign_keys: tuple[ForeignKey, ...]
    referenced_by: tuple[Reference, ...]
    triggers: Mapping[str, str]
    """Name → the event that sets it off (INSERT, UPDATE, DELETE)."""
    system_versioned: bool
    fingerprint: bytes = field(repr=False)
    key: tuple[str, tuple[str, ...]] | None = None

    @property
    def name(self) -> TableName:
        return (self.schema, self.table)

    @property
    def text(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def is_sequence(self) -> bool:
        """A sequence is a table of one row that is written over and never deleted."""
        return tuple(c.name for c in self.columns) == SEQUENCE_COLUMNS

    def indexes(self, names: Iterable[str]) -> tuple[int, ...]:
        """Where columns stand in the table."""
        places = {c.name: i for i, c in enumerate(self.columns)}
        return tuple(places[n] for n in names)


def parse_definition(recorded: TableDefinition) -> Definition:
    """Raises `ValueError` or `KeyError` when the JSON is not canonical."""
    raw: dict[str, Any] = json.loads(recorded.definition)
    columns = tuple(
        ColumnDefinition(c["name"], c["type"], c["nullable"], c["generated"], c["charset"], c.get("collation"))
        for c in raw["columns"]
    )
    unique = {name: tuple(names) for name, names in sorted(raw["unique_keys"].items())}
    return Definition(
        schema=recorded.schema,
        table=recorded.table,
        engine=raw["engine"] or "",
        columns=columns,
        primary_key=tuple(raw["primary_key"]),
        unique_keys=unique,
        foreign_keys=tuple(
            ForeignKey(
                name,
                tuple(fk["columns"]),
                fk["schema"],
                fk["table"],
                tuple(fk["references"]),
                fk["on_delete"],
                fk["on_update"],
            )
            for name, fk in sorted(raw["foreign_keys"].items())
        ),
        referenced_by=tuple(Reference(*entry) for entry in raw["referenced_by"]),
        triggers={name: trigger["event"] for name, trigger in sorted(raw["triggers"].items())},
        system_versioned=raw["system_versioned"],
        fingerprint=recorded.fingerprint,
        key=declared_key(raw),
    )


@dataclass(frozen=True, slots=True)
class Schema:
    """All tables of a source as of some step. `version` identifies it (`SchemaRecorded.version`); empty: unknown.
    `redefinitions`: what was defined on the way there, as far back as somebody asked; None: nothing is known of that."""

    tables: Mapping[TableName, TableDefinition]
    version: bytes = b""
    redefinitions: Redefinitions | None = None

    def get(self, name: TableName) -> Definition | None:
        recorded = self.tables.get(name)
        return None if recorded is None else parse_definition(recorded)


def fitted(table_map: TableMap, definition: Definition) -> TableMap | None:
    """The map with what the definition knows of its columns; None when they are not the same columns."""
    # A unique key over a long column is kept by a hidden last column, which the log shows and the schema does not.
    # (One of the user's may be called so, too: only what comes after the recorded columns is hidden.)
    recorded = [c.name for c in definition.columns]
    names = [
        c.name for c in table_map.columns if c.index < len(recorded) or not (c.name or "").startswith("DB_ROW_HASH_")
    ]
    if len(names) != len(recorded) or (table_map.named and names != recorded):
        return None
    if len(names) != len(table_map.columns):
        return table_map
    return with_declared(table_map, (Declared(c.name, c.type, c.charset) for c in definition.columns))
