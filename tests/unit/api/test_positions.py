"""What a user may call a step by, and what the steps of a log are called: MariaDB, MySQL with GTIDs and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.timeline import resolve
from streams.capture_log import StepFragment
from streams.formats.binlog import events as ev
from streams.formats.binlog.step import split_steps, summarise

GOLDEN = Path(__file__).parents[2] / "golden" / "binlog"
UUID = "5e90bb75-e8fc-11f1-859a-02fc00000001"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("0-1-100", "0-1-100"),
        (f"{UUID}:7", f"{UUID}:7"),
        (f"{UUID.upper()}:1-7", f"{UUID}:7"),
        (f"{UUID}:nightly:12", f"{UUID}:nightly:12"),
        ("binlog.000003:1567", "binlog.000003:1567"),
        (f"{UUID}/1700000000/mysql-bin.000003:4", "mysql-bin.000003:4"),
        ("nonsense", ""),
        (UUID, ""),
        ("binlog:5", ""),
        ("", ""),
    ],
)
def test_positions_as_people_write_them(said: str, meant: str) -> None:
    assert resolve._canonical(said) == meant


@pytest.mark.parametrize("name", ["groups", "mysql9", "mysql9_anonymous", "mysql55"])
def test_every_step_is_found_by_what_the_timeline_calls_it(name: str) -> None:
    raw = (GOLDEN / f"{name}.binlog").read_bytes()[4:]
    fde = ev.parse_format_description(raw[: int.from_bytes(raw[9:13], "little")])
    # Capture keeps what prepares an XA transaction with the outcome: by itself it is no step.
    steps = [bytes(s) for s in split_steps(fde, raw) if not (s[4] == ev.GTID and s[31] & ev.GTID_PREPARED_XA)]
    fragments = [StepFragment(n, 0, True, fde.raw, s, False, 0, "", 0, "log.000001") for n, s in enumerate(steps, 1)]
    for fragment, step in zip(fragments, steps, strict=True):
        summary = summarise(fde, step)
        called = summary.gtid or f"log.000001:{summary.end}"
        assert resolve._canonical(called) == called
        assert [f.ordinal for f in fragments if resolve._is(f, called)] == [fragment.ordinal]
    numbered = name in ("groups", "mysql9")
    assert all((summarise(fde, s).gtid != "") == numbered for s in steps)
