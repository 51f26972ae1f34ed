"""Killed while a point is sealed, dropped, mended or marked, and while a disk is restored: what is there is whole, or
it is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents.repository import file_targets, marks, points
from agents.repository.errors import RepositoryError
from agents.repository.stores.local import LocalStore
from tests.stand_ins.chunk_store import ChunkStore
from tests.stand_ins.repository_worker import KEY, POINT, disk

pytestmark = pytest.mark.crash

ROOT = Path(__file__).parents[2]


def run(what: str, path: Path, failpoint: str = "") -> int:
    environment = {**os.environ, "HOLDFAST_FAILPOINT": failpoint, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "tests.stand_ins.repository_worker", what, str(path)]
    return subprocess.run(command, env=environment, cwd=ROOT, timeout=300, check=False).returncode


def killed(what: str, path: Path, failpoint: str) -> None:
    assert run(what, path, failpoint) == -signal.SIGKILL


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "repository").mkdir()
    return LocalStore(tmp_path / "repository")


@pytest.mark.parametrize(
    ("failpoint", "there"), [("point-encoded", False), ("point-second-created", False), ("point-created", True)]
)
def test_a_point_is_sealed_with_its_first_copy_and_not_before(store: LocalStore, failpoint: str, there: bool) -> None:
    killed("seal", store.root, failpoint)
    assert list(points.ids(store)) == ([POINT.point] if there else [])
    if there:
        found = points.read(store, POINT.point, KEY)
        assert (found.point, found.mend) == (POINT, False)
    # Whoever sealed it does so again, or nobody ever asks for what was left.
    assert run("seal", store.root) == 0
    found = points.read(store, POINT.point, KEY)
    assert (found.point, found.mend) == (POINT, False)
    assert len(list(store.list("points"))) == 2


@pytest.mark.parametrize("failpoint", ["point-copy-removed", "point-copy-removed:2"])
def test_a_point_is_dropped_with_its_first_copy(store: LocalStore, failpoint: str) -> None:
    points.seal(store, POINT, KEY)
    killed("drop", store.root, failpoint)
    assert list(points.ids(store)) == []
    assert run("drop", store.root) == 0
    assert list(store.list("points")) == []


@pytest.mark.parametrize("folder", ["points", "points2"])
@pytest.mark.parametrize("failpoint", ["point-mended", "point-damaged-copy-removed"])
def test_a_point_can_be_read_at_every_moment_of_its_mending(store: LocalStore, folder: str, failpoint: str) -> None:
    points.seal(store, POINT, KEY)
    damaged = store.root / folder / f"{POINT.point}.point"
    damaged.chmod(0o600)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    killed("mend", store.root, failpoint)
    assert points.read(store, POINT.point, KEY).point == POINT
    assert run("mend", store.root) == 0
    found = points.read(store, POINT.point, KEY)
    assert (found.point, found.mend) == (POINT, False)
    assert len(list(store.list("points"))) == 2


def test_a_mark_is_there_once_it_was_created(store: LocalStore) -> None:
    killed("mark", store.root, "mark-created")
    assert marks.standing(*marks.of_point(store, POINT.point, KEY)).holds[0].name == "case 7"
    # Said again, it is no other hold.
    assert run("mark", store.root) == 0
    assert len(marks.standing(*marks.of_point(store, POINT.point, KEY)).holds) == 1


@pytest.mark.parametrize(
    "failpoint",
    [
        "restore-target-opened",
        "restore-progress-created",
        "restore-window-written:2",
        "restore-window-flushed",
        "restore-window-recorded",
        "restore-window-recorded:2",
        "restore-finished",
    ],
)
def test_a_restore_goes_on_wherever_it_died(tmp_path: Path, failpoint: str) -> None:
    target = tmp_path / "image"
    killed("restore", target, failpoint)
    finished = file_targets.progress_path(target)
    if failpoint != "restore-target-opened":
        assert finished.exists()
    assert run("restore", target) == 0
    assert not finished.exists()
    _, image = disk(ChunkStore())
    assert target.read_bytes() == image
    # It is a disk image like any other now: nothing writes over it by mistake.
    with pytest.raises(RepositoryError, match="there already"):
        file_targets.restore_file(ChunkStore(), disk(ChunkStore())[0], target, point=POINT.point)
