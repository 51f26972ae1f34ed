"""`holdfast job …`: what agents were asked to do, and saved jobs: policies without a schedule, which run when they are asked to
(ADR 0030). A job is named by its id, a saved one by its name, which begins with a letter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from api.cli.asking import Ask, asks, confirm, pages, saved_names
from api.cli.connection import segment
from api.cli.errors import REFUSED, CliError, say_problems
from api.cli.policy import CLEARED, KINDS, described, merged, says_what, selected, set_anew, split, started, tried
from api.cli.runs import came_to, cancel_open, follow, newest, run_now, shown, told
from api.cli.times import ago, local

SAVED = click.argument("name", shell_complete=saved_names)
JOB = click.argument("job", shell_complete=saved_names)


def _is_saved(job: str) -> bool:
    return job[:1].isalpha()


@click.command("create")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), default="backup", show_default=True, help="What it does.")
@says_what
@asks
def create(ask: Ask, name: str, kind: str, **given: Any) -> None:
    """Save a job under a name: what is done, to what, where to. It runs when it is asked to.

    \b
    holdfast job create before-upgrade --to vault --name 'web-*' --mode full --together
    holdfast job create home --kind files --path home=/home --to vault
    holdfast job run before-upgrade

    Which machines are selected is looked up each time it runs. `holdfast policy set NAME -s RULE` gives it a schedule.
    """
    note, dry_run = split(given)
    document = merged({**started(kind), "schedule": []}, given)
    if dry_run:
        tried(ask, document)
        return
    made = ask.api.post("/v1/policies", {"name": name, "document": document, "note": note})

    def human() -> None:
        click.echo(f"{name} is saved. Run it:  holdfast job run {name}")

    ask.out(made, human)


@click.command("set")
@SAVED
@says_what
@click.option(
    "--clear", multiple=True, type=click.Choice([c for c in CLEARED if c not in ("schedule", "windows", "blackouts")]),
    help="Have it say nothing of this any more.",
)  # fmt: skip
@asks
def change(ask: Ask, name: str, clear: tuple[str, ...], **given: Any) -> None:
    """Change what a saved job says; what is not given stays. A list that is given takes the place of the whole list."""
    set_anew(ask, name, clear, given)


@click.command("remove")
@SAVED
@click.option("--yes", is_flag=True, help="Do not ask.")
@asks
def remove(ask: Ask, name: str, yes: bool) -> None:
    """Remove a saved job. Its points stay; what is at work ends as it would have."""
    found = ask.api.get(f"/v1/policies/{segment(name)}")
    if found["document"].get("schedule"):
        raise CliError(
            "job-scheduled",
            f"{name} has a schedule: it is a policy",
            f"holdfast policy remove {name}",
            exit_code=REFUSED,
        )
    confirm(ask, name, f"{name} will not be there to be run", yes)
    ask.api.delete(f"/v1/policies/{segment(name)}")
    ask.out({"removed": name}, lambda: click.echo(f"{name} is removed; its points stay."))


@click.command("run")
@SAVED
@click.option("--no-wait", is_flag=True, help="Do not wait until it has ended.")
@click.option("--dry-run", is_flag=True, help="Only show what it would do now.")
@asks
def run(ask: Ask, name: str, no_wait: bool, dry_run: bool) -> None:
    """Run a saved job, or a policy, now. Exits 4 when not all of it was done."""
    if not dry_run:
        run_now(ask, name, "job", no_wait)
        return
    document = ask.api.get(f"/v1/policies/{segment(name)}")["document"]
    assets = ask.api.get(f"/v1/policies/{segment(name)}/next", count=1)["assets"]

    def human() -> None:
        to = f" to {document['repository']}" if "repository" in document else ""
        mode = document.get("mode") or "incremental" if document["kind"] == "backup.run" else ""
        click.echo(f"{document['kind']}{to}{f', {mode}' if mode else ''}.")
        selected(assets, document)

    ask.out({"document": document, "assets": assets}, human)


@click.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--open", "open_only", is_flag=True, help="Only those that are not finished.")
@click.option("--asset", "--source", "asset", help="Of this source, repository/NAME, asset/NAME …")
@click.option("--kind", help="Of this kind (repository.verify), or all that begin so (repository).")
@click.option("--state", help="In this state: requested, started, failed …")
@click.option("--by", help="Asked for by them, or done by this agent.")
@click.option("--saved", is_flag=True, help="The jobs that `job create` saved, rather than those that were asked for.")
@asks
def list_all(
    ask: Ask,
    limit: int,
    open_only: bool,
    asset: str | None,
    kind: str | None,
    state: str | None,
    by: str | None,
    saved: bool,
) -> None:
    """Jobs, newest first."""
    if saved:
        _list_saved(ask)
        return
    found, following, _ = pages(ask, "/v1/jobs", limit, open=open_only, asset=asset, kind=kind, state=state, by=by)

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo("No job.")
            return
        table(
            ["JOB", "KIND", "OF", "STATE", "SINCE", "BY", ("MESSAGE", "rest")],
            [
                (
                    j["job"],
                    j["kind"],
                    j["asset"],
                    _state(j),
                    ago(j["since"]),
                    j["requester"],
                    j["problems"][0]["message"] if j["problems"] else j["message"],
                )
                for j in found
            ],
        )

    ask.out({"jobs": found, "next": following}, human)


def _list_saved(ask: Ask) -> None:
    found = [p for p in ask.api.get("/v1/policies")["items"] if not p["document"].get("schedule")]

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo("No job is saved:  holdfast job create NAME --to REPOSITORY --name 'web-*'")
            return
        table(
            ["JOB", "DOES", "TO", "LAST RUN", ("CAME TO", "rest")],
            [
                (
                    p["name"],
                    p["document"]["kind"],
                    p["document"].get("repository", ""),
                    ago(p["last"]["fired"]) if p["last"] else "–",
                    came_to(p["last"]) if p["last"] else "",
                )
                for p in found
            ],
        )

    ask.out({"saved": found}, human)


def _state(found: Mapping[str, Any]) -> str:
    return f"{found['state']}, to end" if found["cancel"] and not found["final"] else str(found["state"])


def _human(found: dict[str, Any]) -> None:
    from api.cli.tables import pairs

    amount = f"{found['done']:,} of {found['total']:,} {found['unit']}" if found["total"] else ""
    cancel, again = found["cancel"], found["claims"] > 1
    pairs(
        [
            ("job", found["job"]),
            ("kind", f"{found['kind']} of {found['asset']}"),
            ("state", f"{found['state']} since {local(found['since'])} ({ago(found['since'])})"),
            ("asked for by", f"{found['requester']} {local(found['requested'])}" if found["requested"] else ""),
            ("with", json.dumps(found["parameters"], ensure_ascii=False) if found.get("parameters") else ""),
            ("priority", str(found["priority"]) if found["priority"] else ""),
            ("only by", found["node"]),
            ("not later than", local(found["deadline"]) if found["deadline"] else ""),
            ("begun", local(found["started"]) if found["started"] else ""),
            ("ended", local(found["finished"]) if found["finished"] else ""),
            ("done by", (found["holder"] or found["by"]) + (f", taken up {found['claims']} times" if again else "")),
            ("to end, says", f"{cancel['by']} {local(cancel['at'])}" if cancel else ""),
            ("message", found["message"]),
            ("amount", amount),
            ("result", json.dumps(found["result"]) if found["result"] else ""),
        ]
    )
    if found["problems"]:
        say_problems(found["problems"])


@click.command("show")
@JOB
@asks
def show(ask: Ask, job: str) -> None:
    """One job; or, by its name, a saved one and the jobs of its last run."""
    if _is_saved(job):
        _show_saved(ask, job)
        return
    found = ask.api.get(f"/v1/jobs/{segment(job)}")
    ask.out(found, lambda: _human(found))


def _show_saved(ask: Ask, name: str) -> None:
    found = ask.api.get(f"/v1/policies/{segment(name)}")
    last = shown(ask, found["last"]["run"]) if found["last"] else None

    def human() -> None:
        from api.cli.tables import table

        described(found)
        tasks = [(t["asset"], j) for t in (last or {"tasks": []})["tasks"] for j in t["jobs"][-1:]]
        if tasks:
            click.echo()
            table(
                ["OF", "JOB", "STATE", ("MESSAGE", "rest")],
                [(asset, j["job"], j["state"], j["message"]) for asset, j in tasks],
            )

    ask.out({**found, "run": last}, human)


def _last_run(ask: Ask, name: str) -> str:
    found = newest(ask, name)
    if found is None:
        raise CliError("run-unknown", f"{name} has not run yet", f"holdfast job run {name}", exit_code=REFUSED)
    return found


def _cancel_run(ask: Ask, name: str, no_wait: bool) -> None:
    number = _last_run(ask, name)
    found = shown(ask, number)
    if found is None or found["state"] != "going":
        raise CliError("job-ended", f"no run of {name} goes on", f"holdfast job show {name}", exit_code=REFUSED)
    if no_wait:
        jobs = cancel_open(ask, found)
        ask.out({"run": number, "jobs": jobs}, lambda: click.echo(f"asked for: holdfast job watch {name}"))
        return
    ask.say("It ends between two pieces of its work …")
    made = follow(ask, number, name, cancel=True)
    ask.out(made, lambda: click.echo(f"{name}: {came_to(made['made'])}."))


@click.command("watch")
@JOB
@asks
def watch(ask: Ask, job: str) -> None:
    """A job until it ends; of a saved one its last run. Exits as the job did, 4 when not all of a run was done."""
    if _is_saved(job):
        told(ask, job, follow(ask, _last_run(ask, job), job))
        return
    if ask.as_json:
        for _, data in ask.api.events(f"/v1/jobs/{segment(job)}/events", lambda _, data: data["final"]):
            click.echo(json.dumps(data, ensure_ascii=False))
        return
    found = ask.api.get(f"/v1/jobs/{segment(job)}")
    done = ask.wait(job, f"{found['kind']} of {found['asset']}")
    _human(done)


@click.command("cancel")
@JOB
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it has ended.")
@asks
def cancel(ask: Ask, job: str, no_wait: bool) -> None:
    """End a job: at once where it waits, between two pieces of its work where it is under way. Of a saved one the jobs of the run
    that goes on.

    What it left is put right as after a failure. One that nobody holds any more, because its agent is away, ends when it
    is cancelled a second time: then what it left stays as it is until its agent is back.
    """
    if _is_saved(job):
        _cancel_run(ask, job, no_wait)
        return
    ask.api.post(f"/v1/jobs/{segment(job)}/cancel")
    found = ask.api.get(f"/v1/jobs/{segment(job)}")
    if not no_wait and not found["final"]:
        ask.say("It ends between two pieces of its work …")
        for _, _ in ask.api.events(f"/v1/jobs/{segment(job)}/events", lambda _, data: data["final"]):
            continue
        found = ask.api.get(f"/v1/jobs/{segment(job)}")

    def human() -> None:
        if found["final"] and found["state"] != "cancelled":
            click.echo(
                f"It {'had ' if found['state'] == 'finished' else ''}{found['state']} before it could be stopped."
            )
        _human(found)

    ask.out(found, human)


@click.command("prioritise")
@click.argument("job")
@click.argument("priority", type=click.IntRange(-100, 100))
@asks
def prioritise(ask: Ask, job: str, priority: int) -> None:
    """Have a job that waits done sooner (more than 0) or later (less).

    Of what waits, an agent takes the highest priority first. The commands of one asset stay in their order.
    """
    answer = ask.api.post(f"/v1/jobs/{segment(job)}/priority", {"priority": priority})
    ask.out(answer, lambda: click.echo(f"Job {job} has priority {priority}."))


COMMANDS = (create, run, list_all, show, change, remove, watch, cancel, prioritise)
