"""A repository is changed or given up only while nobody works in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.errors import AgentError
from agents.repository import settling
from agents.repository.journal import Entry, MemoryJournal, MemoryLog
from agents.repository.sessions import Sessions
from agents.repository.stores.memory import MemoryStore
from streams.events import Event, RepositoryDefined

WAS = RepositoryDefined(
    repository="main", identity="i", state="added", store="local", location="/srv/a", node="a", encrypted=False,
    options={"dedupe": "repository"}, defined_us=1, by="tests",
)  # fmt: skip


def test_who_works_in_it_is_told_and_nothing_is_said() -> None:
    log = MemoryLog()
    sessions = Sessions(MemoryJournal(log, "main"), MemoryStore(), "a")
    sessions.say(WAS)
    working = sessions.open("backup", by="ada", asset="web")
    with pytest.raises(AgentError, match=r"repository-busy.*backup \(web\)|backup \(web\)") as refused:
        settling._define(sessions, WAS, replace(WAS, state="removed"))
    assert refused.value.code == "repository-busy"
    assert sessions.ledger().defined == WAS
    working.close()
    settling._define(sessions, WAS, replace(WAS, state="removed"))
    assert [e.event.state for e in log.entries if isinstance(e.event, RepositoryDefined)] == ["added", "removed"]


def test_who_came_in_that_moment_keeps_it() -> None:
    log = MemoryLog()
    other = Sessions(MemoryJournal(log, "main"), MemoryStore(), "a")

    class Meanwhile(MemoryJournal):
        def append(self, event: Event) -> Entry:
            if isinstance(event, RepositoryDefined) and event.state == "removed":
                other.open("restore", by="grace")
            return super().append(event)

    sessions = Sessions(Meanwhile(log, "main"), MemoryStore(), "a")
    sessions.say(WAS)
    with pytest.raises(AgentError, match="repository-busy"):
        settling._define(sessions, WAS, replace(WAS, state="removed"))
    defined = sessions.ledger().defined
    assert defined is not None
    assert (defined.state, defined.location) == ("changed", "/srv/a")
