"""Sources: the last change counts, a zombie's does not, lineages are remembered."""

from __future__ import annotations

from typing import Any

from projections.database import Connection
from projections.views import catalogue
from streams.events import Problem, SourceChanged, SourceDefined
from tests.unit.projections.conftest import Feed

ONE, TWO = "11111111-0000-7000-8000-000000000000", "22222222-0000-7000-8000-000000000000"


def defined(at_us: int, host: str = "127.0.0.1") -> SourceDefined:
    return SourceDefined(
        source="shop",
        kind="mariadb",
        host=host,
        port=3306,
        accounts={"capture": "hf"},
        secrets={"capture": "sources/shop/capture@1"},
        defined_us=at_us,
        by="ada",
    )


def changed(state: str, at_us: int, lineage: str | None = ONE, epoch: int = 1, **more: Any) -> SourceChanged:
    return SourceChanged(lineage=lineage, epoch=epoch, source="shop", state=state, at_us=at_us, by="agent-1", **more)


def shop(conn: Connection) -> catalogue.Source:
    found = catalogue.source(conn, "shop")
    assert found is not None
    return found


def test_a_source_is_defined_and_captured(conn: Connection, feed: Feed) -> None:
    feed(defined(1))
    assert (shop(conn).state, shop(conn).lineage, shop(conn).secrets) == (
        "defined",
        None,
        {"capture": "sources/shop/capture@1"},
    )
    feed(changed("baseline", 2), changed("capturing", 3, server_version="10.11.6", capability=("keys",), baseline="b1"))
    feed(changed("paused", 4, position="0-1-9", ordinal=9))
    source = shop(conn)
    assert (source.state, source.state_us, source.lineage, source.epoch) == ("paused", 4, ONE, 1)
    # What a later change does not repeat stays.
    assert (source.server_version, source.capability, source.baseline) == ("10.11.6", ("keys",), "b1")
    assert (source.position, source.ordinal) == ("0-1-9", 9)


def test_problems_are_those_of_the_last_change(conn: Connection, feed: Feed) -> None:
    feed(defined(1), changed("stopped", 2, problems=(Problem("capture-purged", "gone", "baseline"),)))
    assert shop(conn).problems == (Problem("capture-purged", "gone", "baseline"),)
    feed(changed("capturing", 3, epoch=2))
    assert shop(conn).problems == ()


def test_a_lower_epoch_of_the_same_lineage_changes_nothing(conn: Connection, feed: Feed) -> None:
    feed(defined(1), changed("capturing", 2, epoch=5), changed("stopped", 9, epoch=4))
    assert (shop(conn).state, shop(conn).epoch) == ("capturing", 5)
    assert [e.state for e in catalogue.history(conn, "shop")] == ["stopped", "capturing", "defined"]


def test_a_new_lineage_begins_its_epochs_anew(conn: Connection, feed: Feed) -> None:
    feed(defined(1), changed("capturing", 2, epoch=5), changed("baseline", 3, TWO, 1))
    assert (shop(conn).lineage, shop(conn).epoch, shop(conn).state) == (TWO, 1, "baseline")
    assert [(x.lineage, x.epoch) for x in catalogue.lineages(conn, "shop")] == [(TWO, 1), (ONE, 5)]


def test_a_change_that_names_no_lineage_leaves_it(conn: Connection, feed: Feed) -> None:
    feed(defined(1), changed("capturing", 2, epoch=3), changed("removed", 3, None, 0))
    assert (shop(conn).state, shop(conn).lineage, shop(conn).epoch) == ("removed", ONE, 3)
    assert catalogue.sources(conn) == []
    assert [s.source for s in catalogue.sources(conn, removed=True)] == ["shop"]


def test_a_removed_source_can_be_defined_again(conn: Connection, feed: Feed) -> None:
    feed(defined(1), changed("capturing", 2), changed("removed", 3, None, 0), defined(4, host="db2"))
    assert (shop(conn).state, shop(conn).host, shop(conn).state_us) == ("defined", "db2", 4)
    feed(changed("capturing", 5), defined(6, host="db3"))
    assert (shop(conn).state, shop(conn).host) == ("capturing", "db3")
