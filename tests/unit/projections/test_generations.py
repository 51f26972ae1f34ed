"""Generations of a view: created once, swapped and retired as a whole, leftovers removed."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from projections import generations, offsets
from projections.database import Connection, connect
from projections.errors import ProjectionError, ViewAbsent
from projections.locks import building
from projections.views import VIEWS, access, jobs
from projections.views.base import View
from streams.settings import PostgresSettings
from tests.contract.sample_log import History

VIEW = VIEWS["access"]


def schemas(conn: Connection) -> set[str]:
    return {
        row[0] for row in conn.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'view_access%'").fetchall()
    }


def test_views_are_created_once(conn: Connection) -> None:
    assert generations.ensure(conn) == []
    assert generations.status(conn, "access") == generations.Status("access", VIEW.VERSION, 1, 1, "live", None)
    assert schemas(conn) == {"view_access"}


def test_a_swap_shows_the_new_rows_to_connections_that_asked_before(
    conn: Connection, database: PostgresSettings
) -> None:
    with contextlib.closing(connect(database)) as asking:
        asking.prepare_threshold = 0
        assert access.tokens(asking) == []
        generation = generations.begin(conn, VIEW)
        conn.execute(
            f"INSERT INTO view_access_g{generation}.token (token, digest, issued_us) VALUES ('t', '\\x01'::bytea, 1)"
        )
        assert access.tokens(asking) == []
        with conn.transaction():
            generations.status(conn, "access", lock=True)
            generations.swap(conn, VIEW, generation)
        assert [t.token for t in access.tokens(asking)] == ["t"]
        generations.clean(conn, "access")
        assert [t.token for t in access.tokens(asking)] == ["t"]
    assert schemas(conn) == {"view_access"}


def test_a_swap_that_does_not_commit_changes_nothing(conn: Connection) -> None:
    generation = generations.begin(conn, VIEW)
    with contextlib.suppress(psycopg.Rollback), conn.transaction():
        generations.swap(conn, VIEW, generation)
        raise psycopg.Rollback
    assert offsets.live_generation(conn, "access") == 1
    assert schemas(conn) == {"view_access", f"view_access_g{generation}"}


def test_leftovers_of_a_killed_rebuild_are_removed_with_their_offsets_and_nothing_else(conn: Connection) -> None:
    generation = generations.begin(conn, VIEW)
    offsets.register(conn, "access", generation, {("holdfast.inventory", 0): ("id", 0)})
    live = offsets.live(conn, "access")
    assert live
    conn.execute("CREATE SCHEMA view_access_of_mine")
    assert generations.clean(conn, "access") == [f"view_access_g{generation}"]
    assert schemas(conn) == {"view_access", "view_access_of_mine"}
    assert offsets.read(conn, "access", generation) == {}
    assert offsets.live(conn, "access") == live
    assert generations.begin(conn, VIEW) == generation + 1  # numbers are not used twice


def test_what_is_being_built_is_left_alone(conn: Connection, database: PostgresSettings) -> None:
    with contextlib.closing(connect(database)) as other, building(other, "access"):
        generation = generations.begin(other, VIEW)
        assert generations.clean_all(conn) == []
        with pytest.raises(ProjectionError) as error, building(conn, "access"):
            pass
        assert error.value.code == "rebuild-running"
        assert f"view_access_g{generation}" in schemas(conn)
    assert generations.clean_all(conn) == [f"view_access_g{generation}"]


def test_a_retired_view_has_no_rows_and_says_so(conn: Connection) -> None:
    with conn.transaction():
        generations.retire(conn, "jobs", "{}")
    with pytest.raises(ViewAbsent) as error:
        offsets.live_generation(conn, "jobs")
    assert error.value.code == "view-dropped"
    with pytest.raises(psycopg.errors.UndefinedTable):
        jobs.jobs(conn)
    generations.clean(conn, "jobs")
    assert generations.ensure(conn) == []  # dropped on purpose: only a rebuild brings it back
    with pytest.raises(ViewAbsent):
        offsets.live_generation(conn, "jobs")


def test_a_view_of_another_version_is_named_or_refused(conn: Connection) -> None:
    conn.execute("UPDATE holdfast.view SET version = 0 WHERE view = 'jobs'")
    assert generations.ensure(conn) == ["jobs"]
    conn.execute("UPDATE holdfast.view SET version = 99 WHERE view = 'jobs'")
    with pytest.raises(ProjectionError) as error:
        generations.ensure(conn)
    assert error.value.code == "database-newer"


def test_names_of_tables_are_unique_among_all_views() -> None:
    names = [table for view in VIEWS.values() for table in (*view.TABLES, *view.UNDIGESTED)]
    assert len(names) == len(set(names))


def test_every_view_has_what_a_view_needs() -> None:
    for name, view in VIEWS.items():
        module: View = view
        assert (module.NAME, module.VERSION >= 1, bool(module.TOPICS), bool(module.TABLES)) == (name, True, True, True)
        assert callable(module.apply)


def test_the_sample_reaches_every_view() -> None:
    import random

    h = History(random.Random(1))
    while len(h.events) < 300:
        h.anything()
    assert {e.TOPIC for e in h.events} >= {t for view in VIEWS.values() for t in view.TOPICS}
