"""A whole site as processes on real Kafka and PostgreSQL (processors, agent, API), and the command line to ask it.

Every process is started by the tests, ends with them, and can be killed and started again by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.embedded.process import Command, RunningProcess
from streams.admin import ensure_topics
from streams.settings import Settings
from streams.topics import CATALOGUE
from tests.stack.running_api import HTTP, eventually
from tests.stack.servers import KafkaServer, PostgresServer, Scratch, config_file, make_site

ROOT = Path(__file__).parents[2]
MODULES = {"processors": ("projections", "worker"), "agent": ("agents",), "api": ("api",)}


class RunningSite:
    """Processes of one site. `cli` asks it as a user does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes: dict[str, RunningProcess] = {}
        ensure_topics(settings.kafka, [(t.name, None) for t in CATALOGUE if t.per is None])
        for name in MODULES:
            self.start(name)
        self.ready()

    def start(self, name: str, environ: Mapping[str, str] | None = None) -> None:
        """`name`: of `MODULES`; behind a dash may stand which of several: `agent-two`. `environ`: more of its environment."""
        module, *rest = MODULES[name.partition("-")[0]]
        command = Command(
            name=name,
            argv=[sys.executable, "-P", "-m", module, "--config", str(config_file(self.settings)), *rest],
            log_file=self.settings.data_dir / f"{name}.log",
            cwd=ROOT,
            environ=environ or {},
            stop_timeout=30,
            death_signal=signal.SIGKILL,
        )
        self.processes[name] = RunningProcess(command)

    def ready(self) -> None:
        """Wait until the API can work."""
        eventually(self._answers, patience_s=90)

    def _answers(self) -> bool:
        for name, process in self.processes.items():
            assert process.alive(), f"{name} ended: {self.log(name)}"
        try:
            return HTTP.get(f"{self.settings.api.url}/v1/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def log(self, name: str) -> str:
        path = self.settings.data_dir / f"{name}.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else "(no log)"

    def kill(self, name: str) -> None:
        """SIGKILL, its children too."""
        process = self.processes[name]
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            process.stop()

    # --- the command line --------------------------------------------------------------------------------------------

    def run(self, *words: str, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "deploy.cli", *words],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            env={**os.environ, "HOLDFAST_DATA": str(self.settings.data_dir), "TZ": "UTC", **environ},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def cli(self, *words: str, expect: int = 0, stdin: str | None = None, **environ: str) -> str:
        """What the command says; standard error only when it was to fail."""
        done = self.run(*words, stdin=stdin, **environ)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == expect, f"holdfast {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if expect == 0 else done.stdout + done.stderr

    def json(self, *words: str, expect: int = 0, stdin: str | None = None) -> Any:
        done = self.run(*words, "--json", stdin=stdin)
        assert done.returncode == expect, f"holdfast {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)


@contextlib.contextmanager
def running_site(kafka: KafkaServer, postgres: PostgresServer, name: str) -> Iterator[RunningSite]:
    """A site with nothing in it, of topics and a database of its own; its data directory goes with it."""
    scratch = Scratch(name)
    database = postgres.fresh_database()
    running = RunningSite(make_site(scratch.path / "site", kafka.settings(f"t{secrets.token_hex(4)}."), database))
    try:
        yield running
    finally:
        running.close()
        postgres.drop_database(database.dbname)
        scratch.remove()
