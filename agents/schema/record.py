"""Schema events: a version split to fit the topic, and the schema that events add up to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agents.mysql.definitions import TableName, schema_version
from streams.events import SchemaRecorded, TableDefinition

# Well below what the topic takes (8 MiB).
EVENT_BYTES = 4_000_000


def split(event: SchemaRecorded) -> Iterator[SchemaRecorded]:
    """`event` as one or several that together say the same. Only the first is full, and only it says what was dropped."""
    chunk: list[TableDefinition] = []
    size, first = 0, True
    for definition in event.tables:
        more = len(definition.ddl.encode()) + len(definition.definition.encode()) + 200
        if chunk and size + more > EVENT_BYTES:
            yield _part(event, chunk, first)
            chunk, size, first = [], 0, False
        chunk.append(definition)
        size += more
    yield _part(event, chunk, first)


def _part(event: SchemaRecorded, tables: Sequence[TableDefinition], first: bool) -> SchemaRecorded:
    return replace(event, tables=tuple(tables), full=event.full and first, dropped=event.dropped if first else ())


@dataclass(frozen=True, slots=True)
class State:
    """All tables as of step `ordinal`, which is -1 while nothing is known."""

    ordinal: int = -1
    tables: Mapping[TableName, TableDefinition] = field(default_factory=dict)

    def after(self, event: SchemaRecorded) -> State:
        tables = {} if event.full else dict(self.tables)
        for name in event.dropped:
            schema, _, table = name.partition(".")
            tables.pop((schema, table), None)
        tables.update({(t.schema, t.table): t for t in event.tables})
        return State(event.ordinal, tables)

    @property
    def version(self) -> bytes:
        return schema_version(self.tables.values())


def fold(events: Iterable[SchemaRecorded]) -> State:
    """What the events of one lineage add up to, up to the last version that is there whole.

    A version that was being written when its writer died lacks its last events: it does not count.
    """
    whole = State()
    for version, _ in versions(events):
        whole = version
    return whole


def versions(events: Iterable[SchemaRecorded]) -> Iterator[tuple[State, str]]:
    """Each version of one lineage that is there whole, with its origin."""
    whole = state = State()
    for event in events:
        if event.ordinal <= whole.ordinal and not event.full:
            continue  # said again by a writer that did not know better
        state = (state if event.ordinal == state.ordinal else whole).after(event)
        if state.version == event.version:
            whole = state
            yield whole, event.origin
