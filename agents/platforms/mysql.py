"""MySQL as a protected source and as a rollback's target: 5.5 with what it lacks, 5.6 to 9.x."""

from __future__ import annotations

import dataclasses
from typing import Final

from agents.mysql import apply, bound, replay_mysql
from agents.mysql.preflight import Must, Requirements, Values, Warn, common_warnings
from agents.mysql.private_mysql import MySQLPrivateServer
from agents.mysql.replayer import BinlogReplayer
from agents.mysql.source import BinlogSource
from agents.mysql.table import NativeTables
from agents.protocol import Source, SourceSettings
from agents.rollback.target import Target

__all__ = ["replayer", "source", "tables", "target"]


def replayer() -> BinlogReplayer:
    """See `agents.scratch.engine.Replayer`."""
    return BinlogReplayer(replay_mysql, MySQLPrivateServer, mysql=True)


def tables() -> NativeTables:
    """See `agents.scratch.engine.Tables`."""
    return NativeTables()


def target(settings: SourceSettings, method: str = "native") -> Target:
    """The same server as the target of a rollback; see `agents.registry.target`."""
    return bound.target(settings) if method == "bound" else apply.target(settings)


def source(settings: SourceSettings) -> Source:
    """See `agents.protocol.Platform`."""
    return BinlogSource(settings, REQUIREMENTS)


def _capability(values: Values) -> dict[str, bool]:
    """Levels, as docs/guides/mysql-source.md explains them. A version without `binlog_row_image` logs whole rows."""
    return {
        "gtid": values.get("gtid_mode") == "ON",
        "rows": values.get("binlog_format", "ROW").upper() == "ROW",
        "images-full": values.get("binlog_row_image", "FULL").upper() == "FULL",
        "metadata-full": values.get("binlog_row_metadata", "").upper() == "FULL",
        "checksums": values.get("binlog_checksum") == "CRC32",
        "crash-safe": values.get("sync_binlog") == "1",
    }


_NO_GTIDS: Final = Warn(
    "source-gtid-off",
    lambda v: v.get("gtid_mode", "OFF") == "OFF",
    "the server gives its transactions no GTIDs: positions are files and offsets, and no failover can be followed",
    "MySQL 5.6 and later: enforce_gtid_consistency=ON and gtid_mode=ON, then take a new baseline",
)

_5_5: Final = Requirements(
    family="MySQL",
    since=(5, 5),
    section="mysqld",
    must=(Must("binlog_format", ("ROW",), "statements instead of rows cannot be undone"),),
    warn=(*common_warnings("mysqld"), _NO_GTIDS),
    privileges={
        "REPLICATION SLAVE": "to be sent the log",
        "REPLICATION CLIENT": "to see what the log holds, from when to when",
        "RELOAD": "to hold commits back for the moment in which the baseline's snapshot begins",
        "SELECT": "to read the baseline",
        "SHOW VIEW": "to read views' definitions for the baseline",
        "TRIGGER": "to read triggers' definitions for the baseline",
        "EVENT": "to read events' definitions for the baseline",
    },
    capability=_capability,
    variables=(
        "gtid_mode", "sync_binlog", "innodb_flush_log_at_trx_commit", "binlog_checksum", "binlog_expire_logs_seconds",
        "binlog_expire_logs_auto_purge", "expire_logs_days", "binlog_row_image", "binlog_row_metadata",
    ),
    replica_status="SHOW SLAVE STATUS",
)  # fmt: skip
_5_6: Final = dataclasses.replace(
    _5_5,
    since=(5, 6),
    must=(
        *_5_5.must,
        Must("binlog_row_image", ("FULL",), "rows are not logged whole, so what stood there before is not known"),
        Must(
            "gtid_mode",
            ("ON", "OFF"),
            "some transactions have a GTID and some have none, and a position would not say what is behind it",
        ),
    ),
)
_8_0: Final = dataclasses.replace(
    _5_6,
    since=(8, 0),
    must=(
        *_5_6.must,
        Must("binlog_row_metadata", ("FULL",), "names and keys of columns are not logged"),
        Must("binlog_row_value_options", ("",), "changes of JSON values are logged in part and cannot be undone"),
    ),
    privileges={**_5_6.privileges, "SHOW_ROUTINE": "to read routines' definitions for the baseline"},
)
_8_4: Final = dataclasses.replace(_8_0, since=(8, 4), replica_status="SHOW REPLICA STATUS")

REQUIREMENTS: Final = (_5_5, _5_6, _8_0, _8_4)
