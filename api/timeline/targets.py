"""From what a user asks for ("two steps back", "forward again") to the path that shall stand afterwards. Pure.

    steps      1 2 3 4 5 6 7        path at 7: 1-7
    step 8     rollback by 2        path at 8: 1-5          forward → 1-7
    steps      9 10                 path at 10: 1-5, 9-10   forward → refused: 9 and 10 would be left behind;
                                                            with `switch_branch` → 1-7 (undo 10 9, redo 6 7)

*Back* drops the newest user steps of the current path. *Forward* goes to the state before the newest rollback whose
steps do not stand now. A target may be any state that the lineage was ever in. Own steps (schema `holdfast`) are never
counted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.errors import ApiError
from streams.errors import StreamError
from streams.events import OrdinalRange
from streams.paths import Path, Turn, drop_newest, length, normalise, path_at, way

Kind = Literal["rollback", "forward"]


@dataclass(frozen=True, slots=True)
class History:
    """What is known of one lineage: its newest step, its turns and own steps, both ascending by ordinal."""

    source: str
    lineage: str
    head: int
    turns: tuple[Turn, ...] = ()
    own: tuple[int, ...] = ()

    @property
    def path(self) -> Path:
        """What stands now."""
        return path_at(self.head, self.turns)


@dataclass(frozen=True, slots=True)
class Way:
    """How a target is reached: what stands before and after, what is undone (newest first), redone (oldest first)."""

    before: Path
    after: Path
    undo: Path
    redo: Path
    undone_steps: int
    redone_steps: int

    @property
    def target(self) -> int:
        """The step whose state this is; 0 is the baseline."""
        return self.after[-1].last if self.after else 0


def counted(path: Path, own: Sequence[int]) -> int:
    """User steps in `path`."""
    return length(path) - sum(bisect_right(own, r.last) - bisect_left(own, r.first) for r in path)


def stands(path: Path, ordinal: int) -> bool:
    """Whether the effects of step `ordinal` stand in `path`."""
    at = bisect_right([r.first for r in path], ordinal)
    return at > 0 and ordinal <= path[at - 1].last


def leads(history: History, after: Path) -> Way:
    """The way from now to `after`."""
    before = history.path
    undo, redo = way(before, after)
    return Way(before, after, undo, redo, counted(undo, history.own), counted(redo, history.own))


def back(history: History, steps: int) -> Path:
    """The path less its newest `steps` user steps. Raises `ApiError` (`too-few-steps`)."""
    try:
        return drop_newest(history.path, steps, history.own)
    except StreamError as error:
        left = counted(history.path, history.own)
        hint = f"`--steps {left}` goes back to the baseline" if left else "no user step stands: this is the baseline"
        raise ApiError(422, "too-few-steps", f"only {left} steps stand since the baseline", hint) from error


def state_after(history: History, ordinal: int) -> Path:
    """What stood right after step `ordinal` (0: the baseline). Raises `ApiError` (`step-unknown`)."""
    if not 0 <= ordinal <= history.head:
        raise ApiError(
            422,
            "step-unknown",
            f"there is no step {ordinal}: the newest is {history.head}",
            f"see `holdfast timeline show {history.source}`",
        )
    return path_at(ordinal, history.turns)


def before_plan(history: History, plan: str) -> Path:
    """What stood before the rollback that `plan` was. Raises `ApiError` (`plan-not-applied`)."""
    for turn in history.turns:
        if turn.plan == plan:
            return path_at(turn.ordinal - 1, history.turns)
    raise ApiError(
        422,
        "plan-not-applied",
        f"plan {plan} has not been applied in this lineage: there is nothing to take back",
        f"see `holdfast rollback list {history.source}`",
    )


def forward(history: History, steps: int | None = None) -> Path:
    """What the newest rollback that has not been taken back undid; with `steps`, only that many user steps of it, or on
    through earlier rollbacks. Raises `ApiError` (`nothing-to-redo`, `too-few-steps`)."""
    goal = _ahead(history, history.path)
    if goal is None:
        raise ApiError(
            422,
            "nothing-to-redo",
            "nothing has been rolled back that does not stand again",
            f"see `holdfast timeline show {history.source}`",
        )
    if steps is None:
        return goal
    return _part_way(history, goal, steps)


def _ahead(history: History, path: Path) -> Path | None:
    """The path before the newest turn that has user steps which `path` lacks."""
    for turn in reversed(history.turns):
        earlier = path_at(turn.ordinal - 1, history.turns)
        _, redo = way(path, earlier)
        if counted(redo, history.own):
            return earlier
    return None


def _part_way(history: History, goal: Path, steps: int) -> Path:
    """`steps` user steps from here towards `goal`, and beyond it where that is not far enough and no branch is left."""
    path, left = history.path, steps
    while True:
        undo, redo = way(path, goal)
        some = _first(redo, left, history.own)
        taken = counted(some, history.own)
        base = _without(path, undo)
        path = normalise([*base, *some])
        left -= taken
        if left == 0:
            return path
        further = _ahead(history, path)
        if further is None or counted(way(path, further)[0], history.own):
            raise ApiError(
                422,
                "too-few-steps",
                f"only {steps - left} steps were rolled back that can be redone from here",
                "leave `--steps` out to redo all of them",
            )
        goal = further


def _without(path: Path, undo: Path) -> Path:
    if not undo:
        return path
    first = undo[0].first
    return normalise(OrdinalRange(r.first, min(r.last, first - 1)) for r in path)


def _first(path: Path, steps: int, own: Sequence[int]) -> Path:
    """The oldest part of `path` that holds `steps` user steps, or all of it."""
    out: list[OrdinalRange] = []
    left = steps
    for r in path:
        inside = own[bisect_left(own, r.first) : bisect_right(own, r.last)]
        here = r.last - r.first + 1 - len(inside)
        if here < left:
            out.append(r)
            left -= here
            continue
        last = r.first + left - 1
        for o in inside:  # each own step before the end moves the end on by one
            if o <= last:
                last += 1
        out.append(OrdinalRange(r.first, last))
        break
    return normalise(out)


def judge(history: History, after: Path, kind: Kind, switch_branch: bool) -> Way:
    """The way to `after`, when it is one that a user who asked for `kind` meant.

    Raises `ApiError`: `nothing-to-do`, `target-is-ahead`, `target-is-behind`, `branch-would-be-left`.
    """
    found = leads(history, after)
    if not found.undone_steps and not found.redone_steps:
        raise ApiError(
            422,
            "nothing-to-do",
            "the source is in that state already",
            f"see `holdfast timeline show {history.source}`",
        )
    if kind == "rollback" and not found.undone_steps:
        raise ApiError(
            422,
            "target-is-ahead",
            f"nothing has to be undone: that state lies {found.redone_steps} steps ahead",
            f"`holdfast rollback forward {history.source} --to-step {found.target}` goes there",
        )
    if kind == "forward" and not found.redone_steps:
        raise ApiError(
            422,
            "target-is-behind",
            f"nothing can be redone: that state lies {found.undone_steps} steps back",
            f"`holdfast rollback plan {history.source} --to-step {found.target}` goes there",
        )
    if found.undone_steps and found.redone_steps and not switch_branch:
        raise ApiError(
            409,
            "branch-would-be-left",
            f"{found.undone_steps} newer steps (from {found.undo[0].first} to {found.undo[-1].last}) are not part of"
            f" that state: going there undoes them and redoes {found.redone_steps} others",
            "say `--switch-branch` when that is meant; the steps left behind stay reachable as a branch of their own",
            members={"undo": ranges(found.undo), "redo": ranges(found.redo)},
        )
    return found


def unmoved(history: History, undo: Path) -> Way:
    """A selective undo of these steps: the path stays as it is. Raises `ApiError` (`nothing-to-do`)."""
    if not undo:
        raise ApiError(
            422,
            "nothing-to-do",
            "none of these steps stands: they are rollbacks themselves, or were rolled back",
            f"see `holdfast timeline show {history.source}`",
        )
    return Way(history.path, history.path, undo, (), counted(undo, history.own), 0)


def ranges(path: Path) -> list[list[int]]:
    """A path in JSON: `[[first, last], …]`, ascending."""
    return [[r.first, r.last] for r in path]
