"""Points: what assets were. Backing up, restoring and comparing is asked of the agent that owns the repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from api import shapes
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError, not_found
from api.routes.repositories import known
from projections.views import access
from projections.views import repositories as view
from projections.views.base import Connection
from projections.views.repositories import Point
from streams.ids import now_us


def _known(call: Call, conn: Connection, named: str = "") -> Point:
    point = named or call.text("point")
    call.site.catch_up(conn, "repositories", "repository", "")
    found = view.point(conn, point)
    if found is None:
        raise not_found("point", point, "`holdfast point list` shows them")
    return found


def list_all(call: Call) -> Reply:
    p = call.parameters
    with call.site.views() as conn:
        call.site.catch_up(conn, "repositories", "repository", "")
        as_of = shapes.microseconds(p["as_of"]) if p["as_of"] else None
        found = view.points(
            conn,
            repository=p["repository"],
            asset=p["asset"],
            dropped=bool(p["all"]),
            as_of_us=as_of,
            before=_place(p["before"]) if p["before"] else None,
            limit=p["limit"],
        )
        marks = view.marks(conn, [row.point for row in found], as_of_us=as_of)
    last = f"{found[-1].created_us}.{found[-1].point}" if len(found) == p["limit"] else None
    items = [shapes.point(row, marks.get(row.point, ()), as_of) for row in found]
    return Reply({"items": items, "next": last})


def _place(text: str) -> tuple[int, str]:
    at, _, point = text.partition(".")
    if not at.isdigit() or len(at) > 18 or not point:
        raise ApiError(422, "page-invalid", f"{text!r} is not a page's `next`", "leave `before` out to begin anew")
    return int(at), point


def show(call: Call) -> Reply:
    with call.site.views() as conn:
        found = _known(call, conn)
        as_of = shapes.microseconds(call.parameters["as_of"]) if call.parameters["as_of"] else None
        if as_of is not None and found.sealed_us > as_of:
            raise not_found("point", found.point, f"it was sealed {shapes.time(found.sealed_us)}")
        marks = view.marks(conn, [found.point], as_of_us=as_of)
        return Reply(shapes.point(found, marks.get(found.point, ()), as_of))


def backup(call: Call) -> Reply:
    body = call.body
    with call.site.views() as conn:
        found = known(call, conn, body["repository"])
    asset = body.get("asset") or _asset_of(body["path"])
    parameters = {
        "kind": body["kind"],
        "repository": found.repository,
        "path": body["path"],
        "asset": asset,
        "named": bool(body.get("asset")),
    }
    # The path is of the machine that has the repository now, whoever has it when the job's turn comes.
    job = ask(call, "backup.make", f"asset/{asset}", parameters, node=found.node)
    return Reply({"job": job}, status=202, about=asset, note={"job": job})


def _asset_of(path: str) -> str:
    """An asset's name for a path: its letters and digits, so that the next backup of the path is of the same asset."""
    name = re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"path-{name}".rstrip("-")
    if len(name) > 48:
        raise ApiError(422, "asset-missing", "the path is too long to name an asset by", "give one: --asset NAME")
    return name


def star(call: Call) -> Reply:
    return _mark(call, "point.star")


def unstar(call: Call) -> Reply:
    return _mark(call, "point.unstar")


def hold(call: Call) -> Reply:
    until = call.body.get("until")
    until_us = shapes.microseconds(until) if until else None
    if until_us is not None and until_us <= now_us():
        raise ApiError(
            422, "hold-over", "this hold would be over already", "give a moment to come, or leave `until` out"
        )
    return _mark(call, "point.hold", {"until_us": until_us})


def release(call: Call) -> Reply:
    return _mark(call, "point.release")


def drop(call: Call) -> Reply:
    return _mark(call, "point.drop")


def agree(call: Call) -> Reply:
    """The agent looks for what was asked, by whom, and since when the caller may do this: by the time its token was issued."""
    with call.site.views() as conn:
        issued = {t.token: t.issued_us for t in call.site.live.tokens(access.tokens(conn))}
    assert call.who is not None
    return _mark(call, "point.agree", {"right_since_us": issued.get(call.who.token, now_us())})


def _mark(call: Call, kind: str, more: Mapping[str, Any] | None = None) -> Reply:
    with call.site.views() as conn:
        found = _there(_known(call, conn))
    said = {name: call.body[name] for name in ("name", "note") if call.body.get(name)}
    return _ask(call, kind, f"repository/{found.repository}", found, {**said, **(more or {})})


def _there(found: Point) -> Point:
    if found.dropped_us is not None:
        raise ApiError(
            409, "point-dropped", f"point {found.point} was dropped {shapes.time(found.dropped_us)}", found.reason
        )
    return found


def diff(call: Call) -> Reply:
    with call.site.views() as conn:
        one, other = _there(_known(call, conn)), _there(_known(call, conn, call.body["with"]))
    if (one.repository, one.asset) != (other.repository, other.asset):
        raise ApiError(
            422, "points-unlike", f"one point is of {one.asset}, the other of {other.asset}", "compare one asset's"
        )
    return _ask(call, "point.diff", f"diff/{one.point}", one, {"with": other.point, "limit": call.body["limit"]})


def prove(call: Call) -> Reply:
    with call.site.views() as conn:
        found = _there(_known(call, conn))
    return _ask(call, "point.prove", f"prove/{found.point}", found, {})


def found_there(call: Call) -> Point:
    """The point that a call is about, which has not been dropped. Raises `ApiError` (`point-unknown`, `point-dropped`)."""
    with call.site.views() as conn:
        return _there(_known(call, conn))


def restore(call: Call) -> Reply:
    found = found_there(call)
    return _ask(call, "point.restore", f"restore/{found.point}", found, call.body, keeper_of(call, found))


def keeper_of(call: Call, found: Point) -> str:
    """The node whose machine's paths are meant, where a point of its repository goes to one."""
    with call.site.views() as conn:
        keeper = view.repository(conn, found.repository)
    return keeper.node if keeper is not None else ""


def _ask(call: Call, kind: str, asset: str, found: Point, parameters: Mapping[str, Any], node: str = "") -> Reply:
    job = ask(call, kind, asset, {"repository": found.repository, "point": found.point, **parameters}, node=node)
    return Reply({"job": job}, status=202, note={"job": job})
