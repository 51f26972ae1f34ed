"""`python -P -m agents.capture.index --config FILE --source NAME`: the indexer of one source, sole writer of its granules.

Reads what capture wrote, closes granules (`agents.capture.granules`) and publishes each to `commits`. It keeps nothing of
its own: where to go on is the last granule in the topic. If we die between closing a granule and its acknowledgement, the
next run closes the same one again, and publishes it unless it is there.

Exit status: 0 stopped, 3 the log cannot be read (broken chain, unreadable step): somebody must look; 4 Kafka refused.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from agents.capture.granules import Indexer
from agents.failpoints import failpoint
from streams.admin import ensure_topics, topic_id
from streams.capture_log import CaptureLog
from streams.consume import read_topic
from streams.errors import BrokenChain, StreamError
from streams.events import GranuleClosed
from streams.formats.errors import FormatError
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings, load
from streams.topics import topic_name

EXIT_UNREADABLE = 3
EXIT_KAFKA = 4
_POLL_S = 0.2
_log = logging.getLogger("holdfast.index")


def last_granule(settings: Settings, source: str, lineage: str) -> GranuleClosed | None:
    """The newest granule of the lineage in `commits`; None when there is none yet."""
    newest: GranuleClosed | None = None
    for message in read_topic(settings.kafka, topic_name(settings.kafka.prefix, "commits")):
        event = message.event
        ours = isinstance(event, GranuleClosed) and event.source == source and event.lineage == lineage
        if ours and isinstance(event, GranuleClosed) and (newest is None or event.last_ordinal > newest.last_ordinal):
            newest = event
    return newest


def run(settings: Settings, source: str, stop: threading.Event) -> None:
    """Index until `stop` is set; goes over to the next lineage when one starts. Raises `StreamError`."""
    ensure_topics(settings.kafka, [("commits", None), ("capture", source)])
    full_name = topic_name(settings.kafka.prefix, "capture", source)
    identity = topic_id(settings.kafka, full_name)
    with (
        CaptureLog(settings.kafka, source, SecretStore(settings)) as log,
        Publisher(settings, f"index-{source}") as publisher,
    ):
        while not stop.is_set():
            tail = log.tail()
            if tail is None or not tail.lineage:
                stop.wait(_POLL_S)
                continue
            done = last_granule(settings, source, tail.lineage)
            after = 0 if done is None else done.last_ordinal
            _log.info("indexing %s/%s after step %d", source, tail.lineage, after)
            indexer = Indexer(source, tail.lineage, tail.epoch, identity, after + 1)
            for fragments in log.follow(tail.lineage, after, stop):
                closed = 0
                for fragment in fragments:
                    granule = indexer.add(fragment)
                    if granule is not None:
                        failpoint("index-granule-closed")
                        publisher.publish(granule)
                        closed += 1
                if closed:
                    publisher.flush()
                    failpoint("index-granule-durable")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m agents.capture.index", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(load(arguments.config, os.environ), arguments.source, stop)
    except (BrokenChain, FormatError) as error:
        _log.error("%s cannot be indexed further: %s", arguments.source, error)
        return EXIT_UNREADABLE
    except StreamError as error:
        _log.error("%s", error)
        return EXIT_KAFKA
    return 0


if __name__ == "__main__":
    sys.exit(main())
