"""The sources there are, as `inventory` has them. Fed in the order of the log by one thread, asked by many."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace

from agents.errors import AgentError
from streams.events import Event, Problem, SourceChanged, SourceDefined

REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One source. `state` is `defined` until it has been said to be anything else; `baselines` are all that a lineage of
    it started from."""

    defined: SourceDefined
    state: str = "defined"
    lineage: str = ""
    epoch: int = 0
    server_version: str = ""
    capability: tuple[str, ...] = ()
    position: str = ""
    ordinal: int = 0
    baseline: str = ""
    problems: tuple[Problem, ...] = ()
    baselines: frozenset[str] = field(default=frozenset())


class Sources:
    """All sources by name."""

    def __init__(self) -> None:
        self._entries: dict[str, SourceEntry] = {}
        self._changed = threading.Condition()
        self._seen: deque[str] = deque(maxlen=REMEMBERED)

    def apply(self, event: Event, event_id: str = "") -> str | None:
        """Take in the next event of `inventory`; the source it concerns, or None when it is none of ours to know."""
        with self._changed:
            name = self._apply(event)
            if event_id:
                self._seen.append(event_id)
                self._changed.notify_all()
            return name

    def _apply(self, event: Event) -> str | None:
        if isinstance(event, SourceDefined):
            old = self._entries.get(event.source)
            if old is None or old.state == "removed":
                kept = old.baselines if old is not None else frozenset()
                self._entries[event.source] = SourceEntry(event, baselines=kept)
            else:
                self._entries[event.source] = replace(old, defined=event)
            return event.source
        if not isinstance(event, SourceChanged):
            return None
        old = self._entries.get(event.source)
        if old is None:
            return None
        if event.lineage == old.lineage and event.epoch and event.epoch < old.epoch:
            return None  # of one that was fenced
        self._entries[event.source] = replace(
            old,
            state=event.state,
            lineage=event.lineage or old.lineage,
            epoch=event.epoch or old.epoch,
            server_version=event.server_version or old.server_version,
            capability=event.capability or old.capability,
            position=event.position or old.position,
            ordinal=event.ordinal if event.position else old.ordinal,
            baseline=event.baseline or old.baseline,
            problems=event.problems,
            baselines=old.baselines | {event.baseline} if event.baseline else old.baselines,
        )
        return event.source

    def await_event(self, event_id: str, timeout: float = 30.0) -> None:
        """Return when the event with this `ce_id` has been taken in. Raises `AgentError` (`inventory-behind`)."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while event_id not in self._seen:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AgentError("inventory-behind", f"inventory was not read back within {timeout:g} s")
                self._changed.wait(left)

    def find(self, name: str) -> SourceEntry | None:
        with self._changed:
            return self._entries.get(name)

    def get(self, name: str) -> SourceEntry:
        """Raises `AgentError` (`source-unknown`); a removed source is unknown."""
        entry = self.find(name)
        if entry is None or entry.state == "removed":
            raise AgentError("source-unknown", f"there is no source {name}", "see `holdfast source list`")
        return entry

    def all(self) -> dict[str, SourceEntry]:
        """Those that are not removed."""
        with self._changed:
            return {name: entry for name, entry in self._entries.items() if entry.state != "removed"}
