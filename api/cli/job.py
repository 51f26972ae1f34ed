"""`holdfast job …`"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from api.cli.asking import Ask, asks, pages
from api.cli.connection import segment
from api.cli.errors import say_problems
from api.cli.times import ago, local


@click.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--open", "open_only", is_flag=True, help="Only those that are not finished.")
@click.option("--asset", "--source", "asset", help="Of this source, repository/NAME, asset/NAME …")
@click.option("--kind", help="Of this kind (repository.verify), or all that begin so (repository).")
@click.option("--state", help="In this state: requested, started, failed …")
@click.option("--by", help="Asked for by them, or done by this agent.")
@asks
def list_all(
    ask: Ask, limit: int, open_only: bool, asset: str | None, kind: str | None, state: str | None, by: str | None
) -> None:
    """Jobs, newest first."""
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
@click.argument("job")
@asks
def show(ask: Ask, job: str) -> None:
    """One job."""
    found = ask.api.get(f"/v1/jobs/{segment(job)}")
    ask.out(found, lambda: _human(found))


@click.command("watch")
@click.argument("job")
@asks
def watch(ask: Ask, job: str) -> None:
    """A job until it ends. Exits as the job did."""
    if ask.as_json:
        for _, data in ask.api.events(f"/v1/jobs/{segment(job)}/events", lambda _, data: data["final"]):
            click.echo(json.dumps(data, ensure_ascii=False))
        return
    found = ask.api.get(f"/v1/jobs/{segment(job)}")
    done = ask.wait(job, f"{found['kind']} of {found['asset']}")
    _human(done)


@click.command("cancel")
@click.argument("job")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it has ended.")
@asks
def cancel(ask: Ask, job: str, no_wait: bool) -> None:
    """End a job: at once where it waits, between two pieces of its work where it is under way.

    What it left is put right as after a failure. One that nobody holds any more, because its agent is away, ends when it
    is cancelled a second time: then what it left stays as it is until its agent is back.
    """
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


COMMANDS = (list_all, show, watch, cancel, prioritise)
