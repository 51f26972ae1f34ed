"""The schema keeper: a version in `schema.<source>` for every step that defines something.

    capture     … 41 (ALTER)  42  43 (CREATE VIEW)  44 …
    schema      0 full, baseline     41 replayed: one table     43 replayed: no table

It is fed each such step in order by the indexer, before the granule with that step is published. What is recorded already
is known from the topic itself, so a step that comes again after a restart is not recorded again. And if we die here? With
the version half written (it may take several events): it does not count, and is written again.

A statement is replayed on a scratch server that holds the schema as of the step before. Where there is no server of the
source's series, or the replay fails, or that server does not reproduce a definition, the live schema is read instead and
the version says so (`origin` live): it may be that of a later step.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pymysql

from agents.errors import AgentError, SourceUnavailable
from agents.failpoints import failpoint
from agents.mysql.definitions import TableName, read_definitions, schema_version
from agents.schema.record import State, fold, split
from agents.schema.replay import concerns_tables, fill, replay
from agents.schema.scratch import Scratch, find_server, series
from streams.events import SchemaRecorded, TableDefinition
from streams.formats.binlog.events import Query
from streams.formats.binlog.statements import statement_text

RETRY_S = 2.0
_TEXT_LENGTH = 2000
_log = logging.getLogger("holdfast.schema")


class Origin:
    """What the keeper asks of the source: what kind of server it is, and its live schema when nothing else helps.

    Subclassed per platform (`agents.schema.origin`) and by tests. Every method may raise `SourceUnavailable`.
    """

    def variables(self) -> Mapping[str, str]:
        """Global settings, `version` among them."""
        raise NotImplementedError

    def databases(self) -> Mapping[str, str]:
        """Name → the statement that creates it, with its character set."""
        raise NotImplementedError

    def definitions(self) -> list[TableDefinition]:
        """The live schema."""
        raise NotImplementedError


class _NotReplayedError(Exception):
    """The scratch server is of no use for this statement."""


class Keeper:
    """Records versions of one lineage. Used by one thread; call `close`.

    `publish` takes the events of one version and returns when they are durable. `folder` is for the scratch server.
    """

    def __init__(
        self,
        source: str,
        lineage: str,
        recorded: Iterable[SchemaRecorded],
        origin: Origin,
        publish: Callable[[list[SchemaRecorded]], None],
        folder: Path,
        stop: threading.Event,
        *,
        server: Callable[[str], str | None] = find_server,
    ) -> None:
        self._source, self._lineage = source, lineage
        self._origin, self._publish, self._folder, self._stop = origin, publish, folder, stop
        self._server = server
        self._state = fold(e for e in recorded if e.lineage == lineage)
        self._scratch: Scratch | None = None
        self._conn: pymysql.Connection[Any] | None = None
        self._there: Mapping[TableName, TableDefinition] = {}  # what the scratch server holds
        self._unlike: frozenset[TableName] = frozenset()  # tables it does not reproduce
        self._no_server = False

    @property
    def state(self) -> State:
        """The schema as of the last version recorded."""
        return self._state

    def take(self, ordinal: int, queries: Iterable[Query], position: str, captured_us: int, epoch: int) -> bool:
        """Record what step `ordinal` defined, unless that is recorded; whether it was recorded now.

        Waits for a source that is away where it must be asked; gives up when `stop` is set (False: not recorded).
        """
        if ordinal <= self._state.ordinal:
            return False
        queries = list(queries)
        origin, tables = "replayed", dict(self._state.tables)
        full = self._state.ordinal < 0
        if full or any(concerns_tables(q.sql) for q in queries):
            try:
                if full:
                    raise _NotReplayedError("nothing was recorded before")
                tables = self._replayed(queries)
            except (_NotReplayedError, pymysql.err.MySQLError, AgentError, OSError) as error:
                _log.warning("%s: step %d is not replayed: %s", self._source, ordinal, error)
                self.close()
                live = self._live()
                if live is None:
                    return False
                origin, tables = "live", {(d.schema, d.table): d for d in live}
        failpoint("schema.read")
        known = self._state.tables
        event = SchemaRecorded(
            lineage=self._lineage,
            epoch=epoch,
            source=self._source,
            ordinal=ordinal,
            position=position,
            full=full,
            origin=origin,
            statement="; ".join(statement_text(q.sql) for q in queries)[:_TEXT_LENGTH],
            tables=tuple(d for name, d in sorted(tables.items()) if full or known.get(name) != d),
            dropped=tuple(sorted(".".join(name) for name in known if name not in tables)),
            version=schema_version(tables.values()),
            at_us=captured_us,
        )
        self._publish(list(split(event)))
        failpoint("schema.recorded")
        self._state = State(ordinal, tables)
        return True

    def _replayed(self, queries: Iterable[Query]) -> dict[TableName, TableDefinition]:
        """All tables after the statements. Raises when that is not to be had."""
        conn = self._ready()
        for query in queries:
            if concerns_tables(query.sql):
                replay(conn, query)
        now = {(d.schema, d.table): d for d in read_definitions(conn)}
        tables = dict(self._state.tables)
        for name in now.keys() | self._there.keys():
            if now.get(name) == self._there.get(name):
                continue
            if name in self._unlike:
                raise _NotReplayedError(f"the scratch server does not have {'.'.join(name)} as it was")
            definition = now.get(name)
            if definition is None:
                tables.pop(name, None)
            else:
                tables[name] = definition
        self._there = now
        return tables

    def _ready(self) -> pymysql.Connection[Any]:
        """The scratch server, holding the schema of the last version."""
        if self._scratch is not None and self._conn is not None and self._scratch.alive:
            return self._conn
        self.close()
        if self._no_server:
            raise _NotReplayedError("there is no server program of its series here")
        variables = self._origin.variables()
        wanted = series(variables.get("version", ""))
        program = self._server(wanted) if wanted else None
        if program is None:
            self._no_server = True
            _log.warning(
                "%s: there is no server of series %r here to replay definitions on (PATH, HOLDFAST_MARIADBD, "
                "HOLDFAST_MYSQLD): the live schema is read instead, which may be that of a later step",
                self._source,
                wanted,
            )
            raise _NotReplayedError(f"there is no server program of series {wanted!r} here")
        self._scratch = Scratch(program, self._folder, variables)
        self._conn = self._scratch.connect()
        self._unlike = fill(self._conn, self._origin.databases(), self._state.tables)
        for name in sorted(self._unlike):
            _log.warning("%s: the scratch server does not reproduce %s", self._source, ".".join(name))
        self._there = {(d.schema, d.table): d for d in read_definitions(self._conn)}
        return self._conn

    def _live(self) -> list[TableDefinition] | None:
        while not self._stop.is_set():
            try:
                return self._origin.definitions()
            except SourceUnavailable as error:
                _log.warning("%s: waiting for the source, whose schema must be read: %s", self._source, error)
                self._stop.wait(RETRY_S)
        return None

    def close(self) -> None:
        """Stop the scratch server. The keeper may be used on: it starts another when it needs one."""
        if self._conn is not None:
            with contextlib.suppress(pymysql.err.MySQLError, OSError):
                self._conn.close()
        if self._scratch is not None:
            self._scratch.close()
        self._conn = self._scratch = None
        self._there, self._unlike = {}, frozenset()
