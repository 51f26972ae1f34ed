"""The API's way into the log: commands, tokens and audit, each call's events durable before it is answered.

A publisher whose delivery failed is of no use any more (`streams.publish`): it is dropped with what it still held, and
the next call starts another. So a call that was answered 503 is not carried out when Kafka is back, but for a record
that was under way at that very moment: the answer says that one has to look.
"""

from __future__ import annotations

import contextlib
import threading

from api.errors import ApiError
from streams.errors import DeliveryFailed
from streams.events import Event
from streams.publish import Publisher
from streams.settings import Settings

FLUSH_S = 10.0


class Log:
    """Publishes events in order of calls, from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._publisher: Publisher | None = None
        self._closed = False

    def publish(self, event: Event, *, correlation: str = "", causation: str = "") -> str:
        """Queue `event`; its `ce_id`. Raises `ApiError` 503 (`log-unavailable`)."""
        publisher = self._current()
        try:
            return publisher.publish(event, correlation=correlation, causation=causation)
        except DeliveryFailed as error:
            raise self._failed(publisher, error) from error

    def flush(self) -> None:
        """Return when everything published so far is durable. Raises `ApiError` 503 (`log-unavailable`)."""
        publisher = self._current()
        try:
            publisher.flush(FLUSH_S)
        except DeliveryFailed as error:
            raise self._failed(publisher, error) from error

    def observe(self, hlc: int) -> None:
        """What is published from now on is later than `hlc`."""
        with self._lock:
            if self._publisher is not None:
                self._publisher.observe(hlc)

    @property
    def writer(self) -> str:
        """This run's name in events."""
        return self._current().chain.writer

    def close(self) -> None:
        """Deliver what is queued, as far as that goes quickly."""
        with self._lock:
            self._closed = True
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            with contextlib.suppress(DeliveryFailed):
                publisher.close(timeout=5.0)

    def _current(self) -> Publisher:
        with self._lock:
            if self._closed:
                raise ApiError(503, "shutting-down", "this API is shutting down", "try again in a moment")
            if self._publisher is None:
                self._publisher = Publisher(self._settings, "api")
            return self._publisher

    def _failed(self, publisher: Publisher, error: DeliveryFailed) -> ApiError:
        with self._lock:
            if self._publisher is publisher:
                self._publisher = None
        publisher.abandon()
        with contextlib.suppress(DeliveryFailed):
            publisher.close(timeout=0)
        return ApiError(
            503,
            "log-unavailable",
            f"the log did not take it: {error.message}",
            "nothing may have happened: look with `holdfast job list` once `holdfast status` says that Kafka is up",
            headers={"Retry-After": "5"},
        )
