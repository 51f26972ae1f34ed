"""`holdfast policy …`"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from api.cli.asking import Ask, asks, confirm, policy_names, repository_names
from api.cli.asset import end, fail_on
from api.cli.connection import segment
from api.cli.errors import CliError
from api.cli.runs import came_to, run_now
from api.cli.times import MOMENT, ago, local

POLICY = click.argument("policy", shell_complete=policy_names)
KINDS = {
    "backup": "backup.run",
    "files": "backup.make",
    "image": "backup.make",
    "verify": "repository.verify",
    "collect": "repository.collect",
    "expire": "point.expire",
    "discover": "asset.discover",
}
_LENGTH = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Length(click.ParamType):
    """`10m` to seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _LENGTH.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no length of time; say 30s, 10m, 2h or 1d", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


def says_what(command: Callable[..., None]) -> Callable[..., None]:
    """What a policy can say of what it does, as options."""
    several = {"multiple": True, "metavar": "PATTERN"}
    options = (
        click.option("--to", "repository", shell_complete=repository_names, help="The repository."),
        click.option("--name", "names", help="Machines of this name; * and ? are patterns.", **several),  # type: ignore[arg-type]
        click.option("--host", "hosts", help="Machines on this host.", **several),  # type: ignore[arg-type]
        click.option("--folder", "folders", help="Machines in this folder or below.", **several),  # type: ignore[arg-type]
        click.option("--tag", "tags", help="Machines with this tag.", **several),  # type: ignore[arg-type]
        click.option("--except", "excepts", help="Not these, whatever selects them: a name, or host:, folder:, tag: and a"
                     " pattern.", **several),  # type: ignore[arg-type]
        click.option("--path", "paths", multiple=True, metavar="ASSET=PATH", help="Of files or image: what, under which name."),
        click.option("--mode", type=click.Choice(["full", "incremental", "differential"]), help="How machines are read."),
        click.option("--quiesce", type=click.Choice(["off", "try", "require"]), help="Have guests freeze their file systems."),
        click.option("--bandwidth", type=click.IntRange(0), metavar="BYTES", help="A second, for each machine."),
        click.option("--disk", "disks", multiple=True, metavar="ASSET=DISK", help="Of this machine only the disks given."),
        click.option("--together/--apart", default=None, help="All machines as they are at one moment (they have to be on"
                     " one host, and are done all or none), or each by itself. Without this: apart."),
        click.option("--level", type=click.Choice(["metadata", "sample", "full"]), help="Of verify."),
        click.option("--percent", type=click.IntRange(1, 100), help="Of verify, when it samples."),
        click.option("--retry", "retries_s", multiple=True, type=Length(), help="Try what failed again, so long after."),
        click.option("--priority", type=click.IntRange(-9, 9), help="The higher the sooner."),
        click.option("--note", default="", help="Why, for those who read the log."),
        click.option("--dry-run", is_flag=True, help="Only show what it would be of, and when."),
    )  # fmt: skip
    return _with(options, command)


def says(command: Callable[..., None]) -> Callable[..., None]:
    """What a policy can say, as options: when it runs, and what it does."""
    options = (
        click.option("--schedule", "-s", multiple=True, metavar="RULE", help="`daily 02:00`, `weekly mon,thu 22:00` …"),
        click.option("--zone", metavar="ZONE", help="Whose clock the schedule follows. Without this: UTC."),
        click.option("--window", "windows", multiple=True, metavar="SPAN", help="Run only then: `mon-fri 22:00-06:00`."),
        click.option("--blackout", "blackouts", multiple=True, metavar="SPAN", help="Never then: `2026-12-24..2026-12-26`."),
        click.option("--missed", type=click.Choice(["run", "skip"]), help="What was due while nobody could run it."),
        click.option("--overrun", type=click.Choice(["finish", "stop"]), help="What is at work when windows close."),
        click.option("--late", "late_s", type=Length(), help="How long after it was due a point counts as late."),
        click.option("--on/--off", "enabled", default=None, help="Whether it runs by itself."),
    )  # fmt: skip
    return _with(options, says_what(command))


def _with(
    options: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...], command: Callable[..., None]
) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command


_EMPTY: tuple[Any, ...] = (None, ())
_SELECTION = ("names", "hosts", "folders", "tags")


def merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A document with what was given in place of what it said. Raises `click.BadParameter`."""
    out = dict(before)
    selection = {name: list(given[name]) for name in _SELECTION if given[name]}
    if selection:
        out["assets"] = selection
    if given["excepts"]:
        out["except"] = _excepts(given["excepts"])
    if given["paths"]:
        out["paths"] = dict(_path(text) for text in given["paths"])
    if given["disks"]:
        out["disks"] = _disks(given["disks"])
    for name, value in given.items():
        if name not in (*_SELECTION, "excepts", "paths", "disks") and value not in _EMPTY:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def _excepts(patterns: tuple[str, ...]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for text in patterns:
        kind, colon, pattern = text.partition(":")
        if colon and kind in ("name", "host", "folder", "tag"):
            out.setdefault(f"{kind}s", []).append(pattern)
        else:
            out.setdefault("names", []).append(text)
    return out


def _path(text: str) -> tuple[str, str]:
    asset, _, path = text.partition("=")
    if not path.startswith("/"):
        raise click.BadParameter(f"{text!r} is not NAME=/path", param_hint="--path")
    return asset, path


def _disks(texts: tuple[str, ...]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for text in texts:
        asset, _, disk = text.partition("=")
        if not asset or not disk:
            raise click.BadParameter(f"{text!r} is not ASSET=DISK", param_hint="--disk")
        out.setdefault(asset, []).append(disk)
    return out


def started(kind: str) -> dict[str, Any]:
    """The beginning of a document of this `--kind`."""
    return {"kind": KINDS[kind], **({"what": kind} if kind in ("files", "image") else {})}


def split(given: dict[str, Any]) -> tuple[str, bool]:
    return given.pop("note"), given.pop("dry_run")


@click.command("add")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), default="backup", show_default=True, help="What it does.")
@says
@asks
def add(ask: Ask, name: str, kind: str, **given: Any) -> None:
    """Define a policy: what is done, to what, when.

    \b
    holdfast policy add nightly --to vault --folder /prod --except tag:scratch -s "daily 02:00" --zone Europe/Berlin
    holdfast policy add home --kind files --path home=/home --to vault -s "every 4 hours" --window 06:00-22:00
    holdfast policy add proof --kind verify --level full --to vault -s "monthly 1st sun 04:00"

    Which machines are selected is looked up each time it runs. `--except` wins.
    """
    note, dry_run = split(given)
    if not given["schedule"]:
        raise click.UsageError(
            "Missing option '--schedule'. `holdfast job create` makes what runs only when it is asked to."
        )
    document = merged(started(kind), given)
    if dry_run:
        tried(ask, document)
        return
    made = ask.api.post("/v1/policies", {"name": name, "document": document, "note": note})
    ask.out(made, lambda: _made(made))


CLEARED = ("schedule", "windows", "blackouts", "retries_s", "except", "mode", "bandwidth", "disks")


@click.command("set")
@POLICY
@says
@click.option("--clear", multiple=True, type=click.Choice(CLEARED), help="Have it say nothing of this any more.")
@asks
def change(ask: Ask, policy: str, clear: tuple[str, ...], **given: Any) -> None:
    """Change what a policy says; what is not given stays. A list that is given takes the place of the whole list.

    One whose schedule is cleared is a saved job (`holdfast job`), and a saved job that is given a schedule runs by it.
    """
    set_anew(ask, policy, clear, given)


def set_anew(ask: Ask, name: str, clear: tuple[str, ...], given: dict[str, Any]) -> None:
    """Define a policy anew with what was given."""
    note, dry_run = split(given)
    found = ask.api.get(f"/v1/policies/{segment(name)}")
    before = {name: value for name, value in found["document"].items() if name not in clear}
    document = merged({"schedule": [], **before}, given)
    if dry_run:
        tried(ask, document)
        return
    body = {"document": document, "version": found["version"], "note": note}
    made = ask.api.put(f"/v1/policies/{segment(name)}", body)
    ask.out(made, lambda: _made(made))


def _made(made: Mapping[str, Any]) -> None:
    click.echo(f"{made['name']} is there, version {made['version']}.")
    if not made["document"].get("schedule"):
        click.echo(f"It runs when it is asked to:  holdfast job run {made['name']}")
        return
    coming = f"It runs next at {local(made['next'])}." if made["next"] else "It does not run by itself."
    click.echo(f"{coming}  holdfast policy next {made['name']}")


def tried(ask: Ask, document: Mapping[str, Any]) -> None:
    found = ask.api.post("/v1/policies/try", {"document": document})

    def human() -> None:
        _coming(found["runs"])
        selected(found["assets"], document)

    ask.out(found, human)


def _coming(runs: list[dict[str, Any]]) -> None:
    from api.cli.tables import table

    if not runs:
        click.echo(
            "No run of it is to come: it is switched off, or windows and blackouts let nothing begin that is due."
        )
        return
    rows = [
        (local(r["start"]), local(r["instant"]) if r["instant"] != r["start"] else "", local(r["closes"]) if r["closes"] else "")
        for r in runs
    ]  # fmt: skip
    table(["STARTS", "DUE", "WINDOW CLOSES"], rows)


def selected(assets: list[str], document: Mapping[str, Any]) -> None:
    """What a run would be of."""
    moment = ", all at one moment" if document.get("together") and len(assets) > 1 else ""
    click.echo(f"Of now: {', '.join(assets) or 'nothing'}{moment}.")


@click.command("list")
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def list_all(ask: Ask, as_of: str | None) -> None:
    """Policies, and saved jobs, by name."""
    found = ask.api.get("/v1/policies", as_of=as_of)["items"]

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo("There is no policy:  holdfast policy add NAME --to REPOSITORY --name '*' -s 'daily 02:00'")
            return
        table(
            ["POLICY", "DOES", "SCHEDULE", "NEXT", "LAST RUN", ("CAME TO", "rest")],
            [
                (
                    p["name"],
                    p["document"].get("kind", ""),
                    ", ".join(p["document"].get("schedule", []))
                    + ("" if p["document"].get("enabled", True) else " (off)")
                    if p["document"].get("schedule")
                    else "when asked to",
                    local(p["next"]),
                    ago(p["last"]["fired"]) if p["last"] else "–",
                    came_to(p["last"]) if p["last"] else "",
                )
                for p in found
            ],
        )

    ask.out({"policies": found}, human)


@click.command("show")
@POLICY
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def show(ask: Ask, policy: str, as_of: str | None) -> None:
    """What a policy says, when it runs next, what its last run came to."""
    found = ask.api.get(f"/v1/policies/{segment(policy)}", as_of=as_of)

    ask.out(found, lambda: described(found))


def described(found: Mapping[str, Any]) -> None:
    """A policy, or a saved job, line by line."""
    from api.cli.tables import pairs

    document, last = found["document"], found["last"]
    by_hand = not document.get("schedule")
    lines = [("job" if by_hand else "policy", f"{found['name']}, version {found['version']}")]
    lines += [(name, _plain(value)) for name, value in document.items() if not (by_hand and name in ONLY_SCHEDULED)]
    lines += [
        ("defined", f"{local(found['defined'])} by {found['by']}"),
        ("note", found["note"]),
        ("next", "when it is asked to" if by_hand else local(found["next"])),
        ("last run", f"{local(last['fired'])}: {came_to(last)}  ({last['run']})" if last else "none"),
    ]
    pairs(lines)


ONLY_SCHEDULED = ("schedule", "zone", "windows", "blackouts", "missed", "overrun", "late_s", "enabled")


def _plain(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case dict():
            return "\n".join(f"{k} {_plain(v)}" for k, v in value.items() if v)
        case list():
            return ", ".join(str(v) for v in value)
        case _:
            return str(value)


@click.command("remove")
@POLICY
@click.option("--yes", is_flag=True, help="Do not ask.")
@asks
def remove(ask: Ask, policy: str, yes: bool) -> None:
    """Remove a policy. Its points stay; what is at work ends as it would have."""
    confirm(ask, policy, f"{policy} will not run again", yes)
    ask.api.delete(f"/v1/policies/{segment(policy)}")
    ask.out({"removed": policy}, lambda: click.echo(f"{policy} is removed; its points stay."))


@click.command("next")
@POLICY
@click.option("--count", "-n", type=click.IntRange(1, 1000), default=10, show_default=True)
@asks
def next_runs(ask: Ask, policy: str, count: int) -> None:
    """The runs that come, should nothing change, and what they would be of now."""
    found = ask.api.get(f"/v1/policies/{segment(policy)}/next", count=count)

    def human() -> None:
        _coming(found["items"])
        selected(found["assets"], {})

    ask.out({"runs": found["items"], "assets": found["assets"]}, human)


@click.command("run")
@POLICY
@click.option("--no-wait", is_flag=True, help="Do not wait until it has ended.")
@asks
def run(ask: Ask, policy: str, no_wait: bool) -> None:
    """Run a policy now, whatever its windows. Exits 4 when not all of it was done."""
    run_now(ask, policy, "policy", no_wait)


@click.command("status")
@POLICY
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@fail_on("nothing")
@asks
def status(ask: Ask, policy: str, limit: int, as_of: str | None, fail_on: str) -> None:
    """What a policy came to: runs that were made, what was due and not made, and how well its assets are protected.

    With `--fail-on late` it exits 4 when an asset of the policy is late, or never was backed up: for whatever watches.
    """
    runs = ask.api.get(f"/v1/policies/{segment(policy)}/runs", limit=limit, as_of=as_of)["items"]
    assets = ask.api.get("/v1/protection", policy=policy, as_of=as_of)["items"]

    def human() -> None:
        from api.cli.asset import protected
        from api.cli.tables import table

        if runs:
            table(
                ["AT", "DUE", "WAS", ("CAME TO", "rest")],
                [
                    (
                        local(r["at"]),
                        local(r["from"]),
                        r["state"] if r["run"] is None else "made" if r["run"]["ended"] else "going on",
                        came_to(r["run"]) + (f" ({r['message']})" if r["message"] else "")
                        if r["run"]
                        else f"{r['reason']}: {r['message']}",
                    )
                    for r in runs
                ],
            )
        else:
            click.echo("It has not run yet.")
        if assets:
            click.echo()
            protected(assets)

    ask.out({"runs": runs, "assets": assets}, human)
    end(assets, fail_on)


@click.command("export")
@click.option(
    "--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="Into a file. Without this: printed."
)
@asks
def export(ask: Ask, file: Path | None) -> None:
    """Settings of the site as one file to be read, kept, changed and put in again: policies and saved jobs, what repositories
    keep and how they deduplicate, hosts without their passwords."""
    text = json.dumps(ask.api.get("/v1/settings"), indent=2, ensure_ascii=False, sort_keys=True)
    if file is None:
        click.echo(text)
        return
    file.write_text(text + "\n", encoding="utf-8")
    ask.out({"file": str(file)}, lambda: click.echo(f"The settings are in {file}."))


@click.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--dry-run", is_flag=True, help="Only show the difference, and the review to put it in with.")
@click.option("--review", metavar="REVIEW", help="Put in what a dry run showed, if nothing has changed since.")
@click.option("--prune", is_flag=True, help="Policies that the file leaves out are removed.")
@asks
def bring_in(ask: Ask, file: Any, dry_run: bool, review: str | None, prune: bool) -> None:
    """Put settings in from a file, as they were shown.

    \b
    holdfast policy import settings.json --dry-run            what would change, and a REVIEW
    holdfast policy import settings.json --review REVIEW      exactly that, or nothing
    """
    try:
        settings = json.load(file)
    except ValueError as error:
        raise CliError(
            "settings-format", f"{file.name} is not JSON: {error}", "`holdfast policy export` makes one"
        ) from error
    if not dry_run and review is None:
        raise CliError(
            "review-missing", "what is put in must have been looked at", f"holdfast policy import {file.name} --dry-run"
        )
    body = {"settings": settings, "dry_run": dry_run, "prune": prune, **({"review": review} if review else {})}
    found = ask.api.post("/v1/settings", body)
    for job in found["jobs"]:
        ask.wait(job, "putting a setting in")

    def human() -> None:
        for change in found["changes"]:
            click.echo(f"{change['what']} {change['name']} {change['change']}")
            for line in _difference(change["before"] or {}, change["after"] or {}):
                click.echo(f"    {line}")
        if not found["changes"]:
            click.echo("Nothing differs.")
        elif dry_run:
            more = " --prune" if prune else ""
            click.echo(f"Put it in:  holdfast policy import {file.name}{more} --review {found['review']}")

    ask.out(found, human)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    out = []
    for name in sorted({*before, *after}):
        was, is_now = before.get(name), after.get(name)
        if was == is_now:
            continue
        if was is not None:
            out.append(f"- {name}: {json.dumps(was, ensure_ascii=False)}")
        if is_now is not None:
            out.append(f"+ {name}: {json.dumps(is_now, ensure_ascii=False)}")
    return out


COMMANDS = (add, change, list_all, show, remove, next_runs, run, status, export, bring_in)
