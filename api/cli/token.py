"""`holdfast token …`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from api.cli.asking import Ask, asks
from api.cli.connection import segment
from api.cli.times import MOMENT, ago, local

ROLES = ("viewer", "auditor", "operator", "admin")


@click.command("issue")
@click.argument("actor")
@click.option("--role", type=click.Choice(ROLES), required=True)
@click.option("--expires", type=MOMENT, help="Of no use after this moment: 2026-12-31 00:00.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Into this new file, mode 0600.")
@asks
def issue(ask: Ask, actor: str, role: str, expires: str | None, output: Path | None) -> None:
    """A new token for ACTOR. Its secret is shown now and never again."""
    if output is not None and output.exists():
        raise click.BadParameter(f"{output} exists", param_hint="--output")
    body: dict[str, Any] = {"actor": actor, "role": role} | ({"expires": expires} if expires else {})
    found = ask.api.post("/v1/tokens", body)
    if output is not None:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w", encoding="ascii") as out:
            out.write(found.pop("secret") + "\n")

    def human() -> None:
        if output is not None:
            click.echo(f"{role} token {found['token']} of {actor} is in {output}")
        else:
            click.echo(found["secret"])
            click.echo(f"token {found['token']}, role {role}; it is not shown again", err=True)

    ask.out(found, human)


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Also revoked and expired ones.")
@asks
def list_all(ask: Ask, everything: bool) -> None:
    """Tokens, never their secrets."""
    found = [t for t in ask.api.get("/v1/tokens")["items"] if everything or t["usable"]]

    def human() -> None:
        from api.cli.tables import table

        table(
            ["TOKEN", "ACTOR", "ROLE", "ISSUED", "BY", "EXPIRES", ""],
            [
                (
                    t["token"],
                    t["actor"],
                    t["role"],
                    ago(t["issued"]),
                    t["issued_by"],
                    local(t["expires"]) if t["expires"] else "never",
                    f"revoked by {t['revoked_by']}" if t["revoked"] else "" if t["usable"] else "expired",
                )
                for t in found
            ],
        )

    ask.out({"tokens": found}, human)


@click.command("revoke")
@click.argument("token")
@asks
def revoke(ask: Ask, token: str) -> None:
    """A token is of no use from now on."""
    ask.api.delete(f"/v1/tokens/{segment(token)}")
    ask.out({"token": token, "revoked": True}, lambda: click.echo(f"{token} is revoked"))


COMMANDS = (issue, list_all, revoke)
