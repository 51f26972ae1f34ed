"""Commands: what a handler of one kind is given and gives back, and which handlers there are.

The loop (`agents.loop`) reads `commands`, claims what is open, and calls the handler of its kind in a thread. Commands
of one asset run one at a time, in the order they came; different assets in parallel. Knows nothing of what a handler
does.

A handler must be safe to call again for the same command: `Command.resumed` says that somebody had claimed it before, this
agent or another, and died somewhere, or that the log was away in the midst of it. It then completes the work, or finds it
complete, or raises what the user must know.

Between pieces of work it calls `Context.check`. Whoever's claim is over, or is to end, gets `Interrupted` there: whatever
cleans up must then say nothing. Whose job somebody cancels gets `Cancelled`, an `AgentError` like any other: it leaves things as
after a failure.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from agents.backup.limits import Limits
from agents.errors import AgentError
from agents.hosts import Hosts
from agents.protocol import SourceSettings, source_settings
from streams.events import CommandRequested, Event, JobChanged, Problem
from streams.ids import now_us
from streams.job_states import Life

if TYPE_CHECKING:
    from agents.nodes import Names
    from agents.processes import Processes
    from agents.repository.node import Node
    from agents.scratch.keeper import Keeper
    from agents.sources import Sources
    from streams.publish import Publisher
    from streams.secrets import SecretStore
    from streams.settings import Settings

# kind → "module:function", imported when the first such command comes.
HANDLERS: Mapping[str, str] = {
    "source.add": "agents.protect:add",
    "source.pause": "agents.protect:pause",
    "source.resume": "agents.protect:resume",
    "source.remove": "agents.protect:remove",
    "source.set-accounts": "agents.accounts:set_accounts",
    "scratch.create": "agents.scratch.handlers:create",
    "scratch.drop": "agents.scratch.handlers:drop",
    "repository.add": "agents.repository.handlers:add",
    "repository.adopt": "agents.repository.handlers:adopt",
    "repository.move": "agents.repository.moving:move",
    "repository.set": "agents.repository.settling:change",
    "repository.remove": "agents.repository.settling:remove",
    "repository.usage": "agents.repository.handlers:usage",
    "repository.retention": "agents.repository.expiring:set_retention",
    "repository.verify": "agents.repository.collecting:verify",
    "repository.collect": "agents.repository.collecting:collect",
    "point.star": "agents.repository.handlers:star",
    "point.unstar": "agents.repository.handlers:unstar",
    "point.hold": "agents.repository.handlers:hold",
    "point.release": "agents.repository.handlers:release",
    "point.drop": "agents.repository.handlers:ask_expiry",
    "point.agree": "agents.repository.expiring:agree",
    "point.expire": "agents.repository.expiring:expire",
    "point.prove": "agents.repository.collecting:prove",
    "point.restore": "agents.restore.paths:restore",
    "point.diff": "agents.repository.backups:diff",
    "point.compare": "agents.restore.handlers:compare",
    "restore.run": "agents.restore.handlers:run",
    "backup.make": "agents.repository.backups:make",
    "host.add": "agents.backup.inventory:add",
    "host.remove": "agents.backup.inventory:remove",
    "asset.discover": "agents.backup.inventory:discover",
    "backup.run": "agents.backup.run:run",
    "key.add": "agents.repository.key_handlers:add",
    "key.list": "agents.repository.key_handlers:list_all",
    "key.drill": "agents.repository.key_handlers:drill",
    "key.remove": "agents.repository.key_handlers:remove",
    "rollback.plan": "agents.rollback.handlers:plan",
    "rollback.run": "agents.rollback.handlers:run",
    "rollback.approve": "agents.rollback.handlers:approve",
    "rollback.abandon": "agents.rollback.handlers:abandon",
    "rollback.table-plan": "agents.scratch.tables:plan",
    "rollback.table-run": "agents.scratch.tables:run",
    "rollback.table-approve": "agents.scratch.tables:approve",
    "rollback.table-abandon": "agents.scratch.tables:abandon",
}

# "module:function" of `Recovery`, called for every source when the agent starts, before any of its commands.
RECOVERIES: tuple[str, ...] = ("agents.rollback.handlers:recover", "agents.scratch.tables:recover")


class JobFailed(AgentError):
    """A command cannot be carried out, for one or several reasons; the job fails with all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        first = problems[0]
        super().__init__(first.code, first.message, first.hint)
        self.problems = problems


class Cancelled(AgentError):
    """Somebody asked to end this job. It ends `cancelled`, with what was done."""

    def __init__(self, by: str) -> None:
        super().__init__("cancelled", f"{by} cancelled it", "ask again to have it done")
        self.by = by


@dataclass(frozen=True, slots=True)
class Command:
    """A requested piece of work. `parameters` as docs/design.md has them for its kind; `resumed`: see the module."""

    id: str
    kind: str
    asset: str
    parameters: Mapping[str, Any]
    requester: str
    requested_us: int
    deadline_us: int | None = None
    resumed: bool = False
    priority: int = 0
    node: str = ""


def command_of(event: CommandRequested, *, resumed: bool = False) -> Command:
    """Raises `AgentError` (`command-invalid`) when the parameters are not a JSON object."""
    try:
        parameters = json.loads(event.parameters or "{}")
    except ValueError as error:
        raise AgentError("command-invalid", f"the parameters of {event.kind} are not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise AgentError("command-invalid", f"the parameters of {event.kind} are not a JSON object")
    return Command(
        event.command,
        event.kind,
        event.asset,
        parameters,
        event.requester,
        event.requested_us,
        event.deadline_us,
        resumed,
        event.priority,
        event.node,
    )


@dataclass(frozen=True, slots=True)
class Services:
    """What one run of an agent has. `agent` is its name in events (`by`); `stop` is set when it is to end. `names`: all that it
    is and ever was called (`agents.nodes`); without, only that."""

    agent: str
    settings: Settings
    publisher: Publisher
    secrets: SecretStore
    sources: Sources
    processes: Processes
    stop: threading.Event = field(default_factory=threading.Event)
    keeper: Keeper | None = None
    repositories: Node | None = None
    hosts: Hosts = field(default_factory=Hosts)
    limits: Limits = field(default_factory=Limits)
    names: Names | None = None

    def mine(self, owner: str) -> bool:
        """Whether that is a name of this agent's."""
        return owner == self.agent if self.names is None else self.names.mine(owner)

    @property
    def copies(self) -> Keeper:
        """Who keeps scratch copies; an agent has one."""
        assert self.keeper is not None
        return self.keeper

    @property
    def node(self) -> Node:
        """Who keeps repositories open; an agent has one."""
        assert self.repositories is not None
        return self.repositories

    def source_settings(self, source: str) -> SourceSettings:
        """How to reach a defined source, passwords resolved. Raises `AgentError` (`source-unknown`)."""
        return source_settings(self.sources.get(source).defined, self.secrets)


@dataclass(slots=True)
class Context:
    """What a handler has for one command. `claim` names the claim that it works under, `life` is what the log says of the job."""

    services: Services
    command: Command
    claim: str = ""
    life: Callable[[], Life] | None = None
    _said: float = 0.0  # monotonic time of the last progress event
    _last: Mapping[str, Any] = field(default_factory=dict)

    def publish(self, event: Event, *, of: str | None = None) -> None:
        """Queue an event that this command causes; in order, durable after `durable()`."""
        self.services.publisher.publish(event, correlation=self.command.id, of=of)

    def durable(self, *events: Event, of: str | None = None) -> None:
        """Publish `events` and return when they and all published before are in the log."""
        for event in events:
            self.publish(event, of=of)
        self.services.publisher.flush(60.0)

    def progress(self, message: str, done: int = 0, total: int = 0, unit: str = "", *, every_s: float = 0.5) -> None:
        """Say how far the work is. What comes within `every_s` of the last one is dropped, but for a finished count."""
        now = time.monotonic()
        self._last = {"message": message, "done": done, "total": total, "unit": unit}
        if now - self._said < every_s and not (total and done >= total):
            return
        self._said = now
        self.publish(self.job("progressed", **self._last))

    def so_far(self) -> Mapping[str, Any]:
        """The last progress there was, said or not: fields of an event."""
        return self._last

    def warn(self, *problems: Problem) -> None:
        """Say what the user should know though the work goes on."""
        if problems:
            self.publish(self.job("warned", problems=problems))

    def job(self, state: str, **fields: Any) -> JobChanged:
        """An event of this command's job."""
        command = self.command
        return JobChanged(
            job=command.id,
            kind=command.kind,
            asset=command.asset,
            state=state,
            at_us=now_us(),
            by=self.services.agent,
            claim=self.claim,
            **fields,
        )

    @property
    def void(self) -> bool:
        """Whether the claim is over: somebody else has the job, or may."""
        return self.life is not None and self.life().claim != self.claim

    def check(self) -> None:
        """Call between pieces of work. Raises `Interrupted` (the agent is to end, or another has the job), `Cancelled`,
        `AgentError` (`deadline-passed`)."""
        if self.services.stop.is_set() or self.void:
            raise Interrupted
        if self.life is not None and (by := self.life().cancel):
            raise Cancelled(by)
        deadline = self.command.deadline_us
        if deadline is not None and now_us() > deadline:
            raise AgentError("deadline-passed", f"{self.command.kind} was not done by its deadline", "ask again")

    def ending(self) -> bool:
        """Whether `check` would raise `Interrupted` or `Cancelled`: for what can only ask whether to go on."""
        return self.services.stop.is_set() or (
            self.life is not None and (self.life().claim != self.claim or bool(self.life().cancel))
        )


class Interrupted(Exception):
    """The agent is to end, or its claim is over. The job gets no final state: whoever claims it next calls the handler again."""


class Handler(Protocol):
    """Carries out one command. Returns the job's result (JSON object, docs/design.md).

    Raises `AgentError` or `JobFailed`: the job fails with the problems. `Interrupted`: it is resumed by whoever claims it next.
    Anything else is a defect: the job fails with `internal` and the trace is logged.
    """

    def __call__(self, command: Command, ctx: Context) -> Mapping[str, Any]: ...


class Recovery(Protocol):
    """Puts back what a dead run of this agent may have left changed on `source`.

    Called in the source's own thread, with every start of the agent, before any of the source's commands.
    `SourceUnavailable` makes the loop call it again later; until it has returned, no command of the source runs.
    """

    def __call__(self, services: Services, source: str) -> None: ...


def handler(kind: str) -> Handler:
    """Raises `AgentError` (`command-unknown`)."""
    where = HANDLERS.get(kind)
    if where is None:
        raise AgentError("command-unknown", f"this agent does not know {kind!r}", "upgrade the agent")
    return cast("Handler", _load(where))


def recoveries() -> list[Recovery]:
    return [cast("Recovery", _load(where)) for where in RECOVERIES]


def _load(where: str) -> object:
    module, _, function = where.partition(":")
    return getattr(importlib.import_module(module), function)
