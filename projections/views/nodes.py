"""Nodes: which agents there are, under which names, since when, and whether they ended in order.

All of it is in one partition, so what counts (`streams.node_log`) is known where it is applied. Whether one is alive is not in
here: heartbeats are the view `dashboard`'s, and go with time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from psycopg.rows import kwargs_row

from projections.views.base import Connection, Cursor, canonical, clock, event_id, moment, text
from streams.events import NodeChanged
from streams.node_log import counts

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "nodes"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {"node_change": ("node", "event")}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory",)


@dataclass(frozen=True, slots=True)
class Node:
    """An agent as last said (`streams.events.nodes.NodeChanged`). `first_us`: since when there is one of that name; `starts`: how
    often it was started."""

    node: str
    state: str
    run: str
    home: str
    machine: str
    version: str
    names: tuple[str, ...]
    lease_s: int
    at_us: int
    first_us: int
    starts: int


_CHANGE = """
INSERT INTO node_change (node, event, hlc, counts, state, run, replaces, home, boot, machine, version, names, lease_s, at_us)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_STANDING = (
    "SELECT state, run, at_us FROM node_change WHERE node = %s AND counts = 1 ORDER BY hlc DESC, event DESC LIMIT 1"
)


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """What is said of nodes; other events of this topic are other views'."""
    for message in messages:
        if not isinstance(message.event, NodeChanged):
            continue
        event = replace(message.event, run=text(message.event.run), replaces=text(message.event.replaces))
        node, number = text(event.node), event_id(message)
        if cursor.execute("SELECT 1 FROM node_change WHERE node = %s AND event = %s", (node, number)).fetchone():
            continue
        found = cursor.execute(_STANDING, (node,)).fetchone()
        standing = found and NodeChanged(node=node, state=found[0], run=found[1], at_us=found[2], by="")
        said = (event.state, event.run, event.replaces, event.home, event.boot, event.machine, event.version)
        names = canonical([text(name) for name in event.names])
        counted = int(counts(standing or None, event))
        values = (node, number, clock(message), counted, *map(text, said), names, event.lease_s, event.at_us)
        cursor.execute(_CHANGE, values)


_NODES = """
SELECT n.node, n.state, n.run, n.home, n.machine, n.version, n.names, n.lease_s, n.at_us, s.first_us, s.starts FROM (
    SELECT DISTINCT ON (node) * FROM node_change WHERE counts = 1 AND hlc <= %(until)s ORDER BY node, hlc DESC, event DESC
) n JOIN (
    SELECT node, min(at_us) AS first_us, count(*) FILTER (WHERE state = 'started') AS starts
    FROM node_change WHERE counts = 1 AND hlc <= %(until)s GROUP BY node
) s USING (node) ORDER BY n.node
"""


def _node(**row: Any) -> Node:
    return Node(**row | {"names": tuple(json.loads(row["names"]))})


def nodes(conn: Connection, *, as_of_us: int | None = None) -> list[Node]:
    """All agents that ever had a name, by name."""
    with conn.cursor(row_factory=kwargs_row(_node)) as cur:
        return cur.execute(_NODES, {"until": moment(as_of_us)}).fetchall()
