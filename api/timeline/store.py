"""The timelines in use, one for each source: readers of Kafka are kept, not made for every request."""

from __future__ import annotations

import threading
from collections import OrderedDict

from api.timeline.source import PlanOf, Timeline
from streams.capture_record import Sealer
from streams.settings import KafkaSettings

_KEPT = 32


class Timelines:
    """Timelines by source; the ones used longest ago are let go of."""

    def __init__(self, kafka: KafkaSettings, secrets: Sealer | None, plan_of: PlanOf) -> None:
        self._kafka = kafka
        self._secrets = secrets
        self._plan_of = plan_of
        self._open: OrderedDict[str, Timeline] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, source: str) -> Timeline:
        with self._lock:
            found = self._open.get(source)
            if found is None:
                found = self._open[source] = Timeline(self._kafka, source, self._secrets, self._plan_of)
            self._open.move_to_end(source)
            if len(self._open) > _KEPT:
                _, oldest = self._open.popitem(last=False)
                oldest.close()
            return found

    def close(self) -> None:
        with self._lock:
            for timeline in self._open.values():
                timeline.close()
            self._open.clear()
