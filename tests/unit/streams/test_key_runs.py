"""Key runs against a model that is a set of (hash, step): lookups, fans, and merging in whatever order of events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.key_runs import ENTRY, FAN_IN, Run, bounds, due, fan_of, hasher, merge, run_of, steps_in

# Few first bytes and few hashes, so that keys meet; the last bytes are arbitrary.
HASHES = st.builds(
    lambda first, rest: bytes([first]) + rest, st.sampled_from([0, 1, 127, 254, 255]), st.binary(min_size=7, max_size=7)
)
POOL = st.lists(HASHES, min_size=1, max_size=8, unique=True)


@st.composite
def granules(draw: st.DrawFn, count: int = FAN_IN) -> tuple[list[bytes], list[tuple[Run, set[tuple[bytes, int]]]]]:
    """Neighbouring runs, and what is in each by ordinal."""
    pool = draw(POOL)
    out = []
    first = draw(st.integers(1, 10**12))
    for _ in range(draw(st.integers(1, count))):
        steps = draw(st.integers(1, 4096))
        held = draw(st.sets(st.tuples(st.sampled_from(pool), st.integers(0, steps - 1)), max_size=20))
        run = Run(first, first + steps - 1, 1, run_of(h + s.to_bytes(4, "big") for h, s in held))
        out.append((run, {(h, first + s) for h, s in held}))
        first += steps
    return pool, out


@given(granules())
def test_a_merged_run_finds_what_its_parts_find(
    made: tuple[list[bytes], list[tuple[Run, set[tuple[bytes, int]]]]],
) -> None:
    pool, parts = made
    model = {entry for _, held in parts for entry in held}
    merged = merge([run for run, _ in parts])

    assert (merged.first, merged.last) == (parts[0][0].first, parts[-1][0].last)
    assert merged.granules == len(parts)
    assert len(merged.entries) == ENTRY * len(model)
    assert merged.entries == run_of(merged.entries[i : i + ENTRY] for i in range(0, len(merged.entries), ENTRY))
    for wanted in (*pool, b"\x80" + bytes(7)):
        expected = sorted(ordinal for h, ordinal in model if h == wanted)
        assert list(merged.steps(wanted)) == expected
        assert sorted(o for run, _ in parts for o in run.steps(wanted)) == expected


@given(granules(), st.integers(1, FAN_IN))
def test_merging_twice_is_merging_once(
    made: tuple[list[bytes], list[tuple[Run, set[tuple[bytes, int]]]]], cut: int
) -> None:
    runs = [run for run, _ in made[1]]
    halves = [merge(part) for part in (runs[:cut], runs[cut:]) if part]
    assert merge(halves) == merge(runs)


@given(granules(1))
def test_the_fan_bounds_each_first_byte(made: tuple[list[bytes], list[tuple[Run, set[tuple[bytes, int]]]]]) -> None:
    (run, held) = made[1][0]
    fan = fan_of(run.entries)
    for first in range(256):
        low, high = bounds(fan, first)
        piece = run.entries[low * ENTRY : high * ENTRY]
        assert len(piece) // ENTRY == sum(h[0] == first for h, _ in held)
        for wanted in {h for h, _ in held if h[0] == first}:
            assert [run.first + s for s in steps_in(piece, wanted)] == sorted(o for h, o in held if h == wanted)


@settings(max_examples=20)
@given(st.integers(0, 700))
def test_runs_are_merged_by_their_number_alone(count: int) -> None:
    levels = [0, 0, 0]
    for _ in range(count):
        levels[0] += 1
        while (level := due(levels)) is not None:
            levels[level] -= FAN_IN
            levels[level + 1] += 1
    assert levels == [count % 16, count // 16 % 16, count // 256]


def test_hashes_tell_tables_keys_and_secrets_apart() -> None:
    secret = bytes(32)
    made = {
        hasher(s, schema, table, columns)(key)
        for s in (secret, b"\1" * 32)
        for schema, table in (("a", "bc"), ("ab", "c"))
        for columns in (("id",), ("i", "d"), ())
        for key in (b"1", b"2")
    }
    assert len(made) == 24
    assert all(len(h) == 8 for h in made)
