"""Access: API tokens by digest, the role each carries, which are revoked. Issue and revocation fill columns of their
own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from projections.views.base import Connection, Cursor, text
from streams.events import TokenIssued, TokenRevoked

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "access"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {"token": ("token",)}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory",)


@dataclass(frozen=True, slots=True)
class Token:
    """An API token. `digest` is the BLAKE3 of the token itself. `revoked_us` None: not revoked."""

    token: str
    actor: str
    role: str
    digest: bytes
    issued_us: int
    expires_us: int | None
    issued_by: str
    revoked_us: int | None
    revoked_by: str

    def valid(self, now_us: int) -> bool:
        return self.revoked_us is None and (self.expires_us is None or now_us < self.expires_us)


_ISSUED = """
INSERT INTO token AS t (token, actor, role, digest, issued_us, expires_us, issued_by) VALUES (%s, %s, %s, %s, %s, %s,
%s) ON CONFLICT (token) DO UPDATE SET
    actor = excluded.actor, role = excluded.role, digest = excluded.digest, issued_us = excluded.issued_us,
    expires_us = excluded.expires_us, issued_by = excluded.issued_by
WHERE t.digest IS NULL
"""
_REVOKED = """
INSERT INTO token AS t (token, revoked_us, revoked_by) VALUES (%s, %s, %s)
ON CONFLICT (token) DO UPDATE SET revoked_us = excluded.revoked_us, revoked_by = excluded.revoked_by
WHERE t.revoked_us IS NULL
"""


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """A token is issued once and revoked once: the first of each counts, so nothing brings a revoked token back."""
    for message in messages:
        match message.event:
            case TokenIssued() as e:
                issued = (e.token, text(e.actor), text(e.role), e.digest, e.issued_us, e.expires_us, text(e.by))
                cursor.execute(_ISSUED, issued)
            case TokenRevoked() as e:
                cursor.execute(_REVOKED, (e.token, e.at_us, text(e.by)))


def by_digest(conn: Connection, digest: bytes) -> Token | None:
    """The token with this digest, revoked or expired ones too: the caller asks `Token.valid`."""
    with conn.cursor(row_factory=class_row(Token)) as cur:
        return cur.execute("SELECT * FROM token WHERE digest = %s ORDER BY token LIMIT 1", (digest,)).fetchone()


def token(conn: Connection, token_id: str) -> Token | None:
    with conn.cursor(row_factory=class_row(Token)) as cur:
        return cur.execute("SELECT * FROM token WHERE token = %s AND digest IS NOT NULL", (token_id,)).fetchone()


def tokens(conn: Connection, *, revoked: bool = False) -> list[Token]:
    """Tokens by issue, newest first; revoked ones only when asked for."""
    with conn.cursor(row_factory=class_row(Token)) as cur:
        cur.execute(
            """
            SELECT * FROM token WHERE digest IS NOT NULL AND (%s OR revoked_us IS NULL)
            ORDER BY issued_us DESC, token DESC
            """,
            (revoked,),
        )
        return cur.fetchall()
