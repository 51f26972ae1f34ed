"""A model of a capture topic: agents that take over, zombies that go on, redelivery, attempts that are broken off.

It knows what a perfect reader makes of it. `mixture` makes any, from a seed; `pour` writes one into Kafka.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field

from streams.capture_record import unsettled_header
from streams.codec import ZERO_DIGEST, encode
from streams.events import CommitsRecorded, Event, Stamp
from streams.ids import uuid7
from streams.publish import Header, RecordStream
from streams.settings import KafkaSettings
from tests.stand_ins.capture_writer import CaptureWriter


@dataclass
class Agent:
    """A capture agent in the model: it took over at some moment, and may go on long after another one did."""

    capture: CaptureWriter
    sent: list[CommitsRecorded] = field(default_factory=list)
    settled: int = 0  # of `sent`, how many it knows to be in the log with nothing of a later epoch before them


@dataclass
class Topic:
    """A capture topic and what a perfect reader would make of it."""

    entries: list[tuple[Event, str, int | None]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)  # indexes of commit records that count
    agents: list[Agent] = field(default_factory=list)
    hints: bool = True

    def append(self, event: Event, writer: str, unsettled: int | None = None) -> None:
        self.entries.append((event, writer, unsettled))

    def take_over(self) -> None:
        """As `streams.capture_epoch` does: read to the end, append a marker, resume from what counts."""
        epoch = len(self.agents) + 1
        if not self.agents:
            capture, started = CaptureWriter.start()
            self.append(started, "starter")
        else:
            capture = copy.copy(self.agents[-1].capture)
            complete = [self.entries[i][0] for i in self.accepted]
            records = [e for e in complete if isinstance(e, CommitsRecorded)]
            capture.digest = records[-1].digest if records else capture.digest
            whole = [e for e in records if e.part is None or e.part.last]
            capture.ordinal = whole[-1].last_ordinal if whole else 0
        capture.writer = f"agent-{epoch}"
        self.append(capture.marker(epoch), capture.writer)
        self.agents.append(Agent(capture))

    def write(self, agent: Agent, record: CommitsRecorded) -> None:
        unsettled = len(agent.sent) - agent.settled if self.hints else None
        if agent is self.agents[-1]:
            self.accepted.append(len(self.entries))
        self.append(record, agent.capture.writer, unsettled)
        agent.sent.append(record)

    def settle(self, agent: Agent, fraction: float) -> None:
        """The agent learns of acknowledgements. One that is fenced learns of nothing more: it would stop."""
        if agent is self.agents[-1]:
            agent.settled += int((len(agent.sent) - agent.settled) * fraction)


def mixture(seed: int, size: int, hints: bool) -> Topic:
    rng = random.Random(seed)
    topic = Topic(hints=hints)
    topic.take_over()
    for _ in range(size):
        what = rng.random()
        agent = topic.agents[-1] if rng.random() < 0.7 else rng.choice(topic.agents)
        if what < 0.08:
            topic.take_over()
        elif what < 0.2:
            attempt = uuid7()
            parts = rng.randint(1, 4)
            finished = rng.random() < 0.6
            for number in range(parts):
                topic.write(agent, agent.capture.part(attempt, number, finished and number == parts - 1))
        elif what < 0.35 and topic.accepted:
            # Delivered twice: something of the current epoch, or anything a zombie wrote.
            again = [e for e in topic.entries if e[0].epoch == len(topic.agents) and isinstance(e[0], CommitsRecorded)]
            if again:
                topic.append(*rng.choice(again))
        elif what < 0.45:
            topic.settle(agent, rng.random())
        else:
            topic.write(agent, agent.capture.steps(rng.randint(1, 3)))
    return topic


def pour(kafka: KafkaSettings, topic: str, entries: list[tuple[Event, str, int | None]]) -> None:
    """Write `entries` into a capture topic, in order, each stamped by its writer."""
    with RecordStream(kafka, topic) as stream:
        for number, (event, writer, unsettled) in enumerate(entries):
            headers: list[Header] = [] if unsettled is None else [unsettled_header(unsettled)]
            stream.send(event.key.encode(), encode(event, Stamp(writer, number, ZERO_DIGEST)), headers)
