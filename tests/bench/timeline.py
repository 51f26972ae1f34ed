"""`timeline`: what looking at ten million steps takes, and how many steps a second the index keeps up with.

Pages of 100 steps are asked for over HTTP with one connection kept, as a console would, at several places from the newest to
the oldest; `ours` is the slowest place's median. `filter_ms` is a page of the steps that touched a table which hardly any
touched. The million newest steps are real (`tests.bench.generated` makes the rest, of such steps).

`indexed_steps_s` is one indexer's rate over a backlog of one-row steps, from its first granule in Kafka to its last;
`processed_steps_s` what the timelines processor then applies to the read model, live. Both shall reach 10,000.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from agents.capture.granules import MAX_STEPS
from projections.database import connect
from projections.views import timeline as view
from streams.admin import ensure_topics
from streams.consume import read_topic
from streams.events import GranuleClosed
from streams.settings import Settings
from streams.topics import topic_name
from tests.bench import capturing, ground
from tests.bench.ground import DATABASE
from tests.bench.report import Report, percentile, report
from tests.bench.site import SOURCE, BenchSite, bench_site, long_log, protect
from tests.stack.servers import config_file

REAL = 1_000_000
TOTAL = 10_000_000
BACKLOG = 400_000
LIMIT_MS = 100.0
_TABLE, _RARE = "steps", "rare"


def run(rounds: int, scale: float) -> Report:
    real, total = int(REAL * scale), int(TOTAL * scale)
    indexed = _indexed(rounds, int(BACKLOG * scale))
    with bench_site() as site:
        for table in (_TABLE, _RARE):
            site.mariadb.execute(ground.WIDE.format(name=table), database=DATABASE)
        protect(site)
        ground.one_row_inserts(site.mariadb, _TABLE, real // 2)
        site.mariadb.execute(f"insert into {_RARE} values (1, 'once', 1, now())", database=DATABASE)
        ground.one_row_inserts(site.mariadb, _TABLE, real - real // 2, real // 2 + 1)
        with _Growth(site) as growth:
            long_log(site, _TABLE, real, total, _RARE)
        head = site.captured()
        with contextlib.closing(_Pages(site)) as pages:
            first = pages.ask({"limit": 100})
            places = [None, *(max(101, int(head * share)) for share in (0.9, 0.5, 0.1, 0.05, 0.0))]
            by_place: list[float] = []
            slowest: list[float] = []
            for before in places:
                taken = [pages.ask({"limit": 100, "before": before}).ms for _ in range(10 * rounds + 2)][2:]
                by_place.append(statistics.median(taken))
                slowest.append(percentile(taken, 0.95))
            wanted = {"limit": 100, "table": f"{DATABASE}.{_RARE}"}
            rare_first = pages.ask(wanted)
            rare = [pages.ask(wanted) for _ in range(5 * rounds + 1)][1:]
    figures = {
        "page_ms": max(by_place),
        "page_p95_ms": max(slowest),
        "first_page_ms": first.ms,
        "newest_page_ms": by_place[0],
        "filter_ms": statistics.median(p.ms for p in rare),
        "first_filter_ms": rare_first.ms,
        "filter_found": rare[0].steps,
        "filter_complete": float(rare[0].last),
        "indexed_steps_s": statistics.median(indexed),
        "processed_steps_s": growth.rate(),
        "steps": head,
    }
    return report("timeline", [max(by_place)], [LIMIT_MS], "limit", "ms", "less", figures)


@dataclass(frozen=True, slots=True)
class _Page:
    ms: float
    steps: int
    last: bool


class _Pages:
    """Pages of the source's steps over one connection that is kept."""

    def __init__(self, site: BenchSite) -> None:
        url = urlsplit(site.settings.api.url)
        self._connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=60)
        token = (site.stage.data / "secrets" / "admin.token").read_text().strip()
        self._headers = {"Authorization": f"Bearer {token}"}

    def ask(self, query: dict[str, object]) -> _Page:
        given = urlencode({k: v for k, v in query.items() if v is not None})
        started = time.perf_counter()
        self._connection.request("GET", f"/v1/sources/{SOURCE}/steps?{given}", headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        taken = time.perf_counter() - started
        if answer.status != 200:
            raise RuntimeError(f"the API answered {answer.status}: {body[:500]!r}")
        found = json.loads(body)
        return _Page(taken * 1000, len(found["items"]), found["next"] is None)

    def close(self) -> None:
        self._connection.close()


class _Growth:
    """Looks at how many granules the read model has, again and again, through its restarts."""

    def __init__(self, site: BenchSite) -> None:
        self._site = site
        self._seen: list[tuple[float, int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._end.wait(0.02):
            with contextlib.suppress(Exception), contextlib.closing(connect(self._site.settings.postgres, "b")) as conn:
                while not self._end.wait(0.02):
                    lineages = view.lineages(conn, SOURCE)
                    totals = view.totals(conn, SOURCE, lineages[0]) if lineages else None
                    self._seen.append((time.monotonic(), totals.steps if totals is not None else 0))

    def rate(self) -> float:
        """Steps a second while the newest nine tenths of what was there in the end came in."""
        last = self._seen[-1][1]
        rising = [(at, steps) for at, steps in self._seen if last * 0.11 < steps < last]
        end = next(at for at, steps in self._seen if steps == last)
        if not rising:  # all of it in one transaction
            before = max((s for s in self._seen if s[1] < last), key=lambda s: s[0])
            return (last - before[1]) / (end - before[0])
        return (last - rising[0][1]) / (end - rising[0][0])


def _indexed(rounds: int, steps: int) -> list[float]:
    """Steps a second of an indexer by itself, over a backlog."""
    rates = []
    with ground.ground() as g:
        g.mariadb.execute(ground.WIDE.format(name=_TABLE), database=DATABASE)
        start = ground.position(g.mariadb)
        ground.one_row_inserts(g.mariadb, _TABLE, steps)
        for number in range(rounds + 1):
            capturing.backlog(g, f"index-{number}", start, steps + 1)
            rate = _index(g.settings(f"index-{number}"), steps)
            if number > 0:
                rates.append(rate)
    return rates


def _index(settings: Settings, steps: int) -> float:
    """Index what capture has stored; steps a second between the first and the last granule."""
    commits = topic_name(settings.kafka.prefix, "commits")
    ensure_topics(settings.kafka, [("commits", None)])
    argv = [sys.executable, "-P", "-m", "agents.capture.index", "--config", str(config_file(settings))]
    with (settings.data_dir / "index.log").open("wb") as out:
        process = subprocess.Popen([*argv, "--source", capturing.SOURCE], stdout=out, stderr=out)
    found: list[tuple[int, int]] = []

    def done() -> bool:
        if process.poll() is not None:
            raise RuntimeError((settings.data_dir / "index.log").read_text()[-2000:])
        granules = ((m.timestamp_us, m.event) for m in read_topic(settings.kafka, commits))
        found[:] = [(at, e.last_ordinal) for at, e in granules if isinstance(e, GranuleClosed)]
        return bool(found) and found[-1][1] > steps - MAX_STEPS

    try:
        ground.until(done, 300, 0.5)
    finally:
        process.terminate()
        process.wait(60)
    return (found[-1][1] - found[0][1]) / ((found[-1][0] - found[0][0]) / 1e6)
