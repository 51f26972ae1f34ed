"""`holdfast source …`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from api.cli.asking import SOURCE, Ask, asks, confirm
from api.cli.connection import segment
from api.cli.errors import USAGE, CliError, say_problems
from api.cli.secret import certificates_of

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("add")
@click.argument("name")
@click.option("--kind", default="mariadb", show_default=True, type=click.Choice(["mariadb", "mysql"]))
@click.option("--host", required=True)
@click.option("--port", type=click.IntRange(1, 65535), default=3306, show_default=True)
@click.option("--tls", type=click.Choice(["off", "required", "verify"]), default="off", show_default=True)
@click.option("--tls-ca", type=FILE, help="Certificates of the authority that signed the server's (PEM).")
@click.option("--capture-user", required=True, help="The account that reads the source's log.")
@click.option("--password-file", type=FILE, help="Where its password is. Without this it is asked for.")
@click.option(
    "--password-stdin", is_flag=True, help="Passwords on standard input: the first line, then the rollback's."
)
@click.option("--rollback-user", help="The account that carries out rollbacks. Can be given later.")
@click.option("--rollback-password-file", type=FILE)
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Of this kind of source.")
@click.option("--dry-run", is_flag=True, help="Only check that it could be protected.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is protected.")
@asks
def add(
    ask: Ask,
    name: str,
    tls_ca: Path | None,
    capture_user: str,
    password_file: Path | None,
    password_stdin: bool,
    rollback_user: str | None,
    rollback_password_file: Path | None,
    options: tuple[str, ...],
    dry_run: bool,
    no_wait: bool,
    **given: Any,
) -> None:
    """Protect a source from now on: check it, take a baseline, capture every step.

    Passwords are read from a file, standard input or a prompt, never from arguments.
    """
    accounts: dict[str, dict[str, str]] = {}
    lines = iter(sys.stdin.read().splitlines()) if password_stdin else None
    for purpose, user, file in (
        ("capture", capture_user, password_file),
        ("rollback", rollback_user, rollback_password_file),
    ):
        if user is not None:
            accounts[purpose] = {"user": user, "password": _password(purpose, user, file, lines)}
    body = {
        "name": name,
        **given,
        "tls_ca": certificates_of(tls_ca),
        "accounts": accounts,
        "options": _options(options),
        "dry_run": dry_run,
    }
    job = ask.api.post("/v1/sources", body)["job"]
    if no_wait:
        ask.out({"job": job}, lambda: click.echo(f"asked for: holdfast job watch {job}"))
        return
    done = ask.wait(job, f"checking {name}" if dry_run else f"protecting {name}")
    if dry_run:
        text = f"{name} can be protected ({', '.join(done['result'].get('capability', ())) or 'no special capability'})"
        ask.out({"job": done, "source": None}, lambda: click.echo(text))
        return
    found = ask.api.get(f"/v1/sources/{segment(name)}")

    def human() -> None:
        click.echo(f"{name} is protected since lineage {found['lineage'] or done['result'].get('lineage', '')}.")
        if "rollback" not in accounts:
            click.echo("No rollback account was given: its timeline can be read, but not rolled back.")
        click.echo(f"Try next:  holdfast timeline watch {name}")

    ask.out({"job": done, "source": found}, human)


def _password(purpose: str, user: str, file: Path | None, lines: Any, option: str = "") -> str:
    if file is not None:
        try:
            text = file.read_text("utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            what = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise CliError(
                "password-unreadable", f"no password can be read from {file}: {what}", exit_code=USAGE
            ) from error
    elif lines is not None:
        text = next(lines, "")
    elif sys.stdin.isatty():
        text = click.prompt(f"Password of {purpose} account {user}", hide_input=True, default="", show_default=False)
    else:
        text = ""
    if not text:
        option = option or ("--password-file" if purpose == "capture" else "--rollback-password-file")
        raise CliError(
            "password-missing",
            f"there is no password for the {purpose} account {user}",
            f"{option} FILE, or --password-stdin",
            exit_code=USAGE,
        )
    return text


def _options(given: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--option")
        out[name] = value
    return out


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that were removed.")
@asks
def list_all(ask: Ask, everything: bool) -> None:
    """Sources, by name."""
    found = ask.api.get("/v1/sources", all=everything)["items"]

    def human() -> None:
        from api.cli.tables import table
        from api.cli.times import ago

        if not found:
            click.echo("Nothing is protected yet:  holdfast source add NAME --host HOST …")
            return
        table(
            ["NAME", "KIND", "ADDRESS", "STATE", "SINCE", ("STEPS", "right"), ("LAG", "right")],
            [
                (
                    s["name"],
                    s["kind"],
                    f"{s['host']}:{s['port']}",
                    s["state"],
                    ago(s["since"]),
                    f"{s['ordinal']:,}",
                    _lag(s),
                )
                for s in found
            ],
        )
        for s in found:
            if s["problems"]:
                click.echo(f"{s['name']} is {s['state']}:", err=True)
                say_problems(s["problems"])

    ask.out({"sources": found}, human)


def _figure(source: dict[str, Any], name: str) -> float | None:
    for agent in source["agents"]:
        if name in agent["figures"]:
            return float(agent["figures"][name])
    return None


def _lag(source: dict[str, Any]) -> str:
    lag = _figure(source, "lag_ms")
    return "" if lag is None else f"{lag:.0f} ms" if lag < 10_000 else f"{lag / 1000:.0f} s"


def _spool(source: dict[str, Any]) -> str:
    """What waits on the agent's disk for Kafka."""
    size, limit, seconds = (_figure(source, f"spool_{name}") for name in ("bytes", "limit_bytes", "s"))
    if size is None or limit is None or seconds is None:
        return ""
    return f"{size / 1e6:,.0f} MB of {limit / 1e6:,.0f} wait on the agent's disk, for {seconds:,.0f} s"


@click.command("show")
@SOURCE
@asks
def show(ask: Ask, source: str) -> None:
    """One source: address, state, position, what it can and cannot give."""
    found = ask.api.get(f"/v1/sources/{segment(source)}")

    def human() -> None:
        from api.cli.tables import pairs
        from api.cli.times import ago, local

        purge = _figure(found, "purge_in_s")
        pairs(
            [
                ("name", found["name"]),
                ("address", f"{found['kind']} {found['server_version']} at {found['host']}:{found['port']}"),
                ("tls", found["tls"]),
                ("accounts", ", ".join(f"{user} ({purpose})" for purpose, user in found["accounts"].items())),
                ("state", f"{found['state']} since {local(found['since'])} ({ago(found['since'])}, {found['by']})"),
                ("lineage", found["lineage"] or ""),
                ("position", f"{found['position']} (step {found['ordinal']})" if found["position"] else ""),
                ("lag", _lag(found)),
                ("spool", _spool(found)),
                ("log purged in", f"{purge / 3600:.1f} h" if purge is not None else ""),
                ("capability", ", ".join(found["capability"])),
                ("baseline", found["baseline"]),
            ]
        )
        if found["problems"]:
            say_problems(found["problems"])

    ask.out(found, human)


def _change(ask: Ask, source: str, path: str, what: str, *, no_wait: bool) -> None:
    job = ask.api.post(f"/v1/sources/{segment(source)}/{path}")["job"]
    _ended(ask, source, job, what, no_wait=no_wait)


def _ended(ask: Ask, source: str, job: str, what: str, *, no_wait: bool) -> None:
    if no_wait:
        ask.out({"job": job}, lambda: click.echo(f"asked for: holdfast job watch {job}"))
        return
    done = ask.wait(job, what)
    ask.out({"job": done}, lambda: click.echo(f"{what}: done"))


NO_WAIT = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")


@click.command("pause")
@SOURCE
@NO_WAIT
@asks
def pause(ask: Ask, source: str, no_wait: bool) -> None:
    """Stop capturing for a while. The source's own log must last until it is resumed."""
    _change(ask, source, "pause", f"pausing {source}", no_wait=no_wait)


@click.command("resume")
@SOURCE
@NO_WAIT
@asks
def resume(ask: Ask, source: str, no_wait: bool) -> None:
    """Capture again from where it stopped."""
    _change(ask, source, "resume", f"resuming {source}", no_wait=no_wait)


@click.command("set-password")
@SOURCE
@click.option("--for", "purpose", type=click.Choice(["capture", "rollback"]), default="capture", show_default=True)
@click.option("--user", help="Another account, too; also how a rollback account is given later.")
@click.option("--password-file", type=FILE, help="Where the password is. Without this it is asked for.")
@click.option("--password-stdin", is_flag=True, help="The password on standard input.")
@NO_WAIT
@asks
def set_password(
    ask: Ask,
    source: str,
    purpose: str,
    user: str | None,
    password_file: Path | None,
    password_stdin: bool,
    no_wait: bool,
) -> None:
    """Log in to a source with another password, or account, from now on.

    It is tried at the source first. Capture goes on with it from where it is, also where the old one had stopped it.
    """
    lines = iter(sys.stdin.read().splitlines()) if password_stdin else None
    known = user or ask.api.get(f"/v1/sources/{segment(source)}")["accounts"].get(purpose, "")
    password = _password(purpose, known, password_file, lines, option="--password-file")
    account = {"password": password, **({"user": user} if user else {})}
    job = ask.api.post(f"/v1/sources/{segment(source)}/accounts", {"accounts": {purpose: account}})["job"]
    _ended(ask, source, job, f"changing the {purpose} account of {source}", no_wait=no_wait)


@click.command("remove")
@SOURCE
@click.option("--purge", is_flag=True, help="Also delete what was captured.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@NO_WAIT
@asks
def remove(ask: Ask, source: str, purge: bool, yes: bool, no_wait: bool) -> None:
    """Protect a source no longer. Its timeline stays readable unless --purge."""
    lost = " and its whole timeline is deleted" if purge else ""
    confirm(ask, source, f"{source} will no longer be protected{lost}", yes)
    job = ask.api.delete(f"/v1/sources/{segment(source)}", purge=purge)["job"]
    _ended(ask, source, job, f"removing {source}", no_wait=no_wait)


COMMANDS = (add, list_all, show, set_password, pause, resume, remove)
