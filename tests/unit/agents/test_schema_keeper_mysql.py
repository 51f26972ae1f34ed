"""The schema keeper on MySQL: every version it records by replaying is the schema that the source had at that step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.mysql.definitions import schema_version
from agents.mysql.dialects import dialect
from agents.schema.record import fold
from agents.schema.scratch import find_server, series
from deploy.demo.server import DatabaseServer
from streams.formats.binlog.events import parse_format_description
from streams.formats.binlog.step import split_steps
from tests.stack.servers import program_of
from tests.unit.agents.test_schema_keeper import Log, feed, live

COMMON = r"""
CREATE DATABASE shop CHARACTER SET latin1
USE shop
CREATE TABLE a(id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(20), at TIMESTAMP NOT NULL DEFAULT '2020-01-01 12:00:00') ENGINE=InnoDB
SET time_zone = '-05:00'
CREATE TABLE b(id INT PRIMARY KEY, a INT, at TIMESTAMP NOT NULL DEFAULT '2020-01-01 12:00:00', CONSTRAINT to_a FOREIGN KEY (a) REFERENCES a(id) ON DELETE SET NULL) ENGINE=InnoDB
SET sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT'
CREATE TABLE "c d"("x ""y" INT, "z" VARCHAR(40), UNIQUE KEY "u k" ("z"(7)))
SET sql_mode = DEFAULT
CREATE TABLE copied SELECT 1 AS one, 'x' AS two
CREATE TABLE similar LIKE b
ALTER DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
CREATE TABLE in_new_charset(v VARCHAR(10))
CREATE TRIGGER bite BEFORE INSERT ON a FOR EACH ROW SET NEW.name = CONCAT('a;b', NEW.name)
CREATE TABLE parts(id INT, at DATE) PARTITION BY RANGE (YEAR(at)) (PARTITION p0 VALUES LESS THAN (2020), PARTITION p1 VALUES LESS THAN MAXVALUE)
ALTER TABLE parts DROP PARTITION p0
CREATE VIEW seen AS SELECT * FROM a
CREATE UNIQUE INDEX uniquely ON a(name)
RENAME TABLE similar TO other_name
DROP INDEX uniquely ON a
DROP TRIGGER bite
DROP TABLE IF EXISTS f, g
ALTER TABLE b DROP FOREIGN KEY to_a, DROP KEY to_a
DROP TABLE copied, other_name
TRUNCATE TABLE a
"""  # noqa: E501
MORE = {
    "mysql-5.5": "",
    "mysql-9": r"""
ALTER TABLE a ADD COLUMN note JSON, RENAME COLUMN name TO title
ALTER TABLE a ADD UNIQUE KEY by_expression ((upper(title)))
CREATE TABLE gen(id INT PRIMARY KEY, s INT AS (id * 2) STORED, v INT AS (id + 1) VIRTUAL, h INT DEFAULT 3, CHECK (h > 0))
ALTER TABLE gen ALTER COLUMN h SET INVISIBLE
SET default_collation_for_utf8mb4 = utf8mb4_general_ci
CREATE TABLE by_default(v VARCHAR(10) CHARACTER SET utf8mb4)
SET explicit_defaults_for_timestamp = OFF
CREATE TABLE stamps(at TIMESTAMP)
SET SESSION sql_generate_invisible_primary_key = ON
CREATE TABLE keyed_by_the_server(v INT)
""",
}


def steps_of(server: DatabaseServer, statements: list[str]) -> tuple[bytes, list[bytes], list[bytes]]:
    """Carries out statements on one connection: the preamble, the steps that came of them, the schema after each step."""
    versions: list[bytes] = []
    server.execute("FLUSH LOGS")
    with contextlib.closing(server.connect()) as conn, conn.cursor() as cursor:
        status = dialect(conn).log_status
        file = server.execute(status)[0][0]
        for statement in statements:
            before = server.execute(status)
            cursor.execute(statement)
            if server.execute(status) != before:
                versions.append(schema_version(live(server)))
    server.execute("FLUSH LOGS")
    data = (server.datadir / file).read_bytes()
    length = int.from_bytes(data[13:17], "little")
    preamble = data[4 : 4 + length]
    steps = [bytes(s) for s in split_steps(parse_format_description(preamble), data[4 + length :])]
    assert len(steps) == len(versions)
    return preamble, steps, versions


@pytest.mark.parametrize("name", ["mysql-9", "mysql-5.5"])
def test_every_version_is_the_schema_the_source_had(
    make_database: Callable[..., DatabaseServer], name: str, tmp_path: Path
) -> None:
    source = make_database(name)
    preamble, steps, versions = steps_of(source, [s for s in (COMMON + MORE[name]).splitlines() if s])
    program = program_of(source, tmp_path)
    assert series(source.execute("SELECT VERSION()")[0][0]) == "MySQL " + source.version.rpartition(".")[0]
    log = Log(source, tmp_path, server=lambda wanted: find_server(wanted, program))
    log.start([])
    with contextlib.closing(log.keeper()) as keeper:
        recorded = feed(keeper, preamble, steps)
    assert len(recorded) > 15
    wrong = [(e.ordinal, e.statement) for e in log.events[1:] if e.version != versions[e.ordinal - 1]]
    assert wrong == []
    assert [(e.ordinal, e.statement) for e in log.events[1:] if e.origin != "replayed"] == []
    assert log.origin.asked == 0, "the live schema was never needed"
    assert fold(log.events).version == schema_version(live(source))
