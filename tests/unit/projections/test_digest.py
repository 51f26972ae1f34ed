"""The digest is what its module says it is, of one moment, and comparable only at equal cuts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import struct
import threading

import pytest
from blake3 import blake3

from projections import batches
from projections.database import Connection, connect, live_schema
from projections.digest import Digest, digest
from projections.errors import ProjectionError
from projections.views import VIEWS
from projections.views.base import View
from streams.settings import PostgresSettings
from tests.contract.sample_log import History, cut_up, history, records


def by_the_book(conn: Connection, view: View) -> str:
    """The digest as the module's docstring states it, computed here from fetched values."""
    whole = blake3(json.dumps([view.NAME, view.VERSION], separators=(",", ":")).encode() + b"\n")
    for table, key in sorted(view.TABLES.items()):
        names = [
            row[0]
            for row in conn.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
                " ORDER BY ordinal_position",
                (live_schema(view.NAME), table),
            ).fetchall()
        ]
        hashed = blake3(json.dumps([table, names, list(key)], separators=(",", ":")).encode() + b"\n")
        rows = conn.execute(f"SELECT * FROM {table}").fetchall()
        places = [names.index(k) for k in key]
        for row in sorted(
            rows, key=lambda r: [v.encode() if isinstance(v, str) else v for v in (r[p] for p in places)]
        ):
            hashed.update(struct.pack(">H", len(row)))
            for value in row:
                if value is None:
                    hashed.update(struct.pack(">i", -1))
                    continue
                data = (
                    value.encode()
                    if isinstance(value, str)
                    else struct.pack(">q", value)
                    if isinstance(value, int)
                    else value
                )
                hashed.update(struct.pack(">i", len(data)) + data)
        hashed.update(struct.pack(">h", -1))
        whole.update(hashed.digest())
    return whole.hexdigest()


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_the_digest_is_computed_as_stated(conn: Connection, name: str) -> None:
    view = VIEWS[name]
    topics = {f"holdfast.{t}" for t in view.TOPICS}
    assert digest(conn, view).digest == by_the_book(conn, view)
    batches.apply_live(conn, view, [m for m in records(history(random.Random(5), 500)) if m.topic in topics])
    found = digest(conn, view)
    assert found.digest == by_the_book(conn, view)
    assert sum(found.rows.values()) > 0


def test_the_digest_is_of_one_moment_while_records_are_applied(conn: Connection, database: PostgresSettings) -> None:
    """Each call is one row: rows counted and offsets in the cut can only agree when both are of the same moment."""
    h = History(random.Random(1))
    for _ in range(3000):
        h.call()
    ended = threading.Event()

    def write() -> None:
        with contextlib.closing(connect(database)) as mine:
            for batch in cut_up(records(h.events), random.Random(2), 10):
                batches.apply_live(mine, VIEWS["audit"], batch)
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while not ended.is_set():
        found = digest(conn, VIEWS["audit"])
        assert sum(found.cut.values()) == found.rows["call"]
        seen.append(found.rows["call"])
    thread.join()
    assert len(set(seen)) > 2


def test_a_digest_survives_being_stored(conn: Connection) -> None:
    found = digest(conn, VIEWS["timeline"])
    assert Digest.from_json(found.to_json()) == found


def test_digests_of_different_cuts_do_not_compare(conn: Connection) -> None:
    found = digest(conn, VIEWS["audit"])
    assert found.same_as(dataclasses.replace(found, generation=9))
    assert not found.same_as(dataclasses.replace(found, digest="00" * 32))
    later = dataclasses.replace(found, cut={p: at + 1 for p, at in found.cut.items()})
    with pytest.raises(ProjectionError) as error:
        found.same_as(later)
    assert error.value.code == "cut-differs"


def test_health_is_in_neither_digest_nor_cut(conn: Connection) -> None:
    h = History(random.Random(1))
    for _ in range(20):
        h.health()
    before = digest(conn, VIEWS["dashboard"])
    batches.apply_live(conn, VIEWS["dashboard"], records(h.events))
    assert conn.execute("SELECT count(*) > 0 FROM agent_health").fetchone() == (True,)
    assert digest(conn, VIEWS["dashboard"]) == before
    assert {topic for topic, _ in before.cut} == {"holdfast.commits"}
