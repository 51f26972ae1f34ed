"""A process that collects in a repository on disk, its log on Kafka, and nothing else: to be killed at any boundary. A
stand-in for an agent that does it among other things.

    python -m tests.stand_ins.collector CONFIG STORE CACHE NODE
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from agents.repository import collection
from agents.repository import repository as repositories
from agents.repository.collection import Rules
from agents.repository.contents import RepositoryContents
from agents.repository.journal import KafkaJournal
from agents.repository.sessions import Sessions
from agents.repository.stores.local import LocalStore
from streams.publish import Publisher
from streams.settings import Settings, load

RULES = Rules(live_share=0.95)


def collect(site: Settings, store: Path, cache: Path, node: str) -> dict[str, int]:
    """What a collection freed, and what was carried on before it."""
    with contextlib.ExitStack() as stack:
        place = LocalStore(store)
        publisher = stack.enter_context(Publisher(site, "test"))
        repository = stack.enter_context(contextlib.closing(repositories.open(place, None, cache, node)))
        journal = stack.enter_context(contextlib.closing(KafkaJournal(site.kafka, publisher, "main")))
        sessions = Sessions(journal, place, node)
        contents = stack.enter_context(contextlib.closing(RepositoryContents(repository)))
        session = sessions.open("collect", by="test")
        figures = {"finished": 0, "freed_bytes": 0}
        finished = collection.finish(sessions, session, contents)
        if finished is not None:
            figures["finished"] = 1
        proposal = collection.propose(sessions, session, contents, RULES)
        if proposal is not None:
            figures |= collection.execute(sessions, session, contents, proposal, RULES)
        session.close()
        return figures


if __name__ == "__main__":
    collect(load(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
