"""What handlers have at hand: the site's read models, its log, secrets, timelines. Built once, at the entry point."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg

from api.auth import audit, tokens
from api.errors import ApiError
from api.live import Live, Place
from api.log import Log
from api.rebuilds import Rebuilds
from api.timeline.definitions import Definitions
from api.timeline.source import KnownPlan
from api.timeline.store import Timelines
from api.watching import Watching
from projections import database, offsets
from projections.errors import ProjectionError
from projections.views import access
from projections.views import timeline as view
from projections.views.base import Connection
from streams.admin import ensure_topics
from streams.consume import read_topic
from streams.errors import StreamError
from streams.events import RollbackPlanned, TokenIssued
from streams.ids import uuid7
from streams.secrets import SecretStore
from streams.settings import Settings
from streams.topics import topic_name

log = logging.getLogger("holdfast.api")

TOPICS = ("commands", "jobs", "inventory", "rollbacks", "repository", "audit")
# Which view knows what of the topics that `Live` follows.
# Tokens and sources are few: `inventory` is read from its beginning, so that tokens can be told without PostgreSQL.
_KNOWS = {"commands": "jobs", "jobs": "jobs", "rollbacks": "timeline", "repository": "repositories"}
CATCH_UP_S = 1.0
FOLLOWERS = 64


class Site:
    """One running API. `open` and `close` are called once, at its beginning and end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.run = uuid7()
        self.pool = database.pool(settings.postgres)
        self.log = Log(settings)
        self.live = Live(settings.kafka, self._known)
        self.secrets = SecretStore(settings)
        self.tokens = tokens.Tokens(self._token, self.live.token)
        self.strangers = audit.Strangers()
        self.timelines = Timelines(settings.kafka, self.secrets, self._plan_of)
        self.followers = threading.BoundedSemaphore(FOLLOWERS)
        self.rebuilds = Rebuilds(self)
        self.watching = Watching(self, settings.api.watch_s)
        self._definitions: dict[str, Definitions] = {}
        self._plans: dict[str, KnownPlan | None] = {}
        self.stopping = asyncio.Event()
        self._closing = threading.Event()
        self._preparing = threading.Thread(target=self._prepare, name="prepare", daemon=True)

    def open(self) -> None:
        """Connect to what is there. What is away is tried again in the background: the API then answers 503."""
        self.pool.open(wait=False)
        self.live.listen("inventory", "", self._inventory_moved)
        self._preparing.start()
        self.watching.start()

    def close(self) -> None:
        self._closing.set()
        self.watching.close()
        self.rebuilds.close()
        self.live.close()
        self.timelines.close()
        self.log.close()
        self._preparing.join(2)
        self.pool.close(timeout=5)

    # --- read models -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def views(self) -> Iterator[Connection]:
        """A connection to the read models, in autocommit."""
        with self.pool.connection() as conn:
            yield conn

    def catch_up_all(self, conn: Connection, wanted: Mapping[str, str]) -> bool:
        """`catch_up` of several views with all of a topic each, together for a second at most."""
        deadline = time.monotonic() + CATCH_UP_S
        return all(self.catch_up(conn, view, topic, "", deadline) for view, topic in wanted.items())

    def catch_up(self, conn: Connection, view: str, topic: str, key: str, deadline: float | None = None) -> bool:
        """Wait, for a second at most (or until `deadline`, by the monotonic clock), until `view` has what this API has seen of
        `key` in `topic`, so that whoever asked for work finds it when looking. False when the view is behind: what it says is
        true, but of a moment ago."""
        newest = self.live.newest(topic, key)
        if newest is None:
            return True
        full, partition, offset = newest
        deadline = time.monotonic() + CATCH_UP_S if deadline is None else deadline
        while True:
            if offsets.live(conn, view).get((full, partition), 0) > offset:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)

    def _known(self) -> Mapping[Place, int]:
        """Where the read models stand; empty when that cannot be said, so that all of the log is read."""
        found: dict[Place, int] = {}
        try:
            with self.pool.connection(timeout=2.0) as conn:
                for topic, view in _KNOWS.items():
                    full = topic_name(self.settings.kafka.prefix, topic)
                    found |= {place: at for place, at in offsets.live(conn, view).items() if place[0] == full}
        except (psycopg.Error, ProjectionError) as error:
            log.warning("the read models do not say how far they are, so the log is read from its beginning: %s", error)
            return {}
        return found

    def definitions(self, source: str) -> Definitions:
        """Table definitions of a source, kept between calls."""
        return self._definitions.setdefault(source, Definitions(self.settings.kafka, source))

    def _plan_of(self, plan: str) -> KnownPlan | None:
        """A plan, from the log's newest or from the read model, which may be a moment behind. None: the log has no such
        plan, and never will where it is asked for by a step that was made from it."""
        found = self.live.plan(plan)
        if found is not None and found.planned is not None:
            return found.planned
        known = self._plans.get(plan)
        if plan not in self._plans:
            with self.views() as conn:
                row = view.plan(conn, plan)
            known = row if row is not None and row.planned_us is not None else self._plan_in_log(plan)
            self._plans[plan] = known
        return known

    def _plan_in_log(self, plan: str) -> KnownPlan | None:
        kafka = self.settings.kafka
        events = (m.event for m in read_topic(kafka, topic_name(kafka.prefix, "rollbacks")))
        return next((e for e in events if isinstance(e, RollbackPlanned) and e.plan == plan), None)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _token(self, digest: bytes) -> access.Token | None:
        try:
            with self.pool.connection(timeout=1.0) as conn:
                return access.by_digest(conn, digest)
        except psycopg.Error:
            return None

    def _inventory_moved(self, seen: Any) -> None:
        token = getattr(seen.event, "token", None)
        if token is not None:
            self.tokens.forget(token)

    # --- the beginning -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Topics, then the first administrator, then the follower; each again until it succeeds."""
        said = ""
        while not self._closing.is_set():
            try:
                ensure_topics(self.settings.kafka, [(t, None) for t in TOPICS])
                self._first_administrator()
                self.live.start()
                break
            except (StreamError, ApiError, OSError) as error:
                if str(error) != said:
                    log.warning("not ready yet: %s", error)
                    said = str(error)
                self._closing.wait(1.0)
        while not self._closing.is_set():
            try:
                self.rebuilds.end_orphans()
                return
            except (ProjectionError, ApiError, psycopg.Error):
                self._closing.wait(2.0)

    def _first_administrator(self) -> None:
        """A site's first token, written to a file of the data directory, then to the log.

        Killed in between: the file is there and the log does not know it, so the next start says it again. The token's
        id follows from the secret, and a token is issued once whatever is said again, also one revoked since.
        """
        data_dir = self.settings.data_dir
        known = self._administrators()
        secret = tokens.read_admin_file(data_dir)
        if secret is None:
            if known:
                return
            secret = tokens.new_secret()
            try:
                tokens.write_admin_file(data_dir, secret)
            except FileExistsError:
                secret = tokens.read_admin_file(data_dir)
                if secret is None:
                    return
        if tokens.digest(secret) not in known:
            self.log.publish(tokens.admin_event(secret, f"api-{self.run}"))
            self.log.flush()
            log.info("the first administrator's token is in %s", data_dir / tokens.ADMIN_FILE)

    def _administrators(self) -> set[bytes]:
        """Digests of all tokens of administrators that were ever issued: from the log, which is never behind."""
        inventory = read_topic(self.settings.kafka, topic_name(self.settings.kafka.prefix, "inventory"))
        issued = (m.event for m in inventory if isinstance(m.event, TokenIssued))
        return {e.digest for e in issued if e.role == "admin"}

    # --- how it is ---------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, str]:
        """Parts that calls need: `ok` or `away`."""
        parts = {"log": "ok" if self.live.ready.is_set() and not self.live.trouble else "away"}
        try:
            with self.pool.connection(timeout=1.0) as conn:
                conn.execute("SELECT 1")
            parts["read_models"] = "ok"
        except psycopg.Error:
            parts["read_models"] = "away"
        return parts
