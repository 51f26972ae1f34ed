"""`holdfast token …`"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from api.cli.asking import Ask, asks
from api.cli.connection import segment
from api.cli.times import DEADLINE, ago, local

ROLES = ("viewer", "auditor", "operator", "admin")


@click.command("issue")
@click.argument("actor")
@click.option("--role", type=click.Choice(ROLES), required=True)
@click.option("--expires", type=DEADLINE, help="Of no use after this moment: 2026-12-31 00:00, or in 90d.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Into this new file, mode 0600.")
@asks
def issue(ask: Ask, actor: str, role: str, expires: str | None, output: Path | None) -> None:
    """A new token for ACTOR. Its secret is shown now and never again."""
    body: dict[str, Any] = {"actor": actor, "role": role} | ({"expires": expires} if expires else {})
    # The file comes first: a secret that cannot be kept must not be made.
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(_new_file(output)) if output is not None else None
        found = ask.api.post("/v1/tokens", body)
        if kept is not None:
            kept.write(found.pop("secret") + "\n")

    def human() -> None:
        if output is not None:
            click.echo(f"{role} token {found['token']} of {actor} is in {output}")
        else:
            click.echo(found["secret"])
            click.echo(f"token {found['token']}, role {role}; it is not shown again", err=True)

    ask.out(found, human)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """A file of mode 0600 that was not there; taken away again when what it is for fails."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        why = "it exists" if isinstance(error, FileExistsError) else error.strerror
        raise click.BadParameter(f"{path}: {why}", param_hint="--output") from error
    try:
        with open(fd, "w", encoding="ascii") as out:
            yield out
    except BaseException:
        path.unlink(missing_ok=True)
        raise


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
