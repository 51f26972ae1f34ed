"""Reading steps into net changes, and noticing on the way what a rollback cannot undo.

One pass over the payload of the steps, whatever its direction: what is undone is folded forwards and turned round
(`streams.formats.binlog.net`). Knows events and table definitions, not where steps come from or what a plan is.

What stands in the way is a finding (`agents.rollback.findings`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final, Protocol

from agents.rollback.findings import Findings
from agents.rollback.redefined import Redefinition, Redefinitions
from agents.rollback.schema import Definition, TableName
from streams.events import Problem
from streams.formats.binlog import events as ev
from streams.formats.binlog.inverse import ROWS_TYPES, rows_head
from streams.formats.binlog.net import NetTable, Slicer, column_slicer, core_of
from streams.formats.binlog.rows import (
    CASCADES_LOGGED,
    COMPRESSED,
    KINDS,
    NO_CHECK_CONSTRAINT_CHECKS,
    NO_FOREIGN_KEY_CHECKS,
    STATEMENT_END,
    RowLayout,
    image_ends,
    iter_rows,
    layout_of,
    parse_rows,
)
from streams.formats.binlog.statements import classify, statement_text
from streams.formats.binlog.step import MARKER_TABLE, NO_TABLE, OWN_SCHEMA, marker_of
from streams.formats.binlog.table_map import TableMap, known_maps, table_map_of
from streams.formats.errors import FormatError

_SPREADS: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
_STATEMENT_EVENTS: Final = frozenset({
    ev.INTVAR, ev.RAND, ev.USER_VAR, ev.APPEND_BLOCK, ev.DELETE_FILE, ev.BEGIN_LOAD_QUERY, ev.EXECUTE_LOAD_QUERY,
})  # fmt: skip
_HARMLESS: Final = ev.GTIDS | {
    ev.ANNOTATE_ROWS, ev.BINLOG_CHECKPOINT, ev.GTID_LIST, ev.HEARTBEAT, ev.FORMAT_DESCRIPTION, ev.IGNORABLE, ev.ROWS_QUERY,
    ev.TRANSACTION_CONTEXT, ev.VIEW_CHANGE,
}  # fmt: skip
# With one of these flags a rows event caused no change of child rows that the log does not hold.
_NO_HIDDEN_CASCADES: Final = NO_FOREIGN_KEY_CHECKS | CASCADES_LOGGED

# Type and length of an event, from its fifth byte on; there are 14 more bytes of header after that.
_unpack = Struct("<B4xI").unpack_from


class Sink(Protocol):
    """Where the rows of one table go: its `NetTable`, or what chooses among them for it."""

    size: int
    unchecked: bool

    @property
    def table_map(self) -> TableMap: ...
    @property
    def referenced(self) -> tuple[int, ...]: ...
    def add(self, before: bytes | None, after: bytes | None) -> None: ...


class Chooser(Protocol):
    """Which rows of the steps are folded (`agents.rollback.choose`). Without one all are."""

    took: bool
    """Set when a row was folded; reset by the reader."""

    def wants(self, name: TableName) -> bool:
        """Whether rows of this table are to be looked at in the present step."""
        ...

    def sink(self, net: NetTable, definition: Definition) -> Sink:
        """What chooses among the rows of this table."""
        ...

    def counts(self, code: str, name: TableName | None, text: str) -> bool:
        """Whether a finding stands in the way: of a table, or (None) of the step, `text` being its statement."""
        ...


@dataclass(slots=True)
class _Table:
    """What is known of one table map while its rows go by."""

    net: Sink | None
    """None: rows of this table are left out (own schema, sequences) or cannot be undone (a finding says why)."""
    layout: RowLayout
    heads: dict[int, bytes]
    """By type of a plain event that holds all columns: what follows its flags, up to the first image."""
    spread_delete: bool
    spread_update: Slicer | None
    marker: bool = False


class Folder:
    """Folds steps. `definition` answers from the recorded schema; None: the table is not known.

    Feed steps in ascending order of the path with `step` (fragment by fragment), call `turn_round` between what is
    undone and what is redone. `tables` then holds the net changes and `problems()` what stands in the way.
    """

    def __init__(
        self,
        definition: Callable[[TableName], Definition | None],
        *,
        most_bytes: int,
        chooser: Chooser | None = None,
        redefinitions: Redefinitions | None = None,
        whole_source: bool = True,
    ) -> None:
        self._definition = definition
        self._chooser = chooser
        self._redefinitions = redefinitions or Redefinitions()
        self._whole_source = whole_source
        self._era = -1
        self.crossed: dict[int, Redefinition] = {}
        """Definition changes that are in nobody's way, by step: they stay as they are."""
        self.unrecorded = False
        """Some step defines something, and no version of the schema says what."""
        self._most = most_bytes
        self.tables: dict[TableName, NetTable] = {}
        self.definitions: dict[TableName, Definition] = {}
        self.preamble = b""
        self._described: ev.FormatDescription | None = None
        self.payload_bytes = 0
        self.steps = 0
        self.sequences: set[TableName] = set()
        self.accounts: list[int] = []
        """Steps that change accounts: no rows of anybody's, and so not in the way."""
        self.too_large = False
        self._known: dict[TableMap, _Table] = {}
        self._left: dict[TableMap, _Table] = {}
        self._maps: dict[bytes, TableMap] = {}
        self._findings = Findings(chooser.counts) if chooser is not None else Findings()
        # Of the step being read: it belongs to an XA transaction, prepares it, is all of it.
        self._xa_seen = self._xa_prepared = self._xa_whole = False

    def turn_round(self) -> None:
        """What was folded so far is to be undone."""
        for net in self.tables.values():
            net.invert()

    def problems(self) -> tuple[Problem, ...]:
        """What stands in the way, by the step that shows it first."""
        self._close()
        return self._findings.problems()

    def step(self, ordinal: int, preamble: bytes, payload: bytes | None, *, first: bool = True) -> None:
        """One step, or a fragment of one (`first`: it opens the step). Raises `FormatError` on damage.

        None in place of the payload: it holds account statements or what looks like them, and cannot be unsealed here.
        """
        if first:
            self._close()
            self._maps.clear()
            self.steps += 1
            era = self._redefinitions.era(ordinal)
            if era != self._era:
                self._known.clear()  # the same name may mean another table now
                self._era = era
        self._findings.ordinal = ordinal
        if payload is None:
            self._findings.account()
            return
        if preamble is not self.preamble or self._described is None:
            self.preamble = preamble
            self._described = ev.parse_format_description(preamble)
        self.payload_bytes += len(payload)
        self._events(ordinal, payload, ev.CHECKSUM_SIZE if self._described.has_checksum else 0)

    def _events(self, ordinal: int, payload: bytes, trailer: int) -> None:
        """Whole events that end in `trailer` bytes of checksum."""
        assert self._described is not None
        fde = self._described
        known, maps, tables = known_maps(fde.mariadb), self._maps, self._known
        at, end, least = 0, len(payload), ev.HEADER_SIZE + trailer
        while at < end:
            kind, length = _unpack(payload, at + 4)
            stop = at + length
            if length < least or stop > end:
                raise FormatError("truncated", f"an event of step {ordinal} is cut off", ev.WHOLE_EVENTS_HINT)
            if kind == ev.TABLE_MAP:
                content = payload[at + 27 : stop - trailer]
                maps[payload[at + 19 : at + 25]] = known.get(content) or table_map_of(content, fde.mariadb)
            elif kind in KINDS:
                table_map = maps.get(payload[at + 19 : at + 25])
                if table_map is not None:
                    table = tables.get(table_map) or self._table(table_map)
                    self._rows(table, kind, payload, at, stop - trailer)
                elif payload[at + 19 : at + 25] not in NO_TABLE:
                    raise FormatError("unknown-table", f"a rows event of step {ordinal} has no table map before it")
            elif kind == ev.GTID:
                if payload[at + 31] & (ev.GTID_PREPARED_XA | ev.GTID_COMPLETED_XA):
                    self._xa_seen = True
            elif kind == ev.TRANSACTION_PAYLOAD:
                self._events(ordinal, ev.transaction_payload(payload[at + ev.HEADER_SIZE : stop - trailer]), 0)
            elif kind != ev.XID:
                self._other(kind, payload[at + ev.HEADER_SIZE : stop - trailer])
            at = stop

    # -- rows -----------------------------------------------------------------------------------------------------

    def _rows(self, table: _Table, kind: int, payload: bytes, at: int, end: int) -> None:
        net = table.net
        if net is None or self.too_large:
            if table.marker:
                self._marker(table, kind, payload[at + ev.HEADER_SIZE : end])
            return
        if self._chooser is not None:
            self._chooser.took = False
        head = table.heads.get(kind)
        if head is not None and payload.startswith(head, at + 27):
            flags, what = payload[at + 25], KINDS[kind]
            data, first, last = payload, at + 27 + len(head), end
        elif kind == ev.PARTIAL_UPDATE_ROWS:
            self._findings.partial_json(net.table_map.key)
            return
        else:
            event = parse_rows(kind, payload[at + ev.HEADER_SIZE : end])
            bitmaps = [b for b in (event.before, event.after) if b is not None]
            if event.width != len(table.layout.table_map.columns) or not all(
                layout_of(table.layout.table_map, b).full for b in bitmaps
            ):
                self._findings.partial(net.table_map.key)
                return
            if kind not in COMPRESSED:  # MySQL sets the bits of a bitmap that no column has
                table.heads[kind] = payload[at + 27 : end - len(event.data)]
            data, first, last, what, flags = event.data, 0, len(event.data), event.kind, event.flags
        held = net.size
        try:
            if last - first == table.layout.constant and what != "update":
                image = data[first:last]
                net.add(*((None, image) if what == "insert" else (image, None)))
            else:
                ends = image_ends(table.layout, data, first, last)
                if what == "insert":
                    for end in ends:
                        net.add(None, data[first:end])
                        first = end
                elif what == "delete":
                    for end in ends:
                        net.add(data[first:end], None)
                        first = end
                else:
                    self._updates(table, net, data, first, ends, flags)
        except FormatError as error:
            if error.code != "chain-broken":
                raise
            self._findings.broken(net.table_map.key, error)
        if flags & ~STATEMENT_END:
            net.unchecked = net.unchecked or bool(flags & NO_CHECK_CONSTRAINT_CHECKS)
        if table.spread_delete and what == "delete" and not flags & _NO_HIDDEN_CASCADES and self._took():
            self._cascade(net, "deletes")
        self._most -= net.size - held
        if self._most < 0:
            self._give_up()

    def _took(self) -> bool:
        return self._chooser is None or self._chooser.took

    def _updates(self, table: _Table, net: Sink, data: bytes, first: int, ends: list[int], flags: int) -> None:
        if len(ends) & 1:
            raise table.layout.damaged()
        spread = None if flags & _NO_HIDDEN_CASCADES else table.spread_update
        for i in range(0, len(ends), 2):
            middle, end = ends[i], ends[i + 1]
            before, after = data[first:middle], data[middle:end]
            if self._chooser is not None:
                self._chooser.took = False
            net.add(before, after)
            if spread is not None and self._took() and spread(before) != spread(after):
                self._cascade(net, "changes")
            first = end

    def _table(self, table_map: TableMap) -> _Table:
        columns = len(table_map.columns)
        bitmap = ((1 << columns) - 1).to_bytes((columns + 7) >> 3, "little")
        layout = layout_of(table_map, bitmap)
        chooser = self._chooser
        if chooser is not None and table_map.schema != OWN_SCHEMA and not chooser.wants(table_map.key):
            return self._unwanted(table_map, layout)
        net = self._net(table_map, layout)
        spread_delete, spread_update = False, None
        if net is not None:
            definition = self.definitions[net.table_map.key]
            spread_delete = any(r.on_delete in _SPREADS for r in definition.referenced_by)
            if any(r.on_update in _SPREADS for r in definition.referenced_by):
                spread_update = column_slicer(layout, net.referenced)
        heads: dict[int, bytes] = {}
        for version, types in ROWS_TYPES.items():
            one = rows_head(0, version, columns, bitmap, None)[8:]
            two = rows_head(0, version, columns, bitmap, bitmap)[8:]
            heads |= {types["insert"]: one, types["delete"]: one, types["update"]: two}
        sink: Sink | None = net
        if net is not None and chooser is not None:
            sink = chooser.sink(net, self.definitions[table_map.key])
        marker = table_map.key == MARKER_TABLE
        made = _Table(sink, layout, heads, spread_delete, spread_update, marker)
        self._known[table_map] = made
        return made

    def _unwanted(self, table_map: TableMap, layout: RowLayout) -> _Table:
        """Not looked at now; it may be later."""
        made = self._left.get(table_map)
        if made is None:
            made = self._left[table_map] = _Table(None, layout, {}, False, None)
        return made

    def _marker(self, table: _Table, kind: int, body: bytes) -> None:
        """A rollback's step is not undone by its rows: it is a turn of the path. A selective undo's is."""
        for _, image in iter_rows(parse_rows(kind, body), table.layout.table_map):
            if image is not None and not marker_of(image, table.layout.table_map)[1]:
                self._findings.rollback_step()

    def _net(self, table_map: TableMap, layout: RowLayout) -> NetTable | None:
        name, text = table_map.key, f"{table_map.schema}.{table_map.table}"
        if table_map.schema == OWN_SCHEMA:
            return None
        name, barrier = self._redefinitions.now(name, self._findings.ordinal)
        if barrier is not None:
            self._findings.barrier(barrier.ordinal, barrier.text)
            return None
        definition = self._definition(name)
        if table_map.is_sequence or (definition is not None and definition.is_sequence):
            self.sequences.add(name)
            return None
        had = self.tables.get(name)
        if had is not None:
            if core_of(had.table_map) != core_of(table_map):
                self._findings.layout_changed(name, text)
                return None
            return had
        if not self._findings.fits(name, text, definition, table_map) or definition is None:
            return None
        self.definitions[name] = definition
        key = definition.indexes(definition.key[1]) if definition.key else ()
        split = {c for names in definition.unique_keys.values() for c in names}
        split |= {c for fk in definition.foreign_keys for c in fk.columns}
        if name != table_map.key:
            table_map = replace(table_map, schema=name[0], table=name[1], compiled={})
        referenced = _referenced(definition, self._definition)
        net = self.tables[name] = NetTable(
            table_map, layout, key, tuple(sorted(set(definition.indexes(split)) - set(key))), referenced
        )
        return net

    # -- what is in the way ---------------------------------------------------------------------------------------

    def _other(self, kind: int, body: bytes) -> None:
        if kind in (ev.QUERY, ev.QUERY_COMPRESSED):
            query = ev.parse_query(body, kind)
            if query.sql not in (b"BEGIN", b"COMMIT"):
                self._query(query)
        elif kind == ev.XA_PREPARE:
            self._xa_seen = self._xa_prepared = True
            self._xa_whole = ev.parse_xa_prepare(body).one_phase
        elif kind == ev.INCIDENT:
            self._findings.incident()
        elif kind in _STATEMENT_EVENTS:
            self._findings.statement("")
        elif kind not in _HARMLESS:
            self._findings.unsupported(ev.event_name(kind))

    def _query(self, query: ev.Query) -> None:
        what = classify(query.sql)
        if what in ("neutral", "begin", "commit", "savepoint"):
            return
        if what == "rollback":
            self._findings.rolled_back()
        elif what == "xa":
            self._xa_seen = True
            self._xa_whole = self._xa_prepared and query.sql.startswith(b"XA COMMIT")
        elif what == "account":
            self.accounts.append(self._findings.ordinal)
        elif what == "ddl":
            self._ddl(query)
        else:
            self._findings.statement(statement_text(query.sql, 120))

    def _ddl(self, query: ev.Query) -> None:
        if own_definition(query):
            return
        change = self._redefinitions.at(self._findings.ordinal)
        if change is not None and (change.keeps_rows or not self._whole_source):
            self.crossed[self._findings.ordinal] = change
            return
        self.unrecorded = self.unrecorded or change is None
        self._findings.barrier(self._findings.ordinal, statement_text(query.sql, 120))

    def _close(self) -> None:
        """The step is read. An XA transaction with its outcome is like any other; one half of it is not."""
        if self._xa_seen and not self._xa_whole:
            self._findings.xa()
        self._xa_seen = self._xa_prepared = self._xa_whole = False

    def _cascade(self, net: Sink, verb: str) -> None:
        children = ", ".join(
            f"{r.schema}.{r.table}" for r in self.definitions[net.table_map.key].referenced_by
            if (r.on_delete if verb == "deletes" else r.on_update) in _SPREADS
        )  # fmt: skip
        self._findings.cascade(net.table_map.key, verb, children)

    def _give_up(self) -> None:
        self.too_large = True
        self._findings.too_large()
        for net in self.tables.values():
            net.clear()


_OWN: Final = re.compile(
    rb"\s*(?:CREATE|DROP|ALTER)\s+(?:(?:DATABASE|SCHEMA)\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?`?holdfast`?(?![\w$])"
    rb"|TABLE\s+(?:IF\s+(?:NOT\s+)?EXISTS\s+)?`?holdfast`?\s*\.\s*`?\w+`?(?!\s*,))",
    re.IGNORECASE,
)


def own_definition(query: ev.Query) -> bool:
    """Whether this DDL is of Holdfast's own schema and nothing else: no barrier. (Ours always names the schema.)"""
    return _OWN.match(query.sql) is not None


def _referenced(definition: Definition, look_up: Callable[[TableName], Definition | None]) -> tuple[int, ...]:
    """The columns that foreign keys of other tables (or its own) point at."""
    names: set[str] = set()
    for reference in definition.referenced_by:
        child = look_up((reference.schema, reference.table))
        for fk in child.foreign_keys if child is not None else ():
            if fk.name == reference.constraint:
                names.update(fk.references)
    return tuple(sorted(definition.indexes(names)))
