"""What every client of Kafka in this room has in common: where, as whom, and where librdkafka's own words go.

librdkafka writes to standard error by itself, ten times a second while a broker is away. Here it writes to the logger
`holdfast.kafka`, each sentence once in a while.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.settings import KafkaSettings

QUIET_S = 30.0
_VARYING = re.compile(r"\d+")

UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
        KafkaError._SSL,
        KafkaError._AUTHENTICATION,
    }
)


class _Seldom(logging.Filter):
    """Lets a sentence through once every `QUIET_S` seconds, numbers in it aside."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        sentence = _VARYING.sub("", record.getMessage())
        if sentence.startswith("CONFWARN"):  # enable.gapless.guarantee is what we want, experimental or not
            return False
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(sentence, -QUIET_S) < QUIET_S:
                return False
            if len(self._last) > 1000:
                self._last.clear()
            self._last[sentence] = now
        return True


def logger() -> logging.Logger:
    """Where clients of Kafka write."""
    log = logging.getLogger("holdfast.kafka")
    if not any(isinstance(f, _Seldom) for f in log.filters):
        log.addFilter(_Seldom())
    return log


def config(kafka: KafkaSettings, **more: Any) -> dict[str, Any]:
    """librdkafka's configuration for `kafka`, with `more` (underscores for dots). Holds the password: never log it."""
    return {
        **kafka.client_config(),
        "logger": logger(),
        "log_level": 4,
        "log.connection.close": False,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.nagle.disable": True,
        **{name.replace("_", "."): value for name, value in more.items()},
    }


def admin(kafka: KafkaSettings, timeout_ms: int = 10_000) -> AdminClient:
    """A client for administration.

    A request's own timeout must differ from `timeout_ms`, the connection's: when both pass at the same moment librdkafka
    removes the request twice and aborts the process (its issue 4605).
    """
    return AdminClient(config(kafka, socket_timeout_ms=timeout_ms))


def code_of(error: KafkaException) -> int:
    """Kafka's error code in an exception."""
    cause = error.args[0] if error.args else None
    return cause.code() if isinstance(cause, KafkaError) else KafkaError.UNKNOWN


def text_of(error: KafkaException) -> str:
    """What Kafka says in an exception."""
    cause = error.args[0] if error.args else None
    return cause.str() if isinstance(cause, KafkaError) else str(error)
