"""`python -P -m agents.capture --config FILE --source NAME`: capture of one source, until SIGTERM.

What the source is stands in `inventory`, its passwords in the secret store. Exit status: 0 stopped as asked; 3 capture
must not go on until a user has done something (the problem is in `inventory`, and was written to standard error; also
when another agent took over); 4 Kafka refused.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from agents.capture.run import run_capture
from agents.capture.takeover import Interrupted, patiently
from agents.errors import AgentError
from agents.protocol import SourceSettings, source_settings
from agents.sources import Sources
from streams.consume import read_topic
from streams.errors import StreamError
from streams.secrets import SecretStore
from streams.settings import Settings, load
from streams.topics import topic_name

EXIT_STOPPED = 3
EXIT_KAFKA = 4
_log = logging.getLogger("holdfast.capture")


def defined_source(settings: Settings, name: str, stop: threading.Event) -> SourceSettings:
    """How to reach source `name`. Raises `AgentError` (`source-unknown`), `StreamError`, `Interrupted`."""

    def read() -> Sources:
        sources = Sources()
        for message in read_topic(settings.kafka, topic_name(settings.kafka.prefix, "inventory")):
            sources.apply(message.event)
        return sources

    entry = patiently(read, stop).get(name)
    return source_settings(entry.defined, SecretStore(settings))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P -m agents.capture", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load(arguments.config, os.environ)
        run_capture(settings, defined_source(settings, arguments.source, stop), stop)
    except Interrupted:
        return 0
    except AgentError as error:
        _log.error("%s", error)
        return EXIT_STOPPED
    except StreamError as error:
        _log.error("%s", error)
        return EXIT_KAFKA
    return 0


if __name__ == "__main__":
    sys.exit(main())
