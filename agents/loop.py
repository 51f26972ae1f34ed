"""The command loop: what is open follows from the log, is claimed, carried out, and its end put into the log.

    commands     c1        c2   c3                     jobs: a accepted, k claimed, s started, p progressed, f finished
    jobs           a1 k1 s1 p1 f1 a2 k2 s2 p2   -- the agent dies --   k2 s2 f2 a3 k3 s3 f3

Open is every command without a job in a final state. One that was claimed already is *resumed*: its handler is told so.
Nothing else is remembered anywhere: with every start `inventory`, `jobs` and `commands` are read from their beginning, then
followed. And if we die here? Before `accepted` is durable: the next start accepts it. After a handler's work and before the
final state is durable: the next start calls the handler again, which must find its work done (`agents.commands`).

Commands of one source run one after the other, in the order of the topic, at most `PARALLEL` sources at once.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agents.commands import (
    Command,
    Context,
    Handler,
    Interrupted,
    JobFailed,
    Recovery,
    Services,
    command_of,
    handler,
    recoveries,
)
from agents.errors import AgentError
from agents.failpoints import failpoint
from streams.consume import Message, follow, read_topic
from streams.errors import DeliveryFailed, StreamError
from streams.events import FINAL_STATES, CommandRequested, JobChanged, Problem
from streams.ids import now_us
from streams.topics import topic_name

PARALLEL = 4
RECOVERY_PAUSE_S = 5.0
_TURN_S = 0.1
_log = logging.getLogger("holdfast.commands")


class Loop:
    """`run` returns when `services.stop` is set or something is wrong that only a new start mends (`fatal`)."""

    def __init__(
        self,
        services: Services,
        *,
        handlers: Callable[[str], Handler] = handler,
        recover: Sequence[Recovery] | None = None,
        on_inventory: Callable[[str, bool], None] = lambda *_: None,
    ) -> None:
        """`on_inventory(source, live)` is called in the loop's thread when an event about a source was taken in; `live`
        says that it came while we watched. Before that is ever true it was called for all there are."""
        self.fatal: Exception | None = None
        self._services = services
        self._handlers = handlers
        self._recoveries = recoveries() if recover is None else recover
        self._on_inventory = on_inventory
        self._live = False
        self._lock = threading.Lock()
        self._job_states: dict[str, str] = {}
        self._known: set[str] = set()
        self._queues: dict[str, deque[Command]] = {}
        self._busy: set[str] = set()
        self._unrecovered: set[str] = set()
        self._warned: set[str] = set()
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="command")

    def figures(self) -> dict[str, float]:
        """For a heartbeat: jobs that wait and that run."""
        with self._lock:
            waiting = sum(map(len, self._queues.values()))
            return {"jobs_waiting": float(waiting), "jobs_running": float(len(self._busy))}

    def run(self) -> None:
        """Replay, then follow. Raises what reading the log raises."""
        try:
            for message in self._messages():
                if self._services.stop.is_set():
                    return
                if message is not None:
                    self._take(message)
        finally:
            self._services.stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _messages(self) -> Iterator[Message | None]:
        kafka = self._services.settings.kafka
        topics = [topic_name(kafka.prefix, name) for name in ("inventory", "jobs", "commands")]
        place: dict[tuple[str, int], int] = {}
        for topic in topics:
            for message in read_topic(kafka, topic):
                place[topic, message.partition] = message.offset + 1
                yield message
        self._settle_in()
        for batch in follow(kafka, topics, place, self._services.stop, turn_s=_TURN_S):
            yield from batch

    def _settle_in(self) -> None:
        """Everything that was there has been read: begin."""
        with self._lock:
            self._live = True
            self._job_states.clear()
            self._unrecovered = set(self._services.sources.all())
            for source in sorted(self._unrecovered):
                self._on_inventory(source, False)
            for source in self._unrecovered | self._queues.keys():
                self._next(source)

    def _take(self, message: Message) -> None:
        self._services.publisher.observe(message.hlc)
        event = message.event
        if isinstance(event, CommandRequested):
            self._take_command(event)
        elif isinstance(event, JobChanged):
            if not self._live:
                final = self._job_states.get(event.job) in FINAL_STATES
                if event.state != "warned" and not final:
                    self._job_states[event.job] = event.state
        else:
            self._services.hosts.apply(event)
            source = self._services.sources.apply(event, message.id)
            if source is not None and self._live:
                self._on_inventory(source, True)

    def _take_command(self, event: CommandRequested) -> None:
        if event.command in self._known:
            return  # delivered twice
        self._known.add(event.command)
        state = self._job_states.pop(event.command, "")
        if state in FINAL_STATES:
            return
        try:
            command = command_of(event, resumed=state not in ("", "accepted"))
        except AgentError as error:
            self._services.publisher.publish(_job(self._services, event, "failed", problems=(error.problem(),)))
            return
        if not state:
            self._services.publisher.publish(_job(self._services, event, "accepted"), correlation=event.command)
        with self._lock:
            self._queues.setdefault(command.asset, deque()).append(command)
            if self._live:
                self._next(command.asset)

    def _next(self, source: str) -> None:
        """Let a worker take up what `source` has to do next, unless one is at it. The lock is held."""
        if source in self._busy or self._services.stop.is_set():
            return
        if source in self._unrecovered:
            # What needs no rollback to be settled need not wait for a source that is away.
            free = next((c for c in self._queues.get(source, ()) if not c.kind.startswith("rollback.")), None)
            self._busy.add(source)
            self._pool.submit(self._work, source, free)
        elif self._queues.get(source):
            self._busy.add(source)
            self._pool.submit(self._work, source, self._queues[source][0])

    def _work(self, source: str, command: Command | None) -> None:
        again = True
        try:
            if source in self._unrecovered:
                again = self._recover(source) or command is not None
            if command is not None and not (source in self._unrecovered and command.kind.startswith("rollback.")):
                with self._lock:
                    self._queues[source].remove(command)
                self._carry_out(command)
        except Interrupted:
            pass
        except DeliveryFailed as error:
            self.give_up(error)
        except Exception as error:  # noqa: BLE001 - the thread's edge: what nobody foresaw ends the agent, visibly
            _log.exception("the command loop met a defect")
            self.give_up(error)
        finally:
            with self._lock:
                self._busy.discard(source)
                if again:
                    self._next(source)
            if not again:
                self._later(source)

    def _later(self, source: str) -> None:
        def go() -> None:
            if not self._services.stop.wait(RECOVERY_PAUSE_S):
                with self._lock:
                    self._next(source)

        threading.Thread(target=go, name=f"later-{source}", daemon=True).start()

    def _recover(self, source: str) -> bool:
        """Put back what a dead run left; False when the source is away and it must be tried again."""
        if source in self._services.sources.all():
            try:
                for recover in self._recoveries:
                    recover(self._services, source)
            except DeliveryFailed:
                raise
            except (AgentError, StreamError) as error:
                _log.warning("%s cannot be looked after yet: %s", source, error)
                self._warn_waiting(source, Problem(error.code, error.message, error.hint))
                return False
        with self._lock:
            self._unrecovered.discard(source)
        return True

    def _warn_waiting(self, source: str, problem: Problem) -> None:
        """Say once to each command that waits for it why the source cannot be looked after."""
        with self._lock:
            waiting = [c for c in self._queues.get(source, ()) if c.id not in self._warned]
            self._warned.update(c.id for c in waiting)
        for command in waiting:
            Context(self._services, command).warn(problem)

    def _carry_out(self, command: Command) -> None:
        context = Context(self._services, command)
        again = "taken up again after a restart" if command.resumed else ""
        context.durable(context.job("claimed", message=again))
        failpoint("command.claimed")
        problems: tuple[Problem, ...]
        try:
            if command.deadline_us is not None and now_us() > command.deadline_us and not command.resumed:
                raise AgentError("deadline-passed", f"{command.kind} was not begun by its deadline", "ask again")
            carry_out = self._handlers(command.kind)
            context.publish(context.job("started"))
            result = carry_out(command, context)
            failpoint("command.done")
            context.durable(context.job("finished", result=_json(result)))
            failpoint("command.finished")
            return
        except (Interrupted, DeliveryFailed):
            raise
        except JobFailed as error:
            problems = error.problems
        except AgentError as error:
            problems = (error.problem(),)
        except StreamError as error:
            problems = (Problem(error.code, error.message, error.hint),)
        except Exception:  # noqa: BLE001 - a defect in one handler is that job's failure, and nobody else's
            _log.exception("%s of %s met a defect", command.kind, command.asset)
            problems = (Problem("internal", "the agent met a defect; its log says more", "report it"),)
        context.durable(context.job("failed", problems=problems))

    def give_up(self, error: Exception) -> None:
        """End the loop because of `error`."""
        self.fatal = self.fatal or error
        self._services.stop.set()


def _job(services: Services, event: CommandRequested, state: str, **fields: Any) -> JobChanged:
    return JobChanged(
        job=event.command,
        kind=event.kind,
        asset=event.asset,
        state=state,
        at_us=now_us(),
        by=services.agent,
        **fields,
    )


def _json(result: Mapping[str, Any]) -> str:
    return json.dumps(result, sort_keys=True, separators=(",", ":"))
