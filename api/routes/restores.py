"""Restores of machines and disks: asked of the agent whose repository has the point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError
from api.routes.points import found_there, keeper_of
from projections.views.repositories import Point


def files(call: Call) -> Reply:
    return _restore(call, "files")


def original(call: Call) -> Reply:
    """In line with the machine's backups: its commands run one after the other."""
    return _restore(call, "original")


def machine(call: Call) -> Reply:
    return _restore(call, "machine")


def compare(call: Call) -> Reply:
    found = found_there(call)
    disk = call.body.get("disk")
    parameters = {**_body(call, "disk"), "disks": [disk] if disk else []}
    return _ask(call, "point.compare", f"compare/{found.point}", found, parameters)


def _restore(call: Call, how: str) -> Reply:
    found = _with_disks(call)
    asset = found.asset if how == "original" else f"restore/{found.point}"
    return _ask(call, "restore.run", asset, found, {"how": how, **_body(call)})


def _with_disks(call: Call) -> Point:
    found = found_there(call)
    if found.kind != "disks":
        raise ApiError(
            422,
            "point-unfit",
            f"point {found.point} is of {found.kind}, and has no disks",
            f"`holdfast point restore {found.point} --to PATH`",
        )
    return found


def _body(call: Call, *but: str) -> dict[str, Any]:
    return {name: value for name, value in call.body.items() if name not in but}


def _ask(call: Call, kind: str, asset: str, found: Point, parameters: Mapping[str, Any]) -> Reply:
    node = keeper_of(call, found) if parameters.get("how", "files") == "files" else ""  # paths are of its machine
    job = ask(call, kind, asset, {**parameters, "repository": found.repository, "point": found.point}, node=node)
    return Reply({"job": job}, status=202, about=found.asset, note={"job": job})
