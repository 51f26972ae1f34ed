"""Repositories and points as the API shows and asks for them; what an agent would say is written by the test."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from streams.consume import read_topic
from streams.events import (
    CallAudited,
    CollectionChanged,
    CommandRequested,
    PointDropped,
    PointMarked,
    PointSealed,
    RepositoryChecked,
    RepositoryDefined,
    SessionClosed,
    SessionOpened,
)
from streams.ids import now_us, uuid7
from streams.publish import rfc3339
from streams.topics import topic_name
from tests.stack.running_api import RunningApi

PASSPHRASE = "correct horse battery"
BUCKET = {"kind": "s3", "bucket": "abc", "endpoint": "https://s3.example", "access_key": "k"}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
HOUR_US = 3_600_000_000


def asked(api: RunningApi, job: str) -> tuple[CommandRequested, dict[str, Any]]:
    kafka = api.settings.kafka
    events = (m.event for m in read_topic(kafka, topic_name(kafka.prefix, "commands")))
    found = next(e for e in events if isinstance(e, CommandRequested) and e.command == job)
    return found, json.loads(found.parameters)


def defined(name: str, **more: Any) -> RepositoryDefined:
    said: dict[str, Any] = {
        "repository": name, "identity": uuid7(), "state": "added", "store": "local", "location": "/backups",
        "node": "node_1", "encrypted": True, "options": {"keep": "7d", "block_size": "131072"},
        "protected_from": ("nothing but a broken disk",), "defined_us": now_us(), "by": "ada",
    }  # fmt: skip
    return RepositoryDefined(**said | more)


def session(name: str, id: str) -> SessionOpened:
    return SessionOpened(
        repository=name, session=id, kind="backup", node="node_1", asset="web", lease_ticks=5, seen=0, opened_us=now_us(),
        by="node_1",
    )  # fmt: skip


def sealed(name: str, session: str, **more: Any) -> PointSealed:
    said: dict[str, Any] = {
        "repository": name, "session": session, "point": uuid7(), "asset": "web", "asset_name": "web", "kind": "files",
        "created_us": now_us(), "sealed_us": now_us(), "files_root": b"\x01" * 32, "record": b"\x02" * 32,
        "figures": {"stored_bytes": 1000, "size_bytes": 5000}, "by": "node_1",
    }  # fmt: skip
    return PointSealed(**said | more)


@pytest.fixture(scope="module")
def vault(api: RunningApi) -> list[PointSealed]:
    """A repository with three points: the second was dropped, the third said by a session that had ended."""
    one, other = uuid7(), uuid7()
    points = [sealed("vault", one), sealed("vault", one), sealed("vault", other)]
    api.scribe.write(
        defined("vault"),
        session("vault", one),
        session("vault", other),
        *points[:2],
        SessionClosed(repository="vault", session=other, outcome="failed", closed_us=now_us(), by="node_1"),
        points[2],
        PointDropped(repository="vault", point=points[1].point, reason="too old", dropped_us=now_us(), by="node_1"),
    )
    api.apply("repositories")
    return points


def mark(api: RunningApi, point: PointSealed, mark: str, **more: Any) -> None:
    api.scribe.write(
        PointMarked(repository="vault", point=point.point, mark=mark, number=1, marked_us=now_us(), by="ada", **more)
    )
    api.apply("repositories")


def test_a_repository_is_asked_for_with_its_secrets_by_reference(api: RunningApi) -> None:
    client = api.client("admin")
    body = {"name": "new", "store": {"kind": "local", "path": "/backups"}, "passphrase": PASSPHRASE, "keep": "7d,4w"}
    command, parameters = asked(api, client.post("/v1/repositories", body)["job"])
    assert (command.kind, command.asset) == ("repository.add", "repository/new")
    assert PASSPHRASE not in command.parameters
    reference = parameters["secrets"]["passphrase"]
    assert api.server.config.app.state.site.secrets.get(reference) == PASSPHRASE.encode()  # type: ignore[union-attr]
    assert (parameters["keep"], parameters["encrypted"], parameters["block_size"]) == ("7d,4w", True, 131_072)
    adopted, parameters = asked(
        api,
        client.post(
            "/v1/repositories/adopt",
            {"name": "old", "store": {"kind": "local", "path": "/backups"}, "recovery_code": "abc"},
        )["job"],
    )
    assert (adopted.kind, list(parameters["secrets"])) == ("repository.adopt", ["code"])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"block_size": 100_000}, "block-size-invalid"),
        ({"encrypted": False}, "passphrase-unexpected"),
        ({"store": {"kind": "s3", "bucket": "abc"}}, "store-invalid"),
        ({"store": {"kind": "local", "path": "/x", "bucket": "abc"}}, "store-invalid"),
        ({"secret_key": "x"}, "store-invalid"),
        ({"store": {"kind": "local", "path": "/x", "tls_ca": "x"}}, "store-invalid"),
        ({"store": BUCKET | {"tls_ca": "hello"}, "secret_key": "x"}, "ca-invalid"),
        ({"store": BUCKET | {"tls_ca": CERTIFICATE + "-----BEGIN PRIVATE KEY-----"}, "secret_key": "x"}, "ca-invalid"),
        ({"keep": "7"}, "request-invalid"),
        ({"name": "vault"}, "repository-exists"),
    ],
)
def test_what_makes_no_repository_is_refused(
    api: RunningApi, vault: list[PointSealed], change: dict[str, Any], code: str
) -> None:
    body = {"name": "other", "store": {"kind": "local", "path": "/backups"}, "passphrase": PASSPHRASE, **change}
    status = 409 if code == "repository-exists" else 422
    assert api.client("admin").refused("POST", "/v1/repositories", status, json=body) == code


def test_a_repository_shows_what_it_holds_and_who_works_in_it(api: RunningApi, vault: list[PointSealed]) -> None:
    api.scribe.write(
        RepositoryChecked(
            repository="vault", what="verify", mode="full", figures={"chunks": 9}, checked_us=now_us(), by="node_1"
        )
    )
    api.apply("repositories")
    client = api.client("viewer")
    found = client.get("/v1/repositories/vault")
    assert (found["points"], found["assets"], found["stored"], found["keep"]) == (1, 1, 2000, "7d")
    assert [s["session"] for s in found["sessions"]] == [vault[0].session]
    assert [(c["what"], c["figures"]) for c in found["checks"]] == [("verify", {"chunks": 9})]
    assert "vault" in [r["name"] for r in client.get("/v1/repositories")["items"]]
    assert client.refused("GET", "/v1/repositories/nothing", 404) == "repository-unknown"


def test_what_is_stored_is_what_was_found_there_and_what_was_added_since(api: RunningApi) -> None:
    adopting, later = uuid7(), uuid7()
    seen: dict[str, Any] = {"points": 1, "marks": 0, "left_out": 0, "packs_bytes": 9000}
    api.scribe.write(
        defined("found"),
        replace(session("found", adopting), kind="adopt"),
        sealed("found", adopting, adopted=True, figures={"stored_bytes": 700}),
        SessionClosed(
            repository="found", session=adopting, outcome="done", figures=seen, closed_us=now_us(), by="node_1"
        ),
        session("found", later),
        sealed("found", later),
    )

    def stored() -> int:
        api.apply("repositories")
        return int(api.client("viewer").get("/v1/repositories/found")["stored"])

    def collected(**figures: int) -> None:
        api.scribe.write(
            CollectionChanged(
                repository="found", collection=uuid7(), session=later, state="done", marked=1, digest=b"",
                freed_bytes=4000, figures=figures, at_us=now_us(), by="node_1",
            )
        )  # fmt: skip

    assert stored() == 10_000, "as listed when it was adopted, and one point since"
    collected()
    assert stored() == 6000, "by an earlier release, which did not say what is left"
    collected(packs_bytes=5500)
    assert stored() == 5500, "what was copied, and garbage that no point had said, is counted now"
    api.scribe.write(sealed("found", later))
    assert stored() == 6500


def test_points_are_listed_while_they_count(api: RunningApi, vault: list[PointSealed]) -> None:
    client = api.client("viewer")
    listed = client.get("/v1/points", repository="vault")["items"]
    assert [p["point"] for p in listed] == [vault[0].point], "dropped points, and those of sessions that ended, do not"
    both = client.get("/v1/points", repository="vault", all=True)["items"]
    assert {p["point"] for p in both} == {vault[0].point, vault[1].point}
    dropped = client.get(f"/v1/points/{vault[1].point}")
    assert (dropped["why"], bool(dropped["dropped"])) == ("too old", True)
    page = client.get("/v1/points", repository="vault", all=True, limit=1)
    rest = client.get("/v1/points", repository="vault", all=True, limit=1, before=page["next"])
    assert {page["items"][0]["point"], rest["items"][0]["point"]} == {vault[0].point, vault[1].point}
    assert client.refused("GET", f"/v1/points/{vault[2].point}", 404) == "point-unknown"


def test_marks_are_what_was_said_last_and_as_of_a_moment_what_had_been_said(
    api: RunningApi, vault: list[PointSealed]
) -> None:
    point, client = vault[0], api.client("operator")
    path = f"/v1/points/{point.point}"
    before = rfc3339(now_us() - HOUR_US)
    mark(api, point, "star")
    mark(api, point, "hold", name="case-1")
    mark(api, point, "hold", name="case-2", until_us=now_us() - 1)
    mark(api, point, "suspect")
    found = client.get(path)
    assert (found["starred"], found["held"], found["suspect"], found["verified"]) == (True, True, True, None)
    mark(api, point, "unstar")
    mark(api, point, "release", name="case-1")
    mark(api, point, "verified")
    found = client.get(path)
    assert (found["starred"], found["held"], found["suspect"]) == (False, False, False), "case-2 has ended by itself"
    assert found["verified"]
    assert found["condition"] == "verified"
    mark(api, point, "damaged")
    worse = client.get(path)
    assert (worse["suspect"], worse["condition"], worse["verified"]) == (True, "damaged", None), "the newest word"
    assert [m["mark"] for m in found["marks"]] == ["star", "hold", "hold", "suspect", "unstar", "release", "verified"]
    assert client.get("/v1/points", repository="vault", as_of=before)["items"] == []
    assert client.get("/v1/repositories", as_of=before)["items"] == []
    assert client.refused("GET", f"{path}?as_of={before}", 404) == "point-unknown"


def test_a_starred_point_is_not_dropped_whoever_says_so(api: RunningApi) -> None:
    id = uuid7()
    point = sealed("kept", id)
    api.scribe.write(
        defined("kept"),
        session("kept", id),
        point,
        PointMarked(repository="kept", point=point.point, mark="star", number=1, marked_us=now_us(), by="ada"),
        PointDropped(repository="kept", point=point.point, reason="too old", dropped_us=now_us(), by="node_1"),
    )
    api.apply("repositories")
    assert api.client("viewer").get(f"/v1/points/{point.point}")["dropped"] is None


def test_work_is_asked_of_the_agent(api: RunningApi, vault: list[PointSealed]) -> None:
    client, admin, point = api.client("operator"), api.client("admin"), vault[0].point
    held, given = asked(api, client.post(f"/v1/points/{point}/hold", {"name": "case-3", "note": "n"})["job"])
    assert (held.kind, held.asset, given["name"], given["until_us"]) == (
        "point.hold",
        "repository/vault",
        "case-3",
        None,
    )
    over = {"name": "case-4", "until": "2001-01-01T00:00:00Z"}
    assert client.refused("POST", f"/v1/points/{point}/hold", 422, json=over) == "hold-over"
    restored, given = asked(api, admin.post(f"/v1/points/{point}/restore", {"target": "/tmp/x"})["job"])
    assert (restored.kind, given["repository"], given["target"]) == ("point.restore", "vault", "/tmp/x")
    assert given["skip_lost"] is False
    _, given = asked(
        api, admin.post(f"/v1/points/{vault[0].point}/restore", {"target": "/tmp/y", "skip_lost": True})["job"]
    )
    assert given["skip_lost"] is True
    backup, given = asked(
        api, admin.post("/v1/backups", {"kind": "files", "repository": "vault", "path": "/srv/Web Site"})["job"]
    )
    assert (backup.asset, given["asset"], given["path"]) == ("asset/srv-web-site", "srv-web-site", "/srv/Web Site")
    agreed, given = asked(api, admin.post(f"/v1/points/{point}/agree")["job"])
    assert (agreed.kind, given["right_since_us"] > 0) == ("point.agree", True)
    shown, given = asked(api, client.post("/v1/repositories/vault/expire", {"dry_run": True, "keep": "1d"})["job"])
    assert (shown.kind, shown.asset) == ("point.expire", "expire/vault")
    assert client.refused("POST", "/v1/repositories/vault/expire", 422, json={"dry_run": False}) == "digest-missing"
    assert client.refused("POST", f"/v1/points/{vault[1].point}/star", 409, json={}) == "point-dropped"


def test_restores_of_disks_are_asked_of_the_agent(api: RunningApi, vault: list[PointSealed]) -> None:
    admin, id = api.client("admin"), uuid7()
    disks = sealed("vault", id, kind="disks", asset="shop")
    api.scribe.write(session("vault", id), disks)
    api.apply("repositories")
    path = f"/v1/points/{disks.point}"
    command, given = asked(api, admin.post(f"{path}/restore/files", {"to": "/srv/out"})["job"])
    assert (command.kind, command.asset) == ("restore.run", f"restore/{disks.point}")
    assert given == {
        "how": "files", "repository": "vault", "point": disks.point, "to": "/srv/out", "format": "qcow2", "disks": [],
        "skip_lost": False, "bandwidth": 0, "dry_run": False,
    }  # fmt: skip
    command, given = asked(api, admin.post(f"{path}/restore/original", {"stop": True, "disks": ["vda"]})["job"])
    assert command.asset == "shop", "in line with the machine's backups"
    assert (given["how"], given["stop"], given["start"], given["disks"]) == ("original", True, False, ["vda"])
    more = {"host": "h1", "cpus": 4, "nics": [{"network": "lab", "model": "e1000"}], "keep_identity": True}
    command, given = asked(api, admin.post(f"{path}/restore/machine", more)["job"])
    assert (given["how"], given["host"], given["cpus"], given["memory"]) == ("machine", "h1", 4, None)
    assert given["nics"] == [{"network": "lab", "model": "e1000"}]
    command, given = asked(api, admin.post(f"{path}/compare", {"target": "/srv/x", "disk": "vda"})["job"])
    assert (command.kind, given["target"], given["disks"]) == ("point.compare", "/srv/x", ["vda"])
    refused = admin.refused("POST", f"{path}/restore/machine", 422, json={"host": "h1", "bus": "floppy"})
    assert refused == "request-invalid"
    files = f"/v1/points/{vault[0].point}/restore/files"
    assert admin.refused("POST", files, 422, json={"to": "/srv/out"}) == "point-unfit"
    assert api.client("operator").refused("POST", f"{path}/restore/original", 403, json={}) == "role-insufficient"


def test_a_recovery_code_is_told_once(api: RunningApi, vault: list[PointSealed]) -> None:
    client = api.client("admin")
    store = api.server.config.app.state.site.secrets  # type: ignore[union-attr]
    store.put("repositories/vault/recovery-abc", b"CODE-1")
    told = client.call("POST", "/v1/repositories/vault/keys/abc/reveal")
    assert (told.status_code, told.json()) == (200, {"key": "abc", "code": "CODE-1"})
    assert client.refused("POST", "/v1/repositories/vault/keys/abc/reveal", 404) == "code-unknown"
    command, given = asked(api, client.post("/v1/repositories/vault/keys/drill", {"recovery_code": "CODE-1"})["job"])
    assert "CODE-1" not in command.parameters
    assert store.get(given["secrets"]["code"]) == b"CODE-1"
    kafka = api.settings.kafka
    calls = (m.event for m in read_topic(kafka, topic_name(kafka.prefix, "audit")))
    said = [e.detail for e in calls if isinstance(e, CallAudited) and e.action == "key.drill"]
    assert said
    assert not any("CODE-1" in detail for detail in said)
