"""Which run of which agent has a name: a fold over `node.changed` events in the order of the log. Pure.

    started(r1)   started(r2, replaces r1)   started(r3, replaces r1)   stopped(r1)   stopped(r2)   started(r4, replaces r2)
    counts        counts: r1 is over         void                       void          counts        counts

- `started` counts when it names the run that has the name now; none, where nobody ever had it. So of two that would take it at
  once the first has it, and the other, reading that, knows.
- `stopped` counts when it names the run that has the name. The name is then free, and whoever takes it names that run.

Who has a name does not decide whose word counts about a job or a repository: those have fences of their own. It decides who of
two agents of one name goes on, and what a list of nodes shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from streams.events import Event, NodeChanged


def counts(standing: NodeChanged | None, event: NodeChanged) -> bool:
    """Whether the next event about a node says anything; `standing` is the last one that did."""
    if event.state == "started":
        return event.replaces == (standing.run if standing else "") and not (standing and event.run == standing.run)
    return standing is not None and standing.state == "started" and event.run == standing.run


@dataclass(slots=True)
class NodeLog:
    """Who has which name."""

    standing: dict[str, NodeChanged] = field(default_factory=dict)

    def apply(self, event: Event) -> bool:
        """Take in the next event; whether it counted. What is none of ours does not."""
        if not isinstance(event, NodeChanged) or not counts(self.standing.get(event.node), event):
            return False
        self.standing[event.node] = event
        return True
