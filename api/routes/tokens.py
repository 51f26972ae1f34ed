"""Tokens: who may ask, and as what. A secret is in the answer that issues it and nowhere else."""

from __future__ import annotations

from api import shapes
from api.auth import tokens
from api.calls import Call, Reply
from api.errors import ApiError, not_found
from projections.views import access
from projections.views.access import Token
from streams.events import TokenIssued, TokenRevoked
from streams.ids import now_us, uuid7


def list_all(call: Call) -> Reply:
    with call.site.views() as conn:
        call.site.catch_up(conn, "access", "inventory", "")
        found = access.tokens(conn, revoked=True)
    now = now_us()
    known = [call.site.live.token(t.digest, t) or t for t in found]
    return Reply({"items": [shapes.token(t, now) for t in known]})


def issue(call: Call) -> Reply:
    body, now = call.body, now_us()
    expires = shapes.microseconds(body["expires"]) if body.get("expires") else None
    if expires is not None and expires <= now:
        raise ApiError(422, "expiry-past", "that token would have expired already", "give a later `expires`")
    secret = tokens.new_secret()
    event = TokenIssued(
        token=uuid7(),
        actor=body["actor"],
        role=body["role"],
        digest=tokens.digest(secret),
        issued_us=now,
        expires_us=expires,
        by=call.actor,
    )
    call.site.log.publish(event)
    row = Token(event.token, event.actor, event.role, event.digest, now, expires, event.by, None, "")
    return Reply({**shapes.token(row, now), "secret": secret}, status=201, about=event.token)


def revoke(call: Call) -> Reply:
    """One's own token too; the last administrator's not, or nobody could issue another."""
    name = call.text("token")
    with call.site.views() as conn:
        call.site.catch_up(conn, "access", "inventory", f"token/{name}")
        found = access.token(conn, name)
        usable = [t for t in access.tokens(conn) if t.role == "admin" and t.valid(now_us())]
    if found is None:
        raise not_found("token", name, "`holdfast token list` shows them")
    found = call.site.live.token(found.digest, found) or found
    if found.revoked_us is not None:
        return Reply(None, status=204)
    if found.role == "admin" and {t.token for t in usable if _still(call, t)} <= {name}:
        raise ApiError(
            409,
            "last-admin",
            "that is the last token of an administrator: without it nobody could issue another",
            "issue another with `holdfast token issue NAME --role admin` first",
        )
    call.site.log.publish(TokenRevoked(token=name, at_us=now_us(), by=call.actor))
    call.site.log.flush()
    call.site.tokens.forget(name)
    return Reply(None, status=204)


def _still(call: Call, token: Token) -> bool:
    known = call.site.live.token(token.digest, token) or token
    return known.revoked_us is None
