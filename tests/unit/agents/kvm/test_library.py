"""libvirt's binding is found where the distribution has it, or the user is told what to install."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from agents.errors import AgentError
from agents.platforms.kvm import library


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose only folder of modules is this one."""
    monkeypatch.setitem(sys.modules, "libvirt", None)
    monkeypatch.setattr(library, "folders", lambda: [tmp_path])
    return tmp_path


def test_without_the_binding_the_error_names_the_package(nowhere: Path) -> None:
    with pytest.raises(AgentError) as refused:
        library._load()
    assert refused.value.code == "extra-missing"
    assert "python3-libvirt" in refused.value.hint


def test_a_binding_of_another_python_is_none(nowhere: Path) -> None:
    (nowhere / "libvirt.py").touch()
    (nowhere / "libvirtmod.cpython-27-x86_64-linux-gnu.so").touch()
    with pytest.raises(AgentError) as refused:
        library._load()
    assert refused.value.code == "extra-missing"


def test_a_binding_that_does_not_load_is_said(nowhere: Path) -> None:
    (nowhere / "libvirt.py").touch()
    (nowhere / f"libvirtmod{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no library")
    with pytest.raises(AgentError) as refused:
        library._load()
    assert refused.value.code == "extra-missing"
    assert str(nowhere) in refused.value.message
