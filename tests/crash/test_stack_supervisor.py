"""The supervisor: starts again what dies, says what is not well, ends everything, and leaves nothing when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.embedded import site, state
from deploy.embedded.process import Identity, wait_until
from deploy.embedded.stack import Choices, make_stack
from deploy.embedded.supervisor import end_leftovers
from tests.stack.servers import Scratch

pytestmark = pytest.mark.crash


class Run:
    """One toy supervisor and what it reports."""

    def __init__(self, data_dir: Path, *services: str) -> None:
        self.data_dir = data_dir
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.stack.toy_site", str(data_dir), *services],
            stdout=subprocess.DEVNULL,
        )

    def service(self, name: str) -> state.ServiceReport:
        report = state.read(self.data_dir)
        assert report is not None
        return report.services[name]

    def identity(self, name: str) -> Identity:
        identity = self.service(name).identity()
        assert identity is not None
        return identity

    def await_(self, condition: Callable[[state.Report], bool]) -> None:
        def holds() -> bool:
            report = state.read(self.data_dir)
            return report is not None and report.pid == self.popen.pid and condition(report)

        assert wait_until(holds, 20), state.read(self.data_dir)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    scratch = Scratch("supervisor")
    make_stack(scratch.path / "site", Choices())
    yield scratch.path / "site"
    scratch.remove()


@pytest.fixture
def start(data_dir: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def begin(*services: str) -> Run:
        runs.append(Run(data_dir, *services))
        return runs[-1]

    yield begin
    for run in runs:
        run.popen.kill()
        run.popen.wait()
    end_leftovers(data_dir, 1)


def test_a_service_that_dies_is_started_again(start: Callable[..., Run]) -> None:
    run = start("steady")
    run.await_(lambda report: report.well)
    first = run.identity("steady")

    first.signal(signal.SIGKILL)

    run.await_(lambda report: report.well and report.services["steady"].restarts == 1)
    assert run.identity("steady") != first


def test_one_that_cannot_be_started_ends_the_start_with_its_last_words(start: Callable[..., Run]) -> None:
    run = start("steady", "clumsy")
    assert run.popen.wait(120) == 1
    report = state.read(run.data_dir)
    assert report is not None
    assert report.phase == "failed"
    assert "clumsy ended 3 times while starting: tripped" in report.message
    assert "clumsy.log" in report.hint
    assert report.services["steady"].pid is None
    assert site.holder(run.data_dir) is None


def test_one_that_learns_in_time_comes_up(start: Callable[..., Run]) -> None:
    run = start("clumsy")
    run.await_(lambda report: report.services["clumsy"].state == "restarting")
    (run.data_dir / "learnt").touch()
    run.await_(lambda report: report.well)
    assert run.service("clumsy").restarts >= 1


def test_one_that_is_not_well_is_reported_and_left_running(start: Callable[..., Run], data_dir: Path) -> None:
    well = data_dir / "well"
    well.touch()
    run = start("hurt")
    run.await_(lambda report: report.well)
    process = run.identity("hurt")

    well.unlink()
    run.await_(lambda report: report.services["hurt"].state == "unwell")
    assert (run.service("hurt").detail, run.identity("hurt")) == ("it hurts", process)

    well.touch()
    run.await_(lambda report: report.well)
    assert run.service("hurt").restarts == 0


def test_nothing_is_left_when_it_is_told_to_end(start: Callable[..., Run]) -> None:
    run = start("steady", "stubborn")
    run.await_(lambda report: report.well)
    processes = [run.identity("steady"), run.identity("stubborn")]

    run.popen.send_signal(signal.SIGTERM)

    assert run.popen.wait(120) == 0
    assert [p.alive() for p in processes] == [False, False]


def test_when_it_is_killed_its_services_end_by_themselves(start: Callable[..., Run]) -> None:
    run = start("steady")
    run.await_(lambda report: report.well)
    process = run.identity("steady")

    run.popen.kill()

    assert process.wait_gone(60)
    assert wait_until(lambda: site.holder(run.data_dir) is None, 60)


def test_what_a_killed_one_left_behind_is_ended_before_the_next_start(start: Callable[..., Run]) -> None:
    run = start("steady", "stubborn")
    run.await_(lambda report: report.well)
    left = run.identity("stubborn")
    run.popen.kill()
    run.popen.wait()
    assert left.alive()

    assert end_leftovers(run.data_dir, patience=1) == ["stubborn"]

    assert not left.alive()


def test_a_pid_that_was_handed_on_is_not_touched(data_dir: Path) -> None:
    """After a reboot the pids in the last report are other people's."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as stranger:
        service = state.ServiceReport("steady", "running", "", pid=stranger.pid, started=1_000_000.0)
        state.write(data_dir, state.Report("running", 1, services={"steady": service}))
        assert end_leftovers(data_dir, patience=1) == []
        assert stranger.poll() is None
        stranger.kill()


def test_a_second_one_is_refused(start: Callable[..., Run], data_dir: Path) -> None:
    run = start("steady")
    run.await_(lambda report: report.well)
    second = subprocess.run(
        [sys.executable, "-P", "-m", "tests.stack.toy_site", str(data_dir), "steady"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert "already-running" in second.stderr
    assert run.popen.poll() is None


def test_logs_are_cut_and_a_few_kept(start: Callable[..., Run], data_dir: Path) -> None:
    run = start("chatty")
    log = data_dir / "logs" / "chatty.log"
    assert wait_until(lambda: log.with_name("chatty.log.3").exists(), 60)
    run.await_(lambda report: report.well)
    kept = sorted(p.name for p in log.parent.glob("chatty.log*"))
    assert kept == ["chatty.log", "chatty.log.1", "chatty.log.2", "chatty.log.3"]
    assert log.stat().st_size < 16 << 20
    assert run.service("chatty").restarts == 0
