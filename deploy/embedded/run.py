"""What `holdfast up`, `down` and `status` do and say. The command line's options are in `deploy.cli`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.embedded import site, state
from deploy.embedded.process import Identity, wait_until
from deploy.embedded.stack import Choices, Stack, make_stack, open_stack, process_user, require_ports, services
from deploy.embedded.supervisor import Supervisor, end_leftovers
from deploy.errors import EXIT_FAILED, EXIT_NOT_RUNNING, DeployError, SiteError

START_TIMEOUT = 300.0


def up(data_dir: Path, choices: Choices, names: Sequence[str] = (), *, detach: bool) -> int:
    """Returns the exit status. Raises `DeployError`, `StreamError` when nothing could be started."""
    if _already_up(data_dir):
        return 0
    stack = make_stack(data_dir, choices)
    chosen = services(stack, names)
    left = end_leftovers(data_dir)
    if left:
        _say(f"ended what an earlier run had left behind: {', '.join(left)}")
    stack = require_ports(stack, names)
    _say(f"site {stack.settings.site} in {data_dir}")
    if os.geteuid() == 0:
        _say(f"started by root: servers run as user {stack.user.name}" + _processes_as(stack))
    telling = Telling()
    if not detach:
        status = Supervisor(stack, chosen, lambda name, what: _foreground(stack, telling, name, what)).run()
        return EXIT_FAILED if status else 0
    return _detached(stack, [service.name for service in chosen], telling)


def down(data_dir: Path, timeout: float) -> int:
    """Stop the supervisor, which stops the rest; also what a supervisor that died may have left. The exit status."""
    if not site.exists(data_dir):
        raise SiteError("site-missing", f"there is no site in {data_dir}", "`holdfast up` makes one")
    pid = site.holder(data_dir)
    if pid is None:
        left = end_leftovers(data_dir)
        _say(f"nothing ran in {data_dir}" + (f" but {', '.join(left)}, now ended" if left else ""))
        return 0 if left else EXIT_NOT_RUNNING
    supervisor = Identity.of(pid)
    if supervisor is None:
        raise SiteError(
            "lock-held", f"{data_dir} is held by a process that cannot be seen (pid {pid})", "another container?"
        )
    supervisor.signal(signal.SIGTERM)
    if not supervisor.wait_gone(timeout):
        _say(f"the supervisor (pid {pid}) did not end within {timeout:g} s; killing it")
        supervisor.signal(signal.SIGKILL)
        supervisor.wait_gone(10)
    end_leftovers(data_dir)
    _say("stopped")
    return 0


def status(data_dir: Path) -> dict[str, Any]:
    """The site's state as JSON: `running`, `well`, `phase`, `site`, `data_dir`, `api`, `services`, `warnings`."""
    stack = open_stack(data_dir)
    pid = site.holder(data_dir)
    report = state.read(data_dir)
    result: dict[str, Any] = {
        "site": stack.settings.site,
        "data_dir": str(data_dir),
        "running": pid is not None,
        "well": bool(pid is not None and report and report.well),
        "phase": report.phase if pid is not None and report else "stopped",
        "supervisor_pid": pid,
        "api": stack.settings.api.url,
        "kafka": {"bootstrap": stack.settings.kafka.bootstrap, "embedded": stack.embeds_kafka},
        "postgres": {
            "host": stack.settings.postgres.host,
            "port": stack.settings.postgres.port,
            "dbname": stack.settings.postgres.dbname,
            "embedded": stack.embeds_postgres,
        },
        "services": [],
        "warnings": list(report.warnings) if pid is not None and report else [],
        "message": report.message if report else "",
    }
    if pid is not None and report is not None:
        now = time.time()
        for s in report.services.values():
            result["services"].append(
                {
                    "name": s.name,
                    "state": s.state,
                    "detail": s.detail,
                    "check": s.check,
                    "pid": s.pid,
                    "restarts": s.restarts,
                    "seconds_in_state": round(max(0.0, now - s.since), 1),
                }
            )
    return result


def describe(report: dict[str, Any]) -> str:
    """The same for people."""
    head = f"site {report['site']} in {report['data_dir']}: {report['phase']}"
    lines = [head]
    for s in report["services"]:
        line = f"  {s['name']:<12} {s['state']:<10} {'pid ' + str(s['pid']) if s['pid'] else '':<12}"
        line += f" {_duration(s['seconds_in_state'])}"
        if s["restarts"]:
            line += f", {s['restarts']} restarts"
        lines.append(line.rstrip())
        if s["detail"]:
            lines.append(f"               {s['detail']}")
    if report["running"]:
        lines.append(f"  API {report['api']}   Kafka {report['kafka']['bootstrap']}")
    elif report["message"]:
        lines.append(f"  last time: {report['message']}")
    lines += [f"  warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)


class Telling:
    """Progress of a start, one line each time a service gets somewhere."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def service(self, name: str, what: str) -> None:
        _say(f"  {name:<12} {what}")

    def report(self, report: state.Report) -> None:
        for s in report.services.values():
            now = (s.state, s.detail if s.state in ("restarting", "failed") else "")
            if s.state != "waiting" and self._seen.get(s.name) != now:
                self._seen[s.name] = now
                self.service(s.name, "ready" if s.state == "running" else f"{s.state} {now[1]}".strip())


def _already_up(data_dir: Path) -> bool:
    if not site.exists(data_dir):
        return False
    pid = site.holder(data_dir)
    if pid is None:
        return False
    report = state.read(data_dir)
    _say(f"already {report.phase if report else 'running'} (supervisor {pid}); see `holdfast status`")
    return True


def _foreground(stack: Stack, telling: Telling, name: str, what: str) -> None:
    if name:
        telling.service(name, what)
    elif what == "running":
        _say(_what_next(stack, "Ctrl-C stops it."))
    else:
        _say(what)


def _detached(stack: Stack, names: Sequence[str], telling: Telling) -> int:
    log = stack.logs / "supervisor.log"
    state.path(stack.data_dir).unlink(missing_ok=True)
    argv = [sys.executable, "-P", "-m", "deploy.embedded.supervisor", "--data-dir", str(stack.data_dir)]
    with log.open("ab") as f:
        supervisor = subprocess.Popen(
            [*argv, *(word for name in names for word in ("--service", name))],
            stdin=subprocess.DEVNULL,
            stdout=f,
            stderr=subprocess.STDOUT,
            cwd=stack.data_dir,
            start_new_session=True,
        )

    def arrived() -> bool:
        report = state.read(stack.data_dir)
        if report is not None:
            telling.report(report)
        return supervisor.poll() is not None or (report is not None and report.phase == "running")

    try:
        in_time = wait_until(arrived, START_TIMEOUT, 0.1)
    except KeyboardInterrupt:
        _say("interrupted; stopping what was started")
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(120)
        raise
    if supervisor.poll() is not None:
        report = state.read(stack.data_dir)
        message = report.message if report and report.message else _tail(log)
        raise DeployError("start-failed", message, (report.hint if report else "") or f"see {log}")
    if not in_time:
        raise DeployError("start-slow", f"not everything is up after {START_TIMEOUT:g} s", "see `holdfast status`")
    _say(_what_next(stack, "`holdfast down` stops it."))
    return 0


def _what_next(stack: Stack, stopping: str) -> str:
    lines = [f"Up. The API is at {stack.settings.api.url}. {stopping}", "Try next:"]
    lines += ["  holdfast status", "  holdfast doctor"]
    lines += ["  holdfast source add NAME --kind mariadb --host HOST --port 3306 …    (holdfast source add --help)"]
    return "\n".join(lines)


def _processes_as(stack: Stack) -> str:
    if process_user(stack.user) is not None:
        return ", and so does Holdfast itself"
    return f"; Holdfast's own processes stay root, since {stack.user.name} cannot reach {sys.executable}"


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1] if lines else "the supervisor ended and said nothing"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _say(text: str) -> None:
    print(text, flush=True)
