"""`python -P -m agents.capture --config FILE --source NAME`: capture of one source, until SIGTERM.

What the source is stands in `inventory`, its passwords in the secret store. Exit status: 0 stopped as asked; 3 capture
must not go on until a user has done something (the problem is in `inventory`, and was written to standard error; also
when another agent took over); 4 Kafka refused.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from agents.capture.process import begin
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
    begun = begin("agents.capture", __doc__)
    try:
        settings = load(begun.config, os.environ)
        run_capture(settings, defined_source(settings, begun.source, begun.stop), begun.stop)
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
