"""Two agents of one site, one of which is killed, or stopped and taken for dead, at each boundary of a job: the other does it.

The agents are processes, the log is Kafka. Both reach the repositories' places and the site's secrets, as two machines do that
mount the same storage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.repository.journal import Counting
from agents.repository.ledger import Ledger
from streams.events import (
    CommandRequested,
    JobChanged,
    NodeChanged,
    PointSealed,
    RepositoryChecked,
    RepositoryDefined,
    SessionFenced,
    SessionOpened,
)
from streams.ids import now_us, uuid7
from streams.job_states import Life, after
from streams.node_log import NodeLog
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.agent import AgentProcess, await_it, await_job, events, job, messages, send
from tests.stack.publishing import publisher_of

pytestmark = pytest.mark.crash
LEASE_S = "4"


@dataclass
class Nodes:
    """Two agents. `one` has the site's own data directory, `two` another, with the same secrets."""

    settings: Settings
    one: AgentProcess
    two: AgentProcess


@pytest.fixture
def nodes(fresh_site: Settings, tmp_path: Path) -> Iterator[Nodes]:
    second = tmp_path / "second"
    second.mkdir()
    (second / "secrets").symlink_to(fresh_site.data_dir / "secrets")
    common = {"HOLDFAST_AGENT_LEASE_S": LEASE_S, "HOLDFAST_SECRET_KEY_FILE": str(fresh_site.secret_key_file)}
    one = AgentProcess(fresh_site, environment={**common, "HOLDFAST_AGENT_NODE": "one"})
    there = {**common, "HOLDFAST_AGENT_NODE": "two", "HOLDFAST_DATA": str(second)}
    two = AgentProcess(fresh_site, log=second / "agent.log", environment=there)
    found = Nodes(fresh_site, one, two)
    try:
        yield found
    finally:
        one.end()
        two.end()
        print(one.tail(), "\n---\n", two.tail())


def vault(settings: Settings, place: Path) -> dict[str, Any]:
    """Parameters of `repository.add` in a new folder."""
    place.mkdir()
    name = place.name
    return {
        "name": name,
        "store": {"kind": "local", "path": str(place)},
        "encrypted": True,
        "block_size": 131_072,
        "dedupe": "repository",
        "keep": "",
        "dry_run": False,
        "secrets": {"passphrase": SecretStore(settings).put(f"repositories/{name}/passphrase", b"correct horse")},
    }


def counted(settings: Settings, command: str) -> list[tuple[str, str]]:
    """(state, by) of the changes that counted, progress aside."""
    found, life = [], Life()
    for event in job(settings, command):
        before, life = life, after(life, event)
        if life is not before and event.state not in ("progressed", "accepted"):
            found.append((event.state, event.by))
    return found


def finished(nodes: Nodes, command: str) -> JobChanged:
    done = await_job(nodes.settings, command)
    assert done.state == "finished", (done.problems, nodes.one.tail(), nodes.two.tail())
    return done


def test_a_killed_agent_s_job_is_done_by_the_other_wherever_it_died(nodes: Nodes, tmp_path: Path) -> None:
    settings, one, two = nodes.settings, nodes.one, nodes.two
    two.start()
    await_it(lambda: "agent-two" in known_agents(settings), "the second agent")

    def killed_at(place: str) -> str:
        """The job that the first agent was killed over. Its command is in the log twice."""
        two.pause()  # so that the first is the faster one
        one.start(place)
        name = place.replace(".", "-")
        event = CommandRequested(
            command=uuid7(),
            kind="repository.add",
            asset=f"repository/{name}",
            parameters=json.dumps(vault(settings, tmp_path / name)),
            requester="tester",
            requested_us=now_us(),
        )
        publisher_of(settings).sent_and_durable(event, event)
        assert one.wait() == -9, one.tail()
        two.go_on()
        return event.command

    for place in ("command.claimed", "command.started", "repository-add-created"):
        command = killed_at(place)
        finished(nodes, command)
        found = counted(settings, command)
        assert found[-1] == ("finished", "agent-two")
        assert [by for state, by in found if state == "claimed"] == ["agent-one", "agent-two"]
        assert ("claim_expired", "agent-two") in found

    command = killed_at("command.done")  # by then the repository is the first agent's, and so is the rest of the job
    await_it(lambda: ("claim_expired", "agent-two") in counted(settings, command), "the end of its claim")
    one.start()
    finished(nodes, command)
    assert [by for state, by in counted(settings, command) if state == "claimed"] == ["agent-one"] * 2
    defined = events(settings, "repository", RepositoryDefined)
    assert [e.node for e in defined] == ["two"] * 3 + ["one"], "each was made once"


def test_of_two_agents_of_one_name_one_works_and_the_other_says_why_not(nodes: Nodes, tmp_path: Path) -> None:
    """The one that is there stays; one that is dead is replaced, and ends if it was not dead after all."""
    settings, one = nodes.settings, nodes.one
    twin_home = tmp_path / "twin"
    twin_home.mkdir()
    (twin_home / "secrets").symlink_to(settings.data_dir / "secrets")
    environment = {"HOLDFAST_AGENT_LEASE_S": LEASE_S, "HOLDFAST_SECRET_KEY_FILE": str(settings.secret_key_file)}
    environment |= {"HOLDFAST_AGENT_NODE": "one", "HOLDFAST_DATA": str(twin_home)}
    twin = AgentProcess(settings, log=twin_home / "agent.log", environment=environment)

    def standing() -> NodeChanged | None:
        log = NodeLog()
        for message in messages(settings, "inventory"):
            log.apply(message.event)
        return log.standing.get("agent-one")

    def runs() -> int:
        return len([e for e in events(settings, "inventory", NodeChanged) if e.state == "started"])

    def has_it(home: Path) -> bool:
        found = standing()
        return found is not None and (found.state, found.home) == ("started", (home / "node.id").read_text().strip())

    try:
        one.start("node.claimed")
        assert one.wait() == -9, "killed with its name taken, and before it had read that"
        one.start()
        await_it(
            lambda: "agent-one" in known_agents(settings) and runs() == 2, "the first agent, started again at once"
        )
        twin.start()
        assert twin.wait() == 2, twin.tail()
        assert "node-name-taken" in twin.tail()
        assert has_it(settings.data_dir)
        finished(nodes, send(settings, "repository.add", "repository/first", **vault(settings, tmp_path / "first")))

        one.pause()
        twin.start()  # hears nothing for the lease
        finished(nodes, send(settings, "repository.add", "repository/later", **vault(settings, tmp_path / "later")))
        assert has_it(twin_home)
        one.go_on()
        assert one.wait() == 2, one.tail()
        assert "node-name-taken" in one.tail()
        assert has_it(twin_home), "who lost the name does not let go of it"
        assert twin.stop() == 0
        found = standing()
        assert found is not None
        assert found.state == "stopped"
        one.start()  # the name is free: nobody is waited for
        await_it(lambda: has_it(settings.data_dir), "the first agent under its name")
    finally:
        twin.end()
        print(twin.tail())


def known_agents(settings: Settings) -> set[str]:
    return {message.key for message in messages(settings, "health")}


def test_an_agent_taken_for_dead_finds_its_work_void_when_it_comes_back(nodes: Nodes, tmp_path: Path) -> None:
    """Its repository is moved to the other, which does what it had begun. What it says and writes afterwards counts no more."""
    settings, one, two = nodes.settings, nodes.one, nodes.two
    one.start(stop_at="command.started:3")
    finished(
        nodes, send(settings, "repository.add", "repository/vault", node="one", **vault(settings, tmp_path / "vault"))
    )
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"kept" * 10_000)
    backup: dict[str, Any] = {"repository": "vault", "kind": "files", "path": str(tmp_path / "files"), "asset": "files"}
    finished(nodes, send(settings, "backup.make", "asset/files", node="one", **backup))
    two.start()
    checking = send(settings, "repository.verify", "verify/vault", repository="vault", level="full", percent=100)
    await_it(lambda: one.paused, "the first agent stopped in its work")

    await_it(lambda: ("claim_expired", "agent-two") in counted(settings, checking), "the end of its claim")
    pinned = send(settings, "backup.make", "asset/files", node="one", **backup)
    moved = finished(nodes, send(settings, "repository.move", "repository/vault", repository="vault", node="two"))
    assert json.loads(moved.result)["before"] == "one"
    assert finished(nodes, checking).by == "agent-two"
    assert [by for state, by in counted(settings, checking) if state == "claimed"] == ["agent-one", "agent-two"]

    one.go_on()
    refused = await_job(settings, pinned)
    assert (refused.state, refused.by) == ("failed", "agent-one"), "a path of its machine is nobody else's to read"
    assert [p.code for p in refused.problems] == ["repository-elsewhere"]
    assert one.stop() == 0, one.tail()
    last_move = events(settings, "repository", RepositoryDefined)[-1]
    assert (last_move.state, last_move.node) == ("moved", "two")
    log = [m.event for m in messages(settings, "repository")]
    since = log[log.index(last_move) :]
    assert not [e for e in since if isinstance(e, PointSealed)]
    theirs = {e.session for e in since if isinstance(e, SessionOpened) and e.node == "one"}
    # Its handler goes on in the moment in which it is told: what it may open then, the ledger refuses.
    counting = Counting("vault")
    ledger = Ledger().apply(e for m in messages(settings, "repository") if (e := counting.take(m)) is not None)
    assert all(ledger.sessions[session].refusal for session in theirs)
    assert len([e for e in since if isinstance(e, RepositoryChecked) and e.what != "watch"]) == 1, (
        "it was verified once"
    )
    fenced = {e.session for e in since if isinstance(e, SessionFenced)}
    assert fenced <= {e.session for e in log if isinstance(e, SessionOpened) and e.node == "one"}


def test_a_job_cancelled_in_its_midst_is_cleaned_up_also_by_the_run_after_a_death(nodes: Nodes, tmp_path: Path) -> None:
    settings, one = nodes.settings, nodes.one
    one.start("command.cancelled", stop_at="command.started:2")
    finished(nodes, send(settings, "repository.add", "repository/vault", **vault(settings, tmp_path / "vault")))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"kept" * 10_000)
    backup: dict[str, Any] = {"repository": "vault", "kind": "files", "path": str(tmp_path / "files"), "asset": "files"}
    command = send(settings, "backup.make", "asset/files", **backup)
    await_it(lambda: one.paused, "the agent stopped in its work")
    cancelling = JobChanged(
        job=command, kind="backup.make", asset="asset/files", state="cancel_asked", at_us=now_us(), by="somebody"
    )
    publisher_of(settings).sent_and_durable(cancelling)
    one.go_on()
    assert one.wait() == -9, "killed when it had cleaned up, and before it said so"
    one.start()
    done = await_job(settings, command)
    assert (done.state, done.by) == ("cancelled", "agent-one")
    assert done.message.startswith("somebody cancelled it")
    assert not events(settings, "repository", PointSealed)

    again = send(settings, "backup.make", "asset/files", **backup)
    finished(nodes, again)
    assert len(events(settings, "repository", PointSealed)) == 1
