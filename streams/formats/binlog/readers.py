"""Values of many row images at a time: a layout compiled into runs of fixed columns, and conversions done column by column.

Rows of one event mostly have the same NULLs and always the same columns. So what is done for each row is as little as can
be: an unpacking of each run of fixed columns (with the length of the variable one after it), and a slice for the latter.

    id int not null, name varchar(20), amount decimal(9,2), at datetime

    NULL bitmap | id, length of name | name | amount, at          <sBB-like Struct> · slice · <4s5s>

The raw rows are then turned round, each column is converted as a whole, and what is equal is converted once.

Knows layouts (`rows`) and conversions (`values`, `columns`), not events.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from streams.formats.binlog import columns
from streams.formats.binlog import table_map as t
from streams.formats.binlog.charsets import UTF8
from streams.formats.binlog.table_map import Column
from streams.formats.binlog.values import ABSENT, Convert, Value, converter_of
from streams.formats.errors import only_format_errors

if TYPE_CHECKING:
    from streams.formats.binlog.rows import RowLayout

Raw = list[Any]
# A run: unpack, and the bytes it takes. All runs but the last end with the length of a variable column.
_Run = tuple[Callable[[bytes, int], tuple[Any, ...]], int]
_Loop = Callable[[bytes, int, int, Callable[[Raw], None], int], int]
"""`loop(buffer, at, end, add, most)` takes the image at `at` and those after it that have the same NULL bitmap, `most` in all,
and hands over the raw values of each; returns where it ended."""

_NUMBERS: Final = {(t.TINY, 1): "B", (t.SHORT, 2): "H", (t.LONG, 4): "I", (t.LONGLONG, 8): "Q"}
_PREFIXES: Final = {1: "B", 2: "H", 3: "3s", 4: "I"}
_MOST_LOOPS: Final = 4096
_MOST_KNOWN: Final = 8192
_BATCH: Final = 1024


class Reader:
    """Reads images of one layout. Made by `reader_of`, kept with the layout."""

    __slots__ = ("_absent", "_layout", "_loops", "_ones", "_places", "_whole")

    def __init__(self, layout: RowLayout) -> None:
        columns = layout.table_map.columns
        self._layout = layout
        self._places = [_Place(columns[index], *layout.sizes[place]) for place, index in enumerate(layout.present)]
        self._absent = None if layout.full else [i for i in range(len(columns)) if i not in set(layout.present)]
        self._ones = [place.one for place in self._places]
        self._loops: dict[bytes, _Loop] = {}
        self._whole: Struct | None = None
        if layout.constant:
            # Every row is one run, and one call takes all of them. The bitmap is checked by the caller.
            self._whole = Struct(f"<{layout.null_bytes}x" + "".join(place.code for place in self._places))

    def batches(self, buffer: bytes, at: int, end: int) -> Iterator[list[Any]]:
        """Some raw rows at a time, one sequence of values for each image in `buffer[at:end]`, which they must fill. All
        batches but the last are of an even number, so that pairs stay together."""
        layout = self._layout
        if self._whole is not None:
            layout.check_constant(buffer, at, end)
            view, step = memoryview(buffer), self._whole.size * _BATCH
            for start in range(at, end, step):
                yield list(self._whole.iter_unpack(view[start : min(end, start + step)]))
            return
        loops, width_of_nulls = self._loops, layout.null_bytes
        while at < end:
            rows: list[Raw] = []
            try:
                while at < end and len(rows) < _BATCH:
                    nulls = buffer[at : at + width_of_nulls]
                    loop = loops.get(nulls) or self._loop(nulls)
                    at = loop(buffer, at, end, rows.append, _BATCH - len(rows))
            except struct.error:
                raise layout.damaged() from None
            if at > end:
                raise layout.damaged()
            yield rows

    def _loop(self, nulls: bytes) -> _Loop:
        """The loop over images with this NULL bitmap."""
        layout = self._layout
        layout.program(nulls)  # checks the bitmap
        bits = int.from_bytes(nulls, "little")
        runs: list[_Run] = []
        code = f"<{len(nulls)}x"
        missing = []
        long = False
        for number, place in enumerate(self._places):
            if bits >> number & 1:
                missing.append(number)
                continue
            code += place.code
            if place.width:
                made = Struct(code)
                runs.append((made.unpack_from, made.size))
                code = "<"
                long = long or place.width == 3
        made = Struct(code)
        runs.append((made.unpack_from, made.size))
        if len(self._loops) >= _MOST_LOOPS:
            self._loops.clear()
        loop = self._loops[nulls] = _loop_over(runs, nulls, missing, long)
        return loop

    @only_format_errors("a row image")
    def values(self, rows: Sequence[Any]) -> list[tuple[Value, ...]]:
        """The values of raw rows, one for each column of the table; those that the images leave out are `ABSENT`."""
        if len(rows) == 1 and self._absent is None:
            return [tuple([raw if one is None else one(raw) for one, raw in zip(self._ones, rows[0], strict=True)])]
        converted: list[Iterable[Value]] = [
            column if place.convert is None else place.convert(column)
            for place, column in zip(self._places, zip(*rows, strict=True), strict=True)
        ]
        if self._absent is not None:
            for index in self._absent:
                converted.insert(index, repeat(ABSENT, len(rows)))
        return list(zip(*converted, strict=True))


def _loop_over(runs: Sequence[_Run], nulls: bytes, missing: Sequence[int], long: bool) -> _Loop:
    """`missing`: places of the NULLs, ascending. `long`: some length has three bytes, which no Struct reads as a number."""
    (first, first_size), *others = runs
    width = len(nulls)

    def loop(buffer: bytes, at: int, end: int, add: Callable[[Raw], None], most: int) -> int:
        for _ in repeat(None, most):
            row = [*first(buffer, at)]
            at += first_size
            for unpack, size in others:
                start = at
                at += row[-1]
                row[-1] = buffer[start:at]
                row += unpack(buffer, at)
                at += size
            add(row)
            if at >= end or buffer[at : at + width] != nulls:
                break
        return at

    def loop_with_more(buffer: bytes, at: int, end: int, add: Callable[[Raw], None], most: int) -> int:
        for _ in repeat(None, most):
            row = [*first(buffer, at)]
            at += first_size
            for unpack, size in others:
                length = row[-1]
                start = at
                at += length if isinstance(length, int) else int.from_bytes(length, "little")
                row[-1] = buffer[start:at]
                row += unpack(buffer, at)
                at += size
            for place in missing:
                row.insert(place, None)
            add(row)
            if at >= end or buffer[at : at + width] != nulls:
                break
        return at

    return loop_with_more if missing or long else loop


def reader_of(layout: RowLayout) -> Reader:
    reader = layout.reader
    if reader is None:
        reader = layout.reader = Reader(layout)
    return reader


class _Place:
    """One column present: its code in a Struct, the width of its length, and how a whole column of raw values is converted
    (`convert`), or a single one (`one`). None: they are the values."""

    __slots__ = ("code", "convert", "one", "width")

    def __init__(self, column: Column, size: int, width: int) -> None:
        self.width = width
        self.convert: _Columnwise | None = None
        self.one: _Single | None = None
        convert = converter_of(column)
        if width:
            self.code = _PREFIXES[width]
            if column.charset == "binary" and column.type in _AS_THEY_ARE:
                return
            self.one, self.convert = _each(convert)
            if column.charset in UTF8 and column.type in _PLAIN_TEXT:
                self.convert = _texts("utf-8" if column.charset != "ascii" else "ascii", self.convert)
            return
        number = _NUMBERS.get((column.type, size))
        if number is not None:
            self.code = number if column.unsigned else number.lower()
        elif column.type in (t.FLOAT, t.DOUBLE):
            self.code = "f" if column.type == t.FLOAT else "d"
        else:
            self.code = f"{size}s"
            self.one, self.convert = _known(convert)
            many = columns.columnwise(column)
            if many is not None:
                self.convert = _many(many, self.convert)


_Single = Callable[[Any], Value]
_Columnwise = Callable[[Sequence[Any]], Iterable[Value]]
_PLAIN_TEXT: Final = frozenset({t.VARCHAR, t.VAR_STRING, t.STRING, t.BLOB, t.TINY_BLOB, t.MEDIUM_BLOB, t.LONG_BLOB})
_AS_THEY_ARE: Final = _PLAIN_TEXT - {t.STRING}


def _texts(codec: str, slowly: _Columnwise) -> _Columnwise:
    """Text that is decoded exactly or not at all."""

    def texts(column: Sequence[Any]) -> Iterable[Value]:
        try:
            if None not in column:
                found = columns.texts(column, codec)
                if found is not None:
                    return found
            return [raw if raw is None else str(raw, codec) for raw in column]
        except UnicodeDecodeError:
            return slowly(column)

    return texts


def _each(convert: Convert) -> tuple[_Single, _Columnwise]:
    return (
        lambda raw: raw if raw is None else convert(raw),
        lambda column: [raw if raw is None else convert(raw) for raw in column],
    )


def _many(many: columns.Columnwise, slowly: _Columnwise) -> _Columnwise:
    """All at once where that goes and few values recur."""

    def column(raws: Sequence[Any]) -> Iterable[Value]:
        distinct = set(raws)
        if 2 * len(distinct) < len(raws):
            return slowly(raws)
        if None not in distinct:
            return many(raws) or slowly(raws)
        present = [raw for raw in raws if raw is not None]
        found = many(present) if present else None
        if found is None:
            return slowly(raws)
        values = iter(found)
        return [None if raw is None else next(values) for raw in raws]

    return column


def _known(convert: Convert) -> tuple[_Single, _Columnwise]:
    """Values that recur (days, amounts, members) are converted once, as long as there is room to remember them."""
    known: dict[Any, Value] = {None: None}
    value_of = known.__getitem__

    def forget() -> None:
        known.clear()
        known[None] = None

    def one(raw: Any) -> Value:
        try:
            return known[raw]
        except KeyError:
            if len(known) > _MOST_KNOWN:
                forget()
            value = known[raw] = convert(raw)
            return value

    def column(raws: Sequence[Any]) -> Iterable[Value]:
        if len(known) > _MOST_KNOWN:
            forget()
        new = set(raws).difference(known)
        if new:
            known.update(zip(new, map(convert, new), strict=True))
        return list(map(value_of, raws))

    return one, column
