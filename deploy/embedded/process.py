"""One server process: started with a log file, watched, paused, stopped, killed. By its pid, never by its name.

A pid alone names nobody for long: the kernel hands it on. So a process is known by its pid and the moment it was
started, and nothing is ever signalled whose moment differs.

Knows nothing of what the process serves; `ready` functions do (`kafka.py`, `postgres.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.embedded.user import ServiceUser
from deploy.errors import ServerError

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and how to end it.

    `stop_signal` asks for an orderly end; `death_signal` is what the process gets when its parent dies (0: nothing,
    it outlives it).
    """

    name: str
    argv: Sequence[str]
    log_file: Path
    cwd: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    user: ServiceUser | None = None
    stop_signal: int = signal.SIGTERM
    death_signal: int = signal.SIGTERM
    stop_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A process beyond doubt: its pid and when it was started (seconds since 1970, as psutil tells it)."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """None when there is no such process, or only what is left of one (a zombie)."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return cls(pid, process.create_time())
        except psutil.Error:
            return None

    def alive(self) -> bool:
        now = Identity.of(self.pid)
        return now is not None and abs(now.started - self.started) < 1.0

    def signal(self, number: int) -> None:
        """To this process and no other; nothing happens when it is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, timeout: float) -> bool:
        return wait_until(lambda: not self.alive(), timeout)


class RunningProcess:
    """A `Command` that has been started by this process."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._popen = _spawn(command)
        self.pid = self._popen.pid
        self.identity = Identity.of(self.pid) or Identity(self.pid, time.time())

    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def signal(self, number: int) -> None:
        if self.alive():
            self._popen.send_signal(number)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a power cut ends a process: no chance to say goodbye (SIGKILL, and wait)."""
        self.signal(signal.SIGKILL)
        self._popen.wait(30)

    def stop(self) -> None:
        """Ask it to end, wait `stop_timeout` seconds, then kill it. Returns when it is gone."""
        if not self.alive():
            self._popen.wait(1)
            return
        self.signal(signal.SIGCONT)
        self.signal(self.command.stop_signal)
        try:
            self._popen.wait(self.command.stop_timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait_ready(self, ready: Callable[[], str | None], timeout: float) -> None:
        """Until `ready()` is None (else it says what is missing). Raises `ServerError` with the end of the log."""
        reason: str | None = "not started"

        def is_ready() -> bool:
            nonlocal reason
            if not self.alive():
                return True
            reason = ready()
            return reason is None

        in_time = wait_until(is_ready, timeout)
        if not self.alive():
            raise ServerError(
                "server-ended",
                f"{self.command.name} ended with status {self.exit_status} while starting: {last_line(self.command)}",
                f"see {self.command.log_file}",
            )
        if not in_time:
            raise ServerError(
                "server-not-ready",
                f"{self.command.name} is not ready after {timeout:g} s: {reason}",
                f"see {self.command.log_file}",
            )


def wait_until(condition: Callable[[], bool], timeout: float, interval: float = 0.05) -> bool:
    """Polls `condition` until it holds (True) or `timeout` seconds have passed (False)."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def last_line(command: Command, size: int = 4096) -> str:
    """The last line of its log that says something: not the places of a Java stack trace."""
    try:
        with command.log_file.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - size))
            text = f.read().decode(errors="replace")
    except OSError:
        return "it left no log"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not re.match(r"\s+(at|\.\.\.) ", line)]
    return lines[-1] if lines else "it said nothing"


def _spawn(command: Command) -> subprocess.Popen[bytes]:
    command.log_file.parent.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable, "-I", "-S", str(_CHILD)]
    if command.user is not None and command.user.uid != os.geteuid():
        launcher += ["--uid", str(command.user.uid), "--gid", str(command.user.gid)]
    if command.death_signal:
        launcher += ["--death-signal", str(int(command.death_signal)), "--parent", str(os.getpid())]
    # Appending, so that the file can be cut while the process writes to it (supervisor.py, rotation).
    with command.log_file.open("ab") as log:
        return subprocess.Popen(
            [*launcher, "--", *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=command.cwd,
            env={**_inherited(), **command.environ},
            # A group of its own: Ctrl-C at the terminal reaches the supervisor alone, which then ends things in order.
            start_new_session=True,
        )


def _inherited() -> dict[str, str]:
    """What a server needs of our environment; not `PG*`, `JAVA_TOOL_OPTIONS` and the like, which would change it."""
    names = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, **{n: v for n, v in os.environ.items() if n.startswith(("HOLDFAST_", "LC_"))}}
