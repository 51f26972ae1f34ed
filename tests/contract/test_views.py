"""What every view must keep to (projections.views.base), on a real PostgreSQL; each view of the registry passes it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from projections import batches, generations, offsets
from projections.database import Connection, connect, live_schema
from projections.digest import digest, of_generation
from projections.errors import OffsetMismatch
from projections.migrate import migrate
from projections.views import VIEWS
from projections.views.base import View
from streams.consume import Message
from streams.topics import BY_NAME, topic_name
from tests.contract.sample_log import PREFIX, cut_up, history, interleave, records, with_duplicates
from tests.stack.servers import PostgresServer

NOT_LIVE = -1  # a generation that has no offsets


@pytest.fixture(scope="module")
def conn(postgres: PostgresServer) -> Iterator[Connection]:
    database = postgres.fresh_database()
    with contextlib.closing(connect(database)) as conn:
        migrate(conn)
        generations.ensure(conn)
        yield conn
    postgres.drop_database(database.dbname)


@pytest.fixture(params=sorted(VIEWS))
def view(request: pytest.FixtureRequest) -> View:
    return VIEWS[request.param]


def mine(view: View, messages: Sequence[Message]) -> list[Message]:
    topics = {topic_name(PREFIX, t) for t in view.TOPICS}
    return [m for m in messages if m.topic in topics]


@contextlib.contextmanager
def scratch(conn: Connection, view: View) -> Iterator[str]:
    """The view's empty tables in a schema that is rolled back with everything else."""
    with contextlib.suppress(psycopg.Rollback), conn.transaction():
        schema = generations.build_schema(view.NAME, 999)
        generations._create(conn, schema, view)
        conn.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
        yield schema
        raise psycopg.Rollback


def everything(conn: Connection, view: View, schema: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, the undigested too."""
    out = {}
    for table in (*view.TABLES, *view.UNDIGESTED):
        rows = conn.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))).fetchall()
        out[table] = sorted(rows, key=repr)
    return out


def outcome(conn: Connection, view: View, deliveries: Sequence[Sequence[Message]]) -> tuple[str, object]:
    """The digest and all rows after these batches."""
    with scratch(conn, view) as schema:
        with conn.cursor() as cursor:
            for batch in deliveries:
                view.apply(cursor, batch)
        return of_generation(conn, view, NOT_LIVE, schema).digest, everything(conn, view, schema)
    raise AssertionError("scratch always rolls back after its body")


PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(seed=st.integers(0, 2**32), size=st.integers(1, 250))
def test_rows_are_the_same_however_partitions_interleave_and_batches_fall(
    conn: Connection, view: View, seed: int, size: int
) -> None:
    rng = random.Random(seed)
    log = mine(view, records(history(rng, size)))
    one = outcome(conn, view, [log])
    other = outcome(conn, view, cut_up(interleave(log, rng), rng))
    assert one == other


@PROPERTY
@given(seed=st.integers(0, 2**32), size=st.integers(1, 150))
def test_a_record_delivered_twice_changes_nothing(conn: Connection, view: View, seed: int, size: int) -> None:
    rng = random.Random(seed)
    log = mine(view, records(history(rng, size)))
    assert outcome(conn, view, [log]) == outcome(conn, view, cut_up(interleave(with_duplicates(log, rng), rng), rng))


def register(conn: Connection, view: View) -> None:
    starts = {(topic_name(PREFIX, t), p): ("id", 0) for t in view.TOPICS for p in range(BY_NAME[t].partitions)}
    offsets.register(conn, view.NAME, offsets.live_generation(conn, view.NAME), starts)


@pytest.fixture
def live(postgres: PostgresServer) -> Iterator[Connection]:
    """A database of its own with live views at the beginning of the log."""
    database = postgres.fresh_database()
    with contextlib.closing(connect(database)) as conn:
        migrate(conn)
        generations.ensure(conn)
        for view in VIEWS.values():
            register(conn, view)
        yield conn
    postgres.drop_database(database.dbname)


def test_replaying_a_position_changes_nothing(live: Connection, view: View) -> None:
    rng = random.Random(7)
    log = interleave(mine(view, records(history(rng, 400))), rng)
    deliveries = cut_up(log, rng)
    for batch in deliveries:
        assert batches.apply_live(live, view, batch) == batches.Applied(len(batch), 0)
    before, rows = digest(live, view), everything(live, view, live_schema(view.NAME))
    for batch in deliveries:
        assert batches.apply_live(live, view, batch) == batches.Applied(0, len(batch))
    # All at once, as after a restart from the beginning.
    assert batches.apply_live(live, view, log) == batches.Applied(0, len(log))
    assert digest(live, view) == before
    assert everything(live, view, live_schema(view.NAME)) == rows
    assert sum(before.cut.values()) == len([m for m in log if not m.topic.endswith("health")])


def test_a_batch_that_would_leave_a_gap_is_refused_and_changes_nothing(live: Connection, view: View) -> None:
    log = mine(view, records(history(random.Random(3), 200)))
    partition = max({(m.topic, m.partition) for m in log}, key=lambda p: sum((m.topic, m.partition) == p for m in log))
    rest = [m for m in log if (m.topic, m.partition) != partition or m.offset != 0]
    assert len(rest) == len(log) - 1
    before = digest(live, view)
    with pytest.raises(OffsetMismatch) as error:
        batches.apply_live(live, view, rest)
    assert error.value.code == "offset-gap"
    assert digest(live, view) == before


def test_every_table_is_either_digested_or_said_not_to_be(conn: Connection, view: View) -> None:
    rows = conn.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = %s",
        (live_schema(view.NAME),),
    ).fetchall()
    assert {row[0] for row in rows} == {*view.TABLES, *view.UNDIGESTED}
    for table, key in view.TABLES.items():
        found = conn.execute(
            """
            SELECT a.attname FROM pg_index i
            CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(attnum, place)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indisprimary AND i.indrelid = (%s || '.' || %s)::regclass ORDER BY k.place
            """,
            (live_schema(view.NAME), table),
        ).fetchall()
        assert tuple(row[0] for row in found) == key


def test_no_column_takes_its_value_from_a_clock_or_a_counter(conn: Connection, view: View) -> None:
    rows = conn.execute(
        """
        SELECT table_name, column_name, column_default, is_identity, is_generated FROM information_schema.columns
        WHERE table_schema = %s
        """,
        (live_schema(view.NAME),),
    ).fetchall()
    assert rows
    for table, column, default, identity, generated in rows:
        assert identity == "NO", (table, column)
        assert generated == "NEVER", (table, column)
        assert default is None or default.partition("::")[0].strip("'").isalnum() or default.startswith("'"), (
            table,
            column,
        )


def test_the_digest_sees_every_column_of_every_row_it_claims_to(conn: Connection, view: View) -> None:
    log = mine(view, records(history(random.Random(11), 600)))
    # Two granules that start at the same step, so that the table of conflicts has a row.
    granules = [m for m in log if type(m.event).__name__ == "GranuleClosed"]
    log += [_with_another_digest(m) for m in granules[:1]]
    with scratch(conn, view) as schema:
        with conn.cursor() as cursor:
            view.apply(cursor, log)
        whole = of_generation(conn, view, NOT_LIVE, schema)
        assert all(whole.rows.values()), f"the sample leaves a table empty: {whole.rows}"
        for table, key in view.TABLES.items():
            for column, change in _changes(conn, schema, table):
                _expect_other_digest(conn, view, schema, whole.digest, _one_row(table, schema, key, column, change))
            drop = sql.SQL("DELETE FROM {t} WHERE ctid = (SELECT max(ctid) FROM {t})").format(
                t=sql.Identifier(schema, table)
            )
            _expect_other_digest(conn, view, schema, whole.digest, drop)
        for table in view.UNDIGESTED:
            conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, table)))
        assert of_generation(conn, view, NOT_LIVE, schema) == whole


def _with_another_digest(message: Message) -> Message:
    event = dataclasses.replace(message.event, digest=b"\1" * 32)  # type: ignore[call-arg]
    return dataclasses.replace(message, event=event)


def _changes(conn: Connection, schema: str, table: str) -> list[tuple[str, sql.SQL]]:
    rows = conn.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = %s AND table_name = %s",
        (schema, table),
    ).fetchall()
    change = {
        "bigint": sql.SQL("coalesce({0}, 0) + 1000000007"),
        "text": sql.SQL("coalesce({0}, '') || '~'"),
        "bytea": sql.SQL("coalesce({0}, ''::bytea) || '\\x00'::bytea"),
    }
    return [(column, change[kind]) for column, kind in rows]


def _one_row(table: str, schema: str, key: tuple[str, ...], column: str, change: sql.SQL) -> sql.Composed:
    return sql.SQL("UPDATE {t} SET {c} = {new} WHERE ctid = (SELECT max(ctid) FROM {t})").format(
        t=sql.Identifier(schema, table), c=sql.Identifier(column), new=change.format(sql.Identifier(column))
    )


def _expect_other_digest(conn: Connection, view: View, schema: str, was: str, statement: sql.Composed) -> None:
    with conn.transaction(force_rollback=True):
        assert conn.execute(statement).rowcount == 1
        assert of_generation(conn, view, NOT_LIVE, schema).digest != was, statement.as_string(conn)
    assert of_generation(conn, view, NOT_LIVE, schema).digest == was
