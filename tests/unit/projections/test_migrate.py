"""Migrations are applied once, in order, and never over what a newer Holdfast left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from projections.database import Connection, connect
from projections.errors import ProjectionError
from projections.migrate import Migration, known, migrate
from streams.settings import PostgresSettings

ONE = Migration(1, "one", "CREATE TABLE holdfast.one (n bigint)")
TWO = Migration(2, "two", "INSERT INTO holdfast.one VALUES (2)")


@pytest.fixture
def empty(database: PostgresSettings) -> Iterator[Connection]:
    with contextlib.closing(connect(database)) as conn:
        yield conn


def test_what_is_missing_is_applied_once(empty: Connection) -> None:
    assert migrate(empty, [ONE]) == [ONE]
    assert migrate(empty, [ONE, TWO]) == [TWO]
    assert migrate(empty, [ONE, TWO]) == []
    assert empty.execute("SELECT n FROM holdfast.one").fetchall() == [(2,)]


def test_those_of_this_holdfast_make_the_bookkeeping(empty: Connection) -> None:
    assert migrate(empty) == known()
    assert empty.execute("SELECT count(*) FROM holdfast.view_offset").fetchone() == (0,)


def test_several_at_once_apply_each_once(database: PostgresSettings) -> None:
    def one(_: int) -> int:
        with contextlib.closing(connect(database)) as conn:
            return len(migrate(conn, [ONE, TWO]))

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(one, range(6))) == [0, 0, 0, 0, 0, 2]


def test_a_failing_migration_leaves_nothing_and_can_be_repeated(empty: Connection) -> None:
    broken = Migration(2, "two", "INSERT INTO holdfast.one VALUES (2); SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty, [ONE, broken])
    assert empty.execute("SELECT count(*) FROM holdfast.one").fetchone() == (0,)
    assert migrate(empty, [ONE, TWO]) == [TWO]


def test_a_database_of_a_newer_holdfast_is_refused(empty: Connection) -> None:
    migrate(empty, [ONE, TWO])
    with pytest.raises(ProjectionError) as error:
        migrate(empty, [ONE])
    assert error.value.code == "database-newer"
    assert "two" in error.value.message


def test_a_migration_edited_after_it_was_applied_is_refused(empty: Connection) -> None:
    migrate(empty, [ONE])
    with pytest.raises(ProjectionError) as error:
        migrate(empty, [Migration(1, "one", ONE.sql + " -- better"), TWO])
    assert error.value.code == "migration-changed"
