"""What the supervisor tells others about itself: `run/state.json` in the data directory.

Written by the supervisor alone, whole, at each change and at least every few seconds; read by `holdfast status` and `down`.
Whether it still holds is for the lock to say (`site.holder`), not for this file: after a crash it tells which processes
may have been left behind.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from deploy.embedded.process import Identity

Phase = Literal["starting", "running", "stopping", "failed"]
ServiceState = Literal["waiting", "starting", "running", "unwell", "restarting", "stopping", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """One service. `since` is when it entered this state, `started` when its process began (seconds since 1970)."""

    name: str
    state: ServiceState
    check: str
    detail: str = ""
    pid: int | None = None
    started: float | None = None
    restarts: int = 0
    since: float = 0.0
    stop_signal: int = signal.SIGTERM

    def identity(self) -> Identity | None:
        return Identity(self.pid, self.started) if self.pid and self.started else None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole. `message` says why, where there is something to say; `written` is seconds since 1970."""

    phase: Phase
    pid: int
    message: str = ""
    hint: str = ""
    services: Mapping[str, ServiceReport] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    written: float = 0.0

    @property
    def well(self) -> bool:
        return self.phase == "running" and all(s.state == "running" for s in self.services.values())


def path(data_dir: Path) -> Path:
    return data_dir / "run" / "state.json"


def write(data_dir: Path, report: Report) -> None:
    """Not flushed to disk: after a power cut there is nothing left that it could tell about."""
    target = path(data_dir)
    new = target.with_suffix(".new")
    new.write_text(json.dumps({**asdict(report), "written": time.time()}, indent=1), encoding="utf-8")
    new.rename(target)


def read(data_dir: Path) -> Report | None:
    """The last report; None when there is none, or only a torn one (power cut)."""
    try:
        raw = json.loads(path(data_dir).read_text(encoding="utf-8"))
        services = {name: ServiceReport(**s) for name, s in raw.pop("services").items()}
        return Report(**{**raw, "services": services, "warnings": tuple(raw["warnings"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
