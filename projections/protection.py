"""How well an asset is protected: a pure function of the moment and of rows. Knows no database and no clock.

    unprotected   no policy that is switched on and has a schedule backs it up
    never         one does, and no sound point of it stands in that policy's repository
    late          a run was due, longer ago than the policy lets pass, after the newest sound point
    unverified    points are in time, and nothing but their digests when they were written speaks for their content
    sampled       in time, and a verify that read all that describes a sound point, and a share of its data, found nothing
    covered       in time, and a sound point that stands was read back whole (mark `verified`: by a full verify, or a restore of
                  all of it)

A point that was marked suspect or damaged, and not verified since, is not sound. Of several policies the worst counts.

Of a database, whose points are its steps:

    never         it has no baseline yet
    late          capture is paused or stopped, lags, or has not been heard of: for longer than `SOURCE_LATE_US`
    unverified    captured in time, and never put together again
    covered       captured in time, and a scratch copy of its lineage was made whole from baseline and log
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from streams import calendar
from streams.policies import Policy, microseconds, moment, schedule_of

STATES: Final = ("never", "late", "unverified", "sampled", "covered")
"""Worst first."""
UNPROTECTED: Final = "unprotected"
SOURCE_LATE_US: Final = 300 * 1_000_000
Proof = Literal["", "sampled", "read", "restored", "copied"]
"""What the newest proof was: a sampled verify, a full one, a restore of all of a point, a scratch copy of a database."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a repository holds of an asset: how many points stand, when the newest, sound, verified one was made; what the latter
    was verified by (`restored`; else read), and when the newest sound one was made that a sampled verify was over."""

    points: int
    newest_us: int | None = None
    sound_us: int | None = None
    verified_us: int | None = None
    verified_by: str | None = None
    sampled_us: int | None = None


@dataclass(frozen=True, slots=True)
class Cover:
    """A policy that backs an asset up, as it stands; `since_us` is when it was first there. `chosen`: only some of its disks, so
    points of some disks are what it asks for."""

    name: str
    policy: Policy
    since_us: int
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Protection:
    """`late_us`: how long ago the run was due that is missing. `policy` is the one that makes it so."""

    state: str
    policy: str = ""
    late_us: int = 0
    sound_us: int | None = None
    verified_us: int | None = None
    policies: tuple[str, ...] = ()
    proof: Proof = ""


@dataclass(frozen=True, slots=True)
class Captured:
    """A database: its state (`streams.events.inventory.SourceState`) and since when, whether it has a lineage, up to when it is
    captured (None: nobody said), and when a scratch copy of the whole lineage was made last."""

    state: str
    state_us: int
    lineage: bool
    until_us: int | None = None
    copied_us: int | None = None


def captured(now_us: int, source: Captured) -> Protection:
    """How well a database is protected. `sound_us` is up to when it is captured."""
    if not source.lineage or source.state in ("defined", "baseline"):
        return Protection("never", late_us=max(0, now_us - source.state_us))
    until_us = max(source.until_us or 0, source.state_us) if source.state == "capturing" else source.state_us
    behind_us = now_us - until_us
    if source.state != "capturing" or behind_us > SOURCE_LATE_US:
        state = "late"
    else:
        state = "unverified" if source.copied_us is None else "covered"
    proof: Proof = "" if source.copied_us is None else "copied"
    late_us = behind_us if state == "late" else 0
    return Protection(state, late_us=late_us, sound_us=until_us, verified_us=source.copied_us, proof=proof)


def protection(
    now_us: int,
    covers: Iterable[Cover],
    kept: Mapping[str, Kept],
    *,
    whole: Mapping[str, Kept] | None = None,
    seen_us: int = 0,
) -> Protection:
    """`kept` by repository, and `whole` the same of points alone that hold every disk (None: all do). `seen_us`: since when there
    is an asset, so that nothing was due of it before."""
    whole = kept if whole is None else whole
    active = sorted(
        (c for c in covers if c.policy.enabled and c.policy.backs_up and not c.policy.by_hand), key=lambda c: c.name
    )
    found = [
        _of(now_us, cover, (kept if cover.chosen else whole).get(cover.policy.repository, Kept(0)), seen_us)
        for cover in active
    ]
    if not found:
        newest = max((k.sound_us for k in kept.values() if k.sound_us is not None), default=None)
        return Protection(UNPROTECTED, sound_us=newest)
    worst = min(found, key=lambda p: (STATES.index(p.state), -p.late_us, p.policy))
    return Protection(
        worst.state,
        worst.policy,
        worst.late_us,
        worst.sound_us,
        worst.verified_us,
        tuple(c.name for c in active),
        worst.proof,
    )


def _of(now_us: int, cover: Cover, kept: Kept, seen_us: int) -> Protection:
    late_us = _late(now_us, cover, max(kept.sound_us or 0, cover.since_us, seen_us))
    if kept.sound_us is None:
        state = "never"
    elif late_us:
        state = "late"
    else:
        state = _PROVEN[_proof(kept)]
    proven_us = kept.sampled_us if kept.verified_us is None else kept.verified_us
    return Protection(state, cover.name, late_us, kept.sound_us, proven_us, proof=_proof(kept))


_PROVEN: Final[Mapping[Proof, str]] = {"": "unverified", "sampled": "sampled", "read": "covered", "restored": "covered"}


def _proof(kept: Kept) -> Proof:
    if kept.verified_us is not None:
        return "restored" if kept.verified_by == "restored" else "read"
    return "" if kept.sampled_us is None else "sampled"


def _late(now_us: int, cover: Cover, after_us: int) -> int:
    """How long ago a run was due that should have made a point by now; 0: none."""
    after = moment(after_us)
    run = next(calendar.due(schedule_of(cover.policy), after, rolling_from=after), None)
    if run is None:
        return 0
    start_us = microseconds(run.start)
    if calendar.is_rolling(schedule_of(cover.policy)):
        start_us += min(r.pause_s for r in schedule_of(cover.policy).rules if r.kind == "rolling") * 1_000_000
    over = now_us - start_us
    return over if over > cover.policy.late_s * 1_000_000 else 0
