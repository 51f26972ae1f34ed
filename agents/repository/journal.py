"""A repository's events in their one order: appending to it, reading it. Kafka's topic `repository`, or a list in memory.

An event's *ordinal* is its number among those of its repository, from 1. It is counted by whoever reads, and no Kafka offset:
a topic that was mirrored, restored or made anew has the same ordinals. A record that was delivered twice counts once. Point
records name (ordinal, id) of what they rely on, so that a log which lost its end, or grew another one, is told from the one that
they were written under (`agents.repository.sessions`). Knows no meaning of any event (`agents.repository.ledger`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from confluent_kafka import TopicPartition

from agents.errors import AgentError
from streams.codec import encode
from streams.consume import Message, Places, batch, decoded, ends, open_consumer, partitions, read_topic
from streams.errors import StreamError
from streams.events import Event, Stamp
from streams.ids import uuid7
from streams.publish import Publisher
from streams.settings import KafkaSettings
from streams.topics import topic_name

UNREACHABLE: Final = "journal-unreachable"
BEHIND: Final = "journal-behind"
CHANGED: Final = "journal-changed"
TRIMMED: Final = "journal-trimmed"
BROKEN: Final = "journal-broken"

TOPIC: Final = "repository"
_KEPT: Final = 4096  # entries kept in memory; who wants older ones has them read again
_TWICE: Final = 4096  # ids of a writer by which a second delivery is known
_TURN_S: Final = 0.2


class JournalError(AgentError):
    """The log of a repository cannot be relied upon.

    `journal-unreachable`: not just now; whether what was appended is in it is not known. `journal-behind`: it lacks what the
    repository's files say it had. `journal-changed`: it is not the one that was read before. `journal-trimmed`: its beginning is
    gone, so nothing can be counted. `journal-broken`: a writer's records are out of order.
    """


@dataclass(frozen=True, slots=True)
class Entry:
    """An event at its place. `id` is the record's `ce_id`, unique for all time."""

    ordinal: int
    id: str
    event: Event


class Journal(Protocol):
    """The events of one repository. Safe to call from several threads. Whoever opened it closes it."""

    @property
    def repository(self) -> str: ...

    def append(self, event: Event) -> Entry:
        """Put `event` at the end and read it back, with everything that came before it. Raises `JournalError`; after
        `journal-unreachable` the event may be in the log, or come into it later."""

    def read(self, after: int = 0) -> Iterator[Entry]:
        """What follows ordinal `after`, up to the end as it was when called. With `after` 0 nothing is taken from memory."""

    def head(self) -> int:
        """The ordinal of the last event; 0 when there is none."""

    def close(self) -> None:
        """May be called twice."""


class Counting:
    """Counts one repository's records among those of the topic. Not for several threads."""

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._known: dict[str, tuple[int, deque[str]]] = {}  # writer → highest sequence, ids of late
        self.ordinal = 0

    def take(self, message: Message) -> Entry | None:
        """The record as an entry; None when it is another repository's, or was delivered before. Raises `JournalError`
        (`journal-broken`)."""
        if message.key != self._repository:
            return None
        writer, sequence = message.stamp.writer, message.stamp.sequence
        highest, ids = self._known.setdefault(writer, (-1, deque(maxlen=_TWICE)))
        if sequence <= highest:
            if message.id in ids:
                return None
            raise JournalError(
                BROKEN,
                f"record {sequence} of {writer} at {message.topic}@{message.offset} comes after its record {highest}",
                "the topic was not copied in order: restore it from a copy that was",
            )
        ids.append(message.id)
        self._known[writer] = (sequence, ids)
        self.ordinal += 1
        return Entry(self.ordinal, message.id, message.event)


class KafkaJournal:
    """The journal of `repository` on Kafka. `publisher` is the process's; its events and others' keep their order."""

    def __init__(
        self, kafka: KafkaSettings, publisher: Publisher, repository: str, *, patience_s: float = 30.0
    ) -> None:
        self._kafka = kafka
        self._publisher = publisher
        self._repository = repository
        self._patience = patience_s
        self._topic = topic_name(kafka.prefix, TOPIC)
        self._lock = threading.RLock()
        self._counting = Counting(repository)
        self._late: deque[Entry] = deque(maxlen=_KEPT)
        self._consumer = open_consumer(kafka)
        # A broker answers the requests of a connection in their order: where the topic ends is not asked on the one that waits
        # for records, half a second at a time.
        self._asking = open_consumer(kafka)
        self._places = Places()
        self._next = -1  # offset of the first record not read; -1: nothing was read yet

    @property
    def repository(self) -> str:
        return self._repository

    def append(self, event: Event) -> Entry:
        with self._lock:
            with _as_journal_errors():
                identity = self._publisher.publish(event)
                self._publisher.flush(self._patience)
            self._catch_up()
            for entry in reversed(self._late):
                if entry.id == identity:
                    return entry
        raise JournalError(
            CHANGED,
            f"{self._topic} acknowledged an event and does not hold it",
            "was the topic made anew? adopt the repository again",
        )

    def read(self, after: int = 0) -> Iterator[Entry]:
        late = self._kept_after(after) if after > 0 else None
        yield from self._read_anew(after) if late is None else late

    def _kept_after(self, after: int) -> list[Entry] | None:
        with self._lock:
            self._catch_up()
            if self._counting.ordinal > after and self._late[0].ordinal > after + 1:
                return None
            return [e for e in self._late if e.ordinal > after]

    def _read_anew(self, after: int) -> Iterator[Entry]:
        counting = Counting(self._repository)
        with _as_journal_errors():
            self._check_beginning()
            for message in read_topic(self._kafka, self._topic):
                entry = counting.take(message)
                if entry is not None and entry.ordinal > after:
                    yield entry

    def head(self) -> int:
        with self._lock:
            self._catch_up()
            return self._counting.ordinal

    def close(self) -> None:
        with self._lock:
            self._consumer.close()
            self._asking.close()

    def _check_beginning(self) -> None:
        with contextlib.closing(open_consumer(self._kafka)) as consumer:
            self._refuse_trimmed(ends(consumer, self._topic, 0)[0])

    def _refuse_trimmed(self, low: int) -> None:
        if low > 0:
            raise JournalError(
                TRIMMED,
                f"{self._topic} begins at offset {low}: what was before is gone, and ordinals cannot be counted",
                "restore the topic from its archive",
            )

    def _catch_up(self) -> None:
        """Read on to the end as it is now."""
        with _as_journal_errors():
            if self._next < 0 and len(partitions(self._consumer, self._topic)) != 1:
                raise JournalError(BROKEN, f"{self._topic} has more than one partition: it has no one order")
            low, high = ends(self._asking, self._topic, 0)
            self._refuse_trimmed(low)
            if self._next < 0:
                self._next = 0
                self._places = Places({(self._topic, 0): 0})
                self._consumer.assign([TopicPartition(self._topic, 0, 0)])
            if high < self._next:
                raise JournalError(
                    CHANGED,
                    f"{self._topic} ends at offset {high}, and {self._next} had been read",
                    "it was restored from an earlier state, or made anew: adopt the repository again",
                )
            deadline = time.monotonic() + self._patience
            while self._next < high:
                for message in batch(self._consumer, _TURN_S, places=self._places):
                    if message.error() is None:
                        deadline = time.monotonic() + self._patience
                        self._take(decoded(message))
                if time.monotonic() > deadline:
                    raise JournalError(UNREACHABLE, f"Kafka gave nothing of {self._topic}", "is Kafka up?")

    def _take(self, message: Message) -> None:
        self._next = message.offset + 1
        entry = self._counting.take(message)
        if entry is not None:
            self._late.append(entry)


@contextlib.contextmanager
def _as_journal_errors() -> Iterator[None]:
    """What streams raise, as `JournalError`."""
    try:
        yield
    except StreamError as error:
        code = CHANGED if error.code == "offset-trimmed" else UNREACHABLE
        raise JournalError(code, error.message, error.hint) from error


class MemoryLog:
    """What several `MemoryJournal`s share, in place of a topic: for tests, and for a repository without a site.

    What is appended is encoded, so that it fits its schema.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.lock = threading.RLock()

    def restored(self, ordinal: int) -> MemoryLog:
        """Another log, with what this one had up to `ordinal`: as a backup of it would."""
        log = MemoryLog()
        log.entries = self.entries[:ordinal]
        return log


class MemoryJournal:
    """A journal on a `MemoryLog`. `reachable` says whether the log can be seen just now."""

    def __init__(self, log: MemoryLog, repository: str, reachable: Callable[[], bool] = lambda: True) -> None:
        self.log = log
        self._repository = repository
        self._reachable = reachable

    @property
    def repository(self) -> str:
        return self._repository

    def append(self, event: Event) -> Entry:
        self._reach()
        encode(event, Stamp("memory", 0, bytes(32)))
        with self.log.lock:
            entry = Entry(len(self.log.entries) + 1, uuid7(), event)
            self.log.entries.append(entry)
        return entry

    def read(self, after: int = 0) -> Iterator[Entry]:
        self._reach()
        yield from self.log.entries[after:]

    def head(self) -> int:
        self._reach()
        return len(self.log.entries)

    def close(self) -> None:
        pass

    def _reach(self) -> None:
        if not self._reachable():
            raise JournalError(UNREACHABLE, "the log cannot be seen from here")
