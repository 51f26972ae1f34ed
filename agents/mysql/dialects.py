"""What servers of each version can do and how they want to be asked: differences as data, looked up by the version that a
server says in its greeting.

A dialect says nothing about what is asked of a source (settings, privileges): that is its platform's. Each one is written as
its difference from the one before it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import pymysql

Version = tuple[int, int]

LOCK_WAIT_S: Final = 10


@dataclass(frozen=True, slots=True)
class Dialect:
    """One server family from one version on. Statements are for the session they name; empty: nothing to do."""

    family: Literal["MariaDB", "MySQL"]
    since: Version

    # -- the log
    log_status: str
    """Shows file, offset and filters of the log being written."""
    gtid_position: str
    """An expression: the GTID set after the last committed transaction; empty: the server has no GTIDs."""
    gtid_mode: str
    """An expression that is `ON` when every transaction has a GTID."""
    server: str
    """An expression: what tells this server from others."""
    checksums: bool
    replica_session: tuple[str, ...]
    """What a reader of the log sets before it asks for it."""

    # -- definitions
    generated: str
    """Columns of information_schema.COLUMNS: whether a column is generated (`ALWAYS`), and its expression."""

    # -- baselines
    snapshot_session: str
    snapshot_position: bool
    """The server tells the coordinate of a consistent snapshot. Otherwise commits are held back for a moment."""
    savepoints_keep_locks: bool
    """A transaction that is logged keeps metadata locks when it goes back to a savepoint."""
    float_as_double: str
    """A FLOAT so that its text loses no bits (and no sign of zero)."""
    load_session: str
    """More for a session that loads a baseline."""
    show_create_routines: str
    """What lets an account see the text of routines."""

    # -- rollbacks
    rollback_session: str
    transactions: tuple[str, str]
    """The session's isolation, and how a transaction begins."""
    replay_session: tuple[str, ...]
    """For the session that replays native events."""
    after_description: str
    """After a format description was given to `BINLOG`."""
    variables: Mapping[str, str]
    """Settings that must have the value given while events are replayed: expression → value."""
    triggers_run: str
    """An expression that is `NO` when replayed rows fire no triggers."""
    split_statements: bool
    """`BINLOG` takes an event in two halves."""
    light_engine: str
    """An engine for large guard tables."""
    in_transaction: str
    """An expression: whether a transaction is open; empty: the protocol's status says it."""
    current_role: str
    """An expression that is NULL when no role is in force; empty: there are none."""
    privileges: Mapping[str, tuple[str, ...]]
    """What a rollback does → privileges of which any is enough."""
    bound_session: str
    """For the session that changes rows by bound statements; empty: no such rollbacks."""
    bound_settings: Mapping[str, str]
    """What the log must be written like then: expression → value."""
    joins_miss_blob_keys: bool
    """A DELETE of a join overlooks rows of a table whose key has the beginning of a BLOB or TEXT in it (seen with 5.5)."""
    replica_status: str
    """Shows how the server gets on as a replica, a row for each source that it has."""
    row_lock_privilege: str
    """What an account needs, besides SELECT, to lock the rows it reads."""
    super_read_only: bool


_SESSION = (
    "SET SESSION time_zone = '+00:00', sql_mode = '', autocommit = 1, completion_type = {no_chain},"
    " foreign_key_checks = 1, unique_checks = 1,"
    f" innodb_lock_wait_timeout = {LOCK_WAIT_S}, lock_wait_timeout = {LOCK_WAIT_S},"
    " wait_timeout = 3600, net_read_timeout = 600, net_write_timeout = 600"
)
_SNAPSHOT_SESSION = (
    "SET SESSION sql_mode = '', time_zone = '+00:00', net_write_timeout = 3600, wait_timeout = 86400,"
    " sql_quote_show_create = 1, sql_select_limit = DEFAULT"
)
_BOUND_SESSION = (
    "SET SESSION sql_mode = 'ALLOW_INVALID_DATES,NO_AUTO_VALUE_ON_ZERO', foreign_key_checks = 0, sql_safe_updates = 0"
)
_READ_WRITE = (
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE",
    "START TRANSACTION READ WRITE",
)

_MARIADB = Dialect(
    family="MariaDB",
    since=(10, 5),
    log_status="SHOW MASTER STATUS",
    gtid_position="@@global.gtid_binlog_pos",
    gtid_mode="'ON'",
    server="@@global.server_id",
    checksums=True,
    # No annotations, and the capability to take everything that a current server writes.
    replica_session=("SET @master_binlog_checksum = @@global.binlog_checksum", "SET @mariadb_slave_capability = 4"),
    generated="IS_GENERATED, GENERATION_EXPRESSION",
    snapshot_session=_SNAPSHOT_SESSION + ", max_statement_time = 0, tx_isolation = 'REPEATABLE-READ'",
    snapshot_position=True,
    savepoints_keep_locks=True,
    float_as_double="CAST({} AS DOUBLE)",
    load_session=", check_constraint_checks = 0",
    show_create_routines="GRANT SELECT ON mysql.proc to the account (from MariaDB 11.3: GRANT SHOW CREATE ROUTINE ON *.*)",
    rollback_session=_SESSION.format(no_chain="'NO_CHAIN'") + ", max_statement_time = 0, idle_transaction_timeout = 0,"
    " idle_write_transaction_timeout = 0, idle_readonly_transaction_timeout = 0",
    transactions=_READ_WRITE,
    replay_session=(
        "SET SESSION binlog_format = 'ROW', binlog_row_image = 'FULL', binlog_annotate_row_events = 0,"
        " skip_replication = 0",
    ),
    after_description="",
    variables={"@@slave_exec_mode": "STRICT"},
    triggers_run="@@slave_run_triggers_for_rbr",
    split_statements=True,
    light_engine="Aria TRANSACTIONAL = 0",
    in_transaction="@@in_transaction",
    current_role="CURRENT_ROLE()",
    privileges={
        "replay": ("BINLOG REPLAY", "SUPER"),
        "log": ("BINLOG ADMIN", "SUPER"),
        "fence": ("READ_ONLY ADMIN", "READ ONLY ADMIN", "SUPER"),
    },
    # Not strict: what the server would not store as given it warns of, and warnings are counted.
    bound_session=_BOUND_SESSION + ", check_constraint_checks = 1",
    bound_settings={"@@session.binlog_format": "ROW", "@@session.binlog_row_image": "FULL"},
    joins_miss_blob_keys=False,
    replica_status="SHOW ALL SLAVES STATUS",
    row_lock_privilege="",
    super_read_only=False,
)

_MARIADB_10_11 = dataclasses.replace(
    _MARIADB,
    since=(10, 11),
    # SUPER holds none of these any more.
    privileges={
        "replay": ("BINLOG REPLAY",),
        "log": ("BINLOG ADMIN",),
        "fence": ("READ_ONLY ADMIN", "READ ONLY ADMIN"),
    },
)

_MYSQL_5_5 = dataclasses.replace(
    _MARIADB,
    family="MySQL",
    since=(5, 5),
    gtid_position="",
    gtid_mode="'OFF'",
    replica_status="SHOW SLAVE STATUS",
    checksums=False,
    replica_session=(),
    generated="'NEVER', NULL",
    bound_session=_BOUND_SESSION,
    bound_settings={"@@session.binlog_format": "ROW"},
    joins_miss_blob_keys=True,
    snapshot_session=_SNAPSHOT_SESSION + ", tx_isolation = 'REPEATABLE-READ'",
    snapshot_position=False,
    float_as_double="{} * 1e0",
    load_session="",
    show_create_routines="GRANT SELECT ON mysql.proc to the account",
    rollback_session=_SESSION.format(no_chain="0"),
    transactions=("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "START TRANSACTION"),
    replay_session=("SET SESSION binlog_format = 'ROW'",),
    triggers_run="'NO'",
    split_statements=False,
    light_engine="",
    in_transaction="",
    current_role="",
    # SUPER holds all of it. Without GTIDs the log itself is looked into for a position.
    privileges={
        "replay": ("SUPER",),
        "log": ("SUPER",),
        "fence": ("SUPER",),
        "place": ("REPLICATION SLAVE",),
    },
)
_MYSQL_5_6 = dataclasses.replace(
    _MYSQL_5_5,
    since=(5, 6),
    gtid_position="@@global.gtid_executed",
    bound_settings={"@@session.binlog_format": "ROW", "@@session.binlog_row_image": "FULL"},
    privileges={"replay": ("SUPER",), "log": ("SUPER",), "fence": ("SUPER",)},
    gtid_mode="@@global.gtid_mode",
    server="@@global.server_uuid",
    checksums=True,
    replica_session=("SET @master_binlog_checksum = @@global.binlog_checksum",),
    transactions=_READ_WRITE,
    replay_session=("SET SESSION binlog_format = 'ROW', binlog_row_image = 'FULL', binlog_rows_query_log_events = 0",),
    # Until then the session waits for a GTID of the log that the description opened.
    after_description="SET SESSION gtid_next = 'AUTOMATIC'",
)
_MYSQL_5_7 = dataclasses.replace(
    _MYSQL_5_6,
    since=(5, 7),
    generated="IF(GENERATION_EXPRESSION <> '', 'ALWAYS', 'NEVER'), GENERATION_EXPRESSION",
    rollback_session=_SESSION.format(no_chain="'NO_CHAIN'") + ", max_execution_time = 0",
    savepoints_keep_locks=False,
    variables={"@@session.rbr_exec_mode": "STRICT"},
    super_read_only=True,
)
_MYSQL_8 = dataclasses.replace(
    _MYSQL_5_7,
    since=(8, 0),
    joins_miss_blob_keys=False,
    replica_session=(
        "SET @master_binlog_checksum = @@global.binlog_checksum, @source_binlog_checksum = @@global.binlog_checksum",
    ),
    snapshot_session=_SNAPSHOT_SESSION
    + ", max_execution_time = 0, transaction_isolation = 'REPEATABLE-READ', information_schema_stats_expiry = 0",
    show_create_routines="GRANT SHOW_ROUTINE ON *.* to the account",
    replay_session=(
        "SET SESSION binlog_row_image = 'FULL', binlog_rows_query_log_events = 0, binlog_row_value_options = '',"
        " sql_require_primary_key = 0",
    ),
    current_role="NULLIF(CURRENT_ROLE(), 'NONE')",
    row_lock_privilege="LOCK TABLES",
    bound_settings={
        "@@session.binlog_format": "ROW",
        "@@session.binlog_row_image": "FULL",
        "@@session.binlog_row_value_options": "",
    },
    privileges={
        "replay": ("BINLOG_ADMIN", "REPLICATION_APPLIER", "SUPER"),
        "log": ("SYSTEM_VARIABLES_ADMIN", "SUPER"),
        "fence": ("CONNECTION_ADMIN", "SUPER"),
        "switch": ("SYSTEM_VARIABLES_ADMIN", "SUPER"),  # of `read_only`, behind which `fence` lets us write
    },
)
_MYSQL_8_2 = dataclasses.replace(
    _MYSQL_8, since=(8, 2), log_status="SHOW BINARY LOG STATUS", replica_status="SHOW REPLICA STATUS"
)

# Of each family, ascending.
DIALECTS: Final = (_MARIADB, _MARIADB_10_11, _MYSQL_5_5, _MYSQL_5_6, _MYSQL_5_7, _MYSQL_8, _MYSQL_8_2)

_NUMBERS = re.compile(r"(?:5\.5\.5-)?(\d+)\.(\d+)")


def family_of(version: str) -> Literal["MariaDB", "MySQL"]:
    """Of what a server says its version is."""
    return "MariaDB" if "MariaDB" in version else "MySQL"


def numbers_of(version: str) -> Version:
    """(10, 11) of `5.5.5-10.11.9-MariaDB-log`, (0, 0) of what is no version."""
    m = _NUMBERS.match(version)
    return (int(m[1]), int(m[2])) if m is not None else (0, 0)


def dialect_of(version: str) -> Dialect:
    """The newest dialect that is not newer than the server; for a server older than all, the oldest of its family."""
    family, numbers = family_of(version), numbers_of(version)
    known = [d for d in DIALECTS if d.family == family]
    return next((d for d in reversed(known) if d.since <= numbers), known[0])


def dialect(connection: pymysql.Connection[Any]) -> Dialect:
    """Of the server at the other end."""
    return dialect_of(str(connection.get_server_info()))  # type: ignore[no-untyped-call]
