"""`holdfast restore …`: machines and disks of points, to files, to the original, to a new machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import click

from api.cli.asking import Ask, asks, confirm, host_names
from api.cli.backup import Rate
from api.cli.connection import segment
from api.cli.errors import UNWELL
from api.cli.point import POINT
from api.cli.repository import NO_WAIT, asked
from api.cli.times import local

FORMATS = ("raw", "qcow2", "vmdk", "vhdx")
_MEMORY = re.compile(r"(\d{1,7})(M|G|T)(?:iB|B)?", re.IGNORECASE)


class Memory(click.ParamType):
    """`4G` to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _MEMORY.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no size; say 512M or 4G", param, ctx)
        return int(found[1]) << {"m": 20, "g": 30, "t": 40}[found[2].lower()]


class Nic(click.ParamType):
    """`default,model=e1000,mac=52:54:00:12:34:56` to a card."""

    name = "nic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        network, *more = value.split(",")
        card = {"network": network}
        for part in more:
            name, _, text = part.partition("=")
            if name not in ("model", "mac") or not text:
                self.fail(f"{part!r} is neither model=… nor mac=…", param, ctx)
            card[name] = text.lower() if name == "mac" else text
        return card


def common(command: Any) -> Any:
    """What every restore of disks can be told."""
    options = (
        click.option(
            "--disk", "disks", multiple=True, metavar="DISK", help="Only this one; can be given several times."
        ),
        click.option("--bandwidth", metavar="RATE", type=Rate(), default=0, help="A second at most, such as 50M."),
        click.option("--dry-run", is_flag=True, help="Only say what would be written."),
        click.option(
            "--skip-lost", is_flag=True, help="Leave data that cannot be read as zeros, and say where. Exit code 4."
        ),
        NO_WAIT,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("files")
@POINT
@click.option("--to", required=True, metavar="FOLDER", help="On the agent's machine; empty, or not there yet.")
@click.option("--format", type=click.Choice(FORMATS), default="qcow2", show_default=True, help="Of the images.")
@common
@asks
def files(ask: Ask, point: str, to: str, no_wait: bool, **given: Any) -> None:
    """Disks of a point as image files in a folder, one each, with what else the point has of the machine.

    Of any point with disks, those of `backup image` too. Interrupted, the same command goes on with the folder.
    """
    if not to.startswith("/"):
        raise click.BadParameter(f"{to!r} must be an absolute path, on the agent's machine", param_hint="--to")
    _restore(ask, point, "files", {"to": to, **_body(given)}, no_wait=no_wait)


@click.command("original")
@POINT
@click.option("--stop", is_flag=True, help="Stop the machine if it runs.")
@click.option("--start", is_flag=True, help="Start it afterwards.")
@click.option("--whole", is_flag=True, help="Read all of each disk, whatever its host says has changed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
@asks
def original(ask: Ask, point: str, yes: bool, no_wait: bool, **given: Any) -> None:
    """The machine's disks back to what they were at a point: only what differs is written. What came since is lost.

    The machine must be off. Its cpus, memory and cards stay as they are now. Where the host can say what has changed since a
    point, nothing else is read but what differs between the points; the answer says of how many bytes the host's word counts.
    """
    if not given["dry_run"]:
        asset = ask.api.get(f"/v1/points/{segment(point)}")["asset"]
        confirm(ask, asset, f"the disks of {asset} will be overwritten with point {point}", yes)
    _restore(ask, point, "original", _body(given), no_wait=no_wait)


@click.command("machine")
@POINT
@click.option("--host", required=True, shell_complete=host_names, help="Where it is made; of the same kind.")
@click.option("--name", help="What it is called. Without this: as it was.")
@click.option("--cpus", type=click.IntRange(1, 1024), help="How many. Without this: as many as it had.")
@click.option("--memory", type=Memory(), help="Such as 4G. Without this: as much as it had.")
@click.option("--bus", type=click.Choice(["virtio", "scsi", "sata", "ide"]), help="Of all its disks.")
@click.option(
    "--nic",
    "nics",
    type=Nic(),
    multiple=True,
    metavar="NETWORK[,model=M][,mac=A]",
    help="A card, instead of those it had.",
)
@click.option("--no-nic", is_flag=True, help="No card at all.")
@click.option("--storage", help="Where its disks are put, as the host calls it.")
@click.option("--format", help="Of its disks, as the host calls it.")
@click.option("--keep-identity", is_flag=True, help="Take the old one's identity and addresses; it must be gone.")
@click.option("--start", is_flag=True, help="Start it afterwards.")
@common
@asks
def machine(ask: Ask, point: str, nics: tuple[dict[str, str], ...], no_nic: bool, no_wait: bool, **given: Any) -> None:
    """A machine of a point made anew on a host, with other cpus, memory, disk bus, cards or name if asked for.

    It has a new identity, and its cards new addresses. A restore that fails leaves no machine behind.
    """
    if nics and no_nic:
        raise click.UsageError("--nic and --no-nic exclude each other")
    cards = {"nics": list(nics)} if nics or no_nic else {}
    _restore(ask, point, "machine", {**_body(given), **cards}, no_wait=no_wait)


def _body(given: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {name: value for name, value in said.items() if value not in (None, "")}


def _restore(ask: Ask, point: str, how: str, body: dict[str, Any], *, no_wait: bool) -> None:
    job = ask.api.post(f"/v1/points/{segment(point)}/restore/{how}", body)["job"]
    what = f"weighing a restore of {point}" if body.get("dry_run") else f"restoring {point}"
    done = asked(ask, job, what, no_wait=no_wait)
    if done is None:
        return
    result = done["result"]
    ask.out({"job": done, "result": result}, lambda: _human(result))
    if result["lost_bytes"]:
        sys.exit(UNWELL)


def _human(result: Mapping[str, Any]) -> None:
    from api.cli.tables import clean, size, table

    place = result.get("to") or f"{result.get('name', '')} on {result.get('host', '')}"
    if result["dry_run"]:
        click.echo(clean(f"{place} would be what {result['asset']} was {local(result['created'])}:"))
        rows = [(d["disk"], size(d["size"]), size(d["differed"])) for d in result["disks"]]
        table(["DISK", ("SIZE", "right"), ("TO WRITE", "right")], rows)
        return
    click.echo(clean(f"{place} is what {result['asset']} was {local(result['created'])}:"))
    shown = [
        (d["disk"], d.get("file", ""), size(d["size"]), size(d["written"]), size(d["kept"]), size(d["compared"]))
        for d in result["disks"]
    ]
    sizes: list[Any] = [(title, "right") for title in ("SIZE", "WRITTEN", "THERE ALREADY", "READ BACK, THE SAME")]
    table(["DISK", "FILE", *sizes], shown)
    for disk in result["disks"]:
        if disk.get("trusted"):
            text = f"{disk['disk']}: {size(disk['trusted'])} were not read: by its host's word they have not changed since point"
            click.echo(clean(f"{text} {disk['base']} (--whole reads all)"))
        for part in disk["lost"]:
            text = f"✘ {disk['disk']}: {part['length']:,} bytes from {part['offset']:,} on are zeros"
            click.echo(clean(text), err=True)
    if result.get("started"):
        click.echo(clean(f"{result['name']} has been started."))


COMMANDS = (files, original, machine)
