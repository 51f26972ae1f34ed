"""Moments as people write and read them. Pure but for the clock and the zone of this machine.

Read: `2026-01-31 12:00`, `2026-01-31T12:00:00Z`, `12:00` (today), `90s`, `10m`, `2h`, `3d` (ago). Without a zone it is
this machine's. Of what is to end, `3d` is from now. Written: local time, with how long ago that is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_AGO = re.compile(r"(\d{1,9})\s*(s|m|min|h|d|w)(\s+ago)?")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d{1,6})?)?")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse(text: str, now: datetime | None = None, *, ahead: bool = False) -> datetime:
    """`ahead`: a length of time is counted from now on, not back. Raises ValueError."""
    now = now or datetime.now(UTC)
    text = text.strip()
    if text == "now":
        return now
    if ago := _AGO.fullmatch(text):
        length = timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
        return now + length if ahead and not ago[3] else now - length
    if _CLOCK.fullmatch(text):
        text = f"{now.astimezone():%Y-%m-%d}T{text.zfill(8) if text.count(':') == 2 else text.zfill(5)}"
    found = datetime.fromisoformat(text.upper())
    return (found if found.tzinfo else found.astimezone()).astimezone(UTC)


class Moment(click.ParamType):
    """A click type: text to RFC 3339 in UTC."""

    name = "time"

    def __init__(self, *, ahead: bool = False) -> None:
        self._ahead = ahead

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return rfc3339(parse(value, ahead=self._ahead))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; say 2026-01-31 12:00, 12:00, 10m or 2h", param, ctx)


MOMENT = Moment()
DEADLINE = Moment(ahead=True)


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def local(text: str | None) -> str:
    """`2026-01-31 13:00:00` on this machine's clock; a fraction where there is one. A dash for none."""
    if text is None:
        return "–"
    moment = datetime.fromisoformat(text).astimezone()
    shown = moment.strftime("%Y-%m-%d %H:%M:%S")
    return shown + (f".{moment.microsecond // 1000:03d}" if moment.microsecond else "")


def ago(text: str | None, now: datetime | None = None) -> str:
    """How long before now: `12 s`, `3 min`, `2 h`, `5 d`; empty for none."""
    if text is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(text)).total_seconds()
    if seconds < 0:
        return "in the future"
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds // 86_400)} d ago"
