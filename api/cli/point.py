"""`holdfast point …`"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from api.cli.asking import Ask, asks, confirm, pages, repository_names
from api.cli.connection import segment
from api.cli.errors import UNWELL, CliError
from api.cli.repository import NO_WAIT, asked
from api.cli.times import DEADLINE, MOMENT, ago, local


def point_ids(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the newest points for the shell's completion; none when the site cannot be asked."""
    from api.cli.connection import Api, find

    try:
        found = Api(find()).get("/v1/points", limit=100)["items"]
    except CliError:
        return []
    return [p["point"] for p in found if p["point"].startswith(incomplete)]


POINT = click.argument("point", shell_complete=point_ids)


@click.command("list")
@click.option("--repository", shell_complete=repository_names, help="Only in this repository.")
@click.option("--asset", help="Only of this asset.")
@click.option("--all", "everything", is_flag=True, help="Also those that were dropped.")
@click.option("--as-of", type=MOMENT, help="The points that there were at that moment, marked as they were then.")
@click.option("--limit", "-n", type=click.IntRange(1, 100_000), default=100, show_default=True)
@asks
def list_all(ask: Ask, limit: int, everything: bool, **query: Any) -> None:
    """Points, newest first."""
    found, following, _ = pages(ask, "/v1/points", limit, all=everything, **query)

    def human() -> None:
        from api.cli.tables import size, table

        if not found:
            click.echo("There is no point:  holdfast backup files PATH --to REPOSITORY")
            return
        table(
            ["POINT", "ASSET", "KIND", "CREATED", ("", "dim"), ("SIZE", "right"), ("STORED", "right"), "MARKS", "IN"],
            [
                (
                    p["point"],
                    p["asset"],
                    p["kind"],
                    local(p["created"]),
                    ago(p["created"]),
                    size(p["size"]),
                    size(p["stored"]) if p["stored"] is not None else "–",
                    _marks(p),
                    p["repository"],
                )
                for p in found
            ],
        )
        if following is not None:
            click.echo(f"\nolder:  holdfast point list --limit {min(100_000, 2 * limit)}")

    ask.out({"points": found, "next": following}, human)


def _marks(point: Mapping[str, Any]) -> str:
    said = [name for name in ("starred", "held") if point[name]]
    if point["condition"]:
        said.append(point["condition"])
    if point["dropped"]:
        said.append("dropped")
    return ", ".join(said)


def _condition(point: Mapping[str, Any]) -> str:
    """The newest word on its content, whose it is, and what to do."""
    word = next((m for m in reversed(point["marks"]) if m["mark"] == point["condition"]), None)
    if word is None:
        return "not looked at by a full verify"
    said = f"{word['mark']} since {local(word['at'])} ({ago(word['at'])})"
    if word["mark"] == "verified":
        return said
    return f"{said}; `holdfast repository verify {point['repository']} --level full` says whether it is whole again"


def _get(ask: Ask, point: str, as_of: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = ask.api.get(f"/v1/points/{segment(point)}", as_of=as_of)
    return found


@click.command("show")
@POINT
@click.option("--as-of", type=MOMENT, help="Marked as it was at that moment.")
@asks
def show(ask: Ask, point: str, as_of: str | None) -> None:
    """One point: what it is of, how large, which marks it bears and since when."""
    found = _get(ask, point, as_of)

    def human() -> None:
        from api.cli.tables import pairs, size

        pairs(
            [
                ("point", found["point"]),
                ("asset", f"{found['asset']} ({found['kind']})"),
                ("repository", found["repository"]),
                ("created", f"{local(found['created'])} ({ago(found['created'])})"),
                ("sealed", f"{local(found['sealed'])} in session {found['session']} by {found['by']}"),
                ("size", f"{size(found['size'])}, of which {size(found['stored'])} were new in the repository"
                 if found["stored"] is not None else f"{size(found['size'])} (how much was new its files do not say)"),
                ("condition", _condition(found)),
                ("previous", found["previous"] or "none"),
                ("digest", found["digest"]),
                *((f"disk {d['name'] or d['disk']}", f"{size(d['size'])}, {d['changed']:,} blocks changed, "
                   f"{d['omitted']:,} omitted, {d['lost']:,} lost") for d in found["disks"]),
                ("marks", _marks(found)),
                *((" ".join([m["mark"], m["name"]]).strip(),
                   f"{local(m['at'])} by {m['by']}{': ' + m['note'] if m['note'] else ''}") for m in found["marks"]),
                ("dropped", f"{local(found['dropped'])} by {found['dropped_by']}: {found['why']}"
                 if found["dropped"] else ""),
            ]
        )  # fmt: skip

    ask.out(found, human)


def _mark(ask: Ask, point: str, mark: str, said: str, *, no_wait: bool, **body: Any) -> None:
    given = {name: value for name, value in body.items() if value}
    job = ask.api.post(f"/v1/points/{segment(point)}/{mark}", given)["job"]
    done = asked(ask, job, f"{mark} {point}", no_wait=no_wait)
    if done is not None:
        ask.out({"job": done}, lambda: click.echo(f"{point} {said}"))


NOTE = click.option("--note", default="", help="Why, for whoever looks at it later.")
CASE = click.option(
    "--name", required=True, help="What the hold is for: several may stand, each is released by its own."
)


@click.command("star")
@POINT
@NOTE
@NO_WAIT
@asks
def star(ask: Ask, point: str, note: str, no_wait: bool) -> None:
    """Keep a point whatever retention says, until its star is taken away."""
    _mark(ask, point, "star", "is starred", no_wait=no_wait, note=note)


@click.command("unstar")
@POINT
@NOTE
@NO_WAIT
@asks
def unstar(ask: Ask, point: str, note: str, no_wait: bool) -> None:
    """Take a point's star away: retention counts for it again."""
    _mark(ask, point, "unstar", "is starred no longer", no_wait=no_wait, note=note)


@click.command("hold")
@POINT
@CASE
@click.option(
    "--until", type=DEADLINE, help="The hold ends by itself then. Without this it stands until it is released."
)
@NOTE
@NO_WAIT
@asks
def hold(ask: Ask, point: str, no_wait: bool, **given: Any) -> None:
    """Legal hold: nobody drops the point while it stands."""
    _mark(ask, point, "hold", "is held", no_wait=no_wait, **given)


@click.command("release")
@POINT
@CASE
@NOTE
@NO_WAIT
@asks
def release(ask: Ask, point: str, no_wait: bool, **given: Any) -> None:
    """End a legal hold. Others that stand on the point go on."""
    _mark(ask, point, "release", f"is released from {given['name']}", no_wait=no_wait, **given)


@click.command("drop")
@POINT
@click.option("--note", required=True, help="Why, for whoever is to agree.")
@NO_WAIT
@asks
def drop(ask: Ask, point: str, note: str, no_wait: bool) -> None:
    """Ask that a point be dropped ahead of retention. It stays until somebody else has agreed (`point agree`)."""
    _mark(ask, point, "drop", "is dropped once somebody else agrees to it", no_wait=no_wait, note=note)


@click.command("agree")
@POINT
@click.option("--yes", is_flag=True, help="Do not ask.")
@NO_WAIT
@asks
def agree(ask: Ask, point: str, yes: bool, no_wait: bool) -> None:
    """Agree that a point is dropped ahead of retention, which somebody else asked for: it is dropped.

    Only who has had the right to do this for days can agree: a token issued today cannot.
    """
    confirm(ask, point, f"point {point} will be dropped", yes)
    _mark(ask, point, "agree", "is dropped", no_wait=no_wait)


@click.command("expire")
@click.argument("repository", shell_complete=repository_names)
@click.option("--keep", metavar="RULES", help="See what other rules would do; only with --dry-run.")
@click.option("--dry-run", is_flag=True, help="Only say which points stay and which go, and why.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@NO_WAIT
@asks
def expire(ask: Ask, repository: str, keep: str | None, dry_run: bool, yes: bool, no_wait: bool) -> None:
    """Drop the points that the repository's retention does not keep. What they alone need is freed by `repository collect`.

    Starred and held points stay. Why each point stays or goes is shown first; what was shown is what is dropped.
    """
    if keep is not None and not dry_run:
        raise click.UsageError("--keep tries rules out; `holdfast repository retention` sets them")
    path = f"/v1/repositories/{segment(repository)}/expire"
    body: dict[str, Any] = {"dry_run": True, **({"keep": keep} if keep is not None else {})}
    shown = ask.wait(ask.api.post(path, body)["job"], f"retention of {repository}")["result"]
    if not ask.as_json:
        _verdicts(shown)
    if dry_run or not shown["drop"]:
        ask.out(shown, lambda: None)
        return
    confirm(ask, repository, f"{shown['drop']:,} points of {repository} will be dropped", yes)
    body = {"dry_run": False, "digest": shown["digest"]}
    done = asked(ask, ask.api.post(path, body)["job"], f"expiring points of {repository}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        click.echo(f"{result['drop']:,} points were dropped.")
        click.echo(f"Free what they alone needed:  holdfast repository collect {repository}")

    ask.out({"job": done, "result": result}, human)


def _verdicts(shown: dict[str, Any]) -> None:
    from api.cli.tables import table

    table(
        ["", "POINT", "ASSET", "CREATED", ("", "dim"), ("WHY", "rest")],
        [
            (
                "keep" if v["keep"] else "drop",
                v["point"],
                v["asset"],
                local(v["created"]),
                ago(v["created"]),
                "; ".join(v["why"]),
            )
            for v in shown["points"]
        ],
    )
    if shown["left_out"]:
        click.echo(f"… and {shown['left_out']:,} more.")
    click.echo(f"\n{shown['kept']:,} stay, {shown['drop']:,} go.")


@click.command("diff")
@POINT
@click.argument("other", shell_complete=point_ids)
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=200, show_default=True)
@asks
def diff(ask: Ask, point: str, other: str, limit: int) -> None:
    """What differs between two points of one asset: files, or ranges of disks. Costs what differs, not what there is."""
    job = ask.api.post(f"/v1/points/{segment(point)}/diff", {"with": other, "limit": limit})["job"]
    result = ask.wait(job, f"comparing {point} with {other}")["result"]

    def human() -> None:
        from api.cli.tables import clean, size

        sign = {"added": "+", "removed": "-", "changed": "~"}
        for path in result["files"]:
            click.echo(clean(f"{sign[path['change']]} {path['path']}"))
        for disk in result["disks"]:
            click.echo(f"{disk['disk']}: {size(disk['bytes'])} differ in {disk['ranges']:,} ranges")
            for first, length in disk["first"]:
                click.echo(f"  at {first:,}, {length:,} bytes")
        if result["left_out"]:
            click.echo(f"… and {result['left_out']:,} more.")
        if not result["files"] and not result["disks"]:
            click.echo("They hold the same.")

    ask.out(result, human)


@click.command("prove")
@POINT
@click.option(
    "--against",
    metavar="PATH",
    help="Also compare a restored disk, or directory, on the agent's machine with the point.",
)
@click.option("--disk", default="", help="Which disk that is, of a point with several.")
@click.option("--path", "inside", default="", help="Which file or directory that is, of a point of files.")
@click.option(
    "--format",
    type=click.Choice(["raw", "qcow2", "vmdk", "vhdx"]),
    default="raw",
    show_default=True,
    help="What PATH is, of a disk.",
)
@asks
def prove(ask: Ask, point: str, against: str | None, disk: str, inside: str, format: str) -> None:
    """Follow a point's chain of digests to its first point and into the log. Exit code 4 when two do not say the same.

    Each record is named by the one after it, by the log, and by what is in the repository now. With --against every block of
    a restored disk is named too, and compared with the point: one chain from a restored byte to the log. The same of every piece
    of every file of a restored directory, with owners, modes, times, attributes and links.
    """
    if against is not None and not against.startswith("/"):
        raise click.BadParameter(
            f"{against!r} must be an absolute path, on the agent's machine", param_hint="--against"
        )
    result = ask.wait(ask.api.post(f"/v1/points/{segment(point)}/prove")["job"], f"proving {point}")["result"]
    compared: dict[str, Any] | None = None
    if against is not None:
        body = {"target": against, "disk": disk, "format": format, "path": inside}
        job = ask.api.post(f"/v1/points/{segment(point)}/compare", body)["job"]
        compared = result["compared"] = ask.wait(job, f"comparing {against}")["result"]

    def human() -> None:
        from api.cli.tables import table

        table(["POINT", "RECORD", "SAID BY"], [(k["point"], k["record"], ", ".join(k["by"])) for k in result["links"]])
        if result["left_out"]:
            click.echo(f"… and {result['left_out']:,} before them.")
        for c in result["captured"]:
            click.echo(f"captured: {c['source']}/{c['lineage']}:{c['ordinal']:,}, {c['digest']}")
        for problem in result["problems"]:
            click.echo(f"✘ {problem}", err=True)
        end = "to its first point" if result["whole"] else "as far as anybody knows it"
        click.echo(f"{'Not proven' if result['problems'] else 'Proven'}, {end}.")
        if compared is not None:
            _compared(compared)

    ask.out(result, human)
    if result["problems"] or (compared is not None and compared["differs"]):
        sys.exit(UNWELL)


def _compared(found: Mapping[str, Any]) -> None:
    from api.cli.tables import clean, size

    if "entries" in found:
        _compared_files(found)
        return
    if not found["differs"]:
        click.echo(clean(f"{found['target']} is what disk {found['disk']} was: {size(found['compared'])} compared."))
        if found["longer"]:
            click.echo(f"It is {found['longer']:,} bytes longer, which were not looked at.")
        return
    click.echo(
        clean(f"✘ {found['target']} is not what disk {found['disk']} was: {size(found['differs'])} differ:"), err=True
    )
    for part in found["ranges"]:
        click.echo(f"  at {part['offset']:,}, {part['length']:,} bytes", err=True)
    if found["left_out"]:
        click.echo(f"  … and {found['left_out']:,} more ranges.", err=True)


def _compared_files(found: Mapping[str, Any]) -> None:
    from api.cli.tables import clean, size

    entries = f"{found['files']:,} files, {found['folders']:,} directories, {found['others']:,} others"
    if not found["differs"]:
        click.echo(clean(f"{found['target']} is what the point has: {entries}, {size(found['compared'])} compared."))
        return
    what = f"{found['content']:,} differences of content, {found['metadata']:,} of owners, modes, times, attributes or links"
    click.echo(clean(f"✘ {found['target']} is not what the point has: {what}, in {entries}:"), err=True)
    for entry in found["entries"]:
        click.echo(clean(f"  {entry['path']}: {entry['why']}"), err=True)
    if found["left_out"]:
        click.echo(f"  … and {found['left_out']:,} more.", err=True)


@click.command("restore")
@POINT
@click.option("--to", "target", required=True, help="Where it is put, on the agent's machine.")
@click.option("--disk", default="", help="Only this one, of a point with several.")
@click.option("--path", "inside", default="", help="Only this file or directory, of a point of files.")
@click.option("--overwrite", is_flag=True, help="Of an image: write into the file or device that is there.")
@click.option("--skip-lost", is_flag=True, help="Leave data that cannot be read as zeros, and say where. Exit code 4.")
@click.option("--yes", is_flag=True, help="Do not ask before something is overwritten.")
@NO_WAIT
@asks
def restore(
    ask: Ask,
    point: str,
    target: str,
    disk: str,
    inside: str,
    overwrite: bool,
    skip_lost: bool,
    yes: bool,
    no_wait: bool,
) -> None:
    """Put what a point holds where nothing is yet: a directory for files, a file for an image. Every byte is verified.

    All is read back and compared, files before they have their name. Interrupted, the same command goes on where it was.
    """
    if not target.startswith("/"):
        raise click.BadParameter(f"{target!r} must be an absolute path, on the agent's machine", param_hint="--to")
    if overwrite:
        confirm(ask, target, f"{target} will be overwritten with point {point}", yes)
    body = {"target": target, "disk": disk, "path": inside, "overwrite": overwrite, "skip_lost": skip_lost}
    job = ask.api.post(f"/v1/points/{segment(point)}/restore", body)["job"]
    done = asked(ask, job, f"restoring {point}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        from api.cli.tables import clean, size

        but = f", but for {size(result['lost_bytes'])} that cannot be read" if result["lost"] else ""
        click.echo(f"{result['target']} is what {result['asset']} was {local(result['created'])}{but}: ")
        click.echo(f"{size(result['bytes'])} written, every chunk verified.")
        entries = ""
        if "files" in result:
            entries = f" in {result['files']:,} files, {result['folders']:,} directories, {result['others']:,} others"
        click.echo(f"Read back, the same: {size(result['compared'])}{entries}.")
        if result["kept"]:
            click.echo(f"An earlier run had brought {size(result['kept'])} of it.")
        if result.get("metadata_differs"):
            told = "have another owner, mode, time, link or attributes: the job's warnings say which"
            click.echo(f"✘ {result['metadata_differs']:,} of them {told}.", err=True)
        for part in result["lost"]:
            where = f"{part['path']}: " if part["path"] else ""
            click.echo(clean(f"✘ {where}{part['length']:,} bytes from {part['offset']:,} on are zeros"), err=True)
        if result["left_out"]:
            click.echo(f"… and {result['left_out']:,} more ranges.", err=True)

    ask.out({"job": done, "result": result}, human)
    if result["lost"]:
        sys.exit(UNWELL)


COMMANDS = (list_all, show, star, unstar, hold, release, expire, drop, agree, diff, prove, restore)
