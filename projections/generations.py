"""Generations of a view: its tables in a PostgreSQL schema, one of them live, others being built or on their way out.

    view_jobs              the live generation, whatever its number
    view_jobs_g7           generation 7, being built beside it
    view_jobs_old6         generation 6, no longer live, about to be dropped

A swap renames two schemas and writes one row of `holdfast.view`, in one transaction. Killed before it commits, the old
generation is still live; killed after it, the new one is. What is left over is removed by `clean`, which the next
rebuild or migration calls under the same advisory lock (`projections.locks.building`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from psycopg import sql

from projections.database import Connection, live_schema
from projections.errors import ProjectionError, ViewAbsent
from projections.locks import building
from projections.views import VIEWS
from projections.views.base import View


@dataclass(frozen=True, slots=True)
class Status:
    """A view's row. `state` is `live` or `dropped`; `version` is that of its tables."""

    view: str
    version: int
    generation: int
    newest: int
    state: str
    dropped_digest: str | None


def build_schema(view: str, generation: int) -> str:
    return f"{live_schema(view)}_g{generation}"


def status(conn: Connection, view: str, *, lock: bool = False) -> Status | None:
    """The view's row, None when it has never been built. `lock`: nobody applies, swaps or drops until the transaction
    ends."""
    row = conn.execute(
        "SELECT view, version, generation, newest, state, dropped_digest FROM holdfast.view WHERE view = %s"
        + (" FOR UPDATE" if lock else ""),
        (view,),
    ).fetchone()
    return Status(*row) if row else None


def ensure(conn: Connection) -> list[str]:
    """Create the views that have never been built, empty and at the beginning of the log; return the names of those
    whose tables are of an older `VERSION` and must be rebuilt. `conn` is in autocommit.

    Raises `ProjectionError` (`database-newer`) when a view's tables are of a newer version than we know.
    """
    outdated = []
    for name, view in VIEWS.items():
        with conn.transaction():
            # Two processes that start at once: the first one's row makes the other wait, and then find it.
            conn.execute("LOCK TABLE holdfast.view IN SHARE ROW EXCLUSIVE MODE")
            found = status(conn, name)
            if found is None:
                _create(conn, live_schema(name), view)
                conn.execute(
                    """
                    INSERT INTO holdfast.view (view, version, generation, newest, state) VALUES (%s, %s, 1, 1, 'live')
                    """,
                    (name, view.VERSION),
                )
            elif found.version > view.VERSION:
                raise ProjectionError(
                    "database-newer",
                    f"view {name} is of version {found.version}, this Holdfast knows {view.VERSION}",
                    "a newer Holdfast used this database: upgrade this one",
                )
            elif found.version < view.VERSION and found.state == "live":
                outdated.append(name)
    return outdated


def begin(conn: Connection, view: View) -> int:
    """Make the empty tables of a new generation beside the live one, and return its number."""
    with conn.transaction():
        found = status(conn, view.NAME, lock=True)
        if found is None:
            raise ViewAbsent("view-absent", f"view {view.NAME} has never been built", "`python -m projections migrate`")
        generation = found.newest + 1
        conn.execute("UPDATE holdfast.view SET newest = %s WHERE view = %s", (generation, view.NAME))
        _create(conn, build_schema(view.NAME, generation), view)
    return generation


def swap(conn: Connection, view: View, generation: int) -> None:
    """Make `generation` the live one. Inside the caller's transaction, which holds the view's row
    (`status(lock=True)`)."""
    found = status(conn, view.NAME)
    assert found is not None
    if found.state == "live":
        _rename(conn, live_schema(view.NAME), f"{live_schema(view.NAME)}_old{found.generation}")
    _rename(conn, build_schema(view.NAME, generation), live_schema(view.NAME))
    conn.execute(
        """
        UPDATE holdfast.view SET generation = %s, version = %s, state = 'live', dropped_digest = NULL WHERE view = %s
        """,
        (generation, view.VERSION, view.NAME),
    )


def retire(conn: Connection, view: str, digest: str | None) -> None:
    """Take the live generation away; `digest` is what it was. Inside the caller's transaction, which holds the view's
    row."""
    found = status(conn, view)
    assert found is not None
    _rename(conn, live_schema(view), f"{live_schema(view)}_old{found.generation}")
    conn.execute("UPDATE holdfast.view SET state = 'dropped', dropped_digest = %s WHERE view = %s", (digest, view))


def clean(conn: Connection, view: str) -> list[str]:
    """Drop what no longer or not yet is live, and the offsets that go with it. The caller holds `locks.building`, so
    nobody is building. Whoever still reads an old table is waited for."""
    leftovers = sorted(_leftovers(conn, view))
    for schema in leftovers:
        with conn.transaction():
            conn.execute("SET LOCAL client_min_messages = warning")  # "drop cascades to …" is what we asked for
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    conn.execute(
        """
        DELETE FROM holdfast.view_offset o USING holdfast.view v
        WHERE o.view = %s AND v.view = o.view AND (v.state = 'dropped' OR o.generation <> v.generation)
        """,
        (view,),
    )
    return leftovers


def clean_all(conn: Connection) -> list[str]:
    """`clean` every view that nobody is building right now."""
    dropped = []
    for name in VIEWS:
        try:
            with building(conn, name):
                dropped += clean(conn, name)
        except ProjectionError as error:
            if error.code != "rebuild-running":
                raise
    return dropped


def _leftovers(conn: Connection, view: str) -> Iterator[str]:
    pattern = re.compile(re.escape(live_schema(view)) + r"_(g|old)\d+")
    for (name,) in conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'view%%'", ()).fetchall():
        if pattern.fullmatch(name):
            yield name


def _create(conn: Connection, schema: str, view: View) -> None:
    ddl = resources.files("projections.views").joinpath(f"{view.NAME}.sql").read_text("utf-8")
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    conn.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
    conn.execute(ddl.encode())
    conn.execute("SET LOCAL search_path TO DEFAULT")


def _rename(conn: Connection, old: str, new: str) -> None:
    conn.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))
