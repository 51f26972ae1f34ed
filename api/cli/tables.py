"""Tables and rows for people. The library that draws them is loaded when something is drawn, never for `--json`.

What comes from a protected system is printed as text: it cannot style, link or move the cursor.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
WIDE = 140


def clean(text: object, most: int = 0) -> str:
    """One line without control characters, at most `most` characters."""
    line = _CONTROL.sub(" ", str(text))
    return line if not most or len(line) <= most else line[: most - 1] + "…"


def console() -> Any:
    """Where tables go. Into a file or pipe they are as wide as they need to be."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, soft_wrap=False)


def table(columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table. A column is its heading, or heading and how it is set: `right`, `fold`, `dim`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, title_style="bold")
    for column in columns:
        name, how = column if isinstance(column, tuple) else (column, "")
        made.add_column(
            name,
            justify="right" if how == "right" else "left",
            overflow="fold" if how == "fold" else "ellipsis",
            no_wrap=how != "fold",
            style="dim" if how == "dim" else None,
        )
    for row in rows:
        made.add_row(*(Text(clean(cell)) for cell in row))
    console().print(made)


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
