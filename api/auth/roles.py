"""What each role may do: the one table. An operation that is not in it does not exist.

    viewer     sees that things happen: sources, steps with their tables and counts, plans, jobs, repositories, points
    auditor    also sees what was in the rows, what differs between points, who called what, and which tokens and keys
               there are; changes nothing
    operator   also sees what was in the rows; pauses and resumes capture, plans, approves and runs rollbacks, makes
               scratch copies; backs machines up; stars and holds points, has them expire by the rules, verifies and
               collects; cancels jobs
    admin      everything: adds and removes sources and hosts, changes their accounts, issues tokens, rebuilds read models;
               adds repositories and their keys, sets retention, ends holds; has the agent read and write paths of its machine
               (backup, restore)

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
    Operation("source.set_accounts", "POST", "/v1/sources/{source}/accounts", _RULE, changes=True),
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
    Operation("table_rollback.approve", "POST", "/v1/table-rollbacks/{plan}/approve", _ACT, changes=True),
    Operation("table_rollback.abandon", "POST", "/v1/table-rollbacks/{plan}/abandon", _ACT, changes=True),
    Operation("scratch.list", "GET", "/v1/scratch", _SEE),
    Operation("scratch.create", "POST", "/v1/scratch", _ACT, changes=True),
    Operation("scratch.show", "GET", "/v1/scratch/{scratch}", _SEE),
    Operation("scratch.drop", "DELETE", "/v1/scratch/{scratch}", _ACT, changes=True),
    Operation("repository.list", "GET", "/v1/repositories", _SEE),
    Operation("repository.add", "POST", "/v1/repositories", _RULE, changes=True),
    Operation("repository.adopt", "POST", "/v1/repositories/adopt", _RULE, changes=True),
    Operation("repository.move", "POST", "/v1/repositories/{repository}/move", _RULE, changes=True),
    Operation("repository.show", "GET", "/v1/repositories/{repository}", _SEE),
    Operation("repository.set", "PATCH", "/v1/repositories/{repository}", _RULE, changes=True),
    Operation("repository.remove", "DELETE", "/v1/repositories/{repository}", _RULE, changes=True),
    Operation("repository.verify", "POST", "/v1/repositories/{repository}/verify", _ACT, changes=True),
    Operation("repository.collect", "POST", "/v1/repositories/{repository}/collect", _ACT, changes=True),
    Operation("repository.usage", "POST", "/v1/repositories/{repository}/usage", _ACT, changes=True),
    Operation("repository.retention", "POST", "/v1/repositories/{repository}/retention", _RULE, changes=True),
    Operation("repository.expire", "POST", "/v1/repositories/{repository}/expire", _ACT, changes=True),
    Operation("key.add", "POST", "/v1/repositories/{repository}/keys", _RULE, changes=True),
    Operation("key.list", "POST", "/v1/repositories/{repository}/keys/list", _WATCH, changes=True),
    Operation("key.drill", "POST", "/v1/repositories/{repository}/keys/drill", _RULE, changes=True),
    Operation("key.remove", "DELETE", "/v1/repositories/{repository}/keys/{key}", _RULE, changes=True),
    Operation("key.reveal", "POST", "/v1/repositories/{repository}/keys/{key}/reveal", _RULE, changes=True),
    Operation("backup.make", "POST", "/v1/backups", _RULE, changes=True),
    Operation("backup.run", "POST", "/v1/backups/machines", _ACT, changes=True),
    Operation("host.list", "GET", "/v1/hosts", _SEE),
    Operation("host.add", "POST", "/v1/hosts", _RULE, changes=True),
    Operation("host.show", "GET", "/v1/hosts/{host}", _SEE),
    Operation("host.remove", "DELETE", "/v1/hosts/{host}", _RULE, changes=True),
    Operation("asset.list", "GET", "/v1/assets", _SEE),
    Operation("asset.discover", "POST", "/v1/assets/discover", _ACT, changes=True),
    Operation("asset.show", "GET", "/v1/assets/{asset}", _SEE),
    Operation("policy.list", "GET", "/v1/policies", _SEE),
    Operation("policy.add", "POST", "/v1/policies", _RULE, changes=True),
    Operation("policy.try", "POST", "/v1/policies/try", _SEE),
    Operation("policy.show", "GET", "/v1/policies/{policy}", _SEE),
    Operation("policy.set", "PUT", "/v1/policies/{policy}", _RULE, changes=True),
    Operation("policy.remove", "DELETE", "/v1/policies/{policy}", _RULE, changes=True),
    Operation("policy.next", "GET", "/v1/policies/{policy}/next", _SEE),
    Operation("policy.run", "POST", "/v1/policies/{policy}/run", _ACT, changes=True),
    Operation("policy.runs", "GET", "/v1/policies/{policy}/runs", _SEE),
    Operation("run.show", "GET", "/v1/runs/{run}", _SEE),
    Operation("protection.list", "GET", "/v1/protection", _SEE),
    Operation("protection.changes", "GET", "/v1/protection/changes", _SEE),
    Operation("settings.export", "GET", "/v1/settings", _WATCH),
    Operation("settings.import", "POST", "/v1/settings", _RULE, changes=True),
    Operation("point.list", "GET", "/v1/points", _SEE),
    Operation("point.show", "GET", "/v1/points/{point}", _SEE),
    Operation("point.star", "POST", "/v1/points/{point}/star", _ACT, changes=True),
    Operation("point.unstar", "POST", "/v1/points/{point}/unstar", _ACT, changes=True),
    Operation("point.hold", "POST", "/v1/points/{point}/hold", _ACT, changes=True),
    Operation("point.release", "POST", "/v1/points/{point}/release", _RULE, changes=True),
    Operation("point.drop", "POST", "/v1/points/{point}/drop", _RULE, changes=True),
    Operation("point.agree", "POST", "/v1/points/{point}/agree", _RULE, changes=True),
    Operation("point.diff", "POST", "/v1/points/{point}/diff", _ROWS, changes=True),
    Operation("point.prove", "POST", "/v1/points/{point}/prove", _ROWS, changes=True),
    Operation("point.restore", "POST", "/v1/points/{point}/restore", _RULE, changes=True),
    Operation("point.compare", "POST", "/v1/points/{point}/compare", _RULE, changes=True),
    Operation("restore.files", "POST", "/v1/points/{point}/restore/files", _RULE, changes=True),
    Operation("restore.original", "POST", "/v1/points/{point}/restore/original", _RULE, changes=True),
    Operation("restore.machine", "POST", "/v1/points/{point}/restore/machine", _RULE, changes=True),
    Operation("job.list", "GET", "/v1/jobs", _SEE),
    Operation("job.show", "GET", "/v1/jobs/{job}", _SEE),
    Operation("job.events", "GET", "/v1/jobs/{job}/events", _SEE),
    Operation("job.cancel", "POST", "/v1/jobs/{job}/cancel", _ACT, changes=True),
    Operation("job.prioritise", "POST", "/v1/jobs/{job}/priority", _ACT, changes=True),
    Operation("node.list", "GET", "/v1/nodes", _SEE),
    Operation("node.show", "GET", "/v1/nodes/{node}", _SEE),
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
