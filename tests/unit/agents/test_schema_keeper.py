"""The schema as it is replayed from the log is the schema of the source, step by step, whatever the session it came from."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from agents.errors import SourceUnavailable
from agents.mysql.definitions import SYSTEM_SCHEMAS, quoted, read_definitions, schema_version
from agents.schema.keeper import Keeper, Origin
from agents.schema.record import EVENT_BYTES, fold, split
from agents.schema.replay import concerns_tables, definitions_in
from agents.schema.scratch import find_server
from deploy.demo.mariadb import MariaDB
from deploy.demo.server import DatabaseServer
from streams.events import SchemaRecorded, TableDefinition
from streams.formats.binlog.events import parse_format_description
from streams.formats.binlog.step import split_steps, summarise

# One a line; the session's own settings among them. Ends with the same result as if only replayed in the right sessions.
STATEMENTS = r"""
CREATE DATABASE shop CHARACTER SET latin1
USE shop
CREATE TABLE a(id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(20), at TIMESTAMP NOT NULL DEFAULT '2020-01-01 12:00:00')
SET time_zone = '-05:00'
CREATE TABLE b(id INT PRIMARY KEY, a INT, at TIMESTAMP NOT NULL DEFAULT '2020-01-01 12:00:00', CONSTRAINT to_a FOREIGN KEY (a) REFERENCES a(id) ON DELETE SET NULL)
SET sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT'
CREATE TABLE "c d"("x ""y" INT, "z" VARCHAR(40) AS ("x ""y" || 'w') STORED, UNIQUE KEY "u k" ("z"(7)))
SET sql_mode = DEFAULT
SET NAMES latin1
CREATE TABLE e(v ENUM('\xe4','b') DEFAULT '\xe4')
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci
ALTER TABLE a ADD COLUMN note TEXT, ADD KEY (id), RENAME COLUMN name TO title
CREATE TABLE copied SELECT 1 AS one, 'x' AS two
CREATE TABLE similar LIKE b
ALTER DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
CREATE TABLE in_new_charset(v VARCHAR(10))
CREATE TRIGGER bite BEFORE INSERT ON a FOR EACH ROW SET NEW.title = CONCAT('a;b', NEW.title)
CREATE SEQUENCE numbers INCREMENT BY 7
CREATE TABLE history(id INT PRIMARY KEY, v INT) WITH SYSTEM VERSIONING
CREATE TABLE parts(id INT, at DATE) PARTITION BY RANGE (YEAR(at)) (PARTITION p0 VALUES LESS THAN (2020), PARTITION p1 VALUES LESS THAN MAXVALUE)
ALTER TABLE parts DROP PARTITION p0
CREATE VIEW seen AS SELECT * FROM a
CREATE PROCEDURE doing() BEGIN SELECT 1; CREATE TEMPORARY TABLE nothing(x INT); END
CREATE FUNCTION giving() RETURNS INT DETERMINISTIC RETURN 2
CREATE EVENT yearly ON SCHEDULE EVERY 1 YEAR DISABLE DO SELECT 1
CREATE UNIQUE INDEX uniquely ON a(title)
RENAME TABLE similar TO other_name
SET foreign_key_checks = 0
CREATE TABLE child(id INT, parent INT, FOREIGN KEY (parent) REFERENCES not_yet(id))
CREATE TABLE not_yet(id INT PRIMARY KEY)
SET foreign_key_checks = 1
CREATE OR REPLACE TABLE e(w SET('1','2'), CHECK (w <> ''))
SET STATEMENT sql_mode = '' FOR CREATE TABLE f(d DATETIME DEFAULT '0000-00-00 00:00:00')
CREATE TABLE `tab``le ünï`(`ö` INT COMMENT 'it''s; fine')
TRUNCATE TABLE copied
ALTER TABLE a ALTER COLUMN title SET DEFAULT 'none', COMMENT = 'changed'
DROP INDEX uniquely ON a
DROP TRIGGER bite
CREATE DATABASE passing
CREATE TABLE passing.one(id INT)
ALTER TABLE passing.one RENAME shop.moved
CREATE TABLE passing.two(id INT)
DROP DATABASE passing
DROP TABLE IF EXISTS f, g
DROP TABLE copied, other_name
DROP SEQUENCE numbers
ALTER TABLE b DROP FOREIGN KEY to_a, DROP KEY to_a
CREATE DATABASE holdfast
CREATE TABLE holdfast.marker(id INT)
DROP DATABASE holdfast
CREATE USER somebody IDENTIFIED BY 'hidden'
DROP USER somebody
SET SESSION system_versioning_alter_history = KEEP
ALTER TABLE history ADD COLUMN w INT
"""  # noqa: E501


class Live(Origin):
    """A source as the keeper asks it."""

    def __init__(self, server: DatabaseServer) -> None:
        self.server = server
        self.asked = 0
        self.away = 0

    def variables(self) -> dict[str, str]:
        return {str(n): str(v) for n, v in self.server.execute("SHOW GLOBAL VARIABLES")}

    def databases(self) -> dict[str, str]:
        return {}

    def definitions(self) -> list[TableDefinition]:
        if self.away:
            self.away -= 1
            raise SourceUnavailable("source-unreachable", "away")
        self.asked += 1
        return live(self.server)


def live(server: DatabaseServer) -> list[TableDefinition]:
    with contextlib.closing(server.connect()) as conn:
        return read_definitions(conn)


@pytest.fixture
def source(mariadb: MariaDB) -> Iterator[MariaDB]:
    yield mariadb
    for (schema,) in mariadb.execute("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA"):
        if schema not in SYSTEM_SCHEMAS:
            mariadb.execute(f"DROP DATABASE {quoted(schema)}")


class Log:
    """The schema topic, as far as a keeper sees it."""

    def __init__(
        self, source: DatabaseServer, tmp_path: Path, server: Callable[[str], str | None] = find_server
    ) -> None:
        self.events: list[SchemaRecorded] = []
        self.origin = Live(source)
        self.path, self.server = tmp_path, server

    def keeper(self) -> Keeper:
        def publish(version: list[SchemaRecorded]) -> None:
            self.events += version

        stop = threading.Event()
        return Keeper(
            "shop", "l", list(self.events), self.origin, publish, self.path / "scratch", stop, server=self.server
        )

    def start(self, definitions: list[TableDefinition]) -> None:
        self.events = [
            SchemaRecorded(
                lineage="l",
                source="shop",
                ordinal=0,
                position="",
                full=True,
                origin="baseline",
                statement="",
                tables=tuple(definitions),
                version=schema_version(definitions),
                at_us=0,
            )
        ]


def steps_of(server: MariaDB, statements: list[str]) -> tuple[bytes, list[bytes], list[bytes]]:
    """Carries out statements on one connection: the preamble, the steps that came of them, the schema after each step."""
    server.execute("FLUSH BINARY LOGS")
    file = server.execute("SHOW MASTER STATUS")[0][0]
    versions: list[bytes] = []
    with contextlib.closing(server.connect()) as conn, conn.cursor() as cursor:
        for statement in statements:
            before = server.execute("SELECT @@gtid_binlog_pos")
            cursor.execute(statement.encode().replace(b"\\xe4", b"\xe4"))
            if server.execute("SELECT @@gtid_binlog_pos") != before:
                versions.append(schema_version(live(server)))
    server.execute("FLUSH BINARY LOGS")
    data = (server.datadir / file).read_bytes()
    length = int.from_bytes(data[13:17], "little")
    preamble = data[4 : 4 + length]
    steps = [bytes(s) for s in split_steps(parse_format_description(preamble), data[4 + length :])]
    assert len(steps) == len(versions)
    return preamble, steps, versions


def feed(keeper: Keeper, preamble: bytes, steps: list[bytes], first: int = 1) -> list[int]:
    """As the indexer does; the ordinals that were recorded now."""
    done = []
    for ordinal, step in enumerate(steps, first):
        summary = summarise(preamble, step)
        if summary.kind == "ddl" and not summary.own:
            queries = definitions_in(parse_format_description(preamble), step)
            if keeper.take(ordinal, queries, summary.gtid, 7, 1):
                done.append(ordinal)
    return done


@pytest.mark.parametrize("mariadb", ["10.11", "11.4"], indirect=True)
def test_every_version_is_the_schema_the_source_had(source: MariaDB, tmp_path: Path) -> None:
    preamble, steps, versions = steps_of(source, STATEMENTS.strip().splitlines())
    program = source.installation.server[0]
    log = Log(source, tmp_path, server=lambda series: find_server(series, program))
    log.start([])
    with contextlib.closing(log.keeper()) as keeper:
        recorded = feed(keeper, preamble, steps)
    assert len(recorded) > 35
    assert [e.ordinal for e in log.events[1:]] == recorded
    wrong = [(e.ordinal, e.statement) for e in log.events[1:] if e.version != versions[e.ordinal - 1]]
    assert wrong == []
    assert [(e.ordinal, e.statement) for e in log.events[1:] if e.origin != "replayed"] == []
    assert log.origin.asked == 0, "the live schema was never needed"
    assert fold(log.events).version == schema_version(live(source))
    assert "hidden" not in repr(log.events)
    assert not (tmp_path / "scratch").exists()


def test_a_new_scratch_server_takes_up_where_the_topic_ends(source: MariaDB, tmp_path: Path) -> None:
    statements = [s for s in STATEMENTS.strip().splitlines() if "ALTER DATABASE" not in s and "NAMES latin1" not in s]
    statements = [s for s in statements if "\\xe4" not in s]
    preamble, steps, versions = steps_of(source, statements)
    log = Log(source, tmp_path)
    log.start([])
    databases = {"shop": "CREATE DATABASE shop CHARACTER SET latin1"}
    log.origin.databases = lambda: databases  # type: ignore[method-assign]
    size = 5
    for at in range(0, len(steps), size):
        # Everything from the beginning again: what is recorded is not recorded again.
        with contextlib.closing(log.keeper()) as keeper:
            feed(keeper, preamble, steps[: at + size])
    ordinals = [e.ordinal for e in log.events]
    assert ordinals == sorted(set(ordinals))
    wrong = [(e.ordinal, e.statement) for e in log.events[1:] if e.version != versions[e.ordinal - 1]]
    assert wrong == []
    assert {e.origin for e in log.events[1:]} == {"replayed"}


def test_without_a_server_the_live_schema_is_read_and_said_to_be(source: MariaDB, tmp_path: Path) -> None:
    preamble, steps, _ = steps_of(source, STATEMENTS.strip().splitlines()[:12])
    log = Log(source, tmp_path, server=lambda series: None)
    log.start([])
    log.origin.away = 1
    with contextlib.closing(log.keeper()) as keeper:
        feed(keeper, preamble, steps)
    assert log.origin.asked > 0
    changing = [e for e in log.events[1:] if e.tables or e.dropped]
    assert {e.origin for e in changing} == {"live"}
    assert fold(log.events).version == schema_version(live(source))


def test_a_statement_that_fails_there_is_read_live_and_the_next_is_replayed(source: MariaDB, tmp_path: Path) -> None:
    source.execute("CREATE DATABASE shop", "CREATE TABLE shop.unseen(id INT)")
    preamble, steps, versions = steps_of(
        source, ["ALTER TABLE shop.unseen ADD COLUMN v INT", "CREATE TABLE shop.next(id INT)"]
    )
    log = Log(source, tmp_path)
    log.start([])  # a baseline that lacks the table: what cannot happen, and must not go unnoticed
    with contextlib.closing(log.keeper()) as keeper:
        feed(keeper, preamble, steps)
    assert [(e.origin, sorted(t.table for t in e.tables)) for e in log.events[1:]] == [
        ("live", ["next", "unseen"]),
        ("live", []),
    ]
    more = steps_of(source, ["CREATE TABLE shop.third(id INT)"])
    with contextlib.closing(log.keeper()) as keeper:
        feed(keeper, more[0], more[1], 3)
    assert [(e.origin, [t.table for t in e.tables]) for e in log.events[3:]] == [("replayed", ["third"])]
    assert log.events[-1].version == more[2][-1] != versions[0]


def test_a_killed_scratch_server_is_replaced(source: MariaDB, tmp_path: Path) -> None:
    preamble, steps, versions = steps_of(
        source, ["CREATE DATABASE shop", "CREATE TABLE shop.a(id INT)", "ALTER TABLE shop.a ADD COLUMN b INT"]
    )
    log = Log(source, tmp_path)
    log.start([])
    with contextlib.closing(log.keeper()) as keeper:
        feed(keeper, preamble, steps[:2])
        assert keeper._scratch is not None
        keeper._scratch._process.kill()
        keeper._scratch._process.wait()
        feed(keeper, preamble, steps[2:], 3)
    assert log.events[-1].version == versions[-1]
    assert log.events[-1].origin == "replayed"


def test_a_version_too_large_for_one_event_counts_when_it_is_whole(source: MariaDB) -> None:
    tables = [TableDefinition("s", f"t{n}", "d" * 90_000, "{}", bytes([n] * 32)) for n in range(100)]
    event = SchemaRecorded(
        lineage="l",
        source="shop",
        ordinal=0,
        position="",
        full=True,
        origin="baseline",
        statement="",
        tables=tuple(tables),
        version=schema_version(tables),
        at_us=0,
    )
    parts = list(split(event))
    assert len(parts) == 3
    assert all(sum(len(t.ddl) for t in p.tables) < EVENT_BYTES for p in parts)
    assert fold(parts[:2]).ordinal == -1
    assert fold(parts[:2] + parts).version == event.version
    assert len(fold(parts).tables) == 100


@pytest.mark.parametrize(
    ("sql", "does"),
    [
        ("CREATE TABLE t(a INT)", True),
        ("CREATE OR REPLACE DEFINER=`TABLE`@`x` VIEW v AS SELECT 1 FROM `TABLE`", False),
        ("CREATE DEFINER=root@localhost PROCEDURE p() ALTER TABLE t ADD x INT", False),
        ("CREATE DEFINER=root@localhost TRIGGER t BEFORE INSERT ON a FOR EACH ROW SET @a=1", True),
        ("alter ignore table t add x int", True),
        ("/*!40000 ALTER TABLE t DISABLE KEYS */", True),
        ("RENAME TABLE a TO b", True),
        ("RENAME USER a TO b", False),
        ("TRUNCATE TABLE t", False),
        ("DROP FUNCTION f", False),
        ("CREATE FUNCTION f RETURNS STRING SONAME 'x.so'", False),
        ("CREATE UNIQUE INDEX i ON t(a)", True),
        ("DROP SCHEMA s", True),
        ("CREATE SOMETHING NEW", True),
    ],
)
def test_which_statements_can_change_a_table(sql: str, does: bool) -> None:
    assert concerns_tables(sql.encode()) is does


def test_definitions_are_read_the_same_in_any_session(source: MariaDB) -> None:
    source.execute(
        "CREATE DATABASE shop",
        "CREATE TABLE shop.t(id INT, at TIMESTAMP NOT NULL DEFAULT '2020-01-01 12:00:00', g INT AS (`id` + 1))",
    )
    plain = live(source)
    with contextlib.closing(source.connect()) as conn, conn.cursor() as cursor:
        cursor.execute("SET SESSION time_zone = '+09:00', sql_mode = 'ANSI', sql_quote_show_create = 0")
        assert read_definitions(conn) == plain
        cursor.execute("SELECT @@time_zone, @@sql_quote_show_create, @@sql_mode LIKE '%ANSI%'")
        assert cursor.fetchone() == ("+09:00", 0, 1)
    with pytest.raises(pymysql.err.MySQLError):
        source.execute("CREATE TABLE shop.t(id INT)")
