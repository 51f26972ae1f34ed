"""What a processor's batch meets: a view that is dropped, a gap, a PostgreSQL that went away."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from projections import batches, generations, log, offsets
from projections.applier import Applier, positions
from projections.database import Connection, connect
from projections.digest import digest
from projections.errors import ProjectionError
from projections.rebuild import drop, rebuild
from projections.views import VIEWS
from streams.consume import Message
from streams.settings import Settings
from tests.contract.running import apply_all, prepared, publish
from tests.contract.sample_log import History, history


@pytest.fixture
def conn(fresh_site: Settings) -> Iterator[Connection]:
    with prepared(fresh_site) as conn:
        yield conn


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def applier(fresh_site: Settings, conn: Connection, stop: threading.Event) -> Iterator[Applier]:
    applier = Applier(fresh_site, list(VIEWS), stop)
    yield applier
    stop.set()
    applier.close()


def calls(site: Settings, count: int, seed: int = 1) -> list[Message]:
    """Publish calls; everything that `audit` now holds."""
    h = History(random.Random(seed))
    for _ in range(count):
        h.call()
    publish(site, h.events)
    topic = f"{site.kafka.prefix}audit"
    ends = {p: e.end for p, e in log.extents(site.kafka, [topic]).items()}
    read = log.replay(site.kafka, dict.fromkeys(ends, 0), ends, threading.Event())
    return [m for batch in read for m in batch.messages]


def count(conn: Connection) -> int:
    row = conn.execute("SELECT count(*) FROM call").fetchone()
    assert row is not None
    return int(row[0])


def test_records_passed_by_are_read_from_the_log(fresh_site: Settings, conn: Connection, applier: Applier) -> None:
    messages = calls(fresh_site, 200)
    late = [m for m in messages if m.offset >= 20]
    assert 0 < len(late) < 200
    asyncio.run(applier.apply("audit", late))
    assert count(conn) == 200
    assert rebuild(fresh_site, "audit").equal is True


def test_a_dropped_view_s_records_are_left_to_the_rebuild(
    fresh_site: Settings, conn: Connection, applier: Applier
) -> None:
    messages = calls(fresh_site, 50)
    asyncio.run(applier.apply("audit", messages))
    last = drop(fresh_site, "audit")
    more = [m for m in calls(fresh_site, 50, seed=2) if m not in messages]
    asyncio.run(applier.apply("audit", more))
    result = rebuild(fresh_site, "audit")
    assert (result.equal, result.before) == (True, last)
    assert count(conn) == 100
    asyncio.run(applier.apply("audit", more))
    assert count(conn) == 100


def test_a_connection_that_broke_is_made_anew(fresh_site: Settings, conn: Connection, applier: Applier) -> None:
    messages = calls(fresh_site, 60)
    asyncio.run(applier.apply("audit", messages[:20]))
    killed = conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchall()
    assert killed
    asyncio.run(applier.apply("audit", messages))
    assert count(conn) == 60


def test_a_commit_whose_answer_was_lost_is_not_applied_twice(
    fresh_site: Settings, conn: Connection, applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = calls(fresh_site, 40)
    real = batches.apply_live
    lost: list[object] = []

    def apply_and_lose(*args: Any) -> object:
        answer = real(*args)
        if not lost:
            lost.append(answer)
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer

    monkeypatch.setattr(batches, "apply_live", apply_and_lose)
    asyncio.run(applier.apply("audit", messages))
    assert lost
    assert count(conn) == 40
    assert sum(offsets.live(conn, "audit").values()) == 40


def test_a_view_that_cannot_apply_says_so(
    fresh_site: Settings, conn: Connection, applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = calls(fresh_site, 10)
    before = digest(conn, VIEWS["audit"])

    def broken(cursor: psycopg.Cursor[object], messages: list[Message]) -> None:
        raise ValueError("no")

    monkeypatch.setattr(VIEWS["audit"], "apply", broken)
    with pytest.raises(ProjectionError) as error:
        asyncio.run(applier.apply("audit", messages))
    assert error.value.code == "apply-failed"
    assert digest(conn, VIEWS["audit"]) == before


def test_the_log_is_wanted_from_where_the_slowest_live_view_stands(fresh_site: Settings, conn: Connection) -> None:
    publish(fresh_site, history(random.Random(1), 300))
    apply_all(fresh_site, conn)
    topic = f"{fresh_site.kafka.prefix}commits"
    partition, end = max(
        ((p, at) for p, at in offsets.live(conn, "timeline").items() if p[0] == topic), key=lambda item: item[1]
    )
    conn.execute(
        "UPDATE holdfast.view_offset SET next_offset = 1 WHERE view = 'timeline' AND topic = %s AND partition = %s",
        partition,
    )
    unknown = ("holdfast.other", 0)
    assert positions(conn, VIEWS, [partition, unknown]) == {partition: 1, unknown: 0}
    with conn.transaction():
        generations.retire(conn, "timeline", None)
    assert positions(conn, VIEWS, [partition]) == {partition: end}


def test_the_store_waits_for_postgresql_until_told_to_stop(fresh_site: Settings, stop: threading.Event) -> None:
    nobody = dataclasses.replace(fresh_site.postgres, port=1)
    applier = Applier(dataclasses.replace(fresh_site, postgres=nobody), ["audit"], stop)
    threading.Timer(1.0, stop.set).start()
    with contextlib.closing(applier), pytest.raises(ProjectionError) as error:
        asyncio.run(applier.positions([("a", 0)]))
    assert error.value.code == "postgres-unreachable"


def test_a_connection_of_ours_finds_the_live_views(fresh_site: Settings, conn: Connection) -> None:
    with contextlib.closing(connect(fresh_site.postgres)) as mine:
        assert mine.execute("SELECT count(*) FROM job, granule, call, token, source, agent_health").fetchone() == (0,)
