"""What every kind of restore is given: the point, which of its disks, and how they are to be written."""

from __future__ import annotations

from dataclasses import dataclass

from agents.commands import Context
from agents.errors import AgentError
from agents.repository import tree
from agents.repository.comparing import Same
from agents.repository.content import ChunkSource
from agents.repository.extents import CHUNK
from agents.repository.points import Disk, Point
from agents.repository.reader import disk_of
from agents.repository.restoring import THREADS
from agents.restore.progress import Limit
from agents.restore.writing import Work
from streams.events import Problem


@dataclass(frozen=True, slots=True)
class Task:
    """One restore under way. `job` names what it makes."""

    ctx: Context
    job: str
    source: ChunkSource
    point: Point
    disks: tuple[Disk, ...]
    same: Same
    limit: Limit
    skip_lost: bool = False
    threads: int = THREADS  # of each disk

    def work(self, disk: Disk) -> Work:
        return Work(self.source, disk, self.same, self.limit, self.skip_lost, self.threads)

    def say(self, code: str, message: str, hint: str = "") -> None:
        """What the user should know though the restore goes on."""
        self.ctx.warn(Problem(code, message, hint))


def chosen(point: Point, names: list[str]) -> tuple[Disk, ...]:
    """The disks of a point that `names` name, in the point's order; all, if it names none. Raises `RepositoryError`
    (`disk-unknown`), `AgentError` (`point-unfit`)."""
    if point.kind != "disks" or not point.disks:
        raise AgentError(
            "point-unfit",
            f"point {point.point} is of {point.kind}, and has no disks",
            f"holdfast point restore {point.point} --to PATH",
        )
    if not names:
        return point.disks
    wanted = {disk_of(point, name).disk for name in names}
    return tuple(disk for disk in point.disks if disk.disk in wanted)


def data_bytes(source: ChunkSource, disk: Disk) -> int:
    """How much of a disk is data, by its tree."""
    blocks = 0
    for run in tree.iterate(source, disk.root, 0, -(-disk.size // disk.block_size), skip_lost=True):
        blocks += sum(extent.blocks for extent in run.extents() if extent.tag == CHUNK)
    return min(disk.size, blocks * disk.block_size)


def one_of(task: Task) -> Disk:
    """The only disk that was chosen, or that there is. Raises `AgentError` (`disk-unknown`)."""
    if len(task.disks) != 1:
        names = ", ".join(disk.disk for disk in task.disks)
        raise AgentError("disk-unknown", f"point {task.point.point} has several disks: {names}", "say which: `--disk`")
    return task.disks[0]
