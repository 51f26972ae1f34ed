"""`python -P -m agents.capture.index --config FILE --source NAME`: the indexer of one source, until SIGTERM.

Reads what capture wrote, closes granules (`agents.capture.granules`) and publishes each to `commits`, whose sole writer for
this source it is. On the way it has the schema keeper record what each step defines: always before the granule with that
step is published, so a granule that is there says that the schema topic is complete up to its end. Before the granule, in
the same partition, goes its key run (`agents.capture.keys`): a granule that is there says that its keys are, too.

It keeps nothing of its own: where to go on is the last granule in the topic. And if we die here? Between closing a granule
and its acknowledgement: the next run closes the same one again and publishes it, unless it is there by then. Should Kafka
take a record of ours after our death and after the next run has looked, the granule stands there twice, byte for byte the
same but for its stamp; readers count it once, and so its keys, which may also be there without it.

Exit status: 0 stopped as asked; 3 the log cannot be read (broken chain, unreadable step): somebody must look; 4 Kafka
refused, or the source did (its schema had to be read): try again later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, TopicPartition

from agents.capture.__main__ import defined_source
from agents.capture.granules import Indexer
from agents.capture.keys import KeyCollector, Recorded
from agents.capture.process import begin
from agents.capture.takeover import Interrupted
from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.keystore import KeyStore, folder_of
from agents.protocol import SourceSettings
from agents.schema.keeper import Keeper
from agents.schema.origin import SourceOrigin
from agents.schema.replay import definitions_in
from streams.admin import ensure_topics, topic_id
from streams.capture_log import CaptureLog, StepFragment, Tail
from streams.consume import Places, batch, decoded, ends, open_consumer, partitions, read_topic
from streams.errors import BrokenChain, StreamError
from streams.events import GranuleClosed, GranuleKeys, HealthReported, SchemaRecorded, SourceChanged
from streams.formats.binlog.events import parse_format_description
from streams.formats.binlog.step import StepSummary
from streams.formats.errors import FormatError
from streams.ids import now_us
from streams.key_runs import PURPOSE
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import KafkaSettings, Settings, load
from streams.topics import topic_name

EXIT_UNREADABLE = 3
EXIT_KAFKA = 4
REPORT_S = 5.0
_TURN_S = 0.2
_WINDOW = 256
_log = logging.getLogger("holdfast.index")


def newest_granule(kafka: KafkaSettings, source: str) -> GranuleClosed | None:
    """The last granule of `source` in `commits`, of whatever lineage; None when there is none yet.

    Looked for from the end backwards, in growing windows: key runs make the topic large. Only a source without any granule
    has all of it looked through.
    """
    topic, key = topic_name(kafka.prefix, "commits"), source.encode()
    with contextlib.closing(open_consumer(kafka)) as consumer:
        left = {partition: ends(consumer, topic, partition) for partition in partitions(consumer, topic)}
        window = _WINDOW
        while any(low < high for low, high in left.values()):
            for partition, (low, high) in left.items():
                first = max(low, high - window)
                found = _newest_in(consumer, topic, partition, first, high, key)
                if found is not None:
                    return found
                left[partition] = (low, first)
            window *= 8
    return None


def _newest_in(
    consumer: Consumer, topic: str, partition: int, first: int, end: int, key: bytes
) -> GranuleClosed | None:
    if first >= end:
        return None
    consumer.assign([TopicPartition(topic, partition, first)])
    at, found = first, None
    places = Places({(topic, partition): first})
    while at < end:
        for message in batch(consumer, 1.0, places=places):
            offset = message.offset() or 0
            at = max(at, offset + (message.error() is None))
            if message.error() is None and offset < end and message.key() == key:
                event = decoded(message).event
                found = event if isinstance(event, GranuleClosed) else found
    return found


class Index:
    """The indexer of one source. `run` returns when `stop` is set."""

    def __init__(self, settings: Settings, source: str, stop: threading.Event) -> None:
        self._settings, self._source, self._stop = settings, source, stop
        self._topic = topic_name(settings.kafka.prefix, "capture", source)
        self._publisher = Publisher(settings, f"index-{source}")
        self._secrets = SecretStore(settings)
        self._store: KeyStore | None = None
        self._steps = self._granules = self._versions = 0
        self._reported = 0.0

    def run(self) -> None:
        """Index lineage after lineage. Raises `StreamError`, `AgentError` (`source-…`)."""
        kafka = self._settings.kafka
        ensure_topics(
            kafka,
            [
                ("commits", None),
                ("health", None),
                ("inventory", None),
                ("capture", self._source),
                ("schema", self._source),
            ],
        )
        identity = topic_id(kafka, self._topic)
        newest = newest_granule(kafka, self._source)
        done = 0  # lineages that have ended and are indexed to their end
        with contextlib.closing(self._publisher), CaptureLog(kafka, self._source, self._secrets) as log:
            while not self._stop.is_set():
                tail = log.tail()
                known = self._lineages(tail) if tail is not None and tail.lineage else []
                if newest is not None and newest.lineage in known[done:]:
                    done = known.index(newest.lineage)
                if tail is None or done == len(known):
                    self._stop.wait(_TURN_S)
                    continue
                lineage = known[done]
                after = newest.last_ordinal if newest is not None and newest.lineage == lineage else 0
                _log.info("indexing %s/%s after step %d", self._source, lineage, after)
                indexer = Indexer(self._source, lineage, tail.epoch, identity, after + 1)
                recorded = self._recorded(lineage)
                self._store = self._open_store(lineage, after)
                keys = KeyCollector(
                    self._source, lineage, tail.epoch, *self._secrets.derived(PURPOSE), Recorded(lineage, recorded)
                )
                with contextlib.closing(self._keeper(lineage, recorded, keys)) as keeper:
                    try:
                        self._follow(log, tail, lineage, indexer, keys, keeper)
                    except StreamError as error:
                        # Nothing comes after that step, and nothing will: the lineage has ended.
                        if error.code != "step-unknown" or lineage == tail.lineage:
                            raise
                if not self._stop.is_set():
                    self._close_rest(indexer, keys)
                    newest, done = None, done + 1

    def _lineages(self, tail: Tail) -> list[str]:
        """All lineages of the source, oldest first."""
        kafka = self._settings.kafka
        found: dict[str, None] = {}
        for message in read_topic(kafka, topic_name(kafka.prefix, "inventory")):
            event = message.event
            if isinstance(event, SourceChanged) and event.source == self._source and event.lineage:
                found[event.lineage] = None
        return [*(lineage for lineage in found if lineage < tail.lineage), tail.lineage]

    def _close_rest(self, indexer: Indexer, keys: KeyCollector) -> None:
        """The lineage has ended, and with it its last granule."""
        granule = indexer.rest()
        if granule is not None:
            failpoint("index-rest-closed")
            run = keys.close(granule)
            self._publisher.sent_and_durable(run, granule)
            self._keep([(run, granule)])

    def _follow(
        self, log: CaptureLog, tail: Tail, lineage: str, indexer: Indexer, keys: KeyCollector, keeper: Keeper
    ) -> None:
        """Index `lineage` until it ends or we are to."""
        first: StepFragment | None = None
        for fragments in log.follow(lineage, indexer.expected - 1, self._stop):
            closed: list[tuple[GranuleKeys, GranuleClosed]] = []
            for fragment in fragments:
                if fragment.number == 0:
                    first = fragment
                granule = indexer.add(fragment)
                keys.add(fragment)
                if not self._defines(keeper, indexer.closed, first, fragment, tail.epoch):
                    return
                if granule is not None:
                    failpoint("index-granule-closed")
                    closed.append((keys.close(granule), granule))
                    self._publisher.publish(closed[-1][0])
                    self._publisher.publish(granule)
            if closed:
                failpoint("index-granule-sent")
                self._publisher.flush()
                failpoint("index-granule-durable")
                self._keep(closed)
            self._steps += len(fragments)
            self._granules += len(closed)
            self._report(lineage, tail.epoch, indexer.expected - 1, fragments[-1].captured_us)

    def _defines(
        self, keeper: Keeper, step: StepSummary | None, first: StepFragment | None, last: StepFragment, epoch: int
    ) -> bool:
        """Have recorded what a step defines, if it does: its statement stands in its first piece. False when we are to end."""
        if step is None or first is None or step.kind != "ddl" or step.own:
            return True
        queries = definitions_in(parse_format_description(first.preamble), first.payload or b"")
        if not queries:
            return True
        position = last.position_after or step.gtid
        self._versions += keeper.take(first.ordinal, queries, position, last.captured_us, epoch)
        return keeper.state.ordinal >= first.ordinal

    def _open_store(self, lineage: str, upto: int) -> KeyStore | None:
        """The key index on disk, brought up to step `upto`. None: it cannot be kept; plans then read the log."""
        try:
            store = KeyStore(folder_of(self._settings.data_dir, self._source, lineage))
            store.fill(self._settings.kafka, self._source, lineage, upto)
        except (OSError, ValueError) as error:
            _log.warning("the key index of %s cannot be kept on disk: %s", self._source, error)
            return None
        return store

    def _keep(self, closed: Sequence[tuple[GranuleKeys, GranuleClosed]]) -> None:
        """Take durable granules into the key index on disk."""
        if self._store is None:
            return
        try:
            for run, granule in closed:
                self._store.add(run, granule)
        except (OSError, ValueError) as error:
            _log.warning("the key index of %s cannot be kept on disk: %s", self._source, error)
            self._store = None

    def _recorded(self, lineage: str) -> list[SchemaRecorded]:
        """What the schema topic says of a lineage so far."""
        topic = topic_name(self._settings.kafka.prefix, "schema", self._source)
        events = (m.event for m in read_topic(self._settings.kafka, topic))
        return [e for e in events if isinstance(e, SchemaRecorded) and e.lineage == lineage]

    def _keeper(self, lineage: str, recorded: Sequence[SchemaRecorded], keys: KeyCollector) -> Keeper:
        settings, source = self._settings, self._source

        def record(versions: list[SchemaRecorded]) -> None:
            self._publisher.sent_and_durable(*versions)
            keys.recorded.add(versions)

        return Keeper(
            source,
            lineage,
            recorded,
            SourceOrigin(settings.data_dir, source, lineage, self._source_settings),
            record,
            settings.data_dir / "scratch" / source,
            self._stop,
        )

    def _source_settings(self) -> SourceSettings:
        try:
            return defined_source(self._settings, self._source, self._stop)
        except Interrupted:
            raise SourceUnavailable("agent-ending", "the indexer is to end") from None

    def _report(self, lineage: str, epoch: int, ordinal: int, captured_us: int) -> None:
        """Every few seconds while there is something to index: how far it is."""
        now = time.monotonic()
        if now - self._reported < REPORT_S:
            return
        self._reported = now
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._publisher.publish(
            HealthReported(
                lineage=lineage,
                epoch=epoch,
                agent=f"{self._settings.site}/index/{self._source}",
                source=self._source,
                state="indexing",
                at_us=now_us(),
                ordinal=ordinal,
                figures={
                    "index_lag_ms": max(0.0, (now_us() - captured_us) / 1000),
                    "steps": float(self._steps),
                    "granules": float(self._granules),
                    "schema_versions": float(self._versions),
                    "memory_max_bytes": float(memory),
                },
            )
        )


def run(settings: Settings, source: str, stop: threading.Event) -> None:
    """Index until `stop` is set; goes over to the next lineage when one starts. Raises `StreamError`."""
    Index(settings, source, stop).run()


def main() -> int:
    begun = begin("agents.capture.index", __doc__)
    try:
        run(load(begun.config, os.environ), begun.source, begun.stop)
    except (BrokenChain, FormatError) as error:
        _log.error("%s cannot be indexed further: %s", begun.source, error)
        return EXIT_UNREADABLE
    except (StreamError, AgentError) as error:
        _log.error("%s: %s", begun.source, error)
        return EXIT_KAFKA
    return 0


if __name__ == "__main__":
    sys.exit(main())
