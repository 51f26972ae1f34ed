"""MariaDB as a protected source: its binlog read over the replication protocol, preflight, connections."""

from __future__ import annotations

from agents.platforms.mariadb.connection import connect
from agents.platforms.mariadb.source import MariaDBSource
from agents.protocol import Source, SourceSettings

__all__ = ["MariaDBSource", "connect", "source"]


def source(settings: SourceSettings) -> Source:
    """See `agents.protocol.Platform`."""
    return MariaDBSource(settings)
