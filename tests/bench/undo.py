"""`undo-100k`: 100,000 one-row transactions (a third each of inserts, updates, deletes) undone.

Ours: `holdfast rollback plan` and `holdfast rollback run` as a user types them, from start to end: two processes of the
command line, the API, the plan made from the log, the guard, the rollback's own step captured. The peer:
`mariadb-binlog --flashback` of the same kind of transactions' binlog, piped into `mariadb`, while nothing captures. The
source flushes every commit for both, and both leave the table as it was: checksums are compared.

The peer commits each transaction by itself; a figure says what it takes in one, as somebody would do who edits its output.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time

from tests.bench import ground
from tests.bench.report import Report, Skip, report
from tests.bench.site import SOURCE, BenchSite, bench_site, protect

_LOAD = (
    "create or replace procedure mix(n int) begin declare i int default 1; while i <= n do "
    "insert into undone values (1000000 + i, concat('new ', i), i, now()); "
    "update undone set amount = amount + 1, name = concat('changed ', id) where id = i; "
    "delete from undone where id = n + i; set i = i + 1; end while; end"
)

PEER_S = 120.0
# Takes the peer's own transactions out of its output, and its last ROLLBACK, and puts one round it all.
_ONE_TRANSACTION = (
    *("-e", "1i begin;", "-e", "$a commit;", "-e", "/^START TRANSACTION/d"),
    *("-e", r"/^COMMIT$/,/^\/\*!\*\/;$/d", "-e", "/^ROLLBACK/d"),
)


def hundred_thousand(rounds: int, scale: float) -> Report:
    third = int(33_334 * scale)
    ours: list[float] = []
    peer: list[float] = []
    edited: list[float] = []
    plans: list[float] = []
    runs: list[float] = []
    with bench_site() as site:
        program = ground.binlog_program(site.mariadb)
        if program is None:
            raise Skip("there is no mariadb-binlog here")
        site.mariadb.execute(ground.WIDE.format(name="undone"), database=ground.DATABASE)
        site.mariadb.execute(
            f"insert into undone select seq, concat('row ', seq), seq * 1.25, now() from seq_1_to_{2 * third}",
            _LOAD,
            database=ground.DATABASE,
        )
        protect(site)
        before = _checksum(site)
        for number in range(rounds + 1):
            _mix(site, third)
            site.indexed(site.captured())
            plan, seconds_plan = _planned(site, third * 3)
            seconds_run = _ran(site, plan)
            _same(before, _checksum(site), "ours")
            if number > 0:
                plans.append(seconds_plan)
                runs.append(seconds_run)
                ours.append(seconds_plan + seconds_run)
            site.captured()
            site.stage.holdfast("source", "pause", SOURCE, show=False)
            edited.append(_flashback(site, program, third, before, one_transaction=True))
            # A flush for each of 100,000 transactions: as many rounds as fit into some minutes, one at least.
            if number > 0 and sum(peer) < PEER_S:
                peer.append(_flashback(site, program, third, before, one_transaction=False))
            site.stage.holdfast("source", "resume", SOURCE, show=False)
    figures = {
        "plan_s": statistics.median(plans),
        "run_s": statistics.median(runs),
        "flashback_in_one_transaction_s": statistics.median(edited[1:]),
        "ratio_to_that": statistics.median(edited[1:]) / statistics.median(ours),
        "transactions": third * 3,
    }
    return report("undo-100k", ours, peer, "mariadb-binlog --flashback | mariadb", "s", "less", figures)


def _mix(site: BenchSite, third: int) -> None:
    with ground.fast_source(site.mariadb) as connection, connection.cursor() as cursor:
        cursor.execute(f"call mix({third})")


def _planned(site: BenchSite, steps: int) -> tuple[str, float]:
    started = time.perf_counter()
    plan = site.stage.json("rollback", "plan", SOURCE, "--steps", str(steps))
    return str(plan["plan"]), time.perf_counter() - started


def _ran(site: BenchSite, plan: str) -> float:
    started = time.perf_counter()
    site.stage.json("rollback", "run", plan, "--yes")
    return time.perf_counter() - started


def _flashback(site: BenchSite, program: str, third: int, before: int, *, one_transaction: bool) -> float:
    """Have the peer undo such a load; seconds."""
    file = _rotate(site)
    _mix(site, third)
    _rotate(site)
    log = str(site.mariadb.datadir / file)
    client = site.mariadb.client_command().split()
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(subprocess.Popen([program, "--flashback", log], stdout=subprocess.PIPE))]
        if one_transaction:
            editing = subprocess.Popen(["sed", *_ONE_TRANSACTION], stdin=stages[-1].stdout, stdout=subprocess.PIPE)
            stages.append(stack.enter_context(editing))
        subprocess.run(client, stdin=stages[-1].stdout, check=True, timeout=900)
    if any(stage.returncode for stage in stages):
        raise RuntimeError("mariadb-binlog --flashback failed")
    seconds = time.perf_counter() - started
    _same(before, _checksum(site), "flashback")
    return seconds


def _rotate(site: BenchSite) -> str:
    """Start a new binlog file; its name."""
    site.mariadb.execute("flush binary logs")
    return ground.binlogs(site.mariadb)[-1][0]


def _checksum(site: BenchSite) -> int:
    return int(site.mariadb.execute("checksum table undone extended", database=ground.DATABASE)[0][1])


def _same(before: int, after: int, who: str) -> None:
    if before != after:
        raise RuntimeError(f"{who}: the table is not as it was")
