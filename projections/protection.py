"""How well an asset is protected: a pure function of the moment and of rows. Knows no database and no clock.

    unprotected   no policy that is switched on backs it up
    never         one does, and no sound point of it stands in that policy's repository
    late          a run was due, longer ago than the policy lets pass, after the newest sound point
    unverified    points are in time, and none that stands was ever read back whole (mark `verified`)
    covered       in time, and verified

A point that was marked suspect or damaged, and not verified since, is not sound. Of several policies the worst counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from streams import calendar
from streams.policies import Policy, microseconds, moment, schedule_of

STATES: Final = ("never", "late", "unverified", "covered")
"""Worst first."""
UNPROTECTED: Final = "unprotected"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a repository holds of an asset: how many points stand, when the newest, sound, verified one was made."""

    points: int
    newest_us: int | None = None
    sound_us: int | None = None
    verified_us: int | None = None


@dataclass(frozen=True, slots=True)
class Cover:
    """A policy that backs an asset up, as it stands; `since_us` is when it was first there."""

    name: str
    policy: Policy
    since_us: int


@dataclass(frozen=True, slots=True)
class Protection:
    """`late_us`: how long ago the run was due that is missing. `policy` is the one that makes it so."""

    state: str
    policy: str = ""
    late_us: int = 0
    sound_us: int | None = None
    verified_us: int | None = None
    policies: tuple[str, ...] = ()


def protection(now_us: int, covers: Iterable[Cover], kept: Mapping[str, Kept], *, seen_us: int = 0) -> Protection:
    """`kept` by repository; `seen_us`: since when there is an asset, so that nothing was due of it before."""
    active = sorted((c for c in covers if c.policy.enabled and c.policy.backs_up), key=lambda c: c.name)
    found = [_of(now_us, cover, kept.get(cover.policy.repository, Kept(0)), seen_us) for cover in active]
    if not found:
        newest = max((k.sound_us for k in kept.values() if k.sound_us is not None), default=None)
        return Protection(UNPROTECTED, sound_us=newest)
    worst = min(found, key=lambda p: (STATES.index(p.state), -p.late_us, p.policy))
    return Protection(
        worst.state, worst.policy, worst.late_us, worst.sound_us, worst.verified_us, tuple(c.name for c in active)
    )


def _of(now_us: int, cover: Cover, kept: Kept, seen_us: int) -> Protection:
    late_us = _late(now_us, cover, max(kept.sound_us or 0, cover.since_us, seen_us))
    if kept.sound_us is None:
        state = "never"
    elif late_us:
        state = "late"
    else:
        state = "unverified" if kept.verified_us is None else "covered"
    return Protection(state, cover.name, late_us, kept.sound_us, kept.verified_us)


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
