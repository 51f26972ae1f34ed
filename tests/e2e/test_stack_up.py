"""`holdfast up | down | status | doctor` as a user types them, on the real embedded servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from deploy.embedded import state
from deploy.embedded.process import wait_until
from deploy.embedded.user import service_user
from streams import clients
from streams.settings import Settings
from tests.stack.command_line import Site
from tests.stack.servers import Scratch

pytestmark = pytest.mark.e2e
SERVERS = ("--service", "kafka", "--service", "postgresql")


@pytest.fixture
def site() -> Iterator[Site]:
    scratch = Scratch("up")
    made = Site(scratch.path / "site")
    yield made
    with contextlib.suppress(AssertionError):
        made.holdfast("down")
    scratch.remove()


@pytest.fixture(scope="module")
def servers() -> Iterator[Site]:
    """A site whose servers run; who changes something puts it back."""
    scratch = Scratch("servers")
    made = Site(scratch.path / "site")
    try:
        made.holdfast("up", "--detach", "--site", "north", "--port-api", str(_free_port()), *SERVERS)
        yield made
    finally:
        with contextlib.suppress(AssertionError):
            made.holdfast("down")
        scratch.remove()


def write(settings: Settings, value: bytes) -> None:
    """One record, acknowledged, and one row, committed."""
    failed: list[object] = []
    producer = Producer({**settings.kafka.client_config(), "enable.idempotence": True})
    producer.produce("holdfast.inventory", value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert failed == []
    with psycopg.connect(settings.postgres.conninfo()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS written (value bytea)")
        connection.execute("INSERT INTO written VALUES (%s)", (value,))


def read(settings: Settings) -> tuple[list[bytes | None], list[bytes]]:
    consumer = Consumer({**settings.kafka.client_config(), "group.id": "test", "enable.auto.commit": False})
    partition = TopicPartition("holdfast.inventory", 0, 0)
    with contextlib.closing(consumer):
        _, end = consumer.get_watermark_offsets(partition, timeout=30)
        consumer.assign([partition])
        records = [m.value() for m in consumer.consume(end, 30)] if end else []
    with psycopg.connect(settings.postgres.conninfo()) as connection:
        return records, [row[0] for row in connection.execute("SELECT value FROM written ORDER BY value")]


def make_inventory(settings: Settings) -> None:
    from streams.admin import ensure_topics

    ensure_topics(settings.kafka, [("inventory", None)])


def keep_inventory(settings: Settings, ms: str) -> None:
    entry = ConfigEntry("retention.ms", ms, incremental_operation=AlterConfigOpType.SET)
    changed = ConfigResource(ResourceType.TOPIC, "holdfast.inventory", incremental_configs=[entry])
    admin = clients.admin(settings.kafka)  # which must be there for as long as it works
    admin.incremental_alter_configs([changed])[changed].result(30)


def test_what_was_written_survives_down_and_the_end_of_everything_by_kill(site: Site) -> None:
    said = site.holdfast("up", "--detach", *SERVERS)
    assert "holdfast down" in said
    make_inventory(site.settings)
    write(site.settings, b"one")

    # An orderly end leaves nothing running.
    processes = site.processes()
    assert set(processes) == {"supervisor", "kafka", "postgresql"}
    site.holdfast("down")
    assert [name for name, p in processes.items() if p.alive()] == []
    assert site.status(expect=3)["running"] is False

    # The supervisor is killed: what it started ends too, and comes back whole.
    site.holdfast("up", "--detach", *SERVERS)
    write(site.settings, b"three")
    processes = site.processes()
    processes["supervisor"].signal(signal.SIGKILL)
    assert processes["supervisor"].wait_gone(10)
    site.holdfast("up", "--detach", *SERVERS)
    assert {name for name, p in processes.items() if p.alive()} == set()
    assert read(site.settings) == ([b"one", b"three"], [b"one", b"three"])

    # Everything is killed at once, as by a power cut.
    write(site.settings, b"two")
    processes = site.processes()
    for process in processes.values():
        process.signal(signal.SIGKILL)
    assert all(p.wait_gone(10) for p in processes.values())
    site.holdfast("up", "--detach", *SERVERS)
    assert read(site.settings) == ([b"one", b"three", b"two"], [b"one", b"three", b"two"])


def test_the_whole_site_comes_up_answers_and_leaves_nothing(site: Site) -> None:
    site.holdfast("up", "--detach", "--port-api", str(_free_port()))
    assert [s["name"] for s in site.status()["services"]] == ["kafka", "postgresql", "processors", "agent", "api"]
    assert json.loads(site.holdfast("source", "list", "--json"))["sources"] == []
    assert [f for f in json.loads(site.holdfast("doctor", "--json")) if f["level"] == "bad"] == []

    # Whatever dies is back by itself.
    before = site.processes()
    for name in ("processors", "agent", "api"):
        before[name].signal(signal.SIGKILL)

    def back() -> bool:
        report = state.read(site.data_dir)
        return (
            report is not None
            and report.well
            and all(s.restarts or s.name in SERVERS for s in report.services.values())
        )

    assert wait_until(back, 90), site.status(expect=4)
    after = site.processes()
    assert {name for name in after if after[name] == before[name]} == {"supervisor", "kafka", "postgresql"}
    assert json.loads(site.holdfast("source", "list", "--json"))["sources"] == []

    # And when the supervisor dies, all of it ends, and comes back.
    after["supervisor"].signal(signal.SIGKILL)
    assert [name for name, p in after.items() if not p.wait_gone(30)] == []
    site.holdfast("up", "--detach")
    last = site.processes()
    site.holdfast("down")
    assert [name for name, p in last.items() if p.alive()] == []


def test_up_is_idempotent_and_status_tells_what_runs(servers: Site) -> None:
    assert "already" in servers.holdfast("up", "--detach", *SERVERS)

    status = servers.status()
    assert (status["site"], status["running"], status["well"], status["phase"]) == ("north", True, True, "running")
    assert {s["name"]: s["state"] for s in status["services"]} == {"kafka": "running", "postgresql": "running"}
    assert status["kafka"] == {"bootstrap": servers.settings.kafka.bootstrap, "embedded": True}
    assert "kafka" in servers.holdfast("status")


def test_servers_run_as_an_unprivileged_user_and_listen_on_loopback_only(servers: Site) -> None:
    for name, identity in servers.processes().items():
        process = psutil.Process(identity.pid)
        if name != "supervisor":
            assert process.uids().effective == service_user().uid != 0
        addresses = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}, name
        password = (servers.data_dir / "secrets" / "postgres.password").read_text().strip()
        assert password not in " ".join(process.cmdline())
        assert password not in " ".join(process.environ().values())


def test_secrets_are_readable_to_their_owner_only(servers: Site) -> None:
    for name in ("site.key", "postgres.password"):
        assert (servers.data_dir / "secrets" / name).stat().st_mode & 0o077 == 0
    for name in ("secrets", "kafka", "postgres", "logs", "run"):
        assert (servers.data_dir / name).stat().st_mode & 0o077 == 0


def test_doctor_finds_nothing_bad_in_a_site_that_runs_and_finds_what_was_broken(servers: Site) -> None:
    make_inventory(servers.settings)
    findings = json.loads(servers.holdfast("doctor", "--json"))
    assert {f["check"] for f in findings} >= {
        "python",
        "disk",
        "java",
        "ports",
        "kafka",
        "postgresql",
        "clock",
        "secrets",
    }
    assert [f for f in findings if f["level"] == "bad"] == []

    keep_inventory(servers.settings, "604800000")
    found = json.loads(servers.holdfast("doctor", "--json", expect=4))
    assert [f["says"] for f in found if f["level"] == "bad"] == [
        "holdfast.inventory has retention.ms=604800000, not -1"
    ]
    keep_inventory(servers.settings, "-1")

    os.chmod(servers.data_dir / "secrets" / "site.key", 0o644)
    kafka = servers.processes()["kafka"]
    kafka.signal(signal.SIGSTOP)
    found = json.loads(servers.holdfast("doctor", "--json", expect=4))
    assert wait_until(lambda: servers.status_of("kafka") == "unwell", 30)
    kafka.signal(signal.SIGCONT)
    assert wait_until(lambda: servers.status_of("kafka") == "running", 30)
    assert [f["check"] for f in found if f["level"] == "bad"] == ["secrets", "kafka"]
    os.chmod(servers.data_dir / "secrets" / "site.key", 0o600)


def test_a_server_that_is_killed_is_started_again_and_the_rest_goes_on(servers: Site) -> None:
    before = servers.processes()
    before["postgresql"].signal(signal.SIGKILL)

    def back() -> bool:
        report = state.read(servers.data_dir)
        return report is not None and report.well and report.services["postgresql"].restarts == 1

    assert wait_until(back, 60)
    after = servers.processes()
    assert after["kafka"] == before["kafka"]
    assert after["postgresql"] != before["postgresql"]


def test_a_port_taken_since_is_named_and_another_can_be_given(site: Site) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        said = site.holdfast("up", "--detach", "--port-postgres", str(port), *SERVERS, expect=1)
        assert "port-taken" in said
        assert "--port-postgres" in said
        assert site.status(expect=3)["running"] is False

        site.holdfast("up", "--detach", "--port-postgres", str(_free_port()), *SERVERS)
    assert site.settings.postgres.port != port


def test_a_start_in_the_foreground_ends_with_ctrl_c_and_leaves_nothing(site: Site) -> None:
    up = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.cli", "--data-dir", str(site.data_dir), "up", *SERVERS],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert up.stdout is not None
    lines = []
    for line in up.stdout:
        lines.append(line)
        if "holdfast status" in line:
            break
    processes = site.processes()
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=60)
    assert up.returncode == 0
    assert [name for name, p in processes.items() if p.alive()] == []


def test_a_server_that_cannot_start_ends_the_start_with_a_clear_word(site: Site) -> None:
    site.holdfast("up", "--detach", *SERVERS)
    site.holdfast("down")
    (site.data_dir / "postgres" / "data" / "PG_VERSION").write_text("9.6\n")

    said = site.holdfast("up", "--detach", *SERVERS, expect=1)

    assert "postgresql" in said
    assert "PG_VERSION" in said or "9.6" in said
    assert "postgresql.log" in said
    assert site.status(expect=3)["running"] is False


def test_commands_on_no_site_say_what_makes_one(site: Site) -> None:
    for command in ("status", "down"):
        assert "`holdfast up` makes one" in site.holdfast(command, expect=3)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
