"""The commands by which a repository's place in this site changes: `repository.set`, `repository.remove`.

    repository.set      the new place is tried: it must hold this repository
                        policies/…               a decision that an adoption would find (only of what the repository itself keeps)
                        repository.defined       done: opened anew where it is first asked for
    repository.remove   repository.defined       done: the site does not use it any more. Its files stay as they are, and so do
                                                 this site's key to it and its log: `repository adopt` undoes it

Both are refused while anybody works in it. A session that is opened in the same moment is seen when the definition was said: then
that is taken back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from agents.commands import Command, Context
from agents.errors import AgentError
from agents.failpoints import failpoint
from agents.repository import policies
from agents.repository import repository as repositories
from agents.repository.node import ELSEWHERE, UNKNOWN
from agents.repository.places import OF_PLACE, location_of
from agents.repository.sessions import Sessions
from agents.repository.stores.memory import MemoryStore
from streams.events import RepositoryDefined
from streams.ids import now_us


def remove(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.remove`. The place need not be there."""
    name, node = str(command.parameters["repository"]), ctx.services.node
    defined = node.defined(name)
    gone = node.removed(name)
    if gone is not None and command.resumed:
        return {"id": gone.identity, "location": gone.location}
    defined = _ours(ctx, name, defined)
    with _sessions(ctx, name) as sessions:
        _define(sessions, defined, replace(defined, state="removed", defined_us=now_us(), by=command.requester))
    failpoint("repository-removed")
    node.let_go(name)
    return {"id": defined.identity, "location": defined.location}


def change(command: Command, ctx: Context) -> Mapping[str, Any]:
    """Handler of `repository.set`: another path to the same files, another server, key, region or authority, another scope."""
    p = command.parameters
    name, node = str(p["repository"]), ctx.services.node
    was = _ours(ctx, name, node.defined(name))
    kind, location, options = was.store, was.location, dict(was.options)
    secrets = dict(was.secrets)
    if p.get("store"):
        kind, location, given = location_of({**_place(was), **p["store"]})
        options = {name: value for name, value in options.items() if name not in OF_PLACE} | given
    if secret := dict(p.get("secrets") or {}).get("store"):
        secrets["store"] = str(secret)
    if p.get("dedupe"):
        options["dedupe"] = str(p["dedupe"])
    ctx.progress(f"trying {location}")
    store = node.store(name, kind, location, options, node.store_secret(secrets))
    with contextlib.closing(store):
        if (found := str(repositories.define(store).identity)) != was.identity:
            raise AgentError(
                "repository-exchanged",
                f"what is in {location} is another repository ({found})",
                f"{name} is {was.identity}; adopt the other one under a name of its own",
            )
        store.check()
        if options.get("dedupe") != was.options.get("dedupe"):
            repository = node.get(name).repository
            decided: dict[str, str] = {key: options[key] for key in policies.KNOWN if key in options}
            policies.decide(store, decided, repository.record_key)
    with _sessions(ctx, name) as sessions:
        event = replace(
            was, state="changed", store=kind, location=location, options=options, secrets=secrets, defined_us=now_us(),
            by=command.requester,
        )  # fmt: skip
        _define(sessions, was, event)
    failpoint("repository-changed")
    node.let_go(name)
    return {"location": location, "options": options}


def _place(defined: RepositoryDefined) -> dict[str, Any]:
    """A definition's place as commands carry it."""
    if defined.store == "local":
        return {"kind": "local", "path": defined.location}
    bucket, _, prefix = defined.location.removeprefix("s3://").partition("/")
    known = {key: defined.options[key] for key in OF_PLACE if key in defined.options}
    return {"kind": "s3", "bucket": bucket, "prefix": prefix, **known}


def _ours(ctx: Context, name: str, defined: RepositoryDefined | None) -> RepositoryDefined:
    if defined is None:
        raise AgentError(UNKNOWN, f"there is no repository {name!r}", "`holdfast repository list` shows them")
    if defined.node != ctx.services.node.name:
        raise AgentError(ELSEWHERE, f"repository {name} belongs to node {defined.node}", "ask there")
    return defined


@contextlib.contextmanager
def _sessions(ctx: Context, name: str) -> Iterator[Sessions]:
    """Dealings with its log alone: the place may be gone."""
    sessions = ctx.services.node.sessions(name, MemoryStore())
    try:
        yield sessions
    finally:
        sessions.journal.close()


def _define(sessions: Sessions, was: RepositoryDefined, event: RepositoryDefined) -> None:
    _refuse_busy(sessions)
    sessions.say(event)
    try:
        _refuse_busy(sessions)
    except AgentError:
        sessions.say(replace(was, state="changed", defined_us=now_us(), by=event.by))
        raise


def _refuse_busy(sessions: Sessions) -> None:
    if working := sessions.ledger().open_sessions():
        said = ", ".join(sorted({f"{s.opened.kind} ({s.opened.asset or s.opened.by})" for s in working}))
        raise AgentError(
            "repository-busy",
            f"somebody works in repository {sessions.repository}: {said}",
            f"`holdfast repository show {sessions.repository}` shows who; ask again when they have ended",
        )
