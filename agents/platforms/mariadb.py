"""MariaDB as a protected source and as a rollback's target."""

from __future__ import annotations

from typing import Final

from agents.mysql import apply, bound, replay
from agents.mysql.preflight import Must, Requirements, Values, Warn, common_warnings
from agents.mysql.private import PrivateServer
from agents.mysql.replayer import BinlogReplayer
from agents.mysql.source import BinlogSource
from agents.mysql.table import NativeTables
from agents.protocol import Source, SourceSettings
from agents.rollback.target import Target

__all__ = ["replayer", "source", "tables", "target"]


def source(settings: SourceSettings) -> Source:
    """See `agents.protocol.Platform`."""
    return BinlogSource(settings, REQUIREMENTS)


def target(settings: SourceSettings, method: str = "native") -> Target:
    """The same server as the target of a rollback; see `agents.registry.target`."""
    return bound.target(settings) if method == "bound" else apply.target(settings)


def replayer() -> BinlogReplayer:
    """See `agents.scratch.engine.Replayer`."""
    return BinlogReplayer(replay, PrivateServer)


def tables() -> NativeTables:
    """See `agents.scratch.engine.Tables`."""
    return NativeTables()


def _capability(values: Values) -> dict[str, bool]:
    """Levels, as docs/guides/mariadb-source.md explains them."""
    return {
        "gtid": values.get("log_bin") == "ON",
        "rows": values.get("binlog_format", "").upper() == "ROW",
        "images-full": values.get("binlog_row_image", "").upper() == "FULL",
        "metadata-full": values.get("binlog_row_metadata", "").upper() == "FULL",
        "checksums": values.get("binlog_checksum") == "CRC32",
        "crash-safe": values.get("sync_binlog") == "1",
    }


REQUIREMENTS: Final = (
    Requirements(
        family="MariaDB",
        since=(10, 5),  # older ones do not log names and keys of columns
        section="mariadbd",
        must=(
            Must("binlog_format", ("ROW",), "statements instead of rows cannot be undone"),
            Must("binlog_row_image", ("FULL",), "rows are not logged whole, so what stood there before is not known"),
            Must("binlog_row_metadata", ("FULL",), "names and keys of columns are not logged"),
            Must(
                "gtid_strict_mode",
                ("ON",),
                "GTIDs may be logged out of order, and a position would not say what is behind it",
            ),
        ),
        warn=(
            *common_warnings("mariadbd"),
            Warn(
                "source-log-limited",
                lambda v: int(v.get("max_binlog_total_size") or 0) > 0,
                "max_binlog_total_size limits the log: a burst of writes can purge what was not captured yet",
                "SET GLOBAL max_binlog_total_size = 0; or keep slave_connections_needed_for_purge at 1",
            ),
        ),
        privileges={
            "REPLICATION SLAVE": "to be sent the log",
            "BINLOG MONITOR": "to see what the log holds, from when to when",
            "SELECT": "to read the baseline",
            "SHOW VIEW": "to read views' definitions for the baseline",
            "TRIGGER": "to read triggers' definitions for the baseline",
            "EVENT": "to read events' definitions for the baseline",
        },
        capability=_capability,
        variables=(
            "gtid_slave_pos", "sync_binlog", "innodb_flush_log_at_trx_commit", "binlog_checksum",
            "binlog_expire_logs_seconds", "expire_logs_days", "max_binlog_total_size",
        ),
    ),
)  # fmt: skip
