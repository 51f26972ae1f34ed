"""`holdfast backup …`: directories and disk images of the agent's machine into a repository."""

from __future__ import annotations

from typing import Any

import click

from api.cli.asking import Ask, asks, repository_names
from api.cli.repository import NO_WAIT, asked

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


COMMANDS = (files, image)
