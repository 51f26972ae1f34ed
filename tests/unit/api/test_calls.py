"""What every call goes through: identity, roles, the contract, problems, the record."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from api import contract
from api.auth.roles import OPERATIONS, ROLES, Operation
from api.routes import HANDLERS
from projections.views import audit
from streams.ids import now_us, uuid7
from tests.stack.running_api import HTTP, RunningApi, eventually

JSON = {"Content-Type": "application/json"}
NOWHERE = "00000000-0000-7000-8000-000000000000"
FILLED = {
    "{source}": "nosuch",
    "{ordinal}": "1",
    "{plan}": NOWHERE,
    "{job}": NOWHERE,
    "{projection}": "nosuch",
    "{token}": NOWHERE,
    "{repository}": "nosuch",
    "{point}": NOWHERE,
    "{key}": "nosuch",
}


def path_of(operation: Operation) -> str:
    path = operation.path
    for name, value in FILLED.items():
        path = path.replace(name, value)
    return path


def recorded(api: RunningApi, **wanted: Any) -> list[audit.Call]:
    """Calls in the record that are as wanted, newest first."""
    api.apply("audit")
    with api.server.config.app.state.site.views() as conn:  # type: ignore[union-attr]
        found = audit.calls(conn, limit=1000)
    return [c for c in found if all(getattr(c, k) == v for k, v in wanted.items())]


def test_every_operation_stands_in_the_document_and_has_a_handler() -> None:
    table = {(o.id, o.method, o.path) for o in OPERATIONS}
    assert table == set(contract.operations())
    assert {o.id for o in OPERATIONS} == set(HANDLERS)


def test_the_document_is_valid_openapi() -> None:
    from openapi_spec_validator import validate

    validate(json.loads(json.dumps(contract.document())))


def test_the_document_served_says_who_may_call_what(api: RunningApi) -> None:
    served = api.client(None).get("/v1/openapi.json")
    assert served["paths"]["/v1/rollbacks/{plan}/run"]["post"]["x-roles"] == ["admin", "operator"]
    assert served["paths"]["/v1/health"]["get"]["x-roles"] == []


def test_health_is_told_to_anybody(api: RunningApi) -> None:
    found = api.client(None).get("/v1/health")
    assert found["status"] == "ok"
    assert found["parts"] == {"log": "ok", "read_models": "ok"}


def test_the_first_administrators_token_is_in_a_file_of_its_owner(api: RunningApi) -> None:
    me = api.client("admin").get("/v1/self")
    assert (me["actor"], me["role"], me["site"]) == ("admin", "admin", "test")
    assert (api.settings.data_dir / "secrets" / "admin.token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_call_what_the_table_says_and_nothing_else(api: RunningApi, role: str) -> None:
    client = api.client(role)
    for operation in OPERATIONS:
        # A body that the contract refuses, and names that do not exist: nobody's call does anything here.
        body: dict[str, Any] = {"json": {}} if contract.contract(operation.id).body is not None else {}
        if operation.id in ("job.events", "step.stream"):
            body["headers"] = {"Last-Event-ID": "x"}
        answer = client.call(operation.method, path_of(operation), **body)
        may = operation.public or role in operation.roles
        assert (answer.status_code == 403) == (not may), f"{role} {operation.id}: {answer.text}"
        assert answer.status_code < 500, answer.text
        if not may:
            assert answer.json()["code"] == "role-insufficient"


def test_no_call_works_without_a_token(api: RunningApi) -> None:
    client = api.client(None)
    for operation in OPERATIONS:
        if not operation.public:
            answer = client.call(operation.method, path_of(operation))
            assert (answer.status_code, answer.json()["code"]) == (401, "token-missing"), operation.id
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Bearer hf_" + "A" * 43, "token-unknown"),
        ("Bearer nonsense", "token-invalid"),
        ("Basic aGE6aGE=", "token-invalid"),
        ("Bearer", "token-invalid"),
        ("Bearer hf_" + "A" * 4300, "token-invalid"),
    ],
)
def test_what_is_no_token_of_this_site_is_refused(api: RunningApi, header: str, code: str) -> None:
    answer = HTTP.get(f"{api.url}/v1/sources", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, code)


def test_a_token_ends_with_its_time_or_its_revocation(api: RunningApi) -> None:
    expired = api.token("viewer", expires_us=now_us() - 1)
    answer = HTTP.get(f"{api.url}/v1/self", headers={"Authorization": f"Bearer {expired}"})
    assert answer.json()["code"] == "token-expired"

    admin = api.client("admin")
    issued = admin.post("/v1/tokens", {"actor": "bo", "role": "operator"}, status=201)
    mine = httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {issued['secret']}"}, verify=False)
    assert mine.get("/v1/self").json()["role"] == "operator"
    assert admin.call("DELETE", f"/v1/tokens/{issued['token']}").status_code == 204
    # The read model was told of neither: the log itself is what counts.
    assert mine.get("/v1/self").json()["code"] == "token-revoked"
    listed = {t["token"]: t for t in admin.get("/v1/tokens")["items"]}
    assert listed[issued["token"]]["revoked_by"] == "admin"
    assert not listed[issued["token"]]["usable"]
    assert "secret" not in listed[issued["token"]]
    assert admin.call("DELETE", f"/v1/tokens/{issued['token']}").status_code == 204


def test_the_last_administrator_cannot_be_revoked(api: RunningApi) -> None:
    api.apply("access")
    admin = api.client("admin")
    me = admin.get("/v1/self")["token"]
    assert admin.refused("DELETE", f"/v1/tokens/{me}", 409) == "last-admin"


def test_tokens_answer_while_the_read_model_of_them_is_away(api: RunningApi) -> None:
    admin = api.client("admin")
    secret = api.token("viewer", token=uuid7())
    assert admin.call("DELETE", "/v1/projections/access").status_code == 200
    try:
        answer = HTTP.get(f"{api.url}/v1/self", headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 200
    finally:
        job = admin.post("/v1/projections/access/rebuild")["job"]
        with admin.events(f"/v1/jobs/{job}/events") as events:
            assert [data for event, _, data in events if event][-1]["state"] == "finished"


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "code"),
    [
        ("GET", "/v1/sources?nosuch=1", {}, 422, "request-invalid"),
        ("GET", "/v1/sources/UPPER", {}, 422, "request-invalid"),
        ("GET", "/v1/sources/shop%0A", {}, 422, "request-invalid"),
        ("GET", "/v1/sources/..%2F..%2Fetc", {}, 404, "path-unknown"),
        ("GET", "/v1/jobs?limit=0", {}, 422, "request-invalid"),
        ("GET", "/v1/jobs?limit=1e3", {}, 422, "request-invalid"),
        ("GET", "/v1/jobs?open=yes", {}, 422, "request-invalid"),
        ("GET", "/v1/jobs/nosuch", {}, 422, "request-invalid"),
        ("GET", f"/v1/jobs/{NOWHERE}", {}, 404, "job-unknown"),
        ("GET", f"/v1/rollbacks/{NOWHERE}", {}, 404, "plan-unknown"),
        ("GET", "/v1/sources/nosuch", {}, 404, "source-unknown"),
        ("GET", "/v1/sources/nosuch/steps", {}, 404, "source-unknown"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"json": {"steps": 1}}, 404, "source-unknown"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"json": {"steps": 0}}, 422, "request-invalid"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"json": {"steps": True}}, 422, "request-invalid"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"json": [1]}, 422, "request-invalid"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"content": b"{", "headers": JSON}, 422, "body-invalid"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"content": b'{"steps": NaN}', "headers": JSON}, 422, "body-invalid"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"content": b"[" * 100_000, "headers": JSON}, 422, "body-invalid"),
        ("POST", "/v1/sources/nosuch/rollbacks", {"content": b"steps=1"}, 415, "body-type"),
        ("POST", "/v1/sources/nosuch/pause", {"json": {"a": 1}}, 422, "body-unexpected"),
        ("POST", "/v1/tokens", {"content": b'{"actor": "a\\u0000", "role": "viewer"}', "headers": JSON}, 422, "text-invalid"),
        ("POST", "/v1/tokens", {"content": b'{"\\ud800": 1}', "headers": JSON}, 422, "text-invalid"),
        ("GET", "/v1/jobs?by=%00", {}, 422, "request-invalid"),
        ("GET", "/v1/audit?as_of=0001-01-01T00:00:00%2B14:00", {}, 422, "request-invalid"),
        ("POST", "/v1/tokens", {"json": {"actor": "x", "role": "god"}}, 422, "request-invalid"),
        ("POST", "/v1/tokens", {"json": {"actor": "x", "role": "viewer", "expires": "2001-01-01T00:00:00Z"}}, 422, "expiry-past"),
        ("POST", "/v1/tokens", {"json": {"actor": "x", "role": "viewer", "expires": "tomorrow"}}, 422, "request-invalid"),
        ("GET", "/v1/audit?until=2026-01-01T00:00:00Z&as_of=2026-01-01T00:00:00Z", {}, 422, "parameters-clash"),
        ("GET", "/v1/audit?before=nonsense", {}, 422, "page-invalid"),
        ("GET", "/v1/projections/nosuch/digest", {}, 404, "view-unknown"),
        ("PUT", "/v1/sources", {}, 405, "method-unknown"),
        ("GET", "/v2/sources", {}, 404, "path-unknown"),
    ],
)  # fmt: skip
def test_a_call_that_makes_no_sense_is_refused_with_a_reason(
    api: RunningApi, method: str, path: str, more: dict[str, Any], status: int, code: str
) -> None:
    answer = api.client("admin").call(method, path, **more)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["detail"]


def test_a_body_beyond_the_limit_is_refused(api: RunningApi) -> None:
    client = api.client("admin")
    large = b"{" + b" " * 1_100_000 + b"}"
    headers = {"Content-Type": "application/json"}
    assert client.refused("POST", "/v1/tokens", 413, content=large, headers=headers) == "body-too-large"

    def chunked() -> Any:
        for _ in range(20):
            yield b" " * 65_536

    assert client.refused("POST", "/v1/tokens", 413, content=chunked(), headers=headers) == "body-too-large"


def test_a_problem_with_a_password_does_not_repeat_it(api: RunningApi) -> None:
    client = api.client("admin")
    body = {
        "name": "leaky",
        "kind": "mariadb",
        "host": "h",
        "accounts": {"capture": {"user": "u", "password": 12345678}},
    }
    answer = client.call("POST", "/v1/sources", json=body)
    assert answer.status_code == 422
    assert "12345678" not in answer.text
    assert all("12345678" not in c.detail for c in recorded(api, action="source.add"))


def test_what_changes_something_is_recorded_with_who_and_what_came_of_it(api: RunningApi) -> None:
    admin = api.client("admin")
    body = {
        "name": "billing",
        "kind": "mariadb",
        "host": "127.0.0.1",
        "accounts": {"capture": {"user": "cap", "password": "s3cr3t-of-billing"}},
    }
    job = admin.post("/v1/sources", body)["job"]
    found = recorded(api, action="source.add", object="billing")
    assert len(found) == 1
    call = found[0]
    assert (call.actor, call.role, call.outcome, call.remote) == ("admin", "admin", 202, "127.0.0.1")
    detail = json.loads(call.detail)
    assert detail["job"] == job
    assert detail["accounts"]["capture"] == {"password": "…", "user": "cap"}
    assert "s3cr3t-of-billing" not in call.detail


def test_refused_calls_are_recorded_with_their_caller(api: RunningApi) -> None:
    viewer = api.client("viewer")
    viewer.refused("POST", "/v1/sources/shop/pause", 403)
    found = recorded(api, action="source.pause", actor="a-viewer")
    assert found[0].outcome == 403
    assert json.loads(found[0].detail)["code"] == "role-insufficient"


def test_refused_strangers_are_all_counted_and_cannot_fill_the_log(api: RunningApi) -> None:
    def counted() -> int:
        return sum(int(json.loads(c.detail)["calls"]) for c in recorded(api, actor="", outcome=401))

    before = counted()
    stranger = api.client(None)
    records = len(recorded(api, actor="", outcome=401))
    for _ in range(200):
        stranger.refused("GET", "/v1/audit", 401)

    eventually(lambda: counted() - before >= 200)
    assert counted() - before == 200
    assert len(recorded(api, actor="", outcome=401)) - records < 50


def test_looking_at_the_record_is_recorded_and_pages_through_it_all(api: RunningApi) -> None:
    auditor = api.client("auditor")
    auditor.get("/v1/audit", limit=1)
    api.apply("audit")
    mine = auditor.get("/v1/audit", actor="a-auditor", action="audit.list")
    assert mine["items"]
    everything, before = [], None
    while True:
        page = auditor.get("/v1/audit", limit=3, before=before, until=mine["items"][0]["at"])
        everything += page["items"]
        before = page["next"]
        if before is None:
            break
    assert len({c["request"] for c in everything}) == len(everything) > 3
    assert everything == sorted(everything, key=lambda c: (c["at"], c["request"]), reverse=True)
    assert everything[0]["at"] <= mine["items"][0]["at"]


def test_the_record_as_of_a_moment_does_not_know_what_came_later(api: RunningApi) -> None:
    admin = api.client("admin")
    admin.post("/v1/tokens", {"actor": "first", "role": "viewer"}, status=201)
    api.apply("audit")
    moment = admin.get("/v1/audit", action="token.issue", limit=1)["items"][0]["at"]
    admin.post("/v1/tokens", {"actor": "second", "role": "viewer"}, status=201)
    api.apply("audit")
    then = admin.get("/v1/audit", action="token.issue", as_of=moment)["items"]
    assert then[0]["detail"]["actor"] == "first"
    assert admin.get("/v1/audit", action="token.issue")["items"][0]["detail"]["actor"] == "second"


def test_half_a_request_harms_nobody(api: RunningApi) -> None:
    host, port = api.settings.api.host, api.settings.api.port
    with socket.create_connection((host, port)) as broken:
        broken.sendall(
            b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        )
    with socket.create_connection((host, port)) as garbage:
        garbage.sendall(b"\x16\x03\x01\x02\x00" * 50)
        assert b"400" in garbage.recv(1000)
    assert api.client("viewer").get("/v1/self")["role"] == "viewer"
