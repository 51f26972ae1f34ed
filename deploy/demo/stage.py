"""Runs the `holdfast` command as a user would, shows it, and keeps what was proved. Knows nothing of what is demonstrated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class NotProved(Exception):
    """A claim of this demonstration turned out false."""


class Stage:
    """Prints what happens and keeps what was proved, for the summary at the end."""

    def __init__(self, data: Path, quiet: bool) -> None:
        self.data = data
        self.quiet = quiet
        self.proved: dict[str, Any] = {}

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def title(self, text: str) -> None:
        self.say(
            f"\n\033[1m── {text} \033[0m" + "─" * max(0, 92 - len(text)) if sys.stdout.isatty() else f"\n── {text}"
        )

    def holdfast(self, *words: str, stdin: str | None = None, show: bool = True) -> str:
        """Run one command as the user would; its output is shown and returned. Raises `NotProved` when it fails."""
        if show:
            self.say("$ holdfast " + " ".join(words))
        done = subprocess.run(
            [sys.executable, "-P", "-m", "deploy.cli", "--data-dir", str(self.data), *words],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise NotProved(f"`holdfast {' '.join(words)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        if show:
            self.say("".join(f"  {line}\n" for line in done.stdout.splitlines()).rstrip())
        return done.stdout

    def json(self, *words: str, stdin: str | None = None) -> Any:
        """The same command with `--json`, not shown."""
        return json.loads(self.holdfast(*words, "--json", stdin=stdin, show=False))

    def prove(self, name: str, claim: str, expected: Any, found: Any) -> None:
        """Both must be equal, else the demonstration ends here."""
        if expected != found:
            raise NotProved(f"{claim}: expected {expected}, found {found}")
        self.proved[name] = found
        self.say(f"  ✔ {claim}")
