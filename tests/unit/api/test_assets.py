"""Hosts and machines over HTTP: what is asked of agents, and what the read models say, now and then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.shapes import time
from projections.views import assets as view
from streams.consume import read_topic
from streams.events import (
    AssetChanged,
    AssetDisk,
    AssetNic,
    CommandRequested,
    DiskSealed,
    HostDefined,
    PointSealed,
    RepositoryDefined,
    SessionOpened,
)
from streams.ids import now_us, uuid7
from streams.topics import topic_name
from tests.stack.running_api import RunningApi

PASSWORD = "a password of a host"


def host(name: str = "h1", state: str = "added", **more: Any) -> HostDefined:
    return HostDefined(
        host=name, kind="kvm", state=state, url="qemu:///system", version="9.0", defined_us=now_us(), by="ada", **more
    )


def asset(name: str, native: str, state: str = "seen", **more: Any) -> AssetChanged:
    said: dict[str, Any] = {
        "host": "h1",
        "name": name.title(),
        "tags": ("gold",),
        "power": "running",
        "cpus": 2,
        "memory": 1 << 30,
        "firmware": "bios",
        "disks": (AssetDisk("vda", 1 << 30, "qcow2", tracked=True),),
        "nics": (AssetNic("52:54:00:00:00:01", "default", "virtio"),),
    }
    return AssetChanged(asset=name, state=state, native=native, seen_us=now_us(), by="node-1", **said | more)


def asked(api: RunningApi, job: str) -> tuple[str, str, dict[str, Any]]:
    kafka = api.settings.kafka
    events = (m.event for m in read_topic(kafka, topic_name(kafka.prefix, "commands")))
    found = next(e for e in events if isinstance(e, CommandRequested) and e.command == job)
    return found.kind, found.asset, json.loads(found.parameters)


@pytest.fixture(scope="module")
def machines(api: RunningApi) -> PointSealed:
    """A host with two machines, one of which is gone, and a point of the other."""
    session = uuid7()
    sealed = PointSealed(
        repository="vault",
        session=session,
        point=uuid7(),
        asset="shop",
        asset_name="Shop",
        kind="disks",
        created_us=now_us(),
        sealed_us=now_us(),
        disks=(DiskSealed(disk="vda", name="vda", size=1 << 30, block_size=65536, root=bytes(32)),),
        files_root=b"",
        record=bytes(32),
        figures={},
        facts={"mode": "full", "consistency": "files"},
        by="node_1",
    )
    api.scribe.write(
        host(secrets={"password": "hosts/h1/password@1"}, options={"disks": "2"}),
        host("h2"),
        asset("shop", "1"),
        asset("mail", "2"),
        asset("far", "3", host="h2"),
        RepositoryDefined(
            repository="vault",
            identity=uuid7(),
            state="added",
            store="local",
            location="/v",
            node="node_1",
            encrypted=True,
            options={},
            defined_us=now_us(),
            by="ada",
        ),
        SessionOpened(
            repository="vault",
            session=session,
            kind="backup",
            node="node_1",
            asset="shop",
            lease_ticks=5,
            seen=0,
            opened_us=now_us(),
            by="node_1",
        ),
        sealed,
    )
    api.apply("assets")
    api.apply("repositories")
    return sealed


def test_a_host_is_asked_for_with_its_password_by_reference(api: RunningApi, machines: PointSealed) -> None:
    client = api.client("admin")
    body = {"name": "new", "kind": "kvm", "url": "qemu+tls://new/system", "account": "hf", "password": PASSWORD}
    kind, key, parameters = asked(api, client.post("/v1/hosts", body)["job"])
    assert (kind, key, parameters["url"]) == ("host.add", "host/new", "qemu+tls://new/system")
    assert PASSWORD not in json.dumps(parameters)
    reference = parameters["secrets"]["password"]
    assert api.server.config.app.state.site.secrets.get(reference) == PASSWORD.encode()  # type: ignore[union-attr]
    again = asked(api, client.post("/v1/hosts", {"name": "h1", "kind": "kvm", "url": "qemu:///system"})["job"])
    assert again[2]["secrets"] == {"password": "hosts/h1/password@1"}
    with_password = {"name": "bad", "kind": "kvm", "url": "qemu+tcp://hf:secret@bad/system"}
    assert client.refused("POST", "/v1/hosts", 422, json=with_password) == "url-has-password"
    assert api.client("operator").refused("POST", "/v1/hosts", 403, json=body) == "role-insufficient"
    assert asked(api, client.call("DELETE", "/v1/hosts/h1").json()["job"])[:2] == ("host.remove", "host/h1")
    assert client.refused("GET", "/v1/hosts/nothing", 404) == "host-unknown"


def test_hosts_and_machines_are_shown_with_the_newest_point(api: RunningApi, machines: PointSealed) -> None:
    client = api.client("viewer")
    found = client.get("/v1/hosts/h1")
    assert (found["machines"], found["options"], found["version"]) == (2, {"disks": "2"}, "9.0")
    assert "secrets" not in found
    shop = client.get("/v1/assets/shop")
    assert (shop["name"], shop["disks"][0]["tracked"], shop["nics"][0]["network"]) == ("Shop", True, "default")
    assert shop["point"] == {
        "point": machines.point,
        "repository": "vault",
        "created": time(machines.created_us),
        "size": 1 << 30,
        "mode": "full",
        "consistency": "files",
    }
    assert [a["asset"] for a in client.get("/v1/assets", host="h1")["items"]] == ["mail", "shop"]
    assert client.get("/v1/assets/mail")["point"] is None
    assert client.refused("GET", "/v1/assets/nothing", 404) == "asset-unknown"


def test_what_was_then_is_shown_as_of_then(api: RunningApi, machines: PointSealed) -> None:
    moment = now_us()
    then = time(moment)
    while now_us() // 1000 <= moment // 1000:  # clocks of events count milliseconds
        pass
    api.scribe.write(
        asset("mail", "2", "gone"), asset("shop", "1", cpus=4), asset("shop", "other", cpus=8), host("h2", "removed")
    )
    api.apply("assets")
    client = api.client("viewer")
    assert [a["asset"] for a in client.get("/v1/assets", host="h1")["items"]] == ["shop"]
    assert "mail" in [a["asset"] for a in client.get("/v1/assets", all="true")["items"]]
    assert client.get("/v1/assets/shop")["cpus"] == 4  # the other machine is none of that name
    assert client.refused("GET", "/v1/hosts/h2", 404) == "host-unknown"
    assert [a["asset"] for a in client.get("/v1/assets", host="h1", as_of=then)["items"]] == ["mail", "shop"]
    assert client.get("/v1/assets/shop", as_of=then)["cpus"] == 2
    assert client.get("/v1/hosts/h2", as_of=then)["machines"] == 1
    assert view.NAME in [p["name"] for p in client.get("/v1/projections")["items"]]


def test_backups_of_machines_are_asked_for(api: RunningApi, machines: PointSealed) -> None:
    client = api.client("operator")
    one = {"assets": ["shop"], "repository": "vault", "disks": ["vda"], "bandwidth": 1000}
    kind, key, parameters = asked(api, client.post("/v1/backups/machines", one)["job"])
    assert (kind, key) == ("backup.run", "asset/shop")
    assert parameters == {
        "assets": ["shop"],
        "repository": "vault",
        "disks": ["vda"],
        "bandwidth": 1000,
        "mode": "incremental",
        "quiesce": "try",
        "scrub": True,
    }
    group = {"assets": ["shop", "far"], "repository": "vault"}
    assert client.refused("POST", "/v1/backups/machines", 422, json=group) == "group-hosts"
    chosen = {**group, "disks": ["vda"]}
    assert client.refused("POST", "/v1/backups/machines", 422, json=chosen) == "disks-unexpected"
    unknown = {"assets": ["nothing"], "repository": "vault"}
    assert client.refused("POST", "/v1/backups/machines", 404, json=unknown) == "asset-unknown"
    assert asked(api, client.post("/v1/assets/discover", {})["job"])[:2] == ("asset.discover", "hosts")
    assert asked(api, client.post("/v1/assets/discover", {"host": "h1"})["job"])[1] == "host/h1"
