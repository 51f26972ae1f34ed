"""A session of a repository without a log: for tests of what is written, not of what counts. A stand-in, nothing else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from streams.events import PointSealed
from streams.ids import uuid7

_epochs = itertools.count(1)


@dataclass(slots=True)
class LoneSession:
    """Always open unless `over` is set; `sealed` has what was said."""

    id: str = field(default_factory=uuid7)
    epoch: int = field(default_factory=lambda: next(_epochs))
    entry: str = field(default_factory=uuid7)
    by: str = "tests"
    sealed: list[PointSealed] = field(default_factory=list)
    over: Exception | None = None

    def check(self) -> None:
        if self.over is not None:
            raise self.over

    def seal(self, event: PointSealed) -> object:
        self.check()
        self.sealed.append(event)
        return None
