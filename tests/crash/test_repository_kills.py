"""A writer of a repository killed with SIGKILL at each of its boundaries: what was sealed restores, nothing else shows,
nothing that is referred to is missing, also once every pack without a footer is gone; the next backup is made all the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agents.repository import pack_format, packs, tree
from agents.repository import repository as repositories
from agents.repository.errors import RepositoryError
from agents.repository.reader import DiskReader
from agents.repository.repository import Repository
from agents.repository.stores.local import LocalStore
from tests.stand_ins import repository_writer
from tests.stand_ins.repository_writer import image

pytestmark = pytest.mark.crash

# In the order in which a backup comes by. Those before the record leave no point of it, those after leave one.
BEFORE = (
    "pack-begun",
    "pack-frame-written:40",
    "pack-footer-written",
    "pack-durable",
    "pack-sealed",
    "index-places-added",
    "ingest-data-durable",
    "ingest-meta-durable",
    "index-places-added:2",
    "store-scratch-durable",
    "store-file-linked",
    "ingest-run-durable",
    "point-encoded",
    "point-second-created",
)
AFTER = ("point-created", "ingest-record-durable", "ingest-sealed", "runs-merged")


def write(folder: Path, *seeds: int | str, failpoint: str = "") -> int:
    """Exit status of a writer."""
    argv = [sys.executable, "-P", "-m", "tests.stand_ins.repository_writer", str(folder), *map(str, seeds)]
    return subprocess.run(argv, env={**os.environ, "HOLDFAST_FAILPOINT": failpoint}, check=False).returncode


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two points, to be copied and not to be changed."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "repo").mkdir()
    repository_writer.create(folder)
    assert write(folder, 1, 2) == 0
    return folder


def check(repository: Repository) -> list[int]:
    """Every point that shows restores, and all of its chunks are there; the seeds, in order."""
    seeds = []
    for point in repository.point_ids():
        found = repository.point(point)
        (disk,) = found.disks
        seeds.append(int(found.facts["seed"]))
        with DiskReader(repository, disk) as reader:
            assert reader.read(0, disk.size) == image(seeds[-1])
        for kind, names in tree.walk(repository, disk.root):
            wanted = list({names[at : at + 32] for at in range(0, len(names), 32)})
            assert len(list(repository.get_many(wanted, kind))) == len(wanted)
    return seeds


@pytest.mark.parametrize("place", [*BEFORE, *AFTER])
def test_a_backup_that_is_killed_leaves_garbage_and_never_a_lie(begun: Path, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "site"
    shutil.copytree(begun, folder)
    assert write(folder, 3, failpoint=place) == -signal.SIGKILL

    survivors = [1, 2, 3] if place in AFTER else [1, 2]
    # The next backups build on nothing that is not sealed: with that gone, all is there, from the files alone.
    repository = repository_writer.opened(folder)
    assert check(repository) == survivors
    for seed in (3, 4):
        repository_writer.backup(repository, seed)
    repository.close()
    store = LocalStore(folder / "repo")
    for listed in list(store.list("packs/")):
        if packs.rows_of(store, listed.name) is None:
            store.delete(listed.name)
    for cache in ("cache", "another"):
        repository = repository_writer.opened(folder, cache)
        assert check(repository) == [*survivors, 3, 4]
        assert all(pack_format.parse_pack_file(listed.name) for listed in store.list("packs/"))
        repository.close()


@pytest.mark.parametrize("place", ["repository-key-kept", "repository-second-made"])
def test_a_creation_that_is_killed_is_begun_again(tmp_path: Path, place: str) -> None:
    (tmp_path / "repo").mkdir()
    assert write(tmp_path, "create", failpoint=place) == -signal.SIGKILL
    with pytest.raises(RepositoryError, match="repository-missing"):
        repositories.define(LocalStore(tmp_path / "repo"))
    assert write(tmp_path, "create") == 0
    assert write(tmp_path, 1) == 0
    repository = repository_writer.opened(tmp_path)
    assert check(repository) == [1]
    repository.close()
