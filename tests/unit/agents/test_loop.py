"""The command loop on a real log: what is open follows from the log alone, each source's commands come one by one."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agents.commands import Command, Context, Interrupted, JobFailed, Services
from agents.errors import AgentError, SourceUnavailable
from agents.loop import Loop
from agents.processes import Processes
from agents.sources import Sources
from streams.admin import ensure_topics
from streams.events import CommandRequested, Problem, SourceChanged, SourceDefined
from streams.ids import now_us, uuid7
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.agent import await_it, await_job, job, send


class Run:
    """One run of an agent whose handlers are this test's."""

    def __init__(self, settings: Settings, script: Script) -> None:
        self.script = script
        self.publisher = Publisher(settings, "agent")
        self.processes = Processes(Path("none"))
        self.services = Services(
            "agent-test", settings, self.publisher, SecretStore(settings), Sources(), self.processes
        )
        self.loop = Loop(self.services, handlers=lambda kind: script.handle, recover=[script.recover])
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001 - raised by end
            self.failure = error

    def end(self) -> None:
        self.services.stop.set()
        self.script.released.set()
        self.thread.join(120)
        assert not self.thread.is_alive()
        self.processes.close()
        self.publisher.close()
        if self.failure is not None:
            raise self.failure


class Script:
    """What handlers do, and a note of what was asked of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bool]] = []
        self.at_work: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.together = 0
        self.released = threading.Event()
        self.away: set[str] = set()
        self.recovered: list[str] = []
        self._lock = threading.Lock()

    def handle(self, command: Command, ctx: Context) -> Mapping[str, Any]:
        with self._lock:
            self.calls.append((command.asset, command.parameters.get("do", ""), command.resumed))
            self.at_work[command.asset] += 1
            self.most[command.asset] = max(self.most[command.asset], self.at_work[command.asset])
            self.together = max(self.together, sum(self.at_work.values()))
        try:
            match command.parameters.get("do"):
                case "fail":
                    raise JobFailed((Problem("one", "first"), Problem("two", "second", "mend it")))
                case "stumble":
                    raise AgentError("stumbled", "it stumbled")
                case "break":
                    raise RuntimeError("something unspeakable")
                case "wait":
                    while not self.released.wait(0.02):
                        ctx.check()
                    if ctx.services.stop.is_set():
                        raise Interrupted
            return {"did": command.parameters.get("do", "")}
        finally:
            with self._lock:
                self.at_work[command.asset] -= 1

    def recover(self, services: Services, source: str) -> None:
        self.recovered.append(source)
        if source in self.away:
            raise SourceUnavailable("source-unreachable", "it is away", "wait")


@pytest.fixture
def settings(fresh_site: Settings) -> Settings:
    ensure_topics(fresh_site.kafka, [(name, None) for name in ("commands", "jobs", "inventory")])
    return fresh_site


@contextlib.contextmanager
def running(settings: Settings, script: Script) -> Iterator[Run]:
    run = Run(settings, script)
    try:
        yield run
    finally:
        run.end()


def test_commands_of_a_source_come_one_by_one_and_sources_side_by_side(settings: Settings) -> None:
    script = Script()
    with running(settings, script):
        jobs = [send(settings, "source.pause", source, do="wait") for source in ("a", "b", "a", "a")]
        await_it(lambda: script.together == 2, "two at once")
        assert [source for source, _, _ in script.calls].count("a") == 1
        script.released.set()
        ends = [await_job(settings, one) for one in jobs]
    assert [e.state for e in ends] == ["finished"] * 4
    assert script.most == {"a": 1, "b": 1}
    assert [e.state for e in job(settings, jobs[0])] == ["accepted", "claimed", "started", "finished"]


def test_how_a_job_fails_is_said(settings: Settings) -> None:
    script = Script()
    with running(settings, script):
        ends = [
            await_job(settings, send(settings, "source.pause", "a", do=do))
            for do in ("fail", "stumble", "break", "well")
        ]
    assert [(e.state, [p.code for p in e.problems]) for e in ends] == [
        ("failed", ["one", "two"]),
        ("failed", ["stumbled"]),
        ("failed", ["internal"]),
        ("finished", []),
    ]
    assert "unspeakable" not in repr(ends), "what a defect says may be anything"


def test_a_command_that_comes_twice_is_carried_out_once(settings: Settings) -> None:
    script = Script()
    event = CommandRequested(
        command=uuid7(), kind="source.pause", asset="a", parameters="{}", requester="t", requested_us=now_us()
    )
    broken = CommandRequested(
        command=uuid7(), kind="source.pause", asset="a", parameters="[1", requester="t", requested_us=now_us()
    )
    with running(settings, script):
        with Publisher(settings, "test") as publisher:
            publisher.sent_and_durable(event, event, broken)
        assert await_job(settings, event.command).state == "finished"
        assert [p.code for p in await_job(settings, broken.command).problems] == ["command-invalid"]
        await_job(settings, send(settings, "source.pause", "a"))
    assert len(script.calls) == 2
    with running(settings, script):
        await_job(settings, send(settings, "source.pause", "a"))
    assert len(script.calls) == 3, "a new run does nothing again that is done"


def test_an_interrupted_command_is_resumed_by_the_next_run_and_told_so(settings: Settings) -> None:
    first = Script()
    with running(settings, first):
        command = send(settings, "source.pause", "a", do="wait")
        waiting = send(settings, "source.pause", "a", do="then")
        await_it(lambda: first.calls, "the call")
    assert [e.state for e in job(settings, command)] == ["accepted", "claimed", "started"]
    second = Script()
    second.released.set()
    with running(settings, second):
        assert await_job(settings, command).state == "finished"
        assert await_job(settings, waiting).state == "finished"
    assert second.calls == [("a", "wait", True), ("a", "then", False)]
    states = [(e.state, e.message) for e in job(settings, command)]
    assert states[3] == ("claimed", "taken up again after a restart")


def test_a_deadline_that_is_over_fails_the_command_unbegun(settings: Settings) -> None:
    script = Script()
    with running(settings, script):
        late = send(settings, "source.pause", "a", deadline_us=now_us() - 1)
        assert [p.code for p in await_job(settings, late).problems] == ["deadline-passed"]
        soon = send(settings, "source.pause", "a", deadline_us=now_us() + 700_000, do="wait")
        assert [p.code for p in await_job(settings, soon, 20).problems] == ["deadline-passed"]
    assert [do for _, do, _ in script.calls] == ["wait"]


def test_rollbacks_wait_until_the_source_has_been_looked_after(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.loop.RECOVERY_PAUSE_S", 0.2)
    defined = SourceDefined(source="a", kind="mariadb", host="h", port=1, defined_us=1, by="t")
    changed = SourceChanged(source="a", state="capturing", at_us=1, by="t", lineage="l")
    with Publisher(settings, "test") as publisher:
        publisher.sent_and_durable(defined, changed)
    script = Script()
    script.away = {"a"}
    rollback = send(settings, "rollback.run", "a", do="roll")
    with running(settings, script):
        assert await_job(settings, send(settings, "source.pause", "a", do="pause")).state == "finished"
        await_it(lambda: any(e.state == "warned" for e in job(settings, rollback)), "a warning")
        assert [do for _, do, _ in script.calls] == ["pause"]
        script.away.clear()
        assert await_job(settings, rollback).state == "finished"
        calls = len(script.recovered)
        await_job(settings, send(settings, "rollback.run", "a", do="again"))
        assert len(script.recovered) == calls, "once is enough"
    assert [p.code for e in job(settings, rollback) for p in e.problems] == ["source-unreachable"]
