"""Fragments of a large step hold whole events, however the parts were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.capture_log import StepFragment, _whole_events
from streams.formats.errors import FormatError
from tests.stand_ins import binlog_source as bl
from tests.stand_ins.binlog_source import Writer


def fragments(payload: bytes, cuts: list[int]) -> list[StepFragment]:
    bounds = [0, *sorted(cuts), len(payload)]
    pieces = [payload[a:b] for a, b in itertools.pairwise(bounds)]
    return [StepFragment(5, n, n == len(pieces) - 1, b"", p, False, 0, "", 100 + n) for n, p in enumerate(pieces)]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12), st.data())
def test_events_are_put_together_again(sizes: list[int], data: st.DataObject) -> None:
    w = Writer()
    events = [w.event(bl.WRITE, bytes(size)) for size in sizes]
    payload = b"".join(events)
    cuts = data.draw(st.lists(st.integers(0, len(payload)), max_size=20))
    ends = set(itertools.accumulate(map(len, events)))
    out = list(_whole_events(fragments(payload, cuts)))
    assert b"".join(f.payload or b"" for f in out) == payload
    assert set(itertools.accumulate(len(f.payload or b"") for f in out)) <= ends | {0}
    assert [f.number for f in out] == list(range(len(out)))
    assert [f.last for f in out] == [False] * (len(out) - 1) + [True]


def test_sealed_fragments_are_left_as_they_are() -> None:
    sealed = [StepFragment(5, n, n == 2, b"", None, True, 0, "", n) for n in range(3)]
    assert list(_whole_events(sealed)) == sealed


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(FormatError):
        list(_whole_events(fragments(bytes(100), [50])))
