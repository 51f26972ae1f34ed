"""Which row changes a selective undo takes back, for showing them: the agent's choice (`agents.rollback.choose`), made again from
the plan's selection, its steps and its dependants.

Steps must be given in ascending order, those of the plan and its dependants. What rows hang together by foreign keys is not
worked out again: with `leave`, rows may be shown that are left. `exact` says when everything needed is in the plan.
"""

from __future__ import annotations

from typing import Any

from api import shapes
from api.timeline.definitions import Definitions
from projections.views.timeline import Plan
from streams.events import OrdinalRange
from streams.formats.binlog.keys import declared_key, form_of_values
from streams.formats.binlog.step import UNDO, Change
from streams.formats.errors import FormatError
from streams.paths import Path, normalise
from streams.selection import KeyMatch, Selection, holds, key_columns, parse_selection


def picker_of(plan: Plan, definitions: Definitions) -> Picker | None:
    """For a plan of kind `undo`; None for any other."""
    if plan.kind != UNDO:
        return None
    return Picker(plan, parse_selection(shapes.json_object(plan.options)["select"]), definitions)


class Picker:
    """Asked change by change, ascending."""

    def __init__(self, plan: Plan, selection: Selection, definitions: Definitions) -> None:
        self.selection = selection
        self._dependants = frozenset(d.ordinal for d in plan.dependants)
        self.exact = plan.dependant_steps <= len(plan.dependants)
        self._selected = holds(selection.steps)
        self._undone = holds(plan.undo)
        self.steps: Path = _union(plan.undo, self._dependants)
        """Steps to be read: the plan's, and those that depend on it."""
        self._keys: dict[tuple[str, str], tuple[int, ...] | None] = {}
        self._definitions, self._lineage, self._head = definitions, plan.lineage or "", plan.head_ordinal
        self._match = self._matcher()
        self._known: set[Any] = set()
        self.left: set[Any] = set()
        """Rows that `leave` leaves, or that make a plan be refused."""

    def _matcher(self) -> KeyMatch | None:
        table = self.selection.table
        if table is None or not self.selection.keys:
            return None
        raw = self._definitions.table(self._lineage, table, self._head)
        key = declared_key(raw) if raw is not None else None
        if raw is None or key is None:
            return None
        try:
            return KeyMatch(self.selection.keys, *key_columns(raw, key[1]))
        except FormatError:
            return None  # the plan says so

    def takes(self, ordinal: int, change: Change) -> bool:
        """Whether the plan takes this change back."""
        rows = [r for r in (self.row(change, change.before), self.row(change, change.after)) if r is not None]
        later = self.selection.later
        taken = self._selected(ordinal) and self._picks(change)
        if not taken and later == "cascade":
            taken = ordinal in self._dependants or (not self._selected(ordinal) and self._undone(ordinal))
        if not taken and any(r in self._known for r in rows):
            if later == "force":
                taken = True
            else:
                self.left.update(r for r in rows if r in self._known)
        if taken:
            self._known.update(rows)
            if any(r in self.left for r in rows):
                self.left.update(rows)
        return taken and not any(r in self.left for r in rows)

    def row(self, change: Change, image: tuple[Any, ...] | None) -> Any:
        """What a row is told by: its key, or itself."""
        if image is None:
            return None
        places = self._places(change)
        values = [image[i] for i in places] if places else image
        return (change.schema, change.table, *map(repr, values))

    def _places(self, change: Change) -> tuple[int, ...]:
        name = (change.schema, change.table)
        if name not in self._keys:
            raw = self._definitions.table(self._lineage, name, self._head)
            key = declared_key(raw) if raw is not None else None
            names = [c.label for c in change.columns]
            known = key is not None and set(key[1]) <= set(names)
            self._keys[name] = tuple(names.index(c) for c in key[1]) if key is not None and known else None
        return self._keys[name] or change.primary_key or ()

    def _picks(self, change: Change) -> bool:
        selection = self.selection
        if selection.table is None:
            return True
        if selection.table != (change.schema, change.table):
            return False
        if not selection.keys:
            return True
        if self._match is None:
            return False
        places = self._places(change)
        for image in (change.before, change.after):
            if image is not None:
                values = [image[i] for i in places]
                form = form_of_values(values, [change.columns[i] for i in places])
                if self._match(form) and self._match.same(form, values):
                    return True
        return False


def _union(ranges: Path, ordinals: frozenset[int]) -> Path:
    inside = holds(ranges)
    return normalise([*ranges, *(OrdinalRange(o, o) for o in ordinals if not inside(o))])
