"""The keys that a granule's steps write: steps in order go in beside `agents.capture.granules`, a key run comes out.

A row is known by the columns of its table's key as they were recorded before its step: the primary key, else the first
unique key without nullable columns, else the whole row. So what comes out depends on the steps and the schema topic alone,
however often the indexer was stopped. Memory is bounded: of a table with more than 32,768 keys in a granule, and of any once
there are 49,152 together, no keys are kept; it is *dense*: whoever looks for one of its keys reads the granule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from agents.rollback.schema import Definition, TableName, fitted, parse_definition
from agents.schema.record import State
from streams.capture_log import StepFragment
from streams.events import GranuleClosed, GranuleKeys, KeyedTable, SchemaRecorded
from streams.formats.binlog import events as ev
from streams.formats.binlog.events import FormatDescription, parse_format_description
from streams.formats.binlog.inverse import ROWS_TYPES, rows_head
from streams.formats.binlog.keys import KeyReader, key_reader
from streams.formats.binlog.rows import COMPRESSED, KINDS, UPDATES, RowLayout, image_ends, layout_of, parse_rows
from streams.formats.binlog.step import OWN_SCHEMA, TableMaps
from streams.formats.binlog.table_map import TableMap, known_maps, table_map_of
from streams.formats.errors import FormatError
from streams.key_runs import ENTRY, Hasher, hasher, run_of

MOST_OF_A_TABLE: Final = 32_768
MOST: Final = 49_152
"""Entries of one granule: 590 KB, so that the event stays below what its topic takes."""
MOST_BYTES: Final = 850_000
"""Of an event, tables and entries together: a granule may touch thousands of tables."""

_unpack = Struct("<B4xI").unpack_from
_STEP: Final = Struct(">I")


class Recorded:
    """Table definitions as they were recorded before a step, for steps that ascend. Events may be added as they are
    published."""

    def __init__(self, lineage: str, events: Iterable[SchemaRecorded]) -> None:
        self._lineage = lineage
        self._coming: list[SchemaRecorded] = []
        self._whole = self._state = State()
        self._parsed: dict[TableName, Definition | None] = {}
        self.add(events)

    def add(self, events: Iterable[SchemaRecorded]) -> None:
        self._coming += [e for e in events if e.lineage == self._lineage]
        self._coming.sort(key=lambda e: e.ordinal)  # stable: events of one version stay in their order

    def before(self, ordinal: int) -> bool:
        """Take in what was recorded of earlier steps; whether that changed something. As `agents.schema.record.fold`: a
        version half written does not count."""
        changed = False
        while self._coming and self._coming[0].ordinal < ordinal:
            event = self._coming.pop(0)
            if event.ordinal <= self._whole.ordinal and not event.full:
                continue
            self._state = (self._state if event.ordinal == self._state.ordinal else self._whole).after(event)
            if self._state.version == event.version:
                self._whole, changed = self._state, True
        if changed:
            self._parsed.clear()
        return changed

    def get(self, name: TableName) -> Definition | None:
        if name not in self._parsed:
            found = self._whole.tables.get(name)
            self._parsed[name] = None if found is None else parse_definition(found)
        return self._parsed[name]


@dataclass(slots=True)
class _Keys:
    """A table's keys in the granule being gathered. `shapes`: the key columns it was written with; several after DDL."""

    columns: tuple[str, ...] = ()
    dense: bool = False
    entries: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Table:
    """What is known of one table map while its rows go by."""

    name: TableName
    layout: RowLayout
    columns: int
    heads: dict[int, bytes]
    key: tuple[str, ...]
    read: KeyReader | None
    """None: the whole image."""
    hash: Hasher


class KeyCollector:
    """Gathers the keys of one granule after the other. `secret`: what hashes are made with."""

    def __init__(self, source: str, lineage: str, epoch: int, key_id: str, secret: bytes, recorded: Recorded) -> None:
        self._source, self._lineage, self._epoch = source, lineage, epoch
        self._key_id, self._secret = key_id, secret
        self.recorded = recorded
        self._preamble = b""
        self._format: FormatDescription | None = None
        self._maps: TableMaps = {}
        self._known: dict[TableMap, _Table | None] = {}
        self._first = 0
        self._open()

    def _open(self) -> None:
        self._keys: dict[tuple[TableName, tuple[str, ...]], _Keys] = {}
        self._held = 0

    def add(self, fragment: StepFragment) -> None:
        """Take in the rows of a step or fragment. Raises `FormatError` on one that cannot be read."""
        if fragment.number == 0:
            self._maps.clear()
            if self._first == 0:
                self._first = fragment.ordinal
            if self.recorded.before(fragment.ordinal):
                self._known.clear()
        if fragment.payload is None:
            return
        if self._format is None or fragment.preamble != self._preamble:
            self._format, self._preamble = parse_format_description(fragment.preamble), fragment.preamble
            self._known.clear()
        trailer = ev.CHECKSUM_SIZE if self._format.has_checksum else 0
        self._walk(fragment.payload, trailer, _STEP.pack(fragment.ordinal - self._first))

    def close(self, granule: GranuleClosed) -> GranuleKeys:
        """The keys of the granule that has just been closed."""
        if self._first not in (0, granule.first_ordinal):
            raise ValueError(f"keys gathered from step {self._first} on are not those of {granule.first_ordinal}")
        self._fit()
        keys = GranuleKeys(
            lineage=self._lineage,
            epoch=self._epoch,
            source=self._source,
            first_ordinal=granule.first_ordinal,
            last_ordinal=granule.last_ordinal,
            key_id=self._key_id,
            tables=tuple(KeyedTable(*name, columns, k.dense) for (name, columns), k in sorted(self._keys.items())),
            entries=run_of(entry for k in self._keys.values() for entry in k.entries),
        )
        self._first = 0
        self._open()
        return keys

    def _fit(self) -> None:
        """Let go of the entries of the largest tables until what is left fits into an event."""
        names = sum(
            40 + len(f"{schema}{table}{columns}".encode("utf-8", "surrogatepass"))
            for (schema, table), columns in self._keys
        )
        largest = sorted(self._keys.items(), key=lambda item: (-len(item[1].entries), item[0]))
        for _, keys in largest:
            if names + self._held * ENTRY <= MOST_BYTES:
                return
            self._too_many(keys)

    def _walk(self, payload: bytes, trailer: int, step: bytes) -> None:
        """Whole events that end in `trailer` bytes of checksum."""
        assert self._format is not None
        mariadb = self._format.mariadb
        known, maps, tables = known_maps(mariadb), self._maps, self._known
        at, end = 0, len(payload)
        while at < end:
            kind, length = _unpack(payload, at + 4)
            stop = at + length
            if length < ev.HEADER_SIZE or stop > end:
                raise FormatError("truncated", f"an event at byte {at} is cut off", ev.WHOLE_EVENTS_HINT)
            if kind == ev.TABLE_MAP:
                content = payload[at + 27 : stop - trailer]
                maps[payload[at + 19 : at + 25]] = known.get(content) or table_map_of(content, mariadb)
            elif kind in KINDS:
                table_map = maps.get(payload[at + 19 : at + 25])
                if table_map is not None:
                    table = tables[table_map] if table_map in tables else self._table(table_map)
                    if table is not None:
                        self._rows(table, kind, payload, at, stop - trailer, step)
            elif kind == ev.TRANSACTION_PAYLOAD:
                self._walk(ev.transaction_payload(payload[at + ev.HEADER_SIZE : stop - trailer]), 0, step)
            at = stop

    def _table(self, table_map: TableMap) -> _Table | None:
        """None: its rows are left out (Holdfast's own), or cannot be told apart (then it is dense)."""
        made: _Table | None = None
        if table_map.schema != OWN_SCHEMA:
            made = _shape(table_map, self.recorded.get(table_map.key), self._secret)
            if made is None:
                self._of(table_map.key, ()).dense = True
                return None  # not remembered: the next granule has to say so, too
        self._known[table_map] = made
        return made

    def _of(self, name: TableName, columns: tuple[str, ...]) -> _Keys:
        keys = self._keys.get((name, columns))
        if keys is None:
            keys = self._keys[name, columns] = _Keys(columns)
        return keys

    def _rows(self, table: _Table, kind: int, payload: bytes, at: int, end: int, step: bytes) -> None:
        keys = self._keys.get((table.name, table.key)) or self._of(table.name, table.key)
        if keys.dense:
            return
        head = table.heads.get(kind)
        if head is not None and payload.startswith(head, at + 27):
            data, first, last, update = payload, at + 27 + len(head), end, kind in UPDATES
        else:
            event = parse_rows(kind, payload[at + ev.HEADER_SIZE : end])
            bitmaps = [b for b in (event.before, event.after) if b is not None]
            whole = event.width == table.columns and all(layout_of(table.layout.table_map, b).full for b in bitmaps)
            if kind == ev.PARTIAL_UPDATE_ROWS or not whole:
                self._too_many(keys)  # images without all of their columns, or of their documents
                return
            if kind not in COMPRESSED:  # MySQL sets the bits of a bitmap that no column has
                table.heads[kind] = payload[at + 27 : end - len(event.data)]
            data, first, last, update = event.data, 0, len(event.data), event.kind == "update"
        read, hashed, entries = table.read, table.hash, keys.entries
        before = len(entries)
        previous = None
        for stop in image_ends(table.layout, data, first, last):
            image = data[first:stop]
            key = image if read is None else read(image)
            # Most updates leave the key alone.
            if not update or key != previous:
                entries.add(hashed(key) + step)
            previous = key
            first = stop
        self._held += len(entries) - before
        if len(entries) > MOST_OF_A_TABLE or self._held > MOST:
            self._too_many(keys)

    def _too_many(self, keys: _Keys) -> None:
        self._held -= len(keys.entries)
        keys.entries.clear()
        keys.dense = True


def _shape(table_map: TableMap, definition: Definition | None, secret: bytes) -> _Table | None:
    """How rows of this map are known; None when no definition fits."""
    if definition is None:
        return None
    described = fitted(table_map, definition)
    if described is None:
        return None
    count = len(described.columns)
    bitmap = ((1 << count) - 1).to_bytes((count + 7) >> 3, "little")
    layout = layout_of(described, bitmap)
    columns = definition.key[1] if definition.key else ()
    heads: dict[int, bytes] = {}
    for version, types in ROWS_TYPES.items():
        one, two = rows_head(0, version, count, bitmap, None)[8:], rows_head(0, version, count, bitmap, bitmap)[8:]
        heads |= {types["insert"]: one, types["delete"]: one, types["update"]: two}
    return _Table(
        table_map.key,
        layout,
        count,
        heads,
        columns,
        key_reader(layout, definition.indexes(columns)) if columns else None,
        hasher(secret, *table_map.key, columns),
    )
