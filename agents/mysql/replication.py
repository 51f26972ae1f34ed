"""How a server gets on as a replica of another: what `SHOW REPLICA STATUS` says, in this room's terms.

A replica that is behind catches up, and one whose threads somebody stopped goes on when they are started again. One that
stopped at an error stays there until somebody mends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pymysql
from pymysql.cursors import DictCursor

from agents.mysql.dialects import dialect
from agents.rollback.target import Replication

_MAY_NOT_ASK = 1227  # MariaDB: REPLICA MONITOR, MySQL: REPLICATION CLIENT


def replication(connection: pymysql.Connection[Any]) -> Replication | None:
    """See `agents.rollback.target.Target.replication`. Of several sources, the one that is worst."""
    with connection.cursor(DictCursor) as cursor:
        try:
            cursor.execute(dialect(connection).replica_status)
        except pymysql.err.OperationalError as error:
            if error.args[0] != _MAY_NOT_ASK:
                raise
            return None
        found = [_of(row) for row in cursor.fetchall()]
    return max(found, key=lambda r: (r.broken, bool(r.text)), default=None)


def _of(row: Mapping[str, Any]) -> Replication:
    status = {name.replace("Replica_", "Slave_").replace("Source", "Master"): value for name, value in row.items()}
    for thread, part in (("SQL", "applying"), ("IO", "receiving")):
        running, error = status[f"Slave_{thread}_Running"], str(status[f"Last_{thread}_Error"] or "")
        if running == "No" and error:
            return Replication(f"{part} stopped at an error: {error}", True)
        if running == "No":
            return Replication(f"{part} is stopped ({thread} thread)", False)
        if running != "Yes" and error:
            return Replication(f"{part}: {error}", False)
    behind = status["Seconds_Behind_Master"]
    return Replication(f"{behind} s behind" if behind else "", False)
