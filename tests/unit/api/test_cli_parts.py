"""Parts of the command line that need no API: moments, the picture of branches, tables, where the API is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from api.cli import NOUNS, cli
from api.cli.asking import Ask
from api.cli.connection import find, segment
from api.cli.errors import CliError
from api.cli.policy import merged
from api.cli.restore import Memory, Nic
from api.cli.rollback import _key_range
from api.cli.runs import cancel_open, follow
from api.cli.tables import cells, change, clean, counts, fit, size, value
from api.cli.timeline import picture, what
from api.cli.times import ago, parse

NOW = datetime(2026, 3, 29, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "before"),
    [("90s", 90), ("10m", 600), ("10 min ago", 600), ("2h", 7200), ("3d", 259_200), ("1w ago", 604_800), ("now", 0)],
)
def test_a_moment_may_be_said_as_how_long_ago_it_is(text: str, before: int) -> None:
    assert parse(text, NOW) == NOW - timedelta(seconds=before)


def test_the_end_of_something_may_be_said_as_how_long_it_is_until_then() -> None:
    assert parse("90d", NOW, ahead=True) == NOW + timedelta(days=90)
    assert parse("1h ago", NOW, ahead=True) == NOW - timedelta(hours=1)


def test_a_moment_without_a_zone_is_on_this_machines_clock() -> None:
    here = datetime(2026, 1, 31, 12, 0).astimezone()
    assert parse("2026-01-31 12:00", NOW) == here
    assert parse("2026-01-31T12:00:00Z", NOW) == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse("2026-01-31T12:00:00+02:00", NOW) == datetime(2026, 1, 31, 10, tzinfo=UTC)
    today = NOW.astimezone()
    assert parse("9:05", NOW).astimezone() == today.replace(hour=9, minute=5, second=0, microsecond=0)
    assert parse("09:05:07", NOW).astimezone().second == 7


@pytest.mark.parametrize("text", ["", "tomorrow", "25:00", "2026-13-01", "10x", "-5m", "99999999999w"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        parse(text, NOW)


def test_how_long_ago_in_the_unit_that_fits() -> None:
    for seconds, text in (
        (5, "5 s ago"),
        (119, "119 s ago"),
        (180, "3 min ago"),
        (7200, "2 h ago"),
        (400_000, "4 d ago"),
    ):
        assert ago((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == text
    assert ago((NOW + timedelta(seconds=60)).isoformat(), NOW) == "in the future"
    assert ago(None) == ""


def _step(ordinal: int, kind: str = "rows", stands: bool = True) -> dict[str, Any]:
    return {"ordinal": ordinal, "kind": kind, "stands": stands, "plan": None, "text": "", "own": False}


def test_the_picture_shows_where_the_timeline_turned_and_what_was_left() -> None:
    steps = [
        _step(10),
        _step(9),
        _step(8, "rollback", False),
        _step(7, stands=False),
        _step(6, stands=False),
        _step(5),
        _step(4),
    ]
    assert picture(steps, {8: {"kind": "rollback"}}) == ["●", "●", "↶─╮", "│ ○", "│ ○", "●─╯", "●"]


def test_the_picture_of_a_way_forward_and_of_nested_rollbacks() -> None:
    forward = [_step(9, "rollback", False), _step(8, "rollback", False), _step(7), _step(6)]
    assert picture(forward, {9: {"kind": "forward"}, 8: {"kind": "rollback"}}) == ["↷", "↶", "●", "●"]
    nested = [
        _step(9, "rollback", False),
        _step(8, stands=False),
        _step(7, "rollback", False),
        _step(6, stands=False),
        _step(5),
    ]
    assert picture(nested, {}) == ["↶─╮", "│ ○", "↶─┤", "│ ○", "●─╯"]
    filtered = [_step(9), _step(3, stands=False), _step(1)]
    assert picture(filtered, {}) == ["●", "│ ○", "●"]


def test_what_a_step_did_in_a_few_words() -> None:
    table = [{"schema": "shop", "table": "item", "inserts": 1, "updates": 0, "deletes": 3}]
    assert counts(table) == "shop.item +1 -3"
    assert what(_step(1), None, counts(table)) == "shop.item +1 -3"
    assert what(_step(1, "account") | {"text": "account statement"}, None, "") == "account statement"
    assert what(_step(1, "ddl") | {"text": "drop table x"}, None, "") == "ddl: drop table x"
    assert what(_step(1, "rollback") | {"plan": "p"}, {"kind": "forward"}, "") == "forward p"


def test_what_comes_from_a_source_cannot_move_the_cursor() -> None:
    assert clean("a\x1b[2Jb\nc\x9b31md") == "a [2Jb c 31md"
    assert "\x1b" not in value("\x1b]8;;http://x\x07")
    lines = list(
        change(
            {
                "schema": "s",
                "table": "t",
                "operation": "update",
                "before": {"id": 1, "n": "x\ny"},
                "after": {"id": 1, "n": "\x1b[31m"},
                "changed": ["n"],
            },
            [{"name": "id", "type": "int", "key": True}, {"name": "n", "type": "text", "key": False}],
        )
    )
    assert lines == ["~ s.t id=1", "    n: x y →  [31m"]


def test_values_are_shown_on_one_line() -> None:
    assert value(None) == "NULL"
    assert value({"bytes": 300, "hex": "00ff"}) == "0x00ff…"
    assert value({"bytes": 2, "hex": "00ff"}) == "0x00ff"
    assert value({"absent": True}) == "(not logged)"
    assert value({"length": 9000, "text": "abc"}) == "abc"
    assert value("x" * 100) == "x" * 59 + "…"
    assert [size(n) for n in (0, 1023, 1536, 12 << 20, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "12.0 MiB", "5.0 GiB"]


def test_wide_characters_keep_columns_straight() -> None:
    assert cells("小明") == 4
    assert cells("Zoe\u0308") == 3
    assert fit("小明小明", 5) == "小明…"
    assert fit("abc", 3) == "abc"


# --- where the API is ------------------------------------------------------------------------------------------------


def _site(tmp_path: Path, text: str) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "admin.token").write_text("hf_token\n")
    (tmp_path / "holdfast.toml").write_text(text)
    return tmp_path


def test_the_api_is_found_in_the_data_directory(tmp_path: Path) -> None:
    site = _site(tmp_path, "[api]\nport = 9999\n")
    place = find({"HOLDFAST_DATA": str(site)})
    assert (place.url, place.token, place.ca) == ("http://127.0.0.1:9999", "hf_token", None)
    assert find({"HOLDFAST_DATA": str(site), "HOLDFAST_API_PORT": "7"}).url == "http://127.0.0.1:7"


def test_a_site_with_a_certificate_is_asked_over_tls_and_only_that_certificate_counts(tmp_path: Path) -> None:
    site = _site(tmp_path, '[api]\nhost = "0.0.0.0"\ntls_cert = "api.pem"\ntls_key = "api.key"\n')
    place = find({"HOLDFAST_DATA": str(site)})
    assert (place.url, place.ca, place.pinned) == ("https://127.0.0.1:8473", site / "api.pem", True)


def test_a_site_elsewhere_needs_a_token_and_tls(tmp_path: Path) -> None:
    token = tmp_path / "t"
    token.write_text("hf_other\n")
    place = find({"HOLDFAST_URL": "https://backup.example:8473/", "HOLDFAST_TOKEN_FILE": str(token)})
    assert (place.url, place.token) == ("https://backup.example:8473", "hf_other")
    for environ, code in (
        ({"HOLDFAST_URL": "https://backup.example"}, "token-missing"),
        ({"HOLDFAST_URL": "http://backup.example", "HOLDFAST_TOKEN_FILE": str(token)}, "url-plaintext"),
        ({"HOLDFAST_URL": "https://x:port", "HOLDFAST_TOKEN_FILE": str(token)}, "url-invalid"),
        ({"HOLDFAST_URL": "ftp://x", "HOLDFAST_TOKEN_FILE": str(token)}, "url-invalid"),
        ({"HOLDFAST_URL": "https://x", "HOLDFAST_TOKEN_FILE": str(tmp_path / "no")}, "token-missing"),
        ({"HOLDFAST_DATA": str(tmp_path / "nowhere")}, "site-missing"),
    ):
        with pytest.raises(CliError) as caught:
            find(environ)
        assert caught.value.code == code


def test_names_in_paths_cannot_lead_elsewhere() -> None:
    assert segment("../../etc") == "..%2F..%2Fetc"
    assert segment("a?b#c") == "a%3Fb%23c"


# --- the commands ----------------------------------------------------------------------------------------------------


def _commands() -> list[tuple[str, ...]]:
    return [words for words, _ in _within((), cli) if words[0] in {noun.name for noun in NOUNS}]


def _within(path: tuple[str, ...], group: click.Group) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _within((*path, name), command)
        else:
            yield (*path, name), command


@pytest.mark.parametrize("words", _commands())
def test_every_command_explains_itself_and_speaks_json(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"])
    assert shown.exit_code == 0
    assert "--json" in shown.output
    assert "--data-dir" in shown.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_written_for_each_shell(shell: str) -> None:
    made = CliRunner().invoke(cli, ["completion", shell])
    assert made.exit_code == 0
    assert "_HOLDFAST_COMPLETE" in made.output


def test_no_command_takes_a_secret_as_an_argument() -> None:
    for words, command in _within((), cli):
        for parameter in command.params:
            if any(secret in (parameter.name or "") for secret in ("password", "passphrase", "secret", "code")):
                allowed = isinstance(parameter.type, click.Path) or getattr(parameter, "is_flag", False)
                assert allowed, (words, parameter.name)


def test_an_error_is_a_sentence_a_code_and_a_next_step(tmp_path: Path) -> None:
    site = _site(tmp_path, "[api]\nport = 1\n")
    shown = CliRunner().invoke(cli, ["source", "list", "--data-dir", str(site)])
    assert shown.exit_code == 3
    assert shown.stderr.startswith("holdfast: the API at http://127.0.0.1:1 does not answer")
    assert "`holdfast up` starts it" in shown.stderr
    told = CliRunner().invoke(cli, ["source", "list", "--data-dir", str(site), "--json"])
    assert json.loads(told.stderr)["error"]["code"] == "api-unreachable"
    assert told.stdout == ""


def test_one_problem_is_said_once_with_its_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "source-denied", "message": "db1:3306 refuses the account", "hint": "check the password"}
    CliError("source-denied", "protecting shop: db1:3306 refuses the account", problems=[problem]).show()
    assert capsys.readouterr().err.splitlines() == [
        "holdfast: protecting shop: db1:3306 refuses the account (source-denied)",
        "  check the password",
    ]


def test_a_password_file_that_holds_none_is_an_error_of_use(tmp_path: Path) -> None:
    site = _site(tmp_path, "[api]\nport = 1\n")
    (tmp_path / "password").write_bytes(b"\xff\xfe")
    words = [
        "source",
        "add",
        "shop",
        "--host",
        "h",
        "--capture-user",
        "c",
        "--password-file",
        str(tmp_path / "password"),
    ]
    shown = CliRunner().invoke(cli, [*words, "--data-dir", str(site)])
    assert shown.exit_code == 2
    assert "it is not text (password-unreadable)" in shown.stderr


def test_no_token_is_issued_where_its_secret_cannot_be_kept(tmp_path: Path) -> None:
    site = _site(tmp_path, "[api]\nport = 1\n")
    words = ["token", "issue", "eve", "--role", "viewer", "--data-dir", str(site), "-o"]
    assert CliRunner().invoke(cli, [*words, str(tmp_path / "no" / "file")]).exit_code == 2
    assert CliRunner().invoke(cli, [*words, str(tmp_path / "new")]).exit_code == 3
    assert not (tmp_path / "new").exists()


def test_starting_a_command_loads_no_driver_and_no_http_library(tmp_path: Path) -> None:
    """What a command needs before its first request is most of what the user waits for."""
    site = _site(tmp_path, "[api]\nport = 1\n")
    script = (
        "import sys\n"
        "from deploy.cli import cli\n"
        "try:\n    cli(['rollback', 'run', 'x', '--yes'], prog_name='holdfast')\n"
        "except SystemExit as end:\n    assert end.code == 3, end.code\n"
        "heavy = {'psycopg', 'confluent_kafka', 'fastavro', 'httpx', 'rich', 'starlette', 'yaml', 'faust', 'asyncio', 'ssl'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "HOLDFAST_DATA": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() in ("[]", "['ssl']"), done.stderr


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("7", ["7"], ["7"]),
        ("-5..12", ["-5"], ["12"]),
        ("7,de", ["7", "de"], ["7", "de"]),
        ('"a,b"', ["a,b"], ["a,b"]),
        ('"1..2"', ["1..2"], ["1..2"]),
        ("1,a..1,b", ["1", "a"], ["1", "b"]),
    ],
)
def test_keys_are_written_as_values_ranges_and_parts(text: str, first: list[str], last: list[str]) -> None:
    assert _key_range(text) == {"first": first, "last": last}


def test_hardware_of_a_restored_machine_is_read_from_words() -> None:
    card = Nic().convert("lab,model=e1000,mac=52:54:00:AB:00:01", None, None)
    assert card == {"network": "lab", "model": "e1000", "mac": "52:54:00:ab:00:01"}
    assert Nic().convert("lab", None, None) == {"network": "lab"}
    assert [Memory().convert(text, None, None) for text in ("512M", "4GiB")] == [512 << 20, 4 << 30]
    for kind, text in ((Nic(), "lab,speed=9"), (Nic(), "lab,mac="), (Memory(), "4096"), (Memory(), "lots")):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


class Going:
    """An API that shows a run as it goes on, one look after the other, and notes what it is asked."""

    def __init__(self, *looks: dict[str, Any] | None) -> None:
        self.looks, self.told = list(looks), list[str]()

    def get(self, path: str, **query: Any) -> Any:
        found = self.looks.pop(0)
        if found is None:
            raise CliError("run-unknown", "it has not come yet")
        return found

    def post(self, path: str, body: Any = None) -> Any:
        self.told.append(path)
        if path.endswith("/2/cancel"):
            raise CliError("job-ended", "it was faster")


def run_of(state: str, **jobs: str) -> dict[str, Any]:
    shown = {"message": "", "done": 0, "total": 0, "unit": ""}
    tasks = [{"asset": f"m{n}", "jobs": [{"job": n[1:], "state": s, **shown}]} for n, s in jobs.items()]
    return {"state": state, "tasks": tasks, "made": {"assets": [t["asset"] for t in tasks]}}


def test_a_run_that_is_to_end_has_each_of_its_jobs_told_once_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.cli.runs._LOOK_S", 0.0)
    ended = run_of("ended", j1="cancelled", j2="finished", j3="cancelled")
    api = Going(
        None,
        run_of("going", j1="started", j2="started"),
        run_of("going", j1="started", j2="finished", j3="accepted"),
        ended,
    )
    assert follow(Ask(api, True), "r", "nightly", cancel=True) is ended  # type: ignore[arg-type]
    assert api.told == [f"/v1/jobs/{n}/cancel" for n in (1, 2, 3)]
    watched = Going(run_of("going", j1="started"), ended)
    assert follow(Ask(watched, True), "r", "nightly") is ended  # type: ignore[arg-type]
    assert watched.told == []


def test_machines_of_one_moment_are_told_once_as_they_have_one_job() -> None:
    api = Going()
    both = run_of("going", j1="started", j2="started")
    both["tasks"][1]["jobs"] = both["tasks"][0]["jobs"]
    assert cancel_open(Ask(api, True), both) == ["1"]  # type: ignore[arg-type]


def test_what_a_saved_job_says_is_put_together_from_options() -> None:
    given: dict[str, Any] = dict.fromkeys(("names", "hosts", "folders", "tags", "excepts", "paths", "disks"), ())
    given |= {"names": ("web-*",), "disks": ("web-1=vda", "web-1=vdb"), "together": True, "mode": None}
    assert merged({"kind": "backup.run", "schedule": []}, given) == {
        "kind": "backup.run",
        "schedule": [],
        "assets": {"names": ["web-*"]},
        "disks": {"web-1": ["vda", "vdb"]},
        "together": True,
    }
    with pytest.raises(click.BadParameter):
        merged({}, {**given, "disks": ("vda",)})
