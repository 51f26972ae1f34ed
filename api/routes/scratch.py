"""Scratch copies: asked of an agent, which has them on its machine."""

from __future__ import annotations

from api import shapes
from api.calls import Call, Reply
from api.commands import ask
from api.errors import ApiError, not_found
from api.timeline.moments import moment
from projections.views import copies as view
from projections.views.base import Connection
from projections.views.copies import Scratch
from streams.ids import slug

_GONE = ("ended", "failed")


def _known(call: Call, conn: Connection) -> Scratch:
    name = call.text("scratch")
    call.site.catch_up(conn, "copies", "inventory", f"scratch/{name}")
    found = view.scratch(conn, name)
    if found is None:
        raise not_found("scratch", name, "`holdfast scratch list` shows them")
    return found


def list_all(call: Call) -> Reply:
    with call.site.views() as conn:
        call.site.catch_up(conn, "copies", "inventory", "")
        found = view.scratches(conn, ended=bool(call.parameters["all"]))
        return Reply({"items": [shapes.scratch(s) for s in found]})


def show(call: Call) -> Reply:
    with call.site.views() as conn:
        return Reply(shapes.scratch(_known(call, conn)))


def create(call: Call) -> Reply:
    body = call.body
    name = slug(body["name"])
    with call.site.views() as conn:
        call.site.catch_up(conn, "copies", "inventory", f"scratch/{name}")
        there = view.scratch(conn, name)
        if there is not None and there.state not in _GONE:
            raise ApiError(
                409, "scratch-exists", f"there is a scratch copy {name!r}", f"`holdfast scratch drop {name}` first"
            )
        at = moment(call, conn, body["source"], body)
    parameters = {
        "name": name,
        "source": at.source.source,
        "lineage": at.lineage,
        "ordinal": at.ordinal,
        "expires_s": body.get("expires_s"),
        **({"tables": body["tables"]} if body["tables"] else {}),
    }
    job = ask(call, "scratch.create", f"scratch/{name}", parameters)
    shown = {
        "text": at.text,
        "ordinal": at.ordinal,
        "time": shapes.time(at.time_us),
        "lineage": at.lineage,
        "head": at.head,
    }
    return Reply({"job": job, "name": name, "at": shown}, status=202, about=name, note={"job": job})


def drop(call: Call) -> Reply:
    with call.site.views() as conn:
        found = _known(call, conn)
    if found.state == "ended" and not found.problems:
        raise ApiError(409, "scratch-ended", f"scratch copy {found.scratch!r} is gone already")
    job = ask(call, "scratch.drop", f"scratch/{found.scratch}", {"name": found.scratch})
    return Reply({"job": job}, status=202, note={"job": job})
