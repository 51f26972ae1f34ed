"""Makes the golden files of index runs and of what a repository says of itself: `python -P -m tests.golden.repository.runs`.

The test beside them (`tests/unit/agents/repository/test_golden_runs.py`) reads each, and compares it with what is made here.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from agents.repository import repository, runs
from agents.repository.repository import Definition
from agents.repository.runs import Covered, Run

HERE = Path(__file__).parent
REPOSITORY = UUID("01900000-0000-7000-8000-000000000001")


def run() -> Run:
    packs = tuple(Covered(bytes([i]) * 16, f"packs/{i:02x}/{(bytes([i]) * 16).hex()}-node_a-7.pack") for i in (1, 2))
    entries = [
        runs.entry(bytes([1]) * 32, 0, 56, 1000, 4096, 1, 1),
        runs.entry(bytes([2]) * 32, 0, 1136, 2000, 262144, 2, 0),
        runs.entry(bytes([2]) * 32, 1, 56, 2000, 262144, 2, 0),
        runs.entry(bytes([255]) * 32, 1, (1 << 40) + 5, 4294967295, 16777216, 5, 1),
    ]
    return Run(UUID("01900000-0000-7000-8000-0000000000aa"), packs, b"".join(entries))


def definitions() -> dict[str, Definition]:
    key = bytes(range(32))
    check = repository.key_check(key)
    return {
        "sealed.json": Definition(REPOSITORY, 1_764_000_000_123_456, key_check=check),
        "clear.json": Definition(REPOSITORY, 5, False, 131072, 1 << 20, 3, key, check),
    }


def files() -> dict[str, bytes]:
    made = {f"repository-{name}": repository.encode(one) for name, one in definitions().items()}
    return {"index.run": b"".join(runs.encode(run(), REPOSITORY)), **made}


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
