"""The data directory: what is recognised as ours, what is refused and with which words, what it is made of."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.embedded import site
from deploy.embedded.packages import LOCK, locked
from deploy.embedded.ports import free_ports, is_free, require_free
from deploy.embedded.stack import Choices, make_stack, open_stack, require_ports, services
from deploy.embedded.user import ServiceUser, service_user
from deploy.errors import SiteError
from streams.settings import SettingsError, load
from tests.stack.servers import Scratch


@pytest.fixture
def directory() -> Iterator[Path]:
    scratch = Scratch("site")
    yield scratch.path / "site"
    scratch.remove()


def refused(code: str, call: object, *arguments: object) -> SiteError:
    with pytest.raises(SiteError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.code == code
    return caught.value


def test_a_new_site_has_a_key_settings_and_ports_of_its_own(directory: Path) -> None:
    stack = make_stack(directory, Choices(site="north"))

    assert (directory / site.MARKER).exists()
    key = directory / "secrets" / "site.key"
    assert (len(key.read_bytes()), key.stat().st_mode & 0o777) == (32, 0o600)
    assert stack.settings == load(directory / "holdfast.toml", {})
    assert stack.settings.site == "north"
    assert [s.name for s in services(stack)] == ["kafka", "postgresql", "processors", "agent", "api"]
    ports = {stack.broker.port, stack.cluster.port, stack.settings.api.port}
    assert len(ports) == 3


def test_a_site_that_exists_stays_as_it_is(directory: Path) -> None:
    first = make_stack(directory, Choices())
    key = (directory / "secrets" / "site.key").read_bytes()
    config = (directory / "holdfast.toml").read_text()

    second = make_stack(directory, Choices())

    assert second == first
    assert (directory / "secrets" / "site.key").read_bytes() == key
    assert (directory / "holdfast.toml").read_text() == config


def test_ports_given_later_replace_the_earlier_ones_and_nothing_else(directory: Path) -> None:
    make_stack(directory, Choices())
    config = directory / "holdfast.toml"
    config.write_text(config.read_text() + "# a word of the user's\n")
    kafka, postgres, api = free_ports(3)

    stack = make_stack(directory, Choices(port_kafka=kafka, port_postgres=postgres, port_api=api))

    assert (stack.broker.port, stack.cluster.port, stack.settings.api.port) == (kafka, postgres, api)
    assert stack.settings.kafka.bootstrap == f"127.0.0.1:{kafka}"
    assert "# a word of the user's" in config.read_text()


def test_a_site_with_servers_of_its_owner_starts_none(directory: Path) -> None:
    choices = Choices(
        kafka_url="kafkas://hf@k1.example:9093?password_file=secrets/kafka.password",
        postgres_url="postgresql://hf@db.example/holdfast",
    )
    stack = make_stack(directory, choices)
    assert [s.name for s in services(stack)] == ["processors", "agent", "api"]
    assert stack.settings.kafka.sasl_password_file == directory / "secrets" / "kafka.password"


def test_a_plain_kafka_of_the_owners_on_this_machine_is_not_taken_for_the_embedded_one(directory: Path) -> None:
    stack = make_stack(directory, Choices(kafka_url="kafka://127.0.0.1:9092"))
    assert [s.name for s in services(stack)] == ["postgresql", "processors", "agent", "api"]


def test_what_was_tried_in_vain_is_not_taken_for_a_choice(directory: Path) -> None:
    with pytest.raises(SettingsError, match="starts with"):
        make_stack(directory, Choices(kafka_url="bogus://x"))
    with pytest.raises(SettingsError, match="cannot be a name"):
        make_stack(directory, Choices(site="Not a name"))
    stack = make_stack(directory, Choices(kafka_url="kafka://127.0.0.1:9092"))
    assert (stack.embeds_kafka, stack.embeds_postgres) == (False, True)


def test_moving_a_site_to_a_kafka_of_ones_own_is_a_matter_of_its_settings(directory: Path) -> None:
    stack = make_stack(directory, Choices())
    config = directory / "holdfast.toml"
    config.write_text(config.read_text().replace(stack.settings.kafka.bootstrap, "localhost:9092"))
    assert "kafka" not in [s.name for s in services(open_stack(directory))]


def test_settings_that_make_no_sense_are_not_written(directory: Path) -> None:
    with pytest.raises(SettingsError, match="password"):
        make_stack(directory, Choices(kafka_url="kafkas://hf:pw@k1.example:9093"))
    assert not (directory / "holdfast.toml").exists()
    assert all(b"pw@" not in p.read_bytes() for p in directory.rglob("*") if p.is_file())


def test_the_name_of_a_site_does_not_change(directory: Path) -> None:
    make_stack(directory, Choices(site="north"))
    assert "north" in refused("site-named", make_stack, directory, Choices(site="south")).message
    refused("site-settled", make_stack, directory, Choices(kafka_url="kafka://127.0.0.1:1"))


def test_a_directory_of_somebody_elses_is_left_alone(directory: Path) -> None:
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")
    error = refused("directory-not-ours", make_stack, directory, Choices())
    assert "--data-dir" in error.hint
    assert [p.name for p in directory.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_directory(directory: Path) -> None:
    directory.write_text("")
    refused("directory-not-ours", make_stack, directory, Choices())


def test_a_layout_of_the_future_is_refused(directory: Path) -> None:
    make_stack(directory, Choices())
    (directory / site.MARKER).write_text("2\n")
    assert "version" in refused("directory-layout", make_stack, directory, Choices()).message


def test_a_start_that_died_half_way_is_taken_up(directory: Path) -> None:
    directory.mkdir()
    (directory / site.MARKER).write_text("1\n")
    assert make_stack(directory, Choices()).settings.site == "local"


def test_a_full_disk_is_refused_before_anything_is_written(directory: Path) -> None:
    error = refused("disk-full", site.require_space, directory, 1 << 60)
    assert "MiB are free" in error.message
    assert not directory.exists()


def test_a_port_that_is_taken_is_named_with_who_has_it(directory: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        stack = make_stack(directory, Choices(port_kafka=port))
        error = refused("port-taken", require_ports, stack)
        assert str(port) in error.message
        assert f"pid {os.getpid()}" in error.message
        assert "--port-kafka" in error.hint
    assert is_free(port)
    require_free(port, "Kafka", "--port-kafka")


def test_one_supervisor_at_a_time_and_no_lock_outlives_its_holder(directory: Path) -> None:
    make_stack(directory, Choices())
    code = (
        "import sys, pathlib; from deploy.embedded import site;"
        "held = site.hold(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert site.hold(directory) is None
    assert site.holder(directory) == other.pid

    other.kill()
    other.wait()

    # The file still has the dead one's pid in it; that means nothing.
    assert (directory / "run" / "lock").read_text() == f"{other.pid}\n"
    assert site.holder(directory) is None
    lock = site.hold(directory)
    assert lock is not None
    assert site.holder(directory) == os.getpid()
    lock.close()


def test_servers_do_not_run_as_root() -> None:
    assert service_user().uid != 0


def test_what_a_user_can_reach_follows_owner_and_mode(tmp_path: Path) -> None:
    stranger = ServiceUser("stranger", 4242, 4242)
    program = tmp_path / "program"
    program.touch(0o755)
    tmp_path.chmod(0o700)
    assert not stranger.can_reach(program)
    with pytest.raises(SiteError, match="chmod o\\+x"):
        stranger.require_reach(tmp_path / "data")
    assert ServiceUser("root", 0, 0).can_reach(program)


def test_the_java_lock_has_digests_and_no_addresses() -> None:
    assert "://" not in LOCK.read_text()
    jars = {jar.artifact: jar for jar in locked("kafka")}
    assert {"kafka_2.13", "kafka-clients", "slf4j-simple"} <= jars.keys()
    assert all(len(jar.sha256) == 64 for jar in jars.values())


def test_the_python_lock_has_digests_and_no_addresses() -> None:
    text = (LOCK.parent / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index" not in text
    requirements = [block for block in text.split("\n") if "==" in block]
    assert len(requirements) > 50
    assert all(line.endswith("\\") for line in requirements)


def test_the_python_lock_is_of_the_pinned_versions() -> None:
    import tomllib

    root = LOCK.parent.parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    text = (LOCK.parent / "requirements.txt").read_text().lower()
    for requirement in pinned:
        name, _, version = requirement.partition("==")
        assert f"\n{name.partition('[')[0].lower()}=={version} " in text, requirement
