"""Sources and jobs: commands with references instead of passwords, a job's events as they come."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from projections.views import jobs
from streams.events import HealthReported, JobChanged, NodeChanged, Problem, SourceChanged, SourceDefined
from streams.ids import now_us, uuid7
from streams.secrets import SecretStore
from tests.stack.running_api import Client, RunningApi, eventually

ADD = {
    "name": "crm",
    "kind": "mariadb",
    "host": "db.example",
    "accounts": {
        "capture": {"user": "cap", "password": "pä55 wörd"},
        "rollback": {"user": "roll", "password": "other"},
    },
}


@pytest.fixture
def admin(api: RunningApi) -> Client:
    return api.client("admin")


def parameters_of(api: RunningApi, job: str) -> dict[str, Any]:
    api.apply("jobs")
    with api.server.config.app.state.site.views() as conn:  # type: ignore[union-attr]
        row = jobs.job(conn, job)
    assert row is not None
    found: dict[str, Any] = json.loads(row.parameters)
    return found


def test_passwords_go_into_the_secret_store_and_references_into_the_log(api: RunningApi, admin: Client) -> None:
    job = admin.post("/v1/sources", ADD)["job"]
    parameters = parameters_of(api, job)
    assert parameters == {
        "kind": "mariadb",
        "host": "db.example",
        "port": 3306,
        "tls": "off",
        "tls_ca": "",
        "accounts": {"capture": "cap", "rollback": "roll"},
        "secrets": {"capture": "sources/crm/capture@1", "rollback": "sources/crm/rollback@1"},
        "options": {},
        "dry_run": False,
    }
    store = SecretStore(api.settings)
    assert store.get("sources/crm/capture@1").decode() == "pä55 wörd"
    again = admin.post("/v1/sources", {**ADD, "dry_run": True})["job"]
    assert parameters_of(api, again)["secrets"]["capture"] == "sources/crm/capture@2"


def test_a_source_that_is_protected_is_not_added_again(api: RunningApi, admin: Client) -> None:
    at = now_us()
    api.scribe.write(
        SourceDefined(source="busy", kind="mariadb", host="h", port=3306, defined_us=at, by="agent"),
        SourceChanged(source="busy", lineage=uuid7(), epoch=1, state="capturing", at_us=at, by="agent"),
    )
    api.apply("catalogue")
    assert admin.refused("POST", "/v1/sources", 409, json={**ADD, "name": "busy"}) == "source-exists"
    job = admin.post("/v1/sources/busy/pause")["job"]
    assert parameters_of(api, job) == {}
    removed = admin.call("DELETE", "/v1/sources/busy?purge=true").json()["job"]
    assert parameters_of(api, removed) == {"purge": True}
    api.scribe.write(SourceChanged(source="busy", state="removed", at_us=now_us(), by="agent"))
    api.apply("catalogue")
    assert admin.refused("POST", "/v1/sources/busy/resume", 409) == "source-removed"
    assert "busy" not in {s["name"] for s in admin.get("/v1/sources")["items"]}
    assert "busy" in {s["name"] for s in admin.get("/v1/sources", all="true")["items"]}


def test_a_new_password_goes_the_same_way_as_the_first(api: RunningApi, admin: Client) -> None:
    api.scribe.write(
        SourceDefined(
            source="turned",
            kind="mariadb",
            host="h",
            port=3306,
            accounts={"capture": "cap"},
            defined_us=now_us(),
            by="a",
        )
    )
    api.apply("catalogue")
    job = admin.post("/v1/sources/turned/accounts", {"accounts": {"capture": {"password": "anders"}}})["job"]
    assert parameters_of(api, job) == {
        "accounts": {"capture": "cap"},
        "secrets": {"capture": "sources/turned/capture@1"},
    }
    assert SecretStore(api.settings).get("sources/turned/capture@1").decode() == "anders"
    body = {"accounts": {"rollback": {"password": "x"}}}
    assert admin.refused("POST", "/v1/sources/turned/accounts", 422, json=body) == "account-unknown"
    body = {"accounts": {"rollback": {"user": "roll", "password": "x"}}}
    assert parameters_of(api, admin.post("/v1/sources/turned/accounts", body)["job"])["accounts"] == {
        "rollback": "roll"
    }


def test_a_source_that_the_catalogue_does_not_know_yet_is_not_said_to_be_absent(api: RunningApi, admin: Client) -> None:
    api.scribe.write(
        SourceDefined(source="fresh", kind="mariadb", host="h", port=3306, defined_us=now_us(), by="agent")
    )
    live = api.server.config.app.state.site.live  # type: ignore[union-attr]
    eventually(lambda: live.newest("inventory", "fresh"))
    assert admin.refused("GET", "/v1/sources/fresh/steps", 503) == "catalogue-behind"
    api.apply("catalogue")
    assert admin.get("/v1/sources/fresh")["state"] == "defined"


def change(job: str, state: str, **more: Any) -> JobChanged:
    return JobChanged(job=job, kind="source.add", asset="crm", state=state, at_us=now_us(), by="agent-1", **more)


def test_a_jobs_events_come_through_the_log_while_the_read_model_stands_still(api: RunningApi, admin: Client) -> None:
    job = admin.post("/v1/sources", {**ADD, "name": "streamed"})["job"]
    with admin.events(f"/v1/jobs/{job}/events") as events:
        assert next(e for e in events if e[0])[2]["state"] == "requested"
        api.scribe.write(change(job, "started"))
        assert next(e for e in events if e[0])[2]["state"] == "started"
        api.scribe.write(change(job, "progressed", message="baseline", done=5, total=10, unit="tables"))
        shown = next(e for e in events if e[0])[2]
        assert (shown["state"], shown["message"], shown["done"], shown["total"], shown["unit"]) == (
            "progressed", "baseline", 5, 10, "tables",
        )  # fmt: skip
        api.scribe.write(change(job, "warned", problems=(Problem("slow", "it is slow"),)))
        warned = next(e for e in events if e[0])
        assert (warned[2]["state"], warned[2]["problems"][0]["code"]) == ("progressed", "slow")
        api.scribe.write(change(job, "finished", result='{"lineage": "l"}'))
        last = next(e for e in events if e[0])
        assert (last[2]["state"], last[2]["final"], last[2]["result"]) == ("finished", True, {"lineage": "l"})
        assert next(events, None) is None, "the stream ends with the job"
    # Whoever comes back after the warning gets what came after it; whoever comes late gets the end.
    with admin.events(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": warned[1]}) as events:
        assert [e[2]["state"] for e in events if e[0]] == ["finished"]
    with admin.events(f"/v1/jobs/{job}/events") as events:
        assert [e[2]["state"] for e in events if e[0]][-1] == "finished"
    # The read model comes to the same, and so does an API that has it from there alone.
    live = admin.get(f"/v1/jobs/{job}")
    api.apply("jobs")
    api.server.config.app.state.site.live._jobs.clear()  # type: ignore[union-attr]
    assert admin.get(f"/v1/jobs/{job}") == live
    with admin.events(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": warned[1]}) as events:
        assert [e[2]["state"] for e in events if e[0]] == ["finished"]


def test_jobs_are_listed_newest_first_and_by_what_they_are_about(api: RunningApi, admin: Client) -> None:
    made = [admin.post("/v1/sources", {**ADD, "name": f"many-{i}"})["job"] for i in range(5)]
    api.scribe.write(change(made[0], "finished"))
    api.apply("jobs")
    listed = [j["job"] for j in admin.get("/v1/jobs", limit=4)["items"]]
    assert listed == made[:0:-1]
    assert [j["job"] for j in admin.get("/v1/jobs", asset="many-3")["items"]] == [made[3]]
    assert made[0] not in {j["job"] for j in admin.get("/v1/jobs", open="true", limit=1000)["items"]}


def test_jobs_are_found_by_kind_state_and_who(api: RunningApi, admin: Client) -> None:
    job = admin.post("/v1/sources", {**ADD, "name": "by-kind"})["job"]
    api.scribe.write(change(job, "failed"))
    api.apply("jobs")
    for found in ({"kind": "source.add"}, {"kind": "source"}, {"state": "failed"}, {"by": "agent-1"}):
        listed = admin.get("/v1/jobs", asset="by-kind", **found)["items"]
        assert [j["job"] for j in listed] == [job], found
    for missing in ({"kind": "sour"}, {"state": "finished"}, {"by": "nobody"}):
        assert admin.get("/v1/jobs", asset="by-kind", **missing)["items"] == [], missing


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_is_asked_to_end(
    api: RunningApi, admin: Client
) -> None:
    waits, runs = (admin.post("/v1/sources", {**ADD, "name": f"end-{i}"})["job"] for i in range(2))
    admin.post(f"/v1/jobs/{waits}/cancel")
    ended = admin.get(f"/v1/jobs/{waits}")
    assert (ended["state"], ended["final"], ended["cancel"]["by"]) == ("cancelled", True, ended["requester"])
    assert admin.refused("POST", f"/v1/jobs/{waits}/cancel", 409) == "job-ended"

    claimed = replace(change(runs, "claimed"), claim="x")
    api.scribe.write(claimed, replace(claimed, state="started"))
    api.apply("jobs")
    admin.post(f"/v1/jobs/{runs}/cancel")
    asked = admin.get(f"/v1/jobs/{runs}")
    assert (asked["state"], asked["final"], asked["holder"]) == ("started", False, "agent-1")
    assert asked["cancel"]["by"] == asked["requester"]
    api.scribe.write(replace(claimed, state="cancelled", message="they cancelled it at: reading"))
    api.apply("jobs")
    done = admin.get(f"/v1/jobs/{runs}")
    assert (done["state"], done["message"]) == ("cancelled", "they cancelled it at: reading")
    api.client("viewer").refused("POST", f"/v1/jobs/{runs}/cancel", 403)
    assert "parameters" in done
    assert "parameters" not in api.client("viewer").get(f"/v1/jobs/{runs}")


def test_a_priority_is_said_of_a_job_that_waits(api: RunningApi, admin: Client) -> None:
    job = admin.post("/v1/sources", {**ADD, "name": "sooner"})["job"]
    assert admin.get(f"/v1/jobs/{job}")["priority"] == 0
    admin.post(f"/v1/jobs/{job}/priority", {"priority": 7})
    assert admin.get(f"/v1/jobs/{job}")["priority"] == 7
    api.apply("jobs")
    assert admin.get("/v1/jobs", asset="sooner")["items"][0]["priority"] == 7


def test_a_projection_is_dropped_and_rebuilt_to_an_equal_digest(api: RunningApi, admin: Client) -> None:
    api.apply()
    before = admin.get("/v1/projections/catalogue/digest")
    assert admin.call("DELETE", "/v1/projections/catalogue").json() == {"name": "catalogue", "digest": before["digest"]}
    assert admin.refused("GET", "/v1/sources", 503) == "view-dropped"
    assert {p["name"]: p["state"] for p in admin.get("/v1/projections")["items"]}["catalogue"] == "absent"
    job = admin.post("/v1/projections/catalogue/rebuild")["job"]
    with admin.events(f"/v1/jobs/{job}/events") as events:
        last = [e[2] for e in events if e[0]][-1]
    assert (last["state"], last["kind"], last["asset"]) == ("finished", "projection.rebuild", "catalogue")
    assert last["result"]["equal"] is True
    after = admin.get("/v1/projections/catalogue/digest")
    assert (after["digest"], after["tables"]) == (before["digest"], before["tables"])
    assert {p["name"]: p["lag"] for p in admin.get("/v1/projections")["items"]}["catalogue"] == 0


def test_a_rebuild_that_its_api_did_not_live_to_end_is_told_as_failed(api: RunningApi, admin: Client) -> None:
    job = uuid7()
    started = JobChanged(job=job, kind="projection.rebuild", asset="audit", state="started", at_us=now_us(), by="api")
    api.scribe.write(started)
    api.apply("jobs")
    api.server.config.app.state.site.rebuilds.end_orphans()  # type: ignore[union-attr]
    shown = eventually(lambda: (j := admin.get(f"/v1/jobs/{job}"))["final"] and j) or {}
    assert (shown["state"], shown["problems"][0]["code"]) == ("failed", "interrupted")


def test_nodes_are_alive_silent_or_stopped_and_show_what_they_have(api: RunningApi) -> None:
    now = now_us()
    given: dict[str, Any] = {"home": "h", "machine": "host-9", "version": "9.9", "lease_s": 60}

    def started(name: str, at_us: int, **more: Any) -> NodeChanged:
        names = (f"agent-{name}", name)
        said = {
            "node": f"agent-{name}",
            "state": "started",
            "run": f"run-{name}",
            "names": names,
            "by": f"agent-{name}",
        }
        return NodeChanged(**{**given, **said, "at_us": at_us, **more})

    def beat(name: str, at_us: int) -> HealthReported:
        return HealthReported(
            agent=f"agent-{name}",
            source="",
            state="running",
            at_us=at_us,
            figures={"jobs_running": 1.0, "jobs_waiting": 2.0},
        )

    job = uuid7()
    held = JobChanged(
        job=job, kind="backup.run", asset="asset/web", state="claimed", at_us=now, by="agent-lively", claim=uuid7()
    )
    api.scribe.write(
        started("lively", now - 3_600_000_000), beat("lively", now),
        started("quiet", now - 3_600_000_000), beat("quiet", now - 600_000_000),
        started("ended", now - 3_600_000_000), beat("ended", now - 20_000_000),
        started("ended", now - 10_000_000, state="stopped"),
        beat("of-before", now), held,
        SourceChanged(source="theirs", state="baseline", at_us=now, by="agent-lively"),
        SourceDefined(source="theirs", kind="mariadb", host="db", port=3306, defined_us=now, by="ada"),
    )  # fmt: skip
    api.apply("nodes", "dashboard", "jobs", "catalogue")
    client = api.client("viewer")
    found = {n["node"]: n for n in client.get("/v1/nodes")["items"]}
    assert {name: n["state"] for name, n in found.items()} == {
        "lively": "alive", "quiet": "silent", "ended": "stopped", "of-before": "alive",
    }  # fmt: skip
    assert (found["lively"]["running"], found["lively"]["waiting"], found["lively"]["version"]) == (1, 2, "9.9")
    assert (found["of-before"]["since"], found["quiet"]["running"]) == (None, 0)
    for name in ("lively", "agent-lively"):
        shown = client.get(f"/v1/nodes/{name}")
        assert ([j["job"] for j in shown["jobs"]], shown["sources"], shown["machine"]) == ([job], ["theirs"], "host-9")
    assert client.refused("GET", "/v1/nodes/nobody", 404) == "node-unknown"
