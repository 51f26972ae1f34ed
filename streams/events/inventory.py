"""What exists: sources and their states, tokens and their roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from streams.events.base import Event, Problem, event

SourceState = Literal["baseline", "capturing", "paused", "stopped", "removed"]
Role = Literal["viewer", "auditor", "operator", "admin"]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDefined(Event):
    """A source is protected from now on. Passwords are references into the secret store, never values.

    `secrets` maps an account's purpose (`capture`, `rollback`) to a reference; `accounts` maps it to the user name.
    """

    TYPE: ClassVar[str] = "source.defined"
    TOPIC: ClassVar[str] = "inventory"

    source: str
    kind: str
    host: str
    port: int
    tls: str = "off"
    tls_ca: str = ""
    accounts: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    defined_us: int
    by: str

    @property
    def key(self) -> str:
        return self.source


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChanged(Event):
    """A source is in a new state; `problems` say why when it is `stopped`. `position` is the native position then."""

    TYPE: ClassVar[str] = "source.changed"
    TOPIC: ClassVar[str] = "inventory"

    source: str
    state: str
    at_us: int
    by: str
    server_version: str = ""
    capability: tuple[str, ...] = ()
    position: str = ""
    ordinal: int = 0
    baseline: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        return self.source


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssued(Event):
    """An API token exists. Only the BLAKE3 of the token is kept; nobody can read the token back."""

    TYPE: ClassVar[str] = "token.issued"
    TOPIC: ClassVar[str] = "inventory"

    token: str
    actor: str
    role: str
    digest: bytes
    issued_us: int
    expires_us: int | None = None
    by: str

    @property
    def key(self) -> str:
        return f"token/{self.token}"


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRevoked(Event):
    """An API token is of no use any more."""

    TYPE: ClassVar[str] = "token.revoked"
    TOPIC: ClassVar[str] = "inventory"

    token: str
    at_us: int
    by: str

    @property
    def key(self) -> str:
        return f"token/{self.token}"
