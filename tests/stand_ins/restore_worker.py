"""Restores something and ends, so that a test can kill it on the way (HOLDFAST_FAILPOINT). What a job would say is printed.

python -P -m tests.stand_ins.restore_worker FOLDER files|original|narrowed|machine|directory JOB

In FOLDER are the in-memory host (`host`), the data directory and what is restored to (`out`); `tree`, of which a directory's
point is. Point and chunks are made anew in each process, the same each time; host, restore and image code is the real one.
`narrowed` backs the machine up twice, writes to it, and restores the first point with a whole site in memory.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agents.backup.limits import Limits
from agents.backup.machine_facts import attach, configuration_of, machine_of
from agents.machines import MachineSeen
from agents.repository import files, restoring, tree
from agents.repository.content import DATA
from agents.repository.extents import CHUNK, RunBuilder
from agents.repository.points import Disk, JournalPlace, Point, Tree
from agents.restore import directory, folder, machine
from agents.restore.progress import Limit
from agents.restore.task import Task
from tests.stand_ins.chunk_store import ChunkStore
from tests.stand_ins.hypervisor import Hypervisor
from tests.stand_ins.memory_host import MemoryHost, registered
from tests.unit.agents.backup.site import closing
from tests.unit.agents.restore.site import Restores

BLOCK = 4096
BLOCKS = {"vda": 160, "vdb": 70}  # windows of 64
CTX: Any = SimpleNamespace(
    check=lambda: None,
    progress=lambda *_: None,
    warn=lambda *problems: print(problems),
    services=SimpleNamespace(limits=Limits()),
)


def disk(store: ChunkStore, name: str, seed: int = 1) -> tuple[Disk, bytes]:
    """A disk and what it reads as: a third of it zeros."""
    rng, builder, image = random.Random(f"{name} {seed}"), RunBuilder(), bytearray()
    for block in range(BLOCKS[name]):
        data = rng.randbytes(BLOCK) if block % 3 else bytes(BLOCK)
        if block % 3:
            builder.add(block, 1, CHUNK, store.put(DATA, data))
        image += data
    return Disk(name, name, len(image), BLOCK, tree.build(store, [builder.take()])), bytes(image)


def images() -> dict[str, bytes]:
    """What the disks are to be."""
    return {name: disk(ChunkStore(), name)[1] for name in BLOCKS}


def point(store: ChunkStore, seen: MachineSeen | None) -> Point:
    """Of a machine, or of none."""
    made = Point(
        point="0198c0de-0000-7000-8000-000000000001",
        asset="shop",
        asset_name="shop",
        kind="disks",
        created_us=1,
        session="0198c0de-0000-7000-8000-000000000002",
        epoch=1,
        node="node",
        journal=JournalPlace(1, "event"),
    )
    if seen is None:
        return made
    return replace(
        made,
        disks=tuple(disk(store, name)[0] for name in BLOCKS),
        configuration=configuration_of(seen),
        attached=attach(store, seen.companions),
        facts={"platform": "memory", "host": "h1", "native": seen.native, "taken_us": "5"},
    )


def directory_restore(place: Path, resumed: bool) -> dict[str, Any]:
    files._YOUNG_NS = -1  # type: ignore[misc] # or the tree would be another one each time
    store = ChunkStore()
    taken = files.snapshot(place / "tree", store, source=store, seed=7)
    of = replace(point(store, None), kind="files", trees=(Tree("tree", taken.root, taken.size),))
    wanted = directory.Directory(CTX, store, store.same, of, b"", resumed=resumed)
    done = directory.restore(wanted, place / "out")
    return {"size": done.size, "kept": done.kept, "compared": done.compared, "unlike": done.unlike}


def narrowed(place: Path, job: str) -> dict[str, Any]:
    with registered(), closing(Restores(place)) as site:
        assert isinstance(site, Restores)
        (native,) = (seen.native for seen in site.machines().values())
        site.discover()
        (first,) = site.backup("shop")
        for at in (1, 2):
            site.hypervisor.write(native, "vda", at * 65_536, b"something else")
            if at == 1:
                site.backup("shop")
        return site.restore("original", first, job=job)


def main(place: Path, how: str, job: str) -> dict[str, Any]:
    if how == "narrowed":
        return narrowed(place, job)
    if how == "directory":
        return directory_restore(place, job == "resumed")
    restoring.WINDOW = 64  # type: ignore[misc]
    hypervisor = Hypervisor(place / "host")
    host = MemoryHost(hypervisor.settings("h1"), hypervisor)
    seen = next(seen for seen in host.discover() if seen.name == "shop")
    store = ChunkStore()
    of = point(store, replace(seen, power="running"))
    task = Task(CTX, job, store, of, of.disks, store.same, Limit(0, lambda _: None))
    if how == "files":
        return folder.restore(task, place / "out", "raw", dry_run=False)
    kept = machine_of(store, of)
    if how == "original":
        return machine.original(task, kept, host, stop=False, start=False, dry_run=False)
    changes = machine.Changes(name="copy")
    return machine.new(task, kept, host, changes, place / "restores", start=False, dry_run=False)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
