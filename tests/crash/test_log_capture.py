"""Writers of the capture topic killed, stopped and woken again: readers get every step once, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from streams import consume
from streams.admin import ensure_topics
from streams.capture_log import CaptureLog
from streams.consume import read_topic
from streams.errors import StreamError
from streams.events import CommitsRecorded, EpochStarted
from streams.ids import uuid7
from streams.settings import KafkaSettings
from tests.stack.servers import KafkaServer
from tests.stand_ins.capture_agent import FENCED, parts_of, size_of
from tests.stand_ins.capture_writer import payload_of

pytestmark = pytest.mark.crash
ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0
ENDLESS = 10**9


class Agents:
    """Capture agents as processes of their own; `pid`s are killed at the end."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, limit: int = ENDLESS) -> subprocess.Popen[bytes]:
        arguments = [self.settings.bootstrap, self.settings.prefix, "shop", str(limit)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.stand_ins.capture_agent", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def settings(kafka: KafkaServer) -> Iterator[KafkaSettings]:
    settings = kafka.settings(f"t{uuid7()[-8:]}.")
    ensure_topics(settings, [("capture", "shop")])
    yield settings
    if not kafka.process.alive():
        kafka.restart()


@pytest.fixture
def agents(settings: KafkaSettings) -> Iterator[Agents]:
    agents = Agents(settings)
    yield agents
    agents.end()


@pytest.fixture
def log(settings: KafkaSettings) -> Iterator[CaptureLog]:
    with CaptureLog(settings, "shop") as log:
        yield log


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def head(log: CaptureLog, epoch: int = 0) -> int:
    """The newest step; with `epoch`, 0 until its writer has written one."""
    tail = log.tail()
    return 0 if tail is None or (epoch and tail.epoch != epoch) else tail.ordinal


def goes_beyond(log: CaptureLog, ordinal: int, epoch: int) -> bool:
    return head(log, epoch) > ordinal


def assert_every_step_once_and_in_order(log: CaptureLog) -> int:
    """From the first to the last, each with what belongs to it; the number of the last."""
    tail = log.tail()
    assert tail is not None
    expected = [(o, n) for o in range(1, tail.ordinal + 1) for n in range(parts_of(o))]
    got: list[tuple[int, int]] = []
    for fragment in log.steps(tail.lineage, 1, tail.ordinal):
        got.append((fragment.ordinal, fragment.number))
        assert fragment.payload == payload_of(fragment.ordinal, fragment.number, size_of(fragment.ordinal))
        assert fragment.last == (fragment.number == parts_of(fragment.ordinal) - 1)
    assert got == expected
    return tail.ordinal


def test_a_writer_killed_at_any_moment_is_followed_by_another_without_a_step_lost_or_doubled(
    agents: Agents, log: CaptureLog
) -> None:
    reached = 0
    for round_ in range(6):
        agent = agents.start()
        # Of this writer: what a killed one had sent may still come while the next one starts.
        until(partial(goes_beyond, log, reached + 300, round_ + 1))
        agent.kill()
        agent.wait()
        reached = head(log)
    last = agents.start(limit=reached + 120)
    assert last.wait(PATIENCE_S) == 0
    assert assert_every_step_once_and_in_order(log) >= reached + 120


def test_a_writer_that_was_stopped_and_wakes_up_after_a_takeover_changes_nothing_and_gives_up(
    agents: Agents, log: CaptureLog, settings: KafkaSettings
) -> None:
    zombie = agents.start()
    until(lambda: head(log) > 200)
    zombie.send_signal(signal.SIGSTOP)
    heir = agents.start()
    before = head(log)
    until(lambda: head(log) > before + 200)
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(PATIENCE_S) == FENCED
    before = head(log)
    until(lambda: head(log) > before + 200)
    heir.kill()
    heir.wait()

    assert_every_step_once_and_in_order(log)
    events = [m.event for m in read_topic(settings, log.topic)]
    taken_over = next(i for i, e in enumerate(events) if isinstance(e, EpochStarted) and e.epoch == 2)
    late = [e for e in events[taken_over:] if isinstance(e, CommitsRecorded) and e.epoch == 1]
    assert late, "the zombie did write"


def test_the_broker_killed_under_a_writer_only_delays_it(agents: Agents, log: CaptureLog, kafka: KafkaServer) -> None:
    agents.start()
    until(lambda: head(log) > 200)
    for _ in range(2):
        kafka.kill()
        kafka.restart()
        with CaptureLog(agents.settings, "shop") as fresh:
            before = head(fresh)
            until(lambda f=fresh, b=before: head(f) > b + 200)  # type: ignore[misc]
    agents.end()
    assert_every_step_once_and_in_order(log)


def test_two_that_take_over_at_once_never_write_under_one_epoch(agents: Agents, log: CaptureLog) -> None:
    """Started together again and again: whoever finds that the epoch is not its own does not write."""
    for _ in range(3):
        pair = [agents.start(limit=head(log) + 200) for _ in range(3)]
        for process in pair:
            process.wait(PATIENCE_S)
    assert assert_every_step_once_and_in_order(log) >= 200


def test_a_reader_goes_on_through_a_broker_that_dies(agents: Agents, log: CaptureLog, kafka: KafkaServer) -> None:
    agents.start()
    until(lambda: head(log) > 100)
    tail = log.tail()
    assert tail is not None
    stop, got = threading.Event(), list[int]()
    for batch in log.follow(tail.lineage, 0, stop):
        if not got:
            kafka.kill()
            kafka.restart()
        got += [f.ordinal for f in batch if f.last]
        if len(got) > tail.ordinal + 300:
            stop.set()
    assert got == list(range(1, len(got) + 1))


def test_a_broker_that_falls_silent_while_a_stretch_is_read_ends_the_reading(
    agents: Agents, log: CaptureLog, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume, "SILENCE_S", 2.0)
    assert agents.start(limit=20_000).wait(PATIENCE_S) == 0
    tail = log.tail()
    assert tail is not None
    steps = log.steps(tail.lineage, 1, tail.ordinal)
    next(steps)
    kafka.pause()
    try:
        with pytest.raises(StreamError) as caught:
            list(steps)
    finally:
        kafka.resume()
    assert caught.value.code == "kafka-unreachable"
    assert assert_every_step_once_and_in_order(log) >= 20_000


def test_a_log_that_is_out_of_reach_is_said_to_be_so(log: CaptureLog, kafka: KafkaServer) -> None:
    kafka.kill()
    with CaptureLog(log._kafka, "shop") as fresh, pytest.raises(StreamError) as caught:
        fresh.tail()
    assert caught.value.code == "kafka-unreachable"
