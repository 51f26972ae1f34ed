"""The peer of the capture benchmarks: Debezium 3.5's embedded engine (tests/bench/peers/debezium/Peer.java).

Its jars come from Maven by coordinates, its compiler from the system's JDK; without one the benchmark says so. It runs in a
process of its own: nothing of it is part of Holdfast.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.embedded.packages import cache_dir
from tests.bench.ground import Ground
from tests.bench.report import Skip

VERSION = "3.5.0.Final"
COORDINATES = (
    f"io.debezium:debezium-embedded:{VERSION}",
    f"io.debezium:debezium-connector-mariadb:{VERSION}",
    "org.slf4j:slf4j-simple:1.7.36",
)
_OUT_OF_TIME = 2  # its exit status
SOURCE = Path(__file__).parent / "peers" / "debezium" / "Peer.java"


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` from the first change event to the last one acknowledged by Kafka (or received, for sink `noop`)."""

    events: int
    seconds: float
    cpu_seconds: float
    acknowledged: dict[int, int]


@functools.cache
def install() -> tuple[str, str]:
    """(java, classpath) of the compiled peer. Raises `Skip` where it cannot be had."""
    javac = shutil.which("javac")
    java = shutil.which("java")
    if javac is None or java is None:
        raise Skip("Debezium as a peer needs a JDK with a compiler (javac) on PATH")
    home = cache_dir() / "bench"
    home.mkdir(parents=True, exist_ok=True)
    complete = home / f"debezium-{VERSION}"  # what is there is not resolved again: somebody may be running it
    if not complete.exists():
        environ = {**os.environ, "JGO_CACHE_DIR": str(home / "jgo")}
        listing = [sys.executable, "-m", "jgo", "--resolver", "python", "info", "modulepath", "+".join(COORDINATES)]
        done = subprocess.run(listing, env=environ, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise Skip(f"Debezium's jars cannot be had: {done.stderr.strip()[-300:]}")
        complete.touch()
    jars = sorted((home / "jgo").glob("**/*.jar"))
    if not jars:
        complete.unlink()
        raise Skip("Debezium's jars cannot be had")
    classpath = ":".join(map(str, jars))
    classes = Path(tempfile.mkdtemp(prefix="classes-", dir=home))
    atexit.register(shutil.rmtree, classes, ignore_errors=True)
    subprocess.run([javac, "-d", str(classes), "-cp", classpath, str(SOURCE)], check=True, timeout=300)
    return java, f"{classes}:{classpath}"


class Peer:
    """One run of the peer; `start` returns once it reads the source."""

    def __init__(self, ground: Ground, tables: str, expected: int, **more: str) -> None:
        self._ground = ground
        self._arguments = {
            "host": "127.0.0.1",
            "port": str(ground.mariadb.port),
            "user": "hf_capture",
            "password_file": str(ground.password_files["capture"]),
            "kafka": ground.kafka.bootstrap,
            "topic": "peer",
            "sink": "kafka",
            "mode": "backlog",
            "expected": str(expected),
            "tables": tables,
            **more,
        }
        self._process: subprocess.Popen[str] | None = None
        self._errors = ground.folder / "peer.log"

    def start(self) -> None:
        java, classpath = install()
        argv = [java, "-Xmx1500m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", classpath, "Peer"]
        argv += [f"{k}={v}" for k, v in self._arguments.items()]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "READY":
                return
        raise RuntimeError(f"the peer ended with {self._process.wait()} before it read anything: {self.trouble()}")

    def trouble(self) -> str:
        """The end of what it complained of."""
        return self._errors.read_text(errors="replace")[-3000:]

    def finish(self, *, partly: bool = False) -> Run:
        """Wait for all events. Raises `RuntimeError` when it fails. `partly`: what it got through within its time limit
        (`limit_s`, 300) will do, as a rate needs no more."""
        assert self._process is not None
        out, _ = self._process.communicate(timeout=900)
        if self._process.returncode not in ((0, _OUT_OF_TIME) if partly else (0,)):
            raise RuntimeError(f"the peer ended with {self._process.returncode}: {self.trouble()}")
        lines = out.strip().splitlines()
        said: dict[str, Any] = json.loads(lines[-1])
        acks = {int(a): int(b) for a, b in (line.split() for line in lines[:-1] if line and line[0].isdigit())}
        return Run(said["events"], said["seconds"], said["cpu_seconds"], acks)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
