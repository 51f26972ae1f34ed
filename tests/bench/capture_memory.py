"""`capture-memory`: the most memory that capture has in use while it takes in one transaction of 2 GB.

The transaction is one statement that inserts rows of 7 KB, so the source's log has it as many events of 8 KB in one step,
which capture splits into parts. Read from the kernel (`VmHWM`), of the whole process: interpreter, Kafka client and all.
Beside it the indexer's, which reads that step back to count its rows. Both shall stay below the limit however large a
transaction is.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient

from streams.consume import read_topic
from streams.events import GranuleClosed
from streams.settings import Settings
from streams.topics import topic_name
from tests.bench import capturing, ground
from tests.bench.ground import DATABASE
from tests.bench.report import Report, report
from tests.stack.servers import config_file

LIMIT_MB = 150.0
TOTAL = 2_000_000_000
ROW = 7_000


@dataclass
class Peak:
    """Of one process, in MB: most resident in all, and most of it that is nobody's file."""

    resident: float = 0.0
    anonymous: float = 0.0

    def look(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines) if "kB" in rest}
            self.resident = max(self.resident, kib.get("VmHWM", 0) / 1000 * 1.024)
            self.anonymous = max(self.anonymous, kib.get("RssAnon", 0) / 1000 * 1.024)


def run(rounds: int, scale: float) -> Report:
    rows = int(TOTAL * scale / ROW)
    peaks: list[Peak] = []
    indexers: list[Peak] = []
    rates: list[float] = []
    with ground.ground() as g:
        g.mariadb.execute(
            "create table big (id int not null primary key, filler varchar(8000) character set ascii) engine=innodb",
            database=DATABASE,
        )
        start = ground.position(g.mariadb)
        with ground.fast_source(g.mariadb) as connection, connection.cursor() as cursor:
            cursor.execute(f"insert into big select seq, repeat(char(65 + seq % 26), {ROW - 12}) from seq_1_to_{rows}")
        for number in range(rounds):
            settings = capturing.prepare(g, f"r{number}", start)
            peak, seconds, size = _captured(settings)
            peaks.append(peak)
            rates.append(size / 1e6 / seconds)
            indexers.append(_indexed(settings))
            _forget(settings)
    figures = {
        "peak_mb": statistics.median(p.resident for p in peaks),
        "peak_anonymous_mb": statistics.median(p.anonymous for p in peaks),
        "indexer_peak_mb": statistics.median(p.resident for p in indexers),
        "capture_mb_s": statistics.median(rates),
        "transaction_mb": rows * ROW / 1e6,
    }
    return report("capture-memory", [p.resident for p in peaks], [LIMIT_MB] * rounds, "limit", "MB", "less", figures)


def _captured(settings: Settings) -> tuple[Peak, float, int]:
    """Capture the one step there is: the peak, the seconds it took, its bytes."""
    peak = Peak()
    with capturing.watermark(settings) as high:
        before = high()
        with capturing.capture(settings) as process, _looking(process, peak):
            ground.until(lambda: high() > before + 1, 60)
            run = capturing.await_steps(settings, high, 1, 400, process)
    return peak, run.seconds, run.payload_bytes


def _indexed(settings: Settings) -> Peak:
    """Index it."""
    peak = Peak()
    argv = [sys.executable, "-P", "-m", "agents.capture.index", "--config", str(config_file(settings))]
    with (settings.data_dir / "index.log").open("wb") as out:
        process = subprocess.Popen([*argv, "--source", capturing.SOURCE], stdout=out, stderr=out)
    commits = topic_name(settings.kafka.prefix, "commits")

    def indexed() -> bool:
        if process.poll() is not None:
            raise RuntimeError((settings.data_dir / "index.log").read_text()[-2000:])
        return any(isinstance(m.event, GranuleClosed) for m in read_topic(settings.kafka, commits))

    try:
        with _looking(process, peak):
            ground.until(lambda: "indexing" in (settings.data_dir / "index.log").read_text(), 60)
            ground.until(indexed, 400, 0.5)
    finally:
        process.terminate()
        process.wait(60)
    return peak


@contextlib.contextmanager
def _looking(process: subprocess.Popen[bytes], peak: Peak) -> Iterator[None]:
    """Look at the process's memory all the time, and once more at the end."""
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.05):
            peak.look(process.pid)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        peak.look(process.pid)


def _forget(settings: Settings) -> None:
    """Give the disk back what the round has captured."""
    client = AdminClient(settings.kafka.client_config())
    for done in client.delete_topics([topic_name(settings.kafka.prefix, "capture", capturing.SOURCE)]).values():
        done.result()
