"""`holdfast backup …`: machines, and directories and disk images of the agent's machine, into a repository."""

from __future__ import annotations

import re
from typing import Any

import click

from api.cli.asking import Ask, asks, asset_names, repository_names
from api.cli.errors import CliError
from api.cli.repository import NO_WAIT, asked

_RATE = re.compile(r"(\d{1,6})(K|M|G)?(?:iB|B)?(?:/s)?", re.IGNORECASE)


class Rate(click.ParamType):
    """`50M` to bytes a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _RATE.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no rate; say 50M", param, ctx)
        return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[(found[2] or "").lower()]


ASSET = click.option("--asset", metavar="NAME", help="What the points are of. Without this: from the path.")
TO = click.option("--to", "repository", required=True, shell_complete=repository_names, help="The repository.")


@click.command("files")
@click.argument("path")
@TO
@ASSET
@NO_WAIT
@asks
def files(ask: Ask, **given: Any) -> None:
    """Make a point of a directory on the agent's machine: names, contents, owners, modes, links, attributes.

    What has not changed since the asset's last point is not read again.
    """
    _backup(ask, "files", **given)


@click.command("image")
@click.argument("file")
@TO
@ASSET
@NO_WAIT
@asks
def image(ask: Ask, file: str, **given: Any) -> None:
    """Make a point of a disk image (a raw file or a block device) on the agent's machine.

    Nothing says which blocks changed since the last point, so all of them are read; only those that differ are stored.
    """
    _backup(ask, "image", path=file, **given)


def _backup(ask: Ask, kind: str, *, repository: str, path: str, asset: str | None, no_wait: bool) -> None:
    if not path.startswith("/"):
        raise click.BadParameter(
            f"{path!r} must be an absolute path, on the agent's machine",
            param_hint="PATH" if kind == "files" else "FILE",
        )
    body = {"kind": kind, "repository": repository, "path": path, **({"asset": asset} if asset else {})}
    accepted = ask.api.post("/v1/backups", body)
    done = asked(ask, accepted["job"], f"backing up {path}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        from api.cli.tables import size

        click.echo(f"{result['asset']} is in {repository} as point {result['point']}: {size(result['size'])}, of which")
        click.echo(f"{size(result['read'])} were read and {size(result['stored'])} stored.")
        click.echo(f"Get it back:  holdfast point restore {result['point']} --to PATH")

    ask.out({"job": done, "point": result}, human)


@click.command("machine")
@click.argument("assets", nargs=-1, required=True, metavar="ASSET…", shell_complete=asset_names)
@TO
@click.option(
    "--mode",
    type=click.Choice(["full", "incremental", "differential"]),
    default="incremental",
    show_default=True,
    help="Read everything; what changed since the newest point; what changed since the newest full one.",
)
@click.option("--disk", "disks", multiple=True, metavar="DISK", help="Only this disk; can be given several times.")
@click.option(
    "--quiesce",
    type=click.Choice(["off", "try", "require"]),
    default="try",
    show_default=True,
    help="Have the guest freeze its file systems for the moment of the snapshot.",
)
@click.option("--bandwidth", metavar="SIZE", type=Rate(), default=0, help="A second at most, such as 50M.")
@click.option("--no-scrub", is_flag=True, help="Do not compare a thirtieth of what the host says has not changed.")
@click.option(
    "--together", is_flag=True, help="Several machines as they are at one moment; they have to be on one host."
)
@NO_WAIT
@asks
def machine(
    ask: Ask,
    assets: tuple[str, ...],
    repository: str,
    disks: tuple[str, ...],
    no_scrub: bool,
    together: bool,
    no_wait: bool,
    **given: Any,
) -> None:
    """Make a point of each of these virtual machines, running or not, with nothing installed in them.

    Every point is a full one, whatever was read for it: what has not changed is there already.
    """
    if disks and len(assets) > 1:
        raise click.BadParameter("disks are chosen of a single machine", param_hint="--disk")
    body = {"repository": repository, "scrub": not no_scrub, **given, **({"disks": list(disks)} if disks else {})}
    groups = [list(assets)] if together else [[asset] for asset in assets]
    jobs = [(names, ask.api.post("/v1/backups/machines", {**body, "assets": names})["job"]) for names in groups]
    if no_wait:
        text = "\n".join(f"asked for: holdfast job watch {job}" for _, job in jobs)
        ask.out({"jobs": [job for _, job in jobs]}, lambda: click.echo(text))
        return
    ended: list[dict[str, Any]] = []
    failed: list[CliError] = []
    for names, job in jobs:
        try:
            ended.append(ask.wait(job, f"backing up {', '.join(names)}"))
        except CliError as error:
            failed.append(error)
            if len(jobs) > 1 and not ask.as_json:
                error.show()
    points = [point for done in ended for point in done["result"]["points"]]

    def human() -> None:
        from api.cli.tables import size

        for p in points:
            click.echo(
                f"{p['asset']} is in {repository} as point {p['point']} ({p['mode']}): {size(p['size'])}, of which"
            )
            click.echo(
                f"{size(p['read'])} were read, {size(p['changed'])} had changed and {size(p['stored'])} were stored."
            )
            for disk, why in p["whole"].items():
                click.echo(f"  {disk} was read whole: {why}")

    ask.out({"jobs": ended, "points": points}, human)
    if failed:
        raise failed[-1]


COMMANDS = (machine, files, image)
