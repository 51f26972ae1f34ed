"""The agent as a process, and what a test asks of it through the log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from deploy.demo.accounts import create_account, grants_for
from deploy.demo.server import DatabaseServer
from streams.admin import ensure_topics
from streams.consume import Message, follow, read_topic
from streams.events import CommandRequested, Event, JobChanged, SourceChanged
from streams.ids import now_us, uuid7
from streams.job_states import Life, after
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name
from tests.stack.publishing import publisher_of
from tests.stack.servers import config_file

PATIENCE_S = 180.0
T = TypeVar("T")


def await_it(look: Callable[[], T | None], what: str, timeout: float = PATIENCE_S) -> T:
    """What `look` finds, as soon as it finds something true."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {timeout:g} s")
        time.sleep(0.05)


class AgentProcess:
    """`python -P -m agents`, or another `module` that starts one. Its output is in `log`, in the data directory unless said.
    `environment`: more of it."""

    def __init__(
        self,
        settings: Settings,
        module: str = "agents",
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.module = module
        self.log = log or settings.data_dir / "agent.log"
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        names = ("commands", "jobs", "inventory", "commits", "rollbacks", "repository", "health")
        ensure_topics(settings.kafka, [(name, None) for name in names])

    def start(self, failpoint: str = "", stop_at: str = "") -> None:
        points = {"HOLDFAST_FAILPOINT": failpoint, "HOLDFAST_STOPPOINT": stop_at}
        environment = {**os.environ, **points, **self._environment}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, "--config", str(config_file(self.settings))],
                stdout=out,
                stderr=out,
                env=environment,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Its exit status, when it has ended; minus the signal when one ended it."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the agent did not end; its log:\n{self.tail()}") from None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Until `go_on` it does nothing, as on a machine that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def paused(self) -> bool:
        return (Path("/proc") / str(self.pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"

    def stop(self) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.go_on()
                self.stop()
            except AssertionError:
                self.kill()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def children(self) -> list[int]:
        """Process ids of its children."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == self.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found


def grant_capture(server: DatabaseServer, password: str = "capture secret") -> None:
    with contextlib.closing(server.connect()) as admin:
        create_account(admin, "capture", password, grants_for(admin).capture)


def source_parameters(settings: Settings, server: DatabaseServer, **more: Any) -> dict[str, Any]:
    """Parameters of `source.add` for a server with the account of `grant_capture`."""
    reference = SecretStore(settings).put("sources/shop/capture", b"capture secret")
    return {
        "kind": server.kind,
        "host": "127.0.0.1",
        "port": server.port,
        "tls": "off",
        "accounts": {"capture": "capture"},
        "secrets": {"capture": reference},
        "options": {},
        **more,
    }


def send(
    settings: Settings,
    what: str,
    asset: str = "shop",
    /,
    *,
    deadline_us: int | None = None,
    requester: str = "tester",
    priority: int = 0,
    node: str = "",
    **parameters: Any,
) -> str:
    """Ask for work; the job's id."""
    command = uuid7()
    event = CommandRequested(
        command=command,
        kind=what,
        asset=asset,
        parameters=json.dumps(parameters),
        requester=requester,
        requested_us=now_us(),
        deadline_us=deadline_us,
        priority=priority,
        node=node,
    )
    publisher_of(settings).sent_and_durable(event)
    return command


def messages(settings: Settings, topic: str, of: str | None = None) -> Iterator[Message]:
    return read_topic(settings.kafka, topic_name(settings.kafka.prefix, topic, of))


def events(settings: Settings, topic: str, kind: type[T], of: str | None = None) -> list[T]:
    """All events of one type in a topic."""
    found: list[T] = []
    for message in messages(settings, topic, of):
        event: Event = message.event
        if isinstance(event, kind):
            found.append(event)
    return found


def job(settings: Settings, command: str) -> list[JobChanged]:
    return [event for event in events(settings, "jobs", JobChanged) if event.job == command]


class _Jobs:
    """What a `jobs` topic has said so far: one reader goes on where the last one was."""

    def __init__(self) -> None:
        self.ended: dict[str, JobChanged] = {}
        self.place: dict[tuple[str, int], int] = {}
        self._lives: dict[str, Life] = {}
        self._lock = threading.Lock()

    def take(self, message: Message) -> None:
        event, at = message.event, (message.topic, message.partition)
        with self._lock:
            if message.offset < self.place.get(at, 0):
                return
            self.place[at] = message.offset + 1
            if isinstance(event, JobChanged) and event.job not in self.ended:
                life = self._lives[event.job] = after(self._lives.get(event.job, Life()), event)
                if life.over:
                    self.ended[event.job] = event


_JOBS: defaultdict[tuple[str, str], _Jobs] = defaultdict(_Jobs)


def await_job(settings: Settings, command: str, timeout: float = PATIENCE_S) -> JobChanged:
    """What ended a job, as soon as the log says so."""
    topic = topic_name(settings.kafka.prefix, "jobs")
    jobs = _JOBS[settings.kafka.bootstrap, topic]
    deadline = time.monotonic() + timeout
    with contextlib.closing(follow(settings.kafka, [topic], jobs.place, threading.Event(), ticks=True)) as batches:
        while command not in jobs.ended:
            if time.monotonic() > deadline:
                raise AssertionError(f"the end of job {command} did not come about within {timeout:g} s")
            for message in next(batches):
                jobs.take(message)
    return jobs.ended[command]


def await_state(settings: Settings, state: str, source: str = "shop", timeout: float = PATIENCE_S) -> SourceChanged:
    """Until the source's last state is `state`."""

    def look() -> SourceChanged | None:
        changes = [e for e in events(settings, "inventory", SourceChanged) if e.source == source]
        return changes[-1] if changes and changes[-1].state == state else None

    return await_it(look, f"{source} in state {state}", timeout)
