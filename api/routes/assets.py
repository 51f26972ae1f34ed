"""Hosts, the machines on them, and having those backed up: asked of an agent; what is known comes from the read models."""

from __future__ import annotations

from typing import Any

from api import shapes
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError, not_found
from api.routes.repositories import known as known_repository
from projections.views import assets as view
from projections.views import repositories
from projections.views.assets import Asset, Host
from projections.views.base import Connection
from streams.ids import slug, uuid7


def _moment(call: Call) -> int | None:
    text = call.parameters["as_of"]
    return shapes.microseconds(text) if text else None


# --- hosts ----------------------------------------------------------------------------------------------------------


def _host(call: Call, conn: Connection, name: str, as_of_us: int | None = None) -> Host:
    """Raises `ApiError` 404 (`host-unknown`)."""
    call.site.catch_up(conn, "assets", "inventory", f"host/{name}")
    found = view.hosts(conn, name=name, as_of_us=as_of_us)
    if not found:
        raise not_found("host", name, "`holdfast host list` shows them")
    return found[0]


def list_hosts(call: Call) -> Reply:
    with call.site.views() as conn:
        call.site.catch_up(conn, "assets", "inventory", "")
        return Reply({"items": [shapes.host(row) for row in view.hosts(conn, as_of_us=_moment(call))]})


def show_host(call: Call) -> Reply:
    with call.site.views() as conn:
        return Reply(shapes.host(_host(call, conn, call.text("host"), _moment(call))))


def refuse_password(url: str) -> None:
    """Raises `ApiError` 422 (`url-has-password`)."""
    if "@" in url and ":" in url.partition("@")[0].rpartition("//")[2]:
        raise ApiError(
            422, "url-has-password", "the URL has a password in it", "give it as `password`; URLs stand in the log"
        )


def add_host(call: Call) -> Reply:
    """The password goes into the secret store before the command that refers to it is published: killed in between, a secret
    lies there that nothing refers to. A host that is defined anew without a password keeps the one it had."""
    body = call.body
    name = slug(body["name"])
    refuse_password(body["url"])
    secrets: dict[str, str] = {}
    if body.get("password"):
        secrets["password"] = call.site.secrets.put(f"hosts/{name}/password", body["password"].encode())
    else:
        with call.site.views() as conn:
            call.site.catch_up(conn, "assets", "inventory", f"host/{name}")
            secrets = {k: v for row in view.hosts(conn, name=name) for k, v in row.secrets.items()}
    parameters: dict[str, Any] = {
        **{k: body[k] for k in ("kind", "url", "account", "tls_ca", "options", "dry_run")},
        "host": name,
        "secrets": secrets,
    }
    job = ask(call, "host.add", f"host/{name}", parameters)
    return Reply({"job": job}, status=202, about=name, note={"job": job})


def remove_host(call: Call) -> Reply:
    with call.site.views() as conn:
        name = _host(call, conn, call.text("host")).host
    job = ask(call, "host.remove", f"host/{name}", {"host": name})
    return Reply({"job": job}, status=202, note={"job": job})


# --- machines -------------------------------------------------------------------------------------------------------


def known(call: Call, conn: Connection, name: str, as_of_us: int | None = None) -> Asset:
    """A machine, also one that is gone. Raises `ApiError` 404 (`asset-unknown`)."""
    call.site.catch_up(conn, "assets", "inventory", name)
    found = view.assets(conn, name=name, gone=True, as_of_us=as_of_us)
    if not found:
        raise not_found("asset", name, "`holdfast asset list` shows them; `holdfast asset discover` looks again")
    return found[0]


def list_all(call: Call) -> Reply:
    p, as_of = call.parameters, _moment(call)
    with call.site.views() as conn:
        call.site.catch_up(conn, "assets", "inventory", "")
        found = view.assets(conn, host=p["host"], gone=bool(p["all"]), as_of_us=as_of)
        newest = repositories.newest_points(conn, [row.asset for row in found], as_of_us=as_of)
    return Reply({"items": [shapes.asset(row, newest.get(row.asset)) for row in found]})


def show(call: Call) -> Reply:
    as_of = _moment(call)
    with call.site.views() as conn:
        found = known(call, conn, call.text("asset"), as_of)
        call.site.catch_up(conn, "repositories", "repository", "")
        newest = repositories.newest_points(conn, [found.asset], as_of_us=as_of)
    return Reply(shapes.asset(found, newest.get(found.asset)))


def discover(call: Call) -> Reply:
    host = call.body.get("host", "")
    if host:
        with call.site.views() as conn:
            _host(call, conn, host)
    job = ask(call, "asset.discover", f"host/{host}" if host else "hosts", {"host": host})
    return Reply({"job": job}, status=202, note={"job": job})


def backup(call: Call) -> Reply:
    body = call.body
    names = list(dict.fromkeys(body["assets"]))
    if body.get("disks") and len(names) > 1:
        raise ApiError(422, "disks-unexpected", "disks are chosen of one machine", "ask for each machine")
    with call.site.views() as conn:
        repository = known_repository(call, conn, body["repository"]).repository
        found = [known(call, conn, name) for name in names]
    hosts = {row.host for row in found}
    if len(hosts) > 1:
        raise ApiError(
            422,
            "group-hosts",
            f"these machines are on {', '.join(sorted(hosts))}",
            "one moment is one host's: ask for each",
        )
    parameters = {
        "repository": repository,
        "assets": names,
        **{k: body[k] for k in ("mode", "quiesce", "bandwidth", "scrub")},
        **({"disks": body["disks"]} if body.get("disks") else {}),
    }
    asset = f"asset/{names[0]}" if len(names) == 1 else f"group/{uuid7()}"
    job = ask(call, "backup.run", asset, parameters)
    return Reply({"job": job}, status=202, about=",".join(names), note={"job": job})
