"""Making a baseline of a server: a consistent full at a known position, without a lock that is held.

    definitions and objects read       D0
    START TRANSACTION WITH CONSISTENT SNAPSHOT
    binlog_snapshot_file, _position    the coordinate of exactly that snapshot; BINLOG_GTID_POS makes it a GTID set.
                                       MySQL does not tell it: commits are held back (FLUSH TABLES WITH READ LOCK) for the
                                       moment in which the snapshot begins and the position is read
    each table read in the snapshot    ROLLBACK TO SAVEPOINT then lets go of its metadata lock (see below)
    definitions and objects read       D1

A snapshot covers rows, not definitions, so D0 and D1 (creation times included) must be equal: then no DDL came between,
and D0 is the schema at the position. A table that was changed or truncated meanwhile refuses to be read in the
snapshot, which is found as well. Either begins the baseline anew. Tables of engines without transactions have no
snapshot: they are read as they are, and said to be.

Writers are never stopped. What the source pays: one reading connection, and the undo that the snapshot holds. DDL on a
table that has been read can go on at once only if the session has switched its binary log off (the server keeps
metadata locks in a savepoint otherwise, though nothing is written); without BINLOG ADMIN it waits for the end.
Sources: MariaDB Knowledge Base, "Enhancements for START TRANSACTION WITH CONSISTENT SNAPSHOT", "BINLOG_GTID_POS".
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pymysql
from pymysql.constants import ER
from pymysql.cursors import Cursor, SSCursor

from agents.baseline.manifest import (
    DEFINITIONS,
    MEMBERS_AS_NUMBER,
    OBJECTS,
    CreateObject,
    Manifest,
    TableFile,
    new_folder,
    write_lines,
    write_manifest,
)
from agents.baseline.objects import MOVED, SchemaMovedError, read_objects, rows_of
from agents.baseline.rows import HashedFile, RowsWriter
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.mysql import whereabouts
from agents.mysql.connection import connect, error_of
from agents.mysql.definitions import quoted, read_definitions, schema_version
from agents.mysql.dialects import dialect
from agents.mysql.dump import file_created
from agents.mysql.file_positions import is_file_position
from agents.mysql.file_positions import parse as parse_file_position
from agents.protocol import SourceSettings
from streams.events import Problem, TableDefinition
from streams.ids import now_us

ATTEMPTS = 3
HOLD_WAIT_S = 20
# Engines whose rows are elsewhere or nowhere.
_ROWLESS = frozenset({"FEDERATED", "CONNECT", "SPIDER", "BLACKHOLE", "MRG_MYISAM", "S3", "SPHINX"})
# Server settings that decide what a definition's text means; the scratch server is given them.
VARIABLES = (
    "sql_mode",
    "character_set_server",
    "collation_server",
    "character_set_collations",
    "default_storage_engine",
    "default_tmp_storage_engine",
    "explicit_defaults_for_timestamp",
    "innodb_default_row_format",
    "innodb_strict_mode",
    "lower_case_table_names",
    "max_allowed_packet",
    "time_zone",
    "version",
)
_CHECK_EVERY_S = 0.25

Progress = Callable[[str, int, int, str], None]


def make(
    source: SourceSettings,
    data_dir: Path,
    *,
    baseline: str,
    lineage: str,
    job: str,
    progress: Progress = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Path, Manifest]:
    """Make a baseline; its folder, durable, and what is in it.

    `progress(message, done, total, unit)` is called often; `check` may raise to give up. Raises `SourceUnavailable`,
    `AgentError` (`baseline-schema-moved`, `baseline-position`, `privilege-missing`, `disk-full`, `source-…`).
    """
    moved = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with new_folder(data_dir, source.source, baseline) as folder:
                manifest = _Making(source, folder, progress, check).make(baseline, lineage, job)
                failpoint("baseline.before-rename")
            failpoint("baseline.after-rename")
            return folder.parent / baseline, manifest
        except SchemaMovedError as error:
            moved = str(error)
            progress(f"{moved}; beginning anew ({attempt} of {ATTEMPTS})", 0, 0, "")
        except pymysql.err.MySQLError as error:
            raise error_of(error, source) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(data_dir).free
                raise AgentError(
                    "disk-full",
                    f"there is no room for the baseline: {free >> 20} MiB are left",
                    f"make room in {data_dir}, or move the data directory",
                ) from error
            raise
    raise AgentError(
        "baseline-schema-moved",
        f"definitions changed while the baseline was made, {ATTEMPTS} times: {moved}",
        "hold back DDL (CREATE, ALTER, DROP, TRUNCATE) until the baseline is made, then add the source again",
    )


@dataclasses.dataclass(frozen=True)
class _Seen:
    """The schema as read at one moment."""

    definitions: list[TableDefinition]
    objects: list[CreateObject]
    created: dict[tuple[str, str], str]

    def difference(self, later: _Seen) -> str:
        """What is not the same later, in words; empty when nothing is."""
        before = {(d.schema, d.table): (d.fingerprint, self.created.get((d.schema, d.table))) for d in self.definitions}
        after = {
            (d.schema, d.table): (d.fingerprint, later.created.get((d.schema, d.table))) for d in later.definitions
        }
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                return f"{'.'.join(name)} changed"
        changed = set(self.objects) ^ set(later.objects)
        return "".join(f"{o.kind} {o.schema}.{o.name} changed" for o in sorted(changed, key=str)[:1])


class _Making:
    def __init__(self, source: SourceSettings, folder: Path, progress: Progress, check: Callable[[], None]) -> None:
        self._source = source
        self._folder = folder
        self._progress = progress
        self._check = check
        self._warnings: list[Problem] = []
        self._looked = 0.0

    def _connect(self) -> pymysql.Connection[Any]:
        conn = connect(self._source, "capture", read_timeout=600.0)
        with conn.cursor() as cursor:
            cursor.execute(dialect(conn).snapshot_session)
        return conn

    def make(self, baseline: str, lineage: str, job: str) -> Manifest:
        started = now_us()
        with contextlib.closing(self._connect()) as live, contextlib.closing(self._connect()) as snapshot:
            seen = self._see(live)
            variables = _variables(live)
            self._warnings += _let_go_of_locks(snapshot)
            if dialect(snapshot).snapshot_position:
                file, offset, position = _begin(snapshot)
            else:
                file, offset, position = _begin_held(live, snapshot, self._source)
            failpoint("baseline.snapshot")
            digests = {
                DEFINITIONS: write_lines(self._folder / DEFINITIONS, map(_line, seen.definitions)),
                OBJECTS: write_lines(self._folder / OBJECTS, map(dataclasses.asdict, seen.objects)),
            }
            tables = self._tables(live, snapshot, seen.definitions)
            difference = seen.difference(self._see(live))
            if difference:
                raise SchemaMovedError(difference)
            with snapshot.cursor() as cursor:
                cursor.execute("SELECT @@server_id, VERSION()")
                row = cursor.fetchone()
            assert row is not None
        manifest = Manifest(
            baseline=baseline,
            source=self._source.source,
            kind=self._source.kind,
            lineage=lineage,
            job=job,
            position=position,
            file=file,
            offset=offset,
            server_id=int(row[0]),
            server_version=str(row[1]),
            started_us=started,
            finished_us=now_us(),
            schema_version=schema_version(seen.definitions).hex(),
            variables=variables,
            digests=digests,
            tables=tuple(tables),
            warnings=tuple(self._warnings),
        )
        write_manifest(self._folder, manifest)
        return manifest

    def _see(self, conn: pymysql.Connection[Any]) -> _Seen:
        definitions = read_definitions(conn)
        created = {
            (str(s), str(t)): str(at)
            for s, t, at in rows_of(conn, "SELECT TABLE_SCHEMA, TABLE_NAME, CREATE_TIME FROM information_schema.TABLES")
        }
        return _Seen(definitions, list(read_objects(conn, definitions)), created)

    def _tables(
        self, live: pymysql.Connection[Any], snapshot: pymysql.Connection[Any], definitions: list[TableDefinition]
    ) -> list[TableFile]:
        facts = _facts(live)
        total = sum(facts[d.schema, d.table].estimate for d in definitions if (d.schema, d.table) in facts)
        done = 0
        tables = []
        # What has no part in the snapshot is read beside it: in it, such a table would keep its metadata lock, and
        # those of all tables after it, to the end.
        with contextlib.closing(self._connect()) as beside:
            for conn in (snapshot, beside):
                with conn.cursor(Cursor) as cursor:
                    # Character columns come as their bytes are; what the log will carry are the same bytes.
                    cursor.execute("SET character_set_results = NULL")
            for number, definition in enumerate(definitions, 1):
                found = facts.get((definition.schema, definition.table))
                if found is None:
                    raise SchemaMovedError(f"{definition.schema}.{definition.table} is gone")
                file = "" if found.engine in _ROWLESS else f"rows/{number:05}.rows.zst"
                table = _plain(definition, found, file, dialect(live).float_as_double)
                if file:
                    read = self._in_snapshot if table.consistent else self._beside
                    table = self._fill(table, read(snapshot if table.consistent else beside, table), done, total)
                done += table.rows
                tables.append(table)
                self._warnings += _warnings(table)
        self._progress("tables are read", done, done, "rows")
        return tables

    def _in_snapshot(self, conn: pymysql.Connection[Any], table: TableFile) -> Iterator[bytes]:
        with conn.cursor(Cursor) as cursor:
            cursor.execute("SAVEPOINT holdfast")
        yield from self._beside(conn, table)
        with conn.cursor(Cursor) as cursor:
            cursor.execute("ROLLBACK TO SAVEPOINT holdfast")

    def _beside(self, conn: pymysql.Connection[Any], table: TableFile) -> Iterator[bytes]:
        name = quoted(table.schema, table.table)
        try:
            yield from raw_rows(conn, f"SELECT {', '.join(table.expressions)} FROM {name}")
        except pymysql.err.MySQLError as error:
            if error.args and error.args[0] in MOVED:
                raise SchemaMovedError(f"{name} changed while it was read") from error
            raise

    def _fill(self, table: TableFile, source_rows: Iterator[bytes], done: int, total: int) -> TableFile:
        message = f"reading {quoted(table.schema, table.table)}"
        with HashedFile(self._folder / table.file) as out:
            rows = RowsWriter(out, table.schema, table.table, list(table.columns))
            for row in source_rows:
                rows.add(row)
                if not rows.rows & 0xFF:
                    self._look(message, done + rows.rows, total)
            rows.finish()
            digest = out.finish()
        failpoint("baseline.table")
        self._look(message, done + rows.rows, total)
        return dataclasses.replace(table, bytes=out.bytes, raw_bytes=rows.raw_bytes, rows=rows.rows, blake3=digest)

    def _look(self, message: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._looked >= _CHECK_EVERY_S:
            self._looked = now
            self._check()
            self._progress(message, done, max(done, total), "rows")


@dataclasses.dataclass(frozen=True)
class _Fact:
    """What information_schema says of a table. `estimate`: its rows, about."""

    kind: str
    engine: str
    transactional: bool
    auto_increment: int | None
    estimate: int


def _facts(conn: pymysql.Connection[Any]) -> dict[tuple[str, str], _Fact]:
    engines = rows_of(conn, "SELECT ENGINE, TRANSACTIONS FROM information_schema.ENGINES")
    transactional = {str(engine) for engine, yes in engines if yes == "YES"}
    rows = rows_of(
        conn,
        "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE, AUTO_INCREMENT, TABLE_ROWS FROM information_schema.TABLES",
    )
    return {
        (str(s), str(t)): _Fact(
            str(kind), str(engine or ""), engine in transactional, None if at is None else int(at), int(count or 0)
        )
        for s, t, kind, engine, at, count in rows
    }


def _plain(definition: TableDefinition, fact: _Fact, file: str, float_as_double: str) -> TableFile:
    columns, types, expressions = selection(definition, float_as_double)
    return TableFile(
        schema=definition.schema,
        table=definition.table,
        kind=fact.kind,
        engine=fact.engine,
        columns=tuple(columns),
        types=tuple(types),
        expressions=tuple(expressions),
        file=file,
        bytes=0,
        raw_bytes=0,
        rows=0,
        blake3="",
        # The counter of a sequence has no snapshot, whatever its engine.
        consistent=fact.transactional and fact.kind != "SEQUENCE",
        auto_increment=fact.auto_increment,
    )


def _warnings(table: TableFile) -> Iterator[Problem]:
    name = quoted(table.schema, table.table)
    if not table.file:
        yield Problem(
            "baseline-rows-left-out", f"{name} is of engine {table.engine}: its rows are kept elsewhere, and not here"
        )
    elif not table.consistent and table.kind != "SEQUENCE":
        yield Problem(
            "baseline-not-transactional",
            f"{name} is of engine {table.engine}: its rows are not of one moment, its steps cannot be rolled back",
            f"ALTER TABLE {name} ENGINE=InnoDB",
        )
    if table.kind == "SYSTEM VERSIONED":
        yield Problem("baseline-history-left-out", f"of {name} the current rows are kept, not their history")


def _let_go_of_locks(conn: pymysql.Connection[Any]) -> Iterator[Problem]:
    """Make metadata locks end with a savepoint, where the account may."""
    if not dialect(conn).savepoints_keep_locks:
        return
    try:
        with conn.cursor(Cursor) as cursor:
            cursor.execute("SET SESSION sql_log_bin = 0")
    except pymysql.err.OperationalError as error:
        if error.args[0] != ER.SPECIFIC_ACCESS_DENIED_ERROR:
            raise
        yield Problem(
            "baseline-holds-ddl",
            "while the baseline was made, DDL on tables that it had read had to wait for its end",
            f"to avoid that: GRANT {dialect(conn).privileges['log'][0]} ON *.* TO {_account(conn)}",
        )


def _account(conn: pymysql.Connection[Any]) -> str:
    """The account that is connected, as GRANT names it."""
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SELECT CURRENT_USER()")
        ((current,),) = cursor.fetchall()
    user, _, host = str(current).rpartition("@")
    return f"'{user}'@'{host}'"


def _begin(conn: pymysql.Connection[Any]) -> tuple[str, int, str]:
    """Begin the snapshot: its binlog file, offset and GTID set."""
    with conn.cursor(Cursor) as cursor:
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute("SHOW STATUS LIKE 'binlog_snapshot_%'")
        status = {str(name).lower(): str(value) for name, value in cursor.fetchall()}
        file, offset = status.get("binlog_snapshot_file", ""), int(status.get("binlog_snapshot_position") or 0)
        cursor.execute("SELECT BINLOG_GTID_POS(%s, %s)", (file, offset))
        row = cursor.fetchone()
    if not file or row is None or row[0] is None:
        raise AgentError(
            "baseline-position",
            f"the server does not say at which position the snapshot is ({file or 'no binlog file'}:{offset})",
            "switch the binary log on (log_bin), and grant BINLOG MONITOR to the account",
        )
    entries = sorted((e for e in str(row[0]).split(",") if e), key=lambda e: int(e.split("-")[0]))
    return file, offset, ",".join(entries)


def _begin_held(
    live: pymysql.Connection[Any], snapshot: pymysql.Connection[Any], source: SourceSettings
) -> tuple[str, int, str]:
    """The same where the server does not tell a snapshot's coordinate: nothing commits while it begins."""
    spoken = dialect(live)
    with live.cursor(Cursor) as cursor:
        cursor.execute(f"SET SESSION lock_wait_timeout = {HOLD_WAIT_S}")
        try:
            cursor.execute("FLUSH TABLES WITH READ LOCK")
        except pymysql.err.OperationalError as error:
            if error.args[0] != ER.LOCK_WAIT_TIMEOUT:
                raise
            raise AgentError(
                "baseline-busy",
                f"commits could not be held back within {HOLD_WAIT_S} s",
                "a long statement or LOCK TABLES holds it off: let it end, then add the source again",
            ) from error
        try:
            with snapshot.cursor(Cursor) as beginning:
                beginning.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            position = whereabouts.position(cursor, spoken)
            cursor.execute(spoken.log_status)
            row = cursor.fetchone()
        finally:
            cursor.execute("UNLOCK TABLES")
    assert row is not None, "the position was read, so there is a log"
    if is_file_position(position):
        at = parse_file_position(position)
        position = str(dataclasses.replace(at, created=file_created(source, at.server, at.file)))
    return str(row[0]), int(row[1]), position


def _variables(conn: pymysql.Connection[Any]) -> dict[str, str]:
    wanted = set(VARIABLES)
    rows = rows_of(conn, "SHOW GLOBAL VARIABLES")
    return {str(name): str(value) for name, value in rows if name in wanted}


_EMPTY_MEMBER: Final = re.compile(r"[(,]''[,)]")


def selection(definition: TableDefinition, float_as_double: str) -> tuple[list[str], list[str], list[str]]:
    """Columns to keep, their types, and what to select for each. A FLOAT as text loses bits, as DOUBLE it does not; where a
    member of an ENUM or SET is empty, text does not tell it from none."""
    columns, types, expressions = [], [], []
    for column in json.loads(definition.definition)["columns"]:
        if column["expression"] is not None:
            continue
        name = quoted(column["name"])
        columns.append(column["name"])
        types.append(column["type"])
        if column["type"].startswith("float"):
            name = float_as_double.format(name)
        elif column["type"].startswith(("enum", "set")) and _EMPTY_MEMBER.search(column["type"]):
            name = MEMBERS_AS_NUMBER.format(name)
        expressions.append(name)
    return columns, types, expressions


def raw_rows(conn: pymysql.Connection[Any], query: str) -> Iterator[bytes]:
    """The row packets of a query as they come. PyMySQL reads the head; decoding every value would cost far more."""
    with conn.cursor(SSCursor) as cursor:
        cursor.execute(query)
        result: Any = cursor._result  # type: ignore[attr-defined]
        read: Callable[[], Any] = conn._read_packet
        while result.unbuffered_active:
            packet = read()
            if result._check_packet_is_eof(packet):
                result.unbuffered_active = False
                result.connection = None
                break
            yield packet.get_all_data()


def _line(d: TableDefinition) -> dict[str, str]:
    return {
        "schema": d.schema,
        "table": d.table,
        "ddl": d.ddl,
        "definition": d.definition,
        "fingerprint": d.fingerprint.hex(),
    }
