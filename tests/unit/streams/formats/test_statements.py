"""What a logged statement is told to be, through comments and modifiers, and which ones hide secrets."""

from __future__ import annotations

import pytest

from streams.formats.binlog.statements import REDACTED, classify, is_account_statement, statement_text

ACCOUNT = [
    "CREATE USER a@b IDENTIFIED BY 'x'",
    "create or replace user a",
    "ALTER USER a PASSWORD EXPIRE",
    "DROP USER IF EXISTS a",
    "RENAME USER a TO b",
    "CREATE ROLE r",
    "DROP ROLE r",
    "GRANT ALL ON *.* TO a IDENTIFIED BY 'x'",
    "REVOKE ALL ON *.* FROM a",
    "SET PASSWORD FOR a = PASSWORD('x')",
    "SET DEFAULT ROLE r FOR a",
    "CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (PASSWORD 'x')",
    "  \n\t/* hi */ -- there\n # more\n grant all on *.* to a",
    "/*!50003 GRANT SELECT ON x.* TO a */",
    "/*M!100100 CREATE*/ USER a",
    "SET STATEMENT max_statement_time=10 FOR CREATE USER a",
    "SET STATEMENT sql_mode='', lock_wait_timeout = 3 FOR /*x*/ GRANT ALL ON *.* TO a",
    "CREATE/**/USER a",
    "(account) -- not, but below",
]


@pytest.mark.parametrize("sql", ACCOUNT[:-1])
def test_account_statements(sql: str) -> None:
    assert classify(sql.encode()) == "account"
    assert is_account_statement(sql.encode())
    assert statement_text(sql.encode()) == REDACTED


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("CREATE TABLE user (id int)", "ddl"),
        ("CREATE OR REPLACE TABLE t (user int)", "ddl"),
        ("ALTER TABLE role ADD x int", "ddl"),
        ("DROP TABLE `user`", "ddl"),
        ("TRUNCATE t", "ddl"),
        ("RENAME TABLE a TO b", "ddl"),
        ("CREATE DEFINER=`root`@`localhost` PROCEDURE p() SELECT 1", "ddl"),
        ("SET STATEMENT max_statement_time=10 FOR ALTER TABLE t ADD x int", "ddl"),
        ("CREATE TEMPORARY TABLE t (a int)", "neutral"),
        ("CREATE OR REPLACE TEMPORARY TABLE t (a int)", "neutral"),
        ("DROP /*!40005 TEMPORARY */ TABLE IF EXISTS `t`", "neutral"),
        ("ANALYZE TABLE t", "neutral"),
        ("# Dummy event replacing event type 160 that slave cannot handle.", "neutral"),
        ("", "neutral"),
        ("/* unterminated", "neutral"),
        ("INSERT INTO t VALUES ('GRANT')", "dml"),
        ("(SELECT 1)", "dml"),
        ("WITH x AS (SELECT 1) DELETE FROM t", "dml"),
        ("BEGIN", "begin"),
        ("COMMIT", "commit"),
        ("ROLLBACK", "rollback"),
        ("ROLLBACK TO `a`", "rollback_to"),
        ("ROLLBACK WORK TO SAVEPOINT a", "rollback_to"),
        ("SAVEPOINT `a`", "savepoint"),
        ("XA COMMIT X'61',X'',1", "xa"),
        ("SET @a = 1", "other"),
        ("FROBNICATE t", "other"),
        ("'quoted'", "other"),
    ],
)
def test_other_statements(sql: str, kind: str) -> None:
    assert classify(sql.encode()) == kind


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE PROCEDURE p() CREATE USER x IDENTIFIED BY 'abc'",
        "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO SET PASSWORD FOR x = 'y'",
        "UPDATE t SET password = 'x'",
        "CREATE TABLE f (a int) ENGINE=FEDERATED CONNECTION='mysql://user:pass@host/db/t'",
        "INSERT INTO t VALUES (PASSWORD('x'))",
        "ALTER EVENT e DO ALTER USER x IDENTIFIED/**/VIA ed25519 USING 'hash'",
    ],
)
def test_secrets_elsewhere_are_hidden_too(sql: str) -> None:
    assert classify(sql.encode()) != "account"
    assert is_account_statement(sql.encode())
    assert statement_text(sql.encode()) == REDACTED


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE passwords (password varchar(10) COMMENT 'the password')",
        "ALTER TABLE users ADD password_hash varbinary(32), ADD identified datetime",
        "CREATE TABLE links (url varchar(100) DEFAULT 'https://example.org/a:b')",
    ],
)
def test_tables_about_passwords_are_shown(sql: str) -> None:
    assert not is_account_statement(sql.encode())
    assert statement_text(sql.encode()) == sql


def test_long_statements_are_shortened() -> None:
    text = statement_text(b"CREATE TABLE t (a int) COMMENT '" + b"x" * 10_000 + b"'", most=100)
    assert len(text) == 100
    assert text.endswith("…")
