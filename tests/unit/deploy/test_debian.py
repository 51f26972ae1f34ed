"""Where another suite's packages come from: read from the machine's apt, in both of its formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.demo import debian
from deploy.demo.debian import Origin, candidate, origin
from deploy.errors import PackageError

DEBIAN = "ID=debian\nVERSION_CODENAME=bookworm\n"


def machine(tmp_path: Path, release: str) -> Path:
    """An `/etc` whose apt has no entries yet."""
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text(release)
    return tmp_path


def test_stanzas(tmp_path: Path) -> None:
    text = (
        "Types: deb\nURIs: http://mirror.test/other\nSuites: nodistro\nComponents: main\n\n"
        "Types: deb deb-src\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /keys/archive.gpg\n"
    )
    etc = machine(tmp_path, DEBIAN)
    (etc / "apt" / "sources.list.d" / "debian.sources").write_text(text)
    assert origin(etc) == Origin("http://mirror.test/debian", "/keys/archive.gpg")


def test_one_line_entries(tmp_path: Path) -> None:
    etc = machine(tmp_path, DEBIAN)
    (etc / "apt" / "sources.list").write_text(
        "# deb http://commented.test/debian bookworm main\n"
        "deb-src http://source.test/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/keys/k.gpg] http://mirror.test/debian bookworm main contrib\n"
    )
    assert origin(etc) == Origin("http://mirror.test/debian", "/keys/k.gpg")


@pytest.mark.parametrize("release", ["ID=ubuntu\nVERSION_CODENAME=bookworm\n", "", DEBIAN])
def test_a_system_without_such_an_entry_says_so(tmp_path: Path, release: str) -> None:
    with pytest.raises(PackageError, match="knows no Debian archive"):
        origin(machine(tmp_path, release))


OFFERED = """mysql-server-core | 10.0.1-1 | http://mirror.test/debian sid/main amd64 Packages
mysql-server-core | 9.7.4-2 | http://mirror.test/debian sid/main amd64 Packages
mysql-server-core | 9.7.3-1 | http://mirror.test/debian sid/main amd64 Packages
"""


def test_the_newest_of_the_series_that_is_tested_with_is_taken() -> None:
    assert candidate(OFFERED, "9.7.") == "9.7.4-2"
    assert candidate(OFFERED, "9.8.") is None
    assert candidate("", "9.7.") is None


def test_a_series_that_the_suite_has_left_behind_is_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what the tests that need it are skipped with."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(debian, "origin", lambda: Origin("http://mirror.test/debian", ""))
    monkeypatch.setattr(debian, "_run", lambda command: OFFERED if "madison" in command else "")
    with pytest.raises(
        PackageError, match=r"no mysql-server-core 9\.6\.\* any more \(it has 10\.0\.1-1, 9\.7\.4-2, 9\.7\.3-1\)"
    ):
        debian.unpacked("mysql-server-core", "sid", "9.6.")
    earlier = tmp_path / "debian-sid_mysql-server-core_9.6.0-1"
    earlier.mkdir()
    assert debian.unpacked("mysql-server-core", "sid", "9.6.").path == earlier
