"""The processors' process: waits for PostgreSQL and Kafka, brings the database up to date, runs the Faust app, watches it.

    1  PostgreSQL: migrate, remove what a killed rebuild left, create views that are new
    2  Kafka: the topics that views read exist
    3  every view can be read on from where it stands; views of an older version, and those that have a long log before
       them and have read nothing of it, are built by the bulk reader
    4  Faust reads on from there until SIGTERM or SIGINT

Exit status: 0 stopped; 1 something is wrong, the last line says what; 70 stuck. Killed at any moment, the next run goes on where
the views stand: rows and offsets are committed together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from projections import generations, log, offsets
from projections.applier import LOG, Applier
from projections.database import Connection, connect, wait
from projections.errors import ProjectionError, ViewAbsent
from projections.migrate import migrate
from projections.rebuild import Progress, rebuild
from projections.views import VIEWS
from streams.admin import ensure_topics
from streams.app import make_app
from streams.errors import StreamError
from streams.processors import FAMILIES
from streams.processors.shell import attach
from streams.settings import Settings
from streams.watchdog import Watchdog

EXIT_FAILED = 1
EXIT_STUCK = 70
_KAFKA_PATIENCE_S = 600.0
# A view that has so much to read from the beginning (a new one, or on a new database) is read by the bulk reader.
_BULK = 20_000
_LEAVE_S = 12.0  # after being told to end; the supervisor kills after 20 s


def run(settings: Settings, families: Sequence[str] = (), patience_s: float = 120.0) -> int:
    """Run the processors of `families` (all by default) until told to stop; returns the exit status."""
    stop = threading.Event()
    views = [view for family in families or FAMILIES for view in FAMILIES[family]]
    name = "processors" + "".join(f".{f}" for f in sorted(families))
    with _signals(stop):
        try:
            prepare(settings, views, stop)
        except (ProjectionError, StreamError, psycopg.Error) as error:
            if stop.is_set():
                return 0
            LOG.error("%s", error)
            return EXIT_FAILED
    return asyncio.run(_serve(settings, name, views, stop, patience_s))


def prepare(settings: Settings, views: Sequence[str], stop: threading.Event) -> None:
    """Steps 1 to 3. Raises `ProjectionError` or `StreamError` with what a user can do."""
    with contextlib.closing(wait(settings.postgres, LOG.info, stop)) as conn:
        for migration in migrate(conn):
            LOG.info("migrated the database: %04d %s", migration.number, migration.name)
        for schema in generations.clean_all(conn):
            LOG.info("removed %s, left by a rebuild that was killed", schema)
        outdated = generations.ensure(conn)
        topics = {topic: None for view in views for topic in VIEWS[view].TOPICS}
        _wait_for_kafka(lambda: ensure_topics(settings.kafka, topics.items()), settings, stop)
        for view in views:
            if view in outdated:
                LOG.info("view %s has changed with this version of Holdfast: rebuilding it", view)
                rebuild(settings, view, _log_progress(), stop)
            with contextlib.suppress(ViewAbsent):
                waiting = stand_on(settings, conn, view)
                if waiting > _BULK and not any(offsets.live(conn, view).values()):
                    LOG.info("view %s has read nothing of %d records: building it in bulk", view, waiting)
                    rebuild(settings, view, _log_progress(), stop)


def stand_on(settings: Settings, conn: Connection, name: str) -> int:
    """See that a live view can be read on from where it stands, and begin partitions that it has not begun. Returns how
    many records wait for it.

    Raises `ViewAbsent`, and as `log.check_stand` and `log.starts`."""
    view = VIEWS[name]
    extents = log.extents(settings.kafka, log.full_topics(settings.kafka, view))
    with conn.transaction():
        generation = offsets.live_generation(conn, name, share=True)
        stand = offsets.read(conn, name, generation, lock=True)
        moved = log.check_stand(name, stand, offsets.topic_ids(conn, name, generation), extents)
        new = {p: extent for p, extent in extents.items() if p not in stand}
        offsets.register(conn, name, generation, log.starts(name, new))
        with conn.cursor() as cursor:
            offsets.advance(cursor, name, generation, [(p, stand[p], at) for p, at in moved.items()])
        stand = offsets.read(conn, name, generation)
    return sum(max(0, extent.end - stand[p]) for p, extent in extents.items())


async def _serve(settings: Settings, name: str, views: Sequence[str], stop: threading.Event, patience_s: float) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def failed(view: str, error: BaseException) -> None:
        if not stop.is_set():
            LOG.error("view %s: %s", view, error, exc_info=None if isinstance(error, ProjectionError) else error)
            loop.call_soon_threadsafe(end, EXIT_FAILED)

    def stuck(message: str) -> None:
        # The event loop may be what is stuck, so nothing is asked of it.
        LOG.critical("%s; ending, so that the supervisor starts this process again", message)
        logging.shutdown()
        os._exit(EXIT_STUCK)

    def told_to_end() -> None:
        end(0)
        # While Kafka is away, aiokafka may wait for it at any point, also when starting and when cancelled. Rows and offsets
        # commit together, so leaving at any moment loses nothing.
        leaving = threading.Timer(_LEAVE_S, leave)
        leaving.daemon = True
        leaving.start()

    def leave() -> None:
        LOG.warning("Kafka keeps this process from stopping in order; leaving")
        logging.shutdown()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end)
    applier = Applier(settings, views, stop)
    watchdog = Watchdog(lambda: applier.applied, lambda: _behind(settings, views), stuck, patience_s)
    app = make_app(settings.kafka, name, applier, instance=f"{settings.site}.{name}")
    for view in views:
        attach(app, view, log.full_topics(settings.kafka, VIEWS[view]), applier.apply, failed)
    LOG.info("processing %s", ", ".join(views))
    watchdog.start()
    await app.start()
    crashed = asyncio.ensure_future(app.wait_until_stopped())
    crashed.add_done_callback(lambda _: end(EXIT_FAILED))
    status = await ended
    LOG.info("stopping" if status == 0 else "stopping after a failure")
    stop.set()
    watchdog.stop()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(app.stop(), 8)
    await loop.run_in_executor(None, applier.close)
    return status


def _behind(settings: Settings, views: Sequence[str]) -> int | None:
    """Records that live views have not applied; None when PostgreSQL or Kafka does not say."""
    try:
        topics = {topic for view in views for topic in log.full_topics(settings.kafka, VIEWS[view])}
        ends = {p: end for p, (_, end) in log.watermarks(settings.kafka, sorted(topics)).items()}
        with contextlib.closing(connect(settings.postgres, "watchdog")) as conn:
            left = 0
            for view in views:
                with contextlib.suppress(ViewAbsent):
                    left += sum(max(0, ends.get(p, 0) - at) for p, at in offsets.live(conn, view).items())
            return left
    except (StreamError, ProjectionError, psycopg.Error):
        return None


def _wait_for_kafka(attempt: Callable[[], None], settings: Settings, stop: threading.Event) -> None:
    waited, said = 0.0, ""
    while True:
        try:
            return attempt()
        except StreamError as error:
            if error.code != "kafka-unreachable" or waited > _KAFKA_PATIENCE_S:
                raise
            if str(error) != said:
                LOG.info("waiting for Kafka at %s: %s", settings.kafka.bootstrap, error)
                said = str(error)
            if stop.wait(1.0):
                raise
            waited += 1.0


def _log_progress() -> Callable[[Progress], None]:
    last = ""

    def say(progress: Progress) -> None:
        nonlocal last
        if progress.phase != last:
            LOG.info("rebuild of %s: %s (%d of %d)", progress.view, progress.phase, progress.done, progress.total)
            last = progress.phase

    return say


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Any:
    """Until the event loop takes over, a signal only sets `stop`."""
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
