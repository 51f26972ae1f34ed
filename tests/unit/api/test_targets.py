"""From what a user asks to what shall stand: pure resolution, held to a model that keeps whole states."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.errors import ApiError
from api.timeline.targets import History, back, before_plan, counted, forward, judge, leads, ranges, stands, state_after
from streams.events import OrdinalRange
from streams.paths import Path, Turn, path_at


def path(*pairs: tuple[int, int]) -> Path:
    return tuple(OrdinalRange(a, b) for a, b in pairs)


def history(head: int, *turns: tuple[int, Path], own: tuple[int, ...] = ()) -> History:
    made = tuple(Turn(ordinal, f"plan-{ordinal}", after) for ordinal, after in turns)
    return History("shop", "lineage", head, made, own)


def refusal(call: object, *args: object) -> str:
    with pytest.raises(ApiError) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.code


def test_back_counts_user_steps_of_the_current_path_only() -> None:
    h = history(10, (8, path((1, 5))), own=(8, 9))
    assert back(h, 1) == path((1, 5), (9, 9))
    assert back(h, 2) == path((1, 4))
    assert back(h, 6) == ()
    assert refusal(back, h, 7) == "too-few-steps"


def test_forward_redoes_what_the_last_rollback_undid() -> None:
    h = history(8, (8, path((1, 5))))
    assert forward(h) == path((1, 7))
    assert judge(h, forward(h), "forward", False).redone_steps == 2


def test_forward_by_steps_goes_on_through_earlier_rollbacks() -> None:
    h = history(9, (8, path((1, 5))), (9, path((1, 3))))
    assert [forward(h, n) for n in (1, 2, 3, 4)] == [path((1, 4)), path((1, 5)), path((1, 6)), path((1, 7))]
    assert refusal(forward, h, 5) == "too-few-steps"


def test_forward_by_steps_passes_over_own_steps() -> None:
    h = history(8, (8, path((1, 3))), own=(5, 8))
    assert forward(h, 1) == path((1, 4))
    assert forward(h, 2) == path((1, 6))


def test_forward_twice_takes_back_one_rollback_each() -> None:
    h = history(9, (8, path((1, 5))), (9, path((1, 3))))
    assert forward(h) == path((1, 5))
    h = history(10, (8, path((1, 5))), (9, path((1, 3))), (10, path((1, 5))))
    assert forward(h) == path((1, 7))
    h = history(11, (8, path((1, 5))), (9, path((1, 3))), (10, path((1, 5))), (11, path((1, 7))))
    assert refusal(forward, h) == "nothing-to-redo"


def test_newer_steps_are_not_left_behind_unless_that_is_said() -> None:
    h = history(10, (8, path((1, 5))))
    with pytest.raises(ApiError) as caught:
        judge(h, forward(h), "forward", False)
    assert caught.value.code == "branch-would-be-left"
    assert caught.value.members == {"undo": [[9, 10]], "redo": [[6, 7]]}
    way = judge(h, forward(h), "forward", True)
    assert (ranges(way.undo), ranges(way.redo), way.target) == ([[9, 10]], [[6, 7]], 7)


def test_a_rollback_of_the_steps_on_a_branch_can_be_taken_back() -> None:
    # 9 was written after the rollback at 8, and then rolled back itself at 10.
    h = history(10, (8, path((1, 5))), (10, path((1, 5))))
    assert forward(h) == path((1, 5), (9, 9))
    assert before_plan(h, "plan-8") == path((1, 7))
    assert judge(h, before_plan(h, "plan-8"), "forward", False).redone_steps == 2
    assert refusal(before_plan, h, "plan-77") == "plan-not-applied"


def test_a_target_the_other_way_is_pointed_out() -> None:
    h = history(8, (8, path((1, 5))))
    assert refusal(judge, h, state_after(h, 7), "rollback", False) == "target-is-ahead"
    assert refusal(judge, h, state_after(h, 3), "forward", False) == "target-is-behind"
    assert refusal(judge, h, state_after(h, 5), "rollback", False) == "nothing-to-do"
    assert refusal(state_after, h, 9) == "step-unknown"
    assert judge(h, state_after(h, 0), "rollback", False).target == 0


def test_own_steps_alone_are_nothing_to_do() -> None:
    h = history(7, own=(6, 7))
    assert refusal(judge, h, state_after(h, 5), "rollback", False) == "nothing-to-do"


Walk = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("own"), st.just(1)),
        st.tuples(st.just("back"), st.integers(1, 5)),
        st.tuples(st.just("forward"), st.integers(1, 5)),
        st.tuples(st.just("goto"), st.integers(0, 60)),
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None)
@given(Walk)
def test_any_walk_leads_where_a_model_of_whole_states_says(walk: list[tuple[str, int]]) -> None:
    """The model keeps, for every ordinal, the list of user steps that stood after it."""
    states: list[list[int]] = [[]]
    head = 0
    turns: list[Turn] = []
    own: list[int] = []
    for what, n in walk:
        h = History("shop", "lineage", head, tuple(turns), tuple(own))
        now = states[-1]
        expected: list[int] | None = None
        if what == "write":
            for _ in range(n):
                head += 1
                states.append([*states[-1], head])
            continue
        if what == "own":
            head += 1
            own.append(head)
            states.append(now)
            continue
        try:
            match what:
                case "back":
                    after = back(h, n)
                    expected = now[: len(now) - n]
                case "forward":
                    after = forward(h, n)
                case _:
                    after = state_after(h, n % (head + 1))
                    expected = states[n % (head + 1)]
        except ApiError as error:
            possible = {"back": len(now) >= n, "forward": False, "goto": True}[what]
            if possible or error.code not in ("too-few-steps", "nothing-to-redo"):
                raise
            continue
        way = leads(h, after)
        left = [o for r in way.before for o in range(r.first, r.last + 1) if not stands(way.undo, o)]
        assert [*left, *(o for r in way.redo for o in range(r.first, r.last + 1))] == [
            o for r in after for o in range(r.first, r.last + 1)
        ], "what is not undone, and what is redone, is what stands"
        stand = [o for r in after for o in range(r.first, r.last + 1) if o not in own]
        if expected is not None:
            assert stand == expected
        else:
            assert way.redone_steps == n
            assert any(stand == state for state in states), "forward leads to a state that was"
        assert counted(after, own) == len(stand)
        at_target = [o for r in path_at(way.target, h.turns) for o in range(r.first, r.last + 1) if o not in own]
        assert at_target == stand, "the target's ordinal names that state"
        head += 1
        turns.append(Turn(head, f"plan-{head}", after))
        own.append(head)
        states.append(stand)
