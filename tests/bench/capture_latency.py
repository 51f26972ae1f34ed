"""`capture-latency`: from COMMIT acknowledged to the record durable, open loop, 500 commits a second, `sync_binlog=1`.

*Durable* is the moment at which a consumer in a process of its own can read the record: the broker flushes each record
before it lets anybody read it, so this is a little later than the acknowledgement that its producer gets. The same
consumer takes the same moment for all three:

    ours      COMMIT → capture → record readable
    floor     COMMIT → the writer itself produces a plain record of the same size → readable: a capture that costs nothing
    Debezium  COMMIT → embedded engine, `poll.interval.ms` 1, producer with `linger.ms` 0 → readable

All three see the same commits, at the same rate, by the same writers. The first seconds of each are not counted.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from streams.capture_record import step_slices
from streams.codec import decode
from streams.events import CommitsRecorded
from streams.formats.binlog.step import decode_step
from streams.topics import topic_name
from tests.bench import capturing, ground
from tests.bench.debezium import Peer
from tests.bench.ground import DATABASE, Ground
from tests.bench.report import Report, percentile, report
from tests.bench.watching import Commits, Floor, Watch, watch

RATE = 500.0
WARM_S = 5.0
_TABLE = "latency"


def run(rounds: int, scale: float) -> Report:
    counted = int(RATE * max(2.0, 12.0 * scale))
    warm = int(RATE * WARM_S)
    p50: dict[str, list[float]] = {"ours": [], "floor": [], "peer": []}
    p99: dict[str, list[float]] = {"ours": [], "floor": [], "peer": []}
    rates: list[float] = []
    sizes: list[int] = []
    with ground.ground() as g:
        g.mariadb.execute(ground.WIDE.format(name=_TABLE), database=DATABASE)
        load = _Load(g, warm, counted)
        for number in range(rounds + 1):
            found = {"ours": _ours(g, load, f"r{number}", sizes)}
            found["floor"] = _floor(g, load, f"floor-{number}", int(statistics.median(sizes)))
            found["peer"] = _debezium(g, load, f"peer-{number}")
            if number == 0:
                continue
            for who, latencies in found.items():
                p50[who].append(percentile(latencies, 0.5))
                p99[who].append(percentile(latencies, 0.99))
            rates.append(load.rate)
    figures = {
        "p50_ms": statistics.median(p50["ours"]),
        "p99_ms": statistics.median(p99["ours"]),
        "floor_p50_ms": statistics.median(p50["floor"]),
        "floor_p99_ms": statistics.median(p99["floor"]),
        "debezium_p99_ms": statistics.median(p99["peer"]),
        "over_floor_p50_ms": statistics.median(a - b for a, b in zip(p50["ours"], p50["floor"], strict=True)),
        "over_floor_p99_ms": statistics.median(a - b for a, b in zip(p99["ours"], p99["floor"], strict=True)),
        "commits_s": statistics.median(rates),
        "commits_counted": counted,
        "record_bytes": statistics.median(sizes),
    }
    return report(
        "capture-latency", p50["ours"], p50["peer"], "Debezium 3.5 at poll.interval.ms 1", "ms", "less", figures
    )


class _Load:
    """Commits with ids that go on from run to run; `rate` is what the last run reached, in commits a second."""

    def __init__(self, g: Ground, warm: int, counted: int) -> None:
        self._g, self._warm, self._counted = g, warm, counted
        self._next = 1
        self.rate = 0.0

    def run(self, floor: Floor | None = None) -> dict[int, int]:
        """Id → µs of COMMIT's acknowledgement, of the commits that count."""
        acknowledged = self._commit(self._warm + self._counted, RATE, floor)
        counted = dict(sorted(acknowledged.items())[self._warm :])
        self.rate = len(counted) / ((max(counted.values()) - min(counted.values())) / 1e6)
        return counted

    def _commit(self, count: int, rate: float, floor: Floor | None) -> dict[int, int]:
        server = self._g.mariadb
        first, self._next = self._next, self._next + count
        return Commits(
            server.host, server.port, "root", server.root_password, DATABASE, _TABLE, first, count, rate, floor=floor
        ).run()

    def until_seen(self, seen: Watch, who: str, trouble: Callable[[], str] = str) -> None:
        """Commit now and then until the watched topic shows that somebody reads the source."""
        before = seen.count()
        deadline = time.monotonic() + 60
        while seen.count() == before:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{who} does not read the source: {trouble()}")
            self._commit(1, RATE, None)


def _ours(g: Ground, load: _Load, name: str, sizes: list[int]) -> list[float]:
    settings = capturing.prepare(g, name, ground.position(g.mariadb))
    topic = topic_name(settings.kafka.prefix, "capture", capturing.SOURCE)
    with watch(settings.kafka, topic) as seen, capturing.capture(settings) as process:
        ground.until(lambda: seen.count() > 0, 60)  # its epoch
        load.until_seen(seen, "capture")
        acknowledged = load.run()
        _settled(seen)
        if process.poll() is not None:
            raise RuntimeError((settings.data_dir / "capture.log").read_text()[-2000:])
        records = seen.stop()
    readable: dict[int, int] = {}
    for at, value in records:
        event, _ = decode(value)
        if isinstance(event, CommitsRecorded):
            if event.first_ordinal == event.last_ordinal:
                sizes.append(len(value))
            for payload in step_slices(event):
                for change in decode_step(event.preamble, payload):
                    if change.after is not None:
                        readable[int(str(change.after[0]))] = at
    return _latencies(acknowledged, readable, "capture")


def _floor(g: Ground, load: _Load, topic: str, size: int) -> list[float]:
    ground.create_topic(g.kafka, topic)
    with watch(g.kafka, topic) as seen:
        acknowledged = load.run(Floor(g.kafka, topic, size))
        _settled(seen)
        readable = {int(value.split(b" ", 1)[0]): at for at, value in seen.stop()}
    return _latencies(acknowledged, readable, "the floor")


def _debezium(g: Ground, load: _Load, topic: str) -> list[float]:
    ground.create_topic(g.kafka, topic)
    # Its account may not lock tables, and nothing needs to be locked: it starts with the schema, without any rows.
    more = {
        "topic": topic,
        "mode": "latency",
        "limit_s": "900",
        "debezium.poll.interval.ms": "1",
        "debezium.snapshot.locking.mode": "none",
    }
    rival = Peer(g, f"{DATABASE}\\.{_TABLE}", 1 << 40, **more)
    with watch(g.kafka, topic) as seen:
        try:
            rival.start()
            load.until_seen(seen, "Debezium", rival.trouble)
            acknowledged = load.run()
            _settled(seen)
        finally:
            rival.kill()
        readable = {int(json.loads(value)["payload"]["after"]["id"]): at for at, value in seen.stop()}
    return _latencies(acknowledged, readable, "Debezium")


def _settled(seen: Watch, quiet_s: float = 1.0) -> None:
    """Until nothing more has come for a while."""
    count, since = seen.count(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.1)
        now = seen.count()
        if now != count:
            count, since = now, time.monotonic()


def _latencies(acknowledged: dict[int, int], readable: dict[int, int], who: str) -> list[float]:
    """In ms, one for each commit. What came before the writer had its answer counts as 0."""
    missing = [identity for identity in acknowledged if identity not in readable]
    if missing:
        raise RuntimeError(f"{who}: {len(missing)} of {len(acknowledged)} commits never came, such as {missing[0]}")
    return [max(0.0, (readable[i] - at) / 1000) for i, at in acknowledged.items()]
