"""docs/cli.md says what the commands say."""

from __future__ import annotations

import re

from api.cli import errors
from deploy import reference


def test_the_command_reference_is_up_to_date() -> None:
    text = reference.PAGE.read_text("utf-8")
    assert text == reference.page(text), "run `python -P -m deploy.reference`"


def test_every_exit_code_is_documented() -> None:
    documented = {int(n) for n in re.findall(r"^\| (\d+) \|", reference.PAGE.read_text("utf-8"), re.MULTILINE)}
    assert documented >= {v for k, v in vars(errors).items() if k.isupper() and isinstance(v, int)}
