"""Sets of names: what was added is in them, nothing else is, in memory and beyond it; lists of collections read anything."""

from __future__ import annotations

import contextlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.repository.collection_files import CollectionError, Plan, decode, encode
from agents.repository.marking import Names

NAME = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize("limit", [1 << 20, 4096])
def test_a_hundred_thousand_names_come_back_and_others_do_not(limit: int) -> None:
    rng = random.Random(5)
    mine, others = rng.randbytes(32 * 50_000), rng.randbytes(32 * 50_000)
    names = Names(limit_bytes=limit)
    for at in range(0, len(mine), 32 * 1000):
        names.add(mine[at : at + 32 * 1000])
        names.add(mine[at : at + 32 * 10])  # again: once
    assert names.settle() == len(names) == 50_000
    assert names.among(mine) == bytes([1]) * 50_000
    assert names.among(others) == bytes(50_000)
    small = Names()
    small.add(mine[: 32 * 7])
    small.add(others[: 32 * 5])
    small.settle()
    assert (small.shared(names), names.shared(small)) == (7, 7)
    names.close()
    names.close()
    small.close()


@given(st.lists(NAME, max_size=30), st.lists(NAME, max_size=30))
def test_it_is_a_set(added: list[bytes], asked: list[bytes]) -> None:
    names = Names(limit_bytes=64)
    for name in added:
        names.add(name)
    assert names.settle() == len({n[:8] for n in added})
    assert [n in names for n in asked + added] == [n[:8] in {a[:8] for a in added} for n in asked + added]
    names.close()


@pytest.mark.parametrize("edge", [bytes(32), b"\xff" * 32, b"\x00" * 7 + b"\x01" * 25, b"\xff\x00" * 16])
def test_the_ends_of_the_range_are_in_it(edge: bytes) -> None:
    names = Names()
    names.add(edge)
    names.settle()
    assert edge in names
    assert bytes(b ^ 1 for b in edge) not in names


PLANS = st.builds(
    Plan,
    st.text(),
    st.text(),
    st.integers(0, 1 << 62),
    st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.text(), st.integers(0, 1 << 50))).map(tuple),
    st.lists(st.text()).map(tuple),
    st.lists(st.text()).map(tuple),
    st.lists(st.tuples(st.text(), st.lists(st.text()).map(tuple))).map(tuple),
)


@given(PLANS)
def test_a_list_is_read_as_it_was_written(plan: Plan) -> None:
    assert decode(encode(plan)) == plan


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLANS, st.sampled_from(["format", "packs", "points", "voids", "fenced", "marked", "collection"]), JSON)
def test_a_list_with_anything_in_a_place_of_it_is_read_or_refused(plan: Plan, field: str, value: object) -> None:
    raw = json.loads(encode(plan))
    raw[field] = value
    for data in (json.dumps(raw).encode(), encode(plan)[:-1], json.dumps(value).encode()):
        with contextlib.suppress(CollectionError):
            decode(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_or_refused(data: bytes) -> None:
    with pytest.raises(CollectionError):
        decode(data)
