"""A baseline of a busy server is the server at its position: loaded elsewhere and brought forward by the server's own
replication from exactly that position, it ends as the source does."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from agents.baseline import load, making, rows
from agents.baseline.manifest import MANIFEST, clean, definitions, find, folder_of, read_manifest, verify
from agents.errors import AgentError
from agents.mysql.definitions import SYSTEM_SCHEMAS, quoted, read_definitions, schema_version
from agents.protocol import SourceSettings
from deploy.demo.mariadb import MariaDB

KINDS = r"""
CREATE DATABASE shop CHARACTER SET utf8mb4
CREATE DATABASE `o'd"d` CHARACTER SET latin1
CREATE TABLE shop.customer(id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(50) NOT NULL, UNIQUE KEY prefix(name(10)))
CREATE TABLE shop.orders(id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, customer INT, total DECIMAL(10,2), twice DECIMAL(10,2) AS (total * 2) VIRTUAL, thrice DECIMAL(10,2) AS (total * 3) STORED, at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), hidden INT INVISIBLE DEFAULT 3, note JSON, FOREIGN KEY (customer) REFERENCES shop.customer(id) ON DELETE CASCADE)
CREATE TABLE shop.types(id INT PRIMARY KEY AUTO_INCREMENT, f FLOAT, f2 FLOAT(7,2), d DOUBLE, b BIT(11), y YEAR, t TIME(3), dt DATETIME, ts TIMESTAMP NULL, e ENUM('a','ö','''x'), s SET('p','q','r'), bin VARBINARY(300), blb LONGBLOB, u UUID, ip INET6, g GEOMETRY, z INT(8) ZEROFILL, l1 VARCHAR(20) CHARACTER SET latin1, sj VARCHAR(20) CHARACTER SET sjis, u2 VARCHAR(20) CHARACTER SET ucs2)
CREATE TABLE shop.`tab``le ünï`(`col``umn ä` INT, v TEXT)
CREATE TABLE shop.parts(id INT PRIMARY KEY, v INT) PARTITION BY HASH(id) PARTITIONS 3
CREATE TABLE shop.old(id INT PRIMARY KEY) ENGINE=Aria
CREATE TABLE `o'd"d`.plain(v VARCHAR(20) COLLATE latin1_bin)
CREATE SEQUENCE shop.numbers START WITH 5 INCREMENT BY 3 CACHE 10
CREATE VIEW shop.z_last AS SELECT 1 AS one
CREATE VIEW shop.a_first AS SELECT * FROM shop.z_last
CREATE FUNCTION shop.plus(a INT) RETURNS INT DETERMINISTIC RETURN a + 1
CREATE VIEW shop.b_uses AS SELECT shop.plus(id) AS n FROM shop.customer
CREATE PROCEDURE shop.proc() BEGIN SELECT 'semi;colon', "ä"; SELECT 2; END
CREATE TRIGGER shop.second BEFORE INSERT ON shop.orders FOR EACH ROW SET NEW.total = IFNULL(NEW.total, 1)
CREATE TRIGGER shop.first BEFORE INSERT ON shop.orders FOR EACH ROW PRECEDES second SET NEW.total = IFNULL(NEW.total, 2)
CREATE EVENT shop.nightly ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 03:00:00' DISABLE DO DELETE FROM shop.customer WHERE id < 0
INSERT INTO shop.types(f, f2, d, b, y, t, dt, ts, e, s, bin, blb, u, ip, g, z, l1, sj, u2) VALUES (1.1, 99.99, 0.1, b'10100000001', 1999, '-12:34:56.789', '0001-02-03 04:05:06', '2001-02-03 04:05:06', 'ö', 'p,r', X'00275C0A0D1A09FF', REPEAT(X'0027', 100000), UUID(), '::1', POINT(1, 2), 42, 'é''\\', '表', 'ab')
INSERT INTO shop.types(f) VALUES (NULL)
INSERT INTO shop.types(f, d, bin) VALUES (16777217, 1e308, ''), (3.4e38, -0.0, X'FE'), (0.3, 2e-320, REPEAT('x', 255))
INSERT INTO shop.`tab``le ünï` VALUES (1, 'x'), (NULL, NULL)
INSERT INTO shop.parts SELECT seq, seq FROM shop.seq_1_to_100
INSERT INTO shop.old VALUES (1), (2)
INSERT INTO `o'd"d`.plain VALUES ('ÿé')
INSERT INTO shop.customer(name) SELECT CONCAT('c', seq, REPEAT('n', 20)) FROM shop.seq_1_to_2000
SELECT NEXTVAL(shop.numbers)
"""  # noqa: E501
TABLES = "shop.customer, shop.orders, shop.types, shop.`tab``le ünï`, shop.parts, shop.old, `o'd\"d`.plain"


def settings_of(server: MariaDB) -> SourceSettings:
    grants = "SELECT, SHOW VIEW, TRIGGER, EVENT, REPLICATION SLAVE, BINLOG MONITOR"
    server.execute(f"GRANT {grants} ON *.* TO capture@'127.0.0.1' IDENTIFIED BY 'secret'")
    return SourceSettings(
        source="shop",
        kind="mariadb",
        host="127.0.0.1",
        port=server.port,
        accounts={"capture": "capture"},
        passwords={"capture": "secret"},
    )


def make(settings: SourceSettings, data: Path, name: str = "b1", **more: Callable[..., None]) -> Path:
    return making.make(settings, data, baseline=name, lineage="l1", job="j1", **more)[0]


@contextlib.contextmanager
def busy(server: MariaDB, writers: int = 3) -> Iterator[None]:
    """Transactions over several tables that would show any inconsistency, until left; raises what a writer met."""
    stop, failed = threading.Event(), []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        try:
            with contextlib.closing(server.connect(autocommit=False)) as conn, conn.cursor() as cursor:
                while not stop.is_set():
                    customer = chance.randint(1, 2000)
                    cursor.execute("INSERT INTO shop.orders(customer, note) VALUES (%s, '{\"a\": 1}')", (customer,))
                    cursor.execute("UPDATE shop.parts SET v = v + 1 WHERE id = %s", (chance.randint(1, 100),))
                    cursor.execute("UPDATE shop.parts SET v = v - 1 WHERE id = %s", (chance.randint(1, 100),))
                    if chance.random() < 0.2:
                        cursor.execute("DELETE FROM shop.orders ORDER BY id LIMIT 1")
                    conn.commit() if chance.random() < 0.9 else conn.rollback()
        except pymysql.MySQLError as error:
            if error.args[0] != 1213:  # a deadlock: this writer has written enough
                failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed


def checksums(server: MariaDB) -> list[tuple[object, ...]]:
    return server.execute(f"CHECKSUM TABLE {TABLES} EXTENDED")


@pytest.fixture
def source(mariadb: MariaDB) -> Iterator[MariaDB]:
    """The session's server with everything of KINDS in it, and only that."""
    empty(mariadb)
    mariadb.execute(*KINDS.strip().splitlines())
    yield mariadb
    empty(mariadb)
    mariadb.execute("DROP USER IF EXISTS capture@'127.0.0.1'", "SET GLOBAL lock_wait_timeout = DEFAULT")


def empty(server: MariaDB) -> None:
    schemas = server.execute("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA")
    for (schema,) in schemas:
        if schema not in SYSTEM_SCHEMAS:
            server.execute(f"DROP DATABASE {quoted(schema)}")


@pytest.mark.parametrize("mariadb", ["10.11", "11.4"], indirect=True)
def test_a_baseline_of_a_busy_source_is_the_source_at_its_position(
    source: MariaDB, make_mariadb: Callable[..., MariaDB], tmp_path: Path
) -> None:
    settings = settings_of(source)
    said: list[tuple[str, int, int, str]] = []
    with busy(source):
        before = source.execute("SELECT @@gtid_binlog_pos")[0][0]
        folder = make(settings, tmp_path, progress=lambda *p: said.append(p))
        after = source.execute("SELECT @@gtid_binlog_pos")[0][0]
    manifest = read_manifest(folder)
    number = int(manifest.position.split("-")[2])
    assert int(before.split("-")[2]) <= number < int(after.split("-")[2]), "writers must have gone on meanwhile"
    assert said[-1][1:] == (manifest.rows, manifest.rows, "rows")
    assert verify(folder) == []
    assert manifest.schema_version == schema_version(definitions(folder)).hex()
    assert [w.code for w in manifest.warnings] == ["baseline-holds-ddl", "baseline-not-transactional"]
    assert [t.table for t in manifest.tables if not t.consistent] == ["numbers", "old"]

    target = make_mariadb(version=".".join(source.version.split(".")[:2]))
    target.execute("RESET MASTER")
    with contextlib.closing(target.connect()) as conn:
        load.load(conn, folder)
    assert target.execute("SELECT @@gtid_binlog_pos")[0][0] == "", "loading leaves no steps of its own"
    # From here on the server's own replication is the judge: one transaction too many or too few breaks it.
    password = source.root_password
    target.execute(
        f"SET GLOBAL gtid_slave_pos = '{manifest.position}'",
        "SET GLOBAL server_id = 77",
        f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={source.port}, MASTER_USER='root',"
        f" MASTER_PASSWORD='{password}', MASTER_USE_GTID=slave_pos, MASTER_SSL=0, MASTER_SSL_VERIFY_SERVER_CERT=0",
        "START SLAVE",
    )
    end = source.execute("SELECT @@gtid_binlog_pos")[0][0]
    assert target.execute(f"SELECT MASTER_GTID_WAIT('{end}', 60)")[0][0] == 0, target.execute("SHOW ALL SLAVES STATUS")
    target.execute("STOP SLAVE")
    assert exact(target) == exact(source)
    assert checksums(target) == checksums(source)
    with contextlib.closing(source.connect()) as a, contextlib.closing(target.connect()) as b:
        assert read_definitions(a) == read_definitions(b)


def exact(server: MariaDB) -> list[list[tuple[object, ...]]]:
    """What checksums may not tell apart, and objects that have none."""
    queries = (
        "SELECT id, HEX(bin), MD5(blb), LENGTH(blb), b + 0, HEX(l1), HEX(sj), HEX(u2), HEX(g), u, ip,"
        " CAST(f AS DOUBLE), d, t, dt, ts, e + 0,"
        " s + 0 FROM shop.types ORDER BY id",
        "SELECT v, HEX(v) FROM `o'd\"d`.plain",
        "SELECT * FROM shop.b_uses ORDER BY n LIMIT 3",
        "SELECT COUNT(*) FROM shop.a_first",
        "SELECT ROUTINE_NAME, ROUTINE_DEFINITION, SQL_MODE FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = 'shop'",
        "SELECT TRIGGER_NAME, ACTION_ORDER, ACTION_STATEMENT FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA='shop'",
        "SELECT EVENT_NAME, STATUS, STARTS FROM information_schema.EVENTS WHERE EVENT_SCHEMA = 'shop'",
        "SELECT AUTO_INCREMENT FROM information_schema.TABLES WHERE TABLE_NAME = 'customer'",
        "SELECT NEXTVAL(shop.numbers) % 3",
    )
    return [server.execute(q) for q in queries]


def test_ddl_meanwhile_begins_anew_and_is_refused_in_the_end(source: MariaDB, tmp_path: Path) -> None:
    settings = settings_of(source)
    # Then a table that has been read is free again, while the baseline goes on.
    source.execute("GRANT BINLOG ADMIN ON *.* TO capture@'127.0.0.1'", "SET GLOBAL lock_wait_timeout = 20")
    moved: list[int] = []

    def alter_once(*_: object) -> None:
        if not moved:
            moved.append(1)
            source.execute("ALTER TABLE shop.parts ADD COLUMN added INT")

    folder = make(settings, tmp_path, progress=alter_once)
    parts = next(d for d in definitions(folder) if d.table == "parts")
    assert '"name":"added"' in parts.definition
    assert moved == [1]

    def alter_always(*_: object) -> None:
        moved.append(1)
        source.execute(f"ALTER TABLE shop.parts ADD COLUMN added{len(moved)} INT")

    with pytest.raises(AgentError) as refused:
        make(settings, tmp_path, "b2", progress=alter_always)
    assert refused.value.code == "baseline-schema-moved"
    assert [p.name for p in folder_of(tmp_path, "shop").iterdir()] == ["b1"]


def test_what_is_left_of_a_death_is_no_baseline(source: MariaDB, tmp_path: Path) -> None:
    settings = settings_of(source)

    class DeathError(Exception):
        pass

    def die(message: str, *_: object) -> None:
        # What SIGKILL leaves: nothing is tidied away.
        partial = folder_of(tmp_path, "shop") / ".new-b1"
        partial.rename(partial.with_name(".new-dead"))
        raise DeathError

    with pytest.raises(DeathError):
        make(settings, tmp_path, progress=die)
    assert find(tmp_path, "shop", "j1") is None
    assert make(settings, tmp_path) == find(tmp_path, "shop", "j1")[0]  # type: ignore[index]
    assert clean(tmp_path, "shop", frozenset({"b1"})) == [".new-dead"]


def test_an_account_that_may_not_see_everything_is_told(source: MariaDB, tmp_path: Path) -> None:
    settings = settings_of(source)
    source.execute("REVOKE TRIGGER, EVENT, SHOW VIEW, REPLICATION SLAVE ON *.* FROM capture@'127.0.0.1'")
    with pytest.raises(AgentError) as missing:
        make(settings, tmp_path)
    assert missing.value.code == "privilege-missing"
    assert "GRANT TRIGGER" in missing.value.hint


def test_damage_is_found(source: MariaDB, tmp_path: Path) -> None:
    folder = make(settings_of(source), tmp_path)
    table = next(t for t in read_manifest(folder).tables if t.table == "customer")
    path = folder / table.file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert [p.code for p in verify(folder)] == ["baseline-file-damaged"]
    with pytest.raises(AgentError, match="cut off"):
        list(rows.read_rows(path))
    path.unlink()
    assert [p.code for p in verify(folder)] == ["baseline-file-missing"]
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(AgentError, match="damaged"):
        read_manifest(folder)


def test_a_baseline_as_sql_goes_through_the_client(
    source: MariaDB, make_mariadb: Callable[..., MariaDB], tmp_path: Path
) -> None:
    folder = make(settings_of(source), tmp_path)
    target = make_mariadb()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "agents.baseline", str(folder)], stdout=subprocess.PIPE
    ) as process:
        client = [*target.client_command().split(), "--binary-mode", "--force"]
        subprocess.run(client, stdin=process.stdout, check=False, timeout=120, stderr=subprocess.DEVNULL)
    assert process.returncode == 0
    assert checksums(target) == checksums(source)
