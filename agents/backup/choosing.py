"""What a backup goes on from: which earlier point, and since which mark each disk is asked. Pure, but for what the log says.

P1 (full) ── P2 ── P3                 incremental: since P3's mark, on P3's tree
 └──────────────── D                  differential: since P1's mark, on P1's tree: whatever P2 and P3 say does not matter
P3's mark is gone, P2's is there      since P2's: more than P3's, and so compared with P3's tree
P3 is damaged                         whole, and nothing is taken from it
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agents.backup.machine_facts import marks_of
from agents.errors import AgentError
from agents.machines import Leftover
from agents.repository.backups import is_damaged
from agents.repository.ledger import Ledger, PointState

Mode = Literal["full", "incremental", "differential"]
NOT_TRACKED = "nothing keeps track of what changes on it"


@dataclass(frozen=True, slots=True)
class Base:
    """`point`: what the new point continues, None for a first one. `takes`: its trees are gone on from; else it is damaged.

    `since`: disk → the mark to ask since. `older`: disks whose mark is older than `point`: what is read is compared with it.
    `whole`: disk → why it is read whole, as far as that is known before the host is asked; under "" for all others.
    """

    mode: Mode
    point: PointState | None = None
    takes: bool = False
    since: Mapping[str, str] = field(default_factory=dict)
    older: frozenset[str] = frozenset()
    whole: Mapping[str, str] = field(default_factory=dict)

    @property
    def full(self) -> str:
        """The newest point at or before it that was read whole."""
        return "" if self.point is None else self.point.sealed.facts.get("full", self.point.sealed.point)


def choose(ledger: Ledger, asset: str, native: str, mode: Mode, marks: Collection[str]) -> Base:
    """`marks`: those of ours that the host has of the machine."""
    newest = newest_of(ledger, asset, native)
    if newest is None:
        return Base("full")
    if is_damaged(newest):
        why = f"the point before, {newest.sealed.point}, is damaged: everything is taken anew"
        return Base(mode, newest, whole={"": why} if mode != "full" else {})
    if mode == "full":
        return Base(mode, newest, takes=True)
    if mode == "differential":
        full = ledger.points.get(newest.sealed.facts.get("full", ""))
        if full is None or full.dropped is not None or is_damaged(full):
            why = "the last full point is not there any more, or is damaged"
            return Base(mode, newest, takes=True, whole={"": why})
        newest = full
    since: dict[str, str] = {}
    whole: dict[str, str] = {}
    older: set[str] = set()
    own = marks_of(newest.sealed.facts)
    for disk in (one.disk for one in newest.sealed.disks):
        if disk not in own:
            whole[disk] = NOT_TRACKED
            continue
        since[disk] = own[disk]
        if own[disk] in marks or mode == "differential":
            continue
        found = next((m for m in _earlier(ledger, newest, disk) if m in marks), "")
        if found:
            since[disk] = found
            older.add(disk)
    return Base(mode, newest, True, since, frozenset(older), whole)


def newest_of(ledger: Ledger, asset: str, native: str) -> PointState | None:
    """The newest point of a machine. An image that was backed up under the same name is none."""
    mine = [s for s in ledger.standing().values() if s.sealed.asset == asset and s.sealed.facts.get("native") == native]
    return max(mine, key=lambda s: s.ordinal, default=None)


def lineage_of(ledger: Ledger, point: PointState) -> Iterator[PointState]:
    """`point`, what it continues, and so on, dropped ones too."""
    seen: set[str] = set()
    at: PointState | None = point
    while at is not None and at.sealed.point not in seen:
        seen.add(at.sealed.point)
        yield at
        at = ledger.points.get(at.sealed.continues)


def _earlier(ledger: Ledger, point: PointState, disk: str) -> Iterator[str]:
    """Marks of a disk, newest first, as long as it was in the points."""
    for at in lineage_of(ledger, point):
        mark = marks_of(at.sealed.facts).get(disk)
        if mark is None:
            return
        yield mark


def unproven(ledger: Ledger, point: PointState, disk: str) -> list[str]:
    """The standing points from `point` back to the one where the disk was read whole, which is not among them: what they say of
    the disk rests on what the host said had changed."""
    out = []
    for at in lineage_of(ledger, point):
        if f"since/{disk}" not in at.sealed.facts:
            break
        if at.dropped is None:
            out.append(at.sealed.point)
    return out


def needed(ledgers: Iterable[Ledger], asset: str, native: str) -> set[str]:
    """Marks that a next backup may ask since: those of the newest point in each repository, and of the full point before it."""
    out: set[str] = set()
    for ledger in ledgers:
        newest = newest_of(ledger, asset, native)
        if newest is None:
            continue
        full = ledger.points.get(newest.sealed.facts.get("full", ""))
        for state in (newest, full):
            if state is not None and state.dropped is None:
                out.update(marks_of(state.sealed.facts).values())
    return out


def dead(
    found: Iterable[Leftover], natives: Collection[str], ledgers: Iterable[Ledger], wanted: Collection[str], job: str
) -> list[Leftover]:
    """What to take away of `found` on these machines: what jobs of this site left that are over, but for marks that are `wanted`.

    A job of this site has a session in some repository; while one of them is open, it may be at work. `job` is the one that asks,
    which has nothing on the host now. Machines that a restore made are its own business. A file of which the host does not know
    for what machine it was is taken away with any.
    """
    ours: set[str] = set()
    alive: set[str] = set()
    for ledger in ledgers:
        for session in list(ledger.sessions.values()):
            ours.add(session.opened.job)
            if session.open:
                alive.add(session.opened.job)
    alive.discard(job)
    return [
        one
        for one in found
        if (one.native in natives or (one.kind == "file" and not one.native))
        and one.kind != "machine"
        and one.job in ours
        and one.job not in alive
        and not (one.kind == "mark" and one.name in wanted)
    ]


def parsed_mode(text: str) -> Mode:
    """Raises `AgentError` (`mode-unknown`)."""
    match text or "incremental":
        case "full":
            return "full"
        case "incremental":
            return "incremental"
        case "differential":
            return "differential"
    raise AgentError("mode-unknown", f"there is no mode {text!r}", "full, incremental, differential")
