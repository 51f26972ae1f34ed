"""The `holdfast` command: the site on this machine (`up`, `down`, `status`, `doctor`) and, mounted from `api.cli`, everything
that is asked of its API.

    holdfast [--data-dir DIR] COMMAND …

Which data directory is meant is decided here and handed on in the environment (`HOLDFAST_DATA`), where `api.cli` and all
processes find it. Exit codes are in `deploy.errors`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deploy.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_UNWELL, DeployError
from streams.errors import StreamError

DATA_DIR_HELP = (
    "Where the site lives. Default: $HOLDFAST_DATA, else a directory of the user's (root: /var/lib/holdfast)."
)


class Holdfast(click.Group):
    """Our commands, then those of `api.cli`, which is imported when one of them is wanted: `up` must work without it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._api(ctx).commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._api(ctx).commands.get(cmd_name)

    def _api(self, ctx: click.Context) -> click.Group:
        try:
            group = importlib.import_module("api.cli").cli
        except ModuleNotFoundError as e:
            if e.name is None or not e.name.startswith("api"):
                raise
            return click.Group()
        assert isinstance(group, click.Group)
        return group


def data_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--data-dir` after the command too, where people type it."""

    def chosen(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path:
        if value is not None:
            _choose(value)
        return Path(os.environ["HOLDFAST_DATA"])

    return click.option(
        "--data-dir", type=click.Path(path_type=Path, file_okay=False), callback=chosen, help=DATA_DIR_HELP
    )(command)


def _choose(data_dir: Path) -> None:
    os.environ["HOLDFAST_DATA"] = str(data_dir.absolute())


@click.group(cls=Holdfast, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help=DATA_DIR_HELP)
@click.version_option(package_name="holdfast", prog_name="holdfast")
def cli(data_dir: Path | None) -> None:
    """Disaster recovery in which the log is the product."""
    from deploy.embedded.site import default_data_dir

    _choose(data_dir if data_dir is not None else default_data_dir())


@cli.command()
@data_dir_option
@click.option("--detach", "-d", is_flag=True, help="Return once everything is up, and leave it running.")
@click.option("--site", help="Name of a new site (small letters, digits, hyphens). Default: local.")
@click.option("--port-kafka", type=click.IntRange(1, 65535), help="Port of the embedded Kafka. Default: a free one.")
@click.option("--port-postgres", type=click.IntRange(1, 65535), help="Port of the embedded PostgreSQL.")
@click.option("--port-api", type=click.IntRange(1, 65535), help="Port of the API. Default: 8473, or a free one.")
@click.option("--kafka-url", help="A Kafka of your own, for a new site: kafkas://user@host:port,…?password_file=FILE")
@click.option("--postgres-url", help="A PostgreSQL of your own: postgresql://user@host:port/db?password_file=FILE")
@click.option("--service", multiple=True, help="Start this service only (may be given several times).")
def up(data_dir: Path, detach: bool, service: tuple[str, ...], **given: Any) -> None:
    """Start the site on this machine, making it where there is none."""
    from deploy.embedded import run
    from deploy.embedded.stack import Choices

    sys.exit(run.up(data_dir, Choices(**given), service, detach=detach))


@cli.command()
@data_dir_option
@click.option("--timeout", type=float, default=90.0, show_default=True, help="Seconds to wait before killing.")
def down(data_dir: Path, timeout: float) -> None:
    """Stop everything that `up` started here. Data stay."""
    from deploy.embedded import run

    sys.exit(run.down(data_dir, timeout))


@cli.command()
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(data_dir: Path, as_json: bool) -> None:
    """What runs here and how it is. Exits with 3 when nothing runs, with 4 when something is not well."""
    from deploy.embedded import run

    report = run.status(data_dir)
    click.echo(json.dumps(report, indent=2) if as_json else run.describe(report))
    sys.exit(EXIT_NOT_RUNNING if not report["running"] else 0 if report["well"] else EXIT_UNWELL)


@cli.command()
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(data_dir: Path, as_json: bool) -> None:
    """Look for what is wrong, or will be: Python, disk, ports, Java, Kafka and its flags, PostgreSQL, clock."""
    from deploy.doctor import examine, render

    findings = examine(data_dir)
    click.echo(json.dumps([f.as_json() for f in findings], indent=2) if as_json else render(findings))
    sys.exit(EXIT_UNWELL if any(f.level == "bad" for f in findings) else 0)


def main() -> None:
    """Entry point `holdfast`: errors of ours as two lines, never a traceback."""
    try:
        result = cli(prog_name="holdfast", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except (click.Abort, KeyboardInterrupt):
        click.echo("holdfast: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.UsageError as e:
        if "--json" not in sys.argv:
            e.show()
        else:
            _say("usage", e.format_message(), f"{e.ctx.command_path} --help" if e.ctx else "holdfast --help")
        sys.exit(e.exit_code)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (DeployError, StreamError) as e:
        _say(e.code, e.message, e.hint)
        sys.exit(EXIT_NOT_RUNNING if e.code == "site-missing" else EXIT_FAILED)
    except OSError as e:  # a full disk under the output, a file that may not be read
        where = f"{e.filename}: " if e.filename else ""
        _say("system-error", f"{where}{e.strerror or e}", "")
        sys.exit(EXIT_FAILED)


def _say(code: str, message: str, hint: str) -> None:
    """An error on standard error: for a program, as docs/cli.md says, where it asked for JSON, else for a person."""
    if "--json" in sys.argv:
        error = {"code": code, "message": message, "hint": hint, "problems": []}
        click.echo(json.dumps({"error": error}, ensure_ascii=False), err=True)
        return
    click.echo(f"holdfast: {message} ({code})", err=True)
    if hint:
        click.echo(f"  {hint}", err=True)


if __name__ == "__main__":
    main()
