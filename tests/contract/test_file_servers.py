"""The contract of stores, and what goes wrong with file servers, on NFS 4.2, NFS 3 and SMB 3.1.1: real servers and real clients
of a kernel that has them (`tests.stack.file_servers`). Skipped where no such machine can be run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.stack.file_servers import Ran, machine, run
from tests.stack.guest import NoGuest
from tests.stack.served import KINDS
from tests.stack.servers import Scratch

ROOT = Path(__file__).parents[2]
WITHIN_S = 900.0  # a minute where nothing else runs
pytestmark = pytest.mark.timeout(1000)
Results = dict[str, str]  # test → "", or what was wrong with it


def command() -> str:
    folders = ":".join(f"/net/a-main-{kind}" for kind in KINDS)
    return f"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={ROOT}
cd {ROOT}
{sys.executable} -P -m tests.stack.served || exit
HOLDFAST_NETWORK_STORES={folders} {sys.executable} -P -m pytest -q -p no:cacheprovider --timeout 300 --durations=12 \\
    -k "nfs or smb or file_server" --junitxml=/run/out/results.xml tests/contract/test_stores.py tests/contract/on_file_servers.py
"""


@pytest.fixture(scope="module")
def ran() -> Iterator[tuple[Ran, Results]]:
    try:
        made = machine()
    except NoGuest as reason:
        pytest.skip(str(reason))
    scratch = Scratch("file-servers")
    try:
        how = run(made, scratch.path, command(), disks=(1 << 30, 48 << 20), within_s=WITHIN_S)
        file = scratch.path / "results.xml"
        assert file.exists(), f"no tests were run: {how}"
        results: Results = {}
        for case in ElementTree.parse(file).iter("testcase"):
            wrong = [
                f"{found.tag}: {found.text or found.get('message')}"
                for found in case
                if found.tag in ("failure", "error")
            ]
            results[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = "\n".join(wrong)
        yield how, results
    finally:
        scratch.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("module", "least"), [("test_stores", 15), ("on_file_servers", 10)])
def test_a_store_on_a_file_server(ran: tuple[Ran, Results], kind: str, module: str, least: int) -> None:
    how, results = ran
    of_it = {name: wrong for name, wrong in results.items() if name.startswith(module) and kind in name}
    assert len(of_it) >= least, how
    wrong = {name: said for name, said in of_it.items() if said}
    assert not wrong, "\n\n".join(f"{name}\n{said}" for name, said in wrong.items())


def test_a_repository_on_a_file_server(ran: tuple[Ran, Results]) -> None:
    how, results = ran
    assert results["test_stores::test_a_point_is_made_and_restored_on_a_file_server"] == ""
    assert how.status == 0, how
