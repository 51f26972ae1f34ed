"""Plans as the API shows them, on steps of a real MariaDB: preview, SQL that really undoes, the digest that must be named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from streams.events import (
    CommandRequested,
    Dependant,
    OrdinalRange,
    Problem,
    RollbackChanged,
    RollbackPlanned,
    TableEffect,
)
from streams.ids import now_us, uuid7
from streams.paths import way
from tests.stack.agent import events
from tests.stack.running_api import CapturedLog, Client, RunningApi, eventually

ITEM = "api_roll.item"


@pytest.fixture(scope="module")
def history(shop: CapturedLog) -> Iterator[CapturedLog]:
    shop.execute(
        "drop database if exists api_roll",
        "create database api_roll",
        "create table api_roll.item (id int primary key, name varchar(40) character set utf8mb4, price decimal(8,2),"
        " total decimal(9,2) as (price * 2) stored)",
        "create table api_roll.free (text varchar(20))",
        *(f"insert into api_roll.item (id, name, price) values ({i}, 'it''s {i}\\\\', {i}.25)" for i in range(10)),
    )
    yield shop
    shop.execute("drop database if exists api_roll")


@pytest.fixture
def operator(api: RunningApi) -> Client:
    return api.client("operator")


def plan_of(api: RunningApi, history: CapturedLog, before: list[Any], after: list[Any], **more: Any) -> RollbackPlanned:
    """What an agent publishes when it has planned the way from `before` to `after`."""
    paths = [tuple(OrdinalRange(*r) for r in path) for path in (before, after)]
    undo, redo = way(*paths)
    event = RollbackPlanned(
        plan=uuid7(), source="shop", lineage=history.lineage, kind="rollback", target="3 steps back",
        target_ordinal=after[-1][1] if after else 0, target_time_us=now_us(), head_ordinal=before[-1][1], path_before=paths[0],
        path_after=paths[1], undo=undo, redo=redo, steps=3, rows=3, payload_bytes=1234,
        tables=(TableEffect("api_roll", "item", 1, 1, 1, True),), schema_version=bytes(32), options='{"whole_source":true}',
        estimate_ms=150, digest=b"\x07" * 32, planned_us=now_us(), by="agent-1",
    )  # fmt: skip
    event = replace(event, **more)
    api.scribe.write(event)
    return event


def seen(client: Client, plan: str) -> dict[str, Any]:
    return eventually(lambda: (a := client.call("GET", f"/v1/rollbacks/{plan}")).status_code == 200 and a.json()) or {}


def test_a_plan_is_shown_as_soon_as_it_is_in_the_log(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    head = len(history.written)
    warning = Problem("keyless-table", "free has no key", "add one")
    event = plan_of(api, history, [[1, head]], [[1, head - 2]], warnings=(warning,))
    live = seen(operator, event.plan)
    assert (live["state"], live["runnable"], live["digest"]) == ("planned", True, "07" * 32)
    assert (live["undo"], live["redo"], live["options"]) == ([[head - 1, head]], [], {"whole_source": True})
    assert live["warnings"] == [{"code": "keyless-table", "message": "free has no key", "hint": "add one"}]
    # The read model, when it has caught up, says the same.
    api.apply("timeline")
    api.server.config.app.state.site.live._plans.clear()  # type: ignore[union-attr]
    assert seen(operator, event.plan) == live
    assert operator.get("/v1/sources/shop/rollbacks", limit=1)["items"][0]["plan"] == event.plan


def test_what_became_of_a_plan_is_shown_before_the_read_model_knows(
    api: RunningApi, history: CapturedLog, operator: Client
) -> None:
    head = len(history.written)
    event = plan_of(api, history, [[1, head]], [[1, head - 1]])
    api.apply("timeline")
    applying = RollbackChanged(
        plan=event.plan, source="shop", lineage=history.lineage, state="applying", digest=event.digest, at_us=now_us(), by="a"
    )  # fmt: skip
    applied = replace(applying, state="applied", at_us=now_us() + 1, ordinal=head + 1, position="0-1-77", rows=5)
    api.scribe.write(applying, applied)
    done = eventually(lambda: (p := seen(operator, event.plan))["state"] == "applied" and p) or {}
    assert (done["ordinal"], done["position"], done["applied_rows"], done["runnable"]) == (head + 1, "0-1-77", 5, False)
    body = {"digest": event.digest.hex()}
    assert operator.refused("POST", f"/v1/rollbacks/{event.plan}/run", 409, json=body) == "plan-applied"
    assert operator.refused("POST", f"/v1/rollbacks/{event.plan}/abandon", 409) == "plan-applied"


def test_the_preview_shows_rows_as_they_are_and_as_they_would_be(
    api: RunningApi, history: CapturedLog, operator: Client
) -> None:
    first = len(history.written) + 1
    history.execute(
        "update api_roll.item set name = 'one' where id = 1",
        "update api_roll.item set name = 'two', price = 9 where id = 1",
        "delete from api_roll.item where id = 2",
        "insert into api_roll.item (id, name, price) values (50, 'new', 1)",
        "insert into api_roll.item (id, name, price) values (51, 'came and went', 1)",
        "delete from api_roll.item where id = 51",
        "update api_roll.item set id = 60 where id = 3",
        "insert into api_roll.free values ('x'), ('y')",
    )
    head = len(history.written)
    event = plan_of(api, history, [[1, head]], [[1, first - 1]])
    seen(operator, event.plan)
    shown = operator.get(f"/v1/rollbacks/{event.plan}/preview", limit=20)
    assert (shown["looked_at"], shown["steps"]) == (8, 8)
    tables = {t["table"]: t for t in shown["tables"]}
    assert all(t["complete"] for t in tables.values())
    rows = {(c["after"] or c["before"])["id"]: c for c in tables["item"]["changes"]}
    assert set(rows) == {1, 2, 3, 50}
    assert (rows[1]["before"]["name"], rows[1]["after"]["name"]) == ("two", "it's 1\\")
    assert rows[1]["changed"] == ["name", "price", "total"]
    assert (rows[1]["step"], rows[1]["operation"]) == (first + 1, "update")
    assert (rows[2]["before"], rows[2]["after"]["name"], rows[2]["operation"]) == (None, "it's 2\\", "insert")
    assert (rows[50]["after"], rows[50]["operation"]) == (None, "delete")
    assert (rows[3]["before"]["id"], rows[3]["after"]["id"]) == (60, 3)
    assert sorted(c["before"]["text"] for c in tables["free"]["changes"]) == ["x", "y"]
    few = operator.get(f"/v1/rollbacks/{event.plan}/preview", limit=2, table=ITEM)
    assert [len(t["changes"]) for t in few["tables"]] == [2]
    assert not few["tables"][0]["complete"]


def test_the_preview_of_another_branch_undoes_and_redoes(
    api: RunningApi, history: CapturedLog, operator: Client
) -> None:
    """The row that one branch changed and the other deleted: from what it is on this one to what it is on that."""
    base = len(history.written)
    history.execute(
        "update api_roll.item set name = 'this branch' where id = 5", "update api_roll.item set price = 7 where id = 6"
    )
    event = plan_of(api, history, [[1, base], [base + 1, base + 1]], [[1, base], [base + 2, base + 2]])
    seen(operator, event.plan)
    rows = operator.get(f"/v1/rollbacks/{event.plan}/preview", limit=20)["tables"][0]["changes"]
    found = {c["before"]["id"]: (c["before"], c["after"]) for c in rows}
    assert (found[5][0]["name"], found[5][1]["name"]) == ("this branch", "it's 5\\")
    assert (found[6][0]["price"], found[6][1]["price"]) == ("6.25", "7.00")


def test_the_sql_of_a_plan_takes_a_real_server_back(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    def checksum() -> list[tuple[Any, ...]]:
        return history.server.execute("checksum table api_roll.item, api_roll.free extended")

    wanted = checksum()
    first = len(history.written) + 1
    history.execute(
        "update api_roll.item set price = price * 2, name = concat(name, ' — Ω', char(10)) where id > 4",
        "delete from api_roll.item where id in (0, 8)",
        "insert into api_roll.item (id, name, price) values (90, null, 0)",
        "update api_roll.item set id = id + 1000",
        "insert into api_roll.free values ('p'), ('p')",
        "delete from api_roll.free where text = 'x'",
    )
    history.close_granule()
    history.execute("insert into api_roll.item (id, name, price) values (91, 'in the tail', 3)")
    head = len(history.written)
    assert checksum() != wanted
    event = plan_of(api, history, [[1, head]], [[1, first - 1]])
    seen(operator, event.plan)
    answer = operator.call("GET", f"/v1/rollbacks/{event.plan}/sql")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/sql")
    assert event.digest.hex() in answer.text
    lines = [line for line in answer.text.splitlines() if line and not line.startswith("--")]
    assert next(x for x in answer.text.splitlines() if x.startswith("-- undo step")) == f"-- undo step {head}"
    with history.admin.cursor() as cursor:
        # `total` is stored, which this test's log of definitions does not say: the server computes it all the same.
        for statement in "\n".join(lines).split(";\n"):
            if statement.strip(" ;\n"):
                cursor.execute(_without_generated(statement))
        cursor.execute("set sql_mode = default")
    history.pull()
    assert checksum() == wanted


def _without_generated(statement: str) -> str:
    import re

    if statement.startswith("INSERT INTO `api_roll`.`item`"):
        return re.sub(r", `total`\) VALUES \((.*), [^,]+\)$", r") VALUES (\1)", statement, flags=re.DOTALL)
    return re.sub(r", `total` = [^ ]+ WHERE", " WHERE", statement)


def test_only_the_plan_that_was_shown_runs(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    head = len(history.written)
    event = plan_of(api, history, [[1, head]], [[1, head - 1]])
    seen(operator, event.plan)
    run = f"/v1/rollbacks/{event.plan}/run"
    assert operator.refused("POST", run, 409, json={"digest": "08" * 32}) == "digest-differs"
    assert operator.refused("POST", run, 422, json={"digest": "07"}) == "request-invalid"
    assert operator.refused("POST", run, 422, json={}) == "request-invalid"
    checked = operator.post(run, {"digest": event.digest.hex(), "dry_run": True}, status=200)
    assert checked["plan"] == event.plan
    job = operator.post(run, {"digest": event.digest.hex()})["job"]
    shown = operator.get(f"/v1/jobs/{job}")
    assert (shown["kind"], shown["asset"], shown["requester"]) == ("rollback.run", "shop", "a-operator")


def test_a_plan_with_obstacles_does_not_run(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    head = len(history.written)
    obstacle = Problem("ddl-in-the-way", "step 7 is TRUNCATE", "restore that table from a base")
    event = plan_of(api, history, [[1, head]], [[1, head - 1]], obstacles=(obstacle,))
    assert not seen(operator, event.plan)["runnable"]
    answer = operator.call("POST", f"/v1/rollbacks/{event.plan}/run", json={"digest": event.digest.hex()})
    assert (answer.status_code, answer.json()["code"]) == (409, "plan-not-runnable")
    assert answer.json()["problems"] == [{"code": obstacle.code, "message": obstacle.message, "hint": obstacle.hint}]


def test_a_plan_made_before_newer_steps_does_not_pass_the_check(
    api: RunningApi, history: CapturedLog, operator: Client
) -> None:
    head = len(history.written)
    event = plan_of(api, history, [[1, head]], [[1, head - 1]])
    seen(operator, event.plan)
    history.execute("insert into api_roll.free values ('newer')")
    body = {"digest": event.digest.hex(), "dry_run": True}
    assert operator.refused("POST", f"/v1/rollbacks/{event.plan}/run", 409, json=body) == "plan-outdated"


def test_plans_are_listed_newest_first_page_by_page(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    head = len(history.written)
    made = [plan_of(api, history, [[1, head]], [[1, head - 1]]).plan for _ in range(5)]
    api.apply("timeline")
    listed: list[str] = []
    before = None
    while True:
        page = operator.get("/v1/sources/shop/rollbacks", limit=2, before=before)
        listed += [p["plan"] for p in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert listed[:5] == made[::-1]
    assert len(set(listed)) == len(listed)


def test_a_plan_that_needs_a_second_person_waits_for_one(
    api: RunningApi, history: CapturedLog, operator: Client
) -> None:
    head = len(history.written)
    options = '{"approval":true,"whole_source":true}'
    event = plan_of(api, history, [[1, head]], [[1, head - 1]], options=options, by="a-operator")
    assert seen(operator, event.plan)["options"] == {"approval": True, "whole_source": True}
    run, approve = (f"/v1/rollbacks/{event.plan}/{what}" for what in ("run", "approve"))
    body = {"digest": event.digest.hex()}
    assert operator.refused("POST", run, 409, json=body) == "approval-missing"
    assert operator.refused("POST", run, 409, json=body | {"dry_run": True}) == "approval-missing"
    assert operator.refused("POST", approve, 409, json=body) == "approval-own"
    admin = api.client("admin")
    assert admin.refused("POST", approve, 409, json={"digest": "08" * 32}) == "digest-differs"
    job = admin.post(approve, body)["job"]
    assert operator.get(f"/v1/jobs/{job}")["kind"] == "rollback.approve"
    # What the agent says of it:
    said = RollbackChanged(
        plan=event.plan, source="shop", lineage=history.lineage, state="approved", digest=event.digest, at_us=now_us(),
        by=admin.get("/v1/self")["actor"],
    )  # fmt: skip
    api.scribe.write(said)
    assert eventually(lambda: seen(operator, event.plan)["state"] == "approved")
    assert admin.refused("POST", run, 409, json=body) == "approval-missing"  # who approves does not run
    assert operator.post(run, body | {"dry_run": True}, status=200)["runnable"]
    api.apply("timeline")
    api.server.config.app.state.site.live._plans.clear()  # type: ignore[union-attr]
    operator.post(run, body)


# --- selective undo ------------------------------------------------------------------------------------------------------


def test_an_undo_is_asked_for_by_what_it_selects(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    history.execute("insert into api_roll.free values ('to be undone')")
    head = len(history.written)
    gtid = history.written[-1].summary.gtid
    asked = operator.post(
        "/v1/sources/shop/rollbacks",
        {"kind": "undo", "select": {"position": gtid, "table": "api_roll.free"}, "later": "cascade"},
        status=202,
    )
    target = asked["target"]
    assert (target["undo"], target["redo"], target["path_before"]) == ([[head, head]], [], target["path_after"])
    assert target["text"] == f"undo of api_roll.free in step {head} ({gtid})"
    command = next(c for c in events(api.settings, "commands", CommandRequested) if c.command == asked["job"])
    parameters = json.loads(command.parameters)
    assert parameters["kind"] == "undo"
    assert parameters["options"] == {
        "whole_source": False,
        "select": {"steps": [[head, head]], "table": ["api_roll", "free"], "keys": [], "later": "cascade"},
    }
    ranged = operator.post(
        "/v1/sources/shop/rollbacks",
        {"kind": "undo", "select": {"first": 5, "table": ITEM, "keys": [{"first": ["1"], "last": ["9"]}]}},
        status=202,
    )
    assert ranged["target"]["text"] == f"undo of api_roll.item keys 1..9 in steps 5 to {head}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "undo"}, "selection-missing"),
        ({"kind": "undo", "select": {"table": ITEM}}, "selection-missing"),
        ({"kind": "undo", "select": {"keys": [{"first": ["1"], "last": ["1"]}]}}, "table-missing"),
        ({"kind": "undo", "select": {"step": 3, "first": 2}}, "targets-clash"),
        ({"kind": "undo", "select": {"first": 3, "since": "2026-01-01T00:00:00Z"}}, "targets-clash"),
        ({"kind": "undo", "select": {"first": 3, "last": 2}}, "range-empty"),
        ({"kind": "undo", "steps": 3, "select": {"step": 3}}, "targets-clash"),
        ({"kind": "undo", "select": {"step": 3}, "later": "sometimes"}, "request-invalid"),
        ({"kind": "rollback", "steps": 1, "select": {"step": 3}}, "selection-unexpected"),
        ({"kind": "forward", "later": "force"}, "selection-unexpected"),
    ],
)
def test_an_undo_that_says_too_little_or_too_much_is_refused(
    history: CapturedLog, operator: Client, body: dict[str, Any], code: str
) -> None:
    assert operator.refused("POST", "/v1/sources/shop/rollbacks", 422, json=body) == code


@pytest.mark.parametrize("later", ["cascade", "force", "leave"])
def test_an_undo_is_shown_and_written_as_sql_row_by_row(
    api: RunningApi, history: CapturedLog, operator: Client, later: str
) -> None:
    """Step a wrote 1 to 3; b wrote 2 again, and 7. Both ways of looking agree with what each mode means."""
    history.execute("delete from api_roll.item")
    history.execute(*(f"insert into api_roll.item (id, name, price) values ({i}, 'was', 1)" for i in (1, 2, 3, 7)))
    history.record_schema()
    history.execute(
        "update api_roll.item set name = 'a' where id < 4", "update api_roll.item set name = 'b' where id in (2, 7)"
    )
    b = len(history.written)
    a = b - 1
    options = {
        "whole_source": False,
        "select": {"steps": [[a, a]], "table": ["api_roll", "item"], "keys": [[["2"], ["3"]]], "later": later},
    }
    taken = later != "leave"
    event = plan_of(
        api, history, [[1, b]], [[1, b]], kind="undo", undo=(OrdinalRange(a, b if taken else a),), steps=1,
        dependants=(Dependant(b, (ITEM,), taken),), dependant_steps=1, options=json.dumps(options),
    )  # fmt: skip
    assert seen(operator, event.plan)["dependants"] == [{"ordinal": b, "tables": [ITEM], "taken": taken}]
    wanted = {"cascade": {2, 3, 7}, "force": {2, 3}, "leave": {3}}[later]
    preview = operator.get(f"/v1/rollbacks/{event.plan}/preview", limit=20)
    assert {c["before"]["id"] for t in preview["tables"] for c in t["changes"]} == wanted
    assert all(c["after"]["name"] == "was" for t in preview["tables"] for c in t["changes"])
    answer = operator.call("GET", f"/v1/rollbacks/{event.plan}/sql")
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if line and not line.startswith("--")]
    with history.admin.cursor() as cursor:
        for statement in "\n".join(lines).split(";\n"):
            if statement.strip(" ;\n"):
                cursor.execute(_without_generated(statement))
        cursor.execute("set sql_mode = default")
        cursor.execute("select id from api_roll.item where name = 'was'")
        assert {row[0] for row in cursor.fetchall()} == wanted
    history.pull()
