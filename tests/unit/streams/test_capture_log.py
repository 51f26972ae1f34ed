"""The capture log's reader on a real Kafka, against the model of a topic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition

from streams import capture_log, clients
from streams.admin import ensure_topics
from streams.capture_log import CaptureLog, StepFragment
from streams.capture_stretches import Stretches
from streams.codec import ZERO_DIGEST, encode
from streams.consume import Message
from streams.errors import BrokenChain, DeliveryFailed, StreamError
from streams.events import CommitsRecorded, Event, Stamp
from streams.ids import uuid7
from streams.secrets import SecretStore, create_site_key
from streams.settings import ApiSettings, KafkaSettings, PostgresSettings, Settings
from tests.stack.servers import KafkaServer
from tests.stand_ins.capture_topic import Topic, mixture, pour
from tests.stand_ins.capture_writer import PREAMBLE, CaptureWriter, payload_of

Entry = tuple[Event, str, int | None]


@pytest.fixture
def site(kafka: KafkaServer) -> KafkaSettings:
    settings = kafka.settings(f"t{uuid7()[-8:]}.")
    ensure_topics(settings, [("capture", "shop")])
    return settings


@pytest.fixture
def log(site: KafkaSettings) -> Iterator[CaptureLog]:
    with CaptureLog(site, "shop") as log:
        yield log


def one_lineage(records: int, each: int = 1, size: int = 40) -> tuple[CaptureWriter, list[Entry]]:
    """`records` records of `each` steps under epoch 1, settled at once."""
    writer, started = CaptureWriter.start()
    entries: list[Entry] = [(started, "a", None), (writer.marker(1), "a", None)]
    entries += [(writer.steps(each, size), "a", 0) for _ in range(records)]
    return writer, entries


def ordinals(fragments: list[StepFragment]) -> list[int]:
    return [f.ordinal for f in fragments]


def code(call: Callable[[], object]) -> str:
    with pytest.raises(StreamError) as caught:
        call()
    return caught.value.code


def test_an_empty_topic_has_no_tail_and_no_steps(log: CaptureLog) -> None:
    assert log.tail() is None
    assert code(lambda: log.locate("x", 1)) == "step-unknown"
    assert code(lambda: list(log.steps("x", 1, 1))) == "step-unknown"


def test_a_topic_that_does_not_exist_says_so(kafka: KafkaServer) -> None:
    with CaptureLog(kafka.settings("nothing."), "shop") as log:
        assert code(log.tail) == "topic-missing"


def test_the_tail_of_a_lineage_without_steps_names_its_start(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(0)
    pour(site, log.topic, entries[:1])
    tail = log.tail()
    assert tail is not None
    assert (tail.lineage, tail.epoch, tail.ordinal, tail.digest, tail.record) == (
        writer.lineage, 0, 0, writer.digest, None,
    )  # fmt: skip
    assert tail.started == entries[0][0]

    pour(site, log.topic, entries[1:])
    tail = log.tail()
    assert tail is not None
    assert (tail.epoch, tail.epoch_writer, tail.started, tail.end) == (1, "a", entries[0][0], 2)


def test_the_tail_names_where_to_resume(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(200, each=3)
    pour(site, log.topic, entries)

    tail = log.tail()

    assert tail is not None
    assert (tail.lineage, tail.epoch, tail.ordinal, tail.digest, tail.end) == (
        writer.lineage, 1, 600, writer.digest, 202,
    )  # fmt: skip
    assert tail.record == entries[-1][0]


def test_steps_come_whole_in_order_and_with_what_is_needed_to_read_them(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(40, each=5)
    pour(site, log.topic, entries)

    got = list(log.steps(writer.lineage, 3, 177))

    assert ordinals(got) == list(range(3, 178))
    assert all(f.payload == payload_of(f.ordinal) and f.preamble == PREAMBLE for f in got)
    assert all((f.number, f.last, f.accounts) == (0, True, False) for f in got)
    records = [e for e, _, _ in entries if isinstance(e, CommitsRecorded)]
    for f in got:
        record = records[(f.ordinal - 1) // 5]
        assert f.captured_us == record.captured_us
        assert f.position_after == (record.after if f.ordinal % 5 == 0 else "")
        assert f.offset == 2 + (f.ordinal - 1) // 5


@pytest.mark.parametrize(("first", "last"), [(1, 1), (200, 200), (100, 101), (200, 199)])
def test_ranges_at_the_edges(site: KafkaSettings, log: CaptureLog, first: int, last: int) -> None:
    writer, entries = one_lineage(40, each=5)
    pour(site, log.topic, entries)
    assert ordinals(list(log.steps(writer.lineage, first, last))) == list(range(first, last + 1))


def test_steps_that_are_not_there_are_said_to_be_unknown(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(10)
    pour(site, log.topic, entries)

    got: list[StepFragment] = []
    assert code(lambda: got.extend(log.steps(writer.lineage, 8, 12))) == "step-unknown"
    assert ordinals(got) == [8, 9, 10]
    assert code(lambda: list(log.steps(writer.lineage, 11, 12))) == "step-unknown"
    assert code(lambda: list(log.steps(uuid7(), 1, 1))) == "step-unknown"
    assert code(lambda: list(log.steps("not-a-uuid", 1, 1))) == "step-unknown"


def test_the_newest_come_newest_first(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(30, each=2)
    pour(site, log.topic, entries)
    assert ordinals(log.newest(writer.lineage, 60, 3)) == [60, 59, 58]
    assert ordinals(log.newest(writer.lineage, 2, 5)) == [2, 1]
    assert ordinals(log.newest(writer.lineage, 60, 3, near=0)) == [60, 59, 58]


def test_a_step_is_found_in_its_lineage_though_another_has_the_same_ordinals(
    site: KafkaSettings, log: CaptureLog
) -> None:
    first, entries = one_lineage(60)
    second, started = CaptureWriter.start(position="0-2-7")
    second.epoch = 1
    more: list[Entry] = [(started_in(started, 1), "a", None)]
    more += [(second.steps(1), "a", 0) for _ in range(50)]
    pour(site, log.topic, entries + more)

    for writer, count in ((first, 60), (second, 50)):
        for ordinal in (1, 2, 25, count - 1, count):
            (fragment,) = log.steps(writer.lineage, ordinal, ordinal)
            assert fragment.ordinal == ordinal
            assert fragment.offset == log.locate(writer.lineage, ordinal)
        assert code(lambda w=writer, c=count: log.locate(w.lineage, c + 1)) == "step-unknown"  # type: ignore[misc]
    tail = log.tail()
    assert tail is not None
    assert (tail.lineage, tail.ordinal) == (second.lineage, 50)


def started_in(event: Event, epoch: int) -> Event:
    import dataclasses

    return dataclasses.replace(event, epoch=epoch)


def expected(topic: Topic) -> list[tuple[int, int, bool]]:
    """(ordinal, number, last) of every fragment a reader is to give out."""
    out: list[tuple[int, int, bool]] = []
    parts: list[tuple[int, int, bool]] = []
    for i in topic.accepted:
        record = topic.entries[i][0]
        assert isinstance(record, CommitsRecorded)
        if record.part is None:
            parts = []
            out += [(o, 0, True) for o in range(record.first_ordinal, record.last_ordinal + 1)]
            continue
        parts = [*(parts if record.part.number else []), (record.first_ordinal, record.part.number, record.part.last)]
        if record.part.last:
            out += parts
    return out


@pytest.mark.parametrize("seed", range(14))
def test_any_mixture_is_read_as_the_model_says_from_any_place(
    site: KafkaSettings, log: CaptureLog, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takeovers, zombies, redelivery, attempts broken off; with hints in half of them; small windows so that they grow."""
    monkeypatch.setattr(capture_log, "_WINDOW", 3)
    topic = mixture(seed, 150, hints=seed % 2 == 0)
    pour(site, log.topic, topic.entries)
    fragments = expected(topic)
    lineage = topic.agents[0].capture.lineage
    head = fragments[-1][0]
    last = topic.entries[topic.accepted[-1]][0]
    assert isinstance(last, CommitsRecorded)

    tail = log.tail()
    assert tail is not None
    assert (tail.lineage, tail.epoch, tail.ordinal) == (lineage, len(topic.agents), head)
    assert tail.digest == last.digest
    assert tail.record is not None
    assert tail.record.last_ordinal == head

    assert [(f.ordinal, f.number, f.last) for f in log.steps(lineage, 1, head)] == fragments
    for first in range(1, head + 1, 7):
        upto = min(head, first + 4)
        want = [f for f in fragments if first <= f[0] <= upto]
        for near in (None, 0, len(topic.entries) // 2, len(topic.entries) + 5):
            assert [(f.ordinal, f.number, f.last) for f in log.steps(lineage, first, upto, near)] == want
    large = {o for o, _, last in fragments if not last}
    for every in (1, 2, 5, head + 1):
        some = {o for o in range(1, head + 1) if o % every == 0}
        for first, upto in ((1, head), (2, head - 1), (head // 2, head // 2 + 3), (head, head)):
            want = [f for f in fragments if first <= f[0] <= upto and f[0] in some | large]
            got = list(log.steps(lineage, first, upto, None, holding(some)))
            assert [(f.ordinal, f.number, f.last) for f in got if f.ordinal in some | large] == want
            # A step of several parts is there whatever it holds; one of a single part may be.
            assert {f.ordinal for f in got} - some <= {f[0] for f in fragments if f[0] in parts_of(topic)}


def holding(ordinals: set[int]) -> Callable[[bytes | None], bool]:
    """Whether a payload may hold one of these steps."""
    found = {payload_of(o) for o in ordinals}
    return lambda payload: payload is None or any(payload[at : at + 40] in found for at in range(0, len(payload), 40))


def parts_of(topic: Topic) -> set[int]:
    """Steps that came in parts."""
    records = (topic.entries[i][0] for i in topic.accepted)
    return {r.first_ordinal for r in records if isinstance(r, CommitsRecorded) and r.part is not None}


def test_steps_of_large_records_are_chosen_one_by_one(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(6, each=37)
    pour(site, log.topic, entries)
    for some in ({1}, {37}, {38}, {222}, {19, 20, 36, 37, 38, 150}, set[int](), set(range(1, 223))):
        got = list(log.steps(writer.lineage, 1, 222, None, holding(some)))
        assert ordinals(got) == sorted(some)
        assert all(f.payload == payload_of(f.ordinal) for f in got)
    assert code(lambda: list(log.steps(writer.lineage, 1, 223, None, holding({5})))) == "step-unknown"


def test_when_nothing_near_the_end_is_certain_the_topic_is_read_from_its_start(
    site: KafkaSettings, log: CaptureLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capture_log, "_WINDOW_LIMIT", 50)
    _, entries = one_lineage(300)
    pour(site, log.topic, [(e, w, None) for e, w, _ in entries])

    tail = log.tail()

    assert tail is not None
    assert tail.ordinal == 300
    assert "no certain epoch" in caplog.text


def parted(writer: CaptureWriter, parts: int, size: int, finish: bool = True) -> list[Entry]:
    attempt = uuid7()
    return [(writer.part(attempt, n, finish and n == parts - 1, size), writer.writer, 0) for n in range(parts)]


@pytest.mark.parametrize("held", [0, 2_000, 1_000_000])
def test_a_large_step_comes_in_pieces_once_it_is_complete_and_nothing_of_a_broken_off_attempt(
    site: KafkaSettings, log: CaptureLog, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Kept in memory, or read again, or the one and then the other."""
    monkeypatch.setattr(capture_log, "_HELD_BYTES", held)
    writer, entries = one_lineage(3)
    entries += parted(writer, 7, 500, finish=False)
    entries += parted(writer, 2, 500, finish=False)
    entries += parted(writer, 9, 500)
    entries += [(writer.steps(1), "a", 0)]
    pour(site, log.topic, entries)

    got = list(log.steps(writer.lineage, 3, 5))

    assert [(f.ordinal, f.number, f.last) for f in got] == [
        (3, 0, True),
        *((4, n, n == 8) for n in range(9)),
        (5, 0, True),
    ]
    assert all(f.payload == payload_of(4, f.number, 500) for f in got[1:-1])
    assert [f.position_after for f in got[1:-1]] == [""] * 8 + ["0-1-5"]
    assert [f.ordinal for f in log.newest(writer.lineage, 5, 3)] == [5, 4, 3]


def test_an_attempt_still_under_way_is_no_step_yet(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(3)
    pour(site, log.topic, entries + parted(writer, 30, 40, finish=False))

    tail = log.tail()
    assert tail is not None
    assert tail.ordinal == 3
    assert tail.digest == writer.digest  # the last part, which the next record must name
    assert tail.record == entries[-1][0]
    assert code(lambda: list(log.steps(writer.lineage, 3, 4))) == "step-unknown"


def test_damage_in_the_log_stops_reading_there_and_gives_out_nothing_after(
    site: KafkaSettings, log: CaptureLog
) -> None:
    import dataclasses

    writer, entries = one_lineage(20)
    event, by, settled = entries[12]
    assert isinstance(event, CommitsRecorded)
    entries[12] = (dataclasses.replace(event, payload=event.payload[:-1] + b"!"), by, settled)
    pour(site, log.topic, entries)

    got: list[StepFragment] = []
    with pytest.raises(BrokenChain) as caught:
        got.extend(log.steps(writer.lineage, 1, 20))
    assert caught.value.code == "chain-damaged"
    assert ordinals(got) == list(range(1, 11))
    # Behind the damage, reading from the middle believes the record that it begins with.
    assert ordinals(list(log.steps(writer.lineage, 18, 20))) == [18, 19, 20]


def test_a_record_that_was_damaged_on_its_way_to_us_is_fetched_again(
    site: KafkaSettings, log: CaptureLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    writer, entries = one_lineage(20)
    pour(site, log.topic, entries)
    sound = Stretches.read
    left = {10: 1, 12: 3}  # offsets, and how often each comes damaged

    def damaging(self: Stretches, first: int, end: int, *, again: bool = False) -> Iterator[Message]:
        for message in sound(self, first, end, again=again):
            event = message.event
            if left.get(message.offset, 0) and isinstance(event, CommitsRecorded):
                left[message.offset] -= 1
                event = dataclasses.replace(event, payload=event.payload[:-1] + b"!")
            yield dataclasses.replace(message, event=event)

    monkeypatch.setattr(Stretches, "read", damaging)
    assert ordinals(list(log.steps(writer.lineage, 1, 20))) == list(range(1, 21))
    assert left == {10: 0, 12: 0}
    left[21] = 2
    tail = log.tail()
    assert tail is not None
    assert tail.ordinal == 20


def test_following_gives_each_step_once_as_it_comes_and_ends_with_the_lineage(
    site: KafkaSettings, log: CaptureLog
) -> None:
    writer, entries = one_lineage(10, each=2)
    pour(site, log.topic, entries)
    got: list[StepFragment] = []
    batches: list[int] = []
    caught_up = threading.Event()
    stop = threading.Event()

    def run() -> None:
        for batch in log.follow(writer.lineage, 15, stop):
            got.extend(batch)
            batches.append(len(batch))
            if got[-1].ordinal >= 20:
                caught_up.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert caught_up.wait(120)
        pour(site, log.topic, [(writer.steps(1), "a", 0), *parted(writer, 3, 40), (writer.steps(1), "a", 0)])
        next_one, started = CaptureWriter.start()
        next_one.epoch = 1
        pour(site, log.topic, [(started_in(started, 1), "a", None), (next_one.steps(1), "a", 0)])
        thread.join(120)
    finally:
        stop.set()
        thread.join(120)

    assert not thread.is_alive()
    assert [(f.ordinal, f.number) for f in got] == [(o, 0) for o in range(16, 22)] + [(22, n) for n in range(3)] + [
        (23, 0)
    ]
    assert 0 not in batches


def test_following_from_the_end_of_what_there_is_waits_and_stops_when_told(
    site: KafkaSettings, log: CaptureLog
) -> None:
    writer, entries = one_lineage(4)
    pour(site, log.topic, entries)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    assert list(log.follow(writer.lineage, 4, stop)) == []
    assert time.monotonic() - began < 10
    assert code(lambda: list(log.follow(writer.lineage, 5, stop))) == "step-unknown"


def test_following_a_lineage_without_steps_starts_with_its_first(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(0)
    pour(site, log.topic, entries)
    stop = threading.Event()
    following = log.follow(writer.lineage, 0, stop)
    threading.Timer(0.3, lambda: pour(site, log.topic, [(writer.steps(1), "a", 0)])).start()
    assert ordinals(next(following)) == [1]
    following.close()  # type: ignore[attr-defined]


def test_records_of_several_megabytes_are_read(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(2)
    entries += [*parted(writer, 3, 5_000_000), (writer.steps(2, 3_000_000), "a", 0)]
    pour(site, log.topic, entries)
    got = list(log.steps(writer.lineage, 2, 5))
    assert [(f.ordinal, f.number, len(f.payload or b"")) for f in got] == [
        (2, 0, 40), (3, 0, 5_000_000), (3, 1, 5_000_000), (3, 2, 5_000_000), (4, 0, 3_000_000), (5, 0, 3_000_000),
    ]  # fmt: skip
    assert log.locate(writer.lineage, 5) == 7


def test_a_topic_trimmed_from_its_start_is_read_from_what_is_left(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(60, each=2)
    pour(site, log.topic, entries)
    admin = clients.admin(site)
    for future in admin.delete_records([TopicPartition(log.topic, 0, 32)]).values():
        future.result(20)

    tail = log.tail()

    assert tail is not None
    assert (tail.ordinal, tail.epoch, tail.digest) == (120, 1, writer.digest)
    assert ordinals(list(log.steps(writer.lineage, 61, 120))) == list(range(61, 121))
    assert ordinals(list(log.steps(writer.lineage, 62, 63, near=3))) == [62, 63]
    assert code(lambda: list(log.steps(writer.lineage, 60, 62))) == "step-unknown"


def test_offsets_that_hold_no_records_are_passed_over(site: KafkaSettings, log: CaptureLog) -> None:
    """Kafka's own transaction markers take offsets: whoever wrote with transactions leaves some everywhere."""
    writer, entries = one_lineage(60)
    producer = Producer({**site.client_config(), "transactional.id": uuid7(), "log_level": 0})
    producer.init_transactions(30)
    for start in range(0, len(entries), 3):
        producer.begin_transaction()
        for event, by, _ in entries[start : start + 3]:
            producer.produce(log.topic, encode(event, Stamp(by, 0, ZERO_DIGEST)), partition=0)
        producer.commit_transaction(30)

    tail = log.tail()

    assert tail is not None
    assert (tail.ordinal, tail.end) == (60, 62 + 21)
    for first in range(1, 61, 7):
        assert ordinals(list(log.steps(writer.lineage, first, 60))) == list(range(first, 61))
    log.fence(1, "a")(0, 20)
    log.fence(1, "a")(3, 3)
    with pytest.raises(DeliveryFailed):
        log.fence(1, "somebody else")(4, 4)


def test_sealed_steps_are_given_out_in_clear_only_with_the_key(site: KafkaSettings, tmp_path: Path) -> None:
    key = tmp_path / "secrets" / "site.key"
    create_site_key(key)
    postgres = PostgresSettings("127.0.0.1", 1, "nobody", "nothing")
    store = SecretStore(Settings("test", tmp_path, site, postgres, ApiSettings(), key))
    writer, entries = one_lineage(2)
    entries += [(writer.steps(1, accounts=True, sealer=store), "a", 0), (writer.steps(1), "a", 0)]
    with CaptureLog(site, "shop") as blind, CaptureLog(site, "shop", store) as seeing:
        pour(site, blind.topic, entries)

        without = list(blind.steps(writer.lineage, 1, 4))
        with_key = list(seeing.steps(writer.lineage, 1, 4))
        chosen = list(blind.steps(writer.lineage, 1, 4, None, lambda payload: payload is None))

    assert [f.payload for f in without] == [payload_of(1), payload_of(2), None, payload_of(4)]
    assert [f.payload for f in with_key] == [payload_of(o) for o in range(1, 5)]
    assert [f.accounts for f in without] == [False, False, True, False]
    assert ordinals(chosen) == [3]


def test_many_threads_may_read_at_once(site: KafkaSettings, log: CaptureLog) -> None:
    writer, entries = one_lineage(100)
    pour(site, log.topic, entries)
    got: list[list[int]] = [[] for _ in range(4)]

    def run(into: list[int]) -> None:
        into.extend(f.ordinal for f in log.steps(writer.lineage, 1, 100))

    threads = [threading.Thread(target=run, args=(g,)) for g in got]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert got == [list(range(1, 101))] * 4
