"""A migrated database with empty live views, and a way to apply events to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from projections import batches, generations, offsets
from projections.database import Connection, connect
from projections.migrate import migrate
from projections.views import VIEWS
from streams.events import Event
from streams.settings import PostgresSettings
from streams.topics import BY_NAME, topic_name
from tests.contract.sample_log import PREFIX, records
from tests.stack.servers import PostgresServer


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[PostgresSettings]:
    settings = postgres.fresh_database()
    yield settings
    postgres.drop_database(settings.dbname)


@pytest.fixture
def conn(database: PostgresSettings) -> Iterator[Connection]:
    """Live views at the beginning of the log."""
    with contextlib.closing(connect(database)) as conn:
        migrate(conn)
        generations.ensure(conn)
        for name, view in VIEWS.items():
            starts = {(topic_name(PREFIX, t), p): ("id", 0) for t in view.TOPICS for p in range(BY_NAME[t].partitions)}
            offsets.register(conn, name, offsets.live_generation(conn, name), starts)
        yield conn


Feed = Callable[..., None]


@pytest.fixture
def feed(conn: Connection) -> Feed:
    """`feed(event, …)` appends to the log so far and applies it to all views that read it."""
    log: list[Event] = []

    def apply(*events: Event) -> None:
        log.extend(events)
        for view in VIEWS.values():
            topics = {topic_name(PREFIX, t) for t in view.TOPICS}
            batches.apply_live(conn, view, [m for m in records(log) if m.topic in topics])

    return apply
