"""The indexer killed with SIGKILL at each of its boundaries, again and again: granules and schema versions are there once,
and are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.capture.granules import MAX_STEPS, Indexer
from agents.capture.index import newest_granule
from agents.capture.keys import KeyCollector, Recorded
from agents.keystore import open_index
from agents.mysql.definitions import read_definitions, schema_version
from agents.schema.record import fold
from deploy.demo.mariadb import MariaDB
from streams.admin import ensure_topics, topic_id
from streams.capture_log import CaptureLog
from streams.events import GranuleClosed, GranuleKeys, SchemaRecorded
from streams.formats.binlog.keys import key_of_texts
from streams.formats.binlog.table_map import Declared
from streams.key_runs import PURPOSE, Run, hasher
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name
from tests.stack.agent import events
from tests.stack.capturing import Protected, eventually, protect
from tests.stack.servers import config_file

pytestmark = pytest.mark.crash

PLACES = (
    "schema.read",
    "schema.recorded",
    "index-granule-closed",
    "index-granule-sent",
    "index-granule-durable",
)
PARTS = 8
LOAD = """
CREATE OR REPLACE PROCEDURE indexed.load_rows(n INT)
BEGIN
  DECLARE i INT DEFAULT 0;
  WHILE i < n DO INSERT INTO indexed.a(v) VALUES (CONCAT('value ', i)); SET i = i + 1; END WHILE;
END
"""


@pytest.fixture
def protected(fresh_site: Settings, mariadb: MariaDB) -> Iterator[Protected]:
    """A captured source whose indexer never ran: some granules' worth of steps, definitions among them."""
    mariadb.execute("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 0")
    made = protect(fresh_site, mariadb)
    try:
        record_baseline(made)
        made.capture()
        mariadb.execute(
            "CREATE DATABASE indexed", "CREATE TABLE indexed.a(id INT PRIMARY KEY AUTO_INCREMENT, v LONGTEXT)", LOAD
        )
        for n in range(PARTS):
            mariadb.execute(
                f"CALL indexed.load_rows({3000 + n})",
                f"ALTER TABLE indexed.a ADD COLUMN c{n} INT",
                f"CREATE USER u{n}@'127.0.0.1' IDENTIFIED BY 'secret number {n}'",
                f"INSERT INTO indexed.a(v) VALUES (REPEAT('{n}', 2500000))",
            )
        made.caught_up()
        made.stop()
        yield made
    finally:
        made.stop()
        mariadb.execute(
            "DROP DATABASE IF EXISTS indexed", *(f"DROP USER IF EXISTS u{n}@'127.0.0.1'" for n in range(PARTS))
        )
        mariadb.execute("SET GLOBAL sync_binlog = 1", "SET GLOBAL innodb_flush_log_at_trx_commit = 1")


def record_baseline(made: Protected) -> None:
    with contextlib.closing(made.server.connect()) as conn:
        definitions = tuple(read_definitions(conn))
    recorded = SchemaRecorded(
        lineage=made.lineage,
        source=made.source,
        ordinal=0,
        position=made.start,
        full=True,
        origin="baseline",
        statement="",
        tables=definitions,
        version=schema_version(definitions),
        at_us=1,
    )
    ensure_topics(made.site.kafka, [("schema", made.source)])
    with Publisher(made.site, "test") as publisher:
        publisher.sent_and_durable(recorded)


def start(made: Protected, failpoint: str = "") -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-P", "-m", "agents.capture.index", "--config", str(config_file(made.site))]
    environment = {**os.environ, "HOLDFAST_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (made.site.data_dir / "index.log").open("ab") as out:
        return subprocess.Popen([*argv, "--source", made.source], env=environment, stdout=out, stderr=out)


def expected(made: Protected) -> list[GranuleClosed]:
    """The granules that the steps make, whoever looks."""
    site = made.site
    identity = topic_id(site.kafka, topic_name(site.kafka.prefix, "capture", made.source))
    with CaptureLog(site.kafka, made.source, SecretStore(site)) as log:
        tail = log.tail()
        assert tail is not None
        indexer = Indexer(made.source, tail.lineage, tail.epoch, identity)
        steps = log.steps(tail.lineage, 1, tail.ordinal)
        return [granule for fragment in steps if (granule := indexer.add(fragment)) is not None]


def keys(made: Protected) -> list[GranuleKeys]:
    """The key runs in the topic, each once: one may be there again, and ahead of its granule."""
    said = [k for k in events(made.site, "commits", GranuleKeys) if k.source == made.source]
    return [k for i, k in enumerate(said) if k not in said[:i]]


def keys_of(made: Protected, wanted: list[GranuleClosed]) -> list[GranuleKeys]:
    """The key runs that the steps and the schema topic make, whoever looks."""
    site = made.site
    key_id, secret = SecretStore(site).derived(PURPOSE)
    out = []
    with CaptureLog(site.kafka, made.source, SecretStore(site)) as log:
        tail = log.tail()
        assert tail is not None
        collector = KeyCollector(
            made.source, tail.lineage, tail.epoch, key_id, secret, Recorded(tail.lineage, versions(made))
        )
        for granule in wanted:
            for fragment in log.steps(tail.lineage, granule.first_ordinal, granule.last_ordinal):
                collector.add(fragment)
            out.append(collector.close(granule))
    return out


def assert_found_on_disk(made: Protected, wanted: list[GranuleClosed]) -> None:
    """The agent's own copy of the key index says what the topic says, whenever its writer was killed."""
    secrets = SecretStore(made.site)
    hashed = hasher(secrets.derived(PURPOSE)[1], "indexed", "a", ("id",))
    index = open_index(made.site.data_dir, made.source, made.lineage, secrets)
    assert index is not None
    with contextlib.closing(index):
        assert (index.first, index.last) == (wanted[0].first_ordinal, wanted[-1].last_ordinal)
        for number in (1, 17, 3001, 9999, 10**9):
            form = key_of_texts([Declared("id", "int")], [str(number)])
            runs = [Run(k.first_ordinal, k.last_ordinal, 1, k.entries) for k in keys(made)]
            said = [step for run in runs for step in run.steps(hashed(form))]
            assert list(index.steps_of(("indexed", "a"), ("id",), form, 0)) == said
            assert len(said) == (number < 10**9)


def granules(made: Protected) -> list[GranuleClosed]:
    return [g for g in events(made.site, "commits", GranuleClosed) if g.source == made.source]


def versions(made: Protected) -> list[SchemaRecorded]:
    return events(made.site, "schema", SchemaRecorded, made.source)


def finish(made: Protected, wanted: list[GranuleClosed]) -> None:
    """Let an indexer come to the end, stop it, and compare."""
    process = start(made)
    try:
        eventually(
            lambda: len(granules(made)) >= len(wanted) and len(versions(made)) >= 4 + PARTS, 180, "the last granule"
        )
    finally:
        process.send_signal(signal.SIGTERM)
        # It may be done before it has learned what SIGTERM is to mean.
        assert process.wait(120) in (0, -signal.SIGTERM), (made.site.data_dir / "index.log").read_text()
    assert granules(made) == wanted
    assert keys(made) == keys_of(made, wanted)
    assert {t.columns for k in keys(made) for t in k.tables} == {("id",)}
    assert sum(len(k.entries) for k in keys(made)) >= 12 * 3000 * PARTS
    assert_found_on_disk(made, wanted)
    assert newest_granule(made.site.kafka, made.source) == wanted[-1]
    assert newest_granule(made.site.kafka, "another") is None

    recorded = versions(made)
    defining = [e.statement.split()[:2] for e in recorded[1:]]
    assert defining == [["CREATE", "DATABASE"], ["CREATE", "TABLE"], ["CREATE", "OR"], *[["ALTER", "TABLE"]] * PARTS]
    assert {e.origin for e in recorded[1:]} == {"replayed"}
    with contextlib.closing(made.server.connect()) as conn:
        assert fold(recorded).version == schema_version(read_definitions(conn))
    assert "secret number" not in repr(granules(made)) + repr(recorded)
    assert "secret number" not in (made.site.data_dir / "index.log").read_text()


def test_killed_at_every_boundary_in_turn(protected: Protected) -> None:
    wanted = expected(protected)
    assert len(wanted) >= 4
    assert any(g.last_ordinal - g.first_ordinal + 1 < MAX_STEPS for g in wanted), "one closes by its size"
    for place in PLACES:
        died = start(protected, place)
        try:
            assert died.wait(120) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            died.kill()
            died.wait()
            pytest.fail(f"{place} was not passed")
        assert granules(protected) == wanted[: len(granules(protected))]
    finish(protected, wanted)


def test_killed_at_random_moments(protected: Protected) -> None:
    wanted = expected(protected)
    chance = random.Random(20261123)
    for _ in range(8):
        process = start(protected)
        time.sleep(chance.uniform(0.3, 2.5))  # the moment is the point
        process.kill()
        process.wait()
        has = granules(protected)
        assert has == wanted[: len(has)]
    finish(protected, wanted)


def test_a_granule_says_what_its_steps_did(protected: Protected) -> None:
    first = expected(protected)[0]
    assert [(t.schema, t.table, t.inserts, t.updates, t.deletes) for t in first.tables] == [
        ("indexed", "a", first.tables[0].inserts, 0, 0)
    ]
    kinds = [(mark.kind, mark.text.split(" ")[0]) for mark in first.landmarks]
    assert kinds[:3] == [("ddl", "CREATE"), ("ddl", "CREATE"), ("ddl", "CREATE")]
    assert ("account", "") in kinds
    assert replace(first, digest=b"") == replace(expected(protected)[0], digest=b"")
