"""Every version of a row, newest first: found by the key index, read from the log.

    steps      1 …………………………… 40,960 | 40,961 ………… 43,210
               the key's steps, from its runs    the tail: read through
               (dense granules and those from before there was an index: read through)

Hashes name candidates; a version is what a step turns out to have done to a row with this very key. Text keys are compared as
their collation does as far as it is known here (`streams.formats.binlog.keys`): folded where its name says no more.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.errors import ApiError
from api.shapes import time as time_json
from api.timeline import values
from api.timeline.definitions import Definitions
from api.timeline.rows import fragment_changes
from api.timeline.source import Now, Timeline
from api.timeline.steps import StepFacts, look
from api.timeline.targets import stands
from projections.views import timeline as view
from projections.views.base import Connection
from streams.capture_log import StepFragment
from streams.events import Problem
from streams.formats.binlog.keys import declared_key, form_of_values, key_of_texts
from streams.formats.binlog.names import table_name
from streams.formats.binlog.step import Change, TableMaps
from streams.key_runs import PURPOSE, hasher
from streams.selection import KeyMatch, KeyRange, key_columns

BUDGET_S = 2.0
_CHUNK = 4096
_TOGETHER = 1024
_MOST_OF_A_STEP = 1000


class Secrets(Protocol):
    """What is needed of `streams.secrets.SecretStore`."""

    def key_ids(self) -> tuple[str, ...]: ...
    def derived(self, purpose: str, key_id: str = "") -> tuple[str, bytes]: ...


@dataclass(frozen=True, slots=True)
class RowKey:
    """A row that is asked for. `hashes`: its key's, under each site key there is."""

    table: tuple[str, str]
    names: tuple[str, ...]
    texts: tuple[str, ...]
    match: KeyMatch
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Versions:
    columns: list[dict[str, Any]]
    items: list[dict[str, Any]]
    notes: tuple[Problem, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Steps `first..last` to be read; `only` some of them, or None for all."""

    first: int
    last: int
    only: frozenset[int] | None


def row_of(
    definitions: Definitions, source: str, now: Now, table: tuple[str, str], key: str, secrets: Secrets
) -> RowKey:
    """Raises `ApiError`: 404 (`table-unknown`), 422 (`no-key`); `FormatError` (`key-invalid`)."""
    raw = definitions.table(now.lineage or "", table, now.head)
    if raw is None:
        raise ApiError(
            404,
            "table-unknown",
            f"{source} has no table {table[0]}.{table[1]} now",
            f"`holdfast timeline show {source}` shows which tables steps wrote",
        )
    found = declared_key(raw)
    if found is None:
        raise ApiError(
            422,
            "no-key",
            f"{table[0]}.{table[1]} has no primary key and no unique key without nullable columns: its rows cannot be told apart",
            f"`holdfast timeline show {source} --table {table[0]}.{table[1]}` shows the steps that wrote it",
        )
    names = found[1]
    texts = (key,) if len(names) == 1 else tuple(next(csv.reader([key], skipinitialspace=True), []))
    columns, collations = key_columns(raw, names)
    form = key_of_texts(columns, texts)
    match = KeyMatch([KeyRange(texts, texts)], columns, collations)
    keys = (secrets.derived(PURPOSE, key_id)[1] for key_id in secrets.key_ids())
    return RowKey(table, names, texts, match, tuple(hasher(secret, *table, names)(form) for secret in keys))


def versions(
    timeline: Timeline,
    definitions: Definitions,
    conn: Connection,
    now: Now,
    row: RowKey,
    before: int | None,
    limit: int,
) -> Versions:
    """Versions older than step `before` (None: all): `limit` of them and the rest of their step, or what could be read in two
    seconds."""
    top = now.head if before is None else min(before - 1, now.head)
    columns = values.Tables()
    items: list[dict[str, Any]] = []
    deadline = time.monotonic() + BUDGET_S
    following: int | None = None
    if now.lineage is not None:
        for piece in _pieces(timeline, conn, now, row, top, limit):
            reading = _Reading(timeline, definitions, conn, now, row, columns)
            found = reading.read(piece)
            for ordinal in sorted(found, reverse=True):
                if len(items) >= limit:
                    return Versions(_columns(columns, row), items, _notes(timeline, conn, now, row), ordinal + 1)
                items += found[ordinal]
            following = piece.first if piece.first > 1 else None
            if len(items) >= limit or time.monotonic() > deadline:
                break
        else:
            following = None
    return Versions(_columns(columns, row), items, _notes(timeline, conn, now, row), following)


def _columns(columns: values.Tables, row: RowKey) -> list[dict[str, Any]]:
    return [c | {"key": c["name"] in row.names} for c in columns.of(*row.table)]


def _notes(timeline: Timeline, conn: Connection, now: Now, row: RowKey) -> tuple[Problem, ...]:
    """Since when rows are known by this key."""
    others = [
        (names, last)
        for names, _, last in view.key_shapes(conn, timeline.source, now.lineage or "", *row.table)
        if names and names != row.names
    ]
    return tuple(
        Problem(
            "key-changed",
            f"up to step {last} at most, rows of {row.table[0]}.{row.table[1]} were known by ({', '.join(names)}): versions from "
            "before that are not found by this key",
            "look at the steps of that time: `holdfast timeline show --table`",
        )
        for names, last in others
    )


# --- where to look ---------------------------------------------------------------------------------------------------


def _pieces(timeline: Timeline, conn: Connection, now: Now, row: RowKey, top: int, limit: int) -> Iterator[_Piece]:
    """Stretches to be read, newest first. They do not overlap."""
    source, lineage = timeline.source, now.lineage or ""
    for last in range(top, now.closed, -_CHUNK):
        yield _Piece(max(now.closed + 1, last - _CHUNK + 1), last, None)
    at = min(top, now.closed)
    covered = view.covered(conn, source, lineage)
    if covered is not None and at > covered.last:
        for last in range(at, covered.last, -_CHUNK):
            yield _Piece(max(covered.last + 1, last - _CHUNK + 1), last, None)
        at = covered.last
    if covered is not None and at >= covered.first:
        dense = view.dense_ranges(conn, source, lineage, *row.table, at + 1)
        # More than a page of them, since hashes may lie: what is left over is asked for again.
        while at >= covered.first:
            most = 4 * limit
            steps = view.key_steps(conn, source, lineage, row.hashes, at + 1, most)
            floor = steps[-1] if len(steps) >= most else covered.first
            yield from _grouped(steps, [(max(a, floor), min(b, at)) for a, b in dense if b >= floor and a <= at])
            at = floor - 1
    while at >= 1:
        granules = view.granules(conn, source, lineage, before=at + 1, table=row.table, limit=16)
        for granule in granules:
            yield _Piece(granule.first_ordinal, min(granule.last_ordinal, at), None)
            at = granule.first_ordinal - 1
        if len(granules) < 16:
            return


def _grouped(steps: Sequence[int], dense: Sequence[tuple[int, int]]) -> Iterator[_Piece]:
    """Single steps (newest first) and whole stretches as pieces, newest first; neighbours are read together."""
    inside = sorted(((a, b) for a, b in dense if a <= b), reverse=True)
    single = [s for s in steps if not any(a <= s <= b for a, b in inside)]
    pieces = [_Piece(a, b, None) for a, b in inside]
    group: list[int] = []
    for step in [*single, None]:
        if group and (
            step is None or step < group[0] - _TOGETHER or any(step < a and b < group[-1] for a, b in inside)
        ):
            pieces.append(_Piece(group[-1], group[0], frozenset(group)))
            group = []
        if step is not None:
            group.append(step)
    return iter(sorted(pieces, key=lambda p: -p.last))


# --- reading -----------------------------------------------------------------------------------------------------------


class _Reading:
    """Versions in one piece of the log."""

    def __init__(
        self,
        timeline: Timeline,
        definitions: Definitions,
        conn: Connection,
        now: Now,
        row: RowKey,
        columns: values.Tables,
    ) -> None:
        self._timeline, self._definitions, self._conn = timeline, definitions, conn
        self._now, self._row, self._columns = now, row, columns
        self._name = table_name(row.table)

    def read(self, piece: _Piece) -> dict[int, list[dict[str, Any]]]:
        """By step, newest first within it."""
        lineage = self._now.lineage or ""
        granule = view.granule_of(self._conn, self._timeline.source, lineage, piece.first)
        out: dict[int, list[dict[str, Any]]] = {}
        maps: TableMaps = {}
        found: list[Change] = []
        inside = [granule] if granule else []
        for fragment in self._timeline.fragments(lineage, piece.first, piece.last, inside, self._name):
            if piece.only is not None and fragment.ordinal not in piece.only:
                continue
            if fragment.number == 0:
                maps, found = {}, []
            for change in fragment_changes(self._timeline, self._definitions, lineage, fragment, maps):
                if (change.schema, change.table) == self._row.table and self._is_it(change):
                    found.append(change)
                    del found[:-_MOST_OF_A_STEP]
            if fragment.last and found:
                facts = self._facts(fragment)
                out[fragment.ordinal] = [self._item(facts, change) for change in reversed(found)]
        return out

    def _facts(self, fragment: StepFragment) -> StepFacts:
        if fragment.number == 0:
            return next(look([fragment], self._timeline.preambles))
        return self._timeline.one(self._conn, self._now, fragment.ordinal)

    def _key(self, change: Change, image: tuple[Any, ...] | None) -> tuple[list[Any], list[Any]] | None:
        if image is None:
            return None
        by_name = {c.label: c for c in change.columns}
        if not by_name.keys() >= set(self._row.names):
            return None
        columns = [by_name[name] for name in self._row.names]
        return [image[c.index] for c in columns], columns

    def _matches(self, change: Change, image: tuple[Any, ...] | None) -> bool:
        key = self._key(change, image)
        if key is None:
            return False
        form = form_of_values(*key)
        return self._row.match(form) and self._row.match.same(form, key[0])

    def _is_it(self, change: Change) -> bool:
        return self._matches(change, change.before) or self._matches(change, change.after)

    def _item(self, facts: StepFacts, change: Change) -> dict[str, Any]:
        self._columns.add(change)
        shown = values.change_json(change)
        before, after = self._matches(change, change.before), self._matches(change, change.after)
        moved = change.before is not None and change.after is not None and before != after
        return {
            "id": f"{self._timeline.source}/{self._now.lineage}:{facts.ordinal}",
            "ordinal": facts.ordinal,
            "time": time_json(facts.time_us),
            "position": facts.position,
            "kind": facts.kind,
            "stands": stands(self._now.history.path, facts.ordinal),
            "own": facts.own,
            "plan": facts.plan or None,
            "operation": shown["operation"],
            "before": shown["before"],
            "after": shown["after"],
            "changed": shown["changed"],
            "moved_to": self._shown(change, change.after) if moved and before else None,
            "moved_from": self._shown(change, change.before) if moved and after else None,
        }

    def _shown(self, change: Change, image: tuple[Any, ...] | None) -> list[Any] | None:
        key = self._key(change, image)
        return None if key is None else [values.value(v, c) for v, c in zip(*key, strict=True)]
