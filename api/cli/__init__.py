"""The command line: a client of the API and nothing else. Mounted by `deploy.cli`; each noun's module is imported
when used.

    holdfast NOUN VERB …        exit codes: `api.cli.errors`, docs/cli.md

No database driver, no Kafka client and no HTTP library is imported here: what a command needs to start is click and the
standard library (docs/adr/0007-command-line-without-http-library.md).
"""

from __future__ import annotations

import importlib

import click

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Noun(click.Group):
    """The verbs of one noun, imported from a module of this package when one of them, or their list, is asked for."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(name, help=help, context_settings=_SETTINGS)

    def _load(self) -> None:
        if not self.commands:
            module = importlib.import_module(f"api.cli.{self.name}")
            for command in module.COMMANDS:
                self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self._load()
        return super().get_command(ctx, cmd_name)


@click.group(context_settings=_SETTINGS)
def cli() -> None:
    """Ask a Holdfast site."""


NOUNS = (
    Noun("source", "What is protected: add, list, show, pause, resume, remove."),
    Noun("timeline", "A source's steps, as they were committed and as they come."),
    Noun("step", "One step: its rows before and after."),
    Noun("row", "Every version of a row, and the transactions that wrote it."),
    Noun("rollback", "Plan a rollback, look at it, run it, go forward again."),
    Noun("scratch", "A source as it was after a step, on a private server: create, list, show, drop."),
    Noun("host", "Hypervisors: add, list, show, remove."),
    Noun("asset", "The machines on them: discover, list, show."),
    Noun("backup", "Machines, directories and disk images into a repository."),
    Noun("repository", "Where points are kept: add, list, show, verify, collect, usage, adopt, keys."),
    Noun("policy", "What is done to what, when: add, set, next, run, status, export, import."),
    Noun("point", "Restore points: list, show, star, hold, expire, diff, restore."),
    Noun("restore", "Machines and disks of points: to files, to the original, to a new machine."),
    Noun("job", "What agents were asked to do, and how far it is; saved jobs: create, run."),
    Noun("node", "The agents of the site: which there are, which are alive, what they are at."),
    Noun("projections", "The read models: lag, digests, building them again from the log."),
    Noun("audit", "Who asked for what."),
    Noun("token", "Who may ask."),
)
for _noun in NOUNS:
    cli.add_command(_noun)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and names.

    \b
    bash:  holdfast completion bash > /etc/bash_completion.d/holdfast
    zsh:   holdfast completion zsh > "${fpath[1]}/_holdfast"
    fish:  holdfast completion fish > ~/.config/fish/completions/holdfast.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
