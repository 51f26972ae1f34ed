"""Delta runs: what was written is read, in the same segments however it came, and damage is told."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.repository import delta, tree
from agents.repository.content import NAME_SIZE
from agents.repository.errors import RepositoryError
from agents.repository.extents import BLOCKS, CHUNK, FREE, ZERO, Run, RunBuilder, omitted, run_of
from tests.stand_ins.chunk_store import ChunkStore


def name(i: int) -> bytes:
    return i.to_bytes(NAME_SIZE, "little")


def large() -> Run:
    """More names and more extents than a segment holds, in stretches and scattered."""
    builder = RunBuilder()
    builder.add(0, 100_000, CHUNK, b"".join(name(i) for i in range(100_000)))
    builder.add(100_000, 1 << 40, omitted(FREE))
    start = 1 << 41
    for i in range(70_000):
        builder.add(start + 3 * i, 1, CHUNK if i % 7 else ZERO, name(i % 50) if i % 7 else b"")
    return builder.take()


def parts(run: Run, at_most: int) -> list[Run]:
    """The same in extents of at most so many blocks, one a run; only stretches of chunks are cut."""
    out = []
    for first, count, tag, at in run.extents():
        step = at_most if tag == CHUNK else count
        for i in range(0, count, step):
            took = min(step, count - i)
            builder = RunBuilder()
            start = at + i * NAME_SIZE
            builder.add(first + i, took, tag, run.names[start : start + took * NAME_SIZE] if tag == CHUNK else b"")
            out.append(builder.take())
    return out


def joined(runs: list[Run]) -> Run:
    builder = RunBuilder()
    for run in runs:
        for first, count, tag, at in run.extents():
            builder.add(first, count, tag, run.names[at : at + count * NAME_SIZE] if tag == CHUNK else b"")
    return builder.take()


def test_a_run_of_any_length_is_read_as_it_was_written_and_its_segments_follow_from_it_alone() -> None:
    store = ChunkStore()
    run = large()
    segments = delta.write(store, [run])
    assert len(segments) > 2
    assert delta.write(store, parts(run, 999)) == segments
    read = list(delta.read(store, segments))
    assert joined(read) == run
    assert all(len(r.names) // NAME_SIZE <= delta.NAMES and len(r.firsts) <= delta.EXTENTS for r in read)
    # Marking sees the names, all of them, and nothing else.
    found = sorted(n[i : i + NAME_SIZE] for n in delta.walk(store, segments) for i in range(0, len(n), NAME_SIZE))
    assert found == sorted(run.names[i : i + NAME_SIZE] for i in range(0, len(run.names), NAME_SIZE))


def test_a_tree_is_updated_by_a_run_as_it_is_read() -> None:
    store = ChunkStore()
    run = large()
    segments = delta.write(store, [run])
    assert tree.build(store, delta.read(store, segments)) == tree.build(store, [run])


def test_segments_in_another_order_are_refused() -> None:
    store = ChunkStore()
    segments = delta.write(store, [large()])
    with pytest.raises(RepositoryError, match="before the one before it ends"):
        list(delta.read(store, segments[::-1]))


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 9), st.sampled_from([CHUNK, ZERO, omitted(FREE)])), max_size=9
    ),
    st.data(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_segment_is_damaged_to_it_is_read_or_refused(
    spec: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    builder = RunBuilder()
    at = 0
    for gap, count, tag in spec:
        builder.add(at + gap, count, tag, name(1) * count if tag == CHUNK else b"")
        at += gap + count
    run = builder.take()
    good = delta.encode(run)
    assert delta.decode(good) == run
    assert delta.references(good) == run.names
    place = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1 :]
    for bad in (flipped, good[:place], good + b"\0" * (1 + place)):
        with contextlib.suppress(RepositoryError):  # and nothing else
            found = delta.decode(bad)
            assert delta.encode(found) == bad
            assert found.end <= BLOCKS


@given(st.binary(max_size=120))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_garbage_is_no_segment(garbage: bytes) -> None:
    with contextlib.suppress(RepositoryError):  # and nothing else
        delta.decode(garbage)


def test_a_run_that_does_not_ascend_is_refused() -> None:
    one = run_of([(3, CHUNK, name(1))])
    with pytest.raises(ValueError, match="does not come after"):
        delta.write(ChunkStore(), [one, one])
