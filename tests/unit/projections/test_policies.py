"""The view of policies lets the same things count as the fold that agents run by."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest
from psycopg import sql

from projections import generations
from projections.database import Connection, connect
from projections.views import VIEWS
from projections.views import policies as view
from streams.events import PolicyDefined, PolicyRemoved, PolicyRun
from streams.policy_log import PolicyLog
from tests.contract.sample_log import History, cut_up, records
from tests.stack.servers import PostgresServer


@pytest.fixture(scope="module")
def conn(postgres: PostgresServer) -> Iterator[Connection]:
    database = postgres.fresh_database()
    with contextlib.closing(connect(database)) as conn:
        yield conn
    postgres.drop_database(database.dbname)


@pytest.mark.parametrize("seed", range(4))
def test_what_counts_is_what_counts_for_agents(conn: Connection, seed: int) -> None:
    rng = random.Random(seed)
    written = History(rng)
    while len(written.events) < 300:
        written.policy()
    log, counted = PolicyLog(), []
    messages = records(written.events)
    half = messages[150]
    at_half: list[tuple[str, int]] = []
    for message in messages:
        if log.apply(message.event):
            counted.append(message)
        if message is half:
            at_half = [(s.policy, s.version) for s in log.standings.values() if s.there]
    schema = f"policies_{seed}"
    with conn.transaction():
        generations._create(conn, schema, VIEWS["policies"])
        conn.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
        with conn.cursor() as cursor:
            for batch in cut_up(messages, rng):
                view.apply(cursor, batch)
        standings = {s.policy: s for s in log.standings.values()}
        for row in view.policies(conn, removed=True):
            assert (row.version, row.document) == (standings[row.policy].version, standings[row.policy].document)
            assert (row.removed_us is not None) == standings[row.policy].removed
            assert view.decided(conn, row.policy) == max(
                standings[row.policy].decided_us, standings[row.policy].since_us
            )
        runs = {r.run: r for r in view.runs(conn, limit=1000)}
        assert runs.keys() == log.runs.keys()
        for name, run in log.runs.items():
            assert runs[name].ended_us == (run.ended.at_us if run.ended else None)
        said = [m.event for m in counted if isinstance(m.event, PolicyRun)]
        assert len(view.said(conn, limit=1000)) == len(said)
        assert {r.run for r in view.runs(conn, open_only=True, limit=1000)} == {
            n for n, r in log.runs.items() if not r.ended
        }
        # As of a moment: what the log's first half says.
        us = (half.hlc >> 16) * 1000
        assert [(r.policy, r.version) for r in view.policies(conn, as_of_us=us)] == sorted(at_half)
        for message in messages:
            if isinstance(message.event, PolicyDefined | PolicyRemoved):
                assert view.counted(conn, message.event.policy, message.id) == (message in counted)
