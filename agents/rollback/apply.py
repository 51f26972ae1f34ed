"""Carrying out a confirmed plan: the stages in order, each state said before it is entered, everything put back.

Whatever fails before COMMIT leaves the source as it was: the transaction is rolled back, the guard dropped, `read_only`
put back, and the plan is `failed`. A COMMIT whose answer is lost is decided by the marker. Knows the target by its seam
(`agents.rollback.target`) and the log by what it needs of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.rollback.history import Log, find_marker
from agents.rollback.later import look_through
from agents.rollback.plan import Plan, request_of
from agents.rollback.stages import STAGES, StageName
from agents.rollback.target import CommitUnknown, Stopped, Target
from streams.errors import StreamError
from streams.events import Problem, RollbackChanged
from streams.ids import now_us

LAG_WAIT_S: Final = 30.0
SETTLE_WAIT_S: Final = 30.0
# What the source logged last may be no step (a transaction prepared, or rolled back when it was): then capture's position
# moves with the next step only, and we make one.
NUDGE_S: Final = 2.0
CAPTURED_WAIT_S: Final = 60.0
RECONNECT_WAIT_S: Final = 120.0
_TURN_S: Final = 0.01

_log = logging.getLogger("holdfast.rollback")


@dataclass(frozen=True, slots=True)
class Outcome:
    """An applied rollback. `ordinal` 0: its step was not captured yet when this was said."""

    ordinal: int
    position: str
    rows: int


@dataclass(slots=True)
class Application:
    """One application of one plan. `say` publishes an event and returns once it is in the log; `check` raises when the
    agent is to end; `progress` is told (message, done, total)."""

    plan: Plan
    target: Target
    log: Log
    agent: str
    say: Callable[[RollbackChanged], None]
    check: Callable[[], None] = lambda: None
    progress: Callable[[str, int, int], None] = lambda message, done, total: None
    now: StageName = "prepare"
    rows: int = 0
    position: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    _read_only_before: str | None = None
    _scanned: int = 0

    def run(self) -> Outcome:
        """All stages. Raises `Stopped` or `AgentError` with the source as it was, and says which state the plan is in.

        `SourceUnavailable` in the end means that nobody could tell: the plan stays undecided until the agent's next start.
        """
        self._say("confirmed")
        failpoint("rollback-confirmed")
        try:
            for stage in STAGES:
                failpoint(f"rollback-{stage.name}")
                self.now = stage.name
                began = time.monotonic()
                self._do(stage.name)
                self.timings[stage.name] = time.monotonic() - began
        except CommitUnknown as error:
            return self._decide(error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, everything is put back; it is raised again
            return self._undo(error)
        failpoint("rollback-committed")
        return self._applied()

    def _do(self, stage: StageName) -> None:
        plan, target = self.plan, self.target
        if stage == "prepare":
            _stop_on(target.check(plan))
            target.enable()
            self._await_capture(LAG_WAIT_S)
            target.load(plan, lambda done, total: self.progress("loading the guard", done, total))
        elif stage == "fence":
            if request_of(plan.event).whole_source:
                self._read_only_before = target.read_only()
                self._say("fenced", read_only_before=self._read_only_before)
                failpoint("rollback-fenced")
                target.fence()
                self._await_capture(LAG_WAIT_S)
                self._look_through()
            self._say("applying")
        elif stage == "begin":
            _stop_on(target.begin(plan))
        elif stage == "compare":
            _stop_on(target.compare())
        elif stage == "children":
            _stop_on(target.children())
        elif stage == "apply":
            self.rows = target.apply(lambda done, total: self.progress("applying", done, total))
            _stop_on(target.orphans())
        elif stage == "settle":
            self._await_capture(SETTLE_WAIT_S)
            self._look_through()
        elif stage == "commit":
            if not target.marked():
                raise AgentError(
                    "marker-gone", "the transaction is not open any more: the server rolled it back", "try again"
                )
            self.position = target.commit()

    # -- waiting for the log --------------------------------------------------------------------------------------

    def _await_capture(self, timeout: float) -> None:
        """Return when capture has everything that the source has committed by now."""
        wanted = self.target.position()
        began = time.monotonic()
        deadline, nudged = began + timeout, False
        while True:
            tail = self.log.tail()
            if tail is None or tail.lineage != self.plan.event.lineage:
                raise AgentError("lineage-ended", "another lineage has begun since the plan was made", "plan again")
            after = tail.record.after if tail.record is not None else ""
            if (after and self.target.covers(after, wanted)) or (tail.record is None and not wanted):
                return
            if time.monotonic() > deadline:
                raise AgentError(
                    "capture-behind",
                    f"capture has not reached {wanted} within {timeout:g} s (it is at {after or 'its beginning'})",
                    "see `holdfast source show`: capture must run for a rollback",
                )
            if not nudged and time.monotonic() - began > NUDGE_S:
                self.target.nudge()
                nudged = True
            self.check()
            time.sleep(_TURN_S)

    def _look_through(self) -> None:
        """Whether what was captured since the plan's head (or the last look) concerns the plan."""
        tail = self.log.tail()
        head = max(self._scanned, self.plan.event.head_ordinal)
        if tail is None or tail.ordinal <= head:
            return
        steps = self.log.steps(tail.lineage, head + 1, tail.ordinal)
        _stop_on(look_through(self.plan, steps, whole_source=request_of(self.plan.event).whole_source))
        self._scanned = tail.ordinal

    # -- endings --------------------------------------------------------------------------------------------------

    def _applied(self) -> Outcome:
        deadline = time.monotonic() + RECONNECT_WAIT_S
        while True:
            try:
                self._put_back()
                break
            except SourceUnavailable:
                self._reconnect_later(deadline)
        ordinal = self._captured()
        self._say("applied", position=self.position, ordinal=ordinal, rows=self.rows)
        failpoint("rollback-applied")
        self.target.close()
        return Outcome(ordinal, self.position, self.rows)

    def _captured(self) -> int:
        """The step that the rollback is, once capture has it; 0 when it takes too long."""
        event = self.plan.event
        deadline = time.monotonic() + CAPTURED_WAIT_S
        while time.monotonic() < deadline:
            try:
                found = find_marker(self.log, event.lineage or "", event.plan, max(event.head_ordinal, self._scanned))
            except StreamError as error:
                _log.warning("rollback %s is committed, but the log cannot be read: %s", event.plan, error)
                return 0
            if found is not None:
                return found
            time.sleep(_TURN_S)
        return 0

    def _undo(self, error: BaseException) -> Outcome:
        """Nothing was committed: put everything back, say so, and raise what it was."""
        try:
            self._put_back()
        except AgentError as trouble:
            _log.warning("rollback %s: %s", self.plan.event.plan, trouble)
            return self._decide(error)
        self._failed(error)
        raise error

    def _decide(self, error: BaseException) -> Outcome:
        """The connection broke, at COMMIT or before: the marker tells. What cannot be told within some time stays

        undecided, until the source's next command or the agent's next start.
        """
        event = self.plan.event
        deadline = time.monotonic() + RECONNECT_WAIT_S
        self.target.close()
        while True:
            try:
                applied = self.target.settle(event.plan, event.digest)
                if not applied:
                    self._put_back()
                break
            except AgentError as trouble:
                if not isinstance(trouble, SourceUnavailable) and trouble.code != "locked":
                    raise
                self._reconnect_later(deadline)
        if applied:
            return self._applied()
        self._failed(error)
        raise error

    def _reconnect_later(self, deadline: float) -> None:
        """Within an `except`: close, wait a little; raises it again once `deadline` is over."""
        self.target.close()
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)

    def _failed(self, error: BaseException) -> None:
        self._say("failed", problems=_problems(error), read_only_before=self._read_only_before or "")
        self.target.close()

    def _put_back(self) -> None:
        """Set `read_only` to what it was, let go of the transaction, drop the guard. The switch comes first: applications
        wait for it, and what they write cannot meet a transaction that will not be committed any more."""
        if self._read_only_before is not None:
            self.target.unfence(self._read_only_before)
        failpoint("rollback-unfenced")
        self.target.abandon()
        self.target.clean_up()

    def _say(self, state: str, **more: Any) -> None:
        event = self.plan.event
        self.say(
            RollbackChanged(
                lineage=event.lineage,
                plan=event.plan,
                source=event.source,
                state=state,
                digest=event.digest,
                at_us=now_us(),
                by=self.agent,
                **more,
            )
        )


def _stop_on(problems: list[Problem]) -> None:
    if problems:
        raise Stopped(problems)


def _problems(error: BaseException) -> tuple[Problem, ...]:
    if isinstance(error, Stopped):
        return error.problems
    if isinstance(error, AgentError):
        return (error.problem(),)
    if isinstance(error, StreamError):
        return (Problem(error.code, error.message, error.hint),)
    return (Problem("interrupted", f"the agent was stopped or failed: {type(error).__name__}", "plan again"),)
