"""`undo-100k`: 100,000 one-row transactions (a third each of inserts, updates, deletes) undone.

Ours: the plan made from the log, and that plan run with its guard, from the start of each job to its end as the log has
it. The peer: `mariadb-binlog --flashback` of the same transactions' binlog, piped into `mariadb`. Both leave the table as
it was: checksums are compared.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench import ground
from tests.bench.report import Report, Skip, report
from tests.bench.site import SOURCE, BenchSite, bench_site, protect

_LOAD = (
    "create or replace procedure mix(n int) begin declare i int default 1; while i <= n do "
    "insert into undo values (1000000 + i, concat('new ', i), i, now()); "
    "update undo set amount = amount + 1, name = concat('changed ', id) where id = i; "
    "delete from undo where id = n + i; set i = i + 1; end while; end"
)


def hundred_thousand(rounds: int, scale: float) -> Report:
    third = int(33_334 * scale)
    ours: list[float] = []
    peer: list[float] = []
    plans: list[float] = []
    runs: list[float] = []
    with bench_site() as site:
        program = _flashback(site)
        site.mariadb.execute(ground.WIDE.format(name="undo"), database=ground.DATABASE)
        site.mariadb.execute(
            f"insert into undo select seq, concat('row ', seq), seq * 1.25, now() from seq_1_to_{2 * third}",
            database=ground.DATABASE,
        )
        protect(site)
        site.mariadb.execute(_LOAD, database=ground.DATABASE)
        for number in range(rounds + 1):
            before = _checksum(site)
            _mix(site, third)
            plan, seconds_plan = _planned(site, third * 3)
            seconds_run = _ran(site, plan)
            _same(before, _checksum(site), "ours")
            file = _rotate(site)
            _mix(site, third)
            _rotate(site)
            started = time.perf_counter()
            _undo_by_flashback(site, program, file)
            seconds_peer = time.perf_counter() - started
            _same(before, _checksum(site), "flashback")
            if number > 0:
                plans.append(seconds_plan)
                runs.append(seconds_run)
                ours.append(seconds_plan + seconds_run)
                peer.append(seconds_peer)
    figures = {
        "plan_s": sorted(plans)[len(plans) // 2],
        "run_s": sorted(runs)[len(runs) // 2],
        "transactions": third * 3,
    }
    return report("undo-100k", ours, peer, "mariadb-binlog --flashback | mariadb", "s", "less", figures)


def _mix(site: BenchSite, third: int) -> None:
    with ground.fast_source(site.mariadb) as connection, connection.cursor() as cursor:
        cursor.execute(f"call mix({third})")


def _planned(site: BenchSite, steps: int) -> tuple[str, float]:
    _wait_for_capture(site)
    plan = site.stage.json("rollback", "plan", SOURCE, "--steps", str(steps))
    return str(plan["plan"]), _job_seconds(site, "rollback.plan")


def _ran(site: BenchSite, plan: str) -> float:
    site.stage.json("rollback", "run", plan, "--yes")
    return _job_seconds(site, "rollback.run")


def _wait_for_capture(site: BenchSite) -> None:
    """Until the newest step shown is the source's newest transaction."""
    newest = ground.position(site.mariadb)
    ground.until(
        lambda: site.stage.json("timeline", "show", SOURCE, "--limit", "1")["steps"][0]["position"] == newest, 300, 0.2
    )


def _job_seconds(site: BenchSite, kind: str) -> float:
    """From `started` to `finished` of the newest job of a kind."""
    jobs: list[dict[str, Any]] = site.stage.json("job", "list", "--kind", kind, "--limit", "1")["jobs"]
    job = site.stage.json("job", "show", jobs[0]["id"])
    at = {h["state"]: datetime.fromisoformat(h["at"]) for h in job["history"]}
    return (at["finished"] - at["started"]).total_seconds()


def _rotate(site: BenchSite) -> str:
    """Start a new binlog file; its name."""
    site.mariadb.execute("flush binary logs")
    return ground.binlogs(site.mariadb)[-1][0]


def _flashback(site: BenchSite) -> str:
    program = shutil.which("mariadb-binlog")
    bundled = Path(site.mariadb.installation.mariadbd).with_name("mariadb-binlog")
    if program is None and not bundled.exists():
        raise Skip("there is no mariadb-binlog here")
    return program or str(bundled)


def _undo_by_flashback(site: BenchSite, program: str, file: str) -> None:
    client = site.mariadb.client_command().split()
    dump = subprocess.Popen([program, "--flashback", str(site.mariadb.datadir / file)], stdout=subprocess.PIPE)
    assert dump.stdout is not None
    subprocess.run(client, stdin=dump.stdout, check=True, timeout=900)
    dump.stdout.close()
    if dump.wait() != 0:
        raise RuntimeError("mariadb-binlog --flashback failed")


def _checksum(site: BenchSite) -> int:
    return int(site.mariadb.execute("checksum table undo extended", database=ground.DATABASE)[0][1])


def _same(before: int, after: int, who: str) -> None:
    if before != after:
        raise RuntimeError(f"{who}: the table is not as it was")
