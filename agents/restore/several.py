"""Several disks of one restore at once: within the limits of node, host and storage that backups keep to, too; one end for all.

The threads of a job are shared among its disks, so that its memory hardly grows with them: each holds what it reads (4 MiB) and
what it writes (4 MiB). When one disk fails the others end at their next step, and may be gone on with.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final, TypeVar

from agents.errors import AgentError
from agents.repository.points import Disk
from agents.repository.restoring import THREADS
from agents.restore.progress import Meter, Stopped
from agents.restore.task import Task

AT_ONCE: Final = 8
_FEWEST: Final = 2  # threads of a disk: one writes while the other reads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """By what a disk is counted (`agents.backup.limits.Limits.disk`)."""

    host: str
    storage: str
    options: Mapping[str, str] = field(default_factory=dict)


def threads_of(disks: int) -> int:
    """How many threads each of so many disks has."""
    return max(_FEWEST, THREADS // max(1, min(disks, AT_ONCE)))


def each(task: Task, meter: Meter, place: Callable[[Disk], Place], work: Callable[[Disk], T]) -> list[T]:
    """`work` of each disk of a task, several at once, in threads that end before this does: what it gave, in the disks' order.

    Raises what `Context.check` does; else what the first failure was: if there are several disks, an `AgentError` that names the
    disk and says how it stands with the others.
    """
    limits = task.ctx.services.limits
    begun: set[str] = set()

    def one(disk: Disk) -> T:
        at = place(disk)
        with limits.disk(at.host, at.storage, at.options, lambda: meter.add(0)):
            begun.add(disk.disk)
            return work(disk)

    if len(task.disks) == 1:
        return [one(task.disks[0])]
    with ThreadPoolExecutor(min(len(task.disks), AT_ONCE), "restore-disks") as pool:
        futures = {pool.submit(one, disk): disk for disk in task.disks}
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in futures):
                meter.stop()
                for future in futures:
                    future.cancel()
    first = next((f for f in futures if (error := _of(f)) is not None and not isinstance(error, Stopped)), None)
    if first is None:
        return [future.result() for future in futures]
    task.ctx.check()  # whoever ends the job is told that, and nothing of disks
    _raise(futures, first, begun)
    raise AssertionError("it has failed")


def _of(future: Future[T]) -> BaseException | None:
    return None if future.cancelled() else future.exception()


def _raise(futures: Mapping[Future[T], Disk], failed: Future[T], begun: set[str]) -> None:
    try:
        failed.result()
    except OSError as error:
        told = unwritable(error)
        _name(told, futures, failed, begun)
        raise told from error
    except AgentError as error:
        _name(error, futures, failed, begun)
        raise


def _name(error: AgentError, futures: Mapping[Future[T], Disk], failed: Future[T], begun: set[str]) -> None:
    """Say of which disk it is, and how it stands with the others."""
    disk = futures[failed]
    others = []
    for future, other in futures.items():
        if future is failed:
            continue
        this = _of(future)
        if other.disk not in begun:
            state = "has not been begun"
        elif this is None:
            state = "is whole"
        elif isinstance(this, Stopped):
            state = "is not whole yet"
        else:
            state = f"failed as well: {this.message if isinstance(this, AgentError) else this}"
        others.append(f"{other.disk} {state}")
    named = "" if f"disk {disk.disk} " in error.message else f"disk {disk.disk}: "
    error.message = f"{named}{error.message} (of the others, {'; '.join(others)})"


def unwritable(error: OSError) -> AgentError:
    """Of what is restored to; what the repository meets is a `StoreError`."""
    what = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentError(
            "space-short",
            f"{what}there is no space left where it is restored to",
            "give it room and restore again: it goes on where it ended",
        )
    return AgentError(
        "target-unwritable",
        f"{what}{error.strerror or error}",
        "see to what it lies on, or name another target, and restore again",
    )
