"""A rebuild gives what the log says, compares it with what was there, and swaps it in; on a real Kafka and PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from projections import batches, generations, log, offsets
from projections.__main__ import main
from projections.database import Connection, connect
from projections.digest import digest
from projections.errors import ProjectionError, ViewAbsent
from projections.rebuild import Progress, drop, rebuild
from projections.views import VIEWS, jobs
from projections.worker import stand_on
from streams.settings import Settings
from tests.contract.running import apply_all, digests, make_topics, prepared, publish
from tests.contract.sample_log import history
from tests.stack.servers import config_file


@pytest.fixture
def site(fresh_site: Settings) -> Settings:
    return fresh_site


@pytest.fixture
def conn(site: Settings) -> Iterator[Connection]:
    with prepared(site) as conn:
        yield conn


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_every_view_is_rebuilt_to_what_it_was(site: Settings, conn: Connection, name: str) -> None:
    publish(site, history(random.Random(1), 800))
    apply_all(site, conn)
    before = digest(conn, VIEWS[name])
    assert sum(before.rows.values()) > 0
    phases: list[str] = []
    result = rebuild(site, name, lambda p: phases.append(p.phase))
    assert result.equal is True
    assert (result.before, result.after.digest) == (before, before.digest)
    assert digest(conn, VIEWS[name]).same_as(before)
    assert offsets.live_generation(conn, name) == before.generation + 1
    assert list(dict.fromkeys(phases)) == [
        "begun",
        "replaying",
        "compared",
        "catching-up",
        "swapping",
        "swapped",
        "cleaned",
    ]
    # Nothing is left of the old one, and the new one goes on.
    assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'view_%%'", ()).fetchone() == (
        len(VIEWS),
    )
    publish(site, history(random.Random(2), 200))
    apply_all(site, conn)
    assert digest(conn, VIEWS[name]).digest != before.digest


def test_rows_that_the_log_does_not_say_are_found_and_gone(site: Settings, conn: Connection) -> None:
    publish(site, history(random.Random(1), 300))
    apply_all(site, conn)
    honest = digest(conn, VIEWS["access"])
    conn.execute("UPDATE token SET role = 'admin' WHERE token = (SELECT min(token) FROM token)")
    result = rebuild(site, "access")
    assert result.equal is False
    assert result.after.digest == honest.digest
    assert digest(conn, VIEWS["access"]).digest == honest.digest


def test_records_that_came_after_the_cut_are_in_the_new_view_but_not_in_the_comparison(
    site: Settings, conn: Connection
) -> None:
    publish(site, history(random.Random(1), 300))
    apply_all(site, conn)
    before = digest(conn, VIEWS["jobs"])
    publish(site, history(random.Random(2), 300))
    result = rebuild(site, "jobs")
    assert (result.equal, result.after.cut) == (True, before.cut)
    after = digest(conn, VIEWS["jobs"])
    assert sum(after.cut.values()) > sum(before.cut.values())
    apply_all(site, conn)
    assert digest(conn, VIEWS["jobs"]) == after


def test_a_dropped_view_is_rebuilt_to_the_digest_it_had(site: Settings, conn: Connection) -> None:
    publish(site, history(random.Random(1), 300))
    apply_all(site, conn)
    last = drop(site, "jobs")
    assert last is not None
    with pytest.raises(psycopg.errors.UndefinedTable):
        jobs.jobs(conn)
    with pytest.raises(ViewAbsent):
        digest(conn, VIEWS["jobs"])
    with pytest.raises(ViewAbsent):
        drop(site, "jobs")
    publish(site, history(random.Random(2), 100))
    result = rebuild(site, "jobs")
    assert result.equal is True
    assert result.before == last
    assert jobs.jobs(conn)


def test_processors_that_go_on_meanwhile_lose_nothing(site: Settings, conn: Connection) -> None:
    """Batches are applied to the live view all through the rebuild, the last one just before the swap."""
    publish(site, history(random.Random(1), 300))
    apply_all(site, conn)

    def go_on(progress: Progress) -> None:
        if progress.phase in ("begun", "compared", "catching-up"):
            publish(site, history(random.Random(progress.done + len(progress.phase)), 60))
            apply_all(site, conn)

    assert rebuild(site, "timeline", go_on).equal is True
    stood = offsets.live(conn, "timeline")
    apply_all(site, conn)
    assert offsets.live(conn, "timeline") == stood  # it came in with all that the old one had
    assert rebuild(site, "timeline").equal is True


def test_a_batch_waits_for_a_swap_and_then_is_known(site: Settings, conn: Connection) -> None:
    publish(site, history(random.Random(1), 300))
    apply_all(site, conn)
    stood = offsets.live(conn, "audit")
    publish(site, [e for e in history(random.Random(2), 400) if e.TOPIC == "audit"])
    ends = {p: e.end for p, e in log.extents(site.kafka, [f"{site.kafka.prefix}audit"]).items()}
    waiting = list(log.replay(site.kafka, stood, ends, threading.Event()))
    outcome: list[batches.Applied] = []

    def processor() -> None:
        with contextlib.closing(connect(site.postgres)) as mine:
            outcome.extend(batches.apply_live(mine, VIEWS["audit"], b.messages, b.read) for b in waiting)

    thread = threading.Thread(target=processor)

    def during(progress: Progress) -> None:
        if progress.phase == "swapping":
            thread.start()
            while not conn.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ).fetchone():
                pass

    assert rebuild(site, "audit", during).equal is True
    thread.join(120)
    assert sum(o.known for o in outcome) == sum(ends.values()) - sum(stood.values())
    assert sum(o.records for o in outcome) == 0


def test_a_stopped_rebuild_leaves_the_view_as_it_was(site: Settings, conn: Connection) -> None:
    publish(site, history(random.Random(1), 300))
    apply_all(site, conn)
    before = digests(conn)
    stop = threading.Event()
    with pytest.raises(ProjectionError) as error:
        rebuild(site, "jobs", lambda p: stop.set(), stop)
    assert error.value.code == "rebuild-stopped"
    assert digests(conn) == before
    assert rebuild(site, "jobs").equal is True
    assert generations.clean_all(conn) == []


def test_two_rebuilds_of_a_view_do_not_meet(site: Settings, conn: Connection) -> None:
    codes: list[str] = []

    def again(progress: Progress) -> None:
        if progress.phase == "begun":
            for attempt in (rebuild, drop):
                with pytest.raises(ProjectionError) as error:
                    attempt(site, "jobs")
                codes.append(error.value.code)
            assert rebuild(site, "audit").equal is True  # another view's is none of its business

    rebuild(site, "jobs", again)
    assert codes == ["rebuild-running", "rebuild-running"]


def test_a_view_of_an_older_version_is_rebuilt_without_comparison(site: Settings, conn: Connection) -> None:
    publish(site, history(random.Random(1), 100))
    apply_all(site, conn)
    conn.execute("UPDATE holdfast.view SET version = 0 WHERE view = 'jobs'")
    result = rebuild(site, "jobs")
    assert (result.equal, result.before) == (None, None)
    assert "version" in result.why
    assert generations.ensure(conn) == []


def test_a_topic_created_anew_is_noticed_and_only_a_rebuild_reads_it(site: Settings, conn: Connection) -> None:
    publish(site, [e for e in history(random.Random(1), 200) if e.TOPIC == "audit"])
    apply_all(site, conn)
    topic = f"{site.kafka.prefix}audit"
    admin = AdminClient(site.kafka.client_config())
    admin.delete_topics([topic])[topic].result(30)
    make_topics(site)
    publish(site, [e for e in history(random.Random(2), 100) if e.TOPIC == "audit"])
    with pytest.raises(ProjectionError) as error:
        stand_on(site, conn, "audit")
    assert error.value.code == "topic-recreated"
    result = rebuild(site, "audit")
    assert result.equal is None
    assert "another topic" in result.why
    stand_on(site, conn, "audit")
    apply_all(site, conn)
    assert rebuild(site, "audit").equal is True


def test_a_trimmed_log_is_not_taken_for_the_whole(site: Settings, conn: Connection) -> None:
    publish(site, history(random.Random(1), 400))
    apply_all(site, conn)
    before = digests(conn)
    admin = AdminClient(site.kafka.client_config())
    for topic in ("commits", "health"):
        wanted = [TopicPartition(f"{site.kafka.prefix}{topic}", p, 2) for p in range(4)]
        for future in admin.delete_records(wanted).values():
            with contextlib.suppress(Exception):  # an empty partition has nothing to trim
                future.result(30)
    with pytest.raises(ProjectionError) as error:
        rebuild(site, "timeline")
    assert error.value.code == "log-trimmed"
    assert digests(conn) == before
    # Views that have read what was trimmed go on.
    stand_on(site, conn, "timeline")
    # A view that stands before what health holds goes on from there; its digest does not speak of health.
    conn.execute("UPDATE holdfast.view_offset SET next_offset = 0 WHERE topic LIKE '%%health' AND next_offset > 2", ())
    stand_on(site, conn, "dashboard")
    assert all(at in (0, 2) for p, at in offsets.live(conn, "dashboard").items() if p[0].endswith("health"))


def test_the_command_line_drops_rebuilds_and_compares(
    site: Settings, conn: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(site, history(random.Random(1), 200))
    apply_all(site, conn)
    config = ["--config", str(config_file(site))]
    assert main([*config, "digest", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert {name: d["digest"] for name, d in first.items()} == {name: d.digest for name, d in digests(conn).items()}
    assert main([*config, "drop", "all"]) == 0
    assert main([*config, "digest", "jobs"]) == 1
    assert "view-dropped" in capsys.readouterr().err
    assert main([*config, "rebuild", "all", "--json"]) == 0
    rebuilt = json.loads(capsys.readouterr().out)
    assert all(r["equal"] is True for r in rebuilt.values())
    assert {name: r["after"]["digest"] for name, r in rebuilt.items()} == {n: d["digest"] for n, d in first.items()}
    conn.execute("UPDATE call SET outcome = 0")
    assert main([*config, "rebuild", "audit"]) == 3
    assert "NOT what it was" in capsys.readouterr().out
    assert main([*config, "migrate"]) == 0
