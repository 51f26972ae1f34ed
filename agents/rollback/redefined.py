"""What definition changes mean for the rows of steps before them: which can still be undone or redone, under which name.

    step      3          7              9                 12
    log       rows of a  RENAME a TO b  ADD INDEX (b)     ALTER b ADD COLUMN
    step 3's rows are b's now; step 9 is in nobody's way; from step 12 on, rows of steps before it have no place any more

Definitions are never rolled back. So the rows of a step can be undone or redone when the table they stand in has been laid
out alike from that step to now, and nothing but logged rows came and went: no TRUNCATE, no DROP, no column added. A
table's name may have changed.

Made from two recorded versions of the schema (before and after each step that defines something) and from the step's own
statement. Pure.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.rollback.schema import Definition, TableName, parse_definition
from streams.events import TableDefinition
from streams.formats.binlog.ddl import ANSI_QUOTES, effect
from streams.formats.binlog.events import Query
from streams.formats.binlog.statements import statement_text

_SPREADS: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
_WORD: Final = re.compile(r"[\w$]+")
_OF_TABLES: Final = frozenset({"table", "index", "database", "schema", "truncate", "rename"})
_OF_OTHERS: Final = frozenset({
    "procedure", "function", "trigger", "view", "event", "package", "sequence", "role", "user", "server",
})  # fmt: skip
"""The first of these words says what a definition change is about; of the latter, none that rows depend on."""


@dataclass(frozen=True, slots=True)
class Redefinition:
    """What one step defines. `tables`: those (by their names before it) whose rows of earlier steps have no place after it; None:
    any. `renamed`: name before → name after. `text`: the statements, for people."""

    ordinal: int
    text: str
    tables: frozenset[TableName] | None
    renamed: Mapping[TableName, TableName]

    @property
    def keeps_rows(self) -> bool:
        """Whether every table's rows are what they were, though maybe under another name."""
        return self.tables is not None and not self.tables


def redefinition(
    ordinal: int,
    queries: Sequence[Query],
    before: Mapping[TableName, TableDefinition],
    after: Mapping[TableName, TableDefinition] | None,
) -> Redefinition:
    """What the statements of a step did, between the recorded versions before and after it (None: not known as of then)."""
    text = "; ".join(statement_text(q.sql, 120) for q in queries)
    if after is None or not queries:
        return Redefinition(ordinal, text, None, {})
    tables: set[TableName] = set()
    now: dict[TableName, TableName] = {name: name for name in before}  # name before → name at this point
    for query in queries:
        told = effect(query.sql, query.database, ansi_quotes=bool((query.sql_mode or 0) & ANSI_QUOTES))
        if told.tables is None:
            return Redefinition(ordinal, text, None, {})
        names = {new: old for old, new in now.items()}
        if not (told.unless_there and all(name in names for name in told.tables)):
            tables |= {names.get(name, name) for name in told.tables}
        for old, new in told.renamed:
            first = next((b for b, at in now.items() if at == old), None)
            if first is not None:
                now[first] = new
    for name in before:
        new = now[name]
        if name not in tables and (new not in after or not _alike(before[name], after[new])):
            tables.add(name)
    renamed = {old: new for old, new in now.items() if old != new and old not in tables}
    taken = set(now.values())
    tables |= {name for name in after if name not in taken}
    return Redefinition(ordinal, text, frozenset(tables), renamed)


def _alike(one: TableDefinition, other: TableDefinition) -> bool:
    """Whether rows of one are rows of the other, and changes of them do the same to other tables."""
    if one.fingerprint == other.fingerprint:
        return True
    a, b = parse_definition(one), parse_definition(other)
    return (
        _stored(a) == _stored(b)
        and a.primary_key == b.primary_key
        and set(b.unique_keys.values()) <= set(a.unique_keys.values())
    )


def _stored(d: Definition) -> tuple[object, ...]:
    spreads = {
        (r.schema, r.table, r.constraint, r.on_delete, r.on_update)
        for r in d.referenced_by
        if _SPREADS & {r.on_delete, r.on_update}
    }
    return (d.columns, d.engine, d.system_versioned, frozenset(spreads))


@dataclass(frozen=True, slots=True)
class Redefinitions:
    """Those of a stretch of a lineage up to its head, ascending by ordinal."""

    steps: Sequence[Redefinition] = ()
    _ordinals: list[int] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        self._ordinals.extend(r.ordinal for r in self.steps)

    def at(self, ordinal: int) -> Redefinition | None:
        """What step `ordinal` defines; None: nothing is recorded of it."""
        i = self.era(ordinal)
        return self.steps[i - 1] if i and self.steps[i - 1].ordinal == ordinal else None

    def era(self, ordinal: int) -> int:
        """How many of them have happened after step `ordinal`: between two of them names mean the same tables."""
        return bisect_right(self._ordinals, ordinal)

    def now(self, name: TableName, ordinal: int) -> tuple[TableName, Redefinition | None]:
        """What the table that step `ordinal` called `name` is called at the head; and the definition change in between that

        its rows of that step have no place after.
        """
        for step in self.steps[self.era(ordinal) :]:
            if step.tables is None or name in step.tables:
                return name, step
            name = step.renamed.get(name, name)
        return name, None


def speaks_of(code: str, text: str, tables: list[TableName]) -> bool:
    """Whether a statement (`code`: what stands in the way because of it) may be about one of these tables, by its words
    alone: for what it redefined is not recorded."""
    spoken = [word.lower() for word in _WORD.findall(text)]
    if code != "statement-event" and next((w for w in spoken if w in _OF_TABLES | _OF_OTHERS), "") in _OF_OTHERS:
        return False
    words = set(spoken)
    if not tables:
        return False
    if not words or text.endswith("…") or len(text) >= 200:
        return True
    if words & {"database", "schema"} and words & {schema.lower() for schema, _ in tables}:
        return True
    return any(set(_WORD.findall(table.lower())) <= words for _, table in tables)
