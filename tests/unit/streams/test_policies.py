"""Policies as documents: what is refused, what is selected, what is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import StreamError
from streams.policies import (
    KINDS,
    Selection,
    canonical,
    command_id,
    command_of,
    document,
    microseconds,
    moment,
    parse,
    run_id,
    schedule_of,
    selected,
    tasks,
)

BACKUP: dict[str, Any] = {
    "kind": "backup.run",
    "repository": "vault",
    "assets": {"names": ["*"]},
    "schedule": ["Daily 2:00"],
}


@dataclass(frozen=True)
class Seen:
    asset: str
    name: str = ""
    host: str = "kvm-1"
    folder: str = ""
    tags: tuple[str, ...] = ()


def test_equal_policies_are_equal_texts_and_are_read_back() -> None:
    one = parse(BACKUP)
    assert one.schedule == ("daily 02:00",)
    assert canonical(one) == canonical(parse({**BACKUP, "schedule": ["daily 02:00"], "priority": 0}))
    for kind in KINDS:
        made: dict[str, Any] = {"kind": kind, "schedule": ["weekly mon-fri 22:00"], "windows": ["22:00-06:00"]}
        made |= {"repository": "vault"} if kind != "asset.discover" else {}
        made |= {"assets": {"tags": ["gold"]}} if kind == "backup.run" else {}
        made |= {"paths": {"a": "/srv"}} if kind == "backup.make" else {}
        found = parse(made)
        assert parse(canonical(found)) == parse(document(found)) == found
        assert schedule_of(found).windows


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "backup.eat"}, {"repository": ""}, {"schedule": None}, {"schedule": ["sometimes"]}, {"zone": "Mars/North"},
        {"assets": {}}, {"assets": {"colours": ["red"]}}, {"assets": ["*"]}, {"colour": "red"}, {"percent": 5},
        {"retries_s": [-1]}, {"retries_s": 5}, {"retries_s": [True]}, {"priority": 100}, {"priority": "high"},
        {"missed": "maybe"}, {"enabled": 1}, {"windows": ["always"]}, {"paths": {"a": "/x"}}, {"mode": "partial"},
        {"repository": "a\0b"}, {"schedule": [], "windows": ["mon"]}, {"together": 1}, {"disks": ["vda"]},
        {"disks": {"web": []}}, {"disks": {"web": [""]}}, {"disks": {"": ["vda"]}},
    ],
)  # fmt: skip
def test_what_no_policy_can_say_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StreamError):
        parse({**BACKUP, **wrong})


NAMES = st.sampled_from([*BACKUP, "zone", "windows", "retries_s", "names", "x"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
)


@given(ANY)
def test_any_json_is_a_policy_or_refused(value: object) -> None:
    for given_ in (json.dumps(value), {**BACKUP, **value} if isinstance(value, dict) else {}):
        try:
            found = parse(given_)
        except StreamError:
            continue
        assert parse(canonical(found)) == found


@pytest.mark.parametrize(
    ("selection", "asset", "takes"),
    [
        (Selection(names=("web-*",)), Seen("web-1"), True),
        (Selection(names=("Web 0?",)), Seen("m-17", name="WEB 01"), True),
        (Selection(names=("web",)), Seen("web-1"), False),
        (Selection(folders=("/prod",)), Seen("a", folder="/prod/web"), True),
        (Selection(folders=("prod/*",)), Seen("a", folder="/prod/web/old"), True),
        (Selection(folders=("/prod",)), Seen("a", folder="/production"), False),
        (Selection(tags=("gold", "silver")), Seen("a", tags=("silver",)), True),
        (Selection(tags=("gold",), hosts=("kvm-2",)), Seen("a", tags=("gold",)), False),
        (Selection(), Seen("a"), False),
    ],
)
def test_a_selection_takes_what_every_list_has_a_pattern_for(selection: Selection, asset: Seen, takes: bool) -> None:
    assert selection.takes(asset) == takes


def test_exclusions_win() -> None:
    policy = parse({**BACKUP, "except": {"names": ["web-test*"]}})
    assert selected(policy, [Seen("web-test-1"), Seen("web-1"), Seen("db")]) == ["db", "web-1"]


def test_ids_follow_from_what_they_are_of_and_sort_by_their_instant() -> None:
    run = run_id("nightly", 1, 1_780_000_000_000_000)
    assert run == run_id("nightly", 1, 1_780_000_000_000_000)
    others = {run_id("nightly", 2, 1_780_000_000_000_000), run_id("hourly", 1, 1_780_000_000_000_000), run}
    commands = {command_id(run, 1_780_000_000_000_000, a, n) for a in ("a", "b") for n in (0, 1)}
    assert (len(others), len(commands)) == (3, 4)
    assert run < run_id("nightly", 1, 1_780_000_000_001_000)
    assert run[14] == "8"


def test_commands_are_what_agents_take() -> None:
    apart = parse({**BACKUP, "mode": "full", "disks": {"web": ["vda"], "wiki": ["vdb"]}})
    assert [command_of(apart, task, "r") for task in tasks(apart, ["db", "web"])] == [
        ("asset/db", {"repository": "vault", "asset": "db", "quiesce": "try", "mode": "full"}),
        (
            "asset/web",
            {"repository": "vault", "asset": "web", "quiesce": "try", "mode": "full", "disks": {"web": ["vda"]}},
        ),
    ]
    expire = parse({"kind": "point.expire", "repository": "vault", "schedule": ["daily 06:00"]})
    assert selected(expire, []) == ["vault"]
    (task,) = tasks(expire, ["vault"])
    assert command_of(expire, task, "r")[1]["unattended"] is True


def test_machines_of_one_moment_are_one_command_and_a_single_one_is_as_ever() -> None:
    together = parse({**BACKUP, "together": True, "disks": {"web": ["vda"]}})
    (task,) = tasks(together, ["db", "web"])
    assert command_of(together, task, "r") == (
        "group/r",
        {"repository": "vault", "assets": ["db", "web"], "quiesce": "try", "disks": {"web": ["vda"]}},
    )
    (alone,) = tasks(together, ["db"])
    assert command_of(together, alone, "r")[0] == "asset/db"


def test_what_came_later_is_not_said_where_it_says_nothing() -> None:
    """An agent of before reads what does not use it; settings that were exported before differ in nothing."""
    assert canonical(parse({**BACKUP, "together": False, "disks": {}})) == canonical(parse(BACKUP))
    assert "together" not in canonical(parse(BACKUP))


def test_what_has_no_schedule_runs_by_hand_and_must_say_so() -> None:
    saved = parse({**BACKUP, "schedule": []})
    assert saved.by_hand
    assert parse(canonical(saved)) == saved
    with pytest.raises(StreamError, match="schedule is missing"):
        parse({name: value for name, value in BACKUP.items() if name != "schedule"})


@given(st.integers(0, 4 * 10**15))
def test_moments_are_exact(us: int) -> None:
    assert microseconds(moment(us)) == us
