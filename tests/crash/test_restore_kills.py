"""Killed while a restore goes on: the next run completes it, and until then nothing that is not whole looks whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.restore.folder import MARKER
from tests.stand_ins.hypervisor import Hypervisor
from tests.stand_ins.memory_host import MemoryHost
from tests.stand_ins.restore_worker import BLOCK, images
from tests.unit.agents.repository.trees import described, zoo

pytestmark = pytest.mark.crash
ROOT = Path(__file__).parents[2]
WINDOWS = ["restore-window-written:2", "restore-window-flushed", "restore-window-recorded:2"]


def run(place: Path, how: str, failpoint: str = "", job: str = "job-1") -> dict[str, Any]:
    """What the restore says, or, of one that was to die, nothing."""
    environment = {**os.environ, "HOLDFAST_FAILPOINT": failpoint, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "tests.stand_ins.restore_worker", str(place), how, job]
    done = subprocess.run(command, env=environment, cwd=ROOT, timeout=300, check=False, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if failpoint else 0), done.stderr
    found: dict[str, Any] = {} if failpoint else json.loads(done.stdout)
    return found


@pytest.fixture
def hypervisor(tmp_path: Path) -> Hypervisor:
    made = Hypervisor(tmp_path / "host")
    made.add("shop", {name: len(image) for name, image in images().items()}, power="off")
    return made


def machine(hypervisor: Hypervisor, name: str) -> Any:
    host = MemoryHost(hypervisor.settings("h1"), hypervisor)
    return next((seen for seen in host.discover() if seen.name == name), None)


@pytest.mark.parametrize(
    "failpoint",
    [
        "restore-folder-marked",
        "restore-image-made",
        "restore-image-made:2",
        "restore-progress-created",
        *WINDOWS,
        "restore-image-proven",
        "restore-image-named",
        "restore-image-proven:2",
        "restore-image-named:2",
        "restore-folder-whole",
    ],
)
def test_a_folder_is_whole_when_it_says_so(hypervisor: Hypervisor, tmp_path: Path, failpoint: str) -> None:
    run(tmp_path, "files", failpoint)
    out = tmp_path / "out"
    said = json.loads((out / MARKER).read_text())
    assert said["whole"] == (failpoint == "restore-folder-whole")
    for name, image in images().items():
        path = out / f"{name}.raw"
        assert not path.exists() or path.read_bytes() == image, "what has its name is whole"
    # The job taken up again; or, unless it was done, the user's second try.
    done = run(tmp_path, "files", job="job-1" if said["whole"] or ":" in failpoint else "job-2")
    assert [(d["size"], d["compared"]) for d in done["disks"]] == [(len(i), len(i)) for i in images().values()]
    assert {p.name: p.read_bytes() for p in out.glob("*.raw*")} == {f"{n}.raw": i for n, i in images().items()}
    assert json.loads((out / MARKER).read_text())["whole"]


@pytest.mark.parametrize(
    "failpoint",
    [
        "restore-disk-opened",
        "restore-window-written",
        "restore-disk-written",
        "restore-disk-written:2",
        "restore-machine-settled",
    ],
)
def test_an_original_says_that_it_is_not_whole_until_it_is(
    hypervisor: Hypervisor, tmp_path: Path, failpoint: str
) -> None:
    native = machine(hypervisor, "shop").native
    hypervisor.write(native, "vda", 7 * BLOCK + 5, b"something else")
    run(tmp_path, "original", failpoint)
    whole = {name: hypervisor.content(native, name) == image for name, image in images().items()}
    assert machine(hypervisor, "shop").restoring or all(whole.values())
    run(tmp_path, "original")
    assert {name: hypervisor.content(native, name) for name in images()} == images()
    assert not machine(hypervisor, "shop").restoring


@pytest.mark.parametrize("failpoint", ["restore-host-asked", "restore-host-answered"])
def test_who_dies_over_what_has_changed_leaves_a_snapshot_at_most(
    hypervisor: Hypervisor, tmp_path: Path, failpoint: str
) -> None:
    """And marks, from which it is asked again. How it goes on: `test_who_died_over_the_question_is_taken_up_again`."""
    seen = machine(hypervisor, "shop")
    run(tmp_path, "narrowed", failpoint)
    left = MemoryHost(hypervisor.settings("h1"), hypervisor).leftovers()
    asked = [(one.job, one.native) for one in left if one.kind == "snapshot"]
    assert asked == ([("job-1", seen.native)] if failpoint == "restore-host-asked" else [])
    assert [one.job for one in left if one.kind == "mark" and one.job != "job-1"]
    assert not machine(hypervisor, "shop").restoring


@pytest.mark.parametrize(
    "failpoint",
    [
        "restore-machine-made",
        "restore-disk-opened",
        "restore-progress-created",
        *WINDOWS,
        "restore-disk-written",
        "restore-disk-opened:2",
        "restore-machine-whole",
        "restore-machine-settled",
        "restore-machine-started",
    ],
)
def test_a_new_machine_is_made_once_and_is_not_whole_until_it_is(
    hypervisor: Hypervisor, tmp_path: Path, failpoint: str
) -> None:
    run(tmp_path, "machine", failpoint)
    half = machine(hypervisor, "copy")
    if not half.restoring:
        assert {name: hypervisor.content(half.native, name) for name in images()} == images()
    done = run(tmp_path, "machine")
    assert done["machine"] == half.native
    assert [d["compared"] for d in done["disks"]] == [len(image) for image in images().values()]
    assert {name: hypervisor.content(half.native, name) for name in images()} == images()
    assert not machine(hypervisor, "copy").restoring
    assert list((tmp_path / "restores").iterdir()) == []


@pytest.mark.parametrize(
    "failpoint",
    [
        "restore-directory-marked",
        "unpack-folder-made:2",
        "unpack-file-written:5",
        "unpack-file-named:9",
        "unpack-linked",
        "unpack-folder-dressed:2",
        "restore-directory-filled",
        "restore-directory-proven",
        "restore-directory-named",
        "restore-directory-forgotten",
    ],
)
def test_a_directory_has_its_name_when_it_is_whole_and_half_written_files_do_not_pass(
    tmp_path: Path, failpoint: str
) -> None:
    zoo(tmp_path / "tree")
    run(tmp_path, "directory", failpoint)
    out, part = tmp_path / "out", tmp_path / ".out.holdfast-part"
    named = failpoint in ("restore-directory-named", "restore-directory-forgotten")
    assert out.exists() == named
    if named:
        assert described(out) == described(tmp_path / "tree")
    else:
        # A power cut besides: files that had their names are torn, and look as they should.
        for path in [path for path in part.rglob("*") if path.is_file() and path.stat().st_size > 1000][:2]:
            found = path.stat()
            with path.open("r+b") as file:
                file.write(b"torn")
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    # The job taken up again; or, unless it was done, the user's second try.
    done = run(tmp_path, "directory", job="resumed" if named or ":" in failpoint else "another")
    assert described(out) == described(tmp_path / "tree")
    assert (done["compared"], done["unlike"]) == (done["size"], 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree"]
