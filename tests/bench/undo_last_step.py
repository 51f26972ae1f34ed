"""`undo-last-step`: undo the newest step of a long log, from the start of the commands to their end.

`holdfast rollback plan --steps 1` and `holdfast rollback run --yes`, as two processes, wall time of both: after a million
real one-row steps, and again when the log has ten million (`tests.bench.generated`). How long the log is must make no
difference.
"""

from __future__ import annotations

import statistics
import time

from tests.bench import ground
from tests.bench.ground import DATABASE
from tests.bench.report import Report, report
from tests.bench.site import SOURCE, BenchSite, bench_site, long_log, protect

REAL = 1_000_000
TOTAL = 10_000_000
_TABLE = "steps"


def run(rounds: int, scale: float) -> Report:
    real, total = int(REAL * scale), int(TOTAL * scale)
    with bench_site() as site:
        site.mariadb.execute(ground.WIDE.format(name=_TABLE), database=DATABASE)
        protect(site)
        ground.one_row_inserts(site.mariadb, _TABLE, real)
        site.indexed(site.captured())
        short = _undone(site, rounds)
        long_log(site, _TABLE, real, total)
        long = _undone(site, rounds)
    figures = {
        "seconds_after_1m": statistics.median(short),
        "seconds_after_10m": statistics.median(long),
        "least_after_1m": min(short),
        "least_after_10m": min(long),
        "steps_first": real,
        "steps_then": total,
    }
    return report("undo-last-step", long, short, "the same after a tenth of the steps", "s", "less", figures)


def _undone(site: BenchSite, rounds: int) -> list[float]:
    seconds = []
    before = _checksum(site)
    # A few more than asked for: each takes a second.
    for number in range(2 * rounds + 1):
        site.mariadb.execute(f"update {_TABLE} set name = 'changed' where id = 7", database=DATABASE)
        site.captured()
        started = time.perf_counter()
        plan = site.stage.json("rollback", "plan", SOURCE, "--steps", "1")
        site.stage.json("rollback", "run", str(plan["plan"]), "--yes")
        taken = time.perf_counter() - started
        if _checksum(site) != before:
            raise RuntimeError("the table is not as it was before the step")
        if number > 0:
            seconds.append(taken)
    return seconds


def _checksum(site: BenchSite) -> int:
    return int(site.mariadb.execute(f"checksum table {_TABLE} extended", database=DATABASE)[0][1])
