"""The API killed, its servers gone, its first token half made: what is left, and what comes after."""

from __future__ import annotations

import os
import secrets
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from api.__main__ import server
from api.auth import tokens
from api.site import Site
from deploy import certificates
from deploy.embedded.ports import free_ports
from projections.views import access
from streams.consume import read_topic
from streams.errors import StreamError
from streams.events import TokenIssued
from streams.settings import ApiSettings, Settings
from streams.topics import topic_name
from tests.stack.running_api import HTTP, RunningApi, apply_views, eventually, prepare
from tests.stack.running_site import ROOT
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, config_file, make_site

pytestmark = pytest.mark.crash


@pytest.fixture
def own_site(kafka: KafkaServer, postgres: PostgresServer) -> Iterator[Settings]:
    scratch = Scratch("api-kill")
    database = postgres.fresh_database()
    yield make_site(scratch.path / "site", kafka.settings(f"t{secrets.token_hex(4)}."), database)
    if postgres.process.alive():
        postgres.drop_database(database.dbname)
    scratch.remove()


def issued(settings: Settings) -> list[TokenIssued]:
    topic = topic_name(settings.kafka.prefix, "inventory")
    return [m.event for m in read_topic(settings.kafka, topic) if isinstance(m.event, TokenIssued)]


def whoami(settings: Settings) -> httpx.Response:
    secret = tokens.read_admin_file(settings.data_dir) or ""
    return HTTP.get(f"{settings.api.url}/v1/self", headers={"Authorization": f"Bearer {secret}"})


def started(settings: Settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "api", "--config", str(config_file(settings))], cwd=ROOT, env=dict(os.environ)
    )


def answers(settings: Settings) -> bool:
    try:
        return whoami(settings).status_code == 200
    except httpx.HTTPError:
        return False


def test_killed_between_the_first_tokens_file_and_its_event_the_token_is_issued_once(own_site: Settings) -> None:
    """What a SIGKILL between the two leaves: the file, and nothing in the log."""
    prepare(own_site)
    secret = tokens.new_secret()
    tokens.write_admin_file(own_site.data_dir, secret)
    for _ in range(2):
        api = RunningApi(own_site)
        try:
            assert whoami(own_site).json()["role"] == "admin"
        finally:
            api.close()
    assert len(issued(own_site)) == 1
    assert tokens.read_admin_file(own_site.data_dir) == secret
    # The event was sent twice, as by an API that was killed before it knew that the first one had arrived.
    api = RunningApi(own_site)
    try:
        api.scribe.write(tokens.admin_event(secret, "another run"))
        api.apply("access")
        with api.server.config.app.state.site.views() as conn:  # type: ignore[union-attr]
            assert len(access.tokens(conn)) == 1
    finally:
        api.close()


def test_killed_while_the_first_token_is_written_no_half_token_is_left(own_site: Settings) -> None:
    directory = own_site.data_dir / "secrets"
    directory.mkdir(exist_ok=True)
    (directory / ".admin.token.0badcafe").write_text("hf_half")
    api = RunningApi(own_site)
    try:
        assert whoami(own_site).status_code == 200
        assert len(issued(own_site)) == 1
    finally:
        api.close()


def test_a_site_whose_token_file_was_taken_away_gets_no_second_administrator(own_site: Settings) -> None:
    api = RunningApi(own_site)
    secret = api.token("admin")
    api.close()
    (own_site.data_dir / tokens.ADMIN_FILE).unlink()
    api = RunningApi(own_site)
    try:
        answer = HTTP.get(f"{api.url}/v1/self", headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 200
        assert tokens.read_admin_file(own_site.data_dir) is None
        assert len(issued(own_site)) == 1
    finally:
        api.close()


def test_a_killed_api_comes_back_and_knows_what_was_revoked_though_nothing_was_projected(own_site: Settings) -> None:
    prepare(own_site)
    first = started(own_site)
    try:
        eventually(lambda: answers(own_site))
        admin = {"Authorization": f"Bearer {tokens.read_admin_file(own_site.data_dir)}"}
        url = own_site.api.url
        made = httpx.post(f"{url}/v1/tokens", json={"actor": "eve", "role": "operator"}, headers=admin).json()
        # The read model has the token as it was before it was revoked.
        apply_views(own_site, "access")
        assert httpx.delete(f"{url}/v1/tokens/{made['token']}", headers=admin).status_code == 204
    finally:
        first.kill()
        first.wait(120)
    second = started(own_site)
    try:
        eve = {"Authorization": f"Bearer {made['secret']}"}
        codes: set[str] = set()

        def refused() -> bool:
            try:
                codes.add(HTTP.get(f"{url}/v1/self", headers=eve).json().get("code", "let in"))
            except httpx.HTTPError:
                return False
            return "token-revoked" in codes

        eventually(refused)
        assert codes <= {"not-ready", "token-revoked"}, "she was not let in at any moment"
        assert answers(own_site)
    finally:
        second.terminate()
        assert second.wait(120) == 0


def test_without_postgresql_calls_are_refused_and_afterwards_answered_again(
    own_site: Settings, postgres: PostgresServer
) -> None:
    api = RunningApi(own_site)
    try:
        client = api.client("admin")
        postgres.kill()
        assert client.refused("GET", "/v1/sources", 503) == "read-models-unavailable"
        assert client.call("GET", "/v1/health").json()["parts"] == {"log": "ok", "read_models": "away"}
        assert client.get("/v1/self")["actor"] == "admin", "who one is, is in the log"
        postgres.restart()
        eventually(lambda: client.call("GET", "/v1/sources").status_code == 200)
    finally:
        if not postgres.process.alive():
            postgres.restart()
        api.close()


def test_what_the_log_does_not_take_is_refused_and_not_done_later(
    own_site: Settings, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.log.FLUSH_S", 2.0)
    api = RunningApi(own_site)
    try:
        client = api.client("admin")
        api.apply()
        before = len(issued(own_site))
        kafka.kill()
        try:
            answer = client.call("POST", "/v1/tokens", json={"actor": "late", "role": "viewer"})
            assert (answer.status_code, answer.json()["code"]) == (503, "log-unavailable")
            assert "secret" not in answer.json()
            assert client.get("/v1/sources")["items"] == [], "what needs no log is still answered"
        finally:
            kafka.restart()
        made = eventually(lambda: _issue(client), patience_s=60) or {}
        assert made["actor"] == "now"
        # Calls refused while Kafka was coming back may have got their record in after all; the refused one before must not.
        assert {e.actor for e in issued(own_site)[before:]} == {"now"}
    finally:
        api.close()


def _issue(client: object) -> dict[str, str] | None:
    answer = client.call("POST", "/v1/tokens", json={"actor": "now", "role": "viewer"})  # type: ignore[attr-defined]
    return answer.json() if answer.status_code == 201 else None


def test_an_api_that_starts_before_its_servers_becomes_ready_when_they_are_there(
    own_site: Settings, kafka: KafkaServer, postgres: PostgresServer
) -> None:
    prepare(own_site)
    kafka.kill()
    postgres.kill()
    process = started(own_site)
    try:
        found = eventually(lambda: _health(own_site)) or {}
        assert found["status"] == "impaired"
        assert found["parts"] == {"log": "away", "read_models": "away"}
        postgres.restart()
        kafka.restart()
        eventually(lambda: answers(own_site), patience_s=60)
    finally:
        process.kill()
        process.wait(120)
        if not postgres.process.alive():
            postgres.restart()
        if not kafka.process.alive():
            kafka.restart()


def _health(settings: Settings) -> dict[str, object] | None:
    try:
        found: dict[str, object] = HTTP.get(f"{settings.api.url}/v1/health", timeout=10).json()
    except httpx.HTTPError:
        return None
    return found


def test_an_open_stream_does_not_hold_up_the_end(own_site: Settings) -> None:
    prepare(own_site)
    process = started(own_site)
    try:
        eventually(lambda: answers(own_site))
        admin = {"Authorization": f"Bearer {tokens.read_admin_file(own_site.data_dir)}"}
        url = own_site.api.url
        body = {"name": "x", "kind": "mariadb", "host": "h", "accounts": {"capture": {"user": "u", "password": "p"}}}
        job = httpx.post(f"{url}/v1/sources", json=body, headers=admin)
        with httpx.stream("GET", f"{url}/v1/jobs/{job.json()['job']}/events", headers=admin, timeout=30) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("retry:")
            process.terminate()
            assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait(120)


def test_the_api_speaks_tls_and_listens_to_others_only_then(own_site: Settings, tmp_path: Path) -> None:
    open_to_all = replace(own_site, api=ApiSettings(host="0.0.0.0", port=free_ports(1)[0]))
    with pytest.raises(StreamError, match="without TLS"):
        server(open_to_all)
    made = certificates.make(tmp_path, ["localhost", "127.0.0.1"])
    secure = replace(
        open_to_all, api=replace(open_to_all.api, host="127.0.0.1", tls_cert=made.certificate, tls_key=made.key)
    )
    prepare(secure)
    running = server(secure)
    import threading

    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        context = ssl.create_default_context(cafile=str(made.ca))
        with httpx.Client(verify=context) as client:
            eventually(lambda: running.started)
            assert eventually(lambda: client.get(f"{secure.api.url}/v1/health").status_code == 200)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{secure.api.url}/v1/health")
        from api.cli.connection import Api, Place

        secret = eventually(lambda: tokens.read_admin_file(secure.data_dir)) or ""
        asked = Api(Place(secure.api.url, secret, made.ca, pinned=True))
        assert eventually(lambda: _asked(asked)) == "admin"
    finally:
        running.should_exit = True
        thread.join(120)


def _asked(api: object) -> str | None:
    from api.cli.errors import CliError

    try:
        found: str = api.get("/v1/self")["actor"]  # type: ignore[attr-defined]
    except CliError:
        return None
    return found


def test_the_site_object_closes_without_ever_having_been_ready(own_site: Settings, kafka: KafkaServer) -> None:
    unreachable = replace(own_site, kafka=replace(own_site.kafka, bootstrap=f"127.0.0.1:{free_ports(1)[0]}"))
    site = Site(unreachable)
    site.open()
    close: Callable[[], None] = site.close
    close()
