"""Preflight on real MySQL servers: each wrong setting and each missing grant is named, and its hint mends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from agents import registry
from agents.platforms import mysql as platform
from agents.protocol import Preflight, SourceSettings
from deploy.demo.accounts import create_account, grants_for
from deploy.demo.server import DatabaseServer
from tests.stack.capturing import position

BOTH = pytest.mark.parametrize("database", ["mysql-9", "mysql-5.5"], indirect=True)


def settings_of(server: DatabaseServer, **more: str) -> SourceSettings:
    accounts = {"capture": "cap"} | more
    return SourceSettings(
        "shop", "mysql", server.host, server.port, accounts=accounts, passwords=dict.fromkeys(accounts, "word")
    )


def account(server: DatabaseServer, *grants: str, user: str = "cap") -> None:
    with contextlib.closing(server.connect()) as admin:
        create_account(admin, user, "word", ())
        with admin.cursor() as cursor:
            # Whatever an earlier test gave it.
            cursor.execute(f"revoke all privileges, grant option from '{user}'@'127.0.0.1'")
        create_account(admin, user, "word", grants)


def check(settings: SourceSettings) -> Preflight:
    return registry.source(settings).preflight()


def mend(server: DatabaseServer, hint: str) -> None:
    server.execute(hint.partition(";")[0])


WRONG_9: dict[str, str | None] = {
    "binlog_format": "MIXED",
    "binlog_row_image": "MINIMAL",
    "binlog_row_metadata": "MINIMAL",
    "binlog_row_value_options": "PARTIAL_JSON",
    "gtid_mode": "ON_PERMISSIVE",
    "sync_binlog": "0",
    "innodb_flush_log_at_trx_commit": "2",
    "binlog_checksum": "NONE",
    "binlog_expire_logs_seconds": "60",
}
PROBLEMS_9 = {
    "source-binlog-format", "source-binlog-row-image", "source-binlog-row-metadata", "source-binlog-row-value-options",
    "source-gtid-mode",
}  # fmt: skip
WARNINGS_9 = {"source-sync-binlog", "source-innodb-flush", "source-checksum-none", "source-log-kept-short"}
WRONG_5_5: dict[str, str | None] = {
    "binlog_format": "MIXED",
    "sync_binlog": "0",
    "innodb_flush_log_at_trx_commit": "2",
}


@pytest.mark.parametrize(
    ("name", "wrong", "problems", "warnings", "stay"),
    [
        ("mysql-9", WRONG_9, PROBLEMS_9, WARNINGS_9, set[str]()),
        (
            "mysql-5.5",
            WRONG_5_5,
            {"source-binlog-format"},
            {"source-sync-binlog", "source-innodb-flush", "source-gtid-off"},
            {"source-gtid-off"},
        ),
    ],
    ids=["9", "5.5"],
)
def test_each_wrong_setting_is_mended_by_its_hint(
    make_database: Callable[..., DatabaseServer],
    name: str,
    wrong: dict[str, str | None],
    problems: set[str],
    warnings: set[str],
    stay: set[str],
) -> None:
    server = make_database(name, options=wrong)
    account(server, "grant all privileges on *.* to {account}")
    found = check(settings_of(server))
    assert {p.code for p in found.problems} == problems
    assert {p.code for p in found.warnings} == warnings
    for problem in (*found.problems, *found.warnings):
        if problem.code not in stay:
            mend(server, problem.hint)
    found = check(settings_of(server))
    assert found.problems == ()
    assert {p.code for p in found.warnings} == stay


@BOTH
def test_each_missing_grant_is_named_and_granted_by_its_hint(database: DatabaseServer) -> None:
    account(database)
    found = check(settings_of(database))
    hints = [p.hint for p in found.problems]
    assert {p.code for p in found.problems} == {"source-grant-missing"}
    asked = platform.REQUIREMENTS[-1 if database.version.startswith("9.") else 0].privileges
    assert len(hints) == len(asked)
    database.execute(*hints)
    found = check(settings_of(database))
    assert found.problems == ()
    source = registry.source(settings_of(database))
    stream = source.open(position(database), 1 << 20)
    stream.take(0.1)
    stream.close()
    source.facts()


@BOTH
def test_what_the_demo_grants_is_all_that_is_asked_for(database: DatabaseServer) -> None:
    with contextlib.closing(database.connect()) as admin:
        found = grants_for(admin)
    account(database, *found.capture)
    account(database, *found.rollback, user="roll")
    result = check(settings_of(database, rollback="roll"))
    assert result.problems == ()
    assert [w.code for w in result.warnings if w.code.startswith("rollback")] == []


@BOTH
def test_what_the_rollback_account_lacks_is_said_before_it_is_needed(database: DatabaseServer) -> None:
    account(database, "grant all privileges on *.* to {account}")
    account(database, user="roll")
    found = check(settings_of(database, rollback="roll"))
    lacking = [w for w in found.warnings if w.code == "rollback-grant-missing"]
    assert len(lacking) == 3
    database.execute(*(w.hint for w in lacking))
    found = check(settings_of(database, rollback="roll"))
    assert [w.code for w in found.warnings if w.code == "rollback-grant-missing"] == []


@BOTH
def test_capability_says_what_the_version_can_do(database: DatabaseServer) -> None:
    account(database, "grant all privileges on *.* to {account}")
    levels = set(check(settings_of(database)).capability)
    everything = {"gtid", "rows", "images-full", "metadata-full", "checksums", "crash-safe"}
    without = set() if database.version.startswith("9.") else {"gtid", "metadata-full", "checksums"}
    assert levels == everything - without


@pytest.mark.parametrize("database", ["mysql-9", "mariadb-10.11"], indirect=True)
def test_another_kind_of_server_is_told_apart(database: DatabaseServer) -> None:
    account(database, "grant all privileges on *.* to {account}")
    other = {"mysql": "mariadb", "mariadb": "mysql"}[database.kind]
    settings = SourceSettings(
        "shop", other, database.host, database.port, accounts={"capture": "cap"}, passwords={"capture": "word"}
    )
    found = check(settings)
    assert [p.code for p in found.problems] == [f"source-not-{other}"]
    assert found.problems[0].hint == f"add it with --kind {database.kind}"


def test_accounts_are_let_in_with_and_without_tls(make_database: Callable[..., DatabaseServer]) -> None:
    """caching_sha2_password: over TLS the password is sent in it; on loopback without, under the server's RSA key. A server that
    has just been started remembers no password, so each of these is the long way."""
    server = make_database("mysql-9", tls=True)
    account(server, "grant all privileges on *.* to {account}")
    assert server.tls_ca is not None
    for tls, authority in (("off", ""), ("required", ""), ("verify", server.tls_ca.read_text())):
        server.restart()
        settings = SourceSettings(
            "shop", "mysql", "127.0.0.1", server.port, tls, authority, {"capture": "cap"}, {"capture": "word"}
        )
        assert check(settings).problems == ()
    wrong = SourceSettings(
        "shop", "mysql", "127.0.0.1", server.port, "off", "", {"capture": "cap"}, {"capture": "other"}
    )
    assert [p.code for p in check(wrong).problems] == ["source-denied"]
