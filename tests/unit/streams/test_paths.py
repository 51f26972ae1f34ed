"""Paths against a model in which a state is the plain list of steps whose effects stand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import StreamError
from streams.events import OrdinalRange, RollbackPlanned
from streams.golden import sample
from streams.paths import Path, Turn, drop_newest, length, normalise, path_at, turn, way

Steps = list[int]


def expand(path: Path) -> Steps:
    return [o for r in path for o in range(r.first, r.last + 1)]


def ranges(*pairs: tuple[int, int]) -> Path:
    return tuple(OrdinalRange(first, last) for first, last in pairs)


class Walk:
    """A source that is written to and rolled back. `states[o]`: what stands after step `o`; own steps are not counted."""

    def __init__(self) -> None:
        self.states: list[Steps] = [[]]
        self.turns: list[Turn] = []
        self.own: set[int] = set()

    @property
    def head(self) -> int:
        return len(self.states) - 1

    def write(self, own: bool) -> None:
        self.states.append([*self.states[-1], self.head + 1])
        if own:
            self.own.add(self.head)

    def turn_to(self, path: Path, standing: Steps) -> None:
        self.states.append(standing)
        self.turns.append(Turn(self.head, f"plan-{self.head}", path))
        self.own.add(self.head)

    def back(self, steps: int) -> None:
        """Roll back as the API resolves it; does nothing when there are not that many steps."""
        standing, left = list(self.states[-1]), steps
        while left and standing:
            left -= standing.pop() not in self.own
        before = path_at(self.head, self.turns)
        if left:
            with pytest.raises(StreamError) as caught:
                drop_newest(before, steps, self.own)
            assert caught.value.code == "too-few-steps"
            return
        self.turn_to(drop_newest(before, steps, self.own), standing)

    def to(self, ordinal: int) -> None:
        """Back or forward to the state after any step there ever was."""
        self.turn_to(path_at(ordinal, self.turns), list(self.states[ordinal]))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 6)),
        st.tuples(st.just("own"), st.just(1)),
        st.tuples(st.just("back"), st.integers(1, 8)),
        st.tuples(st.just("to"), st.integers(0, 1000)),
    ),
    min_size=1,
    max_size=25,
)


def walked(actions: list[tuple[str, int]]) -> Walk:
    walk = Walk()
    for what, n in actions:
        if what == "back":
            walk.back(n)
        elif what == "to":
            walk.to(n % (walk.head + 1))
        else:
            for _ in range(n):
                walk.write(what == "own")
    return walk


@settings(max_examples=400, deadline=None)
@given(ACTIONS)
def test_after_any_walk_the_path_at_every_step_is_what_stood_then(actions: list[tuple[str, int]]) -> None:
    walk = walked(actions)
    for ordinal, standing in enumerate(walk.states):
        path = path_at(ordinal, walk.turns)
        assert expand(path) == standing
        assert length(path) == len(standing)
        assert path == normalise(path)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.data())
def test_the_way_between_any_two_states_undoes_and_redoes_just_what_differs(
    actions: list[tuple[str, int]], data: st.DataObject
) -> None:
    walk = walked(actions)
    here = data.draw(st.integers(0, walk.head))
    there = data.draw(st.integers(0, walk.head))

    undo, redo = way(path_at(here, walk.turns), path_at(there, walk.turns))

    standing = list(walk.states[here])
    for ordinal in reversed(expand(undo)):
        assert standing.pop() == ordinal  # newest first, each is what stands on top
    standing += expand(redo)
    assert standing == walk.states[there]
    assert not set(expand(undo)) & set(expand(redo))


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.integers(0, 30))
def test_dropping_the_newest_steps_pops_until_so_many_were_counted(actions: list[tuple[str, int]], steps: int) -> None:
    walk = walked(actions)
    standing, left = list(walk.states[-1]), steps
    while left and standing:
        left -= standing.pop() not in walk.own
    path = path_at(walk.head, walk.turns)

    if left:
        with pytest.raises(StreamError):
            drop_newest(path, steps, walk.own)
    else:
        assert expand(drop_newest(path, steps, walk.own)) == standing


def test_the_drawing_in_the_module_is_true() -> None:
    turns = [Turn(8, "p", ranges((1, 5)))]

    assert path_at(7, turns) == ranges((1, 7))
    assert path_at(8, turns) == ranges((1, 5))
    assert path_at(10, turns) == ranges((1, 5), (9, 10))
    assert way(path_at(10, turns), path_at(7, turns)) == (ranges((9, 10)), ranges((6, 7)))


def test_the_baseline_is_an_empty_path_and_everything_leads_back_to_it() -> None:
    assert path_at(0, []) == ()
    assert way(ranges((1, 3)), ()) == (ranges((1, 3)), ())
    assert way((), ranges((1, 3))) == ((), ranges((1, 3)))
    assert drop_newest(ranges((1, 3)), 3) == ()
    assert drop_newest((), 0) == ()


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), max_size=12))
def test_normalising_keeps_the_ordinals_and_refuses_one_that_stands_twice(pairs: list[tuple[int, int]]) -> None:
    given_ = [OrdinalRange(first, first + more - 1) for first, more in pairs]
    ordinals = [o for r in given_ for o in range(r.first, r.last + 1)]
    if len(set(ordinals)) < len(ordinals):
        with pytest.raises(StreamError) as caught:
            normalise(given_)
        assert caught.value.code == "path-invalid"
        return

    path = normalise(given_)

    assert expand(path) == sorted(ordinals)
    assert all(b.first > a.last + 1 for a, b in pairwise(path))


def test_many_steps_and_many_own_steps_are_dropped_in_no_time() -> None:
    path = drop_newest(ranges((1, 400_000)), 150_000, range(2, 400_001, 2))
    assert path == ranges((1, 100_000))


def planned(whole_source: bool, head: int, after: Path) -> RollbackPlanned:
    event = sample(RollbackPlanned)
    assert isinstance(event, RollbackPlanned)
    options = json.dumps({"whole_source": whole_source})
    return replace(event, plan="p", head_ordinal=head, path_after=after, options=options)


def test_what_came_between_a_plan_and_its_step_stands_only_where_the_source_was_not_stopped() -> None:
    assert turn(planned(True, 10, ranges((1, 7))), 13) == Turn(13, "p", ranges((1, 7)))
    assert turn(planned(False, 10, ranges((1, 7))), 13) == Turn(13, "p", ranges((1, 7), (11, 12)))
    assert turn(planned(False, 10, ranges((1, 7))), 11) == Turn(11, "p", ranges((1, 7)))
