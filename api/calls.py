"""One call of the API as handlers see it, and what they give back. Knows nothing of HTTP's machinery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api.auth.roles import Operation
from api.auth.tokens import Principal

if TYPE_CHECKING:
    from api.site import Site


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was let in and checked against the contract. `parameters` are typed, defaults filled in, None when
    left out; `body` likewise. `request` is the id under which it is audited."""

    site: Site
    operation: Operation
    request: str
    who: Principal | None
    parameters: Mapping[str, Any]
    body: Mapping[str, Any]
    remote: str

    @property
    def actor(self) -> str:
        return self.who.actor if self.who else ""

    def text(self, name: str) -> str:
        """A required parameter."""
        value = self.parameters[name]
        assert isinstance(value, str)
        return value


@dataclass(frozen=True, slots=True)
class Reply:
    """A JSON answer. `about` is what the record of the call names as its object, when the path does not say it."""

    body: Any
    status: int = 200
    about: str = ""
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Download:
    """Text as it is made."""

    chunks: Iterator[str]
    media_type: str
    filename: str


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event; `data` becomes JSON."""

    event: str
    data: Any
    id: str = ""


@dataclass(frozen=True, slots=True)
class Events:
    """Server-sent events as they come. The iterator is made in the event loop, and closed when the caller is gone."""

    events: Callable[[], AsyncIterator[ServerEvent]]


Handler = Callable[[Call], Reply | Download | Events]
