"""What the log says just now: jobs, plans and tokens as their events come, ahead of the read models.

One thread follows `commands`, `jobs`, `rollbacks` and `repository` from where the read models stand, `inventory` from its
beginning.
So a job's events reach a browser without passing through PostgreSQL, a plan can be shown and run while a processor is
behind, and a revoked token is refused even if the processor that should have noted it is down.

What is held is bounded: jobs and plans beyond the newest few thousand are the read models' business alone.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from projections.views.access import Token
from streams.consume import Message, ends, follow, open_consumer, partitions
from streams.errors import StreamError
from streams.events import (
    CommandRequested,
    Event,
    JobChanged,
    PolicyDefined,
    PolicyRemoved,
    PolicyRun,
    ProtectionChanged,
    RollbackChanged,
    RollbackPlanned,
    TokenIssued,
    TokenRevoked,
)
from streams.policy_log import Standing, counts
from streams.policy_log import after as standing_after
from streams.protection_log import counts as protection_counts
from streams.settings import KafkaSettings
from streams.topics import topic_name

TOPICS = ("commands", "jobs", "inventory", "rollbacks", "repository")
_JOBS = 4_000
_EVENTS_OF_A_JOB = 200
_PLANS = 4_000
_KEYS = 20_000
_NOTED = 1_000

log = logging.getLogger("holdfast.api.live")
Place = tuple[str, int]
Heard = Callable[["Seen"], object]


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as it came: its `ce_id`, its clock, where it stands."""

    id: str
    hlc: int
    event: object


@dataclass(slots=True)
class LiveJob:
    """A job's command, when it came by, and its newest events in order."""

    command: CommandRequested | None = None
    events: list[Seen] = field(default_factory=list)


@dataclass(slots=True)
class LivePlan:
    """A plan and its changes, as far as they came by."""

    planned: RollbackPlanned | None = None
    changes: list[RollbackChanged] = field(default_factory=list)


class Live:
    """Follows the log in a thread of its own. `start` answers where the read models stand: (full topic, partition) →
    the next offset they need; what it leaves out is read from the beginning."""

    def __init__(self, kafka: KafkaSettings, start: Callable[[], Mapping[Place, int]]) -> None:
        self._kafka = kafka
        self._start = start
        self._names = {topic_name(kafka.prefix, t): t for t in TOPICS}
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, LiveJob] = OrderedDict()
        self._plans: OrderedDict[str, LivePlan] = OrderedDict()
        self._issued: dict[str, TokenIssued] = {}
        self._revoked: dict[str, TokenRevoked] = {}
        self._policies: dict[str, Standing] = {}
        self._protection: dict[tuple[str, str], str] = {}
        self._verdicts: OrderedDict[str, bool] = OrderedDict()
        self._keys: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        self._heard: dict[tuple[str, str], list[Heard]] = {}
        self._next: dict[Place, int] = {}
        self._noted: OrderedDict[str, None] = OrderedDict()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self.ready = threading.Event()
        self.trouble = ""

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    # --- what others ask ---------------------------------------------------------------------------------------------

    def job(self, job: str) -> LiveJob | None:
        with self._lock:
            found = self._jobs.get(job)
            return LiveJob(found.command, list(found.events)) if found else None

    def plan(self, plan: str) -> LivePlan | None:
        with self._lock:
            found = self._plans.get(plan)
            return LivePlan(found.planned, list(found.changes)) if found else None

    def token(self, digest: bytes, known: Token | None) -> Token | None:
        """`known` (what the read model says of the token with `digest`) with what has been said since."""
        with self._lock:
            if known is None:
                issued = next((e for e in self._issued.values() if e.digest == digest), None)
                if issued is None:
                    return None
                known = _token(issued)
            return self._as_revoked(known)

    def tokens(self, known: Iterable[Token]) -> list[Token]:
        """`known` (all that the read model has) and what has been said since, newest first."""
        with self._lock:
            found = {e.token: _token(e) for e in self._issued.values()} | {t.token: t for t in known}
            tokens = [self._as_revoked(t) for t in found.values()]
        return sorted(tokens, key=lambda t: (t.issued_us, t.token), reverse=True)

    def _as_revoked(self, token: Token) -> Token:
        revoked = self._revoked.get(token.token)
        if revoked is not None and token.revoked_us is None:
            return replace(token, revoked_us=revoked.at_us, revoked_by=revoked.by)
        return token

    def policy(self, name: str) -> Standing:
        """A policy as the log has it just now; one of version 0 when there never was one."""
        with self._lock:
            return self._policies.get(name, Standing(name))

    def protection(self, kind: str, asset: str) -> str:
        """The state of protection that was said last; empty: none was."""
        with self._lock:
            return self._protection.get((kind, asset), "")

    def counted(self, number: str) -> bool | None:
        """Whether what was said of a policy (by its `ce_id`) counted when it came; None: it has not come."""
        with self._lock:
            return self._verdicts.get(number)

    def newest(self, topic: str, key: str) -> tuple[str, int, int] | None:
        """Full topic, partition and offset of the newest event with `key` that came by in `topic` (short name); of any
        event when `key` is empty."""
        with self._lock:
            found = self._keys.get((topic, key))
        return None if found is None else (topic_name(self._kafka.prefix, topic), *found)

    def listen(self, topic: str, key: str, heard: Heard) -> Callable[[], None]:
        """Call `heard` for every event with `key` in `topic` from now on, in the follower's thread: it must return at
        once. Returns what stops that."""
        with self._lock:
            self._heard.setdefault((topic, key), []).append(heard)

        def leave() -> None:
            with self._lock:
                listeners = self._heard.get((topic, key), [])
                if heard in listeners:
                    listeners.remove(heard)
                if not listeners:
                    self._heard.pop((topic, key), None)

        return leave

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except StreamError as error:
                if str(error) != self.trouble:
                    log.warning("the log cannot be followed: %s", error)
                self.trouble = str(error)
                self._stop.wait(1.0)

    def _follow(self) -> None:
        """From where it stopped, or where the read models stand; `ready` once everything there was is in."""
        start: dict[Place, int] = {**(self._start() if not self._next else {}), **self._next}
        waiting: dict[Place, int] = {}
        with closing(open_consumer(self._kafka)) as consumer:
            for topic in self._names:
                for partition in partitions(consumer, topic):
                    low, high = ends(consumer, topic, partition)
                    first = start[topic, partition] = max(start.get((topic, partition), low), low)
                    if first < high:
                        waiting[topic, partition] = high
        if not waiting:
            self.ready.set()
        self.trouble = ""
        for messages in follow(self._kafka, self._names, start, self._stop):
            for message in messages:
                place = (message.topic, message.partition)
                self._next[place] = message.offset + 1
                self._take(message)
                if message.offset + 1 >= waiting.get(place, message.offset + 2):
                    del waiting[place]
            if not waiting:
                self.ready.set()

    def note(self, number: str, event: Event) -> None:
        """Take in what this API has just published (`number`: its `ce_id`), so that whoever is told of it finds it at once
        and not when it has come back through the log. It does not come a second time."""
        with self._lock:
            self._noted[number] = None
            _trim(self._noted, _NOTED)
        self._tell(event.TOPIC, event.key, Seen(number, 0, event))

    def _take(self, message: Message) -> None:
        topic = self._names[message.topic]
        with self._lock:
            known = message.id in self._noted
            self._noted.pop(message.id, None)
            self._keys[topic, message.key] = (message.partition, message.offset)
            self._keys[topic, ""] = (message.partition, message.offset)
            self._keys.move_to_end((topic, message.key))
            self._keys.move_to_end((topic, ""))
            _trim(self._keys, _KEYS)
        if not known:
            self._tell(topic, message.key, Seen(message.id, message.hlc, message.event))

    def _tell(self, topic: str, key: str, seen: Seen) -> None:
        with self._lock:
            match seen.event:
                case CommandRequested() as e:
                    self._job(e.command).command = e
                case JobChanged() as e:
                    events = self._job(e.job).events
                    events.append(seen)
                    del events[:-_EVENTS_OF_A_JOB]
                case RollbackPlanned() as e:
                    self._plan(e.plan).planned = e
                case RollbackChanged() as e:
                    self._plan(e.plan).changes.append(e)
                case TokenIssued() as e:
                    self._issued.setdefault(e.token, e)
                case TokenRevoked() as e:
                    self._revoked.setdefault(e.token, e)
                case PolicyDefined() | PolicyRemoved() | PolicyRun() as e:
                    before = self._policies.get(e.policy, Standing(e.policy))
                    self._verdicts[seen.id] = counts(before, e)
                    self._policies[e.policy] = standing_after(before, e)
                    _trim(self._verdicts, _NOTED)
                case ProtectionChanged() as e:
                    if protection_counts(self._protection.get((e.kind, e.asset), ""), e):
                        self._protection[e.kind, e.asset] = e.state
                case _:
                    pass
            listeners = [*self._heard.get((topic, key), ()), *self._heard.get((topic, ""), ())]
        for heard in listeners:
            heard(seen)

    def _job(self, job: str) -> LiveJob:
        found = self._jobs.setdefault(job, LiveJob())
        self._jobs.move_to_end(job)
        _trim(self._jobs, _JOBS)
        return found

    def _plan(self, plan: str) -> LivePlan:
        found = self._plans.setdefault(plan, LivePlan())
        self._plans.move_to_end(plan)
        _trim(self._plans, _PLANS)
        return found


def _token(issued: TokenIssued) -> Token:
    """As the read model will have it."""
    return Token(
        token=issued.token,
        actor=issued.actor,
        role=issued.role,
        digest=issued.digest,
        issued_us=issued.issued_us,
        expires_us=issued.expires_us,
        issued_by=issued.by,
        revoked_us=None,
        revoked_by="",
    )


def _trim(held: OrderedDict[Any, Any], most: int) -> None:
    while len(held) > most:
        held.popitem(last=False)
