"""Scratch copies and table plans as the API shows and asks for them; what an agent would say is written by the test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from streams.consume import read_topic
from streams.events import CommandRequested, Problem, ScratchChanged, TableRollbackChanged, TableRollbackPlanned
from streams.ids import now_us, uuid7
from streams.topics import topic_name
from tests.stack.running_api import CapturedLog, Client, RunningApi, eventually


@pytest.fixture(scope="module")
def history(shop: CapturedLog) -> Iterator[CapturedLog]:
    shop.execute(
        "drop database if exists api_copy",
        "create database api_copy",
        "create table api_copy.item (id int primary key)",
        "insert into api_copy.item values (1)",
    )
    yield shop
    shop.execute("drop database if exists api_copy")


@pytest.fixture
def operator(api: RunningApi) -> Client:
    return api.client("operator")


def asked(api: RunningApi, job: str) -> CommandRequested:
    kafka = api.settings.kafka
    events = (m.event for m in read_topic(kafka, topic_name(kafka.prefix, "commands")))
    return next(e for e in events if isinstance(e, CommandRequested) and e.command == job)


def copy_of(history: CapturedLog, name: str, **more: Any) -> ScratchChanged:
    event = ScratchChanged(
        lineage=history.lineage, scratch=name, source="shop", state="ready", ordinal=2, position="0-1-9", host="127.0.0.1",
        port=3399, socket="/x/s.sock", account="holdfast", password_file="/x/password", at_us=now_us(), by="agent-1",
    )  # fmt: skip
    return replace(event, **more)


def table_plan_of(history: CapturedLog, **more: Any) -> TableRollbackPlanned:
    event = TableRollbackPlanned(
        lineage=history.lineage, plan=uuid7(), source="shop", schema="api_copy", table="item", target="to step 2",
        target_ordinal=2, target_time_us=now_us(), head_ordinal=4, rows_now=None, rows_then=1, definition_now="",
        definition_then="CREATE TABLE `item`", shadow="_holdfast_new_1", kept="", scratch="look", content=bytes(32),
        digest=b"\x05" * 32, planned_us=now_us(), by="ada",
    )  # fmt: skip
    return replace(event, **more)


@pytest.mark.parametrize(
    ("target", "ordinal"), [({"to_step": 2}, 2), ({"to_step": 0}, 0), ({"to_time": "2100-01-01T00:00:00Z"}, None)]
)
def test_a_copy_is_asked_for_at_a_step_in_log_order(
    api: RunningApi, history: CapturedLog, operator: Client, target: dict[str, Any], ordinal: int | None
) -> None:
    accepted = operator.post("/v1/scratch", {"name": "look", "source": "shop", "expires_s": 60, **target})
    command = asked(api, accepted["job"])
    assert (command.kind, command.asset) == ("scratch.create", "scratch/look")
    wanted = len(history.written) if ordinal is None else ordinal
    assert f'"ordinal":{wanted}' in command.parameters
    assert (accepted["at"]["ordinal"], accepted["at"]["lineage"]) == (wanted, history.lineage)


def test_what_names_no_moment_is_refused(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    body = {"name": "look", "source": "shop"}
    assert operator.refused("POST", "/v1/scratch", 422, json=body) == "target-missing"
    both = body | {"to_step": 1, "to_position": "0-1-1"}
    assert operator.refused("POST", "/v1/scratch", 422, json=both) == "target-missing"
    assert operator.refused("POST", "/v1/scratch", 422, json=body | {"to_step": 10_000_000}) == "step-unknown"
    assert (
        operator.refused("POST", "/v1/scratch", 404, json=body | {"source": "nobody", "to_step": 1}) == "source-unknown"
    )


def test_copies_are_listed_and_shown_until_they_end(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    api.scribe.write(copy_of(history, "kept"))
    api.apply("copies")
    shown = eventually(lambda: operator.get("/v1/scratch/kept")) or {}
    assert (shown["state"], shown["ordinal"], shown["port"], shown["expires"]) == ("ready", 2, 3399, None)
    body = {"name": "kept", "source": "shop", "to_step": 1}
    assert operator.refused("POST", "/v1/scratch", 409, json=body) == "scratch-exists"
    command = asked(api, operator.call("DELETE", "/v1/scratch/kept").json()["job"])
    assert (command.kind, command.parameters) == ("scratch.drop", '{"name":"kept"}')
    api.scribe.write(copy_of(history, "kept", state="ended"))
    api.apply("copies")
    assert "kept" not in [s["name"] for s in operator.get("/v1/scratch")["items"]]
    assert "kept" in [s["name"] for s in operator.get("/v1/scratch", all=True)["items"]]
    assert operator.refused("GET", "/v1/scratch/nothing", 404) == "scratch-unknown"


def test_a_table_plan_is_asked_for_shown_and_run_by_its_digest(
    api: RunningApi, history: CapturedLog, operator: Client
) -> None:
    path = "/v1/sources/shop/table-rollbacks"
    accepted = operator.post(path, {"schema": "api_copy", "table": "item", "to_step": 2})
    command = asked(api, accepted["job"])
    assert (command.kind, command.asset) == ("rollback.table-plan", "shop")
    event = table_plan_of(history)
    api.scribe.write(event)
    api.apply("copies")
    shown = operator.get(f"/v1/table-rollbacks/{event.plan}")
    assert (shown["state"], shown["rows_now"], shown["rows_then"], shown["runnable"]) == ("planned", None, 1, True)
    approve = f"/v1/table-rollbacks/{event.plan}/approve"
    assert operator.refused("POST", approve, 409, json={"digest": "00" * 32}) == "digest-differs"
    command = asked(api, operator.post(approve, {"digest": event.digest.hex()})["job"])
    assert (command.kind, event.plan in command.parameters) == ("rollback.table-approve", True)
    run = f"/v1/table-rollbacks/{event.plan}/run"
    assert operator.refused("POST", run, 409, json={"digest": "00" * 32}) == "digest-differs"
    command = asked(api, operator.post(run, {"digest": event.digest.hex()})["job"])
    assert (command.kind, event.plan in command.parameters) == ("rollback.table-run", True)
    applied = TableRollbackChanged(
        plan=event.plan, source="shop", state="applied", digest=event.digest, at_us=now_us(), by="agent-1", rows=1, kept="old"
    )  # fmt: skip
    api.scribe.write(applied)
    api.apply("copies")
    shown = operator.get(f"/v1/table-rollbacks/{event.plan}")
    assert (shown["state"], shown["applied_rows"], shown["kept"]) == ("applied", 1, "old")
    assert operator.refused("POST", run, 409, json={"digest": event.digest.hex()}) == "plan-applied"
    assert operator.refused("POST", f"/v1/table-rollbacks/{event.plan}/abandon", 409) == "plan-applied"
    assert [p["plan"] for p in operator.get(path)["items"]] == [event.plan]


def test_a_table_plan_with_obstacles_does_not_run(api: RunningApi, history: CapturedLog, operator: Client) -> None:
    obstacle = Problem("foreign-key-to", "shop.child points at it", "drop the key")
    event = table_plan_of(history, obstacles=(obstacle,))
    api.scribe.write(event)
    api.apply("copies")
    refused = operator.call("POST", f"/v1/table-rollbacks/{event.plan}/run", json={"digest": event.digest.hex()})
    assert (refused.status_code, refused.json()["code"]) == (409, "plan-not-runnable")
    assert refused.json()["problems"][0]["code"] == "foreign-key-to"
    assert operator.post(f"/v1/table-rollbacks/{event.plan}/abandon")["job"]
