"""Material of a rollback: native rows events that undo steps or do them again, and what must hold before they may.

Everything here is bytes to bytes: values are never decoded. Undoing takes steps newest first, within a step its events
last first, within an event its rows last first; inserts become deletes, deletes inserts, and an update's images change
places. Doing again takes everything as it stands, oldest first.

`native_batches` keeps the order of the log: neighbouring events of one table are merged into large ones, but not past
another table's, so foreign keys see what they saw. What a range amounts to row by row, and what must be in the tables
before it may be applied, is `net`'s. `binlog_statements` wraps events for the server's BINLOG statement.

What a server does with these events is checked by nobody else: rows are found by key and before-images are not
compared, so a plan is applied behind its guard only. Row images must be whole (FULL), and steps that are not rows are
refused.

Does not know schemas beyond what table maps say: foreign keys, triggers and cascades are the planner's.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
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
)
from streams.formats.binlog.rows import (
    COMPRESSED,
    KINDS,
    NO_CHECK_CONSTRAINT_CHECKS,
    STATEMENT_END,
    VERSION_2,
    Kind,
    RowLayout,
    image_ends,
    layout_of,
    parse_rows_head,
    update_ends,
)
from streams.formats.binlog.statements import classify, defines_only
from streams.formats.binlog.step import NO_TABLE, OWN_SCHEMA, TableMaps, no_table_map
from streams.formats.binlog.table_map import TableMap, table_map_of
from streams.formats.errors import FormatError, damaged

Direction = Literal["undo", "redo"]
Table = tuple[str, str]
Fde = FormatDescription | Buffer
Part = tuple[Fde, Buffer] | tuple[Fde, Buffer, TableMaps]
"""A step's preamble and payload. The payload may hold several steps in the order of the log, and may be a fragment of a
step: then the third member is the table maps in force before it (see `carry_table_maps`)."""

SYSTEM_SCHEMAS: Final = frozenset({"mysql", "performance_schema", "sys", "information_schema"})
DEFAULT_MAX_ROWS: Final = 2_000
DEFAULT_MAX_EVENT_BYTES: Final = 1 << 20

# One for all: each rows event written ends its statement, and the server forgets table maps there.
TABLE_ID: Final = 1
ROWS_TYPES: Final[dict[int, dict[Kind, int]]] = {
    1: {"insert": ev.WRITE_ROWS_V1, "update": ev.UPDATE_ROWS_V1, "delete": ev.DELETE_ROWS_V1},
    2: {"insert": ev.WRITE_ROWS, "update": ev.UPDATE_ROWS, "delete": ev.DELETE_ROWS},
}
_OPPOSITE: Final[dict[Kind, Kind]] = {"insert": "delete", "update": "update", "delete": "insert"}
_INVERSE: Final[dict[int, Kind]] = {kind: _OPPOSITE[name] for kind, name in KINDS.items()}
_PLAIN: Final = frozenset(ROWS_TYPES[1].values())
_header = Struct("<IBIIIH")
_HARMLESS: Final = frozenset(
    {
        ev.XID,
        ev.GTID,
        ev.MYSQL_GTID,
        ev.MYSQL_ANONYMOUS_GTID,
        ev.MYSQL_GTID_TAGGED,
        ev.MYSQL_PREVIOUS_GTIDS,
        ev.IGNORABLE,
        ev.ROWS_QUERY,
        ev.TRANSACTION_CONTEXT,
        ev.VIEW_CHANGE,
        ev.ANNOTATE_ROWS,
        ev.BINLOG_CHECKPOINT,
        ev.GTID_LIST,
        ev.ROTATE,
        ev.FORMAT_DESCRIPTION,
        ev.HEARTBEAT,
        ev.STOP,
    }
)


@dataclass(frozen=True, slots=True)
class NativeBatch:
    """A table map and one rows event for it, both whole events without checksum; the rows event ends its statement."""

    table_map_event: bytes = field(repr=False)
    rows_event: bytes = field(repr=False)
    table: Table
    kind: Kind
    rows: int

    @property
    def size(self) -> int:
        return len(self.table_map_event) + len(self.rows_event)


class _Target:
    """One table as the log lays it out, and what has been prepared for writing events about it."""

    __slots__ = ("bitmap_bytes", "heads", "map_event", "shapes", "table_map")

    def __init__(self, table_map: TableMap) -> None:
        self.table_map = table_map
        self.bitmap_bytes = (len(table_map.columns) + 7) >> 3
        self.map_event = encode_event(ev.TABLE_MAP, TABLE_ID.to_bytes(6, "little") + b"\x01\0" + table_map.content)
        self.shapes: dict[int, dict[bytes, _Shape]] = {kind: {} for kind in _PLAIN}
        """By type and recurring first bytes of a plain v1 event: flags, width, bitmaps."""
        self.heads: dict[bytes, _Shape] = {}
        """By the head that is written: events of one shape can be merged."""


class _Shape(NamedTuple):
    """Rows events of one table, kind and column bitmaps, as they are to be written: `type` and the body's `head`."""

    target: _Target
    kind: Kind
    type: int
    head: bytes
    first: RowLayout
    second: RowLayout | None


# An event to apply: its shape, and where its images are.
_Operation = tuple[_Shape, bytes, int, int]


class _Reader:
    """Reads parts into operations in the order they are to be applied. Holds the tables met so far."""

    def __init__(self, direction: Direction, skip_schemas: Collection[str]) -> None:
        self.undo = direction == "undo"
        self.skip = frozenset(skip_schemas)
        self.targets: dict[bool, dict[bytes, _Target | None]] = {True: {}, False: {}}

    def target(self, content: bytes, mariadb: bool) -> _Target | None:
        """The table of a map, None for those left alone: Holdfast's own and sequences."""
        targets = self.targets[mariadb]
        if content in targets:
            return targets[content]
        table_map = table_map_of(content, mariadb)
        if table_map.schema in SYSTEM_SCHEMAS:
            raise FormatError(
                "system-schema",
                f"a step changes {table_map.schema}.{table_map.table}, a table of the server itself",
                "such steps are never inverted: choose a range without them",
            )
        target: _Target | None = None
        if table_map.schema not in self.skip and not table_map.is_sequence:
            target = _Target(table_map)
        targets[content] = target
        return target

    def operations(self, part: Part) -> list[_Operation]:
        """What the part does, in the order in which it is to be applied."""
        fde = _described(part[0])
        payload = part[1]
        buffer = payload if isinstance(payload, bytes) else bytes(payload)
        mariadb = fde.mariadb
        trailer = CHECKSUM_SIZE if fde.has_checksum else 0
        least = HEADER_SIZE + trailer
        maps: dict[bytes, _Target | None] = {}
        if len(part) == 3:
            maps.update((identity, self.target(known.content, mariadb)) for identity, known in part[2].items())
        found: list[_Operation] = []
        targets, unpack = self.targets[mariadb], _header.unpack_from
        at, end = 0, len(buffer)
        while at < end:
            if end - at < least:
                raise FormatError("truncated", f"an event is cut off at byte {at}", WHOLE_EVENTS_HINT)
            _, kind, _, length, _, _ = unpack(buffer, at)
            stop = at + length
            if length < least or stop > end:
                raise FormatError(
                    "truncated",
                    f"{event_name(kind)} at byte {at} claims {length} bytes, {end - at} are there",
                    WHOLE_EVENTS_HINT,
                )
            if kind in KINDS:
                identity = buffer[at + 19 : at + 25]
                if identity not in maps:
                    if identity not in NO_TABLE:
                        raise no_table_map(kind, identity, at)
                    at = stop
                    continue
                target = maps[identity]
                if target is not None:
                    columns = target.bitmap_bytes * 2 if kind == ev.UPDATE_ROWS_V1 else target.bitmap_bytes
                    data = at + 28 + columns
                    known = target.shapes.get(kind)
                    shape = known.get(buffer[at + 25 : data]) if known is not None else None
                    if shape is not None:
                        found.append((shape, buffer, data, stop - trailer))
                    else:
                        found.append(self._operation(target, kind, buffer, at, stop - trailer))
            elif kind == ev.TABLE_MAP:
                content = buffer[at + 27 : stop - trailer]
                maps[buffer[at + 19 : at + 25]] = (
                    targets[content] if content in targets else self.target(content, mariadb)
                )
            elif kind not in _HARMLESS:
                _refuse(kind, buffer[at + HEADER_SIZE : stop - trailer], self.skip)
            at = stop
        if self.undo:
            found.reverse()
        return found

    def _operation(self, target: _Target, kind: int, buffer: bytes, at: int, end: int) -> _Operation:
        """An event whose first bytes have not been seen before, or that is not plain v1."""
        head = parse_rows_head(kind, buffer, at + HEADER_SIZE, end)
        before, after = head.before, head.after
        table_map = target.table_map
        first = layout_of(table_map, before if before is not None else after or b"")
        second = layout_of(table_map, after or b"") if before is not None and after is not None else None
        out_kind = (_INVERSE if self.undo else KINDS)[kind]
        if kind == ev.PARTIAL_UPDATE_ROWS:
            raise FormatError(
                "partial-image",
                f"of JSON documents in {table_map.schema}.{table_map.table} only what changed is logged",
                "set binlog_row_value_options='' on the source; steps written before cannot be inverted",
            )
        if self.undo:
            if not first.full or (second is not None and not second.full):
                raise FormatError(
                    "partial-image",
                    f"a row image of {table_map.schema}.{table_map.table} does not hold all columns",
                    "set binlog_row_image=FULL on the source; steps written before cannot be inverted",
                )
            before, after = after, before
        version = 2 if kind in VERSION_2 else 1
        flags = STATEMENT_END | head.flags & NO_CHECK_CONSTRAINT_CHECKS
        written = rows_head(TABLE_ID, version, len(table_map.columns), before, after, flags)
        event_type = ROWS_TYPES[version][out_kind]
        shape = target.heads.setdefault(
            bytes([event_type]) + written, _Shape(target, out_kind, event_type, written, first, second)
        )
        if kind in COMPRESSED:
            data = decompress(buffer[head.data : end])
            return shape, data, 0, len(data)
        if kind in _PLAIN and head.width < 251:
            target.shapes[kind][buffer[at + 25 : head.data]] = shape
        return shape, buffer, head.data, end


def _described(fde: Fde) -> FormatDescription:
    return fde if isinstance(fde, FormatDescription) else parse_format_description(fde)


def _packed(number: int) -> bytes:
    return bytes([number]) if number < 251 else b"\xfc" + number.to_bytes(2, "little")


def encode_event(event_type: int, body: bytes) -> bytes:
    """A whole event without checksum. Its time is 0, which leaves the clock of the session that replays it alone (any
    other becomes the time of what the server then logs); server id, position and header flags are 0."""
    return _header.pack(0, event_type, 0, HEADER_SIZE + len(body), 0, 0) + body


def rows_head(
    table_id: int, version: int, columns: int, before: bytes | None, after: bytes | None, flags: int = STATEMENT_END
) -> bytes:
    """The body of a rows event up to its first image."""
    extra = b"\x02\0" if version == 2 else b""
    head = table_id.to_bytes(6, "little") + flags.to_bytes(2, "little") + extra + _packed(columns)
    return head + (before or b"") + (after or b"")


def _refuse(kind: int, body: bytes, skip: Collection[str]) -> None:
    """Passes over statements that change nothing; raises for what cannot be inverted."""
    if kind in (ev.QUERY, ev.QUERY_COMPRESSED):
        sql = parse_query(body, kind).sql
        what = classify(sql)
        if what in ("begin", "commit", "savepoint", "neutral") or any(defines_only(sql, schema) for schema in skip):
            return
        raise FormatError(
            "not-invertible",
            f"a step holds a statement ({what}), not only rows",
            "choose a range without it, or restore from a base",
        )
    raise FormatError(
        "not-invertible", f"a step holds {event_name(kind)}, which is not rows", "choose a range without it"
    )


def carry_table_maps(fde: Fde, fragment: Buffer, table_maps: TableMaps | None = None) -> TableMaps:
    """The table maps in force after `fragment`, given those before it; a new dict."""
    described = _described(fde)
    maps = dict(table_maps or {})
    for event in iter_events(fragment, described.has_checksum, expand=True):
        if event.type == ev.TABLE_MAP:
            maps[bytes(event.body[:6])] = table_map_of(bytes(event.body[8:]), described.mariadb)
    return maps


def native_batches(
    parts: Iterable[Part],
    direction: Direction = "undo",
    *,
    max_rows: int = DEFAULT_MAX_ROWS,
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    skip_schemas: Collection[str] = (OWN_SCHEMA,),
) -> Iterator[NativeBatch]:
    """Events that undo `parts` (given newest first) or do them again (given oldest first).

    A rows event holds at most `max_rows` rows and `max_event_bytes` bytes; a single row larger than that is an error.
    Foreign keys and unique keys are to be checked, whatever the session that made the change had switched off; CHECK
    constraints as it had it. Raises FormatError for what cannot be inverted: what was yielded before is then of no use.
    Reads `parts` as it goes, a part at a time.
    """
    reader = _Reader(direction, skip_schemas)
    undo = reader.undo
    pieces: list[bytes] = []
    now: _Shape | None = None
    size = most = 0
    for part in parts:
        for shape, buffer, at, end in reader.operations(part):
            if shape is not now:
                if now is not None and pieces:
                    yield _batch(now, pieces)
                    pieces, size = [], 0
                now, most = shape, max_event_bytes - HEADER_SIZE - len(shape.head)
            second = shape.second
            if second is None:
                ends = image_ends(shape.first, buffer, at, end)
                single = len(ends) == 1
                images = [buffer[at:end]] if single else [buffer[a:b] for a, b in zip([at, *ends], ends, strict=False)]
            else:
                ends = update_ends(shape.first, second, buffer, at, end)
                single = len(ends) == 2
                if single:
                    middle = ends[0]
                    images = [buffer[middle:end] + buffer[at:middle] if undo else buffer[at:end]]
                else:
                    images = _update_images(buffer, [at, *ends], undo)
            if undo and not single:
                images.reverse()
            for image in images:
                size += len(image)
                if size > most or len(pieces) >= max_rows:
                    if len(image) > most:
                        raise _too_large(shape.target.table_map, len(image), max_event_bytes)
                    yield _batch(shape, pieces)
                    pieces, size = [], len(image)
                pieces.append(image)
    if now is not None and pieces:
        yield _batch(now, pieces)


def _update_images(buffer: bytes, bounds: list[int], undo: bool) -> list[bytes]:
    """Before and after image of each row in one piece; for undo in the opposite order."""
    if not undo:
        return [buffer[bounds[i] : bounds[i + 2]] for i in range(0, len(bounds) - 1, 2)]
    return [
        buffer[bounds[i + 1] : bounds[i + 2]] + buffer[bounds[i] : bounds[i + 1]] for i in range(0, len(bounds) - 1, 2)
    ]


def _batch(shape: _Shape, pieces: list[bytes]) -> NativeBatch:
    target = shape.target
    rows_event = encode_event(shape.type, b"".join([shape.head, *pieces]))
    return NativeBatch(target.map_event, rows_event, target.table_map.key, shape.kind, len(pieces))


def _too_large(table_map: TableMap, size: int, limit: int) -> FormatError:
    return FormatError(
        "too-large",
        f"a row of {table_map.schema}.{table_map.table} takes {size} bytes; {limit} is the most for an event",
        "raise max_allowed_packet on the target (base64 adds a third) and the limit with it",
    )


def rename_table_map(table_map_event: bytes, schema: str, table: str) -> bytes:
    """The same table map event (without checksum) for another table of the same columns."""
    names = b""
    for name in (schema, table):
        encoded = name.encode()
        if not 0 < len(encoded) < 251:
            raise FormatError("bad-length", f"{name!r} cannot be the name of a table or schema in a table map")
        names += bytes([len(encoded)]) + encoded + b"\0"
    try:
        after_schema = 27 + table_map_event[27] + 2
        rest = after_schema + table_map_event[after_schema] + 2
    except IndexError:
        raise damaged("a table map") from None
    renamed = table_map_event[:27] + names + table_map_event[rest:]
    return renamed[:9] + len(renamed).to_bytes(4, "little") + renamed[13:]


def rows_version(fde: Fde) -> int:
    """Which version of rows events a server that writes this format description takes: the first, where it still does."""
    lengths = _described(fde).post_header_lengths
    return 1 if len(lengths) >= ev.WRITE_ROWS_V1 and lengths[ev.WRITE_ROWS_V1 - 1] else 2


def plain_format_description(fde: Fde) -> bytes:
    """The format-description event, saying that the events after it carry no checksum."""
    described = _described(fde)
    raw = bytearray(described.raw)
    if described.checksum:
        raw[-CHECKSUM_SIZE - 1] = 0
    raw[17:19] = b"\0\0"
    return bytes(raw)


def binlog_statement(fde: Fde | None, batches: Iterable[NativeBatch]) -> bytes:
    """One `BINLOG '…'` statement. A session's first must begin with a format description: then give `fde`."""
    return b"BINLOG '" + _base64(fde, batches) + b"'"


def _base64(fde: Fde | None, batches: Iterable[NativeBatch]) -> bytes:
    events = [plain_format_description(fde)] if fde is not None else []
    for batch in batches:
        events += (batch.table_map_event, batch.rows_event)
    return base64.b64encode(b"".join(events))


def binlog_fragments(fde: Fde | None, batches: Iterable[NativeBatch]) -> tuple[bytes, bytes, bytes]:
    """As `binlog_statement`, for events of which only half fits a packet: two SET statements and the BINLOG.

    MariaDB only: MySQL's BINLOG takes no variables.
    """
    text = _base64(fde, batches)
    half = len(text) // 2
    return (
        b"SET @holdfast_1='" + text[:half] + b"'",
        b"SET @holdfast_2='" + text[half:] + b"'",
        b"BINLOG @holdfast_1, @holdfast_2",
    )


def binlog_statements(
    fde: Fde, batches: Iterable[NativeBatch], *, max_statement_bytes: int = 4 << 20, max_batches: int = 20
) -> Iterator[bytes]:
    """`BINLOG` statements for all `batches`, the first with the format description.

    At most `max_batches` each, since the server's time for one statement grows with the square of its events, and at
    most `max_statement_bytes` each, save that one batch is never split.
    """
    pending: list[NativeBatch] = []
    size = 0
    first: Fde | None = fde
    for batch in batches:
        length = batch.size * 4 // 3
        if pending and (len(pending) >= max_batches or size + length > max_statement_bytes):
            yield binlog_statement(first, pending)
            first, pending, size = None, [], 0
        pending.append(batch)
        size += length
    if pending:
        yield binlog_statement(first, pending)
