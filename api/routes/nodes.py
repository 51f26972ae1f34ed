"""Nodes: the agents of a site, which of them are alive, what they have and what they are at."""

from __future__ import annotations

from typing import Any

from api import shapes
from api.calls import Call, Reply
from api.errors import not_found
from projections.views import catalogue, dashboard, jobs, nodes, repositories
from projections.views.base import Connection
from projections.views.dashboard import AgentHealth
from projections.views.nodes import Node
from streams.ids import now_us

_JOBS = 1000  # open ones that are looked at for their holder


def _known(call: Call, conn: Connection) -> dict[str, tuple[Node | None, AgentHealth | None]]:
    """By name: what was said of each agent's starts, and its last heartbeat. Agents from before only have that."""
    call.site.catch_up(conn, "nodes", "inventory", "")
    beats = {row.agent: row for row in dashboard.agents(conn, "")}
    said = {row.node: row for row in nodes.nodes(conn)}
    return {name: (said.get(name), beats.get(name)) for name in sorted({*said, *beats})}


def _shape(call: Call, name: str, said: Node | None, beat: AgentHealth | None, now: int) -> dict[str, Any]:
    """`alive` within the lease of its last word; `stopped` once it ended in order; else `silent`."""
    lease_s = said.lease_s if said else call.site.settings.agent.lease_s
    heard = max([row.at_us for row in (beat, said) if row is not None], default=0)
    stopped = said is not None and said.state == "stopped" and said.at_us >= (beat.at_us if beat else 0)
    state = "stopped" if stopped else "alive" if now - heard <= lease_s * 1_000_000 else "silent"
    figures = beat.figures if beat and state == "alive" else {}
    return {
        "name": name,
        "node": name.removeprefix("agent-"),
        "state": state,
        "heard": shapes.time(heard),
        "since": shapes.time(said.at_us) if said else None,
        "first": shapes.time(said.first_us) if said else None,
        "starts": said.starts if said else 0,
        "machine": said.machine if said else "",
        "version": said.version if said else "",
        "names": list(said.names) if said else [name],
        "lease_s": lease_s,
        "running": int(figures.get("jobs_running", 0)),
        "waiting": int(figures.get("jobs_waiting", 0)),
    }


def list_all(call: Call) -> Reply:
    now = now_us()
    with call.site.views() as conn:
        found = _known(call, conn)
    return Reply({"items": [_shape(call, name, *rows, now) for name, rows in found.items()]})


def show(call: Call) -> Reply:
    """By either of its names: as events have it (`agent-x`), or as it is called (`x`)."""
    wanted, now = call.text("node"), now_us()
    with call.site.views() as conn:
        found = _known(call, conn)
        name = wanted if wanted in found else f"agent-{wanted}"
        if name not in found:
            raise not_found("node", wanted, "`holdfast node list` shows them")
        out = _shape(call, name, *found[name], now)
        names = {*out["names"], name}
        call.site.catch_up(conn, "jobs", "jobs", "")
        held = [row for row in jobs.jobs(conn, active=True, limit=_JOBS) if row.holder in names]
        kept = [row.repository for row in repositories.repositories(conn) if row.node in names]
        sources = [row.source for row in catalogue.sources(conn) if _agent_of(conn, row.source) in names]
    return Reply({**out, "repositories": kept, "sources": sources, "jobs": [shapes.job(row) for row in held]})


def _agent_of(conn: Connection, source: str) -> str:
    """Whose a source is (`agents.nodes.Owners`): who made its baseline last."""
    return next((row.by for row in catalogue.history(conn, source, limit=10_000) if row.state == "baseline"), "")
