"""`repository.move`: a repository that another node keeps is this node's from now on, because that one died or is to be spared.

    the place is reached, and holds the repository that the log names    nothing
    repository.defined (moved, node)                                     sessions that the other node opens are refused
    session.fenced, each that the other node has open                    what they write from now on is nobody's

A death in between leaves sessions that are open still: the same command, resumed, fences them. The other node, should it live,
learns it at its next look at the log; whatever it had under way ends `session-lost`, and what it seals meanwhile does not count
(`agents.repository.ledger`). Files that it has written are garbage of epochs that are over.

Both nodes must have what opens the repository: the site's secrets, and a place that both reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.commands import Command, Context
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository.node import UNKNOWN


def move(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.move`, carried out by the node that it is to be."""
    node, name = ctx.services.node, str(command.parameters["repository"])
    known = node.defined(name)
    if known is None:
        raise AgentError(UNKNOWN, f"there is no repository {name!r}", "`holdfast repository list` shows them")
    ctx.progress(f"reaching {known.location}")
    held = node.taken(name)
    if known.node != node.name:
        held.repository.in_place()
        ctx.check()
        failpoint("move.opened")
        held.sessions.say(
            replace(known, state="moved", node=node.name, defined_us=held.sessions.clock(), by=command.requester)
        )
    failpoint("move.said")
    fenced = [s for s in held.sessions.ledger().open_sessions() if s.opened.node != node.name]
    for session in fenced:
        held.sessions.fence(session.opened.session, f"the repository was moved to {node.name}", node.name)
    return {"node": node.name, "before": "" if known.node == node.name else known.node, "fenced": len(fenced)}
