"""`holdfast projections …`"""

from __future__ import annotations

import sys
from typing import Any

import click

from api.cli.asking import Ask, asks, confirm
from api.cli.connection import segment
from api.cli.errors import UNWELL, CliError


def _names(ask: Ask) -> list[str]:
    return [p["name"] for p in ask.api.get("/v1/projections")["items"]]


@click.command("list")
@asks
def list_all(ask: Ask) -> None:
    """Read models, and how many records of the log each has not applied yet."""
    found = ask.api.get("/v1/projections")["items"]

    def human() -> None:
        from api.cli.tables import table

        table(
            ["NAME", ("VERSION", "right"), "STATE", ("LAG", "right"), ("TABLES", "rest")],
            [(p["name"], str(p["version"]), p["state"], _lag(p), ", ".join(p["tables"])) for p in found],
        )

    ask.out({"projections": found}, human)


def _lag(projection: dict[str, Any]) -> str:
    return "?" if projection["lag"] is None else f"{projection['lag']:,}"


@click.command("digest")
@click.argument("names", nargs=-1)
@asks
def digest(ask: Ask, names: tuple[str, ...]) -> None:
    """What read models say, as one number each: equal at the same place of the log means equal rows. Default: all."""
    found: list[dict[str, Any]] = []
    for name in names or _names(ask):
        try:
            found.append(ask.api.get(f"/v1/projections/{segment(name)}/digest"))
        except CliError as error:
            if names or error.code not in ("view-absent", "view-dropped"):
                raise
            ask.say(f"{name}: {error.message}")

    def human() -> None:
        from api.cli.tables import table

        table(
            ["NAME", "DIGEST", ("ROWS", "right")],
            [(p["name"], p["digest"], f"{sum(t['rows'] for t in p['tables']):,}") for p in found],
        )

    ask.out({"projections": found}, human)


@click.command("rebuild")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option(
    "--drop-first", is_flag=True, help="Drop each before it is rebuilt: proves that nothing is taken from it."
)
@asks
def rebuild(ask: Ask, names: tuple[str, ...], everything: bool, drop_first: bool) -> None:
    """Build read models again from the log, each beside the live one, and compare the digests.

    Exits with 4 when one says something else than before.
    """
    if bool(names) == everything:
        raise click.UsageError("name the read models to rebuild, or say --all")
    found: list[dict[str, Any]] = []
    for name in names or _names(ask):
        found.append(_rebuild(ask, name, drop_first=drop_first))
        if not ask.as_json:
            _told(found[-1])
    ask.out({"projections": found}, lambda: None)
    if any(p["equal"] is False for p in found):
        sys.exit(UNWELL)


def _rebuild(ask: Ask, name: str, *, drop_first: bool) -> dict[str, Any]:
    path = f"/v1/projections/{segment(name)}"
    if drop_first:
        ask.api.delete(path)
    job = ask.api.post(f"{path}/rebuild")["job"]
    result = ask.wait(job, f"rebuilding {name}")["result"]
    return {"name": name, "job": job, **{k: result.get(k) for k in ("records", "before", "after", "equal", "why")}}


def _told(p: dict[str, Any]) -> None:
    same = {
        True: "equal to what it was",
        False: f"NOT what it was: {p['before']}",
        None: f"nothing to compare with: {p['why']}",
    }[p["equal"]]
    click.echo(f"{p['name']}: {p['records']:,} records, digest {p['after']}, {same}")


@click.command("drop")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@asks
def drop(ask: Ask, name: str, yes: bool) -> None:
    """Take a read model away. What it answers is away until it is rebuilt; the log keeps all of it."""
    confirm(ask, name, f"read model {name} will be dropped", yes)
    found = ask.api.delete(f"/v1/projections/{segment(name)}")
    ask.out(found, lambda: click.echo(f"{name} is dropped; build it again:  holdfast projections rebuild {name}"))


COMMANDS = (list_all, digest, rebuild, drop)
