"""Decoded rows in JSON, for people: bounded in size, exact where JSON is, text where it is not. Pure.

Integers beyond 2^53 and decimals are text, since many a reader of JSON would round them. Bytes are `{"bytes": n,
"hex": …}`, long text `{"length": n, "text": …}` with its beginning, a value that the row image lacks `{"absent":
true}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from streams.formats.binlog import table_map as t
from streams.formats.binlog.step import Change
from streams.formats.binlog.table_map import Column
from streams.formats.binlog.values import (
    Absent,
    EnumValue,
    JsonBinary,
    SetValue,
    Undecoded,
    Value,
    display,
    shortest_single,
)

LONG_TEXT = 4_000
LONG_BYTES = 256
_EXACT = 1 << 53


def value(v: Value, column: Column) -> Any:
    """One column's value."""
    match v:
        case None | bool():
            return v
        case int() if column.type == t.BIT:
            return display(v, column)
        case int():
            return v if -_EXACT <= v <= _EXACT else str(v)
        case float():
            if v != v or v in (float("inf"), float("-inf")):
                return str(v)
            return float(shortest_single(v)) if column.type == t.FLOAT else v
        case str():
            return _text(v)
        case Absent():
            return {"absent": True}
        case bytes() if (column.declared or "") in ("uuid", "inet4", "inet6"):
            return display(v, column)
        case bytes():
            return _bytes(v)
        case Undecoded():
            shown = display(v, column)
            return _bytes(v.raw) if shown.startswith("0x") else _text(shown)
        case JsonBinary():
            return _text(display(v, column))
        case EnumValue() | SetValue():
            return display(v, column)
        case _:
            return display(v, column)


def _text(text: str) -> Any:
    return text if len(text) <= LONG_TEXT else {"length": len(text), "text": text[:LONG_TEXT]}


def _bytes(raw: bytes) -> dict[str, Any]:
    return {"bytes": len(raw), "hex": raw[:LONG_BYTES].hex()}


def row(values: tuple[Value, ...] | None, columns: tuple[Column, ...]) -> dict[str, Any] | None:
    """A row image by column; null for none."""
    if values is None:
        return None
    return {c.label: value(v, c) for c, v in zip(columns, values, strict=True)}


def changed(change: Change) -> list[str]:
    """Columns whose value an update changed; those of an insert or delete all did."""
    if change.before is None or change.after is None:
        return [c.label for c in change.columns]
    pairs = zip(change.columns, change.before, change.after, strict=True)
    return [c.label for c, b, a in pairs if b != a and not (isinstance(b, Absent) or isinstance(a, Absent))]


def columns(change: Change) -> list[dict[str, Any]]:
    key = change.primary_key or ()
    return [{"name": c.label, "type": c.type_name, "key": c.index in key} for c in change.columns]


class Tables:
    """The columns of the tables that occur among some changes, each once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def add(self, change: Change) -> None:
        if (change.schema, change.table) not in self._found:
            self._found[change.schema, change.table] = columns(change)

    def of(self, schema: str, table: str) -> list[dict[str, Any]]:
        return self._found.get((schema, table), [])

    def listed(self) -> list[dict[str, Any]]:
        return [{"schema": s, "table": n, "columns": c} for (s, n), c in self._found.items()]


def change_json(change: Change) -> dict[str, Any]:
    """A row as it was changed."""
    return {
        "schema": change.schema,
        "table": change.table,
        "operation": change.kind,
        "before": row(change.before, change.columns),
        "after": row(change.after, change.columns),
        "changed": changed(change),
    }


def counted(tables: Mapping[tuple[str, str], Iterable[int]]) -> list[dict[str, Any]]:
    """Rows by table, as a step shows them."""
    out = []
    for (schema, table), figures in tables.items():
        inserts, updates, deletes = figures
        out.append({"schema": schema, "table": table, "inserts": inserts, "updates": updates, "deletes": deletes})
    return out
