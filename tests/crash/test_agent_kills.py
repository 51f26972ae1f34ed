"""The agent killed with SIGKILL at each boundary of `source.add`, and started again: what is left is what an undisturbed
run leaves. Its children die with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from agents.baseline.manifest import folder_of, read_manifest, verify
from deploy.demo.mariadb import MariaDB
from streams.capture_log import CaptureLog
from streams.events import FINAL_STATES, LineageStarted, SchemaRecorded, SourceChanged, SourceDefined
from streams.settings import Settings
from tests.stack.agent import (
    AgentProcess,
    await_it,
    await_job,
    await_state,
    events,
    grant_capture,
    job,
    send,
    source_parameters,
)
from tests.stack.servers import KafkaServer

pytestmark = pytest.mark.crash

ADDING = (
    "command.claimed",
    "add.topics",
    "add.defined",
    "baseline.snapshot",
    "baseline.table",
    "baseline.before-rename",
    "baseline.after-rename",
    "add.baseline",
    "add.schema",
    "epoch-sent",
    "epoch-durable",
    "lineage-claimed",
    "lineage-started",
    "add.lineage",
    "add.capturing",
    "command.done",
    "command.finished",
)
SIGKILLED = -9


@pytest.fixture
def agent(fresh_site: Settings) -> Iterator[AgentProcess]:
    process = AgentProcess(fresh_site)
    try:
        yield process
    finally:
        process.end()
        print(process.tail())


@pytest.fixture
def shop(mariadb: MariaDB) -> Iterator[MariaDB]:
    grant_capture(mariadb)
    mariadb.execute(
        "CREATE DATABASE shop",
        "CREATE TABLE shop.item(id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(40))",
        "CREATE TABLE shop.sale(id INT PRIMARY KEY AUTO_INCREMENT, item INT, FOREIGN KEY (item) REFERENCES shop.item(id))",
        "INSERT INTO shop.item(name) VALUES ('a'), ('b')",
        "INSERT INTO shop.sale(item) VALUES (1), (2), (2)",
    )
    yield mariadb
    mariadb.execute("DROP DATABASE shop", "DROP USER capture@'127.0.0.1'")


def captured(settings: Settings) -> int:
    with CaptureLog(settings.kafka, "shop") as log:
        tail = log.tail()
    return 0 if tail is None else tail.ordinal


@pytest.mark.parametrize("where", ADDING)
def test_killed_while_adding_a_source(agent: AgentProcess, shop: MariaDB, where: str) -> None:
    settings = agent.settings
    agent.start(where)
    command = send(settings, "source.add", **source_parameters(settings, shop))
    assert agent.wait() == SIGKILLED, "the place was not passed"
    shop.execute("INSERT INTO shop.sale(item) VALUES (1)")
    agent.start()
    done = await_job(settings, command)
    assert done.state == "finished", done.problems
    await_state(settings, "capturing")
    shop.execute("INSERT INTO shop.sale(item) VALUES (2)")

    result = json.loads(done.result)
    parent = folder_of(settings.data_dir, "shop")
    assert [p.name for p in parent.iterdir()] == [result["baseline"]]
    made = read_manifest(parent / result["baseline"])
    assert verify(parent / result["baseline"]) == []
    assert (made.lineage, made.job) == (result["lineage"], command)

    # Both steps are there exactly once between them: in the baseline, or captured after it.
    in_baseline = next(t.rows for t in made.tables if t.table == "sale") - 3
    await_it(lambda: captured(settings) == 2 - in_baseline, "the steps after the baseline")
    started = events(settings, "capture", LineageStarted, "shop")
    assert [(e.lineage, e.position) for e in started] == [(made.lineage, made.position)]
    recorded = events(settings, "schema", SchemaRecorded, "shop")
    assert [(r.lineage, r.ordinal, r.full) for r in recorded] == [(made.lineage, 0, True)]
    assert {r.version.hex() for r in recorded} == {made.schema_version}
    assert len(events(settings, "inventory", SourceDefined)) == 1
    last = events(settings, "inventory", SourceChanged)[-1]
    assert (last.state, last.lineage) == ("capturing", made.lineage)
    assert [e.state for e in job(settings, command) if e.state in FINAL_STATES] == ["finished"]


def test_killed_while_pausing_and_while_removing(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    agent.start("pause.ended")
    assert await_job(settings, send(settings, "source.add", **source_parameters(settings, shop))).state == "finished"
    pausing = send(settings, "source.pause")
    assert agent.wait() == SIGKILLED
    shop.execute("INSERT INTO shop.item(name) VALUES ('meanwhile')")
    agent.start("remove.said")
    assert await_job(settings, pausing).state == "finished"
    await_state(settings, "paused")
    removing = send(settings, "source.remove", purge=True)
    assert agent.wait() == SIGKILLED
    assert folder_of(settings.data_dir, "shop").exists()
    agent.start()
    assert await_job(settings, removing).state == "finished"
    assert not folder_of(settings.data_dir, "shop").exists()
    assert agent.children() == []


def test_children_die_with_a_killed_agent(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    agent.start()
    assert await_job(settings, send(settings, "source.add", **source_parameters(settings, shop))).state == "finished"
    children = await_it(lambda: agent.children() if len(agent.children()) == 2 else None, "capture and indexer")
    agent.kill()
    await_it(lambda: not any(map(alive, children)), "the end of both", 10)

    shop.execute("INSERT INTO shop.item(name) VALUES ('while nobody looked')")
    agent.start()
    await_it(lambda: captured(settings) == 1, "the step")


def test_a_killed_child_is_started_again_and_nothing_is_lost(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    agent.start()
    assert await_job(settings, send(settings, "source.add", **source_parameters(settings, shop))).state == "finished"
    for n in range(3):
        children = await_it(lambda: agent.children() if len(agent.children()) == 2 else None, "both children")
        shop.execute(f"INSERT INTO shop.item(name) VALUES ('{n}')")
        for child in children:
            os.kill(child, 9)
        shop.execute(f"INSERT INTO shop.item(name) VALUES ('{n}')")
        await_it(lambda: captured(settings) == 2 * n + 2, "both steps")  # noqa: B023 - called at once


def test_a_paused_and_a_killed_broker_only_delay(agent: AgentProcess, shop: MariaDB, kafka: KafkaServer) -> None:
    settings = agent.settings
    agent.start()
    command = send(settings, "source.add", **source_parameters(settings, shop))
    await_it(lambda: [e for e in job(settings, command) if e.state == "started"], "the start")
    kafka.pause()
    try:
        time.sleep(6)  # longer than any request waits: what is under way is sent again
    finally:
        kafka.resume()
    done = await_job(settings, command, 90)
    assert done.state == "finished", done.problems
    children = await_it(lambda: agent.children() if len(agent.children()) == 2 else None, "both children")

    kafka.kill()
    shop.execute("INSERT INTO shop.item(name) VALUES ('while the log was away')")
    kafka.restart()
    await_it(lambda: captured(settings) == 1, "the step", 90)
    assert await_job(settings, send(settings, "source.pause"), 90).state == "finished"
    assert set(agent.children()) <= set(children), "nobody had to be started again"
    await_it(lambda: set(agent.children()) < set(children), "the end of capture")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
