"""Looks every minute how well each asset is protected, and says into the log where that is not what was said last.

    look → protections of this moment → protection.changed, for each that differs → durable

A state follows from schedules and clocks as much as from events, so somebody has to look. Every API does; of two that say the
same the first counts (`streams.protection_log`). And if we die here? What was not said differs still at the next look.

Nothing is said while the read models are behind what this API has seen of the log: points that are in the log and not in the
views would make assets look late.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import psycopg

from api import policies
from api.errors import ApiError
from projections.errors import ProjectionError
from streams.errors import StreamError
from streams.events import ProtectionChanged
from streams.ids import now_us

if TYPE_CHECKING:
    from api.site import Site

log = logging.getLogger("holdfast.api")


class Watching:
    """One thread. `every_s` 0: nobody looks."""

    def __init__(self, site: Site, every_s: int) -> None:
        self._site = site
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watching", daemon=True)

    def start(self) -> None:
        if self._every_s:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def look(self) -> list[ProtectionChanged]:
        """One look; what was said. Raises what reading the views and writing the log raises."""
        live, now = self._site.live, now_us()
        if not live.ready.is_set():
            return []
        with self._site.views() as conn:
            if not self._site.catch_up_all(conn, policies.PROTECTION):
                return []
            found = policies.protections(conn, now)
        said = []
        for one in found:
            how, before = one.protection, live.protection(one.kind, one.asset)
            event = ProtectionChanged(
                asset=one.asset,
                kind=one.kind,
                state=how.state,
                before=before,
                policy=how.policy,
                late_s=how.late_us // 1_000_000,
                proof=how.proof,
                at_us=now,
                by=f"api-{self._site.run}",
            )
            if how.state != before:
                live.note(self._site.log.publish(event), event)
                said.append(event)
        if said:
            self._site.log.flush()
        return said

    def _run(self) -> None:
        told = ""
        while not self._stop.wait(self._every_s):
            try:
                self.look()
                told = ""
            except (StreamError, ApiError, ProjectionError, psycopg.Error) as error:
                if str(error) != told:
                    log.warning("how well assets are protected could not be looked at: %s", error)
                told = str(error)
