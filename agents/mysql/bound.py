"""A server whose account may not replay native events (managed services): the same rollback by ordinary statements.

What differs from `apply`, and why (tried on MariaDB 10.11 and MySQL 9.7 with accounts that have neither BINLOG rights nor SUPER):

- nothing can be kept out of the log by `sql_log_bin`, so guards are *temporary* tables, which the server logs not at all
  when it logs rows; they are gone with the session
- guards are filled with literals (`literals`) and hold plain columns: generated ones too, so that they are compared as logged
- changes are made by joins with the guard: a value goes from column to column of one type and is not converted, whatever
  bytes it has. Each statement must change as many rows as planned, and afterwards every row written is compared again
- a table without a key is changed row by row, by a condition on all of its columns
- triggers cannot be left out: a plan whose changes would set one off is refused when it is made (`agents.rollback.plan`)
- the session's row format, and the mark of a plan that was given up (`settle`), are the server's log's: the one is asked for,
  the other is logged, and readers know it (`kind` void)
- the text of the statements may be logged as annotations (capture does not ask for them)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pymysql

from agents.errors import AgentError
from agents.mysql import guard
from agents.mysql.apply import NativeTarget
from agents.mysql.definitions import quoted
from agents.mysql.dialects import dialect
from agents.mysql.guard import Role
from agents.mysql.literals import Literals, equals, literals_of
from agents.mysql.rights import FENCING, denied, grant
from agents.mysql.statements import ask, run
from agents.protocol import SourceSettings
from agents.rollback.plan import Plan, TablePlan, no_fence, request_of
from agents.rollback.schema import Definition
from agents.rollback.target import Progress, Stopped
from streams.events import Problem
from streams.formats.errors import FormatError

STATEMENT_BYTES: Final = 1 << 20


class BoundTarget(NativeTarget):
    """Implements `agents.rollback.target.Target` with INSERT, UPDATE and DELETE alone."""

    _own_needed = ("SELECT", "INSERT", "CREATE", "CREATE TEMPORARY TABLES")

    def __init__(self, settings: SourceSettings) -> None:
        super().__init__(settings)
        self._checked: tuple[TablePlan, ...] = ()

    def _prepare_work(self, connection: pymysql.Connection[Any]) -> None:
        run(connection, dialect(connection).bound_session)

    def _before_commit(self, work: pymysql.Connection[Any]) -> None:
        """The session's clock was never changed."""

    @staticmethod
    @contextlib.contextmanager
    def _unlogged(connection: pymysql.Connection[Any]) -> Iterator[None]:
        """Nothing can be: what is done within is either of temporary tables, or may be logged."""
        yield

    # -- before ---------------------------------------------------------------------------------------------------

    def _missing_privileges(self, control: pymysql.Connection[Any], account: str, plan: Plan) -> list[Problem]:
        lacking = self._lacking(control, account)
        out = [grant(lacking["place"], "*.*", account)] if "place" in lacking else []
        if request_of(plan.event).whole_source and FENCING & set(lacking):
            out.append(no_fence(account))
        return out

    def _table_privileges(
        self, control: pymysql.Connection[Any], account: str, schema: str, tables: Sequence[Definition]
    ) -> list[Problem]:
        names = {d.name for d in tables}
        probes = [probe for t in self._checked if t.definition.name in names for probe in _probes(t)]
        lacking = {verb for verb, sql in probes if denied(control, sql)}
        problems = super()._table_privileges(control, account, schema, tables)
        if lacking:
            problems.append(grant(", ".join(sorted(lacking)), quoted(schema) + ".*", account))
        return problems

    def _settings_in_the_way(self, control: pymysql.Connection[Any], plan: Plan) -> list[Problem]:
        ((log_bin,),) = ask(control, "SELECT @@log_bin")
        out = []
        if not log_bin:
            out.append(Problem("log-off", "the target keeps no binary log", "start it with log_bin"))
        for expression, wanted in self._dialect.bound_settings.items():
            ((value,),) = ask(control, f"SELECT {expression}")
            name = expression.rpartition(".")[2]
            if str(value).upper() != wanted:
                out.append(Problem(
                    "setting", f"{name} is {value}: what the rollback does could not be read in the log",
                    f"SET GLOBAL {name} = '{wanted}'",
                ))  # fmt: skip
        ((packet,),) = ask(control, "SELECT @@max_allowed_packet")
        largest, table = max(((t.changes.largest, t.definition.text) for t in plan.tables), default=(0, ""))
        needed = 2 * largest + 64 * 1024  # in hexadecimal
        if needed > packet:
            out.append(Problem(
                "row-too-large", f"a row of {table} needs packets of {needed} bytes; the server takes {packet}",
                f"SET GLOBAL max_allowed_packet = {min(1 << 30, 1 << needed.bit_length())}",
            ))  # fmt: skip
        for t in plan.tables:
            try:
                literals_of(t.changes.table.table_map, t.definition)
            except FormatError as error:
                out.append(Problem(error.code, error.message, error.hint))
        return out

    def check(self, plan: Plan) -> list[Problem]:
        self._checked = plan.tables
        with self._explained():
            if not self._dialect.bound_session:
                return [Problem(
                    "method-unsupported", "rollbacks by bound statements are not made on this server",
                    "grant what native events need",
                )]  # fmt: skip
        return super().check(plan)

    # -- the guard ------------------------------------------------------------------------------------------------

    def load(self, plan: Plan, progress: Progress) -> None:
        self._plan = plan
        self._guards = {}
        work = self._work
        wanted = [(i, t, role, images) for i, t in enumerate(plan.tables) for role, images in _guarded(t)]
        total, done = sum(len(images) for *_, images in wanted), 0
        with self._explained():
            run(work, f"USE {quoted(guard.OWN_SCHEMA)}")  # or the alias of a DELETE is not understood
            for i, t, role, images in wanted:
                for rows in self._fill(work, i, t, role, images):
                    done += rows
                    progress(done, total)

    def _fill(
        self, work: pymysql.Connection[Any], number: int, t: TablePlan, role: Role, images: Sequence[bytes]
    ) -> Iterator[int]:
        assert self._plan is not None
        if not images:
            return
        name = guard.guard_name(self._plan.event.plan, number, role)
        run(work, guard.drop_temporary(name))
        key = t.definition.key[1] if role == "deleted" and t.definition.key else None
        columns = key or tuple(c.name for c in t.definition.columns)
        run(work, guard.temporary(t.definition, name, columns, keyed=role != "removed"))
        self._guards[number, role] = name
        into = guard.insert_head(name, columns)
        literals = literals_of(t.changes.table.table_map, t.definition, columns)
        run(work, "START TRANSACTION")
        for rows, values, warnings in _statements(literals, images, min(STATEMENT_BYTES, self._packet // 2)):
            _fill_guard(work, into + values, t.definition, rows, warnings)
            yield rows
        run(work, "COMMIT")

    def clean_up(self) -> None:
        """Guards go with the session: whatever became of it, nobody else sees them."""
        work = self._work_connection
        if work is not None:
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                for name in self._guards.values():
                    run(work, guard.drop_temporary(name))
        self._guards = {}
        self._let_go()

    # -- the transaction ------------------------------------------------------------------------------------------

    def _change(self, work: pymysql.Connection[Any], number: int, t: TablePlan) -> Iterator[int]:
        definition, changes = t.definition, t.changes
        if self._dialect.family == "MariaDB":
            run(work, f"SET SESSION check_constraint_checks = {0 if changes.table.unchecked else 1}")
        if not changes.table.keyed:
            yield from self._one_by_one(work, number, t)
            return
        gone, updated, added = (self._guards.get((number, role), "") for role in ("deleted", "updated", "after"))
        if changes.deletes and self._dialect.joins_miss_blob_keys and guard.has_blob_key(definition):
            yield from self._delete_one_by_one(work, t)
        elif changes.deletes:
            _exactly(work, guard.delete(definition, gone), definition, "removes", len(changes.deletes))
            yield len(changes.deletes)
        if changes.updates:
            run(work, guard.update(definition, updated))
            yield len(changes.updates)
        if changes.inserts:
            _exactly(work, guard.insert(definition, added), definition, "adds", len(changes.inserts))
            yield len(changes.inserts)
        for name, rows in ((updated, len(changes.updates)), (added, len(changes.inserts))):
            if rows:
                ((found, missing, different),) = ask(work, guard.compare(definition, name))
                if (found, missing, different) != (rows, 0, 0):
                    raise Stopped([_written_otherwise(definition, int(missing) + int(different))])

    def _one_by_one(self, work: pymysql.Connection[Any], number: int, t: TablePlan) -> Iterator[int]:
        """A table without a key."""
        yield from self._delete_one_by_one(work, t)
        if t.changes.inserts:
            sql = guard.insert(t.definition, self._guards[number, "after"])
            _exactly(work, sql, t.definition, "adds", len(t.changes.inserts))
            yield len(t.changes.inserts)

    def _delete_one_by_one(self, work: pymysql.Connection[Any], t: TablePlan) -> Iterator[int]:
        """Each row that goes is found by all of its values."""
        definition = t.definition
        literals = literals_of(t.changes.table.table_map, definition)
        head = f"DELETE FROM {quoted(*definition.name)} WHERE ".encode()
        for image in t.changes.deletes:
            conditions = [
                equals(quoted(column.name), value)
                for column, value in zip(definition.columns, literals.read(image), strict=True)
                if column.generated != "virtual"
            ]
            _exactly(work, head + b" AND ".join(conditions) + b" LIMIT 1", definition, "removes", 1)
            yield 1


def target(settings: SourceSettings) -> BoundTarget:
    """The server of these settings, changed by bound statements. Connects when first asked something."""
    return BoundTarget(settings)


def _guarded(t: TablePlan) -> Iterator[tuple[Role, Sequence[bytes]]]:
    """What is loaded: beside what native changes need (`apply`), everything that is to be written."""
    c = t.changes
    yield "before", c.expected
    yield "deleted", c.deletes if c.table.keyed else ()
    yield "updated", [after for _, after in c.updates]
    yield "after", c.inserts
    yield "removed", c.removed if t.children else ()


def _probes(t: TablePlan) -> Iterator[tuple[str, str]]:
    """(privilege, a statement that needs it and changes nothing) for what the plan does with this table."""
    table, column = quoted(*t.definition.name), quoted(t.definition.columns[0].name)
    if t.changes.inserts:
        names = ", ".join(quoted(c.name) for c in t.definition.columns if c.generated is None)
        yield "INSERT", f"INSERT INTO {table} ({names}) SELECT {names} FROM {table} WHERE FALSE"
    if t.changes.updates:
        written = next((quoted(c.name) for c in t.definition.columns if c.generated is None), column)
        yield "UPDATE", f"UPDATE {table} SET {written} = {written} WHERE FALSE"
    if t.changes.deletes:
        yield "DELETE", f"DELETE FROM {table} WHERE FALSE"


def _statements(literals: Literals, images: Sequence[bytes], most: int) -> Iterator[tuple[int, bytes, int]]:
    """(rows, their literals, warnings that are expected) of about `most` bytes each."""
    rows: list[bytes] = []
    size = warnings = 0
    for image in images:
        row = literals.row(image)
        if rows and size + len(row) > most:
            yield len(rows), b",".join(rows), warnings
            rows, size, warnings = [], 0, 0
        rows.append(row)
        size += len(row) + 1
        warnings += literals.invalid_members(image)
    if rows:
        yield len(rows), b",".join(rows), warnings


def _fill_guard(work: pymysql.Connection[Any], sql: bytes, definition: Definition, rows: int, warnings: int) -> None:
    """Fill a guard, and see that the server took every value as it stands."""
    inserted = work.query(sql)
    ((found,),) = ask(work, "SELECT @@warning_count")
    if inserted != rows or found != warnings:
        said = "; ".join(str(w[2]) for w in ask(work, "SHOW WARNINGS LIMIT 3"))
        raise AgentError(
            "value-not-bound",
            f"a value of {definition.text} cannot be written by bound statements as it was logged: {said}",
            "let the rollback account replay native events (BINLOG REPLAY, BINLOG ADMIN)",
        )


def _exactly(work: pymysql.Connection[Any], sql: str | bytes, definition: Definition, verb: str, rows: int) -> None:
    """Run it; anything but `rows` changed is a conflict."""
    changed = work.query(sql.encode() if isinstance(sql, str) else sql)
    if changed != rows:
        raise Stopped([Problem(
            "conflict", f"{definition.text}: a statement that {verb} {rows} rows found {changed}",
            "somebody wrote them since, or without the log: plan again",
        )])  # fmt: skip


def _written_otherwise(definition: Definition, rows: int) -> Problem:
    return Problem(
        "written-otherwise",
        f"{rows} rows of {definition.text} are not as the log has them once they are written by bound statements",
        "a generated column, or a type that this server converts: let the rollback account replay native events",
    )
