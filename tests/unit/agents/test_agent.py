"""The agent as a process: commands from the log, jobs into it, processes for the sources that are captured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from agents.baseline.manifest import folder_of, read_manifest
from deploy.demo.mariadb import MariaDB
from streams.capture_log import CaptureLog
from streams.events import GranuleClosed, HealthReported, LineageStarted, SchemaRecorded, SourceDefined
from streams.ids import now_us
from streams.secrets import SecretError, SecretStore
from streams.settings import Settings
from tests.stack.agent import (
    AgentProcess,
    await_it,
    await_job,
    await_state,
    events,
    grant_capture,
    job,
    messages,
    send,
    source_parameters,
)


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
        "INSERT INTO shop.item(name) VALUES ('before')",
    )
    yield mariadb
    mariadb.execute("DROP DATABASE shop", "DROP USER capture@'127.0.0.1'")


def captured(settings: Settings) -> int:
    with CaptureLog(settings.kafka, "shop") as log:
        tail = log.tail()
    return 0 if tail is None else tail.ordinal


def test_a_source_is_added_captured_paused_resumed_and_removed(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    agent.start()
    added = await_job(settings, command := send(settings, "source.add", **source_parameters(settings, shop)))
    assert added.state == "finished", added.problems
    states = [e.state for e in job(settings, command)]
    assert states[:3] == ["accepted", "claimed", "started"]
    assert states[-1] == "finished"
    assert set(states[3:-1]) <= {"progressed", "warned"}
    result = json.loads(added.result)
    baseline = read_manifest(folder_of(settings.data_dir, "shop") / result["baseline"])
    assert (baseline.lineage, baseline.rows) == (result["lineage"], 1)
    assert "rows" in result["capability"]
    recorded = events(settings, "schema", SchemaRecorded, "shop")
    assert [(r.ordinal, r.full, r.origin, r.lineage) for r in recorded] == [(0, True, "baseline", result["lineage"])]
    assert [t.table for t in recorded[0].tables] == ["item"]
    await_state(settings, "capturing")

    shop.execute("INSERT INTO shop.item(name) VALUES ('one')", "INSERT INTO shop.item(name) VALUES ('two')")
    await_it(lambda: captured(settings) == 2, "two steps in the log")
    paused = await_job(settings, send(settings, "source.pause"))
    assert json.loads(paused.result)["ordinal"] == 2
    assert await_state(settings, "paused").position == shop.execute("SELECT @@gtid_binlog_pos")[0][0]
    assert len(agent.children()) == 1, "the indexer goes on"

    shop.execute("INSERT INTO shop.item(name) VALUES ('three')")
    resumed = await_job(settings, send(settings, "source.resume"))
    assert (resumed.state, json.loads(resumed.result)["ordinal"]) == ("finished", 2)
    await_it(lambda: captured(settings) == 3, "the third step")

    again = await_job(settings, send(settings, "source.add", **source_parameters(settings, shop)))
    assert [p.code for p in again.problems] == ["source-exists"]

    removed = await_job(settings, send(settings, "source.remove", purge=True))
    assert removed.state == "finished", removed.problems
    await_it(lambda: agent.children() == [], "the end of all children")
    assert not folder_of(settings.data_dir, "shop").exists()
    unknown = await_job(settings, send(settings, "source.pause"))
    assert [p.code for p in unknown.problems] == ["source-unknown"]
    assert agent.stop() == 0
    assert all(b"capture secret" not in m.event.__repr__().encode() for m in messages(settings, "inventory"))
    assert "capture secret" not in agent.log.read_text()


def test_every_problem_is_named_at_once_and_nothing_is_defined(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    shop.execute("SET GLOBAL binlog_format = 'MIXED'", "REVOKE TRIGGER, EVENT ON *.* FROM capture@'127.0.0.1'")
    try:
        agent.start()
        for dry_run in (True, False):
            command = send(settings, "source.add", **source_parameters(settings, shop, dry_run=dry_run))
            failed = await_job(settings, command)
            assert failed.state == "failed"
            assert [p.code for p in failed.problems] == [
                "source-binlog-format",
                "source-grant-missing",
                "source-grant-missing",
            ]
            assert all(p.hint for p in failed.problems)
        assert events(settings, "inventory", SourceDefined) == []
    finally:
        shop.execute("SET GLOBAL binlog_format = 'ROW'")
    grant_capture(shop)
    checked = await_job(settings, send(settings, "source.add", **source_parameters(settings, shop, dry_run=True)))
    assert checked.state == "finished"
    assert "MariaDB" in json.loads(checked.result)["server_version"]
    assert events(settings, "inventory", SourceDefined) == []


def test_what_makes_no_sense_fails_with_a_reason(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    agent.start()
    cases = {
        send(settings, "source.add", host="127.0.0.1"): "command-invalid",
        send(settings, "source.add", "No Slug", **source_parameters(settings, shop)): "name-invalid",
        send(settings, "source.add", **source_parameters(settings, shop, kind="dbase")): "kind-unknown",
        send(settings, "source.add", **source_parameters(settings, shop, port=1)): "source-unreachable",
        send(settings, "source.explode"): "command-unknown",
        send(settings, "source.resume"): "source-unknown",
        send(settings, "source.pause", deadline_us=now_us() - 1): "deadline-passed",
    }
    for command, code in cases.items():
        failed = await_job(settings, command)
        assert (failed.state, [p.code for p in failed.problems]) == ("failed", [code])


def test_only_one_agent_runs_and_it_says_that_it_lives(agent: AgentProcess) -> None:
    agent.start()
    beat = await_it(lambda: events(agent.settings, "health", HealthReported), "a heartbeat")[0]
    assert (beat.state, beat.source, beat.figures["children_wanted"]) == ("running", "", 0.0)
    second = AgentProcess(agent.settings)
    second.start()
    assert second.wait() == 2
    assert "agent-running" in second.tail()


def test_a_source_whose_log_was_reset_stops_and_goes_on_from_a_new_baseline(
    agent: AgentProcess, make_mariadb: Callable[..., MariaDB]
) -> None:
    settings, server = agent.settings, make_mariadb()
    grant_capture(server)
    server.execute("CREATE DATABASE shop", "CREATE TABLE shop.item(id INT PRIMARY KEY AUTO_INCREMENT, name TEXT)")
    agent.start()
    first = json.loads(await_job(settings, send(settings, "source.add", **source_parameters(settings, server))).result)
    server.execute(*(f"INSERT INTO shop.item(name) VALUES ('{n}')" for n in range(5)))
    await_it(lambda: captured(settings) == 5, "five steps")

    server.execute("RESET MASTER", "INSERT INTO shop.item(name) VALUES ('after the reset')")
    stopped = await_state(settings, "stopped")
    assert [p.code for p in stopped.problems] == ["capture-position-lost"] or stopped.problems
    assert stopped.problems[0].hint
    await_it(lambda: len(agent.children()) == 1, "the indexer alone")

    again = await_job(settings, send(settings, "source.add", **source_parameters(settings, server)))
    assert again.state == "finished", again.problems
    second = json.loads(again.result)
    assert second["lineage"] > first["lineage"]
    server.execute("INSERT INTO shop.item(name) VALUES ('in the new lineage')")
    await_it(lambda: captured(settings) == 1, "its first step")
    # The old lineage's index is complete though its last granule was not full.
    old = await_it(lambda: events(settings, "commits", GranuleClosed), "the old lineage's granule")
    assert [(g.lineage, g.first_ordinal, g.last_ordinal) for g in old] == [(first["lineage"], 1, 5)]
    reasons = [(e.reason, e.lineage) for e in events(settings, "capture", LineageStarted, "shop")]
    assert reasons == [("protected", first["lineage"]), ("new-baseline", second["lineage"])]
    assert {p.name for p in folder_of(settings.data_dir, "shop").iterdir()} == {first["baseline"], second["baseline"]}


def test_a_password_is_changed_while_the_source_is_captured(agent: AgentProcess, shop: MariaDB) -> None:
    settings = agent.settings
    store = SecretStore(settings)

    def put(password: str) -> str:
        return store.put("sources/shop/capture", password.encode())

    def to_be(password: str, statement: str = "INSERT INTO shop.item(name) VALUES ('more')") -> None:
        """The source's own administrator does this, and connections that stand go on."""
        shop.execute(f"ALTER USER capture@'127.0.0.1' IDENTIFIED BY '{password}'", statement)

    agent.start()
    assert await_job(settings, send(settings, "source.add", **source_parameters(settings, shop))).state == "finished"
    await_state(settings, "capturing")
    shop.execute("INSERT INTO shop.item(name) VALUES ('one')")
    await_it(lambda: captured(settings) == 1, "capture by the first password")

    wrong = await_job(settings, send(settings, "source.set-accounts", secrets={"capture": put("a wrong secret")}))
    assert [p.code for p in wrong.problems] == ["source-denied"]
    assert store.versions("sources/shop/capture") == [1]
    nobody = await_job(settings, send(settings, "source.set-accounts", secrets={"rollback": put("x")}))
    assert [p.code for p in nobody.problems] == ["command-invalid"]
    store.remove("sources/shop/capture@2")

    # Killed right after the source was defined anew: the next start finds it so, and puts the rest right.
    to_be("second secret")
    await_it(lambda: captured(settings) == 3, "an account statement and a step")
    agent.stop()
    agent.start("accounts.defined")
    changing = send(settings, "source.set-accounts", secrets={"capture": (reference := put("second secret"))})
    assert agent.wait() == -9
    agent.start()
    done = await_job(settings, changing)
    assert (done.state, json.loads(done.result)) == ("finished", {"accounts": {"capture": "capture"}, "resumed": False})
    with pytest.raises(SecretError, match="secret-missing"):
        store.get("sources/shop/capture@1")
    shop.execute("INSERT INTO shop.item(name) VALUES ('three')")
    await_it(lambda: captured(settings) == 4, "a step by the new password")

    # Capture that a changed password had stopped goes on with the right one.
    to_be("third secret")
    for (dump,) in shop.execute("SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump'"):
        shop.execute(f"KILL {dump}")
    stopped = await_state(settings, "stopped")
    assert [p.code for p in stopped.problems] == ["source-denied"]
    done = await_job(settings, send(settings, "source.set-accounts", secrets={"capture": put("third secret")}))
    assert json.loads(done.result)["resumed"]
    await_it(lambda: captured(settings) == 6, "what was written meanwhile")
    assert int(store.versions("sources/shop/capture")[0]) > int(reference.rpartition("@")[2])
    assert agent.stop() == 0
    for secret in ("second secret", "third secret", "wrong secret"):
        assert all(
            secret not in repr(m.event)
            for topic in ("inventory", "commands", "jobs")
            for m in messages(settings, topic)
        )
        assert secret not in agent.log.read_text()
