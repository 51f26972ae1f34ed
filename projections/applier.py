"""What a processor calls to apply a batch to a live view: a connection for each view, and patience with PostgreSQL.

    PostgreSQL goes away    the batch waits, and is applied again when it is back; had it been committed with the answer lost,
                            its records are known by their offsets and left out
    a batch begins beyond   records passed by while the view was dropped, or another process had the partition: what is
    where the view stands   missing is read from the log, then the batch follows
    the view is dropped     the batch is passed by; a rebuild reads those records from the log
    anything else           raised: the process ends and says why

Blocking; each view's batches run on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from projections import batches, log, offsets
from projections.database import Connection, wait
from projections.errors import OffsetMismatch, ProjectionError, ViewAbsent
from projections.offsets import Partition
from projections.views import VIEWS
from projections.views.base import View
from streams.consume import Message
from streams.settings import Settings

LOG = logging.getLogger("holdfast.projections")
_TRIES = 3


class Applier:
    """Applies batches to live views. `applied` counts records, for the watchdog; use `close` when done."""

    def __init__(self, settings: Settings, views: Iterable[str], stop: threading.Event) -> None:
        self._settings = settings
        self._stop = stop
        self._views = {name: _LiveView(settings, VIEWS[name], stop) for name in views}
        self._threads = {name: ThreadPoolExecutor(1, f"apply-{name}") for name in self._views}

    @property
    def applied(self) -> int:
        return sum(v.applied for v in self._views.values())

    async def apply(self, view: str, messages: Sequence[Message]) -> None:
        """Returns when the batch is committed, or passed by because the view is dropped."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads[view], self._views[view].apply, messages)

    async def positions(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Where each partition is wanted from: where the view that has read least of it stands (`streams.app.OffsetStore`)."""
        wanted = list(partitions)
        return await asyncio.get_running_loop().run_in_executor(None, self._positions, wanted)

    def _positions(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        while True:
            with contextlib.closing(wait(self._settings.postgres, LOG.warning, self._stop)) as conn:
                try:
                    return positions(conn, self._views, partitions)
                except psycopg.OperationalError as error:
                    LOG.warning("PostgreSQL went away: %s", error)

    def close(self) -> None:
        """The caller has set `stop`, so nothing waits."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
        for view in self._views.values():
            view.close()


def positions(conn: Connection, views: Iterable[str], partitions: Sequence[Partition]) -> dict[Partition, int]:
    """The least that the live ones of `views` have read of each partition; 0 for what none of them reads."""
    stands = []
    for view in views:
        with contextlib.suppress(ViewAbsent):
            stands.append(offsets.live(conn, view))
    return {p: min((s[p] for s in stands if p in s), default=0) for p in partitions}


class _LiveView:
    """One view and its connection."""

    def __init__(self, settings: Settings, view: View, stop: threading.Event) -> None:
        self._settings, self._view, self._stop = settings, view, stop
        self._conn: Connection | None = None
        self._absent = False
        self.applied = 0

    def apply(self, messages: Sequence[Message]) -> None:
        tries = 0
        while True:
            try:
                conn = self._connection()
                self.applied += batches.apply_live(conn, self._view, messages).records
                if self._absent:
                    LOG.info("view %s is back", self._view.NAME)
                    self._absent = False
                return
            except psycopg.OperationalError as error:
                LOG.warning("view %s: PostgreSQL went away: %s", self._view.NAME, str(error).strip())
                self.close()
            except ViewAbsent as error:
                if not self._absent:
                    LOG.warning("view %s: %s", self._view.NAME, error)
                    self._absent = True
                return
            except OffsetMismatch as error:
                tries += 1
                if tries > _TRIES:
                    raise
                LOG.warning("view %s: %s; reading what is between", self._view.NAME, error)
                self._fill(messages)
            if self._stop.is_set():
                raise ProjectionError("stopped", f"view {self._view.NAME}: stopped before a batch was applied")

    def _fill(self, messages: Sequence[Message]) -> None:
        """Apply what is between where the view stands and the batch, from the log."""
        conn = self._connection()
        with contextlib.suppress(ViewAbsent):
            stand = offsets.live(conn, self._view.NAME)
            first = {p: first for p, (first, _) in batches.ranges(messages).items()}
            behind = {p: at for p, at in first.items() if p in stand and stand[p] < at}
            for batch in log.replay(self._settings.kafka, stand, behind, self._stop):
                self.applied += batches.apply_live(conn, self._view, batch.messages, batch.read).records

    def _connection(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = wait(self._settings.postgres, LOG.warning, self._stop)
        return self._conn

    def close(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(psycopg.Error):
                self._conn.close()
            self._conn = None
