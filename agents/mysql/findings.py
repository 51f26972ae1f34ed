"""Rows that stop a rollback, as people are told of them: what was expected, and what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.rollback.schema import Definition
from streams.events import Problem


def named(definition: Definition, rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip((c.name for c in definition.columns), row, strict=True)) for row in rows]


def conflicts(definition: Definition, found: Sequence[tuple[Any, ...]], total: int) -> list[Problem]:
    """Problems for rows (expected columns, then found columns), the last one saying how many more there are."""
    width = len(definition.columns)
    out = []
    for row in found:
        (expected,), (there,) = named(definition, [row[:width]]), named(definition, [row[width:]])
        key = key_text(definition, expected)
        assert definition.key is not None
        if there[definition.key[1][0]] is None:
            text = f"{definition.text} {key} is not there; the plan expects {show(expected)}"
        else:
            names = [n for n in expected if expected[n] != there[n]] or list(expected)
            text = (
                f"{definition.text} {key} is not as the plan expects it: expected {show({n: expected[n] for n in names})},"
                f" found {show({n: there[n] for n in names})}"
            )
        out.append(Problem("conflict", text, "somebody wrote it since, or without the log: plan again"))
    if total > len(out):
        out.append(Problem("conflict", f"and {total - len(out)} more rows of {definition.text}"))
    return out


def orphan(definition: Definition, row: dict[str, Any], constraint: str) -> Problem:
    return Problem(
        "orphan", f"{definition.text} {key_text(definition, row)} would point at a row that is not there ({constraint})",
        "what it points at was removed since, or foreign keys were off when it was written: plan again",
    )  # fmt: skip


def key_text(definition: Definition, row: dict[str, Any]) -> str:
    names = definition.key[1] if definition.key else tuple(row)
    return "(" + ", ".join(f"{n}={_value(row[n])}" for n in names) + ")"


def show(row: dict[str, Any]) -> str:
    text = ", ".join(f"{n}={_value(v)}" for n, v in row.items())
    return text if len(text) <= 400 else text[:399] + "…"


def _value(value: Any) -> str:
    if value is None:
        return "NULL"
    text = f"x'{value.hex()}'" if isinstance(value, bytes) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
