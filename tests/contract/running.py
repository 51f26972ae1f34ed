"""Projections on a running site: publish a history, apply it by the bulk reader, run the processors, wait for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from projections import batches, generations, log, offsets
from projections.database import Connection, connect
from projections.digest import Digest, digest
from projections.errors import ProjectionError
from projections.migrate import migrate
from projections.views import VIEWS
from projections.worker import stand_on
from streams.admin import ensure_topics
from streams.errors import StreamError
from streams.events import Event
from streams.settings import Settings
from tests.stack.publishing import publisher_of
from tests.stack.servers import config_file

PATIENCE_S = 180.0
ROOT = Path(__file__).resolve().parents[2]


def make_topics(site: Settings) -> None:
    ensure_topics(site.kafka, {topic: None for view in VIEWS.values() for topic in view.TOPICS}.items())


def publish(site: Settings, events: Sequence[Event]) -> None:
    """Returns when all are durable."""
    publisher = publisher_of(site)
    for event in events:
        publisher.publish(event)
    publisher.flush(60)


@contextlib.contextmanager
def prepared(site: Settings) -> Iterator[Connection]:
    """A connection to a database whose live views stand at the beginning of existing topics."""
    make_topics(site)
    with contextlib.closing(connect(site.postgres)) as conn:
        migrate(conn)
        generations.ensure(conn)
        for name in VIEWS:
            stand_on(site, conn, name)
        yield conn


def apply_all(site: Settings, conn: Connection) -> None:
    """Bring the live views to the end of the log by the bulk reader."""
    for name, view in VIEWS.items():
        ends = {p: e.end for p, e in log.extents(site.kafka, log.full_topics(site.kafka, view)).items()}
        for batch in log.replay(site.kafka, offsets.live(conn, name), ends, threading.Event()):
            batches.apply_live(conn, view, batch.messages, batch.read)


def digests(conn: Connection) -> dict[str, Digest]:
    return {name: digest(conn, view) for name, view in VIEWS.items()}


def behind(site: Settings, conn: Connection, views: Sequence[str] = ()) -> int:
    """Records that live views have not applied."""
    left = 0
    for name in views or VIEWS:
        ends = {p: end for p, (_, end) in log.watermarks(site.kafka, log.full_topics(site.kafka, VIEWS[name])).items()}
        stand = offsets.live(conn, name)
        left += sum(max(0, end - stand.get(p, 0)) for p, end in ends.items())
    return left


class Worker:
    """The processors' process, as the supervisor runs it. Its log is in `log_file`."""

    def __init__(self, site: Settings, *arguments: str) -> None:
        self.site = site
        self.log_file = site.data_dir / "processors.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log_file, "ab") as out:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "projections",
                    "--config",
                    str(config_file(self.site)),
                    "worker",
                    *self._arguments,
                ],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def wait_for(self, text: str) -> None:
        """Until the log says so."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log:
            assert self.process.poll() is None, f"the processors ended ({self.process.returncode}):\n{self.log}"
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.log}"
            time.sleep(0.05)

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def wait_until_applied(site: Settings, worker: Worker | None = None, views: Sequence[str] = ()) -> None:
    """Until the live views stand where the log ends. Servers may be away meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with contextlib.closing(connect(site.postgres)) as conn:
                if behind(site, conn, views) == 0:
                    return
        except (psycopg.Error, ProjectionError, StreamError):
            pass
        if worker is not None:
            assert worker.process.poll() is None, f"the processors ended:\n{worker.log}"
        assert time.monotonic() < deadline, "the views never caught up" + (f":\n{worker.log}" if worker else "")
        time.sleep(0.1)
