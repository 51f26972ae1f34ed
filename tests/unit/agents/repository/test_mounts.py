"""What is mounted, and what should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.errors import AgentError
from agents.repository import handlers, mounts


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose fstab names three places below a folder, of which the second one is mounted."""
    for name in ("vault", "disk two", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "fstab").write_text(
        f"# a comment\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\n"
        f"UUID=3 {tmp_path}/vault xfs noauto 0 0  # by hand\n"
        f"nas:/x {tmp_path}/disk\\040two nfs4 defaults 0 0\nbroken\n"
    )
    (tmp_path / "mountinfo").write_text(
        f"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"90 22 0:50 / {tmp_path}/disk\\040two rw,nosuid - nfs4 nas:/x rw,vers=4.2,soft\n"
    )
    monkeypatch.setattr(mounts, "SHOULD", tmp_path / "fstab")
    monkeypatch.setattr(mounts, "MOUNTED", tmp_path / "mountinfo")
    return tmp_path


def test_a_folder_on_which_something_should_be_mounted_is_told(machine: Path) -> None:
    assert mounts.unmounted(machine / "vault") == f"{machine}/vault"
    assert mounts.unmounted(machine / "vault" / "deep" / "er") == f"{machine}/vault"
    (machine / "link").symlink_to("vault")
    assert mounts.unmounted(machine / "link") == f"{machine}/vault"
    assert mounts.unmounted(machine / "disk two") == ""
    assert mounts.unmounted(machine / "elsewhere") == ""
    assert mounts.unmounted(machine / "vaults") == ""
    with pytest.raises(AgentError, match="nothing is mounted there") as refused:
        handlers._is_mounted(f"{machine}/vault")
    assert refused.value.code == "store-unmounted"
    assert f"mount {machine}/vault" in refused.value.hint
    handlers._is_mounted(f"{machine}/disk two")


def test_the_type_of_a_place_is_that_of_the_nearest_mount(machine: Path) -> None:
    assert mounts.type_of(machine / "disk two" / "file") == "nfs4"
    assert mounts.type_of(machine / "disk") == "ext4"
    assert mounts.options_of(machine / "disk two" / "file") == {"rw", "nosuid", "vers=4.2", "soft"}
    assert mounts.options_of(machine / "disk") == {"rw", "relatime"}


def test_a_machine_that_says_nothing_forbids_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mounts, "SHOULD", tmp_path / "none")
    monkeypatch.setattr(mounts, "MOUNTED", tmp_path / "none")
    assert mounts.unmounted(tmp_path) == ""
    assert mounts.type_of(tmp_path) == "unknown"
    assert mounts.options_of(tmp_path) == frozenset()


def test_proc_is_known_for_what_it_is() -> None:
    assert mounts.type_of(Path("/proc/self")) in mounts.PRETENDED
