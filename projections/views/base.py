"""What every view has in common: the shape of its module, and how event values become column values.

A view is a module with the attributes of `View`. Its tables stand in `<name>.sql` beside it, with unqualified names
that are unique among all views: `projections.generations` creates them in a schema of their own, and whoever applies
or asks sets the search path. So the same functions serve the live view, a rebuild beside it, and later a moment of the
past.

Rules that the contract suite (tests/contract/test_views.py) holds every view to:
- rows come from events alone: no clock, no serial, no random value, no other view's tables, no Kafka offset;
- events of one partition come in their order, those of different partitions in any: the rows are the same;
- an event that comes a second time (same `ce_id`, another offset) changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, LiteralString, Protocol

import psycopg
from psycopg import sql

from streams.events import OrdinalRange, Problem

if TYPE_CHECKING:
    from streams.consume import Message

Cursor = psycopg.Cursor[Any]
Connection = psycopg.Connection[Any]


class View(Protocol):
    """The module of one view.

    `VERSION` goes up with every change of tables or of `apply` that changes rows; a view of another version is
    rebuilt, its tables are never altered. `TABLES` maps the tables that the digest covers to their primary keys, in
    key order; `UNDIGESTED` names those that only `health` feeds. `TOPICS` are names of `streams.topics`.
    """

    NAME: str
    VERSION: int
    TABLES: Mapping[str, tuple[str, ...]]
    UNDIGESTED: tuple[str, ...]
    TOPICS: tuple[str, ...]

    @staticmethod
    def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
        """Bring the rows up to date with `messages` (ascending offsets within a partition) in the caller's
        transaction."""


def text(value: str) -> str:
    """PostgreSQL's text holds every character but NUL, which becomes U+FFFD rather than stopping the view."""
    return value.replace("\0", "�")


def canonical(value: Any) -> str:
    """JSON as stored: sorted keys, no spaces, so that equal values are equal bytes. NUL comes as JSON's own escape."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def dump_problems(problems: Iterable[Problem]) -> str:
    return canonical([[p.code, p.message, p.hint] for p in problems])


def load_problems(stored: str) -> tuple[Problem, ...]:
    return tuple(Problem(*p) for p in json.loads(stored))


def dump_ranges(ranges: Iterable[OrdinalRange]) -> str:
    return canonical([[r.first, r.last] for r in ranges])


def load_ranges(stored: str) -> tuple[OrdinalRange, ...]:
    return tuple(OrdinalRange(*r) for r in json.loads(stored))


def event_id(message: Message) -> str:
    """The record's CloudEvents id; a record without one is named by its place in its writer's chain."""
    return text(message.id) or f"{message.stamp.writer}/{message.stamp.sequence}"


def clock(message: Message) -> int:
    """The record's hybrid logical clock, as PostgreSQL's bigint can hold it (the clock uses 63 bits)."""
    return message.hlc & 0x7FFF_FFFF_FFFF_FFFF


def insert(table: str, columns: str) -> str:
    """`INSERT` of one row of these columns (names, with commas in between) that does nothing where it is there already."""
    places = ", ".join(["%s"] * (columns.count(",") + 1))
    return f"INSERT INTO {table} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING"


_EVER = 0x7FFF_FFFF_FFFF_FFFF


def moment(as_of_us: int | None) -> int:
    """The last hybrid clock of that moment; of now without one."""
    return _EVER if as_of_us is None else min(_EVER, ((as_of_us // 1000 + 1) << 16) - 1)


def where(*conditions: tuple[LiteralString, Any]) -> tuple[sql.Composable, list[Any]]:
    """`WHERE a AND b …` of those conditions whose value is not None, and the values (a tuple fills several places).

    Composed rather than `%s IS NULL OR …`, so that PostgreSQL plans with the conditions that are there.
    """
    parts = [sql.SQL("true")]
    values: list[Any] = []
    for fragment, value in conditions:
        if value is None:
            continue
        parts.append(sql.SQL(fragment))
        values.extend(value if isinstance(value, tuple) else (value,))
    return sql.SQL("WHERE {}").format(sql.SQL(" AND ").join(parts)), values
