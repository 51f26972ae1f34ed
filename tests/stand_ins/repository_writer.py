"""A writer of a repository that is killed: `python -P -m tests.stand_ins.repository_writer FOLDER SEED …`.

FOLDER has `repo` and `cache`; a backup is made of the image of each SEED in turn, the first whole, the others read and compared
with the newest point there is. A session without a log. The point's facts name the seed, so that whoever looks later knows
what it must hold. Used by tests/crash/test_repository_kills.py.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from uuid import UUID

from agents.repository import keys, points
from agents.repository import repository as repositories
from agents.repository.extents import CHUNK
from agents.repository.ingest import Ingest
from agents.repository.repository import Repository
from agents.repository.stores import Store
from agents.repository.stores.local import LocalStore
from tests.stand_ins.repository_session import LoneSession

BLOCK = 4096
BLOCKS = 600
_PASSPHRASE = "killed"


def image(seed: int) -> bytes:
    """Most of it is the same for every seed."""
    common, own = random.Random(0), random.Random(seed)
    blocks = [common.randbytes(BLOCK) if number % 3 else bytes(BLOCK) for number in range(BLOCKS)]
    for number in own.sample(range(BLOCKS), 90):
        blocks[number] = own.randbytes(BLOCK)
    return b"".join(blocks)


def create(folder: Path) -> None:
    """A repository with small packs, several of which a backup fills."""

    def wrap(store: Store, identity: UUID, key: bytes) -> None:
        cheap = {"n": 2, "r": 8, "p": 1}
        keys.add_wrap(store, identity.bytes, key, "passphrase", _PASSPHRASE.encode(), scrypt=cheap)

    repositories.create(LocalStore(folder / "repo"), wrap=wrap, block_size=BLOCK, pack_bytes=1 << 20)


def unlock(store: Store) -> bytes:
    return keys.unlock(store, passphrase=_PASSPHRASE)


def opened(folder: Path, cache: str = "cache") -> Repository:
    return repositories.open(LocalStore(folder / "repo"), unlock, folder / cache, "node_a")


class _Image:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]


def backup(repository: Repository, seed: int) -> str:
    """The point's id."""
    before = [repository.point(point) for point in repository.point_ids()]
    previous = before[-1] if before else None
    data = image(seed)
    with Ingest(repository, LoneSession()) as ingest:
        disk = ingest.disk("sda", size=len(data), continues=previous.disks[0] if previous else None)
        disk.feed(_Image(data), [(0, disk.blocks, CHUNK)], compare=True)
        draft = points.Point(
            point="",
            asset="vm",
            asset_name="vm",
            kind="disks",
            created_us=1,
            session="",
            epoch=0,
            node="",
            journal=points.JournalPlace(0, ""),
            continues=previous.point if previous else "",
            disks=(disk.finish(),),
            facts={"seed": str(seed)},
        )
        return ingest.seal(draft).point.point


def main(folder: Path, seeds: list[str]) -> None:
    if seeds == ["create"]:
        create(folder)
        return
    repository = opened(folder)
    for seed in seeds:
        print(backup(repository, int(seed)), flush=True)
    repository.merge_runs(at=2)
    repository.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
