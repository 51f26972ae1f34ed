"""Four eyes: a plan that needs an approval runs only when somebody else than who planned it and who runs it gave one.

An approval is a state of the plan on the log (`rollback.changed`, `approved`, `by` who gave it) for one digest. The agent
looks for it there when the plan is to run, so no command alone gets past it. Needed is one when the plan was made so (its
option `approval`, which the digest covers) or the source's policy says so now (its option `approval=required`): a policy that
was taken back meanwhile does not free a plan that was made under it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agents.errors import AgentError
from agents.rollback.history import History
from agents.rollback.plan import request_of
from streams.events import RollbackPlanned

REQUIRED: Final = "required"


def check(known: History, planned: RollbackPlanned, requester: str, policy: str) -> None:
    """Raises `AgentError` (`approval-missing`) unless the plan may run for `requester`."""
    if policy == REQUIRED or request_of(planned).approval:
        given = [
            c.by for c in known.changes.get(planned.plan, []) if c.state == "approved" and c.digest == planned.digest
        ]
        require(planned.plan, planned.by, requester, given)


def require(plan: str, planned_by: str, requester: str, given: Sequence[str]) -> None:
    """Raises `AgentError` (`approval-missing`) unless one of `given` neither planned nor runs it."""
    if any(not same_person(by, planned_by) and not same_person(by, requester) for by in given):
        return
    raise AgentError(
        "approval-missing",
        f"plan {plan} needs the approval of somebody else than {_names(planned_by, requester)}"
        + (f"; it has that of {', '.join(sorted(set(given)))}" if given else ""),
        f"have them look at it and say `holdfast rollback approve {plan}`",
    )


def not_own(planned_by: str, requester: str) -> None:
    """Raises `AgentError` (`approval-own`) when who approves is who planned."""
    if same_person(requester, planned_by):
        raise AgentError(
            "approval-own", f"{planned_by} planned this and cannot approve it", "somebody else must look at it"
        )


def same_person(one: str, other: str) -> bool:
    """Tokens of one name are one person's, however it is spelled."""
    return one.strip().casefold() == other.strip().casefold()


def _names(planner: str, requester: str) -> str:
    return planner if same_person(planner, requester) else f"{planner} (who planned it) and {requester} (who runs it)"
