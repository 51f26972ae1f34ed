"""The view of nodes lets the same things count as the fold that agents go by."""

from __future__ import annotations

import contextlib
import random

from psycopg import sql

from projections import generations
from projections.database import connect
from projections.views import VIEWS
from projections.views import nodes as view
from streams.node_log import NodeLog
from tests.contract.sample_log import History, cut_up, records
from tests.stack.servers import PostgresServer


def test_what_counts_is_what_counts_for_agents(postgres: PostgresServer) -> None:
    database = postgres.fresh_database()
    with contextlib.closing(connect(database)) as conn:
        for seed in range(3):
            rng = random.Random(seed)
            written = History(rng)
            for _ in range(100):
                written.node()
            messages = records(written.events)
            log, half, at_half = NodeLog(), messages[50], {}
            starts: dict[str, int] = {}
            for message in messages:
                if log.apply(message.event):
                    state, node = message.event.state, message.event.node  # type: ignore[attr-defined]
                    starts[node] = starts.get(node, 0) + (state == "started")
                if message is half:
                    at_half = {n: e.run for n, e in log.standing.items()}
            with conn.transaction():
                generations._create(conn, f"nodes_{seed}", VIEWS["nodes"])
                conn.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(f"nodes_{seed}")))
                with conn.cursor() as cursor:
                    for batch in cut_up(messages, rng):
                        view.apply(cursor, batch)
                found = view.nodes(conn)
                assert {n.node: (n.run, n.state, n.starts) for n in found} == {
                    n: (e.run, e.state, starts[n]) for n, e in log.standing.items()
                }
                us = (half.hlc >> 16) * 1000
                assert {n.node: n.run for n in view.nodes(conn, as_of_us=us)} == at_half
    postgres.drop_database(database.dbname)
