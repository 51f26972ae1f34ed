"""Net changes: what a run of row changes amounts to, by table and key, and the native events that make it so.

Undoing 100,000 one-row transactions event by event costs the server half a minute; what it has to do in the end is to
delete some rows, change some and insert some. So row changes are folded, in the order in which they happened:

    keyed table    key → (image at the first touch, image now); both may be None: the row is not there
    other table    image → how many copies more or fewer

and come out as deletes, then updates, then inserts. In this order no unique key is violated on the way: a row whose
key, unique or linking columns change is deleted and inserted again, and what is left for updates keeps all of these.
Tables are independent of each other when foreign keys are checked for the whole result and not row by row.

To undo is to fold forwards and turn the result round (`invert`), so nothing needs to be read backwards, and what is
kept is bounded by the rows that change, not by the log. Redone changes are folded on after that.

Each change must find the image that the change before it on the same key left: a log with a hole (an unseen cascade, a
lost event) is noticed here. Values are never decoded. Knows nothing of steps, plans or servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from streams.formats.binlog import events as ev
from streams.formats.binlog.inverse import ROWS_TYPES, encode_event, rows_head
from streams.formats.binlog.rows import (
    NO_CHECK_CONSTRAINT_CHECKS,
    NO_FOREIGN_KEY_CHECKS,
    STATEMENT_END,
    Kind,
    RowLayout,
)
from streams.formats.binlog.table_map import TableMap, needed_metadata, packed_integer
from streams.formats.errors import FormatError

Slicer = Callable[[bytes], bytes]
_UNSEEN: Final = b"\xff" * 8  # by identity
# What an entry costs beside its bytes: two places in dictionaries, three objects.
_ENTRY_BYTES: Final = 280


def column_slicer(layout: RowLayout, columns: Sequence[int]) -> Slicer:
    """A function from a row image to the bytes of `columns` (indexes into the table), as they stand in the image.

    Equal bytes are equal values: each value carries its length prefix where it has one, and a NULL column gives a mark
    of its own. The image must hold the columns.
    """
    places = [layout.present.index(column) for column in columns]
    programs: dict[bytes, Slicer] = {}
    null_bytes = layout.null_bytes

    def slice_of(image: bytes) -> bytes:
        nulls = image[:null_bytes]
        made = programs.get(nulls)
        if made is None:
            if len(programs) >= 4096:
                programs.clear()
            made = programs[nulls] = _slicer(layout, places, nulls)
        return made(image)

    if layout.constant is not None:
        return _slicer(layout, places, layout.no_nulls)
    return slice_of


def _slicer(layout: RowLayout, places: Sequence[int], nulls: bytes) -> Slicer:
    bits = int.from_bytes(nulls, "little")
    wanted = [place for place in places if not bits >> place & 1]
    missing = bytes(place for place in range(len(places)) if bits >> places[place] & 1)
    tail = b"" if not missing else b"\0null" + missing
    if not wanted:
        return lambda image: tail
    # Where every column up to the last wanted one is of fixed size, offsets are known once and for all.
    at, spans, known = layout.null_bytes, {}, True
    for place in range(max(wanted) + 1):
        if bits >> place & 1:
            continue
        size, width = layout.sizes[place]
        if width:
            known = False
            break
        spans[place] = (at, at + size)
        at += size
    if known:
        pieces = _joined([spans[place] for place in wanted])
        if len(pieces) == 1 and not tail:
            start, end = pieces[0]
            return lambda image: image[start:end]
        return lambda image: b"".join([image[a:b] for a, b in pieces]) + tail
    last, null_bytes, sizes = max(wanted), layout.null_bytes, layout.sizes

    def walk(image: bytes) -> bytes:
        at, found = null_bytes, {}
        for place in range(last + 1):
            if bits >> place & 1:
                continue
            size, width = sizes[place]
            end = at + (width + int.from_bytes(image[at : at + width], "little") if width else size)
            found[place] = image[at:end]
            at = end
        return b"".join([found[place] for place in wanted]) + tail

    return walk


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


@dataclass(slots=True)
class NetTable:
    """The changes of one table, being folded. `key`: column indexes, empty for a table without one.

    `split`: columns beside the key whose change makes a row be deleted and inserted again (unique keys, foreign keys).
    `referenced`: columns that foreign keys of other tables point at.
    """

    table_map: TableMap
    layout: RowLayout
    key: tuple[int, ...]
    split: tuple[int, ...] = ()
    referenced: tuple[int, ...] = ()
    unchecked: bool = False
    """Whether some change was logged without its CHECK constraints having been looked at."""
    size: int = 0
    """Bytes of memory held, roughly: what bounds a plan."""
    _first: dict[bytes, bytes | None] = field(default_factory=dict)
    _now: dict[bytes, bytes | None] = field(default_factory=dict)
    _copies: dict[bytes, int] = field(default_factory=dict)
    _key_of: Slicer | None = None

    def __post_init__(self) -> None:
        if self.key:
            self._key_of = column_slicer(self.layout, self.key)

    @property
    def keyed(self) -> bool:
        return self._key_of is not None

    def add(self, before: bytes | None, after: bytes | None) -> None:
        """Fold the change of one row, in the order in which changes happen. One of the images may be None.

        Raises `FormatError` (`chain-broken`) when the before image is not what the changes so far left.
        """
        key_of = self._key_of
        if key_of is None:
            self._count(before, after)
            return
        now = self._now
        if before is not None:
            key = key_of(before)
            was = now.get(key, _UNSEEN)
            if was is _UNSEEN:
                self._first[key] = before
                self.size += len(before) + len(key) + _ENTRY_BYTES
            elif was != before:
                raise self._broken()
            if after is None:
                now[key] = None
                return
            becomes = key_of(after)
            if becomes == key:
                now[key] = after
                self.size += len(after)
                return
            now[key] = None
            key = becomes
        elif after is None:
            return
        else:
            key = key_of(after)
        was = now.get(key, _UNSEEN)
        if was is _UNSEEN:
            self._first[key] = None
            self.size += len(key) + _ENTRY_BYTES
        elif was is not None:
            raise self._broken()
        now[key] = after
        self.size += len(after)

    def _count(self, before: bytes | None, after: bytes | None) -> None:
        copies = self._copies
        if before is not None:
            copies[before] = copies.get(before, 0) - 1
            self.size += len(before) + _ENTRY_BYTES
        if after is not None:
            copies[after] = copies.get(after, 0) + 1
            self.size += len(after) + _ENTRY_BYTES

    def invert(self) -> None:
        """Turn round what was folded so far: from now on it is what leads back."""
        self._first, self._now = self._now, self._first
        for image, copies in self._copies.items():
            self._copies[image] = -copies

    def _broken(self) -> FormatError:
        return FormatError(
            "chain-broken",
            f"the changes of a row of {self.table_map.schema}.{self.table_map.table} do not follow from one another",
            "something changed it that the log does not show (a foreign key's cascade, a change with sql_log_bin=0)",
        )

    def clear(self) -> None:
        """Let go of everything folded so far."""
        self._first, self._now, self._copies, self.size = {}, {}, {}, 0

    def identity(self, image: bytes) -> bytes:
        """What a row with this image is told by: its key's bytes, or without a key the image itself."""
        return image if self._key_of is None else self._key_of(image)

    def forget(self, identities: Iterable[bytes]) -> None:
        """Leave rows out again, as if they had not been folded."""
        for identity in identities:
            self._first.pop(identity, None)
            self._now.pop(identity, None)
            self._copies.pop(identity, None)

    def touches(self, image: bytes) -> bool:
        """Whether a change of this row image's key (for a table without one: of exactly this image) is among these."""
        return image in self._copies if self._key_of is None else self._key_of(image) in self._now

    def result(self) -> NetChanges:
        """What it all amounts to."""
        if self._key_of is None:
            return self._multiset()
        expected: list[bytes] = []
        deletes: list[bytes] = []
        inserts: list[bytes] = []
        updates: list[tuple[bytes, bytes]] = []
        removed: list[bytes] = []
        split = column_slicer(self.layout, self.split) if self.split else None
        referenced = column_slicer(self.layout, self.referenced) if self.referenced else None
        now = self._now
        provided = {referenced(image) for image in now.values() if image is not None} if referenced else frozenset()
        for key, was in self._first.items():
            becomes = now[key]
            if was is None:
                if becomes is not None:
                    inserts.append(becomes)
                continue
            expected.append(was)
            if becomes is None:
                deletes.append(was)
                if referenced is not None and referenced(was) not in provided:
                    removed.append(was)
            elif becomes != was:
                if referenced is not None and referenced(was) not in provided:
                    removed.append(was)
                if split is not None and split(was) != split(becomes):
                    deletes.append(was)
                    inserts.append(becomes)
                else:
                    updates.append((was, becomes))
        return NetChanges(self, tuple(expected), tuple(deletes), tuple(updates), tuple(inserts), tuple(removed))

    def _multiset(self) -> NetChanges:
        deletes: list[bytes] = []
        inserts: list[bytes] = []
        for image, copies in self._copies.items():
            (deletes if copies < 0 else inserts).extend([image] * abs(copies))
        return NetChanges(self, (), tuple(deletes), (), tuple(inserts), tuple(deletes) if self.referenced else ())


@dataclass(frozen=True, slots=True, eq=False)
class NetChanges:
    """Row images of one table: what must be there now (`expected`; empty without a key: then the deletes themselves
    compare whole rows), and the changes in the order deletes, updates, inserts.

    `removed`: rows whose referenced columns' values go away, so that nothing may point at them afterwards.
    """

    table: NetTable
    expected: tuple[bytes, ...]
    deletes: tuple[bytes, ...]
    updates: tuple[tuple[bytes, bytes], ...]
    inserts: tuple[bytes, ...]
    removed: tuple[bytes, ...]

    @property
    def rows(self) -> int:
        return len(self.deletes) + len(self.updates) + len(self.inserts)

    @property
    def size(self) -> int:
        """Bytes of images that the changes hold."""
        return sum(map(len, self.deletes)) + sum(map(len, self.inserts)) + sum(len(a) + len(b) for a, b in self.updates)

    @property
    def largest(self) -> int:
        """Bytes of the largest change: one row's image, or both of an update."""
        single = max(map(len, (*self.expected, *self.inserts, *self.deletes)), default=0)
        return max(single, max((len(a) + len(b) for a, b in self.updates), default=0))

    def statements(self, most: int, version: int = 1) -> Iterator[tuple[int, bytes]]:
        """The changes as (rows, native events): a table map and one rows event (of `version`) of about `most` bytes, ready
        to be replayed as one statement. Foreign keys are not checked row by row."""
        yield from row_statements(self.table, "delete", self.deletes, most, version=version)
        yield from row_statements(self.table, "update", [a + b for a, b in self.updates], most, version=version)
        yield from row_statements(self.table, "insert", self.inserts, most, version=version)


_TABLE_ID: Final = 1


def row_statements(
    table: NetTable, kind: Kind, images: Sequence[bytes], most: int, content: bytes | None = None, *, version: int = 1
) -> Iterator[tuple[int, bytes]]:
    """(rows, a table map and one rows event) for `images` in turn, each about `most` bytes or one row.

    `content` replaces the table map's (a guard table of the same layout). Headers carry zeroes for time, server, flags.
    """
    map_event = encode_event(
        ev.TABLE_MAP,
        _TABLE_ID.to_bytes(6, "little") + b"\x01\0" + (content or core_content(table.table_map, *table.table_map.key)),
    )
    count = len(table.table_map.columns)
    full = ((1 << count) - 1).to_bytes((count + 7) >> 3, "little")
    flags = STATEMENT_END | NO_FOREIGN_KEY_CHECKS | (NO_CHECK_CONSTRAINT_CHECKS if table.unchecked else 0)
    before, after = (None if kind == "insert" else full), (None if kind == "delete" else full)
    head = rows_head(_TABLE_ID, version, count, before, after, flags)
    at = 0
    while at < len(images):
        size, end = 0, at
        while end < len(images) and (end == at or size + len(images[end]) <= most):
            size += len(images[end])
            end += 1
        yield end - at, map_event + encode_event(ROWS_TYPES[version][kind], head + b"".join(images[at:end]))
        at = end


def core_of(table_map: TableMap) -> tuple[tuple[int, tuple[int, int], bool], ...]:
    """What decides how images are laid out: type, type's metadata and nullability of each column."""
    return tuple((column.type, column.meta, column.nullable) for column in table_map.columns)


def core_content(table_map: TableMap, schema: str, table: str) -> bytes:
    """The body of a table map (without table id and flags) for a table of this layout, without optional metadata but that
    which a server cannot do without."""
    raw = table_map.content
    at = raw[0] + 2
    at += raw[at] + 2
    start = at
    count, at = packed_integer(raw, at)
    at += count
    size, at = packed_integer(raw, at)
    at += size + ((count + 7) >> 3)
    names = (name.encode() for name in (schema, table))
    return b"".join([bytes((len(n),)) + n + b"\0" for n in names]) + raw[start:at] + needed_metadata(raw, at)
