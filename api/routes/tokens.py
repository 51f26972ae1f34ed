"""Tokens: who may ask, and as what. A secret is in the answer that issues it and nowhere else."""

from __future__ import annotations

import contextlib

import psycopg

from api import shapes
from api.auth import tokens as secrets
from api.calls import Call, Reply
from api.errors import ApiError, not_found
from projections.views import access
from projections.views.access import Token
from streams.events import TokenIssued, TokenRevoked
from streams.ids import now_us, uuid7


def known(call: Call) -> list[Token]:
    """All tokens there ever were, newest first. The log has the last word, and all of it when the read model is away."""
    stored: list[Token] = []
    with contextlib.suppress(psycopg.Error), call.site.views() as conn:
        stored = access.tokens(conn, revoked=True)
    return call.site.live.tokens(stored)


def list_all(call: Call) -> Reply:
    now = now_us()
    return Reply({"items": [shapes.token(t, now) for t in known(call)]})


def issue(call: Call) -> Reply:
    body, now = call.body, now_us()
    expires = shapes.microseconds(body["expires"]) if body.get("expires") else None
    if expires is not None and expires <= now:
        raise ApiError(422, "expiry-past", "that token would have expired already", "give a later `expires`")
    secret = secrets.new_secret()
    event = TokenIssued(
        token=uuid7(),
        actor=body["actor"],
        role=body["role"],
        digest=secrets.digest(secret),
        issued_us=now,
        expires_us=expires,
        by=call.actor,
    )
    call.site.live.note(call.site.log.publish(event), event)
    row = Token(event.token, event.actor, event.role, event.digest, now, expires, event.by, None, "")
    return Reply({**shapes.token(row, now), "secret": secret}, status=201, about=event.token)


def revoke(call: Call) -> Reply:
    """One's own token too; the last administrator's not, or nobody could issue another."""
    name = call.text("token")
    tokens = {t.token: t for t in known(call)}
    found = tokens.get(name)
    if found is None:
        raise not_found("token", name, "`holdfast token list` shows them")
    if found.revoked_us is not None:
        return Reply(None, status=204)
    now = now_us()
    if found.role == "admin" and {t.token for t in tokens.values() if t.role == "admin" and t.valid(now)} <= {name}:
        raise ApiError(
            409,
            "last-admin",
            "that is the last token of an administrator: without it nobody could issue another",
            "issue another with `holdfast token issue NAME --role admin` first",
        )
    event = TokenRevoked(token=name, at_us=now, by=call.actor)
    call.site.live.note(call.site.log.publish(event), event)
    return Reply(None, status=204)
