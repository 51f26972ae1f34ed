"""What a restore proves of the repository: that all of a point could be read, every chunk as its name says.

A restore of all that a point holds, with nothing lost, is as good a proof of that point as a full verify, which reads no more of
it. So the point is marked `verified`, with the note `restored`. It is not when the point is known to be damaged or suspect: that
only a full verify takes back, which also looks at second copies. What is restored over an original, or goes on where a run before
ended, proves nothing here: what is there already is not read in the repository.
"""

from __future__ import annotations

from typing import Final

from agents.commands import Context
from agents.errors import AgentError
from agents.repository.handlers import say_mark
from agents.repository.ledger import PointState
from agents.repository.node import Held
from streams.events import Problem

NOTE: Final = "restored"


def by_restore(held: Held, point: str, ctx: Context) -> None:
    """Mark the point. A store that takes no writes is restored from as well: that it could not be noted is said."""
    state = held.sessions.ledger().points.get(point)
    if state is None or state.dropped is not None or _doubtful(state):
        return
    try:
        say_mark(held, point, "verified", ctx.command.requester, note=NOTE)
    except AgentError as error:
        ctx.warn(Problem(error.code, f"that point {point} was restored whole could not be noted: {error.message}", ""))


def _doubtful(state: PointState) -> bool:
    number = {name: mark.number for name, mark in state.marks.items()}
    return max(number.get("damaged", 0), number.get("suspect", 0)) > number.get("verified", 0)
