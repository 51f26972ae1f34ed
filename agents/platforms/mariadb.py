"""MariaDB as a protected source and as a rollback's target."""

from __future__ import annotations

from agents.mysql.apply import target
from agents.mysql.source import BinlogSource
from agents.protocol import Source, SourceSettings

__all__ = ["source", "target"]


def source(settings: SourceSettings) -> Source:
    """See `agents.protocol.Platform`."""
    return BinlogSource(settings)
