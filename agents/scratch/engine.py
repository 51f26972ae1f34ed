"""The seam between scratch copies and a kind of database: a private server, and how the log gets into it.

A platform that has scratch copies offers a `Replayer` (`agents.registry.replayer`). MariaDB and MySQL have one; a kind without
says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.baseline.manifest import CreateObject, Manifest, TableFile
from agents.errors import AgentError
from agents.protocol import SourceSettings
from streams.capture_log import CaptureLog
from streams.events import Problem, TableDefinition

Progress = Callable[[int, int], None]
Names = Collection[tuple[str, str]]
"""Tables, by schema and name."""


class Server(Protocol):
    """A private server in a folder of its own. It dies with this process, its data stay. Raises `AgentError`."""

    port: int

    @property
    def alive(self) -> bool: ...
    @property
    def account(self) -> str: ...
    @property
    def socket(self) -> Path: ...
    @property
    def password_file(self) -> Path: ...

    def create(self) -> None:
        """Make its data directory: nothing of a source is in it."""
        ...

    def start(self) -> None:
        """As a server like any other: what it acknowledges is on disk."""
        ...

    def start_filling(self) -> None:
        """To be filled and to replay; nothing of it need survive a power cut until it was stopped in order."""
        ...

    def connect(self, **options: Any) -> Any:
        """A DB-API connection with all rights."""
        ...

    def in_use(self) -> bool:
        """Whether anybody but us is connected."""
        ...

    def stop(self) -> None: ...
    def kill(self) -> None: ...

    def said(self) -> str:
        """The last error in its log."""
        ...


class Replayer(Protocol):
    """What a kind of database can do with a baseline and a log."""

    def program(self, manifest: Manifest, named: str) -> str | None:
        """A server program fit for the source that `manifest` is of; `named` is looked at first."""
        ...

    def server(self, program: str, folder: Path, variables: Mapping[str, str], port: int) -> Server: ...

    def needed(
        self, log: CaptureLog, baseline: Path, manifest: Manifest, ordinal: int, asked: Names
    ) -> frozenset[tuple[str, str]]:
        """The tables whose rows must be there for those of `asked` to be right. Raises `AgentError` (`tables-not-alone`)."""
        ...

    def load(
        self,
        server: Server,
        baseline: Path,
        tables: Names | None,
        progress: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        """The baseline into an empty server that was started to be filled, with rows in `tables` (None: all). `progress` is
        told how many rows are there."""
        ...

    def replay(
        self,
        server: Server,
        log: CaptureLog,
        manifest: Manifest,
        ordinal: int,
        tables: Names | None,
        progress: Progress,
        check: Callable[[], None],
    ) -> str:
        """Steps up to `ordinal`, by the server's own replication, with rows of `tables` (None: all); the native position
        after them."""
        ...

    def keep_only(self, server: Server, tables: Names) -> frozenset[tuple[str, str]]:
        """Drop every other table, and views; which of `tables` there are."""
        ...

    def told(self, error: BaseException) -> AgentError | None:
        """What a user is told of an error of the driver's; None when it is none."""
        ...


@dataclass(frozen=True, slots=True)
class ChildKey:
    """A foreign key of another table that points at one: `columns` there at `references` here. `clause` adds it."""

    schema: str
    table: str
    constraint: str
    columns: tuple[str, ...]
    references: tuple[str, ...]
    clause: str

    @property
    def text(self) -> str:
        return f"{self.schema}.{self.table} ({self.constraint})"


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as it is on some server. `triggers` are what creates them, `definers` whom they belong to; `foreign_keys`
    clauses of its own definition by name; `children` the keys of other tables that point at it; `privileges` for people."""

    definition: TableDefinition
    kind: str
    rows: int
    auto_increment: int | None
    versioned: bool
    triggers: tuple[CreateObject, ...]
    definers: tuple[str, ...]
    foreign_keys: Mapping[str, str]
    children: tuple[ChildKey, ...]
    privileges: tuple[str, ...]


class TableTarget(Protocol):
    """A source that a table is put into. Everything may raise `SourceUnavailable` and `AgentError`."""

    def look(self, schema: str, table: str) -> TableState | None:
        """What there is; None when there is no such table."""
        ...

    def lacks(self, schema: str, then: TableState, children: Sequence[ChildKey]) -> list[Problem]:
        """What the account may not do, with the statements that mend it."""
        ...

    def keys_of(self, child: ChildKey, most: int) -> list[tuple[Any, ...]] | None:
        """The different values that rows of a child point with; None when there are more than `most`."""
        ...

    def dangling(self, child: ChildKey, schema: str, shadow: str) -> list[Problem]:
        """Rows of a child that would point nowhere if the shadow were what they point at."""
        ...

    def hold(self, *, at_once: bool = True) -> None:
        """So that no other rollback runs beside this one. Not `at_once`: end a session that a death left behind."""
        ...

    def load(
        self,
        then: TableState,
        now: TableState | None,
        shadow: str,
        folder: Path,
        table: TableFile,
        progress: Callable[[int], None],
    ) -> None:
        """Create the shadow beside the table and fill it from the rows file in `folder`."""
        ...

    def content(self, table: TableFile, shadow: str, progress: Callable[[int], None]) -> tuple[int, bytes]:
        """How many rows the shadow has, and the digest of what they are."""
        ...

    def orphans(self, then: TableState, shadow: str) -> list[Problem]:
        """Rows of the shadow whose foreign keys point nowhere."""
        ...

    def read_only(self) -> str: ...
    def fence(self) -> None: ...
    def unfence(self, before: str) -> None: ...

    def swap(self, plan: str, digest: bytes, schema: str, table: str, shadow: str, kept: str) -> None:
        """Atomically: the table to `kept` (empty: there is none), the shadow to the table."""
        ...

    def swapped(self, plan: str, schema: str, table: str, shadow: str, kept: str) -> bool:
        """Whether that has happened."""
        ...

    def finish(self, then: TableState, kept: str, children: Sequence[ChildKey]) -> None:
        """After the swap, and again after a death within: foreign keys and triggers where they belong, and the keys of
        `children`, which went with the table that is kept, on the table of then."""
        ...

    def forget(self, schema: str, shadow: str) -> None:
        """Drop a shadow, if it is there."""
        ...

    def position(self) -> str: ...
    def close(self) -> None: ...


class Tables(Protocol):
    """What a kind of database can do with single tables."""

    def look(self, conn: Any, schema: str, table: str) -> TableState | None: ...
    def table_file(self, conn: Any, state: TableState, file: str) -> TableFile: ...

    def keep(self, conn: Any, table: TableFile, path: Path, progress: Callable[[int], None]) -> tuple[int, bytes]:
        """All rows into a rows file; how many, and the digest of what they are."""
        ...

    def dangling_problem(self, child: ChildKey, keys: Sequence[tuple[Any, ...]]) -> Problem:
        """What is to be said of keys of a child that no row has."""
        ...

    def without(
        self, conn: Any, then: TableState, child: ChildKey, keys: Sequence[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """Those of `keys` that no row of the table has, on a private server."""
        ...

    def target(self, settings: SourceSettings) -> TableTarget: ...
