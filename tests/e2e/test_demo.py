"""The end-to-end script that closes "the spine": `./dev demo`, as a newcomer runs it, on real Kafka, PostgreSQL and MariaDB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.embedded.ports import free_ports
from tests.stack.servers import Scratch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site_directory() -> Iterator[Path]:
    scratch = Scratch("demo")
    yield scratch.path
    scratch.remove()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["any"])
def test_the_demonstration_proves_every_claim_it_makes(site_directory: Path, version: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "deploy.demo"),
            *("--data-dir", str(site_directory), "--mariadb", version, "--transactions", "150", "--stop", "--json"),
            *("--port-api", str(free_ports(1)[0])),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert set(said["proved"]) == {
        "planning_touches_nothing",
        "rolled_back",
        "rolled_forward",
        "rolled_back_again",
        "projections_equal",
    }
    before, after = said["proved"]["rolled_back"], said["proved"]["rolled_forward"]
    assert before == said["proved"]["rolled_back_again"]
    assert all(before[table] != after[table] for table in before), "the accident touched every table"
    assert len(said["proved"]["projections_equal"]) >= 5
