"""Dropping a view and building it again from the log, beside the live one if there is one.

    begun       empty tables of a new generation; offsets at the beginning of the log
    replaying   records applied by the bulk reader, up to the cut at which the live view (or the dropped one) was
    digested compared    both digests are known
    catching-up up to where the log ends by now, again while that is much
    swapping    the view's row is locked, processors wait; what they applied meanwhile is applied here too, in the same
    transaction swapped     committed: the new generation is live, together with its offsets
    cleaned     the old tables are gone

Killed before `swapped` commits, the old view stays, with what it reads since; killed after, the new one is in.
Leftovers are removed by the next `rebuild`, `drop` or migration. An advisory lock keeps a second rebuild of the same
view out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psycopg import sql

from projections import batches, generations, log, offsets
from projections.database import Connection, connect, live_schema
from projections.digest import Digest, digest, of_generation
from projections.errors import ProjectionError, ViewAbsent
from projections.locks import building
from projections.log import Extent, is_ephemeral
from projections.offsets import Cut, Partition
from projections.views import view as view_called
from projections.views.base import View
from streams.settings import KafkaSettings, Settings

# A rest this small is read while processors wait: some hundred milliseconds.
_SMALL_REST = 2000
_MOST_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rebuild is: `phase` as in the module's table, `done` of `total` records of the log (by offsets)."""

    view: str
    phase: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """`before`: what the live view, or the dropped one when it was dropped, said; `after`: what the log says, at the
    same cut.

    `equal` is None when there was nothing to compare with, `why` then says so in a sentence.
    """

    view: str
    generation: int
    before: Digest | None
    after: Digest
    equal: bool | None
    why: str
    records: int


def rebuild(
    settings: Settings,
    name: str,
    progress: Callable[[Progress], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> Rebuilt:
    """Build view `name` again from Kafka and put it in the place of the live one.

    Raises `ProjectionError`: `view-unknown`, `rebuild-running`, `rebuild-stopped` (the old view stays), `log-trimmed`,
    `log-silent`, `apply-failed`, `rebuild-restless`; `streams.errors.StreamError` for Kafka, `psycopg.Error` for
    PostgreSQL.
    """
    view = view_called(name)
    conn = connect(settings.postgres, f"rebuild {name}")
    with contextlib.closing(conn), building(conn, name):
        return _Rebuild(settings.kafka, conn, view, progress, stop or threading.Event()).run()


def drop(settings: Settings, name: str) -> Digest | None:
    """Take the view away, tables and all. Its digest is kept, to compare the rebuilt one with; None when its tables
    are of another version than we know. Processors leave its records alone until `rebuild`.

    Raises `ProjectionError`: `view-unknown`, `rebuild-running`; `ViewAbsent`.
    """
    view = view_called(name)
    conn = connect(settings.postgres, f"drop {name}")
    with contextlib.closing(conn), building(conn, name):
        generations.clean(conn, name)
        with conn.transaction():
            status = generations.status(conn, name, lock=True)
            generation = offsets.live_generation(conn, name)
            current = status is not None and status.version == view.VERSION
            last = of_generation(conn, view, generation, live_schema(name)) if current else None
            generations.retire(conn, name, last.to_json() if last else None)
        generations.clean(conn, name)
        return last


class _Rebuild:
    """One rebuild under way: the state that its phases share."""

    def __init__(
        self,
        kafka: KafkaSettings,
        conn: Connection,
        view: View,
        progress: Callable[[Progress], None],
        stop: threading.Event,
    ) -> None:
        self.kafka, self.conn, self.view, self.progress, self.stop = kafka, conn, view, progress, stop
        self.topics = log.full_topics(kafka, view)
        self.generation = 0
        self.records = 0
        self.total = 0

    def run(self) -> Rebuilt:
        conn, view = self.conn, self.view
        generations.clean(conn, view.NAME)
        extents = log.extents(self.kafka, self.topics)
        begins = log.starts(view.NAME, extents)
        before, why = self._before(extents)
        self.generation = generations.begin(conn, view)
        offsets.register(conn, view.NAME, self.generation, begins)
        self.total = sum(e.end - e.first for e in extents.values())
        self._say("begun")
        if before is not None:
            self._replay(before.cut)
        else:
            self._replay({p: e.end for p, e in extents.items() if not is_ephemeral(p[0])})
        after = of_generation(conn, view, self.generation, generations.build_schema(view.NAME, self.generation))
        self._say("compared")
        self._catch_up()
        self._swap()
        self._say("swapped")
        generations.clean(conn, view.NAME)
        self._say("cleaned")
        equal = None if before is None else before.same_as(after)
        return Rebuilt(view.NAME, self.generation, before, after, equal, why, self.records)

    def _before(self, extents: Mapping[Partition, Extent]) -> tuple[Digest | None, str]:
        """What to compare with, and if nothing, why."""
        status = generations.status(self.conn, self.view.NAME)
        if status is None:
            raise ViewAbsent("view-absent", f"view {self.view.NAME} was never built", "`python -m projections migrate`")
        if status.state == "dropped":
            found = Digest.from_json(status.dropped_digest) if status.dropped_digest else None
        else:
            found = digest(self.conn, self.view) if status.version == self.view.VERSION else None
        if found is None or found.version != self.view.VERSION:
            return None, f"the view before was of version {status.version}, this one is of {self.view.VERSION}"
        for (topic, partition), at in found.cut.items():
            extent = extents.get((topic, partition))
            if extent is None or found.topics.get(topic) != extent.topic_id:
                return None, f"the view before had read another topic that was called {topic}"
            if at > extent.end:
                return None, f"the view before had read {topic}[{partition}] up to {at}, the log ends at {extent.end}"
        if not found.cut:
            return None, "the view before had read nothing"
        return found, ""

    def _replay(self, end: Cut) -> None:
        stand = offsets.read(self.conn, self.view.NAME, self.generation)
        for batch in log.replay(self.kafka, stand, end, self.stop):
            batches.apply_to(self.conn, self.view, self.generation, batch.messages, batch.read)
            self.records += len(batch.messages)
            self._say("replaying")
        if self.stop.is_set():
            raise ProjectionError(
                "rebuild-stopped", f"the rebuild of view {self.view.NAME} was stopped; the view is as it was"
            )

    def _catch_up(self) -> None:
        """Read on until little is left; a log that grows faster than it is read never lets a rebuild end, and is told
        so."""
        for _ in range(_MOST_ROUNDS):
            extents = log.extents(self.kafka, self.topics)
            stand = offsets.read(self.conn, self.view.NAME, self.generation)
            end = {p: e.end for p, e in extents.items()}
            rest = sum(max(0, end[p] - at) for p, at in stand.items() if p in end)
            self._say("catching-up")
            if rest <= _SMALL_REST:
                self._analyze()
                self._replay(end)
                return
            self.total = max(self.total, self.records + rest)
            self._replay(end)
        raise ProjectionError(
            "rebuild-restless",
            f"the log grows faster than view {self.view.NAME} can be rebuilt",
            "try again when less is written",
        )

    def _swap(self) -> None:
        with self.conn.transaction():
            status = generations.status(self.conn, self.view.NAME, lock=True)
            if status is not None and status.state == "live":
                live = offsets.read(self.conn, self.view.NAME, status.generation)
                ids = offsets.topic_ids(self.conn, self.view.NAME, status.generation)
                mine = offsets.topic_ids(self.conn, self.view.NAME, self.generation)
                extents = log.extents(self.kafka, self.topics)
                # A live view that stands past the log's end, or in another topic, is no measure.
                self._replay({p: min(at, extents[p].end) for p, at in live.items() if ids.get(p[0]) == mine.get(p[0])})
            generations.swap(self.conn, self.view, self.generation)
            self._say("swapping")

    def _analyze(self) -> None:
        """The planner knows nothing of tables made a moment ago."""
        schema = generations.build_schema(self.view.NAME, self.generation)
        for table in (*self.view.TABLES, *self.view.UNDIGESTED):
            self.conn.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))

    def _say(self, phase: str) -> None:
        self.progress(Progress(self.view.NAME, phase, self.records, max(self.total, self.records)))
