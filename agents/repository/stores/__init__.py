"""Where a repository's files are: a directory, a bucket, memory. One small contract, one suite (`tests/contract/stores.py`).

A store holds files under names (`packs/ab/ab12….pack`), never changed once they are whole. It knows nothing of what is in them.

    create   the whole file or nothing, exclusively, durable on return: point records, keys, index runs
    append   exclusively, grows, durable as far as `sync` returned: packs. A crash leaves its beginning (a directory) or
             nothing (a bucket): readers of packs expect both
    delete   durable on return; a file that is not there is deleted already

Safe to call from several threads; an `Appender` belongs to one thread at a time. Every failure is a `StoreError`, also those
of an SDK. After a failed `create` or `sync` nobody knows whether the file is there: whoever tries again takes another name, or
reads what there is. `OSError`s of reading are not tried again here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from agents.errors import AgentError

Buffer = bytes | bytearray | memoryview

MISSING: Final = "store-missing"
EXISTS: Final = "store-exists"
SHORT: Final = "store-short"
FULL: Final = "store-full"
READ_ONLY: Final = "store-read-only"
DENIED: Final = "store-denied"
IO: Final = "store-io"
UNFIT: Final = "store-unfit"
UNTRUSTED: Final = "store-untrusted"
BAD_NAME: Final = "store-name-invalid"

_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,127}(/[a-z0-9_][a-z0-9._-]{0,127}){0,7}")
_PREFIX = re.compile(r"([a-z0-9_][a-z0-9._-]{0,127}/){0,8}([a-z0-9_][a-z0-9._-]{0,127})?")


class StoreError(AgentError):
    """`store-missing` (no such file), `store-exists`, `store-short` (the file ends before what was asked for), `store-full`,
    `store-read-only`, `store-denied`, `store-io` (anything else; trying again may help), `store-unfit` (does not keep what a
    store must), `store-untrusted` (a server that cannot be told from an impostor), `store-name-invalid`."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as a listing shows it. `size` bytes; `mtime_us`: by the clock of whoever keeps the store."""

    name: str
    size: int
    mtime_us: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What a store is, for people and for `agents.repository.watch.protected_from`.

    `kind`: directory, s3 or memory · `where`: a path or URL without credentials · `medium`: file system type or server ·
    `network`: it is not on this machine's own disks · `deletable`: this process could delete what is in it ·
    `locked_days`: object lock holds every new file so long, 0: none · `versioned`: deleting keeps earlier versions ·
    `notes`: what the self-test had to put up with, one sentence each.
    """

    kind: str
    where: str
    medium: str = ""
    network: bool = False
    deletable: bool = True
    locked_days: int = 0
    versioned: bool = False
    notes: tuple[str, ...] = field(default=())


class Appender(Protocol):
    """A file that grows. What was written may be read back (`Store.read`) after `sync` in a directory and in memory; in a
    bucket only after `close`."""

    def write(self, *parts: Buffer) -> int:
        """Append `parts`; the offset at which they begin. After an error the appender is of no use any more."""

    def sync(self) -> None:
        """What was written, and the file's name, are durable on return (a bucket: only `close` makes them so)."""

    def close(self) -> None:
        """Durable on return; may be called twice. Nothing can be added to the file any more, ever."""

    def abandon(self) -> None:
        """Let go without making anything durable: what is there stays as garbage. May be called twice, and after `close`."""


class Store(Protocol):
    """Where files are. Whoever opened it closes it."""

    def create(self, name: str, parts: Iterable[Buffer]) -> None:
        """Make a file of `parts`, durable on return. `store-exists` when there is one: it stays as it is. Nothing can be seen
        of it before it is whole."""

    def append(self, name: str) -> Appender:
        """Begin a file. `store-exists` when there is one (a bucket says so when it is closed)."""

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `offset`, or all to the end. `store-missing`, `store-short`."""

    def size(self, name: str) -> int:
        """Bytes of a file. `store-missing`."""

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """The files whose names begin with `prefix`, in any order. A file made or deleted meanwhile may be listed or not;
        every other one is, once."""

    def delete(self, name: str) -> None:
        """Remove a file, durable on return; none is no error. `store-read-only`, `store-denied`."""

    def check(self) -> Traits:
        """Try out, with files of its own under `check/`, that the store keeps what is promised here. `store-unfit` with the
        reason when it does not, or the error that came up."""

    def free_bytes(self) -> int | None:
        """Room that is left, as far as the store knows."""

    def sweep(self, older_than_s: float) -> int:
        """Remove what crashes left that no listing shows, by age alone: whoever writes is done with it in that time. How many."""

    def close(self) -> None:
        """Let go of connections. May be called twice."""


def checked_name(name: str) -> str:
    """`name`, when a file can be called so in every store; `store-name-invalid` otherwise."""
    if not _NAME.fullmatch(name):
        raise StoreError(BAD_NAME, f"{name!r} cannot name a file of a repository")
    return name


def checked_prefix(prefix: str) -> str:
    """`prefix`, when names may begin so."""
    if not _PREFIX.fullmatch(prefix):
        raise StoreError(BAD_NAME, f"{prefix!r} begins no name of a file of a repository")
    return prefix


def may_delete(store: Store, probe: str, notes: list[str]) -> bool:
    """Delete a self-test's file, if the store lets us: one that keeps what it is given is a good one."""
    try:
        store.delete(probe)
    except StoreError as error:
        if error.code != DENIED:
            raise
        notes.append(f"what cannot be deleted is not collected: space is not given back, and {probe} stays")
        return False
    return True


def missing(name: str) -> StoreError:
    return StoreError(MISSING, f"there is no {name}")


def exists(name: str) -> StoreError:
    return StoreError(EXISTS, f"there is a {name} already")


def short(name: str, offset: int, size: int, there: int) -> StoreError:
    return StoreError(SHORT, f"{name} has {there} of the {size} bytes wanted from {offset} on")
