"""The capture topic of one source: lineage and epoch markers, and commit records with native payload.

Order of appearance, and what a reader does with it, is in docs/design.md, "The capture topic".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.events.base import Event, event


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a step too large for one record. A new `attempt` (UUID) restarts the step; `number` counts from 0."""

    attempt: str
    number: int
    last: bool


@dataclass(frozen=True, slots=True)
class Encryption:
    """AES-256-GCM of the payload under the site's key `key_id`; AAD is the record's head (see `streams.capture_record`)."""

    key_id: str
    nonce: bytes


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsRecorded(Event):
    """A commit record: whole steps `first_ordinal..last_ordinal`, or one part of step `first_ordinal`.

    - `step_ends`: little-endian u32 each, where step i ends within `payload` (before encryption); empty for a part.
    - `preamble`: the source's format-description event, with which `payload` (native events, undecoded) is read.
    - `before` / `after`: the source's native position (MariaDB: GTID set) before the last complete step of this record and
      after it; a part that is not the last repeats both of the record before. Resuming starts at `before`, re-reads that
      step and compares it with `last_step_digest` (BLAKE3-256 of the step's payload).
    - `file`, `offset`: binlog coordinate after the last event of the record; a hint, valid for `server_id` only.
    - `previous_record`: digest of the record before in this lineage; `digest`: of this one.
    - `accounts`: holds account statements, so the payload is always encrypted.
    """

    TYPE: ClassVar[str] = "commits.recorded"
    TOPIC: ClassVar[str] = "capture"

    source: str
    first_ordinal: int
    last_ordinal: int
    part: Part | None = None
    step_ends: bytes
    events: int
    before: str
    after: str
    last_step_digest: bytes
    server_id: int
    file: str
    offset: int
    captured_us: int
    previous_record: bytes
    digest: bytes
    preamble: bytes
    payload: bytes
    accounts: bool = False
    encryption: Encryption | None = None

    @property
    def key(self) -> str:
        return self.source


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class LineageStarted(Event):
    """One unbroken history begins at native position `position`; ordinals start at 1; the chain starts at `digest`.

    `baseline` names the consistent full that the lineage starts from. `reason` is `protected`, `reset`, `lost-tail` …
    """

    TYPE: ClassVar[str] = "lineage.started"
    TOPIC: ClassVar[str] = "capture"

    source: str
    position: str
    server_id: int
    server_version: str
    reason: str
    baseline: str
    digest: bytes
    at_us: int

    @property
    def key(self) -> str:
        return self.source


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStarted(Event):
    """An agent takes over capture. Readers drop records of lower epochs that come after this."""

    TYPE: ClassVar[str] = "epoch.started"
    TOPIC: ClassVar[str] = "capture"

    source: str
    agent: str
    at_us: int

    @property
    def key(self) -> str:
        return self.source
