"""Secrets that a command takes: from a file, a line of standard input or a prompt, never from arguments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from api.cli.errors import USAGE, CliError

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class Given:
    """Where secrets come from in this call. Lines of standard input are taken in the order in which they are asked for."""

    def __init__(self, *, stdin: bool) -> None:
        self._lines: Iterator[str] | None = iter(sys.stdin.read().splitlines()) if stdin else None

    def read(self, what: str, file: Path | None, option: str, *, again: bool = False) -> str:
        """One secret. `again` has it typed twice where it is typed. Raises `CliError`."""
        if file is not None:
            text = _of_file(file)
        elif self._lines is not None:
            text = next(self._lines, "")
        elif sys.stdin.isatty():
            text = click.prompt(
                what, hide_input=True, default="", show_default=False, err=True, confirmation_prompt=again
            )
        else:
            text = ""
        if not text:
            raise CliError(
                "secret-missing",
                f"there is no {what[:1].lower()}{what[1:]}",
                f"{option} FILE, or --secrets-stdin",
                exit_code=USAGE,
            )
        return text


def _of_file(file: Path) -> str:
    try:
        return file.read_text("utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        what = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise CliError("secret-unreadable", f"no secret can be read from {file}: {what}", exit_code=USAGE) from error


def certificates_of(file: Path | None) -> str:
    """The certificates in a PEM file, and nothing else of it: a private key that stands with them stays here. "" without a
    file. Raises `CliError`."""
    if file is None:
        return ""
    try:
        found = _CERTIFICATE.findall(file.read_text("ascii", "replace"))
    except OSError as error:
        raise CliError("ca-unreadable", f"{file}: {error.strerror}", exit_code=USAGE) from error
    if not found:
        hint = "give a PEM file; of a DER file: openssl x509 -inform DER -in FILE -out ca.pem"
        raise CliError("ca-invalid", f"there is no certificate in {file}", hint, exit_code=USAGE)
    return "\n".join(found) + "\n"


def stdin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--secrets-stdin", is_flag=True, help="Secrets on standard input, one a line, in the order of this page."
    )(command)
