"""What each role may do: the one table. An operation that is not in it does not exist.

    viewer     sees that things happen: sources, steps with their tables and counts, plans, jobs
    auditor    also sees what was in the rows, who called what, and which tokens there are; changes nothing
    operator   also sees what was in the rows; pauses and resumes capture, plans, approves and runs rollbacks, makes
               scratch copies
    admin      everything: adds and removes sources, issues tokens, rebuilds read models

`public` operations need no token: they tell nothing of what is protected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROLES = ("viewer", "auditor", "operator", "admin")

_SEE = frozenset(ROLES)
_ROWS = frozenset({"auditor", "operator", "admin"})
_WATCH = frozenset({"auditor", "admin"})
_ACT = frozenset({"operator", "admin"})
_RULE = frozenset({"admin"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the API (`id` is OpenAPI's operationId).

    `roles` is empty for a public operation. `changes` and `audited` calls are recorded whatever their outcome; a
    refused call is recorded always.
    """

    id: str
    method: str
    path: str
    roles: frozenset[str]
    changes: bool = False
    audited: bool = False

    @property
    def public(self) -> bool:
        return not self.roles

    @property
    def recorded(self) -> bool:
        return self.changes or self.audited


OPERATIONS: tuple[Operation, ...] = (
    Operation("health.show", "GET", "/v1/health", frozenset()),
    Operation("openapi.show", "GET", "/v1/openapi.json", frozenset()),
    Operation("self.show", "GET", "/v1/self", _SEE),
    Operation("source.list", "GET", "/v1/sources", _SEE),
    Operation("source.add", "POST", "/v1/sources", _RULE, changes=True),
    Operation("source.show", "GET", "/v1/sources/{source}", _SEE),
    Operation("source.remove", "DELETE", "/v1/sources/{source}", _RULE, changes=True),
    Operation("source.pause", "POST", "/v1/sources/{source}/pause", _ACT, changes=True),
    Operation("source.resume", "POST", "/v1/sources/{source}/resume", _ACT, changes=True),
    Operation("step.list", "GET", "/v1/sources/{source}/steps", _SEE),
    Operation("step.stream", "GET", "/v1/sources/{source}/steps/stream", _SEE),
    Operation("step.show", "GET", "/v1/sources/{source}/steps/{ordinal}", _ROWS),
    Operation("row.history", "GET", "/v1/sources/{source}/rows/{schema}/{table}/history", _ROWS),
    Operation("branch.list", "GET", "/v1/sources/{source}/branches", _SEE),
    Operation("rollback.list", "GET", "/v1/sources/{source}/rollbacks", _SEE),
    Operation("rollback.plan", "POST", "/v1/sources/{source}/rollbacks", _ACT, changes=True),
    Operation("rollback.show", "GET", "/v1/rollbacks/{plan}", _SEE),
    Operation("rollback.preview", "GET", "/v1/rollbacks/{plan}/preview", _ROWS),
    Operation("rollback.sql", "GET", "/v1/rollbacks/{plan}/sql", _ROWS, audited=True),
    Operation("rollback.run", "POST", "/v1/rollbacks/{plan}/run", _ACT, changes=True),
    Operation("rollback.approve", "POST", "/v1/rollbacks/{plan}/approve", _ACT, changes=True),
    Operation("rollback.abandon", "POST", "/v1/rollbacks/{plan}/abandon", _ACT, changes=True),
    Operation("table_rollback.list", "GET", "/v1/sources/{source}/table-rollbacks", _SEE),
    Operation("table_rollback.plan", "POST", "/v1/sources/{source}/table-rollbacks", _ACT, changes=True),
    Operation("table_rollback.show", "GET", "/v1/table-rollbacks/{plan}", _SEE),
    Operation("table_rollback.run", "POST", "/v1/table-rollbacks/{plan}/run", _ACT, changes=True),
    Operation("table_rollback.abandon", "POST", "/v1/table-rollbacks/{plan}/abandon", _ACT, changes=True),
    Operation("scratch.list", "GET", "/v1/scratch", _SEE),
    Operation("scratch.create", "POST", "/v1/scratch", _ACT, changes=True),
    Operation("scratch.show", "GET", "/v1/scratch/{scratch}", _SEE),
    Operation("scratch.drop", "DELETE", "/v1/scratch/{scratch}", _ACT, changes=True),
    Operation("job.list", "GET", "/v1/jobs", _SEE),
    Operation("job.show", "GET", "/v1/jobs/{job}", _SEE),
    Operation("job.events", "GET", "/v1/jobs/{job}/events", _SEE),
    Operation("projection.list", "GET", "/v1/projections", _SEE),
    Operation("projection.digest", "GET", "/v1/projections/{projection}/digest", _SEE),
    Operation("projection.rebuild", "POST", "/v1/projections/{projection}/rebuild", _RULE, changes=True),
    Operation("projection.drop", "DELETE", "/v1/projections/{projection}", _RULE, changes=True),
    Operation("audit.list", "GET", "/v1/audit", _WATCH, audited=True),
    Operation("token.list", "GET", "/v1/tokens", _WATCH),
    Operation("token.issue", "POST", "/v1/tokens", _RULE, changes=True),
    Operation("token.revoke", "DELETE", "/v1/tokens/{token}", _RULE, changes=True),
)
BY_ID: Mapping[str, Operation] = {o.id: o for o in OPERATIONS}


def may(role: str, operation: Operation) -> bool:
    """Whether a caller of `role` may ask for `operation`."""
    return operation.public or role in operation.roles
