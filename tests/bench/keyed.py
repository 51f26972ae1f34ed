"""`undo-selective` and `row-history`: what looking for a few keys in ten million steps takes.

A thousand orders; a hundred of them are updated, one transaction each, in twenty places of a million real one-row steps. The
other nine million are generated (`tests.bench.generated`), none writes an order.

`undo-selective` is `holdfast rollback undo --table bench.orders --keys 101..200`, from the start of the command to the shown
plan; the plan is then run, and the rows compared. `row-history` is one page of an order's versions over HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from agents.capture.granules import MAX_STEPS
from tests.bench import ground
from tests.bench.ground import DATABASE
from tests.bench.report import Report, percentile, report
from tests.bench.site import SOURCE, BenchSite, bench_site, long_log, protect

REAL = 1_000_000
TOTAL = 10_000_000
PLACES = 20
KEYS = (101, 200)
_TABLE = "steps"
_ORDERS = f"{DATABASE}.orders"


@dataclass(frozen=True, slots=True)
class _Ground:
    """`first`: the step before which nobody wrote these orders."""

    site: BenchSite
    first: int
    head: int


@contextlib.contextmanager
def _orders(scale: float) -> Iterator[_Ground]:
    real, total = int(REAL * scale), int(TOTAL * scale)
    with bench_site() as site:
        site.mariadb.execute(
            ground.WIDE.format(name=_TABLE),
            "create table orders (id int primary key, state varchar(20), total decimal(10,2), changes int)",
            "insert into orders select seq, 'open', seq * 1.5, 0 from seq_1_to_1000",
            database=DATABASE,
        )
        protect(site)
        # What is generated repeats steps from the third granule: no order is written before its end.
        before = max(real // PLACES, 3 * MAX_STEPS + 100)
        each = (real - before) // (PLACES - 1)
        ground.one_row_inserts(site.mariadb, _TABLE, before)
        first = site.captured()
        for place in range(1, PLACES):
            for key in range(KEYS[0] + place - 1, KEYS[1] + 1, PLACES - 1):
                site.mariadb.execute(
                    f"update orders set state = 'lost', changes = changes + 1 where id = {key}", database=DATABASE
                )
            ground.one_row_inserts(site.mariadb, _TABLE, each, before + (place - 1) * each + 1)
        long_log(site, _TABLE, real, total)
        yield _Ground(site, first, site.captured())


def undo_selective(rounds: int, scale: float) -> Report:
    with _orders(scale) as made:
        return _undo(made, rounds)


def _undo(made: _Ground, rounds: int) -> Report:
    site = made.site
    asked = ("--table", _ORDERS, "--keys", f"{KEYS[0]}..{KEYS[1]}", "--from-step", str(made.first))
    seconds, planning = [], []
    plan: dict[str, object] = {}
    for _ in range(2 * rounds + 1):
        started = time.perf_counter()
        plan = dict(site.stage.json("rollback", "undo", SOURCE, *asked))
        seconds.append(time.perf_counter() - started)
        planning.append(_job_seconds(site, str(plan["plan"])))
    started = time.perf_counter()
    site.stage.json("rollback", "run", str(plan["plan"]), "--yes")
    running = time.perf_counter() - started
    left = site.mariadb.execute("select count(*) from orders where state <> 'open' or changes > 0", database=DATABASE)
    if int(left[0][0]) or plan["rows"] != KEYS[1] - KEYS[0] + 1:
        raise RuntimeError(f"{left[0][0]} orders are not as they were; the plan has {plan['rows']} rows")
    figures = {
        "plan_s": statistics.median(seconds[1:]),
        "plan_first_s": seconds[0],
        "planning_s": statistics.median(planning[1:]),
        "run_s": running,
        "rows": float(str(plan["rows"])),
        "log_read_bytes": float(str(plan["bytes"])),
        "steps": made.head,
    }
    return report("undo-selective", seconds[1:], [2.0], "limit", "s", "less", figures)


def _job_seconds(site: BenchSite, plan: str) -> float:
    """What the agent took for a plan, from its command to its event."""
    for job in site.stage.json("job", "list", "--limit", "20")["jobs"]:
        if job["kind"] == "rollback.plan" and (job.get("result") or {}).get("plan") == plan:
            began, ended = (_seconds(job[name]) for name in ("requested", "since"))
            return ended - began
    return float("nan")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def row_history(rounds: int, scale: float) -> Report:
    with _orders(scale) as made:
        return _history(made, rounds)


def _history(made: _Ground, rounds: int) -> Report:
    with contextlib.closing(_connection(made.site)) as connection:
        taken, first = [], 0.0
        for number, key in enumerate(range(KEYS[0], KEYS[0] + 10 * rounds + 1)):
            ms, found = _ask(made.site, connection, key)
            if found != 1:
                raise RuntimeError(f"order {key} has {found} versions in the log, not one")
            if number == 0:
                first = ms
            else:
                taken.append(ms)
        none, _ = _ask(made.site, connection, 999)
        figures = {
            "history_ms": statistics.median(taken),
            "history_p95_ms": percentile(taken, 0.95),
            "first_ms": first,
            "no_version_ms": none,
            "steps": made.head,
        }
    return report("row-history", taken, [1000.0], "limit", "ms", "less", figures)


def _connection(site: BenchSite) -> http.client.HTTPConnection:
    url = urlsplit(site.settings.api.url)
    return http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=60)


def _ask(site: BenchSite, connection: http.client.HTTPConnection, key: int) -> tuple[float, int]:
    """Milliseconds, and how many versions."""
    token = (site.stage.data / "secrets" / "admin.token").read_text().strip()
    started = time.perf_counter()
    connection.request(
        "GET",
        f"/v1/sources/{SOURCE}/rows/{DATABASE}/orders/history?key={key}",
        headers={"Authorization": f"Bearer {token}"},
    )
    answer = connection.getresponse()
    body = answer.read()
    taken = time.perf_counter() - started
    if answer.status != 200:
        raise RuntimeError(f"the API answered {answer.status}: {body[:500]!r}")
    return taken * 1000, len(json.loads(body)["items"])
