"""The agents (nodes) of a site: what one is called, whose a command is, and who has been silent for how long.

A node is a data directory: its lock says that one process at a time is that node (`agents.__main__.sole`), its file `node` what
it is called, the newest name last. So a machine that is renamed, or a container that is made anew, stays who it was.

    inventory    source.changed(baseline), by      the source's agent: its baselines lie there
    inventory    scratch.changed, by               where the copy runs
    repository   repository.defined, node          who keeps the repository
    commands     command.requested, node           said by whoever asked

What belongs to nobody is whoever's who claims it first (`streams.job_states`).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from streams.events import Event, RepositoryDefined, ScratchChanged, SourceChanged, SourceDefined
from streams.settings import Settings

FILE: Final = "node"
# Paths in their parameters are those of one machine: what one node has begun no other goes on with.
LOCAL: Final = frozenset({"backup.make", "point.restore", "restore.run"})
# Makes that others can be done, so it passes them where they wait.
OVERTAKES: Final = frozenset({"repository.move"})


@dataclass(frozen=True, slots=True)
class Names:
    """What a node is called: `agent` in events (`by`), `node` in packs and sessions. `all`: and ever was."""

    agent: str
    node: str
    all: frozenset[str]

    def mine(self, owner: str) -> bool:
        return owner in self.all


def names(settings: Settings) -> Names:
    """Read from the data directory, and written there when they are new. For the owner of its lock."""
    path = settings.data_dir / FILE
    known = path.read_text("utf-8").split() if path.exists() else []
    wanted = settings.agent.node or (known[-1] if known else socket.gethostname())
    if not known or known[-1] != wanted:
        known = [name for name in known if name != wanted] + [wanted]
        write_new(path, "".join(f"{name}\n" for name in known))
    return called(known)


def called(known: Iterable[str]) -> Names:
    """From the names that a node had, the newest last."""
    ever = list(known)
    both = [(f"agent-{name}", node_name(name)) for name in ever]
    return Names(*both[-1], frozenset(name for pair in both for name in pair))


def node_name(host: str = "") -> str:
    """A name as packs and sessions carry it: small letters, digits and _. This machine's where none is given."""
    return re.sub(r"[^a-z0-9_]", "_", (host or socket.gethostname()).lower())[:32] or "node"


def machine_name() -> str:
    return socket.gethostname()


def write_new(path: Path, text: str) -> None:
    """There whole or not at all; a death before leaves a node that is named again, the same."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(path)


@dataclass(slots=True)
class Owners:
    """Who has what, as `inventory` and `repository` say. Fed in the order of each."""

    sources: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, str] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        match event:
            case SourceDefined():
                self.sources.setdefault(event.source, "")
            case SourceChanged():
                if event.state == "removed":
                    self.sources.pop(event.source, None)
                elif event.state == "baseline":
                    self.sources[event.source] = event.by
            case ScratchChanged():
                self.copies[event.scratch] = event.by
            case RepositoryDefined():
                self.repositories[event.repository] = "" if event.state == "removed" else event.node

    def of(self, kind: str, asset: str, parameters: Mapping[str, Any], node: str = "", begun_by: str = "") -> str:
        """Whose a command is; empty: whoever's. `begun_by`: who held its job last."""
        if node:
            return node
        if kind in LOCAL and begun_by:
            return begun_by
        if kind in OVERTAKES:
            return str(parameters.get("node", ""))
        if "repository" in parameters:
            return self.repositories.get(str(parameters["repository"]), "")
        if kind.startswith("repository."):  # made or adopted anew, where it is when there is one
            return self.repositories.get(str(parameters.get("name", "")), "")
        if kind == "scratch.drop":
            return self.copies.get(str(parameters.get("name", "")), "")
        if kind.startswith("scratch."):
            return self.sources.get(str(parameters.get("source", "")), "")
        if kind.startswith(("source.", "rollback.")):
            return self.sources.get(asset, "")
        return ""


class Silence:
    """For how long every run of an agent has said nothing, in time that passes only while this one hears itself in the log.

    So a log that is away, or read late, makes nobody look dead. Liveness only: a claim that is ended too soon costs its work.
    """

    def __init__(self, me: str, beat_s: float) -> None:
        self._me = me
        self._most = 2 * beat_s
        self._clock = 0.0
        self._at: float | None = None
        self._heard: dict[str, float] = {}

    def heard(self, writer: str, now: float) -> None:
        """`now`: seconds by the monotonic clock."""
        if writer == self._me:
            if self._at is not None:
                self._clock += min(now - self._at, self._most)
            self._at = now
        self._heard[writer] = self._clock

    def of(self, writer: str) -> float:
        """Seconds; 0 when it is asked about for the first time."""
        return self._clock - self._heard.setdefault(writer, self._clock)
