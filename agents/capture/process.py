"""What the processes of a captured source have in common: their arguments, and that SIGTERM ends them in order."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Begun:
    """`config` is to be loaded, `stop` is set when the process is asked to end."""

    config: Path
    source: str
    stop: threading.Event


def begin(module: str, about: str | None) -> Begun:
    """Read the arguments of `python -P -m MODULE --config FILE --source NAME`, log to standard error, heed SIGTERM and SIGINT."""
    parser = argparse.ArgumentParser(prog=f"python -P -m {module}", description=about)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--source", required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return Begun(given.config, given.source, stop)
