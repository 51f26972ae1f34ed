"""A baseline of a busy MySQL is the server at its position: loaded elsewhere and brought forward by the server's own
replication from exactly that position, it ends as the source does."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql
import pytest

from agents.baseline import load, making
from agents.baseline.manifest import definitions, read_manifest, verify
from agents.mysql import file_positions
from agents.mysql.definitions import read_definitions, schema_version
from agents.protocol import SourceSettings
from deploy.demo.accounts import create_accounts
from deploy.demo.server import DatabaseServer
from tests.stack.capturing import position

COMMON = r"""
CREATE DATABASE shop CHARACTER SET utf8mb4
CREATE DATABASE `o'd"d` CHARACTER SET latin1
CREATE TABLE shop.customer(id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(50) NOT NULL, UNIQUE KEY prefix(name(10))) ENGINE=InnoDB
CREATE TABLE shop.`tab``le ünï`(`col``umn ä` INT, v TEXT) ENGINE=InnoDB
CREATE TABLE shop.parts(id INT PRIMARY KEY, v INT) ENGINE=InnoDB PARTITION BY HASH(id) PARTITIONS 3
CREATE TABLE shop.old(id INT PRIMARY KEY) ENGINE=MyISAM
CREATE TABLE `o'd"d`.plain(v VARCHAR(20) COLLATE latin1_bin) ENGINE=InnoDB
CREATE VIEW shop.z_last AS SELECT 1 AS one
CREATE VIEW shop.a_first AS SELECT * FROM shop.z_last
CREATE FUNCTION shop.plus(a INT) RETURNS INT DETERMINISTIC RETURN a + 1
CREATE VIEW shop.b_uses AS SELECT shop.plus(id) AS n FROM shop.customer
CREATE PROCEDURE shop.proc() BEGIN SELECT 'semi;colon', "ä"; SELECT 2; END
CREATE EVENT shop.nightly ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 03:00:00' DISABLE DO DELETE FROM shop.customer WHERE id < 0
INSERT INTO shop.`tab``le ünï` VALUES (1, 'x'), (NULL, NULL)
INSERT INTO shop.old VALUES (1), (2)
INSERT INTO `o'd"d`.plain VALUES ('ÿé')
"""  # noqa: E501
KINDS = {
    "mysql-9": COMMON
    + r"""
CREATE TABLE shop.orders(id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, customer INT, total DECIMAL(10,2), twice DECIMAL(10,2) AS (total * 2) VIRTUAL, thrice DECIMAL(10,2) AS (total * 3) STORED, at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), hidden INT DEFAULT 3 INVISIBLE, note JSON, FOREIGN KEY (customer) REFERENCES shop.customer(id) ON DELETE CASCADE)
CREATE TABLE shop.types(id INT PRIMARY KEY AUTO_INCREMENT, f FLOAT, f2 FLOAT(7,2), d DOUBLE, b BIT(11), y YEAR, t TIME(3), dt DATETIME, ts TIMESTAMP NULL, e ENUM('a','ö','''x'), s SET('p','q','r'), bin VARBINARY(300), blb LONGBLOB, g GEOMETRY SRID 4326, v VECTOR(3), l1 VARCHAR(20) CHARACTER SET latin1, sj VARCHAR(20) CHARACTER SET sjis, u2 VARCHAR(20) CHARACTER SET utf16, UNIQUE KEY by_expression((y * 2), id))
INSERT INTO shop.types(f, f2, d, b, y, t, dt, ts, e, s, bin, blb, g, v, l1, sj, u2) VALUES (1.1, 99.99, 0.1, b'10100000001', 1999, '-12:34:56.789', '1001-02-03 04:05:06', '2001-02-03 04:05:06', 'ö', 'p,r', X'00275C0A0D1A09FF', REPEAT(X'0027', 100000), ST_GeomFromText('POINT(1 2)', 4326), STRING_TO_VECTOR('[1,2,3.5]'), 'é''\\', '表', 'ab')
INSERT INTO shop.types(f) VALUES (NULL)
INSERT INTO shop.types(f, d, bin) VALUES (16777217, 1e308, ''), (3.4e38, -0.0, X'FE'), (0.3, 2e-300, REPEAT('x', 255))
INSERT INTO shop.orders(customer, note) VALUES (NULL, '{"a": ["é", 1.50, null, true, 18446744073709551615]}'), (NULL, 'null'), (NULL, NULL)
""",  # noqa: E501
    "mysql-5.5": COMMON
    + r"""
CREATE TABLE shop.orders(id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, customer INT, total DECIMAL(10,2), at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, note TEXT, FOREIGN KEY (customer) REFERENCES shop.customer(id) ON DELETE CASCADE) ENGINE=InnoDB
CREATE TABLE shop.types(id INT PRIMARY KEY AUTO_INCREMENT, f FLOAT, f2 FLOAT(7,2), d DOUBLE, b BIT(11), y YEAR, t TIME, dt DATETIME, ts TIMESTAMP NULL, e ENUM('a','ö','''x'), s SET('p','q','r'), bin VARBINARY(300), blb LONGBLOB, g GEOMETRY, l1 VARCHAR(20) CHARACTER SET latin1, sj VARCHAR(20) CHARACTER SET sjis, u2 VARCHAR(20) CHARACTER SET ucs2) ENGINE=InnoDB
INSERT INTO shop.types(f, f2, d, b, y, t, dt, ts, e, s, bin, blb, g, l1, sj, u2) VALUES (1.1, 99.99, 0.1, b'10100000001', 1999, '-12:34:56', '1001-02-03 04:05:06', '2001-02-03 04:05:06', 'ö', 'p,r', X'00275C0A0D1A09FF', REPEAT(X'0027', 100000), POINT(1, 2), 'é''\\', '表', 'ab')
INSERT INTO shop.types(f) VALUES (NULL)
INSERT INTO shop.types(f, d, bin) VALUES (16777217, 1e308, ''), (3.4e38, -0.0, X'FE'), (0.3, 2e-300, REPEAT('x', 255))
""",  # noqa: E501
}
TRIGGER = "CREATE TRIGGER shop.second BEFORE INSERT ON shop.orders FOR EACH ROW SET NEW.total = IFNULL(NEW.total, 1)"
TABLES = "shop.customer, shop.orders, shop.types, shop.`tab``le ünï`, shop.parts, shop.old, `o'd\"d`.plain"


@contextlib.contextmanager
def busy(server: DatabaseServer) -> Iterator[None]:
    """Transactions over two tables that would show any inconsistency, until left; raises what a writer met."""
    stop, failed = threading.Event(), []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        try:
            with contextlib.closing(server.connect(autocommit=False)) as conn, conn.cursor() as cursor:
                while not stop.is_set():
                    cursor.execute("INSERT INTO shop.orders(customer) VALUES (%s)", (chance.randint(1, 500),))
                    cursor.execute("UPDATE shop.parts SET v = v + 1 WHERE id = %s", (seed * 10 + chance.randint(1, 9),))
                    cursor.execute("UPDATE shop.parts SET v = v - 1 WHERE id = %s", (seed * 10 + chance.randint(1, 9),))
                    conn.commit() if chance.random() < 0.9 else conn.rollback()
                    stop.wait(0.002)  # a copy has to do all of it again
        except pymysql.MySQLError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed


def checksums(server: DatabaseServer) -> list[tuple[object, ...]]:
    return server.execute(f"CHECKSUM TABLE {TABLES} EXTENDED")


def follow(copy: DatabaseServer, source: DatabaseServer, position: str, password: str) -> None:
    """Replicate from `position` by the server's own means until the copy has all that the source has."""
    primary = {"HOST": "'127.0.0.1'", "PORT": source.port, "USER": "'hf_capture'", "PASSWORD": f"'{password}'"}
    if file_positions.is_file_position(position):
        at = file_positions.parse(position)
        words = ", ".join(f"MASTER_{name} = {value}" for name, value in primary.items())
        copy.execute(
            f"CHANGE MASTER TO {words}, MASTER_LOG_FILE='{at.file}', MASTER_LOG_POS={at.offset}, MASTER_CONNECT_RETRY=1",
            "START SLAVE",
        )
        ((file, offset, *_),) = source.execute("SHOW MASTER STATUS")
        reached = copy.execute(f"SELECT MASTER_POS_WAIT('{file}', {offset}, 60)")[0][0]
        assert reached is not None, copy.execute("SHOW SLAVE STATUS")
        assert reached >= 0, copy.execute("SHOW SLAVE STATUS")
        return
    words = ", ".join(f"SOURCE_{name} = {value}" for name, value in primary.items())
    copy.execute(
        "RESET BINARY LOGS AND GTIDS",
        f"SET GLOBAL gtid_purged = '{position}'",
        f"CHANGE REPLICATION SOURCE TO {words}, SOURCE_AUTO_POSITION=1, SOURCE_CONNECT_RETRY=1, GET_SOURCE_PUBLIC_KEY=1",
        "START REPLICA",
    )
    ((wanted,),) = source.execute("SELECT @@global.gtid_executed")
    deadline = time.monotonic() + 120
    while copy.execute(f"SELECT GTID_SUBSET('{wanted}', @@global.gtid_executed)") != [(1,)]:
        state = copy.execute("SHOW REPLICA STATUS")
        assert time.monotonic() < deadline, state
        time.sleep(0.1)


@pytest.mark.parametrize("name", ["mysql-9", "mysql-5.5"])
def test_a_baseline_of_a_busy_source_is_the_source_at_its_position(
    make_database: Callable[..., DatabaseServer], name: str, tmp_path: Path
) -> None:
    source = make_database(name)
    with contextlib.closing(source.connect()) as admin:
        passwords = create_accounts(admin)
    customers = ", ".join(f"('c{n}{'n' * 20}')" for n in range(500))
    parts = ", ".join(f"({n}, {n})" for n in range(1, 101))
    source.execute(
        *filter(None, KINDS[name].splitlines()),
        TRIGGER,
        f"INSERT INTO shop.customer(name) VALUES {customers}",
        f"INSERT INTO shop.parts VALUES {parts}",
        "flush logs",  # the position may be the end of a file before the newest
    )
    settings = SourceSettings(
        "shop", "mysql", "127.0.0.1", source.port, accounts={"capture": "hf_capture"}, passwords=passwords
    )
    with busy(source):
        folder, manifest = making.make(settings, tmp_path, baseline="b1", lineage="l1", job="j1")
    verify(folder)
    assert manifest == read_manifest(folder)
    assert sum(t.rows for t in manifest.tables) > 600
    with contextlib.closing(source.connect()) as admin:
        found = list(definitions(folder))
        assert schema_version(found) == schema_version(read_definitions(admin))

    copy = make_database(name, options={"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0"})
    with contextlib.closing(copy.connect(autocommit=False)) as admin:
        load.load(admin, folder)
        assert schema_version(read_definitions(admin)) == schema_version(found)
    assert copy.execute("SELECT shop.plus(1)") == [(2,)]
    follow(copy, source, manifest.position, passwords["capture"])
    assert checksums(copy) == checksums(source)
    assert {w.code for w in manifest.warnings} >= {"baseline-not-transactional"}


@pytest.mark.parametrize("name", ["mysql-9", "mysql-5.5"])
def test_a_quiet_source_whose_log_was_just_rotated_has_a_position(
    make_database: Callable[..., DatabaseServer], name: str, tmp_path: Path
) -> None:
    source = make_database(name)
    with contextlib.closing(source.connect()) as admin:
        passwords = create_accounts(admin)
    source.execute("create database d", "create table d.t (id int primary key) engine=InnoDB", "flush logs")
    settings = SourceSettings(
        "shop", "mysql", "127.0.0.1", source.port, accounts={"capture": "hf_capture"}, passwords=passwords
    )
    _, manifest = making.make(settings, tmp_path, baseline="b1", lineage="l1", job="j1")
    if name == "mysql-5.5":
        assert file_positions.parse(manifest.position).created > 1_700_000_000
    else:
        assert manifest.position == position(source)
