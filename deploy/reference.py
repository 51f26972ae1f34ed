"""The command reference in docs/cli.md, written from the commands themselves: `python -P -m deploy.reference`.

What stands between the two marks is replaced; what people wrote around it stays. A test holds the file to the commands.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from deploy.cli import cli

BEGIN = "<!-- commands: written by `python -P -m deploy.reference`, not by hand -->"
END = "<!-- end of commands -->"
PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
# Every command has these; saying so once is enough.
COMMON = ("help", "as_json", "data_dir")


def commands() -> Iterator[tuple[str, click.Command]]:
    """(`holdfast rollback plan`, command) of everything that does something, by name."""
    yield from _within("holdfast", cli, click.Context(cli, info_name="holdfast"))


def _within(path: str, group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _within(f"{path} {name}", command, click.Context(command, info_name=name, parent=context))
        else:
            yield f"{path} {name}", command


def render() -> str:
    """All commands in Markdown."""
    return "\n".join(part for name, command in commands() for part in _command(name, command))


def _command(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
    yield f"### `{' '.join([name, *arguments])}`\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        # Click's mark for what must keep its lines.
        yield f"```\n{inspect.cleandoc(paragraph[2:])}\n```\n" if paragraph.startswith("\b") else paragraph + "\n"
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in COMMON]
    if options:
        yield "| option | |"
        yield "|---|---|"
        for option in options:
            record = option.get_help_record(context)
            if record is not None:
                name, text = (" ".join(part.split()).replace("|", r"\|") for part in record)
                yield f"| `{name}` | {text} |"
        yield ""


def page(text: str) -> str:
    """`text` with the commands as they are now between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render()}\n{END}{after}"


def main() -> int:
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
