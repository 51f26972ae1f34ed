"""Which records count: each rule by itself, then any mixture of takeovers, zombies, redelivery and broken-off attempts."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import capture_chain
from streams.capture_chain import Chain, Seen, Verdict, anchor, seen
from streams.capture_record import record_digest
from streams.errors import BrokenChain
from streams.events import CommitsRecorded, EpochStarted, Event, LineageStarted, Part
from streams.golden import sample
from streams.ids import uuid7
from tests.stand_ins.capture_topic import Topic, mixture
from tests.stand_ins.capture_writer import CaptureWriter

ACCEPTED, DROPPED = Verdict.ACCEPTED, Verdict.DROPPED


def began() -> tuple[Chain, CaptureWriter]:
    """A chain that has read a lineage's start and epoch 1, and who writes it."""
    chain = Chain()
    writer, started = CaptureWriter.start()
    assert chain.take(started) is ACCEPTED
    assert chain.take(writer.marker(1)) is ACCEPTED
    return chain, writer


def broken(chain: Chain, event: Event) -> str:
    with pytest.raises(BrokenChain) as caught:
        chain.take(event)
    return caught.value.code


def test_steps_and_parts_are_accepted_in_order() -> None:
    chain, writer = began()
    attempt = uuid7()

    for event in [
        writer.steps(3),
        writer.steps(1),
        writer.part(attempt, 0, False),
        writer.part(attempt, 1, False),
        writer.part(attempt, 2, True),
        writer.steps(2),
    ]:
        assert chain.take(event) is ACCEPTED

    assert (chain.ordinal, chain.digest, chain.epoch) == (7, writer.digest, 1)


def test_a_zombies_records_are_dropped_once_a_later_epoch_has_begun() -> None:
    chain, old = began()
    chain.take(old.steps(2))
    new = copy.copy(old)
    assert chain.take(new.marker(2)) is ACCEPTED

    assert chain.take(old.steps(1)) is DROPPED
    assert chain.take(new.steps(1)) is ACCEPTED
    assert chain.take(old.steps(1)) is DROPPED
    assert chain.ordinal == 3


def test_what_a_predecessor_got_in_before_the_marker_counts() -> None:
    chain, old = began()
    late = old.steps(2)
    assert chain.take(late) is ACCEPTED
    assert chain.take(old.marker(2)) is ACCEPTED
    assert chain.take(old.steps(1)) is ACCEPTED


@pytest.mark.parametrize("again", [1, 2])
def test_a_record_delivered_again_is_dropped_at_once_or_much_later(again: int) -> None:
    chain, writer = began()
    first = writer.steps(2)
    part = writer.part("a", 0, False)
    assert [chain.take(e) for e in (first, part)] == [ACCEPTED, ACCEPTED]
    for _ in range(again):
        assert chain.take(first) is DROPPED
        assert chain.take(part) is DROPPED
    assert chain.take(writer.part("a", 1, True)) is ACCEPTED
    assert chain.take(part) is DROPPED
    assert chain.ordinal == 3


def test_a_record_that_is_lost_breaks_the_chain() -> None:
    chain, writer = began()
    writer.steps(1)
    assert broken(chain, writer.steps(1)) == "chain-broken"


def test_records_in_another_order_break_the_chain() -> None:
    chain, writer = began()
    one, two = writer.steps(1), writer.steps(1)
    assert broken(chain, two) == "chain-broken"
    assert chain.take(one) is ACCEPTED


def test_the_same_steps_with_other_content_break_the_chain() -> None:
    chain, writer = began()
    twin = copy.copy(writer)
    chain.take(writer.steps(2))
    assert broken(chain, twin.steps(1)) == "chain-broken"


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(CommitsRecorded) if f.name != "digest"])
def test_a_record_with_any_field_changed_is_not_accepted(name: str) -> None:
    """Of its digest, the epoch and what precedes it, the reader looks at the order in which it does; none passes."""
    chain, writer = began()
    record = writer.steps(2)
    other = sample(CommitsRecorded)
    forged = dataclasses.replace(record, **{name: getattr(other, name)})
    assert getattr(forged, name) != getattr(record, name)
    if name == "epoch":
        forged = dataclasses.replace(record, epoch=0)
        assert chain.take(forged) is DROPPED
        return
    assert broken(chain, forged) == "chain-damaged"


def test_a_flipped_bit_in_the_digest_itself_is_damage() -> None:
    chain, writer = began()
    record = writer.steps(1)
    digest = bytes([record.digest[0] ^ 1]) + record.digest[1:]
    assert broken(chain, dataclasses.replace(record, digest=digest)) == "chain-damaged"


def resigned(record: CommitsRecorded, **to: Any) -> CommitsRecorded:
    changed = dataclasses.replace(record, **to)
    return dataclasses.replace(changed, digest=record_digest(changed))


def test_an_epoch_that_nothing_announced_breaks_the_chain() -> None:
    chain, writer = began()
    assert broken(chain, resigned(writer.steps(1), epoch=2)) == "chain-epoch"


@pytest.mark.parametrize(
    "to",
    [
        {"first_ordinal": 2},
        {"first_ordinal": 0},
        {"last_ordinal": 0},
        {"last_ordinal": 3},
        {"step_ends": b""},
        {"step_ends": bytes(7)},
        {"part": Part("a", 0, False)},
    ],
)
def test_ordinals_that_do_not_go_on_break_the_chain(to: dict[str, Any]) -> None:
    chain, writer = began()
    assert broken(chain, resigned(writer.steps(2), **to)) == "chain-ordinals"


@pytest.mark.parametrize("number", [1, 3])
def test_a_part_left_out_breaks_the_chain(number: int) -> None:
    chain, writer = began()
    if number > 1:
        chain.take(writer.part("a", 0, False))
    assert broken(chain, writer.part("a", number, False)) == "chain-parts"


def test_another_attempt_and_a_whole_record_discard_the_parts_before() -> None:
    chain, writer = began()
    for event in [writer.part("a", 0, False), writer.part("a", 1, False), writer.part("b", 0, False)]:
        assert chain.take(event) is ACCEPTED
    assert chain.take(writer.steps(1)) is ACCEPTED
    assert chain.ordinal == 1
    assert broken(chain, writer.part("b", 1, True)) == "chain-parts"


def test_of_two_markers_with_one_number_the_first_counts() -> None:
    chain, writer = began()
    marker = writer.marker(2)
    assert chain.take(marker, "a") is ACCEPTED
    assert chain.take(marker, "b") is DROPPED
    assert (chain.epoch, chain.epoch_writer) == (2, "a")


def test_a_new_lineage_starts_the_ordinals_and_the_chain_anew() -> None:
    chain, writer = began()
    chain.take(writer.steps(5))
    fresh, started = CaptureWriter.start()
    assert chain.take(dataclasses.replace(started, epoch=1)) is ACCEPTED
    assert (chain.lineage, chain.ordinal) == (fresh.lineage, 0)
    fresh.epoch = 1
    assert chain.take(fresh.steps(1)) is ACCEPTED
    assert broken(chain, writer.steps(1)) == "chain-broken"


def test_a_zombie_cannot_start_a_lineage_nor_bring_an_old_one_back() -> None:
    chain, writer = began()
    _, first = CaptureWriter.start()
    second = dataclasses.replace(first, epoch=1)
    assert chain.take(second) is ACCEPTED
    assert chain.take(second) is DROPPED
    chain.take(writer.marker(2))
    assert chain.take(dataclasses.replace(CaptureWriter.start()[1], epoch=1)) is DROPPED
    assert chain.lineage == second.lineage


def test_a_lineage_start_that_is_not_what_its_digest_says_is_damage() -> None:
    _, started = CaptureWriter.start()
    assert broken(Chain(), dataclasses.replace(started, position="0-1-2")) == "chain-damaged"


def test_an_event_of_another_topic_does_not_belong_here() -> None:
    other = next(e for e in (sample(t) for t in capture_chain_types()) if not isinstance(e, CommitsRecorded))
    assert broken(Chain(), other) == "chain-foreign"


def capture_chain_types() -> list[type[Event]]:
    from streams.events import REGISTRY

    return [t for t in REGISTRY.values() if t.TOPIC != "capture"]


def test_what_is_too_old_to_be_remembered_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_chain, "REMEMBERED", 3)
    asked: list[int] = []

    def elsewhere(record: CommitsRecorded) -> bool:
        asked.append(record.first_ordinal)
        return record.first_ordinal == 1

    chain = Chain(elsewhere)
    writer, started = CaptureWriter.start()
    chain.take(started)
    chain.take(writer.marker(1))
    records = [writer.steps(1) for _ in range(6)]
    for record in records:
        chain.take(record)

    assert chain.take(records[5]) is DROPPED
    assert asked == []
    assert chain.take(records[0]) is DROPPED
    assert broken(chain, records[1]) == "chain-broken"
    assert asked == [1, 2]


# --- any mixture -----------------------------------------------------------------------------------------------------


def accepted_from(topic: Topic, chain: Chain, start: int) -> list[int]:
    out = []
    for i in range(start, len(topic.entries)):
        event, writer, _ = topic.entries[i]
        if chain.take(event, writer) is ACCEPTED and isinstance(event, CommitsRecorded):
            out.append(i)
    return out


def stretch(topic: Topic, first: int, end: int) -> list[Seen]:
    return [seen(i, *topic.entries[i]) for i in range(first, end)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 80))
def test_from_the_start_just_what_should_count_does(seed: int, size: int) -> None:
    topic = mixture(seed, size, hints=False)
    assert accepted_from(topic, Chain(), 0) == topic.accepted


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(10, 120), st.booleans(), st.data())
def test_wherever_an_anchor_is_found_reading_from_it_agrees_with_reading_from_the_start(
    seed: int, size: int, hints: bool, data: st.DataObject
) -> None:
    topic = mixture(seed, size, hints)
    end = data.draw(st.integers(1, len(topic.entries)))
    first = data.draw(st.integers(0, end - 1))

    place = anchor(stretch(topic, first, end))

    if place is not None:
        start = first + place
        chain = Chain.at(stretch(topic, start, start + 1)[0], elsewhere=lambda record: True)
        assert accepted_from(topic, chain, start) == [i for i in topic.accepted if i >= start]
        whole = Chain()
        accepted_from(topic, whole, 0)
        assert (chain.epoch, chain.ordinal, chain.digest) == (whole.epoch, whole.ordinal, whole.digest) or (
            chain.digest is None
        )


def test_hints_make_anchors_found_near_the_end() -> None:
    """Not only sound but useful: a settled writer's last records give certainty."""
    chain_writer = Topic()
    chain_writer.take_over()
    agent = chain_writer.agents[0]
    for i in range(1000):
        chain_writer.write(agent, agent.capture.steps(1))
        if i % 5 == 0:
            chain_writer.settle(agent, 1.0)
    place = anchor(stretch(chain_writer, 980, len(chain_writer.entries)))
    assert place is not None
    assert place > 0


def test_a_stretch_of_nothing_but_a_zombie_gives_no_certainty_beyond_what_it_had_settled() -> None:
    topic = Topic()
    topic.take_over()
    zombie = topic.agents[0]
    for _ in range(5):
        topic.write(zombie, zombie.capture.steps(1))
    topic.settle(zombie, 1.0)
    topic.take_over()
    fenced = len(topic.entries)
    for _ in range(200):
        topic.write(zombie, zombie.capture.steps(1))
    assert anchor(stretch(topic, fenced, len(topic.entries))) is None
    assert anchor(stretch(topic, 0, len(topic.entries))) is not None


def test_a_late_marker_with_a_number_already_taken_proves_nothing_for_the_first_ones_records() -> None:
    """B chose 1 as A had, then C took 2; A's late records under 1 after B's late marker are a zombie's."""
    topic = Topic()
    topic.take_over()
    a = topic.agents[0]
    topic.write(a, a.capture.steps(1))
    topic.take_over()
    late = EpochStarted(source="shop", lineage=a.capture.lineage, epoch=1, agent="b", at_us=1)
    topic.append(late, "agent-b")
    topic.write(a, a.capture.steps(1))
    assert anchor(stretch(topic, len(topic.entries) - 2, len(topic.entries))) is None


def test_a_lineage_start_is_a_place_too() -> None:
    writer, started = CaptureWriter.start()
    chain = Chain.at(seen(0, started, "w", None))
    assert chain.take(started) is ACCEPTED
    assert isinstance(started, LineageStarted)
    assert chain.lineage == writer.lineage
