"""Ids sort by age, names are slugs, the hybrid clock never runs backwards."""

from __future__ import annotations

import threading
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import StreamError
from streams.ids import HybridClock, slug, uuid7
from streams.publish import rfc3339


@given(st.integers(0, 2**48 - 1))
def test_a_uuid7_says_its_version_its_variant_and_its_millisecond(ms: int) -> None:
    made = uuid.UUID(uuid7(ms))

    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == ms


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, unique=True))
def test_uuid7s_of_different_milliseconds_sort_by_time_as_text(moments: list[int]) -> None:
    made = {m: uuid7(m) for m in moments}
    assert sorted(moments) == sorted(moments, key=lambda m: made[m])


def test_uuid7s_of_one_millisecond_differ() -> None:
    assert len({uuid7(1) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("name", ["a", "shop", "shop-2", "a" * 48])
def test_a_slug_names_something(name: str) -> None:
    assert slug(name) == name


@pytest.mark.parametrize("name", ["", "A", "2shop", "shop_2", "shop.2", "a" * 49, "shop\n", "../etc", "größe"])
def test_what_is_no_slug_is_refused(name: str) -> None:
    with pytest.raises(StreamError) as caught:
        slug(name)
    assert caught.value.code == "name-invalid"


@given(st.lists(st.one_of(st.integers(0, 2**40), st.tuples(st.integers(0, 2**56))), max_size=50))
def test_every_stamp_is_later_than_all_before_and_all_observed_whatever_the_wall_clock_does(
    script: list[int | tuple[int]],
) -> None:
    wall = [0]
    clock = HybridClock(lambda: wall[0])
    latest = 0
    for step in script:
        if isinstance(step, tuple):
            clock.observe(step[0])
            latest = max(latest, step[0])
        else:
            wall[0] = step  # forwards or backwards
            stamp = clock.tick()
            assert stamp > latest
            assert stamp >> 16 >= step
            latest = stamp


def test_an_effect_on_another_machine_is_later_than_its_cause_though_that_clock_is_behind() -> None:
    ahead, behind = HybridClock(lambda: 5_000), HybridClock(lambda: 1_000)
    cause = ahead.tick()
    behind.observe(cause)
    assert behind.tick() > cause


def test_threads_never_get_the_same_stamp() -> None:
    clock = HybridClock(lambda: 7)
    got: list[list[int]] = [[] for _ in range(4)]

    def run(into: list[int]) -> None:
        into.extend(clock.tick() for _ in range(2000))

    threads = [threading.Thread(target=run, args=(g,)) for g in got]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({s for g in got for s in g}) == 8000
    assert all(g == sorted(g) for g in got)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
        (999_999, "1970-01-01T00:00:00.999999Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_microseconds(us: int, text: str) -> None:
    assert rfc3339(us) == text
