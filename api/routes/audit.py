"""The record of calls. Looking at it is recorded too."""

from __future__ import annotations

from api import shapes
from api.calls import Call, Reply
from api.errors import ApiError
from projections.views import audit


def list_all(call: Call) -> Reply:
    p = call.parameters
    if p["as_of"] and p["until"]:
        raise ApiError(422, "parameters-clash", "`as_of` and `until` say the same", "give one of them")
    until = p["as_of"] or p["until"]
    with call.site.views() as conn:
        call.site.log.flush()
        found = audit.calls(
            conn,
            actor=p["actor"],
            action=p["action"],
            object=p["object"],
            since_us=shapes.microseconds(p["since"]) if p["since"] else None,
            # `until` is the last moment that counts, the view's bound the first that does not.
            until_us=shapes.microseconds(until) + 1 if until else None,
            before=_place(p["before"]) if p["before"] else None,
            limit=p["limit"],
        )
    last = f"{found[-1].at_us}.{found[-1].request}" if len(found) == p["limit"] else None
    return Reply({"items": [shapes.call(c) for c in found], "next": last})


def _place(text: str) -> tuple[int, str]:
    at, _, request = text.partition(".")
    if not at.isdigit() or len(at) > 18 or not request:
        raise ApiError(422, "page-invalid", f"{text!r} is not a page's `next`", "leave `before` out to begin anew")
    return int(at), request
