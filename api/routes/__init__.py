"""One module for each resource: handlers from a checked call to a reply. Who may call them: `api.auth.roles`."""

from __future__ import annotations

from collections.abc import Mapping

from api.calls import Handler
from api.routes import audit, jobs, projections, rollbacks, scratch, site, sources, table_rollbacks, timeline, tokens

HANDLERS: Mapping[str, Handler] = {
    "health.show": site.health,
    "openapi.show": site.openapi,
    "self.show": site.who_asks,
    "source.list": sources.list_all,
    "source.add": sources.add,
    "source.show": sources.show,
    "source.remove": sources.remove,
    "source.pause": sources.pause,
    "source.resume": sources.resume,
    "step.list": timeline.page,
    "step.stream": timeline.stream,
    "step.show": timeline.show,
    "row.history": timeline.row_history,
    "branch.list": timeline.branches,
    "rollback.list": rollbacks.list_all,
    "rollback.plan": rollbacks.plan,
    "rollback.show": rollbacks.show,
    "rollback.preview": rollbacks.preview,
    "rollback.sql": rollbacks.sql,
    "rollback.run": rollbacks.run,
    "rollback.approve": rollbacks.approve,
    "rollback.abandon": rollbacks.abandon,
    "table_rollback.list": table_rollbacks.list_all,
    "table_rollback.plan": table_rollbacks.plan,
    "table_rollback.show": table_rollbacks.show,
    "table_rollback.run": table_rollbacks.run,
    "table_rollback.abandon": table_rollbacks.abandon,
    "scratch.list": scratch.list_all,
    "scratch.create": scratch.create,
    "scratch.show": scratch.show,
    "scratch.drop": scratch.drop,
    "job.list": jobs.list_all,
    "job.show": jobs.show,
    "job.events": jobs.events,
    "projection.list": projections.list_all,
    "projection.digest": projections.show_digest,
    "projection.rebuild": projections.start_rebuild,
    "projection.drop": projections.drop,
    "audit.list": audit.list_all,
    "token.list": tokens.list_all,
    "token.issue": tokens.issue,
    "token.revoke": tokens.revoke,
}
