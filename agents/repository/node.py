"""A node's repositories: opened when first asked for, ticked while anybody works in them, closed with the agent.

A repository belongs to the node that its newest `repository.defined` names. Everything else about it stands in its own files, or
follows from the log. At the node's start sessions that a dead run of it had left open are closed: whoever asked for their
work asks again, in another session (`agents.loop` calls the handlers with `resumed`).

Time goes on for sessions and collections by ticks (`agents.repository.sessions.Ticker`), from one thread of this module. When the
log cannot be seen it keeps trying: a node that is silent for too long is fenced by those that are not.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.errors import AgentError
from agents.nodes import node_name
from agents.repository import keys
from agents.repository import repository as repositories
from agents.repository.journal import Counting, KafkaJournal
from agents.repository.ledger import Ledger
from agents.repository.places import open_store
from agents.repository.repository import Repository
from agents.repository.sessions import Session, Sessions, Ticker
from agents.repository.stores import Store
from agents.repository.stores.recorded import RecordedStore
from agents.repository.watch import Look, Watch
from streams.consume import read_topic
from streams.errors import StreamError
from streams.events import RepositoryChecked, RepositoryDefined
from streams.publish import Publisher
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name

UNKNOWN: Final = "repository-unknown"
ELSEWHERE: Final = "repository-elsewhere"
_TURN_S: Final = 1.0
_WATCH_S: Final = 3600.0
_log = logging.getLogger("holdfast.node")


@dataclass(frozen=True, slots=True)
class Held:
    """An open repository and this node's dealings with its log."""

    name: str
    store: RecordedStore
    repository: Repository
    sessions: Sessions

    @property
    def defined(self) -> RepositoryDefined:
        """As it is defined now."""
        found = self.sessions.ledger().defined
        assert found is not None
        return found

    def close(self) -> None:
        self.sessions.journal.close()
        self.repository.close()
        self.store.close()


@contextlib.contextmanager
def closing(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        problems = (error.problem(),) if isinstance(error, AgentError) else ()
        with contextlib.suppress(AgentError):  # the log is away: its lease runs out
            session.close("failed", problems=problems)
        raise


class Node:
    """`start` once, `close` at the end. Safe to call from several threads."""

    def __init__(self, settings: Settings, publisher: Publisher, secrets: SecretStore, name: str = "") -> None:
        self.name = name or node_name()
        self.cache = settings.data_dir / "repositories"
        self._settings = settings
        self._publisher = publisher
        self._secrets = secrets
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._log_lock = threading.Lock()
        self._log: dict[str, tuple[Counting, Ledger]] = {}
        self._log_next = 0
        self._stop = threading.Event()
        self._ticker = Ticker()
        self._thread = threading.Thread(target=self._run, name="repositories", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watch-repositories", daemon=True)
        self._watches: dict[str, Watch] = {}

    def start(self) -> None:
        self._thread.start()
        self._watcher.start()

    def close(self) -> None:
        self._stop.set()
        for thread in (self._thread, self._watcher):
            if thread.is_alive():
                thread.join(30)
        with self._lock:
            for held in self._held.values():
                held.close()
            self._held.clear()

    # --- repositories --------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Held:
        """The repository of that name. Raises `AgentError` (`repository-unknown`, `repository-elsewhere`), `RepositoryError`,
        `StoreError`, `JournalError`."""
        with self._lock:
            held = self._held.get(name)
            if held is None:
                held = self._held[name] = self._opened(name)
        if (keeper := held.defined.node) != self.name:
            raise self._elsewhere(name, keeper)
        return held

    def _elsewhere(self, name: str, keeper: str) -> AgentError:
        return AgentError(
            ELSEWHERE,
            f"repository {name} belongs to node {keeper}, and this is {self.name}",
            f"ask there, or take it over: `holdfast repository move {name} --to {self.name}`",
        )

    def taken(self, name: str) -> Held:
        """The same of one that may be another node's still: for whoever makes it this one's. Raises as `get`."""
        with self._lock:
            held = self._held.get(name)
            if held is None:
                held = self._held[name] = self._opened(name, anybodys=True)
            else:
                held.repository.refresh()  # of when it was ours before
        self._watch_of(held.repository).begin()
        return held

    def store(self, name: str, kind: str, location: str, options: Mapping[str, str], secret: str) -> RecordedStore:
        """The store of a repository, which remembers what this node does to it. Raises `AgentError`, `StoreError`."""
        return RecordedStore(open_store(kind, location, options, secret), self.cache / f"{name}.own")

    def sessions(self, name: str, store: Store) -> Sessions:
        """Dealings with the log of a repository, known or not. The caller closes its journal."""
        journal = KafkaJournal(self._settings.kafka, self._publisher, name)
        return Sessions(journal, store, self.name)

    def unlock(self, passphrase: str | None = None, recovery: bytes | None = None) -> Callable[[Store], bytes]:
        """What opens a repository here: what is given, or this site's secret store."""
        return lambda store: keys.unlock(store, passphrase=passphrase, secret_of=self._secrets.get, recovery=recovery)

    def hold(self, name: str, store: RecordedStore, repository: Repository, sessions: Sessions) -> Held:
        """Keep a repository that was just made or adopted."""
        self._watch_of(repository).begin()
        with self._lock:
            held = self._held[name] = Held(name, store, repository, sessions)
            return held

    def defined(self, name: str) -> RepositoryDefined | None:
        """The newest definition of that name; None where there is none, or it was removed."""
        return self._definitions().get(name)

    def removed(self, name: str) -> RepositoryDefined | None:
        """The last definition of a repository of that name that this site gave up: its log is under that name still."""
        found = self._last_definitions().get(name)
        return found if found is not None and found.state == "removed" else None

    def let_go(self, name: str) -> None:
        """Close a repository; whoever asks for it next opens it as it is defined then."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is not None:
            held.close()

    def called(self, identity: str) -> str:
        """The name that a repository has here already; empty when it has none."""
        found = (e.repository for e in self._definitions().values() if (e.identity, e.node) == (identity, self.name))
        return next(found, "")

    def ledgers(self) -> list[Ledger]:
        """What the log says of every repository there ever was, whosever it is. Raises `JournalError`, `StreamError`."""
        kafka = self._settings.kafka
        with self._log_lock:
            for message in read_topic(kafka, topic_name(kafka.prefix, "repository"), {0: self._log_next}):
                counting, ledger = self._log.setdefault(message.key, (Counting(message.key), Ledger()))
                entry = counting.take(message)
                if entry is not None:
                    ledger.apply([entry])
                self._log_next = message.offset + 1
            return [ledger for _, ledger in self._log.values()]

    def folders(self) -> list[Path]:
        """Where this node's repositories are, as far as that is on mounted file systems."""
        found = self._definitions().values()
        return [Path(e.location).resolve() for e in found if (e.store, e.node) == ("local", self.name)]

    def _definitions(self) -> dict[str, RepositoryDefined]:
        return {name: event for name, event in self._last_definitions().items() if event.state != "removed"}

    def _last_definitions(self) -> dict[str, RepositoryDefined]:
        kafka = self._settings.kafka
        found: dict[str, RepositoryDefined] = {}
        for message in read_topic(kafka, topic_name(kafka.prefix, "repository")):
            if isinstance(message.event, RepositoryDefined):
                found[message.event.repository] = message.event
        return found

    def _opened(self, name: str, *, anybodys: bool = False) -> Held:
        defined = self.defined(name)
        if defined is None:
            raise AgentError(UNKNOWN, f"there is no repository {name!r}", "`holdfast repository list` shows them")
        if defined.node != self.name and not anybodys:
            raise self._elsewhere(name, defined.node)
        secret = self.store_secret(defined.secrets)
        store = self.store(name, defined.store, defined.location, defined.options, secret)
        with contextlib.ExitStack() as undo:
            undo.callback(store.close)
            sessions = self.sessions(name, store)
            undo.callback(sessions.journal.close)
            repository = repositories.open(store, self.unlock(), self.cache, self.name)
            undo.callback(repository.close)
            if str(repository.identity) != defined.identity:
                raise AgentError(
                    "repository-exchanged",
                    f"what is at {defined.location} is another repository ({repository.identity}) than {name} was",
                    f"bring back the right one, or adopt this one under another name; {name} is {defined.identity}",
                )
            undo.pop_all()
        return Held(name, store, repository, sessions)

    def store_secret(self, secrets: Mapping[str, str]) -> str:
        """Of an S3 store, by the reference in `secrets`; empty where there is none."""
        reference = secrets.get("store", "")
        return self._secrets.get(reference).decode() if reference else ""

    # --- time ----------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Close what a dead run left open, then tick."""
        said = ""
        cleaned = False
        while not self._stop.wait(_TURN_S if cleaned else 0.0 if not said else _TURN_S):
            try:
                if not cleaned:
                    self._clean()
                    cleaned = True
                self._turn()
                said = ""
            except (AgentError, StreamError) as error:
                if str(error) != said:
                    _log.warning("repositories cannot be looked after just now: %s", error)
                    said = str(error)

    # --- what others do to their files ---------------------------------------------------------------------------------

    def watch(self, held: Held) -> Look:
        """Look at a repository's files once, and say so if something is wrong. Raises `AgentError`, `StoreError`."""

        def say(found: Look) -> None:
            held.sessions.say(
                RepositoryChecked(
                    repository=held.name,
                    what="watch",
                    figures={"files": found.files, "bytes": found.bytes, "read": found.read},
                    problems=found.problems,
                    checked_us=held.sessions.clock(),
                    by=self.name,
                )
            )

        return self._watch_of(held.repository).look_at(held.store, say)

    def _watch_of(self, repository: Repository) -> Watch:
        name = str(repository.identity)
        return self._watches.setdefault(name, Watch(self.cache, name))

    def _watch(self) -> None:
        """Every hour, on a thread of its own: a bucket of many objects takes a while to list."""
        while not self._stop.wait(_WATCH_S):
            with self._lock:
                held = list(self._held.values())
            for one in held:
                try:
                    self.watch(one)
                except (AgentError, StreamError, OSError) as error:
                    _log.warning("the files of repository %s cannot be watched just now: %s", one.name, error)

    def _clean(self) -> None:
        for name, defined in self._definitions().items():
            if defined.node == self.name:
                try:
                    held = self.get(name)
                except AgentError as error:
                    _log.warning("repository %s cannot be opened: %s", name, error)
                    continue
                for state in held.sessions.leftovers():
                    if state.opened.kind != "collect":
                        held.sessions.take_over(state.opened.session, self.name).close("failed")

    def _turn(self) -> None:
        with self._lock:
            held = list(self._held.values())
        self._ticker.turn([one.sessions for one in held])
        for one in held:
            one.sessions.fence_expired(self.name)
