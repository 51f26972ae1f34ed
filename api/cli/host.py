"""`holdfast host …`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from api.cli.asking import HOST, Ask, asks, confirm
from api.cli.connection import segment
from api.cli.errors import say_problems
from api.cli.repository import NO_WAIT, asked
from api.cli.secret import FILE, Given, certificates_of, stdin_option
from api.cli.times import MOMENT, ago, local


@click.command("add")
@click.argument("name")
@click.option("--kind", default="kvm", show_default=True, help="What runs there: kvm.")
@click.option("--url", required=True, help="How to reach it; of kvm libvirt's: qemu:///system, qemu+tls://HOST/system.")
@click.option("--account", default="", help="The user there. Its password is read as said below.")
@click.option("--password-file", type=FILE, help="Where the account's password is. Without this it is asked for.")
@click.option("--tls-ca", type=FILE, help="Certificates of the authority that signed the host's (PEM).")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="disks, storage_disks: how many are read at once; bandwidth: bytes a second; others by kind.",
)
@click.option("--dry-run", is_flag=True, help="Only check that it can be reached and used.")
@stdin_option
@NO_WAIT
@asks
def add(
    ask: Ask,
    name: str,
    kind: str,
    url: str,
    account: str,
    password_file: Path | None,
    tls_ca: Path | None,
    options: tuple[str, ...],
    dry_run: bool,
    secrets_stdin: bool,
    no_wait: bool,
) -> None:
    """Add a hypervisor, or what manages several, and look what machines are on it; or define it anew.

    The password is read from a file, standard input or a prompt, never from arguments.
    """
    body: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "url": url,
        "account": account,
        "tls_ca": certificates_of(tls_ca),
        "options": dict(_option(text) for text in options),
        "dry_run": dry_run,
    }
    if account or password_file:
        given = Given(stdin=secrets_stdin)
        body["password"] = given.read(f"Password of {account or name}", password_file, "--password-file")
    job = ask.api.post("/v1/hosts", body)["job"]
    done = asked(ask, job, f"looking at {name}", no_wait=no_wait)
    if done is None:
        return
    result = done["result"]

    def human() -> None:
        what = f"{result['machines']:,} machines are on it ({result['version'] or 'its version is not known'})."
        if dry_run:
            click.echo(f"{name} can be added. {what}")
            return
        click.echo(f"{name} is known now. {what}")
        click.echo(f"Try next:  holdfast asset list --host {name}")

    ask.out({"job": done, "result": result}, human)


def _option(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--option")
    return name, value


@click.command("list")
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def list_all(ask: Ask, as_of: str | None) -> None:
    """Hosts, by name."""
    found = ask.api.get("/v1/hosts", as_of=as_of)["items"]

    def human() -> None:
        from api.cli.tables import table

        if not found:
            click.echo("There is no host:  holdfast host add NAME --url URL")
            return
        table(
            ["NAME", "KIND", "URL", ("MACHINES", "right"), "VERSION", "SINCE"],
            [(h["name"], h["kind"], h["url"], f"{h['machines']:,}", h["version"], ago(h["since"])) for h in found],
        )

    ask.out({"hosts": found}, human)


@click.command("show")
@HOST
@click.option("--as-of", type=MOMENT, help="As it was at that moment.")
@asks
def show(ask: Ask, host: str, as_of: str | None) -> None:
    """One host: how it is reached, what was found."""
    found = ask.api.get(f"/v1/hosts/{segment(host)}", as_of=as_of)

    def human() -> None:
        from api.cli.tables import pairs

        pairs(
            [
                ("name", found["name"]),
                ("kind", found["kind"]),
                ("url", found["url"]),
                ("account", found["account"]),
                ("version", found["version"]),
                ("options", ", ".join(f"{k} {v}" for k, v in found["options"].items())),
                ("machines", f"{found['machines']:,}"),
                ("defined", f"{local(found['since'])} ({ago(found['since'])}) by {found['by']}"),
            ]
        )
        if found["problems"]:
            say_problems(found["problems"], "!")

    ask.out(found, human)


@click.command("remove")
@HOST
@click.option("--yes", is_flag=True, help="Do not ask.")
@NO_WAIT
@asks
def remove(ask: Ask, host: str, yes: bool, no_wait: bool) -> None:
    """Look after a host no longer. Points of its machines stay, and can be restored."""
    confirm(ask, host, f"The machines of {host} will not be backed up any more", yes)
    job = ask.api.delete(f"/v1/hosts/{segment(host)}")["job"]
    done = asked(ask, job, f"removing {host}", no_wait=no_wait)
    if done is not None:
        ask.out(
            {"job": done}, lambda: click.echo(f"{host} is removed; {done['result']['machines']:,} machines were on it.")
        )


COMMANDS = (add, list_all, show, remove)
