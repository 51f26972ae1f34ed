"""What a scheduler knows and what it would say: events of the log go in, events to be published come out. Pure but for what it is
told of the time; knows no Kafka.

    policy.run fired     read back: this run is made, whoever said so first
    command.requested    one for each asset, or for all that are to be of one moment, under an id that follows from the run:
                         whoever says it again says the same
    job.changed          … of those jobs: what failed is asked for again, after a pause, under the next id
    policy.run ended     no task goes on

Nothing is remembered but what was read. And if we die here? Before `fired` is in the log: it is due, for whoever looks next.
After it: its commands that are not there yet are asked for by whoever reads it (at once by who said it, by others after
`PATIENCE_S`). Two schedulers, or one that was started again, say the same things; `streams.policy_log` tells which of them
counts, and a command's id is done once.

A clock that jumps ahead makes what is due then; what it jumped over counts as missed, and is said so. One that is put back
further than `TOLERANCE_US` has the instants that are to come again decided again; those that were made already have the same ids.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeVar

from streams import calendar
from streams.calendar import Due
from streams.errors import StreamError
from streams.events import AssetChanged, CommandRequested, Event, JobChanged, PolicyDefined, PolicyRun
from streams.job_states import Life
from streams.job_states import after as life_after
from streams.policies import (
    MOST_ASSETS,
    Policy,
    Task,
    command_id,
    command_of,
    microseconds,
    moment,
    parsed,
    run_id,
    schedule_of,
    selected,
    tasks,
)
from streams.policy_log import PolicyLog, Run, Standing

TOLERANCE_US: Final = 15 * 60_000_000
"""How far what is decided may lie ahead of the clock before that counts as put back."""
LATE_US: Final = 5 * 60_000_000
"""How late a run may begin and still not count as missed."""
PATIENCE_S: Final = 20.0
"""How long others wait for who said that a run is made to ask for it."""
AGAIN_S: Final = 30.0
"""After which something that was said and not read back is said again."""
_KEPT: Final = 5_000
_STRANGERS: Final = 20_000
_US: Final = 1_000_000
_log = logging.getLogger("holdfast.scheduling")

T = TypeVar("T")
Say = tuple[str, Event]
"""What is to be published, with the name of the place at which a test may kill the process after it is durable."""


@dataclass(slots=True)
class _Task:
    """One command of a run. `over_us`: when its job ended."""

    run: str
    assets: tuple[str, ...]
    attempt: int
    asked: bool = False
    life: Life = field(default_factory=Life)
    over_us: int = 0


class Book:
    """See the module. `me` names this scheduler in events (one run of one process). Used by one thread."""

    def __init__(self, me: str) -> None:
        self.me = me
        self.log = PolicyLog()
        self._assets: dict[str, AssetChanged] = {}
        self._tasks: dict[str, _Task] = {}
        self._known_runs: set[str] = set()
        self._open: dict[str, None] = {}
        self._unreadable: set[str] = set()
        self._strangers: OrderedDict[str, tuple[Life, int]] = OrderedDict()  # jobs read before what they are of
        self._asked_early: OrderedDict[str, None] = OrderedDict()
        self._owed: dict[str, int] = {}
        self._due: dict[str, tuple[object, Due | None]] = {}
        self._said: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._ended: dict[str, int] = {}  # policy → when its last run ended

    # --- what was read ------------------------------------------------------------------------------------------------

    def take(self, event: Event, writer: str = "", mono: float = 0.0) -> None:
        """The next event of its topic. `mono`: the monotonic clock, in seconds."""
        match event:
            case AssetChanged():
                known = self._assets.get(event.asset)
                if known is None or known.native == event.native:
                    self._assets[event.asset] = event
            case CommandRequested():
                task = self._tasks.get(event.command)
                if task is not None:
                    task.asked = True
                elif event.requester.startswith("policy/"):
                    _keep(self._asked_early, event.command, None)
            case JobChanged():
                self._job(event, writer)
            case PolicyDefined():
                before = self.log.standings.get(event.policy)
                if before is not None and before.there and event.version == before.version + 1:
                    self._leave_nothing_undecided(before, event.defined_us)
                self.log.apply(event)
            case _ if self.log.apply(event) and isinstance(event, PolicyRun):
                if event.state == "ended":
                    self._ended[event.policy] = event.at_us
                    self._open.pop(event.run, None)
                elif event.state == "fired":
                    self._seen.setdefault(event.run, mono)
                if event.state in ("fired", "skipped") and event.reason != "asked":
                    self._owed.pop(event.policy, None)

    def _leave_nothing_undecided(self, before: Standing, until_us: int) -> None:
        """What was due under the version before and is not decided will be, under the new one."""
        policy = self._readable(before.document)
        begin = max(before.decided_us, before.since_us)
        if policy is not None and policy.enabled and begin < until_us:
            found = calendar.latest(schedule_of(policy), moment(begin), moment(until_us))
            if found is not None:
                self._owed[before.policy] = microseconds(found)

    def _job(self, event: JobChanged, writer: str) -> None:
        task = self._tasks.get(event.job)
        life, over_us = (task.life, task.over_us) if task else self._strangers.get(event.job, (Life(), 0))
        following = life_after(life, event, writer)
        if following.over and not life.over:
            over_us = event.at_us
        if task is not None:
            task.life, task.over_us = following, over_us
        elif event.job[14:15] != "7":  # those of version 7 are nobody's schedule's
            _keep(self._strangers, event.job, (following, over_us))

    def settle(self) -> None:
        """Bring tasks in line with runs. To be called when runs may have come that were not known."""
        for run_name in self.log.runs.keys() - self._known_runs:
            run = self.log.runs[run_name]
            self._known_runs.add(run_name)
            policy = self._readable(self.log.documents[run.fired.policy, run.fired.version])
            if run.ended is not None or policy is None:
                continue
            self._open[run_name] = None
            for task in tasks(policy, run.fired.assets):
                for attempt in range(len(policy.retries_s) + 1):
                    name = command_id(run_name, run.fired.instant_us, task.name, attempt)
                    life, over_us = self._strangers.pop(name, (Life(), 0))
                    asked = self._asked_early.pop(name, "") is None
                    self._tasks[name] = _Task(run_name, task.assets, attempt, asked, life, over_us)
        if len(self.log.runs) > 2 * _KEPT:
            self._forget()

    def _forget(self) -> None:
        ended = sorted((n for n, r in self.log.runs.items() if r.ended), key=lambda n: self.log.runs[n].fired.at_us)
        for name in ended[:-_KEPT]:
            del self.log.runs[name]
            self._known_runs.discard(name)
            self._seen.pop(name, None)
        kept = self.log.runs
        self._tasks = {n: t for n, t in self._tasks.items() if t.run in kept}

    def _policy(self, run: Run) -> Policy:
        fired = run.fired
        return parsed(self.log.documents[fired.policy, fired.version])

    def _readable(self, document: str) -> Policy | None:
        """None for what a newer Holdfast has written: that is a newer agent's to run."""
        try:
            return parsed(document)
        except StreamError as error:
            if document not in self._unreadable:
                self._unreadable.add(document)
                _log.warning("a policy cannot be run by this agent: %s", error)
            return None

    # --- what is to be said -------------------------------------------------------------------------------------------

    def decide(self, now_us: int, mono: float) -> list[Say]:
        """What this scheduler would have the log say now. To be published in this order; nothing of it counts before it is
        read back, and is not said again meanwhile (for `AGAIN_S`)."""
        self.settle()
        self._said = {name: at for name, at in self._said.items() if mono - at < AGAIN_S}
        out: list[Say] = []
        for name, place, event in (*self._runs_due(now_us), *self._tasks_due(now_us, mono)):
            if name not in self._said:
                self._said[name] = mono
                out.append((place, event))
        return out

    def _runs_due(self, now_us: int) -> Iterator[tuple[str, str, Event]]:
        for standing in list(self.log.standings.values()):
            if not standing.there:
                continue
            policy = self._readable(standing.document)
            if policy is None:
                continue
            for asked in [a for a in self.log.asked.values() if a.policy == standing.policy]:
                yield from self._fire(standing, policy, asked.run, asked.instant_us, now_us, "asked", "")
            if not policy.enabled:
                continue
            if standing.decided_us > now_us + TOLERANCE_US:
                message = f"the clock is {_length(standing.decided_us - now_us)} behind what was decided"
                run = run_id(standing.policy, standing.version, now_us)
                said = self._run(standing, run, "rewound", now_us, now_us, reason="clock", message=message)
                yield f"rewound/{standing.policy}", "schedule.rewound", said
                continue
            yield from self._scheduled(standing, policy, now_us)

    def _scheduled(self, standing: Standing, policy: Policy, now_us: int) -> Iterator[tuple[str, str, Event]]:
        """The newest run that may start, and word of those before it that nobody made."""
        schedule = schedule_of(policy)
        owed = self._owed.get(standing.policy)
        first = self._next(standing, policy)
        start_us = microseconds(first.start) if first else None
        if owed is None and (start_us is None or start_us > now_us):
            return
        now = moment(now_us)
        newest_us, newest_start = owed, owed
        if start_us is not None and start_us <= now_us:
            assert first is not None
            newest = self._newest(standing, policy, first, now_us)
            newest_us, newest_start = microseconds(newest.instant), microseconds(newest.start)
        assert newest_us is not None
        assert newest_start is not None
        begin_us = min(i for i in (owed, microseconds(first.instant) if first else None, newest_us) if i is not None)
        late = now_us - newest_start
        if policy.missed == "skip" and late > LATE_US:
            message = f"nobody could run it for {_length(late)}"
            yield self._skip(standing, begin_us, newest_us, now_us, "missed", message)
            return
        if not calendar.is_open(schedule, now):
            return  # it is made up for when windows open
        if begin_us < newest_us:
            message = "several were due while nobody could run them; the last of them is made up for"
            yield self._skip(standing, begin_us, newest_us - 1, now_us, "missed", message)
        message = f"{_length(late)} late" if late > LATE_US else ""
        run = run_id(standing.policy, standing.version, newest_us)
        yield from self._fire(standing, policy, run, newest_us, now_us, "late" if message else "due", message)

    def _next(self, standing: Standing, policy: Policy) -> Due | None:
        """The next run by the rules; kept until what it follows from is different."""
        after_us = max(standing.decided_us, standing.since_us)
        rolling_us = self._rolling_from(standing, policy, after_us)
        follows = (standing.version, after_us, rolling_us)
        known = self._due.get(standing.policy)
        if known is None or known[0] != follows:
            rolling = None if rolling_us is None else moment(rolling_us)
            found = next(calendar.due(schedule_of(policy), moment(after_us), rolling_from=rolling), None)
            known = self._due[standing.policy] = (follows, found)
        return known[1]

    def _rolling_from(self, standing: Standing, policy: Policy, after_us: int) -> int | None:
        if not calendar.is_rolling(schedule_of(policy)):
            return None
        if any(self.log.runs[name].fired.policy == standing.policy for name in self._open):
            return None
        return self._ended.get(standing.policy, after_us)

    def _newest(self, standing: Standing, policy: Policy, first: Due, now_us: int) -> Due:
        """The last run that may have started by now, found backwards: there may be very many."""
        schedule, now = schedule_of(policy), moment(now_us)
        begin = max(first.instant, moment(standing.since_us))
        span = timedelta(hours=1)
        while True:
            since = max(begin, now - span)
            found = None
            for run in calendar.due(schedule, since):
                if run.start > now:
                    break
                found = run
            if found is not None:
                return found
            if since == begin:
                return first
            span *= 4

    def _fire(
        self, standing: Standing, policy: Policy, run: str, instant_us: int, now_us: int, reason: str, message: str
    ) -> Iterator[tuple[str, str, Event]]:
        there = [a for a in self._assets.values() if a.state != "gone"]
        chosen = selected(policy, there)
        busy = {a for t in self._tasks.values() if self._goes_on(t, standing.policy, run) for a in t.assets}
        assets = [a for a in chosen if a not in busy][:MOST_ASSETS]
        left_out = {a: "still-running" for a in chosen if a in busy}
        left_out |= dict.fromkeys((a for a in chosen[MOST_ASSETS:] if a not in busy and a not in assets), "too-many")
        if policy.together and left_out:  # all at one moment, or none
            why = "still-running" if busy.intersection(chosen) else "too-many"
            assets, left_out = [], dict.fromkeys(chosen, why)
        if not assets:
            why = "still-running" if left_out else "nothing-selected"
            words = "the run before still goes on" if left_out else "nothing is selected by it"
            answer = "asked" if reason == "asked" else why
            said = self._run(
                standing, run, "skipped", instant_us, now_us,
                until_us=instant_us, reason=answer, message=words, left_out=left_out,
            )  # fmt: skip
            yield f"run/{run}", "schedule.skipped", said
            return
        closing = None if reason == "asked" else calendar.closes(schedule_of(policy), moment(now_us))
        said = self._run(
            standing,
            run,
            "fired",
            instant_us,
            now_us,
            closes_us=None if closing is None else microseconds(closing),
            reason=reason,
            message=message,
            assets=tuple(assets),
            left_out=left_out,
        )
        yield f"run/{run}", "schedule.fired", said

    def _goes_on(self, task: _Task, policy: str, but: str) -> bool:
        run = self.log.runs[task.run]
        return run.fired.policy == policy and run.ended is None and task.run != but

    def _skip(
        self, standing: Standing, from_us: int, until_us: int, now_us: int, reason: str, message: str
    ) -> tuple[str, str, Event]:
        run = run_id(standing.policy, standing.version, until_us)
        said = self._run(
            standing, run, "skipped", from_us, now_us, until_us=until_us, reason=reason, message=message
        )  # fmt: skip
        return f"run/{run}", "schedule.skipped", said

    def _run(
        self,
        standing: Standing,
        run: str,
        state: str,
        instant_us: int,
        now_us: int,
        *,
        until_us: int = 0,
        closes_us: int | None = None,
        reason: str = "",
        message: str = "",
        assets: tuple[str, ...] = (),
        left_out: Mapping[str, str] | None = None,
        figures: Mapping[str, int] | None = None,
    ) -> PolicyRun:
        return PolicyRun(
            policy=standing.policy,
            version=standing.version,
            run=run,
            state=state,
            instant_us=instant_us,
            until_us=until_us,
            closes_us=closes_us,
            reason=reason,
            message=message,
            assets=assets,
            left_out=left_out or {},
            figures=figures or {},
            at_us=now_us,
            by=self.me,
        )

    # --- tasks of runs ------------------------------------------------------------------------------------------------

    def _tasks_due(self, now_us: int, mono: float) -> Iterator[tuple[str, str, Event]]:
        for run in [self.log.runs[name] for name in self._open]:
            fired, policy = run.fired, self._policy(run)
            mine = fired.by == self.me or mono - self._seen.get(fired.run, 0.0) >= PATIENCE_S
            outcomes: dict[str, int] = {}
            for task in tasks(policy, fired.assets):
                outcome, said = self._task(run, policy, task, now_us)
                outcomes[outcome] = outcomes.get(outcome, 0) + len(task.assets)
                if said is not None and mine:
                    yield said
            if "" not in outcomes and mine:
                standing = Standing(fired.policy, fired.version)
                figures = {**outcomes, "assets": len(fired.assets), "left_out": len(fired.left_out)}
                said_ended = self._run(standing, fired.run, "ended", fired.instant_us, now_us, figures=figures)
                yield f"ended/{fired.run}", "schedule.ended", said_ended

    def _task(self, run: Run, policy: Policy, of: Task, now_us: int) -> tuple[str, tuple[str, str, Event] | None]:
        """How a run's task ended (empty: it has not), and what is to be said of it."""
        fired = run.fired
        closed = fired.closes_us is not None and now_us >= fired.closes_us
        ready_us = 0
        for attempt in range(len(policy.retries_s) + 1):
            name = command_id(fired.run, fired.instant_us, of.name, attempt)
            task = self._tasks[name]
            life = task.life
            if not task.asked and life.state == "requested":
                if closed or (fired.closes_us is not None and ready_us >= fired.closes_us):
                    return ("failed" if attempt else "closed"), None
                if now_us < ready_us and ready_us - now_us <= 2 * _US * policy.retries_s[attempt - 1]:
                    return "", None  # further away it is only by a clock that was put back
                return "", (f"command/{name}", "schedule.asked", self._command(run, policy, of, name, now_us))
            if not life.over:
                if closed and not life.cancel and (not life.held or policy.overrun == "stop"):
                    said = self._cancel(run, policy, of, name, now_us)
                    return "", (f"cancel/{name}", "schedule.cancelled", said)
                return "", None
            if life.state != "failed":
                return ("done" if life.state == "finished" else "cancelled"), None
            if attempt < len(policy.retries_s):
                ready_us = task.over_us + policy.retries_s[attempt] * _US
        return "failed", None

    def _command(self, run: Run, policy: Policy, of: Task, name: str, now_us: int) -> CommandRequested:
        key, parameters = command_of(policy, of, run.fired.run)
        return CommandRequested(
            command=name,
            kind=policy.kind,
            asset=key,
            parameters=json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            requester=f"policy/{run.fired.policy}",
            requested_us=now_us,
            deadline_us=run.fired.closes_us if policy.overrun == "stop" else None,
            priority=policy.priority,
        )

    def _cancel(self, run: Run, policy: Policy, of: Task, name: str, now_us: int) -> JobChanged:
        return JobChanged(
            job=name,
            kind=policy.kind,
            asset=command_of(policy, of, run.fired.run)[0],
            state="cancel_asked",
            at_us=now_us,
            by=f"policy/{run.fired.policy}",
            message="the window closed",
        )


def _keep(held: OrderedDict[str, T], name: str, value: T) -> None:
    held[name] = value
    if len(held) > _STRANGERS:
        held.popitem(last=False)


def _length(us: int) -> str:
    """`3 min`, `2 h`, `5 d`."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if us < most * _US:
            return f"{us // (size * _US)} {unit}"
    return f"{us // (86_400 * _US)} d"
