"""How a command ends. The codes are stable and documented in docs/cli.md; `holdfast up` and its like share the first
four.

    0    done
    1    it failed; the message says what, and what to do next
    2    wrong usage
    3    the API cannot be reached
    4    done, but something is not well (a rebuilt read model differs)
    10   what was named does not exist
    11   refused as things stand: an obstacle, a conflict, something already done
    12   no token, or its role may not do this
    13   not confirmed
    130  interrupted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

import click

FAILED = 1
USAGE = 2
UNREACHABLE = 3
UNWELL = 4
ABSENT = 10
REFUSED = 11
DENIED = 12
UNCONFIRMED = 13
INTERRUPTED = 130

_BY_STATUS: Mapping[int, int] = {401: DENIED, 403: DENIED, 404: ABSENT, 409: REFUSED, 422: REFUSED, 503: UNREACHABLE}


class CliError(click.ClickException):
    """An error for a person, or where `as_json` is set for a program. `problems` are shown one by one, hints ready to be
    copied."""

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        exit_code: int = FAILED,
        problems: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.exit_code = exit_code
        self.problems = problems
        self.as_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            import json

            body = {"code": self.code, "message": self.message, "hint": self.hint, "problems": list(self.problems)}
            click.echo(json.dumps({"error": body}, ensure_ascii=False), err=True)
            return
        click.echo(f"holdfast: {self.message} ({self.code})", err=True)
        if len(self.problems) == 1 and self.problems[0]["message"] in self.message:
            if hint := self.problems[0].get("hint") or self.hint:
                click.echo(indent(hint), err=True)
        elif self.problems:
            say_problems(self.problems)
        elif self.hint:
            click.echo(indent(self.hint), err=True)


def indent(text: str, by: str = "  ") -> str:
    return "\n".join(by + line for line in text.splitlines())


def say_problems(problems: Sequence[Mapping[str, Any]], sign: str = "✘") -> None:
    """Each problem with the step that mends it on lines of its own."""
    for problem in problems:
        click.echo(f"  {sign} {problem['message']} ({problem['code']})", err=True)
        if problem.get("hint"):
            click.echo(indent(problem["hint"], "      "), err=True)


def from_problem(status: int, body: Mapping[str, Any]) -> CliError:
    """What the API answered instead of doing it."""
    code = str(body.get("code") or f"http-{status}")
    exit_code = _BY_STATUS.get(status, FAILED)
    if code == "request-invalid":
        exit_code = USAGE
    return CliError(
        code,
        str(body.get("detail") or body.get("title") or f"the API answered {status}"),
        str(body.get("hint") or ""),
        exit_code=exit_code,
        problems=body.get("problems") or (),
    )
