"""The publisher by which tests say things in the log of a site: one for all of it, made when it is first asked for."""

from __future__ import annotations

import contextlib

from streams.errors import DeliveryFailed
from streams.publish import Publisher
from streams.settings import KafkaSettings, Settings

_PUBLISHERS: dict[KafkaSettings, Publisher] = {}


def publisher_of(settings: Settings) -> Publisher:
    """Not to be closed. A new one has half a second to wait for its identity, so it is kept until another site is published to;
    one that failed is not given again."""
    found = _PUBLISHERS.get(settings.kafka)
    if found is not None and not found.failed:
        return found
    for earlier in _PUBLISHERS.values():
        with contextlib.suppress(DeliveryFailed):
            earlier.close()
    _PUBLISHERS.clear()
    _PUBLISHERS[settings.kafka] = Publisher(settings, "test")
    return _PUBLISHERS[settings.kafka]
