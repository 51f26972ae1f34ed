"""Choosing the rows of a selective undo: what was selected, what depends on it, what that means for the plan.

    step   5  orders 1: a → b   selected: taken; key 1 is *tainted* from here on
           6  orders 2: …       none of ours
           9  orders 1: b → c   writes a tainted key: step 9 is a *dependant*

The steps of the path are gone through once, ascending, from the first selected one to the head; dependence only leads
forward, so one pass closes it. What a dependant does to the plan is `streams.selection`'s `later`. A later change depends on
a taken one when it

- writes a key that the taken one wrote, before or after (without a key: the same row image);
- makes a child point at a parent that undoing takes away, or takes away a parent that undoing makes a child point at again;
- takes a unique value that undoing gives back to another row.

With a key index (`Index`) only those steps are read that may hold such changes, and what it does not cover; without one, all.
The index says where to look and nothing else: what is taken is read from the log, and is the same with and without it. Values
that foreign keys and further unique keys hold are not in the index: for those the granules of their tables are read.
What all this misses (collations that hold different bytes equal, writes without the log) the target finds: it compares
every row, looks for children and parents in SQL, and stops at a unique key. Pure.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from agents.rollback.fold import Folder
from agents.rollback.redefined import Redefinitions, speaks_of
from agents.rollback.schema import Definition, TableName
from agents.rollback.steps import Fragment, ReadSteps
from agents.rollback.watched import Groups, Link, Node, Relation, Watched, held, new_links
from streams.events import Dependant, OrdinalRange, Problem
from streams.formats.binlog.net import NetTable
from streams.formats.binlog.rows import decode_row
from streams.formats.binlog.table_map import Declared
from streams.formats.errors import FormatError
from streams.paths import Path, normalise
from streams.selection import KeyMatch, Selection, holds, within

MOST_DEPENDANTS: Final = 1_000
MOST_LOOKUPS: Final = 2_000
"""Keys of one table that are looked up; with more, the table's granules are read instead."""
NEIGHBOURS: Final = 256
"""Steps between two candidates that are read with them rather than asked for separately."""
MOST_RANGES: Final = 20_000

_STEP_CODES: Final = frozenset({"ddl", "truncate", "drop", "statement-event"})
_OUTCOME_CODES: Final = frozenset({"xa", "not-transactional"})


class Index(Protocol):
    """Where in the log keys and tables were written (`agents.rollback.keystore`). Steps `first..last` are covered; everything
    it answers is within them, and may be more than there is, never less."""

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...

    def steps_of(self, name: TableName, columns: tuple[str, ...], form: bytes, after: int) -> Iterable[int]:
        """Steps beyond `after` that may have written the key with this canonical form (no columns: this image)."""
        ...

    def granules_of(self, name: TableName, after: int) -> Iterable[tuple[int, int]]:
        """Granules with steps beyond `after` in which the table was written."""
        ...

    def dense(self, name: TableName, columns: tuple[str, ...], after: int) -> Iterable[tuple[int, int]]:
        """Those of them whose keys of this table are not indexed by these columns."""
        ...

    def marks(self, after: int) -> Iterable[tuple[int, str, str]]:
        """`(ordinal, kind, text)` of landmarks beyond `after`."""
        ...


class _Mode(Enum):
    ROWS = auto()
    """Selected rows, and what `later` says of dependants."""
    LOOK = auto()
    """Only whether the step depends (cascade decides by steps)."""
    WHOLE = auto()
    """Everything."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What came of it. `steps`: those of which rows are taken back; `problems` stand in the way."""

    steps: Path
    dependants: tuple[Dependant, ...]
    dependant_steps: int
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


class Chooser:
    """Implements `agents.rollback.fold.Chooser`. `run` goes through the steps once; it may be called once."""

    def __init__(
        self,
        selection: Selection,
        path: Path,
        definition: Callable[[TableName], Definition | None],
        index: Index | None = None,
        redefinitions: Redefinitions | None = None,
    ) -> None:
        self.took = False
        self._selection, self._definition, self._index = selection, definition, index
        self._redefinitions = redefinitions or Redefinitions()
        self.unrecorded = False
        """Set when a definition change that may concern the rows was judged by its words: what it did was not recorded yet."""
        self._selected = within(selection.steps, path)
        self._is_selected = holds(self._selected)
        first = self._selected[0].first if self._selected else 1
        self._scope = within(path, (OrdinalRange(first, path[-1].last),)) if self._selected else ()
        self._in_scope = holds(self._scope)
        self._match, self._invalid = _matcher(selection, definition)
        self._agenda: list[tuple[int, int]] = []
        self._mode = _Mode.ROWS
        self._selecting = False
        self._ordinal = 0
        self._done = 0
        self._touched = False  # by the present step: a tainted row
        self._taken = False  # by the plan, of the present step
        self._doubts: set[str] = set()
        self._watched: dict[TableName, Watched] = {}
        self._linked: set[TableName] = set()
        self._nodes: set[Node] = set()
        self._groups = Groups()
        self._made: dict[tuple[Relation, bytes], Node] = {}
        self._needed: dict[tuple[Relation, bytes], Node] = {}
        self._freed: dict[tuple[Relation, bytes], Node] = {}
        self._dependants: OrderedDict[int, set[str]] = OrderedDict()
        self._dependant_steps = 0
        self._last_dependant = 0
        self._steps: list[list[int]] = []
        self._unforced: dict[str, int] = {}
        self._concerned: dict[int, str] = {}
        self._seen: list[OrdinalRange] = []

    # -- going through the steps ----------------------------------------------------------------------------------

    def run(self, folder: Folder, read: ReadSteps, progress: Callable[[int], None]) -> None:
        """Read what has to be read, fold what is taken."""
        if self._invalid or not self._scope:
            return
        self._seed()
        agenda = self._agenda
        while agenda:
            first, last = heapq.heappop(agenda)
            while agenda and agenda[0][0] <= last + NEIGHBOURS:
                last = max(last, heapq.heappop(agenda)[1])
            first = max(first, self._done + 1)
            for r in within(self._scope, (OrdinalRange(first, last),)) if first <= last else ():
                self._read(folder, read, r, progress)
                self._seen.append(r)
            self._done = max(self._done, last)

    def _read(
        self,
        folder: Folder,
        read: ReadSteps,
        r: OrdinalRange,
        progress: Callable[[int], None],
    ) -> None:
        for fragment in read(r.first, r.last):
            if fragment.number == 0:
                self._begin(fragment.ordinal)
            _feed(folder, fragment)
            if not fragment.last:
                continue
            if self._mode is _Mode.LOOK:
                self._decide(folder, fragment, read)
            self._end()
            if folder.steps % 10_000 == 0:
                progress(fragment.ordinal)

    def _begin(self, ordinal: int) -> None:
        self._ordinal, self._selecting = ordinal, self._is_selected(ordinal)
        self._touched = self._taken = False
        self._doubts.clear()
        if self._selecting and self._selection.table is None:
            self._mode = _Mode.WHOLE
        elif self._selection.later == "cascade":
            self._mode = _Mode.LOOK
        else:
            self._mode = _Mode.ROWS

    def _decide(self, folder: Folder, fragment: Fragment, read: ReadSteps) -> None:
        """A step that depends goes whole; of a selected one otherwise what was selected."""
        if self._touched:
            self._mode = _Mode.WHOLE
        elif self._taken:
            self._mode = _Mode.ROWS
        else:
            return
        self._taken = False
        pieces = [fragment] if fragment.number == 0 else read(fragment.ordinal, fragment.ordinal)
        for piece in pieces:
            _feed(folder, piece)

    def _end(self) -> None:
        ordinal = self._ordinal
        if self._taken:
            if self._steps and self._steps[-1][1] == ordinal - 1:
                self._steps[-1][1] = ordinal
            else:
                self._steps.append([ordinal, ordinal])
        if self._doubts and (self._taken or self._touched):
            self._concerned.setdefault(ordinal, sorted(self._doubts)[0])

    # -- where to look --------------------------------------------------------------------------------------------

    def _seed(self) -> None:
        index, scope = self._index, self._scope
        if index is None or index.first > index.last:
            self._add(scope[0].first, scope[-1].last)
            return
        if scope[0].first < index.first:
            self._add(scope[0].first, index.first - 1)
        if scope[-1].last > index.last:
            self._add(index.last + 1, scope[-1].last)
        name = self._selection.table
        definition = self._definition(name) if name else None
        if name is None or definition is None:
            for r in self._selected:
                self._add(r.first, r.last)
            return
        before = self._selected[0].first - 1
        columns = definition.key[1] if definition.key else ()
        forms = self._match.counted() if self._match is not None else None
        if forms is None or len(forms) > MOST_LOOKUPS:
            found = list(index.granules_of(name, before))
        else:
            found = [(step, step) for form in forms for step in index.steps_of(name, columns, form, before)]
            found += index.dense(name, columns, before)
        ranges = [OrdinalRange(first, last) for first, last in _merged(found)]
        for r in within(normalise(ranges), self._selected):
            self._add(r.first, r.last)

    def _add(self, first: int, last: int) -> None:
        heapq.heappush(self._agenda, (first, last))

    def _look_for(self, watched: Watched, node: Node, form: bytes) -> None:
        """Whoever writes this row later is to be read."""
        index = self._index
        if index is None or self._ordinal >= index.last:
            return
        if watched.looked_up == 0:
            for first, last in index.dense(watched.name, watched.columns, self._ordinal):
                self._add(first, last)
        if watched.looked_up < MOST_LOOKUPS:
            for step in index.steps_of(watched.name, watched.columns, form, self._ordinal):
                self._add(step, step)
        elif watched.looked_up == MOST_LOOKUPS:
            self._look_through(watched.name)
        watched.looked_up += 1

    def _look_through(self, name: TableName) -> None:
        if self._index is not None and self._ordinal < self._index.last:
            for first, last in self._index.granules_of(name, self._ordinal):
                self._add(first, last)

    # -- what the folder asks -------------------------------------------------------------------------------------

    def wants(self, name: TableName) -> bool:
        if self._mode is _Mode.WHOLE or name in self._watched or name in self._linked:
            return True
        return self._selecting and self._selection.table in (None, name)

    def sink(self, net: NetTable, definition: Definition) -> Watched:
        return Watched(self.row, net, definition, self._definition)

    def counts(self, code: str, name: TableName | None, text: str) -> bool:
        if name is not None:
            return self.wants(name)
        if self._mode is _Mode.WHOLE or code in ("incident", "unsupported-event", "rollback-step"):
            return True
        if code in _OUTCOME_CODES:
            self._doubts.add(code)
            return False
        return code in _STEP_CODES and self._concerns(self._ordinal, code, text)

    def _concerns(self, ordinal: int, code: str, text: str) -> bool:
        """Whether a statement at this step may be about a table of ours: by what it redefined, where that is recorded, else by
        its words."""
        tables = [w.name for w in self._watched.values() if w.first and w.first < ordinal]
        if self._selection.table is not None and self._is_selected(ordinal):
            tables.append(self._selection.table)
        change = self._redefinitions.at(ordinal) if code != "statement-event" else None
        if change is not None and change.tables is not None:
            return any(table in change.tables or table in change.renamed for table in tables)
        concerns = speaks_of(code, text, tables)
        self.unrecorded = self.unrecorded or (concerns and change is None and code != "statement-event")
        return concerns

    # -- rows -----------------------------------------------------------------------------------------------------

    def row(self, w: Watched, before: bytes | None, after: bytes | None) -> None:
        """One row of the log."""
        was = (w.name, w.net.identity(before)) if before is not None else None
        becomes = (w.name, w.net.identity(after)) if after is not None else None
        take = self._mode is _Mode.WHOLE or (self._selecting and self._picks(w, before, after))
        hits: list[Node] = []
        if self._mode is _Mode.ROWS and self._selection.later == "cascade":
            # Looked at before as a whole: nothing depends, and rows may be known now that came later.
            if not take:
                return
        elif not take or not self._selecting:
            same = [node for node in (was, becomes) if node is not None and node in self._nodes]
            other = self._links(w, before, after, becomes)
            hits = [*same, *other]
            if hits:
                self._depends(w)
            if not take and not hits:
                return
            if not take:
                match self._selection.later:
                    case "force" if same:
                        take = True
                    case "force":
                        self._unforced.setdefault(f"{w.name[0]}.{w.name[1]}", self._ordinal)
                        return
                    case "cascade":
                        return
                    case _:
                        for node in hits:
                            self._groups.leave(node)
                        return
        self._taint(w, before, after, was, becomes)
        self._taken = True
        if self._mode is _Mode.LOOK:
            return
        if self._selection.later in ("refuse", "leave"):
            if was is not None and becomes is not None and was != becomes:
                self._groups.join(was, becomes)
            if any(self._groups.is_left(n) for n in (was, becomes) if n is not None):
                return
        self.took = True
        w.net.add(before, after)

    def _picks(self, w: Watched, before: bytes | None, after: bytes | None) -> bool:
        if self._selection.table is None:
            return True
        if w.name != self._selection.table:
            return False
        return self._match is None or any(self._picks_key(w, i) for i in (before, after) if i is not None)

    def _picks_key(self, w: Watched, image: bytes) -> bool:
        assert self._match is not None
        form = w.form(image)
        if not self._match(form):
            return False
        if not self._match.exact:
            return True
        values = decode_row(image, w.layout.table_map)
        return self._match.same(form, [values[i] for i in w.key_places])

    def _depends(self, w: Watched) -> None:
        self._touched = True
        ordinal = self._ordinal
        if ordinal != self._last_dependant:
            self._dependant_steps += 1
            self._last_dependant = ordinal
            if len(self._dependants) < MOST_DEPENDANTS:
                self._dependants[ordinal] = set()
        if ordinal in self._dependants:
            self._dependants[ordinal].add(f"{w.name[0]}.{w.name[1]}")

    def _links(self, w: Watched, before: bytes | None, after: bytes | None, becomes: Node | None) -> list[Node]:
        """Taken rows that this change depends on by a foreign or unique key."""
        out: list[Node] = []
        if after is not None:
            if self._made:
                out += held(self._made, w.children, before, after)
            if self._freed:
                out += [node for node in held(self._freed, w.uniques, before, after) if node != becomes]
        if before is not None and self._needed:
            out += held(self._needed, w.parents, after, before)
        return out

    def _taint(
        self, w: Watched, before: bytes | None, after: bytes | None, was: Node | None, becomes: Node | None
    ) -> None:
        if not w.first:
            w.first = self._ordinal
            self._watched[w.name] = w
        for node, image in ((was, before), (becomes, after)):
            if node is not None and image is not None and node not in self._nodes:
                self._nodes.add(node)
                if self._index is not None:
                    self._look_for(w, node, w.form(image))
        if becomes is not None and after is not None:
            for link in new_links(w.parents, before, after):
                if link.other not in self._linked:
                    self._linked.add(link.other)
                    self._look_through(link.other)
                self._made.setdefault((link.relation, link.read(after)), becomes)
            for link in new_links(w.children, before, after):
                self._hang_together(self._made.get((link.relation, link.read(after))), becomes)
        if was is not None and before is not None:
            for link in new_links(w.children, after, before):
                self._needs(link, link.read(before), was)
            for link in new_links(w.uniques, after, before):
                self._freed.setdefault((link.relation, link.read(before)), was)
                if link.columns != w.columns and not w.looked_through:
                    w.looked_through = True
                    self._look_through(w.name)
            for link in new_links(w.parents, after, before):
                self._hang_together(self._needed.get((link.relation, link.read(before))), was)

    def _needs(self, link: Link, value: bytes, node: Node) -> None:
        """Undoing makes a child point at this parent again: who takes the parent away later is to be read."""
        if (link.relation, value) in self._needed:
            return
        self._needed[link.relation, value] = node
        self._linked.add(link.other)
        parent = self._definition(link.other)
        if self._index is None or parent is None or self._ordinal >= self._index.last:
            return
        if parent.key is not None and parent.key[1] == link.columns:
            for step in self._index.steps_of(parent.name, link.columns, value, self._ordinal):
                self._add(step, step)
            for first, last in self._index.dense(parent.name, link.columns, self._ordinal):
                self._add(first, last)
        else:
            self._look_through(link.other)

    def _hang_together(self, one: Node | None, other: Node) -> None:
        if one is not None and self._selection.later in ("refuse", "leave"):
            self._groups.join(one, other)

    # -- what came of it ------------------------------------------------------------------------------------------

    def finish(self, folder: Folder) -> Chosen:
        """Leave out what is to be left, and say what stands in the way."""
        left = self._leave(folder)
        later = self._selection.later
        problems = [self._invalid] if self._invalid else []
        problems += self._in_the_way(folder)
        if later == "refuse" and self._dependant_steps:
            problems.append(Problem(
                "later-writes",
                f"{_steps(self._dependant_steps, self._dependants)} wrote the same rows again, or what depends on them",
                "cascade undoes these steps, too; force goes over them; leave keeps rows that were written later",
            ))  # fmt: skip
        problems += [Problem(
            "dependant-row", f"step {ordinal} wrote a row of {text} that depends on what would be undone",
            "force goes over later writes to the same rows only: use cascade, or leave",
        ) for text, ordinal in self._unforced.items()]  # fmt: skip
        warnings = self._warnings(left)
        steps = self._steps
        if len(steps) > MOST_RANGES:  # an event has its measure: what lies between is named with them
            steps = [[steps[0][0], steps[-1][1]]]
        taken = later in ("cascade", "force")
        return Chosen(
            normalise(OrdinalRange(first, last) for first, last in steps),
            tuple(Dependant(o, tuple(sorted(t)), taken) for o, t in self._dependants.items()),
            self._dependant_steps,
            tuple(problems),
            tuple(warnings),
        )

    def _leave(self, folder: Folder) -> int:
        if self._selection.later not in ("refuse", "leave"):
            return 0
        by_table: dict[TableName, list[bytes]] = {}
        for node in self._nodes:
            if self._groups.is_left(node):
                by_table.setdefault(node[0], []).append(node[1])
        for name, identities in by_table.items():
            folder.tables[name].forget(identities)
        return sum(map(len, by_table.values()))

    def _in_the_way(self, folder: Folder) -> Iterator[Problem]:
        for ordinal, code in self._concerned.items():
            what = "belongs to an XA transaction" if code == "xa" else "was rolled back in part"
            yield Problem(code, f"step {ordinal} wrote the same rows and {what}", "undo something later than it")
        if self._index is None or not self._scope:
            return
        seen = holds(normalise(self._seen))
        for ordinal, kind, text in self._index.marks(self._scope[0].first):
            if not self._in_scope(ordinal) or seen(ordinal):
                continue  # what was read has spoken for itself
            code = "statement-event" if kind == "statement" else kind
            if kind == "incident" or (kind in ("ddl", "statement") and self._concerns(ordinal, code, text)):
                what = {"ddl": "is a definition change", "statement": "was logged as a statement"}.get(kind, "is a gap")
                yield Problem(
                    code,
                    f"step {ordinal} {what}: {text}" if text else f"step {ordinal} {what} in the source's own log",
                    "rows that were changed before it cannot be undone by themselves",
                )

    def _warnings(self, left: int) -> Iterator[Problem]:
        later, steps = self._selection.later, _steps(self._dependant_steps, self._dependants)
        if not self._dependant_steps:
            return
        if later == "cascade":
            yield Problem("cascaded", f"{steps} depend on what was selected and are undone, too")
        elif later == "force":
            yield Problem("later-overwritten", f"{steps} wrote the same rows later; what they wrote to these is lost")
        elif later == "leave":
            yield Problem("rows-left", f"{left} rows are left as they are: {steps} wrote them, or what depends on them")


def _feed(folder: Folder, fragment: Fragment) -> None:
    folder.step(fragment.ordinal, fragment.preamble, fragment.payload, first=fragment.number == 0)


def _matcher(
    selection: Selection, definition: Callable[[TableName], Definition | None]
) -> tuple[KeyMatch | None, Problem | None]:
    """What tells selected keys, and why there can be none."""
    if selection.table is None:
        return None, None
    text = ".".join(selection.table)
    found = definition(selection.table)
    if found is None:
        return None, Problem("schema-unknown", f"there is no table {text}", "see `holdfast timeline show` for its name")
    if not selection.keys:
        return None, None
    if found.key is None:
        return None, Problem("no-key", f"{text} has no key to choose rows by", "choose by steps")
    by_name = {c.name: c for c in found.columns}
    columns = [by_name[name] for name in found.key[1]]
    try:
        declared = [Declared(c.name, c.type, c.charset) for c in columns]
        return KeyMatch(selection.keys, declared, [c.collation for c in columns]), None
    except FormatError as error:
        return None, Problem(error.code, error.message, error.hint)


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


def _steps(count: int, some: Iterable[int]) -> str:
    shown = [str(ordinal) for _, ordinal in zip(range(10), some, strict=False)]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{'step' if count == 1 else 'steps'} {', '.join(shown)}{more}"
