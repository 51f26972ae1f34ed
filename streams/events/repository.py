"""Repositories: who works in one, which points it holds, what is collected. One topic, one order.

The order of these events decides what is alive (docs/design.md, "Sessions and collection"). Topic `repository` has one partition,
so "before" and "after" mean the same to everybody. An event's *ordinal* is its number among those of its repository, from 1;
it is counted by whoever reads and stands in no event. The ordinal of a session's `session.opened` is the session's *epoch*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from streams.events.base import Event, Problem, event

RepositoryState = Literal["added", "adopted", "changed", "moved", "removed"]
SessionKind = Literal["backup", "restore", "export", "verify", "collect", "adopt"]
SessionOutcome = Literal["done", "failed", "cancelled"]
PointKind = Literal["disks", "files", "stream"]
Mark = Literal["star", "unstar", "hold", "release", "suspect", "verified", "damaged", "expiry-asked", "expiry-agreed"]
CollectionState = Literal["proposed", "executing", "done", "abandoned"]


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryDefined(Event):
    """A repository is of this site from now on, or its definition changed: the newest event is the definition.

    `repository` is the name people use (a slug), `identity` the UUID in `repository.json`. `store` is the kind (`local`, `s3`),
    `location` its path or URL, without secrets; `secrets` are references into the secret store. `node` owns it.
    `retention` is a JSON object (`agents.repository.retention.Rules`) or empty. `state`: added, adopted, changed, removed.
    """

    TYPE: ClassVar[str] = "repository.defined"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    identity: str
    state: str
    store: str
    location: str
    node: str
    encrypted: bool
    options: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    retention: str = ""
    protected_from: tuple[str, ...] = ()
    defined_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """A time-bounded writer, reader or collector begins. It counts once its node has read this event back.

    `pins` are points whose content stays while the session is open (what a restore, an export or a verification reads).
    After `lease_ticks` ticks of another ticker without a word of its own it may be fenced. `seen` is the ordinal that the node
    had read up to when it asked. `job` is the command's id, or empty.
    """

    TYPE: ClassVar[str] = "session.opened"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    session: str
    kind: str
    node: str
    asset: str = ""
    pins: tuple[str, ...] = ()
    lease_ticks: int
    seen: int
    job: str = ""
    opened_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed(Event):
    """A session ended by itself. `figures` are counts and bytes by name (`read_bytes`, `stored_bytes`, `new_chunks` …)."""

    TYPE: ClassVar[str] = "session.closed"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    session: str
    outcome: str
    points: tuple[str, ...] = ()
    figures: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    closed_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFenced(Event):
    """A session is over whether its node knows or not: what it says after this event does not count."""

    TYPE: ClassVar[str] = "session.fenced"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    session: str
    reason: str
    fenced_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@dataclass(frozen=True, slots=True)
class DiskSealed:
    """A disk in a point. `root` is the tree's (32 bytes, empty for a disk of zeroes); counts are of blocks."""

    disk: str
    name: str
    size: int
    block_size: int
    root: bytes
    changed: int = 0
    omitted: int = 0
    lost: int = 0


NOT_CHOSEN: Final = "it was not chosen"
"""What a point's fact `left_out/<disk>` says of a disk that whoever asked for the backup did not ask for."""


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class PointSealed(Event):
    """A restore point exists: its record was durable in the repository before this event.

    It counts if its session was open at this place of the log. `record` is the BLAKE3-256 of the record's file. `continues` is
    the point whose disks its delta run is the difference from, or empty; `files_root` is empty for disks. `adopted`: it was found
    in the repository, not made under this log.
    """

    TYPE: ClassVar[str] = "point.sealed"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    session: str
    point: str
    asset: str
    asset_name: str
    kind: str
    continues: str = ""
    created_us: int
    sealed_us: int
    disks: tuple[DiskSealed, ...] = ()
    files_root: bytes
    record: bytes
    figures: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    adopted: bool = False
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class PointDropped(Event):
    """A point is given up. Its content stays while an open session pins it; its record goes with the next collection.

    `reason` is why, for people (retention's own words, or what somebody wrote). `early`: ahead of policy, which `agreed_by`
    agreed to.
    """

    TYPE: ClassVar[str] = "point.dropped"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    point: str
    reason: str
    early: bool = False
    agreed_by: str = ""
    dropped_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class PointMarked(Event):
    """A point is marked: star, unstar, hold, release, suspect, verified, damaged, expiry-asked, expiry-agreed.

    `number` is that of the mark's file in the repository, which was durable before. A legal hold has a `name`: several
    may stand, and each is released by its own. `until_us` ends a hold by itself.
    """

    TYPE: ClassVar[str] = "point.marked"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    point: str
    mark: str
    number: int
    name: str = ""
    note: str = ""
    until_us: int | None = None
    marked_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionChanged(Event):
    """A collection is proposed, executing, done or abandoned; `session` is the collector's.

    `proposed`: roots were marked as of ordinal `marked`, and what no root reaches is listed in the file `plan` of the
    repository, whose BLAKE3-256 is `digest` (empty without one): sessions opened after this event treat it as absent.
    `executing` names the list as it stands after re-marking: from this event on it may be deleted, and nothing can undo that.
    `doomed`: the ids of the list's packs, 16 bytes each: what the file says can be lost, and this not.
    """

    TYPE: ClassVar[str] = "collection.changed"
    VERSION: ClassVar[int] = 2
    TOPIC: ClassVar[str] = "repository"

    repository: str
    collection: str
    session: str
    state: str
    marked: int
    plan: str = ""
    digest: bytes
    packs: int = 0
    points: int = 0
    freed_bytes: int = 0
    figures: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    at_us: int
    by: str
    doomed: bytes = b""

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked(Event):
    """`interval_us` have passed by `ticker`'s monotonic clock since its last tick. `sessions`: its own that go on.

    A ticker is one run of one process. Ticks are counted ticker by ticker, so two of them do not make time pass twice as fast.
    """

    TYPE: ClassVar[str] = "repository.ticked"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    node: str
    ticker: str
    number: int
    interval_us: int
    sessions: tuple[str, ...] = ()
    at_us: int

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryChecked(Event):
    """Something was looked after: `what` is `verify`, `watch`, `key-drill` or `store`; `mode` says how (metadata, sampled, full).

    `figures` are counts by name (`chunks`, `damaged`, `repaired`, `lost` …); `problems` say what is wrong, in words.
    """

    TYPE: ClassVar[str] = "repository.checked"
    TOPIC: ClassVar[str] = "repository"

    repository: str
    session: str = ""
    what: str
    mode: str = ""
    figures: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    protected_from: tuple[str, ...] = ()
    checked_us: int
    by: str

    @property
    def key(self) -> str:
        return self.repository


@event
@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencesRecorded(Event):
    """A batch of a backup's block → chunk references, in the order of the disk; what `point` will be made of.

    `references` are entries of a delta run as docs/design.md lays them out, `count` of them, first to last block. Batches of a
    session and disk are numbered from 0; at most 900 KB each.
    """

    TYPE: ClassVar[str] = "references.recorded"
    TOPIC: ClassVar[str] = "blocks"

    repository: str
    asset: str
    session: str
    point: str
    disk: str
    number: int
    count: int
    references: bytes
    recorded_us: int

    @property
    def key(self) -> str:
        return self.asset
