"""The command loop on a real log: what is open follows from the log alone, each source's commands come one by one."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.commands import Command, Context, Interrupted, JobFailed, Services
from agents.errors import AgentError, SourceUnavailable
from agents.loop import Loop
from agents.nodes import Silence
from agents.processes import Processes
from agents.sources import Sources
from streams.admin import ensure_topics
from streams.errors import StreamError
from streams.events import CommandRequested, HealthReported, JobChanged, Problem, SourceChanged, SourceDefined
from streams.ids import now_us, uuid7
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.agent import await_it, await_job, job, send


class Run:
    """One run of an agent whose handlers are this test's."""

    def __init__(self, settings: Settings, script: Script, name: str = "test") -> None:
        self.script = script
        self.publisher = Publisher(settings, "agent")
        self.processes = Processes(Path("none"))
        self.services = Services(
            f"agent-{name}", settings, self.publisher, SecretStore(settings), Sources(), self.processes
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

    def beat(self) -> None:
        """Say that we are alive."""
        self.publisher.sent_and_durable(
            HealthReported(agent=self.services.agent, source="", state="running", at_us=now_us())
        )

    def end(self) -> None:
        self.services.stop.set()
        self.script.released.set()
        self.script.woken.set()
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
        self.woken = threading.Event()
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
                case "deaf":
                    self.woken.wait(120)
                    ctx.check()
                case "lose Kafka" if not command.resumed:
                    raise StreamError("kafka-unreachable", "nobody answers", "is it up?")
                case "break":
                    raise RuntimeError("something unspeakable")
                case "wait":
                    if command.parameters.get("tell"):
                        ctx.progress("waiting", 3, 10, "turns")
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
    ensure_topics(
        fresh_site.kafka, [(name, None) for name in ("commands", "jobs", "inventory", "repository", "health")]
    )
    return fresh_site


@contextlib.contextmanager
def running(settings: Settings, script: Script, name: str = "test") -> Iterator[Run]:
    run = Run(settings, script, name)
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
    assert [e.state for e in job(settings, command)] == ["accepted", "claimed", "started", "released"]
    second = Script()
    second.released.set()
    with running(settings, second):
        assert await_job(settings, command).state == "finished"
        assert await_job(settings, waiting).state == "finished"
    assert second.calls == [("a", "wait", True), ("a", "then", False)]
    states = [(e.state, e.message) for e in job(settings, command)]
    assert states[4] == ("claimed", "taken up again after a restart")


def test_a_deadline_that_is_over_fails_the_command_unbegun(settings: Settings) -> None:
    script = Script()
    with running(settings, script):
        late = send(settings, "source.pause", "a", deadline_us=now_us() - 1)
        assert [p.code for p in await_job(settings, late).problems] == ["deadline-passed"]
        soon = send(settings, "source.pause", "a", deadline_us=now_us() + 4_000_000, do="wait")
        assert [p.code for p in await_job(settings, soon, 60).problems] == ["deadline-passed"]
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


# --- several agents ---------------------------------------------------------------------------------------------------


def states(settings: Settings, command: str) -> list[tuple[str, str]]:
    return [(e.state, e.by) for e in job(settings, command)]


def say(settings: Settings, command: str, state: str, **fields: Any) -> None:
    with Publisher(settings, "test") as publisher:
        publisher.sent_and_durable(
            JobChanged(job=command, kind="k", asset="a", state=state, at_us=now_us(), **{"by": "somebody", **fields})
        )


def test_two_agents_share_what_is_nobody_s_and_do_nothing_twice(settings: Settings) -> None:
    script = Script()
    with running(settings, script, "one"), running(settings, script, "two"):
        jobs = [send(settings, "asset.discover", f"asset{n % 6}", do=str(n)) for n in range(24)]
        assert {await_job(settings, one).state for one in jobs} == {"finished"}
    assert sorted(int(do) for _, do, _ in script.calls) == list(range(24))
    assert set(script.most.values()) == {1}, "an asset's commands come one by one, whoever has them"
    for asset in range(6):
        mine = [int(do) for name, do, _ in script.calls if name == f"asset{asset}"]
        assert mine == sorted(mine)


def test_what_an_agent_has_is_left_to_it(settings: Settings) -> None:
    defined = SourceDefined(source="a", kind="mariadb", host="h", port=1, defined_us=1, by="t")
    changed = SourceChanged(source="a", state="baseline", at_us=1, by="agent-two", lineage="l")
    with Publisher(settings, "test") as publisher:
        publisher.sent_and_durable(defined, changed)
    ours, theirs = Script(), Script()
    with running(settings, ours, "one"):
        waiting = send(settings, "source.pause", "a", do="pause")
        await_job(settings, send(settings, "asset.discover", "b", do="ours"))
        assert states(settings, waiting) == [], "nobody who could has seen it"
        with running(settings, theirs, "two"):
            assert await_job(settings, waiting).by == "agent-two"
    assert [do for _, do, _ in ours.calls] == ["ours"]
    assert ours.recovered == []
    assert theirs.recovered == ["a"]


def test_a_silent_agent_s_job_is_taken_over_and_its_late_word_is_void(settings: Settings) -> None:
    """The first agent stays alive all the while, but says nothing: to the other it is dead."""
    short = replace(settings, agent=replace(settings.agent, lease_s=2))
    slow, quick = Script(), Script()
    with running(short, slow, "slow") as first:
        command = send(settings, "asset.discover", "a", do="deaf")
        await_it(lambda: slow.at_work["a"], "the work")
        with running(short, quick, "quick") as second:
            quick.woken.set()

            def ended() -> bool:
                second.beat()
                return any(e.state in ("finished", "failed") for e in job(settings, command))

            await_it(ended, "the end of the job")
        assert slow.at_work["a"], "it knows of nothing yet"
        slow.woken.set()
        await_it(lambda: not slow.at_work["a"], "the first agent has noticed")
        await_job(settings, send(settings, "asset.discover", "a", do="next"))
        assert first.loop.fatal is None
    assert quick.calls == [("a", "deaf", True)]
    assert slow.calls == [("a", "deaf", False), ("a", "next", False)]
    found = job(settings, command)
    assert [(e.state, e.by) for e in found if e.state not in ("accepted", "progressed")] == [
        ("claimed", "agent-slow"),
        ("started", "agent-slow"),
        ("claim_expired", "agent-quick"),
        ("claimed", "agent-quick"),
        ("started", "agent-quick"),
        ("finished", "agent-quick"),
    ]
    assert "taken over from agent-slow" in [e.message for e in found]


def test_a_claim_of_somebody_else_is_not_touched_while_they_speak(settings: Settings) -> None:
    silence = Silence("me", 5.0)
    silence.heard("me", 0.0)
    silence.heard("they", 0.0)
    for n in range(1, 9):
        silence.heard("me", 5.0 * n)
        assert silence.of("they") == 5.0 * n
    silence.heard("they", 41.0)
    assert silence.of("they") == 0.0
    silence.heard("me", 1000.0)
    assert silence.of("they") == 10.0, "while we did not hear ourselves no time has passed"
    assert silence.of("a stranger") == 0.0


# --- what is asked of a job -------------------------------------------------------------------------------------------


def test_cancelling_ends_what_waits_at_once_and_what_runs_at_its_next_look(settings: Settings) -> None:
    script = Script()
    with running(settings, script):
        runs = send(settings, "source.pause", "a", do="wait", tell=True)
        waits = send(settings, "source.pause", "a", do="never")
        await_it(lambda: script.calls, "the call")
        say(settings, waits, "cancel_asked")
        assert await_job(settings, waits).state == "cancel_asked"
        say(settings, runs, "cancel_asked")
        end = await_job(settings, runs)
        assert (end.state, end.done, end.total) == ("cancelled", 3, 10)
        assert end.message == "somebody cancelled it at: waiting"
        after = send(settings, "source.pause", "a", do="after")
        assert await_job(settings, after).state == "finished"
        say(settings, after, "cancel_asked")
        assert await_job(settings, send(settings, "source.pause", "a", do="last")).state == "finished"
    assert [do for _, do, _ in script.calls] == ["wait", "after", "last"]
    assert [e.state for e in job(settings, waits)] == ["accepted", "cancel_asked"]


def test_what_waits_is_taken_by_priority_as_many_at_a_time_as_may(settings: Settings) -> None:
    one = replace(settings, agent=replace(settings.agent, parallel=1))
    script = Script()
    with running(one, script) as run:
        first = send(settings, "source.pause", "a", do="wait")
        await_it(lambda: script.calls, "the call")
        low = send(settings, "source.pause", "b", do="low")
        high = send(settings, "source.pause", "c", do="high", priority=5)
        raised = send(settings, "source.pause", "d", do="raised")
        last = send(settings, "source.pause", "d", do="behind", priority=50)
        say(settings, raised, "prioritised", priority=9)
        await_it(lambda: [e for e in job(settings, last) if e.state == "accepted"], "the last to be seen")
        await_it(lambda: run.loop._life(raised).priority == 9, "the priority to be seen")
        script.released.set()
        assert {await_job(settings, j).state for j in (first, low, high, raised, last)} == {"finished"}
        assert script.together == 1
    done = [do for _, do, _ in script.calls]
    assert sorted(done) == sorted(["wait", "raised", "behind", "high", "low"])
    assert done.index("raised") < done.index("behind"), "one asset's commands stay in order"
    assert done.index("raised") < done.index("high") < done.index("low")


def test_while_kafka_is_away_a_handler_is_called_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.loop._AWAY_PAUSE_S", 0.1)
    script = Script()
    with running(settings, script):
        assert await_job(settings, send(settings, "source.pause", "a", do="lose Kafka")).state == "finished"
    assert script.calls == [("a", "lose Kafka", False), ("a", "lose Kafka", True)]
