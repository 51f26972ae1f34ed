"""Pages, single steps, filters, branches and streams of a timeline whose steps a real MariaDB wrote."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deploy.demo.mariadb import MariaDB
from streams.events import LineageStarted, OrdinalRange, RollbackPlanned, SchemaRecorded, TableDefinition
from streams.ids import now_us, uuid7
from tests.stack.running_api import CapturedLog, Client, RunningApi, eventually

PAGE = "/v1/sources/shop/steps"


@pytest.fixture(scope="module")
def history(shop: CapturedLog) -> Iterator[CapturedLog]:
    """1 database, 2 and 3 tables, 4–23 inserts, closed; then in the tail: 24 an update of three rows, 25 a delete, 26 an
    account statement, 27 Holdfast's own schema, 28 its table, 29 a step of two tables."""
    shop.execute(
        "drop database if exists api_shop",
        "create database api_shop",
        "create table api_shop.item (id int unsigned primary key, name varchar(40) character set utf8mb4, price decimal(8,2),"
        " photo blob, big bigint, seen datetime(3))",
        "create table api_shop.note (id int auto_increment primary key, text text)",
    )
    # What came before the test's own database is none of its business: ordinals count from the first of its steps.
    for i in range(20):
        shop.execute(
            f"insert into api_shop.item values ({i}, 'Zoë {i}', {i}.50, x'00ff', 9007199254740993, '2026-01-01 10:00:00.5')"
        )
    shop.close_granule()
    shop.execute(
        "update api_shop.item set name = 'changed', price = price + 1 where id in (3, 4, 5)",
        "delete from api_shop.item where id = 7",
        "create user 'api_victim'@'localhost' identified by 'very-secret-password'",
    )
    with shop.admin.cursor() as cursor:
        cursor.execute("drop user 'api_victim'@'localhost'")
        cursor.execute("create database if not exists holdfast")
        cursor.execute(
            "create table if not exists holdfast.marker"
            " (plan varchar(36) primary key, digest varbinary(32), kind varchar(16), at_us bigint)"
        )
        cursor.execute("begin")
        cursor.execute("insert into api_shop.note (text) values ('first'), ('second')")
        cursor.execute("update api_shop.item set photo = null where id = 1")
        cursor.execute("commit")
    shop.pull()
    yield shop
    shop.execute("drop database if exists api_shop", "drop database if exists holdfast")


@pytest.fixture
def viewer(api: RunningApi) -> Client:
    return api.client("viewer")


@pytest.fixture
def auditor(api: RunningApi) -> Client:
    return api.client("auditor")


def test_the_newest_steps_come_first_and_at_once(history: CapturedLog, viewer: Client) -> None:
    page = viewer.get(PAGE, limit=3)
    head = len(history.written)
    assert page["head"] == head
    assert page["lineage"] == history.lineage
    assert page["path"] == [[1, head]]
    assert [s["ordinal"] for s in page["items"]] == [head, head - 1, head - 2]
    newest = page["items"][0]
    assert newest["id"] == f"shop/{history.lineage}:{head}"
    assert newest["position"] == history.written[-1].summary.gtid
    assert newest["kind"] == "rows"
    assert newest["stands"] is True
    assert newest["bytes"] == len(history.written[-1].payload)
    assert newest["tables"] == [
        {"schema": "api_shop", "table": "item", "inserts": 0, "updates": 1, "deletes": 0},
        {"schema": "api_shop", "table": "note", "inserts": 2, "updates": 0, "deletes": 0},
    ]
    assert newest["rows"] == 3
    # What is written a moment later is there a moment later, with nothing indexed in between.
    history.execute("insert into api_shop.note (text) values ('third')")
    assert viewer.get(PAGE, limit=1)["head"] == head + 1


def test_pages_lead_through_the_whole_timeline_without_gap_or_repetition(history: CapturedLog, viewer: Client) -> None:
    seen: list[int] = []
    before: int | None = None
    while True:
        page = viewer.get(PAGE, limit=7, before=before)
        seen += [s["ordinal"] for s in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert seen == list(range(len(history.written), 0, -1))


def test_what_a_page_says_of_a_step_is_what_the_step_is(history: CapturedLog, viewer: Client) -> None:
    page = viewer.get(PAGE, limit=1000)
    for step in page["items"]:
        written = history.written[step["ordinal"] - 1]
        assert step["position"] == written.summary.gtid
        assert step["time"] == datetime.fromtimestamp(written.summary.commit_time, UTC).strftime(
            "%Y-%m-%dT%H:%M:%S.%fZ"
        )
        assert {(t["schema"], t["table"]) for t in step["tables"]} == set(written.summary.changes)


def test_account_statements_are_never_shown(history: CapturedLog, viewer: Client, auditor: Client) -> None:
    accounts = [s for s in viewer.get(PAGE, limit=1000)["items"] if s["kind"] == "account"]
    assert accounts
    assert {s["text"] for s in accounts} == {"account statement"}
    shown = auditor.call("GET", f"{PAGE}/{accounts[0]['ordinal']}")
    assert shown.json()["changes"] == []
    assert "very-secret" not in shown.text
    assert "api_victim" not in shown.text


def test_definitions_of_holdfasts_own_schema_are_told_from_the_users(history: CapturedLog, viewer: Client) -> None:
    steps = {s["text"].split("(")[0].strip(): s for s in viewer.get(PAGE, limit=1000)["items"] if s["kind"] == "ddl"}
    assert steps["create database if not exists holdfast"]["own"]
    assert steps["create table if not exists holdfast.marker"]["own"]
    assert not steps["create database api_shop"]["own"]


def test_a_table_filter_finds_its_steps_in_granules_and_tail(history: CapturedLog, viewer: Client) -> None:
    expected = [s.ordinal for s in history.written if ("api_shop", "item") in s.summary.changes][::-1]
    found: list[int] = []
    before: int | None = None
    while True:
        page = viewer.get(PAGE, table="api_shop.item", limit=4, before=before)
        found += [s["ordinal"] for s in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert found == expected
    assert viewer.get(PAGE, table="api_shop.nosuch")["items"] == []


def test_large_steps_are_listed_from_their_granule_without_being_read(
    api: RunningApi, history: CapturedLog, viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is large is a matter of a number: with a small one, a granule's last step comes from the index alone."""
    history.close_granule()
    whole = viewer.get(PAGE, limit=1000)["items"]
    wanted = viewer.get(PAGE, table="api_shop.item", limit=1000)["items"]
    gtid = whole[0]["position"]
    read: list[int] = []
    timeline = api.server.config.app.state.site.timelines.of("shop")  # type: ignore[union-attr]
    real = timeline.log.steps

    def watched(lineage: str, first: int, last: int, near: int | None = None, wanted: Any = None) -> Any:
        read.extend(range(first, last + 1))
        return real(lineage, first, last, near, wanted)

    monkeypatch.setattr(timeline.log, "steps", watched)
    monkeypatch.setattr("api.timeline.source._LARGE_GRANULE", 200)
    assert viewer.get(PAGE, limit=1000)["items"] == whole
    assert viewer.get(PAGE, table="api_shop.item", limit=1000)["items"] == wanted
    assert viewer.get(PAGE, limit=1)["items"] == whole[:1]
    resolved = api.client("operator").call("POST", "/v1/sources/shop/rollbacks", json={"to_position": gtid})
    assert resolved.json()["code"] == "nothing-to-do", "the newest step is where the source is"
    assert whole[0]["ordinal"] not in read


def test_a_time_filter_includes_both_ends(history: CapturedLog, viewer: Client) -> None:
    times = sorted({s.summary.commit_time for s in history.written})
    first, last = times[0], times[-1]
    for since, until in ((first, last), (first, first), (last, last), (last + 5, last + 6)):
        page = viewer.get(PAGE, since=_text(since), until=_text(until), limit=1000)
        expected = [s.ordinal for s in history.written if since <= s.summary.commit_time <= until][::-1]
        assert [s["ordinal"] for s in page["items"]] == expected


def _text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def test_a_step_is_shown_with_its_rows_before_and_after(history: CapturedLog, auditor: Client) -> None:
    ordinal = next(s.ordinal for s in history.written if 3 in s.summary.changes.get(("api_shop", "item"), ()))
    step = auditor.get(f"{PAGE}/{ordinal}")
    assert [c["operation"] for c in step["changes"]] == ["update"] * 3
    first = step["changes"][0]
    assert first["changed"] == ["name", "price"]
    assert (first["before"]["name"], first["after"]["name"]) == ("Zoë 3", "changed")
    assert (first["before"]["price"], first["after"]["price"]) == ("3.50", "4.50")
    assert first["before"]["photo"] == {"bytes": 2, "hex": "00ff"}
    assert first["before"]["big"] == "9007199254740993"
    assert first["before"]["seen"] == "2026-01-01 10:00:00.500"
    columns = step["columns"][0]["columns"]
    assert [c["name"] for c in columns] == ["id", "name", "price", "photo", "big", "seen"]
    assert [c["name"] for c in columns if c["key"]] == ["id"]
    part = auditor.get(f"{PAGE}/{ordinal}", offset=1, limit=1)
    assert part["changes"] == step["changes"][1:2]
    assert part["next"] == 2
    assert auditor.get(f"{PAGE}/{ordinal}", offset=2, limit=5)["next"] is None


def test_row_values_are_not_for_viewers(history: CapturedLog, viewer: Client) -> None:
    assert viewer.refused("GET", f"{PAGE}/5", 403) == "role-insufficient"


def test_a_step_that_is_not_there_is_not_shown(history: CapturedLog, auditor: Client) -> None:
    assert auditor.refused("GET", f"{PAGE}/999999", 404) == "step-unknown"
    assert auditor.refused("GET", f"{PAGE}/0", 422) == "request-invalid"
    assert auditor.refused("GET", f"{PAGE}/1?lineage={uuid7()}", 404) == "lineage-unknown"


def test_names_and_types_come_from_the_schema_where_the_log_has_none(
    api: RunningApi, history: CapturedLog, auditor: Client
) -> None:
    """The server logs a UUID as 16 bytes; what it is declared as stands in `schema.shop`."""
    history.execute(
        "create table api_shop.token (id uuid primary key, left_out varchar(10))",
        "insert into api_shop.token values ('123e4567-e89b-12d3-a456-426655440000', 'x')",
    )
    ordinal = history.written[-1].ordinal
    shown = auditor.get(f"{PAGE}/{ordinal}")["changes"][0]["after"]["id"]
    assert shown["bytes"] == 16
    definition = (
        '{"columns":[{"name":"id","type":"uuid","charset":null},{"name":"left_out","type":"varchar(10)","charset":"utf8mb4"}],'
        '"primary_key":["id"]}'
    )
    table = TableDefinition("api_shop", "token", "create table …", definition, bytes(32))
    api.scribe.write(
        SchemaRecorded(
            source="shop", lineage=history.lineage, epoch=1, ordinal=ordinal - 1, position="", full=False, origin="replayed",
            statement="create table …", tables=(table,), version=bytes(32), at_us=now_us(),
        )
    )  # fmt: skip
    described = eventually(
        lambda: auditor.get(f"{PAGE}/{ordinal}")["changes"][0]["after"]["id"] == "123e4567-e89b-12d3-a456-426655440000"
    )
    assert described


def test_a_source_of_which_nothing_was_captured_has_an_empty_timeline(
    api: RunningApi, shop: CapturedLog, viewer: Client
) -> None:
    from streams.events import SourceDefined

    api.scribe.write(SourceDefined(source="empty", kind="mariadb", host="h", port=1, defined_us=now_us(), by="test"))
    api.apply("catalogue")
    page = viewer.get("/v1/sources/empty/steps")
    assert (page["lineage"], page["items"], page["next"], page["head"]) == (None, [], None, 0)
    assert viewer.get("/v1/sources/empty/branches")["turns"] == []


def test_steps_are_streamed_as_they_come_and_resumed_after_the_last_one_seen(
    api: RunningApi, history: CapturedLog, viewer: Client
) -> None:
    head = len(history.written)
    with viewer.events(f"{PAGE}/stream") as events:
        history.execute(
            "insert into api_shop.note (text) values ('live 1')", "insert into api_shop.note (text) values ('live 2')"
        )
        first = next(e for e in events if e[0] == "step")
        second = next(e for e in events if e[0] == "step")
    assert first[1] == f"{history.lineage}:{head + 1}"
    assert second[2]["ordinal"] == head + 2
    history.execute("insert into api_shop.item (id, name) values (500, 'live 3')")
    with viewer.events(f"{PAGE}/stream", headers={"Last-Event-ID": first[1]}) as events:
        resumed = [next(e for e in events if e[0] == "step")[2]["ordinal"] for _ in range(2)]
    assert resumed == [head + 2, head + 3]
    with viewer.events(f"{PAGE}/stream", params={"after": head, "table": "api_shop.item"}) as events:
        assert next(e for e in events if e[0] == "step")[2]["ordinal"] == head + 3


def test_a_silent_stream_says_that_it_lives(
    history: CapturedLog, viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    import api.sse

    monkeypatch.setattr(api.sse.body, "__defaults__", (0.2,))
    with viewer.events(f"{PAGE}/stream") as events:
        assert next(events)[2] == "still here"


# --- rollbacks of it -------------------------------------------------------------------------------------------------


def _marker(history: CapturedLog, plan: str, *statements: str) -> int:
    """What a rollback leaves in the log: its changes and the marker, in one step. The step's ordinal."""
    with history.admin.cursor() as cursor:
        cursor.execute("begin")
        for statement in statements:
            cursor.execute(statement)
        cursor.execute("insert into holdfast.marker values (%s, x'00', 'rollback', 1)", (plan,))
        cursor.execute("commit")
    return history.pull()[-1].ordinal


def _planned(api: RunningApi, history: CapturedLog, before: list[Any], after: list[Any], kind: str = "rollback") -> str:
    plan = uuid7()
    ranges = [tuple(OrdinalRange(*r) for r in path) for path in (before, after)]
    api.scribe.write(
        RollbackPlanned(
            plan=plan, source="shop", lineage=history.lineage, epoch=0, kind=kind, target="2 steps back",
            target_ordinal=after[-1][1], target_time_us=now_us(), head_ordinal=before[-1][1], path_before=ranges[0],
            path_after=ranges[1], undo=(), redo=(), steps=2, rows=2, payload_bytes=100, tables=(), schema_version=bytes(32),
            digest=bytes(32), planned_us=now_us(), by="agent",
        )
    )  # fmt: skip
    return plan


def test_a_rollback_bends_the_path_whether_its_marker_is_indexed_or_not(
    api: RunningApi, history: CapturedLog, viewer: Client
) -> None:
    history.execute(
        "insert into api_shop.item (id, name) values (600, 'a')",
        "insert into api_shop.item (id, name) values (601, 'b')",
    )
    head = len(history.written)
    plan = _planned(api, history, [[1, head]], [[1, head - 2]])
    marker = _marker(history, plan, "delete from api_shop.item where id in (600, 601)")
    assert marker == head + 1
    eventually(lambda: viewer.call("GET", PAGE).status_code == 200)

    def check() -> None:
        page = viewer.get(PAGE, limit=5)
        assert page["path"] == [[1, head - 2]]
        stands = {s["ordinal"]: s["stands"] for s in page["items"]}
        assert stands == {head + 1: False, head: False, head - 1: False, head - 2: True, head - 3: True}
        own = page["items"][0]
        assert (own["kind"], own["plan"], own["own"]) == ("rollback", plan, True)
        turns = viewer.get("/v1/sources/shop/branches")["turns"]
        assert [(t["ordinal"], t["plan"], t["path_after"]) for t in turns] == [(marker, plan, [[1, head - 2]])]

    check()
    history.close_granule()
    check()
    # And for an API that sees it for the first time in a granule.
    site = api.server.config.app.state.site  # type: ignore[union-attr]
    site.timelines.close()
    check()


def test_markers_that_a_loaded_dump_brings_turn_nothing(api: RunningApi, history: CapturedLog, viewer: Client) -> None:
    """A dump of all databases holds schema `holdfast`, with the markers of rollbacks here or on another server."""
    history.execute(*(f"insert into api_shop.item (id, name) values ({n}, 'a')" for n in (8001, 8002)))
    head = len(history.written)
    before = viewer.get(PAGE, limit=1)["path"]
    stands = [*before[:-1], [before[-1][0], head - 1]]
    plan = _planned(api, history, before, stands)
    _marker(history, plan, "delete from api_shop.item where id = 8002")
    assert eventually(lambda: viewer.call("GET", PAGE).json().get("path")) == stands
    history.execute("insert into api_shop.item (id, name) values (8003, 'b')")
    stranger = uuid7()
    _marker(history, stranger)
    rows = ", ".join(f"('{name}', x'00', 'rollback', 1)" for name in (plan, stranger))
    empty = "delete from holdfast.marker"
    history.execute(empty, f"insert into holdfast.marker values {rows}", empty)
    _marker(history, plan)

    def check() -> None:
        page = viewer.get(PAGE, limit=1)
        assert page["path"] == [*stands, [head + 2, page["head"]]]
        assert viewer.get("/v1/sources/shop/branches")["turns"][-1]["plan"] == plan

    check()
    history.close_granule()
    site = api.server.config.app.state.site  # type: ignore[union-attr]
    site.timelines.close()
    check()


# --- targets ---------------------------------------------------------------------------------------------------------


def _plan(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    target: dict[str, Any] = client.post("/v1/sources/shop/rollbacks", body)["target"]
    return target


def test_targets_by_steps_time_position_and_ordinal_are_resolved(api: RunningApi, history: CapturedLog) -> None:
    operator = api.client("operator")
    for i in range(3):
        history.execute(f"insert into api_shop.item (id, name) values ({700 + i}, 't')")
    head = len(history.written)
    path = operator.get(PAGE, limit=1)["path"]
    assert _plan(operator, {"steps": 2})["ordinal"] == head - 2
    assert _plan(operator, {"to_step": head - 1})["undo"] == [[head, head]]
    gtid = history.written[head - 3].summary.gtid
    by_position = _plan(operator, {"to_position": gtid})
    assert (by_position["ordinal"], by_position["position"]) == (head - 2, gtid)
    assert by_position["path_before"] == path
    early = next(s for s in history.written if ("api_shop", "item") in s.summary.changes)
    closed = _plan(operator, {"to_position": early.summary.gtid})
    assert (closed["ordinal"], closed["position"]) == (early.ordinal, early.summary.gtid)
    baseline = _plan(operator, {"to_step": 0})
    assert (baseline["ordinal"], baseline["path_after"], baseline["time"]) == (0, [], None)
    first_time = history.written[0].summary.commit_time
    expected = max(s.ordinal for s in history.written if s.summary.commit_time <= first_time)
    at = operator.post("/v1/sources/shop/rollbacks", {"to_time": _text(first_time)})["target"]
    assert at["ordinal"] == expected


def test_a_command_carries_the_resolved_target(api: RunningApi, history: CapturedLog) -> None:
    import json

    operator = api.client("operator")
    answer = operator.post("/v1/sources/shop/rollbacks", {"steps": 1, "options": {"whole_source": False}})
    job = operator.get(f"/v1/jobs/{answer['job']}")
    assert (job["kind"], job["asset"], job["state"], job["requester"]) == (
        "rollback.plan",
        "shop",
        "requested",
        "a-operator",
    )
    api.apply("jobs")
    from projections.views import jobs

    with api.server.config.app.state.site.views() as conn:  # type: ignore[union-attr]
        row = jobs.job(conn, answer["job"])
    assert row is not None
    parameters = json.loads(row.parameters)
    target = answer["target"]
    assert parameters == {
        "plan": answer["plan"],
        "kind": "rollback",
        "target": "1 step back",
        "target_ordinal": target["ordinal"],
        "target_time_us": history.written[target["ordinal"] - 1].summary.commit_time * 1_000_000,
        "lineage": history.lineage,
        "head_ordinal": len(history.written),
        "path_before": target["path_before"],
        "path_after": target["path_after"],
        "options": {"whole_source": False},
    }


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "target-missing"),
        ({"steps": 1, "to_step": 3}, 422, "targets-clash"),
        ({"steps": 10_000_000}, 422, "too-few-steps"),
        ({"to_step": 10_000_000}, 422, "step-unknown"),
        ({"to_position": "0-1-999999999"}, 422, "position-unknown"),
        ({"to_position": "nonsense"}, 422, "position-invalid"),
        ({"to_time": "2001-01-01T00:00:00Z"}, 422, "time-before-baseline"),
        ({"plan": "00000000-0000-7000-8000-000000000000"}, 422, "target-invalid"),
        ({"kind": "forward", "plan": "00000000-0000-7000-8000-000000000000"}, 422, "plan-not-applied"),
        ({"steps": 1, "lineage": "00000000-0000-7000-8000-000000000000"}, 409, "other-lineage"),
    ],
)
def test_a_target_that_makes_no_sense_is_explained(
    api: RunningApi, history: CapturedLog, body: dict[str, Any], status: int, code: str
) -> None:
    assert api.client("operator").refused("POST", "/v1/sources/shop/rollbacks", status, json=body) == code


def test_a_moment_after_the_newest_step_is_where_the_source_is(api: RunningApi, history: CapturedLog) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    operator = api.client("operator")
    assert operator.refused("POST", "/v1/sources/shop/rollbacks", 422, json={"to_time": later}) == "nothing-to-do"


def test_another_lineage_begins_an_empty_timeline_and_the_old_one_stays_readable(
    api: RunningApi, history: CapturedLog, viewer: Client
) -> None:
    """Last of this module: the source is reset."""
    old, head = history.lineage, len(history.written)
    history.close_granule()
    new = uuid7()
    from streams.capture_record import lineage_digest

    history._send(
        LineageStarted(
            source="shop", lineage=new, epoch=2, position="", server_id=1, server_version="10.11", reason="reset", baseline="",
            digest=lineage_digest(new, ""), at_us=now_us(),
        )
    )  # fmt: skip
    history._settle()
    page = viewer.get(PAGE)
    assert (page["lineage"], page["head"], page["items"]) == (new, 0, [])
    assert viewer.get(PAGE, lineage=old, limit=1)["items"][0]["ordinal"] == head
    refused = api.client("operator").refused("POST", "/v1/sources/shop/rollbacks", 409, json={"steps": 1})
    assert refused == "nothing-captured"


def test_a_mariadb_is_what_wrote_all_this(mariadb: MariaDB, history: CapturedLog) -> None:
    assert mariadb.version.startswith(("10.", "11."))
    assert len(history.written) > 40
