"""API tokens: made here, kept only as a digest, looked up in the `access` view and in what the log says since.

A token in text is `hf_` and 43 characters of base64url (32 random bytes); its digest is the BLAKE3-256 of that text. It
has so much entropy that a plain digest gives nothing away, and a lookup by digest leaks no timing of the secret itself.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from api.errors import ApiError
from projections.views.access import Token
from streams.events import TokenIssued
from streams.ids import now_us

ADMIN_FILE = Path("secrets") / "admin.token"
_SHAPE = re.compile(r"hf_[A-Za-z0-9_-]{43}")
_HELD_S = 30.0
_HELD = 10_000


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking."""

    actor: str
    role: str
    token: str


def new_secret() -> str:
    """A new token in text. Shown once, kept nowhere."""
    return "hf_" + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    """What is kept of a token."""
    return blake3(secret.encode()).digest()


class Tokens:
    """Tokens by digest. `look_up` asks the read model, `since` what the log says beyond it, with the last word.

    An answer is held for half a minute; `forget` drops it at once, and is called for every token the log speaks of,
    so a revoked token is of no use a moment after its revocation is in the log. When the read model is away, the log
    alone answers: it is read from its beginning.
    """

    def __init__(
        self, look_up: Callable[[bytes], Token | None], since: Callable[[bytes, Token | None], Token | None]
    ) -> None:
        self._look_up = look_up
        self._since = since
        self._held: dict[bytes, tuple[float, Token]] = {}
        self._forgotten = 0
        self._lock = threading.Lock()

    def principal(self, authorization: str | None) -> Principal:
        """Who sends this `Authorization` header. Raises `ApiError` 401."""
        if authorization is None:
            raise unauthorised("token-missing", "this call needs a token", "send `Authorization: Bearer hf_…`")
        scheme, _, text = authorization.partition(" ")
        secret = text.strip()
        if scheme.lower() != "bearer" or not _SHAPE.fullmatch(secret):
            raise unauthorised("token-invalid", "that is no token of this kind", "send `Authorization: Bearer hf_…`")
        token = self._find(digest(secret))
        if token is None:
            raise unauthorised("token-unknown", "this site does not know that token", "ask an administrator for one")
        if token.revoked_us is not None:
            raise unauthorised("token-revoked", "that token was revoked", "ask an administrator for another")
        if not token.valid(now_us()):
            raise unauthorised("token-expired", "that token has expired", "ask an administrator for another")
        return Principal(token.actor, token.role, token.token)

    def _find(self, key: bytes) -> Token | None:
        now = time.monotonic()
        with self._lock:
            held, forgotten = self._held.get(key), self._forgotten
        if held is not None and now - held[0] < _HELD_S:
            return held[1]
        token = self._since(key, self._look_up(key))
        with self._lock:
            # What was looked up while the log spoke of some token may be out of date by now: not held.
            if token is not None and forgotten == self._forgotten:
                if len(self._held) >= _HELD:
                    self._held.clear()
                self._held[key] = (now, token)
        return token

    def forget(self, token: str) -> None:
        """Look this token (by id) up again when it is next used."""
        with self._lock:
            self._forgotten += 1
            for key in [k for k, (_, t) in self._held.items() if t.token == token]:
                del self._held[key]


def unauthorised(code: str, message: str, hint: str) -> ApiError:
    return ApiError(401, code, message, hint, headers={"WWW-Authenticate": "Bearer"})


def admin_event(secret: str, by: str) -> TokenIssued:
    """The event of the first administrator's token. Its id follows from the secret: said twice it is one token."""
    key = digest(secret)
    bits = bytearray(key[:16])
    bits[6] = bits[6] & 0x0F | 0x80  # version 8 of RFC 9562: a value of our own making
    bits[8] = bits[8] & 0x3F | 0x80
    token = str(uuid.UUID(bytes=bytes(bits)))
    return TokenIssued(token=token, actor="admin", role="admin", digest=key, issued_us=now_us(), by=by)


def read_admin_file(data_dir: Path) -> str | None:
    """The first administrator's token, or None when there is no such file."""
    try:
        text = (data_dir / ADMIN_FILE).read_text("ascii").strip()
    except FileNotFoundError:
        return None
    return text if _SHAPE.fullmatch(text) else None


def write_admin_file(data_dir: Path, secret: str) -> None:
    """Put the token where its owner finds it: mode 0600, whole and durable or not there at all.

    Raises FileExistsError when another process was faster.
    """
    path = data_dir / ADMIN_FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as out:
            out.write(secret + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.link(scratch, path)
    finally:
        scratch.unlink()
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
