"""A private server replays the captured log by its own replication, up to any step: every table is what it was then."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agents.baseline import load, making
from agents.baseline.manifest import read_manifest
from agents.errors import AgentError
from agents.mysql.private import PrivateServer
from agents.mysql.replay import replay
from agents.mysql.replayer import give_owners, keep_only, parents
from agents.protocol import SourceSettings
from agents.replay.chosen import Chosen, needed
from agents.replay.feed import Served, gtid_of
from agents.replay.gather import MOST_STEPS, gathered
from agents.schema.scratch import find_server, series
from agents.scratch.keeper import free_port
from deploy.demo.mariadb import MariaDB
from streams.capture_log import Wanted
from streams.formats.binlog import events as ev
from streams.formats.binlog.rows import KINDS
from streams.formats.binlog.statements import is_account_statement
from tests.stack.contents import everything
from tests.stack.servers import Scratch, start_mariadb
from tests.stand_ins import walk_load
from tests.stand_ins.binlog_log import BinlogLog, FileStep, after_steps

GRANTS = "SELECT, SHOW VIEW, TRIGGER, EVENT, REPLICATION SLAVE, BINLOG MONITOR"
DEFINITIONS = (
    "CREATE TABLE IF NOT EXISTS walk.made_{n} (id INT PRIMARY KEY, v VARCHAR(20)) ENGINE=InnoDB",
    "INSERT INTO walk.made_{n} SELECT id, a FROM walk.plain LIMIT 5",
    "ALTER TABLE walk.plain ADD COLUMN extra_{n} INT DEFAULT {n} FIRST",
    "ALTER TABLE walk.plain DROP COLUMN extra_{n}",
    "CREATE OR REPLACE VIEW walk.seen AS SELECT id, n + {n} AS n FROM walk.plain",
    "CREATE OR REPLACE PROCEDURE walk.act() BEGIN SELECT {n}; END",
    "CREATE OR REPLACE FUNCTION walk.calc(a INT) RETURNS INT DETERMINISTIC RETURN a + {n}",
    "CREATE OR REPLACE EVENT walk.later ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01' DO DELETE FROM walk.bare WHERE a = {n}",
    "CREATE OR REPLACE TRIGGER walk.bare_i BEFORE INSERT ON walk.bare FOR EACH ROW SET NEW.a = NEW.a + {n}",
    "TRUNCATE TABLE walk.made_{n}",
    "RENAME TABLE walk.made_{n} TO walk.called_{n}",
    "DROP TABLE walk.called_{n}",
    "CREATE TABLE walk.copied_{n} AS SELECT * FROM walk.pair",
    "CREATE USER IF NOT EXISTS somebody_{n} IDENTIFIED BY 'secret {n}'",
    "DROP USER IF EXISTS somebody_{n}",
)
# Logged as statements: what they did depends on what their events carry of the session.
STATEMENTS = (
    "SET SESSION binlog_format = 'STATEMENT', time_zone = '+05:00', @kept = 'v{n}', sql_mode = 'ANSI_QUOTES'",
    "INSERT INTO walk.told (v, at, r) VALUES (@kept, NOW(6), RAND())",
    "INSERT INTO walk.told (v, n) VALUES ('v', LAST_INSERT_ID())",
    "CREATE TEMPORARY TABLE walk.passing SELECT v FROM walk.told",
    "INSERT INTO walk.told (v) SELECT CONCAT(LEFT(v, 9), ' again') FROM walk.passing ORDER BY v LIMIT 3",
    "DROP TEMPORARY TABLE walk.passing",
)


@dataclass
class Source:
    """A server with a baseline, and what was in it after which step."""

    server: MariaDB
    folder: Path
    log: BinlogLog
    start: str
    states: dict[int, dict[str, Any]] = field(default_factory=dict)

    def remember(self) -> None:
        with contextlib.closing(self.server.connect()) as conn:
            self.states[self.log.tail().ordinal] = everything(conn, "walk")


class Sealed(BinlogLog):
    """The log as a reader without the site key has it: account statements alone in their record, sealed."""

    def steps(
        self, lineage: str, first: int, last: int, near: int | None = None, wanted: Wanted | None = None
    ) -> Iterator[FileStep]:
        for step in super().steps(lineage, first, last, near, wanted):
            assert step.payload is not None
            accounts = b"USER" in step.payload and is_account_statement(_statement(step.payload))
            if accounts:
                after = after_steps(self._base, [earlier.gtid for earlier in self.recorded[: step.ordinal]])
                step = dataclasses.replace(step, payload=None, accounts=True, position_after=after)
            yield step


def _statement(payload: bytes) -> bytes:
    at = payload.find(b"CREATE USER")
    at = payload.find(b"DROP USER") if at < 0 else at
    return payload[at:-4] if at >= 0 else b""


@pytest.fixture(scope="module", params=["10.11", "11.4"])
def mariadb(request: pytest.FixtureRequest) -> Iterator[MariaDB]:
    """One of its own: its GTIDs get a second domain."""
    scratch = Scratch("replay")
    server = start_mariadb(scratch.path, request.param)
    try:
        yield server
    finally:
        server.stop()
        scratch.remove()


@pytest.fixture(scope="module")
def source(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    mariadb.execute(*walk_load.STATEMENTS, "CREATE TABLE walk.apart (n INT)",
        "CREATE TABLE walk.single (id INT PRIMARY KEY)",
        "CREATE TABLE walk.told (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(200), n INT, at TIMESTAMP(6) NULL, r DOUBLE)",
    )  # fmt: skip
    seed = int(os.environ.get("WALK_SEED", random.randrange(1 << 30)))
    print(f"WALK_SEED={seed}")
    rng = random.Random(seed)
    work = walk_load.Load(mariadb.connect(), rng)
    for _ in range(30):
        work.transaction()
    mariadb.execute(f"GRANT {GRANTS} ON *.* TO capture@'127.0.0.1' IDENTIFIED BY 'secret'")
    settings = SourceSettings("shop", "mariadb", "127.0.0.1", mariadb.port, accounts={"capture": "capture"},
                              passwords={"capture": "secret"})  # fmt: skip
    log = Sealed(mariadb.connect(), mariadb.datadir)
    made, manifest = making.make(settings, folder, baseline="b1", lineage=log.lineage, job="j1")
    found = Source(mariadb, made, log, manifest.position)
    found.remember()
    for n in range(1, 5):
        for statement in DEFINITIONS:
            for _ in range(rng.randrange(4)):
                work.transaction()
            mariadb.execute(statement.format(n=n))
            if rng.random() < 0.3:
                found.remember()
            if rng.random() < 0.2:
                mariadb.execute(*(statement.format(n=n) for statement in STATEMENTS))
                mariadb.execute("SET SESSION gtid_domain_id = 3", f"INSERT INTO walk.apart VALUES ({n})")
    found.remember()
    mariadb.execute(*(f"INSERT INTO walk.single VALUES ({n})" for n in range(2 * MOST_STEPS)))
    found.remember()
    return found


def built(source: Source, folder: Path, tables: frozenset[tuple[str, str]] | None = None) -> PrivateServer:
    """A private server with the source's baseline, running as a replica would."""
    manifest = read_manifest(source.folder)
    program = find_server(series(manifest.server_version), source.server.installation.server[0])
    assert program is not None
    server = PrivateServer(program, folder, manifest.variables, port=free_port())
    server.create()
    server.start_filling()
    with contextlib.closing(server.connect()) as conn:
        load.load(conn, source.folder, tables=tables)
        give_owners(conn)
    return server


def served(source: Source, last: int) -> Served:
    return Served(source.log, source.log.lineage, source.start, last, version=source.server.version)  # type: ignore[arg-type]


def test_a_copy_is_the_source_at_every_step_that_was_remembered(source: Source, tmp_path: Path) -> None:
    server = built(source, tmp_path / "copy")
    try:
        for ordinal in sorted(source.states):
            reached = replay(server, served(source, ordinal))
            assert reached == served(source, ordinal).position()
            with contextlib.closing(server.connect()) as conn:
                assert everything(conn, "walk") == source.states[ordinal], f"step {ordinal}"
    finally:
        server.stop()


def test_transactions_that_are_put_together_are_the_same_rows_in_the_same_order(source: Source) -> None:
    steps = list(source.log.steps(source.log.lineage, 1, source.log.tail().ordinal))
    together = list(gathered(steps))  # type: ignore[arg-type]
    assert len(together) < len(steps) - MOST_STEPS
    assert _rows(together) == _rows(steps)
    by_ordinal = {step.ordinal: step for step in steps}
    for step in together:
        alone = by_ordinal[step.ordinal].payload
        assert step.payload == alone or gtid_of(step.payload or b"") == gtid_of(alone or b""), "where the last one ends"
    # What is more than rows stands alone.
    kinds = [{e.type for e in ev.iter_events(s.payload or b"", True)} for s in together if s.payload]
    rows_only = {ev.GTID, ev.ANNOTATE_ROWS, ev.TABLE_MAP, ev.XID, *KINDS}
    assert {step.ordinal for step, found in zip([s for s in together if s.payload], kinds, strict=True)
            if not found <= rows_only} == {step.ordinal for step in steps if step.payload
            and not {e.type for e in ev.iter_events(step.payload, True)} <= rows_only}  # fmt: skip


def _rows(steps: list[Any]) -> list[bytes]:
    return [
        step.payload[e.offset : e.offset + e.length]
        for step in steps
        if step.payload
        for e in ev.iter_events(step.payload, True)
        if e.type in KINDS or e.type == ev.TABLE_MAP
    ]


def test_a_step_that_does_not_fit_is_named_though_others_were_put_together_with_it(
    source: Source, tmp_path: Path
) -> None:
    server = built(source, tmp_path / "copy")
    last = source.log.tail().ordinal
    struck = last - MOST_STEPS // 2  # in the middle of what is put together
    try:
        with contextlib.closing(server.connect()) as conn, conn.cursor() as cursor:
            cursor.execute("INSERT INTO walk.single VALUES (%s)", (2 * MOST_STEPS - 1 - MOST_STEPS // 2,))
        with pytest.raises(AgentError) as stopped:
            replay(server, served(source, last))
        assert stopped.value.code == "replay-failed"
        assert f" at {served(source, struck - 1).position()}: " in str(stopped.value)
    finally:
        server.stop()


def test_some_tables_are_had_alone_with_what_they_need(source: Source, tmp_path: Path) -> None:
    log, lineage = source.log, source.log.lineage

    def alone(last: int) -> bool:
        try:
            return all(True for _ in Chosen(log, frozenset()).steps(lineage, 1, last))  # type: ignore[arg-type]
        except AgentError as error:
            if error.code != "tables-not-alone":
                raise
            return False

    # Up to where rows were first logged as a statement.
    ordinal = max(o for o in source.states if alone(o))
    asked = [("walk", name) for name in ("plain", "child", "copied_1", "tree") if name in source.states[ordinal]]
    wanted = needed(log, lineage, ordinal, asked, parents(source.folder))  # type: ignore[arg-type]
    assert wanted == {*asked, ("walk", "parent")}
    everywhere = needed(log, lineage, log.tail().ordinal, [("walk", "called_1")], ())  # type: ignore[arg-type]
    assert everywhere == {("walk", "called_1"), ("walk", "made_1")}
    server = built(source, tmp_path / "copy", wanted)
    try:
        replay(server, dataclasses.replace(served(source, ordinal), log=Chosen(log, wanted)))  # type: ignore[arg-type]
        with contextlib.closing(server.connect()) as conn:
            assert keep_only(conn, wanted) == wanted
            found = everything(conn, "walk")
        tables = {table for _, table in wanted}
        assert {name: found[name] for name in tables} == {name: source.states[ordinal][name] for name in tables}
        assert not {"pair", "uniq", "seen"} & set(found)
    finally:
        server.stop()
