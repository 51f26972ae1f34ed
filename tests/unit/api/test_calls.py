"""What every call goes through: identity, roles, the contract, problems, the record."""

from __future__ import annotations

from tests.stack.running_api import Client, RunningApi, eventually


def test_health_is_told_to_anybody(api: RunningApi) -> None:
    found = api.client(None).get("/v1/health")
    assert found["status"] == "ok"
    assert found["parts"] == {"log": "ok", "read_models": "ok"}


def test_the_first_administrators_token_is_in_a_file_of_its_owner(api: RunningApi) -> None:
    me = api.client("admin").get("/v1/self")
    assert (me["actor"], me["role"], me["site"]) == ("admin", "admin", "test")
    assert (api.settings.data_dir / "secrets" / "admin.token").stat().st_mode & 0o777 == 0o600
    assert eventually(lambda: Client(api.url, api.token("viewer")).get("/v1/self"))["role"] == "viewer"
