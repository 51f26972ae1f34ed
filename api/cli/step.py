"""`holdfast step …`"""

from __future__ import annotations

import re
from typing import Any

import click

from api.cli.asking import Ask, asks, source_names
from api.cli.connection import segment
from api.cli.times import ago, local

_NAME = re.compile(r"([a-z][a-z0-9-]*)/([0-9a-f-]{36}):(\d{1,18})")


@click.command("show")
@click.argument("source", shell_complete=source_names)
@click.argument("ordinal", type=click.IntRange(1), required=False)
@click.option("--limit", "-n", type=click.IntRange(0, 100_000), default=20, show_default=True, help="Rows to show.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Rows to pass over.")
@click.option("--lineage", help="Another lineage than the newest.")
@asks
def show(ask: Ask, source: str, ordinal: int | None, limit: int, offset: int, lineage: str | None) -> None:
    """One step with its rows before and after: SOURCE ORDINAL, or its full name SOURCE/LINEAGE:ORDINAL."""
    if ordinal is None:
        named = _NAME.fullmatch(source)
        if named is None:
            raise click.BadParameter("say SOURCE ORDINAL, or SOURCE/LINEAGE:ORDINAL", param_hint="SOURCE")
        source, lineage, ordinal = named[1], named[2], int(named[3])
    found = _read(ask, source, ordinal, limit, offset, lineage)
    ask.out(found, lambda: _human(source, found))


def _read(ask: Ask, source: str, ordinal: int, limit: int, offset: int, lineage: str | None) -> dict[str, Any]:
    """As many rows as were asked for, however many calls that takes."""
    path = f"/v1/sources/{segment(source)}/steps/{ordinal}"
    found: dict[str, Any] = ask.api.get(path, limit=min(limit, 1000), offset=offset, lineage=lineage)
    while found["next"] is not None and len(found["changes"]) < limit:
        left = limit - len(found["changes"])
        more = ask.api.get(path, limit=min(left, 1000), offset=found["next"], lineage=lineage)
        known = {(t["schema"], t["table"]) for t in found["columns"]}
        found["columns"] += [t for t in more["columns"] if (t["schema"], t["table"]) not in known]
        found["changes"] += more["changes"]
        found["next"] = more["next"]
    return found


def _human(source: str, found: dict[str, Any]) -> None:
    from api.cli.tables import change, clean, counts, pairs, size

    stands = "stands" if found["stands"] else "is the rollback itself" if found["plan"] else "was rolled back"
    pairs(
        [
            ("step", found["id"]),
            ("committed", f"{local(found['time'])} ({ago(found['time'])})"),
            ("captured", local(found["captured"])),
            ("position", found["position"]),
            ("kind", found["kind"] + (" (Holdfast's own)" if found["own"] else "")),
            ("tables", counts(found["tables"])),
            ("size", size(found["bytes"])),
            ("its effects", stands),
            ("plan", found["plan"] or ""),
            ("text", found["text"]),
        ]
    )
    columns = {(t["schema"], t["table"]): t["columns"] for t in found["columns"]}
    if found["changes"]:
        click.echo()
    for c in found["changes"]:
        for line in change(c, columns.get((c["schema"], c["table"]), ())):
            click.echo(clean(line) if not line.startswith(" ") else "    " + clean(line.strip()))
    shown = found["offset"] + len(found["changes"])
    if found["next"] is not None:
        more = f"holdfast step show {source} {found['ordinal']} --offset {found['next']}"
        click.echo(f"\n{shown} of {found['rows']:,} rows; more:  {more}")


COMMANDS = (show,)
