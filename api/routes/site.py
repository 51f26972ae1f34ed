"""The installation itself: whether it works, what its API is, who is asking."""

from __future__ import annotations

from importlib import metadata

from api import contract
from api.auth.roles import BY_ID, OPERATIONS, may
from api.calls import Call, Reply


def version() -> str:
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return "0"


def health(call: Call) -> Reply:
    parts = call.site.health()
    ok = all(state == "ok" for state in parts.values())
    body = {"status": "ok" if ok else "impaired", "version": version(), "parts": parts}
    return Reply(body, status=200 if ok else 503)


def openapi(call: Call) -> Reply:
    """The document, each operation with the roles that may call it."""
    document = dict(contract.document())
    paths: dict[str, dict[str, object]] = {}
    for path, item in document["paths"].items():
        paths[path] = {
            method: operation
            if method == "parameters"
            else {**operation, "x-roles": sorted(BY_ID[operation["operationId"]].roles)}
            for method, operation in item.items()
        }
    return Reply({**document, "paths": paths})


def who_asks(call: Call) -> Reply:
    assert call.who is not None
    return Reply(
        {
            "actor": call.who.actor,
            "role": call.who.role,
            "token": call.who.token,
            "site": call.site.settings.site,
            "operations": [o.id for o in OPERATIONS if may(call.who.role, o)],
        }
    )
