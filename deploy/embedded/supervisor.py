"""Starts the services of a site, watches them, starts again what dies, and ends them in order.

    waiting → starting → running ⇄ unwell          unwell: its check fails; said aloud, not restarted, since a check may
                 ↑          ↓ dies                 fail for reasons that a restart makes worse (a full disk, a slow start)
                 └──── restarting (0.5 s, 1 s, … 30 s)
    any → stopping → stopped

Starting: in the order of the list; the servers first, then what every site has (topics), then Holdfast's processes. A
service that cannot be started at all while the site comes up ends the whole with its reason; later it is tried for ever.

One thread decides and starts processes (the kernel's death signal belongs to the thread that started a process); health
checks, which may hang, run in threads beside it.

If we die here: every process gets a signal from the kernel and ends; what does not is ended by the next start, which
knows it by pid and start time (`run/state.json`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from deploy.embedded import site
from deploy.embedded import state as reports
from deploy.embedded.process import RunningProcess, last_line
from deploy.embedded.stack import Service, Stack, before_processes, open_stack, require_ports, services
from deploy.errors import DeployError, ServerError
from streams.errors import StreamError

CHECK_EVERY = 5.0
CHECK_EVERY_WHILE_STARTING = 0.2
BACKOFF_FIRST, BACKOFF_LAST = 0.5, 30.0
SETTLED_AFTER = 60.0  # seconds a process must have run for its earlier deaths to be forgotten
DEATHS_WHILE_STARTING = 3
SETTLE = 1.0  # seconds a process whose only check is that it runs must have run
LOG_LIMIT = 20 << 20
LOGS_KEPT = 3
SERVERS = ("kafka", "postgresql")

Listener = Callable[[str, str], None]
"""Told (service, what happened) as it happens."""


@dataclass
class Watched:
    """One service under supervision."""

    service: Service
    state: reports.ServiceState = "waiting"
    detail: str = ""
    process: RunningProcess | None = None
    started: float = 0.0
    since: float = field(default_factory=time.time)
    restarts: int = 0
    deaths: int = 0
    start_again_at: float = 0.0
    check: Future[str | None] | None = None
    checked: float = 0.0

    def to(self, new: reports.ServiceState, detail: str = "") -> None:
        if new != self.state:
            self.since = time.time()
        self.state, self.detail = new, detail

    def report(self) -> reports.ServiceReport:
        alive = self.process is not None and self.process.alive()
        identity = self.process.identity if self.process is not None and alive else None
        return reports.ServiceReport(
            name=self.service.name,
            state=self.state,
            check=self.service.check_name,
            detail=self.detail,
            pid=identity.pid if identity else None,
            started=identity.started if identity else None,
            restarts=self.restarts,
            since=self.since,
            stop_signal=self.process.command.stop_signal if self.process is not None else signal.SIGTERM,
        )


class Supervisor:
    """Runs in the main thread: `run` returns the exit status once everything has ended.

    `between` is run when the servers are well, before Holdfast's own processes are started.
    """

    def __init__(
        self,
        stack: Stack,
        chosen: Sequence[Service],
        listener: Listener = lambda name, what: None,
        between: Callable[[Stack], None] = before_processes,
    ) -> None:
        self.stack = stack
        self.watched = [Watched(service) for service in chosen]
        self._tell, self._between = listener, between
        self._phase: reports.Phase = "starting"
        self._message, self._hint = "", ""
        self._stopping = False
        self._checks = ThreadPoolExecutor(max_workers=max(1, len(self.watched)), thread_name_prefix="check")
        self._written = 0.0

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until a service cannot be started. Returns 0, or 1 when starting failed."""
        lock = site.hold(self.stack.data_dir)
        if lock is None:
            raise DeployError("already-running", f"another supervisor runs the site in {self.stack.data_dir}")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        with lock:
            try:
                self._start_all()
                if not self._stopping:
                    self._phase = "running"
                    self._report()
                    self._tell("", "running")
                while not self._stopping:
                    self._watch()
                    time.sleep(0.2)
                return 0
            except (DeployError, StreamError) as e:
                self._phase, self._message, self._hint = "failed", e.message, e.hint
                self._tell("", f"failed: {e}")
                return 1
            finally:
                self._stop_all()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    # --- starting ----------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        self._report()
        servers = [w for w in self.watched if w.service.name in SERVERS]
        processes = [w for w in self.watched if w.service.name not in SERVERS]
        self._bring_up(servers)
        if self._stopping:
            return
        if processes:
            self._between(self.stack)
            self._bring_up(processes)

    def _bring_up(self, group: Sequence[Watched]) -> None:
        """Start all of `group`, then wait until each is well. Raises `ServerError` when one cannot be started."""
        for w in group:
            self._start(w)
        deadline = time.monotonic() + max((w.service.start_timeout for w in group), default=0)
        while not self._stopping and any(w.state != "running" for w in group):
            self._watch()
            for w in group:
                if w.deaths >= DEATHS_WHILE_STARTING and w.process is not None:
                    w.to("failed", w.detail)
                    raise ServerError(
                        "server-ended",
                        f"{w.service.name} ended {w.deaths} times while starting: {last_line(w.process.command)}",
                        f"see {w.process.command.log_file}",
                    )
                if w.state != "running" and time.monotonic() > deadline:
                    raise ServerError(
                        "server-not-ready",
                        f"{w.service.name} is not ready after {w.service.start_timeout:g} s: {w.detail}",
                        f"see {self.stack.logs / (w.service.name + '.log')}",
                    )
            time.sleep(0.05)

    def _start(self, w: Watched) -> None:
        w.to("starting")
        self._report()
        self._tell(w.service.name, "starting")
        command = w.service.prepare(self.stack, lambda what: self._tell(w.service.name, what))
        w.process = RunningProcess(command)
        w.started, w.check, w.checked = time.monotonic(), None, 0.0
        self._report()

    # --- watching ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        for w in self.watched:
            if w.process is None:
                continue
            if not w.process.alive():
                self._dead(w)
            else:
                self._ask(w)
        self._rotate()
        if time.time() - self._written > 2.0:
            self._report()

    def _dead(self, w: Watched) -> None:
        assert w.process is not None
        now = time.monotonic()
        if w.state == "restarting":
            if now >= w.start_again_at:
                w.restarts += 1
                try:
                    self._start(w)
                except DeployError as e:
                    w.to("restarting", e.message)
                    w.start_again_at = now + BACKOFF_LAST
            return
        if now - w.started > SETTLED_AFTER:
            w.deaths = 0
        w.deaths += 1
        pause = min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** (w.deaths - 1))
        w.start_again_at = now + pause
        status = w.process.exit_status or 0
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        w.to("restarting", f"it {how}: {last_line(w.process.command)}")
        self._tell(w.service.name, f"{how}; starting it again in {pause:g} s")
        self._report()

    def _ask(self, w: Watched) -> None:
        now = time.monotonic()
        if w.check is None:
            every = CHECK_EVERY_WHILE_STARTING if w.state == "starting" else CHECK_EVERY
            if now - w.checked >= every:
                w.checked = now
                w.check = self._checks.submit(w.service.check, self.stack)
            return
        if not w.check.done():
            return
        error = w.check.exception()
        # A check that raises is a fault of ours, but not one to bring the site down for.
        wrong = f"its check failed: {error!r}" if error is not None else w.check.result()
        w.check = None
        self._judged(w, wrong)

    def _judged(self, w: Watched, wrong: str | None) -> None:
        if wrong is not None:
            if w.state == "running":
                self._tell(w.service.name, f"unwell: {wrong}")
                w.to("unwell", wrong)
                self._report()
            elif w.detail != wrong:
                w.detail = wrong
            return
        if w.state == "running" or time.monotonic() - w.started < SETTLE * (w.service.name not in SERVERS):
            return
        try:
            w.service.after_ready(self.stack)
        except Exception as e:  # noqa: BLE001 -- whatever it is, the service is not ready, and says why
            w.detail = f"{e}"
            return
        took = time.monotonic() - w.started
        self._tell(w.service.name, f"ready after {took:.1f} s" if w.state == "starting" else "well again")
        w.to("running")
        self._report()

    # --- ending ------------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        failed = self._phase == "failed"
        if not failed:
            self._phase = "stopping"
        self._report()
        self._checks.shutdown(wait=False, cancel_futures=True)
        for names in (False, True):
            group = [w for w in self.watched if (w.service.name in SERVERS) is names and w.process is not None]
            for w in group:
                # All of a group at once: `stop` below then waits for each.
                if w.process is not None and w.process.alive():
                    w.to("stopping")
                    w.process.signal(w.process.command.stop_signal)
            self._report()
            for w in group:
                if w.process is not None:
                    w.process.stop()
                w.to("failed" if w.state == "failed" else "stopped", w.detail)
            self._report()
        self._tell("", "stopped")

    # --- telling -----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        free = shutil.disk_usage(self.stack.data_dir).free
        warnings = (f"{free >> 20} MiB left on the disk of {self.stack.data_dir}",) if free < site.LOW_FREE else ()
        reports.write(
            self.stack.data_dir,
            reports.Report(
                phase=self._phase,
                pid=os.getpid(),
                message=self._message,
                hint=self._hint,
                services={w.service.name: w.report() for w in self.watched},
                warnings=warnings,
            ),
        )
        self._written = time.time()

    def _rotate(self) -> None:
        """Cut logs that have grown. Processes write on to the same file, which they append to (`process.py`), so a few
        lines written between copy and cut can be lost: these logs are for people, what counts is in Kafka.
        """
        for log in [w.process.command.log_file for w in self.watched if w.process is not None]:
            if log.exists() and log.stat().st_size > LOG_LIMIT:
                for n in range(LOGS_KEPT, 1, -1):
                    older = log.with_name(f"{log.name}.{n - 1}")
                    if older.exists():
                        older.rename(log.with_name(f"{log.name}.{n}"))
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
                with log.open("r+b") as f:
                    f.truncate(0)


def end_leftovers(data_dir: Path, patience: float = 15.0) -> list[str]:
    """End processes that a supervisor which died has left behind; the names of those that had to be killed.

    They have had a signal from the kernel and mostly are ending already. Nobody may hold the site.
    """
    report = reports.read(data_dir)
    if report is None:
        return []
    left = {name: identity for name, s in report.services.items() if (identity := s.identity()) is not None}
    for name, identity in left.items():
        identity.signal(report.services[name].stop_signal)
    deadline = time.monotonic() + patience
    killed = []
    for name, identity in left.items():
        if not identity.wait_gone(max(0.0, deadline - time.monotonic())):
            identity.signal(signal.SIGKILL)
            identity.wait_gone(10)
            killed.append(name)
    return killed


def main(arguments: Sequence[str] | None = None) -> int:
    """The detached supervisor: `python -P -m deploy.embedded.supervisor --data-dir DIR [--service NAME …]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--service", action="append", default=[])
    options = parser.parse_args(arguments)

    def tell(name: str, what: str) -> None:
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {name or 'supervisor'}: {what}", flush=True)

    try:
        stack = require_ports(open_stack(options.data_dir), options.service)
        return Supervisor(stack, services(stack, options.service), tell).run()
    except (DeployError, StreamError) as e:
        tell("", f"failed: {e}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
