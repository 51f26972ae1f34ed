"""Steps: what one transaction group of the log is and does.

A step payload is the concatenation of whole native events, exactly as the server sent them: a GTID event, table maps
and rows or a statement, a closing event (XID, QUERY COMMIT or ROLLBACK, XA PREPARE; a standalone statement closes
itself). The format-description event travels beside it. A step too large for one record comes in *fragments*, each of
whole events: `Summariser` takes them one after the other, and `TableMaps` carries table maps from one to the next.

Does not know ordinals, records or topics.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from struct import Struct
from typing import Final, Literal, NamedTuple

from streams.formats.binlog import events as ev
from streams.formats.binlog.compressed import decompress
from streams.formats.binlog.events import (
    CHECKSUM_SIZE,
    HEADER_SIZE,
    WHOLE_EVENTS_HINT,
    Buffer,
    FormatDescription,
    event_name,
    iter_events,
    parse_format_description,
    parse_query,
    parse_xa_prepare,
)
from streams.formats.binlog.gtids import Gtid, parse_gtid
from streams.formats.binlog.rows import (
    COMPRESSED,
    KINDS,
    Kind,
    RowsEvent,
    RowsHead,
    count_images,
    decode_partial,
    decode_row,
    iter_rows,
    layout_of,
    parse_rows,
    parse_rows_head,
    partial_ends,
    update_ends,
    values_of,
)
from streams.formats.binlog.statements import classify, defines_only, is_account_statement, statement_text
from streams.formats.binlog.table_map import Column, TableMap, known_maps, table_map_of
from streams.formats.binlog.values import Undecoded, Value
from streams.formats.errors import FormatError

StepKind = Literal["rows", "ddl", "statement", "account", "rolled_back", "xa", "incident", "empty"]

OWN_SCHEMA: Final = "holdfast"
MARKER_TABLE: Final = (OWN_SCHEMA, "marker")
UNDO: Final = "undo"
"""The kind of plan, in the marker row too, that takes changes back one by one and is no turn of the path."""

# Table maps in force, by the six bytes of their table id as they stand in the event.
TableMaps = dict[bytes, TableMap]

# Events that belong to a DML statement logged as text.
_STATEMENT_PARTS: Final = frozenset(
    {
        ev.INTVAR,
        ev.RAND,
        ev.USER_VAR,
        ev.APPEND_BLOCK,
        ev.DELETE_FILE,
        ev.BEGIN_LOAD_QUERY,
        ev.EXECUTE_LOAD_QUERY,
    }
)
# The server closes a statement whose last table was filtered away with a rows event for no table.
NO_TABLE: Final = frozenset({b"\xff\xff\xff\0\0\0", b"\xff" * 6})
_WORST_FIRST: Final[tuple[StepKind, ...]] = ("incident", "xa", "rolled_back", "account", "ddl", "statement", "rows")

_unpack_header = Struct("<IBIIIH").unpack_from


class TableChange(NamedTuple):
    """Rows that a step inserts, updates and deletes in one table."""

    inserts: int
    updates: int
    deletes: int


@dataclass(frozen=True, slots=True)
class StepSummary:
    """What a step does, without its values.

    - `kind`: the worst of what is in it: `incident` (the server lost events), `xa` (prepare or outcome of an XA
      transaction without the other; both together are a step like any other), `rolled_back` (all of it, or to a
      savepoint: some of the rows in it do not stand), `account`, `ddl` (also with rows: CREATE … SELECT), `statement`
      (rows changed by a logged statement, or one not recognised), `rows`, `empty`.
    - `commit_time`: timestamp of the closing event, seconds since 1970.
    - `changes`: by (schema, table), in order of first appearance.
    - `statements`: DDL and other statements as text, shortened; account statements as a marker.
    - `partial`: some row image lacks columns (binlog_row_image is not FULL), or holds only what changed in a JSON document
      (binlog_row_value_options): not invertible.
    - `transactional`: the server says that all tables touched can roll back.
    - `secret`: holds a statement that must not be kept in clear.
    - `complete`: the closing event is there.
    - `markers`: plans whose marker row this step inserts: it is the step of that rollback.
    - `undo`: that rollback is a selective undo: no turn of the path, the step stands like a user's.
    - `keyless`, `sequences`: tables among `changes` known to have no primary key, and those that are sequences.
    - `xid`: the XA transaction, as in `XA COMMIT`.
    - `end`: where the step ends in the source's log file. `gtid` is empty where the source numbers no transactions.
    """

    gtid: str
    kind: StepKind
    commit_time: int
    changes: dict[tuple[str, str], TableChange]
    statements: tuple[str, ...]
    database: str
    partial: bool
    transactional: bool
    secret: bool
    complete: bool
    markers: tuple[str, ...]
    undo: bool
    keyless: tuple[tuple[str, str], ...]
    sequences: tuple[tuple[str, str], ...]
    xid: str
    events: int
    size: int
    end: int = 0

    @property
    def rows(self) -> int:
        return sum(sum(change) for change in self.changes.values())

    @property
    def own(self) -> bool:
        """Holdfast's own doing: touches nothing but schema `holdfast`, rows or definitions."""
        if self.kind == "ddl":
            return not self.changes and all(
                defines_only(text.encode(), OWN_SCHEMA) and not text.endswith("…") for text in self.statements
            )
        return self.kind == "rows" and all(schema == OWN_SCHEMA for schema, _ in self.changes)

    @property
    def barrier(self) -> bool:
        """A rollback cannot be made by inverting this step's rows."""
        return (self.kind not in ("rows", "empty") and not self.own) or self.partial


# The name it has in the design; the summary is the view.
StepView = StepSummary

_XA_COMMIT: Final = re.compile(rb"\s*XA\s+COMMIT\b", re.IGNORECASE)
_NO_CHANGES: Final[tuple[tuple[str, str], ...]] = ()


def summarise(fde: FormatDescription | Buffer, payload: Buffer) -> StepSummary:
    """The summary of one whole step. `fde` is its preamble."""
    summariser = Summariser(fde)
    summariser.feed(payload)
    return summariser.finish()


class Summariser:
    """Summarises a step from its fragments: `feed` each in order, then `finish`. One object serves one step."""

    __slots__ = (
        "_begun",
        "_complete",
        "_counts",
        "_database",
        "_end",
        "_events",
        "_fde",
        "_gtid",
        "_kinds",
        "_maps",
        "_markers",
        "_partial",
        "_phases",
        "_secret",
        "_size",
        "_statements",
        "_time",
        "_undo",
        "_xid",
    )

    def __init__(self, fde: FormatDescription | Buffer) -> None:
        self._fde = fde if isinstance(fde, FormatDescription) else parse_format_description(fde)
        self._maps: TableMaps = {}
        self._counts: dict[TableMap, list[int]] = {}
        self._kinds: set[StepKind] = set()
        self._gtid: Gtid | None = None
        self._statements: list[str] = []
        self._markers: list[str] = []
        self._database = self._xid = ""
        self._phases: set[str] = set()
        self._partial = self._secret = self._complete = self._begun = self._undo = False
        self._time = self._events = self._size = self._end = 0

    def feed(self, fragment: Buffer) -> None:
        """The next whole events of the step."""
        buffer = fragment if isinstance(fragment, bytes) else bytes(fragment)
        self._feed(buffer, CHECKSUM_SIZE if self._fde.has_checksum else 0)
        self._size += len(buffer)

    def _feed(self, buffer: bytes, trailer: int) -> None:
        """Whole events that end in `trailer` bytes of checksum."""
        fde = self._fde
        least = HEADER_SIZE + trailer
        mariadb = fde.mariadb
        known, maps, counts = known_maps(mariadb), self._maps, self._counts
        at, end, seen, timestamp, next_pos = 0, len(buffer), 0, self._time, 0
        while at < end:
            if end - at < least:
                raise FormatError("truncated", f"an event is cut off at byte {at}", WHOLE_EVENTS_HINT)
            timestamp, kind, server_id, length, next_pos, _ = _unpack_header(buffer, at)
            stop = at + length
            if length < least or stop > end:
                raise FormatError(
                    "truncated",
                    f"{event_name(kind)} at byte {at} claims {length} bytes, {end - at} are there",
                    WHOLE_EVENTS_HINT,
                )
            seen += 1
            if kind == ev.TABLE_MAP:
                content = buffer[at + 27 : stop - trailer]
                table_map = known.get(content)
                if table_map is None:
                    table_map = table_map_of(content, mariadb)
                maps[buffer[at + 19 : at + 25]] = table_map
            elif kind in KINDS:
                table_map = maps.get(buffer[at + 19 : at + 25])
                if table_map is not None:
                    count = counts.get(table_map)
                    if count is None:
                        count = counts[table_map] = [0, 0, 0]
                    self._count(kind, table_map, count, buffer, at + HEADER_SIZE, stop - trailer)
                elif buffer[at + 19 : at + 25] not in NO_TABLE:
                    raise no_table_map(kind, buffer[at + 19 : at + 25], at)
            elif kind == ev.XID:
                self._complete = True
            elif kind == ev.TRANSACTION_PAYLOAD:
                self._feed(ev.transaction_payload(buffer[at + HEADER_SIZE : stop - trailer]), 0)
            else:
                self._other(kind, server_id, buffer[at + HEADER_SIZE : stop - trailer])
            at = stop
        self._time = timestamp
        self._end = next_pos or self._end  # events in a transaction payload have no place of their own
        self._events += seen

    def _count(self, kind: int, table_map: TableMap, count: list[int], buffer: bytes, at: int, end: int) -> None:
        head = parse_rows_head(kind, buffer, at, end)
        data, body = head.data, slice(at, end)
        whole = buffer
        if kind in COMPRESSED:
            buffer = decompress(buffer[data:end])
            data, end = 0, len(buffer)
        if head.before is None or head.after is None:
            layout = layout_of(table_map, head.before or head.after or b"")
            count[0 if head.before is None else 2] += count_images(layout, buffer, data, end)
            self._partial = self._partial or not layout.full
        else:
            before, after = layout_of(table_map, head.before), layout_of(table_map, head.after)
            differences = kind == ev.PARTIAL_UPDATE_ROWS
            ends_of = partial_ends if differences else update_ends
            count[1] += len(ends_of(before, after, buffer, data, end)) // 2
            self._partial = self._partial or differences or not (before.full and after.full)
        if table_map.schema == OWN_SCHEMA and head.before is None and table_map.key == MARKER_TABLE:
            for _, image in iter_rows(parse_rows(kind, whole[body]), table_map):
                plan, undo = marker_of(image, table_map, head.after) if image is not None else ("", False)
                if plan:
                    self._markers.append(plan)
                    self._undo = self._undo or undo

    def _other(self, kind: int, server_id: int, body: bytes) -> None:
        if kind in ev.GTIDS:
            self._gtid = parse_gtid(kind, server_id, body)
            # MariaDB writes no BEGIN: its GTID event says whether one statement follows or a transaction.
            self._begun = kind == ev.GTID and not self._gtid.standalone
            if self._gtid.xa is not None:
                self._kinds.add("xa")
                self._xid = str(self._gtid.xa)
        elif kind in (ev.QUERY, ev.QUERY_COMPRESSED):
            self._query(kind, body)
        elif kind == ev.XA_PREPARE:
            self._kinds.add("xa")
            prepare = parse_xa_prepare(body)
            self._xid = str(prepare.xid)
            self._phases.add("one phase" if prepare.one_phase else "prepared")
            self._complete = True
        elif kind == ev.INCIDENT:
            self._kinds.add("incident")
            self._complete = True
        elif kind in _STATEMENT_PARTS:
            self._kinds.add("statement")

    def _query(self, kind: int, body: bytes) -> None:
        query = parse_query(body, kind)
        if query.sql == b"COMMIT" or query.sql == b"BEGIN":
            self._complete = query.sql == b"COMMIT"
            self._begun = True
            return
        what = classify(query.sql)
        if what in ("rollback", "rollback_to"):
            self._kinds.add("rolled_back")
        elif what == "ddl":
            self._kinds.add("ddl")
        elif what == "account":
            self._kinds.add("account")
        elif what == "xa":
            self._kinds.add("xa")
            if _XA_COMMIT.match(query.sql):
                self._phases.add("committed")
        elif what in ("dml", "other"):
            self._kinds.add("statement")
        if what in ("rollback", "commit", "xa") or not self._begun:
            self._complete = True
        if what in ("ddl", "account", "dml", "other"):
            self._statements.append(statement_text(query.sql))
            self._secret = self._secret or is_account_statement(query.sql)
            self._database = query.database

    def finish(self) -> StepSummary:
        """The summary of all that was fed."""
        changes: dict[tuple[str, str], TableChange] = {}
        keyless: list[tuple[str, str]] = []
        sequences: list[tuple[str, str]] = []
        for table_map, (inserts, updates, deletes) in self._counts.items():
            key = (table_map.schema, table_map.table)
            had = changes.get(key)
            if had is None:
                changes[key] = TableChange(inserts, updates, deletes)
            else:
                changes[key] = TableChange(had[0] + inserts, had[1] + updates, had[2] + deletes)
            if table_map.primary_key == () and key not in keyless:
                (sequences if table_map.is_sequence else keyless).append(key)
        kinds = self._kinds
        if "one phase" in self._phases or {"prepared", "committed"} <= self._phases:
            kinds = kinds - {"xa"}
        kind: StepKind
        if kinds:
            kind = next(worst for worst in _WORST_FIRST if worst in kinds)
        else:
            kind = "rows" if changes else "empty"
        gtid = self._gtid
        return StepSummary(
            gtid.text if gtid is not None and gtid.text != ev.ANONYMOUS else "",
            kind,
            self._time,
            changes,
            tuple(self._statements),
            self._database,
            self._partial,
            gtid is not None and gtid.transactional,
            self._secret,
            self._complete,
            tuple(self._markers),
            self._undo,
            tuple(keyless) if keyless else _NO_CHANGES,
            tuple(sequences) if sequences else _NO_CHANGES,
            self._xid,
            self._events,
            self._size,
            self._end,
        )


def marker_of(image: bytes, table_map: TableMap, bitmap: bytes | None = None) -> tuple[str, bool]:
    """The plan that a row of the marker table names (empty: not to be read), and whether that is no turn of the path: a
    selective undo's, or void, which a plan that was given up leaves so that it can never be committed."""
    values = decode_row(image, table_map, bitmap)
    plan, kind = (v.raw.decode("ascii", "replace") if isinstance(v, Undecoded) else v for v in (values[0], values[2]))
    if kind == "void":
        return "", True
    return (plan if isinstance(plan, str) else "", kind == UNDO)


def no_table_map(kind: int, identity: bytes, at: int) -> FormatError:
    """The error for rows of a table that no map came for; `identity` are the six bytes of its id."""
    number = int.from_bytes(identity, "little")
    return FormatError(
        "unknown-table",
        f"{event_name(kind)} at byte {at} names table {number}, but no table map for it came before",
        "give the parser the step from its beginning, or the table maps of the fragments before",
    )


class Change(NamedTuple):
    """One row changed. `before` is None for inserts, `after` for deletes; values stand in the order of `columns`."""

    schema: str
    table: str
    kind: Kind
    before: tuple[Value, ...] | None
    after: tuple[Value, ...] | None
    columns: tuple[Column, ...]
    primary_key: tuple[int, ...] | None = None


# `Change._make` without a call of Python's for each row.
_change: Final[Callable[[tuple[object, ...]], Change]] = functools.partial(tuple.__new__, Change)


def decode_step(
    fde: FormatDescription | Buffer,
    payload: Buffer,
    *,
    offset: int = 0,
    limit: int | None = None,
    table_maps: TableMaps | None = None,
    describe: Callable[[TableMap], TableMap] | None = None,
) -> list[Change]:
    """The rows that a step (or fragment) changes, in the order of the log, from row `offset` on, at most `limit`.

    `table_maps`: maps in force before a fragment; updated in place, so one dict serves all fragments in turn (fragments
    that are only passed through: `limit=0`). `describe` fills a map in from a schema (see `with_declared`).
    """
    return list(iter_changes(fde, payload, offset=offset, limit=limit, table_maps=table_maps, describe=describe))


def iter_changes(
    fde: FormatDescription | Buffer,
    payload: Buffer,
    *,
    offset: int = 0,
    limit: int | None = None,
    table_maps: TableMaps | None = None,
    describe: Callable[[TableMap], TableMap] | None = None,
) -> Iterator[Change]:
    """As `decode_step`, one by one."""
    fde = fde if isinstance(fde, FormatDescription) else parse_format_description(fde)
    buffer = payload if isinstance(payload, bytes) else bytes(payload)
    maps: TableMaps = table_maps if table_maps is not None else {}
    described: dict[TableMap, TableMap] = {}
    left = sys.maxsize if limit is None else limit
    trailer = CHECKSUM_SIZE if fde.has_checksum else 0
    for table_map, head, data, at, end in _rows_events(buffer, fde.mariadb, trailer, maps):
        if left <= 0:
            if table_maps is None:
                return
            continue
        if describe is not None:
            filled = described.get(table_map)
            if filled is None:
                filled = described[table_map] = describe(table_map)
            table_map = filled
        schema, table, columns, key, kind = *table_map.key, table_map.columns, table_map.primary_key, KINDS[head.type]
        for before, after in _images(table_map, head, data, at, end):
            count = len(before)
            if offset >= count:
                offset -= count
                continue
            if offset or left < count:
                before, after = before[offset : offset + left], after[offset : offset + left]
                offset = 0
            left -= len(before)
            yield from map(
                _change,
                zip(
                    repeat(schema),
                    repeat(table),
                    repeat(kind),
                    before,
                    after,
                    repeat(columns),
                    repeat(key),
                    strict=False,
                ),
            )
            if left <= 0:
                break


_Rows = Sequence[tuple[Value, ...] | None]


def _images(table_map: TableMap, head: RowsHead, data: bytes, at: int, end: int) -> Iterator[tuple[_Rows, _Rows]]:
    """Before and after images of the rows of one event, some rows at a time."""
    before, after = head.before, head.after
    if after is None:
        for values in values_of(layout_of(table_map, before or b""), data, at, end):
            yield values, [None] * len(values)
    elif before is None:
        for values in values_of(layout_of(table_map, after), data, at, end):
            yield [None] * len(values), values
    elif before == after and head.type != ev.PARTIAL_UPDATE_ROWS:
        layout = layout_of(table_map, before)
        if not layout.present:
            raise layout.damaged()
        for values in values_of(layout, data, at, end):
            if len(values) & 1:
                raise layout.damaged()
            yield values[::2], values[1::2]
    else:
        event = RowsEvent(
            KINDS[head.type], head.type, head.table_id, head.flags, head.width, before, after, data[at:end]
        )
        for old, new in iter_rows(event, table_map):
            was = decode_row(old or b"", table_map, before)
            if event.partial:
                yield [was], [decode_partial(new or b"", table_map, after, was)]
            else:
                yield [was], [decode_row(new or b"", table_map, after)]


def _rows_events(
    buffer: bytes, mariadb: bool, trailer: int, maps: TableMaps
) -> Iterator[tuple[TableMap, RowsHead, bytes, int, int]]:
    """The rows events among whole events that end in `trailer` bytes of checksum: table map, head, and where the images are
    (buffer, from, to). Keeps `maps`."""
    known, at, end = known_maps(mariadb), 0, len(buffer)
    least = HEADER_SIZE + trailer
    while at < end:
        if end - at < least:
            raise FormatError("truncated", f"an event is cut off at byte {at}", WHOLE_EVENTS_HINT)
        _, kind, _, length, _, _ = _unpack_header(buffer, at)
        stop = at + length
        if length < least or stop > end:
            raise FormatError(
                "truncated",
                f"{event_name(kind)} at byte {at} claims {length} bytes, {end - at} are there",
                WHOLE_EVENTS_HINT,
            )
        if kind == ev.TABLE_MAP:
            content = buffer[at + 27 : stop - trailer]
            maps[buffer[at + 19 : at + 25]] = known.get(content) or table_map_of(content, mariadb)
        elif kind in KINDS:
            identity = buffer[at + 19 : at + 25]
            table_map = maps.get(identity)
            if table_map is not None:
                head = parse_rows_head(kind, buffer, at + HEADER_SIZE, stop - trailer)
                if kind in COMPRESSED:
                    data = decompress(buffer[head.data : stop - trailer])
                    yield table_map, head, data, 0, len(data)
                else:
                    yield table_map, head, buffer, head.data, stop - trailer
            elif identity not in NO_TABLE:
                raise no_table_map(kind, identity, at)
        elif kind == ev.TRANSACTION_PAYLOAD:
            yield from _rows_events(ev.transaction_payload(buffer[at + HEADER_SIZE : stop - trailer]), mariadb, 0, maps)
        at = stop


_ENDING = re.compile(rb"\s*(?:COMMIT|ROLLBACK)\s*$", re.IGNORECASE)


def split_steps(fde: FormatDescription, buffer: Buffer) -> Iterator[memoryview]:
    """The steps in a stretch of log that begins between two steps. What is between steps (rotate, checkpoint) is left
    out, and so is a step cut off at the end. For tests and tools: capture cuts steps as they arrive."""
    view = memoryview(buffer)
    start: int | None = None
    open_end = False  # a closing event is to come
    for event in iter_events(view, fde.has_checksum):
        closed = False
        if event.type in ev.GTIDS:
            start = event.offset
            open_end = event.type == ev.GTID and not parse_gtid(ev.GTID, 0, event.body).standalone
        elif event.type in (ev.XID, ev.XA_PREPARE, ev.TRANSACTION_PAYLOAD):
            closed = True
        elif event.type in (ev.QUERY, ev.QUERY_COMPRESSED):
            sql = parse_query(event.body, event.type).sql
            if start is None:  # a server without GTIDs
                start, open_end = event.offset, False
            if sql == b"BEGIN" or sql.startswith(b"XA START"):
                open_end = True
                continue
            if sql.startswith(b"XA END"):
                continue  # XA_PREPARE comes
            closed = not open_end or _ENDING.match(sql) is not None or classify(sql) == "xa"
        if closed and start is not None:
            yield view[start : event.offset + event.length]
            start = None
