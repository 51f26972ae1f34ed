"""The command loop: what is open follows from the log, is claimed, carried out, and its end put into the log.

    commands     c1        c2   c3                     jobs: a accepted, k claimed, s started, p progressed, f finished, x expired
    node a         a1 k1 s1 p1 f1 a2 k2 s2 p2  -- dies --
    node b                           k2: void                           x2 k2 s2 f2 a3 k3 s3 f3

Open is every command whose job is not over (`streams.job_states`). With every start `inventory`, `repository`, `jobs` and
`commands` are read from their beginning, then followed; nothing else is remembered anywhere.

To take a command up is to publish a claim and to read it back: it counts if nobody else's came before it. One that was
claimed before is *resumed*: its handler is told so. And if we die here? Before `accepted` is durable: whoever starts next
accepts it. Before the claim is read back, or in the midst of the work: the claim is ended by our own next start, for which the
lock of the data directory vouches, or by another agent that has heard nothing of us for the lease. After a handler's work and
before the final state is durable: the next holder calls the handler again, which must find its work done (`agents.commands`).

Commands of one asset run one after the other, in the order of the topic, whatever node has them: the next is not claimed
before the end of the one before has been read. At most `agent.parallel` at once; of what waits, the highest priority first,
then the oldest.
A command that is another node's (`agents.nodes`) is left to it.

While Kafka is away handlers wait. One that cannot, and fails because of that, is called again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from agents.commands import (
    Cancelled,
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
from agents.naming import taken
from agents.nodes import OVERTAKES, Owners, Silence
from streams.consume import Message, ends, follow, open_consumer, partitions, read_topic
from streams.errors import DeliveryFailed, StreamError
from streams.events import CommandRequested, HealthReported, JobChanged, NodeChanged, Problem
from streams.ids import now_us, uuid7
from streams.job_states import Life, after
from streams.node_log import NodeLog
from streams.settings import KafkaSettings
from streams.topics import topic_name

RECOVERY_PAUSE_S = 5.0
HEARTBEAT_S = 5.0
_TURN_S = 0.1
_AWAY_PAUSE_S = 2.0
_LAST_WORD_S = 5.0
# What Kafka says, or we say for it, while it is away: nothing is wrong with the command.
AWAY: Final = frozenset({"kafka-unreachable", "topic-without-leader", "journal-unreachable", "inventory-behind"})
_log = logging.getLogger("holdfast.commands")


def beat_s(lease_s: float) -> float:
    """How often an agent speaks, so that several beats fit into a lease."""
    return min(HEARTBEAT_S, lease_s / 4)


@dataclass(slots=True)
class _Open:
    """A command whose job is not over. `number`: its place in the order in which commands came."""

    command: Command
    number: int
    ended: str = ""  # the claim that this run has said to be over


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
        agent = services.settings.agent
        self.fatal: Exception | None = None
        self.owners = Owners()
        self._services = services
        self._handlers = handlers
        self._recoveries = recoveries() if recover is None else recover
        self._on_inventory = on_inventory
        self._writer = services.publisher.chain.writer
        self._silence = Silence(self._writer, beat_s(agent.lease_s))
        self._lease_s = agent.lease_s
        self._parallel = agent.parallel
        self._live = False
        self._changed = threading.Condition()
        self._lives: dict[str, Life] = {}
        self._over: set[str] = set()
        self._known: set[str] = set()
        self._open: dict[str, _Open] = {}
        self._queues: dict[str, dict[str, None]] = {}  # asset → ids of open commands, in order
        self._seen: set[str] = set()  # claims of this run that were read back
        self._busy: set[str] = set()
        self._unrecovered: set[str] = set()
        self._away: set[str] = set()  # unrecovered, and not to be tried just now
        self._warned: set[str] = set()
        self._nodes = NodeLog()
        self._named = False
        self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="command")

    def figures(self) -> dict[str, float]:
        """For a heartbeat: jobs that wait and that run."""
        with self._changed:
            running = len(self._busy)
            return {"jobs_waiting": float(max(0, len(self._open) - running)), "jobs_running": float(running)}

    # --- reading ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Replay, then follow. Raises what reading the log raises."""
        try:
            for batch in self._batches():
                if self._services.stop.is_set():
                    return
                for message in batch:
                    self._take(message)
                with self._changed:
                    self._changed.notify_all()
                    self._schedule()
        finally:
            self._services.stop.set()
            with self._changed:
                self._changed.notify_all()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _batches(self) -> Iterator[list[Message]]:
        kafka = self._services.settings.kafka
        topics = [topic_name(kafka.prefix, name) for name in ("inventory", "repository", "jobs", "commands")]
        place: dict[tuple[str, int], int] = {}
        for topic in topics:
            for message in read_topic(kafka, topic):
                place[topic, message.partition] = message.offset + 1
                yield [message]
        self._settle_in()
        health = topic_name(kafka.prefix, "health")
        place |= _ends_of(kafka, health)
        yield from follow(kafka, [*topics, health], place, self._services.stop, turn_s=_TURN_S)

    def _settle_in(self) -> None:
        """Everything that was there has been read: begin."""
        with self._changed:
            self._live = True
            sources = self._services.sources.all()
            self._unrecovered = {source for source in sources if self._have(source)}
            for one in list(self._open.values()):
                # The lock of the data directory is ours, so whoever held this under our name has ended.
                life = self._life(one.command.id)
                if life.held and life.writer != self._writer and self._services.mine(life.holder):
                    self._expire(one, life, "its agent was started anew")
                self._accept(one)
            for source in sorted(self._unrecovered):
                self._on_inventory(source, False)
            self._schedule()

    def _have(self, source: str) -> bool:
        owner = self.owners.sources.get(source, "")
        return not owner or self._services.mine(owner)

    def _life(self, job: str) -> Life:
        return self._lives.get(job) or Life()

    def _take(self, message: Message) -> None:
        self._services.publisher.observe(message.hlc)
        event = message.event
        if isinstance(event, CommandRequested):
            self._take_command(event)
        elif isinstance(event, JobChanged):
            self._take_change(event, message.stamp.writer)
        elif isinstance(event, HealthReported):
            self._take_beat(event, message.stamp.writer)
        elif isinstance(event, NodeChanged):
            self._take_node(event)
        else:
            self._services.hosts.apply(event)
            self.owners.apply(event)
            source = self._services.sources.apply(event, message.id)
            if source is not None and self._live and self._have(source):
                self._on_inventory(source, True)

    def _take_command(self, event: CommandRequested) -> None:
        if event.command in self._known:
            return  # delivered twice
        self._known.add(event.command)
        if event.command in self._over:
            return
        try:
            command = command_of(event)
        except AgentError as error:
            self._services.publisher.publish(
                JobChanged(
                    job=event.command,
                    kind=event.kind,
                    asset=event.asset,
                    state="failed",
                    at_us=now_us(),
                    by=self._services.agent,
                    problems=(error.problem(),),
                ),
                correlation=event.command,
            )
            return
        with self._changed:
            one = self._open[command.id] = _Open(command, len(self._known))
            self._queues.setdefault(command.asset, {})[command.id] = None
            if self._live:
                self._accept(one)

    def _accept(self, one: _Open) -> None:
        if self._life(one.command.id).state == "requested" and self._mine(one.command):
            context = Context(self._services, one.command)
            context.publish(context.job("accepted"))

    def _mine(self, command: Command) -> bool:
        owner = self.owners.of(
            command.kind, command.asset, command.parameters, command.node, self._life(command.id).last
        )
        return not owner or self._services.mine(owner)

    def _take_change(self, event: JobChanged, writer: str) -> None:
        with self._changed:
            if event.claim and writer == self._writer and event.state == "claimed":
                self._seen.add(event.claim)
            if event.job in self._over:
                return
            life = self._lives[event.job] = after(self._life(event.job), event, writer)
            if life.over:
                self._over.add(event.job)
                del self._lives[event.job]
                self._close(event.job)

    def _close(self, job: str) -> None:
        one = self._open.pop(job, None)
        if one is not None:
            queue = self._queues[one.command.asset]
            del queue[job]
            if not queue:
                del self._queues[one.command.asset]

    # --- others -------------------------------------------------------------------------------------------------------

    def _take_beat(self, event: HealthReported, writer: str) -> None:
        self._silence.heard(writer, time.monotonic())
        if writer != self._writer or event.source:
            return
        with self._changed:
            for one in self._open.values():
                life = self._life(one.command.id)
                if life.held and life.writer != self._writer and self._silence.of(life.writer) > self._lease_s:
                    self._expire(one, life, f"{life.holder} has been silent for {self._lease_s} s")

    def _take_node(self, event: NodeChanged) -> None:
        """Whoever has our name after us (`agents.naming`) has heard nothing of us for the lease: this run is over."""
        if not self._nodes.apply(event) or event.node != self._services.agent or event.state != "started":
            return
        if event.run == self._writer:
            self._named = True
        elif self._named:
            self.give_up(taken(event.node, event))

    def _expire(self, one: _Open, life: Life, why: str) -> None:
        claim = life.claim or ""
        if one.ended == (claim or life.writer):
            return
        one.ended = claim or life.writer
        context = Context(self._services, one.command, claim)
        context.publish(context.job("claim_expired", message=why))

    # --- what to do next ----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Let workers take up what is to be done, as many as may. The lock is held."""
        while self._live and len(self._busy) < self._parallel and not self._services.stop.is_set():
            asset, one = self._first()
            if not asset:
                return
            self._busy.add(asset)
            self._pool.submit(self._work, asset, one)

    def _first(self) -> tuple[str, _Open | None]:
        """An asset that something is to be done for, and the command; none where only a dead run's work is to be settled."""
        unsettled = self._unrecovered - self._busy - self._away
        if unsettled:
            asset = min(unsettled)
            return asset, self._next(asset) if asset in self._queues else None
        found = [
            (-self._priority(one), one.number, asset, one)
            for asset in self._queues
            if asset not in self._busy and (one := self._next(asset)) is not None
        ]
        _, _, asset, first = min(found, key=lambda f: f[:2], default=(0, 0, "", None))
        return asset, first

    def _priority(self, one: _Open) -> int:
        said = self._life(one.command.id).priority
        return one.command.priority if said is None else said

    def _next(self, asset: str) -> _Open | None:
        """The command of an asset that this agent may claim now: the first that is open, with three exceptions."""
        others = False
        for job in self._queues[asset]:
            one = self._open[job]
            if self._life(job).held:
                return None
            if asset in self._unrecovered and one.command.kind.startswith("rollback."):
                continue  # what needs no rollback to be settled need not wait for a source that is away
            if not self._mine(one.command):
                others = True  # left to its node; only what may mend that goes past it
            elif not others or one.command.kind in OVERTAKES:
                return one
        return None

    def _work(self, asset: str, one: _Open | None) -> None:
        try:
            if asset in self._unrecovered and asset not in self._away:
                self._recover(asset)
            if one is not None and not (asset in self._unrecovered and one.command.kind.startswith("rollback.")):
                self._claim(one)
        except Interrupted:
            pass
        except DeliveryFailed as error:
            self.give_up(error)
        except Exception as error:  # noqa: BLE001 - the thread's edge: what nobody foresaw ends the agent, visibly
            _log.exception("the command loop met a defect")
            self.give_up(error)
        finally:
            with self._changed:
                self._busy.discard(asset)
                self._schedule()

    def _recover(self, source: str) -> None:
        """Put back what a dead run left; when the source is away it is tried again later."""
        try:
            if source in self._services.sources.all():
                for recover in self._recoveries:
                    recover(self._services, source)
        except DeliveryFailed:
            raise
        except (AgentError, StreamError) as error:
            _log.warning("%s cannot be looked after yet: %s", source, error)
            self._warn_waiting(source, Problem(error.code, error.message, error.hint))
            with self._changed:
                self._away.add(source)
            threading.Thread(target=self._later, args=(source,), name=f"later-{source}", daemon=True).start()
            return
        with self._changed:
            self._unrecovered.discard(source)

    def _later(self, source: str) -> None:
        if not self._services.stop.wait(RECOVERY_PAUSE_S):
            with self._changed:
                self._away.discard(source)
                self._schedule()

    def _warn_waiting(self, source: str, problem: Problem) -> None:
        """Say once to each command that waits for it why the source cannot be looked after."""
        with self._changed:
            waiting = [self._open[job].command for job in self._queues.get(source, ()) if job not in self._warned]
            self._warned.update(c.id for c in waiting)
        for command in waiting:
            Context(self._services, command).warn(problem)

    # --- one command --------------------------------------------------------------------------------------------------

    def _claim(self, one: _Open) -> None:
        """Claim it, read the claim back, and carry it out if that counted."""
        claim, job = uuid7(), one.command.id
        with self._changed:
            life = self._life(job)
            command = replace(one.command, resumed=life.claims > 0)
        context = Context(self._services, command, claim, lambda: self._life(job))
        context.durable(context.job("claimed", message=self._again(life)))
        failpoint("command.claimed")
        try:
            if self._read_back(job, claim):
                failpoint("command.read-back")
                self._carry_out(context)
        except Interrupted:
            if self._services.stop.is_set():
                context.publish(context.job("released", message="its agent ended"))  # void if it never counted
                with contextlib.suppress(DeliveryFailed):
                    self._services.publisher.flush(_LAST_WORD_S)
            else:
                _log.warning("%s of %s is another's by now: left to it", command.kind, command.asset)
        self._await_word_of(job, claim)

    def _read_back(self, job: str, claim: str) -> bool:
        """Wait for a claim of ours to come back; whether it counted. Raises `Interrupted`."""
        with self._changed:
            while claim not in self._seen:
                if self._services.stop.is_set():
                    raise Interrupted
                self._changed.wait(_TURN_S)
            self._seen.discard(claim)
            return job not in self._over and self._life(job).claim == claim

    def _again(self, life: Life) -> str:
        if not life.claims:
            return ""
        return "taken up again after a restart" if self._services.mine(life.last) else f"taken over from {life.last}"

    def _await_word_of(self, job: str, claim: str) -> None:
        """Until the end that was published has been read back, so that nobody claims it again who has not seen it."""
        with self._changed:
            while not self._services.stop.is_set() and job not in self._over and self._life(job).claim == claim:
                self._changed.wait(_TURN_S)

    def _carry_out(self, context: Context) -> None:
        command = context.command
        problems: tuple[Problem, ...]
        try:
            if command.deadline_us is not None and now_us() > command.deadline_us and not command.resumed:
                raise AgentError("deadline-passed", f"{command.kind} was not begun by its deadline", "ask again")
            carry_out = self._handlers(command.kind)
            context.publish(context.job("started"))
            failpoint("command.started")
            result = self._call(carry_out, context)
            failpoint("command.done")
            context.durable(context.job("finished", result=_json(result)))
            failpoint("command.finished")
            return
        except (Interrupted, DeliveryFailed):
            raise
        except Cancelled as error:
            failpoint("command.cancelled")
            context.durable(context.job("cancelled", **{**context.so_far(), "message": _how_far(context, error)}))
            return
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

    def _call(self, carry_out: Handler, context: Context) -> Mapping[str, Any]:
        """What the handler returns. While Kafka is away it is called again: that is nothing the command can be blamed for."""
        while True:
            try:
                return carry_out(context.command, context)
            except DeliveryFailed:
                raise
            except (StreamError, AgentError) as error:
                if error.code not in AWAY or isinstance(error, JobFailed):
                    raise
                _log.warning("%s of %s is tried again: %s", context.command.kind, context.command.asset, error)
                context.progress(f"waiting for Kafka: {error.message}")
            self._services.stop.wait(_AWAY_PAUSE_S)
            context.check()
            context.command = replace(context.command, resumed=True)

    def give_up(self, error: Exception) -> None:
        """End the loop because of `error`."""
        self.fatal = self.fatal or error
        self._services.stop.set()


def _ends_of(kafka: KafkaSettings, topic: str) -> dict[tuple[str, int], int]:
    """Where the next record of each partition will be."""
    with contextlib.closing(open_consumer(kafka)) as consumer:
        return {(topic, number): ends(consumer, topic, number)[1] for number in partitions(consumer, topic)}


def _how_far(context: Context, error: Cancelled) -> str:
    last = context.so_far().get("message", "")
    return error.message + (f" at: {last}" if last else "")


def _json(result: Mapping[str, Any]) -> str:
    return json.dumps(result, sort_keys=True, separators=(",", ":"))
