"""The seam between Holdfast and a protected database: what a platform must offer, and the facts that pass through it.

A platform (`agents/platforms/<kind>`) implements `Source`; the capture engine knows nothing else of it. Payload and
positions are the source's own and are never looked into on this side of the seam. Knows nothing of Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from streams.events import Problem, SourceDefined

Account = Literal["capture", "rollback"]
Tls = Literal["off", "required", "verify"]


class Secrets(Protocol):
    """What is needed of `streams.secrets.SecretStore` here."""

    def get(self, ref: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How to reach one source. `accounts` and `passwords` by purpose; passwords are never shown."""

    source: str
    kind: str
    host: str
    port: int
    tls: str = "off"
    tls_ca: str = ""
    accounts: Mapping[str, str] = field(default_factory=dict)
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, str] = field(default_factory=dict)


def source_settings(defined: SourceDefined, secrets: Secrets) -> SourceSettings:
    """The settings that an event defines, references resolved. A purpose without a reference has no password."""
    return SourceSettings(
        source=defined.source,
        kind=defined.kind,
        host=defined.host,
        port=defined.port,
        tls=defined.tls,
        tls_ca=defined.tls_ca,
        accounts=dict(defined.accounts),
        passwords={purpose: secrets.get(ref).decode() for purpose, ref in defined.secrets.items() if ref},
        options=dict(defined.options),
    )


@dataclass(frozen=True, slots=True)
class Facts:
    """What a source says of itself now. `position`: native, after its last committed step.

    `purge_after_s`: how long it keeps its log after the last write to a log file; None: for ever. `log_bytes`: what it
    keeps now, 0 when the account may not know.
    """

    server_version: str
    server_id: int
    position: str
    purge_after_s: float | None = None
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Preflight:
    """Whether a source can be protected. Empty `problems`: it can. `warnings` do not stop anything.

    `capability` are levels (docs/guides/mariadb-source.md) that say what rollback may rely on, e.g. `rows-full`.
    """

    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    capability: tuple[str, ...]
    server_version: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """One of the two log groups that a transaction in two phases is made of (XA), or a group that is no step of its own.

    `kind`: `prepared` (rows, and no outcome yet), `committed`, `rolled back` (outcomes), `announced` (says nothing: a
    later group says all). `name`: of the transaction, as the source's log has it.
    """

    kind: Literal["prepared", "committed", "rolled back", "announced"]
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class Steps:
    """Whole consecutive steps as the source sent them.

    `payload`: bytes of all of them; step i ends at `ends[i]`. `before`/`after`: native position before the last of them
    and after it. `preamble` is what the payload is read with. `file`/`offset`: coordinate after the last event, a hint that
    is good for `server_id` (whose log it is) only.
    `step_time_us`: commit time of the last one by the source's clock. `accounts`: one step, not to be kept in clear.
    `phase`: one group, which is not a step by itself; a platform puts such groups together, and no `Stream` hands them over.
    """

    payload: bytes
    ends: Sequence[int]
    events: int
    before: str
    after: str
    preamble: bytes
    server_id: int
    file: str
    offset: int
    step_time_us: int
    accounts: bool = False
    phase: Phase | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of one step that is too large to be handed over whole. `first` opens it, `last` completes it.

    `before` is the position before the step, `after` the one after it (which a log without GTIDs says with `last` only). A
    piece with `first` while another step is open says that the open one never completed on the source.
    """

    payload: bytes
    first: bool
    last: bool
    events: int
    before: str
    after: str
    preamble: bytes
    server_id: int
    file: str
    offset: int
    step_time_us: int
    accounts: bool = False
    phase: Phase | None = None


Taken = Steps | Piece


class Stream(Protocol):
    """A source's log being read. One thread uses it."""

    def take(self, timeout: float) -> Taken | None:
        """The next steps: as many as have come, up to the limit the stream was opened with, without waiting.

        Waits at most `timeout` seconds when there are none; then None. Raises `SourceUnavailable` when the connection
        is gone or dead (nothing heard for longer than the source promised), `CaptureStopped` when the log cannot be
        followed. After either, only `close` may be called.
        """
        ...

    @property
    def behind(self) -> bool:
        """Whether more had come already when `take` last returned."""
        ...

    def close(self) -> None:
        """May be called twice, and after any error."""
        ...


class Source(Protocol):
    """One protected database. Holds no connection between calls; every method but `settings` may block and connect."""

    @property
    def settings(self) -> SourceSettings: ...

    def facts(self) -> Facts:
        """Raises `SourceUnavailable`."""
        ...

    def preflight(self) -> Preflight:
        """What stands in the way of protecting it. Changes nothing on the source. Raises `SourceUnavailable`."""
        ...

    def open(self, position: str, limit: int, *, proof: str | None = None) -> Stream:
        """Read the log after native `position`; `take` returns about `limit` bytes at a time.

        `proof` is a later position that was reached before: when the source does not hold it any more (it went back,
        or its log was purged or reset), raises `CaptureStopped` with `capture-position-lost` or `capture-purged`. With
        it, the first step is handed over by itself, to be compared.
        """
        ...

    def events_in(self, payload: bytes) -> int:
        """How many native events a payload of whole steps holds."""
        ...


class Platform(Protocol):
    """A module of the registry."""

    def source(self, settings: SourceSettings) -> Source: ...
