"""A data directory and the `holdfast` command on it, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from deploy.embedded import state
from deploy.embedded.process import Identity
from streams.settings import Settings, load


class Site:
    """A data directory and the command line on it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def holdfast(self, *words: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "deploy.cli", "--data-dir", str(self.data_dir), *words],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def status(self, expect: int = 0) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.holdfast("status", "--json", expect=expect))
        return answer

    def status_of(self, service: str) -> str:
        """The state the supervisor reports of `service`."""
        report = state.read(self.data_dir)
        return report.services[service].state if report else "unknown"

    @property
    def settings(self) -> Settings:
        return load(self.data_dir / "holdfast.toml", {})

    def processes(self) -> dict[str, Identity]:
        """The supervisor and its services."""
        status = self.status()
        pids = {s["name"]: s["pid"] for s in status["services"]} | {"supervisor": status["supervisor_pid"]}
        return {name: identity for name, pid in pids.items() if (identity := Identity.of(pid))}
