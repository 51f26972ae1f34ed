"""A protected source that is rolled back through the log: commands in, jobs and states out, by the real agent."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.mysql import whereabouts
from agents.mysql.coordinates import covers
from agents.mysql.dialects import dialect
from agents.mysql.guard import SCHEMA_DDL
from agents.rollback.history import History, read_history, turns
from deploy.demo.server import DatabaseServer
from streams.capture_log import CaptureLog
from streams.events import JobChanged, RollbackPlanned
from streams.formats.binlog.names import may_say
from streams.formats.binlog.step import OWN_SCHEMA, summarise
from streams.ids import uuid7
from streams.paths import Path, drop_newest, path_at
from streams.secrets import SecretStore
from streams.settings import Settings
from tests.stack.agent import await_it, await_job, await_state, grant_capture, send, source_parameters
from tests.stand_ins.rollback_bench import BOUND_GRANTS, BOUND_USER, PASSWORD, USER, grant_rollback

SOURCE = "shop"


@dataclass
class Rolling:
    """Source `shop` on `server`; the agent is somebody else's. Make it with `protect`."""

    settings: Settings
    server: DatabaseServer
    log: CaptureLog
    lineage: str

    @classmethod
    def protect(
        cls,
        settings: Settings,
        server: DatabaseServer,
        *,
        account: str = USER,
        options: Mapping[str, str] | None = None,
    ) -> Rolling:
        """Add the source with both accounts; returns when it is captured. The agent must run."""
        grant_capture(server)
        grant_rollback(server)
        if account == BOUND_USER:
            server.execute(*BOUND_GRANTS)
        parameters = source_parameters(settings, server)
        parameters["accounts"]["rollback"] = account
        parameters["options"] = {**parameters["options"], **(options or {})}
        parameters["secrets"]["rollback"] = SecretStore(settings).put(f"sources/{SOURCE}/rollback", PASSWORD.encode())
        done = await_job(settings, send(settings, "source.add", SOURCE, **parameters))
        assert done.state == "finished", done.problems
        await_state(settings, "capturing", SOURCE)
        log = CaptureLog(settings.kafka, SOURCE, SecretStore(settings))
        return cls(settings, server, log, json.loads(done.result)["lineage"])

    def head(self) -> int:
        """The last step, once capture has everything that the source has committed."""
        with contextlib.closing(self.server.connect()) as admin, admin.cursor() as cursor:
            cursor.execute("xa recover")
            if cursor.fetchall():
                # What prepared it may be the newest thing in the source's log, and is no step: only the next one moves
                # capture past it. A rollback makes the same.
                cursor.execute(SCHEMA_DDL)
            wanted = whereabouts.position(cursor, dialect(admin))

        def reached() -> tuple[int] | None:
            tail = self.log.tail()
            if tail is None:
                return None
            at = tail.record.after if tail.record is not None else tail.started.position if tail.started else ""
            return (tail.ordinal,) if covers(at, wanted) else None

        return await_it(reached, f"capture up to {wanted}")[0]

    def history(self) -> History:
        return read_history(self.settings.kafka, SOURCE)

    def path(self, ordinal: int | None = None) -> Path:
        at = self.head() if ordinal is None else ordinal
        return path_at(at, turns(self.history(), self.log, self.lineage))

    def own(self) -> list[int]:
        """Ordinals of Holdfast's own steps."""
        out = []
        head = self.head()
        for f in self.log.steps(self.lineage, 1, head) if head else ():
            if f.payload is not None and may_say(f.payload, OWN_SCHEMA.encode()):
                summary = summarise(f.preamble, f.payload)
                if summary.markers or summary.own or OWN_SCHEMA in "".join(summary.statements):
                    out.append(f.ordinal)
        return out

    def users(self) -> list[int]:
        """Ordinals of user steps that stand."""
        own = set(self.own())
        return [o for r in self.path() for o in range(r.first, r.last + 1) if o not in own]

    def back(self, steps: int, **options: Any) -> RollbackPlanned:
        after = drop_newest(self.path(), steps, self.own())
        return self.plan("rollback", after[-1].last if after else 0, **options)

    def ask(self, kind: str, target: int, **options: Any) -> tuple[str, str]:
        """Ask for a plan to the state after step `target`; the plan's id and the job's."""
        name, head = uuid7(), self.head()
        known = turns(self.history(), self.log, self.lineage)
        return name, send(
            self.settings,
            "rollback.plan",
            SOURCE,
            plan=name,
            kind=kind,
            target="test",
            target_ordinal=target,
            target_time_us=0,
            lineage=self.lineage,
            head_ordinal=head,
            path_before=[[r.first, r.last] for r in path_at(head, known)],
            path_after=[[r.first, r.last] for r in path_at(target, known)],
            options=options,
        )

    def plan(self, kind: str, target: int, **options: Any) -> RollbackPlanned:
        """The same; what was planned."""
        name, job = self.ask(kind, target, **options)
        done = await_job(self.settings, job)
        assert done.state == "finished", done.problems
        planned = self.history().plans[name]
        assert json.loads(done.result) == {
            "plan": name,
            "digest": planned.digest.hex(),
            "runnable": not planned.obstacles,
        }
        return planned

    def confirm(self, planned: RollbackPlanned, by: str = "tester") -> str:
        """Ask to run it; the job's id."""
        return self.about(planned, "rollback.run", by)

    def about(self, planned: RollbackPlanned, what: str, by: str) -> str:
        """`rollback.run` or `rollback.approve`; the job's id."""
        return send(self.settings, what, SOURCE, requester=by, plan=planned.plan, digest=planned.digest.hex())

    def run(self, planned: RollbackPlanned) -> JobChanged:
        done = await_job(self.settings, self.confirm(planned), 120)
        assert done.state == "finished", done.problems
        return done

    def states(self, planned: RollbackPlanned) -> list[str]:
        return [c.state for c in self.history().changes.get(planned.plan, [])]

    def read_only(self) -> int:
        return int(self.server.execute("select @@global.read_only")[0][0])

    def leftovers(self) -> list[str]:
        return [row[0] for row in self.server.execute(
            "select table_name from information_schema.tables where table_schema = 'holdfast' and table_name <> 'marker'"
        )]  # fmt: skip
