"""Policies as the API takes and shows them; what schedulers would say is written by the test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.events import PointMarked, PolicyDefined, PolicyRun
from streams.ids import now_us, uuid7
from streams.policies import command_id, run_id
from streams.publish import rfc3339
from tests.stack.running_api import RunningApi
from tests.unit.api.test_repositories import defined, sealed, session

HOUR_US = 3_600_000_000
MACHINES: dict[str, Any] = {
    "kind": "backup.run", "repository": "safe", "assets": {"names": ["*"]}, "schedule": ["daily 02:00"],
}  # fmt: skip
FILES: dict[str, Any] = {
    "kind": "backup.make", "repository": "safe", "paths": {"home": "/home"}, "schedule": ["every 15 minutes"],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def safe(api: RunningApi) -> None:
    api.scribe.write(defined("safe"))
    api.apply()


def test_a_policy_is_defined_changed_shown_and_removed(api: RunningApi) -> None:
    client = api.client()
    made = client.post("/v1/policies", {"name": "nightly", "document": MACHINES, "note": "as agreed"}, status=201)
    assert (made["version"], made["document"]["schedule"], made["by"]) == (1, ["daily 02:00"], "admin")
    assert made["next"].endswith("T02:00:00.000000Z")
    between = rfc3339(now_us() + 1000)
    again = client.refused("POST", "/v1/policies", 409, json={"name": "nightly", "document": MACHINES})
    assert again == "policy-exists"
    body = {"document": {**MACHINES, "schedule": ["daily 03:00"]}, "version": 1}
    changed = client.call("PUT", "/v1/policies/nightly", json=body)
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert client.refused("PUT", "/v1/policies/nightly", 409, json=body) == "policy-changed", (
        "that was another's version"
    )
    api.apply("policies")
    assert client.get("/v1/policies/nightly")["document"]["schedule"] == ["daily 03:00"]
    found = client.get("/v1/policies/nightly/next", count=3)["items"]
    assert [r["start"][11:16] for r in found] == ["03:00"] * 3
    then = api.client("viewer").get("/v1/policies", as_of=between)["items"]
    assert [(p["name"], p["version"]) for p in then] == [("nightly", 1)]
    assert client.call("DELETE", "/v1/policies/nightly").status_code == 204
    api.apply("policies")
    assert client.refused("GET", "/v1/policies/nightly", 404) == "policy-unknown"
    anew = client.post("/v1/policies", {"name": "nightly", "document": MACHINES}, status=201)
    assert anew["version"] == 3, "no version is ever used again"
    client.call("DELETE", "/v1/policies/nightly")
    api.apply("policies")


def test_what_cannot_be_is_refused_with_a_reason(api: RunningApi) -> None:
    client = api.client()
    cases = {
        "rule-invalid": {**MACHINES, "schedule": ["now and then"]},
        "zone-unknown": {**MACHINES, "zone": "Mars/North"},
        "span-invalid": {**MACHINES, "windows": ["always"]},
        "never-due": {**MACHINES, "windows": ["mon"], "blackouts": ["mon"]},
        "repository-unknown": {**MACHINES, "repository": "elsewhere"},
        "policy-invalid": {**MACHINES, "assets": {}},
        "request-invalid": {**MACHINES, "colour": "red"},
    }
    for code, document in cases.items():
        assert client.refused("POST", "/v1/policies", 422, json={"name": "wrong", "document": document}) == code
    body = {"name": "wrong", "document": FILES}
    assert api.client("operator").refused("POST", "/v1/policies", 403, json=body) == "role-insufficient"


def test_a_policy_is_tried_before_it_is_defined(api: RunningApi) -> None:
    document = {**FILES, "schedule": ["once 2999-01-01 02:30"], "zone": "Europe/Berlin"}
    found = api.client("viewer").post("/v1/policies/try", {"document": document}, status=200)
    assert found["assets"] == ["home"]
    assert [(r["instant"], r["start"], r["closes"]) for r in found["runs"]] == [
        ("2999-01-01T01:30:00.000000Z", "2999-01-01T01:30:00.000000Z", None)
    ]


def test_runs_show_what_became_of_them_and_why_others_were_not_made(api: RunningApi) -> None:
    client = api.client("operator")
    api.client().post("/v1/policies", {"name": "often", "document": FILES}, status=201)
    number = client.post("/v1/policies/often/run")["run"]
    api.apply("policies")
    assert client.get(f"/v1/runs/{number}")["state"] == "asked"
    at = now_us()
    said: dict[str, Any] = {"policy": "often", "version": 1, "at_us": at, "by": "agent-1"}
    api.scribe.write(
        PolicyRun(**said, run=number, state="fired", instant_us=at, reason="asked", assets=("home",)),
        PolicyRun(**said, run=run_id("often", 1, at + 1), state="skipped", instant_us=at, until_us=at + 1, reason="missed",
                  message="nobody could run it"),
        PolicyRun(**said, run=number, state="ended", instant_us=at, figures={"done": 1, "assets": 1, "left_out": 0}),
    )  # fmt: skip
    api.apply("policies")
    shown = client.get(f"/v1/runs/{number}")
    assert (shown["state"], shown["made"]["figures"]["done"], shown["tasks"]) == (
        "ended",
        1,
        [{"asset": "home", "jobs": []}],
    )
    runs = client.get("/v1/policies/often/runs")["items"]
    assert [(r["state"], r["reason"]) for r in runs] == [("skipped", "missed"), ("fired", "asked")]
    assert runs[1]["run"]["run"] == number
    assert command_id(number, at, "home", 0) != number
    assert client.refused("GET", f"/v1/runs/{uuid7()}", 404) == "run-unknown"
    api.client().call("DELETE", "/v1/policies/often")


def test_protection_follows_from_points_marks_and_schedules(api: RunningApi) -> None:
    client, now = api.client("viewer"), now_us()
    one = uuid7()
    old, fresh, bad = (
        sealed("safe", one, asset=name, created_us=now - age)
        for name, age in (("stale", 30 * HOUR_US), ("fresh", HOUR_US // 10), ("bad", HOUR_US // 10))
    )
    documents = {
        "stale": {**FILES, "paths": {"stale": "/a"}, "schedule": ["hourly"]},
        "mixed": {**FILES, "paths": {"fresh": "/b", "bad": "/c", "none": "/d"}, "schedule": ["hourly"]},
    }
    client_admin = api.client()
    api.scribe.write(session("safe", one), old, fresh, bad)
    for name, document in documents.items():
        tried = client_admin.post("/v1/policies/try", {"document": document}, status=200)["document"]
        api.scribe.write(
            PolicyDefined(policy=name, version=1, document=json.dumps(tried), defined_us=now - 60 * HOUR_US, by="ada")
        )
    marked: dict[str, Any] = {"repository": "safe", "number": 1, "marked_us": now, "by": "n"}
    api.scribe.write(PointMarked(point=bad.point, mark="damaged", **marked))
    api.apply("policies", "repositories", "assets")

    def states() -> dict[str, tuple[str, bool]]:
        found = client.get("/v1/protection")["items"]
        names = ("stale", "fresh", "bad", "none", "web")
        return {a["asset"]: (a["state"], a["late_s"] > 0) for a in found if a["asset"] in names}

    assert states() == {
        "stale": ("late", True), "fresh": ("unverified", False), "bad": ("never", True), "none": ("never", True),
    }  # fmt: skip
    api.scribe.write(PointMarked(point=fresh.point, mark="verified", **marked))
    api.apply("repositories")
    assert states()["fresh"] == ("covered", False)
    late = next(a for a in client.get("/v1/protection", asset="stale")["items"])
    assert late["policy"] == "stale"
    assert 28 * 3600 < late["late_s"] <= 30 * 3600
    for name in documents:
        client_admin.call("DELETE", f"/v1/policies/{name}")
    api.apply("policies")
    assert states()["stale"][0] == "unprotected"


def test_settings_are_put_in_as_they_were_looked_at_or_not_at_all(api: RunningApi) -> None:
    client = api.client()
    client.post("/v1/policies", {"name": "kept", "document": FILES}, status=201)
    client.post("/v1/policies", {"name": "dropped", "document": FILES}, status=201)
    api.apply("policies", "repositories")
    settings = client.get("/v1/settings")
    assert settings["repositories"]["safe"] == {"keep": "7d"}
    assert client.post("/v1/settings", {"settings": settings, "dry_run": True}, status=200)["changes"] == []
    del settings["policies"]["dropped"]
    settings["policies"]["kept"]["schedule"] = ["hourly :30"]
    settings["policies"]["new"] = MACHINES
    settings["repositories"]["safe"]["keep"] = "14d"
    body = {"settings": settings, "prune": True}
    shown = client.post("/v1/settings", {**body, "dry_run": True}, status=200)
    assert [(c["what"], c["name"], c["change"]) for c in shown["changes"]] == [
        ("repository", "safe", "changed"), ("policy", "dropped", "removed"), ("policy", "kept", "changed"),
        ("policy", "new", "added"),
    ]  # fmt: skip
    assert client.refused("POST", "/v1/settings", 422, json=body) == "review-missing"
    client.post("/v1/policies", {"name": "between", "document": FILES}, status=201)
    api.apply("policies")
    reviewed = {**body, "review": shown["review"]}
    assert client.refused("POST", "/v1/settings", 409, json=reviewed) == "review-outdated"
    again = client.post("/v1/settings", {**body, "dry_run": True}, status=200)
    done = client.post("/v1/settings", {**body, "review": again["review"]}, status=200)
    assert len(done["jobs"]) == 1
    api.apply("policies")
    assert [p["name"] for p in client.get("/v1/policies")["items"]] == ["kept", "new"]
    assert api.client("operator").refused("POST", "/v1/settings", 403, json=body) == "role-insufficient"
