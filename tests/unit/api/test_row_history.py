"""Every version of a row, on steps of real servers: by the key index, in the tail, and where there is no index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from deploy.demo.server import DatabaseServer
from streams.key_runs import fan_of
from tests.stack.running_api import CapturedLog, Client, RunningApi

ITEM, WORD = "row_shop/item", "row_shop/word"


def ordinals(found: dict[str, Any]) -> list[int]:
    return [v["ordinal"] for v in found["items"]]


@pytest.fixture(scope="module")
def history(shop: CapturedLog) -> Iterator[CapturedLog]:
    yield fill(shop)
    shop.execute("drop database if exists row_shop")


@pytest.fixture(scope="module")
def history_of_mysql(api: RunningApi, databases: Callable[[str], DatabaseServer]) -> Iterator[CapturedLog]:
    with closing(CapturedLog(api, databases("mysql-9"), "orders")) as log:
        api.apply()
        yield fill(log)
        log.execute("drop database if exists row_shop")


@pytest.fixture
def each(request: pytest.FixtureRequest) -> CapturedLog:
    """One of the two."""
    found: CapturedLog = request.getfixturevalue(request.param)
    return found


on_both = pytest.mark.parametrize("each", ["history", "history_of_mysql"], indirect=True)


def fill(log: CapturedLog) -> CapturedLog:
    """Three granules: one without keys, two with; and a tail. Row 3 of `item` is in all of them."""
    log.execute(
        "drop database if exists row_shop",
        "create database row_shop",
        "create table row_shop.item (id int primary key, name varchar(40) character set utf8mb4, n int)",
        "create table row_shop.word (w varchar(20) character set utf8mb4 collate utf8mb4_general_ci, k int, n int,"
        " primary key (w, k))",
        "create table row_shop.exact (w varchar(20) character set utf8mb4 collate utf8mb4_bin primary key, n int)",
        "create table row_shop.spaced (w varchar(20) character set utf8mb4 collate"
        f" {'utf8mb4_0900_ai_ci' if log.source == 'orders' else 'utf8mb4_general_nopad_ci'} primary key)",
        "create table row_shop.bare (n int)",
    )
    log.record_schema()
    log.execute(*(f"insert into row_shop.item values ({i}, 'first', {i})" for i in range(6)))
    log.close_granule()
    log.execute(
        "update row_shop.item set n = n + 1 where id in (3, 4)",
        "insert into row_shop.word values ('Zoë', 1, 0), ('zoe', 2, 0)",
        "insert into row_shop.exact values ('A', 1), ('a', 2)",
        "insert into row_shop.spaced values ('x'), ('x ')",
        "update row_shop.item set id = 30 where id = 3",
    )
    log.close_granule(keys=True)
    log.execute(
        "update row_shop.item set name = 'moved' where id = 30",
        "update row_shop.item set id = 3 where id = 30",
        "update row_shop.word set n = 9 where w = 'ZOE'",
        "delete from row_shop.item where id = 3",
    )
    log.close_granule(keys=True)
    log.execute("insert into row_shop.item values (3, 'again', 0)", "update row_shop.exact set n = 5")
    return log


@pytest.fixture
def auditor(api: RunningApi) -> Client:
    return api.client("auditor")


def path(table: str, log: CapturedLog | None = None) -> str:
    schema, _, name = table.partition("/")
    return f"/v1/sources/{log.source if log is not None else 'shop'}/rows/{schema}/{name}/history"


@on_both
def test_every_version_of_a_row_is_there_with_its_transaction(each: CapturedLog, auditor: Client) -> None:
    found = auditor.get(path(ITEM, each), key="3")
    assert [v["operation"] for v in found["items"]] == ["insert", "delete", "update", "update", "update", "insert"]
    assert (found["key_columns"], found["key"], found["next"]) == (["id"], ["3"], None)
    newest, oldest = found["items"][0], found["items"][-1]
    assert newest["position"] == each.written[newest["ordinal"] - 1].summary.gtid
    assert (newest["before"], newest["after"]["name"], newest["kind"]) == (None, "again", "rows")
    assert (oldest["before"], oldest["after"]) == (None, {"id": 3, "name": "first", "n": 3})
    assert found["items"][4]["changed"] == ["n"]
    assert all(v["stands"] and not v["own"] for v in found["items"])
    # Where its key changed, the other one is named: to follow the row is to ask for that.
    back, away = found["items"][2], found["items"][3]
    assert (back["moved_from"], back["moved_to"]) == ([30], None)
    assert (away["moved_to"], away["moved_from"]) == ([30], None)
    other = auditor.get(path(ITEM, each), key="30")
    assert [v["operation"] for v in other["items"]] == ["update"] * 3
    assert (other["items"][0]["moved_to"], other["items"][2]["moved_from"]) == ([3], [3])
    assert [c["key"] for c in found["columns"]] == [True, False, False]


def test_pages_lead_through_all_versions(history: CapturedLog, auditor: Client) -> None:
    whole = auditor.get(path(ITEM), key="3")
    for limit in (1, 2, 3):
        found: list[Any] = []
        before = None
        while True:
            page = auditor.get(path(ITEM), key="3", limit=limit, before=before)
            found += page["items"]
            before = page["next"]
            if before is None:
                break
        assert found == whole["items"]


@on_both
def test_text_keys_are_compared_as_their_collation_does(each: CapturedLog, auditor: Client) -> None:
    assert len(auditor.get(path(WORD, each), key="ZOE,1")["items"]) == 2
    assert len(auditor.get(path(WORD, each), key="zoë,2")["items"]) == 2
    assert auditor.get(path(WORD, each), key="zoe,3")["items"] == []
    upper = auditor.get(path("row_shop/exact", each), key="A")["items"]
    assert [v["after"]["n"] for v in upper] == [5, 1]
    assert [v["after"]["n"] for v in auditor.get(path("row_shop/exact", each), key="a")["items"]] == [5, 2]
    for word in ("x", "x "):  # not padded, so they are two
        assert [v["after"]["w"] for v in auditor.get(path("row_shop/spaced", each), key=word)["items"]] == [word]


def test_what_cannot_be_answered_is_refused(history: CapturedLog, auditor: Client, api: RunningApi) -> None:
    assert auditor.refused("GET", path("row_shop/bare") + "?key=1", 422) == "no-key"
    assert auditor.refused("GET", path("row_shop/nothing") + "?key=1", 404) == "table-unknown"
    assert auditor.refused("GET", path(ITEM) + "?key=x", 422) == "key-invalid"
    assert auditor.refused("GET", path(WORD) + "?key=x", 422) == "key-invalid"
    assert auditor.refused("GET", path(ITEM), 422) == "request-invalid"
    assert api.client("viewer").refused("GET", path(ITEM) + "?key=1", 403) == "role-insufficient"
    assert auditor.get(path(ITEM), key="12345")["items"] == []


def test_the_index_says_no_more_than_the_log(history: CapturedLog, auditor: Client, api: RunningApi) -> None:
    """A step that the index names and that did not write the row is no version. (Hashes may meet; here they are made to.)"""
    site: Any = api.server.config.app.state.site  # type: ignore[union-attr]
    with site.views() as conn:
        rows = conn.execute("SELECT count(*), sum(length(entries)) FROM key_run WHERE source = 'shop'").fetchone()
        assert rows[0] == 2
        before = auditor.get(path(ITEM), key="4")
        saved = conn.execute("SELECT first_ordinal, fan, entries FROM key_run WHERE source = 'shop'").fetchall()
        for first, _, entries in saved:
            lie = b"".join(
                entries[i : i + 8] + step.to_bytes(4, "big") for i in range(0, len(entries), 12) for step in range(4)
            )
            lie = b"".join(sorted({lie[i : i + 12] for i in range(0, len(lie), 12)}))
            conn.execute(
                "UPDATE key_run SET entries = %s, fan = %s WHERE source = 'shop' AND first_ordinal = %s",
                (lie, fan_of(lie), first),
            )
        try:
            assert auditor.get(path(ITEM), key="4") == before
        finally:
            for first, fan, entries in saved:
                conn.execute(
                    "UPDATE key_run SET entries = %s, fan = %s WHERE source = 'shop' AND first_ordinal = %s",
                    (entries, fan, first),
                )
