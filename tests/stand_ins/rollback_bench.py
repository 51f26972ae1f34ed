"""Plans and rollbacks on a real server without Kafka: the log is the server's own binlog files, events go into a list.

Everything between the two is what the agent runs: plans from steps, paths from what was said, all stages of applying.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import pymysql

from agents.mysql.apply import NativeTarget
from agents.mysql.bound import BoundTarget
from agents.mysql.definitions import read_definitions, schema_version
from agents.protocol import SourceSettings
from agents.rollback.apply import Application, Outcome
from agents.rollback.choose import Index
from agents.rollback.history import History, check_paths, turns
from agents.rollback.plan import Plan, Request, make_plan, request_of
from agents.rollback.schema import Schema
from deploy.demo.accounts import create_account, grants_for
from deploy.demo.server import DatabaseServer
from streams.events import RollbackChanged
from streams.formats.binlog.step import UNDO
from streams.ids import uuid7
from streams.paths import Path, drop_newest, path_at
from streams.selection import Selection
from tests.stand_ins.binlog_log import BinlogLog

SOURCE = "shop"
USER, PASSWORD = "hf_rollback", "rollback-pw"

# An account as managed services give them: no BINLOG REPLAY, BINLOG ADMIN, READ_ONLY ADMIN or SUPER.
BOUND_USER = "hf_bound"
BOUND_GRANTS = (
    f"DROP USER IF EXISTS {BOUND_USER}@'127.0.0.1'",
    f"CREATE USER {BOUND_USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
    f"GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON *.* TO {BOUND_USER}@'127.0.0.1'",
    f"GRANT CREATE, CREATE TEMPORARY TABLES, LOCK TABLES ON holdfast.* TO {BOUND_USER}@'127.0.0.1'",  # locks: MySQL's
)


def grant_rollback(server: DatabaseServer) -> None:
    """The rollback account with the least that it needs, on any server."""
    with contextlib.closing(server.connect()) as admin, admin.cursor() as cursor:
        with contextlib.suppress(pymysql.err.OperationalError):  # 5.5 knows no IF EXISTS
            cursor.execute(f"drop user {USER}@'127.0.0.1'")
        create_account(admin, USER, PASSWORD, grants_for(admin).rollback)


def grant_bound(server: DatabaseServer) -> None:
    """The account that managed services give; where steps have no GTIDs it may look into the log as well."""
    old = server.version.startswith("5.")
    if old:  # which knows no IF EXISTS
        with contextlib.suppress(pymysql.err.OperationalError):
            server.execute(BOUND_GRANTS[0].replace("IF EXISTS ", ""))
    server.execute(*BOUND_GRANTS[old:])
    if old:
        server.execute(f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {BOUND_USER}@'127.0.0.1'")


class RollbackBench:
    """One source from now on: make the tables first. `admin` is root's connection, for whatever a test does.

    `method`: how plans change rows; by bound statements they are not of the whole source, which the account cannot fence.
    """

    def __init__(self, server: DatabaseServer, statements: Iterable[str] = (), method: str = "native") -> None:
        self.server = server
        self.method = method
        self.admin: pymysql.Connection[Any] = server.connect()
        grant_rollback(server)
        if method == "bound":
            grant_bound(server)
        for statement in statements:
            self.sql(statement)
        self.log = BinlogLog(self.admin, server.datadir)
        self.history = History()
        self.said: list[RollbackChanged] = []
        self.schema = self._read_schema()

    def _read_schema(self) -> Schema:
        found = read_definitions(self.admin)
        return Schema({(d.schema, d.table): d for d in found}, schema_version(found))

    def sql(self, statement: str, *args: Any) -> Any:
        with self.admin.cursor() as cursor:
            cursor.execute(statement, args or None)
            return cursor.fetchall()

    def head(self) -> int:
        return self.log.tail().ordinal

    def path(self) -> Path:
        return path_at(self.head(), turns(self.history, self.log, self.log.lineage))

    def own(self) -> list[int]:
        """Ordinals of steps that are Holdfast's own: of all that the walks do, only these name its schema."""
        return [s.ordinal for s in self.log.recorded if s.payload is not None and b"holdfast" in s.payload]

    def back(self, steps: int, **options: Any) -> Plan:
        """A plan for `steps` user steps back."""
        after = drop_newest(self.path(), steps, self.own())
        return self.plan("rollback", after[-1].last if after else 0, **options)

    def plan(
        self,
        kind: str,
        target: int,
        *,
        whole_source: bool | None = None,
        memory_bytes: int = 1 << 28,
        method: str = "",
    ) -> Plan:
        """A plan to the state after step `target`."""
        known = turns(self.history, self.log, self.log.lineage)
        head = self.head()
        request = Request(
            uuid7(),
            kind,
            "",
            target,
            0,
            self.log.lineage,
            head,
            path_at(head, known),
            path_at(target, known),
            self.method == "native" if whole_source is None else whole_source,
            method=method or self.method,
        )
        check_paths(request, known, head)
        made = make_plan(
            request,
            self.schema,
            lambda first, last: self.log.steps(self.log.lineage, first, last),
            source=SOURCE,
            by="test",
            planned_us=0,
            memory_bytes=memory_bytes,
        )
        self.history.plans[request.plan] = made.event
        return made

    def undo(self, selection: Selection, index: Index | None = None) -> Plan:
        """A plan that takes back what is selected."""
        known = turns(self.history, self.log, self.log.lineage)
        head = self.head()
        path = path_at(head, known)
        request = Request(
            uuid7(), UNDO, "", head, 0, self.log.lineage, head, path, path, whole_source=False, selection=selection
        )
        check_paths(request, known, head)
        made = make_plan(
            request,
            self.schema,
            lambda first, last: self.log.steps(self.log.lineage, first, last),
            source=SOURCE,
            by="test",
            planned_us=0,
            index=index,
        )
        self.history.plans[request.plan] = made.event
        return made

    def settings(self, port: int = 0, host: str = "127.0.0.1", method: str = "") -> SourceSettings:
        return SourceSettings(
            SOURCE,
            self.server.kind,
            host,
            port or self.server.port,
            accounts={"rollback": USER if (method or self.method) == "native" else BOUND_USER},
            passwords={"rollback": PASSWORD},
        )

    def target(self, method: str = "", port: int = 0) -> NativeTarget:
        method = method or self.method
        return (NativeTarget if method == "native" else BoundTarget)(self.settings(port, method=method))

    def application(self, plan: Plan, target: NativeTarget | None = None) -> Application:
        target = target or self.target(request_of(plan.event).method)
        return Application(plan, target, self.log, "agent-1", say=self.say)

    def run(self, plan: Plan) -> Outcome:
        """Confirm and carry out."""
        return self.application(plan).run()

    def say(self, event: RollbackChanged) -> None:
        self.said.append(event)
        self.history.changes.setdefault(event.plan, []).append(event)

    def states(self, plan: Plan) -> list[str]:
        return [c.state for c in self.history.changes.get(plan.event.plan, [])]

    def read_only(self) -> int:
        return int(self.sql("SELECT @@global.read_only")[0][0])

    def leftovers(self) -> list[str]:
        """Guard tables that are still there."""
        return [r[0] for r in self.sql(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'holdfast' AND TABLE_NAME <> 'marker'"
        )]  # fmt: skip

    def close(self) -> None:
        self.admin.close()
