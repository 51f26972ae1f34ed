"""A site's settings as one file: taken out, looked at beside what there is, put in.

    {"holdfast": "settings", "format": 1, "policies": {NAME: DOCUMENT, …},
     "repositories": {NAME: {"keep": RULES, "dedupe": SCOPE}, …},
     "hosts": {NAME: {"kind", "url", "account", "tls_ca", "options"}, …}}

What has secrets is not in it: repositories are added where their keys are typed, sources likewise; a host is in it without its
password, and keeps the one it has. Hosts, and what a file does not say of a repository, stay as they are.
What is put in was looked at: the review is a digest over what the site had when the difference was shown and what the file says,
so it is refused when either is not the same any more. Policies that the file leaves out go only with `prune`. And if we die
here? Every change is an event of its own; those that were durable stand, and the same file, looked at again, shows the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from api import policies
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError
from api.routes.assets import refuse_password
from projections.views import assets, repositories
from projections.views import policies as view
from projections.views.base import Connection
from streams.errors import StreamError
from streams.events import PolicyDefined, PolicyRemoved
from streams.ids import now_us, slug
from streams.policies import canonical, document, parse

FORMAT = 1
Settings = dict[str, dict[str, Any]]


def export(call: Call) -> Reply:
    with call.site.views() as conn:
        return Reply({"holdfast": "settings", "format": FORMAT, **_settings(call, conn)})


def _settings(call: Call, conn: Connection) -> Settings:
    """What the site has now."""
    call.site.catch_up(conn, "policies", "inventory", "")
    call.site.catch_up(conn, "repositories", "repository", "")
    call.site.catch_up(conn, "assets", "inventory", "")
    return {
        "policies": {row.policy: json.loads(row.document) for row in view.policies(conn)},
        "repositories": {
            row.repository: {"keep": "", **{n: row.options[n] for n in ("keep", "dedupe") if n in row.options}}
            for row in repositories.repositories(conn)
        },
        "hosts": {
            row.host: {
                **{n: getattr(row, n) for n in ("kind", "url", "account", "tls_ca")},
                "options": dict(row.options),
            }
            for row in assets.hosts(conn)
        },
    }


def bring_in(call: Call) -> Reply:
    body = call.body
    wanted = _wanted(body["settings"])
    with call.site.views() as conn:
        there = _settings(call, conn)
        secrets = {row.host: dict(row.secrets) for row in assets.hosts(conn)}
        for name in wanted["repositories"].keys() - there["repositories"].keys():
            raise ApiError(
                422, "repository-unknown", f"there is no repository {name!r}", "add or adopt it first: it has secrets"
            )
        for name, given in wanted["repositories"].items():
            wanted["repositories"][name] = {**there["repositories"][name], **given}
        for name, given in wanted["policies"].items():
            repository = given.get("repository", "")
            if repository and repository not in there["repositories"]:
                raise ApiError(422, "repository-unknown", f"{name}: there is no repository {repository!r}")
    changes = _changes(there, wanted, prune=body["prune"])
    review = blake3(_text([there, wanted, body["prune"]]).encode()).hexdigest()
    if body["dry_run"]:
        return Reply({"changes": changes, "review": review, "jobs": []})
    if "review" not in body:
        raise ApiError(422, "review-missing", "what is put in must have been looked at", "take a dry run's review")
    if body["review"] != review:
        raise ApiError(
            409,
            "review-outdated",
            "the site's settings, or the file, are not those that were looked at",
            "look again: `holdfast policy import FILE --dry-run`",
        )
    asked = []
    for change in changes:
        if change["what"] == "policy":
            _say(call, change)
        elif change["what"] == "host":
            parameters = {**change["after"], "host": change["name"], "secrets": secrets.get(change["name"], {})}
            asked.append(ask(call, "host.add", f"host/{change['name']}", {**parameters, "dry_run": False}))
        else:
            asked += _repository(call, change)
    return Reply({"changes": changes, "review": review, "jobs": asked}, note={"changes": len(changes)})


def _repository(call: Call, change: Mapping[str, Any]) -> list[str]:
    """The jobs that change a repository. Rules of retention and the scope of deduplication are commands of their own."""
    name, before, after = change["name"], change["before"], change["after"]
    jobs = []
    if before["keep"] != after["keep"]:
        jobs.append(
            ask(call, "repository.retention", f"repository/{name}", {"repository": name, "keep": after["keep"]})
        )
    if before.get("dedupe") != after.get("dedupe"):
        parameters = {"repository": name, "dedupe": after["dedupe"], "secrets": {}}
        jobs.append(ask(call, "repository.set", f"repository/{name}", parameters))
    return jobs


def _wanted(settings: Mapping[str, Any]) -> Settings:
    """What a file says, in one spelling. Raises `ApiError` 422."""
    if settings.get("holdfast") != "settings" or settings.get("format") != FORMAT:
        raise ApiError(
            422, "settings-format", "this is no file of settings that this Holdfast knows", "`holdfast policy export`"
        )
    now, found = now_us(), {}
    for name, given in settings["policies"].items():
        try:
            policy = parse(given)
            policies.never_due(policy, now)
        except (StreamError, ApiError) as error:
            raise ApiError(422, error.code, f"{name}: {error.message}", error.hint) from error
        found[slug(name)] = document(policy)
    hosts = {}
    for name, given in settings.get("hosts", {}).items():
        refuse_password(given["url"])
        hosts[slug(name)] = {"account": "", "tls_ca": "", "options": {}, **given}
    return {
        "policies": found,
        "repositories": {n: dict(g) for n, g in settings["repositories"].items()},
        "hosts": hosts,
    }


def _changes(there: Settings, wanted: Settings, *, prune: bool) -> list[dict[str, Any]]:
    out = []
    for what, kind in (("repositories", "repository"), ("hosts", "host"), ("policies", "policy")):
        for name in sorted({*there[what], *wanted[what]}):
            before, after = there[what].get(name), wanted[what].get(name)
            if before == after or (after is None and (what != "policies" or not prune)):
                continue
            how = "added" if before is None else "removed" if after is None else "changed"
            out.append({"what": kind, "name": name, "change": how, "before": before, "after": after})
    return out


def _say(call: Call, change: Mapping[str, Any]) -> None:
    name, now = str(change["name"]), now_us()
    standing = call.site.live.policy(name)
    if change["change"] == "removed":
        policies.say(call, PolicyRemoved(policy=name, version=standing.version, removed_us=now, by=call.actor))
        return
    policies.say(
        call,
        PolicyDefined(
            policy=name,
            version=standing.version + 1,
            document=canonical(parse(change["after"])),
            note="settings put in",
            defined_us=now,
            by=call.actor,
        ),
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
