"""Retention as people write it: `7d,4w,12m`."""

from __future__ import annotations

import re
from typing import Final

from agents.repository.retention import RetentionError, Rules

_RULE = re.compile(r"([1-9][0-9]{0,4})([hdwmy])")
_NAMES: Final = {"h": "hourly", "d": "daily", "w": "weekly", "m": "monthly", "y": "yearly"}


def rules_of(keep: str) -> Rules:
    """`7d,4w,12m` as rules; those that keep everything for an empty text. Raises `RetentionError` (`retention-invalid`)."""
    counts: dict[str, int] = {}
    for part in filter(None, keep.split(",")):
        found = _RULE.fullmatch(part.strip())
        if found is None or _NAMES[found[2]] in counts:
            raise RetentionError(
                "retention-invalid",
                f"{part!r} is no rule, or said twice",
                "say 24h, 7d, 4w, 12m and 3y, each at most once",
            )
        counts[_NAMES[found[2]]] = int(found[1])
    return Rules(**counts)  # type: ignore[arg-type]
