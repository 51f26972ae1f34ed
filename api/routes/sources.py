"""Sources: what is protected. Adding and removing is asked of an agent; what is known comes from the catalogue."""

from __future__ import annotations

from typing import Any

from api import shapes
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError, not_found
from projections.views import catalogue, dashboard
from projections.views.base import Connection
from projections.views.catalogue import Source
from streams.ids import slug


def known(call: Call, conn: Connection, named: str = "") -> Source:
    """The source that the path names (or `named`), removed ones too.

    Raises `ApiError`: 404 (`source-unknown`); 503 (`catalogue-behind`) when it was named in the log and the read model
    does not know it yet.
    """
    name = named or call.text("source")
    found = catalogue.source(conn, name)
    if found is not None:
        return found
    caught_up = call.site.catch_up(conn, "catalogue", "inventory", name)
    found = catalogue.source(conn, name)
    if found is None and not caught_up:
        raise ApiError(
            503,
            "catalogue-behind",
            f"source {name!r} is in the log, but not in the catalogue yet",
            "try again in a moment; if it stays so, `holdfast status` says whether the processors run",
            headers={"Retry-After": "1"},
        )
    if found is None:
        raise not_found("source", name, "`holdfast source list` shows them")
    return found


def list_all(call: Call) -> Reply:
    with call.site.views() as conn:
        call.site.catch_up(conn, "catalogue", "inventory", "")
        agents = dashboard.agents(conn)
        found = catalogue.sources(conn, removed=bool(call.parameters["all"]))
        return Reply({"items": [shapes.source(s, agents) for s in found]})


def show(call: Call) -> Reply:
    with call.site.views() as conn:
        call.site.catch_up(conn, "catalogue", "inventory", call.text("source"))
        found = known(call, conn)
        return Reply(shapes.source(found, dashboard.agents(conn, found.source)))


def add(call: Call) -> Reply:
    """The passwords go into the secret store before the command that refers to them is published: killed in between, a
    secret lies there that nothing refers to."""
    body = call.body
    name = slug(body["name"])
    with call.site.views() as conn:
        call.site.catch_up(conn, "catalogue", "inventory", name)
        found = catalogue.source(conn, name)
        if found is not None and found.state not in ("removed", "defined"):
            raise ApiError(
                409, "source-exists", f"source {name!r} is protected already", f"`holdfast source show {name}`"
            )
    accounts: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for purpose, account in body["accounts"].items():
        accounts[purpose] = account["user"]
        if account.get("password"):
            secrets[purpose] = call.site.secrets.put(f"sources/{name}/{purpose}", account["password"].encode())
    parameters: dict[str, Any] = {
        **{k: body[k] for k in ("kind", "host", "port", "tls", "tls_ca", "options", "dry_run")},
        "accounts": accounts,
        "secrets": secrets,
    }
    job = ask(call, "source.add", name, parameters)
    return Reply({"job": job}, status=202, about=name, note={"job": job})


def set_accounts(call: Call) -> Reply:
    """As `add` does it: a secret is kept before the command that refers to it is published."""
    with call.site.views() as conn:
        call.site.catch_up(conn, "catalogue", "inventory", call.text("source"))
        found = known(call, conn)
    accounts: dict[str, str] = {}
    secrets: dict[str, str] = {}
    for purpose, account in call.body["accounts"].items():
        user = account.get("user") or found.accounts.get(purpose)
        if not user:
            raise ApiError(422, "account-unknown", f"{found.source} has no {purpose} account", "give its `user`, too")
        accounts[purpose] = user
    if found.state == "removed":
        raise ApiError(409, "source-removed", f"source {found.source!r} was removed", "`holdfast source add` it again")
    for purpose, account in call.body["accounts"].items():
        secrets[purpose] = call.site.secrets.put(f"sources/{found.source}/{purpose}", account["password"].encode())
    return _change(call, "source.set-accounts", {"accounts": accounts, "secrets": secrets})


def remove(call: Call) -> Reply:
    return _change(call, "source.remove", {"purge": bool(call.parameters["purge"])})


def pause(call: Call) -> Reply:
    return _change(call, "source.pause", {})


def resume(call: Call) -> Reply:
    return _change(call, "source.resume", {})


def _change(call: Call, kind: str, parameters: dict[str, Any]) -> Reply:
    with call.site.views() as conn:
        found = known(call, conn)
    if found.state == "removed":
        raise ApiError(409, "source-removed", f"source {found.source!r} was removed", "`holdfast source add` it again")
    job = ask(call, kind, found.source, parameters)
    return Reply({"job": job}, status=202, note={"job": job})
