"""Errors of this room, and how they look on the wire: problem+json (RFC 9457) with a stable `code` and a `hint`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from projections.errors import ProjectionError
from streams.errors import StreamError
from streams.events import Problem

MEDIA_TYPE = "application/problem+json"


class ApiError(Exception):
    """What a handler raises to refuse a call. `status` is HTTP's; `code` is stable and documented in docs/cli.md.

    `problems` are further findings (one a wrong field, one an obstacle), `members` further members of the document.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        hint: str = "",
        *,
        problems: Iterable[Problem] = (),
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)
        self.members = dict(members or {})
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.code})" + (f"; {self.hint}" if self.hint else "")


def not_found(what: str, name: str, hint: str = "") -> ApiError:
    """404 for a thing of kind `what` (`source`, `step`, `plan`, …) that is not there."""
    return ApiError(404, f"{what}-unknown", f"there is no {what} {name!r}", hint)


# Codes of other rooms that are the caller's fault, or passing; everything else that they raise is ours (500).
_STATUS: Mapping[str, int] = {
    "name-invalid": 422,
    "policy-invalid": 422,
    "rule-invalid": 422,
    "span-invalid": 422,
    "zone-unknown": 422,
    "view-unknown": 404,
    "rebuild-running": 409,
    "view-outdated": 409,
    "view-restless": 503,
    "view-absent": 503,
    "view-dropped": 503,
    "step-unknown": 404,
    "kafka-unreachable": 503,
    "topic-missing": 503,
}


def from_room(error: StreamError | ProjectionError) -> ApiError:
    """An error of `streams` or `projections` as one of ours."""
    return ApiError(_STATUS.get(error.code, 500), error.code, error.message, error.hint)


def document(error: ApiError, request: str) -> dict[str, Any]:
    """The problem document; `request` is the id under which the call was audited."""
    out: dict[str, Any] = {
        "type": f"urn:holdfast:problem:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "instance": f"urn:uuid:{request}",
        "code": error.code,
        "hint": error.hint,
    }
    if error.problems:
        out["problems"] = [{"code": p.code, "message": p.message, "hint": p.hint} for p in error.problems]
    return out | error.members


def response(error: ApiError, request: str) -> Response:
    body = json.dumps(document(error, request), ensure_ascii=False).encode()
    headers = {"X-Request-Id": request, **error.headers}
    return Response(body, status_code=error.status, media_type=MEDIA_TYPE, headers=headers)
