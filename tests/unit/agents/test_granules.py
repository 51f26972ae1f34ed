"""Granules close by the steps alone, say what their steps did, and never repeat what an account statement says."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.capture.granules import MAX_BYTES, MAX_STEPS, Indexer
from streams.capture_log import StepFragment
from streams.events import GranuleClosed
from streams.formats.binlog import events as ev
from streams.formats.binlog.step import split_steps, summarise

GOLDEN = Path(__file__).parents[2] / "golden" / "binlog"
FILES = sorted(GOLDEN.glob("*.binlog")) or sorted(p for p in GOLDEN.iterdir() if re.search(r"\.(bin|0\d+)$", p.name))


def steps_of(path: Path) -> tuple[bytes, list[bytes]]:
    """The preamble and the step payloads of a binlog file."""
    data = path.read_bytes()
    length = int.from_bytes(data[4 + 9 : 4 + 13], "little")
    preamble = data[4 : 4 + length]
    return preamble, [bytes(s) for s in split_steps(ev.parse_format_description(preamble), data[4 + length :])]


def fragments(preamble: bytes, steps: list[bytes], rng: random.Random | None = None) -> Iterator[StepFragment]:
    """Steps as a reader gives them; with `rng` some come in pieces, and records end in other places."""
    for ordinal, payload in enumerate(steps, 1):
        pieces = [payload] if rng is None else list(cut(payload, rng))
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            yield StepFragment(ordinal, number, last, preamble, piece, False, 1_000_000 * ordinal, "", ordinal)


def cut(payload: bytes, rng: random.Random) -> Iterator[bytes]:
    """A step's whole events, some of them apart."""
    start = at = 0
    while at < len(payload):
        at += int.from_bytes(payload[at + 9 : at + 13], "little")
        if at < len(payload) and rng.random() < 0.4:
            yield payload[start:at]
            start = at
    yield payload[start:]


def closed(parts: Iterator[StepFragment], first: int = 1) -> list[GranuleClosed]:
    indexer = Indexer("shop", "lineage", 1, "topic", first)
    return [g for part in parts if (g := indexer.add(part)) is not None]


@pytest.fixture(scope="module")
def many() -> tuple[bytes, list[bytes]]:
    """Enough steps for several granules: those of the golden log over and over."""
    preamble, steps = max((steps_of(path) for path in FILES), key=lambda found: len(found[1]))
    assert len(steps) > 5
    return preamble, (steps * (3 * MAX_STEPS // len(steps) + 1))[: 2 * MAX_STEPS + 100]


def test_granules_follow_each_other_and_end_at_their_limits(many: tuple[bytes, list[bytes]]) -> None:
    preamble, steps = many
    granules = closed(fragments(preamble, steps))

    assert granules[0].first_ordinal == 1
    for before, after in itertools.pairwise(granules):
        assert after.first_ordinal == before.last_ordinal + 1
    for g in granules:
        held = steps[g.first_ordinal - 1 : g.last_ordinal]
        assert g.payload_bytes == sum(map(len, held))
        assert len(held) == MAX_STEPS or g.payload_bytes >= MAX_BYTES
        assert len(held) <= MAX_STEPS
        assert g.payload_bytes - len(held[-1]) < MAX_BYTES


@pytest.mark.parametrize("seed", range(3))
def test_pieces_and_restarts_change_nothing(many: tuple[bytes, list[bytes]], seed: int) -> None:
    preamble, steps = many
    rng = random.Random(seed)
    once = closed(fragments(preamble, steps))
    again: list[GranuleClosed] = []
    while len(again) < len(once):
        after = again[-1].last_ordinal if again else 0
        parts = (p for p in fragments(preamble, steps, rng) if p.ordinal > after)
        found = closed(parts, after + 1)
        again += found[: rng.randint(1, len(found))]

    assert again == once


def test_counts_are_the_sum_of_the_steps(many: tuple[bytes, list[bytes]]) -> None:
    preamble, steps = many
    granule = closed(fragments(preamble, steps))[0]
    rows: Counter[tuple[str, str]] = Counter()
    for step in steps[: granule.last_ordinal]:
        for table, change in summarise(preamble, step).changes.items():
            rows[table] += sum(change)

    assert {(t.schema, t.table): t.inserts + t.updates + t.deletes for t in granule.tables} == rows


def test_a_sealed_account_step_is_a_landmark_without_words() -> None:
    preamble, steps = max((steps_of(path) for path in FILES), key=lambda found: len(found[1]))
    rows = next(s for s in steps if summarise(preamble, s).kind == "rows")
    indexer = Indexer("shop", "lineage", 1, "topic")
    sealed = StepFragment(1, 0, True, preamble, None, True, 5_500_000, "0-1-9", 7)
    assert indexer.add(sealed) is None
    granule = None
    ordinal = 2
    while granule is None:
        granule = indexer.add(StepFragment(ordinal, 0, True, preamble, rows, False, 9_000_000, "", 8))
        ordinal += 1

    assert [(m.ordinal, m.kind, m.text) for m in granule.landmarks] == [(1, "account", "")]
    assert (granule.first_position, granule.first_time_us, granule.first_offset) == ("0-1-9", 5_000_000, 7)


def test_a_gap_is_refused() -> None:
    preamble, steps = max((steps_of(path) for path in FILES), key=lambda found: len(found[1]))
    indexer = Indexer("shop", "lineage", 1, "topic", 5)
    with pytest.raises(ValueError, match="step 6 came where 5 was due"):
        indexer.add(StepFragment(6, 0, True, preamble, steps[0], False, 1, "", 1))


def test_a_clock_that_goes_back_is_within_the_times_of_the_granule(many: tuple[bytes, list[bytes]]) -> None:
    """Filters and targets by time leave granules out by these."""
    preamble, steps = many
    chance = random.Random(5)
    moved, times = [], []
    for payload in steps:
        times.append(1_700_000_000 + chance.randrange(-3600, 3600))
        moved.append(at_time(payload, times[-1]))
    at = 0
    for granule in closed(fragments(preamble, moved)):
        inside = times[at : at + granule.last_ordinal - granule.first_ordinal + 1]
        assert (granule.first_time_us, granule.last_time_us) == (min(inside) * 1_000_000, max(inside) * 1_000_000)
        at += len(inside)
    assert at > 0


def at_time(payload: bytes, seconds: int) -> bytes:
    """The step as it would have been logged at another time; checksums are not looked at here."""
    out, at = bytearray(payload), 0
    while at < len(out):
        out[at : at + 4] = seconds.to_bytes(4, "little")
        at += int.from_bytes(out[at + 9 : at + 13], "little")
    return bytes(out)
