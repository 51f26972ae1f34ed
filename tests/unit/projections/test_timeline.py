"""The timeline answers where steps are, from granules and plans."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace

import pytest

from projections.database import Connection
from projections.errors import ProjectionError
from projections.views import timeline
from streams.events import (
    GranuleClosed,
    Landmark,
    OrdinalRange,
    Problem,
    RollbackChanged,
    RollbackPlanned,
    TableCount,
    TableEffect,
)
from streams.paths import Turn, path_at
from tests.contract.sample_log import History
from tests.unit.projections.conftest import Feed

LINEAGE = "11111111-0000-7000-8000-000000000000"
SECOND = 1_000_000


def granule(
    first: int,
    last: int,
    tables: tuple[str, ...] = ("orders",),
    landmarks: tuple[Landmark, ...] = (),
    domain: int = 0,
    time: int | None = None,
) -> GranuleClosed:
    """Steps a second apart, step n at second n, unless `time` says when the granule begins."""
    began = first if time is None else time
    return GranuleClosed(
        lineage=LINEAGE,
        epoch=1,
        source="shop",
        first_ordinal=first,
        last_ordinal=last,
        first_time_us=began * SECOND,
        last_time_us=(began + last - first) * SECOND,
        captured_us=(began + last - first) * SECOND + 5,
        first_position=f"{domain}-1-{first}",
        last_position=f"{domain}-1-{last}",
        payload_bytes=100,
        events=3,
        tables=tuple(TableCount("shop", t, last - first + 1, 1, 2, 3) for t in tables),
        landmarks=landmarks,
        topic_id="t",
        first_offset=first,
        last_offset=last,
        digest=bytes([first % 256]) * 32,
    )


def firsts(granules: list[timeline.Granule]) -> list[int]:
    return [g.first_ordinal for g in granules]


THREE = (granule(1, 10), granule(11, 20, ("orders", "items")), granule(21, 30, ("stock",)))


def test_a_step_is_found_in_its_granule(conn: Connection, feed: Feed) -> None:
    feed(*THREE)
    for ordinal, first in ((1, 1), (10, 1), (11, 11), (30, 21)):
        found = timeline.granule_of(conn, "shop", LINEAGE, ordinal)
        assert found is not None
        assert found.first_ordinal == first
    assert timeline.granule_of(conn, "shop", LINEAGE, 31) is None
    assert timeline.granule_of(conn, "shop", LINEAGE, 0) is None
    assert timeline.granule_of(conn, "shop", "other", 1) is None
    head = timeline.head(conn, "shop", LINEAGE)
    assert head is not None
    assert (head.last_ordinal, head.steps, head.rows) == (30, 10, 6)
    assert timeline.lineages(conn, "shop") == [LINEAGE]


def test_pages_go_backwards(conn: Connection, feed: Feed) -> None:
    feed(*THREE)
    assert firsts(timeline.granules_before(conn, "shop", LINEAGE, 31)) == [21, 11, 1]
    assert firsts(timeline.granules_before(conn, "shop", LINEAGE, 21)) == [11, 1]
    assert firsts(timeline.granules_before(conn, "shop", LINEAGE, 22, limit=1)) == [21]
    assert firsts(timeline.granules_touching(conn, "shop", LINEAGE, "shop", "orders")) == [11, 1]
    assert firsts(timeline.granules_touching(conn, "shop", LINEAGE, "shop", "orders", before=11)) == [1]
    assert firsts(timeline.granules_between(conn, "shop", LINEAGE, 20 * SECOND, 21 * SECOND)) == [21, 11]
    assert firsts(timeline.granules_between(conn, "shop", LINEAGE, 31 * SECOND, 99 * SECOND)) == []
    both = timeline.granules(conn, "shop", LINEAGE, table=("shop", "orders"), since_us=12 * SECOND)
    assert firsts(both) == [11]
    assert both[0].tables == (TableCount("shop", "items", 10, 1, 2, 3), TableCount("shop", "orders", 10, 1, 2, 3))


def test_a_moment_is_in_the_newest_granule_that_began_by_then(conn: Connection, feed: Feed) -> None:
    # The clock of the source was set back between the second and the third.
    feed(granule(1, 10), granule(11, 20), granule(21, 30, time=15), granule(31, 40, time=50))
    assert timeline.granule_at_time(conn, "shop", LINEAGE, SECOND - 1) is None
    for second, first in ((1, 1), (10, 1), (11, 11), (14, 11), (15, 21), (49, 21), (50, 31), (999, 31)):
        found = timeline.granule_at_time(conn, "shop", LINEAGE, second * SECOND)
        assert found is not None
        assert found.first_ordinal == first


def test_a_gtid_is_in_one_granule(conn: Connection, feed: Feed) -> None:
    feed(*THREE)
    for sequence, first in ((1, [1]), (10, [1]), (15, [11]), (30, [21]), (31, []), (0, [])):
        assert firsts(timeline.granules_with_gtid(conn, "shop", LINEAGE, f"0-1-{sequence}")) == first
    assert timeline.granules_with_gtid(conn, "shop", LINEAGE, "no gtid") == []
    assert timeline.granules_with_gtid(conn, "shop", LINEAGE, "0-1-99999999999999999999") == []


def test_a_gtid_among_several_domains_is_in_one_of_the_candidates(conn: Connection, feed: Feed) -> None:
    # Domain 0 is at both ends of two granules, domain 5 of two others; in between they may hold steps of any.
    feed(granule(1, 10), granule(11, 20, domain=5), granule(21, 30), granule(31, 40, domain=5))
    for gtid, candidates in (
        ("5-1-25", [21]),
        ("5-1-15", [11]),
        ("5-1-35", [31]),
        ("5-1-45", []),
        ("0-1-15", [11]),
        ("0-1-45", [31]),
        ("7-1-5", [1, 11, 21, 31]),
    ):
        assert firsts(timeline.granules_with_gtid(conn, "shop", LINEAGE, gtid)) == candidates, gtid


@pytest.mark.parametrize(
    "position",
    ["5e90bb75-e8fc-11f1-859a-02fc00000001:{}", "5e90bb75-e8fc-11f1-859a-02fc00000001:tag:{}", "binlog.000007:{}"],
)
def test_what_mysql_calls_a_step_is_in_one_granule(conn: Connection, feed: Feed, position: str) -> None:
    feed(
        *(
            replace(g, first_position=position.format(g.first_ordinal), last_position=position.format(g.last_ordinal))
            for g in THREE
        )
    )
    for number, first in ((1, [1]), (10, [1]), (15, [11]), (30, [21]), (31, [])):
        assert firsts(timeline.granules_with_gtid(conn, "shop", LINEAGE, position.format(number))) == first
    # Of another server, or another file, nothing is known that would leave a granule out, or it lies outside.
    assert firsts(timeline.granules_with_gtid(conn, "shop", LINEAGE, "binlog.000006:15")) in ([], [1, 11, 21])


def test_totals_add_up(conn: Connection, feed: Feed) -> None:
    feed(*THREE)
    found = timeline.totals(conn, "shop", LINEAGE)
    assert found is not None
    assert (found.granules, found.steps, found.rows, found.payload_bytes, found.events) == (3, 30, 24, 300, 9)
    assert (found.first_ordinal, found.last_ordinal, found.first_time_us, found.last_time_us) == (
        1,
        30,
        SECOND,
        30 * SECOND,
    )
    assert found.tables == (
        timeline.TableTotal("shop", "items", 1, 10, 1, 2, 3),
        timeline.TableTotal("shop", "orders", 2, 20, 2, 4, 6),
        timeline.TableTotal("shop", "stock", 1, 10, 1, 2, 3),
    )
    assert timeline.totals(conn, "shop", "other") is None


def test_a_granule_indexed_twice_counts_once_and_a_different_one_is_a_conflict(conn: Connection, feed: Feed) -> None:
    feed(*THREE, *THREE)
    assert timeline.conflicts(conn, "shop") == []
    feed(dataclasses.replace(THREE[1], digest=b"\xff" * 32, last_ordinal=15))
    assert timeline.conflicts(conn, "shop") == [(LINEAGE, 11)]
    found = timeline.totals(conn, "shop", LINEAGE)
    assert found is not None
    assert found.steps == 30
    first_come = timeline.granule_of(conn, "shop", LINEAGE, 20)
    assert first_come is not None
    assert first_come.digest == THREE[1].digest


def test_landmarks_keep_their_order_within_a_step(conn: Connection, feed: Feed) -> None:
    marks = (
        Landmark(5, "ddl", "ALTER TABLE t ADD c int"),
        Landmark(5, "own"),
        Landmark(7, "account"),
        Landmark(9, "own"),
    )
    feed(granule(1, 10, landmarks=marks))
    found = timeline.landmarks(conn, "shop", LINEAGE, 1, 8)
    assert [(m.ordinal, m.kind) for m in found] == [(5, "ddl"), (5, "own"), (7, "account")]
    assert found[0].text == "ALTER TABLE t ADD c int"
    assert [m.ordinal for m in timeline.landmarks(conn, "shop", LINEAGE, 1, 10, ["own"])] == [5, 9]
    assert timeline.own_ordinals(conn, "shop", LINEAGE, 1, 10) == [5, 9]
    assert timeline.own_ordinals(conn, "shop", LINEAGE, 6, 8) == []


PLAN = RollbackPlanned(
    lineage=LINEAGE,
    plan="p1",
    source="shop",
    kind="rollback",
    target="2 steps",
    target_ordinal=5,
    target_time_us=0,
    head_ordinal=7,
    path_before=(OrdinalRange(1, 7),),
    path_after=(OrdinalRange(1, 5),),
    undo=(OrdinalRange(6, 7),),
    redo=(),
    steps=2,
    rows=3,
    payload_bytes=99,
    tables=(TableEffect("shop", "orders", 1, 1, 1, True),),
    warnings=(Problem("slow", "no key", "add one"),),
    schema_version=b"v" * 32,
    digest=b"d" * 32,
    planned_us=70,
    by="ada",
)


def plan_is(state: str, at_us: int, ordinal: int = 0, **more: object) -> RollbackChanged:
    return RollbackChanged(
        lineage=LINEAGE,
        plan="p1",
        source="shop",
        state=state,
        digest=b"d" * 32,
        at_us=at_us,
        by="agent",
        ordinal=ordinal,
        **more,  # type: ignore[arg-type]
    )


def test_a_plan_goes_its_way(conn: Connection, feed: Feed) -> None:
    feed(PLAN)
    plan = timeline.plan(conn, "p1")
    assert plan is not None
    assert (plan.state, plan.runnable, plan.undo, plan.tables) == ("planned", True, PLAN.undo, PLAN.tables)
    assert plan.warnings == PLAN.warnings
    feed(plan_is("confirmed", 71), plan_is("fenced", 72, read_only_before="OFF"), plan_is("applying", 73))
    feed(plan_is("applied", 74, 8, position="0-1-8", rows=3))
    plan = timeline.plan(conn, "p1")
    assert plan is not None
    assert (plan.state, plan.ordinal, plan.position, plan.applied_rows) == ("applied", 8, "0-1-8", 3)
    assert (plan.read_only_before, plan.runnable) == ("OFF", False)
    assert [e.state for e in timeline.plan_events(conn, "p1")] == [
        "planned",
        "confirmed",
        "fenced",
        "applying",
        "applied",
    ]


def test_an_applied_plan_stays_applied_when_run_again(conn: Connection, feed: Feed) -> None:
    feed(PLAN, plan_is("applied", 74, 8), plan_is("failed", 75, problems=(Problem("marker-exists", "ran already"),)))
    plan = timeline.plan(conn, "p1")
    assert plan is not None
    assert (plan.state, plan.problems) == ("applied", ())


def test_plans_are_listed_newest_first(conn: Connection, feed: Feed) -> None:
    for name in ("p1", "p2", "p3"):
        feed(dataclasses.replace(PLAN, plan=name))
    assert [p.plan for p in timeline.plans(conn, source="shop")] == ["p3", "p2", "p1"]
    assert [p.plan for p in timeline.plans(conn, before="p3", limit=1)] == ["p2"]
    assert timeline.plans(conn, source="crm") == []
    obstructed = dataclasses.replace(PLAN, plan="p4", obstacles=(Problem("ddl", "dropped"),))
    feed(obstructed)
    assert not timeline.plans(conn)[0].runnable


def test_a_turn_is_known_from_what_the_agent_says_and_later_from_the_marker(conn: Connection, feed: Feed) -> None:
    feed(PLAN, plan_is("applying", 73))
    assert timeline.turns(conn, "shop", LINEAGE) == []
    feed(plan_is("applied", 74, 8))
    turn = Turn(8, "p1", (OrdinalRange(1, 5),))
    assert timeline.turns(conn, "shop", LINEAGE) == [turn]
    feed(granule(1, 10, landmarks=(Landmark(8, "marker", "", "p1"),)))
    assert timeline.turns(conn, "shop", LINEAGE) == [turn]
    assert path_at(10, timeline.turns(conn, "shop", LINEAGE)) == (OrdinalRange(1, 5), OrdinalRange(9, 10))


def test_a_marker_makes_a_turn_though_the_agent_died_before_it_said_so(conn: Connection, feed: Feed) -> None:
    feed(PLAN, plan_is("applying", 73), granule(1, 10, landmarks=(Landmark(8, "marker", "", "p1"),)))
    assert [t.ordinal for t in timeline.turns(conn, "shop", LINEAGE)] == [8]
    assert 8 in timeline.own_ordinals(conn, "shop", LINEAGE, 1, 10)


def test_a_marker_without_its_plan_is_said_rather_than_guessed(conn: Connection, feed: Feed) -> None:
    feed(granule(1, 10, landmarks=(Landmark(8, "marker", "", "p9"),)))
    with pytest.raises(ProjectionError) as error:
        timeline.turns(conn, "shop", LINEAGE)
    assert error.value.code == "turn-unknown"


def test_queries_are_index_scans_over_ten_million_steps_before_any_analyze(conn: Connection, feed: Feed) -> None:
    """Cost by blocks touched, which no neighbour on the machine can change: a page is read from a few."""
    h = History(random.Random(1))
    for _ in range(2442):
        h.granule("shop", 4096)
    feed(*h.events)
    lineage = h.lineage("shop")
    middle = 5_000_000
    for question, most in (
        (lambda: timeline.granule_of(conn, "shop", lineage, middle), 20),
        (lambda: timeline.granules_before(conn, "shop", lineage, middle, 100), 300),
        (lambda: timeline.granules_touching(conn, "shop", lineage, "shop", "stock", middle, 100), 900),
        (lambda: timeline.granules_touching(conn, "shop", lineage, "shop", "never", None, 100), 20),
        (lambda: timeline.granules_with_gtid(conn, "shop", lineage, f"0-1-{middle}"), 300),
        (lambda: timeline.totals(conn, "shop", lineage), 60),
        (lambda: timeline.landmarks(conn, "shop", lineage, middle, middle + 4096), 20),
    ):
        question()  # catalogue lookups of a first time
        before = blocks(conn)
        question()
        assert blocks(conn) - before <= most, question.__code__.co_names


def blocks(conn: Connection) -> int:
    conn.execute("SELECT pg_stat_force_next_flush()")
    row = conn.execute(
        """
        SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read) FROM pg_statio_user_tables
        WHERE schemaname = 'view_timeline'
        """
    ).fetchone()
    assert row is not None
    return int(row[0])
