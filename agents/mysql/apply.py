"""A server as the target of a rollback: sessions, guard, native apply, commit.

What `BINLOG` does and does not do was tried out (MariaDB 10.11, 11.4, MySQL 9.7, 5.5) and decides how it is used here;
where they differ, the server's `Dialect` says how:

- it finds rows by key and compares nothing: hence the guard (`guard`), loaded by the same statement without logging
- with `slave_exec_mode=IDEMPOTENT` it passes over rows that are missing or in the way: refused
- the time in an event's header becomes the session's clock, and so the time of our step: set to now, and let go before COMMIT
- it carries the foreign-key switch in each event: off, since cascades must not run; what they would have kept is asked for
  once for the whole result, under locks
- after a deadlock the transaction is gone and the next statement would commit by itself: one statement at a time, stop at
  the first error, and no COMMIT without the marker still being there
- its text would be logged as an annotation: switched off
- MySQL: after a format description the session has no GTIDs to give until `gtid_next` is set; an event must fit a packet;
  9.x takes rows events of the second version only (its format description says so)
"""

from __future__ import annotations

import base64
import contextlib
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pymysql
from pymysql.constants import SERVER_STATUS
from pymysql.cursors import Cursor

from agents.errors import AgentError, SourceUnavailable
from agents.mysql import coordinates, fence, findings, guard, guard_tables, rights, whereabouts
from agents.mysql.connection import connect, error_of
from agents.mysql.definitions import quoted, read_definitions
from agents.mysql.dialects import Dialect, dialect
from agents.mysql.guard import OWN_SCHEMA, Role
from agents.mysql.replication import replication
from agents.mysql.statements import ask, run
from agents.protocol import SourceSettings
from agents.rollback.plan import Plan, TablePlan
from agents.rollback.schema import Definition
from agents.rollback.target import FENCE, NATIVE_APPLY, CommitUnknown, Progress, Replication, Stopped
from streams.events import Problem
from streams.formats.binlog.inverse import plain_format_description, rows_version
from streams.formats.binlog.net import core_content, row_statements
from streams.ids import now_us

LOCK_NAME: Final = "holdfast.rollback"
STATEMENT_TIMEOUT_S: Final = 3600.0
MOST_SHOWN: Final = 5
# Rows of one event: large enough that statements do not count, small enough to see progress and to stay well below a packet.
EVENT_BYTES: Final = 384 << 10

_DUPLICATE: Final = 1062
_NOT_FOUND: Final = 1032
_LOCKED: Final = frozenset({1205, 1213, 3572})


class NativeTarget:
    """Implements `agents.rollback.target.Target`. `work` holds the transaction, `control` everything beside it."""

    _own_needed: tuple[str, ...] = ("SELECT", "INSERT", "CREATE", "ALTER", "DROP")
    """Privileges on schema `holdfast`."""

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._work_connection: pymysql.Connection[Any] | None = None
        self._control_connection: pymysql.Connection[Any] | None = None
        self._plan: Plan | None = None
        self._guards: dict[tuple[int, Role], str] = {}
        self._packet = 1 << 24
        self._server_id = 0
        self._rows_version = 1
        self._spoken: Dialect | None = None

    @property
    def _dialect(self) -> Dialect:
        if self._spoken is None:
            self._spoken = dialect(self._control)
        return self._spoken

    # -- sessions -------------------------------------------------------------------------------------------------

    def _open(self) -> pymysql.Connection[Any]:
        connection = connect(self._settings, "rollback", read_timeout=STATEMENT_TIMEOUT_S, write_timeout=600.0)
        with self._explained():
            spoken = dialect(connection)
            run(connection, spoken.rollback_session)
            run(connection, spoken.transactions[0])
        return connection

    @property
    def _work(self) -> pymysql.Connection[Any]:
        if self._work_connection is None:
            connection = self._work_connection = self._open()
            with self._explained():
                # Locking reads are to see the newest rows, not to fail on them. (Not in every version.)
                if ask(connection, "SHOW SESSION VARIABLES LIKE 'innodb_snapshot_isolation'"):
                    run(connection, "SET SESSION innodb_snapshot_isolation = 0")
                self._prepare_work(connection)
                ((self._packet, self._server_id),) = ask(connection, "SELECT @@max_allowed_packet, @@server_id")
        return self._work_connection

    def _prepare_work(self, connection: pymysql.Connection[Any]) -> None:
        """What only the session that makes the changes needs."""
        for statement in dialect(connection).replay_session:
            run(connection, statement)

    @property
    def _control(self) -> pymysql.Connection[Any]:
        if self._control_connection is None:
            self._control_connection = self._open()
        return self._control_connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What PyMySQL raises, in this room's terms."""
        try:
            yield
        except (pymysql.err.MySQLError, OSError) as error:
            number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            if number in _LOCKED:
                what = "was chosen to end a deadlock" if number == 1213 else "waited too long for a lock"
                raise AgentError(
                    "locked",
                    f"the rollback {what}: {error.args[1]}",
                    "nothing was changed; try again when the source is calmer, or with the applications stopped",
                ) from error
            raise error_of(error, self._settings) from error

    # -- before ---------------------------------------------------------------------------------------------------

    def check(self, plan: Plan) -> list[Problem]:
        problems = []
        with self._explained():
            control = self._control
            account = rights.account_of(ask(control, "SELECT CURRENT_USER()")[0][0])
            problems += self._missing_privileges(control, account, plan)
            for schema in sorted({t.definition.schema for t in plan.tables}):
                tables = [t.definition for t in plan.tables if t.definition.schema == schema]
                problems += self._table_privileges(control, account, schema, tables)
            problems += rights.of_own_schema(control, self._dialect, account, self._own_needed)
            problems += self._settings_in_the_way(control, plan)
            if not problems:
                # Asked again under locks in `begin`; but the guard is made and loaded before that.
                problems += self._changed_definitions(control, plan)
        return problems

    def capability(self) -> frozenset[str]:
        with self._explained():
            lacking = self._lacking(self._control, rights.account_of(ask(self._control, "SELECT CURRENT_USER()")[0][0]))
        can = {NATIVE_APPLY} if not {"replay", "log"} & set(lacking) else set()
        return frozenset(can if rights.FENCING & set(lacking) else {*can, FENCE})

    def _missing_privileges(self, control: pymysql.Connection[Any], account: str, plan: Plan) -> list[Problem]:
        lacking = self._lacking(control, account).values()
        return [rights.grant(privilege, "*.*", account) for privilege in dict.fromkeys(lacking)]

    def _lacking(self, control: pymysql.Connection[Any], account: str) -> dict[str, str]:
        return rights.lacking(control, self._dialect, account)

    def _table_privileges(
        self, control: pymysql.Connection[Any], account: str, schema: str, tables: Sequence[Definition]
    ) -> list[Problem]:
        return rights.of_tables(control, self._dialect, account, schema, tables)

    def _settings_in_the_way(self, control: pymysql.Connection[Any], plan: Plan) -> list[Problem]:
        return rights.settings_in_the_way(control, self._dialect, plan)

    def enable(self) -> None:
        with self._explained():
            work = self._work
            ((got,),) = ask(work, "SELECT GET_LOCK(%s, 2)", LOCK_NAME)
            if got != 1:
                raise AgentError(
                    "rollback-busy", "another rollback holds this server", "wait for it, or restart the agent"
                )
            if not self._marker_exists(work):
                run(work, guard.SCHEMA_DDL)
                run(work, guard.MARKER_DDL)

    def _marker_exists(self, connection: pymysql.Connection[Any]) -> bool:
        return bool(ask(
            connection,
            "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'holdfast' AND TABLE_NAME = 'marker'",
        ))  # fmt: skip

    def position(self) -> str:
        with self._explained(), self._control.cursor(Cursor) as cursor:
            return whereabouts.position(cursor, self._dialect)

    def covers(self, position: str, other: str) -> bool:
        return coordinates.covers(position, other)

    def nudge(self) -> None:
        with self._explained():
            run(self._control, guard.SCHEMA_DDL)

    def read_only(self) -> str:
        with self._explained():
            return fence.read_only(self._control)

    def fence(self) -> None:
        with self._explained():
            fence.close(self._control, "or plan with --not-whole-source")

    def unfence(self, before: str) -> None:
        with self._explained():
            fence.reopen(self._control, before)

    # -- the guard ------------------------------------------------------------------------------------------------

    def load(self, plan: Plan, progress: Progress) -> None:
        self._plan = plan
        work = self._work
        total = sum(len(images) for t in plan.tables for _, images in _guarded(t))
        done = 0
        with self._explained(), self._unlogged(work):
            self._drop_guards(work)
            self._describe_format(work)
            for i, t in enumerate(plan.tables):
                for role, images in _guarded(t):
                    for rows in self._fill(work, i, t, role, images):
                        done += rows
                        progress(done, total)

    def _fill(
        self, work: pymysql.Connection[Any], number: int, t: TablePlan, role: Role, images: Sequence[bytes]
    ) -> Iterator[int]:
        """Make one guard table and load it; how many rows went in at a time."""
        assert self._plan is not None
        if not images:
            return
        name = guard.guard_name(self._plan.event.plan, number, role)
        self._guards[number, role] = name
        guard_tables.make(work, t.definition, name, len(images), self._dialect.light_engine)
        content = core_content(t.changes.table.table_map, OWN_SCHEMA, name)
        run(work, "START TRANSACTION")
        for rows, events in row_statements(
            t.changes.table, "insert", images, EVENT_BYTES, content, version=self._rows_version
        ):
            self._replay(work, events)
            yield rows
        run(work, "COMMIT")

    def _describe_format(self, work: pymysql.Connection[Any]) -> None:
        assert self._plan is not None
        if self._plan.preamble:
            run(work, _binlog(plain_format_description(self._plan.preamble)))
            self._rows_version = rows_version(self._plan.preamble)
            if self._dialect.after_description:
                run(work, self._dialect.after_description)

    def _replay(self, work: pymysql.Connection[Any], events: bytes) -> None:
        """Run a table map and a rows event. One larger than a packet goes in two halves, which is all the server takes."""
        text = base64.b64encode(_stamped(events, int(time.time()), self._server_id))
        most = self._packet - 1024
        if len(text) <= most or not self._dialect.split_statements:
            run(work, b"BINLOG '" + text + b"'")
            return
        half = (len(text) + 1) // 2
        run(work, b"SET @holdfast_1 = '" + text[:half] + b"'")
        run(work, b"SET @holdfast_2 = '" + text[half:] + b"'")
        run(work, b"BINLOG @holdfast_1, @holdfast_2")

    # -- the transaction ------------------------------------------------------------------------------------------

    def begin(self, plan: Plan) -> list[Problem]:
        work = self._work
        event = plan.event
        with self._explained():
            run(work, self._dialect.transactions[1])
            try:
                run(
                    work, "INSERT INTO `holdfast`.`marker` (plan, digest, kind, at_us) VALUES (%s, %s, %s, %s)",
                    event.plan, event.digest, event.kind, now_us(),
                )  # fmt: skip
            except pymysql.err.IntegrityError as error:
                raise AgentError(
                    "plan-already-run", f"plan {event.plan} has been run or given up before", "make a new plan"
                ) from error
            for name in sorted(self._held(plan)):
                try:
                    run(work, f"SELECT 1 FROM {quoted(*name)} LIMIT 0")
                except pymysql.err.ProgrammingError as error:
                    if error.args[0] != 1146:
                        raise
                    return [Problem("schema-changed", f"table {'.'.join(name)} is not there any more", "plan again")]
            return self._changed_definitions(work, plan)

    @staticmethod
    def _changed_definitions(connection: pymysql.Connection[Any], plan: Plan) -> list[Problem]:
        live = {(d.schema, d.table): d for d in read_definitions(connection, [t.definition.name for t in plan.tables])}
        out = []
        for t in plan.tables:
            now = live.get(t.definition.name)
            if now is None or now.fingerprint != t.definition.fingerprint:
                what = "is not there any more" if now is None else "is defined otherwise than the plan was made with"
                out.append(Problem("schema-changed", f"table {t.definition.text} {what}", "plan again"))
        return out

    @staticmethod
    def _held(plan: Plan) -> set[tuple[str, str]]:
        held = {t.definition.name for t in plan.tables}
        held |= {child.name for t in plan.tables if t.changes.removed for child, _ in t.children}
        held |= {(fk.schema, fk.table) for t in plan.tables if t.changes.inserts for fk in t.definition.foreign_keys}
        return held

    def compare(self) -> list[Problem]:
        out: list[Problem] = []
        for i, t in enumerate(self._tables()):
            if not t.changes.table.keyed:
                continue
            definition = t.definition
            before = self._guards.get((i, "before"))
            with self._explained():
                if before is not None:
                    ((rows, missing, different),) = ask(self._work, guard.compare(definition, before))
                    if rows != len(t.changes.expected):
                        raise AgentError(
                            "guard-incomplete", f"the guard of {definition.text} holds {rows} rows of"
                            f" {len(t.changes.expected)}", "try again; nothing was changed",
                        )  # fmt: skip
                    if missing or different:
                        found = ask(self._work, guard.differences(definition, before, MOST_SHOWN))
                        out += findings.conflicts(definition, found, int(missing) + int(different))
        return out

    def children(self) -> list[Problem]:
        out: list[Problem] = []
        tables = self._tables()
        places = {t.definition.name: i for i, t in enumerate(tables)}
        for i, t in enumerate(tables):
            removed = self._guards.get((i, "removed"))
            if removed is None:
                continue
            for child, number in t.children:
                place = places.get(child.name)
                if place is not None and child.key is None:
                    continue  # cannot be told apart from planned ones row by row: `orphans` sees it afterwards
                before = None if place is None else self._guards.get((place, "before"))
                fk = child.foreign_keys[number]
                with self._explained():
                    found = ask(self._work, guard.children(child, fk, removed, before, MOST_SHOWN))
                out += [Problem(
                    "child-outside-plan",
                    f"{child.text} {findings.key_text(child, row)} points at a row of {t.definition.text} that the plan removes"
                    f" ({fk.name})",
                    "it was written since, or without the log: plan again",
                ) for row in findings.named(child, found)]  # fmt: skip
        return out

    def apply(self, progress: Progress) -> int:
        work = self._work
        tables = self._tables()
        total = sum(t.changes.rows for t in tables)
        done = 0
        for i, t in enumerate(tables):
            with self._explained():
                try:
                    for rows in self._change(work, i, t):
                        done += rows
                        progress(done, total)
                except pymysql.err.MySQLError as error:
                    number = error.args[0] if error.args else 0
                    if number not in (_DUPLICATE, _NOT_FOUND):
                        raise
                    raise Stopped(self._in_the_way(i, t, number, str(error.args[1]))) from error
        return done

    def _change(self, work: pymysql.Connection[Any], number: int, t: TablePlan) -> Iterator[int]:
        """Make the changes of one table; how many rows at a time."""
        for rows, events in t.changes.statements(EVENT_BYTES, self._rows_version):
            self._replay(work, events)
            yield rows

    def _in_the_way(self, number: int, t: TablePlan, error: int, text: str) -> list[Problem]:
        """What made the server refuse a row, now that the transaction is of no use any more."""
        work, definition = self._work, t.definition
        hint = "somebody wrote it since, or without the log: plan again"
        run(work, "ROLLBACK")
        if error == _DUPLICATE and t.changes.table.keyed:
            if (number, "after") not in self._guards:
                with self._unlogged(work):
                    for _ in self._fill(work, number, t, "after", t.changes.inserts):
                        pass
            before, after = self._guards.get((number, "before")), self._guards[number, "after"]
            found = findings.named(definition, ask(work, guard.occupied(definition, after, before, MOST_SHOWN)))
            if found:
                return [
                    Problem("conflict", f"{definition.text} {findings.key_text(definition, row)} is there, where the plan"
                            f" inserts a row: found {findings.show(row)}", hint)
                    for row in found
                ]  # fmt: skip
        what = "a row stands in the way of one that the plan inserts" if error == _DUPLICATE else "a row is not there"
        return [Problem("conflict", f"{definition.text}: {what}: {text}", hint)]

    def orphans(self) -> list[Problem]:
        out: list[Problem] = []
        for i, t in enumerate(self._tables()):
            removed, after = self._guards.get((i, "removed")), self._guards.get((i, "after"))
            for child, number in t.children if removed is not None else ():
                fk = child.foreign_keys[number]
                with self._explained():
                    sql = guard.still_pointing(child, fk, t.definition, removed or "", MOST_SHOWN)
                    found = ask(self._work, sql)
                out += [findings.orphan(child, row, fk.name) for row in findings.named(child, found)]
            for fk in t.definition.foreign_keys if after is not None else ():
                with self._explained():
                    found = ask(self._work, guard.without_parent(t.definition, fk, after or "", MOST_SHOWN))
                out += [findings.orphan(t.definition, row, fk.name) for row in findings.named(t.definition, found)]
        return out

    def marked(self) -> bool:
        plan = self._plan
        if plan is None:
            return False
        with self._explained():
            spoken = self._dialect
            strict = " AND ".join(f"{e} = '{v}'" for e, v in spoken.variables.items())
            ((inside, strict, marked),) = ask(
                self._work,
                f"SELECT {spoken.in_transaction or 1}, {strict},"
                " (SELECT COUNT(*) FROM `holdfast`.`marker` WHERE plan = %s AND digest = %s)",
                plan.event.plan, plan.event.digest,
            )  # fmt: skip
            if not spoken.in_transaction:
                run(self._work, "DO 0")
                work: Any = self._work
                inside = work.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS
        return bool(inside) and bool(strict) and bool(marked)

    def commit(self) -> str:
        work = self._work
        with self._explained():
            self._before_commit(work)
        try:
            run(work, "COMMIT")
        except (pymysql.err.MySQLError, OSError) as error:
            if isinstance(error_of(error, self._settings), SourceUnavailable):
                raise CommitUnknown(
                    "commit-unknown", f"the connection broke at COMMIT: {error}", "nothing was changed: plan again"
                ) from error
            raise error_of(error, self._settings) from error
        with contextlib.suppress(pymysql.err.MySQLError, OSError):
            if self._dialect.family == "MariaDB":
                ((gtid,),) = ask(work, "SELECT @@last_gtid")
                return str(gtid)
            return self.position()
        return ""

    def _before_commit(self, work: pymysql.Connection[Any]) -> None:
        run(work, "SET SESSION timestamp = DEFAULT")

    @staticmethod
    @contextlib.contextmanager
    def _unlogged(connection: pymysql.Connection[Any]) -> Iterator[None]:
        """What this session does within is not in the server's log."""
        run(connection, "SET SESSION sql_log_bin = 0")
        try:
            yield
        finally:
            run(connection, "SET SESSION sql_log_bin = 1")

    def abandon(self) -> None:
        connection = self._work_connection
        if connection is not None:
            with contextlib.suppress(Exception):
                run(connection, "ROLLBACK")

    # -- afterwards -----------------------------------------------------------------------------------------------

    def clean_up(self) -> None:
        with self._explained():
            control = self._control
            # An account that lacks the privilege to switch the log off made no guard either, and must get to its end.
            if guard_tables.names(control):
                with self._unlogged(control):
                    self._drop_guards(control)
        self._let_go()

    def _let_go(self) -> None:
        if self._work_connection is not None:
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                ask(self._work_connection, "SELECT RELEASE_LOCK(%s)", LOCK_NAME)

    def _drop_guards(self, connection: pymysql.Connection[Any]) -> None:
        """Guard tables of whatever rollback: only one runs at a time, under the lock. Not logged: `sql_log_bin` is off."""
        names = guard_tables.names(connection)
        if names:
            run(connection, guard.drop(names))
        self._guards = {}

    def settle(self, plan: str, digest: bytes) -> bool:
        deadline = time.monotonic() + 600
        with self._explained():
            control = self._control
            while True:
                ((holder,),) = ask(control, "SELECT IS_USED_LOCK(%s)", LOCK_NAME)
                if holder is not None:
                    with contextlib.suppress(pymysql.err.MySQLError):
                        run(control, f"KILL CONNECTION {int(holder)}")
                ((got,),) = ask(control, "SELECT GET_LOCK(%s, 5)", LOCK_NAME)
                if got == 1:
                    break
                if time.monotonic() > deadline:
                    raise SourceUnavailable(
                        "rollback-busy", "a session of an earlier rollback does not end", f"KILL {holder} on the source"
                    )
            if not self._marker_exists(control):
                return False
            # The lock read waits for a transaction that still holds the marker, so its answer is final.
            run(control, "SET SESSION innodb_lock_wait_timeout = 600")
            found = ask(control, "SELECT kind FROM `holdfast`.`marker` WHERE plan = %s FOR UPDATE", plan)
            if found:
                return bool(found[0][0] != "void")
            try:
                with self._unlogged(control):
                    run(
                        control,
                        "INSERT INTO `holdfast`.`marker` (plan, digest, kind, at_us) VALUES (%s, %s, 'void', %s)",
                        plan, digest, now_us(),
                    )  # fmt: skip
            except pymysql.err.IntegrityError:
                return self.settle(plan, digest)
        return False

    def has_marker(self, plan: str) -> bool:
        with self._explained():
            control = self._control
            if not self._marker_exists(control):
                return False
            return bool(ask(control, "SELECT 1 FROM `holdfast`.`marker` WHERE plan = %s AND kind <> 'void'", plan))

    def replication(self) -> Replication | None:
        with self._explained():
            return replication(self._control)

    def undo_length(self) -> int | None:
        with self._explained():
            try:
                found = ask(
                    self._control,
                    "SELECT `COUNT` FROM information_schema.INNODB_METRICS WHERE NAME = 'trx_rseg_history_len'",
                )
            except pymysql.err.OperationalError as error:
                if error.args[0] != 1227:  # PROCESS
                    raise
                return None
            return int(found[0][0]) if found else None

    def close(self) -> None:
        for connection in (self._work_connection, self._control_connection):
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.close()
        self._work_connection = self._control_connection = None

    def _tables(self) -> tuple[TablePlan, ...]:
        assert self._plan is not None, "load comes first"
        return self._plan.tables


def target(settings: SourceSettings) -> NativeTarget:
    """The server of these settings. Connects when first asked something."""
    return NativeTarget(settings)


def _guarded(t: TablePlan) -> Iterator[tuple[Role, Sequence[bytes]]]:
    c = t.changes
    yield "before", c.expected
    yield "after", c.inserts if t.definition.foreign_keys else ()
    yield "removed", c.removed if t.children else ()


def _stamped(events: bytes, now: int, server_id: int) -> bytes:
    """A table map and a rows event with the time (seconds) and server id of the session that replays them."""
    out = bytearray(events)
    (size,) = struct.unpack_from("<I", out, 9)
    for at in (0, size):
        struct.pack_into("<I", out, at, now)
        struct.pack_into("<I", out, at + 5, server_id)
    return bytes(out)


def _binlog(events: bytes) -> bytes:
    return b"BINLOG '" + base64.b64encode(events) + b"'"
