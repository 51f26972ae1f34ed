"""`holdfast node …`"""

from __future__ import annotations

import sys
from typing import Any

import click

from api.cli.asking import Ask, asks, node_names
from api.cli.connection import segment
from api.cli.errors import UNWELL
from api.cli.times import ago, local


@click.command("list")
@asks
def list_all(ask: Ask) -> None:
    """The agents of the site: alive (heard of within its lease), silent, or stopped. Exits 4 when one is silent."""
    found = ask.api.get("/v1/nodes")["items"]

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo("No agent was ever started:  holdfast up")
            return
        table(
            ["NODE", "IS", "HEARD", "SINCE", "MACHINE", "VERSION", ("AT WORK", "right"), ("WAITING", "right")],
            [
                (
                    n["node"],
                    n["state"],
                    ago(n["heard"]),
                    local(n["since"]),
                    n["machine"],
                    n["version"],
                    f"{n['running']:,}",
                    f"{n['waiting']:,}",
                )
                for n in found
            ],
        )

    ask.out({"nodes": found}, human)
    if any(n["state"] == "silent" for n in found):
        sys.exit(UNWELL)


@click.command("show")
@click.argument("node", shell_complete=node_names)
@asks
def show(ask: Ask, node: str) -> None:
    """One agent: whether it is alive, what it has, what it is at."""
    found = ask.api.get(f"/v1/nodes/{segment(node)}")
    ask.out(found, lambda: _human(found))


def _human(found: dict[str, Any]) -> None:
    from api.cli.tables import pairs, table

    began = "stopped" if found["state"] == "stopped" else "started"
    times = f", {found['starts']} times since {local(found['first'])}" if found["first"] else ""
    pairs(
        [
            ("node", f"{found['node']} ({', '.join(found['names'])})"),
            ("is", f"{found['state']}, heard {ago(found['heard'])}; taken for dead after {found['lease_s']} s"),
            (began, f"{local(found['since'])}{times}" if found["since"] else ""),
            ("machine", found["machine"]),
            ("version", found["version"]),
            ("repositories", ", ".join(found["repositories"])),
            ("sources", ", ".join(found["sources"])),
            ("jobs", f"{found['running']:,} at work, {found['waiting']:,} waiting"),
        ]
    )
    if found["jobs"]:
        click.echo()
        table(
            ["JOB", "KIND", "OF", "STATE", "SINCE", ("MESSAGE", "rest")],
            [(j["job"], j["kind"], j["asset"], j["state"], ago(j["since"]), j["message"]) for j in found["jobs"]],
        )


COMMANDS = (list_all, show)
