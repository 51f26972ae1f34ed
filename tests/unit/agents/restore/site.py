"""The site in one process (`tests.unit.agents.backup.site`) that also restores. A stand-in for the log alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agents.commands import Command
from agents.machines import MachineSeen
from agents.repository.points import Point
from agents.restore import handlers
from streams.ids import uuid7
from tests.stand_ins.memory_host import MemoryHost
from tests.unit.agents.backup.site import Site


class Restores(Site):
    """And `restore` carries out `restore.run`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "data").mkdir()
        self.services.settings = SimpleNamespace(data_dir=folder / "data")
        self.services.stop = SimpleNamespace(is_set=lambda: False, wait=lambda seconds: False)
        self.services.node.folders = list

    @property
    def host(self) -> MemoryHost:
        return MemoryHost(self.hypervisor.settings("h1"), self.hypervisor)

    def restore(self, how: str, point: Point, job: str = "", resumed: bool = False, **more: Any) -> dict[str, Any]:
        p = {"how": how, "repository": "main", "point": point.point, **more}
        command = Command(job or uuid7(), "restore.run", point.asset, p, "tests", 1)
        self.warned.clear()
        return dict(handlers.run(replace(command, resumed=resumed), self.ctx(command)))

    def machines(self) -> dict[str, MachineSeen]:
        return {seen.name: seen for seen in self.host.discover()}

    @property
    def notes(self) -> list[str]:
        return sorted(path.name for path in (self.services.settings.data_dir / "restores").glob("*"))
