"""The index of a timeline: granules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streams.events.base import Event, event


@dataclass(frozen=True, slots=True)
class TableCount:
    """Rows that the granule's steps inserted, updated and deleted in one table, and in how many steps it appears."""

    schema: str
    table: str
    steps: int
    inserts: int
    updates: int
    deletes: int


@dataclass(frozen=True, slots=True)
class Landmark:
    """A step that more than its counts must be known of.

    `kind`: `ddl`, `statement`, `account`, `xa`, `incident` (barriers), `own` (touches nothing but schema `holdfast`),
    `marker` (the step of a rollback; `plan` is the plan's id) or `undo` (the step of a selective undo: no turn of the path,
    it stands like a user's). `text` is the DDL, shortened; empty for account statements.
    """

    ordinal: int
    kind: str
    text: str = ""
    plan: str = ""


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class GranuleClosed(Event):
    """Steps `first_ordinal..last_ordinal` of a lineage, indexed. Closed at 4,096 steps or 4 MB of payload, whichever first,
    or with the last step of a lineage when the next one starts.

    `first_time_us` and `last_time_us` are the earliest and the latest step time (µs, whole seconds where the source gives no
    more), wherever in the granule these steps stand; `captured_us` is of the last step.
    `first_position` is the native position of the first step itself (its GTID), `last_position` of the last.
    `first_offset`/`last_offset` are Kafka offsets of the capture topic with `topic_id`: a cache, never an identity.
    """

    TYPE: ClassVar[str] = "granule.closed"
    TOPIC: ClassVar[str] = "commits"

    source: str
    first_ordinal: int
    last_ordinal: int
    first_time_us: int
    last_time_us: int
    captured_us: int
    first_position: str
    last_position: str
    payload_bytes: int
    events: int
    tables: tuple[TableCount, ...] = ()
    landmarks: tuple[Landmark, ...] = ()
    topic_id: str
    first_offset: int
    last_offset: int
    digest: bytes

    @property
    def key(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class KeyedTable:
    """A table of which rows were written in a granule, and how they are known in its key run.

    `columns`: names of its key columns, none where a row is known by its whole image. `dense`: its keys were too many, or
    could not be told (no definition that fits was recorded then): any of its keys may be in the granule.
    """

    schema: str
    table: str
    columns: tuple[str, ...]
    dense: bool


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class GranuleKeys(Event):
    """Which keys the steps of a granule wrote: before- and after-keys of every row. Published before the granule itself.

    `entries` is a run (`streams.key_runs`): sorted, each 12 bytes, HMAC64 of a key and the step counted from
    `first_ordinal`. `key_id` names the site key that the hashes come from.
    """

    TYPE: ClassVar[str] = "granule.keys"
    TOPIC: ClassVar[str] = "commits"

    source: str
    first_ordinal: int
    last_ordinal: int
    key_id: str
    tables: tuple[KeyedTable, ...] = ()
    entries: bytes

    @property
    def key(self) -> str:
        return self.source
