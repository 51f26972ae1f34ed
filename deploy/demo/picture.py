"""A transcript on standard input as a picture of a terminal on standard output: how docs/images/demo.svg is made.

    ./dev demo --data-dir DIR --stop > transcript
    ./dev python -m deploy.demo.picture < transcript > docs/images/demo.svg

Shows the part a reader wants to see: from the accident to the proof.
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text

_WIDTH = 126
_FROM = "and then somebody makes three mistakes"
_UNTIL = "and back once more"
_LEFT_OUT = re.compile(r"^\s*(older:|lineage |digest |source {2,}|estimate )")


def scene(transcript: str) -> list[str]:
    """The lines to show, sample rows shortened to a few."""
    lines = transcript.splitlines()
    first = next(n for n, line in enumerate(lines) if _FROM in line)
    last = next(n for n, line in enumerate(lines) if _UNTIL in line)
    out: list[str] = []
    rows = 0
    skipping = False
    for line in lines[first:last]:
        # One step's rows and one table's preview stand for the others.
        skipping = line.startswith("$ holdfast step") or (skipping and not line.startswith(("──", "  ✔", "  TABLE")))
        skipping = skipping or (": rows as they are" in line and any(": rows as they are" in shown for shown in out))
        rows = rows + 1 if re.match(r"^ {4,}", line) else 0
        if skipping or rows > 9 or _LEFT_OUT.match(line) or (not line.strip() and out and not out[-1].strip()):
            continue
        out.append(line[: _WIDTH - 1])
    return out


def main() -> None:
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    for line in scene(sys.stdin.read()):
        style = "bold cyan" if line.startswith("──") else "bold" if line.startswith("$") else ""
        style = "green" if line.lstrip().startswith("✔") else "red" if line.lstrip().startswith("✘") else style
        console.print(Text(line, style=style), soft_wrap=True)
    svg = console.export_svg(title="./dev demo")
    # Fonts from elsewhere are not fetched: a picture in a README shows without asking anybody.
    sys.stdout.write(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    main()
