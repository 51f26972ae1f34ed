"""What every command has in common: `--json`, `--data-dir`, the API at hand, jobs waited for, yes or no asked."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from api.cli.connection import Api, find, segment
from api.cli.errors import FAILED, INTERRUPTED, REFUSED, UNCONFIRMED, UNREACHABLE, CliError, say_problems


class Ask:
    """One command under way: the API, and whether a program reads the answer."""

    def __init__(self, api: Api, as_json: bool) -> None:
        self.api = api
        self.as_json = as_json

    def out(self, value: Any, human: Callable[[], None]) -> None:
        """The command's answer: JSON on one line for each, or what `human` prints."""
        if self.as_json:
            click.echo(json.dumps(value, ensure_ascii=False))
        else:
            human()

    def say(self, text: str) -> None:
        """A sentence for people, beside the answer."""
        if not self.as_json:
            click.echo(text, err=True)

    def wait(self, job: str, what: str) -> dict[str, Any]:
        """Follow a job to its end, with a bar where there is a terminal; the finished job.

        Raises `CliError` with the job's problems when it failed. Interrupted, the job goes on.
        """
        from api.cli.progress import Bar

        bar = Bar(what, shown=not self.as_json and sys.stderr.isatty())
        found: dict[str, Any] = {}
        told = ""
        try:
            with bar:
                for _, found in self.api.events(f"/v1/jobs/{segment(job)}/events", lambda _, data: data["final"]):
                    bar.show(found)
                    if found["state"] in ("requested", "accepted") and found["message"] not in ("", told):
                        told = found["message"]
                        self.say(f"{what} has to wait: {told}")
        except KeyboardInterrupt:
            self.say(f"\nInterrupted. The job goes on: holdfast job watch {job}")
            raise
        except CliError as error:
            if error.exit_code == UNREACHABLE:
                error.hint += f"; then `holdfast job watch {job}`: what was asked for is in the log and goes on"
            raise
        if found["state"] == "finished":
            if found["problems"] and not self.as_json:
                say_problems(found["problems"], "!")
            return found
        problems = found["problems"]
        first = problems[0] if problems else {"code": "job-failed", "message": f"{what} was {found['state']}"}
        raise CliError(
            first["code"],
            f"{what}: {first['message']}" if len(problems) < 2 else f"{what}: {len(problems)} things stand in the way",
            first.get("hint", ""),
            exit_code=REFUSED if found["state"] == "failed" and problems else FAILED,
            problems=problems,
        )


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """A command that asks the API: it gets an `Ask` first. Adds `--json` and `--data-dir`."""

    def asking(as_json: bool, data_dir: Path | None, **given: Any) -> None:
        if data_dir is not None:
            os.environ["HOLDFAST_DATA"] = str(data_dir.absolute())
        try:
            with contextlib.closing(Api(find())) as api:
                command(Ask(api, as_json), **given)
        except CliError as error:
            error.as_json = as_json
            raise
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    functools.update_wrapper(asking, command)
    as_json = click.option("--json", "as_json", is_flag=True, help="For programs: JSON on standard output.")
    directory = click.Path(path_type=Path, file_okay=False)
    data_dir = click.option("--data-dir", type=directory, help="Where the site lives on this machine.")
    return as_json(data_dir(asking))


def confirm(ask: Ask, name: str, what: str, yes: bool) -> None:
    """Have `name` typed before something that cannot simply be taken back. Raises `CliError` (`not-confirmed`)."""
    if yes:
        return
    if not sys.stdin.isatty() or ask.as_json:
        raise CliError(
            "not-confirmed", f"{what} needs a confirmation", "say --yes where nobody can type", exit_code=UNCONFIRMED
        )
    typed = click.prompt(f"{what}. Type {name!r} to go on", default="", show_default=False, err=True)
    if typed.strip() != name:
        raise CliError("not-confirmed", "nothing was done", exit_code=UNCONFIRMED)


def pages(ask: Ask, path: str, limit: int, **query: Any) -> tuple[list[Mapping[str, Any]], Any, Mapping[str, Any]]:
    """Up to `limit` items of a paged list, however many calls that takes; where to go on, and the first page."""
    items: list[Mapping[str, Any]] = []
    first: Mapping[str, Any] | None = None
    while True:
        page = ask.api.get(path, limit=min(1000, limit - len(items)), **query)
        first = first or page
        items += page["items"]
        if page["next"] is None or len(items) >= limit:
            return items, page["next"], first
        query["before"] = page["next"]


def source_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of sources for the shell's completion; none when the site cannot be asked."""
    try:
        found = Api(find()).get("/v1/sources")["items"]
    except CliError:
        return []
    return [s["name"] for s in found if s["name"].startswith(incomplete)]


def repository_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of repositories, likewise."""
    try:
        found = Api(find()).get("/v1/repositories")["items"]
    except CliError:
        return []
    return [r["name"] for r in found if r["name"].startswith(incomplete)]


def host_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of hosts, likewise."""
    try:
        found = Api(find()).get("/v1/hosts")["items"]
    except CliError:
        return []
    return [h["name"] for h in found if h["name"].startswith(incomplete)]


def asset_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of machines, likewise."""
    try:
        found = Api(find()).get("/v1/assets")["items"]
    except CliError:
        return []
    return [a["asset"] for a in found if a["asset"].startswith(incomplete)]


def policy_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of policies, likewise."""
    try:
        found = Api(find()).get("/v1/policies")["items"]
    except CliError:
        return []
    return [p["name"] for p in found if p["name"].startswith(incomplete)]


def saved_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of saved jobs, likewise."""
    try:
        found = Api(find()).get("/v1/policies")["items"]
    except CliError:
        return []
    return [p["name"] for p in found if p["name"].startswith(incomplete) and not p["document"].get("schedule")]


def node_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of agents, likewise."""
    try:
        found = Api(find()).get("/v1/nodes")["items"]
    except CliError:
        return []
    return [n["node"] for n in found if n["node"].startswith(incomplete)]


SOURCE = click.argument("source", shell_complete=source_names)
REPOSITORY = click.argument("repository", shell_complete=repository_names)
HOST = click.argument("host", shell_complete=host_names)
ASSET = click.argument("asset", shell_complete=asset_names)
