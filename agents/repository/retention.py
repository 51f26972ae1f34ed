"""Which points stay and which may go, and why: pure, and the same for a dry run and the real one.

Rules count *periods that have points*: `daily=7` keeps the last point of each of the last seven days that have one. So a day on
which nothing was backed up costs no slot, a hundred backups on one day take one slot, and when backups stop, what is there stays.
A day is a day of the rules' time zone, a week begins on Monday (ISO 8601), an hour that a clock repeats is two.

Whatever the counts say, these stay: starred points; points under a legal hold; points younger than `minimum_age_us` (a flood of
new points, which is what somebody makes who wants old ones gone, cannot push anything out before that); points of the future (a
clock was wrong: they take no slot either); the newest sound point of each asset. Points that are suspect or damaged take no
sound point's slot, and a point takes the slot only of what it holds all of: not one disk that of the whole machine, not files
that of a disk which has the same asset's name.

As every point is a full, what goes takes nothing from what stays. Dropping is an event; content goes with the next collection.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agents.errors import AgentError

DAY_US: Final = 86_400_000_000
COUNTS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_LARGEST: Final = 1_000_000


class RetentionError(AgentError):
    """`retention-invalid`: these are no rules. `retention-early`: a point may not be given up ahead of its rules."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How many periods each rule keeps a point of. `zone`: an IANA name such as `Europe/Vienna`."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    minimum_age_us: int = DAY_US
    zone: str = "UTC"

    def __post_init__(self) -> None:
        for name in COUNTS:
            if not 0 <= getattr(self, name) <= _LARGEST:
                raise RetentionError(
                    "retention-invalid", f"`{name}` is {getattr(self, name)}", "give a number from 0 on"
                )
        if self.minimum_age_us < 0:
            raise RetentionError("retention-invalid", "the minimum age is negative")
        _zone(self.zone)

    @property
    def keeps_all(self) -> bool:
        """No count was given: nothing is ever dropped."""
        return not any(getattr(self, name) for name in COUNTS)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point as rules look at it. `holds`: names of legal holds → until when (None: until released). `sound`: neither suspect
    nor damaged. `content`: what is in it, by names that are the same in every point of the asset (a machine's disks)."""

    point: str
    asset: str
    created_us: int
    starred: bool = False
    holds: Mapping[str, int | None] = field(default_factory=dict)
    sound: bool = True
    content: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why`: every reason to keep it; if there is none, what became of each rule. For people, one phrase each."""

    point: str
    keep: bool
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A rule: what period a moment lies in, and how that is said."""

    name: str
    period: Callable[[datetime.datetime], tuple[object, ...]]
    say: Callable[[datetime.datetime], str]


_KINDS: Final = (
    _Kind("hourly", lambda t: (t.date(), t.hour, t.utcoffset()), lambda t: f"{t:%Y-%m-%d %H}:00 ({t:%z})"),
    _Kind("daily", lambda t: (t.date(),), lambda t: f"{t:%Y-%m-%d}"),
    _Kind("weekly", lambda t: t.isocalendar()[:2], lambda t: f"week {t:%G-W%V}"),
    _Kind("monthly", lambda t: (t.year, t.month), lambda t: f"{t:%Y-%m}"),
    _Kind("yearly", lambda t: (t.year,), lambda t: f"{t:%Y}"),
)


def decide(points: Iterable[Candidate], rules: Rules, now_us: int) -> list[Verdict]:
    """A verdict for each point, those of an asset together, newest first."""
    by_asset: dict[str, list[Candidate]] = {}
    for point in points:
        by_asset.setdefault(point.asset, []).append(point)
    return [v for asset in sorted(by_asset) for v in _of_asset(by_asset[asset], rules, now_us)]


def _of_asset(points: Sequence[Candidate], rules: Rules, now_us: int) -> list[Verdict]:
    ordered = sorted(points, key=lambda p: (p.created_us, p.point), reverse=True)
    found = {
        verdict.point: verdict
        for content in {p.content for p in ordered}
        for verdict in _of_content(content, [p for p in ordered if p.content >= content], rules, now_us)
    }
    return [found[p.point] for p in ordered]


def _of_content(content: frozenset[str], rivals: Sequence[Candidate], rules: Rules, now_us: int) -> Iterable[Verdict]:
    """Of the points that hold just `content`; `rivals` are those and all that hold more, newest first."""
    past = [p for p in rivals if p.created_us <= now_us]
    sound = [p for p in past if p.sound]
    by_sound, by_all = _Slots(sound, rules), _Slots(past, rules)
    newest = sound[0].point if sound else ""
    for p in rivals:
        if p.content != content:
            continue
        why = list(_always(p, rules, now_us, newest))
        if p.created_us <= now_us:
            why += (by_sound if p.sound else by_all).kept(p)
        if why:
            yield Verdict(p.point, True, tuple(why))
        elif rules.keeps_all:
            yield Verdict(p.point, True, ("no rule drops anything",))
        else:
            yield Verdict(p.point, False, tuple((by_sound if p.sound else by_all).refused(p)))


def _always(p: Candidate, rules: Rules, now_us: int, newest: str) -> Iterable[str]:
    if p.starred:
        yield "starred"
    for name, until in sorted(p.holds.items()):
        if until is None or until > now_us:
            yield f"legal hold {name!r}" + (f" until {_moment(until)}" if until is not None else "")
    if p.created_us > now_us:
        yield f"made at {_moment(p.created_us)}, which is yet to come: some clock is wrong"
    elif now_us - p.created_us < rules.minimum_age_us:
        yield f"younger than {_span(rules.minimum_age_us)}"
    if p.point == newest:
        yield "the newest sound point"


class _Slots:
    """What the counts keep of points that are given newest first."""

    def __init__(self, points: Sequence[Candidate], rules: Rules) -> None:
        self._rules = rules
        self._zone = _zone(rules.zone)
        self._place = {p.point: number for number, p in enumerate(points, 1)}
        # rule → period → (its number, the point that stands for it)
        self._periods: dict[str, dict[tuple[object, ...], tuple[int, str]]] = {kind.name: {} for kind in _KINDS}
        for p in points:
            moment = self._local(p)
            for kind in _KINDS:
                periods = self._periods[kind.name]
                periods.setdefault(kind.period(moment), (len(periods) + 1, p.point))

    def kept(self, p: Candidate) -> Iterable[str]:
        if self._place[p.point] <= self._rules.last:
            yield f"last: {self._place[p.point]} of {self._rules.last}"
        moment = self._local(p)
        for kind in _KINDS:
            count = getattr(self._rules, kind.name)
            number, stands = self._periods[kind.name][kind.period(moment)]
            if number <= count and stands == p.point:
                yield f"{kind.name}: {number} of {count}, the last of {kind.say(moment)}"

    def refused(self, p: Candidate) -> Iterable[str]:
        """Of each rule that there is, why it does not keep it."""
        if self._rules.last:
            yield f"last: {self._rules.last} are newer"
        moment = self._local(p)
        for kind in _KINDS:
            count = getattr(self._rules, kind.name)
            number, stands = self._periods[kind.name][kind.period(moment)]
            if count and number > count:
                yield f"{kind.name}: {kind.say(moment)} is before the {count} that are kept"
            elif count:
                yield f"{kind.name}: {stands} stands for {kind.say(moment)}"

    def _local(self, p: Candidate) -> datetime.datetime:
        return _utc(p.created_us).astimezone(self._zone)


# -- ahead of the rules


def check_early(
    point: str, by: str, agreed_by: str, right_since: Mapping[str, int], now_us: int, days: int = 3
) -> None:
    """Whether `by` may give a point up that rules keep: somebody else has to agree, who could have done it himself `days` ago.

    `right_since`: who has the right to give points up, and since when without a break (µs). So neither one stolen account nor a
    second one made for the purpose is enough. Raises `RetentionError` (`retention-early`).
    """
    if by not in right_since:
        raise _early(f"{by} has no right to give points up")
    if not agreed_by:
        raise _early(f"rules keep point {point}", "a second person who may give points up has to agree first")
    if agreed_by == by:
        raise _early(f"{by} cannot agree with himself", "a second person has to agree")
    if agreed_by not in right_since:
        raise _early(f"{agreed_by}, who agreed, has no right to give points up")
    if now_us - right_since[agreed_by] < days * DAY_US:
        raise _early(
            f"{agreed_by}, who agreed, has the right only since {_moment(right_since[agreed_by])}",
            f"somebody has to agree who has had it for {days} days",
        )


def _early(message: str, hint: str = "") -> RetentionError:
    return RetentionError("retention-early", message, hint)


# -- rules as text


def encode(rules: Rules) -> str:
    """As they stand in `repository.defined`: JSON, defaults left out."""
    given = {k: v for k, v in asdict(rules).items() if v != getattr(Rules(), k)}
    return json.dumps(given, sort_keys=True, separators=(",", ":"))


def parse(text: str) -> Rules:
    """Rules from JSON; of an empty text those that keep everything. Raises `RetentionError` (`retention-invalid`)."""
    if not text:
        return Rules()
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RetentionError("retention-invalid", f"rules are not JSON: {error}") from error
    kinds = {f.name: str if f.name == "zone" else int for f in fields(Rules)}
    if not isinstance(raw, dict):
        raise RetentionError("retention-invalid", "rules are a JSON object")
    for name, value in raw.items():
        if name not in kinds:
            raise RetentionError("retention-invalid", f"there is no rule {name!r}", f"there are {', '.join(kinds)}")
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise RetentionError("retention-invalid", f"{name} cannot be {value!r}")
    return Rules(**raw)


def _zone(name: str) -> datetime.tzinfo:
    if name == "UTC":
        return datetime.UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise RetentionError(
            "retention-invalid",
            f"there is no time zone {name!r} here",
            "give an IANA name such as Europe/Vienna, or UTC",
        ) from error


def _utc(us: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=us)


def _moment(us: int) -> str:
    return f"{_utc(us):%Y-%m-%dT%H:%M:%SZ}"


def _span(us: int) -> str:
    days, rest = divmod(us, DAY_US)
    return f"{days} days" if days and not rest else f"{us / 3_600_000_000:g} hours"
