"""The application: every call is identified, let in or refused, checked, carried out in a thread, recorded, answered.

What may go wrong on the way and what it becomes is in `explain`. Handlers are found by operation id in `HANDLERS`; the
operations, their paths and roles are `api.auth.roles`; what calls look like is `api.contract`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api import contract, sse
from api.auth import audit
from api.auth.roles import OPERATIONS, Operation, may
from api.auth.tokens import Principal
from api.calls import Call, Download, Events, Handler, Reply
from api.errors import ApiError, from_room, response
from api.routes import HANDLERS
from api.site import Site
from projections.errors import ProjectionError
from streams.errors import StreamError
from streams.ids import uuid7

log = logging.getLogger("holdfast.api")
BODY_LIMIT = 1_048_576
_PATH_NAMES = ("source", "plan", "job", "projection", "token", "repository", "point", "policy", "run")


def build(site: Site) -> Starlette:
    """The ASGI application of `site`, which it opens and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        site.open()
        counting = asyncio.create_task(_count_strangers(site))
        try:
            yield
        finally:
            site.stopping.set()
            counting.cancel()
            await run_in_threadpool(site.close)

    routes = [Route(o.path, _endpoint(site, o, HANDLERS[o.id]), methods=[o.method], name=o.id) for o in OPERATIONS]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_such_route, Exception: _broken},
    )
    app.state.site = site
    return app


def _endpoint(site: Site, operation: Operation, handler: Handler) -> Any:
    async def endpoint(request: Request) -> Response:
        return await _serve(site, operation, handler, request)

    return endpoint


async def _serve(site: Site, operation: Operation, handler: Handler, request: Request) -> Response:
    number = uuid7()
    remote = request.client.host if request.client else ""
    who: Principal | None = None
    given: dict[str, Any] = dict(request.path_params)
    about = next((str(given[n]) for n in _PATH_NAMES if n in given), "")
    try:
        if not operation.public:
            who = await _identify(site, request)
            if not may(who.role, operation):
                raise ApiError(
                    403,
                    "role-insufficient",
                    f"a token of role {who.role} may not call {operation.id}",
                    f"it takes one of: {', '.join(sorted(operation.roles))}",
                )
        parameters = contract.check_parameters(operation.id, _parameters(request))
        given = {k: v for k, v in parameters.items() if v is not None}
        body = contract.check_body(operation.id, await _body(request), request.headers.get("content-type", ""))
        given |= body
        call = Call(site, operation, number, who, parameters, body, remote)
        answer = await run_in_threadpool(_carry_out, call, handler, about, given)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        problem = explain(error)
        if problem.status >= 500:
            log.log(
                logging.ERROR if problem.code == "internal" else logging.WARNING,
                "%s %s: %s",
                operation.id,
                number,
                problem,
                exc_info=error if problem.code == "internal" else None,
            )
        await run_in_threadpool(_record_refusal, site, operation, number, who, about, problem, remote, given)
        return response(problem, number)
    return _answer(answer, number, site)


async def _identify(site: Site, request: Request) -> Principal:
    header = request.headers.get("authorization")
    if not site.live.ready.is_set():
        raise ApiError(
            503,
            "not-ready",
            "this API has not read the log yet, so it cannot know which tokens were revoked",
            site.live.trouble or "try again in a moment",
            headers={"Retry-After": "1"},
        )
    return await run_in_threadpool(site.tokens.principal, header)


def _parameters(request: Request) -> dict[tuple[str, str], str]:
    found = {("query", k): v for k, v in request.query_params.multi_items()}
    found |= {("path", k): str(v) for k, v in request.path_params.items()}
    if "last-event-id" in request.headers:
        found["header", "last-event-id"] = request.headers["last-event-id"]
    return found


async def _body(request: Request) -> bytes:
    too_large = ApiError(413, "body-too-large", f"the body is larger than {BODY_LIMIT} bytes")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > BODY_LIMIT:
        raise too_large
    parts = bytearray()
    async for chunk in request.stream():
        parts += chunk
        if len(parts) > BODY_LIMIT:
            raise too_large
    return bytes(parts)


def _carry_out(call: Call, handler: Handler, about: str, given: Mapping[str, Any]) -> Reply | Download | Events:
    """In a thread: the handler, then the record of the call; both durable before anybody is told."""
    answer = handler(call)
    if call.operation.recorded:
        status = answer.status if isinstance(answer, Reply) else 200
        note = answer.note if isinstance(answer, Reply) else {}
        about = (answer.about if isinstance(answer, Reply) else "") or about
        detail = {**given, **note}
        call.site.log.publish(
            audit.event(call.request, call.who, call.operation.id, about, status, call.remote, detail),
            correlation=str(note.get("job", "")),
        )
        call.site.log.flush()
    return answer


def _record_refusal(
    site: Site,
    operation: Operation,
    number: str,
    who: Principal | None,
    about: str,
    problem: ApiError,
    remote: str,
    given: Mapping[str, Any],
) -> None:
    """Refused calls are recorded, also of operations that change nothing; a failure to do so changes no answer."""
    refused = problem.status in (401, 403)
    if problem.code in ("log-unavailable", "shutting-down") or not (
        refused or (operation.recorded and who is not None)
    ):
        return
    detail = {**given, "code": problem.code}
    if who is None and refused:
        count = site.strangers.refused(remote)
        if count is None:
            return
        detail["calls"] = count
    with contextlib.suppress(ApiError, StreamError):
        site.log.publish(audit.event(number, who, operation.id, about, problem.status, remote, detail))
        if who is not None:
            site.log.flush()


async def _count_strangers(site: Site) -> None:
    """Write down, once a second, refused calls of strangers that were only counted."""
    while True:
        await asyncio.sleep(1.0)
        for remote, count in site.strangers.leftovers():
            event = audit.event(uuid7(), None, "refused", "", 401, remote, {"calls": count})
            with contextlib.suppress(ApiError, StreamError):
                await run_in_threadpool(site.log.publish, event)


def explain(error: Exception) -> ApiError:
    """Whatever went wrong, as the problem that the caller is told."""
    match error:
        case ApiError():
            return error
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName():
            return ApiError(
                503, "view-absent", "a read model is not there", "`holdfast projections rebuild` builds it from the log"
            )
        case psycopg.Error():
            return ApiError(
                503,
                "read-models-unavailable",
                "PostgreSQL does not answer",
                "`holdfast status` says what is up; nothing was changed",
                headers={"Retry-After": "5"},
            )
        case StreamError() | ProjectionError():
            return from_room(error)
        case _:
            return ApiError(500, "internal", "that should not have happened", "the API's log says more")


def _answer(answer: Reply | Download | Events, number: str, site: Site) -> Response:
    headers = {"X-Request-Id": number, "Cache-Control": "no-store"}
    match answer:
        case Reply(status=204):
            return Response(status_code=204, headers=headers)
        case Reply():
            text = json.dumps(answer.body, ensure_ascii=False, separators=(",", ":")).encode()
            return Response(text, status_code=answer.status, media_type="application/json", headers=headers)
        case Download():
            headers["Content-Disposition"] = f'attachment; filename="{answer.filename}"'
            return StreamingResponse(answer.chunks, media_type=answer.media_type, headers=headers)
        case Events():
            headers["X-Accel-Buffering"] = "no"
            body = sse.body(answer.events(), site.stopping)
            return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        problem = ApiError(405, "method-unknown", f"{request.method} is not for {request.url.path}")
        problem.headers = dict(error.headers or {})
    else:
        problem = ApiError(error.status_code, "path-unknown", f"there is no {request.url.path}", "see /v1/openapi.json")
    return response(problem, uuid7())


async def _broken(request: Request, error: Exception) -> Response:
    return response(explain(error), uuid7())
