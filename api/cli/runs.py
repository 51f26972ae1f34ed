"""Runs of policies and saved jobs on the command line: asked for, followed to their end, told."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import click

from api.cli.asking import Ask
from api.cli.connection import segment
from api.cli.errors import FAILED, UNWELL, CliError

_LOOK_S = 0.5
_PATIENCE_S = 10.0
FINAL = ("finished", "failed", "cancelled")


def came_to(run: Mapping[str, Any]) -> str:
    """`3 done, 1 failed`."""
    if run["ended"] is None:
        return f"{len(run['assets'])} at work"
    counts = [f"{run['figures'][n]} {n}" for n in ("done", "failed", "cancelled", "closed") if run["figures"].get(n)]
    counts += [f"{len(run['left_out'])} left out"] if run["left_out"] else []
    return ", ".join(counts)


def run_now(ask: Ask, name: str, noun: str, no_wait: bool) -> None:
    """Ask for a run and follow it. Exits 4 when not all of it was done; raises `CliError` (`run-skipped`)."""
    number = str(ask.api.post(f"/v1/policies/{segment(name)}/run")["run"])
    again = f"holdfast job watch {name}" if noun == "job" else f"holdfast policy status {name}"
    if no_wait:
        ask.out({"run": number}, lambda: click.echo(f"asked for: {again}"))
        return
    told(ask, name, follow(ask, number, name))


def told(ask: Ask, name: str, found: Mapping[str, Any]) -> None:
    """What a run that is over came to, by the exit code too."""
    made = found["made"]
    if made is None:
        raise CliError(
            "run-skipped", f"nothing was done: {found['message']}", f"holdfast policy next {name}", exit_code=FAILED
        )

    def human() -> None:
        click.echo(f"{name}: {came_to(made)}.")
        for task in found["tasks"]:
            last = task["jobs"][-1] if task["jobs"] else None
            if last is not None and last["state"] != "finished":
                why = f": {last['message']}" if last["message"] else ""
                click.echo(f"  {task['asset']} {last['state']}{why}\n    holdfast job show {last['job']}")

    ask.out(found, human)
    if made["figures"].get("done", 0) < len(made["assets"]) or made["left_out"]:
        sys.exit(UNWELL)


def newest(ask: Ask, name: str) -> str | None:
    """The run of a policy that was made last, going on or not."""
    said = ask.api.get(f"/v1/policies/{segment(name)}/runs", limit=20)["items"]
    return next((str(s["run"]["run"]) for s in said if s["run"] is not None), None)


def shown(ask: Ask, number: str) -> dict[str, Any] | None:
    """A run with its jobs; None while it has not come to the read models."""
    try:
        found: dict[str, Any] = ask.api.get(f"/v1/runs/{segment(number)}")
    except CliError as error:
        if error.code != "run-unknown":
            raise
        return None
    return found


def follow(ask: Ask, number: str, name: str, *, cancel: bool = False) -> dict[str, Any]:
    """A run once it is over, with a bar where there is a terminal. `cancel`: its jobs are told to end, as they come."""
    from api.cli.progress import Bar

    bar = Bar(name, shown=not ask.as_json and sys.stderr.isatty())
    since, told_to_wait, cancelled = time.monotonic(), False, set[str]()
    try:
        with bar:
            while True:
                found = shown(ask, number)
                if found is not None and found["state"] in ("ended", "skipped"):
                    return found
                if found is not None and found["state"] == "going":
                    bar.show(_so_far(found))
                    if cancel:
                        cancelled.update(cancel_open(ask, found, cancelled))
                elif not told_to_wait and time.monotonic() - since > _PATIENCE_S:
                    told_to_wait = True
                    ask.say("No agent has taken it up yet: `holdfast status` shows whether one runs.")
                time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        ask.say(f"\nInterrupted. The run goes on: holdfast job watch {name}")
        raise


def _so_far(found: Mapping[str, Any]) -> dict[str, Any]:
    """As a bar shows it: of one job its own progress, of several how many are over."""
    jobs = {task["jobs"][-1]["job"]: task["jobs"][-1] for task in found["tasks"] if task["jobs"]}
    working = [job for job in jobs.values() if job["state"] not in FINAL]
    if len(jobs) == 1 and working:
        return {**working[0], "state": "progressed"}
    message = next((job["message"] for job in working if job["message"]), "")
    total = len(found["made"]["assets"])
    done = sum(1 for task in found["tasks"] if task["jobs"] and task["jobs"][-1]["state"] in FINAL)
    return {"state": "progressed", "message": message, "done": done, "total": total}


def cancel_open(ask: Ask, found: Mapping[str, Any], known: Collection[str] = ()) -> list[str]:
    """Ask that the jobs of a run end that have not, but for those that are `known`; which those were."""
    last = dict.fromkeys(
        t["jobs"][-1]["job"] for t in found["tasks"] if t["jobs"] and t["jobs"][-1]["state"] not in FINAL
    )
    told = [job for job in last if job not in known]
    for job in told:
        try:
            ask.api.post(f"/v1/jobs/{segment(job)}/cancel")
        except CliError as error:
            if error.code != "job-ended":
                raise
    return told
