"""Figures by minute and table, and who is alive."""

from __future__ import annotations

from projections.database import Connection
from projections.views import dashboard
from streams.events import GranuleClosed, HealthReported
from tests.unit.projections.conftest import Feed
from tests.unit.projections.test_timeline import granule

MINUTE = dashboard.MINUTE_US


def test_a_granule_counts_in_the_minute_of_its_last_step_and_once(conn: Connection, feed: Feed) -> None:
    one: GranuleClosed = granule(1, 10, ("orders",), time=55)  # seconds 55 to 64
    feed(one, one, granule(11, 20, ("orders", "items"), time=100))
    assert dashboard.minutes(conn, "shop", 0, 10 * MINUTE) == [dashboard.Minute(MINUTE, 2, 20, 18, 200, None, None)]
    assert dashboard.tables(conn, "shop") == [
        dashboard.TableFigures("shop", "items", 10, 1, 2, 3, 109_000_000),
        dashboard.TableFigures("shop", "orders", 20, 2, 4, 6, 109_000_000),
    ]


def beat(agent: str, at_us: int, lag_ms: float, ordinal: int, state: str = "capturing") -> HealthReported:
    return HealthReported(
        agent=agent, source="shop", state=state, at_us=at_us, ordinal=ordinal, figures={"lag_ms": lag_ms}
    )


def test_minutes_show_the_worst_lag_and_the_newest_step(conn: Connection, feed: Feed) -> None:
    feed(
        granule(1, 10, time=0),
        beat("a", 5, 3.0, 4),
        beat("a", 6, 9.0, 7),
        beat("b", 7, 1.0, 2),
        beat("a", MINUTE, 2.0, 9),
    )
    assert dashboard.minutes(conn, "shop", 0, 2 * MINUTE) == [
        dashboard.Minute(0, 1, 10, 6, 100, 9.0, 7),
        dashboard.Minute(MINUTE, 0, 0, 0, 0, 2.0, 9),
    ]
    assert dashboard.minutes(conn, "shop", MINUTE, MINUTE) == []


def test_the_last_heartbeat_of_each_agent_is_known(conn: Connection, feed: Feed) -> None:
    feed(beat("a", 5, 3.0, 4), beat("b", 7, 1.0, 2), beat("a", 9, 2.0, 8, "paused"), beat("a", 6, 2.0, 7))
    assert [(h.agent, h.at_us, h.state, h.figures) for h in dashboard.agents(conn)] == [
        ("a", 9, "paused", {"lag_ms": 2.0}),
        ("b", 7, "capturing", {"lag_ms": 1.0}),
    ]
    assert [h.agent for h in dashboard.agents(conn, "crm")] == []
