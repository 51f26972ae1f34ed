"""The catalogue: which sources there are, how they are defined, what state they are in, which lineages they had.

A source's events share a key, so they come in order and the last one counts; only a change by an agent of a lower
epoch of the same lineage (a zombie's) does not. Knows nothing of steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import kwargs_row

from projections.views.base import (
    Connection,
    Cursor,
    canonical,
    clock,
    dump_problems,
    event_id,
    load_problems,
    moment,
    text,
)
from streams.events import Problem, SourceChanged, SourceDefined

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "catalogue"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {
    "source": ("source",),
    "source_event": ("source", "event"),
    "lineage": ("source", "lineage"),
}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("inventory",)


@dataclass(frozen=True, slots=True)
class Source:
    """A source. `state` is `defined` until an agent says otherwise (then `streams.events.inventory.SourceState`);
    `problems` are those of the last change. `secrets` are references. `position` and `ordinal` are those of the last
    change, not of the head."""

    source: str
    kind: str
    host: str
    port: int
    tls: str
    tls_ca: str
    accounts: Mapping[str, str]
    secrets: Mapping[str, str]
    options: Mapping[str, str]
    defined_us: int
    defined_by: str
    state: str
    state_us: int
    state_by: str
    lineage: str | None
    epoch: int
    server_version: str
    capability: tuple[str, ...]
    position: str
    ordinal: int
    baseline: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """One change of a source; `state` is `defined` for a definition."""

    source: str
    event: str
    hlc: int
    at_us: int
    state: str
    by: str
    lineage: str | None
    epoch: int
    position: str
    ordinal: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """A lineage that a source's changes named; `first_us` and `last_us` are times of the first and last such change."""

    source: str
    lineage: str
    epoch: int
    first_us: int
    last_us: int
    baseline: str


# --- apply ----------------------------------------------------------------------------------------------------------

_DEFINED = """
WITH new AS (
    INSERT INTO source_event (source, event, hlc, at_us, state, by, lineage, epoch, position, ordinal, problems)
    VALUES (%(source)s, %(event)s, %(hlc)s, %(at_us)s, 'defined', %(by)s, %(lineage)s, %(epoch)s, '', 0, '[]')
    ON CONFLICT DO NOTHING RETURNING source, at_us, by
)
INSERT INTO source AS s (source, kind, host, port, tls, tls_ca, accounts, secrets, options, defined_us, defined_by,
                         state_us, state_by)
SELECT source, %(kind)s::text, %(host)s::text, %(port)s::bigint, %(tls)s::text, %(tls_ca)s::text, %(accounts)s::text,
       %(secrets)s::text, %(options)s::text, at_us, by, at_us, by
FROM new
ON CONFLICT (source) DO UPDATE SET
    kind = excluded.kind, host = excluded.host, port = excluded.port, tls = excluded.tls, tls_ca = excluded.tls_ca,
    accounts = excluded.accounts, secrets = excluded.secrets, options = excluded.options,
    defined_us = excluded.defined_us, defined_by = excluded.defined_by,
    state = CASE s.state WHEN 'removed' THEN 'defined' ELSE s.state END,
    state_us = CASE s.state WHEN 'removed' THEN excluded.state_us ELSE s.state_us END,
    state_by = CASE s.state WHEN 'removed' THEN excluded.state_by ELSE s.state_by END,
    problems = CASE s.state WHEN 'removed' THEN '[]' ELSE s.problems END
"""

_CHANGED = """
WITH new AS (
    INSERT INTO source_event (source, event, hlc, at_us, state, by, lineage, epoch, position, ordinal, problems)
    VALUES (%(source)s, %(event)s, %(hlc)s, %(at_us)s, %(state)s, %(by)s, %(lineage)s, %(epoch)s, %(position)s,
            %(ordinal)s, %(problems)s)
    ON CONFLICT DO NOTHING RETURNING *
), seen AS (
    INSERT INTO lineage AS l (source, lineage, epoch, first_us, last_us, baseline)
    SELECT source, lineage, epoch, at_us, at_us, %(baseline)s::text FROM new WHERE lineage IS NOT NULL
    ON CONFLICT (source, lineage) DO UPDATE SET
        epoch = greatest(l.epoch, excluded.epoch),
        first_us = least(l.first_us, excluded.first_us), last_us = greatest(l.last_us, excluded.last_us),
        baseline = CASE excluded.baseline WHEN '' THEN l.baseline ELSE excluded.baseline END
)
INSERT INTO source AS s (source, state, state_us, state_by, lineage, epoch, server_version, capability, position,
                         ordinal, baseline, problems)
SELECT source, state, at_us, by, lineage, epoch, %(server_version)s::text, %(capability)s::text, position, ordinal,
       %(baseline)s::text, problems
FROM new
ON CONFLICT (source) DO UPDATE SET
    state = excluded.state, state_us = excluded.state_us, state_by = excluded.state_by,
    lineage = coalesce(excluded.lineage, s.lineage),
    epoch = CASE WHEN excluded.lineage IS NULL THEN s.epoch
                 WHEN excluded.lineage = s.lineage THEN greatest(s.epoch, excluded.epoch)
                 ELSE excluded.epoch END,
    server_version = CASE excluded.server_version WHEN '' THEN s.server_version ELSE excluded.server_version END,
    capability = CASE excluded.capability WHEN '[]' THEN s.capability ELSE excluded.capability END,
    position = CASE excluded.position WHEN '' THEN s.position ELSE excluded.position END,
    ordinal = CASE excluded.position WHEN '' THEN s.ordinal ELSE excluded.ordinal END,
    baseline = CASE excluded.baseline WHEN '' THEN s.baseline ELSE excluded.baseline END,
    problems = excluded.problems
WHERE NOT (excluded.lineage IS NOT DISTINCT FROM s.lineage AND excluded.epoch BETWEEN 1 AND s.epoch - 1)
"""


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Definitions and changes of sources; other events of `inventory` are another view's."""
    for message in messages:
        match message.event:
            case SourceDefined() as event:
                cursor.execute(_DEFINED, _defined(event, message))
            case SourceChanged() as event:
                cursor.execute(_CHANGED, _changed(event, message))


def _defined(event: SourceDefined, message: Message) -> dict[str, Any]:
    return {
        "source": event.source,
        "event": event_id(message),
        "hlc": clock(message),
        "at_us": event.defined_us,
        "by": text(event.by),
        "lineage": event.lineage,
        "epoch": event.epoch,
        "kind": text(event.kind),
        "host": text(event.host),
        "port": event.port,
        "tls": text(event.tls),
        "tls_ca": text(event.tls_ca),
        "accounts": canonical(dict(event.accounts)),
        "secrets": canonical(dict(event.secrets)),
        "options": canonical(dict(event.options)),
    }


def _changed(event: SourceChanged, message: Message) -> dict[str, Any]:
    return {
        "source": event.source,
        "event": event_id(message),
        "hlc": clock(message),
        "at_us": event.at_us,
        "state": text(event.state),
        "by": text(event.by),
        "lineage": event.lineage,
        "epoch": event.epoch,
        "position": text(event.position),
        "ordinal": event.ordinal,
        "server_version": text(event.server_version),
        "capability": canonical(list(event.capability)),
        "baseline": text(event.baseline),
        "problems": dump_problems(event.problems),
    }


# --- queries --------------------------------------------------------------------------------------------------------


def _source(**row: Any) -> Source:
    for name in ("accounts", "secrets", "options"):
        row[name] = json.loads(row[name])
    return Source(
        **row | {"capability": tuple(json.loads(row["capability"])), "problems": load_problems(row["problems"])}
    )


def _source_event(**row: Any) -> SourceEvent:
    return SourceEvent(**row | {"problems": load_problems(row["problems"])})


def source(conn: Connection, name: str) -> Source | None:
    """One source, removed ones too."""
    with conn.cursor(row_factory=kwargs_row(_source)) as cur:
        return cur.execute("SELECT * FROM source WHERE source = %s", (name,)).fetchone()


def sources(conn: Connection, *, removed: bool = False) -> list[Source]:
    """All sources by name; removed ones only when asked for."""
    with conn.cursor(row_factory=kwargs_row(_source)) as cur:
        cur.execute("SELECT * FROM source WHERE %s OR state <> 'removed' ORDER BY source", (removed,))
        return cur.fetchall()


def history(conn: Connection, name: str, limit: int = 100) -> list[SourceEvent]:
    """A source's changes, newest first."""
    with conn.cursor(row_factory=kwargs_row(_source_event)) as cur:
        cur.execute(
            "SELECT * FROM source_event WHERE source = %s ORDER BY hlc DESC, event DESC LIMIT %s", (name, limit)
        )
        return cur.fetchall()


def standing(conn: Connection, *, as_of_us: int | None = None) -> list[SourceEvent]:
    """The last change of every source as of a moment, by name; of those that were not removed then."""
    with conn.cursor(row_factory=kwargs_row(_source_event)) as cur:
        cur.execute(
            """
            SELECT * FROM (
                SELECT DISTINCT ON (source) * FROM source_event WHERE hlc <= %s ORDER BY source, hlc DESC, event DESC
            ) e WHERE state <> 'removed' ORDER BY source
            """,
            (moment(as_of_us),),
        )
        return cur.fetchall()


def lineages(conn: Connection, name: str) -> list[Lineage]:
    """The lineages a source had, newest first."""
    with conn.cursor(row_factory=kwargs_row(Lineage)) as cur:
        cur.execute("SELECT * FROM lineage WHERE source = %s ORDER BY first_us DESC, lineage DESC", (name,))
        return cur.fetchall()
