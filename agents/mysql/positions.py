"""MariaDB's GTID sets: one GTID for each domain, `0-1-100,1-1-7`, the last that was seen there.

Compared by containment, never by maximum. https://mariadb.com/kb/en/gtid/
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agents.errors import AgentError

# Server id, sequence, domain, flags: as a GTID event holds them. A plain tuple, for there are millions of them.
Gtid = tuple[int, int, int, int]
GtidSet = Mapping[int, Gtid]

_GTID = re.compile(r"(\d{1,10})-(\d{1,10})-(\d{1,20})")


def parse(text: str) -> dict[int, Gtid]:
    """The set by domain. Raises `AgentError` (`position-invalid`)."""
    out: dict[int, Gtid] = {}
    for entry in filter(None, (e.strip() for e in text.split(","))):
        m = _GTID.fullmatch(entry)
        if m is None or int(m[1]) in out:
            raise AgentError("position-invalid", f"{text!r} is no GTID set", "a set looks like 0-1-100,1-1-7")
        out[int(m[1])] = (int(m[2]), int(m[3]), int(m[1]), 0)
    return out


def show(position: GtidSet) -> str:
    """The canonical text: sorted by domain."""
    return ",".join(show_gtid(position[domain]) for domain in sorted(position))


def show_gtid(gtid: Gtid) -> str:
    """`0-1-100`: domain, server id, sequence."""
    return f"{gtid[2]}-{gtid[0]}-{gtid[1]}"


def reaches(position: GtidSet, other: GtidSet) -> bool:
    """Whether a server at `position` can have all of `other` behind it.

    For the same sequence number the server id must be the same: another server's GTID in its place is another history.
    """
    for domain, (server_id, sequence, _, _) in other.items():
        has = position.get(domain)
        if has is None or has[1] < sequence or (has[1] == sequence and has[0] != server_id):
            return False
    return True
