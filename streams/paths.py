"""Paths through a timeline: which steps' effects stand, and what leads from one state to another.

A lineage is a list of steps that only grows. Rolling back does not remove steps: it appends one, the rollback's own, whose
effect is that others no longer stand. A *path* is the ascending list of ordinals whose effects stand, as ranges:

    steps      1 2 3 4 5 6 7      path at 7: 1-7
    rollback   2 steps back is step 8, "after it, 1-5 stand"
    steps      9 10               path at 10: 1-5, 9-10;   6-7 is a branch left behind, still reachable
    forward    to the state at 7: undo 10, 9, redo 6, 7

A *selective undo* takes single changes back and leaves the steps around them: it moves nothing on the path. Its step stands
there like a user's, is counted like one, and is taken back by undoing it in turn; it is no `Turn`.

So the state after any step is known from the rollbacks alone. Pure; used by the API to resolve a target, by the agent to
check a plan. Own steps (schema `holdfast`) are in paths like any other but are not counted as user steps.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from streams.errors import StreamError
from streams.events import OrdinalRange

Path = tuple[OrdinalRange, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A rollback (or forward) that happened: step `ordinal` left `path_after` standing. Ascending by ordinal in lists."""

    ordinal: int
    plan: str
    path_after: Path


class Planned(Protocol):
    """What is needed of a plan here: `streams.events.RollbackPlanned`, or a read model's row with the same."""

    @property
    def plan(self) -> str: ...
    @property
    def head_ordinal(self) -> int: ...
    @property
    def path_after(self) -> Path: ...
    @property
    def options(self) -> str: ...


def turn(planned: Planned, ordinal: int) -> Turn:
    """The turn that step `ordinal` is, being the step of this plan.

    What came between the plan's head and its step is own steps (the making of schema `holdfast`), and stands for nothing;
    but where the plan did not stop the whole source, later steps that it did not touch may be among it, and stand.
    """
    if json.loads(planned.options or "{}").get("whole_source", True):
        return Turn(ordinal, planned.plan, normalise(planned.path_after))
    later = OrdinalRange(planned.head_ordinal + 1, ordinal - 1)
    return Turn(ordinal, planned.plan, normalise([*planned.path_after, later]))


def normalise(ranges: Iterable[OrdinalRange]) -> Path:
    """Ascending, empty ones dropped, neighbours merged. Ranges must not overlap."""
    out: list[OrdinalRange] = []
    for r in sorted((r for r in ranges if r.first <= r.last), key=lambda r: r.first):
        if out and r.first <= out[-1].last:
            raise StreamError("path-invalid", f"ordinal {r.first} stands twice in a path")
        if out and r.first == out[-1].last + 1:
            out[-1] = OrdinalRange(out[-1].first, r.last)
        else:
            out.append(r)
    return tuple(out)


def path_at(ordinal: int, turns: Sequence[Turn]) -> Path:
    """The path whose state is the source's state right after step `ordinal` (0: the baseline)."""
    at = bisect_right([t.ordinal for t in turns], ordinal)
    if at == 0:
        return normalise([OrdinalRange(1, ordinal)])
    turn = turns[at - 1]
    return normalise([*turn.path_after, OrdinalRange(turn.ordinal + 1, ordinal)])


def way(before: Path, after: Path) -> tuple[Path, Path]:
    """`(undo, redo)` that lead from the state of `before` to that of `after`.

    Both share a prefix; what `before` has beyond it is undone newest first, what `after` has is redone oldest first.
    """
    common = _common_prefix(before, after)
    return _beyond(before, common), _beyond(after, common)


def _common_prefix(a: Path, b: Path) -> int:
    """The last ordinal of the longest common prefix of two paths, 0 when they share none."""
    last = 0
    for x, y in zip(a, b, strict=False):
        if x.first != y.first:
            return last
        last = min(x.last, y.last)
        if x.last != y.last:
            return last
    return last


def _beyond(path: Path, last: int) -> Path:
    return normalise(OrdinalRange(max(r.first, last + 1), r.last) for r in path)


def length(path: Path) -> int:
    """How many steps stand in it."""
    return sum(r.last - r.first + 1 for r in path)


def drop_newest(path: Path, steps: int, uncounted: Iterable[int] = ()) -> Path:
    """`path` less its newest `steps` counted steps. Ordinals in `uncounted` (own steps) go with what they stand behind:

    a step further back is dropped together with everything newer. Raises `StreamError` (`too-few-steps`).
    """
    skip = sorted(set(uncounted))
    left = steps
    out = list(path)
    while left > 0:
        if not out:
            raise StreamError("too-few-steps", f"there are only {steps - left} steps to go back", "see `timeline show`")
        r = out.pop()
        counted = _counted(skip, r.first, r.last)
        if counted < left:
            left -= counted
            continue
        # The largest ordinal that has `left` counted steps behind it in this range.
        low, high = r.first - 1, r.last
        while low < high:
            middle = (low + high + 1) // 2
            if _counted(skip, middle + 1, r.last) >= left:
                low = middle
            else:
                high = middle - 1
        out.append(OrdinalRange(r.first, low))
        break
    return normalise(out)


def _counted(skip: Sequence[int], first: int, last: int) -> int:
    """How many of the ordinals `first..last` are not in `skip`, which ascends."""
    return last - first + 1 - (bisect_right(skip, last) - bisect_right(skip, first - 1))
