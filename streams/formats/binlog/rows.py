"""Rows events: which row images an event holds, how many, and their values.

A row image is the bytes of one row: a bitmap of NULLs over the columns present (its unused bits all set, from MySQL 8 on all
clear), then the values.
Walking over images needs only sizes, so a table map is compiled into a *layout*, once a column bitmap, and the layout
keeps a little program for each NULL bitmap it meets: (distance to the next length prefix, its width) …, tail. Tables
without variable and nullable columns take no walk at all.

Does not know steps. Sources: MariaDB Knowledge Base "Rows_event_v1"; MySQL source documentation, `Rows_event`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from streams.formats.binlog import events as ev
from streams.formats.binlog import jsonb
from streams.formats.binlog import table_map as t
from streams.formats.binlog.compressed import decompress
from streams.formats.binlog.events import Buffer, event_name
from streams.formats.binlog.readers import Reader, reader_of
from streams.formats.binlog.table_map import TableMap, packed_integer
from streams.formats.binlog.values import ABSENT, JsonBinary, Value, size_of
from streams.formats.errors import FormatError, damaged, only_format_errors

Kind = Literal["insert", "update", "delete"]

# Flags of a rows event.
STATEMENT_END: Final = 0x01
NO_FOREIGN_KEY_CHECKS: Final = 0x02
RELAXED_UNIQUE_CHECKS: Final = 0x04
COMPLETE_ROWS: Final = 0x08
# MySQL 9.6: foreign keys were the server's own business and not the engine's, so what they did to child rows is in the log.
CASCADES_LOGGED: Final = 0x10
NO_CHECK_CONSTRAINT_CHECKS: Final = 0x80

KINDS: Final[dict[int, Kind]] = {
    ev.WRITE_ROWS_V1: "insert",
    ev.UPDATE_ROWS_V1: "update",
    ev.DELETE_ROWS_V1: "delete",
    ev.WRITE_ROWS: "insert",
    ev.UPDATE_ROWS: "update",
    ev.DELETE_ROWS: "delete",
    ev.WRITE_ROWS_COMPRESSED_V1: "insert",
    ev.UPDATE_ROWS_COMPRESSED_V1: "update",
    ev.DELETE_ROWS_COMPRESSED_V1: "delete",
    ev.WRITE_ROWS_COMPRESSED: "insert",
    ev.UPDATE_ROWS_COMPRESSED: "update",
    ev.DELETE_ROWS_COMPRESSED: "delete",
    ev.PARTIAL_UPDATE_ROWS: "update",
}
COMPRESSED: Final = frozenset(range(ev.WRITE_ROWS_COMPRESSED_V1, ev.DELETE_ROWS_COMPRESSED + 1))
VERSION_2: Final = frozenset(
    {
        ev.WRITE_ROWS,
        ev.UPDATE_ROWS,
        ev.DELETE_ROWS,
        ev.WRITE_ROWS_COMPRESSED,
        ev.UPDATE_ROWS_COMPRESSED,
        ev.DELETE_ROWS_COMPRESSED,
        ev.PARTIAL_UPDATE_ROWS,
    }
)
UPDATES: Final = frozenset(kind for kind, name in KINDS.items() if name == "update")

Program = tuple[tuple[tuple[int, int], ...], int]
_MOST_PROGRAMS: Final = 4096
MIXED_FRACTIONS_HINT: Final = (
    "the table may have TIME, DATETIME or TIMESTAMP columns with fractions in MariaDB's pre-10.1 format, whose size "
    "the log does not tell: ALTER TABLE … FORCE under mysql56_temporal_format=ON renews them"
)


class RowsHead(NamedTuple):
    """A rows event without its rows. `before` is None for inserts, `after` for deletes: bitmaps of the columns present.

    `data` is the offset of the first row image in the buffer that was parsed.
    """

    type: int
    table_id: int
    flags: int
    width: int
    before: bytes | None
    after: bytes | None
    data: int


@dataclass(frozen=True, slots=True)
class RowsEvent:
    """A rows event; `data` are its row images one after the other, for updates before and after image in turn."""

    kind: Kind
    type: int
    table_id: int
    flags: int
    width: int
    before: bytes | None
    after: bytes | None
    data: bytes = field(repr=False)

    @property
    def partial(self) -> bool:
        """MySQL: of JSON documents an after image may hold only what changed (see `decode_partial`)."""
        return self.type == ev.PARTIAL_UPDATE_ROWS


def parse_rows_head(event_type: int, buffer: bytes, at: int, end: int) -> RowsHead:
    """The head of a rows event whose body is `buffer[at:end]`. Compressed events have the same head."""
    try:
        table_id = int.from_bytes(buffer[at : at + 6], "little")
        flags = buffer[at + 6] | buffer[at + 7] << 8
        at += 8
        if event_type in VERSION_2:
            # The length of what MySQL adds here counts its own two bytes.
            at += buffer[at] | buffer[at + 1] << 8
        width = buffer[at]
        if width < 251:
            at += 1
        else:
            width, at = packed_integer(buffer, at)
    except IndexError:
        raise damaged(event_name(event_type)) from None
    size = (width + 7) >> 3
    first = buffer[at : at + size]
    at += size
    second = None
    if event_type in UPDATES:
        second = buffer[at : at + size]
        at += size
    if at > end or not width:
        raise damaged(event_name(event_type))
    if second is not None:
        return RowsHead(event_type, table_id, flags, width, first, second, at)
    if KINDS[event_type] == "insert":
        return RowsHead(event_type, table_id, flags, width, None, first, at)
    return RowsHead(event_type, table_id, flags, width, first, None, at)


def parse_rows(event_type: int, body: Buffer) -> RowsEvent:
    """The body of a rows event (23-25, 30-32, 166-171), decompressed where need be."""
    kind = KINDS.get(event_type)
    if kind is None:
        raise unsupported_rows(event_type)
    raw = bytes(body)
    head = parse_rows_head(event_type, raw, 0, len(raw))
    data = raw[head.data :]
    if event_type in COMPRESSED:
        data = decompress(data)
    return RowsEvent(kind, event_type, head.table_id, head.flags, head.width, head.before, head.after, data)


def unsupported_rows(event_type: int) -> FormatError:
    return FormatError(
        "unsupported-event",
        f"{event_name(event_type)} events are not read by this version",
        "exclude the table, or upgrade",
    )


@dataclass(slots=True)
class RowLayout:
    """How images with one column bitmap are laid out. Made by `layout_of`; its `programs` fill as NULL bitmaps come."""

    table_map: TableMap
    present: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    null_bytes: int
    constant: int | None
    """Size of every image, NULL bitmap included, when no column present is nullable or of variable size."""
    no_nulls: bytes
    """The bitmap of a row without NULLs, as servers write it that set unused bits."""
    programs: dict[bytes, Program] = field(default_factory=dict)
    reader: Reader | None = None

    @property
    def full(self) -> bool:
        """Whether the image holds every column."""
        return len(self.present) == len(self.table_map.columns)

    def program(self, nulls: bytes) -> Program:
        """The walk over an image with this NULL bitmap, the bitmap itself included; checks the bitmap."""
        known = self.programs.get(nulls)
        if known is not None:
            return known
        columns = self.table_map.columns
        bits = int.from_bytes(nulls, "little")
        unused = bits >> len(self.present)
        if len(nulls) != self.null_bytes or (unused and unused != (1 << 8 * self.null_bytes) - 1 >> len(self.present)):
            raise self.damaged()
        steps, distance = [], self.null_bytes
        for place, index in enumerate(self.present):
            if bits >> place & 1:
                if not columns[index].nullable:
                    raise self.damaged()
                continue
            size, width = self.sizes[place]
            if width:
                steps.append((distance, width))
                distance = 0
            else:
                distance += size
        made = (tuple(steps), distance)
        if len(self.programs) >= _MOST_PROGRAMS:
            self.programs.clear()
        self.programs[nulls] = made
        return made

    def check_constant(self, buffer: bytes, at: int, end: int) -> None:
        """Images of constant size: the length divides, and all NULL bitmaps are empty (compared a stride at a time)."""
        size = self.constant or 0
        if not size:
            # No column at all is present: the format then cannot say how many rows there are. One is what MINIMAL images
            # of `INSERT … VALUES ()` mean.
            if at != end:
                raise self.damaged()
            return
        if at >= end or (end - at) % size:
            raise self.damaged()
        no_nulls = self.no_nulls if buffer.startswith(self.no_nulls, at) else bytes(self.null_bytes)
        for place, expected in enumerate(no_nulls):
            column = buffer[at + place : end : size]
            if column.count(expected) != len(column):
                raise self.damaged()

    def nothing(self) -> tuple[Value, ...]:
        """The values of an image without any column."""
        return (ABSENT,) * len(self.table_map.columns)

    def damaged(self) -> FormatError:
        table = self.table_map
        return FormatError(
            "malformed", f"row images of {table.schema}.{table.table} do not fit its table map", MIXED_FRACTIONS_HINT
        )


def layout_of(table_map: TableMap, bitmap: bytes) -> RowLayout:
    """The layout of images in which the columns of `bitmap` are present. Compiled once a table map and bitmap."""
    known = table_map.compiled.get(bitmap)
    if known is None:
        known = table_map.compiled[bitmap] = _compile(table_map, bitmap)
    return known


def _compile(table_map: TableMap, bitmap: bytes) -> RowLayout:
    columns = table_map.columns
    if len(bitmap) != (len(columns) + 7) >> 3:
        raise FormatError(
            "malformed", f"a rows event has another number of columns than {table_map.schema}.{table_map.table}"
        )
    present = tuple(c.index for c in columns if bitmap[c.index >> 3] >> (c.index & 7) & 1)
    sizes = tuple(size_of(columns[index]) for index in present)
    null_bytes = (len(present) + 7) >> 3
    variable = any(width or columns[index].nullable for index, (_, width) in zip(present, sizes, strict=True))
    unused = ((1 << 8 * null_bytes) - 1) >> len(present) << len(present)
    return RowLayout(
        table_map,
        present,
        sizes,
        null_bytes,
        None if variable else null_bytes + sum(size for size, _ in sizes),
        unused.to_bytes(null_bytes, "little"),
    )


def image_ends(layout: RowLayout, buffer: bytes, at: int, end: int) -> list[int]:
    """Where each of the images in `buffer[at:end]` ends. They must fill it exactly."""
    if layout.constant is not None:
        size = layout.constant
        layout.check_constant(buffer, at, end)
        return list(range(at + size, end + 1, size)) if size else [at]
    programs, width_of_nulls = layout.programs, layout.null_bytes
    ends: list[int] = []
    try:
        while at < end:
            nulls = buffer[at : at + width_of_nulls]
            program = programs.get(nulls)
            steps, tail = program if program is not None else layout.program(nulls)
            for distance, width in steps:
                at += distance
                if width == 1:
                    at += buffer[at] + 1
                elif width == 2:
                    at += (buffer[at] | buffer[at + 1] << 8) + 2
                else:
                    at += int.from_bytes(buffer[at : at + width], "little") + width
            at += tail
            ends.append(at)
    except IndexError:
        raise layout.damaged() from None
    if at != end:
        raise layout.damaged()
    return ends


def count_images(layout: RowLayout, buffer: bytes, at: int, end: int) -> int:
    """How many images `buffer[at:end]` holds."""
    if layout.constant is not None:
        layout.check_constant(buffer, at, end)
        return (end - at) // layout.constant if layout.constant else 1
    return len(image_ends(layout, buffer, at, end))


def update_ends(before: RowLayout, after: RowLayout, buffer: bytes, at: int, end: int) -> list[int]:
    """As `image_ends` for an update's images, before and after in turn; the two may hold different columns."""
    if before is after:
        ends = image_ends(before, buffer, at, end)
    else:
        ends = []
        turn, other = before, after
        while at < end:
            at = _image_end(turn, buffer, at)
            ends.append(at)
            turn, other = other, turn
        if at != end:
            raise before.damaged()
    if len(ends) % 2:
        raise before.damaged()
    return ends


def _image_end(layout: RowLayout, buffer: bytes, at: int) -> int:
    steps, tail = layout.program(buffer[at : at + layout.null_bytes])
    try:
        for distance, width in steps:
            at += distance
            if at + width > len(buffer):
                raise layout.damaged()
            at += int.from_bytes(buffer[at : at + width], "little") + width
    except IndexError:
        raise layout.damaged() from None
    return at + tail


# An after image of a partial update begins with options (a packed integer); with this one, a bit for each JSON column of
# the table follows, in the image or not: whether the image holds the differences in place of the document.
_PARTIAL_JSON: Final = 1


def _json_columns(table_map: TableMap) -> list[int]:
    return [column.index for column in table_map.columns if column.type == t.JSON]


def _partial_head(table_map: TableMap, buffer: bytes, at: int) -> tuple[frozenset[int], int]:
    """The columns of which an after image at `at` holds differences, and where its usual part begins."""
    options, at = packed_integer(buffer, at)
    if not options & _PARTIAL_JSON:
        return frozenset(), at
    documents = _json_columns(table_map)
    end = at + (len(documents) + 7 >> 3)
    bits = int.from_bytes(buffer[at:end], "little")
    return frozenset(index for place, index in enumerate(documents) if bits >> place & 1), end


def partial_ends(before: RowLayout, after: RowLayout, buffer: bytes, at: int, end: int) -> list[int]:
    """As `update_ends`, of a partial update."""
    ends: list[int] = []
    try:
        while at < end:
            at = _image_end(before, buffer, at)
            ends.append(at)
            at = _image_end(after, buffer, _partial_head(after.table_map, buffer, at)[1])
            ends.append(at)
    except IndexError:
        raise before.damaged() from None
    if at != end:
        raise before.damaged()
    return ends


def count_rows(event: RowsEvent, table_map: TableMap) -> int:
    """How many rows the event writes, updates or deletes."""
    if event.before is None or event.after is None:
        return count_images(layout_of(table_map, event.after or event.before or b""), event.data, 0, len(event.data))
    return len(_ends(event, table_map)) // 2


def _ends(event: RowsEvent, table_map: TableMap) -> list[int]:
    if event.before is None or event.after is None:
        return image_ends(layout_of(table_map, event.after or event.before or b""), event.data, 0, len(event.data))
    ends_of = partial_ends if event.partial else update_ends
    return ends_of(
        layout_of(table_map, event.before), layout_of(table_map, event.after), event.data, 0, len(event.data)
    )


def iter_row_images(event: RowsEvent, table_map: TableMap) -> Iterator[tuple[int, int]]:
    """(start, end) of each image in `event.data`; an update's images come before, after, before, after …"""
    start = 0
    for end in _ends(event, table_map):
        yield start, end
        start = end


def iter_rows(event: RowsEvent, table_map: TableMap) -> Iterator[tuple[bytes | None, bytes | None]]:
    """(before image, after image) of each row; None for the side that an insert or delete does not have."""
    data = event.data
    images = (data[start:end] for start, end in iter_row_images(event, table_map))
    if event.kind == "update":
        for before in images:
            yield before, next(images)
    elif event.kind == "insert":
        for image in images:
            yield None, image
    else:
        for image in images:
            yield image, None


def decode_row(image: bytes, table_map: TableMap, bitmap: bytes | None = None) -> tuple[Value, ...]:
    """The values of one row image, one for each column of the table.

    `bitmap` says which columns the image holds (all, if None); the others are `ABSENT`. The image must be exactly one.
    """
    if bitmap is None:
        count = len(table_map.columns)
        bitmap = ((1 << count) - 1).to_bytes((count + 7) >> 3, "little")
    return _decode(image, layout_of(table_map, bitmap))


def _decode(image: bytes, layout: RowLayout) -> tuple[Value, ...]:
    if not layout.present:
        layout.check_constant(image, 0, len(image))
        return layout.nothing()
    reader = reader_of(layout)
    rows = next(reader.batches(image, 0, len(image)), [])
    if len(rows) != 1:
        raise layout.damaged()
    return reader.values(rows)[0]


def values_of(layout: RowLayout, buffer: bytes, at: int, end: int) -> Iterator[list[tuple[Value, ...]]]:
    """The values of all images in `buffer[at:end]`, some at a time. Batches but the last are of an even number."""
    if not layout.present:
        layout.check_constant(buffer, at, end)
        yield [layout.nothing()]
        return
    reader = reader_of(layout)
    for rows in reader.batches(buffer, at, end):
        yield reader.values(rows)


@only_format_errors("a row image")
def decode_partial(image: bytes, table_map: TableMap, bitmap: bytes, before: tuple[Value, ...]) -> tuple[Value, ...]:
    """As `decode_row`, of an after image of a partial update, given the values of its before image."""
    partial, at = _partial_head(table_map, image, 0)
    values = list(_decode(image[at:], layout_of(table_map, bitmap)))
    for index in partial:
        value, old = values[index], before[index]
        if not isinstance(value, JsonBinary) or value.raw is None:
            continue
        diffs = jsonb.parse_diffs(value.raw)
        values[index] = (
            JsonBinary(old.raw, old.diffs + diffs) if isinstance(old, JsonBinary) else JsonBinary(None, diffs)
        )
    return tuple(values)
