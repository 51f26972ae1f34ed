"""The processors, killed and deprived of their servers while a log is applied: the rows are those of an undisturbed replay."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence

import psycopg
import pytest

from projections import offsets
from projections.database import connect
from projections.errors import ProjectionError
from projections.rebuild import drop, rebuild
from projections.views import VIEWS
from streams.events import Event, GranuleClosed
from streams.settings import Settings
from tests.contract.running import (
    PATIENCE_S,
    Worker,
    behind,
    digests,
    make_topics,
    prepared,
    publish,
    wait_until_applied,
)
from tests.contract.sample_log import history
from tests.stack.servers import KafkaServer, PostgresServer

pytestmark = pytest.mark.crash


@pytest.fixture
def worker(fresh_site: Settings) -> Iterator[Worker]:
    make_topics(fresh_site)
    with contextlib.ExitStack() as stack:
        worker = Worker(fresh_site)
        stack.callback(worker.__exit__)
        yield worker


def expect_what_the_log_says(site: Settings) -> None:
    """Every view, as the Faust driver left it, has the digest that the bulk driver reaches at the same cut."""
    for name in VIEWS:
        result = rebuild(site, name)
        assert result.equal is True, name
        assert result.before is not None
        assert sum(result.before.rows.values()) > 0, f"{name} has no rows to compare"


def wait_for_some(site: Settings, worker: Worker, share: float) -> None:
    """Until a share of the log is applied, but not all of it."""
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.closing(connect(site.postgres)) as conn:
        whole = 0
        while True:
            with contextlib.suppress(psycopg.Error, ProjectionError):
                left = behind(site, conn)
                stood = sum(sum(offsets.live(conn, name).values()) for name in VIEWS)
                whole = left + stood
                if stood >= share * whole and stood > 0:
                    return
            assert worker.process.poll() is None, worker.log
            assert time.monotonic() < deadline, worker.log


def log_of(seed: int, size: int) -> Sequence[Event]:
    return history(random.Random(seed), size)


def test_killed_again_and_again_in_the_middle_of_the_log(fresh_site: Settings, worker: Worker) -> None:
    publish(fresh_site, log_of(1, 12_000))
    left = []
    for share in (0.05, 0.3, 0.6, 0.8):
        worker.start()
        wait_for_some(fresh_site, worker, share)
        worker.kill()
        with contextlib.closing(connect(fresh_site.postgres)) as conn:
            left.append(behind(fresh_site, conn))
    assert left[0] > left[1] > 0, "it was not killed in the middle"
    publish(fresh_site, log_of(2, 500))
    worker.start()
    wait_until_applied(fresh_site, worker)
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_postgresql_killed_and_started_again_in_the_middle_of_the_log(
    fresh_site: Settings, worker: Worker, postgres: PostgresServer
) -> None:
    publish(fresh_site, log_of(3, 8000))
    worker.start()
    try:
        for share in (0.1, 0.5):
            wait_for_some(fresh_site, worker, share)
            postgres.kill()
            worker.wait_for("waiting for PostgreSQL")
            postgres.restart()
    finally:
        if not postgres.process.alive():
            postgres.restart()
    wait_until_applied(fresh_site, worker)
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_the_broker_killed_and_started_again_in_the_middle_of_the_log(
    fresh_site: Settings, worker: Worker, kafka: KafkaServer
) -> None:
    publish(fresh_site, log_of(4, 8000))
    worker.start()
    try:
        wait_for_some(fresh_site, worker, 0.2)
        kafka.kill()
    finally:
        kafka.restart()
    publish(fresh_site, log_of(5, 500))
    wait_until_applied(fresh_site, worker)
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_processors_started_before_their_servers_wait_and_say_so(
    fresh_site: Settings, worker: Worker, kafka: KafkaServer, postgres: PostgresServer
) -> None:
    publish(fresh_site, log_of(6, 300))
    kafka.stop()
    postgres.stop()
    try:
        worker.start()
        worker.wait_for("waiting for PostgreSQL")
        postgres.restart()
        worker.wait_for("waiting for Kafka")
    finally:
        postgres.restart() if not postgres.process.alive() else None
        kafka.restart()
    wait_until_applied(fresh_site, worker)
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_every_record_published_twice(fresh_site: Settings, worker: Worker) -> None:
    """As when a publisher was restarted and did not know what of its last session had got in (the events are the same; the
    records are not, so those that have histories of their own keep both)."""
    events = [e for e in log_of(7, 1500) if e.TOPIC in ("commits", "audit")]
    publish(fresh_site, events)
    publish(fresh_site, events)
    worker.start()
    wait_until_applied(fresh_site, worker)
    twice = {}
    with contextlib.closing(connect(fresh_site.postgres)) as conn:
        twice = {name: d.rows for name, d in digests(conn).items()}
        total = conn.execute("SELECT sum(steps) FROM lineage_total").fetchone()
    assert twice["audit"]["call"] == len([e for e in events if e.TOPIC == "audit"])
    granules = [e for e in events if isinstance(e, GranuleClosed)]
    assert twice["timeline"]["granule"] == len(granules)
    assert total == (sum(e.last_ordinal - e.first_ordinal + 1 for e in granules),)
    assert worker.stop() == 0


def test_two_processes_at_once_apply_each_record_once(fresh_site: Settings, worker: Worker) -> None:
    """As when a supervisor believes one dead that is not. The families share no consumer group, and both have all views' rows
    to fight over: compare-and-set decides."""
    publish(fresh_site, log_of(8, 6000))
    with Worker(fresh_site, "--family", "catalogue", "--family", "timelines", "--family", "dashboards") as other:
        other.log_file = fresh_site.data_dir / "other.log"
        worker.start()
        wait_until_applied(fresh_site, worker)
        assert other.process.poll() is None, other.log
        assert other.stop() == 0
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_dropped_and_rebuilt_while_the_processors_run(fresh_site: Settings, worker: Worker) -> None:
    publish(fresh_site, log_of(9, 1000))
    worker.start()
    wait_until_applied(fresh_site, worker)
    for name in VIEWS:
        last = drop(fresh_site, name)
        publish(fresh_site, log_of(10, 100))
        result = rebuild(fresh_site, name)
        assert (result.equal, result.before) == (True, last), name
    publish(fresh_site, log_of(11, 200))
    wait_until_applied(fresh_site, worker)
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_a_view_of_an_older_version_is_rebuilt_by_the_processors(fresh_site: Settings, worker: Worker) -> None:
    with prepared(fresh_site) as conn:
        publish(fresh_site, log_of(12, 1000))
        conn.execute("UPDATE holdfast.view SET version = 0 WHERE view = 'timeline'")
        conn.execute("ALTER TABLE view_timeline.granule DROP COLUMN digest")
    worker.start()
    wait_until_applied(fresh_site, worker)
    assert "view timeline has changed with this version" in worker.log
    expect_what_the_log_says(fresh_site)
    assert worker.stop() == 0


def test_a_record_that_nobody_can_read_stops_the_processors_with_its_place(
    fresh_site: Settings, worker: Worker
) -> None:
    from confluent_kafka import Producer

    producer = Producer(fresh_site.kafka.client_config())
    producer.produce(f"{fresh_site.kafka.prefix}jobs", b"\xc3\x01from the future", b"j", 1)
    assert producer.flush(30) == 0
    worker.start()
    assert worker.process.wait(PATIENCE_S) == 1
    assert "record-unreadable" in worker.log
    assert f"{fresh_site.kafka.prefix}jobs[1]@0" in worker.log
    assert "upgrade this one" in worker.log
