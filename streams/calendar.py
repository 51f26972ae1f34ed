"""When something is due: rules, windows and blackouts in a time zone. Pure: no clock is read here, moments come in and go out as
aware datetimes in UTC. How rules and spans are written: `rules`.

Clocks that are put forward and back (docs/adr/0025):

- Rules of up to an hour follow time as it passes: in the hour that comes twice they run twice as often, in the one that
  is left out not at all.
- All other rules name a time of day, and each such time is once a day. A time that does not exist is the moment at
  which the clock was put forward (02:30 becomes 03:00, and so does 02:15: one run, not two). A time that exists twice
  is the first of the two.
- Ends of windows and blackouts are found in the same way.

A run that is due while the windows are closed, or in a blackout, waits until they open; all that wait for the same opening are
one run, the latest. What is never due within `HORIZON` is said to be never due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from dateutil import rrule

from streams.rules import LAST_YEAR, Dated, Rule, Span, zone_of

HORIZON = timedelta(days=366 * 40)
"""29 February comes after eight years at most (around 2100), the fifth Monday of a February after forty."""
_WEEK = timedelta(days=8)  # every weekly span begins and ends within it, whatever clocks do
# What is not open for so long by weekly spans never is: one of these weeks at most lacks the hour of a window.
_WEEKS = timedelta(days=24)
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_LEAST = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rules in a zone (IANA name), with the windows that runs may begin in (none: always) and blackouts that they may not."""

    rules: tuple[Rule, ...]
    zone: str = "UTC"
    windows: tuple[Span, ...] = ()
    blackouts: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """A run: the instant that a rule names, and when it may start (the same, or when windows open)."""

    instant: datetime
    start: datetime


# --- from clocks to moments -------------------------------------------------------------------------------------------


def moment(local: datetime, zone: ZoneInfo) -> datetime:
    """The moment at which a clock in `zone` shows `local`: the first of two, or the one at which it jumped over `local`."""
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == local:
        return first
    # In a gap: the offset from before it gives a moment after it, and the other way round.
    before, after = local.replace(tzinfo=zone, fold=1).astimezone(UTC), first
    offset = after.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while low < high:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle + 1
    return before + timedelta(seconds=low)


def instants(rule: Rule, zone: str, after: datetime) -> Iterator[datetime]:
    """The instants of a rule later than `after`, each once, ascending, up to `HORIZON` later. Rolling has none here."""
    place = zone_of(zone)
    match rule.kind:
        case "rolling":
            return
        case "once":
            assert rule.start is not None
            found = moment(datetime.combine(rule.start, rule.times[0]), place)
            if found > after:
                yield found
        case "minute":
            yield from _passing(place, after, lambda local: local.minute % rule.every == 0)
        case "hourly" if rule.every == 1:
            yield from _passing(place, after, lambda local: local.minute == rule.minute)
        case _:
            last = after
            times = rule.times or tuple(time(hour, rule.minute) for hour in range(0, 24, rule.every))
            for day in _dates(rule, after.astimezone(place).date() - 2 * _DAY):
                for at in times:
                    found = moment(datetime.combine(day, at), place)
                    if found > last:
                        yield (last := found)


def _passing(zone: ZoneInfo, after: datetime, fits: Callable[[datetime], bool]) -> Iterator[datetime]:
    at, end = after.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE, _horizon(after)
    while at < end:
        if fits(at.astimezone(zone)):
            yield at
        at += _MINUTE


def _horizon(after: datetime) -> datetime:
    return min(after, datetime(LAST_YEAR, 1, 1, tzinfo=UTC)) + HORIZON


def _dates(rule: Rule, first: date) -> Iterator[date]:
    """The days of a rule from `first` on, to the horizon."""
    start = rule.start or date(1970, 1, 5)  # a Monday
    until = min(max(first, start), date(LAST_YEAR, 1, 1)) + HORIZON
    frequency: int = rrule.DAILY
    fixed: dict[str, Any] = {}
    step = rule.every if rule.kind != "hourly" else 1
    gone = max(0, (first - start).days)
    if rule.kind == "weekly":
        frequency, fixed = rrule.WEEKLY, {"byweekday": rule.weekdays}
        begin = start - start.weekday() * _DAY
        begin += (first - begin).days // (7 * step) * 7 * step * _DAY if first > begin else 0 * _DAY
    elif rule.kind == "monthly":
        frequency = rrule.MONTHLY
        fixed = {"bymonthday": rule.days} if rule.days else {"byweekday": [rrule.weekday(d, n) for n, d in rule.nth]}
        months = max(0, (first.year - start.year) * 12 + first.month - start.month) // step * step
        months += start.month - 1
        begin = date(start.year + months // 12, months % 12 + 1, 1)
    else:
        begin = start + gone // step * step * _DAY
    found = rrule.rrule(
        frequency,
        interval=step,
        wkst=rrule.MO,
        dtstart=datetime.combine(begin, time()),
        until=datetime.combine(until, time()),
        **fixed,
    )
    for each in found:
        day: date = each.date()
        if day >= first and day >= start:
            yield day


def latest(schedule: Schedule, after: datetime, until: datetime) -> datetime | None:
    """The last instant of the rules (rolling aside) later than `after` and not later than `until`."""
    span = timedelta(hours=1)
    while True:
        begin = max(after, until - span)
        found = [last for rule in schedule.rules if (last := _last(rule, schedule.zone, begin, until)) is not None]
        if found:
            return max(found)
        if begin == after:
            return None
        span *= 4


def _last(rule: Rule, zone: str, after: datetime, until: datetime) -> datetime | None:
    last = None
    for found in instants(rule, zone, after):
        if found > until:
            break
        last = found
    return last


# --- windows and blackouts --------------------------------------------------------------------------------------------


def _occurrences(span: Span, zone: ZoneInfo, first: date, last: date) -> Iterator[tuple[datetime, datetime]]:
    """Beginnings and ends of those that begin from `first` to `last`; a dated one always."""
    if isinstance(span, Dated):
        yield moment(span.begins, zone), moment(span.ends, zone)
        return
    day = first
    while day <= last:
        if day.weekday() in span.weekdays:
            over = span.ends is None or span.ends <= span.begins
            ends = datetime.combine(day + _DAY if over else day, span.ends or time())
            yield moment(datetime.combine(day, span.begins), zone), moment(ends, zone)
        day += _DAY


def _around(spans: Iterable[Span], zone: ZoneInfo, at: datetime, days: int) -> list[tuple[datetime, datetime]]:
    """What may hold `at`, or begins within the `days` after it; not what lies in hours or a day that a clock jumped over."""
    today = at.astimezone(zone).date()
    found = (o for span in spans for o in _occurrences(span, zone, today - 2 * _DAY, today + days * _DAY))
    return [(begin, end) for begin, end in found if begin < end]


def _ends(spans: Sequence[Span], zone: ZoneInfo, at: datetime) -> datetime | None:
    """The latest end of those that hold `at`."""
    return max((end for begin, end in _around(spans, zone, at, 1) if begin <= at < end), default=None)


def is_open(schedule: Schedule, at: datetime) -> bool:
    """Whether a run may begin at that moment."""
    zone = zone_of(schedule.zone)
    if _ends(schedule.blackouts, zone, at) is not None:
        return False
    return not schedule.windows or _ends(schedule.windows, zone, at) is not None


def opens(schedule: Schedule, at: datetime) -> datetime | None:
    """The first moment from `at` on that a run may begin; None: never."""
    zone = zone_of(schedule.zone)
    dated = sorted(
        edge
        for span in (*schedule.windows, *schedule.blackouts)
        if isinstance(span, Dated)
        for edge in (moment(span.begins, zone), moment(span.ends, zone))
    )
    since = at
    while True:
        if at - since > _WEEKS and not is_open(schedule, at):
            # Nothing but weekly spans counted: the next weeks will be the same, up to where a dated one begins or ends.
            following = [edge for edge in dated if edge > since]
            if not following:
                return None
            since = at = min(following)
        if (ends := _ends(schedule.blackouts, zone, at)) is not None:
            at = ends
        elif not schedule.windows or _ends(schedule.windows, zone, at) is not None:
            return at
        else:
            begins = [begin for begin, _ in _around(schedule.windows, zone, at, 15) if begin > at]
            if not begins:
                return None
            at = min(begins)


def closes(schedule: Schedule, at: datetime) -> datetime | None:
    """When what is open at `at` closes; None when that is more than a week away."""
    zone, limit = zone_of(schedule.zone), at + _WEEK
    starts = [begin for begin, _ in _around(schedule.blackouts, zone, at, 9) if begin > at]
    black = min(starts, default=limit)
    end = at
    while end < limit:
        held = _ends(schedule.windows, zone, end) if schedule.windows else limit
        if held is None:
            return min(end, black) if end > at else at
        if black <= held:
            break
        end = held
    return black if black < limit else None


# --- runs -------------------------------------------------------------------------------------------------------------


def due(schedule: Schedule, after: datetime, *, rolling_from: datetime | None = None) -> Iterator[Due]:
    """The runs whose instant is later than `after`, ascending. Several that may start at the same moment are one, the latest.

    `rolling_from` is what a rolling rule counts from: when the last run ended, or `after` when there was none; None while
    one is under way, which says nothing about the next.
    """
    at = after
    while True:
        found = _first(schedule, at, after, rolling_from)
        if found is None:
            return
        start = opens(schedule, found)
        if start is None:
            return
        if start > found:
            found = max(found, latest(schedule, found, start) or found)
        yield Due(found, start)
        at = found


def _first(schedule: Schedule, at: datetime, after: datetime, rolling_from: datetime | None) -> datetime | None:
    following = [next(instants(rule, schedule.zone, at), None) for rule in schedule.rules]
    if rolling_from is not None and at == after:
        pauses = [timedelta(seconds=rule.pause_s) for rule in schedule.rules if rule.kind == "rolling"]
        following += [max(rolling_from + (p if rolling_from != after else p * 0), after + _LEAST) for p in pauses]
    return min((f for f in following if f is not None), default=None)


def next_runs(schedule: Schedule, after: datetime, count: int, *, rolling_from: datetime | None = None) -> list[Due]:
    """The next `count` runs after a moment; fewer when there are no more."""
    found = due(schedule, after, rolling_from=rolling_from)
    return [run for run, _ in zip(found, range(count), strict=False)]


def since_1970_us(at: datetime) -> int:
    """A moment as µs since 1970, exactly."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // _LEAST


def is_rolling(schedule: Schedule) -> bool:
    return any(rule.kind == "rolling" for rule in schedule.rules)
