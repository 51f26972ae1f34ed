"""Disks' trees: one form for one content, updates equal to building anew, differences equal to comparing block by
block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agents.repository import nodes, tree
from agents.repository.content import DATA, NAME_SIZE, NODE
from agents.repository.errors import RepositoryError
from agents.repository.extents import BLOCKS, CHUNK, FREE, LOST, ZERO, Run, RunBuilder, omitted, overlaid, run_of
from tests.stand_ins.chunk_store import ChunkStore

Disk = dict[int, tuple[int, bytes]]  # what is not zero

TAGS = [CHUNK, CHUNK, CHUNK, ZERO, LOST, omitted(FREE), omitted(FREE), omitted(7)]


def name(i: int) -> bytes:
    return bytes([i]) * NAME_SIZE


@st.composite
def runs(draw: st.DrawFn, most: int = 12) -> Run:
    """Extents near the places where nodes and levels begin, some vast. Chunks' extents stay small enough to be
    listed."""
    builder = RunBuilder()
    at = 0
    for _ in range(draw(st.integers(0, most))):
        at += draw(st.sampled_from([0, 0, 0, 1, 3, 60, 64, 4090, 64**2, 64**3, 5 * 64**3, 64**4]))
        tag = draw(st.sampled_from(TAGS))
        count = draw(st.sampled_from([1, 1, 2, 5, 63, 64, 65, 128, 4096, 4100]))
        if tag != CHUNK:
            count = draw(st.sampled_from([count, 64**3, 64**3 + 1, 3 * 64**3, 64**4]))
        fill = draw(st.integers(1, 4))
        builder.add(at, count, tag, name(fill) * count if tag == CHUNK else b"")
        at += count
    return builder.take()


def naive(run: Run) -> bytes:
    """The root by the definition alone, from the top down: a node, its 64 parts, what all of a part is."""

    def made(level: int, base: int, part: Run) -> tuple[int, bytes]:
        width = 64**level
        tags, names = bytearray(64), bytearray(64 * NAME_SIZE)
        for slot in range(64):
            inside = [e for e in part.extents() if e.first < base + (slot + 1) * width and e.end > base + slot * width]
            covered = [e for e in inside if e.first <= base + slot * width and e.end >= base + (slot + 1) * width]
            if covered and (covered[0].tag != CHUNK or not level):
                extent = covered[0]
                at = extent.at + (base + slot * width - extent.first) * NAME_SIZE
                tag, found = extent.tag, part.names[at : at + NAME_SIZE] if extent.tag == CHUNK else b""
            elif inside:
                tag, found = made(level - 1, base + slot * width, part)
            else:
                continue
            tags[slot] = tag
            if tag == CHUNK:
                names[slot * NAME_SIZE : (slot + 1) * NAME_SIZE] = found
        if tags[0] != CHUNK and tags.count(tags[0]) == 64:
            return tags[0], b""
        return CHUNK, store.put(NODE, nodes.encode(level, tags, names))

    store = ChunkStore()
    end = max((e.end for e in run.extents() if e.tag != ZERO), default=0)
    if not end:
        return tree.EMPTY
    level = max(0, ((end - 1).bit_length() - 1) // 6)
    tag, root = made(level, 0, run)
    return root if tag == CHUNK else store.put(NODE, nodes.encode(level, bytes([tag]) * 64, bytes(2048)))


def contents(store: ChunkStore, root: bytes) -> Run:
    builder = RunBuilder()
    for run in tree.iterate(store, root):
        for extent in run.extents():
            part = run.names[extent.at : extent.at + extent.blocks * NAME_SIZE] if extent.tag == CHUNK else b""
            builder.add(extent.first, extent.blocks, extent.tag, part)
    return builder.take()


def without_zeros(run: Run) -> Run:
    builder = RunBuilder()
    for e in run.extents():
        if e.tag != ZERO:
            builder.add(
                e.first, e.blocks, e.tag, run.names[e.at : e.at + e.blocks * NAME_SIZE] if e.tag == CHUNK else b""
            )
    return builder.take()


def pieces(run: Run, size: int) -> Iterator[Run]:
    """The same, handed over a few extents at a time."""
    builder = RunBuilder()
    for e in run.extents():
        builder.add(e.first, e.blocks, e.tag, run.names[e.at : e.at + e.blocks * NAME_SIZE] if e.tag == CHUNK else b"")
        if len(builder) >= size:
            yield builder.take()
    yield builder.take()


@given(runs(8))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_a_tree_has_the_root_that_its_definition_gives_and_says_what_it_was_built_of(run: Run) -> None:
    store = ChunkStore()
    root = tree.build(store, [run])
    assert root == naive(run)
    assert contents(store, root) == without_zeros(run)


@given(runs(), st.lists(runs(), max_size=4), st.integers(1, 5))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=80)
def test_updating_is_building_anew(base: Run, changes: list[Run], size: int) -> None:
    store = ChunkStore()
    root = tree.build(store, pieces(base, size))
    held = base
    for change in changes:
        root = tree.update(store, store, root, pieces(change, size))
        held = overlaid(held, change)
        assert contents(store, root) == without_zeros(held)
        assert root == tree.build(ChunkStore(), [held])


@given(runs(), runs())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
def test_a_difference_is_what_makes_one_tree_the_other_and_nothing_more(a: Run, b: Run) -> None:
    store = ChunkStore()
    old, new = tree.build(store, [a]), tree.build(store, [b])
    found = list(tree.diff(store, old, new))
    assert tree.update(store, store, old, found) == new
    # Block by block, at each place where anything begins or ends: it is in the difference if it differs.
    before, after = contents(store, old), contents(store, new)
    places = {
        p for run in (before, after, *found) for e in run.extents() for p in (e.first - 1, e.first, e.end - 1, e.end)
    }
    for place in sorted(p for p in places if p >= 0):
        one, other = _at([before], place), _at([after], place)
        assert _at(found, place) == (other or (ZERO, b"") if one != other else None), place


def _at(found: list[Run], block: int) -> tuple[int, bytes] | None:
    for run in found:
        for e in run.extents():
            if e.first <= block < e.end:
                at = e.at + (block - e.first) * NAME_SIZE
                return e.tag, run.names[at : at + NAME_SIZE] if e.tag == CHUNK else b""
    return None


@given(
    st.lists(st.sampled_from([ZERO, ZERO, CHUNK, LOST, omitted(FREE)]), min_size=64, max_size=64), st.integers(0, 63)
)
@example([CHUNK] * 64, 5)
@example([CHUNK] * 63 + [ZERO], 63)
@example([omitted(FREE)] + [CHUNK] * 63, 0)
@settings(deadline=None)
def test_one_chunk_more_in_a_node_is_as_if_it_were_made_anew(tags: list[int], slot: int) -> None:
    names = bytearray(b"".join(name(i + 1) if tag == CHUNK else bytes(NAME_SIZE) for i, tag in enumerate(tags)))
    before = nodes.encode(3, bytes(tags), names) if any(tags) else None
    names[slot * NAME_SIZE : (slot + 1) * NAME_SIZE] = name(200)
    tags[slot] = CHUNK
    assert nodes.with_chunk(before, 3, slot, name(200)) == nodes.encode(3, bytes(tags), names)


@given(runs(), runs(), st.lists(st.integers(0, 64**5), max_size=8))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_leaves_are_told_wherever_they_are_for_one_question_a_level(a: Run, b: Run, more: list[int]) -> None:
    store = ChunkStore()
    root = tree.update(store, store, tree.build(store, [a]), [b])
    held = contents(store, root)
    places = {p for e in held.extents() for p in (max(0, e.first - 1), e.first, e.end - 1, e.end)} | set(more)
    asked = Asked(store)
    found = tree.leaves(asked, root, [place // 64 for place in places])
    assert asked.times <= nodes.LEVELS
    for place in places:
        leaf = found[place // 64]
        got = (leaf, b"") if isinstance(leaf, int) else nodes.entry_of(leaf, place % 64)
        assert got == (_at([held], place) or (ZERO, b"")), place


class Asked:
    """A source that counts how often it is asked for many."""

    def __init__(self, store: ChunkStore) -> None:
        self.store = store
        self.times = 0

    def get(self, name: bytes, kind: int) -> bytes:
        return self.store.get(name, kind)

    def get_many(self, names: Sequence[bytes], kind: int) -> Iterator[tuple[bytes, bytes]]:
        self.times += 1
        return self.store.get_many(names, kind)


@given(runs(), runs(), st.integers(0, 64**4), st.integers(0, 64**4))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_a_range_of_a_tree_is_that_range_of_what_it_holds(a: Run, b: Run, first: int, count: int) -> None:
    store = ChunkStore()
    root = tree.update(store, store, tree.build(store, [a]), [b])
    held = contents(store, root)
    for place in (first, 63, 64**2, 64**3 - 1):
        builder = RunBuilder()
        for run in tree.iterate(store, root, place, place + count):
            for e in run.extents():
                builder.add(
                    e.first, e.blocks, e.tag, run.names[e.at : e.at + e.blocks * NAME_SIZE] if e.tag == CHUNK else b""
                )
        got = builder.take()
        assert all(place <= e.first and e.end <= place + count for e in got.extents())
        for block in (place, place + count // 2, place + count - 1):
            assert _at([got], block) == (_at([held], block) if place <= block < place + count else None)


@given(runs(), runs())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_a_walk_reaches_everything_and_only_that(a: Run, b: Run) -> None:
    store = ChunkStore()
    first = tree.build(store, [a])
    other = tree.update(store, store, first, [b])
    seen: set[bytes] = set()
    needed: dict[bytes, int] = {}
    for root in (first, other):
        for kind, names in tree.walk(store, root, seen.__contains__):
            for i in range(0, len(names), NAME_SIZE):
                needed[names[i : i + NAME_SIZE]] = kind
                if kind == NODE:
                    seen.add(names[i : i + NAME_SIZE])
    data = {n for run in (contents(store, first), contents(store, other)) for _, tag, n in _chunks(run)}
    assert {n for n, kind in needed.items() if kind == DATA} == data
    # With those nodes and no others both trees read the same.
    alone = ChunkStore()
    alone.chunks = {n: store.chunks[n] for n, kind in needed.items() if kind == NODE}
    assert contents(alone, first) == contents(store, first)
    assert contents(alone, other) == contents(store, other)
    assert {n for kind, names in tree.walk(store, other) for n in _split(names) if kind == NODE} <= set(alone.chunks)


def _chunks(run: Run) -> Iterator[tuple[int, int, bytes]]:
    for e in run.extents():
        if e.tag == CHUNK:
            for i in range(e.blocks):
                yield e.first + i, CHUNK, run.names[e.at + i * NAME_SIZE : e.at + (i + 1) * NAME_SIZE]


def _split(names: bytes) -> list[bytes]:
    return [names[i : i + NAME_SIZE] for i in range(0, len(names), NAME_SIZE)]


def test_emptied_and_cut_off_disks_have_the_root_of_what_is_left() -> None:
    store = ChunkStore()
    few = run_of((i, CHUNK, name(1)) for i in range(100))
    many = run_of((i, CHUNK, name(1 + i % 5)) for i in range(0, 300_000, 7))
    small, root = tree.build(store, [few]), tree.build(store, [overlaid(many, few)])
    rest = RunBuilder()
    rest.add(100, BLOCKS - 100, ZERO)
    assert tree.update(store, store, root, [rest.take()]) == small
    nothing = RunBuilder()
    nothing.add(0, BLOCKS, ZERO)
    assert tree.update(store, store, root, [nothing.take()]) == tree.EMPTY
    assert tree.update(store, store, tree.EMPTY, []) == tree.EMPTY
    assert list(tree.iterate(store, tree.EMPTY)) == []
    assert list(tree.walk(store, tree.EMPTY)) == []


def test_the_whole_range_of_blocks_may_be_left_out() -> None:
    store = ChunkStore()
    everything = RunBuilder()
    everything.add(0, BLOCKS, omitted(FREE))
    run = everything.take()
    root = tree.build(store, [run])
    assert contents(store, root) == run
    assert store.put_new <= 2


def test_work_is_that_of_what_changes() -> None:
    store = ChunkStore()
    size = 1_000_000
    run = Run()
    run.firsts.append(0)
    run.counts.append(size)
    root = tree.build(store, [Run(run.firsts, run.counts, bytes([CHUNK]), os.urandom(NAME_SIZE) * size)])
    before = (store.gets, store.put_new)
    changed = tree.update(store, store, root, [run_of([(5, CHUNK, name(1)), (700_000, CHUNK, name(2))])])
    assert store.gets - before[0] <= 8
    assert store.put_new - before[1] <= 8
    before = (store.gets, store.put_new)
    assert sum(r.blocks for r in tree.diff(store, root, changed)) == 2
    assert store.gets - before[0] <= 16


def test_changes_that_do_not_ascend_are_refused() -> None:
    store = ChunkStore()
    one = run_of([(5, CHUNK, name(1))])
    with pytest.raises(ValueError, match="ascend"):
        tree.build(store, [one, one])
    with pytest.raises(ValueError, match="does not come after"):
        run_of([(5, CHUNK, name(1)), (5, CHUNK, name(1))])


@given(runs(6), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@example(run_of([(i, CHUNK, name(1)) for i in range(64)]), None)
def test_whatever_a_node_is_damaged_to_it_is_read_or_refused(run: Run, data: st.DataObject | None) -> None:
    store = ChunkStore()
    tree.build(store, [run])
    for _, good in list(store.chunks.values()):
        if data is None:
            trials = [good[:i] for i in range(len(good))] + [good + b"\0"]
        else:
            at = data.draw(st.integers(0, min(len(good) - 1, 80)))
            trials = [good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :], good[:at], good + b"x" * 32]
        for bad in trials:
            try:
                level = nodes.checked(bad)
            except RepositoryError:  # and nothing else
                continue
            slots = nodes.take_apart(bad)
            assert nodes.encode(level, *slots) == bad
            for slot in range(64):
                tag, found = nodes.entry_of(bad, slot)
                assert tag == slots.tags[slot]
                assert found == (bytes(slots.names[slot * 32 : slot * 32 + 32]) if tag == CHUNK else b"")


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_garbage_is_no_node(garbage: bytes) -> None:
    with contextlib.suppress(RepositoryError):  # and nothing else
        nodes.checked(garbage)
        nodes.take_apart(garbage)


def test_a_node_of_another_level_is_refused_where_it_is_met() -> None:
    store = ChunkStore()
    leaf = tree.build(store, [run_of([(0, CHUNK, name(1))])])
    tags, names = bytearray(64), bytearray(2048)
    tags[1] = CHUNK
    names[32:64] = leaf
    wrong = store.put(NODE, nodes.encode(4, tags, names))
    for read in (
        lambda: list(tree.iterate(store, wrong)),
        lambda: list(tree.walk(store, wrong)),
        lambda: list(tree.diff(store, wrong, leaf)),
        lambda: tree.update(store, store, wrong, [run_of([(64**4, ZERO, b"")])]),
    ):
        with pytest.raises(RepositoryError, match="level"):
            read()


@given(runs(), runs())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_overlaying_runs_is_writing_one_over_the_other(older: Run, newer: Run) -> None:
    out = overlaid(older, newer)
    places = {p for run in (older, newer, out) for e in run.extents() for p in (e.first - 1, e.first, e.end - 1, e.end)}
    for place in places:
        assert _at([out], place) == (_at([newer], place) or _at([older], place))
