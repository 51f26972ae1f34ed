"""From what a user asks for to a step in log order: of a scratch copy, or of a table that is brought back.

Log order includes rollbacks: what a copy at step N holds is what the source held right after step N was committed,
whatever branch N is on now. So every state that there ever was can be had, undone ones too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.calls import Call
from api.errors import ApiError
from api.routes.sources import known
from api.shapes import microseconds, time
from api.timeline import resolve
from projections.views.base import Connection
from projections.views.catalogue import Source

_NAMES = ("to_step", "to_time", "to_position")


@dataclass(frozen=True, slots=True)
class Moment:
    """A step in log order (0: the baseline) and how the user said it."""

    source: Source
    lineage: str
    head: int
    ordinal: int
    text: str
    time_us: int


def moment(call: Call, conn: Connection, source: str, body: Mapping[str, Any]) -> Moment:
    """Raises `ApiError` 422 for a target that is none, 409 where there is no log yet."""
    found = known(call, conn, source)
    timeline = call.site.timelines.of(found.source)
    now = timeline.now(conn)
    if now.lineage is None:
        raise ApiError(409, "nothing-captured", f"{source} has no log yet", f"`holdfast source show {source}`")
    given = [name for name in _NAMES if body.get(name) is not None]
    if len(given) != 1:
        raise ApiError(422, "target-missing", "say one moment", "to_step, to_time or to_position")
    match given[0]:
        case "to_step":
            ordinal, text = body["to_step"], f"step {body['to_step']}" if body["to_step"] else "the baseline"
        case "to_time":
            at_us = microseconds(body["to_time"])
            ordinal, text = resolve.at_time(timeline, conn, now, at_us) if now.head else 0, time(at_us) or ""
        case _:
            ordinal, text = resolve.at_position(timeline, conn, now, body["to_position"]), body["to_position"]
    if ordinal > now.head:
        raise ApiError(
            422,
            "step-unknown",
            f"{source} has no step {ordinal} (yet): its log ends at {now.head}",
            f"`holdfast timeline show {source}` shows those there are",
        )
    step = timeline.one(conn, now, ordinal) if ordinal else None
    return Moment(found, now.lineage, now.head, ordinal, text, step.time_us if step else 0)
