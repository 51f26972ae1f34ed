"""`holdfast asset …`"""

from __future__ import annotations

import sys
from typing import Any

import click

from api.cli.asking import ASSET, Ask, asks, asset_names, host_names, policy_names
from api.cli.connection import segment
from api.cli.errors import UNWELL
from api.cli.repository import NO_WAIT, asked
from api.cli.times import MOMENT, ago, local


@click.command("discover")
@click.option("--host", shell_complete=host_names, help="Only on this host.")
@NO_WAIT
@asks
def discover(ask: Ask, host: str | None, no_wait: bool) -> None:
    """Look what machines there are on the hosts."""
    job = ask.api.post("/v1/assets/discover", {"host": host} if host else {})["job"]
    done = asked(ask, job, f"looking at {host or 'all hosts'}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        click.echo(
            f"{result['machines']:,} machines: {result['new']:,} new, {result['changed']:,} changed, {result['gone']:,} gone."
        )
        if result["away"]:
            click.echo(f"Not reached: {', '.join(result['away'])}.")

    ask.out({"job": done, "result": result}, human)


@click.command("list")
@click.option("--host", shell_complete=host_names, help="Only on this host.")
@click.option("--all", "everything", is_flag=True, help="Also those that are gone.")
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def list_all(ask: Ask, everything: bool, **query: Any) -> None:
    """Machines, by name, and when each was backed up last."""
    found = ask.api.get("/v1/assets", all=everything, **query)["items"]

    def human() -> None:
        from api.cli.tables import size, table

        if not found:
            click.echo("No machine is known:  holdfast host add NAME --url URL, or holdfast asset discover")
            return
        table(
            ["ASSET", "HOST", "NAME", "POWER", ("DISKS", "right"), ("SIZE", "right"), "LAST POINT", "IN"],
            [
                (
                    a["asset"],
                    a["host"],
                    a["name"],
                    "gone" if a["state"] == "gone" else a["power"],
                    str(len(a["disks"])),
                    size(sum(d["size"] for d in a["disks"])),
                    ago(a["point"]["created"]) if a["point"] else "–",
                    a["point"]["repository"] if a["point"] else "",
                )
                for a in found
            ],
        )

    ask.out({"assets": found}, human)


@click.command("show")
@ASSET
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def show(ask: Ask, asset: str, as_of: str | None) -> None:
    """One machine: what it is made of, and its newest point."""
    found = ask.api.get(f"/v1/assets/{segment(asset)}", as_of=as_of)

    def human() -> None:
        from api.cli.tables import pairs, size, table

        point = found["point"]
        pairs(
            [
                ("asset", found["asset"]),
                ("name", found["name"]),
                ("host", f"{found['host']} ({found['native']})"),
                ("folder", found["folder"]),
                ("tags", ", ".join(found["tags"])),
                ("power", "gone" if found["state"] == "gone" else found["power"]),
                ("machine", f"{found['cpus']} processors, {size(found['memory'])}, {found['firmware']}"),
                ("cards", "\n".join(f"{n['mac']} {n['network']} {n['model']}".strip() for n in found["nics"])),
                ("seen", f"{local(found['seen'])} ({ago(found['seen'])})"),
                (
                    "last point",
                    f"{point['point']} in {point['repository']}, {local(point['created'])} ({ago(point['created'])}),"
                    f" {point['mode'] or 'image'}"
                    if point
                    else "none",
                ),
            ]
        )
        if found["disks"]:
            table(
                ["DISK", ("SIZE", "right"), "FORMAT", "BUS", "CHANGES", "STORAGE", ("PLACE", "rest")],
                [
                    (
                        d["disk"],
                        size(d["size"]),
                        d["format"],
                        d["bus"],
                        d["left_out"] or ("tracked" if d["tracked"] else "read and compared"),
                        d["storage"],
                        d["place"],
                    )
                    for d in found["disks"]
                ],
            )

    ask.out(found, human)


@click.command("status")
@click.option("--asset", shell_complete=asset_names, help="Only this one.")
@click.option("--policy", shell_complete=policy_names, help="Only what this policy backs up.")
@click.option(
    "--state",
    type=click.Choice(["unprotected", "never", "late", "unverified", "covered"]),
    help="Only those of this state.",
)
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def status(ask: Ask, **query: Any) -> None:
    """How well each asset is protected. Exits 4 when one is not covered or unverified."""
    found = ask.api.get("/v1/protection", **query)["items"]

    def human() -> None:
        if not found:
            known = "No asset is known:  holdfast asset discover, or a first backup"
            click.echo("No asset fits." if any(query.values()) else known)
            return
        protected(found)

    ask.out({"assets": found}, human)
    if any(a["state"] in ("unprotected", "never", "late") for a in found):
        sys.exit(UNWELL)


def protected(found: list[dict[str, Any]]) -> None:
    """A table of how well assets are protected."""
    from api.cli.tables import table

    table(
        ["ASSET", "HOST", "IS", "LATE", "LAST SOUND POINT", "LAST VERIFIED", ("POINTS", "right"), ("POLICIES", "rest")],
        [
            (
                a["asset"],
                a["host"],
                a["state"],
                _length(a["late_s"]),
                ago(a["newest"]) if a["newest"] else "–",
                ago(a["verified"]) if a["verified"] else "–",
                f"{a['points']:,}",
                ", ".join(a["policies"]),
            )
            for a in found
        ],
    )


def _length(seconds: int) -> str:
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds // size} {unit}" if seconds else ""
    return f"{seconds // 86_400} d"


COMMANDS = (discover, list_all, show, status)
