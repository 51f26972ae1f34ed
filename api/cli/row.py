"""`holdfast row …`"""

from __future__ import annotations

import csv
import io
from typing import Any

import click

from api.cli.asking import SOURCE, Ask, asks, pages
from api.cli.connection import segment
from api.cli.errors import say_problems
from api.cli.times import ago, local


@click.command("history")
@SOURCE
@click.argument("table", metavar="SCHEMA.TABLE")
@click.argument("key", nargs=-1, required=True)
@click.option("--limit", "-n", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Versions to show.")
@click.option("--before", type=click.IntRange(1), metavar="ORDINAL", help="Only versions older than this step.")
@click.option("--lineage", help="Another lineage than the newest.")
@asks
def history(
    ask: Ask, source: str, table: str, key: tuple[str, ...], limit: int, before: int | None, lineage: str | None
) -> None:
    """Every version of a row, newest first: KEY is the value of its key, or one value for each of its columns."""
    schema, _, name = table.partition(".")
    if not name:
        raise click.BadParameter("say SCHEMA.TABLE", param_hint="TABLE")
    path = f"/v1/sources/{segment(source)}/rows/{segment(schema)}/{segment(name)}/history"
    text = key[0]
    if len(key) > 1:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(key)
        text = line.getvalue()
    items, following, first = pages(ask, path, limit, key=text, before=before, lineage=lineage)

    def human() -> None:
        from api.cli.tables import change, clean

        if not items:
            click.echo(f"No version of {table} {text} is in the log of {source}.")
        for version in items:
            what = {"rollback": " by a rollback", "undo": " by a selective undo"}.get(version["kind"], "")
            left = "" if version["stands"] or version["kind"] == "rollback" else ", does not stand any more"
            when = f"{local(version['time'])} ({ago(version['time'])})"
            click.echo(f"step {version['ordinal']:,}  {when}  {version['position']}{what}{left}")
            for line in change({"schema": schema, "table": name, **version}, first["columns"]):
                click.echo("    " + clean(line.strip()))
            for word, other in (("to", version["moved_to"]), ("from", version["moved_from"])):
                if other is not None:
                    click.echo(clean(f"    its key changed {word} {', '.join(map(str, other))}"))
        if following is not None:
            values = " ".join(key)
            click.echo(f"\nolder:  holdfast row history {source} {table} {values} --before {following}")
        say_problems(first["notes"], "!")

    value: dict[str, Any] = {
        k: first[k] for k in ("source", "lineage", "head", "schema", "table", "key_columns", "key")
    }
    ask.out(value | {"columns": first["columns"], "versions": items, "notes": first["notes"], "next": following}, human)


COMMANDS = (history,)
