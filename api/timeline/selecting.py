"""From what a user wants taken back ("this transaction", "those orders, since noon") to a selection of steps and rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api import shapes
from api.errors import ApiError
from api.timeline import resolve
from api.timeline.source import Now, Timeline
from projections.views.base import Connection
from streams.errors import StreamError
from streams.events import OrdinalRange
from streams.paths import Path
from streams.selection import KeyRange, Selection, parse_selection

_TARGETS = ("steps", "to_time", "to_position", "to_step", "plan")


@dataclass(frozen=True, slots=True)
class Goal:
    """What shall stand, and how the user said it."""

    after: Path
    text: str


def selected(timeline: Timeline, conn: Connection, now: Now, body: Mapping[str, Any]) -> tuple[Goal, Selection]:
    """What `select` and `later` say. Raises `ApiError` 422."""
    select: Mapping[str, Any] = body.get("select") or {}
    targets = [name for name in _TARGETS if body.get(name) is not None]
    if targets:
        raise ApiError(422, "targets-clash", f"an undo has no {targets[0]}", "say what to take back in `select`")
    first, last, where = _range(timeline, conn, now, select)
    table = select.get("table")
    keys = [KeyRange(tuple(k["first"]), tuple(k["last"])) for k in select.get("keys") or ()]
    if keys and table is None:
        raise ApiError(422, "table-missing", "keys are those of a table", "say which: `table`")
    if not where and not keys:
        raise ApiError(
            422, "selection-missing", "this does not say what to take back", "`step`, or a range of steps and a table"
        )
    schema, _, name = (table or "").partition(".")
    try:
        found = parse_selection(
            Selection(
                (OrdinalRange(first, last),), (schema, name) if table else None, tuple(keys), body["later"]
            ).options()
        )
    except StreamError as error:
        raise ApiError(422, error.code, error.message, error.hint) from error
    return Goal(now.history.path, _text(table, keys, where)), found


def _range(timeline: Timeline, conn: Connection, now: Now, select: Mapping[str, Any]) -> tuple[int, int, str]:
    """First and last step, and how that reads; empty when nothing was said."""
    one = [name for name in ("step", "position") if name in select]
    some = [name for name in ("first", "last", "since", "until") if name in select]
    for pair in ({"first", "since"}, {"last", "until"}):
        if pair <= select.keys():
            raise ApiError(422, "targets-clash", f"{' and '.join(sorted(pair))} say the same", "give one")
    if len(one) > 1 or (one and some):
        raise ApiError(422, "targets-clash", f"{' and '.join([*one, *some])} are different ranges", "give one")
    if "position" in select:
        ordinal = resolve.at_position(timeline, conn, now, select["position"])
        return ordinal, ordinal, f"step {ordinal} ({select['position']})"
    if "step" in select:
        ordinal = select["step"]
        timeline.one(conn, now, ordinal)
        return ordinal, ordinal, f"step {ordinal}"
    first = select.get("first", 1)
    if "since" in select:
        first = resolve.at_time(timeline, conn, now, shapes.microseconds(select["since"]) - 1) + 1
    last = min(select.get("last", now.head), now.head)
    if "until" in select:
        last = resolve.at_time(timeline, conn, now, shapes.microseconds(select["until"]))
    if first > last:
        raise ApiError(422, "range-empty", f"there is no step from {first} to {last}", "the newest is " + str(now.head))
    return first, last, f"steps {first} to {last}" if some else ""


def _text(table: str | None, keys: list[KeyRange], where: str) -> str:
    parts = []
    if table is not None:
        parts.append(table)
    if keys:
        shown = [",".join(k.first) + ("" if k.first == k.last else ".." + ",".join(k.last)) for k in keys[:5]]
        parts.append(f"keys {' '.join(shown)}{' …' if len(keys) > 5 else ''}")
    if where:
        parts.append(where if table is None else f"in {where}")
    return "undo of " + " ".join(parts)
