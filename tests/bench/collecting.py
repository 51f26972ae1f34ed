"""`collect`: marking and weighing a repository of 365 daily points of a sparse disk of 1 TiB, ten million references in all.

The repository's trees, delta runs, records and packs' footers are real and written as a backup writes them; bodies of data are
left out (a pack is a file with a hole), since nothing of a collection reads them. The first point covers a million blocks, each
following day rewrites stretches of sixty-four. Thirty points are dropped. What is measured ends with the proposal: marks made,
every pack weighed, the list durable. The log is in memory.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from agents.repository import collection, delta, pack_format, points, runs, tree
from agents.repository import repository as repositories
from agents.repository.contents import RepositoryContents
from agents.repository.extents import CHUNK, RunBuilder
from agents.repository.format import DATA, DATA_PACK, ZSTD
from agents.repository.ingest import Ingest
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.repository import Repository
from agents.repository.sessions import Sessions
from agents.repository.stores.local import LocalStore
from streams.events import PointDropped
from streams.ids import now_us, uuid7
from tests.bench.report import FOLDER, Report, report
from tests.bench.repository_ours import Anonymous

POINTS = 365
REFERENCES = 10_000_000
DROPPED = 30
BLOCK = 256 << 10
DISK_BLOCKS = (1 << 40) // BLOCK
STRETCH = 64
_A_PACK = 700
_STORED = 90_000


@dataclass
class _Days:
    """Makes the points, one after the other."""

    repository: Repository
    sessions: Sessions
    random: random.Random = field(default_factory=lambda: random.Random(1))
    previous: points.Disk | None = None
    points: list[str] = field(default_factory=list)
    references: int = 0

    def add(self, stretches: list[int], length: int) -> None:
        """A point that changes `length` blocks from each of `stretches` on."""
        session = self.sessions.open("backup", by="bench", asset="vm")
        names = secrets.token_bytes(32 * length * len(stretches))
        builder = RunBuilder()
        for number, first in enumerate(stretches):
            at = number * length * 32
            builder.add(first, length, CHUNK, names[at : at + length * 32])
        run = builder.take()
        with Ingest(self.repository, session, slug="main", asset="vm") as ingest:
            root = self.previous.root if self.previous else tree.EMPTY
            disk = points.Disk(
                "0",
                "0",
                DISK_BLOCKS * BLOCK,
                BLOCK,
                tree.update(ingest, self.repository, root, [run]),
                delta.write(ingest, [run]),
            )
            self._packs(names, session.epoch)
            continues = self.points[-1] if self.points else ""
            place = points.JournalPlace(0, "")
            draft = points.Point(
                "", "vm", "vm", "disks", now_us(), "", 0, "", place, continues=continues, disks=(disk,)
            )
            self.points.append(ingest.seal(draft).point.point)
        session.close(points=self.points[-1:])
        self.previous = disk
        self.references += len(names) // 32

    def _packs(self, names: bytes, epoch: int) -> None:
        """Packs of these chunks that are nothing but headers and footers, and the run that says the same."""
        repository = self.repository
        covered: list[runs.Covered] = []
        entries: list[bytes] = []
        chunks = [names[at : at + 32] for at in range(0, len(names), 32)]
        for first in range(0, len(chunks), _A_PACK):
            pack = secrets.token_bytes(16)
            head = pack_format.write_header(
                pack_format.PackHeader(pack, repository.identity.bytes, DATA_PACK, epoch, True)
            )
            rows = []
            at = len(head)
            for name in chunks[first : first + _A_PACK]:
                rows.append(pack_format.write_row(name, at, _STORED, BLOCK, DATA, ZSTD, name[:16]))
                entries.append(runs.entry(name, len(covered), at, _STORED, BLOCK, DATA, ZSTD))
                at += pack_format.FRAME_BYTES + _STORED
            name_of = pack_format.pack_file(pack, repository.node, epoch)
            with self._path(name_of).open("wb") as file:
                file.write(head)
                file.seek(at)
                file.write(pack_format.write_footer(head, rows))
            covered.append(runs.Covered(pack, name_of))
        run = runs.Run(UUID(uuid7()), tuple(covered), b"".join(entries))
        name_of_run = runs.write(repository.store, repository.identity, run)
        repository.index.add_run(run, name_of_run, {pack for pack, _ in covered})

    def _path(self, name: str) -> Path:
        store = self.repository.store
        assert isinstance(store, LocalStore)
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextlib.contextmanager
def _ground() -> Iterator[Path]:
    (FOLDER / "repository").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="collect-", dir=FOLDER / "repository") as name:
        yield Path(name).absolute()


def collect(rounds: int, scale: float) -> Report:
    with _ground() as folder:
        (folder / "repo").mkdir()
        store = LocalStore(folder / "repo")
        repositories.create(store, wrap=None)
        repository = repositories.open(store, None, folder / "cache", "bench")
        log = MemoryLog()
        sessions = Sessions(MemoryJournal(log, "main"), store, "bench")
        days = _Days(repository, sessions)
        wanted = int(REFERENCES * scale)
        first = wanted // 10
        days.add([0], first)
        a_day = max(1, (wanted - first) // (POINTS - 1) // STRETCH)
        for _ in range(POINTS - 1):
            # Three quarters where there is something already.
            inside = days.random.sample(range(0, max(first - STRETCH, a_day * STRETCH), STRETCH), a_day - a_day // 4)
            outside = days.random.sample(range(first // STRETCH + 1, DISK_BLOCKS // STRETCH), a_day // 4)
            days.add(sorted([*inside, *(block * STRETCH for block in outside)]), STRETCH)
        for point in days.points[:DROPPED]:
            sessions.say(PointDropped(repository="main", point=point, reason="bench", dropped_us=now_us(), by="bench"))
        took: list[float] = []
        figures: dict[str, float] = {"references": days.references, "points": POINTS}
        rules = collection.Rules(live_share=0.0, folder=folder)
        for turn in range(rounds + 1):
            again = Sessions(MemoryJournal(log.restored(len(log.entries)), "main"), store, "bench")
            session = again.open("collect", by="bench")
            watch = Anonymous()
            watch.look()
            before = watch.peak_kib
            watch.start()
            started = time.perf_counter()
            proposal = collection.propose(again, session, RepositoryContents(repository), rules)
            seconds = time.perf_counter() - started
            watch.over.set()
            assert proposal is not None
            figures["chunks_alive"] = proposal.figures["chunks_alive"]
            figures["packs_to_go"] = len(proposal.plan.packs)
            figures["anonymous_more_mib"] = (watch.peak_kib - before) / 1024
            if turn:
                took.append(seconds)
        repository.close()
    return report("collect", took, [60.0], "limit", "s", "less", figures)
