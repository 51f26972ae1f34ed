"""Rows, decoded when somebody looks: of one step, of a plan before and after, of a plan as SQL."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.timeline import values
from api.timeline.definitions import Definitions
from api.timeline.picked import Picker
from api.timeline.source import Timeline
from api.timeline.steps import ACCOUNT_TEXT
from projections.views.timeline import Granule
from streams.capture_log import StepFragment
from streams.events import OrdinalRange
from streams.formats.binlog.sql import SQL_PREAMBLE, quote_name, to_sql
from streams.formats.binlog.step import OWN_SCHEMA, Change, TableMaps, iter_changes
from streams.formats.binlog.values import Value
from streams.formats.errors import FormatError
from streams.paths import Path, length

SAMPLE_S = 2.0
SAMPLE_BYTES = 96 << 20
_CHUNK_STEPS = 512
_LARGE_STEP = 32 << 20


def fragment_changes(
    timeline: Timeline, definitions: Definitions, lineage: str, fragment: StepFragment, maps: TableMaps
) -> Iterator[Change]:
    """The row changes of a fragment, in the order of the log; `maps` are the table maps of the step so far, and are
    brought up to date. Account statements have no rows to show. Raises `FormatError` for what cannot be read."""
    if fragment.payload is None or fragment.accounts:
        return iter(())
    fde = timeline.preambles.of(fragment.preamble)
    describe = definitions.describe(lineage, fragment.ordinal)
    return iter_changes(fde, fragment.payload, table_maps=maps, describe=describe)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some of a step's rows. `next`: go on with this offset, None at the end."""

    tables: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    next: int | None


def of_step(
    timeline: Timeline,
    definitions: Definitions,
    lineage: str,
    fragments: Iterable[StepFragment],
    offset: int,
    limit: int,
) -> Rows:
    """Rows `offset..offset+limit` of a step; the rest is not decoded but for its table maps."""
    maps: TableMaps = {}
    tables = values.Tables()
    out: list[dict[str, Any]] = []
    skip, left = offset, limit + 1
    for fragment in fragments:
        for change in fragment_changes(timeline, definitions, lineage, fragment, maps):
            if skip:
                skip -= 1
                continue
            left -= 1
            if left == 0:
                return Rows(tables.listed(), out, offset + limit)
            tables.add(change)
            out.append(values.change_json(change))
    return Rows(tables.listed(), out, None)


# --- a plan before and after -----------------------------------------------------------------------------------------

Image = tuple[Value, ...]


@dataclass(slots=True)
class _Row:
    """A row of the sample: as it is, and as it would be; `step` is the newest that touched it."""

    before: Image | None
    after: Image | None
    change: Change
    step: int


@dataclass(slots=True)
class _Table:
    rows: dict[Any, _Row] = field(default_factory=dict)
    full: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    tables: list[dict[str, Any]]
    looked_at: int
    steps: int


def preview(
    timeline: Timeline,
    definitions: Definitions,
    lineage: str,
    undo: Path,
    redo: Path,
    *,
    limit: int,
    table: tuple[str, str] | None,
    picker: Picker | None = None,
) -> Preview:
    """Rows as they are and as they would be, `limit` of each table.

    Steps to undo are folded in the order of the log, so a row's first image is what it becomes, its last what it is;
    steps to redo are folded on after that. Exact when the whole plan was looked at, which takes two seconds at most.
    `picker` says which rows of a selective undo.
    """
    if picker is not None:
        undo = picker.steps
    deadline = time.monotonic() + SAMPLE_S
    read = looked = 0
    tables: dict[tuple[str, str], _Table] = {}
    columns = values.Tables()
    steps = length(undo) + length(redo)
    for ranges, undone in ((undo, True), (redo, False)):
        for r in ranges:
            maps: TableMaps = {}
            for fragment in timeline.log.steps(lineage, r.first, r.last):
                maps = {} if fragment.number == 0 else maps
                read += len(fragment.payload or b"")
                for change in fragment_changes(timeline, definitions, lineage, fragment, maps):
                    if change.schema == OWN_SCHEMA or (picker and not picker.takes(fragment.ordinal, change)):
                        continue
                    if table in (None, (change.schema, change.table)):
                        columns.add(change)
                        known = tables.setdefault((change.schema, change.table), _Table())
                        _fold(known, change, fragment.ordinal, limit, undone)
                looked += fragment.last
                if read > SAMPLE_BYTES or time.monotonic() > deadline:
                    return _preview(tables, columns, limit, looked, steps, picker)
        for known in tables.values():
            _turn_round(known)
    return _preview(tables, columns, limit, looked, steps, picker)


def _fold(table: _Table, change: Change, ordinal: int, limit: int, undone: bool) -> None:
    """Take one change in. Rows beyond the sample are not taken up, those in it are followed to the end."""
    old, new = change.before, change.after
    was, becomes = _key(change, old), _key(change, new)
    row = table.rows.pop(was, None) if was is not None else None
    if row is None and becomes is not None:
        row = table.rows.pop(becomes, None)
    if row is None:
        # As many again as are shown: some will turn out to come to nothing.
        if len(table.rows) >= 2 * limit + 16:
            table.full = True
            return
        row = _Row(new, old, change, ordinal) if undone else _Row(old, new, change, ordinal)
    elif undone:
        row.before = new
    else:
        row.after = new
    row.step = ordinal
    _put(table, becomes if becomes is not None else was, row)


def _put(table: _Table, key: Any, row: _Row) -> None:
    """A row that had this key before and has lost it (it was deleted) makes way, and stays in the sample."""
    if key in table.rows:
        table.rows[key, len(table.rows), row.step] = table.rows.pop(key)
    table.rows[key] = row


def _turn_round(table: _Table) -> None:
    """All is undone: from here on rows are known by what they have become."""
    rows = list(table.rows.values())
    table.rows = {}
    for row in rows:
        _put(table, _key(row.change, row.after if row.after is not None else row.before), row)


def _key(change: Change, image: Image | None) -> Any:
    """What a row is known by: its primary key, or without one itself."""
    if image is None:
        return None
    return tuple(repr(image[i]) for i in change.primary_key) if change.primary_key else repr(image)


def _preview(
    tables: dict[tuple[str, str], _Table],
    columns: values.Tables,
    limit: int,
    looked: int,
    steps: int,
    picker: Picker | None,
) -> Preview:
    out = []
    for (schema, name), table in tables.items():
        rows = [r for r in table.rows.values() if r.before != r.after and not _is_left(picker, r)]
        rows.sort(key=lambda r: -r.step)
        shown = [_row_json(r) for r in rows[:limit]]
        if not shown and not table.full:
            continue
        complete = len(rows) <= limit and not table.full and looked == steps and (picker is None or picker.exact)
        known = columns.of(schema, name)
        out.append({"schema": schema, "table": name, "columns": known, "changes": shown, "complete": complete})
    return Preview(out, looked, steps)


def _is_left(picker: Picker | None, row: _Row) -> bool:
    """Whether a later write turned up after the row had been taken into the sample."""
    if picker is None or not picker.left:
        return False
    return any(picker.row(row.change, image) in picker.left for image in (row.before, row.after) if image is not None)


def _row_json(row: _Row) -> dict[str, Any]:
    shown = Change(
        row.change.schema,
        row.change.table,
        "insert" if row.before is None else "delete" if row.after is None else "update",
        row.before,
        row.after,
        row.change.columns,
        row.change.primary_key,
    )
    full = values.change_json(shown)
    return {"step": row.step, **{k: full[k] for k in ("operation", "before", "after", "changed")}}


# --- a plan as SQL ---------------------------------------------------------------------------------------------------


def sql(
    timeline: Timeline,
    definitions: Definitions,
    lineage: str,
    undo: Path,
    redo: Path,
    granules: Sequence[Granule],
    head: Sequence[str],
    picker: Picker | None = None,
) -> Iterator[str]:
    """The statements that undo and redo, in the order in which they would have to run, with a comment for each step.

    Made in pieces, one of `granules` (ascending, as far as there are any) or some hundred steps at a time, so its size
    costs no memory; a single step beyond 32 MiB is only named. A selective undo is gone through once before, to know which of
    its rows it takes.
    """
    taken = _taken(timeline, definitions, lineage, picker) if picker is not None else None
    yield "".join(f"-- {line}\n" for line in head) + "\n" + SQL_PREAMBLE + "START TRANSACTION;\n"
    for r in reversed(undo):
        for first, last in reversed(list(_pieces(r, granules))):
            texts = list(_piece_sql(timeline, definitions, lineage, first, last, undone=True, taken=taken))
            yield "".join(reversed(texts))
    for r in redo:
        for first, last in _pieces(r, granules):
            yield "".join(_piece_sql(timeline, definitions, lineage, first, last, undone=False))
    yield "\nCOMMIT;\n"


Taken = dict[int, frozenset[int]]
"""By step: which of its changes, counted from 0."""


def _taken(timeline: Timeline, definitions: Definitions, lineage: str, picker: Picker) -> Taken:
    rows: dict[int, dict[int, tuple[Any, ...]]] = {}
    place = 0
    for r in picker.steps:
        maps: TableMaps = {}
        for fragment in timeline.log.steps(lineage, r.first, r.last):
            if fragment.number == 0:
                maps, place = {}, 0
            for change in fragment_changes(timeline, definitions, lineage, fragment, maps):
                if change.schema != OWN_SCHEMA and picker.takes(fragment.ordinal, change):
                    keys = (picker.row(change, change.before), picker.row(change, change.after))
                    rows.setdefault(fragment.ordinal, {})[place] = keys
                place += 1
    left = picker.left
    kept = {o: frozenset(p for p, keys in found.items() if not left.intersection(keys)) for o, found in rows.items()}
    return {ordinal: places for ordinal, places in kept.items() if places}


def _pieces(r: OrdinalRange, granules: Sequence[Granule]) -> Iterator[tuple[int, int]]:
    """`r` cut at granules, ascending; beyond them in pieces of some hundred steps."""
    at = r.first
    for granule in granules:
        if granule.last_ordinal < at or granule.first_ordinal > r.last:
            continue
        last = min(granule.last_ordinal, r.last)
        yield at, last
        at = last + 1
    while at <= r.last:
        last = min(r.last, at + _CHUNK_STEPS - 1)
        yield at, last
        at = last + 1


def _piece_sql(
    timeline: Timeline,
    definitions: Definitions,
    lineage: str,
    first: int,
    last: int,
    *,
    undone: bool,
    taken: Taken | None = None,
) -> Iterator[str]:
    """One text for each step, ascending."""
    step: list[StepFragment] = []
    size = 0
    for fragment in timeline.log.steps(lineage, first, last):
        if fragment.number == 0:
            step, size = [], 0
        size += len(fragment.payload or b"")
        if size <= _LARGE_STEP:
            step.append(fragment)
        else:
            step.clear()
        if not fragment.last:
            continue
        if taken is not None and fragment.ordinal not in taken:
            continue
        title = f"\n-- {'undo' if undone else 'redo'} step {fragment.ordinal}\n"
        if fragment.accounts:
            yield f"{title}-- {ACCOUNT_TEXT}, not shown\n"
        elif size > _LARGE_STEP:
            yield f"{title}-- {size} bytes: too large to be written as SQL\n"
        else:
            chosen = taken[fragment.ordinal] if taken is not None else None
            yield title + "".join(_statements(timeline, definitions, lineage, step, undone, chosen))


def _statements(
    timeline: Timeline,
    definitions: Definitions,
    lineage: str,
    step: Sequence[StepFragment],
    undone: bool,
    chosen: frozenset[int] | None,
) -> Iterator[str]:
    maps: TableMaps = {}
    try:
        found = [c for f in step for c in fragment_changes(timeline, definitions, lineage, f, maps)]
    except FormatError as error:
        yield f"-- this step cannot be written as SQL: {error}\n"
        return
    if chosen is not None:
        found = [change for place, change in enumerate(found) if place in chosen]
    for change in reversed(found) if undone else found:
        if change.schema == OWN_SCHEMA:
            continue
        generated = definitions.generated(lineage, (change.schema, change.table), step[0].ordinal)
        try:
            yield to_sql(change, undone, generated) + ";\n"
        except FormatError as error:
            name = f"{quote_name(change.schema)}.{quote_name(change.table)}"
            yield f"-- a row of {name} cannot be written as SQL: {error}\n"
