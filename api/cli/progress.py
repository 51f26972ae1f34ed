"""A bar for long work, from a job's events. The library that draws it is loaded when there is something to draw."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Shows the newest state of a job on standard error until it is closed; shows nothing where `shown` is False."""

    def __init__(self, what: str, shown: bool) -> None:
        self._what = what
        self._shown = shown
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def show(self, job: Mapping[str, Any]) -> None:
        # Most jobs end before anybody has read a bar.
        if not self._shown or job["state"] not in ("progressed", "warned"):
            return
        if self._progress is None:
            self._start()
        assert self._progress is not None
        assert self._task is not None
        total = job["total"] or None
        text = f"{self._what}: {job['message']}" if job["message"] else self._what
        self._progress.update(self._task, description=text, completed=job["done"], total=total)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task(self._what, total=None)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
