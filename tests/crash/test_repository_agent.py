"""An agent that is killed while it makes or adopts a repository, or drops a point: the same command, taken up again, does it
once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agents.repository import keys
from agents.repository import repository as repositories
from agents.repository.stores import Store
from agents.repository.stores.local import LocalStore
from streams.events import PointDropped, RepositoryDefined
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.agent import AgentProcess, await_job, events, send

pytestmark = pytest.mark.crash
PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def agent(fresh_site: Settings) -> Iterator[AgentProcess]:
    process = AgentProcess(fresh_site)
    yield process
    process.end()


def killed_at(agent: AgentProcess, place: str, kind: str, asset: str, **parameters: Any) -> dict[str, Any]:
    """Have the agent die at `place` while it carries this out, and do it when it is there again; the job's result."""
    agent.start(place)
    command = send(agent.settings, kind, asset, **parameters)
    assert agent.wait() == -9, agent.tail()
    agent.start()
    return result_of(agent, command)


def result_of(agent: AgentProcess, command: str) -> dict[str, Any]:
    done = await_job(agent.settings, command)
    assert done.state == "finished", (done.problems, agent.tail())
    found: dict[str, Any] = json.loads(done.result)
    return found


def added(settings: Settings, place: Path, name: str) -> dict[str, Any]:
    reference = SecretStore(settings).put(f"repositories/{name}/passphrase", PASSPHRASE)
    return {
        "name": name,
        "store": {"kind": "local", "path": str(place)},
        "encrypted": True,
        "block_size": 131_072,
        "dedupe": "repository",
        "keep": "",
        "dry_run": False,
        "secrets": {"passphrase": reference},
    }


@pytest.mark.parametrize(
    "place",
    [
        "repository-key-kept",
        "repository-second-made",
        "repository-add-created",
        "policy-created",
        "repository-add-said",
    ],
)
def test_a_repository_is_made_once_wherever_the_agent_dies(agent: AgentProcess, tmp_path: Path, place: str) -> None:
    settings = agent.settings
    (tmp_path / "vault").mkdir()
    parameters = added(settings, tmp_path / "vault", "vault")
    made = killed_at(agent, place, "repository.add", "repository/vault", **parameters)
    said = events(settings, "repository", RepositoryDefined)
    assert [(e.state, e.identity) for e in said] == [("added", made["id"])]
    assert result_of(agent, send(settings, "repository.usage", "usage/vault", repository="vault"))["points"] == 0
    store = LocalStore(tmp_path / "vault")
    assert str(repositories.define(store).identity) == made["id"]
    keys.unlock(store, passphrase=PASSPHRASE.decode())
    agent.stop()


@pytest.mark.parametrize("place", ["repository-adopt-opened", "repository-adopt-said"])
def test_a_repository_is_adopted_wherever_the_agent_dies(agent: AgentProcess, tmp_path: Path, place: str) -> None:
    def wrap(store: Store, identity: UUID, key: bytes) -> None:
        keys.add_wrap(store, identity.bytes, key, "passphrase", PASSPHRASE)

    (tmp_path / "old").mkdir()
    definition = repositories.create(LocalStore(tmp_path / "old"), wrap=wrap)
    parameters = added(agent.settings, tmp_path / "old", "old")
    chosen = {name: parameters[name] for name in ("name", "store", "secrets")}
    adopted = killed_at(agent, place, "repository.adopt", "repository/old", **chosen)
    assert adopted["id"] == str(definition.identity)
    usage = result_of(agent, send(agent.settings, "repository.usage", "usage/old", repository="old"))
    assert usage["points"] == 0
    agent.stop()


def test_a_point_that_two_gave_up_goes_once_when_the_agent_dies(agent: AgentProcess, tmp_path: Path) -> None:
    settings = agent.settings
    for name in ("vault", "tree"):
        (tmp_path / name).mkdir()
    (tmp_path / "tree" / "file").write_text("text")
    agent.start()
    result_of(
        agent, send(settings, "repository.add", "repository/vault", **added(settings, tmp_path / "vault", "vault"))
    )
    backup: dict[str, Any] = {"kind": "files", "repository": "vault", "path": str(tmp_path / "tree"), "asset": "tree"}
    one, other = (result_of(agent, send(settings, "backup.make", "asset/tree", **backup))["point"] for _ in range(2))
    asked: dict[str, Any] = {"repository": "vault", "point": one, "note": "wrong"}
    result_of(agent, send(settings, "point.drop", "repository/vault", requester="ada", **asked))
    agent.stop()
    agree: dict[str, Any] = {"repository": "vault", "point": one, "right_since_us": 0}
    # The first is of `expiry-agreed`: killed when the drop is in the log and has no witness.
    agent.start("session-said:2")
    command = send(settings, "point.agree", "repository/vault", requester="grace", **agree)
    assert agent.wait() == -9, agent.tail()
    agent.start()
    result_of(agent, command)
    assert [e.point for e in events(settings, "repository", PointDropped)] == [one]
    assert one != other
    agent.stop()
