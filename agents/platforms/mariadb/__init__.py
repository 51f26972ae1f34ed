"""MariaDB as a protected source: its binlog read over the replication protocol, preflight, connections."""

from __future__ import annotations

from agents.platforms.mariadb.connection import connect

__all__ = ["connect"]
