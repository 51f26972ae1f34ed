"""Capture as a process does it: epochs until told to stop, figures every second, a last word when it must stop.

Knows Kafka through `streams` only, and the source through the registry.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator

from agents import registry
from agents.capture.engine import KafkaAway, Progress, run_epochs
from agents.capture.spooling import AWAY_S, Spooling, open_spool
from agents.capture.takeover import Interrupted
from agents.errors import AgentError, Fenced, SourceUnavailable
from agents.protocol import Source, SourceSettings
from streams.admin import ensure_topics
from streams.capture_log import CaptureLog
from streams.errors import DeliveryFailed, StreamError
from streams.events import HealthReported, SourceChanged
from streams.ids import now_us
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings

REPORT_S = 1.0
_FACTS_S = 60.0
_ATTEMPTS = 6
_log = logging.getLogger("holdfast.capture")


def run_capture(settings: Settings, defined: SourceSettings, stop: threading.Event, agent: str = "") -> None:
    """Capture `defined` until `stop` is set. Waits out a source and a Kafka that are away.

    Raises `AgentError` when capture must stop for a reason that only a user can mend (the source is then `stopped`, with
    the problem, in `inventory`); `Fenced` when another agent took over; `StreamError` when Kafka refuses.
    """
    agent = agent or f"{settings.site}/capture/{defined.source}"
    source = registry.source(defined)
    sealer = SecretStore(settings)
    _wait_for_topics(settings, defined.source, stop)
    _calm_collector()
    failures = 0
    progress = Progress()
    ours: int | None = None  # the epoch that was ours when Kafka went away
    with CaptureLog(settings.kafka, defined.source, sealer) as log, _spooling(settings, source, sealer) as spooling:
        while not stop.is_set():
            publisher = Publisher(settings, f"capture-{defined.source}")
            reporter = Reporter(settings, publisher, source, progress, agent, spooling)
            call_off = _spool_unless_called_off(spooling, progress)
            try:
                with reporter:
                    run_epochs(
                        settings,
                        source,
                        log,
                        publisher,
                        sealer,
                        progress,
                        stop,
                        agent,
                        spooling=spooling,
                        ours=ours,
                        claimed_now=call_off,
                    )
            except Interrupted:
                pass
            except KafkaAway as error:
                _log.warning("%s: %s", defined.source, error)
                ours = progress.epoch
                assert spooling is not None
                spooling.away()
                spooling.start(progress.lineage, progress.durable)
                progress = _meanwhile(progress)
            except Fenced as error:
                _log.error("%s: %s", defined.source, error)
                raise
            except AgentError as error:
                progress.state = "stopped"
                _log.error("%s: capture stops: %s", defined.source, error)
                reporter.stopped(error, stop)
                raise
            except DeliveryFailed as error:
                failures = 0 if progress.records else failures + 1
                _log.warning("%s: %s; starting again from the log (%d)", defined.source, error, failures)
                if failures >= _ATTEMPTS:
                    raise
                ours = None
                progress = Progress(lineage=progress.lineage, durable=progress.durable)
                stop.wait(min(0.2 * 2**failures, 10.0))
            finally:
                call_off()
                reporter.close()
                publisher.abandon()
                with contextlib.suppress(DeliveryFailed):
                    publisher.close(0)


@contextlib.contextmanager
def _spooling(settings: Settings, source: Source, sealer: SecretStore) -> Iterator[Spooling | None]:
    """The spool; what an earlier run left in it is read on at once. None where there is to be none."""
    spool = open_spool(settings.data_dir, source, sealer, settings.capture.spool_bytes)
    if spool is None:
        yield None
        return
    spooling = Spooling(source, spool)
    spooling.start()
    try:
        yield spooling
    finally:
        spooling.close()


def _spool_unless_called_off(spooling: Spooling | None, progress: Progress) -> Callable[[], None]:
    """While an epoch is claimed Kafka may be away as well: then spool from the last known step on. What calls that off."""
    if spooling is None or progress.durable is None:
        return lambda: None
    timer = threading.Timer(AWAY_S, spooling.start, (progress.lineage, progress.durable))
    timer.daemon = True
    timer.start()

    def call_off() -> None:
        timer.cancel()
        timer.join()

    return call_off


def _meanwhile(before: Progress) -> Progress:
    """Figures of the next epoch, until it has some: where the log stands, and that it has not moved."""
    return Progress(
        state="spooling",
        lineage=before.lineage,
        epoch=before.epoch,
        ordinal=before.ordinal,
        position=before.position,
        caught_up_us=before.caught_up_us,
        trouble="Kafka is away",
        durable=before.durable,
    )


def _wait_for_topics(settings: Settings, source: str, stop: threading.Event) -> None:
    """Have the topics; waits for Kafka, which may start after us."""
    while not stop.is_set():
        try:
            ensure_topics(settings.kafka, [("capture", source), ("health", None), ("inventory", None)])
            return
        except StreamError as error:
            if error.code != "kafka-unreachable":
                raise
            _log.warning("waiting for Kafka: %s", error.message)
            stop.wait(1.0)


def _calm_collector() -> None:
    """Nothing here makes cycles at speed: what lives now lives on, and short-lived tuples are not worth a look."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


class Reporter:
    """Publishes what `progress` says every second, from a thread of its own, and says so when capture is at it, or stops.

    Nothing is queued while Kafka takes nothing: a health report is worth something when it is new.
    """

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        source: Source,
        progress: Progress,
        agent: str,
        spooling: Spooling | None = None,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._own: Publisher | None = None  # when a report could not be delivered with the one that capture uses
        self._source = source
        self._progress = progress
        self._agent = agent
        self._spooling = spooling
        self._purge_after_s: float | None = None
        self._log_bytes = 0
        self._version = ""
        self._said_capturing = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        # Asking a source may take as long as connecting takes; figures are not to wait for it.
        self._asking = threading.Thread(target=self._ask, name="facts", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        self._asking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5.0)

    def close(self) -> None:
        """Let go of what is not delivered."""
        if self._own is not None:
            self._own.abandon()

    def _run(self) -> None:
        while not self._end.wait(REPORT_S):
            try:
                if self._progress.epoch:
                    self._report()
            except DeliveryFailed as error:
                if error.code != "delivery-unconfirmed" and not self._end.is_set():
                    _log.warning("a report was not delivered: %s", error)
                    self._replace_publisher()

    def _replace_publisher(self) -> None:
        """A failed publisher stays failed. Capture finds out by itself whether that concerns it."""
        if self._own is not None:
            self._own.abandon()
        self._own = self._publisher = Publisher(self._settings, f"report-{self._source.settings.source}")

    def _ask(self) -> None:
        while not self._end.is_set():
            try:
                facts = self._source.facts()
                self._purge_after_s, self._log_bytes = facts.purge_after_s, facts.log_bytes
                self._version = facts.server_version
            except SourceUnavailable:
                pass  # whoever reads its log says so
            except AgentError as error:
                _log.warning("the source does not say how long it keeps its log: %s", error)
            self._end.wait(_FACTS_S)

    def _report(self) -> None:
        p = self._progress
        self._publisher.flush(0)  # raises while earlier reports wait for Kafka
        now = now_us()
        if p.state == "capturing" and not self._said_capturing:
            self._publisher.publish(self._changed("capturing", now))
            self._said_capturing = True
        lag_ms = p.lag_ms(now)
        figures = {
            "lag_ms": lag_ms,
            "steps": float(p.steps),
            "bytes": float(p.payload_bytes),
            "records": float(p.records),
        }
        if self._purge_after_s is not None:
            figures["purge_in_s"] = max(0.0, self._purge_after_s - lag_ms / 1000)
        if self._spooling is not None and (since := self._spooling.spool.since_us):
            figures["spool_bytes"] = float(self._spooling.spool.size)
            figures["spool_limit_bytes"] = float(self._spooling.spool.limit)
            figures["spool_s"] = max(0.0, (now - since) / 1e6)
        if self._log_bytes:
            figures["source_log_bytes"] = float(self._log_bytes)
        report = HealthReported(
            lineage=p.lineage,
            epoch=p.epoch,
            agent=self._agent,
            source=self._source.settings.source,
            state=p.state,
            at_us=now,
            ordinal=p.ordinal,
            position=p.position,
            figures=figures,
        )
        self._publisher.publish(report)

    def stopped(self, error: AgentError, stop: threading.Event) -> None:
        """Say in the log that capture has stopped, and why; waits for Kafka until `stop` is set."""
        try:
            self._publisher.publish(self._changed("stopped", now_us(), error))
        except DeliveryFailed as failed:
            _log.error("cannot publish that capture stopped: %s", failed)
            return
        while True:
            try:
                self._publisher.flush(1.0)
                return
            except DeliveryFailed as failed:
                if failed.code != "delivery-unconfirmed" or stop.is_set():
                    _log.error("not known to be in the log that capture stopped: %s", failed)
                    return

    def _changed(self, state: str, now: int, error: AgentError | None = None) -> SourceChanged:
        p = self._progress
        return SourceChanged(
            lineage=p.lineage or None,
            epoch=p.epoch,
            source=self._source.settings.source,
            state=state,
            at_us=now,
            by=self._agent,
            server_version=self._version,
            position=p.position,
            ordinal=p.ordinal,
            problems=() if error is None else (error.problem(),),
        )
