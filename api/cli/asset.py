"""`holdfast asset …`"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from api.cli.asking import ASSET, Ask, asks, asset_names, host_names, pages, policy_names
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


STATES = ("unprotected", "never", "late", "unverified", "sampled", "covered")


def fail_on(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option that decides when a status is an exit status."""
    return click.option(
        "--fail-on",
        type=click.Choice([*STATES[:-1], "nothing"]),
        default=default,
        show_default=True,
        help="Exit 4 when an asset is in this state or a worse one.",
    )


def end(found: list[dict[str, Any]], worst: str) -> None:
    """Exit 4 when one of these assets is as badly protected as `worst`, or worse."""
    if worst != "nothing" and any(STATES.index(a["state"]) <= STATES.index(worst) for a in found):
        sys.exit(UNWELL)


@click.command("status")
@click.option("--asset", shell_complete=asset_names, help="Only this one.")
@click.option("--policy", shell_complete=policy_names, help="Only what this policy backs up.")
@click.option(
    "--state",
    type=click.Choice(STATES),
    help="Only those of this state.",
)
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@fail_on("late")
@asks
def status(ask: Ask, fail_on: str, **query: Any) -> None:
    """How well each asset is protected: machines, files, images, and databases. Exits 4 when one is late or worse.

    \b
    unprotected   nothing backs it up by a schedule
    never         nothing of it is there yet
    late          something was due and is not there; capture of a database is paused, stopped or behind
    unverified    in time, and never read back
    sampled       in time; all that describes a point was read back, and a share of its data
    covered       in time, and read back whole: by a full verify, a restore of all of it, a scratch copy of a database
    """
    found = ask.api.get("/v1/protection", **query)["items"]

    def human() -> None:
        if not found:
            known = "No asset is known:  holdfast asset discover, or a first backup"
            click.echo("No asset fits." if any(query.values()) else known)
            return
        protected(found)

    ask.out({"assets": found}, human)
    end(found, fail_on)


@click.command("changes")
@click.option("--asset", help="Only of this one.")
@click.option("--state", type=click.Choice(STATES), help="Only those that came to this state.")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True)
@asks
def changes(ask: Ask, limit: int, **query: Any) -> None:
    """When the protection of assets changed, newest first: what became late, and what is covered again.

    The API looks every minute; each change is an event `protection.changed` in the log, for whatever listens there.
    """
    found, following, _ = pages(ask, "/v1/protection/changes", limit, **query)

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo("Nothing was said yet.")
            return
        table(
            ["AT", "ASSET", "OF", "WAS", "IS", "LATE", ("POLICY", "rest")],
            [
                (
                    local(c["at"]),
                    c["asset"],
                    c["kind"],
                    c["before"] or "–",
                    c["state"],
                    _length(c["late_s"]),
                    c["policy"],
                )
                for c in found
            ],
        )

    ask.out({"changes": found, "next": following}, human)


def protected(found: list[dict[str, Any]]) -> None:
    """A table of how well assets are protected."""
    from api.cli.tables import table

    table(
        ["ASSET", "OF", "IS", "LATE", "LAST SOUND", "PROVEN", "BY", ("POINTS", "right"), ("POLICIES", "rest")],
        [
            (
                a["asset"],
                a["host"] or ("database" if a["kind"] == "database" else ""),
                a["state"],
                _length(a["late_s"]),
                ago(a["newest"]) if a["newest"] else "–",
                ago(a["verified"]) if a["verified"] else "–",
                a["proof"],
                f"{a['points']:,}" if a["kind"] != "database" else "",
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


COMMANDS = (discover, list_all, show, status, changes)
