"""`holdfast job …`"""

from __future__ import annotations

import json
from typing import Any

import click

from api.cli.asking import Ask, asks, pages
from api.cli.connection import segment
from api.cli.errors import say_problems
from api.cli.times import ago, local


@click.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--open", "open_only", is_flag=True, help="Only those that are not finished.")
@click.option("--source", "asset", help="Of this source.")
@asks
def list_all(ask: Ask, limit: int, open_only: bool, asset: str | None) -> None:
    """Jobs, newest first."""
    found, following, _ = pages(ask, "/v1/jobs", limit, open=open_only, asset=asset)

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
                    j["state"],
                    ago(j["since"]),
                    j["requester"],
                    j["problems"][0]["message"] if j["problems"] else j["message"],
                )
                for j in found
            ],
        )

    ask.out({"jobs": found, "next": following}, human)


def _human(found: dict[str, Any]) -> None:
    from api.cli.tables import pairs

    amount = f"{found['done']:,} of {found['total']:,} {found['unit']}" if found["total"] else ""
    pairs(
        [
            ("job", found["job"]),
            ("kind", f"{found['kind']} of {found['asset']}"),
            ("state", f"{found['state']} since {local(found['since'])} ({ago(found['since'])})"),
            ("asked for by", found["requester"]),
            ("done by", found["by"]),
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


COMMANDS = (list_all, show, watch)
