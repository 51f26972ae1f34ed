"""Points go as they were shown, also when the one who drops them dies on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.commands import Command
from agents.errors import AgentError
from agents.repository import adopt, backups, expiring, marks
from agents.repository import repository as repositories
from agents.repository.ingest import Ingest
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.node import Held
from agents.repository.sessions import Sessions, witnesses
from agents.repository.stores.memory import MemoryStore
from agents.repository.stores.recorded import RecordedStore
from streams.events import RepositoryDefined
from streams.ids import now_us

DAY_US = 86_400_000_000


class Died(BaseException):
    """Nothing of what would follow happens."""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    """A repository with a point of each of the last ten days, of which four are kept."""
    store = RecordedStore(MemoryStore(), tmp_path / "own")
    definition = repositories.create(store, wrap=None)
    repository = repositories.open(store, None, tmp_path / "cache", "node_a")
    sessions = Sessions(MemoryJournal(MemoryLog(), "main"), store, "node_a")
    made = Held("main", store, repository, sessions)
    sessions.say(
        RepositoryDefined(
            repository="main", identity=str(definition.identity), state="added", store="memory", location="",
            node="node_a", encrypted=False, options={"keep": "4d"}, defined_us=1, by="tests",
        )
    )  # fmt: skip
    for day in range(10, 0, -1):
        session = sessions.open("backup", by="tests", asset="web")
        with Ingest(repository, session, slug="main") as ingest:
            point = ingest.seal(backups.draft("web", "web", "disks", None, created_us=now_us() - day * DAY_US))
        session.close(points=[point.point.point])
    yield made
    made.close()


def command(held: Held, digest: str | None = None, *, resumed: bool = False, since_us: int = 0) -> tuple[Command, Any]:
    parameters = {"repository": "main", "dry_run": digest is None, **({"digest": digest} if digest else {})}
    ctx: Any = SimpleNamespace(services=SimpleNamespace(node=SimpleNamespace(get=lambda _: held)))
    return Command("c", "point.expire", "repository/main", parameters, "ada", since_us, resumed=resumed), ctx


def test_an_expiry_that_died_goes_on_and_drops_exactly_what_was_shown(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = expiring.expire(*command(held))
    going = {p["point"] for p in shown["points"] if not p["keep"]}
    assert len(going) == shown["drop"] >= 5
    since = now_us()
    seen = 0

    def dies(place: str) -> None:
        nonlocal seen
        seen += place == "point-dropped"
        if seen == 3:
            raise Died

    with monkeypatch.context() as patched:
        patched.setattr(expiring, "failpoint", dies)
        with pytest.raises(Died):
            expiring.expire(*command(held, shown["digest"], since_us=since))
    assert len(held.sessions.ledger().standing()) == 7

    done = expiring.expire(*command(held, shown["digest"], resumed=True, since_us=since))

    ledger = held.sessions.ledger()
    assert set(ledger.points) - set(ledger.standing()) == going
    assert (done["drop"], done["kept"]) == (shown["drop"], shown["kept"])
    assert set(adopt.dropped_points(held.repository)) == going, "the one that was killed before its mark too"
    again = expiring.expire(*command(held, shown["digest"], resumed=True, since_us=since))
    assert again["drop"] == shown["drop"]
    assert witnesses(held.store)[-1].ordinal == max(p.dropped or 0 for p in ledger.points.values())
    assert len([m for p in going for m in marks.of_point(held.store, p, held.repository.record_key)[0]]) == len(going)


def test_what_others_dropped_since_is_not_taken_for_its_own(held: Held) -> None:
    shown = expiring.expire(*command(held))
    expiring.expire(*command(held, shown["digest"], since_us=now_us()))
    with pytest.raises(AgentError, match="expiry-differs"):
        expiring.expire(*command(held, shown["digest"]))
    with pytest.raises(AgentError, match="expiry-differs"):
        expiring.expire(*command(held, shown["digest"], resumed=True, since_us=now_us() + DAY_US))
