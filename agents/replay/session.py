"""What a replica asks before it asks for the log, and what it is answered. Pure: text in, packets out.

A replica sets what it wants as user variables (`SET @slave_connect_state='0-1-100'`) and asks after a few of ours. What it
asks that is not known here gets the error that an older primary would give, which replicas expect and pass over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.replay import wire

_SET = re.compile(r"\s*SET\s+@(\w+)\s*(?::?=)\s*('(?:[^'\\]|\\.|'')*'|[^\s,;]+)\s*;?\s*", re.IGNORECASE)
_UNKNOWN_VARIABLE, _SYNTAX = 1193, 1064
# A file that begins with a checksummed event; what its own format description says then holds.
CHECKSUM = "CRC32"


@dataclass(slots=True)
class Session:
    """One connection's state. `server_id` and `version` are those of the source whose log is served; `server_uuid` is one that
    no server has."""

    server_id: int
    version: str
    server_uuid: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def answer(self, sql: str, now: int, sequence: int) -> bytes:
        """The packets that answer one question. `now`: seconds since 1970."""
        found = _SET.fullmatch(sql)
        if found is not None:
            value = found[2]
            self.variables[found[1].lower()] = value[1:-1] if value.startswith("'") else value
            return wire.ok(sequence)
        text = " ".join(sql.strip().rstrip(";").split()).upper()
        if text.startswith("SET "):
            return wire.ok(sequence)
        if text == "SHOW VARIABLES LIKE 'SERVER_ID'":
            return wire.rows(("Variable_name", "Value"), [("server_id", str(self.server_id))], sequence)
        answers: Mapping[str, str] = {
            "SELECT UNIX_TIMESTAMP()": str(now),
            "SELECT @MASTER_BINLOG_CHECKSUM": CHECKSUM,
            "SELECT @@GLOBAL.GTID_DOMAIN_ID": "0",
            "SELECT VERSION()": self.version,
            "SELECT @@GLOBAL.COLLATION_SERVER": "utf8mb4_general_ci",
            "SELECT @@GLOBAL.TIME_ZONE": "SYSTEM",
            # MySQL's
            "SELECT @SOURCE_BINLOG_CHECKSUM": CHECKSUM,
            "SELECT @@GLOBAL.SERVER_ID": str(self.server_id),
            "SELECT @@GLOBAL.SERVER_UUID": self.server_uuid,
            "SELECT @@GLOBAL.GTID_MODE": "ON",
        }
        if text in answers:
            return wire.rows((text.removeprefix("SELECT ").lower(),), [(answers[text],)], sequence)
        self.unknown.append(sql[:200])
        if text.startswith("SELECT @@"):
            return wire.error(_UNKNOWN_VARIABLE, "Unknown system variable", sequence)
        return wire.error(_SYNTAX, "a captured log is served here, and nothing else", sequence, "42000")

    @property
    def connect_state(self) -> str | None:
        """The GTID set that the replica has; None when it asks by file and offset."""
        return self.variables.get("slave_connect_state")
