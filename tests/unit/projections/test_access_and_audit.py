"""Tokens by digest; calls by who, what and when."""

from __future__ import annotations

from projections.database import Connection
from projections.views import access, audit
from streams.events import CallAudited, TokenIssued, TokenRevoked
from tests.unit.projections.conftest import Feed


def issued(token: str, digest: bytes, at_us: int, expires_us: int | None = None) -> TokenIssued:
    return TokenIssued(
        token=token, actor="ada", role="operator", digest=digest, issued_us=at_us, expires_us=expires_us, by="root"
    )


def test_a_token_is_found_by_its_digest_and_judged_by_time(conn: Connection, feed: Feed) -> None:
    feed(issued("t1", b"1" * 32, 10, 100), issued("t2", b"2" * 32, 20))
    found = access.by_digest(conn, b"1" * 32)
    assert found is not None
    assert (found.token, found.actor, found.role) == ("t1", "ada", "operator")
    assert found.valid(99)
    assert not found.valid(100)
    assert access.by_digest(conn, b"3" * 32) is None
    assert [t.token for t in access.tokens(conn)] == ["t2", "t1"]


def test_a_revoked_token_stays_revoked(conn: Connection, feed: Feed) -> None:
    feed(issued("t1", b"1" * 32, 10), TokenRevoked(token="t1", at_us=15, by="root"), issued("t1", b"1" * 32, 20))
    found = access.by_digest(conn, b"1" * 32)
    assert found is not None
    assert not found.valid(16)
    assert (found.revoked_us, found.issued_us) == (15, 10)
    assert access.tokens(conn) == []
    assert [t.token for t in access.tokens(conn, revoked=True)] == ["t1"]


def test_a_revocation_of_an_unknown_token_is_no_token(conn: Connection, feed: Feed) -> None:
    feed(TokenRevoked(token="t9", at_us=15, by="root"))
    assert access.token(conn, "t9") is None
    assert access.tokens(conn, revoked=True) == []


def call(request: str, at_us: int, actor: str = "ada", action: str = "source.list", outcome: int = 200) -> CallAudited:
    return CallAudited(
        request=request,
        actor=actor,
        role="operator",
        token="t1",
        action=action,
        object="shop",
        outcome=outcome,
        detail="{}",
        remote="127.0.0.1",
        at_us=at_us,
    )


def test_calls_are_filtered_and_paged(conn: Connection, feed: Feed) -> None:
    feed(
        call("r1", 1),
        call("r2", 2, "bob"),
        call("r3", 2, outcome=403),
        call("r4", 3, action="rollback.run"),
        call("r1", 1),
    )

    def found(**filters: object) -> list[str]:
        return [c.request for c in audit.calls(conn, **filters)]  # type: ignore[arg-type]

    assert found() == ["r4", "r3", "r2", "r1"]
    assert found(actor="bob") == ["r2"]
    assert found(action="rollback.run") == ["r4"]
    assert found(object="crm") == []
    assert found(outcome_from=400) == ["r3"]
    assert found(since_us=2, until_us=3) == ["r3", "r2"]
    assert found(limit=2) == ["r4", "r3"]
    assert found(before=(2, "r3")) == ["r2", "r1"]
    assert found(before=(2, "r3"), actor="ada") == ["r1"]
