"""`holdfast timeline …`"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from api.cli.asking import SOURCE, Ask, asks, pages
from api.cli.connection import segment
from api.cli.times import MOMENT, ago, local

TABLE = click.option("--table", metavar="SCHEMA.TABLE", help="Only steps that touched this table.")


@click.command("show")
@SOURCE
@click.option("--limit", "-n", type=click.IntRange(1, 100_000), default=20, show_default=True)
@click.option("--before", type=click.IntRange(1), metavar="ORDINAL", help="Only steps older than this one.")
@TABLE
@click.option("--since", type=MOMENT, help="Not before: 2026-01-31 12:00, 12:00, or 10m, 2h, 3d ago.")
@click.option("--until", type=MOMENT, help="Not after.")
@click.option("--lineage", help="Another lineage than the newest.")
@asks
def show(ask: Ask, source: str, limit: int, **query: Any) -> None:
    """Steps, newest first, with what they touched and whether their effects stand.

    \b
    ●  stands        ○  rolled back, still reachable        ↶ ↷  a rollback, a way forward
    """
    path = f"/v1/sources/{segment(source)}"
    steps, following, first = pages(ask, f"{path}/steps", limit, **query)
    value = {k: first[k] for k in ("source", "lineage", "head", "path")} | {"steps": steps, "next": following}

    def human() -> None:
        if not steps:
            _nothing(ask, source, first, query)
            return
        turns = {t["ordinal"]: t for t in ask.api.get(f"{path}/branches", lineage=query["lineage"])["turns"]}
        _table(steps, turns)
        undone = sum(1 for s in steps if not s["stands"] and s["kind"] != "rollback")
        about = f"lineage {first['lineage']}, newest step {first['head']:,}"
        click.echo(about + (f"; {undone} of these steps are rolled back" if undone else ""))
        if following is not None:
            click.echo(f"older:  holdfast timeline show {source} --before {following}{_again(query)}")

    ask.out(value, human)


def _again(query: Mapping[str, Any]) -> str:
    return "".join(f" --{k} {v}" for k, v in query.items() if v is not None and k != "before")


def _nothing(ask: Ask, source: str, first: Mapping[str, Any], query: Mapping[str, Any]) -> None:
    if first["lineage"] is None:
        click.echo(f"Nothing of {source} was captured yet.")
    elif any(v is not None for v in query.values()):
        click.echo(f"No such step. The newest step of {source} is {first['head']:,}.")
    else:
        click.echo(f"{source} is captured since lineage {first['lineage']}; nothing was written since.")


def _table(steps: Sequence[Mapping[str, Any]], turns: Mapping[int, Mapping[str, Any]]) -> None:
    from api.cli.tables import counts, size, table

    marks = picture(steps, turns)
    table(
        ["", ("STEP", "right"), "COMMITTED", ("", "dim"), ("WHAT", "rest"), "POSITION", ("SIZE", "right")],
        [
            (
                mark,
                str(s["ordinal"]),
                local(s["time"]),
                ago(s["time"]),
                what(s, turns.get(s["ordinal"]), counts(s["tables"])),
                s["position"],
                size(s["bytes"]),
            )
            for mark, s in zip(marks, steps, strict=True)
        ],
    )


def what(step: Mapping[str, Any], turn: Mapping[str, Any] | None, counted: str) -> str:
    """What a step did, in a few words."""
    kind = step["kind"]
    if kind == "rollback":
        verb = "forward" if turn is not None and turn["kind"] == "forward" else "rollback"
        return f"{verb} {step['plan']}"
    if kind == "undo":
        return f"selective undo {step['plan']}; {counted}"
    if kind == "rows":
        return counted + (" (Holdfast's own)" if step["own"] else "")
    text = f"{kind}: {step['text']}" if step["text"] and kind != "account" else step["text"] or kind
    return text + (f"; {counted}" if counted else "")


def picture(steps: Sequence[Mapping[str, Any]], turns: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """A mark for each of `steps` (newest first): where the timeline turned, and what was left behind.

    10  ●
     8  ↶─╮     rolled back here
     7  │ ○
     6  │ ○
     5  ●─╯
    """
    out: list[str] = []
    for i, step in enumerate(steps):
        newer = steps[i - 1] if i else None
        older = steps[i + 1] if i + 1 < len(steps) else None
        joins = newer is not None and _left(newer) and newer["ordinal"] == step["ordinal"] + 1
        opens = older is not None and _left(older) and older["ordinal"] == step["ordinal"] - 1
        if step["kind"] == "rollback":
            turn = turns.get(step["ordinal"])
            sign = "↷" if turn is not None and turn["kind"] == "forward" else "↶"
            out.append(f"{sign}─┤" if joins and opens else f"{sign}─╯" if joins else f"{sign}─╮" if opens else sign)
        elif step["stands"]:
            out.append("●─┤" if joins and opens else "●─╯" if joins else "●─╮" if opens else "●")
        else:
            out.append("│ ○")
    return out


def _left(step: Mapping[str, Any]) -> bool:
    """Whether a step is on a branch that was left."""
    return not step["stands"] and step["kind"] != "rollback"


@click.command("watch")
@SOURCE
@TABLE
@click.option(
    "--after", type=click.IntRange(0), metavar="ORDINAL", help="Begin after this step, not with the next one."
)
@click.option("--limit", "-n", type=click.IntRange(1), help="End after so many steps.")
@asks
def watch(ask: Ask, source: str, table: str | None, after: int | None, limit: int | None) -> None:
    """Steps as they are captured, until interrupted."""
    from api.cli.tables import clean, counts

    ask.say(f"watching {source}; Ctrl-C ends it")
    seen = 0
    for event, data in ask.api.events(f"/v1/sources/{segment(source)}/steps/stream", table=table, after=after):
        if ask.as_json:
            click.echo(json.dumps({"event": event, **data}, ensure_ascii=False))
        elif event == "lineage":
            click.echo(f"–– lineage {data['lineage']} ––")
        else:
            mark = "↶" if data["kind"] == "rollback" else "●"
            text = what(data, None, counts(data["tables"]))
            click.echo(f"{mark} {data['ordinal']:>8}  {local(data['time'])}  {clean(text)}  {data['position']}")
        seen += event == "step"
        if limit is not None and seen >= limit:
            return


COMMANDS = (show, watch)
