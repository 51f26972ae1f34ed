"""Steps of the log, as far as rollbacks look at them: whoever reads the log hands them over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class Fragment(Protocol):
    """What is needed of a step of the log (`streams.capture_log.StepFragment`)."""

    @property
    def ordinal(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def last(self) -> bool: ...
    @property
    def preamble(self) -> bytes: ...
    @property
    def payload(self) -> bytes | None: ...
    @property
    def accounts(self) -> bool: ...


ReadSteps = Callable[[int, int], Iterable[Fragment]]
"""Of the steps from the first to the last, both included."""
