"""Preflight on real servers: each wrong setting and missing grant is found, and the statement in its hint mends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from agents import registry
from agents.errors import AgentError
from agents.mysql import preflight
from agents.mysql.connection import refuse_plaintext
from agents.platforms import mariadb as platform
from agents.protocol import Preflight, SourceSettings
from deploy.demo.mariadb import MariaDB

PRIVILEGES = platform.REQUIREMENTS[0].privileges

WRONG = {
    "binlog_format": "MIXED",
    "binlog_row_image": "MINIMAL",
    "binlog_row_metadata": "MINIMAL",
    "gtid_strict_mode": "OFF",
    "sync_binlog": "0",
    "innodb_flush_log_at_trx_commit": "2",
    "binlog_checksum": "NONE",
    "binlog_expire_logs_seconds": "60",
}


def account(server: MariaDB, *grants: str) -> SourceSettings:
    server.execute("create or replace user 'cap'@'127.0.0.1' identified by 'word'", *grants)
    accounts, passwords = {"capture": "cap"}, {"capture": "word"}
    return SourceSettings("shop", "mariadb", server.host, server.port, accounts=accounts, passwords=passwords)


def check(settings: SourceSettings) -> Preflight:
    return registry.source(settings).preflight()


def by_code(found: Preflight) -> Mapping[str, list[str]]:
    out: dict[str, list[str]] = {}
    for problem in (*found.problems, *found.warnings):
        out.setdefault(problem.code, []).append(problem.hint)
    return out


@pytest.mark.parametrize("version", ["10.11", "11.4"])
def test_each_wrong_setting_is_mended_by_its_hint(make_mariadb: Callable[..., MariaDB], version: str) -> None:
    server = make_mariadb(version=version, options=WRONG)
    settings = account(server, "grant all on *.* to 'cap'@'127.0.0.1'")
    found = check(settings)
    assert {p.code for p in found.problems} == {
        "source-binlog-format",
        "source-binlog-row-image",
        "source-binlog-row-metadata",
        "source-gtid-strict-mode",
    }
    assert {p.code for p in found.warnings} >= {
        "source-sync-binlog",
        "source-innodb-flush",
        "source-checksum-none",
        "source-log-kept-short",
    }
    assert set(found.capability) == {"gtid"}
    for problem in (*found.problems, *found.warnings):
        statement = problem.hint.split(";")[0]
        assert statement.startswith("SET GLOBAL ")
        server.execute(statement)
        assert problem.code not in by_code(check(settings)), statement
    mended = check(settings)
    assert (mended.problems, mended.warnings) == ((), ())
    assert set(mended.capability) == {
        "gtid", "rows", "images-full", "metadata-full", "checksums", "crash-safe",
    }  # fmt: skip
    assert mended.server_version.startswith(version)


def test_each_missing_grant_is_named_and_granted_by_its_hint(mariadb: MariaDB) -> None:
    settings = account(mariadb)
    hints = by_code(check(settings))["source-grant-missing"]
    assert len(hints) == len(PRIVILEGES)
    for n, hint in enumerate(hints):
        left = by_code(check(settings)).get("source-grant-missing", [])
        assert len(left) == len(hints) - n
        mariadb.execute(hint)
    assert "source-grant-missing" not in by_code(check(settings))
    # What is asked for is enough to be sent the log, and to say what is in it.
    source = registry.source(settings)
    facts = source.facts()
    assert facts.log_bytes > 0
    stream = source.open(facts.position, 1000)
    try:
        mariadb.execute("create or replace database preflight")
        taken = None
        while taken is None:
            taken = stream.take(30.0)
        assert b"create or replace database preflight" in taken.payload
    finally:
        stream.close()


def with_rollback(settings: SourceSettings, password: str = "other") -> SourceSettings:
    return replace(
        settings,
        accounts={**settings.accounts, "rollback": "roll"},
        passwords={**settings.passwords, "rollback": password},
    )


def test_what_the_rollback_account_lacks_is_said_before_it_is_needed(mariadb: MariaDB) -> None:
    settings = with_rollback(account(mariadb, "grant all on *.* to 'cap'@'127.0.0.1'"))
    mariadb.execute("create or replace user 'roll'@'127.0.0.1' identified by 'other'")
    found = check(settings)
    assert "source-grant-missing" not in by_code(found)
    warned = by_code(found)["rollback-grant-missing"]
    assert len(warned) == 3
    for statement in warned:
        mariadb.execute(statement)
    assert "rollback-grant-missing" not in by_code(check(settings))
    assert [p.code for p in check(with_rollback(settings, "wrong")).problems] == ["source-denied"]
    mariadb.execute("alter user 'roll'@'127.0.0.1' account lock")
    locked = check(settings)
    assert (locked.problems, "rollback-account-locked" in by_code(locked)) == ((), True)


def test_a_rollback_account_may_be_granted_less_than_everything() -> None:
    lines = [
        "GRANT BINLOG ADMIN, BINLOG REPLAY, READ_ONLY ADMIN ON *.* TO `r`@`%` IDENTIFIED BY PASSWORD '*1'",
        "GRANT ALL PRIVILEGES ON `holdfast`.* TO `r`@`%`",
        "GRANT SELECT, TRIGGER ON `a shop`.* TO `r`@`%`",
    ]
    assert list(preflight.missing_for_rollback("'r'@'%'", lines, "10.11.6-MariaDB")) == []
    assert [what for what, _ in preflight.missing_for_rollback("'r'@'%'", lines[:2], "10.11.6-MariaDB")] == [
        "SELECT, TRIGGER on *.*"
    ]
    older = ["GRANT SUPER ON *.* TO `r`@`%`", *lines[1:]]
    assert list(preflight.missing_for_rollback("'r'@'%'", older, "10.6.12-MariaDB")) == []
    assert [grant for _, grant in preflight.missing_for_rollback("'r'@'%'", older, "11.4.2-MariaDB")] == [
        "GRANT BINLOG REPLAY, BINLOG ADMIN, READ_ONLY ADMIN ON *.* TO 'r'@'%'"
    ]


def test_grants_through_a_role_count(mariadb: MariaDB) -> None:
    everything = ", ".join(PRIVILEGES)
    settings = account(
        mariadb,
        "create or replace role watcher",
        f"grant {everything} on *.* to watcher",
        "grant watcher to 'cap'@'127.0.0.1'",
        "set default role watcher for 'cap'@'127.0.0.1'",
    )
    assert "source-grant-missing" not in by_code(check(settings))


def test_grants_on_one_database_do_not() -> None:
    lines = [
        "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `cap`@`%` IDENTIFIED BY PASSWORD '*1'",
        "GRANT SELECT ON `shop`.* TO `cap`@`%`",
        "GRANT `watcher` TO `cap`@`%`",
    ]
    assert preflight.privileges(lines) == {"REPLICATION SLAVE", "BINLOG MONITOR"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"binlog_do_db": "shop"}, "source-binlog-filter"),
        ({"binlog_ignore_db": "shop"}, "source-binlog-filter"),
        ({"skip_log_bin": None}, "source-log-off"),
    ],
)
def test_what_the_log_leaves_out(
    make_mariadb: Callable[..., MariaDB], options: dict[str, str | None], code: str
) -> None:
    server = make_mariadb(options=options)
    found = check(account(server, "grant all on *.* to 'cap'@'127.0.0.1'"))
    assert code in {p.code for p in found.problems}


def test_a_replica_that_does_not_log_what_it_is_sent(make_mariadb: Callable[..., MariaDB]) -> None:
    server = make_mariadb()
    settings = account(server, "grant all on *.* to 'cap'@'127.0.0.1'")
    server.execute("set global gtid_slave_pos = concat(@@gtid_binlog_pos, ',5-5-5')")
    assert "source-replica-unlogged" in by_code(check(settings))
    server.restart({"log_slave_updates": "ON"})
    assert "source-replica-unlogged" not in by_code(check(settings))


def test_a_refused_login_and_missing_tls_are_problems(mariadb: MariaDB) -> None:
    settings = account(mariadb)
    refused = SourceSettings(
        "shop", "mariadb", mariadb.host, mariadb.port, accounts={"capture": "cap"}, passwords={"capture": "wrong"}
    )
    assert [p.code for p in check(refused).problems] == ["source-denied"]
    without = SourceSettings(
        "shop", "mariadb", mariadb.host, mariadb.port, "required", "", settings.accounts, settings.passwords
    )
    assert [p.code for p in check(without).problems] == ["source-tls"]


def test_a_network_in_clear_is_refused_before_anything_is_sent() -> None:
    def codes(host: str, tls: str, **options: str) -> list[str]:
        settings = SourceSettings("shop", "mariadb", host, 3306, tls=tls, options=options)
        try:
            refuse_plaintext(settings)
        except AgentError as error:
            return [error.code]
        return []

    assert codes("db.example.com", "off") == ["source-tls-off"]
    assert codes("10.0.0.5", "off") == ["source-tls-off"]
    assert codes("10.0.0.5", "off", allow_plaintext="yes") == []
    assert codes("10.0.0.5", "required") == []
    assert codes("127.0.0.1", "off") == codes("localhost", "off") == codes("::1", "off") == []
    # TEST-NET-1 (RFC 5737) answers nobody: a refusal does not wait for it.
    remote = SourceSettings("shop", "mariadb", "192.0.2.1", 3306, accounts={"capture": "cap"})
    assert [p.code for p in check(remote).problems] == ["source-tls-off"]
