"""Does one thing to a repository's files and ends, so that a test can kill it on the way (HOLDFAST_FAILPOINT).

python -P -m tests.stand_ins.repository_worker seal|drop|mend|mark DIRECTORY
python -P -m tests.stand_ins.repository_worker restore TARGET
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

from agents.repository import file_targets, marks, points, restoring, tree
from agents.repository.content import DATA
from agents.repository.extents import CHUNK, RunBuilder
from agents.repository.points import Disk
from agents.repository.stores.local import LocalStore
from tests.golden.repository.trees import KEYS, MARK, point
from tests.stand_ins.chunk_store import ChunkStore

KEY = KEYS["sealed"]
POINT = replace(point(), asset="killed")


def disk(store: ChunkStore) -> tuple[Disk, bytes]:
    """A disk of three windows (of 64 blocks), a third of it zeros, and what it reads as."""
    rng = random.Random(1)
    builder = RunBuilder()
    image = bytearray()
    for block in range(192):
        data = rng.randbytes(4096) if block % 3 else bytes(4096)
        if block % 3:
            builder.add(block, 1, CHUNK, store.put(DATA, data))
        image += data
    return Disk("d0", "sda", len(image), 4096, tree.build(store, [builder.take()])), bytes(image)


def main(what: str, path: Path) -> None:
    if what == "restore":
        restoring.WINDOW = 64  # type: ignore[misc]
        chunks = ChunkStore()
        file_targets.restore_file(chunks, disk(chunks)[0], path, point=POINT.point)
        return
    store = LocalStore(path)
    if what == "seal":
        points.seal(store, POINT, KEY)
    elif what == "drop":
        points.drop(store, POINT.point)
    elif what == "mend":
        points.mend(store, POINT.point, KEY)
    elif what == "mark":
        marks.add(store, replace(MARK, point=POINT.point), KEY)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
