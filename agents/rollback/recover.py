"""After a death of the agent: every plan that was begun and not ended is settled before anything else is done.

The marker decides. Present: the rollback is applied. Absent: it never will be — a session of the dead agent that may
still be at work on the source is ended first, and an unlogged void marker keeps a late one from committing. Then
`read_only` is put back to what the event `fenced` says it was, guards are dropped, and the final state is said.
Everything here may be done twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from agents.failpoints import failpoint
from agents.rollback.history import History, Log, find_marker
from agents.rollback.plan import request_of
from agents.rollback.target import Target
from streams.events import Problem, RollbackChanged
from streams.ids import now_us

# The capture process starts beside this one: it may take a moment until it has the rollback's step.
CAPTURED_WAIT_S: Final = 10.0
_log = logging.getLogger("holdfast.rollback")


def settle_all(
    history: History,
    source: str,
    agent: str,
    log: Log,
    target: Callable[[str], Target],
    say: Callable[[RollbackChanged], None],
) -> list[RollbackChanged]:
    """Settle every undecided plan of `source`; what was said. `target` is given the plan's method.

    Raises `SourceUnavailable` when the target is away."""
    said = []
    for plan in history.undecided():
        there = target(request_of(history.plans[plan]).method)
        try:
            event = _settle(history, plan, source, agent, log, there)
        finally:
            there.close()
        say(event)
        _log.warning("%s: rollback %s had been left undecided: it is %s", source, plan, event.state)
        said.append(event)
    return said


def _settle(history: History, plan: str, source: str, agent: str, log: Log, target: Target) -> RollbackChanged:
    planned = history.plans[plan]
    applied = target.settle(plan, planned.digest)
    failpoint("rollback-settled")
    fenced = history.last(plan, "fenced")
    if fenced is not None:
        target.unfence(fenced.read_only_before)
    target.clean_up()
    ordinal = _ordinal(log, planned.lineage or "", plan, planned.head_ordinal) if applied else 0
    return RollbackChanged(
        lineage=planned.lineage,
        plan=plan,
        source=source,
        state="applied" if applied else "failed",
        digest=planned.digest,
        at_us=now_us(),
        by=agent,
        read_only_before=fenced.read_only_before if fenced is not None else "",
        ordinal=ordinal,
        rows=planned.rows if applied else 0,
        problems=() if applied else (Problem(
            "agent-died", "the agent ended while the rollback was under way; nothing was changed", "plan again"
        ),),
    )  # fmt: skip


def _ordinal(log: Log, lineage: str, plan: str, after: int) -> int:
    deadline = time.monotonic() + CAPTURED_WAIT_S
    while True:
        found = find_marker(log, lineage, plan, after)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            return 0
        time.sleep(0.05)
