"""What the entry point says when a command cannot even begin."""

from __future__ import annotations

import json
import sys

import pytest

from deploy import cli


@pytest.mark.parametrize(
    "words",
    [["asset", "show"], ["nosuch"], ["asset", "list", "--as-of", "never"], ["--data-dir", "/nowhere", "status"]],
)
def test_with_json_every_error_is_one_object(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["holdfast", *words, "--json"])
    monkeypatch.setenv("HOLDFAST_DATA", "/nowhere")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert told.out == ""
    error = json.loads(told.err)["error"]
    assert (error["code"], ended.value.code) in [("usage", 2), ("site-missing", 3)]
    assert error["message"]
    assert error["hint"]
