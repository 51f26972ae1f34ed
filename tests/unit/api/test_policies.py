"""Policies as the API takes and shows them; what schedulers would say is written by the test."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from streams.events import (
    AssetChanged,
    CommandRequested,
    HealthReported,
    HostDefined,
    JobChanged,
    PointMarked,
    PolicyDefined,
    PolicyRun,
    RepositoryChecked,
    SourceChanged,
    SourceDefined,
)
from streams.events.repository import NOT_CHOSEN
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


def test_a_saved_job_has_no_schedule_and_protects_nothing_by_itself(api: RunningApi) -> None:
    document = {**MACHINES, "schedule": [], "assets": {"names": ["saved-one"]}, "together": True}
    made = api.client().post("/v1/policies", {"name": "by-hand", "document": document}, status=201)
    assert (made["next"], made["document"]["schedule"], made["document"]["together"]) == (None, [], True)
    api.apply("policies")
    assert api.client("viewer").get("/v1/policies/by-hand/next")["items"] == []
    number = api.client("operator").post("/v1/policies/by-hand/run")["run"]
    seen = AssetChanged(asset="saved-one", state="seen", host="h", native="1", name="saved-one", seen_us=1, by="t")
    other = AssetChanged(asset="saved-two", state="seen", host="h", native="2", name="saved-two", seen_us=1, by="t")
    at = now_us()
    fired = PolicyRun(
        policy="by-hand", version=1, run=number, state="fired", instant_us=at, reason="asked",
        assets=("saved-one", "saved-two"), at_us=at, by="agent-1",
    )  # fmt: skip
    job = command_id(number, at, "", 0)
    working = JobChanged(
        job=job, kind="backup.run", asset=f"group/{number}", state="started", at_us=at, by="agent-1", message="reading"
    )
    api.scribe.write(seen, other, fired, working)
    api.apply("policies", "assets", "jobs")
    shown = api.client("viewer").get(f"/v1/runs/{number}")
    told = {"job": job, "state": "started", "message": "reading", "done": 0, "total": 0, "unit": ""}
    assert shown["tasks"] == [{"asset": name, "jobs": [told]} for name in ("saved-one", "saved-two")]
    (found,) = api.client("viewer").get("/v1/protection", asset="saved-one")["items"]
    assert found["state"] == "unprotected"
    windows = {**document, "windows": ["mon"]}
    assert (
        api.client().refused("POST", "/v1/policies", 422, json={"name": "x", "document": windows}) == "policy-invalid"
    )
    api.client().call("DELETE", "/v1/policies/by-hand")
    api.scribe.write(replace(seen, state="gone"), replace(other, state="gone"))
    api.apply("policies", "assets")


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
    part = sealed("safe", one, asset="part", created_us=fresh.created_us, facts={"left_out/vdb": NOT_CHOSEN})
    documents = {
        "stale": {**FILES, "paths": {"stale": "/a"}, "schedule": ["hourly"]},
        "mixed": {**FILES, "paths": {"fresh": "/b", "bad": "/c", "none": "/d", "part": "/e"}, "schedule": ["hourly"]},
    }
    client_admin = api.client()
    api.scribe.write(session("safe", one), old, fresh, bad, part)
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
        names = ("stale", "fresh", "bad", "none", "part", "web")
        return {a["asset"]: (a["state"], a["late_s"] > 0) for a in found if a["asset"] in names}

    assert states() == {
        "stale": ("late", True), "fresh": ("unverified", False), "bad": ("never", True), "none": ("never", True),
        "part": ("never", True),
    }  # fmt: skip
    looked = uuid7()
    api.scribe.write(
        replace(session("safe", looked), kind="verify"),
        RepositoryChecked(
            repository="safe", session=looked, what="verify", mode="sampled", checked_us=now, by="n"
        ),
    )  # fmt: skip
    api.apply("repositories")
    assert states()["fresh"] == ("sampled", False)
    assert states()["bad"] == ("never", True), "what is damaged was not proven by a sample"
    api.scribe.write(PointMarked(point=fresh.point, mark="verified", note="restored", **marked))
    api.apply("repositories")
    assert states()["fresh"] == ("covered", False)
    assert client.get("/v1/protection", asset="fresh")["items"][0]["proof"] == "restored"
    late = next(a for a in client.get("/v1/protection", asset="stale")["items"])
    assert late["policy"] == "stale"
    assert 28 * 3600 < late["late_s"] <= 30 * 3600
    # Whoever watches is told once of each that changed.
    watching = api.server.config.app.state.site.watching  # type: ignore[union-attr]
    api.apply()
    first = {e.asset: e.state for e in watching.look()}
    assert (first["stale"], first["fresh"]) == ("late", "covered")
    api.apply()
    assert watching.look() == []
    for name in documents:
        client_admin.call("DELETE", f"/v1/policies/{name}")
    api.apply("policies")
    assert states()["stale"][0] == "unprotected"
    api.apply()
    (again,) = [e for e in watching.look() if e.asset == "stale"]
    api.scribe.write(again)  # another API saw the same
    api.apply()
    found = client.get("/v1/protection/changes", asset="stale", limit=1)
    assert [(c["before"], c["state"]) for c in found["items"]] == [("late", "unprotected")]
    before = client.get("/v1/protection/changes", asset="stale", limit=1, before=found["next"])["items"]
    assert [(c["before"], c["state"], c["policy"]) for c in before] == [("", "late", "stale")]
    assert client.refused("GET", "/v1/protection/changes?before=x", 422) == "page-unknown"


def test_databases_are_protected_by_capture_and_proven_by_scratch_copies(api: RunningApi) -> None:
    client, now, lineage = api.client("viewer"), now_us(), uuid7()
    between = rfc3339(now - 50_000_000)

    def one() -> dict[str, Any]:
        api.apply("catalogue", "dashboard", "jobs", "policies", "assets", "repositories")
        (found,) = client.get("/v1/protection", asset="orders")["items"]
        return dict(found)

    changed = SourceChanged(source="orders", state="baseline", at_us=now - 100_000_000, by="agent-1")
    api.scribe.write(
        SourceDefined(source="orders", kind="mariadb", host="db", port=3306, defined_us=now, by="ada"), changed
    )
    assert (one()["kind"], one()["state"]) == ("database", "never")
    capturing = replace(changed, state="capturing", lineage=lineage, at_us=now - 90_000_000)
    report = HealthReported(agent="a", source="orders", state="running", at_us=now, figures={"lag_ms": 250.0})
    api.scribe.write(capturing, report)
    assert (one()["state"], one()["proof"], one()["newest"]) == ("unverified", "", rfc3339(now - 250_000))
    copies: dict[str, dict[str, Any]] = {"part": {"tables": ["a.b"]}, "other": {"lineage": uuid7()}, "whole": {}}
    for name, more in copies.items():
        job, claim = uuid7(), uuid7()
        asked = {"name": name, "source": "orders", "lineage": lineage, "ordinal": 5, "expires_s": None, **more}
        said: dict[str, Any] = {
            "job": job,
            "kind": "scratch.create",
            "asset": f"scratch/{name}",
            "at_us": now,
            "by": "a",
        }
        api.scribe.write(
            CommandRequested(command=job, kind="scratch.create", asset=f"scratch/{name}", parameters=json.dumps(asked),
                             requester="ada", requested_us=now),
            JobChanged(**said, state="claimed", claim=claim),
            JobChanged(**said, state="finished", claim=claim, result="{}"),
        )  # fmt: skip
        assert one()["state"] == ("covered" if name == "whole" else "unverified")
    assert (one()["proof"], one()["verified"]) == ("copied", rfc3339(now))
    api.scribe.write(replace(capturing, state="stopped", at_us=now - 80_000_000))
    assert one()["state"] == "late"
    assert one()["late_s"] >= 80
    (then,) = client.get("/v1/protection", asset="orders", as_of=rfc3339(now_us() + 1_000))["items"]
    assert then["state"] == "late"
    assert client.get("/v1/protection", asset="orders", as_of=between)["items"] == [], "the log did not know of it then"
    api.scribe.write(replace(capturing, state="removed", at_us=now))
    api.apply("catalogue")
    assert client.get("/v1/protection", asset="orders")["items"] == []


def test_settings_are_put_in_as_they_were_looked_at_or_not_at_all(api: RunningApi) -> None:
    client = api.client()
    client.post("/v1/policies", {"name": "kept", "document": FILES}, status=201)
    client.post("/v1/policies", {"name": "dropped", "document": FILES}, status=201)
    api.apply("policies", "repositories")
    host: dict[str, Any] = {"host": "rack", "kind": "kvm", "state": "added", "defined_us": now_us(), "by": "ada"}
    api.scribe.write(HostDefined(**host, url="qemu+tls://rack/system", secrets={"password": "hosts/rack/password@1"}))
    api.apply("assets")
    settings = client.get("/v1/settings")
    assert settings["repositories"]["safe"]["keep"] == "7d"
    assert "password@1" not in json.dumps(settings)
    assert client.post("/v1/settings", {"settings": settings, "dry_run": True}, status=200)["changes"] == []
    del settings["policies"]["dropped"]
    settings["policies"]["kept"]["schedule"] = ["hourly :30"]
    settings["policies"]["new"] = MACHINES
    settings["repositories"]["safe"] = {"keep": "14d"}
    settings["hosts"]["rack"]["options"] = {"disks": "2"}
    in_clear = {**settings, "hosts": {"rack": {"kind": "kvm", "url": "qemu+tls://me:secret@rack/system"}}}
    dry = {"settings": in_clear, "dry_run": True}
    assert client.refused("POST", "/v1/settings", 422, json=dry) == "url-has-password"
    body = {"settings": settings, "prune": True}
    shown = client.post("/v1/settings", {**body, "dry_run": True}, status=200)
    assert [(c["what"], c["name"], c["change"]) for c in shown["changes"]] == [
        ("repository", "safe", "changed"), ("host", "rack", "changed"), ("policy", "dropped", "removed"),
        ("policy", "kept", "changed"),
        ("policy", "new", "added"),
    ]  # fmt: skip
    assert client.refused("POST", "/v1/settings", 422, json=body) == "review-missing"
    client.post("/v1/policies", {"name": "between", "document": FILES}, status=201)
    api.apply("policies")
    reviewed = {**body, "review": shown["review"]}
    assert client.refused("POST", "/v1/settings", 409, json=reviewed) == "review-outdated"
    again = client.post("/v1/settings", {**body, "dry_run": True}, status=200)
    done = client.post("/v1/settings", {**body, "review": again["review"]}, status=200)
    assert len(done["jobs"]) == 2
    api.apply("jobs")
    given = client.get(f"/v1/jobs/{done['jobs'][1]}")
    assert given["kind"] == "host.add"
    assert given["parameters"]["secrets"] == {"password": "hosts/rack/password@1"}, "it keeps its password"
    api.apply("policies")
    assert [p["name"] for p in client.get("/v1/policies")["items"]] == ["kept", "new"]
    assert api.client("operator").refused("POST", "/v1/settings", 403, json=body) == "role-insufficient"
