"""Our side of the repository benchmarks, as a process of its own: `python -P -m tests.bench.repository_ours WHAT …`.

A repository in a folder, opened by its passphrase, a session without a log (a session's handful of events is not measured here).
What came of it is a line of JSON on standard output. The peers are programs too, so starting up counts on both sides.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from agents.repository import keys, points
from agents.repository import repository as repositories
from agents.repository.chunks import is_zero
from agents.repository.disk_ingest import FileSource
from agents.repository.extents import CHUNK, ZERO
from agents.repository.file_targets import restore_file
from agents.repository.ingest import Ingest, Sealed
from agents.repository.repository import Repository
from agents.repository.stores import Store
from agents.repository.stores.local import LocalStore
from tests.stand_ins.repository_session import LoneSession

PASSPHRASE = "benchmark"
_STAMP = 16  # bytes


def unlock(store: Store) -> bytes:
    return keys.unlock(store, passphrase=PASSPHRASE)


def make(folder: Path) -> LocalStore:
    """A repository as a user gets it: encrypted, with the defaults."""
    folder.mkdir(parents=True)
    store = LocalStore(folder)

    def wrap(where: Store, identity: UUID, key: bytes) -> None:
        keys.add_wrap(where, identity.bytes, key, "passphrase", PASSPHRASE.encode())

    repositories.create(store, wrap=wrap)
    return store


def opened(folder: Path, cache: Path) -> Repository:
    return repositories.open(LocalStore(folder), unlock, cache, "bench")


def draft(*disks: points.Disk, continues: str = "") -> points.Point:
    place = points.JournalPlace(0, "")
    return points.Point("", "bench", "bench", "disks", 1, "", 0, "", place, continues=continues, disks=disks)


def extents_of(fd: int, size: int, block: int) -> Iterator[tuple[int, int, int]]:
    """What a file says of its holes, in whole blocks."""
    at, blocks = 0, -(-size // block)
    while at < blocks:
        try:
            data = os.lseek(fd, at * block, os.SEEK_DATA)
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError:  # nothing but a hole is left
            data = hole = size
        first, end = max(at, data // block), min(-(-hole // block), blocks)
        if data == size:
            first = blocks
        if first > at:
            yield at, first - at, ZERO
        if end > first:
            yield first, end - first, CHUNK
        at = max(end, first)


def backup(repository: Repository, images: list[Path], previous: str = "") -> tuple[Sealed, dict[str, int]]:
    """One point of these images, all at once. With a previous point all is read and compared."""
    before = repository.point(previous).disks if previous else [None] * len(images)
    with Ingest(repository, LoneSession()) as ingest:
        disks = []
        threads = []
        for number, (image, old) in enumerate(zip(images, before, strict=True)):
            fd = os.open(image, os.O_RDONLY)
            size = os.fstat(fd).st_size
            disk = ingest.disk(f"disk{number}", size=size, continues=old)
            extents = extents_of(fd, size, disk.block_size)
            work = threading.Thread(
                target=disk.feed, args=(FileSource(fd), extents), kwargs={"compare": old is not None}
            )
            work.start()
            disks.append(disk)
            threads.append(work)
        for work in threads:
            work.join()
        sealed = ingest.seal(draft(*(disk.finish() for disk in disks), continues=previous))
        return sealed, ingest.figures.as_counts()


def days(repository: Repository, image: Path, count: int, blocks_a_day: int) -> list[str]:
    """`count` points: the image whole, then that many of its blocks written every day, fed as dirty extents. The image is left as
    it was at the last one.

    What is written is the block as it was with another stamp in its middle: a new chunk, of the same size before and after
    compression, so that points differ in how their data lies and in nothing else. Blocks of zeros are left alone.
    """
    rng = random.Random(1)
    made: list[str] = []
    previous: points.Disk | None = None
    with image.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        block_size = repository.definition.block_size
        full = [
            b for b in range(size // block_size) if not is_zero(os.pread(file.fileno(), block_size, b * block_size))
        ]
        for day in range(count):
            with Ingest(repository, LoneSession()) as ingest:
                disk = ingest.disk("disk0", size=size, continues=previous)
                if day:
                    dirty = sorted(rng.sample(full, blocks_a_day))
                    for block in dirty:
                        os.pwrite(file.fileno(), rng.randbytes(_STAMP), block * disk.block_size + disk.block_size // 2)
                    disk.feed(FileSource(file.fileno()), [(block, 1, CHUNK) for block in dirty])
                else:
                    disk.feed(FileSource(file.fileno()), [(0, disk.blocks, CHUNK)])
                sealed = ingest.seal(draft(disk.finish(), continues=made[-1] if made else ""))
            previous = sealed.point.disks[0]
            made.append(sealed.point.point)
            if day % 30 == 29:
                repository.merge_runs()
    return made


class Anonymous(threading.Thread):
    """The most anonymous memory that this process had, looked at twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kib = 0
        self.over = threading.Event()
        self._status = os.open("/proc/self/status", os.O_RDONLY)  # kept: looking must not cost what is being measured

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.look()

    def look(self) -> None:
        said = os.pread(self._status, 4096, 0)
        self.peak_kib = max(self.peak_kib, int(said[said.index(b"RssAnon:") + 8 :].split(maxsplit=1)[0]))


def main(what: str, repo: Path, cache: Path, arguments: list[str]) -> dict[str, Any]:
    watch = Anonymous()
    watch.start()
    started = time.perf_counter()
    out: dict[str, Any] = {}
    repository = opened(repo, cache)
    out["open_s"] = time.perf_counter() - started
    if what == "backup":
        sealed, out["figures"] = backup(repository, [Path(a) for a in arguments])
        out["point"] = sealed.point.point
    elif what == "again":
        sealed, out["figures"] = backup(repository, [Path(a) for a in arguments[1:]], arguments[0])
        out["point"] = sealed.point.point
        out["changed"] = sum(disk.counts["changed"] for disk in sealed.point.disks)
    elif what == "restore":
        disk = repository.point(arguments[0]).disks[0]
        restore_file(repository, disk, Path(arguments[1]), point=arguments[0])
    elif what == "days":
        out["points"] = days(repository, Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    elif what == "open":
        out["chunks"] = len(repository.index)
    else:
        raise SystemExit(f"what is {what!r}?")
    repository.close()
    watch.look()
    out["seconds"] = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    out["cpu_s"] = used.ru_utime + used.ru_stime
    out["anonymous_mib"] = watch.peak_kib / 1024
    return out


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])))
