"""How well something is protected, as a function of the moment and of what is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from projections.protection import SOURCE_LATE_US, Captured, Cover, Kept, captured, protection
from streams.policies import parse

MINUTE_US = 60_000_000
NOW_US = 1_780_000_000_000_000
HOURLY = parse({"kind": "backup.run", "repository": "vault", "assets": {"names": ["*"]}, "schedule": ["hourly"]})
COVER = Cover("often", HOURLY, NOW_US - 600 * MINUTE_US)
FRESH = NOW_US - 10 * MINUTE_US
STALE = NOW_US - 300 * MINUTE_US


@pytest.mark.parametrize(
    ("kept", "state", "proof", "proven_us"),
    [
        (Kept(0), "never", "", None),
        (Kept(1, FRESH), "never", "", None),
        (Kept(1, STALE, STALE, STALE), "late", "read", STALE),
        (Kept(1, FRESH, FRESH), "unverified", "", None),
        (Kept(2, FRESH, FRESH, None, None, STALE), "sampled", "sampled", STALE),
        (Kept(2, FRESH, FRESH, STALE, "full", FRESH), "covered", "read", STALE),
        (Kept(2, FRESH, FRESH, STALE, "restored"), "covered", "restored", STALE),
    ],
)
def test_points_prove_what_was_read_of_them(kept: Kept, state: str, proof: str, proven_us: int | None) -> None:
    found = protection(NOW_US, [COVER], {"vault": kept})
    assert (found.state, found.proof, found.verified_us) == (state, proof, proven_us)


def test_a_point_of_one_disk_protects_only_who_asked_for_that_disk() -> None:
    kept = {"vault": Kept(1, FRESH, FRESH)}
    assert protection(NOW_US, [COVER], kept, whole={}).state == "never"
    assert protection(NOW_US, [replace(COVER, chosen=True)], kept, whole={}).state == "unverified"


def test_what_runs_only_by_hand_or_is_switched_off_protects_nothing() -> None:
    kept = {"vault": Kept(1, FRESH, FRESH, FRESH)}
    for policy in (replace(HOURLY, schedule=()), replace(HOURLY, enabled=False)):
        assert protection(NOW_US, [Cover("p", policy, 0)], kept).state == "unprotected"


SOURCE = Captured("capturing", NOW_US - 9000 * MINUTE_US, True, NOW_US - MINUTE_US)


@pytest.mark.parametrize(
    ("source", "state", "late_us"),
    [
        (Captured("baseline", NOW_US - MINUTE_US, False), "never", MINUTE_US),
        (Captured("baseline", NOW_US - MINUTE_US, True), "never", MINUTE_US),
        (SOURCE, "unverified", 0),
        (replace(SOURCE, copied_us=STALE), "covered", 0),
        (replace(SOURCE, until_us=NOW_US - SOURCE_LATE_US - 1), "late", SOURCE_LATE_US + 1),
        (replace(SOURCE, until_us=None, state_us=NOW_US), "unverified", 0),
        (Captured("paused", NOW_US - 1, True, NOW_US - MINUTE_US, STALE), "late", 1),
        (Captured("stopped", NOW_US - MINUTE_US, True, STALE), "late", MINUTE_US),
    ],
)
def test_a_database_is_as_well_protected_as_it_is_captured(source: Captured, state: str, late_us: int) -> None:
    found = captured(NOW_US, source)
    assert (found.state, found.late_us) == (state, late_us)
    assert (found.proof, found.verified_us) == (("copied", STALE) if source.copied_us else ("", None))
