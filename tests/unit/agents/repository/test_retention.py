"""What retention keeps: what an administrator expects, at the edges of days and zones, and for any points and rules."""

from __future__ import annotations

import dataclasses
import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.repository.retention import (
    COUNTS,
    DAY_US,
    Candidate,
    RetentionError,
    Rules,
    Verdict,
    check_early,
    decide,
    encode,
    parse,
)

HOUR_US = DAY_US // 24


def us(text: str, zone: str = "UTC", fold: int = 0) -> int:
    moment = datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(moment.timestamp() * 1_000_000)


def points(*moments: int, asset: str = "vm") -> list[Candidate]:
    return [Candidate(f"p{number}", asset, moment) for number, moment in enumerate(moments)]


def kept(verdicts: list[Verdict]) -> set[str]:
    return {v.point for v in verdicts if v.keep}


def why(verdicts: list[Verdict], point: str) -> tuple[str, ...]:
    return next(v.why for v in verdicts if v.point == point)


NOW = us("2026-03-20T12:00")


def daily(days: int) -> list[Candidate]:
    """A point at noon of each of so many days up to now; p0 is the oldest."""
    return points(*(NOW - (days - 1 - n) * DAY_US for n in range(days)))


def test_without_counts_nothing_is_dropped() -> None:
    verdicts = decide(daily(400), Rules(), NOW)
    assert all(v.keep for v in verdicts)
    assert why(verdicts, "p0") == ("no rule drops anything",)


def test_a_year_of_daily_points_under_the_usual_rules() -> None:
    """Seven days, four weeks, twelve months: the last Sunday's and the last of each month, as on a calendar."""
    backups = daily(365)
    verdicts = decide(backups, Rules(daily=7, weekly=4, monthly=12), NOW)
    dates = {c.point: datetime.datetime.fromtimestamp(c.created_us / 1e6, datetime.UTC).date() for c in backups}
    days = sorted(dates[p] for p in kept(verdicts))
    assert days == [
        datetime.date(2025, 4, 30),
        datetime.date(2025, 5, 31),
        datetime.date(2025, 6, 30),
        datetime.date(2025, 7, 31),
        datetime.date(2025, 8, 31),
        datetime.date(2025, 9, 30),
        datetime.date(2025, 10, 31),
        datetime.date(2025, 11, 30),
        datetime.date(2025, 12, 31),
        datetime.date(2026, 1, 31),
        datetime.date(2026, 2, 28),
        datetime.date(2026, 3, 1),  # Sundays
        datetime.date(2026, 3, 8),
        *(datetime.date(2026, 3, day) for day in range(14, 21)),
    ]
    assert why(verdicts, "p364") == (
        "younger than 1 days",
        "the newest sound point",
        "daily: 1 of 7, the last of 2026-03-20",
        "weekly: 1 of 4, the last of week 2026-W12",
        "monthly: 1 of 12, the last of 2026-03",
    )


def test_why_a_point_goes_is_said_rule_by_rule() -> None:
    verdicts = decide(daily(60), Rules(last=3, daily=7, monthly=2), NOW)
    assert why(verdicts, "p10") == (
        "last: 3 are newer",
        "daily: 2026-01-30 is before the 7 that are kept",
        "monthly: 2026-01 is before the 2 that are kept",
    )
    assert why(verdicts, "p30") == (
        "last: 3 are newer",
        "daily: 2026-02-19 is before the 7 that are kept",
        "monthly: p39 stands for 2026-02",
    )


def test_a_flood_of_points_takes_one_slot_a_day_and_pushes_nothing_out() -> None:
    old = daily(8)[:-1]
    flood = [Candidate(f"f{n}", "vm", NOW - n * 60_000_000) for n in range(500)]
    rules = Rules(last=5, daily=7)
    assert {"p1", "p2", "p3", "p4", "p5", "p6"} <= kept(decide(old + flood, rules, NOW))


def test_what_last_counts_is_not_dropped_before_its_minimum_age() -> None:
    flood = points(*(NOW - n * 60_000_000 for n in range(100)))
    assert len(kept(decide(flood, Rules(last=5), NOW))) == 100
    later = decide(flood, Rules(last=5), NOW + 2 * DAY_US)
    assert kept(later) == {"p0", "p1", "p2", "p3", "p4"}


def of(point: str, created_us: int, *content: str) -> Candidate:
    return Candidate(point, "vm", created_us, content=frozenset(content))


def test_a_point_of_one_disk_takes_no_slot_of_the_whole_machine() -> None:
    """Nor do files that were backed up under the machine's name; a point that holds more does."""
    long_ago = NOW - 20 * DAY_US
    backups = [
        of("one", long_ago, "vda"),
        of("whole", long_ago + 1, "vda", "vdb"),
        of("later-one", long_ago + 2, "vda"),
        of("files", long_ago + 3, "files"),
    ]
    verdicts = decide(backups, Rules(daily=1), NOW)
    assert kept(verdicts) == {"whole", "later-one", "files"}
    assert why(verdicts, "whole") == ("the newest sound point", "daily: 1 of 1, the last of 2026-02-28")
    assert why(verdicts, "one") == ("daily: later-one stands for 2026-02-28",)
    grown = decide([*backups, of("more", long_ago + 4, "vda", "vdb", "vdc")], Rules(daily=1), NOW)
    assert kept(grown) == {"more", "files"}


def test_when_backups_stop_what_is_there_stays() -> None:
    backups = daily(7)
    assert kept(decide(backups, Rules(daily=7), NOW + 5000 * DAY_US)) == {p.point for p in backups}


def test_points_of_the_future_stay_and_take_no_slot() -> None:
    backups = daily(7)
    wrong = [Candidate(f"w{n}", "vm", NOW + n * 365 * DAY_US) for n in range(1, 9)]
    verdicts = decide(backups + wrong, Rules(daily=7), NOW)
    assert kept(verdicts) == {p.point for p in backups + wrong}
    assert "some clock is wrong" in why(verdicts, "w1")[0]


def test_a_clock_that_jumps_ahead_drops_nothing_that_counts_keep() -> None:
    backups = daily(30)
    rules = Rules(daily=7, weekly=4)
    assert kept(decide(backups, rules, NOW + 10 * DAY_US)) == kept(decide(backups, rules, NOW + 36_500 * DAY_US))


@pytest.mark.parametrize(("until", "stays"), [(None, True), (NOW + 1, True), (NOW, False), (NOW - DAY_US, False)])
def test_a_legal_hold_keeps_until_it_ends(until: int | None, stays: bool) -> None:
    held = Candidate("held", "vm", NOW - 300 * DAY_US, holds={"case 7": until})
    verdicts = decide([*daily(30), held], Rules(daily=7), NOW)
    assert ("held" in kept(verdicts)) == stays
    if stays:
        assert why(verdicts, "held")[0].startswith("legal hold 'case 7'")


def test_a_star_keeps() -> None:
    starred = Candidate("starred", "vm", NOW - 300 * DAY_US, starred=True)
    assert why(decide([*daily(30), starred], Rules(last=1), NOW), "starred") == ("starred",)


def test_the_newest_sound_point_stays_and_a_suspect_one_takes_no_slot() -> None:
    suspect = [Candidate(f"s{n}", "vm", NOW - n * DAY_US, sound=False) for n in range(3)]
    sound = [Candidate(f"g{n}", "vm", NOW - (10 + n) * DAY_US) for n in range(3)]
    verdicts = decide([*suspect, *sound], Rules(daily=2, minimum_age_us=0), NOW)
    assert kept(verdicts) == {"s0", "s1", "g0", "g1"}
    assert "the newest sound point" in why(verdicts, "g0")


def test_assets_are_counted_apart() -> None:
    mine, others = daily(10), [Candidate(f"o{n}", "other", NOW - n * DAY_US) for n in range(10)]
    assert len(kept(decide(mine + others, Rules(daily=3), NOW))) == 6


def test_a_day_is_one_of_the_zone() -> None:
    late = us("2026-01-10T23:30", "Europe/Vienna"), us("2026-01-11T00:30", "Europe/Vienna")
    rules = {"minimum_age_us": 0, "daily": 2}
    vienna, utc = Rules(**rules, zone="Europe/Vienna"), Rules(**rules)  # type: ignore[arg-type]
    assert kept(decide(points(*late), vienna, NOW)) == {"p0", "p1"}
    assert kept(decide(points(*late), utc, NOW)) == {"p1"}


def test_an_hour_that_is_repeated_is_two_and_one_that_is_left_out_none() -> None:
    zone = "Europe/Vienna"
    back = us("2026-10-25T02:30", zone, 0), us("2026-10-25T02:30", zone, 1)
    assert back[1] - back[0] == HOUR_US
    rules = Rules(hourly=24, minimum_age_us=0, zone=zone)
    assert kept(decide(points(*back), rules, us("2026-11-01T00:00"))) == {"p0", "p1"}
    ahead = us("2026-03-29T01:59", zone), us("2026-03-29T03:01", zone)
    assert ahead[1] - ahead[0] == 120_000_000
    assert kept(decide(points(*ahead), rules, us("2026-11-01T00:00"))) == {"p0", "p1"}


def test_days_of_23_and_25_hours_are_one_slot_each() -> None:
    zone = "America/New_York"
    for day in ("2026-03-08", "2026-11-01"):
        start = us(f"{day}T00:00", zone)
        end = us(f"{day}T23:59", zone)
        hours = points(*range(start, end, HOUR_US))
        assert len(hours) in (23, 25)
        assert len(kept(decide(hours, Rules(daily=5, minimum_age_us=0, zone=zone), NOW + 400 * DAY_US))) == 1


def test_a_week_belongs_to_the_year_of_its_thursday() -> None:
    around = points(us("2026-12-31T12:00"), us("2027-01-01T12:00"), us("2027-01-03T12:00"), us("2027-01-04T12:00"))
    rules = Rules(weekly=9, minimum_age_us=0)
    assert kept(decide(around, rules, us("2027-06-01T00:00"))) == {"p2", "p3"}


# -- whatever the points and the rules

ZONES = ["UTC", "Europe/Vienna", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
MOMENTS = st.lists(st.integers(us("2024-01-01T00:00"), us("2026-12-31T00:00")), max_size=60, unique=True)
COUNT = st.integers(0, 6)
RULES = st.builds(
    Rules,
    last=COUNT,
    hourly=COUNT,
    daily=COUNT,
    weekly=COUNT,
    monthly=COUNT,
    yearly=COUNT,
    minimum_age_us=st.sampled_from([0, DAY_US, 40 * DAY_US]),
    zone=st.sampled_from(ZONES),
)


@given(MOMENTS, RULES, st.integers(0, 500))
def test_dropping_and_looking_again_drops_nothing_more(moments: list[int], rules: Rules, days: int) -> None:
    now = us("2026-12-31T00:00") + days * DAY_US
    first = kept(decide(points(*moments), rules, now))
    left = [p for p in points(*moments) if p.point in first]
    assert kept(decide(left, rules, now)) == first


@given(MOMENTS, RULES)
def test_dropping_as_points_come_leaves_what_dropping_at_the_end_leaves(moments: list[int], rules: Rules) -> None:
    """Nothing that is wanted later was thrown away earlier; also of points that hold more or less of the asset."""
    contents = ({"vda"}, {"vda", "vdb"}, {"files"})
    everything = [Candidate(f"p{m}", "vm", m, content=frozenset(contents[m % 3])) for m in moments]
    held: list[Candidate] = []
    for p in sorted(everything, key=lambda p: p.created_us):
        held.append(p)
        stays = kept(decide(held, rules, p.created_us))
        held = [h for h in held if h.point in stays]
    end = max(moments, default=0)
    assert {h.point for h in held} == kept(decide(everything, rules, end))


@given(MOMENTS, RULES, st.integers(0, 400), st.data())
def test_stars_and_holds_stay_and_cost_no_other_point_its_place(
    moments: list[int], rules: Rules, days: int, data: st.DataObject
) -> None:
    now = us("2026-12-31T00:00") + days * DAY_US
    plain = points(*moments)
    marked = data.draw(st.sets(st.sampled_from([p.point for p in plain]))) if plain else set()
    after = [Candidate(p.point, p.asset, p.created_us, starred=p.point in marked) for p in plain]
    assert kept(decide(after, rules, now)) == kept(decide(plain, rules, now)) | marked


@given(MOMENTS, RULES, st.integers(0, 400))
def test_every_verdict_says_why_and_counts_are_kept_to(moments: list[int], rules: Rules, days: int) -> None:
    now = us("2026-12-31T00:00") + days * DAY_US
    verdicts = decide(points(*moments), rules, now)
    assert {v.point for v in verdicts} == {p.point for p in points(*moments)}
    assert all(v.why for v in verdicts)
    for name in COUNTS:
        said = [w for v in verdicts if v.keep for w in v.why if w.startswith(f"{name}:")]
        assert len(said) <= getattr(rules, name)
    if moments:
        assert any(v.keep for v in verdicts)


@given(MOMENTS, RULES)
def test_more_is_kept_by_larger_counts(moments: list[int], rules: Rules) -> None:
    now = us("2027-12-31T00:00")
    if rules.keeps_all:
        return
    for name in COUNTS:
        raised = dataclasses.replace(rules, **{name: getattr(rules, name) + 1})
        assert kept(decide(points(*moments), rules, now)) <= kept(decide(points(*moments), raised, now))


@given(RULES)
def test_rules_survive_being_written_down(rules: Rules) -> None:
    assert parse(encode(rules)) == rules


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"daily": "7"}', '{"daily": true}', '{"dayly": 7}', '{"last": -1}', '{"zone": "Mars/Base"}', "null"],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(RetentionError) as refused:
        parse(text)
    assert refused.value.code == "retention-invalid"


@given(st.text(max_size=40))
def test_any_text_is_rules_or_refused(text: str) -> None:
    try:
        parse(text)
    except RetentionError:
        return


RIGHTS = {"ann": 0, "bob": NOW - 10 * DAY_US, "new": NOW - DAY_US}


@pytest.mark.parametrize(
    ("by", "agreed", "says"),
    [
        ("ann", "", "rules keep"),
        ("ann", "ann", "himself"),
        ("ann", "eve", "no right"),
        ("eve", "ann", "no right"),
        ("ann", "new", "only since"),
    ],
)
def test_nobody_gives_a_point_up_alone(by: str, agreed: str, says: str) -> None:
    with pytest.raises(RetentionError, match=says) as refused:
        check_early("p", by, agreed, RIGHTS, NOW)
    assert refused.value.code == "retention-early"


def test_two_who_had_the_right_before_may() -> None:
    check_early("p", "new", "bob", RIGHTS, NOW)
