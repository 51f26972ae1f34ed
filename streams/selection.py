"""What a selective undo takes back: which rows of which steps, and what becomes of later writes that depend on them.

It is part of a plan's options, so the digest covers it; the agent chooses rows by it, the API shows them by it. Pure.

    {"steps": [[first, last], …], "table": [schema, name] | null, "keys": [[[first…], [last…]], …], "later": "refuse"}

`keys`: ranges of the table's key, both ends included, each end the key's columns as text; ranges that are more than one key
need a key of one integer column. `later`, when a step that is not selected wrote a selected row again (or wrote what
depends on it):

    refuse     the plan says which steps, and cannot run
    cascade    those steps are undone, too, whole; and what depends on them
    force      the rows go back to what they were before the first selected change, over the later writes to them
    leave      rows that were written later are left as they are, and what hangs together with them
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streams.errors import StreamError
from streams.events import OrdinalRange
from streams.formats.binlog.keys import canonical, integer, is_integer, key_of_texts, same_text
from streams.formats.binlog.table_map import Declared
from streams.formats.binlog.values import Value
from streams.formats.errors import FormatError
from streams.paths import Path, normalise

LATER: Final = ("refuse", "cascade", "force", "leave")
MOST_COUNTED: Final = 100_000
"""Keys of ranges that are looked up one by one; a larger range has the table's granules looked through."""
MOST_RANGES: Final = 10_000


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys from `first` to `last`, both included, as text by column."""

    first: tuple[str, ...]
    last: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """See the module. `keys` empty: all of the table's."""

    steps: Path
    table: tuple[str, str] | None
    keys: tuple[KeyRange, ...]
    later: str

    def options(self) -> dict[str, Any]:
        return {
            "steps": [[r.first, r.last] for r in self.steps],
            "table": list(self.table) if self.table else None,
            "keys": [[list(k.first), list(k.last)] for k in self.keys],
            "later": self.later,
        }


def parse_selection(raw: Any) -> Selection:
    """Raises `StreamError` (`selection-invalid`)."""
    try:
        table = raw["table"]
        found = Selection(
            normalise(OrdinalRange(int(first), int(last)) for first, last in raw["steps"]),
            (str(table[0]), str(table[1])) if table else None,
            tuple(KeyRange(_texts(first), _texts(last)) for first, last in raw["keys"]),
            str(raw["later"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StreamError("selection-invalid", f"this does not say what to take back: {error!r}") from error
    if found.later not in LATER:
        raise StreamError("selection-invalid", f"later writes can be {', '.join(LATER)}, not {found.later!r}")
    if found.keys and found.table is None:
        raise StreamError("selection-invalid", "keys are those of a table: say which")
    if len(found.keys) > MOST_RANGES:
        raise StreamError("selection-invalid", f"{len(found.keys)} key ranges are more than {MOST_RANGES}")
    return found


def _texts(raw: Any) -> tuple[str, ...]:
    if isinstance(raw, str):
        raise TypeError("the ends of a key range are lists")
    return tuple(str(text) for text in raw)


class KeyMatch:
    """Whether a key, in its canonical form, is among some ranges. Raises `FormatError` (`key-invalid`) when made."""

    def __init__(
        self, keys: Sequence[KeyRange], columns: Sequence[Declared], collations: Sequence[str | None] = ()
    ) -> None:
        self._columns = columns
        self._collations = collations or [None] * len(columns)
        self._forms: dict[bytes, tuple[str, ...]] = {}
        spans: list[tuple[int, int]] = []
        whole = len(columns) == 1 and is_integer(columns[0])
        for key in keys:
            if whole and len(key.first) == len(key.last) == 1:
                spans.append((_integer(columns[0], key.first[0]), _integer(columns[0], key.last[0])))
            elif key.first == key.last:
                self._forms[key_of_texts(columns, key.first)] = key.first
            else:
                names = ", ".join(c.name for c in columns)
                raise FormatError(
                    "key-invalid",
                    f"the key ({names}) is not one integer: it has no ranges",
                    "give its values one by one",
                )
        self._spans = _joined(spans)
        self._starts = [first for first, _ in self._spans]
        self.exact = any((c or "").endswith("_bin") for c in self._collations)
        """Whether the form alone does not tell: then ask `same`, too."""

    def __call__(self, form: bytes) -> bool:
        if self._spans:
            if form[:3] == b"raw":
                return False
            number = int(form[4:])
            at = bisect_right(self._starts, number)
            return at > 0 and number <= self._spans[at - 1][1]
        return form in self._forms

    def same(self, form: bytes, values: Sequence[Value]) -> bool:
        """Whether the values of a key with this form are those given, as far as their collations tell texts apart."""
        texts = self._forms.get(form)
        if texts is None:
            return True
        parts = zip(self._columns, self._collations, texts, values, strict=True)
        return all(same_text(column, collation, text, value) for column, collation, text, value in parts)

    def counted(self) -> list[bytes] | None:
        """All forms that match; None when they are too many to be gone through."""
        if sum(last - first + 1 for first, last in self._spans) > MOST_COUNTED:
            return None
        numbers = [canonical([b"%d" % n]) for first, last in self._spans for n in range(first, last + 1)]
        return [*numbers, *self._forms]


def _integer(column: Declared, text: str) -> int:
    try:
        return integer(text)
    except ValueError:
        raise FormatError("key-invalid", f"{text!r} is no value of {column.name} ({column.type})") from None


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for first, last in sorted(span for span in spans if span[0] <= span[1]):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out


def within(ranges: Path, *others: Path) -> Path:
    """The ordinals that are in all of these."""
    for other in others:
        ranges = _both(ranges, other)
    return ranges


def _both(a: Path, b: Path) -> Path:
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        first, last = max(a[i].first, b[j].first), min(a[i].last, b[j].last)
        if first <= last:
            out.append(OrdinalRange(first, last))
        if a[i].last < b[j].last:
            i += 1
        else:
            j += 1
    return normalise(out)


def holds(ranges: Path) -> Callable[[int], bool]:
    """Whether an ordinal is in `ranges`."""
    starts = [r.first for r in ranges]

    def inside(ordinal: int) -> bool:
        at = bisect_right(starts, ordinal)
        return at > 0 and ordinal <= ranges[at - 1].last

    return inside


def key_columns(definition: Mapping[str, Any], names: Sequence[str]) -> tuple[list[Declared], list[str | None]]:
    """Columns and their collations (None for what is not text) by name, from a canonical definition."""
    by_name = {c["name"]: c for c in definition["columns"]}
    found = [by_name[name] for name in names]
    return [Declared(c["name"], c.get("type") or "", c.get("charset")) for c in found], [
        c.get("collation") for c in found
    ]
