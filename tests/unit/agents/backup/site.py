"""A site in one process: an in-memory host, a repository in memory, and what the handlers of commands are given. A stand-in
for the log alone; the code that backs up is the real one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agents.backup import inventory
from agents.backup import run as backup
from agents.backup.limits import Limits
from agents.commands import Command, handler
from agents.hosts import Hosts
from agents.repository import repository as repositories
from agents.repository.journal import MemoryJournal, MemoryLog
from agents.repository.ledger import Ledger, PointState
from agents.repository.node import Held
from agents.repository.points import Point
from agents.repository.reader import DiskReader
from agents.repository.sessions import Sessions
from agents.repository.stores.memory import MemoryStore
from agents.repository.stores.recorded import RecordedStore
from streams.events import Event, HostDefined, Problem, RepositoryDefined
from streams.ids import uuid7
from tests.stand_ins.hypervisor import Hypervisor

BLOCK = 65_536


class Site:
    """`backup` carries out `backup.run`; `point` and `content` are what came of it."""

    def __init__(self, folder: Path, *repositories_: str, dedupe: str = "repository") -> None:
        self.hypervisor = Hypervisor(folder / "host")
        self.stores: dict[str, MemoryStore] = {}
        self.held: dict[str, Held] = {}
        for name in repositories_ or ("main",):
            self._add_repository(folder, name, dedupe)
        self.said: list[Event] = []
        self.warned: list[Problem] = []
        self.progress: list[str] = []
        self.counts: list[tuple[int, int]] = []  # done, total
        self.check: Any = lambda: None
        publisher = SimpleNamespace(publish=lambda event: None)
        node = SimpleNamespace(get=self.held.__getitem__, ledgers=self.ledgers)
        self.services = SimpleNamespace(
            hosts=Hosts(), limits=Limits(), secrets=SimpleNamespace(), node=node, publisher=publisher
        )
        settings = self.hypervisor.settings("h1")
        self.services.hosts.apply(
            HostDefined(host="h1", kind=settings.kind, state="added", url=settings.url, defined_us=1, by="tests")
        )

    def _add_repository(self, folder: Path, name: str, dedupe: str) -> None:
        store = self.stores[name] = MemoryStore()
        definition = repositories.create(store, wrap=None, block_size=BLOCK, pack_bytes=1 << 20)
        recorded = RecordedStore(store, folder / f"{name}.own")
        repository = repositories.open(recorded, None, folder / "cache", "node_a")
        sessions = Sessions(MemoryJournal(MemoryLog(), name), recorded, "node_a")
        self.held[name] = Held(name, recorded, repository, sessions)
        sessions.say(
            RepositoryDefined(
                repository=name,
                identity=str(definition.identity),
                state="added",
                store="memory",
                location="",
                node="node_a",
                encrypted=False,
                options={"block_size": str(BLOCK), "dedupe": dedupe},
                defined_us=1,
                by="tests",
            )
        )

    def close(self) -> None:
        for held in self.held.values():
            held.close()

    def ledgers(self) -> list[Ledger]:
        return [held.sessions.ledger() for held in self.held.values()]

    def ctx(self, command: Command) -> Any:
        def durable(*events: Event) -> None:
            self.said.extend(events)

        def progress(message: str, done: int = 0, total: int = 0, unit: str = "") -> None:
            self.progress.append(message)
            self.counts.append((done, total))

        return SimpleNamespace(
            services=self.services,
            command=command,
            check=lambda: self.check(),
            progress=progress,
            ending=lambda: False,
            warn=lambda *problems: self.warned.extend(problems),
            durable=durable,
        )

    def discover(self) -> Mapping[str, Any]:
        command = Command(uuid7(), "asset.discover", "hosts", {}, "tests", 1)
        return inventory.discover(command, self.ctx(command))

    def backup(self, *assets: str, job: str = "", resumed: bool = False, to: str = "main", **more: Any) -> list[Point]:
        """The points that came of it."""
        command = Command(
            job or uuid7(), "backup.run", assets[0], {"assets": assets, "repository": to, **more}, "tests", 1
        )
        self.warned.clear()
        told = backup.run(replace(command, resumed=resumed), self.ctx(command))
        self.told = [dict(one) for one in told["points"]]
        return [self.held[to].repository.point(one["point"]) for one in self.told]

    def do(self, kind: str, **parameters: Any) -> dict[str, Any]:
        """Another command about repository `main`."""
        command = Command(uuid7(), kind, "repository/main", {"repository": "main", **parameters}, "tests", 1)
        return dict(handler(kind)(command, self.ctx(command)))

    def state(self, point: Point, of: str = "main") -> PointState:
        return self.held[of].sessions.ledger().points[point.point]

    def content(self, point: Point, disk: str, of: str = "main") -> bytes:
        """What a point says is on a disk, read through its tree."""
        (found,) = (d for d in point.disks if d.disk == disk)
        with DiskReader(self.held[of].repository, found) as reader:
            return reader.read(0, found.size)


class Guest:
    """A machine with disks, on which somebody writes."""

    def __init__(self, site: Site, name: str, disks: Mapping[str, int], seed: int = 0, **more: Any) -> None:
        self.hypervisor = site.hypervisor
        self.native = site.hypervisor.add(name, disks, **more)
        self.disks = dict(disks)
        self._random = random.Random(seed)

    def write(self, disk: str, offset: int, size: int, **more: Any) -> None:
        self.hypervisor.write(self.native, disk, offset, self._random.randbytes(size), **more)

    def scatter(self, count: int = 5) -> None:
        for disk, size in self.disks.items():
            for _ in range(count):
                length = self._random.choice((512, 4096, 70_000))
                self.write(disk, self._random.randrange(size - length), length)

    def content(self, disk: str) -> bytes:
        return self.hypervisor.content(self.native, disk)


@contextlib.contextmanager
def closing(site: Site) -> Iterator[Site]:
    try:
        yield site
    finally:
        site.close()
