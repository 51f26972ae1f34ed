"""The calendar against a naive one: every minute of some weeks around changes of clocks, looked at one by one."""

from __future__ import annotations

import calendar
import contextlib
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.calendar import Schedule, closes, due, instants, is_open, latest, next_runs, opens
from streams.rules import (
    WEEKDAYS,
    CalendarError,
    Dated,
    Rule,
    Weekly,
    parse_rule,
    parse_span,
    rule_text,
    span_text,
    zone_of,
)

MINUTE = timedelta(minutes=1)
# Weeks in which clocks are put forward or back; Lord Howe by half an hour, Apia left out a whole day.
WEEKS = {
    "Europe/Berlin": (date(2026, 3, 20), date(2026, 10, 18)),
    "America/New_York": (date(2026, 3, 1), date(2026, 10, 25)),
    "Australia/Lord_Howe": (date(2026, 3, 28), date(2026, 9, 28)),
    "Pacific/Apia": (date(2011, 12, 24),),
    "Asia/Kolkata": (date(2026, 2, 20),),
    "UTC": (date(2028, 2, 22),),
}
DAYS = 14
PLACES = [(zone, start) for zone, starts in WEEKS.items() for start in starts]


@cache
def minutes(zone: str, start: date) -> list[tuple[datetime, datetime]]:
    """Each minute from `start` on for two weeks and what a clock shows then."""
    place = ZoneInfo(zone)
    first = datetime.combine(start, time(), tzinfo=UTC)
    found = [first + i * MINUTE for i in range(DAYS * 1440)]
    return [(at, at.astimezone(place).replace(tzinfo=None)) for at in found]


def shown(zone: str, start: date, local: datetime) -> datetime | None:
    """The first minute at which a clock shows `local`, or the first at which it shows more; None: not in these weeks."""
    table = minutes(zone, start)
    if not table[0][1] <= local <= table[-1][1]:
        return None
    exact = firsts(zone, start).get(local)
    return exact or next(at for at, clock in table if clock > local)


@cache
def firsts(zone: str, start: date) -> dict[datetime, datetime]:
    """The first minute at which a clock shows each local time."""
    return {clock: at for at, clock in reversed(minutes(zone, start))}


def on(rule: Rule, day: date) -> bool:
    """Whether a rule of days names `day`."""
    if rule.start is not None and day < rule.start:
        return False
    anchor = rule.start or date(1970, 1, 5)
    match rule.kind:
        case "daily":
            return (day - anchor).days % rule.every == 0
        case "weekly":
            monday = anchor - timedelta(days=anchor.weekday())
            return day.weekday() in rule.weekdays and (day - monday).days // 7 % rule.every == 0
        case "monthly":
            if ((day.year - anchor.year) * 12 + day.month - anchor.month) % rule.every:
                return False
            last = calendar.monthrange(day.year, day.month)[1]
            if rule.days:
                return day.day in rule.days or (-1 in rule.days and day.day == last)
            nth, weekday = rule.nth[0]
            if day.weekday() != weekday:
                return False
            return day.day > last - 7 if nth == -1 else (day.day + 6) // 7 == nth
    raise AssertionError(rule.kind)


def naive(rule: Rule, zone: str, start: date) -> list[datetime]:
    """All instants of a rule in these weeks, by looking."""
    table = minutes(zone, start)
    if rule.kind == "minute":
        return [at for at, clock in table if clock.minute % rule.every == 0]
    if rule.kind == "hourly" and rule.every == 1:
        return [at for at, clock in table if clock.minute == rule.minute]
    found: set[datetime] = set()
    for i in range(-1, DAYS + 2):
        day = start + timedelta(days=i)
        if rule.kind == "hourly":
            times = [time(hour, rule.minute) for hour in range(24) if hour % rule.every == 0]
        elif rule.kind == "once":
            times = list(rule.times) if day == rule.start else []
        else:
            times = list(rule.times) if on(rule, day) else []
        found |= {at for t in times if (at := shown(zone, start, datetime.combine(day, t))) is not None}
    return sorted(found)


TIMES = st.lists(
    st.one_of(
        st.times().map(lambda t: t.replace(second=0, microsecond=0, fold=0)),
        st.sampled_from([time(0, 0), time(1, 30), time(2, 0), time(2, 15), time(2, 45), time(3, 0), time(23, 59)]),
    ),
    min_size=1,
    max_size=3,
    unique=True,
).map(lambda ts: tuple(sorted(ts)))


@st.composite
def rules(draw: st.DrawFn, start: date) -> Rule:
    kind = draw(st.sampled_from(["minute", "hourly", "hours", "daily", "weekly", "monthly", "nth", "once"]))
    every = draw(st.sampled_from([1, 1, 2, 3, 5]))
    anchor = start + timedelta(days=draw(st.integers(-400, 8)))
    at: date | None = anchor if every != 1 or draw(st.booleans()) else None
    times: tuple[time, ...] = draw(TIMES)
    match kind:
        case "minute":
            return Rule("minute", draw(st.sampled_from([1, 2, 5, 15, 20, 30])))
        case "hourly":
            return Rule("hourly", minute=draw(st.integers(0, 59)))
        case "hours":
            return Rule("hourly", draw(st.sampled_from([2, 3, 6, 12])), minute=draw(st.integers(0, 59)))
        case "daily":
            return Rule("daily", every, times, start=at)
        case "weekly":
            days = tuple(sorted(draw(st.sets(st.integers(0, 6), min_size=1))))
            return Rule("weekly", every, times, weekdays=days, start=at)
        case "monthly":
            found = draw(st.sets(st.sampled_from([1, 15, 28, 29, 30, 31, -1]), min_size=1))
            days = tuple(sorted(found, key=lambda d: (d < 0, d)))
            return Rule("monthly", every, times, days=days, start=at)
        case "nth":
            nth = (draw(st.sampled_from([1, 2, 3, 4, 5, -1])), draw(st.integers(0, 6)))
            return Rule("monthly", every, times, nth=(nth,), start=at)
    day: date = start + timedelta(days=draw(st.integers(0, DAYS)))
    return Rule("once", times=times[:1], start=day)


PLACED = st.sampled_from(PLACES).flatmap(lambda place: st.tuples(st.just(place), rules(place[1])))


@settings(max_examples=150)
@given(placed=PLACED, after=st.integers(0, DAYS * 1440 - 1))
@example(placed=(("Europe/Berlin", date(2026, 3, 20)), parse_rule("daily 02:15 02:45 03:00")), after=0)
@example(placed=(("Europe/Berlin", date(2026, 10, 18)), parse_rule("daily 02:30")), after=0)
@example(placed=(("Pacific/Apia", date(2011, 12, 24)), parse_rule("daily 12:00")), after=0)
def test_instants_are_those_that_looking_at_every_minute_finds(
    placed: tuple[tuple[str, date], Rule], after: int
) -> None:
    (zone, start), rule = placed
    table = minutes(zone, start)
    since, end = table[after][0], table[-1][0]
    found = []
    for at in instants(rule, zone, since):
        if at > end:
            break
        found.append(at)
    expected = [at for at in naive(rule, zone, start) if at > since]
    # The last days' clocks may show what the next ones' rules name: these weeks do not know.
    assert [f for f in found if f < end - timedelta(days=2)] == [e for e in expected if e < end - timedelta(days=2)]
    assert latest(Schedule((rule,), zone), since, end - timedelta(days=2)) == max(
        (e for e in expected if e <= end - timedelta(days=2)), default=None
    )


@settings(max_examples=200)
@given(placed=PLACED)
def test_a_rule_is_read_back_as_it_is_written(placed: tuple[tuple[str, date], Rule]) -> None:
    rule = placed[1]
    assert parse_rule(rule_text(rule)) == rule


def spans(start: date) -> st.SearchStrategy[Weekly | Dated]:
    moments = st.integers(0, DAYS * 24 * 4).map(lambda q: datetime.combine(start, time()) + q * 15 * MINUTE)
    weekly = st.builds(
        lambda days, a, b: Weekly(
            tuple(sorted(days)), time(a // 4, a % 4 * 15), time(b // 4, b % 4 * 15) if b else None
        ),
        st.sets(st.integers(0, 6), min_size=1),
        st.integers(0, 95),
        st.integers(0, 95),
    )
    dated = st.tuples(moments, moments).filter(lambda m: m[0] < m[1]).map(lambda m: Dated(*m))
    return st.one_of(weekly, weekly, dated)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[date, Schedule]:
    zone, start = draw(st.sampled_from(PLACES))
    windows = tuple(draw(st.lists(spans(start), max_size=3)))
    blackouts = tuple(draw(st.lists(spans(start), max_size=2)))
    rule = draw(rules(start))
    return start, Schedule((rule,), zone, windows, blackouts)


def held(spans_: tuple[Weekly | Dated, ...], zone: str, start: date, at: datetime) -> bool:
    """Whether one of the spans holds `at`, by looking at every beginning and end."""
    return any(first <= at < last for span in spans_ for first, last in edges(span, zone, start))


@cache
def edges(span: Weekly | Dated, zone: str, start: date) -> list[tuple[datetime, datetime]]:
    if isinstance(span, Dated):
        pairs = [(span.begins, span.ends)]
    else:
        pairs = []
        for day in (start + timedelta(days=i) for i in range(-2, DAYS + 2)):
            if day.weekday() in span.weekdays:
                begin, end = datetime.combine(day, span.begins), datetime.combine(day, span.ends or time())
                pairs.append((begin, end + timedelta(days=1) if end <= begin else end))
    table, found = minutes(zone, start), []
    for begin, end in pairs:
        first = shown(zone, start, begin) or (table[0][0] if begin < table[0][1] else table[-1][0])
        last = shown(zone, start, end) or (table[0][0] if end < table[0][1] else table[-1][0] + MINUTE)
        found.append((first, last))
    return found


@settings(max_examples=100)
@given(found=schedules(), minute=st.integers(2 * 1440, 10 * 1440))
@example(
    found=(date(2011, 12, 24), Schedule((Rule("minute"),), "Pacific/Apia", (), (Weekly((4,), time(), None),))),
    minute=2880,
)
def test_what_is_open_opens_and_closes(found: tuple[date, Schedule], minute: int) -> None:
    start, schedule = found
    at = minutes(schedule.zone, start)[minute][0]

    def looks(when: datetime) -> bool:
        return (not schedule.windows or held(schedule.windows, schedule.zone, start, when)) and not held(
            schedule.blackouts, schedule.zone, start, when
        )

    ahead = [minutes(schedule.zone, start)[m][0] for m in range(minute, 11 * 1440, 15)]
    assert is_open(schedule, at) == looks(at)
    opening = opens(schedule, at)
    open_then = next((when for when in ahead if looks(when)), None)
    if opening is not None:
        assert is_open(schedule, opening)
        assert opening == at or not is_open(schedule, opening - timedelta(seconds=1))
        assert open_then is None or opening <= open_then
    else:
        assert open_then is None
    if opening == at:
        closing = closes(schedule, at)
        closed_then = next((when for when in ahead if not looks(when)), None)
        if closing is not None:
            assert closing > at
            assert not is_open(schedule, closing)
            assert closed_then is None or closing <= closed_then
        else:
            assert closed_then is None or closed_then > at + timedelta(days=7)


@settings(max_examples=60)
@given(found=schedules(), after=st.integers(2 * 1440, 6 * 1440), count=st.integers(1, 12))
def test_runs_are_the_instants_moved_to_where_windows_open(
    found: tuple[date, Schedule], after: int, count: int
) -> None:
    start, schedule = found
    since = minutes(schedule.zone, start)[after][0]
    runs = next_runs(schedule, since, count)
    assert len(runs) <= count
    assert runs == sorted(set(runs))
    assert [r.start for r in runs] == sorted({r.start for r in runs})
    every: list[datetime] = []
    for at in instants(schedule.rules[0], schedule.zone, since):
        if not runs or at > runs[-1].start or len(every) > 20_000:
            break
        every.append(at)
    # Each instant up to there is one of the runs' or waits for the same opening as one.
    expected: dict[datetime, datetime] = {}
    for at in every:
        start_at = opens(schedule, at)
        assert start_at is not None
        expected[start_at] = at
    assert [(r.start, r.instant) for r in runs] == sorted(expected.items())


@settings(max_examples=100)
@given(found=schedules())
def test_a_span_is_read_back_as_it_is_written(found: tuple[date, Schedule]) -> None:
    _, schedule = found
    for span in (*schedule.windows, *schedule.blackouts):
        assert parse_span(span_text(span)) == span


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rule", "zone", "first"),
    [
        ("daily 02:30", "Europe/Berlin", ["2026-03-02T01:30", "2026-03-03T01:30"]),
        ("every 30 minutes", "Asia/Kolkata", ["2026-03-01T12:30", "2026-03-01T13:00"]),
        ("hourly :05", "UTC", ["2026-03-01T12:05", "2026-03-01T13:05"]),
        ("every 6 hours :30", "UTC", ["2026-03-01T12:30", "2026-03-01T18:30"]),
        ("weekly mon,thu 22:00", "UTC", ["2026-03-02T22:00", "2026-03-05T22:00"]),
        ("every 2 weeks from 2026-03-05 mon 22:00", "UTC", ["2026-03-16T22:00", "2026-03-30T22:00"]),
        ("monthly last 03:00", "UTC", ["2026-03-31T03:00", "2026-04-30T03:00"]),
        ("monthly 31 03:00", "UTC", ["2026-03-31T03:00", "2026-05-31T03:00"]),
        ("monthly 2nd tue 03:00", "UTC", ["2026-03-10T03:00", "2026-04-14T03:00"]),
        ("monthly last fri 03:00", "UTC", ["2026-03-27T03:00", "2026-04-24T03:00"]),
        ("every 12 months from 2024-02-01 29 00:00", "UTC", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("once 2026-12-01 02:00", "Europe/Berlin", ["2026-12-01T01:00"]),
        ("once 2026-01-01 02:00", "UTC", []),
        ("every 12 months from 2026-02-01 30 00:00", "UTC", []),
    ],
)
def test_rules_people_write(rule: str, zone: str, first: list[str]) -> None:
    found = next_runs(Schedule((parse_rule(rule),), zone), NOW, 2)
    assert [f"{run.instant:%Y-%m-%dT%H:%M}" for run in found] == first


def test_what_a_clock_does_not_show_is_when_it_jumps_and_what_it_shows_twice_is_the_first() -> None:
    forward = Schedule((parse_rule("daily 02:15 02:45"),), "Europe/Berlin")
    found = [run.instant for run in next_runs(forward, datetime(2026, 3, 28, 12, tzinfo=UTC), 2)]
    assert found == [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 30, 0, 15, tzinfo=UTC)]
    back = Schedule((parse_rule("daily 02:30"),), "Europe/Berlin")
    found = [run.instant for run in next_runs(back, datetime(2026, 10, 24, 12, tzinfo=UTC), 2)]
    assert found == [datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)]
    hourly = Schedule((parse_rule("hourly"),), "Europe/Berlin")
    found = [run.instant for run in next_runs(hourly, datetime(2026, 10, 24, 22, tzinfo=UTC), 4)]
    assert [f.hour for f in found] == [23, 0, 1, 2], "02:00 comes twice, and both are an hour"


def test_runs_wait_for_windows_and_those_that_wait_together_are_one() -> None:
    schedule = Schedule(
        (parse_rule("every 30 minutes"),), "UTC", (parse_span("22:00-23:00"),), (parse_span("2026-03-02..2026-03-04"),)
    )
    found = next_runs(schedule, NOW, 4)
    assert [f"{r.instant:%d %H:%M} {r.start:%d %H:%M}" for r in found] == [
        "01 22:00 01 22:00",
        "01 22:30 01 22:30",
        "05 22:00 05 22:00",
        "05 22:30 05 22:30",
    ]
    noon = Schedule((parse_rule("daily 12:00"),), "UTC", (parse_span("22:00-06:00"),))
    assert [(r.instant.hour, r.start.hour) for r in next_runs(noon, NOW, 2)] == [(12, 22), (12, 22)]


def test_what_never_opens_or_never_comes_is_said_to_in_time() -> None:
    never = Schedule((parse_rule("every 1 minutes"),), "Europe/Berlin", (parse_span("mon"),), (parse_span("mon,tue"),))
    assert next_runs(never, NOW, 10) == []
    assert next_runs(Schedule((parse_rule("daily 02:00"),), "UTC", (), (parse_span("mon-sun"),)), NOW, 1) == []
    far = Schedule((parse_rule("daily 02:00"),), "UTC", (), (parse_span("2026-01-01..2099-12-31"),))
    assert [r.start.year for r in next_runs(far, NOW, 1)] == [2100]
    rare = Schedule((parse_rule("every 1 minutes"),), "UTC", (parse_span("2031-05-01..2031-05-01"),))
    assert next_runs(rare, NOW, 1)[0].start == datetime(2031, 5, 1, tzinfo=UTC)
    # A window that lies in the hour that is left out does not open that day.
    gap = Schedule((parse_rule("every 5 minutes"),), "Europe/Berlin", (parse_span("sun 02:00-03:00"),))
    first = next_runs(gap, datetime(2026, 3, 23, 12, tzinfo=UTC), 1)[0]
    assert first.start == datetime(2026, 4, 5, 0, tzinfo=UTC)


def test_rolling_is_counted_from_the_end_of_the_last_run() -> None:
    schedule = Schedule((parse_rule("rolling 6h"),), "UTC", (parse_span("20:00-24:00"),))
    assert next_runs(schedule, NOW, 3) == [], "while a run is under way nobody knows"
    ended = datetime(2026, 3, 1, 11, tzinfo=UTC)
    (run,) = next_runs(schedule, NOW, 3, rolling_from=ended)
    assert (run.instant.hour, run.start.hour) == (17, 20)
    (first,) = next_runs(schedule, NOW, 3, rolling_from=NOW)
    assert first.instant - NOW == timedelta(microseconds=1), "what never ran is due"
    late = ended - timedelta(days=3)
    (again,) = next_runs(schedule, NOW, 3, rolling_from=late)
    assert again.instant > NOW


@pytest.mark.parametrize(
    "text",
    [
        "", "daily", "daily 25:00", "every 7 minutes", "every 0 minutes", "every 5 hours", "every 2 weeks mon 01:00",
        "weekly 01:00", "weekly monday 01:00", "monthly 0 01:00", "monthly 32 01:00", "monthly 6th mon 01:00",
        "once 2026-02-30 01:00", "once 2026-01-01", "once 2026-01-01 01:00 02:00", "rolling", "rolling 6", "rolling 0h",
        "yearly 01:00", "daily 01:00 x", "hourly 5", "every", "every 2 days from 9999-01-01 01:00",
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(CalendarError) as refused:
        parse_rule(text)
    assert "daily 02:00" in refused.value.hint


@pytest.mark.parametrize(
    "text", ["", "mon-", "22:00", "mon 22:00-", "2026-01-02..2026-01-01", "2026-01-02..", "25:00-26:00"]
)
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(CalendarError):
        parse_span(text)


def test_zones_are_those_of_iana() -> None:
    for name in ("Nowhere/City", "", "../../etc/passwd"):
        with pytest.raises(CalendarError):
            zone_of(name)


WORDS = (
    *(
        "every",
        "2",
        "15",
        "minutes",
        "hours",
        "weeks",
        "from",
        "2026-01-05",
        "daily",
        "weekly",
        "monthly",
        "last",
        "2nd",
    ),
    *("tue", "mon-fri", "02:00", ":05", "once", "rolling", "6h", "1,15", "..", "24:00", "22:00-24:00"),
)


@settings(max_examples=300)
@given(text=st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)))
def test_anything_written_is_a_rule_or_refused(text: str) -> None:
    with contextlib.suppress(CalendarError):
        rule = parse_rule(text)
        assert parse_rule(rule_text(rule)) == rule
    with contextlib.suppress(CalendarError):
        span = parse_span(text)
        assert parse_span(span_text(span)) == span


def test_due_goes_on_without_an_end() -> None:
    found = due(Schedule((parse_rule(f"weekly {WEEKDAYS[0]} 00:00"),)), NOW)
    runs = [next(found) for _ in range(100)]
    assert (runs[-1].start - runs[0].start).days == 99 * 7
