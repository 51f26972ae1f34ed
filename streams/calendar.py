"""When something is due: rules, windows and blackouts in a time zone. Pure: no clock is read here, moments come in and go out as
aware datetimes in UTC.

A rule is written the way people say it (`parse_rule`, and `rule_text` back):

    every 15 minutes                       when the minute of the hour is divisible by 15 (a divisor of 60)
    hourly :05                             each hour that passes, 5 past (`:00` may be left out)
    every 6 hours :30                      hours of the day divisible by 6 (a divisor of 24)
    daily 02:00 14:00                      also `every 3 days from 2026-01-01 02:00`
    weekly mon,thu 22:00                   also `every 2 weeks from 2026-01-05 mon 22:00`
    monthly 1,15 03:00 · monthly last 03:00 · monthly 2nd tue 03:00 · monthly last fri 03:00
    every 3 months from 2026-01-01 last 03:00
    once 2026-12-01 02:00
    rolling 6h                             so long after the last run ended (m, h, d)

A span of time, for windows and blackouts (`parse_span`, `span_text`): `mon-fri 22:00-06:00` (an end not after its
beginning is the next day's), `sat,sun` (all day), `22:00-06:00` (every day), `2026-12-24..2026-12-26` (both days
included), `2026-12-24 18:00..2026-12-27 06:00`.

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

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any, Literal
from zoneinfo import ZoneInfo

from dateutil import rrule

from streams.errors import StreamError

HORIZON = timedelta(days=366 * 40)
"""29 February comes after eight years at most (around 2100), the fifth Monday of a February after forty."""
_WEEK = timedelta(days=8)  # every weekly span begins and ends within it, whatever clocks do
# What is not open for so long by weekly spans never is: one of these weeks at most lacks the hour of a window.
_WEEKS = timedelta(days=24)
_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_LEAST = timedelta(microseconds=1)
_LAST_YEAR = 9000  # what lies beyond is beyond what dates can count

Kind = Literal["minute", "hourly", "daily", "weekly", "monthly", "once", "rolling"]
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NTH = {"1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "5th": 5, "last": -1}
_UNITS = {"minute": "minute", "hour": "hourly", "day": "daily", "week": "weekly", "month": "monthly"}
_PAUSE = re.compile(r"([1-9][0-9]{0,4})(m|h|d)")
_PAUSES = {"m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as parsed. `weekdays` are 0 (Monday) to 6, `days` 1 to 31 or -1 (the last), `nth` pairs of (1 to 5 or -1, weekday);
    `start` is what `every` counts from, and the day of `once`. `pause_s` is rolling's."""

    kind: Kind
    every: int = 1
    times: tuple[time, ...] = ()
    minute: int = 0
    weekdays: tuple[int, ...] = ()
    days: tuple[int, ...] = ()
    nth: tuple[tuple[int, int], ...] = ()
    start: date | None = None
    pause_s: int = 0


@dataclass(frozen=True, slots=True)
class Weekly:
    """A span on each of `weekdays`; `ends` not after `begins` is the next day's. `ends` None: midnight."""

    weekdays: tuple[int, ...]
    begins: time
    ends: time | None


@dataclass(frozen=True, slots=True)
class Dated:
    """A span that is once, local times; `ends` is not in it."""

    begins: datetime
    ends: datetime


Span = Weekly | Dated


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


class CalendarError(StreamError):
    """What was written is no rule, span or zone."""


# --- text -------------------------------------------------------------------------------------------------------------


def parse_rule(text: str) -> Rule:
    """Raises `CalendarError` (`rule-invalid`)."""
    words = text.lower().split()
    try:
        return _rule(words)
    except (ValueError, IndexError) as error:
        why = str(error) if isinstance(error, ValueError) else "something is missing"
        hint = "say `daily 02:00`, `weekly mon,thu 22:00`, `monthly last 03:00`, `every 15 minutes`, `rolling 6h` …"
        raise CalendarError("rule-invalid", f"{text!r} is no schedule: {why}", hint) from error


def _rule(words: list[str]) -> Rule:
    head, rest = words[0], words[1:]
    every, start = 1, None
    if head == "every":
        head, rest, every, start = _every(rest)
    match head:
        case "minute" if words[0] == "every":
            _nothing(rest)
            return Rule("minute", every)
        case "hourly":
            minute = 0
            if rest:
                found = re.fullmatch(r":([0-5]\d)", rest.pop(0))
                if found is None:
                    raise ValueError("the minute of the hour is written `:05`")
                minute = int(found[1])
            _nothing(rest)
            return Rule("hourly", every, minute=minute)
        case "daily":
            return Rule("daily", every, _times(rest), start=start)
        case "weekly":
            weekdays = _weekdays(rest[0])
            return Rule("weekly", every, _times(rest[1:]), weekdays=weekdays, start=start)
        case "monthly":
            if rest[0] in _NTH and rest[1] in WEEKDAYS:
                nth = (_NTH[rest[0]], WEEKDAYS.index(rest[1]))
                return Rule("monthly", every, _times(rest[2:]), nth=(nth,), start=start)
            days = tuple(sorted({_day(word) for word in rest[0].split(",")}, key=lambda d: (d < 0, d)))
            return Rule("monthly", every, _times(rest[1:]), days=days, start=start)
        case "once":
            times = _times(rest[1:])
            if len(times) > 1:
                raise ValueError("once is one time")
            return Rule("once", times=times, start=_date(rest[0]))
        case "rolling":
            found = _PAUSE.fullmatch(rest.pop(0))
            if found is None:
                raise ValueError("how long after is written `30m`, `6h`, `2d`")
            _nothing(rest)
            return Rule("rolling", pause_s=int(found[1]) * _PAUSES[found[2]])
    raise ValueError(f"it begins with {head!r}")


def _every(words: list[str]) -> tuple[str, list[str], int, date | None]:
    """`every [N] UNIT[s] [from DATE] …`: the kind, what follows, N, DATE."""
    every = 1
    if words[0].isascii() and words[0].isdigit():
        every, words = int(words[0]), words[1:]
    kind = _UNITS.get(words[0].removesuffix("s"))
    if kind is None:
        raise ValueError(f"{words[0]!r} is no minutes, hours, days, weeks or months")
    words, start = words[1:], None
    if words and words[0] == "from":
        start, words = _date(words[1]), words[2:]
    of = {"minute": 60, "hourly": 24}.get(kind)
    if of is not None:
        if start is not None:
            raise ValueError("minutes and hours are counted from midnight, not from a date")
        if not 1 <= every < of or of % every:
            raise ValueError(f"{every} does not divide {of}; `rolling` has any length")
    elif not 1 <= every <= 999:
        raise ValueError("every how many is 1 to 999")
    elif every > 1 and start is None:
        raise ValueError("from when on is it counted? say `from 2026-01-05`")
    return kind, words, every, start


def _nothing(words: list[str]) -> None:
    if words:
        raise ValueError(f"{' '.join(words)!r} is too much")


def _times(words: list[str]) -> tuple[time, ...]:
    if not words:
        raise ValueError("at what time?")
    return tuple(sorted({_time(word) for word in words}))


def _time(word: str) -> time:
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", word)
    if found is None:
        raise ValueError(f"{word!r} is no time of day; say 02:00")
    return time(int(found[1]), int(found[2]))


def _date(word: str) -> date:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", word):
        raise ValueError(f"{word!r} is no date; say 2026-01-31")
    found = date.fromisoformat(word)
    if not 1970 <= found.year < _LAST_YEAR:
        raise ValueError(f"{word} is too far away")
    return found


def _day(word: str) -> int:
    if word == "last":
        return -1
    if not re.fullmatch(r"[1-9]|[12]\d|3[01]", word):
        raise ValueError(f"{word!r} is no day of a month; say 1 to 31, last, or 2nd tue")
    return int(word)


def _weekdays(word: str) -> tuple[int, ...]:
    """`mon,thu` or `mon-fri`, also `fri-mon`."""
    found: set[int] = set()
    for part in word.split(","):
        first, dash, last = part.partition("-")
        if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
            raise ValueError(f"{part!r} is no day of the week; say mon,thu or mon-fri")
        begin, end = WEEKDAYS.index(first), WEEKDAYS.index(last or first)
        found |= {(begin + i) % 7 for i in range((end - begin) % 7 + 1)}
    return tuple(sorted(found))


def rule_text(rule: Rule) -> str:
    """The rule as `parse_rule` takes it."""
    at = " ".join(f"{t:%H:%M}" for t in rule.times)
    if rule.kind == "rolling":
        unit = next(u for u in "dhm" if rule.pause_s % _PAUSES[u] == 0)
        return f"rolling {rule.pause_s // _PAUSES[unit]}{unit}"
    if rule.kind == "once":
        return f"once {rule.start} {at}"
    if rule.kind == "minute":
        return f"every {rule.every} minutes"
    unit = {"hourly": "hours", "daily": "days", "weekly": "weeks", "monthly": "months"}[rule.kind]
    head: list[str] = [rule.kind] if rule.every == 1 and rule.start is None else [f"every {rule.every} {unit}"]
    if rule.start is not None:
        head.append(f"from {rule.start}")
    if rule.kind == "hourly":
        head.append(f":{rule.minute:02d}")
    if rule.weekdays:
        head.append(",".join(WEEKDAYS[d] for d in rule.weekdays))
    for nth, weekday in rule.nth:
        head.append(f"{next(n for n, v in _NTH.items() if v == nth)} {WEEKDAYS[weekday]}")
    if rule.days:
        head.append(",".join("last" if d < 0 else str(d) for d in rule.days))
    return " ".join([*head, at]).rstrip()


def parse_span(text: str) -> Span:
    """Raises `CalendarError` (`span-invalid`)."""
    try:
        return _dated(text) if ".." in text else _weekly(text.lower().split())
    except (ValueError, IndexError) as error:
        why = str(error) if isinstance(error, ValueError) else "something is missing"
        hint = "say `mon-fri 22:00-06:00`, `sat,sun`, `22:00-06:00`, `2026-12-24..2026-12-26`"
        raise CalendarError("span-invalid", f"{text!r} is no span of time: {why}", hint) from error


def _weekly(words: list[str]) -> Weekly:
    days = tuple(range(7)) if ":" in words[0] else _weekdays(words.pop(0))
    if not words:
        return Weekly(days, time(), None)
    first, dash, last = words.pop(0).partition("-")
    if not dash:
        raise ValueError("from when to when?")
    _nothing(words)
    begins, ends = _time(first), None if last == "24:00" else _time(last)
    return Weekly(days, begins, None if ends == time() else ends)


def _dated(text: str) -> Dated:
    first, last = (part.split() for part in text.split("..", 1))
    begins = datetime.combine(_date(first[0]), _time(first[1]) if len(first) > 1 else time())
    ends = datetime.combine(_date(last[0]), _time(last[1])) if len(last) > 1 else _midnight_after(_date(last[0]))
    _nothing([*first[2:], *last[2:]])
    if ends <= begins:
        raise ValueError("it ends before it begins")
    return Dated(begins, ends)


def _midnight_after(day: date) -> datetime:
    return datetime.combine(day + _DAY, time())


def span_text(span: Span) -> str:
    """The span as `parse_span` takes it."""
    if isinstance(span, Dated):
        if (span.begins.time(), span.ends.time()) == (time(), time()):
            return f"{span.begins.date()}..{span.ends.date() - _DAY}"
        return f"{span.begins:%Y-%m-%d %H:%M}..{span.ends:%Y-%m-%d %H:%M}"
    days = "" if len(span.weekdays) == 7 else ",".join(WEEKDAYS[d] for d in span.weekdays)
    if span.begins == time() and span.ends is None and days:
        return days
    ends = "24:00" if span.ends is None else f"{span.ends:%H:%M}"
    return f"{days} {span.begins:%H:%M}-{ends}".strip()


@cache
def zone_of(name: str) -> ZoneInfo:
    """Raises `CalendarError` (`zone-unknown`)."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # KeyError: ZoneInfoNotFoundError
        raise CalendarError("zone-unknown", f"there is no time zone {name!r}", "say UTC, Europe/Berlin …") from error


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
    return min(after, datetime(_LAST_YEAR, 1, 1, tzinfo=UTC)) + HORIZON


def _dates(rule: Rule, first: date) -> Iterator[date]:
    """The days of a rule from `first` on, to the horizon."""
    start = rule.start or date(1970, 1, 5)  # a Monday
    until = min(max(first, start), date(_LAST_YEAR, 1, 1)) + HORIZON
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
