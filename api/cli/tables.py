"""Tables and rows for people, in plain lines: cheap to load, easy to cut apart with other tools.

What comes from a protected system is printed as text: it cannot style, link or move the cursor.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
WIDE = 180


def clean(text: object, most: int = 0) -> str:
    """One line without control characters, at most `most` characters."""
    line = _CONTROL.sub(" ", str(text))
    return line if not most or len(line) <= most else line[: most - 1] + "…"


def cells(text: str) -> int:
    """How many places of a terminal's line `text` takes: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, places: int) -> str:
    """`text` cut to at most so many places, with an ellipsis where it was cut."""
    if cells(text) <= places:
        return text
    out, used = "", 0
    for c in text:
        used += cells(c)
        if used > max(0, places - 1):
            break
        out += c
    return out + "…" if places else ""


def table(columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. A column is its heading, or heading and how it is set: `right`, `dim`, or `rest`, which takes the
    width that the others leave and is cut there. The others are never cut; a terminal too narrow for them wraps."""
    named = [c if isinstance(c, tuple) else (c, "") for c in columns]
    lines = [[clean(cell) for cell in row] for row in rows]
    widths = [max([cells(name), *(cells(row[i]) for row in lines)]) for i, (name, _) in enumerate(named)]
    terminal = sys.stdout.isatty()
    space = shutil.get_terminal_size().columns if terminal else WIDE
    for i, (_, how) in enumerate(named):
        if how == "rest":
            others = sum(widths) - widths[i] + 2 * (len(named) - 1)
            widths[i] = min(widths[i], max(16, space - others))

    def line(row: Sequence[str], style: Sequence[str]) -> str:
        out = []
        for text, width, (_, how), sgr in zip(row, widths, named, style, strict=True):
            shown = fit(text, width)
            pad = " " * (width - cells(shown))
            shown = f"\033[{sgr}m{shown}\033[0m" if terminal and sgr and shown else shown
            out.append(pad + shown if how == "right" else shown + pad)
        return "  ".join(out).rstrip() + "\n"

    sys.stdout.write(line([name for name, _ in named], ["1"] * len(named)))
    dim = ["2" if how == "dim" else "" for _, how in named]
    for row in lines:
        sys.stdout.write(line(row, dim))


def pairs(found: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    lines = [(n, v) for n, v in found if v]
    width = max((len(n) for n, _ in lines), default=0)
    for name, value in lines:
        first, *rest = value.splitlines() or [""]
        sys.stdout.write(f"{name:<{width}}  {clean(first)}\n")
        for line in rest:
            sys.stdout.write(f"{'':<{width}}  {clean(line)}\n")


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return ""


def value(v: Any, most: int = 60) -> str:
    """A decoded column value on one line."""
    match v:
        case None:
            return "NULL"
        case {"absent": True}:
            return "(not logged)"
        case {"bytes": n, "hex": shown}:
            return clean(f"0x{shown}" + ("…" if len(shown) < 2 * n else ""), most)
        case {"length": _, "text": text}:
            return clean(text, most)
        case bool() | int() | float():
            return str(v)
        case str():
            return clean(v, most)
        case _:
            return clean(json.dumps(v, ensure_ascii=False), most)


def counts(tables: Sequence[Mapping[str, Any]]) -> str:
    """What was done to each table: `shop.purchase +1 ~2 -3`."""
    out = []
    for t in tables:
        figures = [
            f"{sign}{t[name]}" for sign, name in (("+", "inserts"), ("~", "updates"), ("-", "deletes")) if t[name]
        ]
        out.append(f"{t['schema']}.{t['table']} {' '.join(figures)}")
    return ", ".join(out)


def change(c: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """A row before and after, as lines: the key, then what changed."""
    before, after = c["before"], c["after"]
    image = after if after is not None else before or {}
    keys = [col["name"] for col in columns if col["key"]]
    name = ", ".join(f"{k}={value((before or image).get(k))}" for k in keys if k in image)
    sign = {"insert": "+", "delete": "-", "update": "~"}[c["operation"]]
    yield f"{sign} {c['schema']}.{c['table']} {name}".rstrip() if "schema" in c else f"{sign} {name}".rstrip()
    for column in image:
        if column in keys and c["operation"] != "update":
            continue
        if c["operation"] == "update":
            if column in c["changed"]:
                yield f"    {column}: {value((before or {}).get(column))} → {value((after or {}).get(column))}"
        else:
            yield f"    {column}: {value(image[column])}"
