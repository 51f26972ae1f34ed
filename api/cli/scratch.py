"""`holdfast scratch …`"""

from __future__ import annotations

import re
from typing import Any

import click

from api.cli.asking import Ask, asks, source_names
from api.cli.connection import segment
from api.cli.times import MOMENT, ago, local

NAME = click.argument("name")
_GTID = re.compile(r"\d+-\d+-\d+(,\d+-\d+-\d+)*")
_SPAN = re.compile(r"(\d{1,9})(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class At(click.ParamType):
    """A step, a time or a GTID: which of them shows by how it is written."""

    name = "step|time|gtid"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if value.isdigit() and len(value) < 19:
            return {"to_step": int(value)}
        if value == "baseline":
            return {"to_step": 0}
        if _GTID.fullmatch(value):
            return {"to_position": value}
        return {"to_time": MOMENT.convert(value, param, ctx)}


class Span(click.ParamType):
    """`2h` to seconds."""

    name = "time span"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _SPAN.fullmatch(value.strip())
        if found is None or not int(found[1]):
            self.fail(f"{value!r} is no time span; say 30m, 2h or 3d", param, ctx)
        return int(found[1]) * _SECONDS[found[2]]


AT = At()


@click.command("create")
@NAME
@click.option("--source", required=True, shell_complete=source_names, help="What is copied.")
@click.option("--at", type=AT, required=True, help="A step (1234), a time (12:00, 10m), a GTID (0-1-100), or baseline.")
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="SCHEMA.TABLE",
    help="Only this table, and those that its foreign keys point at; may be given more than once.",
)
@click.option("--expires", type=Span(), help="Remove it after so long: 30m, 2h, 3d. Without this it stays.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is there.")
@asks
def create(
    ask: Ask,
    name: str,
    source: str,
    at: dict[str, Any],
    tables: tuple[str, ...],
    expires: int | None,
    no_wait: bool,
) -> None:
    """Make a copy of a source as it was right after a step, on a server of its own beside the agent.

    Steps count as in the log: also states that were rolled back since can be had.
    """
    body = {"name": name, "source": source, **at, **({"expires_s": expires} if expires else {})}
    if tables:
        body["tables"] = list(tables)
    accepted = ask.api.post("/v1/scratch", body)
    if no_wait:
        ask.out(accepted, lambda: click.echo(f"asked for: holdfast job watch {accepted['job']}"))
        return
    done = ask.wait(accepted["job"], f"copying {source} at {accepted['at']['text']}")
    found = _get(ask, name)
    ask.out({"job": done, "scratch": found}, lambda: _show(found))


def _get(ask: Ask, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask.api.get(f"/v1/scratch/{segment(name)}")
    return found


def _show(found: dict[str, Any]) -> None:
    from api.cli.errors import say_problems
    from api.cli.tables import pairs, size

    ready = found["state"] == "ready"
    pairs(
        [
            ("name", found["name"]),
            ("state", f"{found['state']} since {local(found['since'])} ({ago(found['since'])}, {found['by']})"),
            ("source", found["source"]),
            ("holds", f"step {found['ordinal']:,}" if found["ordinal"] else "the baseline"),
            ("tables", ", ".join(found["tables"])),
            ("position", found["position"]),
            ("size", size(found["bytes"]) if found["bytes"] else ""),
            ("expires", local(found["expires"]) if found["expires"] else "never"),
            ("address", f"{found['host']}:{found['port']} on the agent's machine" if ready else ""),
            ("socket", found["socket"] if ready else ""),
            ("account", f"{found['account']}, its password is in {found['password_file']}" if ready else ""),
        ]
    )
    if ready:
        # In the environment, for arguments are everybody's to see.
        password = f'MYSQL_PWD="$(cat {found["password_file"]})"'
        click.echo(f"\nConnect:  {password} mariadb --socket={found['socket']} --user={found['account']}")
    if found["problems"]:
        say_problems(found["problems"])


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that ended or failed.")
@asks
def list_all(ask: Ask, everything: bool) -> None:
    """Scratch copies, by name."""
    found = ask.api.get("/v1/scratch", all=everything)["items"]

    def human() -> None:
        from api.cli.tables import size, table

        if not found:
            click.echo("There is no scratch copy:  holdfast scratch create NAME --source SOURCE --at STEP")
            return
        table(
            ["NAME", "SOURCE", ("STEP", "right"), "STATE", "SINCE", "EXPIRES", ("SIZE", "right"), "ADDRESS"],
            [
                (
                    s["name"],
                    s["source"],
                    f"{s['ordinal']:,}",
                    s["state"],
                    ago(s["since"]),
                    local(s["expires"]) if s["expires"] else "never",
                    size(s["bytes"]) if s["bytes"] else "",
                    f"{s['host']}:{s['port']}" if s["state"] == "ready" else "",
                )
                for s in found
            ],
        )

    ask.out({"scratch": found}, human)


@click.command("show")
@NAME
@asks
def show(ask: Ask, name: str) -> None:
    """One scratch copy: what it holds, how it is reached."""
    found = _get(ask, name)
    ask.out(found, lambda: _show(found))


@click.command("drop")
@NAME
@click.option("--no-wait", is_flag=True, help="Do not wait until it is gone.")
@asks
def drop(ask: Ask, name: str, no_wait: bool) -> None:
    """Remove a scratch copy. Whoever is connected to it is cut off."""
    job = ask.api.delete(f"/v1/scratch/{segment(name)}")["job"]
    if no_wait:
        ask.out({"job": job}, lambda: click.echo(f"asked for: holdfast job watch {job}"))
        return
    done = ask.wait(job, f"dropping {name}")
    ask.out({"job": done}, lambda: click.echo(f"{name} is gone"))


COMMANDS = (create, list_all, show, drop)
