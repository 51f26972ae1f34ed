"""What is fetched is what was locked, and whoever is to run it can."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.embedded import kafka, packages
from deploy.embedded.packages import Jar
from deploy.embedded.user import ServiceUser
from deploy.errors import PackageError
from tests.stack.servers import Scratch


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    scratch = Scratch("cache")
    monkeypatch.setenv("HOLDFAST_CACHE", str(scratch.path / "cache"))
    scratch.path.chmod(0o755)
    yield scratch.path / "cache"
    scratch.remove()


def test_a_jar_that_is_not_the_one_locked_is_not_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def resolve(jar: Jar, progress: object) -> Path:
        path = cache / "some.jar"
        cache.mkdir(exist_ok=True)
        path.write_bytes(b"something else")
        fetched.append(jar.artifact)
        return path

    monkeypatch.setattr(packages, "_resolve", resolve)
    monkeypatch.setattr(packages, "locked", lambda name: [Jar("g", "some", "1", hashlib.sha256(b"it").hexdigest())])
    with pytest.raises(PackageError, match="not the file that was locked"):
        packages.jars("kafka")
    assert fetched == ["some", "some"]


def test_a_jar_that_a_crash_left_half_written_is_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [b"half", b"whole"]

    def resolve(jar: Jar, progress: object) -> Path:
        path = cache / "some.jar"
        cache.mkdir(exist_ok=True)
        path.write_bytes(answers.pop(0))
        return path

    monkeypatch.setattr(packages, "_resolve", resolve)
    monkeypatch.setattr(packages, "locked", lambda name: [Jar("g", "some", "1", hashlib.sha256(b"whole").hexdigest())])
    assert [p.read_bytes() for p in packages.jars("kafka")] == [b"whole"]


def test_what_the_servers_user_cannot_reach_is_copied_to_where_that_user_can(cache: Path, tmp_path: Path) -> None:
    package = tmp_path / "private" / "package"
    (package / "bin").mkdir(parents=True)
    (package / "bin" / "server").write_text("#!/bin/sh\n")
    (package / "bin" / "server").chmod(0o700)
    (tmp_path / "private").chmod(0o700)
    stranger = ServiceUser("stranger", 4242, 4242)

    home = packages._reachable("package", package, [package], stranger, lambda _: None)

    assert home != package
    assert stranger.can_reach(home / "bin" / "server")
    assert packages._reachable("package", package, [package], stranger, lambda _: None) == home
    ourselves = ServiceUser("us", os.geteuid(), os.getegid())
    assert packages._reachable("package", package, [package], ourselves, lambda _: None) == package


def test_a_broker_starts_from_a_cache_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache.aot"
    monkeypatch.setattr(kafka, "broker_cache", lambda *_: cache)
    broker = kafka.Broker(tmp_path / "broker", 1, 2)
    broker.data.mkdir(parents=True)
    (broker.data / "meta.properties").touch()  # formatted
    assert f"-XX:AOTCache={cache}" not in kafka.prepare(broker).argv
    cache.touch()
    assert f"-XX:AOTCache={cache}" in kafka.prepare(broker).argv
