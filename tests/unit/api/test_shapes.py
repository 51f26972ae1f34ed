"""What the API says of things, made from rows of the read models."""

from __future__ import annotations

from api import shapes
from projections.views.catalogue import Source
from projections.views.dashboard import AgentHealth

SHOP = Source(
    source="shop", kind="mariadb", host="db", port=3306, tls="off", tls_ca="", accounts={}, secrets={}, options={},
    defined_us=1, defined_by="a", state="capturing", state_us=1_000, state_by="agent", lineage="l", epoch=3,
    server_version="10.11", capability=(), position="0-1-79", ordinal=79, baseline="b", problems=(),
)  # fmt: skip


def health(agent: str, at_us: int, ordinal: int, position: str, source: str = "shop") -> AgentHealth:
    return AgentHealth(agent, source, "capturing", at_us, 1, "e", ordinal, position, {})


def test_a_source_stands_where_its_agents_last_reported() -> None:
    reports = [
        health("capture", 2_000, 204, "0-1-219"),
        health("index", 2_000, 187, "0-1-202"),
        health("capture", 2_000, 900, "0-1-900", source="crm"),
    ]
    said = shapes.source(SHOP, reports)
    assert (said["ordinal"], said["position"]) == (204, "0-1-219")
    assert [a["agent"] for a in said["agents"]] == ["capture", "index"]


def test_reports_older_than_the_last_change_say_nothing_of_it() -> None:
    said = shapes.source(SHOP, [health("capture", 999, 5_000, "0-1-5000")])
    assert (said["ordinal"], said["position"]) == (79, "0-1-79")
