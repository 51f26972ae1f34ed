"""Rules and spans of time as people write them, and as values. When they are due: `calendar`.

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
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cache
from typing import Literal
from zoneinfo import ZoneInfo

from streams.errors import StreamError

LAST_YEAR = 9000  # what lies beyond is beyond what dates can count
_DAY = timedelta(days=1)

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


class CalendarError(StreamError):
    """What was written is no rule, span or zone."""


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
    if not 1970 <= found.year < LAST_YEAR:
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
