"""Rows and offsets move together, by compare-and-set, whoever else is applying."""

from __future__ import annotations

import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from projections import batches, generations, offsets
from projections.database import Connection, connect
from projections.digest import digest
from projections.errors import OffsetMismatch, ProjectionError, ViewAbsent
from projections.views import VIEWS
from streams.consume import Message
from streams.events import CallAudited
from streams.settings import PostgresSettings
from tests.contract.sample_log import History, cut_up, records

AUDIT = VIEWS["audit"]


def calls(count: int) -> list[Message]:
    h = History(random.Random(1))
    for _ in range(count):
        h.call()
    return records(h.events)


def test_an_offset_moves_only_from_where_it_is_expected(conn: Connection) -> None:
    generation = offsets.live_generation(conn, "audit")
    place = ("holdfast.audit", 0)
    with conn.transaction(), conn.cursor() as cursor:
        offsets.advance(cursor, "audit", generation, [(place, 0, 5)])
    with pytest.raises(OffsetMismatch) as error, conn.transaction(), conn.cursor() as cursor:
        offsets.advance(cursor, "audit", generation, [(("holdfast.audit", 1), 0, 7), (place, 0, 9)])
    assert error.value.code == "offset-moved"
    assert offsets.live(conn, "audit") == {place: 5} | {("holdfast.audit", p): 0 for p in (1, 2, 3)}


def test_a_partition_nobody_began_is_refused(conn: Connection) -> None:
    generation = offsets.live_generation(conn, "audit")
    with pytest.raises(OffsetMismatch), conn.transaction(), conn.cursor() as cursor:
        offsets.advance(cursor, "audit", generation, [(("holdfast.other", 0), 0, 1)])


def test_four_processors_with_the_same_log_apply_each_record_once(conn: Connection, database: PostgresSettings) -> None:
    log = calls(600)
    together = threading.Barrier(4)

    def processor(seed: int) -> int:
        applied = 0
        with contextlib.closing(connect(database)) as mine:
            together.wait()
            for batch in cut_up(log, random.Random(seed)):
                applied += batches.apply_live(mine, AUDIT, batch).records
        return applied

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(processor, range(4))) == 600
    assert conn.execute("SELECT count(*) FROM call").fetchone() == (600,)
    assert sum(offsets.live(conn, "audit").values()) == 600


def test_an_error_in_the_middle_of_a_batch_moves_nothing(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    log = calls(50)
    before = digest(conn, AUDIT)

    real = AUDIT.apply

    def half(cursor: psycopg.Cursor[object], messages: list[Message]) -> None:
        real(cursor, messages[:25])
        cursor.execute("SELECT 1 / 0")

    monkeypatch.setattr(AUDIT, "apply", half)
    with pytest.raises(ProjectionError) as error:
        batches.apply_live(conn, AUDIT, log)
    assert error.value.code == "apply-failed"
    assert "holdfast.audit[" in error.value.message
    assert digest(conn, AUDIT) == before
    monkeypatch.undo()
    assert batches.apply_live(conn, AUDIT, log).records == 50


def test_a_dropped_view_takes_no_batch(conn: Connection) -> None:
    with conn.transaction():
        generations.retire(conn, "audit", None)
    with pytest.raises(ViewAbsent):
        batches.apply_live(conn, AUDIT, calls(1))


def test_tables_of_another_version_take_no_batch(conn: Connection) -> None:
    conn.execute("UPDATE holdfast.view SET version = 0 WHERE view = 'audit'")
    with pytest.raises(ProjectionError) as error:
        batches.apply_live(conn, AUDIT, calls(1))
    assert error.value.code == "view-outdated"


def test_a_hole_in_a_partition_is_passed_when_the_reader_says_it_went_through_it(conn: Connection) -> None:
    """Control records of a transaction, say, which take an offset and are delivered to nobody."""
    log = calls(60)
    partition = log[0].partition
    first, second = [m for m in log if m.partition == partition][:2]
    generation = generations.begin(conn, AUDIT)
    offsets.register(conn, "audit", generation, {("holdfast.audit", partition): ("id", 0)})
    apart = Message(**{f: getattr(second, f) for f in second.__slots__} | {"offset": 7})
    with pytest.raises(OffsetMismatch):
        batches.apply_to(conn, AUDIT, generation, [apart])
    read = {("holdfast.audit", partition): (0, 9)}
    assert batches.apply_to(conn, AUDIT, generation, [first, apart], read).records == 2
    assert offsets.read(conn, "audit", generation) == {("holdfast.audit", partition): 9}


def test_a_commit_wakes_those_who_listen(conn: Connection, database: PostgresSettings) -> None:
    with contextlib.closing(connect(database)) as listening:
        listening.execute(f"LISTEN {batches.CHANNEL}")
        batches.apply_live(conn, AUDIT, calls(3))
        heard = [n.payload for n in listening.notifies(timeout=10, stop_after=1)]
    assert heard == ["audit"]


def test_a_nul_in_a_text_does_not_stop_a_view(conn: Connection) -> None:
    call = CallAudited(
        request="r", actor="a\0b", role="", token="", action="x", object="", outcome=200, detail="", remote="", at_us=1
    )
    batches.apply_live(conn, AUDIT, records([call]))
    assert conn.execute("SELECT actor FROM call").fetchone() == ("a\ufffdb",)
