"""An agent killed at each boundary of a policy's run, on real Kafka: started again, it makes each backup once."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.repository import repository as repositories
from agents.repository.reader import DiskReader
from agents.repository.stores.local import LocalStore
from agents.scheduling.book import Book
from streams.events import CommandRequested, JobChanged, PointSealed, PolicyDefined, PolicyRun, SessionOpened
from streams.ids import now_us
from streams.policies import canonical, parse, run_id
from streams.policy_log import PolicyLog
from streams.settings import Settings
from tests.stack.agent import AgentProcess, await_it, await_job, events, messages, send
from tests.stack.publishing import publisher_of
from tests.stack.servers import KafkaServer, PostgresServer, make_site
from tests.stand_ins.hypervisor import Hypervisor

pytestmark = pytest.mark.crash
PLACES = (
    "schedule.decided",
    "schedule.fired",
    "schedule.fired.durable",
    "schedule.asked",
    "schedule.asked:2",
    "schedule.asked.durable:2",
    "command.done:2",
    "schedule.ended",
    "schedule.ended.durable",
)


@dataclass
class Ground:
    """One site for all tests of this module: a policy of its own for each, all into one repository."""

    settings: Settings
    agent: AgentProcess
    trees: Path
    vault: Path

    def define(self, policy: str, *assets: str, **given: Any) -> None:
        document: dict[str, Any] = {
            "kind": "backup.make",
            "repository": "vault",
            "paths": {asset: str(self.trees) for asset in assets},
            "schedule": ["rolling 999d"],  # due at once, and not again
            **given,
        }
        document = {name: value for name, value in document.items() if value is not None}
        text = canonical(parse(document))
        publisher_of(self.settings).sent_and_durable(
            PolicyDefined(policy=policy, version=1, document=text, defined_us=now_us(), by="ada")
        )

    def ask(self, policy: str) -> PolicyRun:
        """Have it run now; its end."""
        at = now_us()
        run = run_id(policy, 0, at)
        publisher_of(self.settings).sent_and_durable(
            PolicyRun(policy=policy, version=1, run=run, state="asked", instant_us=at, at_us=at, by="ada")
        )
        return await_it(lambda: [e for e in self.runs(policy, "ended") if e.run == run], f"the end of {policy}")[0]

    def runs(self, policy: str, state: str) -> list[PolicyRun]:
        """Those that count."""
        log, found = PolicyLog(), []
        for message in messages(self.settings, "inventory"):
            if log.apply(message.event) and isinstance(message.event, PolicyRun):
                found += [message.event] if (message.event.policy, message.event.state) == (policy, state) else []
        return found

    def ended(self, policy: str) -> PolicyRun:
        return await_it(lambda: self.runs(policy, "ended"), f"the end of a run of {policy}")[0]

    def points(self, *assets: str) -> list[str]:
        return sorted(e.asset for e in events(self.settings, "repository", PointSealed) if e.asset in assets)


@pytest.fixture(scope="module")
def ground(kafka: KafkaServer, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("schedules")
    database = postgres.fresh_database()
    settings = make_site(folder / "site", kafka.settings(f"t{secrets.token_hex(4)}."), database)
    agent = AgentProcess(settings, "tests.stand_ins.memory_agent")
    (folder / "vault").mkdir()
    (folder / "trees").mkdir()
    (folder / "trees" / "file").write_text("what is backed up")
    try:
        agent.start()
        given: dict[str, Any] = {"name": "vault", "encrypted": False}
        given["store"] = {"kind": "local", "path": str(folder / "vault")}
        more: dict[str, Any] = {
            "block_size": 131_072,
            "dedupe": "repository",
            "keep": "",
            "dry_run": False,
            "secrets": {},
        }
        added = await_job(settings, send(settings, "repository.add", "repository/vault", **given, **more))
        assert added.state == "finished", added.problems
        agent.stop()
        yield Ground(settings, agent, folder / "trees", folder / "vault")
    finally:
        agent.end()
        print(agent.tail(200))
        postgres.drop_database(database.dbname)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_is_made_once_wherever_the_agent_dies(ground: Ground, place: str) -> None:
    name = place.replace(".", "-").replace(":", "-")
    one, other = f"{name}-a", f"{name}-b"
    ground.agent.start(place)
    ground.define(name, one, other)
    assert ground.agent.wait() == -9, ground.agent.tail()
    ground.agent.start()
    ended = ground.ended(name)
    assert ended.figures == {"done": 2, "assets": 2, "left_out": 0}
    ground.agent.stop()
    assert len(ground.runs(name, "fired")) == len(ground.runs(name, "ended")) == 1
    assert ground.points(one, other) == [one, other]
    commands = [e for e in events(ground.settings, "commands", CommandRequested) if e.requester == f"policy/{name}"]
    assert len({c.command for c in commands}) == 2
    done = [e.job for e in events(ground.settings, "jobs", JobChanged) if e.state == "finished"]
    assert all(done.count(c.command) == 1 for c in commands)


def test_two_schedulers_that_say_everything_twice_make_one_run(ground: Ground) -> None:
    """Whatever the agent's scheduler says is said by another one, too, under the same ids."""
    ground.define("twice", "twice-a")
    twin = Book("agent-elsewhere")
    for topic in ("inventory", "commands", "jobs"):
        for message in messages(ground.settings, topic):
            twin.take(message.event)
        twin.settle()
    what = [event for _, event in twin.decide(now_us(), 0.0) if getattr(event, "policy", "") == "twice"]
    assert [event.state for event in what if isinstance(event, PolicyRun)] == ["fired"]
    publisher_of(ground.settings).sent_and_durable(*what)
    for message in messages(ground.settings, "inventory"):
        twin.take(message.event)
    asked = [e for _, e in twin.decide(now_us(), 0.0) if getattr(e, "requester", "") == "policy/twice"]
    publisher_of(ground.settings).sent_and_durable(*asked, *asked)
    ground.agent.start()
    assert ground.ended("twice").figures["done"] == 1
    ground.agent.stop()
    (command,) = {c.command for c in events(ground.settings, "commands", CommandRequested) if c in asked}
    sessions = [e for e in events(ground.settings, "repository", SessionOpened) if e.job == command]
    assert len(sessions) == 1
    assert ground.points("twice-a") == ["twice-a"]


def test_what_fails_is_tried_again_and_what_is_asked_for_runs_at_once(ground: Ground) -> None:
    ground.agent.start()
    ground.define(
        "failing", "failing-a", paths={"failing-a": "/nowhere/at/all"}, retries_s=[0, 1], enabled=False, priority=1
    )
    ended = ground.ask("failing")
    assert ended.figures == {"failed": 1, "assets": 1, "left_out": 0}
    assert (
        len([e for e in events(ground.settings, "commands", CommandRequested) if e.requester == "policy/failing"]) == 3
    )
    ground.agent.stop()


def test_repositories_are_looked_after_by_policies(ground: Ground) -> None:
    ground.agent.start()
    for kind in ("repository.verify", "repository.collect", "point.expire"):
        name = kind.replace(".", "-")
        document = canonical(parse({"kind": kind, "repository": "vault", "schedule": ["rolling 999d"]}))
        publisher_of(ground.settings).sent_and_durable(
            PolicyDefined(policy=name, version=1, document=document, defined_us=now_us(), by="ada")
        )
        assert ground.ended(name).figures == {"done": 1, "assets": 1, "left_out": 0}, ground.agent.tail()
    ground.agent.stop()


def test_machines_are_those_that_are_there_when_it_runs(ground: Ground, tmp_path: Path) -> None:
    hypervisor = Hypervisor(tmp_path / "host")
    for name in ("web", "wiki", "db"):
        hypervisor.add(name, {"vda": 1 << 20})
    ground.agent.start()
    host = hypervisor.settings("h1")
    added = await_job(
        ground.settings, send(ground.settings, "host.add", "host/h1", host="h1", kind=host.kind, url=host.url)
    )
    assert added.state == "finished", added.problems
    machines = {"kind": "backup.run", "assets": {"names": ["w*"]}, "except": {"names": ["wiki"]}, "paths": None}
    ground.define("machines", **machines)
    assert ground.ended("machines").figures == {"done": 1, "assets": 1, "left_out": 0}
    assert [e.assets for e in ground.runs("machines", "fired")] == [("web",)]
    native = hypervisor.add("worker", {"vda": 1 << 20})
    hypervisor.write(native, "vda", 4096, b"of the worker" * 100)
    ground.define("look", kind="asset.discover", repository=None, paths=None)
    assert ground.ended("look").figures["done"] == 1
    ended = ground.ask("machines")
    assert (ended.figures["done"], ground.points("web", "wiki", "db", "worker")) == (2, ["web", "web", "worker"])
    # Those that ask to be of one moment are taken by one snapshot.
    ground.define("moment", **{**machines, "assets": {"names": ["db", "web"]}, "together": True, "schedule": []})
    assert ground.ask("moment").figures == {"done": 2, "assets": 2, "left_out": 0}
    both = [e for e in events(ground.settings, "repository", PointSealed) if e.asset in ("db", "web")][-2:]
    assert {e.asset for e in both} == {"db", "web"}
    assert len({e.facts["job"] for e in both}) == 1
    ground.agent.stop()
    point = next(e.point for e in events(ground.settings, "repository", PointSealed) if e.asset == "worker")
    with contextlib.closing(repositories.open(LocalStore(ground.vault), None, tmp_path / "cache", "tester")) as opened:
        (disk,) = opened.point(point).disks
        with DiskReader(opened, disk) as reader:
            assert reader.read(0, disk.size) == hypervisor.content(native, "vda")
