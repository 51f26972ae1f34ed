"""Children run while they are wanted, come back when they die, and stay down when they say that only a user can help."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agents.processes import EXIT_STOPPED, Processes, Role
from tests.stack.agent import await_it

BOTH: frozenset[Role] = frozenset({"capture", "index"})
Make = Callable[..., Processes]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Processes] = []

    def processes(program: str, on_stopped: Callable[[str, Role], None] = lambda *_: None) -> Processes:
        """`program` is Python; it finds the source, the role and a folder in `sys.argv`."""

        def command(source: str, role: Role) -> list[str]:
            return [sys.executable, "-P", "-c", f"import sys, time, signal\n{program}", source, role, str(tmp_path)]

        made.append(Processes(tmp_path / "holdfast.toml", on_stopped, command))
        return made[-1]

    yield processes
    for one in made:
        one.close()
        assert not one.alive


def test_what_is_wanted_runs_and_nothing_else(make: Make) -> None:
    processes = make("time.sleep(600)")
    processes.want("a", BOTH)
    processes.want("b", frozenset({"index"}))
    await_it(lambda: processes.figures()["children_running"] == 3, "three children")
    assert not processes.running("b", "capture")
    processes.want("a", frozenset({"index"}))
    assert processes.await_settled("a")
    assert (processes.running("a", "capture"), processes.running("a", "index")) == (False, True)
    processes.close()
    assert processes.figures()["children_running"] == 0


def test_what_dies_comes_back_after_growing_pauses(make: Make, tmp_path: Path) -> None:
    processes = make("open(sys.argv[3] + '/starts', 'a').write(f'{time.monotonic()}\\n'); sys.exit(1)")
    processes.want("a", frozenset({"capture"}))
    starts = await_it(lambda: _times(tmp_path) if len(_times(tmp_path)) >= 4 else None, "four starts", 30)
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1.0
    assert pauses[2] >= 2.0


def _times(folder: Path) -> list[float]:
    path = folder / "starts"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def test_who_stopped_for_good_stays_down_until_wanted_anew(make: Make, tmp_path: Path) -> None:
    stopped: list[tuple[str, Role]] = []
    program = f"open(sys.argv[3] + '/starts', 'a').write(f'{{time.monotonic()}}\\n'); sys.exit({EXIT_STOPPED})"
    processes = make(program, lambda source, role: stopped.append((source, role)))
    processes.want("a", frozenset({"capture"}))
    await_it(lambda: stopped == [("a", "capture")], "the word that it stopped")
    processes.want("a", frozenset({"capture"}))
    time.sleep(1.5)  # longer than the first pause: it does not come back
    assert len(_times(tmp_path)) == 1
    processes.want("a", frozenset({"capture"}), anew=True)
    await_it(lambda: len(_times(tmp_path)) == 2, "the second start")


def test_who_does_not_end_is_killed(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("agents.processes.GRACE_S", 0.5)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[3] + '/deaf', 'w'); time.sleep(600)"
    processes = make(deaf)
    processes.want("a", frozenset({"capture"}))
    await_it((tmp_path / "deaf").exists, "a child that hears nothing")
    processes.want("a", frozenset())
    assert processes.await_settled("a", 10)
