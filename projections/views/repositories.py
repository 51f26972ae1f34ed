"""Repositories: their definitions, sessions, points with their marks, collections and checks.

A repository's events share a key and stand in one partition, so their order is the log's. What was said is kept, not only what
counts now: `as_of_us` asks how it was at a moment, which is everything whose hybrid clock is not later, a prefix of what the
moment's own events could know. What counts is what the repository's ledger lets count where it stands; the rest is kept and not
shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import kwargs_row

from projections.protection import Kept
from projections.views.base import (
    Connection,
    Cursor,
    canonical,
    clock,
    dump_problems,
    event_id,
    insert,
    load_problems,
    moment,
    text,
    where,
)
from streams.events import (
    CollectionChanged,
    Event,
    PointDropped,
    PointMarked,
    PointSealed,
    Problem,
    RepositoryChecked,
    RepositoryDefined,
    SessionClosed,
    SessionFenced,
    SessionOpened,
)
from streams.events.repository import NOT_CHOSEN

if TYPE_CHECKING:
    from streams.consume import Message

NAME = "repositories"
VERSION = 1
TABLES: Mapping[str, tuple[str, ...]] = {
    "repository_definition": ("repository", "event"),
    "repository_session": ("session",),
    "point": ("point", "repository"),
    "point_drop": ("repository", "point", "event"),
    "point_mark": ("repository", "point", "event"),
    "collection_change": ("repository", "collection", "event"),
    "repository_check": ("repository", "event"),
}
UNDIGESTED: tuple[str, ...] = ()
TOPICS = ("repository",)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as last defined (`streams.events.repository.RepositoryDefined`); `first_us` is when it first was.
    `secrets` are references."""

    repository: str
    identity: str
    state: str
    store: str
    location: str
    node: str
    encrypted: bool
    options: Mapping[str, str]
    secrets: Mapping[str, str]
    retention: str
    protected_from: tuple[str, ...]
    defined_us: int
    by: str
    first_us: int


@dataclass(frozen=True, slots=True)
class Session:
    """A session; `state` is open, closed or fenced. What ended it comes with it."""

    session: str
    repository: str
    kind: str
    node: str
    asset: str
    job: str
    opened_us: int
    by: str
    state: str
    ended_us: int | None
    outcome: str
    figures: Mapping[str, int]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as last said."""

    collection: str
    session: str
    state: str
    packs: int
    points: int
    freed_bytes: int
    figures: Mapping[str, int]
    problems: tuple[Problem, ...]
    at_us: int
    by: str


@dataclass(frozen=True, slots=True)
class Check:
    """The newest check of its kind: verify, watch, key-drill, store."""

    what: str
    mode: str
    figures: Mapping[str, int]
    problems: tuple[Problem, ...]
    at_us: int
    by: str


@dataclass(frozen=True, slots=True)
class Holding:
    """What a repository holds: points that were sealed and not dropped; `stored_bytes`: packs as the last adoption or collection
    found them, and what points said they stored since; who works in it; the newest collection and checks."""

    points: int
    assets: int
    stored_bytes: int
    newest_us: int | None
    sessions: tuple[Session, ...]
    collection: Collection | None
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A restore point. `disks` are `{disk, name, size, block_size, root, changed, omitted, lost}`, roots in hex.
    `dropped_us` and what follows say that and why it was given up."""

    point: str
    repository: str
    session: str
    asset: str
    asset_name: str
    kind: str
    continues: str
    created_us: int
    sealed_us: int
    by: str
    disks: tuple[Mapping[str, Any], ...]
    files_root: str
    record: str
    size_bytes: int
    stored_bytes: int
    figures: Mapping[str, int]
    facts: Mapping[str, str]
    adopted: bool
    dropped_us: int | None
    dropped_by: str
    reason: str


@dataclass(frozen=True, slots=True)
class PointMark:
    """A mark that was once set (`streams.events.repository.PointMarked`)."""

    point: str
    mark: str
    number: int
    name: str
    note: str
    until_us: int | None
    marked_us: int
    by: str


# --- apply ----------------------------------------------------------------------------------------------------------

# Whether an event counts follows from what stands before it, as `agents.repository.ledger` (which this room may not ask) has it:
# both are held to one another by tests/e2e/test_repository_life.py.
_OPENED = """
INSERT INTO repository_session (session, repository, kind, node, asset, job, opened_us, opened_hlc, by, state, ended_us,
                                ended_hlc, outcome, figures, problems)
SELECT %(session)s::text, %(repository)s::text, %(kind)s::text, %(node)s::text, %(asset)s::text, %(job)s::text,
       %(opened_us)s::bigint, %(hlc)s::bigint, %(by)s::text,
       CASE WHEN why = '' THEN 'open' ELSE 'refused' END, CASE WHEN why <> '' THEN %(opened_us)s::bigint END,
       CASE WHEN why <> '' THEN %(hlc)s::bigint END, why, '{}', '[]'
FROM (SELECT CASE
    WHEN EXISTS (SELECT FROM unnest(%(pins)s::text[]) AS pin WHERE NOT EXISTS (
        SELECT FROM point WHERE point = pin AND repository = %(repository)s AND counts = 1 AND dropped_hlc IS NULL))
    THEN 'a point does not stand any more'
    WHEN %(kind)s = 'collect' AND EXISTS (
        SELECT FROM repository_session
        WHERE repository = %(repository)s AND kind = 'collect' AND ended_hlc IS NULL)
    THEN 'another session collects'
    ELSE '' END AS why) AS asked
ON CONFLICT DO NOTHING
"""
_ENDED = """
UPDATE repository_session SET state = %s, ended_us = %s, ended_hlc = %s, outcome = %s, figures = %s, problems = %s
WHERE session = %s AND repository = %s AND ended_hlc IS NULL
"""
# A point that was said to be sealed, and not so in time, may be sealed again.
_SEALED = """
INSERT INTO point AS p (point, repository, counts, session, asset, asset_name, kind, continues, created_us, sealed_us,
                        sealed_hlc, by, disks, files_root, record, size_bytes, stored_bytes, figures, facts, adopted,
                        dropped_us, dropped_hlc, dropped_by, reason)
VALUES (%(point)s, %(repository)s,
        (SELECT count(*) FROM repository_session WHERE session = %(session)s AND repository = %(repository)s
                                                       AND kind IN ('backup', 'adopt') AND ended_hlc IS NULL),
        %(session)s, %(asset)s, %(asset_name)s, %(kind)s, %(continues)s, %(created_us)s, %(sealed_us)s, %(hlc)s,
        %(by)s, %(disks)s, %(files_root)s, %(record)s, %(size_bytes)s, %(stored_bytes)s, %(figures)s, %(facts)s,
        %(adopted)s, NULL, NULL, '', '')
ON CONFLICT (point, repository) DO UPDATE SET
    counts = 1, session = excluded.session, asset = excluded.asset, asset_name = excluded.asset_name,
    kind = excluded.kind, continues = excluded.continues, created_us = excluded.created_us,
    sealed_us = excluded.sealed_us, sealed_hlc = excluded.sealed_hlc, by = excluded.by, disks = excluded.disks,
    files_root = excluded.files_root, record = excluded.record, size_bytes = excluded.size_bytes,
    stored_bytes = excluded.stored_bytes, figures = excluded.figures, facts = excluded.facts,
    adopted = excluded.adopted
WHERE p.counts = 0 AND excluded.counts = 1
"""
_STANDS = """EXISTS (SELECT FROM point WHERE point = %(point)s AND repository = %(repository)s AND counts = 1
                               AND dropped_hlc IS NULL)"""
_MARKED = f"""
INSERT INTO point_mark (repository, point, event, hlc, counts, mark, number, name, note, until_us, marked_us, by)
VALUES (%(repository)s, %(point)s, %(event)s, %(hlc)s, {_STANDS}::int, %(mark)s, %(number)s, %(name)s, %(note)s,
        %(until_us)s, %(marked_us)s, %(by)s)
ON CONFLICT DO NOTHING
"""
_DROPPED = f"""
WITH said AS (
    SELECT DISTINCT ON (mark IN ('star', 'unstar'), name) mark, until_us FROM point_mark
    WHERE point = %(point)s AND repository = %(repository)s AND counts = 1
        AND mark IN ('star', 'unstar', 'hold', 'release')
    ORDER BY mark IN ('star', 'unstar'), name, hlc DESC, event DESC
), new AS (
    INSERT INTO point_drop (repository, point, event, hlc, counts, reason, early, agreed_by, dropped_us, by)
    VALUES (%(repository)s, %(point)s, %(event)s, %(hlc)s, ({_STANDS} AND NOT EXISTS (
        SELECT FROM said WHERE mark = 'star' OR mark = 'hold' AND coalesce(until_us > %(dropped_us)s, true)))::int,
        %(reason)s, %(early)s, %(agreed_by)s, %(dropped_us)s, %(by)s)
    ON CONFLICT DO NOTHING RETURNING *
)
UPDATE point SET dropped_us = new.dropped_us, dropped_hlc = new.hlc, dropped_by = new.by, reason = new.reason
FROM new WHERE point.repository = new.repository AND point.point = new.point AND new.counts = 1
"""
_DEFINED = insert(
    "repository_definition",
    "repository, event, hlc, identity, state, store, location, node, encrypted, options, secrets, retention,"
    " protected_from, defined_us, by",
)
_COLLECTION = insert(
    "collection_change",
    "repository, collection, event, hlc, session, state, marked, plan, digest, packs, points, freed_bytes, figures,"
    " problems, at_us, by",
)
_CHECKED = insert("repository_check", "repository, event, hlc, session, what, mode, figures, problems, at_us, by")


def apply(cursor: Cursor, messages: Sequence[Message]) -> None:
    """Everything in `repository` but ticks, which say only that time passes."""
    for message in messages:
        hlc, event = clock(message), event_id(message)
        values: tuple[Any, ...]
        match message.event:
            case RepositoryDefined() as e:
                values = (text(e.repository), event, hlc, text(e.identity), text(e.state), text(e.store))
                values += (text(e.location), text(e.node), int(e.encrypted), canonical(dict(e.options)))
                values += (canonical(dict(e.secrets)), text(e.retention), canonical(list(e.protected_from)))
                cursor.execute(_DEFINED, (*values, e.defined_us, text(e.by)))
            case SessionOpened() as e:
                cursor.execute(
                    _OPENED,
                    _texts(e, "session", "repository", "kind", "node", "asset", "job", "by")
                    | {"opened_us": e.opened_us, "hlc": hlc, "pins": [text(pin) for pin in e.pins]},
                )
            case SessionClosed() as e:
                values = ("closed", e.closed_us, hlc, text(e.outcome), canonical(dict(e.figures)))
                cursor.execute(_ENDED, (*values, dump_problems(e.problems), text(e.session), text(e.repository)))
            case SessionFenced() as e:
                values = ("fenced", e.fenced_us, hlc, text(e.reason), "{}", "[]")
                cursor.execute(_ENDED, (*values, text(e.session), text(e.repository)))
            case PointSealed() as e:
                cursor.execute(_SEALED, _sealed(e) | {"hlc": hlc})
            case PointDropped() as e:
                cursor.execute(
                    _DROPPED,
                    _texts(e, "repository", "point", "reason", "agreed_by", "by")
                    | {"event": event, "hlc": hlc, "early": int(e.early), "dropped_us": e.dropped_us},
                )
            case PointMarked() as e:
                cursor.execute(
                    _MARKED,
                    _texts(e, "repository", "point", "mark", "name", "note", "by")
                    | {
                        "event": event,
                        "hlc": hlc,
                        "number": e.number,
                        "until_us": e.until_us,
                        "marked_us": e.marked_us,
                    },
                )
            case CollectionChanged() as e:
                values = (text(e.repository), text(e.collection), event, hlc, text(e.session), text(e.state))
                values += (e.marked, text(e.plan), e.digest.hex(), e.packs, e.points, e.freed_bytes)
                values += (canonical(dict(e.figures)), dump_problems(e.problems), e.at_us, text(e.by))
                cursor.execute(_COLLECTION, values)
            case RepositoryChecked() as e:
                values = (text(e.repository), event, hlc, text(e.session), text(e.what), text(e.mode))
                values += (canonical(dict(e.figures)), dump_problems(e.problems), e.checked_us, text(e.by))
                cursor.execute(_CHECKED, values)


def _texts(event: Event, *names: str) -> dict[str, Any]:
    return {name: text(getattr(event, name)) for name in names}


def _sealed(e: PointSealed) -> dict[str, Any]:
    disks = [
        {
            "disk": text(d.disk),
            "name": text(d.name),
            "size": d.size,
            "block_size": d.block_size,
            "root": d.root.hex(),
            "changed": d.changed,
            "omitted": d.omitted,
            "lost": d.lost,
        }
        for d in e.disks
    ]
    return {
        **{
            n: text(getattr(e, n))
            for n in ("point", "repository", "session", "asset", "asset_name", "kind", "continues")
        },
        "created_us": e.created_us,
        "sealed_us": e.sealed_us,
        "by": text(e.by),
        "disks": canonical(disks),
        "files_root": e.files_root.hex(),
        "record": e.record.hex(),
        "size_bytes": sum(d.size for d in e.disks) or e.figures.get("size_bytes", 0),
        "stored_bytes": e.figures.get("stored_bytes", 0),
        "figures": canonical(dict(e.figures)),
        "facts": canonical(dict(e.facts)),
        "adopted": int(e.adopted),
    }


# --- queries --------------------------------------------------------------------------------------------------------


_DEFINITIONS = """
SELECT * FROM (
    SELECT DISTINCT ON (repository) *, min(defined_us) OVER (PARTITION BY repository) AS first_us
    FROM repository_definition WHERE hlc <= %s ORDER BY repository, hlc DESC, event DESC
) d
"""


def _repository(**row: Any) -> Repository:
    del row["event"], row["hlc"]
    row |= {name: json.loads(row[name]) for name in ("options", "secrets", "protected_from")}
    return Repository(
        **row | {"encrypted": bool(row["encrypted"]), "protected_from": tuple(row["protected_from"])},
    )


def repository(conn: Connection, name: str, *, as_of_us: int | None = None) -> Repository | None:
    """One repository; None for one that was removed or never was."""
    with conn.cursor(row_factory=kwargs_row(_repository)) as cur:
        query = _DEFINITIONS + " WHERE repository = %s AND state <> 'removed'"
        return cur.execute(query, (moment(as_of_us), name)).fetchone()


def repositories(conn: Connection, *, as_of_us: int | None = None) -> list[Repository]:
    """All repositories by name."""
    with conn.cursor(row_factory=kwargs_row(_repository)) as cur:
        query = _DEFINITIONS + " WHERE state <> 'removed' ORDER BY repository"
        return cur.execute(query, (moment(as_of_us),)).fetchall()


_HOLDING = """
SELECT count(*) AS points, count(DISTINCT asset) AS assets, max(created_us) AS newest_us
FROM point WHERE repository = %(repository)s AND counts = 1 AND sealed_hlc <= %(until)s
    AND (dropped_hlc IS NULL OR dropped_hlc > %(until)s)
"""
# Adoptions and collections have listed the packs and said how many bytes they are; points say what each added.
_STORED = """
WITH base AS (
    SELECT hlc, bytes FROM (
        SELECT ended_hlc AS hlc, (figures::jsonb ->> 'packs_bytes')::bigint AS bytes FROM repository_session
        WHERE repository = %(repository)s AND kind = 'adopt' AND ended_hlc <= %(until)s
        UNION ALL
        SELECT hlc, (figures::jsonb ->> 'packs_bytes')::bigint FROM collection_change
        WHERE repository = %(repository)s AND state = 'done' AND hlc <= %(until)s
    ) said WHERE bytes IS NOT NULL ORDER BY hlc DESC LIMIT 1
)
SELECT coalesce((SELECT bytes FROM base), 0)
     + (SELECT coalesce(sum(stored_bytes), 0) FROM point
        WHERE repository = %(repository)s AND counts = 1 AND sealed_hlc <= %(until)s
            AND sealed_hlc > coalesce((SELECT hlc FROM base), 0))
     - (SELECT coalesce(sum(freed_bytes), 0) FROM collection_change
        WHERE repository = %(repository)s AND state = 'done' AND hlc <= %(until)s
            AND hlc > coalesce((SELECT hlc FROM base), 0))
"""


def holding(conn: Connection, name: str, *, as_of_us: int | None = None) -> Holding:
    """What it holds and who works in it."""
    given = {"repository": name, "until": moment(as_of_us)}
    with conn.cursor() as cur:
        points, assets, newest = cur.execute(_HOLDING, given).fetchone() or (0, 0, None)
        stored = (cur.execute(_STORED, given).fetchone() or (0,))[0]
    with conn.cursor(row_factory=kwargs_row(_collection)) as cur:
        cur.execute(
            """
            SELECT collection, session, state, packs, points, freed_bytes, figures, problems, at_us, by
            FROM collection_change WHERE repository = %(repository)s AND hlc <= %(until)s
            ORDER BY hlc DESC, event DESC LIMIT 1
            """,
            given,
        )
        collection = cur.fetchone()
    return Holding(
        points, assets, max(0, int(stored)), newest, tuple(_open(conn, given)), collection, tuple(_checks(conn, given))
    )


def _open(conn: Connection, given: Mapping[str, Any]) -> list[Session]:
    with conn.cursor(row_factory=kwargs_row(_session)) as cur:
        cur.execute(
            """
            SELECT * FROM repository_session WHERE repository = %(repository)s AND opened_hlc <= %(until)s
                AND (ended_hlc IS NULL OR ended_hlc > %(until)s) ORDER BY opened_hlc
            """,
            given,
        )
        return cur.fetchall()


def _checks(conn: Connection, given: Mapping[str, Any]) -> list[Check]:
    with conn.cursor(row_factory=kwargs_row(_check)) as cur:
        cur.execute(
            """
            SELECT DISTINCT ON (what) what, mode, figures, problems, at_us, by FROM repository_check
            WHERE repository = %(repository)s AND hlc <= %(until)s ORDER BY what, hlc DESC, event DESC
            """,
            given,
        )
        return cur.fetchall()


def _session(**row: Any) -> Session:
    del row["opened_hlc"], row["ended_hlc"]
    return Session(**row | {"figures": json.loads(row["figures"]), "problems": load_problems(row["problems"])})


def _collection(**row: Any) -> Collection:
    return Collection(**row | {"figures": json.loads(row["figures"]), "problems": load_problems(row["problems"])})


def _check(**row: Any) -> Check:
    return Check(**row | {"figures": json.loads(row["figures"]), "problems": load_problems(row["problems"])})


def _point(**row: Any) -> Point:
    del row["counts"], row["sealed_hlc"], row["dropped_hlc"]
    row |= {name: json.loads(row[name]) for name in ("disks", "figures", "facts")}
    return Point(**row | {"disks": tuple(row["disks"]), "adopted": bool(row["adopted"])})


def point(conn: Connection, name: str) -> Point | None:
    """One point, dropped ones too."""
    with conn.cursor(row_factory=kwargs_row(_point)) as cur:
        query = "SELECT * FROM point WHERE point = %s AND counts = 1 ORDER BY repository LIMIT 1"
        return cur.execute(query, (name,)).fetchone()


# A repository that is not used any more shows no points; they are back when it is adopted.
_NOT_REMOVED = """repository NOT IN (
    SELECT repository FROM (
        SELECT DISTINCT ON (repository) repository, state FROM repository_definition
        WHERE hlc <= %s ORDER BY repository, hlc DESC, event DESC
    ) d WHERE state = 'removed'
)"""


def points(
    conn: Connection,
    *,
    repository: str | None = None,
    asset: str | None = None,
    dropped: bool = False,
    as_of_us: int | None = None,
    before: tuple[int, str] | None = None,
    limit: int = 100,
) -> list[Point]:
    """Newest first; those that were dropped only when asked for. `before` is `(created_us, point)` of the last one of the
    page before."""
    until = moment(as_of_us)
    condition, values = where(
        ("counts = %s", 1),
        ("repository = %s", repository),
        ("asset = %s", asset),
        ("sealed_hlc <= %s", None if as_of_us is None else until),
        ("(dropped_hlc IS NULL OR dropped_hlc > %s)", None if dropped else until),
        ("(created_us, point) < (%s, %s)", before),
        (_NOT_REMOVED, until),
    )
    query = sql.SQL("SELECT * FROM point {} ORDER BY created_us DESC, point DESC LIMIT %s").format(condition)
    with conn.cursor(row_factory=kwargs_row(_point)) as cur:
        return cur.execute(query, [*values, limit]).fetchall()


def newest_points(conn: Connection, assets: Iterable[str], *, as_of_us: int | None = None) -> dict[str, Point]:
    """The newest point of each of these machines, wherever it is kept."""
    with conn.cursor(row_factory=kwargs_row(_point)) as cur:
        cur.execute(
            """
            SELECT DISTINCT ON (asset) * FROM point
            WHERE asset = ANY(%(assets)s) AND kind = 'disks' AND counts = 1 AND sealed_hlc <= %(until)s
                AND (dropped_hlc IS NULL OR dropped_hlc > %(until)s)
            ORDER BY asset, created_us DESC, point DESC
            """,
            {"assets": list(assets), "until": moment(as_of_us)},
        )
        return {row.asset: row for row in cur}


_KEPT = """
WITH standing AS (
    SELECT p.asset, p.repository, p.created_us, said.mark AS said, said.note, EXISTS (
        SELECT FROM repository_check c JOIN repository_session s ON s.session = c.session
        WHERE c.repository = p.repository AND c.what = 'verify' AND c.mode = 'sampled' AND c.hlc <= %(until)s
            AND p.sealed_hlc < s.opened_hlc
    ) AS sampled
    FROM point p LEFT JOIN LATERAL (
        SELECT m.mark, m.note FROM point_mark m
        WHERE m.repository = p.repository AND m.point = p.point AND m.counts = 1 AND m.hlc <= %(until)s
            AND m.mark IN ('verified', 'suspect', 'damaged')
        ORDER BY m.hlc DESC, m.event DESC LIMIT 1
    ) said ON true
    WHERE p.counts = 1 AND p.sealed_hlc <= %(until)s AND (p.dropped_hlc IS NULL OR p.dropped_hlc > %(until)s)
        AND (NOT %(whole)s OR strpos(p.facts, %(not_chosen)s) = 0)
)
SELECT asset, repository, count(*) AS points, max(created_us) AS newest_us,
       max(created_us) FILTER (WHERE coalesce(said, 'verified') = 'verified') AS sound_us,
       max(created_us) FILTER (WHERE said = 'verified') AS verified_us,
       (array_agg(note ORDER BY created_us DESC) FILTER (WHERE said = 'verified'))[1] AS verified_by,
       max(created_us) FILTER (WHERE sampled AND coalesce(said, 'verified') = 'verified') AS sampled_us
FROM standing GROUP BY asset, repository
"""


def kept(conn: Connection, *, as_of_us: int | None = None, whole: bool = False) -> dict[str, dict[str, Kept]]:
    """What each repository holds of each asset: asset → repository → `Kept`. `whole`: of its points those alone that no disk is
    missing from because it was not asked for."""
    found: dict[str, dict[str, Kept]] = {}
    given = {"until": moment(as_of_us), "whole": whole, "not_chosen": f':"{NOT_CHOSEN}"'}
    for asset, repository, *figures in conn.execute(_KEPT, given):
        found.setdefault(asset, {})[repository] = Kept(*figures)
    return found


def marks(conn: Connection, points: Iterable[str], *, as_of_us: int | None = None) -> dict[str, tuple[PointMark, ...]]:
    """Every mark that those points were ever given, oldest first."""
    found: dict[str, tuple[PointMark, ...]] = {}
    with conn.cursor(row_factory=kwargs_row(PointMark)) as cur:
        cur.execute(
            """
            SELECT point, mark, number, name, note, until_us, marked_us, by FROM point_mark
            WHERE point = ANY(%s) AND counts = 1 AND hlc <= %s ORDER BY point, hlc, event
            """,
            (list(points), moment(as_of_us)),
        )
        for row in cur:
            found[row.point] = (*found.get(row.point, ()), row)
    return found
