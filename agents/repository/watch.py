"""What others did to the repository's files, and what the repository is protected from.

Everything in a repository is written once and goes by Holdfast's own hand or not at all. So each look compares the listing with
what was there the time before (`Watch`, kept on the node's own disk, where somebody who has the store has no hand in it):
a file that is gone without our having deleted it, that has another size or time, whose first and last bytes are others, or
that nobody of us would have made, is a problem, and said once. Contents are verify's business: it reads them all.

State, `<folder>/<repository>.watch`: a line a file, `<size> <mtime_us> <16 hex digits, or -> <name, quoted as in a URL>`, and
a last line `end <BLAKE3 of all before, 32 hex digits>`. And if we die here? It is written beside its place, flushed and
renamed; a look that did not get so far is made again. A state that is lost or damaged is begun anew, which is a problem too:
what changed meanwhile went unseen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from blake3 import blake3

from agents.repository.stores import MISSING, Listed, Store, StoreError, Traits
from agents.repository.stores.recorded import RecordedStore
from streams.events import Problem

GONE: Final = "repository-file-gone"
CHANGED: Final = "repository-file-changed"
FOREIGN: Final = "repository-file-foreign"
BEGUN: Final = "repository-watch-begun"

_EDGE: Final = 4096  # bytes of each end that are looked at: heads, footers' trailers, whole small files
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "rootfs", "memory"})
_SAID: Final = 20  # names in one problem; how many there are in all is said too
_OURS: Final = re.compile(
    r"repository2?\.json|(packs|index|points2?|marks|keys2?|witness|tombstones|archive|policies|collections|damaged|reserve)/[a-z0-9._/-]+"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as it was at a look. `edges`: digest of its first and last bytes, "" when they were not read then."""

    size: int
    mtime_us: int
    edges: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found: the state to keep, and what is wrong. `files`, `bytes`: what there is; `read`: ends compared."""

    seen: Mapping[str, Seen]
    problems: tuple[Problem, ...]
    files: int = 0
    bytes: int = 0
    read: int = 0


def look(
    store: Store,
    before: Mapping[str, Seen] | None,
    *,
    deleted: Callable[[str], bool] = lambda name: False,
    touched: Callable[[str], bool] = lambda name: False,
    every: int = 30,
    turn: int = 0,
) -> Look:
    """Compare the store with `before` (None: nothing is known yet).

    `deleted(name)`: we did that, or one of our other nodes did (tombstones, dropped points). `touched(name)`: we may have written
    to it since, or do so now (packs of open sessions, copies that verify mended). Of files that look the same the ends are
    read of one in `every`, another one each `turn`; of those that are new, all: later looks compare with that.
    Raises `StoreError`.
    """
    known = dict(before or {})
    seen: dict[str, Seen] = {}
    wrong = _Wrong()
    total = read = 0
    for listed in store.list():
        if listed.name.startswith("check/"):
            continue  # a self-test's
        total += listed.size
        was = known.pop(listed.name, None)
        if not _OURS.fullmatch(listed.name):
            if was is None:
                wrong.foreign.append(listed.name)
            seen[listed.name] = Seen(listed.size, listed.mtime_us)
            continue
        if touched(listed.name):
            seen[listed.name] = Seen(listed.size, listed.mtime_us)
            continue
        due = was is None
        if was is not None:
            due = (hash_of(listed.name) + turn) % every == 0
            if (was.size, was.mtime_us) != (listed.size, listed.mtime_us):
                wrong.changed.append(listed.name)
                due = True
        edges = was.edges if was else ""
        if due:
            try:
                now = _edges(store, listed)
            except StoreError as error:
                if error.code != MISSING:
                    raise
                continue  # deleted since it was listed; the next look judges that, if it was known
            read += 1
            if edges and now != edges and listed.name not in wrong.changed:
                wrong.changed.append(listed.name)
            edges = now
        seen[listed.name] = Seen(listed.size, listed.mtime_us, edges)
    wrong.gone += [name for name in known if not deleted(name) and _OURS.fullmatch(name) and not touched(name)]
    problems = list(wrong.problems())
    if before is None and seen:
        problems.append(
            Problem(
                BEGUN,
                f"nothing is known of how the {len(seen)} files of this repository were; they are watched from now on",
                "after an adoption that is as it must be; otherwise ask why the node lost its cache, and run a verify",
            )
        )
    return Look(seen, tuple(problems), len(seen), total, read)


@dataclass(slots=True)
class _Wrong:
    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def problems(self) -> Iterable[Problem]:
        if self.gone:
            yield Problem(
                GONE,
                f"{_named(self.gone)} gone from the repository, and Holdfast did not delete them",
                "`holdfast repository verify` says which points that concerns; find out who has access to the place",
            )
        if self.changed:
            yield Problem(
                CHANGED,
                f"{_named(self.changed)} changed in the repository after being written, which Holdfast never does",
                "`holdfast repository verify --full` says what is damaged; find out who has access to the place",
            )
        if self.foreign:
            yield Problem(
                FOREIGN,
                f"{_named(self.foreign)} in the repository and not of Holdfast's making",
                "move them elsewhere; a repository is nobody else's place",
            )


def _named(names: list[str]) -> str:
    shown = ", ".join(_quoted(name) for name in sorted(names)[:_SAID])
    more = f" and {len(names) - _SAID} more" if len(names) > _SAID else ""
    return f"{shown}{more}: {'these are' if len(names) > 1 else 'this is'}"


def _edges(store: Store, listed: Listed) -> str:
    data = store.read(listed.name, 0, min(listed.size, _EDGE))
    if listed.size > _EDGE:
        data += store.read(listed.name, max(_EDGE, listed.size - _EDGE), min(_EDGE, listed.size - _EDGE))
    return str(blake3(data).hexdigest(length=8))


def _quoted(name: str) -> str:
    """A foreign file may be called anything."""
    return quote(name, safe="/-_.", errors="surrogateescape")


def hash_of(name: str) -> int:
    """Spreads names evenly over turns, the same on every node."""
    return int.from_bytes(blake3(name.encode()).digest(length=4))


# -- the state between looks


class Watch:
    """The looks at one repository from this node, in order. `folder`: on the node's own disk."""

    def __init__(self, folder: Path, repository: str) -> None:
        self._path = folder / f"{repository}.watch"
        self._turn = 0

    def begin(self) -> None:
        """Of a repository that was made this moment: whatever comes is new. Does nothing when it is watched already."""
        if load(self._path) is None:
            keep(self._path, {})

    def look_at(self, store: RecordedStore, say: Callable[[Look], None], *, every: int = 30) -> Look:
        """As `look`, from and to the kept state; what this node did itself is known from `store`. What is wrong is handed to
        `say` and, when that returns, not said again: the next look compares with what is there now."""
        settled = store.settled()
        found = look(store, load(self._path), deleted=store.ours, touched=store.ours, every=every, turn=self._turn)
        if found.problems:
            say(found)
        keep(self._path, found.seen)
        self._turn += 1
        store.forget(settled)
        return found


def keep(path: Path, seen: Mapping[str, Seen]) -> None:
    """Write the state, durably."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lines = "".join(f"{s.size} {s.mtime_us} {s.edges or '-'} {_quoted(name)}\n" for name, s in sorted(seen.items()))
    data = lines.encode()
    scratch = path.with_suffix(".new")
    with scratch.open("wb") as out:
        out.write(data + f"end {blake3(data).hexdigest(length=16)}\n".encode())
        out.flush()
        os.fsync(out.fileno())
    scratch.replace(path)


def load(path: Path) -> dict[str, Seen] | None:
    """The state; None when there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    lines, end = data[:-37], data[-37:]
    if end != f"end {blake3(lines).hexdigest(length=16)}\n".encode():
        return None
    seen: dict[str, Seen] = {}
    for line in lines.decode().splitlines():
        size, mtime_us, edges, name = line.split(" ", 3)
        seen[unquote(name, errors="surrogateescape")] = Seen(int(size), int(mtime_us), "" if edges == "-" else edges)
    return seen


# -- what it is protected from


def protected_from(store: Store, *, encrypted: bool = True, other_sites: Iterable[str] = ()) -> list[str]:
    """What the repository in `store` is protected from and what it is not, a sentence each, the truth before what is pleasant.

    Runs the store's self-test, so it raises `StoreError` for one that cannot hold a repository at all. `other_sites`: that have
    receipts for everything.
    """
    return sentences(store.check(), encrypted, tuple(other_sites))


def sentences(traits: Traits, encrypted: bool, other_sites: tuple[str, ...]) -> list[str]:
    """The same from what the self-test found."""
    said = [
        "crashes and power cuts: no, this file system is in memory and goes with the machine that has it"
        if traits.medium in _IN_MEMORY
        else "crashes and power cuts: yes, everything a point needs is durable before the point is",
        "silent damage: found by verify and by every restore; repaired only where there is a second copy",
    ]
    locked = f"yes for {traits.locked_days} days after being written (object lock)" if traits.locked_days else ""
    if not traits.deletable:
        said.append("deletion by this service, or by who steals its credentials: yes, the store refuses it to them")
    elif locked:
        said.append(f"deletion by this service, or by who steals its credentials: {locked}")
    elif traits.versioned:
        said.append(
            "deletion by this service, or by who steals its credentials: only while earlier versions are kept, and their"
            " credentials may not delete versions"
        )
    else:
        said.append(
            "deletion by this service, or by who steals its credentials: no, only by object lock or another site"
        )
    if traits.kind == "s3":
        said.append(f"administrators of the S3 server: {locked or 'no'}; the disks under the server are theirs")
    elif traits.network:
        said.append("root of the file server: no; root of this machine: no, immutable flags do not stop root either")
    else:
        said.append("root of this machine: no, immutable flags do not stop root either")
    if traits.kind == "memory":
        said.append("the end of this process: no")
    elif traits.network:
        said.append("loss of this machine: yes, if the server that has the files is another machine")
    else:
        said.append("loss of this machine or its disks: no")
    if other_sites:
        said.append(f"loss of the site: yes, {', '.join(other_sites)} has it too")
    else:
        said.append("loss of the site: no other site of Holdfast has a copy")
    if encrypted:
        said.append("theft of the medium: yes, contents and names are encrypted; sizes and times are not")
    else:
        said.append("theft of the medium: no, it is not encrypted")
    return said + [f"note: {note}" for note in traits.notes]
